"""Loads models: each load has a thread of its own (`model-load`), and loads that need memory wait in one queue.

A load reads its model's files, waits for its turn and for room in memory, starts the engine, and waits until the engine
has loaded the model. All requests for the model wait for the same load. The first load in the queue whose files have
been read, and whose model has no ending engine, gets room next. While it waits, busy models continue to work; after
`TURN_S` those that have to leave take no new requests.

Not taken: one thread for all loads. A hanging disk would block them all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial

from server.engine.seam.task import FAILED as DEAD
from server.errors import ApiError, StartError
from server.log import get_logger, set_subject
from server.models.endings import Endings
from server.models.entry import FAILED, LOADED, LOADING, SLEEPING, UNLOADED, Entry, Load, Prepared, Starter
from server.models.model import Model
from server.models.register import Register
from server.models.room import Resident, Room, add_rooms, choose_lesser, judge, subtract_rooms, without
from server.options.row import OptionError

TURN_S = 10.0
"""Seconds that the next load waits for busy models before they take no new requests."""
POLL_S = 0.1  # most seconds between two looks at an engine, or at the memory

STOPPING = "the server is shutting down"

log = get_logger("models")


class Loads:
    """Loads models. At most `n_most` models have an engine that isn't ending; 0 for any number. Without `autoload`
    requests load no model, unless it is lone (see `Models`)."""

    def __init__(
        self, register: Register, endings: Endings, starter: Starter | None, n_most: int, autoload: bool
    ) -> None:
        self._register, self._endings, self._starter = register, endings, starter
        self._changed = register.changed
        self._n_most, self._autoload = n_most, autoload
        self._queue: deque[Load] = deque()  # loads that have no room yet, in order
        self._budget: Room | None = None  # the latest measurement of free memory without any engine

    @property
    def are_waiting(self) -> bool:
        """Whether a load has no room yet."""
        return bool(self._queue)

    # ---- called with the lock held -----------------------------------------------------------------------------------

    def of(self, entry: Entry, is_asked: bool = False) -> Load:
        """The running load of this model, or a new one. With `is_asked` (`Models.begin`) it begins even after a failure
        or without `autoload`. ApiError if none can begin."""
        if entry.load is not None:
            return entry.load
        if not is_asked:
            if entry.state == FAILED and self._register.clock() < entry.t_retry:
                raise ApiError(500, entry.reason)
            if not (self._autoload or self._register.lone):
                raise ApiError(
                    400,
                    f"the model {entry.name!r} is not loaded, and requests don't load models on this server: "
                    "use POST /models/load",
                )
        load = Load(entry, is_asked)
        thread = threading.Thread(target=self._run, args=(load,), name="model-load", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise ApiError(503, "the system can start no more threads; try again", reason="memory") from None
        entry.load = load
        entry.progress = 0.0
        self._queue.append(load)
        if entry.state != LOADED:
            self._register.set(entry, LOADING)
        return load

    def place(self, entry: Entry) -> int:
        """A model's place in the queue of loads, from 1 on; 0 if it isn't there."""
        load = entry.load
        return self._queue.index(load) + 1 if load is not None and load in self._queue else 0

    # ---- the thread of a load ----------------------------------------------------------------------------------------

    def _run(self, load: Load) -> None:
        entry = load.entry
        if self._register.lone is None:
            set_subject(entry.name)
        try:
            prepared, takes = self._prepare(load)
            if takes is None:
                return  # the model is still loaded
            started = time.monotonic()
            log.info("loading %s", entry.name)
            model = self._start(load, prepared)
            prepared.complete(model)
        except Exception as error:
            self._fail(load, error)
        else:
            log.info("%s is loaded, after %.2f s", entry.name, time.monotonic() - started)
            self._succeed(load, model)
        finally:
            assert self._starter is not None
            self._starter.end_load()

    def _prepare(self, load: Load) -> tuple[Prepared, Room | None]:
        """Read the model's files and wait for room. Return the prepared model and its room; the room is None if the
        model is still loaded."""
        assert self._starter is not None
        entry = load.entry
        try:
            with self._changed:  # `of` has put the load into the queue by now
                before = entry.model if entry.state == LOADING else None
            load.prepared = self._starter.read(entry.source, before, entry.asked)
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._may_step(load))
                    if entry.is_open:
                        self._satisfy(load)
                        return load.prepared, None
                    self._require_wanted(load)
                    n_ended = self._endings.n_ended
                measured = self._starter.measure_room()
                with self._changed:
                    if n_ended != self._endings.n_ended:
                        continue  # an engine has ended since the measurement
                    takes = self._step(load, measured)
                    if takes is not None:
                        entry.takes, load.has_room = takes, True
                        self._register.set(entry, LOADING)
                        return load.prepared, takes
                    self._changed.wait(POLL_S)
        finally:
            with self._changed:
                self._queue.remove(load)
                for other in self._register.entries:
                    if other.leaves_for is load:
                        other.leaves_for = None  # it may stay
                self._changed.notify_all()

    def _start(self, load: Load, prepared: Prepared) -> Model:
        """Start the engine, and return the model when it is loaded. If the engine dies, another is started once, unless
        that would fail in the same way. ApiError."""
        is_second = False
        while True:
            model = prepared.start(bool(load.tickets))
            with self._changed:
                load.model = model
            self._watch(load, model)
            if model.engine.state != DEAD or model.engine.is_refused or is_second:
                model.engine.require_ready()
                return model
            log.warning("%s: %s; trying once more", load.entry.name, model.engine.error)
            model.engine.close()
            is_second = True

    def _watch(self, load: Load, model: Model) -> None:
        """Wait until the engine has loaded the model or failed. ApiError if the load is cancelled, or at a stop."""
        while not model.engine.wait_until_loaded(POLL_S):
            load.entry.progress = model.engine.progress
            with self._changed:
                if load.is_cancelled or self._register.is_closed:
                    self._require_wanted(load)
        if self._register.is_closed:
            raise ApiError(503, STOPPING)

    # ---- room, with the lock held ------------------------------------------------------------------------------------

    def _may_step(self, load: Load) -> bool:
        return load.entry.is_open or self._register.is_closed or not load.is_wanted or self._turn() is load

    def _turn(self) -> Load | None:
        """The load that gets room next."""
        return next((load for load in self._queue if load.prepared and not self._endings.is_of(load.entry)), None)

    def _step(self, load: Load, measured: Room) -> Room | None:
        """The room that this load may take now. If it has to wait, tell models to leave if necessary, and return None.
        ApiError 503 if the model can't fit."""
        if self._turn() is not load:
            return None
        now = self._register.clock()
        load.t_turn = now if load.t_turn is None else load.t_turn
        self._endings.see_off()
        if load.entry.state == LOADED or self._endings.is_of(load.entry):
            return None  # the model's old engine has to be gone first
        others = [entry for entry in self._register.entries if entry is not load.entry and self._is_resident(entry)]
        ending = self._endings.list_rooms()
        if not (others or ending):
            self._budget = measured
        budget = self._budget if self._budget is not None else measured
        prepared = load.prepared
        assert prepared is not None
        if prepared.find_fit(budget, True) is None:
            raise ApiError(503, prepared.explain_refusal(budget))
        starting = [entry.takes for entry in others if entry.state == LOADING]
        # counts ending engines as gone, so that no other model has to leave while they end
        free = choose_lesser(
            subtract_rooms(budget, *(entry.takes for entry in others)),
            add_rooms(subtract_rooms(measured, *starting), *ending),
        )
        residents = [Resident(entry.name, entry.takes, entry.t_used, _may_leave(entry)) for entry in others]
        verdict = judge(prepared.find_fit, free, residents, self._n_most)
        if verdict.takes is not None:
            at_once = prepared.find_fit(subtract_rooms(free, *ending), not others) if ending else verdict.takes
            return at_once if at_once == verdict.takes else None  # it waits if it would get less now than later
        if not verdict.leaving and not ending and not starting:
            raise ApiError(503, prepared.explain_refusal(without(free, residents)))
        if not verdict.busy or now - load.t_turn >= TURN_S:
            for entry in others:
                if entry.name in verdict.leaving and entry.leaves_for is None:
                    entry.leaves_for = load
            self._endings.see_off()
            if len(self._endings.list_rooms()) > len(ending):
                return self._step(load, measured)  # plan again: there may be room beside the ending engines
        return None

    def _is_resident(self, entry: Entry) -> bool:
        """Whether the model has an engine that isn't ending, or room for one."""
        return entry.state == LOADED or entry.load is not None and entry.load.has_room

    # ---- the end of a load -------------------------------------------------------------------------------------------

    def _satisfy(self, load: Load) -> None:
        """Give the loaded model to the waiting requests. The lock is held."""
        load.entry.load = None
        load.entry.t_used = self._register.clock()
        for ticket in load.tickets:
            try:
                ticket.grant()
            except ApiError as error:  # the engine has died
                ticket.error = error
        self._changed.notify_all()

    def _succeed(self, load: Load, model: Model) -> None:
        entry = load.entry
        with self._changed:
            entry.model = model
            model.keep = partial(self.keep, entry)
            entry.last_info = model.info
            self._register.set(entry, LOADED)
            self._satisfy(load)

    def keep(self, entry: Entry, seconds: float) -> bool:
        """Set `Entry.idle_s`. Returns True; see `Model.keep`."""
        with self._changed:
            entry.idle_s = seconds
        return True

    def _fail(self, load: Load, error: Exception) -> None:
        """Give the error to the waiting requests, and end a started engine. Mark the model as failed, unless its old
        engine is still loaded, the load was cancelled or unwanted, or the server stops."""
        entry = load.entry
        reason = reason_of(error)
        if not isinstance(error, (ApiError, StartError, OptionError, Unwanted)):
            log.error("%s could not be loaded", entry.name, exc_info=error)
        with self._changed:
            if load.model is not None:
                self._endings.end(entry, load.model)
            is_at_fault = not (load.is_cancelled or self._register.is_closed or isinstance(error, Unwanted))
            if is_at_fault and entry.state == LOADING:
                log.error("%s: %s", entry.name, reason)
                self._register.fail(entry, reason, isinstance(error, ApiError) and error.status == 503)
            self._forget(load)
            for ticket in load.tickets:
                ticket.error = ApiError(error.status if isinstance(error, ApiError) else 500, reason)
            self._changed.notify_all()

    def _require_wanted(self, load: Load) -> None:
        """ApiError if the load was cancelled or the server stops. If nothing wants the load, detach it and raise
        Unwanted. The lock is held."""
        if self._register.is_closed:
            raise ApiError(503, STOPPING)
        if load.is_cancelled:
            raise ApiError(503, f"the model {load.entry.name!r} was unloaded before it was loaded")
        if not load.is_wanted:
            self._forget(load)
            raise Unwanted

    def _forget(self, load: Load) -> None:
        """Detach the load from its entry. A loading entry becomes unloaded or asleep. The lock is held."""
        entry = load.entry
        if entry.load is load:
            entry.load = None
            if entry.state == LOADING:
                self._register.set(entry, UNLOADED if entry.model is None else SLEEPING)


class Unwanted(Exception):
    """Nothing wants this load any more."""


def reason_of(error: Exception) -> str:
    """Why a model could not be loaded, in one line."""
    if isinstance(error, ApiError):
        return error.message
    return f"the model could not be loaded: {error}"


def _may_leave(entry: Entry) -> bool:
    return entry.state == LOADED and entry.is_idle
