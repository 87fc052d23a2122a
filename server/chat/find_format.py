"""Which `CallFormat` a chat template speaks, found by rendering made-up calls with it.

A conversation with one call and one with two, of words that no template has, are rendered; what stands around these
words is the format. What is found has to write the same calls as the template did, else it doesn't count. Formats that
can't be found like this are in `named_formats`. Pure, on handler threads; costs a dozen renderings of small
conversations, once for each template.

The way not taken: one row for each known model. Templates are edited, and new models mostly use old forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any

from server.chat.adapt import adapt
from server.chat.find_calls import MARK, Found, common_end, common_start, cut_left, find_calls
from server.chat.named_formats import (
    CONTENT_TAGS,
    END_MARKS,
    QUOTES,
    family_of,
    likely_reasoning,
    named_format,
    named_reasoning,
)
from server.chat.output.formats import GENERIC, Call, CallFormat, IdForm, NamedCall, ParameterCall, Tags
from server.chat.output.write_calls import WrittenCall, write_calls
from server.chat.probe import CALL_ID, NAME, OTHER, WORD, Probe
from server.chat.probe import KEY as FIRST_KEY

QUESTION, RESULT = "b9f1probe", "b9f2probe"
SECOND_KEY, SECOND_NAME, SECOND_ID = "b9f3probe", "b9f4probe", "b9f5probe"
NUMBER = 70197
CALLS = (
    WrittenCall(NAME, {FIRST_KEY: WORD, SECOND_KEY: NUMBER}, CALL_ID, 0),
    WrittenCall(SECOND_NAME, {FIRST_KEY: OTHER, SECOND_KEY: NUMBER}, SECOND_ID, 1),
)
VALUES = (True, None, {FIRST_KEY: 1}, [1])  # of the kinds that have no number or text
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "x",
            "parameters": {
                "type": "object",
                "properties": {FIRST_KEY: {"type": "string"}, SECOND_KEY: {"type": "integer"}},
                "required": [FIRST_KEY],
            },
        },
    }
    for name in (NAME, SECOND_NAME)
]
USER = {"role": "user", "content": QUESTION}


def find_format(probe: Probe) -> CallFormat:
    """The format of the calls and the reasoning of a template; `GENERIC` with its reasoning where it has none."""
    reasoning = find_reasoning(probe)
    found = named_format(probe.source) or probe_format(probe, reasoning) or GENERIC
    found = replace(found, reasoning=found.reasoning or reasoning)
    content = next((tags for tags in CONTENT_TAGS if tags.open in probe.source), None)
    return replace(found, content=found.content or content, ids=find_ids(probe, found))


def find_reasoning(probe: Probe) -> Tags | None:
    """The texts around reasoning, None where a template has none."""
    named = named_reasoning(probe.source)
    if named or not probe.reasoning_key:
        return named or likely_reasoning(probe.source)
    for calls in ((), CALLS[:1]):
        text = _turn(probe, calls, content=OTHER, reasoning=WORD)
        if text is not None and WORD in text:
            before, after = text.split(WORD, 1)
            close = after[: after.find(OTHER)] if OTHER in after else _first_mark(after)
            start = _last_mark(before)
            if start >= 0 and close.strip():
                return Tags(before[start:], close)
    return None


def probe_format(probe: Probe, reasoning: Tags | None) -> CallFormat | None:
    """The format of calls as rendered; None where they don't come out, or in a way that isn't understood."""
    one, two = (_turn(probe, CALLS[:n]) for n in (1, 2))
    if one is None or probe.call_form is None:
        return None
    can_be_many = two is not None and SECOND_NAME in two
    text = two if can_be_many and two is not None else one
    text = _without_reasoning(text, reasoning)
    calls = CALLS[: 1 + can_be_many]
    found = find_calls(text, calls)
    if found is None:
        return None
    stops = _stops(probe)
    made = split_marks(text, found, stops)
    if isinstance(made.call, ParameterCall) and made.call.string_mark:
        made = replace(made, call=_with_all_marks(probe, made.call))
    made = replace(made, at_start=not made.before_all + made.before_call + head(made.call))
    made = replace(made, also_before=("<|python_tag|>",) if made.at_start and "python" in probe.source else ())
    if isinstance(made.call, ParameterCall):
        quotes = next((quotes for quotes in QUOTES if quotes[0] in probe.source), ())
        made = replace(made, call=replace(made.call, quotes=quotes))
    written = write_calls(made, calls)
    is_right = _squeezed(written) in _squeezed(text)
    return replace(made, family=family_of(written)) if is_right else None


def find_ids(probe: Probe, found: CallFormat) -> IdForm:
    """The form of ids that a template demands or shows."""
    if found.ids != IdForm():
        return found.ids
    call = found.call
    if isinstance(call, NamedCall) and call.before_index and "functions." in found.before_call + call.before_name:
        return IdForm(pattern="functions.{name}:{index}")
    if probe.call_form is not None and _turn(probe, [replace(CALLS[0], id="x")]) is None:
        return IdForm("", 9)
    return IdForm()


def _with_all_marks(probe: Probe, call: ParameterCall) -> ParameterCall:
    """With the marks of the other kinds of values, where they aren't all the same."""
    marks = list(call.string_mark)
    for value in VALUES:
        text = _turn(probe, [replace(CALLS[0], arguments={FIRST_KEY: value})]) or ""
        mark = text.partition(FIRST_KEY + call.after_key)[2].partition(call.after_mark)[0]
        marks.append(mark or marks[1])
    return call if len(set(marks)) == 2 else replace(call, string_mark=tuple(marks))


# what stands where in a rendered turn


def _turn(probe: Probe, calls: Sequence[WrittenCall], content: str = "", reasoning: str = "") -> str | None:
    """The assistant's turn from behind its role up to the result's or the next question's text; None if the template
    refuses."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [_as_message(call) for call in calls]
    if reasoning:
        message["reasoning_content"] = reasoning
    results = [{"role": "tool", "tool_call_id": call.id, "name": call.name, "content": RESULT} for call in calls]
    text = _rendered(probe, [USER, message, *results])
    plain = _rendered(probe, [USER, {"role": "assistant", "content": "~"}])
    if text is None or plain is None:
        return None
    start = cut_left(text, len(commonprefix([text, plain])))
    end = text.find(RESULT)
    return text[start : end if end >= 0 else None]


def _rendered(probe: Probe, messages: list[dict[str, Any]]) -> str | None:
    """What stands behind the last question."""
    text = probe.render(adapt(messages, probe), TOOLS)
    return None if text is None or QUESTION not in text else text.rpartition(QUESTION)[2]


def _as_message(call: WrittenCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def _without_reasoning(text: str, reasoning: Tags | None) -> str:
    """Without the empty reasoning that some templates write before calls."""
    close = reasoning.close.strip() if reasoning else ""
    return text.rpartition(close)[2].lstrip() if close else text


def _stops(probe: Probe) -> tuple[str, ...]:
    """Texts that end a turn: what follows an answer without calls, what begins the next turn."""
    text = _rendered(probe, [USER, {"role": "assistant", "content": "~"}, {"role": "user", "content": "x"}]) or ""
    header, _, end = text.partition("~")
    marks = [match[0] for match in MARK.finditer(header)] + [_first_mark(end)]
    return (*filter(None, marks), *END_MARKS)


def _first_mark(text: str) -> str:
    match = MARK.search(text)
    return match[0] if match else ""


def _last_mark(text: str) -> int:
    """Where the last mark begins; -1 if there is none."""
    return max((match.start() for match in MARK.finditer(text)), default=-1)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# from places to a format


def split_marks(text: str, found: Found, stops: Sequence[str]) -> CallFormat:
    """The format of calls that reach over `spans`, from what stands around and between them."""
    start, end = found.spans[0][0], found.spans[-1][1]
    before, after = text[:start], text[end:]
    after = after[: min((at for at in map(after.find, stops) if at >= 0), default=len(after))]
    if len(found.spans) == 1:
        made = CallFormat("", found.call, before_call=before, after_call=after, can_be_many=False)
    else:
        middle = text[found.spans[0][1] : found.spans[1][0]]
        before_call = common_end(before, middle)
        rest = middle[: len(middle) - len(before_call)]
        after_call = common_start(rest, after)
        made = CallFormat(
            "",
            found.call,
            before[: len(before) - len(before_call)],
            after[len(after_call) :],
            before_call,
            after_call,
            rest[len(after_call) :],
        )
    return name_marks(move_space(made))


def move_space(made: CallFormat) -> CallFormat:
    """White space belongs between calls rather than to them, and none to the edges."""
    before_call, after_call = made.before_call.lstrip(), made.after_call.rstrip()
    space = made.before_call[: len(made.before_call) - len(before_call)]
    behind = made.after_call[len(after_call) :]
    return replace(
        made,
        before_all=made.before_all.lstrip() + (space if made.before_all.strip() else ""),
        before_call=before_call,
        between=behind + made.between + space if made.can_be_many else "",
        after_call=after_call,
        after_all=((behind if made.after_all.strip() else "") + made.after_all).rstrip(),
    )


def name_marks(made: CallFormat) -> CallFormat:
    """Where two marks stand before a name, the second one belongs to it, and what closes it to the arguments."""
    call = made.call
    if not isinstance(call, (NamedCall, ParameterCall)) or call.before_name:
        return made
    at, to = made.before_call.rfind("<"), _last_mark(made.after_call)
    if at <= 0 or to <= 0:
        return made
    call = replace(call, before_name=made.before_call[at:], after_arguments=made.after_call[:to])
    return replace(made, call=call, before_call=made.before_call[:at], after_call=made.after_call[to:])


def head(call: Call) -> str:
    """The mark that a call has in itself."""
    return getattr(call, "before_name", "") or getattr(call, "before_id", "")
