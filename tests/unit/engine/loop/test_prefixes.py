"""Shared prefixes of prompts: computed once for all tasks that need them, with reported sources."""

from __future__ import annotations

import logging

import pytest

from server.engine.cache.block_tree import BLOCK
from server.engine.loop.prefixes import LAST_TOKEN, NO_TRIM, NOT_ASKED, OTHER_LORA, TOO_SHORT
from server.engine.seam.task import CacheUse, Difference, Timings
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver, alone

STEM = "once upon a time there was a little girl who lived near the river with " * 4


def driver(n_slots: int = 4, n_batch: int = 32, n_ctx: int = 1024, **config) -> Driver:
    return Driver(FakeBackend(n_ctx=n_ctx * n_slots, n_slots=n_slots, n_batch=n_batch), **config)


def n_rows(d: Driver) -> int:
    return sum(len(span) for spans in d.backend.batches for span in spans)


def timings(d: Driver, task: int) -> Timings:
    return d.outcomes[task].final.timings


def cache_of(d: Driver, task: int) -> CacheUse:
    return d.outcomes[task].final.cache


# ---- together -----------------------------------------------------------------------------------------------------


def test_requests_that_arrive_together_compute_their_common_beginning_once():
    d = driver(n_slots=8)
    prompts = [STEM + f" end {i}" for i in range(16)]
    tasks = [d.post(prompt, n_predict=1) for prompt in prompts]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 1) for prompt in prompts]
    assert n_rows(d) <= 1.05 * (len(STEM) + 16 * len(" end 0"))
    assert cache_of(d, tasks[0]).source == "none"
    assert {cache_of(d, task).source for task in tasks[1:8]} == {"shared"}


def test_the_same_prompt_for_several_answers_is_read_once():
    d = driver()
    tasks = [d.post(STEM, n_predict=5) for _ in range(4)]
    d.finish()
    assert {d.text(task) for task in tasks} == {alone(STEM, 5)}
    assert n_rows(d) == len(STEM) + 3 + 4 * 4


def test_who_shares_more_with_another_that_waits_shares_that_too():
    d = driver()
    prompts = [STEM + "the first", STEM * 2 + "b", STEM * 2 + "c"]
    tasks = [d.post(prompt, n_predict=2) for prompt in prompts]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 2) for prompt in prompts]
    assert n_rows(d) <= 1.05 * (2 * len(STEM) + len("the first") + 2 + 3)


def test_when_the_leader_is_cancelled_another_reads_the_rest_and_all_get_their_answers():
    d = driver()
    tasks = [d.post(STEM + str(i), n_predict=2) for i in range(4)]
    d.step(3)
    assert len(d.backend.history(0)) == 96 and not d.backend.history(1)
    d.cancel(tasks[0])
    others = [task for task in tasks if task != tasks[0]]
    d.step_until(lambda: all(d.outcomes[task].ends for task in others))
    assert [d.text(task) for task in others] == [alone(STEM + str(i), 2) for i in (1, 2, 3)]
    assert n_rows(d) <= 1.05 * (len(STEM) + 3 + 3)


def test_a_text_that_is_being_generated_is_no_reason_to_wait():
    d = driver()
    first = d.post(STEM, n_predict=50)
    d.step_until(lambda: d.outcomes[first].pieces)
    second = d.post(STEM + alone(STEM, 40), n_predict=2)
    d.step(5)
    assert d.outcomes[second].pieces, "it reads by itself what the first hasn't said yet"
    d.finish()
    assert (d.text(first), d.text(second)) == (alone(STEM, 50), alone(STEM + alone(STEM, 40), 2))


@pytest.mark.parametrize("fields", [{"cache_prompt": False}, {"lora": ((0, 1.0),)}])
def test_who_may_not_share_does_not_wait(fields):
    d = driver(lora=(("x", 0.0),))
    d.backend.adapters = ("x",)
    d.post(STEM, n_predict=1)
    second = d.post(STEM, n_predict=1, **fields)
    d.finish()
    assert timings(d, second).cache_n == 0 and n_rows(d) == 2 * len(STEM)


def test_models_that_cannot_share_read_their_prompts_side_by_side():
    d = Driver(FakeBackend(n_ctx=2048, n_slots=2, n_batch=32, can_trim=False))
    tasks = [d.post(STEM, n_predict=2) for _ in range(2)]
    d.finish()
    assert {d.text(task) for task in tasks} == {alone(STEM, 2)}
    assert {cache_of(d, task).source for task in tasks} == {"none"}


def test_progress_says_what_was_shared():
    d = driver()
    d.post(STEM, n_predict=1)
    second = d.post(STEM + "two", n_predict=1, progress=True)
    d.finish()
    assert [event.n_cached for event in d.outcomes[second].progress][:2] == [0, len(STEM)]
    assert d.snapshot.n_reused_tokens == len(STEM)


# ---- explained ----------------------------------------------------------------------------------------------------


def told(d: Driver, prompt: str, **fields) -> tuple[int, str, str]:
    task = d.post(prompt, n_predict=1, **fields)
    d.finish()
    cache = cache_of(d, task)
    return timings(d, task).cache_n, cache.source, cache.reason


def test_the_source_of_reused_tokens_is_told():
    d = driver()
    n = len(STEM)
    assert told(d, STEM) == (0, "none", "")
    assert told(d, STEM + "more") == (n, "slot", "")
    assert told(d, STEM + "other", id_slot=1) == (n, "shared", "")
    assert told(d, STEM + "other", id_slot=1) == (n + 4, "slot", LAST_TOKEN)


def test_the_reason_for_less_than_is_known_is_told():
    d = driver(lora=(("x", 0.0),))
    d.backend.adapters = ("x",)
    told(d, STEM)
    assert told(d, STEM + "more", cache_prompt=False) == (0, "none", NOT_ASKED)
    assert told(d, STEM + "more", lora=((0, 1.0),)) == (0, "none", OTHER_LORA)
    told(d, "brief", id_slot=0)
    assert told(d, "briefly", id_slot=1) == (0, "none", TOO_SHORT)


def test_a_model_that_cannot_drop_a_tail_is_named_as_the_reason():
    d = Driver(FakeBackend(n_ctx=1024, can_trim=False))
    told(d, STEM + "this")
    assert told(d, STEM + "that") == (len(STEM), "slot", NO_TRIM)
    assert told(d, STEM[:100] + "that") == (0, "none", NO_TRIM)


def test_the_verbose_log_names_the_first_token_that_differs(caplog):
    d = driver(n_slots=1)
    told(d, "the red house")
    with caplog.at_level(logging.DEBUG, "llama_srv"):
        told(d, "the blue house")
    assert any(
        "has the prompt's first 4 tokens" in line and "b'red ho'" in line and "b'blue h'" in line
        for line in caplog.messages
    )


# ---- what differs -------------------------------------------------------------------------------------------------


def remembering(n_slots: int, is_split: bool, **config) -> Driver:
    """What leaves a slot goes to memory."""
    return Driver(FakeBackend(n_ctx=1024 * n_slots, n_slots=n_slots, is_split=is_split), **{"cache_ram": 64, **config})


def difference(d: Driver, prompt: str, owner: str, **fields) -> tuple[int, bytes, bytes] | None:
    task = d.post(prompt, n_predict=1, owner=owner, **fields)
    d.finish()
    found = cache_of(d, task).first_difference
    return found and (found.position, bytes(found.prompt), bytes(found.cached))


everywhere = pytest.mark.parametrize(("n_slots", "is_split"), [(1, False), (1, True), (3, False), (3, True)])


@everywhere
def test_the_place_where_a_prompt_leaves_its_owners_nearest_text_is_told(n_slots, is_split):
    d = remembering(n_slots, is_split)
    assert difference(d, STEM + "it is noon", "me") is None, "nothing is cached yet"
    assert difference(d, STEM + "it is night", "me") == (len(STEM) + 7, b"ight", b"oon")
    assert difference(d, "?" * 300, "me") == (0, b"??????", b"once u")
    assert difference(d, STEM + "it is nigh!", "me") == (len(STEM) + 10, b"!", b"t")


@everywhere
def test_what_others_have_said_is_never_shown(n_slots, is_split):
    d = remembering(n_slots, is_split)
    difference(d, STEM + "my secret" * 40, "me")
    assert difference(d, STEM + "my guess", "you") is None
    difference(d, "?" * 300, "you")
    assert difference(d, STEM + "my guesses", "you") is None
    assert difference(d, STEM + "my hut", "me") == (len(STEM) + 3, b"hut", b"secret")
    difference(d, STEM + "my guess" * 9, "you")
    assert difference(d, STEM + "my guess" * 8 + "!", "me") is None, "what is shared goes beyond one's own text"


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("n_same", [BLOCK, BLOCK + 70], ids=["behind a block", "within a block"])
def test_what_others_have_in_memory_is_never_shown(n_same, is_split):
    d = remembering(1, is_split)
    same = "x" * n_same
    difference(d, same + "secret" * 40, "me")
    difference(d, "?" * 300, "me")  # it leaves the slot
    assert difference(d, same + "guess", "you") is None
    difference(d, "?" * 300, "you")
    assert difference(d, same + "hut", "me") == (n_same, b"hut", b"secret")


def test_a_restored_slot_is_nobodys_text(tmp_path):
    d = driver(n_slots=2)
    d.post(STEM + "my secret", n_predict=1, owner="me", id_slot=0)
    d.finish()
    for name in ("save", "restore"):
        d.command(name, id_slot=0, path=str(tmp_path / "slot"))
        d.finish()
    assert difference(d, STEM + "my guess", "me", id_slot=0) is None


def test_a_text_that_goes_on_differs_nowhere():
    d = driver(n_slots=1)
    task = d.post(STEM, n_predict=4, owner="me")
    d.finish()
    assert difference(d, STEM + d.text(task) + " and so on", "me") is None


LEFT = "You know all about ships and harbours. Today is monday. Say it in few words, and never make anything up."


def told_of(d: Driver, prompt: object, **fields) -> Difference | None:
    task = d.post(prompt, n_predict=1, owner="me", **fields)
    d.finish()
    return cache_of(d, task).first_difference


@everywhere
def test_what_is_lost_by_a_difference_is_counted(n_slots, is_split):
    d = remembering(n_slots, is_split)
    told_of(d, LEFT)
    found = told_of(d, LEFT.replace("monday", "friday"))
    assert found.n_lost == len(LEFT) - LEFT.index("day. ")
    assert told_of(d, STEM + "and now something else").n_lost == 0


@pytest.mark.parametrize(("config", "fields"), [({}, {"cache_prompt": False}), ({"exact": True}, {})])
def test_nothing_is_lost_where_nothing_is_to_be_reused(config, fields):
    d = remembering(1, True, **config)
    told_of(d, LEFT)
    assert told_of(d, LEFT.replace("monday", "friday"), **fields).n_lost == 0


def test_of_texts_that_are_equally_near_the_latest_is_told():
    d = driver(n_slots=3)
    for i, word in enumerate(("one", "two", "three")):
        d.post(STEM + word, n_predict=1, owner="me", id_slot=i)
        d.finish()
        d.clock.now += 1
    assert bytes(told_of(d, STEM + "!").cached)[:5] == b"three"


def test_the_place_of_a_difference_is_told_in_the_prompt_as_it_was_sent():
    d = driver(n_slots=2)
    told_of(d, LEFT)
    assert told_of(d, LEFT.replace("monday", "friday")).at == LEFT.index("monday")
    d.answer("system_prompt", tokens=tuple(b"be brief. "))
    told_of(d, LEFT)
    found = told_of(d, LEFT.replace("monday", "friday"))
    assert (found.at, found.position) == (LEFT.index("monday"), LEFT.index("monday") + 10)


def test_other_spellings_before_a_difference_dont_move_its_place():
    d = spelling_driver()
    told_of(d, [*TEXT, PAIR, PAIR, *b" and noon"])
    found = told_of(d, [*TEXT, *b"abab", *b" and night"], may_respell=True)
    assert (found.at - found.position, found.at) == (2, len(TEXT) + 4 + len(" and n"))


def test_the_place_is_not_known_in_a_prompt_that_was_cut():
    d = driver(n_slots=1, n_ctx=256, shift_context=True)
    told_of(d, "x" * 100)
    assert told_of(d, "xy" + "z" * 2000).at == -1


# ---- the same text in other tokens ----------------------------------------------------------------------------------

PAIR = 1  # a token that stands for two letters
TEXT = STEM.encode()


def spelling_driver(n_slots: int = 1, is_split: bool = False, **config) -> Driver:
    d = remembering(n_slots, is_split, **config)
    piece = d.backend.piece
    d.backend.piece = lambda token: b"ab" if token == PAIR else piece(token)
    return d


def n_reused(d: Driver, prompt: list[int], **fields) -> int:
    task = d.post(prompt, n_predict=1, **{"owner": "me", "may_respell": True, **fields})
    d.finish()
    return timings(d, task).cache_n


@everywhere
def test_what_is_cached_in_other_tokens_of_the_same_text_is_reused(n_slots, is_split):
    d = spelling_driver(n_slots, is_split)
    n_reused(d, [*TEXT, *b"ab", *TEXT])
    n_reused(d, [*b"?" * 300])  # with one slot the first text has to go to memory
    assert n_reused(d, [*TEXT, PAIR, *TEXT, *b" more"]) == 2 * len(TEXT) + 2


@pytest.mark.parametrize(
    ("config", "fields", "n"),
    [
        ({}, {"may_respell": False}, len(TEXT)),
        ({}, {"owner": "you"}, len(TEXT)),
        ({}, {"cache_prompt": False, "may_respell": False}, 0),
        ({"exact": True}, {}, 0),
    ],
    ids=["given as tokens", "somebody else's text", "not from the cache", "exact"],
)
def test_tokens_stay_as_they_are(config, fields, n):
    d = spelling_driver(**config)
    n_reused(d, [*TEXT, *b"ab", *TEXT])
    prompt = [*TEXT, PAIR, *TEXT, *b" more"]
    assert n_reused(d, prompt, **fields) == n
    assert d.backend.history(0)[: len(prompt)] == prompt


def test_a_prompt_that_fits_is_not_made_too_long():
    d = spelling_driver()
    n_reused(d, [*b"ab" * 500])
    assert n_reused(d, [*b"ab" * 500, *[PAIR] * 23]) == 1000
    prompt = [PAIR] * 900
    assert n_reused(d, prompt) == 0 and d.backend.history(0)[:900] == prompt


# ---- given up -----------------------------------------------------------------------------------------------------


def test_a_long_conversation_used_just_now_is_worth_more_than_a_short_one():
    d = driver(n_slots=3)
    for i, length in enumerate((300, 20, 100)):
        d.post("abc"[i] * length, n_predict=1, id_slot=i)
    d.finish()
    task = d.post("something new", n_predict=1)
    d.finish()
    assert d.outcomes[task].final.id_slot == 1


def test_a_long_conversation_of_long_ago_is_worth_less_than_a_short_one_of_now():
    d = driver(n_slots=2)
    d.post("a" * 300, n_predict=1, id_slot=0)
    d.finish()
    d.clock.now += 600
    d.post("b" * 100, n_predict=1, id_slot=1)
    d.finish()
    task = d.post("something new", n_predict=1)
    d.finish()
    assert d.outcomes[task].final.id_slot == 0


def test_what_others_share_is_not_lost_with_a_slot():
    d = driver(n_slots=3)
    d.post(STEM, n_predict=1, id_slot=0)
    d.finish()
    d.post(STEM + "b", n_predict=1, id_slot=1)
    d.post("c" * 100, n_predict=1, id_slot=2)
    d.finish()
    task = d.post("something new", n_predict=1)
    d.finish()
    assert d.outcomes[task].final.id_slot in (0, 1)


# ---- a stream for each slot -----------------------------------------------------------------------------------------


def test_a_copy_that_fails_costs_reading_the_prompt_and_nothing_else(caplog):
    d = Driver(FakeBackend(n_ctx=4096, n_slots=4, n_batch=32, is_split=True))
    seq_cp, n_calls = d.backend.seq_cp, []

    def failing(source, target, start, end):
        n_calls.append(target)
        if len(n_calls) in (1, 2, 4):
            d.backend.seq_rm(target, -1, -1)
            raise RuntimeError("a sequence could not be copied")
        seq_cp(source, target, start, end)

    d.backend.seq_cp = failing
    prompts = [STEM + f" end {i}" for i in range(8)]
    tasks = [d.post(prompt, n_predict=5) for prompt in prompts]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 5) for prompt in prompts]
    assert len(n_calls) >= 4 and "could not be copied and is computed again" in caplog.text


def test_each_of_many_slots_gets_its_own_copy_of_a_beginning_that_is_computed_once():
    d = Driver(FakeBackend(n_ctx=8192, n_slots=8, n_batch=32, is_split=True))
    prompts = [STEM + f" end {i}" for i in range(16)]
    tasks = [d.post(prompt, n_predict=1) for prompt in prompts]
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(prompt, 1) for prompt in prompts]
    assert n_rows(d) <= 1.05 * (len(STEM) + 16 * len(" end 0"))
    assert {cache_of(d, task).source for task in tasks[1:8]} == {"shared"}
    assert d.snapshot.kv_used == sum(len(slot.tokens) for slot in d.scheduler.slots) == d.backend.n_used


def test_a_few_tokens_are_not_copied_from_a_long_slot():
    d = Driver(FakeBackend(n_ctx=8192, n_slots=2, is_split=True))
    d.post(STEM * 8, n_predict=1, id_slot=0)
    d.finish()
    n = len(STEM * 8) // 32
    few, more = (d.post(STEM[:k] + "!", n_predict=1, id_slot=1) for k in (n - 4, n + 4))
    d.finish()
    assert timings(d, few).cache_n == 0 and timings(d, more).cache_n >= n - 4
