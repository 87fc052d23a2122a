"""The threads of batches, with requests that answer themselves: the order of batches and of their lines."""

from __future__ import annotations

import json
import threading
import time

import pytest

from server.batches.asking import Answer
from server.batches.batch import Asked
from server.batches.files import Files
from server.batches.lines import ENDPOINTS
from server.batches.runner import Batches
from tests.support import wait_until

URL = ENDPOINTS[0]


class Asking:
    """Answers everything, one line at a time once it is let go; notes whose line it was."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.go = threading.Event()

    def ask(self, id_, url, body, key_id, client) -> Answer:
        client.is_in.set()
        self.go.wait(30)
        self.keys.append(key_id)
        return Answer(200, b"{}")


@pytest.fixture
def make(tmp_path):
    """`make(...)` makes batches in one folder; the test's end ends them."""
    made: list[Batches] = []

    def open_batches(is_ready=lambda: True, n: int = 1, now=time.time) -> tuple[Batches, Asking]:
        batches = Batches(tmp_path / "batches", Files(tmp_path / "files", 1 << 20), is_ready, lambda: n, now)
        batches._asking = asking = Asking()
        made.append(batches)
        return batches, asking

    yield open_batches
    for batches in made:
        batches._asking.go.set()
        batches.close()
        assert not batches._threads


def begin(batches: Batches, key_id: str, n: int = 4, text: str = "x"):
    lines = [{"custom_id": str(i), "method": "POST", "url": URL, "body": {"prompt": f"{text} {i}"}} for i in range(n)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return batches.create(Asked(key_id, batches.files.add(key_id, "in.jsonl", data), URL, {}))


def test_keys_take_turns_and_of_each_the_first_batch_comes_first(make):
    batches, asking = make()
    found = [begin(batches, key) for key in ("a", "b", "a")]
    wait_until(lambda: all(batch.work is not None for batch in found), "all batches to be read")
    asking.go.set()
    wait_until(lambda: not any(batch.is_open for batch in found), "the end of all")
    assert sorted(asking.keys) == ["a"] * 8 + ["b"] * 4
    turns = asking.keys[1:9]
    assert all(one != other for one, other in zip(turns, turns[1:])), asking.keys
    assert found[0].about["completed_at"] <= found[2].about["completed_at"]


def test_nothing_is_asked_before_models_can_be(make):
    ready = threading.Event()
    batches, asking = make(ready.is_set)
    asking.go.set()
    batch = begin(batches, "a")
    wait_until(lambda: batch.status == "in_progress", "the input to be read")
    assert asking.keys == []
    ready.set()
    wait_until(lambda: batch.status == "completed", "its end")


def test_threads_end_with_the_work_and_come_back_with_more(make):
    batches, asking = make(n=3)
    asking.go.set()
    for _ in range(2):
        batch = begin(batches, "a")
        wait_until(lambda: batch.status == "completed" and not batches._threads, "the threads to end")  # noqa: B023
    assert len(asking.keys) == 8


def test_two_servers_with_one_folder_do_not_work_on_the_same_batch(make):
    batches, asking = make()
    batch = begin(batches, "a")
    wait_until(lambda: batch.work is not None, "the input to be read")
    other, others = make()
    others.go.set()
    other.wake()
    wait_until(lambda: other.get(batch.id, "a").t_next > 0, "the other server to find it taken")
    assert others.keys == []
    asking.go.set()
    wait_until(lambda: batch.status == "completed", "its end")
    wait_until(lambda: other.get(batch.id, "a").status == "completed", "the other one to see it")
    assert others.keys == [] and len(asking.keys) == 4


def test_a_batch_that_is_told_to_end_while_its_input_is_read_ends(make):
    batches, asking = make()
    asking.go.set()
    with batches._changed:
        batch = begin(batches, "a")
        batches.cancel(batch)
    wait_until(lambda: batch.status == "cancelled", "its end")
    assert asking.keys == [] and batch.as_json()["request_counts"]["total"] == 0


def test_answers_stay_while_the_disk_is_full_and_become_a_file_once_there_is_room(make, monkeypatch):
    hours = [0]
    batches, asking = make(now=lambda: time.time() + 3600 * hours[0])
    batch = begin(batches, "a")
    answers = batches.files.make_path(batch.own["answers"])
    tries = []

    def refuse(path, data):
        tries.append(path)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("server.batches.files.write_whole", refuse)
        asking.go.set()
        wait_until(lambda: batch.is_blocked or not batch.is_open, "the first try")
        assert len(tries) == 1 and batch.is_open and answers.read_bytes().count(b"\n") == 4
    hours[0] += 1
    wait_until(lambda: not batch.is_open, "the next try")
    assert answers.read_bytes().count(b"\n") == 4 and len(asking.keys) == 4
    assert batches.files.get(batch.about["output_file_id"], "a")


def test_what_ended_long_ago_is_forgotten(make, monkeypatch):
    batches, asking = make()
    asking.go.set()
    batch = begin(batches, "a")
    wait_until(lambda: batch.status == "completed" and not batches._threads, "its end")
    assert batches.list_of_key("a") == [batch]
    monkeypatch.setattr("server.batches.runner.MAX_AGE_S", -10)
    assert batches.list_of_key("a") == [] and not list(batches._folder.iterdir())
