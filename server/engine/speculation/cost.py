"""Learns what a step costs by its number of rows, and decides how many drafted rows pay.

Engine thread, pure arithmetic. Steps are measured by their number of rows (size). A draft gets the length with the most
expected tokens per second.

While only sizes below a tile were measured, the cost of larger ones is bounded by that of prompt rows, which are
computed in the same way but without logits.

Other load on the machine only adds time. So an estimate falls faster than it rises. A size that looks too expensive
isn't tried again. So if its first time is far above the expected one, a second one is awaited, and the shorter counts.
All steps get slower as a text grows. The smallest size shows that first, and the others are scaled with it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from server.engine.slots.pace import TILE

DOWN, UP = 0.3, 0.06  # weight of a new time that is shorter, or longer, than the estimate
DOUBT = 2  # a first time that exceeds the expected one by this factor must come twice
MAX_ROWS = 4096  # larger steps count as steps of this many rows
MAX_WAIT = 1.25  # with several sequences, drafts may always lengthen a step by this factor
FEW_PLAIN = 8  # a step with drafts may take the time of this many steps without drafts, whatever its limit
MOST_ALIKE = 8  # the most tokens of a draft, where drafts are equally long for all sequences
MIN_PROMPT_ROWS = 16  # smaller steps of prompt rows aren't measured
FORGET_AFTER = 2000  # steps without a size, after which its cost is forgotten
TILE_ROW = 1.25  # cost of a row with logits in a step of a tile or more, relative to a prompt row
FIRST_EXTRA, EXTRA_ROW = 0.35, 0.25  # assumed cost of any draft, and of each of its rows, relative to a step of one row
ASSUMED_DRAFT = 0.2  # assumed cost of a small model's step, relative to the large one's


class RowCost:
    """The recent cost in seconds of a prompt row in a large step; 0.0 before one was measured."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, n_rows: int, seconds: float) -> None:
        if n_rows >= MIN_PROMPT_ROWS:
            row, known = seconds / n_rows, self.seconds
            self.seconds = known + (DOWN if row < known else UP) * (min(row, 3 * known) - known) if known else row


class StepCost:
    """Seconds of a step by its number of rows. Sizes that weren't measured are estimated from others and prompt
    rows."""

    def __init__(self, row: RowCost | None = None) -> None:
        self._row = row or RowCost()
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._doubted: dict[int, float] = {}
        self._sizes: list[int] = []
        self._n_steps = 0

    def observe(self, n_rows: int, seconds: float) -> None:
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
        return bool(self._sizes)

    def estimate(self, n_rows: int) -> float:
        """Seconds for a step of `n_rows` rows. Before the first measurement the unit is the time of a step of one
        row."""
        sizes = self._sizes
        i = bisect_left(sizes, n_rows)
        if i < len(sizes) and sizes[i] == n_rows:
            return self._seconds[n_rows]
        if i == 0:
            if not sizes:
                return _estimate_plausible(n_rows)
            return self._seconds[sizes[0]] * _estimate_plausible(n_rows) / _estimate_plausible(sizes[0])
        low = sizes[i - 1]
        at_low = self._seconds[low]
        if i < len(sizes):
            high = sizes[i]
            return at_low + (self._seconds[high] - at_low) * (n_rows - low) / (high - low)
        row = min(self._row.seconds, at_low / low)  # a row in a large step costs no more than in a small one
        guess = max(at_low * _estimate_plausible(n_rows) / _estimate_plausible(low), at_low + row * (n_rows - low))
        if low < TILE <= n_rows and self._row.seconds:
            return max(at_low, min(guess, TILE_ROW * self._row.seconds * n_rows))
        return guess

    def _forget(self) -> None:
        for n_rows, step in list(self._seen.items()):
            if self._n_steps - step > FORGET_AFTER:
                del self._seen[n_rows], self._seconds[n_rows]
                self._sizes.remove(n_rows)


def compute_micro_batches(rows: Sequence[tuple[int, int]]) -> list[int]:
    """The sizes, in rows, of the micro-batches into which llama.cpp cuts a batch of a split cache.

    `rows` are (sequence, number of rows) pairs, ascending. A micro-batch has equally many rows of consecutive
    sequences.
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


def find_best_lengths(
    chances: Sequence[Sequence[float]],
    n_generating: int,
    room: int,
    seconds: Callable[[Sequence[int]], float],
    min_gain: float,
    room_alike: int = 0,
    longest_s: float = math.inf,
) -> list[int]:
    """How many drafted tokens to add to a step for each sequence.

    - `chances[i]`: the falling probabilities that the first 1, 2, ... tokens of draft i prove right.
    - `n_generating`: rows of the plain step (without drafts). Each yields a token.
    - `room`: how many more rows fit in; `room_alike`: the same if all sequences get equally many.
    - `seconds`: estimates the step by the lengths of all drafts.
    - `min_gain`: the expected tokens per second must exceed so many times those of the plain step; 0: send all.
    - `longest_s`: limit of the step, or `FEW_PLAIN` plain steps if that is more.

    With several sequences, the step may take at most `MAX_WAIT` times as long as the plain one, so that streams stay
    smooth. If all get drafts that make them g times as fast, it may take g * g times as long.
    """
    plain = [0] * len(chances)
    if not min_gain:
        return [plain, *(lengths for lengths, _ in _list_likeliest_first(chances, room))][-1]
    plain_s = seconds(plain)
    best, chosen = min_gain * n_generating / plain_s, plain
    longest_s = max(longest_s, FEW_PLAIN * plain_s)
    for lengths, gained in (*_list_likeliest_first(chances, room), *_list_alike(chances, room_alike)):
        if n_generating + gained <= best * plain_s:
            continue  # these rows wouldn't pay even if they cost nothing
        step_s = seconds(lengths)
        if step_s > longest_s:
            continue
        rate = (n_generating + gained) / step_s
        gain = rate * plain_s / n_generating
        most_s = plain_s * (max(MAX_WAIT, gain**2) if n_generating == sum(map(bool, lengths)) else MAX_WAIT)
        if rate > best and (n_generating == 1 or step_s <= most_s):
            best, chosen = rate, lengths
    return chosen


def _list_likeliest_first(chances: Sequence[Sequence[float]], room: int) -> Iterator[tuple[list[int], float]]:
    """Lengths of drafts that grow by the most likely token at each turn, and the number of tokens expected to prove
    right."""
    lengths, gained = [0] * len(chances), 0.0
    for chance, i in sorted(((chance, -i) for i, row in enumerate(chances) for chance in row), reverse=True)[:room]:
        gained += chance
        lengths[-i] += 1
        yield list(lengths), gained


def _list_alike(chances: Sequence[Sequence[float]], room: int) -> Iterator[tuple[list[int], float]]:
    """Like `_list_likeliest_first`, for drafts of equal lengths, except that a shorter one is taken whole."""
    if len(chances) < 2:
        return
    for n in range(1, MOST_ALIKE + 1):
        lengths = [min(n, len(row)) for row in chances]
        if sum(lengths) > room or n not in lengths:
            return
        yield lengths, sum(sum(row[:n]) for row in chances)


def find_best_common_length(
    chances: Sequence[tuple[float, int]],
    n_generating: int,
    seconds: Callable[[Sequence[int]], float],
    draft_seconds: Callable[[int], float],
    min_gain: float,
) -> int:
    """How many tokens the small model should draft for each sequence, 0 for none.

    `chances` has a pair for each sequence: the chance of a drafted token if those before it proved right, and how many
    the sequence can use. `draft_seconds` estimates a step of the small model by its rows. For the rest see
    `find_best_lengths`.
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
    """The size that a step counts as: small ones exactly, large ones rounded down."""
    if n_rows <= 32:
        return n_rows
    step = 8 if n_rows <= 128 else 64
    return min(n_rows - n_rows % step, MAX_ROWS)


def _estimate_plausible(n_rows: int) -> float:
    return 1.0 if n_rows <= 1 else 1.0 + FIRST_EXTRA + EXTRA_ROW * (n_rows - 1)
