"""Asks RPC workers for their devices. A worker is a machine that lends its devices over llama.cpp's RPC backend.

The web process asks when the server starts, to report a wrong address at once, and before a load, to plan the memory.
The engine's process asks before it loads the model, because the library ends the process if a worker is gone or has
another version. The connection is short, since a worker serves one client at a time. Not taken: asking through the
library.

The protocol (ggml-rpc.cpp of llama.cpp v0.5.0): a command is one byte, the length of its data (8 bytes, little endian)
and the data. An answer is a length and data.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from server.records import record

PROTOCOL = 7
"""Major version of the protocol that this program's libraries use."""
TIMEOUT_S = 5.0  # for each call of the socket
MAX_DEVICES = 64
HELLO, DEVICE_COUNT, DEVICE_MEMORY = 14, 15, 11
HELLO_DATA = bytes(24)  # transports other than TCP: none
LENGTH, COUNT, MEMORY = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<QQ")


@record(frozen=True)
class Worker:
    """A worker that answered."""

    address: str
    devices: tuple[tuple[int, int], ...]  # (free bytes, all bytes) of each


class WorkerError(Exception):
    """A worker can't be used. The message is one line with its address and the reason."""


def ask(address: str, timeout_s: float = TIMEOUT_S) -> Worker:
    """Ask the worker at `host:port` for its devices. WorkerError if it can't be used."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as sock:
            version = _send_command(sock, HELLO, HELLO_DATA, 4 + len(HELLO_DATA))
            if version[0] != PROTOCOL:
                raise WorkerError(
                    f"the worker at {address} uses version {version[0]}.{version[1]} of the RPC protocol, this program "
                    f"version {PROTOCOL}: run the same llama.cpp version on both machines"
                )
            (n_devices,) = COUNT.unpack(_send_command(sock, DEVICE_COUNT, b"", COUNT.size))
            if not 0 < n_devices <= MAX_DEVICES:
                raise WorkerError(f"the worker at {address} has {n_devices} devices")
            return Worker(address, tuple(_read_memory(sock, i) for i in range(n_devices)))
    except TimeoutError:
        raise WorkerError(f"the worker at {address} doesn't answer: it hangs, or serves another client") from None
    except OSError as error:
        raise WorkerError(f"the worker at {address} can't be reached: {error.strerror or error}") from None


def find_reachable(addresses: Sequence[str]) -> tuple[list[Worker], list[str]]:
    """The workers that can be used, and an error message for each of the others."""
    workers, faults = [], []
    for address in addresses:
        try:
            workers.append(ask(address))
        except WorkerError as error:
            faults.append(str(error))
    return workers, faults


def _read_memory(sock: socket.socket, device: int) -> tuple[int, int]:
    free, total = MEMORY.unpack(_send_command(sock, DEVICE_MEMORY, COUNT.pack(device), MEMORY.size))
    return free, total


def _send_command(sock: socket.socket, command: int, data: bytes, n_answer: int) -> bytes:
    sock.sendall(bytes([command]) + LENGTH.pack(len(data)) + data)
    (length,) = LENGTH.unpack(_receive(sock, LENGTH.size))
    if length != n_answer:
        raise ConnectionError("the answer is not from an RPC worker, or from another version")
    return _receive(sock, n_answer)


def _receive(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise ConnectionError("it closed the connection")
        data += part
    return data
