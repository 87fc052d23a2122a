"""All models by name, whether they are loaded or not, and the one lock that guards their books.

Any thread. `Models`, `Loads` and `Endings` share it: what it holds, and the entries, are changed with `changed` held,
and whoever changes what others wait for notifies it. Nothing slow is done under it. Not taken: a lock for each model.
Who may be loaded is decided about all of them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from server.errors import ApiError
from server.log import about
from server.models.entry import FAILED, Entry
from server.models.news import News

RETRY_S = 10.0
"""After a failure, requests get its reason for so long; then the next one tries again."""
N_NEAR = 3

NONE_HERE = "there is no model here that this key may use"

MayUse = Callable[[str, Iterable[str]], bool]


def anybody(key_id: str, names: Iterable[str]) -> bool:
    """Whether a key may use a model of these names."""
    return True


class Register:
    """See above. `lone`: there is one model, which answers to every name. `may_use` says whether a key may use a model.
    `news` gets (entry, its new state, why), and events (dicts). Once it `is_closed` nothing is loaded any more."""

    def __init__(
        self,
        entries: Iterable[Entry],
        lone: bool = False,
        may_use: MayUse = anybody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = threading.Condition()
        self.put(entries)
        self.lone = self.entries[0] if lone else None
        self.may_use = may_use
        self.clock = clock
        self.news = News()
        self.is_closed = False

    def put(self, entries: Iterable[Entry]) -> None:
        """These are the models from now on. The lock is held."""
        self.entries = tuple(entries)
        self._by_name = {name: entry for entry in reversed(self.entries) for name in reversed(entry.names)}

    # ---- names -------------------------------------------------------------------------------------------------------

    def seen_by(self, key_id: str) -> list[Entry]:
        """Those that a key may use."""
        return [entry for entry in self.entries if self.may_use(key_id, entry.names)]

    def find(self, name: object, key_id: str) -> Entry:
        """Which model a request means: that of this name, without one the first. ApiError 404 with names like it. Of
        several it is named in this thread's log lines from now on."""
        if self.lone is not None:
            if not self.may_use(key_id, self.lone.names):
                raise ApiError(404, NONE_HERE)
            return self.lone
        entry = self._first(key_id) if name in (None, "") else self._named(name, key_id)
        about(entry.name)
        return entry

    def _first(self, key_id: str) -> Entry:
        if mine := self.seen_by(key_id):
            return mine[0]
        raise ApiError(404, NONE_HERE)

    def _named(self, name: object, key_id: str) -> Entry:
        if not isinstance(name, str):
            raise ApiError(400, "model: give the name of a model, as GET /v1/models lists them")
        entry = self._by_name.get(name) or self._by_name.get(name.removesuffix(":latest"))
        if entry is None or not self.may_use(key_id, entry.names):
            raise ApiError(404, f"model: there is no {name[:80]!r} here{self._near(name, key_id)}")
        return entry

    def _near(self, name: str, key_id: str) -> str:
        """The end of a sentence about a name that there isn't."""
        import difflib  # here, because hardly any request needs it

        known = {known.lower(): known for entry in self.seen_by(key_id) for known in entry.names}
        near = difflib.get_close_matches(name[:80].lower(), known, N_NEAR, 0.4)
        if near:
            return "; do you mean " + " or ".join(repr(known[one]) for one in near) + "?"
        return "; GET /v1/models lists what there is"

    # ---- states (the lock is held) -----------------------------------------------------------------------------------

    def set(self, entry: Entry, state: str, reason: str = "") -> None:
        """The state of a model is another one; `reason` says why."""
        if state == entry.state:
            return
        entry.state, entry.reason = state, reason
        self.news.tell((entry, state, reason))
        self.changed.notify_all()

    def fail(self, entry: Entry, reason: str, is_passing: bool = False) -> None:
        """A model has failed. Unless that `is_passing`, requests are told why for a while, and nothing is tried."""
        entry.t_retry = 0.0 if is_passing else self.clock() + RETRY_S
        entry.model = None
        self.set(entry, FAILED, reason)
