"""Plans the next batch: rows of the generating slots, or some prompt rows.

Engine thread only. Between two steps of the generating slots, prompts get about `--max-stall-ms`, for one step or
several short ones. This module is the policy; `planner` makes the spans, `pace` predicts times.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cache import prompt_cache
from server.engine.cache.prompt_cache import Checkpoints
from server.engine.loop.evaluation import PROMPT_PROBS_ROWS, cut_out, has_prompt_probs
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.state import EngineState
from server.engine.seam.turns import Turns
from server.engine.slots import planner
from server.engine.slots.pace import TILE, Pace, Spare
from server.engine.slots.planner import Job, Span
from server.engine.slots.slot import Slot

NO_TASKS: frozenset[int] = frozenset()
STALLS_ALONE = 4
"""Prompts may take this many times `--max-stall-ms` while no generating slot with the same adapters streams."""

STALLS_BEGUN, BEGUN_S = 96, 1.0
"""While no generating slot has more than one token, a step that reads prompts to their ends may take `STALLS_BEGUN`
times its usual limit. Its first prompt must have come at most `BEGUN_S` seconds after that of the oldest of these
slots. So a group of requests begins to generate together."""

TOGETHER_S, ALIKE = 0.1, 1.5
"""Prompts have come together if they arrived within `TOGETHER_S` seconds. `_put_first` may prefer one with at most
`ALIKE` times the first one's tokens."""

SLOW_S = 0.005
"""Seconds of processor time; a draw that takes longer is slow."""

AS_LONG = 8
"""In a split cache, prompts may share a step if their lengths differ by at most 1 / `AS_LONG` of the first one's.
llama.cpp begins a micro-batch where the shorter one ends, so unlike ones would gain little."""


class Batching:
    """Plans one batch after the other.

    `in_prefill`: the ids of all running tasks while prompts are read or wait for their turn; while `MediaSteps` decodes
    a chunk, the id of its task. Any thread may read it.
    `is_reading`: the latest batch has prompt rows.
    """

    def __init__(self, state: EngineState, prefixes: Prefixes, turns: Turns) -> None:
        self._state = state
        self._prefixes = prefixes
        self._turns = turns
        self.in_prefill = NO_TASKS
        self.is_reading = False
        self._pace = Pace()
        self._spare = Spare(state.config.max_stall_ms)
        self._turn_ms = 0.0  # time for a step of background prompts; 0 if this step is none
        self._n_behind = -1  # background rows in a step of other tasks; -1 unless there are tasks of both kinds
        # each sequence has a KV stream or a recurrent state of its own, so llama.cpp may cut a batch between sequences
        self._is_one_by_one = state.backend.is_split or not state.backend.can_share
        self._checkpoints = Checkpoints(state.backend, state.config.n_checkpoints, state.config.checkpoint_step)
        self._spans: list[Span] = []
        self._ahead = 0  # the oldest prompt's rows minus all others', as `_account` counts them
        self._depth = 0  # `_count_cells` for the latest prompt rows
        self._has_read: set[tuple] = set()  # sets of adapters with a prompt step since their latest generating step
        self._served: dict[tuple, int] = {}  # the latest step of each set of adapters
        self._is_prompts_turn = True  # background prompts are next, before generating background tasks

    def plan(self) -> list[Span]:
        """The spans of the next batch. A batch has one set of adapters; the sets take turns."""
        running = [
            slot
            for slot in self._state.running
            if not (slot.run.leader and self._prefixes.must_wait(slot)) and slot.chunk is None
        ]
        self.is_reading = False
        if not running:
            return []
        if self._state.config.exact:
            running = [min(running, key=lambda slot: (slot.run.task.in_background, slot.t_served))]
            running[0].t_served = self._state.clock()
        elif len(running) > 1 and self._state.backend.adapters:
            running = self._turn(running)
        running = self._with_spare(running)
        self._state.backend.set_lora(running[0].lora)
        prompts = [slot for slot in running if slot.run.next_token is None]
        self.in_prefill = frozenset(slot.run.task.id for slot in self._state.running) if prompts else NO_TASKS
        streams = [slot for slot in running if slot.run.next_token is not None]
        if not streams:
            self._has_read.discard(running[0].lora)
        spans = self._read(prompts, streams) if prompts else []
        self.is_reading = bool(spans)
        if not self._turn_ms:
            (self._has_read.add if spans else self._has_read.discard)(running[0].lora)
        if not spans and self._is_one_by_one:
            streams.sort(key=lambda slot: slot.seq)  # a lower `seq` behind a higher begins a micro-batch (`Backend`)
        self._spans = spans or planner.plan_generating(
            map(self._make_job, self._choose_in_time(streams)), self._state.backend.info.n_batch
        )
        return self._spans

    def _with_spare(self, running: list[Slot]) -> list[Slot]:
        """Leave out background tasks if the others leave them no time.

        With time to spare, either background prompts have a step of their own, or generating background tasks have rows
        in the others' step. The two take turns.
        """
        others = [slot for slot in running if not slot.run.task.in_background]
        behind = [slot for slot in running if slot.run.task.in_background]
        was_reading, self._turn_ms, self._n_behind = self._turn_ms > 0, 0.0, -1
        if not (others and behind):
            return running
        self._n_behind = 0
        if any(slot.run.next_token is None for slot in others):
            return others
        prompts = [slot for slot in behind if slot.run.next_token is None]
        streams = [slot for slot in behind if slot.run.next_token is not None]
        if prompts and not was_reading and (not streams or self._is_prompts_turn):
            self._turn_ms = self._spare.compute_prompt_ms()
            self._is_prompts_turn = not self._turn_ms
            return prompts if self._turn_ms else others
        self._n_behind = 0 if was_reading else self._spare.count_rows_beside(len(streams))
        self._is_prompts_turn |= self._n_behind > 0
        streams.sort(key=lambda slot: slot.run.t_last)
        return others + streams[: self._n_behind]

    def _choose_in_time(self, streams: list[Slot]) -> list[Slot]:
        """The slots to draw for in this step. Slow draws (grammars with many ways to go on) take turns: those of one
        step take at most `--max-stall-ms`, or are a single one."""
        slow = sorted((slot for slot in streams if slot.run.draw_s > SLOW_S), key=lambda slot: slot.run.t_last)
        if len(slow) < 2 or not self._state.config.max_stall_ms:
            return streams
        left_s, out = self._state.config.max_stall_ms / 1e3 - slow[0].run.draw_s, set()
        for slot in slow[1:]:
            if slot.run.draw_s > left_s:
                out.add(slot.id)
            else:
                left_s -= slot.run.draw_s
        return [slot for slot in streams if slot.id not in out]

    def observe(self, ms: float) -> None:
        """Learn from the milliseconds that the planned batch took."""
        if self._turn_ms:
            self._spare.note_background(ms)
        elif self._n_behind > 0:
            self._spare.note_beside(ms, self._n_behind)
            return
        elif self._n_behind == 0:
            self._spare.note_others(ms, not self.is_reading)
        if self.is_reading:
            self._pace.observe_prompt(sum(map(len, self._spans)), self._depth, ms)
        else:
            self._pace.observe_decode(ms)

    # ---- prompts ----------------------------------------------------------------------------------------------

    def _read(self, prompts: list[Slot], streams: list[Slot]) -> list[Span]:
        """Prompt rows for this step; none if the generating slots are next."""
        jobs = self._put_in_order([self._make_job(slot) for slot in prompts])
        chosen = jobs[0]
        if self._state.backend.is_split and streams and len(jobs) > 1:
            self._put_first(jobs, range(min(slot.seq for slot in streams), max(slot.seq for slot in streams) + 1))
        self._depth = self._count_cells(jobs[0])
        group = self._find_neighbours(jobs) if self._is_one_by_one else jobs
        n_rows = self._count_rows(streams, jobs[0], group)
        while self._is_one_by_one and len(group) > 1 and n_rows < sum(len(job.tokens) for job in group):
            group = group[1:] if group[-1] is jobs[0] else group[:-1]
            n_rows = self._count_rows(streams, jobs[0], group)
        spans = planner.plan_reading(group, min(n_rows, self._state.backend.info.n_batch), False)
        self._account(prompts[0].id, chosen.id, jobs, spans)
        return spans

    def _count_rows(self, streams: list[Slot], first: Job, jobs: list[Job]) -> int:
        n_left = sum(len(job.tokens) for job in jobs)
        if self._turn_ms:
            return self._pace.count_rows(self._turn_ms, self._depth, n_left, patience=1.0)
        return self._count_rows_beside(streams, first, n_left) if streams else self._count_rows_alone(n_left)

    def _find_neighbours(self, jobs: list[Job]) -> list[Job]:
        """The first prompt; if it is short, also some of its neighbours that came with it and are about as long.

        A few more rows cost little in one step. But if a step had all prompts, none would have its first token before
        all are read.
        """
        first, backend = jobs[0], self._state.backend
        t_first = self._get_arrival(first)
        alike = {
            job.seq: job
            for job in jobs
            if job.ends
            and not job.all_rows
            and job.limit == planner.UNLIMITED
            and len(job.tokens) < TILE
            and abs(self._get_arrival(job) - t_first) <= TOGETHER_S
            and abs(len(job.tokens) - len(first.tokens)) * AS_LONG <= len(first.tokens)
        }
        if first.seq not in alike or not backend.is_split or not backend.can_share or self._state.config.exact:
            return [first]
        n_most, low, high = len(alike) // self._state.config.group_part, first.seq, first.seq
        while high - low + 1 < n_most and (high + 1 in alike or low - 1 in alike):
            low, high = (low, high + 1) if high + 1 in alike else (low - 1, high)
        return [alike[seq] for seq in range(low, high + 1)]

    def _get_arrival(self, job: Job) -> float:
        return self._state.slots[job.id].run.t_arrived

    def _put_first(self, jobs: list[Job], block: range) -> None:
        """Of the prompts that came with the first one and aren't much longer, put first the one whose slot is nearest
        to the generating slots' sequences (`block`).

        Generating slots side by side cost less (see `ranks`).
        """
        t_first, n_most = self._get_arrival(jobs[0]), ALIKE * len(jobs[0].tokens)
        best = min(
            (job for job in jobs if abs(self._get_arrival(job) - t_first) <= TOGETHER_S and len(job.tokens) <= n_most),
            key=lambda job: max(block[0] - job.seq, job.seq - block[-1], 0),
        )
        jobs.remove(best)
        jobs.insert(0, best)

    def _put_in_order(self, jobs: list[Job]) -> list[Job]:
        """The prompts by rows left, the fewest first. But the oldest prompt comes first while `_ahead` is negative.

        So a long prompt can't keep short ones waiting, nor many short ones a long one.
        """
        by_length = sorted(jobs, key=lambda job: len(job.tokens))
        if self._ahead < 0:
            by_length.remove(jobs[0])
            by_length.insert(0, jobs[0])
        return by_length

    def _account(self, oldest: int, chosen: int, jobs: list[Job], spans: list[Span]) -> None:
        """Count rows for or against the oldest prompt, unless it came first as the shortest. If it is the only prompt,
        reset the count. Rows of a prompt that `_put_first` preferred to the `chosen` one count as the chosen one's."""
        if len(jobs) == 1:
            self._ahead = 0
        elif self._ahead < 0 or chosen != oldest:
            owners = ((chosen if span.id == jobs[0].id else span.id, len(span)) for span in spans)
            self._ahead += sum(n if owner == oldest else -n for owner, n in owners)

    def _count_rows_alone(self, n_left: int) -> int:
        """Rows of a step without generating slots: all that are left, or whole micro-batches for `STALLS_ALONE` times
        `--max-stall-ms`. Fewer rows only cost speed. If engines share the cores, the step keeps to `--max-stall-ms`,
        because the others' slots may generate."""
        config = self._state.config
        if config.max_stall_ms == 0 or config.exact:  # exact: steps of other lengths round differently
            return n_left
        if self._turns.are_shared:
            return self._pace.count_rows(config.max_stall_ms, self._depth, n_left)
        n = self._pace.count_rows(STALLS_ALONE * config.max_stall_ms, self._depth, n_left)
        return n if n == n_left else max(n - n % config.n_ubatch, config.n_ubatch)

    def _count_rows_beside(self, streams: Sequence[Slot], job: Job, n_left: int) -> int:
        """Prompt rows of this step while slots generate; 0 if the generating slots are next."""
        is_first, limit_ms = streams[0].lora not in self._has_read, self._state.config.max_stall_ms
        if limit_ms == 0:
            return n_left if is_first else 0
        if not any(slot.run.task.stream for slot in streams):
            limit_ms *= STALLS_ALONE
        limit_begun_ms = STALLS_BEGUN * limit_ms
        # where a generating step takes long, prompts may take as long
        limit_ms = max(limit_ms - self._pace.decode_ms, self._pace.decode_ms)
        waited_ms = (self._state.clock() - min(slot.run.t_last for slot in streams)) * 1e3
        if is_first:  # a batch of embeddings may have used a part of the time
            return self._pace.count_rows(limit_ms - min(waited_ms, limit_ms / 2), self._depth, n_left)
        n_rows = self._pace.count_rows_within(limit_ms - waited_ms, self._depth, n_left)
        if not n_rows and self._has_come_with(streams, job):
            n_rows = self._pace.count_rows_within(limit_begun_ms - waited_ms, self._depth, n_left)
            return n_rows if n_rows == n_left else 0
        return n_rows

    def _has_come_with(self, streams: Sequence[Slot], job: Job) -> bool:
        t_first = min(slot.run.t_arrived for slot in streams)
        return (
            all(slot.run.n_decoded <= 1 for slot in streams)
            and self._state.slots[job.id].run.t_arrived - t_first <= BEGUN_S
        )

    def _count_cells(self, job: Job) -> int:
        """The cells that a prompt's attention goes over: its own with `_is_one_by_one`, else those of all slots."""
        return job.pos if self._is_one_by_one else sum(len(slot.tokens) for slot in self._state.slots)

    def _turn(self, running: list[Slot]) -> list[Slot]:
        """Of slots with different adapters, those whose set has waited longest."""
        sets = {slot.lora for slot in running}
        if len(sets) == 1:
            return running
        turn = min(sets, key=lambda lora: self._served.get(lora, -1))
        self._served = {lora: self._served.get(lora, -1) for lora in sets}
        self._served[turn] = self._state.meter.n_steps
        return [slot for slot in running if slot.lora == turn]

    def _make_job(self, slot: Slot) -> Job:
        is_prefill = slot.run.next_token is None
        all_rows = is_prefill and has_prompt_probs(slot.run)  # type: ignore[arg-type]
        if slot.run.cuts and len(slot.tokens) >= slot.run.cut_at:
            cut_out(self._state.backend, slot)
        n_before = (slot.run.cut_at if slot.run.cuts else slot.run.judged_from - 1) - len(slot.tokens)
        if all_rows and n_before > 0:  # rows that need no logits
            return Job(slot.id, slot.seq, len(slot.tokens), slot.pending[:n_before], True, ends=False)
        limit = PROMPT_PROBS_ROWS if all_rows else planner.UNLIMITED
        if slot.positions is None:
            pending = slot.pending
            if is_prefill and self._checkpoints.is_on:
                pending = pending[: self._checkpoints.count_rows(slot)]
            ends = not is_prefill or len(slot.tokens) + len(pending) == len(slot.run.prompt)
            return Job(slot.id, slot.seq, len(slot.tokens), pending, is_prefill, limit, ends, all_rows)
        prompt_cache.fold(self._state.backend, slot)
        return Job(
            slot.id,
            slot.seq,
            slot.next_pos,
            slot.pending,
            is_prefill,
            min(slot.positions.room, limit),
            all_rows=all_rows,
        )
