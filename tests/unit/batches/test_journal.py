"""Answers on disk: after a crash at any byte, exactly the complete lines count as answered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.batches.journal import START, Busy, Damaged, Journal, read_answers

IDS = [f"batch_req_{i:032x}" for i in range(4)]


def answer(i: int, text: str = "ü") -> bytes:
    return f'{{"id":"{IDS[i]}","custom_id":"{i}","response":{{"body":{{"text":"{text}"}}}},"error":null}}'.encode()


def open_journal(folder: Path, **options) -> Journal:
    return Journal(folder / "out.jsonl", folder / "errors.jsonl", **options)


@pytest.mark.covers("J05")
def test_a_file_that_is_cut_off_at_any_byte_goes_on_from_its_last_whole_answer(tmp_path):
    journal = open_journal(tmp_path)
    for i in range(3):
        journal.add(IDS[i], answer(i), is_failed=False)
    journal.close()
    path = tmp_path / "out.jsonl"
    whole = path.read_bytes()
    for n in range(len(whole) + 1):
        for tail in (b"", b"\0" * 7, b"\0\0\n"):
            path.write_bytes(whole[:n] + (tail if n < len(whole) else b""))
            again = open_journal(tmp_path)
            n_whole = whole[:n].count(b"\n")
            assert again.answered.ids == set(IDS[:n_whole])
            for i in range(n_whole, 3):
                again.add(IDS[i], answer(i), is_failed=False)
            again.close()
            assert path.read_bytes() == whole


def test_both_files_say_who_is_answered(tmp_path):
    journal = open_journal(tmp_path)
    journal.add(IDS[0], answer(0), is_failed=False)
    journal.add(IDS[1], answer(1), is_failed=True)
    journal.close()
    again = open_journal(tmp_path)
    assert [id_ in again for id_ in IDS] == [True, True, False, False]
    assert again.n_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (len(again.answered.ids), len(again.failed.ids)) == (1, 1)
    again.close()


@pytest.mark.parametrize("data", [b"GGUF" + bytes(9), b"hello\n", b'{"id":"x"}\n', answer(0) + b"\nmine\n"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path, data):
    path = tmp_path / "out.jsonl"
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"out\.jsonl (doesn't hold the|holds something other than) answers"):
        open_journal(tmp_path)
    assert path.read_bytes() == data


def test_an_answer_that_is_there_twice_is_noticed(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes((answer(0) + b"\n") * 2)
    with pytest.raises(Damaged, match="twice"):
        read_answers(path)


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    journal = open_journal(tmp_path)
    journal.add(IDS[0], answer(0), is_failed=False)
    real, n_left = os.write, [40]

    def write(descriptor: int, data: bytes) -> int:
        if not n_left[0]:
            raise OSError(28, "No space left on device")
        n, n_left[0] = real(descriptor, data[: n_left[0]]), 0
        return n

    monkeypatch.setattr("server.batches.journal.os.write", write)
    with pytest.raises(OSError, match="No space"):
        journal.add(IDS[1], answer(1), is_failed=False)
    monkeypatch.undo()
    assert IDS[1] not in journal
    journal.add(IDS[1], answer(1), is_failed=False)
    journal.close()
    assert (tmp_path / "out.jsonl").read_bytes() == answer(0) + b"\n" + answer(1) + b"\n"


def test_the_disk_is_waited_for_once_a_second(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr("server.batches.journal.os.fsync", synced.append)
    now = [0.0]
    journal = open_journal(tmp_path, clock=lambda: now[0])
    for i, t in enumerate((0.1, 0.9, 1.1, 1.5)):
        now[0] = t
        journal.add(IDS[i], answer(i), is_failed=False)
        assert len(synced) == (t >= 1)
    journal.close()
    assert len(synced) == 2


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_two_processes_do_not_write_the_same_answers(tmp_path):
    journal = open_journal(tmp_path)
    with pytest.raises(Busy, match="another process"):
        open_journal(tmp_path)
    journal.close()
    open_journal(tmp_path).close()


def test_where_nothing_can_be_written_it_says_so(tmp_path):
    with pytest.raises(Damaged, match="can't be written"):
        Journal(tmp_path / "no" / "out", tmp_path / "errors")


def test_the_start_is_what_ids_start_with():
    assert answer(0).startswith(START)
