"""From the text of one answer to its events, a piece at a time.

Pure: no thread, no clock, no I/O. One parser per answer; it gives the same events however the text is cut into pieces,
but for where one `Text` ends and the next begins. All text is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.chat.output.events import End, Event, Start, Text
from server.engine.seam.task import Final, Piece, Progress, PromptProbs

Message = PromptProbs | Progress | Piece | Final


class OutputParser:
    """`feed` takes the engine's messages about one answer in order and gives what became ready with each."""

    __slots__ = ("feed",)

    def __init__(self) -> None:
        self.feed: Callable[[Message], Sequence[Event]] = self._begin

    def _begin(self, message: Message) -> Sequence[Event]:
        """Until the answer begins; the probabilities of a prompt come before that."""
        if isinstance(message, PromptProbs):
            return (message,)
        self.feed = go_on  # from now on: saves a look at the state for each token
        return (Start(), *go_on(message))


def go_on(message: Message) -> Sequence[Event]:
    """Once the answer has begun."""
    if type(message) is Piece:
        return (Text(message.text, message.tokens, message.probs, message.timings),)
    if isinstance(message, Final):
        end = End(message)
        return (Text(message.text), end) if message.text else (end,)
    return (message,)  # type: ignore[return-value]
