"""Random traffic over random engines: whatever is posted, cancelled, erased or fails, in any order, the invariants
hold.

After every step slots and cache agree, and only running tasks own samplers. At the end every task that wasn't cancelled
has one answer, every successful answer is the right text, and nothing is left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.engine.seam.config import SpecConfig
from server.engine.seam.task import STOP_WORD
from tests.fakes import BOS, FakeBackend, letters
from tests.unit.engine.driving import Driver, Traffic

N_SHORT, N_LONG = 80, 4000


def expected_text(prompt: list[int], n: int, n_ctx: int, n_keep: int, is_shifting: bool) -> str:
    """What the fake model says to a prompt that fits, with or without context shift."""
    history, said = list(prompt), []
    for _ in range(n):
        said.append(letters(history))
        if len(history) == n_ctx:
            if not is_shifting:
                break
            kept = min(n_keep, n_ctx - 4)
            del history[kept : kept + (max((n_ctx - kept) // 2, 1))]
        history.append(said[-1])
    return bytes(said).decode()


def often_right(history: Sequence[int]) -> int:
    """A draft model that mostly says what `letters` does."""
    token = letters(history)
    return token if sum(history) % 4 else 97


class TextTraffic(Traffic):
    """One random engine and what happens to it."""

    most_events = 120

    def __init__(self, seed: int, is_whole: bool = False) -> None:
        """With `is_whole` slots may use all of one cache, which they overflow together again and again."""
        rng = random.Random(seed)
        n_slots, self.n_ctx = rng.choice((1, 2, 3, 5)), rng.choice((32, 64, 256))
        if is_whole:
            n_slots = max(n_slots, 2)
        can_trim = rng.random() < 0.8
        n_cells = None if rng.random() < 0.6 or is_whole else rng.randrange(self.n_ctx, self.n_ctx * n_slots + 1)
        self.backend = FakeBackend(
            letters,
            self.n_ctx * (1 if is_whole else n_slots),
            n_slots,
            n_cells,
            can_trim,
            can_trim,
            max(n_slots, rng.choice((4, 9, 64))),
            is_split=seed % 2 == 1 and not is_whole,
            is_whole=is_whole,
        )
        self.backend.info = replace(self.backend.info, devices=("CPU",))
        self.backend.adapters = ("first", "second")
        self.is_shifting = can_trim and rng.random() < 0.5
        if rng.random() < 0.4:
            self.backend.drafter = FakeBackend(often_right, self.n_ctx * n_slots, n_slots, can_trim=rng.random() < 0.8)
        spec = SpecConfig(
            lookup=rng.random() < 0.5,
            answers=rng.random() < 0.5,
            ngram=rng.choice((1, 2)),
            n_max=rng.choice((1, 5)),
            n_min=rng.choice((0, 0, 2)),
        )
        super().__init__(
            rng,
            Driver(
                self.backend,
                spec=spec,
                lora=(("first", 0.0), ("second", 0.0)),
                shift_context=self.is_shifting,
                cont_batching=rng.random() < 0.9,
                max_queue=rng.choice((3, 100)),
                cache_ram=rng.choice((0, 0, 1)),
            ),
        )
        self.stems = [[BOS, *self.letters(n)] for n in (0, 5, 20, 40)]
        self.may_fail = n_cells is not None

    def letters(self, n: int) -> list[int]:
        return [self.rng.randrange(97, 123) for _ in range(n)]

    def post(self) -> None:
        """A task whose prompt may share its beginning with others', and may be too long."""
        rng = self.rng
        stem = rng.choice(self.stems + [prompt for prompt, _, _ in list(self.asked.values())[-3:]])
        prompt = stem[: rng.randrange(1, len(stem) + 1)] + self.letters(rng.choice((0, 1, 5, 30)))
        if rng.random() < 0.9:
            prompt = prompt[: self.n_ctx - 1]
        n, n_keep = rng.randrange(40), rng.choice((0, 3, -1))
        task = self.driver.post(
            prompt,
            n,
            n_keep=n_keep,
            id_slot=rng.choice((-1, -1, -1, rng.randrange(len(self.driver.scheduler.slots)))),
            cache_prompt=rng.random() < 0.7,
            lora=rng.choice((None, None, ((0, 1.0),), ((1, 0.5),))),
            progress=rng.random() < 0.2,
            stop=rng.choice(((), (), ("a",), ("qx", "zz"))),
        )
        self.asked[task] = prompt, n, len(prompt) if n_keep < 0 else n_keep

    def fail(self) -> None:
        """One of the next decodes goes wrong."""
        self.backend.fail_at[len(self.backend.batches) + self.rng.randrange(1, 6)] = self.rng.choice((1, 2, -1, -3))
        self.may_fail = True

    def disturb(self) -> None:
        """A slot is erased."""
        self.driver.command("erase", id_slot=self.rng.randrange(len(self.driver.scheduler.slots)))

    def check(self) -> None:
        """And no block was left behind."""
        super().check()
        assert not self.backend.history(len(self.driver.scheduler.slots) + 1)

    def check_answer(self, id_task: int) -> None:
        prompt, n, n_keep = self.asked[id_task]
        outcome = self.driver.outcomes[id_task]
        if outcome.failure is not None:
            assert outcome.failure.status in (400, 503) or outcome.failure.status == 500 and self.may_fail
            assert "memory to hold this request" not in outcome.failure.message
        elif outcome.final is not None and len(prompt) < self.n_ctx:
            text = outcome.text + outcome.final.stopping_word
            right = expected_text(prompt, n, self.n_ctx, n_keep, self.is_shifting)
            assert text == right[: len(text)] if outcome.final.stop == STOP_WORD else text == right


def assert_rules_hold(seed: int, is_whole: bool = False) -> None:
    traffic = TextTraffic(seed, is_whole)
    traffic.run()
    for id_task in traffic.asked:
        traffic.check_answer(id_task)


@pytest.mark.parametrize("first", range(0, N_SHORT, 10))
def test_random_traffic(first):
    for seed in range(first, first + 10):
        assert_rules_hold(seed)


@pytest.mark.covers("T19")
@pytest.mark.parametrize("first", range(0, N_SHORT, 10))
def test_random_traffic_that_overflows_one_cache(first):
    for seed in range(first, first + 10):
        assert_rules_hold(seed, is_whole=True)


@pytest.mark.long
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("first", range(N_SHORT, N_LONG, 100))
def test_a_lot_of_random_traffic(first, is_whole):
    for seed in range(first, first + 100):
        assert_rules_hold(seed, is_whole)
