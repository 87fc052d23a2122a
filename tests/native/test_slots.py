"""Saved slots over HTTP with the real libraries: exact counts, a restart in between, and files that must be refused.

`test_engine_commands.py` tests the engine's work, `unit/engine/test_slot_files.py` the file format, and
`api/test_slot_files.py` names and forms of answers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.engines import STEM
from tests.support import ServerProcess

FILE = {"filename": "slot_save_file.bin"}


@pytest.fixture
def start(serve, tmp_path):
    """`start(model)` serves with two slots that are saved in `tmp_path`."""
    return lambda model, *more: serve("-m", model, "-np", 2, "-c", 2048, "-t", 1, "--slot-save-path", tmp_path, *more)


def act(server: ServerProcess, id_slot: int, action: str, body: dict | None = None, status: int = 200) -> dict:
    answer = server.post(f"/slots/{id_slot}?action={action}", body or {})
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


@pytest.mark.covers("E15", "E16", "E17", "C38")
def test_a_slot_survives_a_restart_to_the_token(start, tiny_spm_model, tmp_path):
    server = start(tiny_spm_model)
    first = server.complete(STEM, 10, id_slot=1, return_tokens=True)
    n_kept = first["tokens_evaluated"] + first["tokens_predicted"] - 1  # the last token was never evaluated
    assert first["tokens_cached"] == n_kept
    saved = act(server, 1, "save", FILE)
    size = (tmp_path / FILE["filename"]).stat().st_size
    assert (saved["id_slot"], saved["filename"], saved["n_saved"], saved["n_written"]) == (
        1,
        FILE["filename"],
        n_kept,
        size,
    )
    assert saved["timings"]["save_ms"] >= 0
    server.stop()
    server = start(tiny_spm_model)
    restored = act(server, 0, "restore", FILE)
    assert (restored["id_slot"], restored["n_restored"], restored["n_read"]) == (0, n_kept, size)
    assert restored["timings"]["restore_ms"] >= 0
    again = server.complete(STEM, 10, id_slot=0, return_tokens=True)
    assert again["tokens"] == first["tokens"] and again["timings"]["prompt_n"] == 1
    assert act(server, 0, "erase") == {"id_slot": 0, "n_erased": n_kept}
    assert act(server, 0, "erase")["n_erased"] == 0
    assert server.complete(STEM, 10, id_slot=0)["timings"]["cache_n"] == 0


def test_the_conversation_goes_on_where_it_was_saved(start, tiny_spm_model):
    server = start(tiny_spm_model)
    first = server.complete(STEM, 10, id_slot=0, return_tokens=True)
    prompt = server.post("/tokenize", {"content": STEM, "add_special": True}).json()["tokens"] + first["tokens"]
    expected = server.complete(prompt, 10, cache_prompt=False, id_slot=1)["content"]
    act(server, 0, "save", FILE)
    for id_slot in (0, 1):
        act(server, id_slot, "erase")
    act(server, 1, "restore", FILE)
    result = server.complete(prompt, 10, id_slot=1)
    assert result["content"] == expected and result["timings"]["prompt_n"] == 1


def test_files_of_other_models_and_broken_ones_are_refused_and_harm_nothing(
    start, tiny_spm_model, tiny_bpe_model, recite_model, tmp_path
):
    server = start(tiny_spm_model)
    text = server.complete(STEM, 10, id_slot=0)["content"]
    n_written = act(server, 0, "save", FILE)["n_written"]
    data = (tmp_path / FILE["filename"]).read_bytes()
    broken = {
        "cut": data[:-1],
        "half": data[: n_written // 2],
        "head": data[:20],
        "empty": b"",
        "changed": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "longer": data + b"x",
        "foreign": tiny_bpe_model.read_bytes()[:4000],
        "header": data.replace(b'"tokens": [1, ', b'"tokens": [2, ', 1),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        error = act(server, 0, "restore", {"filename": name}, 400)
        assert name in error["message"] and error["type"] == "invalid_request_error", name
        again = server.complete(STEM, 10, id_slot=0)
        assert again["content"] == text, name
    server.stop()
    for model in (tiny_bpe_model, recite_model):
        other = start(model)
        error = act(other, 0, "restore", FILE, 400)
        assert "another model" in error["message"]
        assert other.complete("x", 3)["tokens_predicted"] == 3
        other.stop()


def test_a_renamed_model_is_the_same_model(start, tiny_spm_model, tmp_path):
    server = start(tiny_spm_model)
    server.complete(STEM, 3, id_slot=0)
    n_saved = act(server, 0, "save", FILE)["n_saved"]
    server.stop()
    shutil.copyfile(tiny_spm_model, tmp_path / "renamed.gguf")
    assert act(start(tmp_path / "renamed.gguf"), 0, "restore", FILE)["n_restored"] == n_saved


def test_a_slot_larger_than_the_server_s_is_refused(start, serve, tiny_spm_model, tmp_path):
    server = start(tiny_spm_model)
    server.complete(STEM * 8, 3, id_slot=0)
    act(server, 0, "save", FILE)
    server.stop()
    small = serve("-m", tiny_spm_model, "-np", 2, "-c", 256, "-t", 1, "--slot-save-path", tmp_path)
    assert "128" in act(small, 0, "restore", FILE, 400)["message"]
    assert small.complete("x", 3)["tokens_predicted"] == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only on Linux: a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("only on machines where the tests may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_the_older_file(serve, tiny_spm_model, small_disk):
    server = serve("-m", tiny_spm_model, "-c", 2048, "-t", 1, "--slot-save-path", small_disk)
    server.complete("the cat", 3)
    older = act(server, 0, "save", FILE)
    server.complete(STEM * 12, 3)
    error = act(server, 0, "save", FILE, 500)
    assert "disk is full" in error["message"] and FILE["filename"] in error["message"]
    assert [path.name for path in small_disk.iterdir()] == [FILE["filename"]], "nothing half-written is left"
    assert act(server, 0, "restore", FILE)["n_restored"] == older["n_saved"]
    assert server.complete("the cat", 3)["timings"]["prompt_n"] == 1
    server.stop()
