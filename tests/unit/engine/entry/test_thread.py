"""`engine.thread`: an engine on a thread of this process, from loading to the end."""

from __future__ import annotations

import logging
import threading

import pytest

from server.engine.client.engine_client import EngineClient
from server.engine.entry.thread import ThreadTransport
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Frame, Ready, Task
from server.errors import ApiError, StartError
from tests.fakes import PATIENCE_S, FakeBackend, FakeVocab
from tests.unit.engine.driving import GREEDY, alone

CONFIG = EngineConfig("fake.gguf", "", n_slots=2)


class Engine:
    """A client over a thread transport over a fake backend, whose loading the test controls."""

    def __init__(self, error: Exception | None = None, n_ctx: int = 512) -> None:
        self.backend = FakeBackend(n_ctx=n_ctx, n_slots=2)
        self.error = error
        self.may_load = threading.Event()
        self.loading = threading.Event()
        self.went_on: list[bool] = []
        self.transport = ThreadTransport(CONFIG, self._open)
        self.client = EngineClient(self.transport, FakeVocab)

    def _open(self, config, on_progress) -> FakeBackend:
        assert config is CONFIG
        self.went_on.append(on_progress(0.5))
        self.loading.set()
        assert self.may_load.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.went_on.append(on_progress(1.0))
        if not self.went_on[-1]:
            raise StartError("loading was interrupted")
        return self.backend

    def start(self) -> Engine:
        self.client.start()
        self.may_load.set()
        assert self.client.wait_until_loaded(PATIENCE_S)
        return self

    def complete(self, prompt: str, n: int = 8) -> str:
        task = Task(self.client.make_id(), tuple(prompt.encode()), GREEDY, n_predict=n)
        with self.client.submit(task, stream=False) as results:
            return "".join(event.text for event in results)

    def is_gone(self) -> bool:
        return not self.transport._thread.is_alive()


@pytest.fixture
def engine():
    made = []

    def make(**options) -> Engine:
        made.append(Engine(**options))
        return made[-1]

    yield make
    for one in made:
        one.may_load.set()
        one.backend.go()
        one.client.close()
        assert one.transport._thread is None or one.is_gone()


def test_an_engine_loads_serves_and_ends(engine):
    one = engine().start()
    assert one.client.state == "ok" and one.client.progress == 1.0
    assert one.complete("hello") == alone("hello", 8)
    one.client.close()
    assert one.is_gone() and one.backend.is_closed and one.client.state == "closed"


def test_while_it_loads_its_progress_is_known_and_requests_are_refused(engine):
    one = engine()
    one.client.start()
    assert one.loading.wait(PATIENCE_S)
    assert (one.client.state, one.client.progress) == ("loading model", 0.5)
    with pytest.raises(ApiError) as caught:
        one.complete("hello")
    assert caught.value.status == 503


def test_the_first_frame_of_a_ready_engine_tells_of_its_slots(engine):
    one = engine()
    frames: list[Frame] = []
    dispatch = one.client.dispatch
    one.client.dispatch = lambda frame: (frames.append(frame), dispatch(frame))
    one.start()
    first = next(frame for frame in frames if any(isinstance(event, Ready) for event in frame.events))
    assert first.snapshot is not None and first.snapshot.n_idle == 2, "until then every slot would seem busy"


@pytest.mark.parametrize("error", [StartError("the file is truncated"), OSError("the file is truncated")])
def test_a_load_that_fails_says_why(engine, error, caplog):
    caplog.set_level(logging.CRITICAL, "llama_srv")
    one = engine(error=error).start()
    assert one.client.state == "error" and "the file is truncated" in one.client.error


def test_closing_while_it_loads_stops_the_load(engine):
    one = engine()
    one.client.start()
    assert one.loading.wait(PATIENCE_S)
    closing = threading.Thread(target=one.client.close)
    closing.start()
    while not one.transport._is_closing:
        closing.join(0.001)
    one.may_load.set()
    closing.join(PATIENCE_S)
    assert one.is_gone() and one.went_on == [True, False]


def test_closing_waits_for_running_tasks_within_the_grace_time(engine):
    one = engine(n_ctx=4096).start()
    texts = []
    one.backend.hold()
    asking = threading.Thread(target=lambda: texts.append(one.complete("hello", 20)))
    asking.start()
    assert one.backend.decoding.acquire(timeout=PATIENCE_S)
    closing = threading.Thread(target=one.client.close, args=(PATIENCE_S,))
    closing.start()
    one.backend.go()
    closing.join(PATIENCE_S)
    asking.join(PATIENCE_S)
    assert texts == [alone("hello", 20)] and one.is_gone()


def test_a_decode_that_outlasts_the_grace_time_is_aborted(engine):
    one = engine().start()
    errors = []

    def ask() -> None:
        try:
            one.complete("hello", -1)
        except ApiError as error:
            errors.append(error.status)

    one.backend.hold()
    asking = threading.Thread(target=ask)
    asking.start()
    assert one.backend.decoding.acquire(timeout=PATIENCE_S)
    one.client.close(0.0)  # nobody lets the decode go: only the abort can
    asking.join(PATIENCE_S)
    assert errors == [503] and one.is_gone() and one.backend.is_closed


def test_an_engine_that_breaks_answers_everybody(engine, caplog, monkeypatch):
    caplog.set_level(logging.CRITICAL, "llama_srv")
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    one = engine().start()
    one.transport._scheduler._state.fail_all = lambda *args: 1 / 0
    one.backend.fail_at[1] = RuntimeError("out of the blue")
    with pytest.raises(ApiError, match="shutting down"):
        one.complete("hello")
    one.transport._thread.join(PATIENCE_S)
    assert one.client.state == "closed"
    one.backend.n_samplers = 0


def test_closing_before_starting_is_harmless(engine):
    engine().client.close()
