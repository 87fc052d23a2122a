"""Models without engines: the test decides their memory, load time and state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager

from server.engine.seam.task import CLOSED, FAILED, LOADING, READY, ModelInfo, Snapshot
from server.errors import ApiError
from server.models.entry import Entry
from server.models.models import Models
from server.options.groups import group
from server.options.parser import parse

OPTIONS = group(parse(["-m", "x.gguf"], {})).model


class FakeEngine:
    """The part of an engine that `Models` uses. `house` counts those that live."""

    def __init__(self, house: House, name: str) -> None:
        self.house, self.name = house, name
        self.state, self.error, self.progress = LOADING, "", 0.0
        self.info = ModelInfo(name)
        self.snapshot = Snapshot()
        self.is_busy = self.is_stuck = self.is_refused = False
        self.loaded, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        self.n_closed = 0

    def load(self, error: str = "", is_refused: bool = True) -> None:
        """It has loaded its model, or failed to: as it will again, if that `is_refused`."""
        self.error, self.is_refused = error, is_refused
        self.state = FAILED if error else READY
        self.loaded.set()

    def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
        return self.loaded.wait(timeout_s)

    def require_ready(self) -> None:
        if self.state == FAILED:
            raise ApiError(500, self.trouble)
        if self.state == CLOSED:
            raise ApiError(503, "the server is shutting down")

    @property
    def trouble(self) -> str:
        return f"the model could not be loaded: {self.error}"

    def collect_stacks(self) -> str:
        return self.name

    def close(self, grace_s: float = 0.0) -> None:
        assert self.may_end.wait(30)
        self.state = CLOSED
        self.n_closed += 1
        self.loaded.set()
        with self.house.lock:
            self.house.alive.discard(self)


class FakeModel:
    """A loaded model."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.info, self.options = engine, engine.info, OPTIONS
        self.name, self.names = engine.name, [engine.name]


class House:
    """A starter of fake models, each of `sizes[name]` bytes, in a house of `room` bytes. With `is_quick` they load at
    once; else `engines[name]` is told to."""

    def __init__(self, room: int = 100, is_quick: bool = True, **sizes: int) -> None:
        self.bytes, self.sizes, self.is_quick = room, sizes, is_quick
        self.lock = threading.Lock()
        self.alive: set[FakeEngine] = set()
        self.engines: dict[str, FakeEngine] = {}
        self.faults: dict[str, Exception] = {}
        self.started: list[str] = []
        self.awaited: dict[str, bool] = {}
        self.most = 0
        self.n_read = self.n_measured = self.n_ended = 0
        self.least: dict[str, int] = {}  # what a model makes do with, where it isn't all of its size

    def models(self, **options: object) -> Models:
        """All of them."""
        return Models([Entry(name, name, size=n) for name, n in self.sizes.items()], self, **options)

    def measure_room(self):
        with self.lock:
            self.n_measured += 1
            return {"memory": self.bytes - sum(self.sizes[engine.name] for engine in self.alive)}

    def end_load(self):
        self.n_ended += 1

    def tick(self, is_busy):
        pass

    def read(self, source, before, asked=None):
        self.n_read += 1
        if source in self.faults:
            raise self.faults[source]
        return FakePrepared(self, source, before)


class FakePrepared:
    """See `entry.Prepared`."""

    def __init__(self, house: House, name: str, before: object) -> None:
        self.house, self.name, self.before = house, name, before

    def find_fit(self, room, is_alone):
        most = self.house.sizes[self.name]
        n = min(most, room["memory"])
        return {"memory": n} if n >= self.house.least.get(self.name, most) else None

    def explain_refusal(self, room):
        return f"{self.name} needs {self.house.sizes[self.name]} bytes, and {room['memory']} are free"

    def start(self, is_awaited):
        house = self.house
        engine = FakeEngine(house, self.name)
        with house.lock:
            house.alive.add(engine)
            house.most = max(house.most, sum(house.sizes[one.name] for one in house.alive))
            house.started.append(self.name)
            house.awaited[self.name] = is_awaited
            house.engines[self.name] = engine
        if house.is_quick:
            engine.load()
        return FakeModel(engine)

    def complete(self, model):
        pass


class FakeRequest:
    """One request; `end` is what the edge does once the answer is written."""

    key_id = ""

    def __init__(self, key_id: str = "") -> None:
        self.key_id = key_id
        self.endings: list[Callable[[], None]] = []
        self.leave: Callable[[], None] | None = None

    def call_at_end(self, callback):
        self.endings.append(callback)

    @contextmanager
    def on_disconnect(self, callback):
        self.leave = callback
        yield
        self.leave = None

    def end(self) -> None:
        for ending in self.endings:
            ending()

    def __enter__(self) -> FakeRequest:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
