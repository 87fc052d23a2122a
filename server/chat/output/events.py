"""The events of one answer, in order: `Start`, then any of `Reasoning`, `Text`, `ToolCall`, then `End`. Everything a
dialect sends is made of them.

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
class Reasoning:
    """The next part of what the model thinks before it answers; the fields are those of `Text`."""

    text: str
    tokens: tuple[int, ...] = ()
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record
class ToolCall:
    """The next part of a call. The first one of each `index` has `id` and `name`, later ones neither. All `arguments`
    of an index in a row are the JSON text of an object, whatever form the model has written them in; of a call that was
    cut off they are its beginning."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    tokens: tuple[int, ...] = ()
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record
class End:
    """The last event, with the engine's account: why the text ended, how many tokens it took and how long."""

    final: Final


Event = Start | Text | Reasoning | ToolCall | End | Progress | PromptProbs
