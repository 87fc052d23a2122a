"""A test server with several models. Each has its own fake backend and loads on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest.mock import patch

from server.engine.client.engine_client import EngineClient
from server.engine.entry.thread import ThreadTransport
from server.engine.seam.config import EngineConfig
from server.errors import StartError
from server.models.entry import Entry
from server.models.model import Model
from server.models.models import Models
from server.options.groups import group
from server.options.parser import parse
from server.service.edge import KeyFiles
from server.serving import context_of, make_server
from server.web import httpd
from tests.api.conftest import PATIENCE, POLL_S, Api
from tests.fakes import FakeBackend, FakeVocab
from tests.support import wait_until


class FakeStarter:
    """Starts fake engines of one byte each in a house of `room` bytes. `gates[name]` holds a load until it is set."""

    def __init__(self, options, room: int = 10, **makers: Callable[[], FakeBackend]) -> None:
        self.options, self.bytes, self.makers = options, room, makers
        self.backends: dict[str, FakeBackend] = {}
        self.gates: dict[str, threading.Event] = {}
        self.faults: dict[str, str] = {}
        self.started: list[str] = []
        self.asked: dict[str, object] = {}

    def measure_room(self):
        return {"memory": self.bytes}

    def end_load(self):
        pass

    def tick(self, is_busy):
        pass

    def read_idle_s(self, source, asked):
        return float(group(parse(["--models-dir", "."], {}, own={}, asked=asked)).model.sleep_idle_seconds)

    def read(self, source, before, asked=None):
        self.asked[source] = asked
        if source in self.faults:
            raise StartError(self.faults[source])
        return FakePrepared(self, source)


class FakePrepared:
    """See `models.entry.Prepared`."""

    def __init__(self, starter: FakeStarter, name: str) -> None:
        self.starter, self.name = starter, name

    def find_fit(self, room, is_alone):
        return {"memory": 1} if room["memory"] >= 1 else None

    def explain_refusal(self, room):
        return f"the model doesn't fit: {room['memory']} bytes are free"

    def start(self, is_awaited):
        starter = self.starter
        backend = starter.makers[self.name]()
        starter.backends[self.name] = backend
        starter.started.append(self.name)

        def open_backend(config, on_progress):
            gate = starter.gates.get(self.name)
            while gate is not None and not gate.wait(0.01) and on_progress(0.5):
                pass
            return backend

        config = EngineConfig(self.name, "", n_slots=backend.info.n_slots)
        engine = EngineClient(ThreadTransport(config, open_backend), FakeVocab)
        engine.start()
        return Model(
            engine, starter.options.model.replace(aliases=(self.name,)), starter.options.media, f"{self.name}.gguf"
        )

    def complete(self, model):
        pass


class ManyApi(Api):
    """A running server of the models `makers`."""

    def __init__(self, argv: tuple[str, ...] = (), room: int = 10, n_most: int = 0, **makers) -> None:
        self.options = group(parse(["--models-dir", ".", "--port", "0", *argv], {}))
        self.threads_before = set(threading.enumerate())
        self.starter = FakeStarter(self.options, room, **makers)
        self.keys = KeyFiles(self.options.http)
        self.models = Models(
            [Entry(name, name, size=1, idle_s=-1.0) for name in makers],
            self.starter,
            n_most=n_most,
            autoload=self.options.catalogue.models_autoload,
            may_use=self.keys.ring.may_use,
        )
        self.context = context_of(self.options, self.models, threading.Event())
        self.server = make_server(self.options.http, self.context, self.keys)

    def start(self, is_ready: bool = True) -> ManyApi:
        """Listen."""
        with patch.object(httpd, "POLL_S", POLL_S):
            self.server.start()
        return self

    def stop(self, grace_s: float = 0.0) -> None:
        """End it, and see that everything is given back."""
        for backend in self.starter.backends.values():
            backend.go()
        self.server.stop(grace_s, self.models.close)
        self.models.close()
        for gate in self.starter.gates.values():
            gate.set()
        assert all(backend.n_samplers == 0 for backend in self.starter.backends.values())
        assert self.server.n_connections == 0
        assert all(entry.n_leases == 0 for entry in self.models.entries)

    def states(self) -> dict[str, str]:
        """Of all models, as clients see them."""
        return {model["id"]: model["status"]["value"] for model in self.get("/models").json()["data"]}

    def until(self, **wanted: str) -> None:
        """Wait for states."""
        wait_until(lambda: wanted.items() <= self.states().items(), f"{wanted}, not {self.states()}", PATIENCE)

    def say(self, model: str, **fields: object):
        """The answer to a completion of this model."""
        return self.post("/completion", {"prompt": "ab", "n_predict": 4, "model": model, **fields})
