"""The events of one answer, in order: `Start`, then `Text`, then `End`. Everything a dialect sends is made of them.

A leaf but for the engine's messages. Made by `parser`, once, whether the answer is streamed or collected. Progress of
the prompt (`Progress`) and its tokens' probabilities (`PromptProbs`) are the engine's own messages and come as they
are. Events aren't frozen, because one is made for each token, but nobody changes them.
"""

from __future__ import annotations

from server.engine.seam.task import Final, Progress, PromptProbs, Timings, TokenProbs
from server.records import record


@record
class Start:
    """The first event: the model has begun to write."""


@record
class Text:
    """The next part of what the model says. `tokens` are those that came with it, `probs` theirs if they were asked
    for, `timings` the state of the clock if that was. The text of some of these tokens may come with a later event, and
    the last text before `End` may have no tokens."""

    text: str
    tokens: tuple[int, ...] = ()
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record
class End:
    """The last event, with the engine's account: why the text ended, how many tokens it took and how long."""

    final: Final


Event = Start | Text | End | Progress | PromptProbs
