"""GPU libraries on a machine without that GPU: one warning, and the CPU does the work.

A fake GPU plug-in that can't be loaded is put beside the real libraries. Real plug-ins without their driver (libcuda,
libcublas, libvulkan) fail in the same place.
"""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.tiny_models import RECITE_WORDS
from tests.unit.build_scripts.fake_packages import elf


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: the stand-in is an ELF file")
def test_a_gpu_that_cant_be_used_is_one_warning_and_the_text_is_the_same(serve, libs_folder, recite_model, tmp_path):
    libs = tmp_path / "linux-x64-cuda"
    shutil.copytree(libs_folder, libs, symlinks=True)
    (libs / "libggml-cuda.so").write_bytes(elf("libggml-cuda.so", ("libcuda.so.1",)))
    server = serve("-m", recite_model, "-t", 1, "--libs", libs, "-ngl", 99)
    assert server.complete("count: one", -1)["content"] == "".join(RECITE_WORDS[1:])
    warnings = [line for line in server.log.splitlines() if "libggml-cuda.so" in line]
    assert len(warnings) == 1 and "going on without it" in warnings[0], server.log
    assert "CPU (" in server.log and "weights" in server.log
