"""`engine.client`: streams whose events are sent by the transport's thread while their reader sleeps."""

from __future__ import annotations

import threading

from server.engine.client import engine_client as client_module
from server.engine.seam.task import Cancel, Failure, Final, Frame, Piece, TokenProbs
from tests.fakes import PATIENCE_S
from tests.support import wait_until
from tests.unit.engine.client.test_engine_client import drain, final, ready, submit


class Diverted:
    """A stream whose reader is a thread of its own: `log` has what was sent for it and what it read, in order."""

    def __init__(self, n: int = 1, silence_s: float | None = None) -> None:
        self.client, self.transport = ready()
        self.results, self.ids = submit(self.client, n)
        self.log: list = []
        self.takes = True
        self.fault: Exception | None = None
        self.results.divert(self.send, lambda: self.log.append("resumed"))
        self.outcome: BaseException | None = None
        self.thread = threading.Thread(target=self.read, args=(silence_s,), daemon=True)

    def start(self) -> Diverted:
        self.thread.start()
        self.wait()
        return self

    def wait(self) -> None:
        """Until the reader sleeps."""
        wait_until(lambda: self.results._is_waiting, "the reader sleeps", every=0.001)

    def read(self, silence_s: float | None) -> None:
        try:
            with self.results:
                self.log += self.results.iterate_events(silence_s)
        except Exception as error:
            self.outcome = error

    def send(self, events: list) -> bool:
        if self.fault is not None:
            raise self.fault
        self.log.append(("sent", [event.text for event in events]))
        return self.takes

    def frame(self, *events: object) -> None:
        self.client.dispatch(Frame(events))

    def end(self) -> list:
        self.frame(*(final(id_task) for id_task in self.ids))
        self.thread.join(PATIENCE_S)
        return [entry for entry in self.log if entry != "resumed"]


def test_a_waiting_reader_is_not_woken_for_what_can_be_sent_for_it():
    d = Diverted(2).start()
    d.frame(Piece(d.ids[0], (1,), "a"), Piece(d.ids[1], (2,), "b"), Piece(d.ids[0], (3,), "c"))
    assert d.log == [("sent", ["a", "b", "c"])]  # one frame is one send
    d.frame(Piece(d.ids[0], (4,), "d"))
    assert d.log[1:] == [("sent", ["d"])]
    assert d.end()[2:] == [final(id_task) for id_task in d.ids]


def test_the_end_takes_along_what_came_with_it():
    d = Diverted().start()
    piece = Piece(d.ids[0], (1,), "a")
    d.frame(piece, final(d.ids[0]))
    d.thread.join(PATIENCE_S)
    assert d.log == ["resumed", piece, final(d.ids[0])]


def test_nothing_passes_the_end_of_another_answer_that_the_reader_has_been_woken_for():
    d = Diverted(2)
    d.results._is_waiting = True  # it sleeps, and is slow to wake
    d.frame(first := Piece(d.ids[1], (1,), "a"), final(d.ids[0]))
    d.frame(second := Piece(d.ids[1], (2,), "b"))
    d.frame(final(d.ids[1]))
    assert d.log == []
    assert list(d.results.iterate_events(None)) == [first, final(d.ids[0]), second, final(d.ids[1])]


def test_a_full_socket_wakes_the_reader_which_goes_on_in_order():
    d = Diverted().start()
    d.takes = False
    d.frame(Piece(d.ids[0], (1,), "a"))
    d.wait()  # it has dealt with its client, and sleeps again
    assert d.log == [("sent", ["a"]), "resumed"]
    d.takes = True
    d.frame(Piece(d.ids[0], (2,), "b"))
    assert d.end() == [("sent", ["a"]), ("sent", ["b"]), final(d.ids[0])]


def test_nothing_is_sent_for_a_reader_that_is_at_work():
    d = Diverted()
    d.results._queue.put(([first := Piece(d.ids[0], (1,), "a")], 0))
    events = d.results.iterate_events(None)
    assert next(events) == first  # it has that in its hands
    d.frame(second := Piece(d.ids[0], (2,), "b"))
    d.frame(final(d.ids[0]))
    assert [entry for entry in d.log if entry != "resumed"] == []
    assert d.results.has_more
    assert list(events) == [second, final(d.ids[0])] and not d.results.has_more


def test_what_takes_long_to_write_is_left_to_the_reader_and_nothing_passes_it():
    """Others' events come behind it on the transport's thread."""
    d = Diverted().start()
    probs = TokenProbs(1, 1.0, 0.0, (), tuple((i, 0.0) for i in range(client_module.MAX_DIVERTED + 1)))
    d.frame(large := Piece(d.ids[0], (1,), "a", (probs,)))
    d.frame(small := Piece(d.ids[0], (2,), "b"))
    told = [entry for entry in d.end() if entry != "resumed"]
    assert told in ([large, ("sent", ["b"]), final(d.ids[0])], [large, small, final(d.ids[0])])


def test_what_goes_wrong_in_sending_is_the_reader_s_error_and_nobody_else_s():
    d = Diverted().start()
    other, (id_other,) = submit(d.client)
    d.fault = ZeroDivisionError("a bug")
    d.frame(Piece(d.ids[0], (1,), "a"), Piece(id_other, (1,), "b"), final(id_other))
    d.thread.join(PATIENCE_S)
    assert d.outcome is d.fault
    assert Cancel(d.ids[0]) in d.transport.posted
    assert [type(event) for event in drain(other)] == [Piece, Final]


def test_a_failure_and_a_cancel_reach_a_waiting_reader():
    d = Diverted().start()
    d.frame(Piece(d.ids[0], (1,), "a"), Failure(d.ids[0], 500, "broken"))
    d.thread.join(PATIENCE_S)
    assert d.outcome.status == 500
    d = Diverted().start()
    d.results.cancel()
    d.thread.join(PATIENCE_S)
    assert d.outcome.status == 499


def test_silence_counts_from_what_was_sent_for_the_reader(monkeypatch):
    """A stream that is written by another thread isn't silent, though its own thread has nothing to do."""
    now = [0.0]
    monkeypatch.setattr(client_module.time, "monotonic", lambda: now[0])
    d = Diverted()

    class Queue:
        """Nobody puts anything: each wait takes as long as it may."""

        waits: list = []

        def empty(self) -> bool:
            return True

        def put(self, batch: object) -> None:
            raise AssertionError("the reader was woken")

        def get(self, timeout: float) -> object:
            self.waits.append(timeout)
            now[0] += timeout / 2
            if len(self.waits) < 3:
                d.frame(Piece(d.ids[0], (1,), "a"))
            now[0] += timeout / 2
            raise client_module.Empty

    d.results._queue = Queue()
    assert next(d.results.iterate_events(8.0)) is None
    assert Queue.waits == [8.0, 4.0, 6.0] and now[0] == 18.0
