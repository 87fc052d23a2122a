"""`--tune` on the real libraries: it measures steps and chooses settings, and the next start uses them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from ctypes_api.folder import read_folder
from server.errands.tuned import NOTHING, Tuned, recall, remember
from tests.e2e.test_kills import engine_pid
from tests.support import need, run_command

SHALLOW = r"1 row [\d.]+ ms, (\d+) rows [\d.]+ ms, (\d+) rows of a prompt [\d.]+ ms"
DEEP = r", 1 row behind 512 [\d.]+ ms, \d+ rows behind 512 [\d.]+ ms, \d+ rows of a prompt behind 512 [\d.]+ ms"


@pytest.mark.parametrize(("n_slots", "few"), [(1, 8), (3, 3)])
def test_one_library_is_measured_where_it_is_named(tiny_spm_model, n_slots: int, few: int):
    done = run_command(["-m", tiny_spm_model, "-np", str(n_slots), "--tune", "--cpu-variant", "auto"])
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(SHALLOW + DEEP, done.stdout.strip())
    assert found and int(found[1]) == few and int(found[2]) == 128


def test_models_whose_memory_cannot_be_cut_are_measured_too(tiny_mamba_model):
    done = run_command(["-m", tiny_mamba_model, "-np", "2", "--tune", "--cpu-variant", "auto"])
    assert done.returncode == 0 and re.fullmatch(SHALLOW, done.stdout.strip()), done


def test_a_model_that_writes_nothing_is_one_line(bert_embed_model):
    done = run_command(["-m", bert_embed_model, "--tune", "--cpu-variant", "auto"])
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[-1] == ("error: --tune is for models that generate text")


def test_a_library_that_is_not_there_is_one_line(tiny_spm_model):
    done = run_command(["-m", tiny_spm_model, "--tune", "--cpu-variant", "none such"])
    assert done.returncode == 2 and "error: " in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.fixture
def two_variants(libs_folder: Path, tmp_path: Path) -> Path:
    """The libraries with only two CPU plug-ins, the least and one that this CPU would take."""
    variants = read_folder(libs_folder).cpu_variants
    need({"x64", "sse42"} <= set(variants), "needs the CPU plug-ins x64 and sse42")
    folder = tmp_path / libs_folder.name
    shutil.copytree(
        libs_folder,
        folder,
        ignore=lambda _, names: {variants[name].name for name in variants if name not in ("x64", "sse42")} & set(names),
    )
    return folder


def test_what_is_found_is_kept_and_told(tiny_spm_model, two_variants: Path, tmp_path: Path):
    environment = {"LLAMA_SRV_CACHE": str(tmp_path / "cache")}
    done = run_command(["-m", tiny_spm_model, "-t", "1", "--libs", two_variants, "--tune"], environment=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(Path(tiny_spm_model).name)
    assert [line.split()[0] for line in lines[1:4]] == ["auto", "sse42", "x64"]
    found = recall(str(tiny_spm_model), two_variants, environment)
    assert found.cpu_variant in (None, "sse42", "x64") and found.n_threads == -1
    assert ("nothing is faster" in done.stdout) is (found == NOTHING)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: sees a process's libraries in /proc")
@pytest.mark.parametrize(("options", "library"), [([], "x64"), (["--cpu-variant", "sse42"], "sse42")])
def test_the_next_start_takes_what_was_found(
    serve, tiny_spm_model, libs_folder: Path, tmp_path: Path, options: list, library: str
):
    variants = read_folder(libs_folder).cpu_variants
    need({"x64", "sse42"} <= set(variants), "needs the CPU plug-ins x64 and sse42")
    environment = {"LLAMA_SRV_CACHE": str(tmp_path / "cache")}
    remember(str(tiny_spm_model), variants["x64"], Tuned("x64"), environment)
    server = serve("-m", tiny_spm_model, "-t", 1, *options, environment=environment)
    maps = Path(f"/proc/{engine_pid(server)}/maps").read_text("utf-8")
    assert set(re.findall(r"libggml-cpu-(\w+)\.so", maps)) == {library}
    assert ("which --tune has found" in server.log) is (not options)
    assert server.complete("once", 4)["tokens_predicted"] == 4
