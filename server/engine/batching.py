"""What goes into the next batch: the running slots as jobs, with the step's limits, for `planner.plan`.

Engine thread only. Policy about who has a turn stands here, arithmetic about rows in `planner`.
"""

from __future__ import annotations

from server.engine import planner, prompt_cache, prompt_probs
from server.engine.checkpoints import Checkpoints
from server.engine.pace import Pace
from server.engine.planner import Job, Span
from server.engine.prefixes import Prefixes
from server.engine.slot import Slot
from server.engine.state import EngineState

NOBODY: frozenset[int] = frozenset()
STALLS_ALONE = 4
"""A step without a stream in it may take so many times the stall: nobody reads, but newcomers wait for its end."""

EVEN_ROWS = 16
"""Matrix kernels work in tiles: one row more than a multiple of this costs up to a sixth of the step."""


class Batching:
    """Plans one batch after the other. `in_prefill` are the tasks of a batch with prompt rows; any thread may read
    it."""

    def __init__(self, state: EngineState, prefixes: Prefixes) -> None:
        self._state = state
        self._prefixes = prefixes
        self.in_prefill = NOBODY
        self._pace = Pace()
        self._checkpoints = Checkpoints(state.backend, state.config.n_checkpoints, state.config.checkpoint_step)
        self._n_generating = self._n_prompt = 0     # rows of the latest plan
        self._served: dict[tuple, int] = {}

    def plan(self) -> list[Span]:
        """The rows of the next batch. One batch has one set of adapters; sets take turns."""
        running = [slot for slot in self._state.running if not (slot.run.leader and self._prefixes.must_wait(slot))
                   and slot.chunk is None]
        if not running:
            return []
        if self._state.config.exact:
            running = [min(running, key=lambda slot: slot.t_served)]
            running[0].t_served = self._state.clock()
        elif len(running) > 1 and self._state.backend.adapters:
            running = self._turn(running)
        self._state.backend.set_lora(running[0].lora)
        if self._state.backend.is_split:        # rows in the order of the cache's streams: see `Backend`
            running = sorted(running, key=_place)
        jobs = [self._job(slot) for slot in running]
        self._n_generating = sum(not job.is_prefill for job in jobs)
        if self._n_generating == len(jobs):
            self.in_prefill, self._n_prompt = NOBODY, 0
            return planner.plan(jobs, self._state.backend.info.n_batch, 0)
        self.in_prefill = frozenset(slot.run.task.id for slot in self._state.running)
        spans = planner.plan(jobs, self._state.backend.info.n_batch, self._prompt_rows())
        self._n_prompt = sum(map(len, spans[self._n_generating:]))
        return spans

    def measured(self, ms: float) -> None:
        """The planned batch took `ms`."""
        self._pace.observe(self._n_generating, self._n_prompt, ms)

    def _prompt_rows(self) -> int:
        """The budget of this step. Without a stream a whole micro-batch at least: less would only cost speed."""
        limit_ms, config = self._state.config.max_stall_ms, self._state.config
        if limit_ms == 0 or config.exact:       # steps of other lengths round differently
            return planner.UNLIMITED
        if self._n_generating:
            n = self._n_generating + self._pace.rows_beside_streams(limit_ms)
            return n - self._n_generating - (n % EVEN_ROWS if n > EVEN_ROWS else 0)
        n = max(self._pace.rows_alone(STALLS_ALONE * limit_ms), config.n_ubatch)
        return n - n % config.n_ubatch

    def _turn(self, running: list[Slot]) -> list[Slot]:
        """Of slots with different adapters, those whose set has waited longest."""
        sets = {slot.lora for slot in running}
        if len(sets) == 1:
            return running
        turn = min(sets, key=lambda lora: self._served.get(lora, -1))
        self._served = {lora: self._served.get(lora, -1) for lora in sets}
        self._served[turn] = self._state.meter.n_steps
        return [slot for slot in running if slot.lora == turn]

    def _job(self, slot: Slot) -> Job:
        is_prefill = slot.run.next_token is None
        all_rows = is_prefill and prompt_probs.are_wanted(slot.run)
        limit = prompt_probs.MAX_ROWS if all_rows else planner.UNLIMITED
        if slot.positions is None:
            pending = slot.pending
            if is_prefill and self._checkpoints.is_on:
                pending = pending[:self._checkpoints.rows(slot)]
            ends = not is_prefill or len(slot.tokens) + len(pending) == len(slot.run.prompt)
            return Job(slot.id, slot.seq, len(slot.tokens), pending, is_prefill, limit, ends, all_rows)
        prompt_cache.fold(self._state.backend, slot)
        return Job(slot.id, slot.seq, slot.next_pos, slot.pending, is_prefill, min(slot.positions.room, limit),
                   all_rows=all_rows)


def _place(slot: Slot) -> tuple[bool, int]:
    """Generating slots in the order of their sequences, then prompts in that of their arrival."""
    return (True, 0) if slot.run.next_token is None else (False, slot.seq)
