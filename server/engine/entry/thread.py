"""The engine as a thread of the web process (`--engine thread`): the simplest transport.

`post` puts a message into the scheduler's inbox. The engine's thread loads the model, runs the scheduler, and calls the
client with each frame.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from server.engine.loop.scheduler import Scheduler
from server.engine.seam.config import EngineConfig, step_limit_s
from server.engine.seam.task import Close, Closed, Frame, LoadFailed, Loading, Ready
from server.engine.slots.backend import Backend
from server.errors import StartError
from server.log import get_logger, inherit

JOIN_MARGIN_S = 5.0  # how long `close` waits after the grace time

log = get_logger("engine")


class ThreadTransport:
    """See `Transport`. Runs `open_backend(config, on_progress)` and then the scheduler on one thread, `engine`.

    `step_s` is the time limit in seconds of a step with few rows (`config.step_limit_s`). An engine whose step exceeds
    its limit is reported as stuck, not replaced.
    """

    def __init__(
        self,
        config: EngineConfig,
        open_backend: Callable[[EngineConfig, Callable[[float], bool]], Backend],
        step_s: float = 60.0,
    ) -> None:
        self._config = config
        self._step_s = step_s
        self._open_backend = open_backend
        self._thread: threading.Thread | None = None
        self._backend: Backend | None = None
        self._scheduler: Scheduler | None = None
        self._on_frame: Callable[[Frame], None] = lambda frame: None
        self._is_closing = False

    def start(self, on_frame: Callable[[Frame], None]) -> None:
        self._on_frame = on_frame
        self._thread = threading.Thread(target=inherit(self._run), name="engine", daemon=True)
        self._thread.start()

    def post(self, message: Any) -> None:
        """Put a message into the scheduler's inbox. It is dropped while the model loads."""
        if self._scheduler is not None:
            self._scheduler.post(message)

    def collect_stacks(self, timeout_s: float) -> str:
        """An empty text: the engine's thread is among the stacks of the web process."""
        return ""

    @property
    def step_limit_s(self) -> float:
        return step_limit_s(self._step_s, 0 if self._scheduler is None else self._scheduler.pulse()[1])

    def close(self, grace_s: float) -> None:
        """A decode that outlasts the grace time is aborted."""
        self._is_closing = True
        if self._thread is None:
            return
        self.post(Close(grace_s))
        self._thread.join(grace_s + 0.1)
        if self._thread.is_alive() and self._backend is not None:
            self._backend.abort()
        self._thread.join(JOIN_MARGIN_S)
        if self._thread.is_alive():
            log.warning("the engine's thread did not end in time")

    def _run(self) -> None:
        try:
            self._backend = self._open_backend(self._config, self._on_progress)
        except Exception as error:
            if not isinstance(error, StartError):
                log.exception("the model could not be loaded")
            self._on_frame(Frame((LoadFailed(str(error), isinstance(error, StartError)), Closed())))
            return
        try:
            self._scheduler = Scheduler(self._backend, self._config, self._on_frame)
            if self._is_closing:
                self._scheduler.post(Close(0.0))
            self._on_frame(Frame((Ready(self._backend.info),), self._scheduler.snapshot()))
            self._scheduler.run()
        finally:
            self._on_frame(Frame((Closed(),)))
            self._backend.close()

    def _on_progress(self, progress: float) -> bool:
        self._on_frame(Frame((Loading(progress),)))
        return not self._is_closing
