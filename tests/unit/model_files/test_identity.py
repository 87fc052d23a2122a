"""`engine.identity`: each byte of each file counts, and unchanged files aren't read again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from server.model_files import identity
from server.model_files.identity import Identity, list_model_sources, make_source, reach_of, settings_of
from server.options.table import OPTIONS
from tests.gguf_edit import split

LONG_AGO = 10**9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For files; the cache folder is below it, and it is long after the files were made."""
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    now = identity.time.time
    monkeypatch.setattr(identity.time, "time", lambda: now() + 60)
    return tmp_path


def write(path: Path, data: bytes) -> Path:
    """In place, as if long ago."""
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def of(*paths: Path, **about: object) -> Identity:
    return Identity({"model": [make_source(path) for path in paths]}, about)


def facts(one: Identity) -> dict[str, object]:
    if not one.recall():
        one.find()
    assert not one.is_open and one.fault == "", one.fault
    return one.facts


def test_every_byte_counts_and_the_name_does_not(folder):
    data = bytes(range(256)) * 20_000
    path, copy = write(folder / "a", data), write(folder / "b", data)
    before = facts(of(path))
    assert facts(of(copy)) == before
    for at in (0, 100, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        assert facts(of(write(copy, changed))) != before
    assert facts(of(write(copy, data))) == before


def test_the_order_and_the_number_of_files_count(folder):
    one, other = write(folder / "a", b"one"), write(folder / "b", b"other")
    told = [facts(of(*paths))["model"] for paths in ((one, other), (other, one), (one,), (), (one, one))]
    assert len(set(told)) == len(told) and told[3] == "none"


def test_what_is_known_without_reading_stands_before_the_hash(folder):
    told = facts(of(write(folder / "a", b"x"), model="tiny 1B", settings={"type_k": 0}))
    assert told["model"].startswith("tiny 1B, ") and told["settings"] == {"type_k": 0}


def test_all_parts_of_a_split_model_count(folder, tiny_spm_model):
    first, second = split(tiny_spm_model, folder)
    assert [one.path for one in list_model_sources(str(first))] == [str(first), str(second)]
    before = facts(Identity({"model": list_model_sources(str(first))}))
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    write(second, data)
    assert facts(Identity({"model": list_model_sources(str(first))})) != before


def test_a_model_in_a_larger_file_is_the_model(folder):
    plain = write(folder / "plain", b"model" * 1000)
    inside = write(folder / "inside", b"program" + b"model" * 1000 + b"index")
    assert facts(Identity({"model": list_model_sources(str(inside), 7, 5000)})) == facts(of(plain))
    assert facts(Identity({"model": list_model_sources(str(inside), 7)})) != facts(of(plain))


# ---- what is remembered ------------------------------------------------------------------------------------------


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of files that are read from now on."""
    seen, digest = [], identity._compute_digest
    monkeypatch.setattr(identity, "_compute_digest", lambda one, is_busy: seen.append(one.path) or digest(one, is_busy))
    return seen


def test_a_file_is_read_once(folder, monkeypatch):
    one, other = write(folder / "a", b"one"), write(folder / "b", b"other")
    seen = reads(monkeypatch)
    before = facts(of(one))
    assert of(one).recall() and facts(of(one)) == before and seen == [str(one)]
    facts(of(one, other))
    assert seen == [str(one), str(other)]


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there is no time of the last change there")
def test_an_edit_is_seen_even_if_size_and_times_look_the_same(folder):
    path = write(folder / "a", b"one")
    before, stat = facts(of(path)), path.stat()
    assert of(path).recall()
    write(path, b"two")
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    assert not of(path).recall() and facts(of(path)) != before


def test_what_was_changed_a_moment_ago_is_not_remembered(folder, monkeypatch):
    path = folder / "a"
    path.write_bytes(b"one")
    monkeypatch.setattr(identity.time, "time", lambda: path.stat().st_mtime + 1)
    before = facts(of(path))
    assert not of(path).recall() and facts(of(path)) == before


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"x\n" * 5, b"\0" * 9000, b" " * 70 + b"\n", None])
def test_a_damaged_memory_is_none(folder, damage):
    path = write(folder / "a", b"one")
    before, memory = facts(of(path)), folder / "cache" / "hashes"
    if damage is None:
        memory.unlink()
        memory.mkdir()
    else:
        memory.write_bytes(damage)
    assert not of(path).recall() and facts(of(path)) == before
    assert of(path).recall() is (damage is not None)


def test_a_memory_that_cannot_be_kept_costs_reading_only(folder, monkeypatch):
    (folder / "cache").write_text("a file where the folder should be")
    path = write(folder / "a", b"one")
    assert facts(of(path)) == facts(of(path)) and not of(path).recall()


def test_the_memory_does_not_grow_without_end(folder, monkeypatch):
    monkeypatch.setattr(identity, "MOST_REMEMBERED", 3)
    paths = [write(folder / str(i), bytes([i])) for i in range(5)]
    for path in paths:
        facts(of(path))
    assert len((folder / "cache" / "hashes").read_text().splitlines()) == 3
    assert [of(path).recall() for path in paths] == [False, False, True, True, True]


def test_reading_leaves_the_cores_to_running_tasks(folder, monkeypatch):
    monkeypatch.setattr(identity, "READ_BYTES", 1000)
    path, rests, states = write(folder / "a", bytes(3500)), [], iter((False, True, True, False))
    monkeypatch.setattr(identity.time, "sleep", rests.append)
    of(path).find(lambda: next(states))
    assert len(rests) == 2 and all(rest > 0 for rest in rests)


# ---- what has no identity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(b"two"), "a has changed since it was loaded"),
        (lambda path: path.unlink(), "a can't be read"),
        (lambda path: (path.unlink(), path.write_bytes(b"one")), "a has changed since it was loaded"),
    ],
)
def test_a_file_that_changes_after_it_was_loaded_has_none(folder, change, words):
    path = write(folder / "a", b"one")
    one = of(path)
    change(path)
    assert not one.recall()
    one.find()
    assert one.facts is None and words in one.fault and str(folder) not in one.fault and not one.is_open
    assert not one.recall()


def test_a_file_that_is_not_there_has_none(folder):
    one = of(folder / "nothing")
    assert not one.recall()
    one.find()
    assert "nothing" in one.fault


# ---- settings ----------------------------------------------------------------------------------------------------


def test_every_field_counts_but_those_that_say_where_and_how_fast():
    fields = {
        option.target.partition(":")[2]
        for option in OPTIONS
        if option.target.partition(":")[0] in ("context", "model", "mmproj")
    }
    assert fields > identity.NEUTRAL - {"load_mode", "tensor_buft_overrides", "warmup"}
    counted = fields - identity.NEUTRAL
    assert {
        "type_k",
        "type_v",
        "rope_freq_base",
        "rope_freq_scale",
        "yarn_orig_ctx",
        "swa_full",
        "kv_overrides",
        "image_max_tokens",
        "flash_attn_type",
    } <= counted
    assert set(settings_of(dict.fromkeys(counted, 1), {}, {"unheard of": (1, 2)})) == {*counted, "unheard of"}
    assert settings_of(dict.fromkeys(identity.NEUTRAL, 1), dict.fromkeys(identity.NEUTRAL, 2)) == {}


LONG = {
    "general.architecture": "phi3",
    "phi3.context_length": "131072",
    "phi3.rope.scaling.original_context_length": "4096",
}


@pytest.mark.parametrize(
    ("meta", "overrides", "n_ctx", "told"),
    [
        (LONG, (), 4096, "4096 tokens or less"),
        (LONG, (), 4097, "more than 4096 tokens"),
        (LONG, (("phi3.rope.scaling.original_context_length", "int", 8192),), 4097, "8192 tokens or less"),
        (
            {"general.architecture": "a", "a.context_length": "64", "a.rope.scaling.type": "longrope"},
            (),
            65,
            "more than 64 tokens",
        ),
        ({"general.architecture": "a", "a.context_length": "64"}, (), 65, None),
        ({}, (), 65, None),
    ],
)
def test_scaled_positions_depend_on_the_length_of_the_context(meta, overrides, n_ctx, told):
    assert reach_of(meta, {"kv_overrides": overrides}, n_ctx) == ({} if told is None else {"context": told})
