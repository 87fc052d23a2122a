"""Work that another thread does while this one is in C without Python's lock. Stdlib only.

Not taken: `concurrent.futures`, whose import alone takes longer than most of what is done here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Meanwhile:
    """Does `work` on a thread of its own. As a context manager: after the block it is done, whatever happens in it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="meanwhile", daemon=True)
        self._thread.start()

    def __enter__(self) -> Meanwhile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()

    def result(self) -> object:
        """What `work` returned; what it raised is raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
