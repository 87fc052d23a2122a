"""One of the models that are served, through all of its life, and those who wait for it. Plain books.

An entry is made once for each model, at start or when a folder is read anew, and lives as long as the server; what it
holds is guarded by the lock of the `Register`. Its `model` is another one each time it is loaded. A request has a
`Ticket` from the moment it names a model until its answer has been written: so a model with work is never taken for an
idle one, whatever the handler is doing. Not taken: counting the engine's tasks, which begin once a prompt is tokenized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from server.engine.seam.task import ModelInfo
from server.errors import ApiError
from server.models.model import Model
from server.models.room import Room
from server.records import field, record

UNLOADED, LOADING, LOADED, SLEEPING, FAILED = "unloaded", "loading", "loaded", "sleeping", "failed"


class Asking(Protocol):
    """The part of a request that is needed here; `web.message.Request` has it."""

    key_id: str

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the answer has been written, or given up."""

    def on_disconnect(self, callback: Callable[[], None]) -> AbstractContextManager[object]:
        """Inside the context `callback` is called when the client leaves."""


class Prepared(Protocol):
    """A model whose files have been read and checked, and that isn't loaded yet."""

    def fits(self, room: Room, is_alone: bool) -> Room | None:
        """See `room.Fits`."""

    def refusal(self, room: Room) -> str:
        """Why it doesn't fit, with the numbers: one line."""

    def start(self, is_awaited: bool) -> Model:
        """A model whose engine has begun to load, and takes what `fits` has said last. If it `is_awaited`, the request
        that waits for it is to warm it up."""

    def complete(self, model: Model) -> None:
        """See to what requests depend on besides the engine. ApiError."""


class Starter(Protocol):
    """Makes loaded models of entries; the composition's, since it takes files, libraries and processes."""

    def entries(self) -> Sequence[Entry]:
        """All models that there are now."""

    def idle_s(self, source: Any, asked: Mapping[str, Any]) -> float:
        """`Entry.idle_s` with the options that a request has given. OptionError if these can't be."""

    def read(self, source: Any, before: Model | None, asked: Mapping[str, Any]) -> Prepared:
        """Read a model's files, which is to have these options besides its own; of `before`, the same model when it was
        last loaded, what still holds may be kept.
        StartError or OptionError if they can't be served."""

    def room(self) -> Room:
        """What may be allocated on this machine now."""

    def tick(self, is_busy: bool) -> None:
        """Do what has been put off, at best while no engine `is_busy`. The main thread, about twice a second."""


@record(eq=False)
class Entry:
    """One model. `source` is what `Starter.read` takes; `idle_s` the seconds without work until it sleeps, below 0
    never; `size` the bytes of its files, and `origin` where they were found; one that `is_eager` is
    loaded at the start. `asked` are options that a request has given, until another one gives others.

    `model` is the loaded one; of a sleeping one, what can be told without its engine. `load` is what brings the next
    one. `n_leases` counts the requests that have it, `t_used` is when the last one ended. Once `leaves_for` is set it
    takes no new ones. `last_info` and `capabilities` are of the last time that it was loaded. After a failure requests
    are told its `reason` until `t_retry`."""

    name: str
    source: Any = None
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    path: str = ""
    origin: str = "option"
    size: int = 0
    idle_s: float = -1.0
    is_eager: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)
    state: str = UNLOADED
    reason: str = ""
    progress: float = 0.0
    model: Model | None = None
    takes: Room = field(default_factory=dict)
    load: Load | None = None
    n_leases: int = 0
    t_used: float = 0.0
    t_retry: float = 0.0
    leaves_for: object = None
    last_info: ModelInfo | None = None
    capabilities: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called."""
        return tuple(self.model.names) if self.model is not None else (self.name, *self.aliases)

    def name_for(self, model: object) -> str:
        """How answers name it; see `Model.name_for`."""
        loaded = self.model
        if loaded is not None:
            return loaded.name_for(model if isinstance(model, str) else None)
        return model if isinstance(model, str) and model in self.names else self.names[0]

    @property
    def info(self) -> ModelInfo | None:
        """What is known of it, if it has ever been loaded."""
        return self.last_info if self.model is None else self.model.info

    @property
    def is_open(self) -> bool:
        """Whether it takes requests now."""
        return self.state == LOADED and self.leaves_for is None

    @property
    def is_idle(self) -> bool:
        """Whether nobody has it, and its engine has no work."""
        return not self.n_leases and not (self.model is not None and self.model.engine.is_busy)


@record(eq=False)
class Load:
    """One load of a model, which all that want it wait for. `is_asked`: not by a request for work alone. `prepared`
    once its files have been read, `t_turn` since it has been the next one."""

    entry: Entry
    is_asked: bool = False
    is_cancelled: bool = False
    tickets: list[Ticket] = field(default_factory=list)
    prepared: Prepared | None = None
    model: Model | None = None
    t_turn: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return not self.is_cancelled and (self.is_asked or bool(self.tickets))


@record(eq=False)
class Ticket:
    """What a request has of a model: a place among those that wait, then the model, then nothing."""

    entry: Entry
    model: Model | None = None
    error: ApiError | None = None
    has_left: bool = False

    def grant(self) -> None:
        """Its model is there: it has that from now on. ApiError if its engine can't serve."""
        model = self.entry.model
        assert model is not None
        model.engine.require_ready()
        self.entry.n_leases += 1
        self.model = model

    def drop(self) -> None:
        """It waits no longer."""
        load = self.entry.load
        if load is not None and self in load.tickets:
            load.tickets.remove(self)
