"""Random traffic with files: shared, cancelled, failing, saved. After every step slots and cache agree.

At the end every task that wasn't cancelled has one answer, every successful answer is the right text, and nothing is
left.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fake_media import FakeMedia, media, picture_bytes, written_out
from tests.fakes import BOS, FakeBackend
from tests.unit.engine.driving import Driver, Traffic, alone

N_CTX = 256
BAD = media(b"no picture", where="there")


class MediaTraffic(Traffic):
    """One random engine, a handful of files, and what happens to them."""

    most_events = 80

    def __init__(self, seed: int, folder: Path) -> None:
        rng = random.Random(seed)
        n_slots, can_trim = rng.choice((1, 2, 4)), rng.random() < 0.8
        self.backend = FakeBackend(
            n_ctx=N_CTX * n_slots,
            n_slots=n_slots,
            can_shift=can_trim,
            can_trim=can_trim,
            n_batch=max(n_slots, rng.choice((5, 64))),
        )
        self.marks = rng.random() < 0.6
        self.media = FakeMedia(self.backend, marks=self.marks)
        super().__init__(rng, Driver(self.backend, shift_context=can_trim and rng.random() < 0.5))
        self.files = [media(picture_bytes(i, rng.choice((1, 4, 20)), rng.choice((1, 1, 3)))) for i in range(4)]
        self.starts: list[tuple[list[int], list]] = [([BOS, *b"look: "], [])]
        self.lengths: dict[int, int] = {}
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
        task = self.driver.post(
            prompt,
            n,
            media=tuple(files),
            cache_prompt=rng.random() < 0.8,
            id_slot=rng.choice((-1, -1, rng.randrange(self.backend.info.n_slots))),
            progress=rng.random() < 0.2,
        )
        right = None if BAD in files else written_out(prompt, files, self.marks)
        if right is not None and len(right) < 120:
            self.starts.append((prompt, files))
        self.asked[task] = right
        self.lengths[task] = n

    def fail(self) -> None:
        """One of the next evaluations goes wrong: aborted, no room for a moment, or broken."""
        n = self.rng.randrange(1, 4)
        self.media.fail_at[self.media.n_decodes + n] = self.rng.choice((1, 2, -1, RuntimeError("broken")))
        self.backend.fail_at[len(self.backend.batches) + n] = self.rng.choice((1, 2, -1))

    def disturb(self) -> None:
        """A slot is saved, erased and restored."""
        id_slot = self.rng.randrange(self.backend.info.n_slots)
        self.driver.command("save", id_slot=id_slot, path=self.path)
        self.driver.command("erase", id_slot=id_slot)
        self.driver.command("restore", id_slot=id_slot, path=self.path)

    def run(self) -> None:
        """And no file is left open."""
        super().run()
        desk = self.driver.scheduler._state.media
        assert self.media.n_open == 0 and not desk.has_layouts and not len(desk)

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
        traffic = MediaTraffic(seed, tmp_path)
        traffic.run()
        n_good = sum(outcome.final is not None for outcome in traffic.driver.outcomes.values())
        assert n_good or not traffic.asked
        for task in traffic.asked:
            traffic.check_answer(task)
