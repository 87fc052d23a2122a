"""Random traffic with files: shared, cancelled, failing, saved. After every step the slots hold what the cache holds.

At the end every task that nobody cancelled has one answer, every good answer is the right text, and nothing is left.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fake_media import FakeMedia, media, picture_bytes, written_out
from tests.fakes import BOS, FakeBackend
from tests.unit.engine.driving import Driver, alone

N_CTX = 256
BAD = media(b"no picture", where="there")


class Traffic:
    """One random engine, a handful of files, and what happens to them."""

    def __init__(self, seed: int, folder: Path) -> None:
        rng = self.rng = random.Random(seed)
        n_slots, can_trim = rng.choice((1, 2, 4)), rng.random() < 0.8
        self.backend = FakeBackend(n_ctx=N_CTX * n_slots, n_slots=n_slots, can_shift=can_trim, can_trim=can_trim,
                                   n_batch=max(n_slots, rng.choice((5, 64))))
        self.marks = rng.random() < 0.6
        self.media = FakeMedia(self.backend, marks=self.marks)
        self.driver = Driver(self.backend, shift_context=can_trim and rng.random() < 0.5)
        self.files = [media(picture_bytes(i, rng.choice((1, 4, 20)), rng.choice((1, 1, 3)))) for i in range(4)]
        self.starts: list[tuple[list[int], list]] = [([BOS, *b"look: "], [])]
        self.asked: dict[int, list[int] | None] = {}
        self.lengths: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.path = str(folder / f"slot{seed}")

    def post(self) -> None:
        """A task that goes on where another one was, or begins anew."""
        rng = self.rng
        prompt, files = rng.choice(self.starts)
        prompt, files = list(prompt), list(files)
        for _ in range(rng.randrange(3)):
            if rng.random() < 0.6:
                files.append(rng.choice(self.files) if rng.random() < 0.95 else BAD)
                prompt.append(-len(files))
            else:
                prompt += [rng.randrange(97, 123) for _ in range(rng.choice((1, 5, 20)))]
        n = rng.randrange(20)
        task = self.driver.post(prompt, n, media=tuple(files), cache_prompt=rng.random() < 0.8,
                                id_slot=rng.choice((-1, -1, rng.randrange(self.backend.info.n_slots))),
                                progress=rng.random() < 0.2)
        right = None if BAD in files else written_out(prompt, files, self.marks)
        if right is not None and len(right) < 120:
            self.starts.append((prompt, files))
        self.asked[task] = right
        self.lengths[task] = n

    def cancel(self) -> None:
        if self.asked:
            task = self.rng.choice(list(self.asked))
            self.cancelled.add(task)
            self.driver.cancel(task)

    def fail(self) -> None:
        """One of the next evaluations goes wrong: aborted, no room for a moment, or broken."""
        n = self.rng.randrange(1, 4)
        self.media.fail_at[self.media.n_decodes + n] = self.rng.choice((1, 2, -1, RuntimeError("broken")))
        self.backend.fail_at[len(self.backend.batches) + n] = self.rng.choice((1, 2, -1))

    def keep(self) -> None:
        id_slot = self.rng.randrange(self.backend.info.n_slots)
        self.driver.command("save", id_slot=id_slot, path=self.path)
        self.driver.command("erase", id_slot=id_slot)
        self.driver.command("restore", id_slot=id_slot, path=self.path)

    def steps(self) -> None:
        for _ in range(self.rng.choice((1, 1, 3, 20))):
            self.driver.step()
            self.driver.clock.now += 0.01
            self.check()

    def run(self) -> None:
        events = (self.post,) * 8 + (self.steps,) * 10 + (self.cancel, self.fail, self.keep)
        for _ in range(self.rng.randrange(20, 80)):
            self.rng.choice(events)()
        self.driver.step_until(lambda: not set(self.driver.unfinished) - self.cancelled, 20000)
        self.driver.step(3)
        self.check()
        desk = self.driver.scheduler._state.media
        assert self.driver.is_clean() and self.media.n_open == 0 and not desk.has_layouts and not len(desk)

    def check(self) -> None:
        for slot in self.driver.scheduler.slots:
            assert self.backend.history(slot.seq) == slot.tokens
        assert self.backend.n_samplers == sum(slot.run is not None for slot in self.driver.scheduler.slots)

    def check_answer(self, task: int) -> None:
        right, outcome = self.asked[task], self.driver.outcomes[task]
        if outcome.failure is not None:
            assert outcome.failure.status in (400, 500)
            assert (right is not None) or outcome.failure.message.startswith("there: ")
        elif outcome.final is not None and len(right) + self.lengths[task] < N_CTX:
            assert outcome.text == alone(right, self.lengths[task])


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_traffic_with_files(first: int, tmp_path: Path):
    for seed in range(first, first + 10):
        traffic = Traffic(seed, tmp_path)
        traffic.run()
        n_good = sum(outcome.final is not None for outcome in traffic.driver.outcomes.values())
        assert n_good or not traffic.asked
        for task in traffic.asked:
            traffic.check_answer(task)
