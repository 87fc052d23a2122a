"""Evaluates the chunks of images and sound (`slots.media`), between the batches of text. Engine thread only.

A batch of libllama has tokens or embeddings, not both. Some models need attention without a causal mask for images, and
the mask applies to a whole batch. So chunks have batches of their own. After its batch of text, a step encodes or
decodes one chunk, for the first running task that is at a chunk and waits for no leader. A step of prompt rows beside
generating slots does neither.
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

ROWS_PER_TOKEN = 16  # rows of text that take as long as a token of media, at worst (a projector may be a large model)

log = get_logger("engine")


class MediaSteps:
    """The work on chunks for slots. `_encoded` is the chunk whose embeddings the backend holds."""

    def __init__(self, state: EngineState, batching: Batching, evaluation: Evaluation, prefixes: Prefixes) -> None:
        self._state = state
        self._prefixes = prefixes
        self._batching = batching
        self._evaluation = evaluation
        self._encoded: Chunk | None = None
        self._slot: Any = None  # the Slot of the planned work

    def free_projector(self) -> bool:
        """Whether the projector is free for other work. It isn't while a running slot still has to decode the encoded
        chunk. An encoded chunk that no such slot waits for is dropped."""
        if self._encoded is not None and any(slot.chunk is self._encoded for slot in self._state.running):
            return False
        self._encoded = None
        return True

    def begin(self) -> int:
        """Choose the slot to work for; return the size of the work in rows of text, 0 if there is none."""
        self._slot = next(
            (slot for slot in self._state.running if slot.chunk is not None and slot.run.leader is None), None
        )
        return 0 if self._slot is None else ROWS_PER_TOKEN * self._slot.chunk.n_tokens

    def step(self) -> None:
        """Do the work that `begin` has chosen."""
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
        """Decode a whole chunk into the cache; then go on as with other prompt rows."""
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
