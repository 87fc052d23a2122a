"""All models by name, loaded or not, and the one lock that guards their state.

Any thread. `Models`, `Loads` and `Endings` share the register. The lock is that of the condition `changed`. A thread
holds it to change the register or an entry (except its `progress` and `capabilities`), and notifies the condition if
others wait for the change. Not taken: a lock per model. Which model may be loaded depends on all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from server.errors import ApiError
from server.log import set_subject
from server.models.entry import FAILED, Entry
from server.models.file_names import find_names_like
from server.models.news import News

RETRY_S = 10.0
"""Seconds after a failure in which requests get its reason; see `Register.fail`."""

NONE_HERE = "this server has no model that this key may use"

MayUse = Callable[[str, Iterable[str]], bool]


def may_anybody(key_id: str, names: Iterable[str]) -> bool:
    """The default of `may_use`: always True."""
    return True


class Register:
    """All models by name. `lone`: there is one model, which is used for every name. `may_use` says whether a key may
    use a model. `news` gets (entry, new state, reason) tuples, and other events as dicts. Once `is_closed` is set, no
    model is loaded."""

    def __init__(
        self,
        entries: Iterable[Entry],
        lone: bool = False,
        may_use: MayUse = may_anybody,
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
        """Set the list of models. The caller holds the lock."""
        self.entries = tuple(entries)
        self._by_name = {name: entry for entry in reversed(self.entries) for name in reversed(entry.names)}

    # ---- names -------------------------------------------------------------------------------------------------------

    def list_seen_by(self, key_id: str) -> list[Entry]:
        """The models that a key may use."""
        return [entry for entry in self.entries if self.may_use(key_id, entry.names)]

    def find(self, name: object, key_id: str) -> Entry:
        """The `lone` model if there is one; else the one with this name, or without a name the first one that the key
        may use. Unless it is lone, further log lines of this thread have the model's name. ApiError 404 or 400."""
        if self.lone is not None:
            if not self.may_use(key_id, self.lone.names):
                raise ApiError(404, NONE_HERE)
            return self.lone
        entry = self._get_first(key_id) if name in (None, "") else self._find_named(name, key_id)
        set_subject(entry.name)
        return entry

    def _get_first(self, key_id: str) -> Entry:
        if mine := self.list_seen_by(key_id):
            return mine[0]
        raise ApiError(404, NONE_HERE)

    def _find_named(self, name: object, key_id: str) -> Entry:
        if not isinstance(name, str):
            raise ApiError(400, "model: give the name of a model; GET /v1/models lists them")
        entry = self._by_name.get(name) or self._by_name.get(name.removesuffix(":latest"))
        if entry is None or not self.may_use(key_id, entry.names):
            raise ApiError(404, f"model: there is no model {name[:80]!r}{self._describe_near(name, key_id)}")
        return entry

    def _describe_near(self, name: str, key_id: str) -> str:
        near = find_names_like(name, (known for entry in self.list_seen_by(key_id) for known in entry.names))
        if near:
            return f"; did you mean {' or '.join(map(repr, near))}?"
        return "; GET /v1/models lists what there is"

    # ---- states, with the lock held ----------------------------------------------------------------------------------

    def set(self, entry: Entry, state: str, reason: str = "") -> None:
        """Set the state of a model, and tell readers of `news` if it has changed."""
        if state == entry.state:
            return
        entry.state, entry.reason = state, reason
        self.news.tell((entry, state, reason))
        self.changed.notify_all()

    def fail(self, entry: Entry, reason: str, is_passing: bool = False) -> None:
        """Mark a model as failed. If the failure `is_passing`, the next request loads again; else requests get the
        reason for `RETRY_S`."""
        entry.t_retry = 0.0 if is_passing else self.clock() + RETRY_S
        entry.model = None
        self.set(entry, FAILED, reason)
