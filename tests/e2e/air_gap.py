"""Starts a command in a network namespace with nothing but the loopback interface.

    unshare -rn python tests/e2e/air_gap.py COMMAND...

The loopback interface of a new namespace is down. This script brings it up, like `ip link set lo up`, and then replaces
itself by the command.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
REQUEST = "16sH22x"


def bring_up(name: bytes) -> None:
    """Set a network interface up; OSError without the right to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack(REQUEST, name, 0))
        flags = struct.unpack(REQUEST, answer)[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack(REQUEST, name, flags | IFF_UP))


if __name__ == "__main__":
    bring_up(b"lo")
    os.execvp(sys.argv[1], sys.argv[1:])
