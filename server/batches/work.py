"""The lines of one batch: waiting, running and answered ones.

Any thread may use it. A line is taken with `take`, run with `ask`, and given to `answer`, which writes the answer or
lets the line wait again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from server.batches.asking import UNAVAILABLE, Answer, Asking, Client, line_of
from server.batches.journal import Journal
from server.batches.lines import Line, read_body, sort_lines
from server.errors import ApiError
from server.log import get_logger
from server.records import record
from server.web.message import make_error_body, to_json

MAX_TRIES = 8  # of a line while the server answers that it is busy
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # between two tries; the wait doubles with each

log = get_logger("batches")


@record(eq=False)
class Asked:
    line: Line
    client: Client
    n_tries: int


class Work:
    """The work on the input at `path`, whose lines are `lines`. Lines in the journal are answered already."""

    def __init__(
        self, path: Path, lines: list[Line], journal: Journal, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._stream: BinaryIO = open(path, "rb")
        self._reading = threading.Lock()  # protects the stream
        self.journal = journal
        self.n_total = len(lines)
        self.n_before = sum(line.id in journal for line in lines)
        self._lock = threading.Lock()  # protects the fields below
        self._waiting = deque(line for line in sort_lines(lines) if line.id not in journal)
        self._asked: dict[str, Asked] = {}
        self._n_tries: dict[str, int] = {}
        self._latest: threading.Event | None = None  # `is_in` of the line that was taken last
        self._t_next = 0.0  # no line is taken before this time, because the server was busy
        self._is_closed = False

    @property
    def n_completed(self) -> int:
        return len(self.journal.answered.ids)

    @property
    def n_failed(self) -> int:
        return len(self.journal.failed.ids)

    @property
    def is_done(self) -> bool:
        """Whether no line is waiting or running."""
        with self._lock:
            return not (self._waiting or self._asked)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def n_asked(self) -> int:
        return len(self._asked)

    def take(self) -> Asked | None:
        """Take the next line; None if there is none at the moment."""
        with self._lock:
            if self._is_closed or not self._waiting or self._clock() < self._t_next:
                return None
            line = self._waiting.popleft()
            asked = self._asked[line.id] = Asked(line, Client(self._latest), self._n_tries.get(line.id, 0) + 1)
            self._latest = asked.client.is_in
            return asked

    def ask(self, asking: Asking, asked: Asked, key_id: str) -> Answer:
        line = asked.line
        try:
            with self._reading:
                body: dict[str, Any] = read_body(self._stream, line)
        except Exception as error:
            asked.client.is_in.set()
            if not isinstance(error, ApiError):
                log.exception("line %d of a batch can't be read", line.number)
                error = ApiError(500, f"line {line.number} of the file can't be read again")
            return Answer(error.status, to_json(make_error_body(error)))
        return asking.ask(line.id, line.url, body, key_id, asked.client)

    def answer(self, asked: Asked, answer: Answer) -> None:
        """Write the answer to a line. The line waits again instead if it was stopped, if the answer can't be written
        (OSError), or if the server was busy, up to `MAX_TRIES` tries. A busy server gets no line for a while."""
        line, waits_again = asked.line, True
        try:
            if answer.is_left or answer.has_given_way:
                return
            if answer.status == UNAVAILABLE and asked.n_tries < MAX_TRIES:
                self._n_tries[line.id] = asked.n_tries
                self._t_next = self._clock() + min(FIRST_WAIT_S * 2 ** (asked.n_tries - 1), LONGEST_WAIT_S)
                return
            waits_again = not self._write(line, answer)
        finally:
            with self._lock:
                del self._asked[line.id]
                if waits_again:
                    self._waiting.appendleft(line)

    def _write(self, line: Line, answer: Answer) -> bool:
        """Write the answer. Returns False after `stop`, because the answer may have been cut short."""
        if self._is_closed:
            return False
        is_failed = not 200 <= answer.status < 300
        self.journal.add(line.id, line_of(line.id, line.custom_id, answer), is_failed)
        return True

    def give_up(self, code: str, message: str) -> None:
        """Write this error for all waiting lines. OSError."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                line = self._waiting.popleft()
            self.journal.add(line.id, line_of(line.id, line.custom_id, None, code, message), True)

    def stop(self) -> None:
        """Take no more lines, and stop the running ones without an answer."""
        with self._lock:
            self._is_closed = True
            asked = list(self._asked.values())
        for one in asked:
            one.client.leave()

    def close(self) -> None:
        """Close the files, once no thread uses this any more."""
        self._stream.close()
        self.journal.close()
