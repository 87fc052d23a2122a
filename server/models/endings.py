"""Ends the engines of models: on request, to make room for other models, when idle, or after a failure.

The public methods are called with the register's lock held. A thread per engine (`model-end`) ends the engine, and then
takes the lock. Until then the engine's memory counts as used, and the model isn't loaded again, because the engine may
still write files.
"""

from __future__ import annotations

import threading

from server.engine.seam.task import FAILED as DEAD
from server.log import get_logger, set_subject
from server.models.entry import LOADED, LOADING, SLEEPING, UNLOADED, Entry
from server.models.model import Model
from server.models.register import Register
from server.models.room import Room

log = get_logger("models")


class Endings:
    """Ends engines. `n_ended` counts those that are gone."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self._going: dict[int, tuple[Entry, Room]] = {}  # by id() of the model: its entry, and its engine's memory
        self.n_ended = 0

    def list_rooms(self) -> list[Room]:
        """The memory of each engine that is ending."""
        return [takes for _, takes in self._going.values()]

    def is_of(self, entry: Entry) -> bool:
        """Whether an engine of this model is ending."""
        return any(other is entry for other, _ in self._going.values())

    def see_off(self) -> None:
        """End the engines of all models that are to leave and are idle."""
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
        """If a model's engine has died for good, end it and mark the model as failed, unless it is lone."""
        model = entry.model
        if self._register.lone is None and entry.state == LOADED and model is not None and model.engine.state == DEAD:
            entry.leaves_for = None
            self.end(entry, model)
            self._register.fail(entry, model.engine.trouble)

    def end(self, entry: Entry, model: Model) -> None:
        """Begin to end a model's engine."""
        self._going[id(model)] = entry, entry.takes
        threading.Thread(target=self._end, args=(entry, model), name="model-end", daemon=True).start()

    def _end(self, entry: Entry, model: Model) -> None:
        if self._register.lone is None:
            set_subject(entry.name)
        try:
            model.engine.close(0.0)
        finally:
            with self._register.changed:
                del self._going[id(model)]
                self.n_ended += 1
                self._register.changed.notify_all()
