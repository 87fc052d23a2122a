"""Deadlines and sends on one client's socket, with a scripted socket and clock."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.memory import Budget
from server.web.http1 import wire
from server.web.http1.head import NO_BODY, Framing
from server.web.http1.wire import ClientGone, ClientSlow, Wire
from server.web.limits import Limits

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = Limits(head_s=10, idle_s=100, body_s=5, body_rate=10, write_s=7, write_slice=4, body_bytes=1000)


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class ScriptedSocket:
    """Gives `pieces` (bytes, an exception, or (seconds, bytes)); notes timeouts and what is sent."""

    def __init__(self, clock: Clock, pieces: list) -> None:
        self.clock, self.pieces = clock, pieces
        self.timeout: float | None = None
        self.timeouts: list[float] = []
        self.sent: list[bytes] = []

    def settimeout(self, seconds: float) -> None:
        self.timeout = seconds

    def gettimeout(self) -> float | None:
        return self.timeout

    def recv(self, _n_bytes: int) -> bytes:
        self.timeouts.append(self.timeout)
        piece = self.pieces.pop(0)
        seconds, data = piece if isinstance(piece, tuple) else (0, piece)
        if seconds > self.timeout:
            self.clock.now += self.timeout
            raise TimeoutError
        self.clock.now += seconds
        if isinstance(data, Exception):
            raise data
        return data

    def sendall(self, data: bytes) -> None:
        self.timeouts.append(self.timeout)
        if self.pieces and isinstance(self.pieces[0], Exception):
            raise self.pieces.pop(0)
        self.sent.append(bytes(data))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(wire, "time", clock)
    return clock


def wire_of(clock: Clock, *pieces: object) -> tuple[Wire, ScriptedSocket]:
    sock = ScriptedSocket(clock, list(pieces))
    return Wire(sock, LIMITS), sock


def yes() -> bool:
    return True


def test_a_head_that_drips_has_one_deadline_for_all_of_it(clock):
    client, sock = wire_of(clock, *[(2, HEAD[i : i + 1]) for i in range(len(HEAD))])
    with pytest.raises(ClientSlow):
        client.read_head(yes)
    assert sock.timeouts == [10, 10, 8, 6, 4, 2]


def test_a_kept_connection_may_rest_longer_than_a_new_one(clock):
    client, _ = wire_of(clock, (9, HEAD), (99, HEAD), (101, HEAD))
    assert client.read_head(yes).method == client.read_head(yes).method == "GET"
    assert client.read_head(yes) is None
    silent, _ = wire_of(clock, (11, HEAD))
    assert silent.read_head(yes) is None


def test_pipelined_requests_are_read_without_waiting(clock):
    client, sock = wire_of(clock, HEAD + b"hello" + HEAD)
    client.read_head(yes)
    assert client.read_body(Framing("length", 5), Budget(100)) == b"hello"
    assert client.read_head(yes).method == "GET"
    assert len(sock.timeouts) == 1


@pytest.mark.parametrize("end", [b"", ConnectionResetError(), BrokenPipeError()])
def test_a_client_that_leaves(clock, end):
    assert wire_of(clock, end)[0].read_head(yes) is None
    with pytest.raises(ClientGone):
        wire_of(clock, HEAD[:5], end)[0].read_head(yes)
    with pytest.raises(ClientGone):
        wire_of(clock, b"he", end)[0].read_body(Framing("length", 5), Budget(100))


def test_a_body_that_makes_progress_gets_more_time_and_one_that_stalls_does_not(clock):
    # 5 s of grace and 10 bytes a second: 100 bytes may take 15 s
    client, _ = wire_of(clock, *[(0.14, b"x")] * 100)
    assert len(client.read_body(Framing("length", 100), Budget(100))) == 100
    with pytest.raises(ClientSlow):
        wire_of(clock, *[(0.16, b"x")] * 100)[0].read_body(Framing("length", 100), Budget(100))
    with pytest.raises(ClientSlow):
        wire_of(clock, b"x", (5.2, b"x"))[0].read_body(Framing("length", 2), Budget(100))


def test_the_budget_is_taken_as_bytes_come_and_given_back_after_a_failure(clock):
    budget = Budget(10)
    assert wire_of(clock, b"12345678")[0].read_body(Framing("length", 8), budget)
    assert budget.n_used == 8
    with pytest.raises(ApiError) as caught:
        wire_of(clock, b"12", b"345")[0].read_body(Framing("length", 900), budget)
    assert caught.value.status == 503 and caught.value.headers["Retry-After"]
    with pytest.raises(ClientGone):
        wire_of(clock, b"12", b"")[0].read_body(Framing("length", 900), budget)
    with pytest.raises(ApiError):
        wire_of(clock, b"2\r\n12\r\nx\r\n")[0].read_body(Framing("chunked"), budget)
    assert budget.n_used == 8
    assert wire_of(clock)[0].read_body(NO_BODY, budget) == b""


def test_a_short_answer_is_one_send_and_a_long_one_is_sliced(clock):
    client, sock = wire_of(clock)
    client.send(b"1234")
    client.send(b"123456789")
    assert sock.sent == [b"1234", b"1234", b"5678", b"9"]
    assert set(sock.timeouts) == {7}


@pytest.mark.parametrize("error", [TimeoutError(), BrokenPipeError(), ConnectionResetError(), OSError(9, "bad")])
def test_a_reader_that_is_dead_or_slow_is_gone(clock, error):
    with pytest.raises(ClientGone):
        wire_of(clock, error)[0].send(b"x")
