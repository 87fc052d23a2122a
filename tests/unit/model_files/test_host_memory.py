"""Free memory, from system files and commands of various machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from server.model_files import host_memory

MIB = 1 << 20
MEMINFO = "MemTotal:       16000000 kB\nMemFree:          500000 kB\nMemAvailable:    8192000 kB\n"


def machine(root: Path, **files: str) -> Path:
    """A root folder with these files; `__` is a slash."""
    for name, text in {"proc__meminfo": MEMINFO, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def test_linux_without_limits(tmp_path):
    assert host_memory.read_linux(machine(tmp_path)) == 8192000 * 1024
    assert (
        host_memory.read_linux(
            machine(tmp_path, proc__self__cgroup="0::/user.slice\n", sys__fs__cgroup__memory_max="max")
        )
        == 8192000 * 1024
    )


def test_linux_that_says_nothing(tmp_path):
    assert host_memory.read_linux(tmp_path) is None


def group(root: Path, folder: str, most: str, used: int, droppable: int, names: tuple[str, str]) -> None:
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(f"{most}\n")
    (path / names[1]).write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\n")


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_the_tightest_group_of_version_2_counts(tmp_path):
    machine(tmp_path, proc__self__cgroup="0::/a/b\n")
    group(tmp_path, "sys/fs/cgroup/a/b", "max", 0, 0, V2)
    group(tmp_path, "sys/fs/cgroup/a", str(2048 * MIB), 1024 * MIB, 100 * MIB, V2)
    assert host_memory.read_linux(tmp_path) == 1124 * MIB


def test_version_1_as_old_docker_has_it(tmp_path):
    machine(tmp_path, proc__self__cgroup="5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    group(tmp_path, "sys/fs/cgroup/memory", str(512 * MIB), 500 * MIB, 50 * MIB, V1)
    assert host_memory.read_linux(tmp_path) == 62 * MIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path):
    machine(tmp_path, proc__self__cgroup="0::/\n")
    group(tmp_path, "sys/fs/cgroup", str(10 * MIB), 20 * MIB, 0, V2)
    assert host_memory.read_linux(tmp_path) == 0


def test_vm_stat_of_a_mac():
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                  1000.\n"
        "Pages active:               50000.\nPages inactive:               200.\nPages speculative:             30.\n"
        "Pages wired down:            9000.\nPages purgeable:                4.\n"
    )
    assert host_memory.parse_vm_stat(text) == 16384 * 1234
    assert host_memory.parse_vm_stat("nothing of the kind") is None


@pytest.mark.skipif(sys.platform not in host_memory.READERS, reason="only on systems that tell")
def test_this_machine_has_some():
    assert host_memory.read_available() > MIB
