"""The check of a worker before it is used, with sockets that answer anything."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from server.engine.seam import workers
from server.engine.seam.workers import Worker, WorkerError, ask, find_reachable
from tests.support import PATIENCE

pytestmark = pytest.mark.covers("Y01")
GIB = 1 << 30


def answer(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def hello(major: int = workers.PROTOCOL) -> bytes:
    return answer(bytes([major, 3, 0, 0]) + bytes(24))


def memory(free: int, total: int) -> bytes:
    return answer(struct.pack("<QQ", free, total))


GOOD = [hello(), answer(struct.pack("<I", 2)), memory(GIB, 2 * GIB), memory(3, 4)]


@contextmanager
def worker(answers: list[bytes], piece: int = 1 << 20, then_silent: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """Answers each command with the next of `answers`, cut into pieces; its address, and the commands it has got."""
    got: list[bytes] = []
    leave = threading.Event()

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            if not answers:
                client.recv(33, socket.MSG_WAITALL)  # the first command: what is unread would reset the connection
            for data in answers:
                head = client.recv(9, socket.MSG_WAITALL)
                if len(head) < 9:
                    return
                got.append(head + client.recv(struct.unpack("<Q", head[1:])[0], socket.MSG_WAITALL))
                for start in range(0, len(data), piece):
                    client.sendall(data[start : start + piece])
            if then_silent:
                leave.wait(PATIENCE)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", got
        leave.set()
        thread.join(PATIENCE)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_worker_says_what_memory_its_devices_have(piece):
    with worker(GOOD, piece) as (address, got):
        assert ask(address) == Worker(address, ((GIB, 2 * GIB), (3, 4)))
    assert [command[0] for command in got] == [14, 15, 11, 11]
    assert [command[9:] for command in got] == [bytes(24), b"", b"\0\0\0\0", b"\1\0\0\0"]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([hello(6)], r"uses version 6\.3 of the RPC protocol, this program version 7: run the same"),
        ([hello(), answer(struct.pack("<I", 0))], "has 0 devices"),
        ([hello(), answer(struct.pack("<I", 2**32 - 1))], "has 4294967295 devices"),
        ([], "closed the connection"),
        ([hello()[:20]], "closed the connection"),
        ([hello(), GOOD[1], memory(1, 2)[:9]], "closed the connection"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "not from an RPC worker, or from another version"),
        ([struct.pack("<Q", 2**63) + bytes(100)], "not from an RPC worker, or from another version"),
    ],
    ids=str,
)
def test_what_answers_in_another_way_is_refused_with_its_address_and_the_reason(answers, reason):
    with worker(answers) as (address, _), pytest.raises(WorkerError, match=reason) as caught:
        ask(address)
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_who_does_not_answer_in_time_is_refused():
    with worker([hello()[:20]], then_silent=True) as (address, _), pytest.raises(WorkerError, match="doesn't answer"):
        ask(address, timeout_s=0.05)


def test_each_that_cannot_be_used_is_named_and_the_others_are_found():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    with worker(GOOD) as (address, _):
        found, faults = find_reachable([closed, address])
    assert [one.address for one in found] == [address]
    assert len(faults) == 1 and closed in faults[0] and "can't be reached" in faults[0]
