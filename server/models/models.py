"""All models of a server: finds the model that a request names, loads it on demand, and ends it after idle time.

Handlers' threads call `get`, the main thread calls `tick` about twice a second. `loads` loads models, `endings` ends
their engines, and `register` has all models by name, with the lock that guards the state of all three.

A model that a request uses never counts as idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from server.engine.seam.task import FAILED as DEAD
from server.engine.seam.task import LOADING as STARTING
from server.engine.seam.task import READY, RESTARTING
from server.errors import ApiError
from server.log import get_logger
from server.models.endings import Endings
from server.models.entry import FAILED, LOADED, LOADING, SLEEPING, UNLOADED, Asking, Entry, Starter, Ticket
from server.models.loads import STOPPING, Loads
from server.models.model import PREPARING, Model
from server.models.register import MayUse, Register, may_anybody
from server.options.parser import OptionError, read_asked

RETIRE_S = 30.0  # seconds to wait for the end of an engine before its model's files are removed
CLOSE_S = 5.0  # seconds to wait for running loads and ending engines when the server stops

log = get_logger("models")


class Models:
    """All models of a server. `lone`: the server has one model, which it loads at start and uses for every name.

    At most `n_most` models have an engine that isn't ending; 0 for any number. Without `autoload` requests load no
    model, unless it is lone. `may_use` says whether a key may use a model. `is_prepared` is False while `serving`
    prepares the system prompt and the chat template of a lone model."""

    def __init__(
        self,
        entries: Iterable[Entry],
        starter: Starter | None,
        *,
        lone: bool = False,
        n_most: int = 0,
        autoload: bool = True,
        may_use: MayUse = may_anybody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.register = Register(entries, lone, may_use, clock)
        self.n_most = n_most
        self.autoload = autoload
        self.is_prepared = True
        self.may_use = may_use
        self.news = self.register.news
        self._starter = starter
        self._clock = clock
        self._changed = self.register.changed
        self._endings = Endings(self.register)
        self._loads = Loads(self.register, self._endings, starter, n_most, autoload)

    @classmethod
    def from_one(cls, model: Model, starter: Starter | None = None, may_use: MayUse = may_anybody) -> Models:
        """The models of a server with one model, whose engine has begun to load it. `starter` can load it again."""
        options = model.options
        entry = Entry(
            model.name,
            None,
            tuple(model.names[1:]),
            options.tags,
            idle_s=float(options.sleep_idle_seconds),
            model=model,
        )
        entry.state = LOADED
        models = cls([entry], starter, lone=True, may_use=may_use)
        if starter is not None:
            model.keep = partial(models._loads.keep, entry)
        return models

    # ---- models and their states -------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All models."""
        return self.register.entries

    @property
    def lone(self) -> Entry | None:
        """The lone model, or None."""
        return self.register.lone

    @property
    def default(self) -> Model:
        """The lone model, which must be loaded."""
        assert self.lone is not None and self.lone.model is not None
        return self.lone.model

    def list_seen_by(self, key_id: str) -> list[Entry]:
        """The models that a key may use."""
        return self.register.list_seen_by(key_id)

    def find(self, name: object, key_id: str) -> Entry:
        """See `Register.find`."""
        return self.register.find(name, key_id)

    def status(self, entry: Entry) -> str:
        """The state of a model. If it is loaded, its engine and `is_prepared` decide."""
        if entry.state == LOADED and entry.model is not None:
            state = entry.model.engine.state
            if state == STARTING or not self.is_prepared:
                return LOADING
            return FAILED if state == DEAD else LOADED
        return entry.state

    @property
    def are_wanted(self) -> bool:
        """Whether a load has no room yet. Batches then pause, so that their models can leave."""
        return self._loads.are_waiting

    def place(self, entry: Entry) -> int:
        """See `Loads.place`."""
        with self._changed:
            return self._loads.place(entry)

    def compute_left_s(self, entry: Entry) -> float | None:
        """Seconds that a loaded model stays without further requests; None: no limit."""
        return None if entry.idle_s < 0 else max(entry.t_used + entry.idle_s - self._clock(), 0.0)

    # ---- for requests ------------------------------------------------------------------------------------------------

    def get(self, name: object, request: Asking) -> Model:
        """The model for a request whose field `model` is `name`, until the request's end. Loads the model if necessary.
        ApiError 404 for an unknown name, 400 if the name is no text or requests may not load the model, 503 while the
        server starts or stops or if there is no room, 500 if the load fails, 499 if the client leaves."""
        return self.take(self.ask(name, request), request)

    def ask(self, name: object, request: Asking) -> Ticket:
        """The first half of `get`, which doesn't wait. If the model is loaded, the ticket has it already."""
        entry = self.find(name, request.key_id)
        ticket = Ticket(entry)
        with self._changed:
            self._require_open(entry)
            if entry.is_open:
                self._require_ready(entry.model)
                ticket.grant()
            else:
                self._loads.of(entry).tickets.append(ticket)
        request.call_at_end(partial(self._release, ticket))
        return ticket

    def take(self, ticket: Ticket, request: Asking) -> Model:
        """The second half of `get`: wait for the model of a ticket."""
        if ticket.model is None:
            with request.on_disconnect(partial(self.leave, ticket)):
                while not self.wait(ticket):
                    pass
        assert ticket.model is not None
        return ticket.model

    def wait(self, ticket: Ticket, timeout_s: float | None = None) -> bool:
        """Wait for the model of a ticket; False after `timeout_s` seconds. ApiError as for `get`."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.model or ticket.error or ticket.has_left, timeout_s)
            if ticket.error is not None:
                raise ticket.error
            if ticket.has_left and ticket.model is None:
                raise ApiError(499, "the client closed the request")
            return ticket.model is not None

    def leave(self, ticket: Ticket) -> None:
        """Stop waiting for the model of a ticket."""
        with self._changed:
            ticket.has_left = True
            ticket.drop()
            self._changed.notify_all()

    def share(self, model: Model, request: Asking) -> None:
        """Let a second request use a model that another request has."""
        with self._changed:
            ticket = Ticket(next(entry for entry in self.entries if entry.model is model))
            ticket.grant()
        request.call_at_end(partial(self._release, ticket))

    def _release(self, ticket: Ticket) -> None:
        """End of the request: give the model back, or stop waiting."""
        with self._changed:
            entry = ticket.entry
            if ticket.model is None:
                ticket.drop()
            else:
                entry.n_leases -= 1
                entry.t_used = self._clock()
                if entry.idle_s == 0 and entry.is_open and entry.is_idle and self._starter:
                    entry.leaves_for = UNLOADED
                self._endings.see_off()
            self._changed.notify_all()

    def get_known(self, name: object, key_id: str) -> Model:
        """A loaded or sleeping model, for questions that need no engine. ApiError for others; a loaded one must be
        ready."""
        entry = self.find(name, key_id)
        with self._changed:
            model, is_loaded = entry.model, entry.state == LOADED
        if model is not None and is_loaded:
            self._require_ready(model)
        if model is not None:
            return model
        raise ApiError(503, f"the model {entry.name!r} is not loaded", headers={"Retry-After": "1"})

    def spell(self, name: object, request: Asking) -> Model:
        """A model for requests that need only its vocabulary. A sleeping model stays asleep."""
        entry = self.find(name, request.key_id)
        with self._changed:
            model = entry.model if entry.state != LOADED else None
        return model or self.get(name, request)

    def _require_open(self, entry: Entry) -> None:
        """See `Endings.bury`. ApiError if the server stops. The lock is held."""
        self._endings.bury(entry)
        if self.register.is_closed:
            raise ApiError(503, STOPPING)

    def _require_ready(self, model: Model | None) -> None:
        """ApiError if a model can't serve, or the server is starting."""
        assert model is not None
        model.engine.require_ready()
        if not self.is_prepared:
            raise ApiError(503, PREPARING, headers={"Retry-After": "1"})

    # ---- for the routes that manage models ---------------------------------------------------------------------------

    def load(self, name: object, key_id: str, options: Mapping[str, object] | None = None) -> Entry:
        """Begin to load a model, also one that has failed, unless it is loaded. `options` override its own; None keeps
        those set before. ApiError 404, 400 for wrong options, 409 if the model is loaded with others, 501 for a
        lone model's options, 503."""
        entry = self.find(name, key_id)
        if options is not None:
            self._give_options(entry, options)
        self.begin(entry)
        return entry

    def _give_options(self, entry: Entry, options: Mapping[str, object]) -> None:
        if self._starter is None or self.lone is not None:
            raise ApiError(501, "this server has one model, whose options are set on the command line")
        try:
            asked = read_asked(options)
            idle_s = self._starter.read_idle_s(entry.source, asked)
        except OptionError as error:
            raise ApiError(400, str(error) if str(error).startswith("options") else f"options: {error}") from None
        with self._changed:
            if entry.asked == asked:
                return
            if entry.load is not None or entry.state == LOADED:
                raise ApiError(409, f"{entry.name} is loaded with other options: unload it first")
            if entry.state == SLEEPING:  # it was loaded with other options
                entry.model = None
                self.register.set(entry, UNLOADED)
            entry.asked, entry.idle_s = asked, idle_s
            log.info("a request has set options of %s: %s", entry.name, ", ".join(asked) or "none")

    def begin(self, entry: Entry) -> None:
        """Begin to load a model, unless it is loaded."""
        with self._changed:
            self._require_open(entry)
            if not entry.is_open:
                self._loads.of(entry, is_asked=True).is_asked = True

    def unload(self, name: object, key_id: str) -> Entry:
        """Cancel a model's load, or end its engine when its work is done. ApiError 404 or 501."""
        entry = self.find(name, key_id)
        if self._starter is None:
            raise ApiError(501, "this server has one model, which can't be unloaded")
        with self._changed:
            if entry.load is not None:
                entry.load.is_cancelled = True
            if entry.state == SLEEPING:
                entry.model = None
                self.register.set(entry, UNLOADED)
            elif entry.state == LOADED:
                entry.leaves_for = UNLOADED
                self._endings.see_off()
            elif entry.state == FAILED:
                self.register.set(entry, UNLOADED)
            self._changed.notify_all()
        return entry

    def renew(self, entries: Iterable[Entry]) -> None:
        """Take over a new list of models. An entry that isn't in it is removed if it is unloaded or failed. Others keep
        their state, but a failed one, or an unloaded one with another path, gets the new entry's state."""
        if self.lone is not None:
            return
        with self._changed:
            known = {entry.name: entry for entry in self.entries}
            found = []
            for new in entries:
                old = known.pop(new.name, new)
                if old.path != new.path or old.state == FAILED and new.state != FAILED:
                    old = new if old.state in (UNLOADED, FAILED) else old
                if old.path != new.path:  # loaded: its next load takes the new file
                    old.path, old.last_info, old.capabilities = new.path, None, ()
                old.aliases, old.tags, old.size, old.source = new.aliases, new.tags, new.size, new.source
                found.append(old)
            left = [entry for entry in known.values() if entry.state not in (UNLOADED, FAILED)]
            self.register.put([*found, *left])

    def retire(self, entry: Entry) -> None:
        """End a model's engine and remove the model from the list, before its files are removed. ApiError 409 if the
        model is loading or busy."""
        with self._changed:
            if entry.load is not None or not entry.is_idle:
                raise ApiError(409, f"{entry.name} is busy: try again when it is idle")
            if entry.state == LOADED:
                entry.leaves_for = UNLOADED
                self._endings.see_off()
            self.register.put(other for other in self.entries if other is not entry)
            self._changed.wait_for(lambda: not self._endings.is_of(entry), RETIRE_S)

    # ---- the main thread ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """End models that have been idle long enough, mark those whose engine has died as failed, and call
        `Starter.tick`."""
        if self._starter is not None:
            self._starter.tick(any(model.engine.is_busy for model in self.list_running()))
        with self._changed:
            now = self._clock()
            for entry in self.entries:
                self._endings.bury(entry)
                if not (entry.is_open and entry.is_idle and self.is_prepared):
                    entry.t_used = now
                elif self._starter and 0 <= entry.idle_s <= now - entry.t_used:
                    entry.leaves_for = SLEEPING if entry.idle_s else UNLOADED
            self._endings.see_off()

    def close(self, grace_s: float = 0.0) -> None:
        """End all engines. Running tasks have `grace_s` seconds to finish. From now on no model is loaded."""
        with self._changed:
            self.register.is_closed = True
            engines = [entry.model.engine for entry in self.entries if entry.model is not None]
            loads = [load for load in {entry.load for entry in self.entries} if load is not None]
            engines += [load.model.engine for load in loads if load.model is not None]
            for load in loads:
                load.is_cancelled = True
            self.news.tell(None)
            self._changed.notify_all()
        threads = [threading.Thread(target=engine.close, args=(grace_s,), daemon=True) for engine in engines[1:]]
        for thread in threads:
            thread.start()
        for engine in engines[:1]:
            engine.close(grace_s)
        for thread in threads:
            thread.join()
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._endings.list_rooms() or any(entry.load for entry in self.entries)), CLOSE_S
            )

    @property
    def is_alive(self) -> bool:
        """False while a lone model loads at start, if that has failed, or if its engine is closed; else True."""
        model = self.lone.model if self.lone is not None and self.lone.state == LOADED else None
        if model is None:
            return True
        engine = model.engine
        return engine.state in (READY, RESTARTING) or engine.state == DEAD and engine.info is not None

    @property
    def is_stuck(self) -> bool:
        """Whether an engine has work but makes no progress."""
        return any(model.engine.is_stuck for model in self.list_running())

    def collect_stacks(self) -> str:
        """The call stacks of the loaded models' engines."""
        return "\n".join(model.engine.collect_stacks() for model in self.list_running())

    def list_running(self) -> list[Model]:
        """The loaded models."""
        with self._changed:
            return [entry.model for entry in self.entries if entry.model is not None and entry.state == LOADED]
