"""Makes the events of one answer from the engine's messages.

Pure: no thread, no clock, no I/O. One parser per answer. However the text is cut into pieces, the events are the same,
except that one may become several of the same kind. `reader` finds reasoning and calls; this module adds tokens,
probabilities and timings. A piece bypasses the reader if nothing is held back and no marker can begin in the piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.chat.output.events import End, Event, Reasoning, Start, Text
from server.chat.output.formats import CallFormat
from server.chat.output.kinds import read_tool_parameters
from server.chat.output.reader import Reader
from server.engine.seam.task import Final, Piece, Progress, PromptProbs

Message = PromptProbs | Progress | Piece | Final
REASONING = ("none", "split", "legacy")


def _make_no_id() -> str:
    return ""


class OutputParser:
    """`feed` takes the engine's messages about one answer in order, and returns the events that each message completes.

    With `parse_calls`, calls of `tools` (in OpenAI's form) become `ToolCall` events. Their ids are the model's or come
    from `new_id`. `reasoning` is one of REASONING: it stays in the text, becomes `Reasoning` events, or both.
    """

    __slots__ = ("feed", "_go_on", "_reader")

    def __init__(
        self,
        format: CallFormat | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        parse_calls: bool = False,
        reasoning: str = "none",
        new_id: Callable[[], str] = _make_no_id,
    ) -> None:
        self.feed: Callable[[Message], Sequence[Event]] = self._begin
        self._go_on: Callable[[Message], Sequence[Event]] = go_on
        known = read_tool_parameters(tools) if parse_calls else {}
        if format is not None and (known or reasoning != "none"):
            self._reader = Reader(format, known, reasoning, new_id)
            self._go_on = self._read

    def _begin(self, message: Message) -> Sequence[Event]:
        """`feed` until the answer begins. Only the probabilities of the prompt come before that."""
        if isinstance(message, PromptProbs):
            return (message,)
        self.feed = self._go_on  # saves a test of the state for each token
        return (Start(), *self._go_on(message))

    def _read(self, message: Message) -> Sequence[Event]:
        """`feed` with a reader, once the answer has begun."""
        reader = self._reader
        if type(message) is Piece:
            if reader.is_plain and not reader.may_begin(message.text):
                return (Text(message.text, message.tokens, message.probs, message.timings),)
            events = reader.feed(message.text) or [Reasoning("") if reader.is_thinking else Text("")]
            first = events[0]
            first.tokens, first.probs, first.timings = message.tokens, message.probs, message.timings
            return events
        if isinstance(message, Final):
            return (*reader.feed(message.text, message.stop), End(message))
        return (message,)  # type: ignore[return-value]


def go_on(message: Message) -> Sequence[Event]:
    """`feed` without a reader, once the answer has begun."""
    if type(message) is Piece:
        return (Text(message.text, message.tokens, message.probs, message.timings),)
    if isinstance(message, Final):
        end = End(message)
        return (Text(message.text), end) if message.text else (end,)
    return (message,)  # type: ignore[return-value]
