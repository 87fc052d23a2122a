"""The readers of `tests/guided`: random changes for a moment in every run; in the long form (`LLAMA_SRV_TEST_LONG=1`)
guided by coverage for minutes each (LLAMA_SRV_TEST_FUZZ_SECONDS sets the seconds per reader).
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest

from tests.guided.targets import MAX_BYTES, TARGETS, Target, checked
from tests.support import ROOT, need

N_CHANGED = 60
SECONDS = int(os.environ.get("LLAMA_SRV_TEST_FUZZ_SECONDS", "60"))
NAMES = tuple(TARGETS)


def changed(rng: random.Random, target: Target) -> bytes:
    """A seed with some bytes replaced, cut out, doubled, or a word put in."""
    data = bytearray(rng.choice(target.seeds()))
    for _ in range(rng.randint(1, 6)):
        at, n = rng.randint(0, len(data)), rng.choice((1, 1, 2, 8, 30))
        data[at : at + rng.choice((0, n))] = rng.choice(
            (
                rng.randbytes(n),
                rng.choice(target.words).encode("latin-1"),
                bytes(data[at : at + n] * 2),
                b"",
                bytes(n),
                b"\xff" * n,
            )
        )
    return bytes(data[:MAX_BYTES])


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_some_changes_of_them(name):
    target, rng = TARGETS[name], random.Random(name)
    for data in (*target.seeds(), b"", *(changed(rng, target) for _ in range(N_CHANGED))):
        checked(target, data)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: atheris is made for it")
@pytest.mark.parametrize("name", NAMES)
def test_guided_by_coverage(name, capsys):
    need(has_atheris(), "atheris isn't there: pip install atheris, with Python 3.11 to 3.13")
    done = subprocess.run(
        [sys.executable, "-m", "tests.guided.run", name, "--seconds", str(SECONDS)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    with capsys.disabled():
        print(f"\n{name}: {re.search('number_of_executed_units: *([0-9]+)', done.stdout)[1]} inputs in {SECONDS} s")


def has_atheris() -> bool:
    """Whether the guided fuzzer can run here."""
    return (
        subprocess.run([sys.executable, "-c", "import atheris"], stderr=subprocess.DEVNULL, check=False).returncode == 0
    )
