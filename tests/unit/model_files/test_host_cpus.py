"""The number of usable cores, from system files of various machines."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from server.engine.seam import config as engine_config
from server.engine.seam.config import EngineConfig, SpecConfig
from server.model_files import host_cpus


def machine(root: Path, groups: str, **files: str) -> Path:
    """A root folder with these files; `__` is a slash, `D` a dot."""
    for name, text in {"proc__self__cgroup": groups, **files}.items():
        path = root / name.replace("__", "/").replace("D", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


@pytest.mark.parametrize(
    "groups, files, cores",
    [
        ("0::/", {}, []),
        ("0::/", {"sys__fs__cgroup__cpuDmax": "max 100000"}, []),
        ("0::/", {"sys__fs__cgroup__cpuDmax": "150000 100000"}, [1.5]),  # in a container
        (
            "0::/a/b",
            {"sys__fs__cgroup__a__cpuDmax": "200000 100000", "sys__fs__cgroup__a__b__cpuDmax": "50000 50000"},
            [1.0, 2.0],
        ),
        ("0::/", {"sys__fs__cgroup__cpuDmax": "nonsense"}, []),
        ("0::/", {"sys__fs__cgroup__cpuDmax": "5 0"}, []),
        (
            "3:cpu,cpuacct:/",
            {"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000"},
            [],
        ),
        (
            "5:memory:/x\n3:cpu,cpuacct:/docker/x",
            {
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "250000",  # old Docker
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
            },
            [2.5],
        ),
        (
            "3:cpu:/x",
            {
                "sys__fs__cgroup__cpu__x__cpu.cfs_quota_us": "25000",
                "sys__fs__cgroup__cpu__x__cpu.cfs_period_us": "100000",
            },
            [0.25],
        ),
        ("4:cpuset:/\n0::/", {}, []),
    ],
)
def test_quotas_of_control_groups_count_in_both_versions(tmp_path, groups, files, cores):
    assert list(host_cpus.read_linux_quotas(machine(tmp_path, groups, **files))) == cores


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert list(host_cpus.read_linux_quotas(tmp_path)) == []


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores the process may run on, and its quotas."""

    def set_to(n_allowed: int, *quotas: float) -> None:
        monkeypatch.setattr(host_cpus, "count_allowed_cores", lambda: n_allowed)
        monkeypatch.setattr(host_cpus, "QUOTAS", {sys.platform: lambda: iter(quotas)})

    return set_to


@pytest.mark.parametrize(
    "n_allowed, quotas, usable",
    [(8, (), 8), (8, (2.0, 3.0), 2), (2, (4.0,), 2), (8, (2.9,), 2), (8, (0.25,), 1), (1, (), 1)],
)
def test_the_default_is_the_whole_cores_that_both_leave(cores, n_allowed, quotas, usable):
    cores(n_allowed, *quotas)
    assert host_cpus.count_usable_cores() == usable
    config = EngineConfig("m", "l")
    assert engine_config.count_threads(config) == (usable, usable)
    assert engine_config.compute_patience(config) == 1


@pytest.mark.parametrize(
    "fields, threads, patience",
    [
        ({"n_threads": 4}, 4, 1),
        ({"n_threads": 8}, 8, 4),
        ({"n_threads_batch": 16}, 16, 16),
        ({"pool_params": {"cpumask": (0,)}}, 4, 16),
        ({"spec": SpecConfig(n_threads=8)}, 8, 4),
        ({"n_threads": 64}, 64, 256),
    ],
)
def test_more_threads_than_cores_buy_a_step_time(cores, fields, threads, patience):
    cores(4)
    config = EngineConfig("m", "l", **fields)
    assert (
        engine_config.count_threads_and_cores(config)[0] == threads
        and engine_config.compute_patience(config) == patience
    )


def test_a_part_of_a_core_is_no_crowd_for_one_thread(cores):
    cores(2, 0.5)
    assert engine_config.compute_patience(EngineConfig("m", "l", n_threads=1)) == 1


def test_this_process_s_own_cores_count():
    assert 1 <= host_cpus.count_usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only on Linux: where threads may run")
def test_a_process_kept_on_one_core_has_one():
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cpus)})
        assert host_cpus.count_usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cpus)


class Kernel:
    """kernel32 of a Windows where the process may use two processors, in a job with this rate."""

    def __init__(self, flags: int, rate: int) -> None:
        self._info = (flags, rate)
        self.GetCurrentProcess = type("Function", (), {"__call__": lambda self: 7})()

    def GetProcessAffinityMask(self, process, ours, all_of_them) -> int:
        ours._obj.value = 0b101
        return 1

    def QueryInformationJobObject(self, job, kind, info, size, length) -> int:
        assert (job, kind, size) == (None, 15, 8)
        info._obj[0], info._obj[1] = self._info
        return 1


@pytest.mark.parametrize("flags, rate, quotas", [(0, 5000, []), (1, 5000, []), (5, 2500, [0.25])])
def test_windows_tells_affinity_and_the_cap_of_a_container(monkeypatch, flags, rate, quotas):
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel(flags, rate), raising=False)
    assert host_cpus.read_windows_affinity() == 2
    assert list(host_cpus.read_windows_quotas()) == [part * os.cpu_count() for part in quotas]
