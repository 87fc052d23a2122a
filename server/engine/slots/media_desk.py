"""Prepares the files of tasks and `Embed`s on the thread `media`. Owners take turns.

On a thread of its own, decoding a large image doesn't stall generating slots. `MediaDesk._run` and what it calls run
there, all else on the engine thread; `Shelf` serves both.

Not taken: several such threads. Decoding and computing compete for the same cores, and libmtmd's decoder can't be
interrupted.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any

from server.engine.seam.task import Embed, Media, Task
from server.engine.slots.backend import MediaBackend
from server.engine.slots.media import Closable, Layout, Prepared, write_out
from server.engine.slots.png import PNG, find_png_fault
from server.errors import ApiError
from server.log import get_logger
from server.records import field, record

MAX_EMBEDDED = 1 << 16  # the most tokens of an `Embed` with files (all held at once), unless a slot's context is larger

log = get_logger("engine")


class Shelf:
    """Prepared files by their content, kept while a task holds them. So a file that several tasks use is decoded once.
    Any thread may give files back; only the media thread takes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _held
        self._held: dict[str, Held] = {}

    def take(self, key: str, prepare: Callable[[], Prepared]) -> Prepared:
        """The file; it is prepared now unless it is on the shelf. Closing its `owner` gives it back."""
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                held.n_holders += 1
        if held is None:
            held = Held(self, key, prepare())
            with self._lock:
                self._held[key] = held
        return Prepared(held.file.parts, held)

    def give(self, held: Held) -> None:
        """Count one holder less; the last one frees the file."""
        with self._lock:
            held.n_holders -= 1
            is_last = not held.n_holders
            if is_last:
                del self._held[held.key]
        if is_last:
            held.file.owner.close()


@record(eq=False)
class Held:
    """A file on the shelf."""

    shelf: Shelf
    key: str
    file: Prepared
    n_holders: int = 1

    def close(self) -> None:
        """Give the file back, once for each `take`."""
        self.shelf.give(self)


@record(eq=False)
class Job:
    """A task whose files are being prepared."""

    task: Task | Embed
    files: list[Prepared] = field(default_factory=list)  # those prepared so far
    least: list[int] = field(default_factory=list)  # tokens that each file takes at least
    n_text: int = 0  # text tokens of the prompt
    n_uses: list[int] = field(default_factory=list)  # how often each file is in the prompt
    n_bytes: int = 0  # bytes decoded in this turn

    @property
    def is_done(self) -> bool:
        return len(self.files) == len(self.task.media)

    def count_tokens(self) -> int:
        """The least number of tokens of the prompt; the exact number when all files are prepared."""
        sizes = [file.n_tokens for file in self.files] + self.least[len(self.files) :]
        return self.n_text + sum(map(operator.mul, sizes, self.n_uses))


@record(frozen=True, eq=False)
class MediaReady:
    """From the media thread to the loop: a job's turn is over, or its files can't be prepared."""

    job: Job
    error: ApiError | None = None


class MediaDesk:
    """Tasks whose files are being prepared, and the layouts of tasks that wait or run.

    If several owners wait, a turn is one file. The owner for whom fewest bytes have been decoded is next. `at_work` is
    the id of the task whose files the media thread has. It is announced first, because a file may crash the engine.
    The next turn begins when the loop has taken the result.
    """

    def __init__(
        self, eyes: MediaBackend | None, n_ctx: int, announce: Callable[[int], None], post: Callable[[MediaReady], None]
    ) -> None:
        """`n_ctx` is a slot's context in tokens. `announce` reports a task id; `post` sends a message to the loop."""
        self.at_work: int | None = None
        self._prepare: Any = None if eyes is None else eyes.prepare
        self._least_tokens: Any = None if eyes is None else eyes.least_tokens
        self._n_ctx = n_ctx
        self._announce = announce
        self._post = post
        self._jobs: dict[int, Job] = {}  # in order of arrival
        self._decoded: dict[str, int] = {}  # bytes decoded for each owner with jobs
        self._shelf = Shelf()
        self._layouts: dict[int, Layout] = {}
        self._turns: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def has_layouts(self) -> bool:
        return bool(self._layouts)

    def take(self, task: Task | Embed, max_tasks: int) -> None:
        """Have a task's files prepared; `MediaReady` is posted after each turn. ApiError if the model takes no files or
        too many tasks wait."""
        if len(self) > max_tasks:
            raise ApiError(
                503, f"the files of {len(self)} requests are waiting to be decoded; try later", reason="queue_full"
            )
        if self._prepare is None:
            raise ApiError(
                400,
                f"{task.media[0].where}: this model can't take {task.media[0].kind} input; start the "
                "server with its projector (--mmproj)",
            )
        self._jobs[task.id] = Job(task)
        self._decoded.setdefault(task.owner, min(self._decoded.values(), default=0))
        self._start_next()

    def finish(self, ready: MediaReady) -> Task | Embed | None:
        """The task with its prompt written out; the task as it came if a file failed (`ready.error`); None if it has
        more files to prepare or was cancelled."""
        job, task, self.at_work = ready.job, ready.job.task, None
        is_wanted = task.id in self._jobs
        if is_wanted:
            self._decoded[task.owner] += job.n_bytes
            job.n_bytes = 0
            if job.is_done or ready.error is not None:
                self._drop(task.id)
        self._start_next()
        if not is_wanted or ready.error is not None:
            _close(file.owner for file in job.files)
            return task if is_wanted else None
        if not job.is_done:
            return None
        task, self._layouts[task.id] = write_out(task, tuple(job.files))
        return task

    def get_layout(self, id_task: int) -> Layout:
        """Where a task's chunks are; empty for tasks without files."""
        return self._layouts.get(id_task) or Layout()

    def forget(self, id_task: int) -> bool:
        """Drop the files of a task that has ended or was cancelled. False if they weren't being prepared."""
        layout = self._layouts.pop(id_task, None)
        if layout is not None:
            _close(layout.owners)
        job = self._drop(id_task)
        if job is not None and self.at_work != id_task:
            _close(file.owner for file in job.files)
        return job is not None

    def list_waiting(self) -> list[int]:
        return list(self._jobs)

    def close(self) -> None:
        """Forget the waiting tasks, and end the thread after its current file."""
        if self._thread is not None:
            for id_task in self.list_waiting():
                self.forget(id_task)
            self._turns.put(None)
            self._thread.join()

    def _drop(self, id_task: int) -> Job | None:
        job = self._jobs.pop(id_task, None)
        if job is not None and not any(other.task.owner == job.task.owner for other in self._jobs.values()):
            del self._decoded[job.task.owner]
        return job

    def _start_next(self) -> None:
        if self.at_work is None and self._jobs:
            job = min(self._jobs.values(), key=lambda job: self._decoded[job.task.owner])
            self.at_work = job.task.id
            self._announce(job.task.id)
            self._begin(job)

    def _begin(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="media", daemon=True)
            self._thread.start()
        self._turns.put(job)

    # ---- the media thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._take_turn():
            pass

    def _take_turn(self) -> bool:
        """Do one turn; False at the end. Between two calls no variable keeps a file alive."""
        job = self._turns.get()
        if job is None:
            return False
        self._prepare_files(job)
        return True

    def _prepare_files(self, job: Job) -> None:
        """Prepare all files of a job, or one if other owners wait. Stops when the job is cancelled."""
        error: ApiError | None = None
        try:
            if not job.n_uses:
                self._measure(job)
            while not job.is_done and job.task.id in self._jobs:
                media = job.task.media[len(job.files)]
                job.files.append(self._shelf.take(f"{media.kind} {media.hash}", partial(self._decode, job, media)))
                self._require_room(job)
                if len(self._decoded) > 1:
                    break
        except ApiError as fault:
            error = fault.with_traceback(None)  # a traceback would keep the files alive
        except Exception:
            log.exception("task %d: its media could not be prepared", job.task.id)
            error = ApiError(500, "the media of this request could not be prepared; see the server's log")
        self._post(MediaReady(job, error))

    def _decode(self, job: Job, media: Media) -> Prepared:
        """Decode a file. A PNG is inflated first in a way that can be stopped."""
        job.n_bytes += media.n_bytes
        fault = find_png_fault(media.data, media.n_bytes, lambda: job.task.id in self._jobs) if is_png(media) else ""
        if fault:
            raise ApiError(400, f"{media.where}: the file can't be decoded: it {fault}")
        return self._prepare(media)

    def _measure(self, job: Job) -> None:
        """Compute the prompt's least length from the files' headers. ApiError if it is too long."""
        task = job.task
        prompts = (task.prompt,) if isinstance(task, Task) else task.inputs
        job.n_text = sum(token >= 0 for prompt in prompts for token in prompt)
        job.n_uses = [0] * len(task.media)
        for token in itertools.chain(*prompts):
            if token < 0:
                job.n_uses[-1 - token] += 1
        for media in task.media:
            job.least.append(self._least_tokens(media))
            self._require_room(job)

    def _require_room(self, job: Job) -> None:
        is_task = isinstance(job.task, Task)
        n, most = job.count_tokens(), self._n_ctx - 1 if is_task else max(self._n_ctx, MAX_EMBEDDED)
        if n > most:
            more = "" if job.is_done else " or more"
            raise ApiError(
                400,
                f"the prompt has {n} tokens{more}, which exceeds the available context size of {self._n_ctx}; "
                "shorten it, or start the server with a larger --ctx-size"
                if is_task
                else f"the inputs have {n} tokens{more}, this server takes at most {most} with files; send less",
                "exceed_context_size_error",
                n_prompt_tokens=n,
                n_ctx=self._n_ctx,
            )


def is_png(media: Media) -> bool:
    """Whether a file is a PNG whose header has been read."""
    return bool(media.n_bytes) and media.data.startswith(PNG)


def _close(owners: Iterable[Closable]) -> None:
    for owner in owners:
        owner.close()
