"""Queues tasks and starts them on idle slots.

Engine thread only, between two batches. A task that can't be started fails here; the others go on.
"""

from __future__ import annotations

from server.engine.cache import prompt_cache
from server.engine.cache.difference import find_first_difference
from server.engine.loop.answers import Answers
from server.engine.loop.commands import Commands
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.state import EngineState
from server.engine.seam.task import GAVE_WAY, STOP_LIMIT, Difference, Progress, Task
from server.engine.slots import sampling
from server.engine.slots.media import Layout
from server.engine.slots.phases import Phases, must_have_phases
from server.engine.slots.queue import FairQueue, Waiting
from server.engine.slots.slot import Run, Slot
from server.engine.slots.text import TextStream
from server.errors import ApiError
from server.log import get_logger
from server.records import replace

PLACES_SHARE = 20
"""At most 1 / `PLACES_SHARE` of the time is spent on telling waiting tasks their places in the queue."""
ADMIT_S = 0.005
"""Seconds after which a step starts no further task while others run."""

log = get_logger("engine")


class Admission:
    """The queue of waiting tasks, and their start on slots."""

    def __init__(self, state: EngineState, answers: Answers, prefixes: Prefixes, commands: Commands) -> None:
        self._state = state
        self._commands = commands
        self._prefixes = prefixes
        self._answers = answers
        self._waiting = FairQueue()
        self._told: dict[int, int] = {}  # the place last told to each task with `progress`
        self._n_moves = 0  # the queue's count of moves when places were told
        self._t_places = 0.0  # the time from which places may be told again

    def __len__(self) -> int:
        return len(self._waiting)

    def enqueue(self, task: Task) -> None:
        """Put a task into the queue, or refuse it."""
        state = self._state
        n_free = sum(slot.run is None for slot in state.slots)
        if task.id_slot >= len(state.slots):
            state.fail(
                task.id,
                400,
                f"id_slot: there is no slot {task.id_slot}; the last slot is number {len(state.slots) - 1}",
            )
        elif len(self._waiting) >= state.config.max_queue + n_free and not self._make_room(task):
            state.fail(
                task.id,
                503,
                f"all slots are busy and {len(self._waiting)} requests are waiting; try later",
                reason="queue_full",
            )
        else:
            self._waiting.push(Waiting(task, state.clock()))
            state.is_changed = True

    def _make_room(self, task: Task) -> bool:
        """Drop a task from a full queue in favour of `task`; False if none may be dropped. A background task goes
        first, else the latest one of the owner with the most tasks (`FairQueue.find_crowding`)."""
        if task.in_background:
            return False
        waiting = self._waiting.get_last_in_background()
        if waiting is not None:
            self._waiting.remove(waiting.task.id)
            self._give_way(waiting.task)
            return True
        waiting = self._waiting.find_crowding(task.owner)
        if waiting is None:
            return False
        self._waiting.remove(waiting.task.id)
        self._state.fail(
            waiting.task.id,
            503,
            "the queue is full and most waiting requests are yours; this one made room for another client; try later",
            reason="queue_full",
        )
        return True

    def _give_way(self, task: Task) -> None:
        self._state.fail(task.id, 503, "this background request was stopped to make room for others", reason=GAVE_WAY)

    def _make_way(self) -> None:
        """Take background tasks off slots that others need: those on wanted slots, then those that generated least."""
        behind = [slot for slot in self._state.busy if slot.run.task.in_background]
        if not (behind and self._waiting.n_awaited):
            return
        wanted = {waiting.task.id_slot for waiting in self._waiting if not waiting.task.in_background}
        n_missing = self._waiting.n_awaited - sum(slot.run is None for slot in self._state.slots)
        behind.sort(key=lambda slot: (slot.id not in wanted, slot.run.n_decoded, -slot.run.t_start))
        for i, slot in enumerate(behind):
            if i < n_missing or slot.id in wanted:
                self._give_way(slot.run.task)
                self._state.drop(slot)

    @property
    def n_awaited(self) -> int:
        """How many waiting tasks aren't in the background."""
        return self._waiting.n_awaited

    def cancel(self, id_task: int) -> bool:
        """Remove a waiting task; False if it isn't in the queue."""
        if self._waiting.remove(id_task) is None:
            return False
        self._state.is_changed = True
        return True

    def refuse_all(self, status: int, message: str) -> None:
        while (waiting := self._waiting.pop()) is not None:
            self._state.fail(waiting.task.id, status, message)

    def admit(self) -> None:
        """Start waiting tasks on idle slots in the queue's order. A task that waits for a certain slot lets others
        pass."""
        if not self._waiting:
            return
        state = self._state
        self._make_way()
        is_patient = not state.config.cont_batching  # tasks start together, and none joins them later
        if not state.busy or not is_patient:
            reserved = self._commands.list_reserved() if self._commands else ()
            free = [slot for slot in state.slots if slot.run is None and slot.id not in reserved]
            ends = state.clock() + ADMIT_S
            while (
                free
                and (waiting := self._waiting.pop(lambda task: task.id_slot < 0 or state.slots[task.id_slot] in free))
                is not None
            ):
                state.is_changed = True
                self._try(waiting, free)
                if state.running and not is_patient and state.clock() >= ends:
                    break
        self._tell_places()

    def _try(self, waiting: Waiting, free: list[Slot]) -> None:
        task = waiting.task
        try:
            slot = self._place(waiting, free)
        except ApiError as error:
            self._state.refuse(task.id, error)
        except Exception:
            log.exception("task %d could not be started", task.id)
            self._state.fail(task.id, 500, "the engine could not start this request; see the server's log")
        else:
            if slot.run is not None:
                free.remove(slot)

    def _tell_places(self) -> None:
        started = self._state.clock()
        if self._n_moves == self._waiting.n_moves or started < self._t_places:
            return
        self._n_moves = self._waiting.n_moves
        asking = {waiting.task.id: waiting for waiting in self._waiting if waiting.task.progress}
        if not asking:
            return
        places = {id_task: place for place, id_task in enumerate(self._waiting.order(), 1) if id_task in asking}
        for id_task, place in places.items():
            if self._told.get(id_task) != place:
                waiting = asking[id_task]
                ms = (self._state.clock() - waiting.t_arrived) * 1e3
                self._state.events.append(Progress(id_task, len(waiting.task.prompt), 0, 0, ms, place))
        self._told = places
        ended = self._state.clock()
        self._t_places = ended + PLACES_SHARE * (ended - started)

    def _place(self, waiting: Waiting, free: list[Slot]) -> Slot:
        task = waiting.task
        prompt = self._state.system.tokens + list(task.prompt)
        cached = self._prefixes.find_nearest(task, prompt)
        if task.may_respell:
            prompt = self._prefixes.respell(prompt, cached)
        slot = self._state.slots[task.id_slot] if task.id_slot >= 0 else self._prefixes.choose_slot(free, task, prompt)
        self._start(slot, waiting, prompt, cached)
        return slot

    def _start(self, slot: Slot, waiting: Waiting, prompt: list[int], cached: list[int]) -> None:
        task, n_asked = waiting.task, len(prompt)
        n_system = n_asked - len(task.prompt)
        layout = self._state.media.get_layout(task.id).make_shifted(n_system)
        if layout.chunks and task.prompt_probs >= 0:
            raise ApiError(400, "the token probabilities of a prompt with images or sound can't be computed")
        prompt = self._fit_prompt(slot, task, prompt, layout)
        self._require_cuts(task)
        stages = sampling.make_chain(task.sampling, self._state.backend.facts)
        self._state.announce(task.id)
        backend, text, phases = self._state.backend, TextStream(task.stop, task.n_indent), None
        if must_have_phases(task):
            phases = Phases(task, backend.piece, backend.eog_tokens, text)
        waits = phases is not None and phases.is_waiting
        sampler = backend.make_sampler(stages, task.sampling.grammar, waits)
        now = self._state.clock()
        run = Run(
            task,
            prompt,
            sampler,
            text,
            waiting.t_arrived,
            now,
            truncated=len(prompt) < n_asked,
            first_difference=self._find_difference(task, prompt, cached, is_whole=len(prompt) == n_asked),
            layout=layout,
            drafting=None if layout.chunks else self._state.speculation.begin(task),
            phases=phases,
            judged_from=n_system + task.probs_from if task.probs_from else 0,
            cuts=tuple((start + n_system, end + n_system) for start, end in task.cuts),
            cut_at=task.cut_at + n_system,
        )
        try:
            self._prefixes.begin(slot, run)
        except BaseException:
            sampler.close()
            raise
        slot.run = run
        self._state.resume(slot)
        self._state.meter.queue_wait(now - waiting.t_arrived)
        n_history = sampling.compute_history_length(task.sampling, slot.n_ctx)
        if n_history:
            history = prompt if task.sampling.penalty_prompt is None else task.sampling.penalty_prompt
            sampler.accept([token for token in history[-n_history:] if token >= 0])
        if task.progress and not task.resume:
            self._state.report_progress(slot)
        if not prompt:
            self._answers.finish(slot, STOP_LIMIT)

    def _find_difference(self, task: Task, prompt: list[int], cached: list[int], is_whole: bool) -> Difference | None:
        """As `find_first_difference`. `at` is counted from the prompt's end, since tokens before it may be
        respelled."""
        config = self._state.config
        can_reuse = task.cache_prompt and not config.exact and config.n_group == 1 and task.prompt_probs < 0
        found = find_first_difference(prompt, cached, can_reuse)
        if found is None or not is_whole:
            return found
        at = len(task.prompt) - (len(prompt) - found.position)
        return replace(found, at=self._state.media.get_layout(task.id).as_sent(at) if at >= 0 else -1)

    def _require_cuts(self, task: Task) -> None:
        """ApiError 501 if the task wants tokens cut out of its prompt and the KV cache can't do that."""
        backend = self._state.backend
        can = backend.can_shift and backend.can_share and not backend.window and self._state.config.n_group == 1
        if task.cuts and not can:
            raise ApiError(501, "parts of a prompt can't be removed from this model's KV cache; use the method 'exact'")

    def _fit_prompt(self, slot: Slot, task: Task, prompt: list[int], layout: Layout) -> list[int]:
        n_prompt = len(prompt) + layout.count_extra()
        if n_prompt < slot.n_ctx:
            return prompt
        if self._state.config.shift_context and not layout.chunks and task.prompt_probs < 0:
            return prompt_cache.cut_prompt(prompt, slot.n_ctx, self._state.count_kept(task, prompt))
        raise ApiError(
            400,
            f"the prompt has {n_prompt} tokens, which exceeds the available context size of {slot.n_ctx}; "
            "shorten it, or start the server with a larger --ctx-size or with --context-shift",
            "exceed_context_size_error",
            n_prompt_tokens=n_prompt,
            n_ctx=slot.n_ctx,
        )
