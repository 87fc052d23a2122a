"""Prompts that left the KV cache are restored from memory or disk: the same text, without computing it again."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.cache.block_cache import MIB, compute_ram_limit
from server.engine.cache.block_tree import BLOCK
from server.engine.loop.prefixes import LAST_TOKEN
from server.engine.seam.task import Final
from server.model_files import identity
from server.model_files.identity import Identity, make_source
from tests.fakes import PATIENCE_S, FakeBackend
from tests.unit.engine.driving import Driver, alone

TEXTS = [f"{name}'s conversation: " + f"{name} said this and that. " * 20 for name in ("anna", "bert", "carl", "dora")]


in_both_layouts = pytest.mark.parametrize("is_split", [False, True], ids=["one cache", "streams"])


def driver(n_slots: int = 1, backend: FakeBackend | None = None, is_split: bool = False, **config) -> Driver:
    config = {"cache_ram": 8, **config}
    return Driver(backend or FakeBackend(n_ctx=2048 * n_slots, n_slots=n_slots, is_split=is_split), **config)


def ask(d: Driver, prompt: str, n: int = 3, **fields) -> Final:
    """The right text, and how its prompt was read."""
    task = d.post(prompt, n_predict=n, **fields)
    d.finish()
    assert d.text(task) == alone(prompt, n)
    return d.outcomes[task].final


def blocks_of(text: str) -> int:
    return -(-len(text) // BLOCK)


# ---- memory -------------------------------------------------------------------------------------------------------


@in_both_layouts
def test_a_conversation_that_lost_its_slot_goes_on_without_being_read_again(is_split):
    d = driver(is_split=is_split)
    for text in TEXTS:
        assert ask(d, text).timings.cache_n == 0
    for text in TEXTS:
        longer = text + alone(text, 2) + " and then?"
        final = ask(d, longer)
        assert (final.timings.cache_n, final.cache.source) == (len(text) + 2, "ram")
        assert final.timings.prompt_n == len(" and then?")


@in_both_layouts
def test_the_same_question_again_evaluates_one_token(is_split):
    d = driver(is_split=is_split)
    for text in TEXTS[:2]:
        ask(d, text)
    final = ask(d, TEXTS[0])
    assert (final.timings.prompt_n, final.cache.source, final.cache.reason) == (1, "ram", LAST_TOKEN)


def test_only_what_the_slot_lacks_is_fetched():
    d = driver(n_slots=2)
    stem = "the system prompt of everybody " * 20
    ask(d, stem + TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], id_slot=0)
    ask(d, stem + "short", id_slot=1)
    final = ask(d, stem + TEXTS[0] + "more", id_slot=1)
    assert final.timings.cache_n == len(stem + TEXTS[0]) + 2 - 2 and final.cache.source == "ram"


@in_both_layouts
def test_what_conversations_have_in_common_is_kept_once(is_split):
    d = driver(is_split=is_split)
    stem = "x" * (BLOCK * 4)
    for i in range(5):
        ask(d, stem + f"{i} of five", n=1)
    sizes = d.scheduler._prefixes.blocks.ram_used
    ask(d, "y" * 10)
    one = FakeBackend.state_size([0] * BLOCK)
    assert sizes < 5.5 * one


@in_both_layouts
def test_without_cache_prompt_nothing_is_fetched(is_split):
    d = driver(is_split=is_split)
    ask(d, TEXTS[0])
    ask(d, TEXTS[1])
    assert ask(d, TEXTS[0], cache_prompt=False).timings.cache_n == 0


@in_both_layouts
def test_memory_keeps_to_its_limit_and_keeps_what_was_used_last(is_split):
    d = driver(is_split=is_split)
    blocks = d.scheduler._prefixes.blocks
    blocks._ram.limit = 40_000
    for i in range(8):
        ask(d, f"{i}" * 600)
        assert blocks.ram_used <= 40_000
    assert ask(d, "6" * 600).cache.source == "ram"
    assert ask(d, "0" * 600).cache.source == "none"


@in_both_layouts
def test_a_text_larger_than_all_memory_keeps_its_beginning(is_split):
    d = driver(is_split=is_split)
    blocks = d.scheduler._prefixes.blocks
    ask(d, "ab" * 600)
    blocks._ram.limit = 3 * FakeBackend.state_size([0] * BLOCK)
    ask(d, "something else")
    assert BLOCK <= ask(d, "ab" * 600).timings.cache_n < 600
    assert blocks.ram_used <= blocks._ram.limit


def test_without_room_in_the_kv_cache_the_prompt_is_read_as_usual():
    d = driver(backend=FakeBackend(n_ctx=1024, n_cells=700))
    ask(d, TEXTS[0])
    ask(d, TEXTS[1])
    d.backend.takes_states = False
    assert ask(d, TEXTS[0]).timings.cache_n == 0
    assert d.backend.history(2) == []


def test_a_cache_given_up_for_room_comes_back():
    backend = FakeBackend(n_ctx=2048, n_slots=2, n_cells=1000)
    backend.info = replace(backend.info, n_ctx=1000)
    d = driver(backend=backend)
    ask(d, TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], id_slot=1)
    assert not (backend.history(0) and backend.history(1)), "both don't fit"
    final = ask(d, TEXTS[0] + "!", id_slot=0)
    assert final.timings.cache_n >= len(TEXTS[0]) and final.cache.source == "ram"


def test_a_shifted_context_is_not_kept():
    d = Driver(FakeBackend(n_ctx=256), shift_context=True, cache_ram=8)
    d.post("once " * 30, n_predict=200)
    d.finish()
    ask(d, "another " * 25)
    assert d.scheduler._prefixes.blocks.ram_used == 0


@pytest.mark.parametrize(
    ("is_split", "name", "seconds", "n_blocks"), [(False, "read_state", 0.06, 2), (True, "read_parts", 0.2, 1)]
)
def test_saving_stops_when_its_time_is_over(is_split, name, seconds, n_blocks):
    d = driver(n_slots=2, is_split=is_split, max_stall_ms=100)
    ask(d, TEXTS[0] * 2, id_slot=1)
    reader = d.post("somebody reads", n_predict=300, id_slot=0)
    d.step(3)
    read = getattr(d.backend, name)

    def slow(seq):
        d.clock.now += seconds
        return read(seq)

    setattr(d.backend, name, slow)
    other = d.post(TEXTS[1], n_predict=1, id_slot=1)
    d.step()
    assert d.scheduler._prefixes.blocks.count_known((), list((TEXTS[0] * 2).encode())) == n_blocks * BLOCK
    d.finish()
    assert d.text(reader) == alone("somebody reads", 300) and d.text(other) == alone(TEXTS[1], 1)


@pytest.mark.parametrize(("mib", "limit"), [(0, 0), (5, 5 * MIB), (-1, 1 << 62)])
def test_the_limit_is_what_was_asked_for(mib, limit):
    assert compute_ram_limit(mib) == limit


def test_the_limit_by_itself_leaves_most_of_the_memory():
    assert 0 < compute_ram_limit(None) <= 8192 * MIB


# ---- a stream for each slot ----------------------------------------------------------------------------------------


def test_what_a_slot_has_gives_way_to_more_from_memory():
    d = driver(n_slots=2, is_split=True)
    stem = "the system prompt of everybody " * 20
    ask(d, stem + TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], id_slot=0)
    ask(d, stem + "short", id_slot=1)
    final = ask(d, stem + TEXTS[0] + "more", id_slot=1)
    assert final.timings.cache_n == len(stem + TEXTS[0]) and final.cache.source == "ram"


def test_a_state_that_does_not_fit_costs_reading_the_prompt_and_nothing_else():
    d = driver(n_slots=2, is_split=True)
    for text in TEXTS[:3]:
        ask(d, text)
    d.backend.takes_states = False
    for text in TEXTS[:3]:
        ask(d, text + "!")
    d.backend.takes_states = True
    for text in TEXTS[:3]:
        ask(d, text + "?")
    assert ask(d, TEXTS[0] + "!").timings.cache_n >= len(TEXTS[0])


def test_states_that_can_not_be_cut_are_not_kept_and_that_is_said_once(caplog):
    d = driver(n_slots=2, is_split=True)
    d.backend.can_cut = False
    with caplog.at_level("INFO"):
        for text in TEXTS:
            ask(d, text)
            ask(d, text + "!")
    assert d.scheduler._prefixes.blocks.ram_used == 0
    assert len([record for record in caplog.records if "can't be cut" in record.message]) == 1


def test_idle_slots_are_written_to_disk_reading_each_of_them_once(tmp_path):
    d = on_disk(tmp_path, n_slots=2, is_split=True)
    calls = []
    read_parts = d.backend.read_parts
    d.backend.read_parts = lambda seq: calls.append(seq) or read_parts(seq)
    ask(d, TEXTS[0] * 3, id_slot=0)
    ask(d, TEXTS[1] * 3, id_slot=1)
    while d.scheduler._prefixes.blocks.save_idle(d.scheduler.slots):
        pass
    assert calls == [0, 1]
    end(d)
    assert len(list(tmp_path.iterdir())) == blocks_of(TEXTS[0] * 3 + "..") + blocks_of(TEXTS[1] * 3 + "..")


def test_blocks_of_one_layout_are_read_in_the_other(tmp_path):
    for layouts in ((False, True), (True, False)):
        for i, is_split in enumerate(layouts):
            d = on_disk(tmp_path, n_slots=2, is_split=is_split)
            assert (ask(d, TEXTS[layouts[0]] + "!" * i).cache.source == "disk") == bool(i)
            end(d)


# ---- out of the way -----------------------------------------------------------------------------------------------


def on_a_cpu(n_slots: int = 2, **config) -> Driver:
    backend = FakeBackend(n_ctx=2048 * n_slots, n_slots=n_slots)
    backend.info = replace(backend.info, devices=("CPU",))
    return driver(backend=backend, **config)


def test_idle_cells_are_moved_out_of_the_way_of_others_and_come_back():
    d = on_a_cpu()
    ask(d, TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], n=100, id_slot=1)
    assert d.backend.history(0) == [], "whose rows would look over them"
    assert d.snapshot.slots[0].n_cached == len(TEXTS[0]) + 2
    final = ask(d, TEXTS[0] + "!", id_slot=0)
    assert final.timings.cache_n >= len(TEXTS[0]) and final.cache.source == "ram"


def test_a_few_rows_are_no_reason_to_move_anything():
    d = on_a_cpu()
    ask(d, TEXTS[0], id_slot=0)
    ask(d, "short", n=20, id_slot=1)
    assert len(d.backend.history(0)) == len(TEXTS[0]) + 2


def test_cells_that_others_share_stay():
    d = on_a_cpu(n_slots=3)
    ask(d, TEXTS[0], id_slot=0)
    ask(d, TEXTS[0] + "b", id_slot=1)
    ask(d, "somebody else", n=100, id_slot=2)
    assert d.backend.history(0) and d.backend.history(1)


def test_what_memory_has_no_room_for_stays():
    d = on_a_cpu()
    d.scheduler._prefixes.blocks._ram.limit = 3000
    ask(d, TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], n=100, id_slot=1)
    assert len(d.backend.history(0)) == len(TEXTS[0]) + 2


def test_on_a_gpu_nothing_is_moved():
    d = driver(n_slots=2)
    ask(d, TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], n=100, id_slot=1)
    assert d.backend.history(0)


def test_a_slot_that_was_moved_away_is_saved_and_erased_like_any_other(tmp_path):
    d = on_a_cpu()
    ask(d, TEXTS[0], id_slot=0)
    ask(d, TEXTS[1], n=100, id_slot=1)
    n = len(TEXTS[0]) + 2
    assert d.answer("save", id_slot=0, path=str(tmp_path / "slot"))["n_saved"] == n
    ask(d, TEXTS[2], n=100, id_slot=1)
    assert d.backend.history(0) == [] and d.answer("erase", id_slot=0)["n_erased"] == n
    assert d.answer("restore", id_slot=0, path=str(tmp_path / "slot"))["n_restored"] == n
    assert ask(d, TEXTS[0] + "!", id_slot=0).cache.source == "slot"


# ---- disk ---------------------------------------------------------------------------------------------------------


def on_disk(folder: Path, **config) -> Driver:
    return driver(cache_disk=str(folder), **config)


def end(d: Driver) -> None:
    """What the engine does at its end."""
    d.scheduler._prefixes.close()


@in_both_layouts
def test_a_restarted_engine_knows_what_the_last_one_knew(tmp_path, is_split):
    first = on_disk(tmp_path, is_split=is_split)
    for text in TEXTS[:2]:
        ask(first, text)
    end(first)
    second = on_disk(tmp_path, is_split=is_split)
    for text in TEXTS[:2]:
        final = ask(second, text + "!")
        assert final.timings.cache_n >= len(text) and final.cache.source == "disk"
    assert ask(second, TEXTS[2]).timings.cache_n == 0


@in_both_layouts
def test_what_left_memory_is_still_on_disk(tmp_path, is_split):
    d = on_disk(tmp_path, is_split=is_split, cache_ram=0)
    ask(d, TEXTS[0])
    ask(d, TEXTS[1])
    end(d)
    assert ask(d, TEXTS[0]).cache.source == "disk"


@in_both_layouts
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: b"hello" * 100,
    ],
)
def test_a_damaged_file_is_removed_and_the_prompt_read_as_usual(tmp_path, damage, is_split):
    first = on_disk(tmp_path, is_split=is_split)
    ask(first, TEXTS[0])
    end(first)
    files = sorted(tmp_path.iterdir())
    assert len(files) == blocks_of(TEXTS[0] + "..")
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    second = on_disk(tmp_path, is_split=is_split)
    assert ask(second, TEXTS[0]).timings.cache_n == 0
    second.scheduler._prefixes.blocks.close()
    assert not set(files) & set(tmp_path.iterdir()), "what is damaged is gone"


@in_both_layouts
def test_blocks_whose_beginning_is_lost_are_removed(tmp_path, is_split):
    first = on_disk(tmp_path, is_split=is_split)
    ask(first, TEXTS[0])
    end(first)
    (beginning,) = tmp_path.glob("*.first.kvblock")
    beginning.unlink()
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))  # of young ones the beginning may be on its way
    assert ask(on_disk(tmp_path, is_split=is_split), TEXTS[0]).timings.cache_n == 0
    assert list(tmp_path.iterdir()) == []


def test_another_model_uses_nothing_and_removes_nothing_until_it_needs_the_room(tmp_path):
    first = on_disk(tmp_path)
    ask(first, TEXTS[0])
    end(first)
    theirs = set(tmp_path.iterdir())
    backend = FakeBackend(n_ctx=2048)
    backend.identity = Identity(about={"model": "another"})
    second = on_disk(tmp_path, backend=backend)
    assert ask(second, TEXTS[0]).timings.cache_n == 0
    end(second)
    assert theirs < set(tmp_path.iterdir())
    third = on_disk(tmp_path, cache_disk_mib=0)
    assert third.scheduler._prefixes.blocks.count_known((), list(TEXTS[0].encode())) == 0
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    d = on_disk(tmp_path, cache_disk_mib=0)
    ask(d, TEXTS[0])
    end(d)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_folder_keeps_to_its_size(tmp_path):
    d = on_disk(tmp_path)
    blocks = d.scheduler._prefixes.blocks
    blocks._disk.limit = 40_000
    for i in range(8):
        ask(d, f"{i}" * 600)
    end(d)
    sizes = [os.path.getsize(path) for path in tmp_path.iterdir()]
    assert 25_000 <= sum(sizes) <= 40_000


def test_idle_moments_bring_slots_to_disk(tmp_path):
    d = on_disk(tmp_path)
    ask(d, TEXTS[0])
    blocks = d.scheduler._prefixes.blocks
    while blocks.save_idle(d.scheduler.slots):
        pass
    blocks.close()
    assert len(list(tmp_path.iterdir())) == blocks_of(TEXTS[0] + "..")
    assert not blocks.save_idle(d.scheduler.slots)


# ---- several servers in one folder ----------------------------------------------------------------------------------


@pytest.mark.covers("Y02")
@in_both_layouts
def test_what_another_server_has_read_is_a_read_from_disk(tmp_path, is_split):
    first, second = (on_disk(tmp_path, is_split=is_split) for _ in range(2))
    ask(first, TEXTS[0])
    end(first)
    final = ask(second, TEXTS[0] + "!")
    n_whole = (len(TEXTS[0]) + 2) // BLOCK * BLOCK  # a shorter block's name can't be known beforehand
    assert (final.timings.cache_n, final.cache.source) == (n_whole, "disk")
    assert ask(second, TEXTS[1]).timings.cache_n == 0


@pytest.mark.covers("Y02")
@in_both_layouts
def test_a_text_of_which_one_server_knows_the_beginning_goes_on_with_what_another_has_read(tmp_path, is_split):
    first, second = (on_disk(tmp_path, is_split=is_split) for _ in range(2))
    ask(second, TEXTS[0][: BLOCK + 20])
    ask(second, TEXTS[1])
    ask(first, TEXTS[0])
    end(first)
    assert ask(second, TEXTS[0]).timings.cache_n >= len(TEXTS[0]) // BLOCK * BLOCK


@pytest.mark.covers("Y02")
@in_both_layouts
def test_files_that_another_server_has_removed_are_read_as_usual(tmp_path, is_split):
    first, second = (on_disk(tmp_path, is_split=is_split, cache_ram=0) for _ in range(2))
    ask(first, TEXTS[0])
    end(first)
    assert ask(second, TEXTS[0]).cache.source == "disk"
    ask(second, TEXTS[1])
    for path in tmp_path.iterdir():
        path.unlink()
    assert ask(second, TEXTS[0]).timings.cache_n == 0


@pytest.mark.covers("Y02")
def test_the_folder_keeps_its_bound_whoever_writes(tmp_path):
    """Each server's own files are less than the bound; together they are more."""
    servers = [on_disk(tmp_path, cache_disk_mib=1, backend=FakeBackend(n_ctx=2048)) for _ in range(3)]
    files = servers[0].scheduler._prefixes.blocks._files
    for i in range(40):
        path = tmp_path / f"{i:032x}.first.kvblock"
        path.write_bytes(bytes(MIB // 20))
        os.utime(path, (i, i))
    files.trim()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 20 and left[0].startswith(f"{20:032x}")  # those that were used last


@pytest.mark.covers("Y02")
def test_what_a_crash_left_half_written_is_removed_and_what_another_server_writes_now_is_not(tmp_path):
    young, old = (tmp_path / f".{name}.first.kvblock.{pid}.tmp" for name, pid in (("a", 1), ("b", 2)))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    on_disk(tmp_path)
    assert young.exists() and not old.exists()


def test_a_folder_that_cannot_be_made_is_one_line_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="--cache-disk .*name a folder"):
        on_disk(tmp_path / "file" / "below")


# ---- before it is known which blocks are ours --------------------------------------------------------------------


@in_both_layouts
def test_the_disk_is_used_once_the_model_s_files_are_read_and_then_for_what_was_kept_before(
    tmp_path, monkeypatch, is_split
):
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").write_bytes(b"weights")
    go, digest = threading.Event(), identity._compute_digest
    monkeypatch.setattr(
        identity, "_compute_digest", lambda one, is_busy: (go.wait(PATIENCE_S), digest(one, is_busy))[1]
    )

    def start() -> Driver:
        backend = FakeBackend(n_ctx=2048, is_split=is_split)
        backend.identity = Identity({"model": [make_source(tmp_path / "model")]})
        return on_disk(tmp_path / "disk", backend=backend)

    def know(d: Driver) -> None:
        d.scheduler._identifying.join(PATIENCE_S)
        d.step()

    first = start()
    ask(first, TEXTS[0])
    ask(first, TEXTS[1])
    assert ask(first, TEXTS[0]).cache.source == "ram", "memory is used from the start on"
    assert list((tmp_path / "disk").iterdir()) == []
    go.set()
    know(first)
    ask(first, TEXTS[0] + alone(TEXTS[0], 2) + " and a longer end of it" * 10)
    end(first)
    go.clear()
    second = start()
    assert ask(second, TEXTS[2]).timings.cache_n == 0
    assert ask(second, TEXTS[1] + "!").timings.cache_n == 0, "nothing is read before"
    go.set()
    know(second)
    longer = ask(second, TEXTS[0] + alone(TEXTS[0], 2) + " and a longer end of it" * 10 + "!")
    assert longer.cache.source == "disk" and longer.timings.cache_n > len(TEXTS[0]) + 200
    assert ask(second, TEXTS[2]).cache.source == "ram"


def test_blocks_of_the_earlier_format_are_removed_with_the_reason(tmp_path, caplog):
    first = on_disk(tmp_path)
    ask(first, TEXTS[0])
    end(first)
    for file in tmp_path.iterdir():
        file.write_bytes(b"llsrvkv1" + file.read_bytes()[8:])
    with caplog.at_level("INFO"):
        assert ask(on_disk(tmp_path), TEXTS[0]).timings.cache_n == 0
    assert "earlier version" in caplog.text and f"{blocks_of(TEXTS[0] + '..')} files were removed" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_of_a_shifted_context_only_what_was_kept_is_known_outside(tmp_path):
    d = Driver(FakeBackend(n_ctx=512), shift_context=True, cache_ram=8, cache_disk=str(tmp_path))
    d.post("once " * 60, n_predict=400, n_keep=200)
    d.finish()
    held = list(d.scheduler.slots[0].tokens)
    ask(d, "another " * 30)
    assert d.scheduler._prefixes.blocks.count_known((), held) == 200
