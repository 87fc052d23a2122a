"""`engine.slot_files`: a file is read exactly as written, or refused with a reason."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine.cache import slot_files
from server.errors import ApiError
from server.model_files.identity import settings_of
from tests.support import ROOT

TOKENS, LORA, STATE = [1, 2, 300], [[0, 0.5]], bytes(range(256)) * 5
MODEL = {"model": "tiny, 0123abc", "lora": "none", "mmproj": "none", "libraries": "0.5.0, 456def", "settings": {}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a slot.bin"
    slot_files.write(path, MODEL, TOKENS, LORA, memoryview(STATE))
    return path


def refusal(path, model: dict = MODEL) -> str:
    with pytest.raises(ApiError) as caught:
        slot_files.read(path, model)
    assert caught.value.status == 400 and path.name in str(caught.value) and str(path.parent) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "lora", "state"),
    [(TOKENS, LORA, STATE), ([], [], b""), ([0] * 5000, [[0, 1.0], [3, -0.25]], b"\x00" * 100_000)],
)
def test_what_was_written_is_read(tmp_path, tokens, lora, state):
    path = tmp_path / "slot"
    n_written = slot_files.write(path, MODEL, tokens, lora, memoryview(state))
    assert slot_files.read(path, MODEL) == slot_files.SavedSlot(tokens, lora, memoryview(state), n_written)
    assert os.path.getsize(path) == n_written
    assert os.listdir(tmp_path) == ["slot"], "the temporary file is gone"


@pytest.mark.covers("T20")
def test_a_slot_with_media_is_refused_without_a_projector(tmp_path):
    path, tokens = tmp_path / "slot", [1, -900, -901, 2]
    seeing = {**MODEL, "mmproj": "89abcdef"}
    slot_files.write(path, seeing, tokens, [], memoryview(b"x"))
    assert slot_files.read(path, seeing).tokens == tokens
    words = refusal(path)
    assert "images or sound" in words and "--mmproj" in words
    slot_files.write(path, seeing, [1, 2], [], memoryview(b"x"))
    assert "another projector" in refusal(path)


def test_writing_again_replaces_the_file(saved):
    slot_files.write(saved, MODEL, [7], [], memoryview(b"new"))
    assert slot_files.read(saved, MODEL).tokens == [7]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", "another model"),
        ("lora", "other adapters (--lora)"),
        ("mmproj", "another projector (--mmproj)"),
        ("libraries", "another build of llama.cpp"),
        ("one of a later version", "something else"),
    ],
)
def test_a_state_of_other_files_is_refused_and_both_are_named(saved, name, words):
    message = refusal(saved, {**MODEL, name: "other, 999"})
    assert words in message and (name not in MODEL or MODEL[name] in message and "other, 999" in message)


def test_a_file_of_the_earlier_format_is_refused_with_the_reason(saved):
    saved.write_bytes(b"llsrvkv1" + saved.read_bytes()[8:])
    assert "earlier version" in refusal(saved) and "save it again" in refusal(saved)


def test_where_a_context_was_shifted_comes_back(tmp_path):
    for at in (None, 0, 7):
        slot_files.write(tmp_path / "slot", MODEL, [1] * 10, [], memoryview(b"all"), shifted_at=at)
        assert slot_files.read(tmp_path / "slot", MODEL).shifted_at == at


ROPE = settings_of({"rope_freq_base": 2e4, "offload_kqv": False}, {"n_gpu_layers": 3})
TYPES = settings_of({"type_k": 8}, {})
OVERRIDE = settings_of({}, {"kv_overrides": (("llama.rope.freq_base", "float", 1.0),)})


@pytest.mark.parametrize(
    ("written", "read", "words"),
    [
        (ROPE, {}, "--rope-freq-base (saved: 20000.0; here: the default)"),
        ({}, ROPE, "--rope-freq-base (saved: the default; here: 20000.0)"),
        ({**ROPE, "rope_freq_base": 1e4}, ROPE, "--rope-freq-base (saved: 10000.0; here: 20000.0)"),
        (TYPES, {}, "--cache-type-k (saved: not the default; here: the default)"),
        ({}, OVERRIDE, "--override-kv"),
    ],
)
def test_a_state_computed_with_other_settings_is_refused(tmp_path, written, read, words):
    path = tmp_path / "slot"
    slot_files.write(path, {**MODEL, "settings": written}, TOKENS, LORA, memoryview(STATE))
    with pytest.raises(ApiError, match=re.escape(words)) as caught:
        slot_files.read(path, {**MODEL, "settings": read})
    assert caught.value.status == 400
    assert slot_files.read(path, {**MODEL, "settings": written}).tokens == TOKENS


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: files without a name")
def test_an_engine_that_is_killed_while_it_writes_leaves_nothing(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from server.engine.cache import slot_files\n"
        "with slot_files._open_new_file(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'x' * 100000); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "slot")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: files without a name")
def test_where_links_are_not_allowed_the_new_file_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *args, **options: (_ for _ in ()).throw(OSError(errno.EXDEV, "no")))
    slot_files.write(tmp_path / "slot", MODEL, TOKENS, LORA, memoryview(STATE))
    assert slot_files.read(tmp_path / "slot", MODEL).tokens == TOKENS and os.listdir(tmp_path) == ["slot"]


def test_where_files_need_a_name_the_new_one_is_a_neighbour_until_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(slot_files, "_open_nameless", lambda folder: None)
    slot_files.write(tmp_path / "slot", MODEL, TOKENS, LORA, memoryview(STATE))
    assert slot_files.read(tmp_path / "slot", MODEL).tokens == TOKENS and os.listdir(tmp_path) == ["slot"]
    with pytest.raises(ZeroDivisionError), slot_files._open_new_file(tmp_path / "slot") as stream:
        stream.write(b"half")
        assert len(os.listdir(tmp_path)) == 2
        raise ZeroDivisionError
    assert slot_files.read(tmp_path / "slot", MODEL).tokens == TOKENS and os.listdir(tmp_path) == ["slot"]


def test_a_leftover_with_our_number_is_no_hindrance(tmp_path):
    (tmp_path / f".slot.{os.getpid()}.tmp").write_bytes(b"old")
    slot_files.write(tmp_path / "slot", MODEL, TOKENS, LORA, memoryview(STATE))
    assert slot_files.read(tmp_path / "slot", MODEL).tokens == TOKENS and os.listdir(tmp_path) == ["slot"]


def test_a_file_that_is_not_there(tmp_path):
    assert "no saved slot" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"GGUF" + bytes(100),
        bytes(16),
        b"llsrvkv2" + b"\xff" * 8,
        b"llsrvkv2" + (5).to_bytes(8, "little") + b"[1,2]",
        b"llsrvkv2" + (2).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_file_that_is_no_saved_slot(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    refusal(path)


def test_a_truncated_file_is_refused_wherever_it_is_cut(saved):
    data = saved.read_bytes()
    for n in [*range(0, 200, 7), *range(200, len(data), 331), len(data) - 1]:
        saved.write_bytes(data[:n])
        refusal(saved)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_changed_bit_never_gives_another_state(saved, at, bit):
    data = bytearray(saved.read_bytes())
    data[at % len(data)] ^= 1 << bit
    changed = saved.with_name("changed")
    changed.write_bytes(data)
    try:
        state = slot_files.read(changed, MODEL).state
    except ApiError:
        return
    assert state == STATE


def test_a_file_with_more_behind_it_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"x")
    refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["x"]},
        {"tokens": None},
        {"n_state": -1},
        {"crc32": "x"},
        {"identity": 5},
        {"lora": None},
        {"tokens": [1.5]},
        {"shifted_at": -1},
        {"shifted_at": "2"},
        {"identity": {"settings": 3}},
    ],
)
def test_a_header_of_the_wrong_types_is_refused(tmp_path, change):
    path = tmp_path / "file"
    header = json.dumps({"identity": MODEL, "tokens": [1], "lora": [], "n_state": 0, "crc32": 0, **change}).encode()
    path.write_bytes(slot_files.HEAD.pack(slot_files.MAGIC, len(header)) + header)
    refusal(path)


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: links need rights there")
def test_a_link_is_not_followed(saved, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    refusal(link)


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "ermission")])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(saved, monkeypatch, number, word):
    before = saved.read_bytes()

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ApiError, match=word) as caught:
        slot_files.write(saved, MODEL, [9], [], memoryview(b"new"))
    assert caught.value.status == 500
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ApiError, match="could not be saved"):
        slot_files.write(tmp_path / "missing" / "slot", MODEL, [], [], memoryview(b""))


def test_checkpoints_come_back_with_their_places(tmp_path):
    path = tmp_path / "slot"
    parts = [(3, memoryview(b"three")), (7, memoryview(b"")), (9, memoryview(b"nine"))]
    slot_files.write(path, MODEL, [1] * 10, [], memoryview(b"all"), checkpoints=parts)
    saved = slot_files.read(path, MODEL)
    assert saved.state == b"all" and saved.checkpoints == parts


@pytest.mark.parametrize("sizes", [[[3, 99]], [[3, -1]], [["3", 1]], [[3]], 5, [[3, 2], [4, 2]]])
def test_checkpoints_that_cannot_be_are_refused(tmp_path, sizes):
    path = tmp_path / "slot"
    slot_files.write(path, MODEL, [1], [], memoryview(b"all"), checkpoints=[(1, memoryview(b""))])
    data = path.read_bytes()
    header = json.loads(data[16:-3])
    text = json.dumps({**header, "checkpoints": sizes}).encode()
    path.write_bytes(slot_files.HEAD.pack(slot_files.MAGIC, len(text)) + text + b"all")
    assert "damaged" in refusal(path)
