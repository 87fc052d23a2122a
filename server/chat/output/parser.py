"""From the text of one answer to its events, a piece at a time.

Pure: no thread, no clock, no I/O. One parser per answer; it gives the same events however the text is cut into pieces,
but for where one event of a kind ends and the next begins. `reader` finds reasoning and calls; here tokens, their
probabilities and timings come to the events. Text of a model without a format is passed on as it is, as is text in
which nothing can begin, without a look at the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.chat.output.events import End, Event, Reasoning, Start, Text
from server.chat.output.formats import CallFormat
from server.chat.output.kinds import tool_parameters
from server.chat.output.reader import Reader
from server.engine.seam.task import Final, Piece, Progress, PromptProbs

Message = PromptProbs | Progress | Piece | Final
REASONING = ("none", "split", "legacy")


def _no_id() -> str:
    return ""


class OutputParser:
    """`feed` takes the engine's messages about one answer in order and gives what became ready with each.

    With `parse_calls`, calls of `tools` (OpenAI's form) in this format become `ToolCall` events, with ids of the model
    or `new_id`. `reasoning` is one of REASONING: it stays in the text, is split off, or both.
    """

    __slots__ = ("feed", "_go_on", "_reader")

    def __init__(
        self,
        format: CallFormat | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        parse_calls: bool = False,
        reasoning: str = "none",
        new_id: Callable[[], str] = _no_id,
    ) -> None:
        self.feed: Callable[[Message], Sequence[Event]] = self._begin
        self._go_on: Callable[[Message], Sequence[Event]] = go_on
        known = tool_parameters(tools) if parse_calls else {}
        if format is not None and (known or reasoning != "none"):
            self._reader = Reader(format, known, reasoning, new_id)
            self._go_on = self._read

    def _begin(self, message: Message) -> Sequence[Event]:
        """Until the answer begins; the probabilities of a prompt come before that."""
        if isinstance(message, PromptProbs):
            return (message,)
        self.feed = self._go_on  # from now on: saves a look at the state for each token
        return (Start(), *self._go_on(message))

    def _read(self, message: Message) -> Sequence[Event]:
        """Once the answer of a model with a format has begun."""
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
    """Once the answer of a model without a format has begun."""
    if type(message) is Piece:
        return (Text(message.text, message.tokens, message.probs, message.timings),)
    if isinstance(message, Final):
        end = End(message)
        return (Text(message.text), end) if message.text else (end,)
    return (message,)  # type: ignore[return-value]
