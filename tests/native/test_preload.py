"""`backend.preload`: libraries are loaded before the model is known; none of their log is lost, and no failure is
fatal.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

PROBE = """
import logging, sys
from server.engine.llama import backend
from server.engine.seam.config import EngineConfig
lines = []
handler = logging.Handler(5)
handler.emit = lambda record: lines.append(record.getMessage())
backend.native_log.addHandler(handler)
backend.native_log.setLevel(5)
first, folder, model = sys.argv[1:]
backend.preload(first, *(["no-such-variant"] if first == folder + "/" else []))
assert lines == [], lines
engine = backend.open_backend(EngineConfig(model, folder, n_ctx=256), lambda progress: True)
print(sum("loaded CPU backend" in line for line in lines), engine.info.n_vocab > 0)
engine.close()
"""


@pytest.mark.parametrize("first", ["{folder}", "{folder}/", "{folder}/nothing"], ids=["right", "refused", "missing"])
def test_libraries_are_loaded_beforehand_and_their_lines_told_later(libs_folder, tiny_spm_model, first):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, first.format(folder=libs_folder), str(libs_folder), str(tiny_spm_model)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "True"], done.stderr
