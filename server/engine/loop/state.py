"""What the parts of the scheduler share (`EngineState`), and the counters of one engine.

Engine thread only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from server.engine.cache import prompt_cache
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import HISTOGRAM_BOUNDS, Event, Failure, Progress, Task
from server.engine.slots.backend import Backend
from server.engine.slots.media_desk import MediaDesk, MediaReady
from server.engine.slots.slot import Slot
from server.engine.speculation.speculation import Speculation
from server.errors import ApiError

SYSTEM = -1  # the id of the system prompt's Slot


def get_arrival(slot: Slot) -> tuple[bool, int]:
    """A sort key for slots: their tasks in order of arrival, those in the background last."""
    return slot.run.task.in_background, slot.run.task.id


class EngineState:
    """The state of one engine.

    `aside` are the slots whose task waits in memory for room in the cache (`loop.prefixes`), `running` all other slots
    with a task. Both are in the order of `get_arrival`. If `is_changed` is set, the next frame has a snapshot.

    `announce` reports each task id before the engine works on it; `post` sends the media thread's results to the loop.
    """

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        clock: Callable[[], float],
        work_clock: Callable[[], float],
        announce: Callable[[int], None],
        post: Callable[[MediaReady], None],
    ) -> None:
        self.backend = backend
        self.config = config
        self.clock = clock
        self.work_clock = work_clock  # processor seconds of this thread
        self.slots = [Slot(i, i, backend.info.n_ctx_slot) for i in range(config.n_slots)]
        self.system = Slot(SYSTEM, config.n_slots, backend.info.n_ctx_slot)
        self.lora = tuple((i, scale) for i, (_, scale) in enumerate(config.lora) if scale)
        self.meter = Meter()
        self.speculation = Speculation(config, backend, clock)
        self.media = MediaDesk(backend.media, backend.info.n_ctx_slot, announce, post)
        self.running: list[Slot] = []
        self.aside: list[Slot] = []
        self.events: list[Event] = []
        self.is_changed = True
        self.n_rows = 0  # rows of all batches of the slots since the start
        self.announce = announce

    @property
    def busy(self) -> list[Slot]:
        """The slots with a task, running or waiting in memory."""
        return [*self.running, *self.aside]

    def fail(
        self, id_task: int, status: int, message: str, type: str | None = None, reason: str = "", **extra: object
    ) -> None:
        """Report that a task failed. The caller takes it off its slot, if it has one."""
        self.events.append(Failure(id_task, status, message, type, extra, reason))
        self.media.forget(id_task)
        self.is_changed = True

    def refuse(self, id_task: int, error: ApiError) -> None:
        self.fail(id_task, error.status, error.message, error.type, error.reason, **error.extra)

    def fail_all(self, status: int, message: str) -> None:
        """Fail all tasks that have a slot."""
        for slot in self.busy:
            self.fail(slot.run.task.id, status, message)
            self.drop(slot, keep_cache=False)

    def drop(self, slot: Slot, keep_cache: bool = True) -> None:
        """Take a task off its slot without an answer. The slot's cache stays only with `keep_cache` and the task's
        `cache_prompt`."""
        keep_cache = keep_cache and slot.run.task.cache_prompt
        self.release(slot, "cancelled")
        if not keep_cache:
            prompt_cache.trim(self.backend, slot, 0)

    def release(self, slot: Slot, stop: str) -> None:
        """Take the task off its slot, whose cache stays. `stop`: why the task ended."""
        slot.latest = slot.make_state(stop)
        slot.run.sampler.close()
        self.media.forget(slot.run.task.id)
        slot.run = slot.aside = None
        (self.aside if slot in self.aside else self.running).remove(slot)
        slot.t_used = self.clock()
        slot.n_rows_used = self.n_rows
        self.is_changed = True

    def report_progress(self, slot: Slot) -> None:
        run = slot.run
        self.events.append(
            Progress(run.task.id, len(run.prompt), run.n_cached, len(slot.tokens), (self.clock() - run.t_start) * 1e3)
        )

    def lora_of(self, task: Task) -> tuple[tuple[int, float], ...]:
        """The adapters of a task, as (index, scale): its own, else the server's."""
        return self.lora if task.lora is None else task.lora

    def resume(self, slot: Slot) -> None:
        """Put the slot's task among the running ones."""
        if slot in self.aside:
            self.aside.remove(slot)
        self.running.append(slot)
        self.running.sort(key=get_arrival)
        self.is_changed = True

    def suspend(self, slot: Slot) -> None:
        """Put the slot's task among those that wait in memory."""
        self.running.remove(slot)
        self.aside.append(slot)
        self.aside.sort(key=get_arrival)
        self.is_changed = True

    def count_kept(self, task: Task, prompt: list[int]) -> int:
        """How many tokens at the beginning of the prompt stay when the context is shifted."""
        return len(prompt) if task.n_keep < 0 else len(self.system.tokens) + task.n_keep


# ---- counters and histograms for /metrics ----------------------------------------------------------------------------

# Not taken: summaries with quantiles, because those of several servers can't be added up.
STALL_S = 0.25  # seconds: longer steps or media work while slots generate count as stalls


class Histogram:
    """Counts of values per bucket, and the sum of the values."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def list_values(self) -> tuple[float, ...]:
        """Counts per bucket, then the sum."""
        return (*self._counts, self._sum)


class Meter:
    """Counters and histograms of one engine. A histogram's name has its unit."""

    def __init__(self) -> None:
        self.n_steps = self.n_prompt = self.n_predicted = self.n_timed = self.n_reused = self.n_stalls = (
            self.n_asides
        ) = 0
        self.prompt_ms = self.predicted_ms = self.sampler_ms = 0.0
        self._histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAM_BOUNDS.items()}
        self.queue_wait = self._histograms["queue_wait_seconds"].observe
        self.first_token = self._histograms["time_to_first_token_seconds"].observe
        self.token_gap = self._histograms["time_between_tokens_seconds"].observe
        self._step = self._histograms["step_seconds"].observe
        self._prompt_rate = self._histograms["prompt_throughput_tokens_per_second"].observe
        self._predicted_rate = self._histograms["predicted_throughput_tokens_per_second"].observe

    def step(self, seconds: float, is_generating: bool) -> None:
        """Count a step. It is a stall if it was long and slots were generating."""
        self.n_steps += 1
        self._step(seconds)
        self.n_stalls += is_generating and seconds > STALL_S

    def note_beside(self, seconds: float, is_generating: bool) -> None:
        """Count a stall if work on media was long and slots were generating."""
        self.n_stalls += is_generating and seconds > STALL_S

    def note_prompt(self, n_tokens: int, seconds: float) -> None:
        """A prompt has been read: `n_tokens` tokens were evaluated in `seconds`."""
        self.prompt_ms += seconds * 1e3
        if seconds > 0:
            self._prompt_rate(n_tokens / seconds)

    def note_tokens(self, n: int, seconds: float) -> None:
        """`n` tokens came together, `seconds` after the previous token of the same text."""
        self.n_timed += n
        self.predicted_ms += seconds * 1e3
        for _ in range(n):
            self.token_gap(seconds / n)

    def note_text(self, n_tokens: int, seconds: float) -> None:
        """A text of `n_tokens` tokens took `seconds` from its first token to its last."""
        if n_tokens > 1 and seconds > 0:
            self._predicted_rate((n_tokens - 1) / seconds)

    def get_histograms(self) -> dict[str, tuple[float, ...]]:
        return {name: histogram.list_values() for name, histogram in self._histograms.items()}
