"""One batch: its description in OpenAI's form, kept in a file, and its states.

    validating -> in_progress -> finalizing -> completed
        |              `-> expired           (the remaining lines are errors)
        |-> cancelling -> cancelled          (also from in_progress)
        `-> failed                           (from any unfinished state)

An ended batch keeps its answers so far. Threads `batch` (`runner.py`) call `prepare` and `complete`, one thread at a
time per batch. The file is written whole at each change of state, so after a crash the next server continues each
batch from its last state.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.batches.files import MAX_AGE_S, WRITTEN, File, Files, make_id, write_whole
from server.batches.journal import Busy, Journal
from server.batches.lines import Fault, read_lines
from server.batches.work import Work
from server.errors import ApiError, StartError
from server.log import get_logger
from server.records import record

WINDOW, WINDOW_S = "24h", 86400  # OpenAI's only completion window
VALIDATING, IN_PROGRESS, FINALIZING, COMPLETED = "validating", "in_progress", "finalizing", "completed"
CANCELLING, CANCELLED, EXPIRED, FAILED = "cancelling", "cancelled", "expired", "failed"
OPEN = (VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING)
STAMPS = (IN_PROGRESS, FINALIZING, COMPLETED, FAILED, EXPIRED, CANCELLING, CANCELLED)
"""States whose time a batch shows, for example as `completed_at`."""
BUSY_S = 1.0  # seconds until the next try if another process has locked the files
FULL_S = 10.0  # seconds until the next try if a file can't be written
LATE = "This request could not be executed before the completion window expired."

log = get_logger("batches")


@record(frozen=True)
class Asked:
    key_id: str
    file: File
    endpoint: str
    metadata: Mapping[str, str]
    age_s: int = MAX_AGE_S
    """Seconds after which the files that the batch writes are deleted."""


class Batch:
    """A batch. `about` is its description for clients; clients don't see `own`. `work` is None unless lines are
    being run."""

    def __init__(
        self, path: Path, files: Files, about: dict[str, Any], own: dict[str, Any], now: Callable[[], float]
    ) -> None:
        self._path, self._files, self._now = path, files, now
        self.about, self.own = about, own
        self.work: Work | None = None
        self.t_next = 0.0  # it isn't worked on before this time
        self.fault = ""  # the reason why it can't continue
        self._lock = threading.Lock()  # protects changes of `about`
        if self.is_open:
            files.use(about["input_file_id"])

    @classmethod
    def begin(cls, folder: Path, files: Files, asked: Asked, now: Callable[[], float] = time.time) -> Batch:
        """Create a batch. OSError if its file can't be written."""
        created, id_ = int(now()), "batch_" + secrets.token_hex(16)
        about = {
            "id": id_,
            "object": "batch",
            "endpoint": asked.endpoint,
            "errors": None,
            "input_file_id": asked.file.id,
            "completion_window": WINDOW,
            "status": VALIDATING,
            "output_file_id": None,
            "error_file_id": None,
            "created_at": created,
            "expires_at": created + WINDOW_S,
            **{f"{state}_at": None for state in STAMPS},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": dict(asked.metadata),
        }
        own = {"key_id": asked.key_id, "answers": make_id(), "errors": make_id(), "age_s": asked.age_s}
        batch = cls(folder / f"{id_}.json", files, about, own, now)
        batch._save()
        return batch

    @classmethod
    def read(cls, path: Path, files: Files, now: Callable[[], float] = time.time) -> Batch | None:
        """Read the batch of an earlier server. None if its file is damaged."""
        try:
            said = json.loads(path.read_bytes())
            about, own = said["about"], said["own"]
            names = (about["id"], about["status"], about["input_file_id"], about["endpoint"], own["key_id"])
            times = (about["created_at"], about["expires_at"], own["age_s"])
            ids = (own["answers"], own["errors"])
            if path.stem == about["id"] and all(type(time) is int for time in times):
                if all(isinstance(name, str) for name in (*names, *ids)):
                    return cls(path, files, about, own, now)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        log.error("--store-dir: %s is damaged and counts as deleted", path.name)
        return None

    @property
    def id(self) -> str:
        return str(self.about["id"])

    @property
    def key_id(self) -> str:
        return str(self.own["key_id"])

    @property
    def status(self) -> str:
        return str(self.about["status"])

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def growing(self) -> tuple[str, ...]:
        """The ids of the files that the batch is writing."""
        return (self.own["answers"], self.own["errors"]) if self.is_open else ()

    def as_json(self) -> dict[str, Any]:
        """The batch in OpenAI's form, with current counts."""
        return {**self.about, "request_counts": self._get_counts()}

    def _get_counts(self) -> dict[str, int]:
        work, counts = self.work, self.about["request_counts"]
        if work is None:
            return dict(counts)
        return {"total": work.n_total, "completed": work.n_completed, "failed": work.n_failed}

    # ---- from state to state ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read the input and the answers of an earlier run. Afterwards lines can be run, unless the batch has
        failed or has to wait."""
        try:
            journal = Journal(self._files.make_path(self.own["answers"]), self._files.make_path(self.own["errors"]))
        except Busy:
            self.t_next = self._now() + BUSY_S  # the other process is usually a server that is about to end
            return
        except StartError as error:
            self.fail([Fault(None, "server_error", str(error))])
            return
        try:
            with self._files.open(self.about["input_file_id"]) as stream:
                lines, faults = read_lines(stream, self.about["endpoint"])
            if faults:
                journal.close()
                self.fail(faults)
                return
            self.work = Work(self._files.make_path(self.about["input_file_id"]), lines, journal)
        except (ApiError, OSError) as error:
            journal.close()
            self.fail([Fault(None, "server_error", str(error))])
            return
        self._turn(IN_PROGRESS, VALIDATING)

    def fail(self, faults: Sequence[Fault]) -> None:
        data = [{"code": fault.code, "message": fault.message, "param": None, "line": fault.line} for fault in faults]
        self._end(FAILED, errors={"object": "list", "data": data})

    def cancel(self) -> None:
        """Run no more lines, and stop the running ones. The batch ends once they have stopped."""
        if self._turn(CANCELLING, VALIDATING, IN_PROGRESS) and self.work is not None:
            self.work.stop()

    def check_room(self, work: Work) -> None:
        """Note the bytes of the answers. ApiError 413 if the store is full."""
        for file, id_ in zip((work.journal.answered, work.journal.failed), self.growing):
            self._files.grow(id_, file.n_bytes)

    @property
    def is_blocked(self) -> bool:
        """Whether the batch has to wait for another process."""
        return self._now() < self.t_next

    @property
    def is_late(self) -> bool:
        return self._now() >= self.about["expires_at"]

    def complete(self) -> None:
        """End the batch and turn its answers into files. No line of it may be running. OSError."""
        work, last = self.work, COMPLETED
        if self.fault:
            self.fail([Fault(None, "server_error", self.fault)])
            return
        if self.status == CANCELLING:
            last = CANCELLED
        elif work is not None and work.has_waiting:
            last = EXPIRED
            work.give_up("batch_expired", LATE)
        if last != COMPLETED or self._turn(FINALIZING, IN_PROGRESS, FINALIZING):
            self._end(last)

    def _end(self, status: str, errors: object = None) -> None:
        """Change to a final state. Files with answers or errors are registered unless they are empty. OSError if that
        can't be written; the answers stay, and the batch is open."""
        changes: dict[str, Any] = {"errors": errors, "request_counts": self._get_counts()}
        work, self.work = self.work, None
        if work is not None:
            work.close()
        names = {"answers": "output_file_id", "errors": "error_file_id"}
        for own, name in names.items():
            id_ = self.own[own]
            path = self._files.make_path(id_)
            if path.exists() and path.stat().st_size:
                filename = f"{self.id}_{'output' if own == 'answers' else 'error'}.jsonl"
                self._files.finish(id_, self.key_id, filename, WRITTEN, self.own["age_s"])
                changes[name] = id_
            else:
                self._files.drop(id_)
        self._files.release(self.about["input_file_id"])
        self._turn(status, **changes)

    def _turn(self, status: str, *before: str, **changes: Any) -> bool:
        """Change the state if it is one of `before` (none: any state). Returns whether it was changed. OSError."""
        with self._lock:
            if before and self.status not in before:
                return False
            self.about = {**self.about, **changes, "status": status, f"{status}_at": int(self._now())}
            self._save()
        return True

    def _save(self) -> None:
        write_whole(self._path, json.dumps({"about": self.about, "own": self.own}).encode())

    def forget(self) -> None:
        """Delete the batch's description. The files with its answers are kept until they expire."""
        with suppress(OSError):
            self._path.unlink()
