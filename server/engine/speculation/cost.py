"""What a step costs by its number of rows, and how many drafted rows are worth it. Pure arithmetic, engine thread.

A draft pays if the tokens it is likely to give come cheaper than by steps of their own. That depends on the model, the
machine, and what else is in the step: a CPU with 32 streams gains nothing, with one stream a step of 8 rows costs it
about three of one. So the times are measured as they occur, and a draft is as long as the best ratio of tokens to time.

What is unmeasured is bounded by what was: rows of prompts are computed in the same way, and cheaper, since nobody wants
their logits. Without that a machine whose every row takes its time would be asked again and again. It also shows that
a tile of rows may be quicker than fewer are: attention on CPUs has a better way for it.

Noise only ever adds time (somebody else's work), so an estimate follows faster downwards than upwards, and the first
time of a number of rows that is far above what was expected only counts if there is a second one: what looks dear is
not tried again, so a mistake would stay. What has not been seen for long is forgotten, and tried if it looks worth it.
A text that grows makes all steps slower. The plain ones tell that first, and the others are taken to follow them: else
drafts would be judged by what they cost in a shorter text.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from server.engine.slots.pace import TILE

DOWN, UP = 0.3, 0.06
DOUBT = 2  # times what was expected
MAX_ROWS = 4096
MAX_WAIT = 1.25
FEW_PLAIN = 8
MOST_ALIKE = 8
MIN_PROMPT_ROWS = 16  # fewer tell little about a row
FORGET_AFTER = 2000  # steps
TILE_ROW = 1.25  # what a row with logits costs in rows of prompts, where there are as many as these are read in
FIRST_EXTRA, EXTRA_ROW = 0.35, 0.25  # of one step's time, before anything is measured
ASSUMED_DRAFT = 0.2  # a small model's step in terms of the large one's, likewise


class RowCost:
    """Seconds of a prompt's row in steps of many, lately; 0.0 before there was one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, n_rows: int, seconds: float) -> None:
        """A step of `n_rows` rows of one prompt took `seconds`."""
        if n_rows >= MIN_PROMPT_ROWS:
            row, known = seconds / n_rows, self.seconds
            self.seconds = known + (DOWN if row < known else UP) * (min(row, 3 * known) - known) if known else row


class StepCost:
    """Seconds of a step with n rows. Unmeasured numbers are interpolated, beyond them a plausible slope is assumed, or
    that of prompts (`row`), whichever is steeper."""

    def __init__(self, row: RowCost | None = None) -> None:
        self._row = row or RowCost()
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._doubted: dict[int, float] = {}
        self._sizes: list[int] = []
        self._n_steps = 0

    def observe(self, n_rows: int, seconds: float) -> None:
        """A step of `n_rows` rows took `seconds`."""
        if seconds <= 0.0:
            return
        n_rows = _bucket(n_rows)
        self._n_steps += 1
        known = self._seconds.get(n_rows)
        if known is None:
            if n_rows in self._doubted:
                seconds = min(seconds, self._doubted.pop(n_rows))
            elif self._sizes and seconds > DOUBT * self.estimate(n_rows):
                self._doubted[n_rows] = seconds
                return
            insort(self._sizes, n_rows)
            self._seconds[n_rows] = seconds
        else:
            now = known + (DOWN if seconds < known else UP) * (min(seconds, 3 * known) - known)
            if n_rows == self._sizes[0]:
                for size in self._sizes:
                    self._seconds[size] *= now / known
            self._seconds[n_rows] = now
        self._seen[n_rows] = self._n_steps
        if self._n_steps % FORGET_AFTER == 0:
            self._forget()

    @property
    def is_known(self) -> bool:
        """Whether anything has been measured."""
        return bool(self._sizes)

    def estimate(self, n_rows: int) -> float:
        """Seconds for `n_rows` rows; in units of one step of one row as long as nothing was measured."""
        sizes = self._sizes
        i = bisect_left(sizes, n_rows)
        if i < len(sizes) and sizes[i] == n_rows:
            return self._seconds[n_rows]
        if i == 0:
            if not sizes:
                return _plausible(n_rows)
            return self._seconds[sizes[0]] * _plausible(n_rows) / _plausible(sizes[0])
        low = sizes[i - 1]
        at_low = self._seconds[low]
        if i < len(sizes):
            high = sizes[i]
            return at_low + (self._seconds[high] - at_low) * (n_rows - low) / (high - low)
        row = min(self._row.seconds, at_low / low)  # a row among many is never dearer than one among few
        guess = max(at_low * _plausible(n_rows) / _plausible(low), at_low + row * (n_rows - low))
        if low < TILE <= n_rows and self._row.seconds:
            return max(at_low, min(guess, TILE_ROW * self._row.seconds * n_rows))
        return guess

    def _forget(self) -> None:
        for n_rows, step in list(self._seen.items()):
            if self._n_steps - step > FORGET_AFTER:
                del self._seen[n_rows], self._seconds[n_rows]
                self._sizes.remove(n_rows)


def micro_batches(rows: Sequence[tuple[int, int]]) -> list[int]:
    """Rows of the micro-batches that llama.cpp cuts a batch into where each sequence has a stream of its own.

    `rows` are sequences, ascending, with how many rows each has. A micro-batch takes neighbouring sequences and equally
    many rows of each.
    """
    sizes = []
    while rows:
        n_run = 1
        while n_run < len(rows) and rows[n_run][0] == rows[n_run - 1][0] + 1:
            n_run += 1
        n = min(n for _, n in rows[:n_run])
        sizes.append(n_run * n)
        rows = [(seq, n_seq - n * (i < n_run)) for i, (seq, n_seq) in enumerate(rows) if n_seq > n or i >= n_run]
    return sizes


def best_lengths(
    chances: Sequence[Sequence[float]],
    n_generating: int,
    room: int,
    seconds: Callable[[Sequence[int]], float],
    min_gain: float,
    room_alike: int = 0,
    longest_s: float = math.inf,
) -> list[int]:
    """How many drafted tokens to add to a step for each sequence.

    `chances[i]` are the probabilities (falling) that the first 1, 2, ... tokens of draft i hold; `seconds` tells what
    the step takes with so many tokens of each draft. Of its rows `n_generating` give a token in any case, and `room`
    more fit in, or `room_alike` if all sequences get equally many (which costs the least where each has a stream of its
    own). Only tokens that are given count as gain; it has to be `min_gain` times that of the plain step, and with 0 all
    that fits is sent, whatever it costs. As long as a sequence has no guesses, those of the others may make it wait
    `MAX_WAIT` times as long at most. No step takes longer than `longest_s`, but for one of `FEW_PLAIN` plain ones.
    """
    plain = [0] * len(chances)
    if not min_gain:
        return [plain, *(lengths for lengths, _ in _likeliest_first(chances, room))][-1]
    plain_s = seconds(plain)
    best, chosen = min_gain * n_generating / plain_s, plain
    longest_s = max(longest_s, FEW_PLAIN * plain_s)
    for lengths, gained in (*_likeliest_first(chances, room), *_alike(chances, room_alike)):
        if n_generating + gained <= best * plain_s:
            continue  # not even if these rows cost nothing
        step_s = seconds(lengths)
        if step_s > longest_s:
            continue
        rate = (n_generating + gained) / step_s
        is_short = step_s <= MAX_WAIT * plain_s
        if rate > best and (is_short or n_generating == sum(map(bool, lengths))):
            best, chosen = rate, lengths
    return chosen


def _likeliest_first(chances: Sequence[Sequence[float]], room: int) -> Iterator[tuple[list[int], float]]:
    """Drafts that grow by the likeliest token, and how many tokens of them hold."""
    lengths, gained = [0] * len(chances), 0.0
    for chance, i in sorted(((chance, -i) for i, row in enumerate(chances) for chance in row), reverse=True)[:room]:
        gained += chance
        lengths[-i] += 1
        yield list(lengths), gained


def _alike(chances: Sequence[Sequence[float]], room: int) -> Iterator[tuple[list[int], float]]:
    """The same for drafts of one length for several sequences, shorter only where there is no more."""
    if len(chances) < 2:
        return
    for n in range(1, MOST_ALIKE + 1):
        lengths = [min(n, len(row)) for row in chances]
        if sum(lengths) > room or n not in lengths:
            return
        yield lengths, sum(sum(row[:n]) for row in chances)


def best_common_length(
    chances: Sequence[tuple[float, int]],
    n_generating: int,
    seconds: Callable[[Sequence[int]], float],
    draft_seconds: Callable[[int], float],
    min_gain: float,
) -> int:
    """How many tokens a small model should draft for each sequence, 0 if none.

    `chances` are pairs of how likely a token of the sequence's draft holds if those before it did, and how many the
    sequence can use. Each further token costs a step of the small model, `draft_seconds` by its number of rows. For
    `min_gain` see `best_lengths`.
    """
    longest = max((most for _, most in chances), default=0)
    if not min_gain:
        return longest
    gained, drafting = float(n_generating), 0.0
    lengths = [0] * len(chances)
    best, n_best = min_gain * gained / seconds(lengths), 0
    survival = [1.0] * len(chances)
    for n in range(1, longest + 1):
        live = [i for i, (_, most) in enumerate(chances) if most >= n]
        for i in live:
            survival[i] *= chances[i][0]
            gained += survival[i]
            lengths[i] = n
        drafting += draft_seconds(len(live))
        rate = gained / (seconds(lengths) + drafting)
        if rate > best:
            best, n_best = rate, n
    return n_best


def _bucket(n_rows: int) -> int:
    """Small steps count by themselves, larger ones together with their like."""
    if n_rows <= 32:
        return n_rows
    step = 8 if n_rows <= 128 else 64
    return min(n_rows - n_rows % step, MAX_ROWS)


def _plausible(n_rows: int) -> float:
    return 1.0 if n_rows <= 1 else 1.0 + FIRST_EXTRA + EXTRA_ROW * (n_rows - 1)
