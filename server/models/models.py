"""All models by name: which one a request means, load it when it is wanted, end it when its room or its time is needed.

Connection threads ask (`get`); each load and each end of an engine has a thread of its own (`model-load`, `model-end`);
the main thread looks about twice a second (`tick`). One lock guards all entries, and nothing slow is done under it.

A request takes its model under that lock and gives it back when its answer has been written, and engines are only ended
under the same lock: so there is no moment in which a model with work can be taken for an idle one. Loads that need room
stand in one queue. Those at work go on while others wait, but not for ever: after `TURN_S` they take no new requests.

Not taken: a thread that manages everything. A hanging disk under one model would keep it from all others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from server.engine.seam.task import FAILED as DEAD
from server.engine.seam.task import LOADING as STARTING
from server.engine.seam.task import READY, RESTARTING
from server.errors import ApiError, StartError
from server.log import about, get_logger
from server.models.entry import (
    FAILED,
    LOADED,
    LOADING,
    SLEEPING,
    UNLOADED,
    Asking,
    Entry,
    Load,
    Prepared,
    Starter,
    Ticket,
)
from server.models.model import PREPARING, Model
from server.models.news import News
from server.models.room import Resident, Room, judge, minus, without
from server.options.row import OptionError

TURN_S = 10.0
"""How long a load waits for models at work before those take no new requests."""
RETRY_S = 10.0
"""After a failure, requests get its reason for so long; then the next one tries again."""
POLL_S = 0.1
RETIRE_S = 30.0  # that the end of an engine is waited for before its model's files are removed
N_NEAR = 3

NONE_HERE = "there is no model here that this key may use"
STOPPING = "the server is shutting down"

log = get_logger("models")


MayUse = Callable[[str, Iterable[str]], bool]


def anybody(key_id: str, names: Iterable[str]) -> bool:
    """Whether a key may use a model of these names."""
    return True


class Models:
    """See above. `lone`: there is one model, which the start of the server loads and which answers to every name.

    `n_most` models have an engine at a time, 0 is any number; without `autoload` only `load` loads; `may_use` says
    whether a key may use a model. `is_prepared` is False while `serving` sees to what requests of a lone model depend
    on besides the engine: the system prompt and the chat template."""

    def __init__(
        self,
        entries: Iterable[Entry],
        starter: Starter | None,
        *,
        lone: bool = False,
        n_most: int = 0,
        autoload: bool = True,
        may_use: MayUse = anybody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._list(list(entries))
        self.lone = self.entries[0] if lone else None
        self.n_most = n_most
        self.autoload = autoload
        self.is_prepared = True
        self._starter = starter
        self.may_use = may_use
        self._clock = clock
        self._changed = threading.Condition()  # its lock guards all entries, and what follows
        self._queue: deque[Load] = deque()  # those that have no room yet, in order
        self._ending: dict[int, tuple[Entry, Room]] = {}  # whose engines are on their way out, and what those have
        self._n_ended = 0
        self._budget: Room | None = None  # what there is without any model
        self.news = News()  # (entry, its new state, why), and events (dicts)
        self._is_closed = False

    @classmethod
    def of_one(cls, model: Model, starter: Starter | None = None, may_use: MayUse = anybody) -> Models:
        """The one model of a server, whose engine has begun to load it; `starter` starts it again."""
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
            model.keep = partial(models._keep, entry)
        return models

    # ---- for handlers ------------------------------------------------------------------------------------------------

    @property
    def default(self) -> Model:
        """The model of a server that has one."""
        assert self.lone is not None and self.lone.model is not None
        return self.lone.model

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

    def get(self, name: object, request: Asking) -> Model:
        """The model for a request whose `model` is `name`, ready to serve until the request has ended; loaded first if
        it isn't, which is waited for. ApiError 404 for an unknown name, 503 while a lone model is loading at the start
        or where there is no room, 500 if it could not be loaded, 499 when the client leaves meanwhile."""
        return self.take(self.ask(name, request), request)

    def take(self, ticket: Ticket, request: Asking) -> Model:
        """What has been asked for, waited for if it isn't there."""
        if ticket.model is None:
            with request.on_disconnect(partial(self.leave, ticket)):
                while not self.wait(ticket):
                    pass
        assert ticket.model is not None
        return ticket.model

    def ask(self, name: object, request: Asking) -> Ticket:
        """Begin to `get`: what stands for the request until it has ended, with its model if that is there at once."""
        entry = self.find(name, request.key_id)
        ticket = Ticket(entry)
        with self._changed:
            self._bury(entry)
            if self._is_closed:
                raise ApiError(503, STOPPING)
            if entry.is_open:
                self._grant(ticket)
            else:
                self._load_of(entry).tickets.append(ticket)
        request.at_end(partial(self._release, ticket))
        return ticket

    def wait(self, ticket: Ticket, timeout_s: float | None = None) -> bool:
        """Whether the model is there, after `timeout_s` at most. ApiError if it can't be had."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.model or ticket.error or ticket.has_left, timeout_s)
            if ticket.error is not None:
                raise ticket.error
            if ticket.has_left and ticket.model is None:
                raise ApiError(499, "the client closed the request")
            return ticket.model is not None

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits any more for what has been asked for."""
        with self._changed:
            ticket.has_left = True
            self._drop(ticket)
            self._changed.notify_all()

    def share(self, model: Model, request: Asking) -> None:
        """While one request has a model: have another one have it, too."""
        with self._changed:
            entry = next(entry for entry in self.entries if entry.model is model)
            ticket = Ticket(entry)
            self._grant(ticket)
        request.at_end(partial(self._release, ticket))

    def place(self, entry: Entry) -> int:
        """A model's place among those that wait for room to be loaded: 1 is the next one; 0 if it doesn't wait."""
        with self._changed:
            load = entry.load
            return self._queue.index(load) + 1 if load is not None and load in self._queue else 0

    def known(self, name: object, key_id: str) -> Model:
        """A model for what can be told without its engine: one that is loaded, or asleep. ApiError 503 for others."""
        entry = self.find(name, key_id)
        with self._changed:
            model, is_loaded = entry.model, entry.state == LOADED
        if model is not None and is_loaded:
            self._require_ready(model)
        if model is not None:
            return model
        raise ApiError(503, f"the model {entry.name!r} is not loaded", headers={"Retry-After": "1"})

    def spell(self, name: object, request: Asking) -> Model:
        """A model whose vocabulary is wanted and not its engine: one that is asleep isn't woken for that."""
        entry = self.find(name, request.key_id)
        with self._changed:
            model = entry.model if entry.state != LOADED else None
        return model or self.get(name, request)

    def status(self, entry: Entry) -> str:
        """One of the states of entries; that of a lone model is its engine's at first."""
        if entry.state == LOADED and entry.model is not None:
            state = entry.model.engine.state
            if state == STARTING or not self.is_prepared:
                return LOADING
            return FAILED if state == DEAD else LOADED
        return entry.state

    def left_s(self, entry: Entry) -> float | None:
        """How many seconds a loaded model stays if nobody wants it; None is for ever."""
        return None if entry.idle_s < 0 else max(entry.t_used + entry.idle_s - self._clock(), 0.0)

    # ---- by order ----------------------------------------------------------------------------------------------------

    def load(self, name: object, key_id: str) -> Entry:
        """Begin to load a model, which is not waited for; also one that has failed. Nothing if it is there."""
        entry = self.find(name, key_id)
        self.begin(entry)
        return entry

    def begin(self, entry: Entry) -> None:
        """The same for whom nobody has asked."""
        with self._changed:
            self._bury(entry)
            if self._is_closed:
                raise ApiError(503, STOPPING)
            if not entry.is_open:
                self._load_of(entry, is_asked=True).is_asked = True

    def unload(self, name: object, key_id: str) -> Entry:
        """End a model's engine once its work is done; requests that come meanwhile wait, and load it again."""
        entry = self.find(name, key_id)
        if self._starter is None:
            raise ApiError(501, "this server was started with one model, which it keeps")
        with self._changed:
            if entry.load is not None:
                entry.load.is_cancelled = True
            if entry.state == SLEEPING:
                entry.model = None
                self._set(entry, UNLOADED)
            elif entry.state == LOADED:
                entry.leaves_for = UNLOADED
                self._end_leaving()
            elif entry.state == FAILED:
                self._set(entry, UNLOADED)
            self._changed.notify_all()
        return entry

    def renew(self, entries: Iterable[Entry]) -> None:
        """The models have been looked for anew: new ones come, those that are gone leave once nobody has them. What
        still is what it was stays as it is."""
        if self.lone is not None:
            return
        with self._changed:
            known = {entry.name: entry for entry in self.entries}
            found = []
            for new in entries:
                old = known.pop(new.name, new)
                if old.path != new.path or old.state == FAILED and new.state != FAILED:
                    old = new if old.state in (UNLOADED, FAILED) else old
                old.aliases, old.tags, old.size, old.source = new.aliases, new.tags, new.size, new.source
                found.append(old)
            left = [entry for entry in known.values() if entry.state not in (UNLOADED, FAILED)]
            self._list([*found, *left])

    def retire(self, entry: Entry) -> None:
        """End a model's engine, if nobody has work for it, and take it off the list, because its files go. ApiError 409
        if it is at work."""
        with self._changed:
            if entry.load is not None or not entry.is_idle:
                raise ApiError(409, f"{entry.name} is at work: try again when it isn't")
            model = entry.model
            if entry.state == LOADED:
                entry.leaves_for = UNLOADED
                self._end_leaving()
            self._list([other for other in self.entries if other is not entry])
            self._changed.wait_for(lambda: id(model) not in self._ending, RETIRE_S)

    def _list(self, entries: list[Entry]) -> None:
        """These are the models from now on. The lock is held."""
        self.entries = tuple(entries)
        self._by_name = {name: entry for entry in reversed(self.entries) for name in reversed(entry.names)}

    def _keep(self, entry: Entry, seconds: float) -> bool:
        """From now on a model sleeps after so long without work; 0 unloads it at once then, below 0 it stays."""
        with self._changed:
            entry.idle_s = seconds
        return True

    # ---- the main thread ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """What has come up: models that have been idle for long enough, engines that have died for good."""
        with self._changed:
            now = self._clock()
            for entry in self.entries:
                self._bury(entry)
                if not (entry.is_open and entry.is_idle and self.is_prepared):
                    entry.t_used = now
                elif self._starter and 0 <= entry.idle_s <= now - entry.t_used:
                    entry.leaves_for = SLEEPING if entry.idle_s else UNLOADED
            self._end_leaving()

    def close(self, grace_s: float = 0.0) -> None:
        """End all engines; running tasks get `grace_s` seconds. Nothing is loaded any more."""
        with self._changed:
            self._is_closed = True
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
            self._changed.wait_for(lambda: not (self._ending or any(entry.load for entry in self.entries)), 5.0)

    @property
    def is_alive(self) -> bool:
        """Whether there is anything to serve: not, where the one model can't be loaded at the start, or isn't yet."""
        model = self.lone.model if self.lone is not None and self.lone.state == LOADED else None
        if model is None:
            return True
        engine = model.engine
        return engine.state in (READY, RESTARTING) or engine.state == DEAD and engine.info is not None

    @property
    def is_stuck(self) -> bool:
        """Whether an engine has work and makes no progress."""
        return any(model.engine.is_stuck for model in self.running())

    def stacks(self) -> str:
        """What the threads of all engines are doing."""
        return "\n".join(model.engine.stacks() for model in self.running())

    def running(self) -> list[Model]:
        """Those that have an engine."""
        with self._changed:
            return [entry.model for entry in self.entries if entry.model is not None and entry.state == LOADED]

    # ---- tickets (the lock is held) ----------------------------------------------------------------------------------

    def _grant(self, ticket: Ticket) -> None:
        entry = ticket.entry
        assert entry.model is not None
        self._require_ready(entry.model)
        entry.n_leases += 1
        ticket.model = entry.model

    def _require_ready(self, model: Model) -> None:
        model.engine.require_ready()
        if not self.is_prepared:
            raise ApiError(503, PREPARING, headers={"Retry-After": "1"})

    def _release(self, ticket: Ticket) -> None:
        """The request has ended. Takes the lock itself."""
        with self._changed:
            entry = ticket.entry
            if ticket.model is None:
                self._drop(ticket)
            else:
                entry.n_leases -= 1
                entry.t_used = self._clock()
                if entry.idle_s == 0 and entry.is_open and entry.is_idle and self._starter:
                    entry.leaves_for = UNLOADED
                self._end_leaving()
            self._changed.notify_all()

    def _drop(self, ticket: Ticket) -> None:
        load = ticket.entry.load
        if load is not None and ticket in load.tickets:
            load.tickets.remove(ticket)

    # ---- loading -----------------------------------------------------------------------------------------------------

    def _load_of(self, entry: Entry, is_asked: bool = False) -> Load:
        """The load that brings this model, begun if there is none. The lock is held."""
        if entry.load is not None:
            return entry.load
        if not is_asked:
            if entry.state == FAILED and self._clock() < entry.t_retry:
                raise ApiError(500, entry.reason)
            if not (self.autoload or self.lone):
                raise ApiError(
                    400,
                    f"the model {entry.name!r} is not loaded, and this server loads none by itself "
                    "(POST /models/load does)",
                )
        load = Load(entry, is_asked)
        thread = threading.Thread(target=self._run, args=(load,), name="model-load", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise ApiError(503, "the system gives no more threads; try again", reason="memory") from None
        entry.load = load
        entry.progress = 0.0
        self._queue.append(load)
        if entry.state != LOADED:
            self._set(entry, LOADING)
        return load

    def _run(self, load: Load) -> None:
        """The thread of a load."""
        entry = load.entry
        if self.lone is None:
            about(entry.name)
        try:
            prepared, takes = self._prepare(load)
            if takes is None:
                return  # the model has stayed
            started = time.monotonic()
            log.info("loading %s", entry.name)
            model = self._start(load, prepared)
            prepared.complete(model)
        except Exception as error:
            self._fail(load, error)
        else:
            log.info("%s is loaded, after %.2f s", entry.name, time.monotonic() - started)
            self._succeed(load, model)

    def _prepare(self, load: Load) -> tuple[Prepared, Room | None]:
        """Read its files and wait until there is room; what it may take, None if it is there already. ApiError,
        StartError."""
        assert self._starter is not None
        entry = load.entry
        try:
            with self._changed:  # by now it is in the queue
                before = entry.model if entry.state == LOADING else None
            load.prepared = self._starter.read(entry.source, before)
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._may_step(load))
                    if entry.is_open:
                        self._satisfy(load)
                        return load.prepared, None
                    self._require_wanted(load)
                    n_ended = self._n_ended
                measured = self._starter.room()
                with self._changed:
                    if n_ended != self._n_ended:
                        continue  # what was measured is no more
                    takes = self._step(load, measured)
                    if takes is not None:
                        entry.takes = takes
                        self._set(entry, LOADING)
                        return load.prepared, takes
                    self._changed.wait(POLL_S)
        finally:
            with self._changed:
                self._queue.remove(load)
                for other in self.entries:
                    if other.leaves_for is load:
                        other.leaves_for = None  # it may stay after all
                self._changed.notify_all()

    def _may_step(self, load: Load) -> bool:
        return load.entry.is_open or self._is_closed or not load.is_wanted or self._turn() is load

    def _require_wanted(self, load: Load) -> None:
        """ApiError if it shall not go on, Unwanted if nobody waits for it; who comes from now on begins another."""
        if self._is_closed:
            raise ApiError(503, STOPPING)
        if load.is_cancelled:
            raise ApiError(503, f"the model {load.entry.name!r} was unloaded before it was loaded")
        if not load.is_wanted:
            self._forget(load)
            raise Unwanted

    def _turn(self) -> Load | None:
        """The first in the queue whose needs are known, and whose last engine has left what it has on disk."""
        gone = [entry for entry, _ in self._ending.values()]
        return next((load for load in self._queue if load.prepared is not None and load.entry not in gone), None)

    def _step(self, load: Load, measured: Room) -> Room | None:
        """What the first in the queue may take now; else those are seen off who are in its way. ApiError 503 if that is
        of no use. The lock is held."""
        if self._turn() is not load:
            return None
        now = self._clock()
        load.t_turn = now if load.t_turn is None else load.t_turn
        self._end_leaving()
        others = [entry for entry in self.entries if entry is not load.entry and self._is_resident(entry)]
        own = load.entry.takes if load.entry.state == LOADED else {}
        if not (others or own or self._ending):
            self._budget = measured
        budget = self._budget if self._budget is not None else measured
        prepared = load.prepared
        assert prepared is not None
        if prepared.fits(budget, True) is None:
            raise ApiError(503, prepared.refusal(budget))
        if own:
            return None  # it has to leave before it comes again
        starting = [entry.takes for entry in others if entry.state == LOADING]
        in_books = minus(budget, *(entry.takes for entry in others), *(takes for _, takes in self._ending.values()))
        free = {place: min(n, minus(measured, *starting).get(place, n)) for place, n in in_books.items()}
        residents = [Resident(entry.name, entry.takes, entry.t_used, _may_leave(entry)) for entry in others]
        verdict = judge(prepared.fits, free, residents, self.n_most)
        if verdict.takes is not None:
            return verdict.takes
        if not verdict.leaving and not self._ending and not starting:
            raise ApiError(503, prepared.refusal(without(free, residents)))
        if not verdict.busy or now - load.t_turn >= TURN_S:
            for entry in others:
                if entry.name in verdict.leaving and entry.leaves_for is None:
                    entry.leaves_for = load
            self._end_leaving()
        return None

    def _is_resident(self, entry: Entry) -> bool:
        """Whether it has an engine, or has been given room for one."""
        return entry.state == LOADED or entry.state == LOADING and entry.load not in self._queue

    def _start(self, load: Load, prepared: Prepared) -> Model:
        """The model once its engine has loaded it. One that is killed meanwhile is started once more: it may have been
        chance."""
        is_second = False
        while True:
            model = prepared.start()
            with self._changed:
                load.model = model
            self._watch(load, model)
            if model.engine.state != DEAD or model.engine.is_refused or is_second:
                model.engine.require_ready()
                return model
            log.warning("%s: %s; it is tried once more", load.entry.name, model.engine.error)
            model.engine.close()
            is_second = True

    def _watch(self, load: Load, model: Model) -> None:
        """Until its engine has loaded the model, or has failed to."""
        while not model.engine.wait_until_loaded(POLL_S):
            load.entry.progress = model.engine.progress
            with self._changed:
                if load.is_cancelled or self._is_closed:
                    self._require_wanted(load)
        if self._is_closed:
            raise ApiError(503, STOPPING)

    def _satisfy(self, load: Load) -> None:
        """The model is there: those who wait have it from now on. The lock is held."""
        load.entry.load = None
        load.entry.t_used = self._clock()
        for ticket in load.tickets:
            try:
                self._grant(ticket)
            except ApiError as error:  # the engine has died meanwhile
                ticket.error = error
        self._changed.notify_all()

    def _succeed(self, load: Load, model: Model) -> None:
        with self._changed:
            load.entry.model = model
            model.keep = partial(self._keep, load.entry)
            load.entry.last_info = model.info
            self._set(load.entry, LOADED)
            self._satisfy(load)

    def _fail(self, load: Load, error: Exception) -> None:
        """Tell those who wait why; what was begun is ended."""
        entry = load.entry
        reason = reason_of(error)
        if not isinstance(error, (ApiError, StartError, OptionError, Unwanted)):
            log.error("%s could not be loaded", entry.name, exc_info=error)
        with self._changed:
            if load.model is not None:
                self._end(load.model, entry)
            is_at_fault = not (load.is_cancelled or self._is_closed or isinstance(error, Unwanted))
            if is_at_fault and entry.state == LOADING:
                log.error("%s: %s", entry.name, reason)
                is_passing = isinstance(error, ApiError) and error.status == 503
                entry.t_retry = 0.0 if is_passing else self._clock() + RETRY_S
                entry.model = None
                self._set(entry, FAILED, reason)
            self._forget(load)
            for ticket in load.tickets:
                ticket.error = ApiError(error.status if isinstance(error, ApiError) else 500, reason)
            self._changed.notify_all()

    def _forget(self, load: Load) -> None:
        """It is over. The lock is held."""
        entry = load.entry
        if entry.load is load:
            entry.load = None
            if entry.state == LOADING:
                self._set(entry, UNLOADED if entry.model is None else SLEEPING)

    # ---- ending (the lock is held) -----------------------------------------------------------------------------------

    def _end_leaving(self) -> None:
        """End those that are to leave and have no work left."""
        for entry in self.entries:
            if entry.leaves_for is not None and entry.state == LOADED and entry.is_idle:
                model, is_asleep = entry.model, entry.leaves_for == SLEEPING
                assert model is not None
                log.info("%s is %s", entry.name, "put to sleep" if is_asleep else "unloaded")
                entry.leaves_for = None
                entry.model = model if is_asleep else None
                self._end(model, entry)
                self._set(entry, SLEEPING if is_asleep else UNLOADED)
                if entry.load is not None:
                    self._set(entry, LOADING)

    def _bury(self, entry: Entry) -> None:
        """An engine that has died for good is no model any more, unless it is the only one."""
        model = entry.model
        if self.lone is None and entry.state == LOADED and model is not None and model.engine.state == DEAD:
            entry.model = None
            entry.leaves_for = None
            entry.t_retry = self._clock() + RETRY_S
            self._end(model, entry)
            self._set(entry, FAILED, model.engine.trouble)

    def _end(self, model: Model, entry: Entry) -> None:
        """Have an engine end, on a thread of its own: its memory is in the books until it is gone."""
        self._ending[id(model)] = entry, entry.takes

        def end() -> None:
            if self.lone is None:
                about(entry.name)
            try:
                model.engine.close(0.0)
            finally:
                with self._changed:
                    del self._ending[id(model)]
                    self._n_ended += 1
                    self._changed.notify_all()

        threading.Thread(target=end, name="model-end", daemon=True).start()

    def _set(self, entry: Entry, state: str, reason: str = "") -> None:
        if state == entry.state:
            return
        entry.state, entry.reason = state, reason
        self.news.tell((entry, state, reason))
        self._changed.notify_all()

    def _near(self, name: str, key_id: str) -> str:
        """The end of a sentence about a name that there isn't."""
        import difflib  # here, because hardly any request needs it

        known = {known.lower(): known for entry in self.seen_by(key_id) for known in entry.names}
        near = difflib.get_close_matches(name[:80].lower(), known, N_NEAR, 0.4)
        if near:
            return "; do you mean " + " or ".join(repr(known[one]) for one in near) + "?"
        return "; GET /v1/models lists what there is"


class Unwanted(Exception):
    """Nobody waits for this load any more."""


def reason_of(error: Exception) -> str:
    """Why a model could not be loaded, for those who asked for it."""
    if isinstance(error, ApiError):
        return error.message
    return f"the model could not be loaded: {error}"


def _may_leave(entry: Entry) -> bool:
    return entry.state == LOADED and entry.is_idle
