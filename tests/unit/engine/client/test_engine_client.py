"""`engine.client` with a transport that only records: what is posted when, and which stream gets which event."""

from __future__ import annotations

import sys
import threading

import pytest

from server import memory
from server.engine.client import engine_client as client_module
from server.engine.client.engine_client import EngineClient, Results
from server.engine.seam.task import (
    READY,
    Cancel,
    Closed,
    Command,
    Failure,
    Final,
    Frame,
    LoadFailed,
    Loading,
    ModelInfo,
    Piece,
    Progress,
    Ready,
    Reply,
    SlotState,
    Snapshot,
    Task,
    Timings,
    TokenProbs,
)
from server.errors import ApiError
from server.memory import Budget, Share
from server.web.message import make_error_body
from tests.fakes import PATIENCE_S, FakeVocab

INFO = ModelInfo("fake.gguf", n_slots=2)


class RecordingTransport:
    """Keeps what was posted; `on_post` may answer."""

    step_limit_s = 60.0

    def __init__(self) -> None:
        self.posted: list[object] = []
        self.on_post = lambda message: None
        self.closed_with: list[float] = []
        self.on_frame = None

    def start(self, on_frame) -> None:
        self.on_frame = on_frame

    def post(self, message: object) -> None:
        self.posted.append(message)
        self.on_post(message)

    def close(self, grace_s: float) -> None:
        self.closed_with.append(grace_s)


def client_in(*events) -> tuple[EngineClient, RecordingTransport]:
    """A started client that has been told `events`."""
    transport = RecordingTransport()
    client = EngineClient(transport, FakeVocab)
    client.start()
    for event in events:
        transport.on_frame(Frame((event,)))
    return client, transport


def test_the_vocabulary_is_opened_once_the_engine_has_shown_that_it_can_be_or_at_once_if_that_is_known():
    opened = threading.Event()
    client = EngineClient(RecordingTransport(), lambda: opened.set() or FakeVocab())
    client.start()
    assert not client._vocab_opening and not opened.is_set()
    other = EngineClient(RecordingTransport(), lambda: opened.set() or FakeVocab())
    other.start(must_wait=False)
    assert opened.wait(30)
    other._transport.on_frame(Frame((Loading(0.5),)))
    other._transport.on_frame(Frame((Ready(INFO),)))
    assert other.state == "ok" and other.vocab is not None


def ready() -> tuple[EngineClient, RecordingTransport]:
    return client_in(Ready(INFO))


def final(id_task: int) -> Final:
    return Final(id_task, 0, "", "limit", "", 1, 2, 3, False, Timings(0, 1, 1.0, 2, 2.0))


def submit(client: EngineClient, n: int = 1, stream: bool = True):
    tasks = [Task(client.make_id(), (1, 2)) for _ in range(n)]
    return client.submit(*tasks, stream=stream), [task.id for task in tasks]


def drain(results: Results) -> list:
    """All events, as `list(results)`; AssertionError instead of waiting for ever."""
    outcome: list = []

    def read() -> None:
        try:
            outcome.append(list(results))
        except ApiError as error:
            outcome.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE_S)
    assert outcome, "the reader was never woken"
    if isinstance(outcome[0], ApiError):
        raise outcome[0]
    return outcome[0]


# ---- states ------------------------------------------------------------------------------------------------------


def test_while_loading_nothing_is_submitted_and_the_client_may_try_again_soon():
    client, transport = client_in(Loading(0.25))
    assert client.progress == 0.25 and not client.wait_until_loaded(0)
    with pytest.raises(ApiError) as caught:
        submit(client)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    assert transport.posted == []


def test_after_a_failed_load_the_reason_is_given():
    client, transport = client_in(LoadFailed("no such tensor"), Closed())
    assert client.wait_until_loaded(0) and client.state == "error"
    for ask in (lambda: submit(client), lambda: client.run_command("erase")):
        with pytest.raises(ApiError, match="no such tensor") as caught:
            ask()
        assert caught.value.status == 500
    assert transport.posted == []


def test_when_ready_the_model_and_its_vocabulary_are_known():
    client, _ = ready()
    assert client.wait_until_loaded(0) and client.info is INFO
    assert client.vocab.tokenize("a", False, False) == [97]


def test_a_vocabulary_that_cannot_be_opened_is_a_failed_load(caplog):
    transport = RecordingTransport()

    def open_vocab():
        raise OSError("gone")

    client = EngineClient(transport, open_vocab)
    client.start()
    transport.on_frame(Frame((Ready(INFO),)))
    assert client.state == "error" and "gone" in client.error and client.wait_until_loaded(0)


def test_the_vocabulary_is_opened_while_the_engine_reads_weights():
    """Not earlier: a file whose vocabulary ends libllama has to end the engine first, which may die."""
    transport, opened, may_open = RecordingTransport(), threading.Event(), threading.Event()

    def open_vocab():
        opened.set()
        assert may_open.wait(PATIENCE_S)
        return FakeVocab()

    client = EngineClient(transport, open_vocab)
    client.start()
    assert not opened.is_set()
    transport.on_frame(Frame((Loading(0.0),)))
    assert opened.wait(PATIENCE_S)
    transport.on_frame(Frame((Loading(0.5),)))
    may_open.set()
    transport.on_frame(Frame((Ready(INFO),)))
    assert client.state == READY and client.vocab.tokenize("a", False, False) == [97]


def test_closing_waits_for_a_vocabulary_that_is_being_opened():
    """The process would end with libllama at work in it."""
    transport, may_open, done = RecordingTransport(), threading.Event(), []

    def open_vocab():
        assert may_open.wait(PATIENCE_S)
        done.append(True)

    client = EngineClient(transport, open_vocab)
    client.start()
    transport.on_frame(Frame((Loading(0.0),)))
    threading.Timer(0.05, may_open.set).start()
    client.close()
    assert done == [True]


def test_after_the_end_nothing_is_submitted():
    client, _ = client_in(Ready(INFO), Closed())
    with pytest.raises(ApiError) as caught:
        submit(client)
    assert caught.value.status == 503


def test_the_end_of_the_engine_answers_everything_that_is_open():
    client, transport = ready()
    streamed, _ = submit(client)
    plain, _ = submit(client, stream=False)
    transport.on_frame(Frame((Closed(),)))
    for results in (streamed, plain):
        with pytest.raises(ApiError, match="shutting down"):
            drain(results)


def test_an_engine_that_ends_while_a_task_is_submitted_answers_it():
    client, transport = ready()
    transport.on_post = lambda message: transport.on_frame(Frame((Closed(),)))
    results, _ = submit(client)
    with pytest.raises(ApiError, match="shutting down"):
        drain(results)


def test_an_engine_that_ends_just_before_a_task_is_known_answers_it():
    client, transport = ready()
    require_ready = client.require_ready

    def ready_and_then_closed():
        require_ready()
        transport.on_frame(Frame((Closed(),)))

    client.require_ready = ready_and_then_closed
    results, _ = submit(client)
    with pytest.raises(ApiError, match="shutting down"):
        drain(results)
    client.state = "ok"
    with pytest.raises(ApiError, match="shutting down"):
        client.run_command("erase", timeout_s=PATIENCE_S, id_slot=0)


def test_ids_only_grow():
    client, _ = ready()
    ids = [client.make_id() for _ in range(100)]
    assert ids == sorted(set(ids))


def test_the_snapshot_is_new_before_anybody_is_woken():
    client, transport = ready()
    results, (id_task,) = submit(client)
    seen = []
    put = results.put
    results.put = lambda event: (seen.append(client.snapshot.n_steps), put(event))
    transport.on_frame(Frame((final(id_task),), Snapshot(n_steps=5)))
    transport.on_frame(Frame(()))
    assert seen == [5] and client.snapshot.n_steps == 5


# ---- events ------------------------------------------------------------------------------------------------------


def test_streamed_events_come_one_by_one():
    client, transport = ready()
    results, (id_task,) = submit(client)
    assert transport.posted == list(results.tasks)
    events = [Progress(id_task, 2, 0, 2, 1.0), Piece(id_task, (97,), "a"), Piece(id_task, (98,), "b"), final(id_task)]
    iterator = iter(results)
    for event in events:
        transport.on_frame(Frame((event,)))
        assert next(iterator) == event
    assert list(iterator) == []


def test_plain_events_come_together_at_the_end():
    client, transport = ready()
    results, (id_task,) = submit(client, stream=False)
    woken = []
    queue = results._queue.put
    results._queue = type("Queue", (), {"put": lambda self, item: (woken.append(len(item[0])), queue(item))})()
    for event in (Piece(id_task, (97,), "a"), Piece(id_task, (98,), "b"), final(id_task)):
        transport.on_frame(Frame((event,)))
    assert woken == [3]


@pytest.mark.parametrize("stream", [True, False])
def test_events_find_their_request_and_no_other(stream):
    client, transport = ready()
    requests = [submit(client, stream=stream) for _ in range(3)]
    for n in range(2):
        transport.on_frame(Frame(tuple(Piece(id_task, (n,), f"{id_task}.{n} ") for _, (id_task,) in requests)))
    transport.on_frame(Frame(tuple(final(id_task) for _, (id_task,) in reversed(requests))))
    for results, (id_task,) in requests:
        events = drain(results)
        assert "".join(event.text for event in events[:-1]) == f"{id_task}.0 {id_task}.1 "
        assert events[-1] == final(id_task)


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_is_raised_with_all_that_it_says(stream):
    client, transport = ready()
    results, (id_task,) = submit(client, stream=stream)
    transport.on_frame(Frame((Failure(id_task, 400, "too long", "exceed_context_size_error", {"n_ctx": 64}),)))
    with pytest.raises(ApiError) as caught:
        drain(results)
    assert make_error_body(caught.value) == {
        "error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 64}
    }


@pytest.mark.parametrize("stream", [True, False])
def test_several_tasks_of_one_request_end_with_the_last(stream):
    client, transport = ready()
    results, ids = submit(client, n=3, stream=stream)
    frames = [final(ids[1]), Piece(ids[0], (97,), "a"), final(ids[0]), final(ids[2])]
    for event in frames:
        transport.on_frame(Frame((event,)))
    assert drain(results) == frames


def test_several_tasks_of_one_request_travel_together_and_end_one_by_one():
    client, transport = ready()
    results, ids = submit(client, n=3)
    assert [message.tasks for message in transport.posted] == [results.tasks]
    transport.on_frame(Frame((final(ids[1]),)))
    results.cancel()
    assert transport.posted[1:] == [Cancel(ids[0]), Cancel(ids[2])]
    submit(client)
    assert isinstance(transport.posted[-1], Task), "one alone needs no company"


def test_when_one_of_several_tasks_fails_the_others_are_cancelled():
    client, transport = ready()
    results, ids = submit(client, n=3)
    transport.on_frame(Frame((final(ids[0]), Failure(ids[1], 500, "no"))))
    with pytest.raises(ApiError), results:
        drain(results)
    assert [message for message in transport.posted if isinstance(message, Cancel)] == [Cancel(ids[2])]


def test_a_plain_request_of_several_tasks_fails_with_the_first_of_them():
    client, transport = ready()
    results, ids = submit(client, n=2, stream=False)
    transport.on_frame(Frame((Piece(ids[0], (97,), "a"), Failure(ids[1], 500, "no"))))
    with pytest.raises(ApiError, match="no"):
        drain(results)


def test_events_of_unknown_tasks_are_ignored():
    client, transport = ready()
    transport.on_frame(Frame((Piece(99, (1,), "x"), final(99))))


# ---- cancel ------------------------------------------------------------------------------------------------------


def cancels(transport: RecordingTransport) -> list[int]:
    return [message.id for message in transport.posted if isinstance(message, Cancel)]


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_early_cancels_once(stream):
    client, transport = ready()
    results, (id_task,) = submit(client, stream=stream)
    with results:
        pass
    results.cancel()
    with results:
        pass
    assert cancels(transport) == [id_task] and results.is_cancelled


def test_a_finished_request_cancels_nothing():
    client, transport = ready()
    results, (id_task,) = submit(client)
    transport.on_frame(Frame((final(id_task),)))
    with results:
        drain(results)
    results.cancel()
    assert cancels(transport) == [] and not results.is_cancelled


def test_a_failed_request_cancels_nothing():
    client, transport = ready()
    results, (id_task,) = submit(client)
    transport.on_frame(Frame((Failure(id_task, 500, "no"),)))
    with pytest.raises(ApiError), results:
        drain(results)
    assert cancels(transport) == []


def test_a_cancel_from_another_thread_wakes_the_reader():
    client, transport = ready()
    results, (id_task,) = submit(client, stream=False)
    cancelling = threading.Thread(target=results.cancel)
    cancelling.start()
    with pytest.raises(ApiError) as caught:
        drain(results)
    cancelling.join(PATIENCE_S)
    assert caught.value.status == 499 and cancels(transport) == [id_task]


def test_many_threads_that_cancel_at_once_cancel_once():
    client, transport = ready()
    for _ in range(50):
        results, _ = submit(client)
        start = threading.Barrier(4)
        threads = [threading.Thread(target=lambda: (start.wait(PATIENCE_S), results.cancel())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(cancels(transport)) == len(set(cancels(transport))) == 50


def test_what_comes_after_a_cancel_goes_nowhere():
    client, transport = ready()
    results, (id_task,) = submit(client)
    results.cancel()
    transport.on_frame(Frame((Piece(id_task, (97,), "a"), final(id_task))))
    with pytest.raises(ApiError):
        drain(results)


def test_what_was_asked_is_known_while_it_runs_and_a_while_after():
    client, transport = ready()
    results, (id_task,) = submit(client)
    others = [submit(client)[1][0] for _ in range(200)]
    assert client.get_task(id_task) is results.tasks[0]
    transport.on_frame(Frame((final(id_task),)))
    assert client.get_task(id_task) is results.tasks[0]
    assert all(client.get_task(other) is not None for other in others), "a waiting task is not forgotten"
    assert client.get_task(10**9) is None


# ---- commands ----------------------------------------------------------------------------------------------------


def answering(transport: RecordingTransport, result: dict, error=None) -> None:
    transport.on_post = lambda message: transport.on_frame(Frame((Reply(message.id, result, error),)))


def test_a_command_gets_its_answer():
    client, transport = ready()
    answering(transport, {"n_erased": 3})
    assert client.run_command("erase", id_slot=1) == {"n_erased": 3}
    assert (transport.posted[0].name, transport.posted[0].args) == ("erase", {"id_slot": 1})
    assert isinstance(transport.posted[0], Command)


def test_a_refused_command_raises_what_the_engine_says():
    client, transport = ready()
    answering(transport, {}, (400, "there is no slot 9"))
    with pytest.raises(ApiError, match="there is no slot 9") as caught:
        client.run_command("erase", id_slot=9)
    assert caught.value.status == 400


def test_a_command_that_is_never_answered_ends_with_503():
    client, _ = ready()
    with pytest.raises(ApiError, match="erase") as caught:
        client.run_command("erase", timeout_s=0.01)
    assert caught.value.status == 503


def test_a_command_that_is_given_up_is_withdrawn():
    client, transport = ready()
    with pytest.raises(ApiError):
        client.run_command("erase", timeout_s=0.01)
    assert transport.posted[1:] == [Cancel(transport.posted[0].id)]


def test_a_late_answer_to_a_command_is_ignored():
    client, transport = ready()
    with pytest.raises(ApiError):
        client.run_command("erase", timeout_s=0.01)
    transport.on_frame(Frame((Reply(transport.posted[0].id, {}),)))


def test_the_end_of_the_engine_answers_commands():
    client, transport = ready()
    transport.on_post = lambda message: transport.on_frame(Frame((Closed(),)))
    with pytest.raises(ApiError, match="shutting down"):
        client.run_command("erase", timeout_s=PATIENCE_S)


def test_closing_goes_to_the_transport():
    client, transport = ready()
    client.close(2.5)
    assert transport.closed_with == [2.5]


def test_states_of_slots_pass_unchanged():
    client, transport = ready()
    slot = SlotState(0, 1, True, 64, 0, 0, 0, 0, -1, True, "none", "", False)
    transport.on_frame(Frame((), Snapshot(slots=(slot,))))
    assert client.snapshot.slots == (slot,)


# ---- slow readers ------------------------------------------------------------------------------------------------


def test_what_waits_for_a_slow_reader_counts_into_the_memory_of_all():
    client, transport = ready()
    budget = Budget(1_000_000)
    memory.use(Share(budget))
    try:
        results, (id_task,) = submit(client)
    finally:
        memory.use(None)
    probs = TokenProbs(1, 1.0, 0.0, (), tuple((i, 0.0) for i in range(1000)))
    large = Frame((Piece(id_task, (1,), "x", (probs,)),))
    for _ in range(4):
        client.dispatch(large)
    assert budget.n_used == 4 * 220_000
    events = iter(results)
    assert [next(events) for _ in range(3)] == [large.events[0]] * 3 and budget.n_used == 220_000
    for _ in range(4):
        client.dispatch(large)
    assert transport.posted.count(Cancel(id_task)) == 1, "there is room for three"
    with pytest.raises(ApiError, match="reads too slowly"), results:
        list(events)
    assert budget.n_used == 0


def test_a_stream_that_is_not_read_is_given_up_and_the_rest_of_it_not_kept(monkeypatch):
    monkeypatch.setattr(client_module, "N_BACKLOG", 50)
    client, transport = ready()
    results, (id_task,) = submit(client)
    for i in range(500):
        client.dispatch(Frame((Piece(id_task, (i,), "x"),)))
    assert transport.posted.count(Cancel(id_task)) == 1
    seen = []
    with pytest.raises(ApiError, match="reads too slowly"), results:
        for event in results:
            seen.append(event)
    assert len(seen) == 50


def test_a_slow_stream_still_gets_its_end(monkeypatch):
    monkeypatch.setattr(client_module, "N_BACKLOG", 5)
    client, transport = ready()
    results, (id_task,) = submit(client)
    for i in range(5):
        client.dispatch(Frame((Piece(id_task, (i,), "x"),)))
    client.dispatch(Frame((final(id_task),)))
    with results:
        assert len(list(results)) == 6
    assert Cancel(id_task) not in transport.posted


# ---- many threads ------------------------------------------------------------------------------------------------


def test_tasks_may_end_on_all_threads_at_once(monkeypatch):
    """Clients that leave end theirs on their own threads, while the transport's thread ends others."""
    monkeypatch.setattr(client_module, "RECENT_PER_SLOT", 1)
    client, _ = ready()
    all_results = [submit(client) for _ in range(4000)]
    errors: list[BaseException] = []

    def end(mine: list) -> None:
        try:
            for number, (results, (id_task,)) in enumerate(mine):
                if number % 2:
                    results.cancel()
                else:
                    client.dispatch(Frame((final(id_task),)))
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=end, args=(all_results[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    finally:
        sys.setswitchinterval(before)
    assert errors == [] and not client._results and len(client._recent) == 2
