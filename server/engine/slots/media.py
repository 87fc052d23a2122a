"""Images and sound in prompts: how they are prepared, and what stands for them among the tokens.

A task comes with files and a prompt in which a negative id -1, -2, ... stands for the first, second, ... of them; so
does a request for vectors. A thread of its own (`media`) has the backend decode the files, so a large picture stalls
nobody; then the task goes into the queue like any other, its prompt written out: each chunk of an image as
placeholders, ids below zero made of its content's hash, one for each position in the cache. So everything that compares
tokens (reuse and sharing of prefixes, saved slots) works for images without knowing of them: same content, same ids.
Two things are different. A chunk's cells come all together, from `media_steps`; and what is reused ends at a chunk's
border.

Engine thread, but for `MediaDesk._run`. Not taken: encoding on the media thread too. On a CPU it would fight with the
decoding threads for the cores, and the text of others would stall anyway.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from queue import SimpleQueue
from typing import Protocol

from server.engine.seam.task import Embed, Media, Task
from server.errors import ApiError
from server.log import get_logger
from server.records import record

log = get_logger("engine")


class Closable(Protocol):
    """Something native to be freed."""

    def close(self) -> None:
        """Free it."""


@record(frozen=True, eq=False)
class Chunk:
    """A stretch of embeddings: `ids` are its placeholders, one per position; `n_tokens` cells of the cache.

    With `is_causal` False all of it is evaluated in one batch. `native` is the backend's handle.
    """

    ids: tuple[int, ...]
    n_tokens: int
    is_causal: bool = True
    native: int = 0


@record(frozen=True, eq=False)
class Prepared:
    """What a file becomes in a prompt: lists of ordinary tokens and chunks, in order; `owner` frees the chunks."""

    parts: tuple[list[int] | Chunk, ...]
    owner: Closable


@record(frozen=True, eq=False)
class MediaReady:
    """From the media thread to the loop: a task's files are prepared, or why they can't be."""

    id: int
    files: tuple[Prepared, ...] = ()
    error: ApiError | None = None


@record
class Layout:
    """Where in a prompt chunks begin, and what frees them."""

    chunks: dict[int, Chunk] = field(default_factory=dict)
    owners: list[Closable] = field(default_factory=list)

    def n_extra(self, at: int = 0) -> int:
        """Cells beyond one per position that the chunks from `at` on take (M-RoPE); below zero if fewer."""
        return sum(chunk.n_tokens - len(chunk.ids) for start, chunk in self.chunks.items() if start >= at)

    def shifted(self, n: int) -> Layout:
        """The same behind `n` more tokens."""
        return Layout({start + n: chunk for start, chunk in self.chunks.items()}, self.owners)

    def next_start(self, at: int, end: int) -> int:
        """Where the first chunk from `at` on begins; `end` if there is none."""
        return min((start for start in self.chunks if start >= at), default=end)

    def reusable(self, n_prompt: int) -> int:
        """How much of the prompt a cache can spare us: all but what has to be evaluated for its last logits."""
        last = max(self.chunks, default=-1)
        is_at_end = last >= 0 and last + len(self.chunks[last].ids) == n_prompt
        return last if is_at_end else max(n_prompt - 1, 0)


def placeholders(key: bytes, n: int) -> tuple[int, ...]:
    """`n` negative ids of 32 bits that only this key gives: no two contents share one by accident or by design."""
    import hashlib  # here, because most models take no media

    digest = hashlib.shake_256(key).digest(4 * n)
    return tuple(-1 - (number >> 1) for number in struct.unpack(f"<{n}I", digest))


def write_out(task: Task | Embed, files: tuple[Prepared, ...]) -> tuple[Task | Embed, Layout]:
    """The task with its prompt as the cache will hold it, and where the chunks are; in a request for vectors that is
    the place in all of its inputs, one behind the other."""
    layout = Layout(owners=[file.owner for file in files])
    if isinstance(task, Task):
        return replace(task, prompt=_written(task.prompt, files, layout, 0), media=()), layout
    inputs: list[tuple[int, ...]] = []
    start = 0
    for tokens in task.inputs:
        inputs.append(_written(tokens, files, layout, start))
        start += len(inputs[-1])
    return replace(task, inputs=tuple(inputs), media=()), layout


def _written(prompt: Iterable[int], files: tuple[Prepared, ...], layout: Layout, start: int) -> tuple[int, ...]:
    """One prompt, which begins at `start`; its chunks go into the layout."""
    tokens: list[int] = []
    for token in prompt:
        if token >= 0:
            tokens.append(token)
            continue
        for part in files[-1 - token].parts:
            if isinstance(part, Chunk):
                layout.chunks[start + len(tokens)] = part
                tokens += part.ids
            else:
                tokens += part
    return tuple(tokens)


class MediaDesk:
    """Tasks whose files are being prepared, one after the other, and the layouts of those that wait or run.

    `at_work` is the task whose files are with the media thread. It is announced before, because the engine may die of
    a file; so the next one begins only when the loop has taken the result.
    """

    def __init__(
        self,
        prepare: Callable[[Media], Prepared] | None,
        announce: Callable[[int], None],
        post: Callable[[MediaReady], None],
    ) -> None:
        self.at_work: int | None = None
        self._prepare = prepare
        self._announce = announce
        self._post = post
        self._tasks: dict[int, Task | Embed] = {}  # in order of arrival
        self._layouts: dict[int, Layout] = {}
        self._jobs: SimpleQueue[Task | Embed | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def has_layouts(self) -> bool:
        """Whether any task that waits or runs has files."""
        return bool(self._layouts)

    def take(self, task: Task | Embed, max_tasks: int) -> None:
        """Have a task's files prepared; `MediaReady` is posted when they are. ApiError if this engine can't."""
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
        self._tasks[task.id] = task
        self._next()

    def finish(self, ready: MediaReady) -> Task | Embed | None:
        """The task, written out; None if nobody wants it any more. ApiError if a file is no good."""
        self.at_work = None
        task = self._tasks.pop(ready.id, None)
        self._next()
        if task is None or ready.error is not None:
            _close(file.owner for file in ready.files)
            if task is not None:
                raise ready.error
            return None
        task, self._layouts[ready.id] = write_out(task, ready.files)
        return task

    def layout(self, id_task: int) -> Layout:
        """Where a task's chunks are."""
        return self._layouts.get(id_task) or Layout()

    def forget(self, id_task: int) -> bool:
        """The task has ended, or is not wanted any more. False if its files weren't being prepared."""
        layout = self._layouts.pop(id_task, None)
        if layout is not None:
            _close(layout.owners)
        return self._tasks.pop(id_task, None) is not None

    def waiting(self) -> list[int]:
        """The tasks whose files are being prepared."""
        return list(self._tasks)

    def close(self) -> None:
        """End the thread, which finishes the file it is at."""
        if self._thread is not None:
            self._tasks.clear()
            self._jobs.put(None)
            self._thread.join()

    def _next(self) -> None:
        """Give the media thread the next task's files, if it is free."""
        if self.at_work is None and self._tasks:
            task = next(iter(self._tasks.values()))
            self.at_work = task.id
            self._announce(task.id)
            self._begin(task)

    def _begin(self, task: Task | Embed) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="media", daemon=True)
            self._thread.start()
        self._jobs.put(task)

    def _run(self) -> None:
        """The media thread."""
        while (task := self._jobs.get()) is not None:
            self._prepare_files(task)

    def _prepare_files(self, task: Task | Embed) -> None:
        files: list[Prepared] = []
        error: ApiError | None = None
        try:
            for media in task.media:
                if task.id in self._tasks:
                    files.append(self._prepare(media))
        except ApiError as fault:
            error = fault
        except Exception:
            log.exception("task %d: its media could not be prepared", task.id)
            error = ApiError(500, "the media of this request could not be prepared; see the server's log")
        self._post(MediaReady(task.id, tuple(files), error))


def _close(owners: Iterable[Closable]) -> None:
    for owner in owners:
        owner.close()
