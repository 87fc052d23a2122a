"""`engine.process`: the engine process, its pipes and its log records."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from types import SimpleNamespace

import pytest

from server.engine.entry import process
from server.engine.entry.process import EngineProcess, Outbox, PipeHandler, merge_frames
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Close, Final, Frame, Piece, Ready, Snapshot, Task, TokenProbs
from server.engine.seam.wire import Beat, Codec, FrameReader, LogLine
from server.log import ROOT
from tests.fakes import PATIENCE_S, FakeBackend
from tests.support import wait_until

CODEC = Codec()


def frame(i: int, snapshot: Snapshot | None = None) -> Frame:
    return Frame((Piece(0, (i,), str(i)),), snapshot)


class Pipe:
    """An outbox into a pipe that is read when the test says so."""

    def __init__(self) -> None:
        self.inlet, outlet = os.pipe()
        self.outbox = Outbox(outlet, CODEC)
        self._reader = FrameReader(CODEC)
        self.read: list[object] = []

    def take(self, n_bytes: int = 1 << 16) -> None:
        self.read += self._reader.feed(os.read(self.inlet, n_bytes))

    def tokens(self) -> list[int]:
        return [
            token
            for message in self.read
            if isinstance(message, Frame)
            for piece in message.events
            for token in piece.tokens
        ]


def test_frames_that_pile_up_become_one_and_the_last_snapshot_counts():
    first, last = Snapshot(n_steps=1), Snapshot(n_steps=2)
    merged = merge_frames([frame(1, first), frame(2), Beat(1, 1, True), frame(3), frame(4, last), frame(5)])
    assert merged == [
        Frame((*frame(1).events, *frame(2).events), first),
        Beat(1, 1, True),
        Frame((*frame(3).events, *frame(4).events, *frame(5).events), last),
    ]


@pytest.mark.parametrize("is_unblocked", [True, False])
def test_the_engine_waits_for_a_web_side_that_does_not_read_and_nothing_is_lost(monkeypatch, is_unblocked):
    if not is_unblocked:  # as on Windows
        monkeypatch.setattr(process, "_unblock", lambda fd: False)
    pipe, n = Pipe(), 20_000
    putting = threading.Thread(target=lambda: [pipe.outbox.put(frame(i)) for i in range(n)], daemon=True)
    putting.start()
    wait_until(lambda: len(pipe.outbox._waiting) >= process.MAX_WAITING, "the outbox to be full", PATIENCE_S)
    assert putting.is_alive()
    while len(pipe.tokens()) < n:
        pipe.take()
    putting.join(PATIENCE_S)
    assert pipe.tokens() == list(range(n))
    pipe.outbox.flush(PATIENCE_S)
    assert not pipe.outbox._waiting


def test_the_engine_waits_sooner_where_frames_are_large_and_none_becomes_too_large():
    pipe, n = Pipe(), 30
    probs = TokenProbs(1, 1.0, 0.0, (), tuple((i, -float(i)) for i in range(10_000)))
    frames = [Frame((Piece(0, (i,), "x", (probs,)),)) for i in range(n)]
    putting = threading.Thread(target=lambda: [pipe.outbox.put(one) for one in frames], daemon=True)
    putting.start()
    wait_until(lambda: pipe.outbox._n_probs >= process.MAX_PROBS, "the outbox to be full", PATIENCE_S)
    assert len(pipe.outbox._waiting) <= 6 and putting.is_alive()
    while len(pipe.tokens()) < n:
        pipe.take()
    putting.join(PATIENCE_S)
    assert pipe.tokens() == list(range(n)) and max(len(one.events) for one in pipe.read) <= 6


@pytest.mark.skipif(os.name == "nt", reason="a pipe there can't be asked not to wait")
def test_what_the_pipe_takes_is_sent_by_whoever_has_it_and_the_rest_by_the_writer(monkeypatch):
    pipe, senders, write = Pipe(), [], os.write

    def watched(fd, data):
        senders.append(threading.current_thread().name)
        return write(fd, data)

    monkeypatch.setattr(process.os, "write", watched)
    me = threading.current_thread().name
    pipe.outbox.put(frame(1))
    pipe.take()
    assert pipe.tokens() == [1] and senders == [me]
    long = Frame((Piece(0, (2,), "x" * 1_000_000),))
    pipe.outbox.put(long)
    pipe.outbox.put(frame(3))
    while pipe.tokens() != [1, 2, 3]:
        pipe.take()
    assert senders[1] == me and set(senders[2:]) == {"writer"} and pipe.read[1] == long


def test_log_records_never_wait_and_losses_are_counted(monkeypatch):
    monkeypatch.setattr(process, "MAX_WAITING_LOGS", 3)
    pipe = Pipe()
    line = LogLine("engine", 20, "x" * 100_000, "f", 1, "t", 0.0, "")
    for _ in range(10):
        pipe.outbox.offer(line)
    while not any(isinstance(message, LogLine) and "lost" in message.text for message in pipe.read):
        pipe.take()
    kept = [message for message in pipe.read if message == line]
    lost = next(message for message in pipe.read if "lost" in message.text)
    assert len(kept) + int(lost.text.split()[0]) == 10 and len(kept) < 10
    assert lost.n_lost == 10 - len(kept)


@pytest.mark.parametrize(
    "name, level, goes",
    [
        ("engine", logging.INFO, "pipe"),
        ("engine", logging.DEBUG, "nowhere"),
        ("llama", logging.DEBUG, "stderr"),
        ("llama", logging.ERROR, "pipe"),
    ],
)
def test_records_go_to_the_web_process_and_native_details_to_stderr(capfd, name, level, goes):
    pipe = Pipe()
    handler = PipeHandler(pipe.outbox, logging.INFO)
    record = logging.LogRecord(f"{ROOT}.{name}", level, __file__, 7, "seen %d", (5,), None, "here")
    handler.emit(record)
    pipe.outbox.put(Beat(0, 0, False))
    while not pipe.read or not isinstance(pipe.read[-1], Beat):
        pipe.take()
    lines = [message for message in pipe.read if isinstance(message, LogLine)]
    assert [(line.name, line.level, line.text, line.function, line.line) for line in lines] == (
        [(name, level, "seen 5", "here", 7)] if goes == "pipe" else []
    )
    assert capfd.readouterr().err == ("\x1fseen 5\n" if goes == "stderr" else "")


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: pipes there can't be asked")
def test_native_details_are_dropped_where_stderr_has_no_room():
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    for size in (4096, 1):  # until not a byte more fits, as when the web process is busy
        while True:
            try:
                os.write(outlet, b"x" * size)
            except BlockingIOError:
                break
    os.set_blocking(outlet, True)
    handler = PipeHandler(Pipe().outbox, logging.INFO, outlet)
    record = logging.LogRecord(f"{ROOT}.llama", logging.DEBUG, __file__, 7, "%s", ("y" * 100_000,), None, "here")
    handler.emit(record)  # would wait for ever
    os.set_blocking(inlet, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(inlet, 1 << 16):
            pass
    handler.emit(record)
    assert set(os.read(inlet, 1 << 16)) == set(b"\x1fy\n")
    os.close(inlet)
    os.close(outlet)


def test_a_record_of_an_exception_brings_its_traceback():
    pipe = Pipe()
    try:
        raise ValueError("deep inside")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    PipeHandler(pipe.outbox, logging.INFO).emit(
        logging.LogRecord(f"{ROOT}.engine", logging.ERROR, __file__, 1, "it failed", (), info, "f")
    )
    while not pipe.read:
        pipe.take()
    assert pipe.read[0].text == "it failed" and "ValueError: deep inside" in pipe.read[0].trace


def test_progress_is_told_at_its_beginning_and_end_and_now_and_then_between(monkeypatch):
    """libllama reports each tensor; a frame for each would keep two processes busy while the model loads."""
    told, now = [], [100.0]
    monkeypatch.setattr(process.time, "monotonic", lambda: now[0])
    engine = process.EngineProcess.__new__(process.EngineProcess)
    engine._outbox, engine._t_progress, engine._is_closing = SimpleNamespace(put=told.append), 0.0, False
    for i in range(101):
        assert engine._on_progress(i / 100)
        now[0] += 0.001
    values = [frame.events[0].progress for frame in told]
    assert values[0] == 0.0 and values[-1] == 1.0 and len(values) <= 4


def test_a_task_that_comes_while_the_engine_still_says_that_it_is_ready_is_not_lost(monkeypatch):
    monkeypatch.setattr(process.gc, "freeze", lambda: None)
    engine = EngineProcess(*os.pipe(), lambda config, on_progress: FakeBackend(n_slots=1))
    finals: list[Final] = []

    def put(frame: Frame) -> None:
        for event in frame.events:
            if isinstance(event, Ready):
                engine._take(Task(1, (5, 6), n_predict=2))
            elif isinstance(event, Final):
                finals.append(event)
                engine._take(Close(0.0))

    monkeypatch.setattr(engine._outbox, "put", put)
    serving = threading.Thread(target=engine._serve, args=(EngineConfig("", "", n_slots=1),), daemon=True)
    serving.start()
    serving.join(PATIENCE_S)
    assert [final.id for final in finals] == [1]
