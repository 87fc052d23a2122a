"""The store of clients' responses and conversations: ownership, bounds, and its files after damage and crashes."""

from __future__ import annotations

import os
import random
import sys
import threading

import pytest

from server.api.stored.store import MAX_AGE_S, THING_BYTES, Store
from server.errors import StartError

A, B = "resp_" + "a" * 48, "conv_" + "b" * 48
KEY, OTHER = "0123456789ab", "ba9876543210"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.t = 1e9

    def __call__(self) -> float:
        return self.t


@pytest.fixture(params=["memory", "folder"])
def make(request, tmp_path):
    """`make(bytes)`: a store; in a folder another one finds what the first has left."""

    def make(n_max: int = 1 << 20, now=None) -> Store:
        return Store(
            n_max, str(tmp_path / "kept") if request.param == "folder" else None, **({"now": now} if now else {})
        )

    return make


def n_things(store: Store) -> int:
    return sum(map(len, store._by_key.values()))


def test_a_thing_comes_back_anew_to_its_key_only(make):
    store = make()
    assert store.put(A, KEY, {"x": [1]})
    store.get(A, KEY)["x"].append(2)
    assert store.get(A, KEY) == {"x": [1]}
    for id_, key in ((A, OTHER), (A, ""), (B, KEY), ("../" + A, KEY), ("", "")):
        assert store.get(id_, key) is None and not store.delete(id_, key)
    assert store.put(A, KEY, 3) and store.get(A, KEY) == 3 and n_things(store) == 1
    assert store.delete(A, KEY) and store.get(A, KEY) is None and not store.delete(A, KEY)


@pytest.mark.covers("O16")
def test_the_key_that_has_most_loses_what_it_has_not_used_for_longest(make):
    size = 1000 + THING_BYTES
    store = make(5 * size)
    ids = [f"resp_{i:048x}" for i in range(6)]
    store.put(B, OTHER, "x" * 998)
    for id_ in ids[:4]:
        store.put(id_, KEY, "x" * 998)
    store.get(ids[0], KEY)
    for id_ in ids[4:]:
        store.put(id_, KEY, "x" * 998)
    assert store.get(B, OTHER) is not None
    assert [store.get(id_, KEY) is not None for id_ in ids] == [True, False, False, True, True, True]
    assert not store.put(A, OTHER, "x" * 5 * size) and store.get(A, OTHER) is None


def test_nothing_gets_too_old(make):
    now = Clock()
    store = make(now=now)
    store.put(A, KEY, 1)
    now.t += MAX_AGE_S - 1
    assert store.get(A, KEY) == 1
    store.put(B, KEY, 2)
    now.t += 4000
    assert store.put("resp_" + "c" * 48, OTHER, 3)
    assert n_things(store) == 2, "what nobody asks for goes, too"
    now.t += MAX_AGE_S
    assert store.get(B, KEY) is None


def test_a_store_without_room_stores_nothing(make):
    store = make(0)
    assert not store.put(A, KEY, 1) and store.get(A, KEY) is None


def test_changes_at_the_same_time_lose_nothing(make):
    store = make()
    store.put(B, KEY, {"items": []})
    threads = [threading.Thread(target=lambda i=i: [store.extend(B, KEY, [i]) for _ in range(20)]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.get(B, KEY)["items"]) == sorted(list(range(8)) * 20)
    assert not store.extend(A, KEY, [1])


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


def test_another_server_finds_what_one_has_left(folder):
    first = Store(1 << 20, str(folder))
    first.put(A, KEY, {"x": "ü"})
    first.put(B, "", 2)
    again = Store(1 << 20, str(folder))
    assert again.get(A, KEY) == {"x": "ü"} and again.get(B, "") == 2 and again.get(A, OTHER) is None
    assert again.delete(B, "") and Store(1 << 20, str(folder)).get(B, "") is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_only_this_user_can_read_them(folder):
    Store(1 << 20, str(folder)).put(A, KEY, 1)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_damage_of_any_kind_is_noticed(folder):
    store = Store(1 << 20, str(folder))
    value = {"response": {"status": "completed"}, "input": ["x" * 50]}
    rng = random.Random(7)
    for _ in range(200):
        store.put(A, KEY, value)
        [path] = folder.iterdir()
        data = bytearray(path.read_bytes())
        kind = rng.randrange(3)
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        else:
            data += rng.randbytes(3)
        path.write_bytes(data)
        assert Store(1 << 20, str(folder)).get(A, KEY) is None
        assert not path.exists(), "a damaged file goes"
        assert store.get(A, KEY) is None


def test_a_server_that_was_killed_leaves_the_old_content_or_the_new(folder):
    store = Store(1 << 20, str(folder))
    store.put(A, KEY, 1)
    [path] = folder.iterdir()
    half = folder / (path.name + ".tmp")
    half.write_bytes(b"half a fi")
    (folder / "notes.txt").write_text("of the user")
    again = Store(1 << 20, str(folder))
    assert again.get(A, KEY) == 1 and not half.exists() and (folder / "notes.txt").exists()


def test_a_disk_that_takes_nothing_is_no_end(folder, monkeypatch):
    store = Store(1 << 20, str(folder))
    store.put(A, KEY, 1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not store.put(A, KEY, 2) and not store.put(B, KEY, 2)
    assert store.get(A, KEY) == 1 and store.get(B, KEY) is None
    assert len(list(folder.iterdir())) == 1


def test_files_of_earlier_servers_count(folder):
    Store(1 << 20, str(folder)).put(A, KEY, "x" * 1000)
    small = Store(1600, str(folder))
    assert small.get(A, KEY) is not None
    assert small.put(B, KEY, "y" * 1000) and small.get(A, KEY) is None
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_can_not_be_one_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StartError, match="--store-dir"):
        Store(1 << 20, str(tmp_path / "file"))
