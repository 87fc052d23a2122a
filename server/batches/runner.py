"""The batches of a server, and the threads that run their lines beside other requests.

Connection threads create, read and cancel batches. Threads `batch` do the work: they read the input of batches, run
lines and end batches. They exist only while a batch is open, one for each line that may run at the same time. Keys take
turns line by line; of a key's batches the oldest one with waiting lines is next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from server.batches.asking import Asking
from server.batches.batch import CANCELLING, FULL_S, OPEN, VALIDATING, Asked, Batch
from server.batches.files import Files
from server.batches.work import Asked as AskedLine
from server.batches.work import Work
from server.errors import ApiError, StartError
from server.log import get_logger
from server.web.router import Route

MAX_OPEN, MAX_OPEN_OF_KEY = 64, 16  # unfinished batches, of all keys and of one
MAX_KEPT = 1000  # finished batches of all keys
MAX_AGE_S = 30 * 86400
POLL_S = 0.5  # seconds between two looks at what sends no notification: models and the clock
LEAVE_S = 5.0  # longest wait for running lines when the server ends

log = get_logger("batches")

Job = Callable[[], None]


class Batches:
    """All batches. `files` holds their inputs and outputs. At most `n_at_once` lines run at the same time. Lines are
    begun only while `is_ready` says that a model can answer."""

    def __init__(
        self,
        folder: Path,
        files: Files,
        is_ready: Callable[[], bool] = lambda: True,
        n_at_once: Callable[[], int] = lambda: 16,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self.files, self._now = folder, files, now
        self._is_ready, self._n_at_once = is_ready, n_at_once
        self._asking = Asking(())
        self._changed = threading.Condition()  # its lock protects the fields below
        self._batches: dict[str, Batch] = {}  # the oldest comes first
        self._at_work: set[str] = set()  # batches that are being read or ended
        self._turns: list[str] = []  # keys; the one whose last turn is oldest comes first
        self._threads: set[threading.Thread] = set()
        self._is_closed = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [batch for path in folder.glob("batch_*.json") if (batch := Batch.read(path, files, now))]
        except OSError as error:
            raise StartError(f"--store-dir {folder} can't be used: {error.strerror}") from None
        for batch in sorted(found, key=lambda batch: (batch.about["created_at"], batch.id)):
            self._batches[batch.id] = batch
        files.tidy([id_ for batch in found for id_ in batch.growing])

    # ---- for handlers -----------------------------------------------------------------------------------------------

    def create(self, asked: Asked) -> Batch:
        """Create a batch. ApiError 429 if there are too many unfinished ones."""
        with self._changed:
            self._sweep()
            open_ones = [batch for batch in self._batches.values() if batch.is_open]
            n_own = sum(batch.key_id == asked.key_id for batch in open_ones)
            if n_own >= MAX_OPEN_OF_KEY:
                raise ApiError(429, f"{n_own} of your batches are running; wait for one of them, or cancel it")
            if len(open_ones) >= MAX_OPEN:
                raise ApiError(429, f"{len(open_ones)} batches of all keys are running; try again later")
            try:
                batch = Batch.begin(self._folder, self.files, asked, self._now)
            except OSError as error:
                log.error("--store-dir: a batch could not be written: %s", error)
                raise ApiError(500, "the batch could not be written; see the server's log") from None
            self._batches[batch.id] = batch
        self.wake()
        return batch

    def get(self, id_: str, key_id: str) -> Batch | None:
        """The batch with this id, if it belongs to this key."""
        with self._changed:
            batch = self._batches.get(id_)
        return batch if batch is not None and batch.key_id == key_id else None

    def list_of_key(self, key_id: str) -> list[Batch]:
        """All batches of a key, the oldest first."""
        with self._changed:
            self._sweep()
            return [batch for batch in self._batches.values() if batch.key_id == key_id]

    def cancel(self, batch: Batch) -> None:
        """Stop a batch. ApiError 409 if it has ended."""
        with self._changed:
            if batch.status not in OPEN:
                raise ApiError(409, f"the batch has ended already: it is {batch.status}")
            batch.cancel()
            self._changed.notify_all()

    # ---- the server -------------------------------------------------------------------------------------------------

    def use(self, table: Iterable[Route]) -> None:
        self._asking = Asking(table)

    def close(self) -> None:
        """Stop running lines, so that the server can end. The next server runs them again."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            works = [batch.work for batch in self._batches.values() if batch.work is not None]
            self._changed.notify_all()
        for work in works:
            work.stop()
        ends = time.monotonic() + LEAVE_S
        for thread in list(self._threads):
            thread.join(max(ends - time.monotonic(), 0.0))
        for batch in self._batches.values():
            if batch.work is not None:
                batch.work.close()

    def wake(self) -> None:
        """Start threads if there is work, also for batches of an earlier server."""
        with self._changed:
            if self._is_closed or not any(batch.is_open for batch in self._batches.values()):
                return
            for _ in range(self._n_at_once() - len(self._threads)):
                thread = threading.Thread(target=self._work, name="batch", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system's limit; existing threads do the work, or a later call starts some
                    log.warning("batches run with %d threads only: the system allows no more", len(self._threads))
                    break
                self._threads.add(thread)
            self._changed.notify_all()

    # ---- threads ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """The main function of the threads `batch`."""
        while (job := self._wait_for_next()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of a batch failed")

    def _wait_for_next(self) -> Job | None:
        """Wait for the next job; None once all batches have ended or the server is closing."""
        with self._changed:
            while True:
                open_ones = [batch for batch in self._batches.values() if batch.is_open]
                if self._is_closed or not open_ones:
                    self._threads.discard(threading.current_thread())
                    return None
                if job := self._find_whole(open_ones) or (self._find_line(open_ones) if self._is_ready() else None):
                    return job
                self._changed.wait(POLL_S)

    def _find_whole(self, batches: Iterable[Batch]) -> Job | None:
        """A job for a batch as a whole: read its input, or end it. The lock is held."""
        for batch in batches:
            step = None if batch.id in self._at_work or batch.is_blocked else self._step(batch)
            if step is not None:
                self._at_work.add(batch.id)
                return partial(self._do_whole, batch, step)
        return None

    def _step(self, batch: Batch) -> Job | None:
        work = batch.work
        if work is None:
            was_begun = batch.about["in_progress_at"] is not None
            return batch.prepare if was_begun or batch.status == VALIDATING else batch.complete
        if batch.fault or batch.status == CANCELLING or batch.is_late:
            work.stop()
            return None if work.n_asked else batch.complete
        return batch.complete if work.is_done else None

    def _do_whole(self, batch: Batch, step: Job) -> None:
        try:
            step()
        except OSError as error:
            log.error("%s: %s", batch.id, error)
            batch.t_next = self._now() + FULL_S
            batch.fault = f"the answers can't be written: {error}"
        finally:
            with self._changed:
                self._at_work.discard(batch.id)
                self._changed.notify_all()

    def _find_line(self, batches: list[Batch]) -> Job | None:
        """The job of running the next line, of the key whose last turn is oldest. The lock is held."""
        firsts: dict[str, Batch] = {}
        for batch in batches:
            if batch.work is not None and batch.work.has_waiting:
                firsts.setdefault(batch.key_id, batch)
        for key_id in sorted(firsts, key=lambda key: self._turns.index(key) if key in self._turns else -1):
            work = firsts[key_id].work
            if work is not None and (asked := work.take()) is not None:
                self._turns = [key for key in self._turns if key != key_id and key in firsts] + [key_id]
                return partial(self._ask, firsts[key_id], work, asked)
        return None

    def _ask(self, batch: Batch, work: Work, asked: AskedLine) -> None:
        try:
            work.answer(asked, work.ask(self._asking, asked, batch.key_id))
            batch.check_room(work)
        except (OSError, ApiError) as error:
            log.error("%s: %s", batch.id, error)
            batch.fault = f"the answers can't be written: {error}"
        with self._changed:
            self._changed.notify_all()

    def _sweep(self) -> None:
        """Forget finished batches that are too old or too many. The lock is held."""
        ended = [batch for batch in self._batches.values() if not batch.is_open]
        oldest = self._now() - MAX_AGE_S
        for i, batch in enumerate(ended):
            if batch.about["created_at"] < oldest or len(ended) - i > MAX_KEPT:
                del self._batches[batch.id]
                batch.forget()
