"""Workers: machines that lend their devices over llama.cpp's RPC backend. Which of them answer, and what they have.

Both processes ask, each on its own thread: the server's before it starts (a mistake in an address is told at once) and
for the plan of its memory, the engine's before it loads, because the library ends its process where a worker is gone or
of another version. Asking takes a connection of its own for a moment; a worker serves one client at a time. Plain
sockets, standard library only. Not taken: asking through the library, which only a process that may die can do.

A command is one byte, the length of its data (8 bytes, little endian) and the data; an answer is the same without the
first byte (ggml-rpc.cpp of llama.cpp v0.5.0).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from server.records import record

PROTOCOL = 7
"""Major version of the protocol of the libraries that this program comes with."""
TIMEOUT_S = 5.0
MAX_DEVICES = 64
HELLO, DEVICE_COUNT, DEVICE_MEMORY = 14, 15, 11
HELLO_DATA = bytes(24)  # what the connection could do besides TCP: nothing
LENGTH, COUNT, MEMORY = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<QQ")


@record(frozen=True)
class Worker:
    """One that answered: for each of its devices, bytes that are free and bytes in all."""

    address: str
    devices: tuple[tuple[int, int], ...]


class WorkerError(Exception):
    """A worker can't be used; one line with its address and the reason."""


def ask(address: str, timeout_s: float = TIMEOUT_S) -> Worker:
    """What the worker at `host:port` has. WorkerError."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as sock:
            version = _command(sock, HELLO, HELLO_DATA, 4 + len(HELLO_DATA))
            if version[0] != PROTOCOL:
                raise WorkerError(
                    f"the worker at {address} speaks version {version[0]}.{version[1]} of the protocol, and this "
                    f"program {PROTOCOL}: run the same version at both ends"
                )
            (n_devices,) = COUNT.unpack(_command(sock, DEVICE_COUNT, b"", COUNT.size))
            if not 0 < n_devices <= MAX_DEVICES:
                raise WorkerError(f"the worker at {address} has {n_devices} devices")
            return Worker(address, tuple(_memory(sock, i) for i in range(n_devices)))
    except TimeoutError:
        raise WorkerError(f"the worker at {address} doesn't answer: it hangs, or serves somebody else") from None
    except OSError as error:
        raise WorkerError(f"the worker at {address} can't be reached: {error.strerror or error}") from None


def reachable(addresses: Sequence[str]) -> tuple[list[Worker], list[str]]:
    """The workers that can be used, and a line about each that can't."""
    workers, faults = [], []
    for address in addresses:
        try:
            workers.append(ask(address))
        except WorkerError as error:
            faults.append(str(error))
    return workers, faults


def _memory(sock: socket.socket, device: int) -> tuple[int, int]:
    free, total = MEMORY.unpack(_command(sock, DEVICE_MEMORY, COUNT.pack(device), MEMORY.size))
    return free, total


def _command(sock: socket.socket, command: int, data: bytes, n_answer: int) -> bytes:
    """Send one command; its answer, which has `n_answer` bytes."""
    sock.sendall(bytes([command]) + LENGTH.pack(len(data)) + data)
    (length,) = LENGTH.unpack(_receive(sock, LENGTH.size))
    if length != n_answer:
        raise ConnectionError("what answers there is no worker, or one of another version")
    return _receive(sock, n_answer)


def _receive(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise ConnectionError("it closed the connection")
        data += part
    return data
