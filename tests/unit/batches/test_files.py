"""Files on disk: bounds, age, and the state after a crash or damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.batches import files as files_module
from server.batches.files import MAX_AGE_S, Files
from server.errors import ApiError, StartError


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path, clock) -> Files:
    return Files(tmp_path, 1000, clock)


@pytest.mark.covers("J08")
def test_bounds_of_bytes_and_number(files, monkeypatch):
    first = files.add("a", "x", b"1" * 700)
    with pytest.raises(ApiError, match="no room") as caught:
        files.add("b", "x", b"1" * 301)
    assert caught.value.status == 413
    monkeypatch.setattr(files_module, "MAX_FILES", 2)
    files.add("b", "x", b"1" * 300)
    with pytest.raises(ApiError, match="delete some"):
        files.add("a", "x", b"")
    assert files.delete(first.id, "a") and files.add("a", "x", b"1" * 700)


@pytest.mark.covers("J08")
def test_a_file_goes_when_its_time_is_over(files, clock, tmp_path):
    file, short = files.add("a", "x", b"1"), files.add("a", "y", b"2", age_s=3600)
    clock.now += 3601
    assert [one.id for one in files.list_of_key("a")] == [file.id]
    assert files.get(short.id, "a") is None and not (tmp_path / f"{short.id}.jsonl").exists()
    files.use(file.id)
    clock.now += MAX_AGE_S
    assert files.list_of_key("a") == [file], "a batch needs it"
    files.release(file.id)
    clock.now += 3600
    assert files.list_of_key("a") == [] and not list(tmp_path.iterdir())


def test_what_grows_counts_before_it_is_a_file(files):
    files.grow("file-1", 400)
    files.grow("file-1", 600)
    with pytest.raises(ApiError):
        files.add("a", "x", b"1" * 401)
    with pytest.raises(ApiError):
        files.grow("file-1", 1001)
    files.drop("file-1")
    files.add("a", "x", b"1" * 401)


def test_another_start_finds_whole_files_and_nothing_else(files, tmp_path, clock):
    kept = files.add("a", "kept \u00fc.jsonl", b"12345")
    damaged, cut, foreign = (files.add("a", "x", b"123") for _ in range(3))
    about = tmp_path / f"{damaged.id}.json"
    for text in ("", "{", "[]", "7", json.dumps({**json.loads(about.read_text()), "n_bytes": "3"}), "[" * 100_000):
        about.write_text(text)
        assert {file.id for file in Files(tmp_path, 1000, clock).list_of_key("a")} == {kept.id, cut.id, foreign.id}
    (tmp_path / f"{cut.id}.jsonl").write_bytes(b"12")
    (tmp_path / f"{foreign.id}.json").unlink()
    (tmp_path / "file-x.json.tmp").write_text("half")
    (tmp_path / "mine.txt").write_text("left alone")
    again = Files(tmp_path, 1000, clock)
    again.tidy([cut.id])
    assert again.list_of_key("a") == [kept] and again.get(kept.id, "b") is None
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{kept.id}.jsonl", f"{cut.id}.jsonl", "mine.txt"} <= names
    assert not {f"{foreign.id}.jsonl", f"{damaged.id}.jsonl", "file-x.json.tmp"} & names


def test_a_disk_that_cannot_be_written_leaves_nothing(files, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.batches.files.os.fsync", refuse)
    with pytest.raises(ApiError) as caught:
        files.add("a", "x", b"1")
    assert caught.value.status == 500 and not list(tmp_path.iterdir()) and files.list_of_key("a") == []


def test_a_folder_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(StartError, match="--store-dir"):
        Files(Path(tmp_path, "x"), 1000)
