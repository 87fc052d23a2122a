"""How models leave: by order, for others, for lack of work, or because their engine has died.

The lock of the register is held in every call; each end of an engine has a thread of its own (`model-end`), which takes
it when all is over. Until then the engine's memory is in the books, and its model is not loaded again: it may have
something to leave on disk.
"""

from __future__ import annotations

import threading

from server.engine.seam.task import FAILED as DEAD
from server.log import about, get_logger
from server.models.entry import LOADED, LOADING, SLEEPING, UNLOADED, Entry
from server.models.model import Model
from server.models.register import Register
from server.models.room import Room

log = get_logger("models")


class Endings:
    """See above. `n_ended` counts the engines that are gone."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self._going: dict[int, tuple[Entry, Room]] = {}  # by the model's id: whose engine it is, and what that has
        self.n_ended = 0

    def rooms(self) -> list[Room]:
        """What the engines have that are on their way out."""
        return [takes for _, takes in self._going.values()]

    def is_of(self, entry: Entry) -> bool:
        """Whether an engine of this model is on its way out."""
        return any(other is entry for other, _ in self._going.values())

    def see_off(self) -> None:
        """End those that are to leave and have no work left."""
        for entry in self._register.entries:
            if entry.leaves_for is not None and entry.state == LOADED and entry.is_idle:
                model, is_asleep = entry.model, entry.leaves_for == SLEEPING
                assert model is not None
                log.info("%s is %s", entry.name, "put to sleep" if is_asleep else "unloaded")
                entry.leaves_for = None
                entry.model = model if is_asleep else None
                self.end(entry, model)
                self._register.set(entry, SLEEPING if is_asleep else UNLOADED)
                if entry.load is not None:
                    self._register.set(entry, LOADING)

    def bury(self, entry: Entry) -> None:
        """An engine that has died for good is no model any more, unless it is the only one."""
        model = entry.model
        if self._register.lone is None and entry.state == LOADED and model is not None and model.engine.state == DEAD:
            entry.leaves_for = None
            self.end(entry, model)
            self._register.fail(entry, model.engine.trouble)

    def end(self, entry: Entry, model: Model) -> None:
        """Have an engine end."""
        self._going[id(model)] = entry, entry.takes
        threading.Thread(target=self._end, args=(entry, model), name="model-end", daemon=True).start()

    def _end(self, entry: Entry, model: Model) -> None:
        if self._register.lone is None:
            about(entry.name)
        try:
            model.engine.close(0.0)
        finally:
            with self._register.changed:
                del self._going[id(model)]
                self.n_ended += 1
                self._register.changed.notify_all()
