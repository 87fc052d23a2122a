"""Libraries that require a newer glibc than they need, with a real compiler and a real loader."""

from __future__ import annotations

import ctypes
import math
import platform
import shutil
import subprocess
import sys

import pytest

from tests.support import build_script, need

elf_versions = build_script("elf_versions")
one_file = build_script("one_file")
SOURCE = """
#include <math.h>
double both(double a, double b) { return hypot(a, b) + sqrt(a); }
"""


@pytest.fixture
def library(tmp_path):
    """A library that wants hypot of glibc 2.35, and sqrt of the oldest."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("only on Linux")
    need(shutil.which("cc"), "there is no C compiler")
    (tmp_path / "a.c").write_text(SOURCE)
    path = tmp_path / "a.so"
    command = ["cc", "-shared", "-fPIC", "-O0", "-o", str(path), str(tmp_path / "a.c"), "-lm"]
    subprocess.run(command, check=True, timeout=60)
    if one_file.find_newest_glibc(path) != 35:
        pytest.skip("only with glibc 2.35 or newer")
    return path


def test_a_function_that_only_changed_its_version_is_wanted_in_the_first_one(library):
    assert elf_versions.lower(library) == [b"GLIBC_2.35"]
    assert one_file.find_newest_glibc(library) < 35
    both = ctypes.CDLL(str(library)).both
    both.restype, both.argtypes = ctypes.c_double, [ctypes.c_double] * 2
    assert both(9.0, 12.0) == 18.0 and both(1e200, 1e200) == math.hypot(1e200, 1e200) + 1e100
    assert elf_versions.lower(library) == []


def test_a_version_that_something_else_needs_stays(library, monkeypatch):
    before = library.read_bytes()
    monkeypatch.setattr(elf_versions, "SAME", {(b"other", b"GLIBC_2.35")})
    assert elf_versions.lower(library) == [] and library.read_bytes() == before


def test_other_files_are_left_alone(tmp_path):
    for data in (b"", b"#!/bin/sh", b"\x7fELF\x01\x01" + bytes(100)):
        (tmp_path / "x").write_bytes(data)
        assert elf_versions.lower(tmp_path / "x") == []
