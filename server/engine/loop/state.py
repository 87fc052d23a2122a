"""What the parts of the scheduler share: the backend, the slots, the tasks in work, and the events of this step.

Engine thread only. `scheduler` is the loop; `admission` starts tasks on slots, `evaluation` decodes rows, `answers`
draws tokens and ends tasks. Each of them works on this one object, so that none of them has to know the others'
insides. Here is only what all of them need: telling a task of its end, and taking it off its slot.
"""

from __future__ import annotations

from collections.abc import Callable

from server.engine.cache import prompt_cache, slot_files
from server.engine.loop.commands import Commands
from server.engine.loop.meter import Meter
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Event, Failure, Progress, Task
from server.engine.slots.backend import Backend
from server.engine.slots.media import MediaDesk
from server.engine.slots.slot import Slot
from server.engine.speculation.speculation import Speculation
from server.errors import ApiError

SYSTEM = -1


class EngineState:
    """`running` are the slots with a task, in order of arrival; `is_changed` asks for a snapshot with this step."""

    def __init__(self, backend: Backend, config: EngineConfig, clock: Callable[[], float]) -> None:
        self.backend = backend
        self.config = config
        self.clock = clock
        self.slots = [Slot(i, i, backend.info.n_ctx_slot) for i in range(config.n_slots)]
        self.system = Slot(SYSTEM, config.n_slots, backend.info.n_ctx_slot)
        self.commands = Commands(
            backend,
            self.slots,
            self.system,
            tuple((i, scale) for i, (_, scale) in enumerate(config.lora) if scale),
            slot_files.settings_of(config.context_params, config.model_params),
        )
        self.meter = Meter()
        self.speculation = Speculation(config, backend, clock)
        self.media = MediaDesk(None if backend.media is None else backend.media.prepare)
        self.running: list[Slot] = []
        self.events: list[Event] = []
        self.is_changed = True
        self.n_rows = 0  # evaluated since the start
        self.announce: Callable[[int], None] = lambda id_task: None  # before a task is started; the loop sets it

    def fail(
        self, id_task: int, status: int, message: str, type: str | None = None, reason: str = "", **extra: object
    ) -> None:
        """The end of a task that went wrong, see `Failure`."""
        self.events.append(Failure(id_task, status, message, type, extra, reason))
        self.media.forget(id_task)
        self.is_changed = True

    def refuse(self, id_task: int, error: ApiError) -> None:
        """The end of a task that went wrong with this error."""
        self.fail(id_task, error.status, error.message, error.type, error.reason, **error.extra)

    def fail_all(self, status: int, message: str) -> None:
        """Fail all running tasks."""
        for slot in list(self.running):
            self.fail(slot.run.task.id, status, message)
            self.drop(slot, keep_cache=False)

    def drop(self, slot: Slot, keep_cache: bool = True) -> None:
        """End a task without an answer. What an unfinished `cache_prompt: false` request computed is freed."""
        keep_cache = keep_cache and slot.run.task.cache_prompt
        self.release(slot, "cancelled")
        if not keep_cache:
            prompt_cache.trim(self.backend, slot, 0)

    def release(self, slot: Slot, stop: str) -> None:
        """Take the task off its slot; what it left in the cache stays."""
        slot.latest = slot.state(stop)
        slot.run.sampler.close()
        self.media.forget(slot.run.task.id)
        slot.run = None
        self.running.remove(slot)
        slot.t_used = self.clock()
        slot.n_rows_used = self.n_rows
        self.is_changed = True

    def report_progress(self, slot: Slot) -> None:
        """Tell how far the prompt of the slot's task has been read."""
        run = slot.run
        self.events.append(
            Progress(run.task.id, len(run.prompt), run.n_cached, len(slot.tokens), (self.clock() - run.t_start) * 1e3)
        )

    def lora_of(self, task: Task) -> tuple[tuple[int, float], ...]:
        """The adapters a task is computed with: its own, else the server's."""
        return self.commands.lora if task.lora is None else task.lora

    def n_keep(self, task: Task, prompt: list[int]) -> int:
        """How many tokens of the prompt stay when the context is shifted."""
        return len(prompt) if task.n_keep < 0 else len(self.system.tokens) + task.n_keep
