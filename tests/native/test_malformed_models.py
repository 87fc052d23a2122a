"""Malformed models in the real libllama: none that the check accepts may end a process.

The second test shows why the check is needed: the refused faults do end libllama.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import StartError
from server.model_files.checks import check_model_file
from tests.gguf_edit import Parts, take_apart
from tests.malformed import FAULTS, LEFT_TO_LIBLLAMA, SPM
from tests.support import PATIENCE

NUMBERS = (0, 1, 2, 3, 7, 31, 33, 64, 255, 4096, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
PROBE = Path(__file__).with_name("loader_probe.py")


def outcomes(libs_folder: Path, paths: list[Path]) -> Iterator[tuple[Path, str]]:
    """(file, `ok`, `refused: ...` or `died`) for each; the child is started anew after a death."""
    rest = list(paths)
    while rest:
        child = subprocess.run(
            [sys.executable, str(PROBE), str(libs_folder), *map(str, rest)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
        lines = [line for line in child.stdout.splitlines() if line.startswith(("begin ", "ok", "refused: "))]
        results = [line for line in lines if not line.startswith("begin ")]
        if len(results) < len(rest):
            assert child.returncode != 0 and len(lines) > 2 * len(results), child.stderr[-2000:]
            results.append(f"died ({child.returncode}): {child.stderr[-500:]}")
        yield from zip(rest, results)
        rest = rest[len(results) :]


def spoilt(request: pytest.FixtureRequest, folder: Path, faults: tuple) -> dict[Path, str]:
    """A file per fault, and the fault's name."""
    files = {}
    for i, fault in enumerate(faults):
        parts = take_apart(request.getfixturevalue(fault.base))
        fault.spoil(parts)
        files[parts.write(folder / f"{i}.gguf")] = fault.name
    return files


def test_libllama_survives_what_the_check_leaves_to_it(request, tmp_path, libs_folder):
    files = spoilt(request, tmp_path, LEFT_TO_LIBLLAMA)
    died = [(files[path], how) for path, how in outcomes(libs_folder, list(files)) if how.startswith("died")]
    assert died == []


def test_sound_models_pass_the_probe(request, libs_folder):
    """So that the other tests can't pass because nothing can be loaded at all."""
    paths = [request.getfixturevalue(name) for name in (SPM, "tiny_bpe_model", "bert_embed_model")]
    assert [how for _, how in outcomes(libs_folder, paths)] == ["ok"] * 3


@pytest.mark.parametrize(
    "name",
    [
        "no layers",
        "unknown rope scaling",
        "a token twice",
        "more used than there",
        "a byte without token",
        "no separator",
        "integer weights",
        "an f16 norm",
        "epsilon that is no number",
    ],
)
def test_what_the_check_refuses_ends_libllama(request, tmp_path, libs_folder, name):
    files = spoilt(request, tmp_path, tuple(fault for fault in FAULTS if fault.name == name))
    assert len(files) == 1
    assert [how.split(" ")[0] for _, how in outcomes(libs_folder, list(files))] == ["died"]


@pytest.mark.parametrize("base", [SPM, "bert_embed_model"])
def test_random_numbers_in_a_header_never_end_libllama_once_they_pass(request, tmp_path, libs_folder, base):
    """Values and tensor rows of a tiny model replaced by numbers that have caused trouble elsewhere."""
    chance = random.Random(11)
    source = request.getfixturevalue(base)
    paths = []
    for i in range(200):
        parts = take_apart(source)
        for _ in range(chance.randint(1, 2)):
            _mutate(parts, chance)
        path = parts.write(tmp_path / f"{i}.gguf")
        try:
            check_model_file(str(path))
        except StartError:
            path.unlink()
        else:
            paths.append(path)
    assert len(paths) > 50
    died = [(path, how) for path, how in outcomes(libs_folder, paths) if how.startswith("died")]
    assert died == []


def _mutate(parts: Parts, chance: random.Random) -> None:
    if chance.random() < 0.7:
        at = chance.choice([at for at, (_, value) in enumerate(parts.pairs) if len(value) == 8])
        key, value = parts.pairs[at]
        parts.pairs[at] = (key, value[:4] + struct.pack("<I", chance.choice(NUMBERS)))
    else:
        info = chance.choice(parts.tensors)
        info.dims = tuple(chance.sample(info.dims, len(info.dims))) + (1,) * chance.randint(0, 1)
        info.kind = chance.choice([0, 0, 26])
