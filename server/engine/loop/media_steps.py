"""Evaluating images and sound: chunks of embeddings, between other slots' batches. Engine thread only.

libllama takes tokens or embeddings in a batch, not both, and some models look at an image from all sides at once, which
holds for a whole batch. So a chunk is evaluated apart. Each step of the loop does one piece of such work, encoding a
chunk or decoding it, for the slot whose task came first; before it comes the batch of all the others.
"""

from __future__ import annotations

from typing import Any

from server.engine.loop.batching import Batching
from server.engine.loop.evaluation import Evaluation
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.state import EngineState
from server.engine.slots.backend import DECODE_ABORTED, DECODE_NO_ROOM, DECODE_OK
from server.engine.slots.media import Chunk
from server.engine.slots.planner import Span
from server.engine.slots.slot import Slot
from server.log import get_logger

ROWS_PER_TOKEN = 16  # of text, when it comes to patience: some projectors are larger than the model they see for

log = get_logger("engine")


class MediaSteps:
    """What the loop calls in each step. `_encoded` is the chunk whose embeddings the backend holds."""

    def __init__(self, state: EngineState, batching: Batching, evaluation: Evaluation, prefixes: Prefixes) -> None:
        self._state = state
        self._prefixes = prefixes
        self._batching = batching
        self._evaluation = evaluation
        self._encoded: Chunk | None = None
        self._slot: Any = None  # the Slot to work for

    def let_go(self) -> bool:
        """Whether somebody else may have the projector encode now: not while a chunk is encoded and not evaluated."""
        if self._encoded is not None and any(slot.chunk is self._encoded for slot in self._state.running):
            return False
        self._encoded = None
        return True

    def begin(self) -> int:
        """Whether there is a piece of work, as the number of text rows that it may take the time of; 0 for none."""
        self._slot = next(
            (slot for slot in self._state.running if slot.chunk is not None and slot.run.leader is None), None
        )
        return 0 if self._slot is None else ROWS_PER_TOKEN * self._slot.chunk.n_tokens

    def step(self) -> None:
        """Do the piece of work that `begin` has found."""
        slot = self._slot
        try:
            if self._encoded is not slot.chunk:
                self._encoded = None
                self._state.backend.media.encode(slot.chunk)
                self._encoded = slot.chunk
            else:
                self._decode(slot, slot.chunk)  # type: ignore[arg-type]
        except Exception as error:
            self._encoded = None
            log.exception("task %d: its media could not be evaluated", slot.run.task.id)
            self._state.fail(slot.run.task.id, 500, f"the media of this request could not be evaluated: {error}")
            self._state.drop(slot, keep_cache=False)

    def _decode(self, slot: Slot, chunk: Chunk) -> None:
        """Into the cache with it, all or nothing; then on as with any other prompt rows."""
        state = self._state
        start = len(slot.tokens)
        is_last = start + len(chunk.ids) == len(slot.run.prompt)
        span = Span(slot.id, slot.seq, start, chunk.ids, is_last)
        state.backend.set_lora(slot.lora)
        self._batching.in_prefill = frozenset((slot.run.task.id,))
        while True:
            code, row = state.backend.media.decode(chunk, slot.seq, start, is_last)
            if code == DECODE_OK:
                self._encoded = None
                self._evaluation.commit(span, row)
                return
            self._evaluation.undo([span])
            if slot.run is None or code == DECODE_ABORTED:
                return
            if code != DECODE_NO_ROOM or not (self._prefixes.make_room() or self._prefixes.step_aside()):
                self._evaluation.isolate([span], code)
                return
            if slot.aside is not None:
                return
