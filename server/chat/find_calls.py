"""Finds given calls in a text, and how they are written, for `find_format`. Pure, any thread."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix

from server.chat.output.formats import (
    KEY,
    Call,
    JsonCall,
    KeyedCall,
    NamedCall,
    ParameterCall,
    PythonCall,
    QuotelessCall,
)
from server.chat.output.write_calls import WrittenCall
from server.records import record, replace

# a mark: a tag or the text of a special token, such as <tool_call>, [TOOL_CALLS] or ]<]minimax[>[
MARK = re.compile(r"\]<\]\w+\[>\[|<[^<>\s][^<>]*>|\[/?[A-Z_]+\]")
MAX_CANDIDATES = 40  # opening braces before a call's name that are tried as the beginning of its object
Span = tuple[int, int]


@record(frozen=True)
class Found:
    """Calls found in a text: how they are written, and the span (start, end) of each."""

    call: Call
    spans: tuple[Span, ...]


def find_calls(text: str, calls: Sequence[WrittenCall]) -> Found | None:
    """Find these calls in the text; None if they are written in no known way."""
    for find in (find_objects, find_named, find_python, find_quoteless, find_parameters):
        found = find(text, calls)
        if found is not None:
            return found
    return None


def find_objects(text: str, calls: Sequence[WrittenCall]) -> Found | None:
    """Calls that are JSON objects with the name and the arguments."""
    spans = []
    kinds = []
    for call in calls:
        at = text.find(call.name)
        starts = [match.start() for match in re.finditer("{", text[:at])][-MAX_CANDIDATES:]
        for start in reversed(starts):
            value, end = read_object(text, start)
            kind = None if value is None else _kind_of(value, call)
            if kind is not None:
                spans.append((start, end))
                kinds.append(kind)
                break
    return Found(kinds[0], tuple(spans)) if len(spans) == len(calls) else None


def _kind_of(value: Mapping[str, object], call: WrittenCall) -> Call | None:
    if value == {call.name: call.arguments}:
        return KeyedCall()
    keys = list(value)
    name_key = next((key for key in keys if value[key] == call.name), None)
    arguments_key = next((key for key in keys if value[key] == call.arguments), None)
    if name_key is None or arguments_key is None or len(keys) > 3:
        return None
    id_key = next((key for key in keys if key not in (name_key, arguments_key)), "")
    is_number = value.get(id_key) == str(call.index)
    return JsonCall(name_key, arguments_key, id_key, bool(id_key) and keys[0] == id_key, is_number)


def find_named(text: str, calls: Sequence[WrittenCall]) -> Found | None:
    """Calls that are a name followed by the arguments as a JSON object."""
    spans = []
    heads = []
    for call in calls:
        start = text.find(call.name)
        end = start + len(call.name)
        at = text.find("{", end)
        value, stop = read_object(text, at) if start >= 0 and at >= 0 else (None, 0)
        if value != call.arguments:
            return None
        spans.append((start, stop))
        heads.append(text[end:at])
    call_ids = [call.id for call in calls]
    if all(call_id in head for call_id, head in zip(call_ids, heads, strict=True)):
        before, _, after = heads[0].partition(call_ids[0])
        return Found(NamedCall("", after, before_id=before), tuple(spans))
    before, after = _split_around_number(heads)
    return Found(NamedCall("", after, before_index=before), tuple(spans))


def _split_around_number(heads: Sequence[str]) -> tuple[str, str]:
    """The first head before and after its number; "" and the whole head if it has none, or if all heads are equal."""
    if len(set(heads)) == 1:
        return "", heads[0]
    match = re.search(r"\d+", heads[0])
    return (heads[0][: match.start()], heads[0][match.end() :]) if match else ("", heads[0])


def find_python(text: str, calls: Sequence[WrittenCall]) -> Found | None:
    spans = []
    for call in calls:
        match = re.search(rf"{call.name}\((\w+)=(['\"])\w+\2, \w+=\d+\)", text)
        if match is None:
            return None
        spans.append(match.span())
    return Found(PythonCall(), tuple(spans))


def find_quoteless(text: str, calls: Sequence[WrittenCall]) -> Found | None:
    """Calls with an object whose keys have no quotes."""
    spans = []
    for call in calls:
        first, second = call.arguments
        match = re.search(
            rf"{call.name}([^{{]*){{{first}:(.*?){call.arguments[first]}\2,{second}:{call.arguments[second]}}}", text
        )
        if match is None:
            return None
        kind = QuotelessCall("", match[1], match[2])
        spans.append(match.span())
    return Found(kind, tuple(spans))


def find_parameters(text: str, calls: Sequence[WrittenCall]) -> Found | None:
    """Calls with a tag for each argument."""
    kinds: list[ParameterCall] = []
    spans: list[Span] = []
    for call in calls:
        (first, value), (second, number) = call.arguments.items()
        places = _find_places(text, (call.name, first, str(value), second, str(number)), spans[-1][1] if spans else 0)
        if places is None:
            return None
        gaps = [text[a_end:b_start] for (_, a_end), (b_start, _) in zip(places, places[1:], strict=False)]
        tail = text[places[-1][1] :]
        kind = _make_parameter_call(gaps, first, tail.replace(second, first, 1))
        if not (kind.before_key and kind.after_key and kind.after_value and all(kind.string_mark)) or (
            kind.string_mark and not kind.after_mark
        ):
            return None  # a parser couldn't find the end of a name or value
        kinds.append(kind)
        spans.append((places[0][0], places[-1][1] + len(kinds[-1].after_value.replace(KEY, second))))
    before, after = _split_around_number([kind.after_name for kind in kinds])
    return Found(replace(kinds[0], before_index=before, after_name=after), tuple(spans))


def _find_places(text: str, words: Sequence[str], at: int) -> list[Span] | None:
    """The spans of these words, searched in order from `at` on; None if one is missing."""
    places = []
    for word in words:
        start = text.find(word, at)
        if start < 0:
            return None
        at = start + len(word)
        places.append((start, at))
    return places


def _make_parameter_call(gaps: Sequence[str], key: str, tail: str) -> ParameterCall:
    """The format of a call. `gaps` are the texts between its name, first key (`key`), string, second key and number;
    `tail` is the text behind them."""
    head, to_text, between, to_number = gaps
    before_key = find_common_end(head, between)
    after_value = between[: len(between) - len(before_key)]
    space = before_key[: len(before_key) - len(before_key.lstrip())]
    if space and tail.startswith(after_value + space):
        before_key, after_value = before_key[len(space) :], after_value + space
    after_key, marks, after_mark = _split_around_marks(to_text, to_number)
    after_name = head[: len(head) - len(before_key)]
    return ParameterCall("", after_name, before_key, after_key, after_value.replace(key, KEY), "", marks, after_mark)


def _split_around_marks(one: str, other: str) -> tuple[str, tuple[str, ...], str]:
    """Compare two texts word by word. Returns the text before the first words that differ, these two words, and the
    text after them in `one`. For equal texts: (`one`, no words, "")."""
    if one == other:
        return one, (), ""
    first, second = (re.split(r"(\w+)", text) for text in (one, other))
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return "".join(first[:at]), (first[at], second[at]), "".join(first[at + 1 :])


def read_object(text: str, at: int) -> tuple[dict[str, object] | None, int]:
    """The JSON object that begins at `at`, and its end; (None, `at`) if there is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at
    return (value, end) if isinstance(value, dict) else (None, at)


def find_common_start(one: str, other: str) -> str:
    """The common beginning of two texts; it doesn't end inside a mark."""
    length = len(commonprefix([one, other]))
    for text in (one, other):
        length = min(length, cut_left(text, length))
    return one[:length]


def find_common_end(one: str, other: str) -> str:
    """The common end of two texts; it doesn't begin inside a mark."""
    length = len(commonprefix([one[::-1], other[::-1]]))
    for text in (one, other):
        length = min(length, len(text) - cut_right(text, len(text) - length))
    return one[len(one) - length :]


def cut_left(text: str, at: int) -> int:
    """The beginning of the mark around this offset; the offset itself if it isn't inside a mark."""
    return next((match.start() for match in MARK.finditer(text) if match.start() < at < match.end()), at)


def cut_right(text: str, at: int) -> int:
    """The end of the mark around this offset; the offset itself if it isn't inside a mark."""
    return next((match.end() for match in MARK.finditer(text) if match.start() < at < match.end()), at)
