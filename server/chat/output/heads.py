"""The beginnings of calls (heads) in each format: fixed texts, with variable parts between them. Pure.

A head is a list of parts, which `calls` compares with the text in order. Fixed texts are split at line ends and before
a `[` at the end of a line, since models vary the white space there.
"""

from __future__ import annotations

import re

from server.chat.output.formats import NAME as AGAIN
from server.chat.output.formats import CallFormat, ChannelCall, NamedCall, ParameterCall, PythonCall, QuotelessCall
from server.records import record

NAME, ID, INDEX, OBJECT = "name", "id", "index", "object"
MARKER_MIN = 4  # characters; a shorter text is too common to be a marker


@record(frozen=True)
class Part:
    """A fixed `text`, or a variable part of a `kind`: NAME, ID, INDEX, or OBJECT (the rest of a JSON object)."""

    text: str = ""
    kind: str = ""


@record(frozen=True)
class Head:
    """The parts of a call's beginning. `in_group`: the text before all calls is among them or came earlier."""

    parts: tuple[Part, ...]
    in_group: bool


def split_words(text: str) -> list[str]:
    """Split a format's text as heads are split, without white space around the words."""
    found = []
    for line in text.split("\n"):
        match = re.fullmatch(r"\s*(.*?)\s*(\[?)\s*", line)
        found += [] if match is None else [word for word in match.groups() if word]
    return found


def find_first_word(*texts: str) -> str:
    """The first word of the first text that has one."""
    return next((word for text in texts for word in split_words(text)), "")


def make_fixed_parts(*texts: str) -> list[Part]:
    return [Part(word) for text in texts for word in split_words(text)]


def make_own_parts(form: CallFormat) -> list[Part]:
    """The parts of a head that depend on the kind of call; they follow `before_all` and `before_call`."""
    call = form.call
    if isinstance(call, NamedCall):
        identity = [*make_fixed_parts(call.before_id), Part(kind=ID)] if call.before_id else []
        index = [*make_fixed_parts(call.before_index), Part(kind=INDEX)] if call.before_index else []
        name = [*make_fixed_parts(call.before_name), Part(kind=NAME)]
        return [*(identity + name if call.id_first else name + identity), *index, *make_fixed_parts(call.after_name)]
    if isinstance(call, ParameterCall):
        index = [*make_fixed_parts(call.before_index), Part(kind=INDEX)] if call.before_index else []
        first, *more = call.after_name.split(AGAIN)
        again = [part for text in more for part in (Part(kind=NAME), *make_fixed_parts(text))]
        return [*make_fixed_parts(call.before_name), Part(kind=NAME), *index, *make_fixed_parts(first), *again]
    if isinstance(call, QuotelessCall):
        return [*make_fixed_parts(call.before_name), Part(kind=NAME), *make_fixed_parts(call.after_name), Part("{")]
    if isinstance(call, PythonCall):
        return [Part(kind=NAME), Part("(")]
    return [Part("{"), Part(kind=OBJECT)]


def make_next_head(form: CallFormat) -> Head:
    """The head of a call that follows another call."""
    return Head((*make_fixed_parts(form.before_call), *make_own_parts(form)), bool(form.before_all))


def start_head(form: CallFormat) -> Head:
    """The head of the first call, with the text before all calls."""
    return Head((*make_fixed_parts(form.before_all), *make_next_head(form).parts), bool(form.before_all))


def join_fixed_parts(head: Head) -> str:
    return "".join(part.text for part in head.parts)


def find_marks(form: CallFormat, *ends: str) -> list[str]:
    """Those fixed texts of heads, silent texts and `ends` that can't be a name or a key."""
    texts = [part.text for part in (*start_head(form).parts, *make_fixed_parts(*form.also_before, *form.silent))]
    return [text for text in {*texts, *ends} if is_mark(text)]


def is_mark(text: str) -> bool:
    return len(text) >= MARKER_MIN and not text[0].isalnum()


def find_heads(form: CallFormat) -> dict[str, Head]:
    """The heads with which a call can begin inside a text, by their marker (the first part). Models sometimes forget
    the text before all calls or before each call; such a call is recognized if its next part can be a marker."""
    if isinstance(form.call, ChannelCall):
        return {}
    own = make_own_parts(form)
    found: dict[str, Head] = {}
    ways = [] if form.at_start else [start_head(form)]
    if form.before_all:
        ways.append(Head(make_next_head(form).parts, False))
    ways.append(Head(tuple(own), False))
    ways += [Head((*make_fixed_parts(text), *own), False) for text in form.also_before]
    for head in ways:
        marker = head.parts[0].text
        if is_mark(marker) or marker and head is ways[0] and not form.at_start:
            found.setdefault(marker, head)
    return found
