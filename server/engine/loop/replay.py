"""Going on with a task that another engine had begun: the tokens it delivered are fed again, not drawn again.

Engine thread only. A resumed task takes the same way as any other, prompt first, but as long as `Task.resume` has
tokens left, these are what "comes out" of a draw. The draw is made all the same, from the logits of the same place,
and only its result is replaced: so the random numbers used, mirostat's and adaptive-p's memory, penalties and grammar
are afterwards what they were. The text is fed through the same stream and thrown away, since the client has it. A
context that is full is shifted at the same tokens as before.

Known tokens travel as drafts do (rows with logits behind the row of the sequence's latest token), only that nothing
about them is a guess. Not taken: putting all of them behind the prompt and telling the sampler how many numbers to
skip (libllama has no such call, and not every stage draws once per token).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.engine.loop.state import EngineState
from server.engine.slots.planner import UNLIMITED, Span
from server.engine.slots.slot import Run, Slot

MAX_LOGITS = 64 << 20  # bytes that a batch may ask for the logits of known tokens (they are kept for good)


def extend(state: EngineState, spans: Sequence[Span]) -> None:
    """Let the spans of resumed tasks carry as many known tokens as fit into the batch and the slot's context.

    With `exact` none: then every row has to be computed as it was before, alone.
    """
    slots = {span.id: state.slots[span.id] for span in spans if _is_within(state.slots[span.id].run)}
    info = state.backend.info
    n_logits = 0 if state.config.exact else max(MAX_LOGITS // (4 * info.n_vocab), len(slots))
    room = min(n_logits, info.n_batch - sum(map(len, spans)))
    for span in spans:
        if span.id in slots:
            known = _known(slots[span.id], room // len(slots))
            span.tokens = [*span.tokens, *known]
            span.n_draft = len(known)


def redraw(state: EngineState, run: Run, rows: Iterable[int]) -> None:
    """Take the known tokens for these rows of the batch."""
    for row in rows:
        token = run.task.resume[run.n_decoded]
        run.sampler.replay(row, token)
        run.text.feed(state.backend.piece(token))
        run.n_decoded += 1
        run.next_token = token
    run.t_last = state.clock()
    run.t_first = run.t_first or run.t_last
    if not run.is_replaying:
        _go_on(run)


def _is_within(run: Run) -> bool:
    """Whether the prompt has been read and known tokens are left."""
    return run.is_replaying and run.next_token is not None


def _known(slot: Slot, room: int) -> tuple[int, ...]:
    """Tokens behind the latest one whose successors are known, too."""
    n = min(room, slot.n_ctx - len(slot.tokens) - 1, UNLIMITED if slot.positions is None else slot.positions.room - 1)
    return slot.run.task.resume[slot.run.n_decoded : -1][: max(n, 0)]


def _go_on(run: Run) -> None:
    """Let the task's clock show the time that the dead engine took instead of the replay's."""
    late = run.t_last - run.task.resume_ms / 1e3 - run.t_first
    run.t_start += late
    run.t_first += late
