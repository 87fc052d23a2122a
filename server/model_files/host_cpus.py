"""The number of cores that this process may use. Standard library only.

Both processes use it: for numbers of threads, for the warning about too many, and for a step's time limit. The
affinity limits the cores, a container's quota their time. `count_usable_cores` rounds down: compute threads spin while
they wait for each other, so a thread without a whole core costs far more than it saves.

Not taken: the number of physical cores. The benefit of hyper-threads depends on the machine; `--tune` measures it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

JOB_CPU_RATE = 15  # JobObjectCpuRateControlInformation
RATE_ENABLED, RATE_HARD_CAP = 1, 4
WHOLE_RATE = 10_000  # CpuRate for all of the processors' time


def count_usable_cores() -> int:
    """The number of whole cores, at least one."""
    return max(int(count_available()), 1)


def count_available() -> float:
    """The number of cores, with fractions."""
    return min([float(count_allowed_cores()), *QUOTAS.get(sys.platform, lambda: ())()])


def count_allowed_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    if sys.platform == "win32":
        return read_windows_affinity() or os.cpu_count() or 1
    return os.cpu_count() or 1


def read_linux_quotas(root: Path = Path("/")) -> Iterator[float]:
    """The quotas of this process's control groups, in cores."""
    for version, folder in find_control_groups(root, "cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota, period = (
                    (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
                )
            cores = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # no limit (the text "max"), or not readable
        if cores > 0:  # -1: no limit
            yield cores


def find_control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of the control groups that limit `controller` for this process, from its own group upwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            version, top = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, top = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        yield from ((version, top.joinpath(*parts[:n])) for n in range(len(parts), -1, -1))


def read_windows_affinity() -> int:
    """The number of processors in the affinity mask; 0 if it is unknown, as for several groups of 64."""
    import ctypes  # here, because only Windows needs it

    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    ours, all_of_them = ctypes.c_size_t(), ctypes.c_size_t()
    done = kernel.GetProcessAffinityMask(
        ctypes.c_void_p(kernel.GetCurrentProcess()), ctypes.byref(ours), ctypes.byref(all_of_them)
    )
    return bin(ours.value).count("1") if done else 0


def read_windows_quotas() -> Iterator[float]:
    """The quota of this process's job (a container), in cores."""
    import ctypes

    info = (ctypes.c_uint32 * 2)()  # flags, and CpuRate: ten-thousandths of all processors' time
    done = ctypes.WinDLL("kernel32").QueryInformationJobObject(  # type: ignore[attr-defined]
        None, JOB_CPU_RATE, ctypes.byref(info), ctypes.sizeof(info), None
    )
    if done and info[0] & RATE_ENABLED and info[0] & RATE_HARD_CAP:
        yield info[1] / WHOLE_RATE * (os.cpu_count() or 1)


QUOTAS: dict[str, Callable[[], Iterator[float]]] = {"linux": read_linux_quotas, "win32": read_windows_quotas}
