"""Tells systemd the state of the service. Main thread; imports nothing of the program.

The protocol (sd_notify(3)) sends a datagram of `NAME=value` lines to the socket in `NOTIFY_SOCKET`. Without that
variable or UNIX sockets, nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping


class Notifier:
    """`watchdog_s` is the longest time between two signs of life that systemd allows, in seconds; 0 for none."""

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.is_wanted = bool(path) and hasattr(socket, "AF_UNIX")
        self.watchdog_s = _read_watchdog_s(environ) if self.is_wanted else 0.0
        self._clock = clock
        self._t_alive = -1e9

    def send(self, **fields: object) -> bool:
        """Send one message. Returns False if it could not be sent."""
        if not self.is_wanted:
            return False
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(self._address)
                sock.send(text.encode("utf-8", "replace"))
        except OSError:
            return False
        return True

    def report_alive(self) -> None:
        """Send a sign of life, at most twice in `watchdog_s`."""
        now = self._clock()
        if self.watchdog_s and now - self._t_alive >= self.watchdog_s / 2:
            self._t_alive = now
            self.send(WATCHDOG=1)

    def report_reload(self) -> None:
        """Report that a reload begins; `READY=1` ends it."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def _read_watchdog_s(environ: Mapping[str, str]) -> float:
    """systemd's interval in seconds; 0 if there is none for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0
