"""Draw the tokens of a step's rows on several threads at once: what waits for its turn is a tenth of a step.

The engine's thread calls `run` right after a decode, when the compute threads have nothing to do. Sampling is a C call
without the GIL, each row has its own sampler, and logits are only read; so helpers (`draw-1`, ...) and the engine's
thread take rows from one list until it is empty. Nobody waits for a helper that has got nothing done: one whose core is
busy costs nothing but its help. The draws are the same whoever makes them, since chance is the sampler's.

Not taken: a share of the rows for each thread (the slowest one would be waited for); a thread pool of the standard
library (a future for each row costs as much as a tenth of its draw).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from server.log import get_logger

MIN_ROWS = 4  # waking a helper takes as long as half a draw
MAX_HELPERS = 3
JOIN_S = 5.0

T = TypeVar("T")
log = get_logger("engine")

Job = tuple[Callable[[int], None], int]
"""A function that makes one draw, and the row it is for."""


class Draws:
    """`n_helpers` threads (0: everything is drawn when it is asked for), begun when they are first needed."""

    def __init__(self, n_helpers: int) -> None:
        self._n_helpers = max(min(n_helpers, MAX_HELPERS), 0)
        self._jobs: list[Job] = []  # taken from its end, by all; `pop` is one step under the GIL
        self._calls: SimpleQueue = SimpleQueue()
        self._done: SimpleQueue = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Make all draws, unless they are too few to share. One that raises is left for whoever asks for its token."""
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
        """End the threads; more than once is fine."""
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
                log.debug("row %d could not be drawn from ahead: %s", row, error)
            self._done.put(None)


class Meanwhile(Generic[T]):
    """Does `work` on a thread of its own, while this one is in C without Python's lock. As a context manager: after the
    block it is done, whatever happens in it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="meanwhile", daemon=True)
        self._thread.start()

    def __enter__(self) -> Meanwhile[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()

    def result(self) -> T:
        """What `work` returned; what it raised is raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
