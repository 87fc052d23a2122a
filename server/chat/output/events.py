"""The events of one answer, in order: `Start`, then any of `Reasoning`, `Text` and `ToolCall`, then `End`. Dialects
write answers from them.

Plain data. Two of the engine's messages are events too: `Progress` (of the prefill) and `PromptProbs` (probabilities of
the prompt's tokens). Once `parser` has returned an event, nothing changes it. Events aren't frozen, since frozen
records are slower to make.
"""

from __future__ import annotations

from server.engine.seam.task import Final, Progress, PromptProbs, Timings, TokenProbs
from server.records import record


@record
class Start:
    """The first event, except for `PromptProbs`."""


@record
class Text:
    """The next part of the visible text. `tokens` arrived with it. The text of some of them may come with a later
    event, so the last text before `End` may have no tokens. `probs` (the tokens' probabilities) and `timings` are
    present if the request asks for them."""

    text: str
    tokens: tuple[int, ...] = ()
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record
class Reasoning:
    """The next part of the reasoning. The fields are those of `Text`."""

    text: str
    tokens: tuple[int, ...] = ()
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record
class ToolCall:
    """The next part of a call. Only the first part for each `index` has `id` and `name`. The `arguments` of all parts
    for an index, joined, are JSON text in every format; if the call was cut off or is broken, the beginning of it."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    tokens: tuple[int, ...] = ()
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record
class End:
    """The last event. `final` has the reason for the end, the number of tokens and the times."""

    final: Final


Event = Start | Text | Reasoning | ToolCall | End | Progress | PromptProbs
