"""What systemd wants to hear from a service: ready, alive, stopping. Main thread; imports nothing of the product.

The protocol is one datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names (sd_notify(3)); not worth a
library. Without that variable, and where there are no UNIX sockets, everything here does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping


class Notifier:
    """`watchdog_s` is how often systemd wants to hear that the service is alive; 0 for never."""

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.is_wanted = bool(path) and hasattr(socket, "AF_UNIX")
        self.watchdog_s = _watchdog_s(environ) if self.is_wanted else 0.0
        self._clock = clock
        self._t_alive = -1e9

    def send(self, **fields: object) -> bool:
        """One message; False if nobody took it. A service must not fail because its manager doesn't listen."""
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

    def alive(self) -> None:
        """The service makes progress; to be called often, sends twice as often as systemd demands."""
        now = self._clock()
        if self.watchdog_s and now - self._t_alive >= self.watchdog_s / 2:
            self._t_alive = now
            self.send(WATCHDOG=1)

    def reloading(self) -> None:
        """A reload begins; `READY=1` ends it."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """The interval, if it is meant for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0
