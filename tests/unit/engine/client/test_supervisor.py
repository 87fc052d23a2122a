"""`engine.supervise`: an engine process that dies in every possible way, and what clients see.

The child is `tests/engine_child.py`: the server's engine process with the fake backend and faults on request.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest

from server.engine.client.engine_client import EngineClient
from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.seam import wire
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Failure, Final, Frame, Piece, SamplingParams, Task
from server.errors import ApiError
from tests.engine_child import COMMAND, Orders
from tests.fake_media import media
from tests.fakes import PATIENCE_S, FakeVocab
from tests.support import ROOT, wait_until
from tests.unit.engine.driving import GREEDY, alone

# as patient as the tests: on a busy machine an engine must not be taken for a hanging one
LIMITS = Limits(start_s=PATIENCE_S, silence_s=PATIENCE_S, step_s=PATIENCE_S, beat_s=0.1, backoff_s=(0.0,), end_s=0.5)
HASTY = dataclasses.replace(LIMITS, silence_s=3.0, step_s=3.0)  # for engines that do hang, and that once
POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there are no such signals")
PROMPTS = [f"once upon a time {i}" for i in range(4)]


class Engine:
    """A client over a supervised process."""

    def __init__(self, orders: Orders, limits: Limits = LIMITS, command: tuple[str, ...] = COMMAND, **config) -> None:
        config = {"n_slots": orders.n_slots, **config}
        self.transport = ProcessTransport(EngineConfig(orders.text(), "", **config), command, limits)
        self.client = EngineClient(self.transport, FakeVocab)
        self.frames: list[Frame] = []
        self.states: list[str] = []

    def start(self, is_ready: bool = True) -> Engine:
        dispatch = self.client.dispatch

        def watch(frame: Frame) -> None:
            dispatch(frame)
            self.frames.append(frame)
            if self.client.state not in self.states[-1:]:
                self.states.append(self.client.state)

        self.client.dispatch = watch
        self.client.start()
        assert self.client.wait_until_loaded(PATIENCE_S)
        assert self.client.state == "ok" or not is_ready, self.client.error
        return self

    def complete(self, prompt: str, n: int = 40, stream: bool = True, **fields) -> str:
        fields = {"sampling": GREEDY, **fields}
        task = Task(self.client.make_id(), tuple(prompt.encode()), n_predict=n, **fields)
        with self.client.submit(task, stream=stream) as results:
            return "".join(event.text for event in results)

    def at_once(self, asks) -> list[object]:
        """What each (prompt, fields) gets: a text, or an ApiError."""
        got: list[object] = [None] * len(asks)

        def ask(i: int) -> None:
            try:
                got[i] = self.complete(asks[i][0], stream=i % 2 == 0, **asks[i][1])
            except ApiError as error:
                got[i] = error

        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(asks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"no answer: {got}, {self.client.state} {self.client.error}"
        return got

    def n_pieces(self) -> Counter[int]:
        """How many pieces of text each task has got."""
        frames = list(self.frames)
        return Counter(event.id for frame in frames for event in frame.events if isinstance(event, Piece))

    def kill(self, number: int) -> None:
        os.kill(self.transport.pid, number)

    @property
    def n_restarts(self) -> int:
        return self.client.snapshot.n_restarts


@pytest.fixture
def engine(caplog):
    caplog.set_level(logging.CRITICAL, "llama_srv")
    made: list[Engine] = []

    def make(*args, **options) -> Engine:
        made.append(Engine(*args, **options))
        return made[-1]

    yield make
    for one in made:
        pid = one.transport.pid
        one.client.close()
        assert pid is None or not is_running(pid), "a process is left"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


# ---- a good life ---------------------------------------------------------------------------------------------------


def test_an_engine_in_a_process_of_its_own_loads_serves_and_ends(engine):
    one = engine(Orders()).start()
    assert one.transport.pid not in (None, os.getpid())
    assert one.at_once([(prompt, {}) for prompt in PROMPTS]) == [alone(prompt, 40) for prompt in PROMPTS]
    assert one.client.run_command("get_lora") == {"adapters": ()}
    with pytest.raises(ApiError) as caught:
        one.complete("x", sampling=SamplingParams(grammar="bad"))
    assert caught.value.status == 400
    pid = one.transport.pid
    one.client.close()
    assert not is_running(pid) and one.client.state == "closed"


def test_stray_output_of_native_code_does_no_harm(engine):
    one = engine(Orders(do="print", nth=3)).start()
    assert one.complete("hello") == alone("hello", 40) and one.n_restarts == 0


def test_running_tasks_may_finish_within_the_grace_time(engine):
    one = engine(Orders(step_s=0.01)).start()
    texts: list[str] = []
    asking = threading.Thread(target=lambda: texts.append(one.complete("hello", 30)))
    asking.start()
    wait_until(lambda: one.client.snapshot.n_processing, "the task to be at work")
    one.client.close(PATIENCE_S)
    asking.join(PATIENCE_S)
    assert texts == [alone("hello", 30)]


def test_an_engine_that_does_not_end_is_ended(engine):
    one = engine(Orders(do="hang", nth=2), Limits(step_s=1e6, end_s=0.5)).start()
    answers = threading.Thread(target=lambda: pytest.raises(ApiError, one.complete, "hello"))
    answers.start()
    wait_until(lambda: one.client.snapshot.n_processing, "the task to be at work")
    one.client.close(0.0)
    answers.join(PATIENCE_S)
    assert not answers.is_alive() and one.transport.pid is None


def test_stacks_of_the_engine_can_be_asked_for_while_it_is_busy(engine):
    one = engine(Orders(do="hang", nth=1), Limits(step_s=1e6, end_s=0.5)).start()
    threading.Thread(target=lambda: pytest.raises(ApiError, one.complete, "hello"), daemon=True).start()
    wait_until(lambda: one.client.snapshot.n_processing, "the task to be at work")
    text = one.client.collect_stacks()
    assert "engine process" in text and "engine_child.py" in text


# ---- every way to die ----------------------------------------------------------------------------------------------

DEATHS = [
    "exit",
    "leave",
    "abort",
    "nonsense",
    "half",
    "hang",
    *([] if sys.platform == "win32" else ["segv", "kill", "freeze"]),
]


@pytest.mark.parametrize("do", DEATHS)
def test_every_way_to_die_costs_nothing_but_time(engine, tmp_path, do):
    is_hanging = do in ("hang", "freeze")
    lives = 1 if is_hanging else 2
    orders = Orders(lives_file=str(tmp_path / "lives"), do=do, nth=9, lives=lives, step_s=0.01)
    one = engine(orders, HASTY if is_hanging else LIMITS).start()
    assert one.at_once([(prompt, {}) for prompt in PROMPTS]) == [alone(prompt, 40) for prompt in PROMPTS]
    assert one.n_restarts == lives and one.client.snapshot.n_replays >= 4
    assert "restarting engine" in one.states and one.client.state == "ok"


@pytest.mark.parametrize("where, do", [("decode", "raise"), ("sample", "raise"), ("start", "raise")])
def test_what_the_engine_survives_by_itself_is_no_death(engine, where, do):
    one = engine(Orders(do=do, where=where, nth=2)).start()
    got = one.at_once([(prompt, {}) for prompt in PROMPTS])
    assert any(isinstance(text, ApiError) and text.status == 500 for text in got)
    assert all(text == alone(prompt, 40) for prompt, text in zip(PROMPTS, got) if not isinstance(text, ApiError))
    assert one.complete("hello") == alone("hello", 40) and one.n_restarts == 0


@pytest.mark.parametrize("where", ["start", "sample", "decode"])
@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_death_at_any_call_of_the_seam_is_survived(engine, tmp_path, where, nth):
    one = engine(Orders(lives_file=str(tmp_path / "lives"), do="exit", where=where, nth=nth, lives=1)).start()
    assert one.at_once([(prompt, {}) for prompt in PROMPTS]) == [alone(prompt, 40) for prompt in PROMPTS]


@POSIX_ONLY
def test_deaths_at_random_moments_one_after_the_other(engine):
    one = engine(Orders(step_s=0.002)).start()
    texts: list[object] = []
    asking = threading.Thread(target=lambda: texts.extend(one.at_once([(prompt, {"n": 400}) for prompt in PROMPTS])))
    asking.start()
    numbers = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]
    for i in range(6):
        seen = one.n_pieces()
        # each of them, or it would be suspected of having killed the engine
        wait_until(
            lambda: (
                texts or len(one.n_pieces() - seen) == len(PROMPTS) and min((one.n_pieces() - seen).values()) > 3 * i
            ),
            "some progress of every task",
        )
        if one.transport.pid:
            one.kill(numbers[i % 3])
    asking.join(PATIENCE_S)
    assert texts == [alone(prompt, 400) for prompt in PROMPTS]


def test_text_that_was_held_back_and_stop_words_go_on_as_if_nothing_had_happened(engine, tmp_path):
    word = alone(PROMPTS[0], 40)[18:24]
    for nth in (17, 19, 21, 23):
        lives = str(tmp_path / f"lives{nth}")
        one = engine(Orders(lives_file=lives, do="exit", nth=nth, lives=1)).start()
        assert one.complete(PROMPTS[0], stop=(word,)) == alone(PROMPTS[0], 40)[:18]
        one.client.close()


def test_counts_and_times_of_a_task_that_was_interrupted(engine, tmp_path):
    one = engine(Orders(lives_file=str(tmp_path / "lives"), do="exit", nth=20, lives=1, step_s=0.005)).start()
    task = Task(one.client.make_id(), tuple(b"hello"), GREEDY, n_predict=40, progress=True, timings=True)
    with one.client.submit(task, stream=True) as results:
        events = list(results)
    pieces = [event for event in events if isinstance(event, Piece)]
    final = events[-1]
    assert isinstance(final, Final) and (final.n_predicted, final.n_prompt, final.timings.predicted_n) == (40, 5, 40)
    assert len(pieces) == 40 and [piece.timings.predicted_n for piece in pieces] == list(range(1, 41))
    times = [piece.timings.predicted_ms for piece in pieces]
    assert times == sorted(times) and final.timings.prompt_ms >= 0
    first = events.index(pieces[0])
    assert all(isinstance(event, Piece) for event in events[first:-1]), "no progress of the prompt behind its end"
    # what the dead engine counted after its last snapshot is lost
    assert 20 <= one.client.snapshot.n_predicted_tokens <= 40, "replayed tokens don't count again"


def test_a_context_that_was_shifted_before_the_death_is_shifted_again(engine, tmp_path):
    orders = Orders(n_ctx=4 * 64, do="exit", nth=120, lives=1)
    calm = engine(dataclasses.replace(orders, do=""), shift_context=True).start()
    undisturbed = calm.complete("hello", 150, n_keep=3)
    one = engine(dataclasses.replace(orders, lives_file=str(tmp_path / "lives")), shift_context=True).start()
    assert one.complete("hello", 150, n_keep=3) == undisturbed
    assert one.n_restarts == 1 and undisturbed != alone("hello", 150)


def test_a_system_prompt_outlives_the_engine(engine, tmp_path):
    one = engine(Orders(lives_file=str(tmp_path / "lives"), do="exit", nth=10, lives=1)).start()
    one.client.run_command("system_prompt", tokens=tuple(b"be brief "))
    assert one.complete("hello") == alone("be brief hello", 40)
    assert one.complete("again") == alone("be brief again", 40) and one.n_restarts == 1


def test_a_command_under_way_is_done_by_the_next_engine(engine, tmp_path):
    one = engine(Orders(lives_file=str(tmp_path / "lives"), do="exit", nth=1, lives=1)).start()
    assert one.client.run_command("system_prompt", tokens=tuple(b"be brief ")) == {"n_tokens": 9}
    assert one.complete("hello") == alone("be brief hello", 40) and one.n_restarts == 1


def test_a_command_that_the_engine_dies_of_fails_after_the_second_time(engine, tmp_path):
    one = engine(Orders(lives_file=str(tmp_path / "lives"), do="exit", nth=1, lives=2)).start()
    with pytest.raises(ApiError, match="'system_prompt'") as caught:
        one.client.run_command("system_prompt", tokens=tuple(b"be brief "))
    assert caught.value.status == 500
    assert one.complete("hello") == alone("hello", 40) and one.n_restarts == 2


# ---- whose fault it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, orders",
    [
        ({}, Orders(do="abort", poison="~")),
        ({"sampling": SamplingParams(grammar="evil")}, Orders(do="abort", poison="evil", where="start")),
    ],
    ids=["in a batch", "while it is started"],
)
def test_a_request_that_kills_the_engine_fails_alone(engine, fields, orders):
    one = engine(orders).start()
    asks = [(prompt, {"n": 60}) for prompt in PROMPTS] + [("poison ~", fields)]
    *texts, error = one.at_once(asks)
    assert texts == [alone(prompt, 60) for prompt in PROMPTS]
    assert isinstance(error, ApiError) and error.status == 500 and "brought the engine down" in error.message
    assert one.complete("hello") == alone("hello", 40)
    assert one.client.snapshot.n_suspects == 1 and one.client.state == "ok"


def test_two_such_requests_at_once_both_fail_and_the_others_do_not(engine):
    one = engine(Orders(do="abort", poison="~"), dataclasses.replace(LIMITS, max_deaths=8)).start()
    *texts, first, second = one.at_once([(prompt, {"n": 60}) for prompt in PROMPTS[:2]] + [("~1", {}), ("~2", {})])
    assert texts == [alone(prompt, 60) for prompt in PROMPTS[:2]]
    assert (first.status, second.status) == (500, 500)
    wait_until(lambda: one.client.state == "ok", "the engine to come back", PATIENCE_S)


def test_a_request_that_kills_the_engine_before_it_can_say_whose_it_is_fails_alone(engine):
    one = engine(Orders(do="abort", poison="~", where="receive")).start()
    with pytest.raises(ApiError, match="brought the engine down") as caught:
        one.complete("poison ~")
    assert caught.value.status == 500
    assert one.complete("hello") == alone("hello", 40) and one.client.state == "ok"


def test_nobody_is_given_up_while_there_is_somebody_to_blame(engine):
    one = engine(Orders(do="abort", poison="~", where="receive"), dataclasses.replace(LIMITS, max_deaths=2)).start()
    *texts, error = one.at_once([(prompt, {"n": 60}) for prompt in PROMPTS] + [("poison ~", {})])
    assert texts == [alone(prompt, 60) for prompt in PROMPTS]
    assert isinstance(error, ApiError) and error.status == 500 and "brought the engine down" in error.message


def test_what_is_too_long_for_the_pipe_fails_alone_and_the_engine_never_sees_it(engine, monkeypatch):
    one = engine(Orders()).start()
    monkeypatch.setattr(wire, "MAX_TAIL", 1000)
    long = {"media": (media(bytes(600)), media(bytes([1]) * 600))}
    *texts, error = one.at_once([(prompt, {"n": 60}) for prompt in PROMPTS] + [("hello", long)])
    assert texts == [alone(prompt, 60) for prompt in PROMPTS]
    assert isinstance(error, ApiError) and error.status == 500 and "could not be sent" in error.message
    tasks = [
        Task(one.client.make_id(), tuple(b"hello"), GREEDY, 40),
        Task(one.client.make_id(), tuple(b"hello"), GREEDY, 40, **long),
    ]
    with one.client.submit(*tasks, stream=False) as results, pytest.raises(ApiError, match="could not be sent"):
        list(results)
    assert one.complete("hello") == alone("hello", 40) and one.n_restarts == 0


def test_a_message_that_can_not_be_sent_is_answered_after_the_frame_that_is_being_passed_on(engine, monkeypatch):
    one = engine(Orders())
    dispatch, overlaps = one.client.dispatch, []
    refused = threading.Event()

    def pass_on(frame: Frame) -> None:
        if any(isinstance(event, Failure) for event in frame.events):
            refused.set()
        elif not overlaps and any(isinstance(event, Piece) for event in frame.events):
            one.transport.post(Task(one.client.make_id(), tuple(b"hello"), GREEDY, media=(media(bytes(2000)),)))
            overlaps.append(refused.wait(0.2))
        dispatch(frame)

    one.client.dispatch = pass_on
    one.start()
    monkeypatch.setattr(wire, "MAX_TAIL", 1000)
    assert one.complete("hello") == alone("hello", 40)
    assert refused.wait(PATIENCE_S) and overlaps == [False]


def test_nothing_of_a_message_is_kept_when_it_has_been_answered(engine):
    one = engine(Orders()).start()
    data = bytes(100_000)
    n = sys.getrefcount(data)
    with pytest.raises(ApiError, match="--mmproj"):
        one.complete("hello", media=(media(data),))
    wait_until(lambda: sys.getrefcount(data) == n, "the writer to let go of the file", PATIENCE_S)


def test_too_many_deaths_without_progress_are_the_end_and_everybody_is_told(engine, tmp_path):
    lives = tmp_path / "lives"
    one = engine(Orders(lives_file=str(lives), do="exit", where="load", nth=2), Limits(backoff_s=(0.0,), max_deaths=3))
    one.start()
    orders = Orders(lives_file=str(lives), do="exit", where="load")
    one.transport._config = dataclasses.replace(one.transport._config, model=orders.text())  # later ones can't load
    os.kill(one.transport.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    errors = one.at_once([(prompt, {}) for prompt in PROMPTS])
    assert {error.status for error in errors} == {500} and "died 3 times" in errors[0].message
    assert one.client.state == "error" and "exit code 3" in one.client.error
    with pytest.raises(ApiError, match="died 3 times"):
        one.complete("hello")
    with pytest.raises(ApiError, match="died 3 times"):
        one.client.run_command("get_lora")
    assert lives.stat().st_size == 3


# ---- the first start -----------------------------------------------------------------------------------------------


@POSIX_ONLY
@pytest.mark.parametrize("do, is_told", [("kill", False), ("abort", True)])
def test_the_last_words_are_errors_only_of_an_engine_that_ended_itself(engine, caplog, tmp_path, do, is_told):
    caplog.set_level(logging.DEBUG, "llama_srv.engine")
    orders = Orders(lives_file=str(tmp_path / "lives"), lives=1, do=do, says="sad\n\x1froutine\n")
    one = engine(orders).start()
    assert one.complete("hello") == alone("hello", 40)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert "died: signal SIG" in errors[0] and ("its last output: sad" in errors[1:]) == is_told
    assert len(errors) == 1 or is_told
    assert not any("routine" in line for line in errors)
    details = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert "its last log lines: routine" in details


@pytest.mark.parametrize(
    "do, message",
    [
        ("refuse", "the model file is rotten"),
        ("raise", "out of the blue"),
        ("exit", "exit code 3"),
        ("abort", "while it loaded the model"),
        ("nonsense", "invalid message"),
        ("leave", "exit code 0"),
    ],
)
def test_a_first_load_that_fails_is_not_repeated(engine, tmp_path, do, message):
    lives = tmp_path / "lives"
    one = engine(Orders(lives_file=str(lives), do=do, where="load")).start(is_ready=False)
    assert one.client.state == "error" and message in one.client.error and "\n" not in one.client.error
    assert lives.stat().st_size == 1
    with pytest.raises(ApiError, match="could not be loaded"):
        one.complete("hello")


@pytest.mark.parametrize(
    "command, message",
    [
        (("/no/such/program",), "can't be started"),
        ((sys.executable, "-c", "print('hello, I am not an engine')"), "invalid message"),
        ((sys.executable, "-c", "import sys; sys.exit('my last words')"), "my last words"),
    ],
    ids=["missing", "another program", "one that fails"],
)
def test_a_program_that_is_no_engine_is_an_error(engine, command, message):
    one = engine(Orders(), command=command).start(is_ready=False)
    assert one.client.state == "error" and message in one.client.error


def test_an_engine_that_never_speaks_is_given_up(engine):
    command = (sys.executable, "-c", "import time; time.sleep(3600)")
    one = engine(Orders(), dataclasses.replace(LIMITS, start_s=0.5, silence_s=0.5), command).start(is_ready=False)
    assert "no sign of life" in one.client.error


def test_closing_while_it_loads_is_quick(engine):
    one = engine(Orders(do="hang", where="load"))
    one.client.start()
    wait_until(lambda: one.client.progress == 0.5, "the load to begin")
    began = threading.Thread(target=one.client.close)
    began.start()
    began.join(PATIENCE_S)
    assert one.client.state == "closed"


def test_an_engine_that_comes_back_as_another_one_is_not_taken(engine, tmp_path):
    one = engine(Orders(), dataclasses.replace(LIMITS, max_deaths=2)).start()
    model = Orders(n_ctx=4096).text()
    one.transport._config = dataclasses.replace(one.transport._config, model=model)
    os.kill(one.transport.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    wait_until(lambda: one.client.state == "error", "the end")
    assert "have changed since the first start" in one.client.error


# ---- what is left behind -------------------------------------------------------------------------------------------

SERVER = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from server.engine.seam.config import EngineConfig
from server.engine.client.supervisor import ProcessTransport
from server.engine.seam.task import Ready, SamplingParams, Task
from tests.engine_child import COMMAND, Orders
ready = threading.Event()
transport = ProcessTransport(EngineConfig(Orders(step_s=float(sys.argv[2])).text(), "", n_slots=4), COMMAND)
transport.start(lambda frame: any(isinstance(event, Ready) for event in frame.events) and ready.set())
ready.wait()
transport.post(Task(0, (65, 66), SamplingParams(temperature=0.0), n_predict=-1))
print(transport.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("step_s", [0.001, 3600.0], ids=["at work", "in the middle of a decode"])
def test_the_engine_ends_when_the_server_is_killed(step_s):
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT), str(step_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        pid = int(server.stdout.readline())
        assert is_running(pid)
        server.kill()
    wait_until(lambda: not is_running(pid), "the end of the engine", PATIENCE_S)


def test_the_engine_imports_nothing_of_http():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import server.engine.entry.process, server.engine.llama.backend; "
        "print(sorted(name for name in sys.modules if name.startswith(('http', 'ssl', 'socket', 'server.web', "
        "'server.api', 'server.chat', 'email'))))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_command_can_be_posted_by_many_threads_while_the_engine_dies(engine, tmp_path):
    one = engine(Orders(lives_file=str(tmp_path / "lives"), do="exit", nth=3, lives=1)).start()
    answers: list[object] = []

    def ask() -> None:
        for _ in range(20):
            answers.append(one.client.run_command("get_lora", PATIENCE_S))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert one.complete("hello") == alone("hello", 40)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [{"adapters": ()}] * 80
