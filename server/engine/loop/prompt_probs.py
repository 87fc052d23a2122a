"""How likely a model finds the tokens of a prompt: all of its rows are outputs, and each row judges the token after it.

Engine thread, from `evaluation`. The rows come in parts, because logits of each take a float per word of the
vocabulary; one row's softmax costs about a millisecond with 50,000 words, all of it in C. What a cache holds has no
logits, so nothing of such a prompt is reused but the system prompt, which isn't judged.
"""

from __future__ import annotations

from server.engine.loop.state import EngineState
from server.engine.seam.task import PromptProbs
from server.engine.slots.slot import Run, Slot

MAX_ROWS = 64


def are_wanted(run: Run) -> bool:
    """Whether the tokens of this task's prompt are to be judged."""
    return run.task.prompt_probs >= 0


def report(state: EngineState, slot: Slot, first_row: int, start: int, n: int) -> None:
    """Tell what the `n` rows from `first_row` of the batch on, which hold the prompt from `start` on, think of the
    tokens behind theirs. Places are counted from the beginning of the task's own prompt."""
    run = slot.run
    n_system = len(run.prompt) - len(run.task.prompt)
    begin, end = max(start + 1, n_system + 1), min(start + n + 1, len(run.prompt))
    if begin < end:
        probs = tuple(
            run.sampler.row_probs(first_row + place - start - 1, run.prompt[place], run.task.prompt_probs)
            for place in range(begin, end)
        )
        state.events.append(PromptProbs(run.task.id, begin - n_system, probs))
