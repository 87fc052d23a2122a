"""The available memory of this machine: the system's figure, or a container's if that is less.

Both processes use it. On Linux the page cache counts as available, and of the control groups the one with the least
room decides.

Not taken: ggml's figure for the CPU, the machine's total memory.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from server.model_files.host_cpus import find_control_groups

__all__ = ["read_available"]


def read_available() -> int | None:
    """Bytes that can be allocated without swapping; None if unknown."""
    return READERS.get(sys.platform, lambda: None)()


def read_linux(root: Path = Path("/")) -> int | None:
    """MemAvailable, or the room in a control group (version 2 or 1) if that is less."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"(?m)^MemAvailable:\s+(\d+) kB", text)
    return min([int(found[1]) * 1024, *_group_room(root)]) if found else None


NAMES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def _group_room(root: Path) -> Iterator[int]:
    """The bytes that each of this process's control groups still allows."""
    for version, folder in find_control_groups(root, "memory"):
        limit, used = NAMES[version]
        try:
            most = int((folder / limit).read_text(encoding="ascii"))
            taken = int((folder / used).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue  # no limit (the text "max"), or not readable
        droppable = re.search(r"(?m)^(?:total_)?inactive_file (\d+)", stat)
        yield max(most - taken + int(droppable[1] if droppable else 0), 0)


def read_mac() -> int | None:
    """The available memory according to `vm_stat`."""
    import subprocess  # here, because other systems have files for this

    try:
        text = subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_vm_stat(text)


def parse_vm_stat(text: str) -> int | None:
    """Bytes of the free, inactive, speculative and purgeable pages in `vm_stat`'s output."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"(?m)^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def read_windows() -> int | None:
    """ullAvailPhys of GlobalMemoryStatusEx."""

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *(
                (name, ctypes.c_uint64)
                for name in (
                    "total",
                    "available",
                    "total_page",
                    "available_page",
                    "total_virtual",
                    "available_virtual",
                    "extended",
                )
            ),
        ]

    status = Status(length=ctypes.sizeof(Status))
    done = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available) if done else None


READERS: dict[str, Callable[[], int | None]] = {"linux": read_linux, "darwin": read_mac, "win32": read_windows}
