"""Draws the tokens of a step's rows on several threads at once.

The engine's thread calls `run` right after a decode, when the compute threads are idle. Sampling is a C call without
the GIL, each row has its own sampler, and logits are only read. The helper threads (`draw-1`, ...) and the engine's
thread take rows from one list until it is empty. The result doesn't depend on the thread, because the random state
belongs to the sampler.

Not taken: a fixed share of the rows per thread (all would wait for the slowest thread); a thread pool of the standard
library (a future per row costs too much).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from server.log import get_logger

MIN_ROWS = 4  # with fewer rows, waking the helpers takes longer than they save
MAX_HELPERS = 3
JOIN_S = 5.0  # how long `close` waits for a helper, in seconds

T = TypeVar("T")
log = get_logger("engine")

Job = tuple[Callable[[int], None], int]
"""A function that makes one draw, and the row it is for."""


class Draws:
    """Up to `MAX_HELPERS` threads, started at the first `run` that needs them. Without helpers `run` does nothing."""

    def __init__(self, n_helpers: int) -> None:
        self._n_helpers = max(min(n_helpers, MAX_HELPERS), 0)
        self._jobs: list[Job] = []  # all threads take from its end; `pop` is atomic under the GIL
        self._calls: SimpleQueue = SimpleQueue()
        self._done: SimpleQueue = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Make all draws, unless they are fewer than `MIN_ROWS`. A failed draw is made again later by its sampler."""
        if not self._n_helpers or len(jobs) < MIN_ROWS:
            return
        if not self._threads:
            self._start()
        self._jobs += jobs
        for _ in self._threads:
            self._calls.put(True)
        self._work()
        for _ in jobs:
            self._done.get()

    def close(self) -> None:
        """End the threads; may be called again."""
        for _ in self._threads:
            self._calls.put(False)
        for thread in self._threads:
            thread.join(JOIN_S)
        self._threads = []
        self._n_helpers = 0

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._help, name=f"draw-{i + 1}", daemon=True) for i in range(self._n_helpers)
        ]
        for thread in self._threads:
            thread.start()

    def _help(self) -> None:
        while self._calls.get():
            self._work()

    def _work(self) -> None:
        while True:
            try:
                draw, row = self._jobs.pop()
            except IndexError:
                return
            try:
                draw(row)
            except Exception as error:
                log.debug("drawing ahead from row %d failed: %s", row, error)
            self._done.put(None)


class BackgroundCall(Generic[T]):
    """Calls `work` on a thread of its own. The end of the `with` block waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background-call", daemon=True)
        self._thread.start()

    def __enter__(self) -> BackgroundCall[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()

    def wait_for_result(self) -> T:
        """The return value of `work`; re-raises its exception."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
