"""What the main thread does while the server runs: report its state, and reload changed files.

The state goes to the files of `--pid-file` and `--state-file`, and to systemd. SIGHUP reloads keys, certificate and log
file (keys are also reloaded when their file changes); SIGUSR1 logs all stacks. Signal handlers only set a flag; `tick`,
which the main thread calls about twice a second, does the work.

Not taken: a thread for it. The main thread has nothing else to do, and signals arrive there anyway.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from server import log as logging_setup
from server.log import get_logger
from server.options.groups import HttpOptions, ServiceOptions
from server.options.row import OptionError
from server.service import edge
from server.service.run_files import RunFileError, RunFiles
from server.service.systemd import Notifier
from server.stacks import collect_stacks
from server.web.httpd import HttpServer

TICK_S = 0.5  # most seconds between two calls of `tick`
EXTEND_US = 60_000_000
"""Microseconds that systemd is asked to wait longer when a load makes progress."""

log = get_logger("app")


class Engine(Protocol):
    """The part of `Models` that is used here."""

    @property
    def is_stuck(self) -> bool:
        """Whether an engine has work but has been silent for too long."""

    def collect_stacks(self) -> str:
        """The stacks of all engines' processes; "" if there are none."""


class Housekeeping:
    """`stop` is called when the terminal that started the server is closed. `model` is the model's path."""

    def __init__(
        self,
        options: ServiceOptions,
        http: HttpOptions,
        model: str,
        server: HttpServer,
        keys: edge.KeyFiles,
        engine: Engine,
        stop: Callable[[], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._http = http
        self._model = model
        self._server = server
        self._keys = keys
        self._engine = engine
        self._stop = stop
        self._files = RunFiles(options.pid_file, options.state_file)
        self._notifier = Notifier(environ)
        self._state = ""
        self._must_reload = threading.Event()
        self._must_print = threading.Event()
        self.interval_s = min(TICK_S, self._notifier.watchdog_s / 4 or TICK_S)
        self._had_terminal = False
        self._progress = -1.0
        self._started = time.time()

    def start(self) -> None:
        """Write the files and install the signal handlers. RunFileError if a file can't be written."""
        self._write("loading")
        self._state = "loading"
        if hasattr(signal, "SIGHUP"):
            self._had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()
            signal.signal(signal.SIGHUP, lambda *_: self._must_reload.set())
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda *_: self._must_print.set())

    def report(self, state: str) -> None:
        self._state = state
        try:
            self._write(state)
        except RunFileError as error:
            log.error("%s", error)
        if state == "ready":
            self._notifier.send(READY=1, STATUS=f"serving on {self._server.url}")
        elif state == "stopping":
            self._notifier.send(STOPPING=1, STATUS="stopping")

    def report_loading(self, progress: float) -> None:
        """Report how much of the model is loaded (0 to 1), and call `tick`."""
        if progress != self._progress:
            self._progress = progress
            self._notifier.send(STATUS=f"loading the model, {progress:.0%}", EXTEND_TIMEOUT_USEC=EXTEND_US)
        self.tick()

    def tick(self) -> None:
        self._keys.refresh()
        if self._must_print.is_set():
            self._must_print.clear()
            self._print_stacks()
        if self._must_reload.is_set():
            self._must_reload.clear()
            if self._had_terminal and not has_terminal():
                log.info("the terminal was closed")
                self._stop()
                return
            self.reload()
        if not self._engine.is_stuck:
            self._notifier.report_alive()

    def reload(self) -> None:
        """Read keys and certificate again, and open the log file anew. What can't be read stays as it is."""
        self._notifier.report_reload()
        logging_setup.reopen()
        self._keys.refresh(force=True)
        try:
            self._server.tls = edge.make_tls_context(self._http)
        except OptionError as error:
            log.error("the certificate can't be read and stays as it is: %s", error)
        log.info("reloaded")
        if self._state == "ready":
            self._notifier.send(READY=1)

    def close(self) -> None:
        self._files.remove()
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _write(self, state: str) -> None:
        self._files.write(
            state, url=self._server.url + self._http.api_prefix, model=self._model, started=round(self._started, 3)
        )

    def _print_stacks(self) -> None:
        """Log the stacks of all processes. `faulthandler` isn't used: it reads frames of running threads and may
        crash."""
        for line in (collect_stacks("web process") + "\n" + self._engine.collect_stacks()).splitlines():
            log.info("%s", line)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal (never on Windows)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True
