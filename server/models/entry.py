"""The state of one model of a server, and of the requests that wait for it.

An entry is made for each model in the list of models. The lock of the `Register` guards it. Each load makes a new
`model`. A request that needs the engine has a `Ticket` until its answer has been written.

Not taken: counting the engine's tasks. A request has none until its prompt is tokenised.
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
    """The part of `web.message.Request` that `Models` uses."""

    key_id: str

    def call_at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the answer has been written or given up."""

    def on_disconnect(self, callback: Callable[[], None]) -> AbstractContextManager[object]:
        """A context in which `callback` is called if the client leaves."""


class Prepared(Protocol):
    """A model whose files have been read and checked, but that isn't loaded yet."""

    def find_fit(self, room: Room, is_alone: bool) -> Room | None:
        """See `room.Fits`."""

    def explain_refusal(self, room: Room) -> str:
        """Why the model doesn't fit into `room`, in one line."""

    def start(self, is_awaited: bool) -> Model:
        """A model whose engine has begun to load, in the room that the last call of `find_fit` returned. If a request
        waits for it (`is_awaited`), the load omits the warm-up."""

    def complete(self, model: Model) -> None:
        """Set the system prompt and the adapters, and compile the chat template. ApiError, OptionError."""


class Starter(Protocol):
    """Loads the models of entries. The composition root implements it."""

    def list_entries(self) -> Sequence[Entry]:
        """All models that can be found now. OptionError for wrong presets."""

    def read_idle_s(self, source: Any, asked: Mapping[str, Any]) -> float:
        """The value of `Entry.idle_s` with options from a request. OptionError if these are wrong."""

    def read(self, source: Any, before: Model | None, asked: Mapping[str, Any]) -> Prepared:
        """Read and check a model's files. `asked` are options from a request, which override the model's own. `before`
        is the model if it sleeps: its system prompt and adapters are kept. StartError or OptionError if the model can't
        be served."""

    def measure_room(self) -> Room:
        """The host's free memory, and for GPUs what was free before any load."""

    def end_load(self) -> None:
        """A load has ended, with a model or without."""

    def tick(self, is_busy: bool) -> None:
        """Main thread: do postponed work, preferably while no engine `is_busy`."""


@record(eq=False)
class Entry:
    """One model.

    `source` is passed to `Starter.read`. After `idle_s` seconds without work the model sleeps (0: unloads; below 0:
    never). `size` is the number of bytes of its files, `origin` is `ModelEntry.source`. `is_eager`: it is loaded at
    start. `asked` are options from a request.

    `model` is the loaded model. A sleeping entry keeps it for questions that need no engine. `takes` is the engine's
    planned memory; empty for a lone model's first engine. `load` is the running load, `progress` its finished part (0
    to 1). `n_leases` requests use the model; `t_used` is its latest use. `leaves_for` is the next state, or the load
    that needs room; once set, the model takes no requests. After a failure, requests get its `reason` until
    `t_retry`."""

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
        """Its name and aliases."""
        return tuple(self.model.names) if self.model is not None else (self.name, *self.aliases)

    def choose_name(self, model: object) -> str:
        """The name that answers use; see `Model.choose_name`."""
        loaded = self.model
        if loaded is not None:
            return loaded.choose_name(model if isinstance(model, str) else None)
        return model if isinstance(model, str) and model in self.names else self.names[0]

    @property
    def info(self) -> ModelInfo | None:
        """The engine's description of the model; None before the end of its first load."""
        return self.last_info if self.model is None else self.model.info

    @property
    def is_open(self) -> bool:
        """Whether it is loaded and is to stay."""
        return self.state == LOADED and self.leaves_for is None

    @property
    def is_idle(self) -> bool:
        """Whether no request uses it, and its engine has no work."""
        return not self.n_leases and not (self.model is not None and self.model.engine.is_busy)


@record(eq=False)
class Load:
    """One load of a model, for which all requests for the model wait. `is_asked`: `Models.begin` wants it, so it goes
    on without waiting requests. `prepared` is set when the model's files have been read. `t_turn` is when its turn
    came."""

    entry: Entry
    is_asked: bool = False
    is_cancelled: bool = False
    has_room: bool = False  # it may allocate `Entry.takes`
    tickets: list[Ticket] = field(default_factory=list)
    prepared: Prepared | None = None
    model: Model | None = None
    t_turn: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether `Models.begin` or a request wants it, and it isn't cancelled."""
        return not self.is_cancelled and (self.is_asked or bool(self.tickets))


@record(eq=False)
class Ticket:
    """A request's hold on a model: first a place among the waiting requests, then the `model` or an `error`."""

    entry: Entry
    model: Model | None = None
    error: ApiError | None = None
    has_left: bool = False

    def grant(self) -> None:
        """Give the loaded model to the request. ApiError if its engine can't serve."""
        model = self.entry.model
        assert model is not None
        model.engine.require_ready()
        self.entry.n_leases += 1
        self.model = model

    def drop(self) -> None:
        """Stop waiting for the model."""
        load = self.entry.load
        if load is not None and self in load.tickets:
            load.tickets.remove(self)
