"""Feeds texts to the parser and joins the events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from server.chat.output.events import End, Event, Reasoning, Start, Text, ToolCall
from server.chat.output.formats import CallFormat
from server.chat.output.parser import OutputParser
from server.engine.seam.task import STOP_EOS, Final, Piece, Timings


def final(stop: str = STOP_EOS, text: str = "") -> Final:
    return Final(1, 0, text, stop, "", 1, 1, 0, False, Timings(0, 1, 1.0, 1, 1.0))


def read(
    form: CallFormat | None,
    tools: Sequence[Mapping[str, Any]],
    pieces: str | Iterable[str],
    *,
    stop: str = STOP_EOS,
    reasoning: str = "split",
    parse_calls: bool = True,
    last: str = "",
) -> list[Event]:
    """The events of an answer that comes in these pieces, and `last` with its end, without `Start` and `End`."""
    numbers = count()
    parser = OutputParser(
        form, tools, parse_calls=parse_calls, reasoning=reasoning, new_id=lambda: f"new{next(numbers)}"
    )
    events: list[Event] = []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        events += parser.feed(Piece(1, (7,), piece))
    events += parser.feed(final(stop, last))
    assert isinstance(events[0], Start) and isinstance(events[-1], End)
    return events[1:-1]


def joined(events: Iterable[Event]) -> list[Event]:
    """Events with neighbours of a kind made one, and without empty ones."""
    found: list[Any] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, (Text, Reasoning)):
            if type(last) is type(event):
                last.text += event.text
            elif event.text:
                found.append(type(event)(event.text))
        elif isinstance(event, ToolCall):
            if type(last) is ToolCall and last.index == event.index:
                assert not event.id and not event.name
                last.arguments += event.arguments
            else:
                found.append(ToolCall(event.index, event.id, event.name, event.arguments))
    return found


def cuts(text: str) -> dict[str, list[str]]:
    """Ways to cut a text into pieces: whole, letter by letter, in threes, and with the last letter apart."""
    ways = {"whole": [text], "tail": [text[:-1], text[-1:]]}
    return ways | {f"in {n}s": [text[i : i + n] for i in range(0, len(text), n)] for n in (1, 3, 5)}
