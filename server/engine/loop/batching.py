"""What goes into the next batch: rows of the slots that generate, or prompt rows, and how many of those.

Engine thread only. Steps of both kinds alternate. Between two steps of the streams there is time for prompts until
`--max-stall-ms` are over: one step at least, or more if they are short. Arithmetic about rows stands in `planner`, what
can be foreseen about times in `pace`; here is the policy about whose turn it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cache import prompt_cache
from server.engine.cache.prompt_cache import Checkpoints
from server.engine.loop.evaluation import PROMPT_PROBS_ROWS, cut_out, wants_prompt_probs
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.state import EngineState
from server.engine.seam.turns import Turns
from server.engine.slots import planner
from server.engine.slots.pace import TILE, Pace, Spare
from server.engine.slots.planner import Job, Span
from server.engine.slots.slot import Slot

NOBODY: frozenset[int] = frozenset()
STALLS_ALONE = 4
"""Steps may take so many times the stall where nobody reads a stream: then only newcomers wait for their end."""

STALLS_BEGUN, BEGUN_S = 96, 1.0
"""The same as long as all streams have but one token, for short prompts that came within so many seconds of theirs:
then a whole group goes on together. Otherwise the first of them pause again and again for the others, in steps of few
rows that cost nearly as much as one of many (32 at once on one machine: with 2 the last had its first token after
2.4 s, with 16 after 1.4; on one without matrix units with 16 after 3.4, with 32 after 2.7; there with a model of 1.1 B
parameters with 32 after 7.1 s, with 96 after 5.0, and all ended 5 percent sooner)."""


TOGETHER_S, ALIKE = 0.1, 1.5
"""Prompts have come together if so many seconds lie between them, and are alike if one is so many times as long."""

SLOW_S = 0.005
"""A draw that takes the processor longer than this is slow: most take a hundredth of it."""

GROUP_PART, AS_LONG = 4, 8
"""Of short prompts that came together and differ by at most an eighth, one in four is in the same step. 32 of 33 rows,
each in a slot of its own, took 2.04 s one by one, 1.95 by fours and 1.91 by eights; with 1.1 B parameters 4.14, 3.54
and 3.46 s. (llama.cpp cuts a batch where lengths differ: a gain of 14 percent is one of 3 if they do so by a fifth.)"""


class Batching:
    """Plans one batch after the other. `in_prefill` are the running tasks while a prompt is among them; any thread may
    read it. `is_reading` says whether the latest batch has prompt rows."""

    def __init__(self, state: EngineState, prefixes: Prefixes, turns: Turns) -> None:
        self._state = state
        self._prefixes = prefixes
        self._turns = turns
        self.in_prefill = NOBODY
        self.is_reading = False
        self._pace = Pace()
        self._spare = Spare(state.config.max_stall_ms)
        self._turn_ms = 0.0  # that the background's step may take; 0 where it has none of its own
        self._n_behind = -1  # rows of the background beside others'; -1 where there is nobody else, or nothing of it
        # llama.cpp cuts a batch of several sequences to pieces where each has a stream or a state of its own
        self._is_one_by_one = state.backend.is_split or not state.backend.can_share
        self._checkpoints = Checkpoints(state.backend, state.config.n_checkpoints, state.config.checkpoint_step)
        self._spans: list[Span] = []
        self._ahead = 0  # rows that the oldest prompt has had more than the others
        self._depth = 0  # of the latest prompt rows
        self._has_read: set[tuple] = set()  # adapters whose streams have had no row since their prompts had some
        self._served: dict[tuple, int] = {}
        self._is_prompts_turn = True  # of those in the background

    def plan(self) -> list[Span]:
        """The rows of the next batch. One batch has one set of adapters; sets take turns."""
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
        self.in_prefill = frozenset(slot.run.task.id for slot in self._state.running) if prompts else NOBODY
        streams = [slot for slot in running if slot.run.next_token is not None]
        if not streams:
            self._has_read.discard(running[0].lora)
        spans = self._read(prompts, streams) if prompts else []
        self.is_reading = bool(spans)
        if not self._turn_ms:
            (self._has_read.add if spans else self._has_read.discard)(running[0].lora)
        if not spans and self._is_one_by_one:
            streams.sort(key=lambda slot: slot.seq)  # each step back is a micro-batch of its own, see `Backend`
        self._spans = spans or planner.generating(
            map(self._job, self._in_time(streams)), self._state.backend.info.n_batch
        )
        return self._spans

    def _with_spare(self, running: list[Slot]) -> list[Slot]:
        """Without the tasks in the background, as long as those of others haven't left them time.

        Then their prompts have a step behind one of streams, or they have rows in one of streams: in turn, so that
        neither waits for the other for ever.
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
            self._turn_ms = self._spare.prompt_ms()
            self._is_prompts_turn = not self._turn_ms
            return prompts if self._turn_ms else others
        self._n_behind = 0 if was_reading else self._spare.rows_beside(len(streams))
        self._is_prompts_turn |= self._n_behind > 0
        streams.sort(key=lambda slot: slot.run.t_last)
        return others + streams[: self._n_behind]

    def _in_time(self, streams: list[Slot]) -> list[Slot]:
        """Those whose draws take long (a grammar with many ways) take turns: in one step at most the stall's time."""
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

    def measured(self, ms: float) -> None:
        """The planned batch took `ms`."""
        if self._turn_ms:
            self._spare.background(ms)
        elif self._n_behind > 0:
            self._spare.beside(ms, self._n_behind)
            return
        elif self._n_behind == 0:
            self._spare.others(ms, not self.is_reading)
        if self.is_reading:
            self._pace.observe_prompt(sum(map(len, self._spans)), self._depth, ms)
        else:
            self._pace.observe_decode(ms)

    # ---- prompts ----------------------------------------------------------------------------------------------

    def _read(self, prompts: list[Slot], streams: list[Slot]) -> list[Span]:
        """Prompt rows for this step; none if it is the streams' turn."""
        jobs = self._in_order([self._job(slot) for slot in prompts])
        chosen = jobs[0]
        if self._state.backend.is_split and streams and len(jobs) > 1:
            self._put_first(jobs, range(min(slot.seq for slot in streams), max(slot.seq for slot in streams) + 1))
        self._depth = self._n_cells(jobs[0])
        group = self._neighbours(jobs) if self._is_one_by_one else jobs
        n_rows = self._n_rows(streams, jobs[0], group)
        if self._is_one_by_one and len(group) > 1 and n_rows < sum(len(job.tokens) for job in group):
            group = jobs[:1]
            n_rows = self._n_rows(streams, jobs[0], group)
        spans = planner.reading(group, min(n_rows, self._state.backend.info.n_batch), False)
        self._account(prompts[0].id, chosen.id, jobs, spans)
        return spans

    def _n_rows(self, streams: list[Slot], first: Job, jobs: list[Job]) -> int:
        """Rows of this step, of as many as these jobs have."""
        n_left = sum(len(job.tokens) for job in jobs)
        if self._turn_ms:
            return self._pace.rows(self._turn_ms, self._depth, n_left, patience=1.0)
        return self._rows_beside(streams, first, n_left) if streams else self._rows_alone(n_left)

    def _neighbours(self, jobs: list[Job]) -> list[Job]:
        """The first prompt, and in slots beside it a part of the short ones that came with it and are as long.

        Few rows cost nearly what some more do. Not all at once: nobody would have a token before all have.
        """
        first, backend = jobs[0], self._state.backend
        t_first = self._arrived(first)
        alike = {
            job.seq: job
            for job in jobs
            if job.ends
            and not job.all_rows
            and job.limit == planner.UNLIMITED
            and len(job.tokens) < TILE
            and abs(self._arrived(job) - t_first) <= TOGETHER_S
            and abs(len(job.tokens) - len(first.tokens)) * AS_LONG <= len(first.tokens)
        }
        if first.seq not in alike or not backend.is_split or not backend.can_share or self._state.config.exact:
            return [first]
        n_most, low, high = len(alike) // GROUP_PART, first.seq, first.seq
        while high - low + 1 < n_most and (high + 1 in alike or low - 1 in alike):
            low, high = (low, high + 1) if high + 1 in alike else (low - 1, high)
        return [alike[seq] for seq in range(low, high + 1)]

    def _arrived(self, job: Job) -> float:
        return self._state.slots[job.id].run.t_arrived

    def _put_first(self, jobs: list[Job], block: range) -> None:
        """Of the first prompt and those that came with it and are like it, take the one beside the streams (`block`).

        Streams side by side cost less (see `ranks`), and who is one of many that came at once has no place in a queue.
        """
        t_first, n_most = self._arrived(jobs[0]), ALIKE * len(jobs[0].tokens)
        best = min(
            (job for job in jobs if abs(self._arrived(job) - t_first) <= TOGETHER_S and len(job.tokens) <= n_most),
            key=lambda job: max(block[0] - job.seq, job.seq - block[-1], 0),
        )
        jobs.remove(best)
        jobs.insert(0, best)

    def _in_order(self, jobs: list[Job]) -> list[Job]:
        """First the one with the fewest rows left, or in its turn the one that came first: it has half of all rows.

        So neither can a long prompt keep short ones waiting, nor many short ones a long one.
        """
        by_length = sorted(jobs, key=lambda job: len(job.tokens))
        if self._ahead < 0:
            by_length.remove(jobs[0])
            by_length.insert(0, jobs[0])
        return by_length

    def _account(self, oldest: int, chosen: int, jobs: list[Job], spans: list[Span]) -> None:
        """Note who had these rows, if there was a choice; what a neighbour of the `chosen` one had was his."""
        if len(jobs) == 1:
            self._ahead = 0
        elif self._ahead < 0 or chosen != oldest:
            owners = ((chosen if span.id == jobs[0].id else span.id, len(span)) for span in spans)
            self._ahead += sum(n if owner == oldest else -n for owner, n in owners)

    def _rows_alone(self, n_left: int) -> int:
        """Rows of a step without streams: a whole micro-batch at least, less would only cost speed. Where other engines
        wait for the cores, their streams may be read."""
        config = self._state.config
        if config.max_stall_ms == 0 or config.exact:  # steps of other lengths round differently
            return n_left
        if self._turns.are_shared:
            return self._pace.rows(config.max_stall_ms, self._depth, n_left)
        n = self._pace.rows(STALLS_ALONE * config.max_stall_ms, self._depth, n_left)
        return n if n == n_left else max(n - n % config.n_ubatch, config.n_ubatch)

    def _rows_beside(self, streams: Sequence[Slot], job: Job, n_left: int) -> int:
        """Rows of a step between two steps of the streams; 0 if it is their turn.

        Between these there is one step for prompts, and further ones as far as they fit into the same time.
        """
        is_first, limit_ms = streams[0].lora not in self._has_read, self._state.config.max_stall_ms
        if limit_ms == 0:
            return n_left if is_first else 0
        if not any(slot.run.task.stream for slot in streams):
            limit_ms *= STALLS_ALONE
        limit_begun_ms = STALLS_BEGUN * limit_ms
        # where streams alone take long, prompts get as much time as they do
        limit_ms = max(limit_ms - self._pace.decode_ms, self._pace.decode_ms)
        waited_ms = (self._state.clock() - min(slot.run.t_last for slot in streams)) * 1e3
        if is_first:  # somebody's vectors may have been computed meanwhile
            return self._pace.rows(limit_ms - min(waited_ms, limit_ms / 2), self._depth, n_left)
        n_rows = self._pace.rows_within(limit_ms - waited_ms, self._depth, n_left)
        if not n_rows and self._begins_with(streams, job):
            n_rows = self._pace.rows_within(limit_begun_ms - waited_ms, self._depth, n_left)
            return n_rows if n_rows == n_left else 0
        return n_rows

    def _begins_with(self, streams: Sequence[Slot], job: Job) -> bool:
        """Whether this prompt came with those of the streams, none of which has got any further."""
        t_first = min(slot.run.t_arrived for slot in streams)
        return (
            all(slot.run.n_decoded <= 1 for slot in streams)
            and self._state.slots[job.id].run.t_arrived - t_first <= BEGUN_S
        )

    def _n_cells(self, job: Job) -> int:
        """How many tokens a prompt's attention goes over: its own, or in a common stream everybody's."""
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

    def _job(self, slot: Slot) -> Job:
        is_prefill = slot.run.next_token is None
        all_rows = is_prefill and wants_prompt_probs(slot.run)  # type: ignore[arg-type]
        if slot.run.cuts and len(slot.tokens) >= slot.run.cut_at:
            cut_out(self._state.backend, slot)
        n_before = (slot.run.cut_at if slot.run.cuts else slot.run.judged_from - 1) - len(slot.tokens)
        if all_rows and n_before > 0:  # rows that judge nothing
            return Job(slot.id, slot.seq, len(slot.tokens), slot.pending[:n_before], True, ends=False)
        limit = PROMPT_PROBS_ROWS if all_rows else planner.UNLIMITED
        if slot.positions is None:
            pending = slot.pending
            if is_prefill and self._checkpoints.is_on:
                pending = pending[: self._checkpoints.rows(slot)]
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
