"""What slots hold in the KV cache: reuse and sharing of prefixes, context shift, waiting in memory, checkpoints.

Engine thread only. The functions keep one invariant: `slot.tokens[i]` is the i-th token that the cache holds for the
slot's sequence. A prefix of another slot is copied in a split cache; in a unified cache its cells are shared. Positions
of shared cells can't be changed for one sequence alone, so a slot that may share cells gets cells of its own
(`unshare`) before a context shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.engine.slots.backend import Backend
from server.engine.slots.slot import Aside, Checkpoint, Slot, count_common_prefix
from server.log import get_logger

MIN_SHARED = 16  # tokens by which another slot's prefix must be longer to be taken
COPY_COST = 32  # copying this many tokens takes about as long as evaluating one

log = get_logger("engine")


def choose_slot(
    slots: Iterable[Slot],
    prompt: list[int],
    cache_prompt: bool,
    lora: tuple[tuple[int, float], ...] = (),
    now: float = 0.0,
) -> Slot | None:
    """The idle slot to run `prompt` on; None if no slot is idle. It is one that the prompt continues (only with
    `cache_prompt`), else an empty one, else the one of least value (`estimate_value`).

    A prompt continues a slot with the same adapters if it can reuse at least three quarters of the slot's tokens, or if
    the slot has all of the prompt up to its last token. A shorter common prefix is no reason to give up a
    conversation's cache, because any slot can share it.
    """
    idle = [slot for slot in slots if slot.run is None]
    if cache_prompt:
        kept = {slot.id: slot.count_reusable(prompt) for slot in idle if slot.lora == lora}
        continued = [
            slot
            for slot in idle
            if slot.tokens
            and (4 * kept.get(slot.id, 0) >= 3 * len(slot.tokens) or kept.get(slot.id, 0) >= len(prompt) - 1 > 0)
        ]
        if continued:
            return max(continued, key=lambda slot: kept[slot.id])
    return min(idle, key=lambda slot: (bool(slot.tokens), estimate_value(slot, now), slot.t_used), default=None)


def estimate_value(slot: Slot, now: float) -> float:
    """The value of an idle slot's cache: its tokens that aren't shared, divided by 1 + the seconds since its use."""
    return (len(slot.tokens) - slot.n_shared) / (1.0 + max(now - slot.t_used, 0.0))


def reuse_prefix(
    backend: Backend,
    slot: Slot,
    prompt: list[int],
    cache_prompt: bool,
    donors: Sequence[Slot] = (),
    limit: int | None = None,
) -> int:
    """Keep the slot's tokens that `prompt` begins with, or take a longer prefix from one of the slots `donors` if that
    is worth the copy; drop the slot's other tokens. Returns how many tokens the slot has then.

    At most `limit` tokens are reused, by default all but the prompt's last, whose logits are needed. Without
    `cache_prompt` only donors' tokens are reused.
    """
    if limit is None:
        limit = max(len(prompt) - 1, 0)
    n = trim(backend, slot, min(slot.count_reusable(prompt), limit) if cache_prompt else 0)
    if backend.window:
        donors = [
            other for other in donors if min(other.count_reusable(prompt), limit) >= _compute_least_left(backend, other)
        ]
    if not (backend.can_share and donors):
        return n
    donor = max(donors, key=lambda other: other.count_reusable(prompt))
    n_donor = min(donor.count_reusable(prompt), limit)
    if n_donor < n + MIN_SHARED or backend.is_split and n_donor < n + len(donor.tokens) // COPY_COST:
        return n
    if backend.is_split:
        return n_donor if _copy(backend, slot, donor, prompt[:n_donor]) else 0
    backend.seq_cp(donor.seq, slot.seq, n, n_donor)
    slot.tokens[n:] = prompt[n:n_donor]
    slot.is_sharing = donor.is_sharing = True
    slot.n_shared, donor.n_shared = n_donor, max(donor.n_shared, n_donor)
    slot.n_shares += 1
    return n_donor


def _compute_least_left(backend: Backend, slot: Slot) -> int:
    """With sliding windows: the fewest tokens that can be copied from a slot."""
    if slot.state_copy is None:
        return backend.compute_least_left(slot.seq)
    return len(slot.tokens) - 1 if len(slot.tokens) > backend.window else 0


def _copy(backend: Backend, slot: Slot, donor: Slot, tokens: list[int]) -> bool:
    """Make the slot hold `tokens`, a prefix of the donor's. False if that fails; then the slot is empty."""
    n = len(slot.tokens)
    forget(slot)
    try:
        if donor.state_copy is None:
            backend.seq_cp(donor.seq, slot.seq, n, len(tokens))
        elif not (backend.set_state(slot.seq, donor.state_copy) and backend.seq_rm(slot.seq, len(tokens), -1)):
            raise RuntimeError("the system prompt's state could not be restored to the cache")
    except (RuntimeError, MemoryError) as error:
        log.warning("a cached prefix could not be copied and is computed again: %s", error or "not enough memory")
        trim(backend, slot, 0)
        return False
    slot.n_shares += 1
    slot.tokens[:] = tokens
    return True


def forget(slot: Slot) -> None:
    """Note that the slot's sequence is empty, or about to be filled with other tokens."""
    slot.tokens.clear()
    slot.checkpoints.clear()
    slot.is_sharing, slot.shifted_at = False, None
    slot.n_shared = 0
    slot.parked = []
    slot.positions = None


def trim(backend: Backend, slot: Slot, n: int) -> int:
    """Cut the slot's cache to its first `n` tokens, or fewer. Returns how many stay.

    If the model can't drop a tail, a checkpoint's tokens stay, or none. None stay if a sliding window has overwritten
    what they need, or if self-extend may have merged positions.
    """
    if slot.positions is not None and n < len(slot.tokens):
        n = 0
    if backend.window and n < len(slot.tokens) and n < backend.compute_least_left(slot.seq):
        n = 0
    if not backend.seq_rm(slot.seq, slot.next_pos if n == len(slot.tokens) else n, -1):
        n = _go_back(backend, slot, n)
    if n == 0:
        forget(slot)
        return 0
    del slot.tokens[n:]
    while slot.checkpoints and slot.checkpoints[-1].n > n:
        slot.checkpoints.pop()
    slot.n_shared = min(slot.n_shared, n)
    if slot.shifted_at is not None and n <= slot.shifted_at:
        slot.shifted_at = None
    return n


def _go_back(backend: Backend, slot: Slot, n: int) -> int:
    """Restore the latest usable checkpoint of at most `n` tokens, else empty the sequence. Returns how many stay."""
    for checkpoint in reversed(slot.checkpoints):
        if checkpoint.n <= n and backend.restore_checkpoint(slot.seq, checkpoint.state):
            if backend.seq_rm(slot.seq, checkpoint.n, -1):
                return checkpoint.n
    backend.seq_rm(slot.seq, -1, -1)
    return 0


def find_least_valuable(slots: Iterable[Slot], now: float = 0.0) -> Slot | None:
    """The idle slot with the least valuable cache; None if no idle slot has one."""
    idle = [slot for slot in slots if slot.run is None and slot.tokens]
    return min(idle, key=lambda slot: (estimate_value(slot, now), slot.t_used), default=None)


def shift(backend: Backend, slot: Slot, n_keep: int, n_discard: int) -> int:
    """Make room in a full slot: drop `n_discard` of the tokens behind the first `n_keep` (0: half), and renumber those
    that follow. Returns how many were dropped.

    Both numbers are reduced if too few tokens would follow. The caller has checked `backend.can_shift`.
    """
    n_past = len(slot.tokens)
    n_keep = max(min(n_keep, n_past - 4), 0)
    n_left = n_past - n_keep
    n_discard = min(n_discard or n_left // 2, n_left - 1) or 1
    cut(backend, slot, n_keep, n_keep + n_discard)
    return n_discard


def cut(backend: Backend, slot: Slot, start: int, end: int) -> None:
    """Remove the tokens [start, end) from a slot and renumber those behind. The caller has checked
    `backend.can_shift`."""
    if slot.is_sharing:
        backend.unshare(slot.seq)
        slot.is_sharing, slot.n_shared = False, 0
    backend.seq_rm(slot.seq, start, end)
    if end < len(slot.tokens):
        backend.seq_add(slot.seq, end, len(slot.tokens), start - end)
    del slot.tokens[start:end]
    slot.shifted_at = start if slot.shifted_at is None else min(slot.shifted_at, start)
    slot.checkpoints.clear()


def put_aside(backend: Backend, slot: Slot) -> None:
    """Move a running slot's cells from the cache to memory (`Slot.aside`). After a MemoryError or RuntimeError they are
    still in the cache."""
    state = backend.read_state(slot.seq) if slot.tokens else None
    aside = Aside(state, list(slot.tokens), slot.positions, slot.shifted_at, list(slot.checkpoints))
    backend.seq_rm(slot.seq, -1, -1)
    forget(slot)
    slot.aside = aside


def take_up(backend: Backend, slot: Slot) -> bool:
    """Restore to the cache what `put_aside` saved, into cells of the slot's own. False if there is no room; then
    nothing has changed."""
    aside: Aside = slot.aside  # type: ignore[assignment]
    if aside.state is not None and not backend.set_state(slot.seq, aside.state):
        backend.seq_rm(slot.seq, -1, -1)
        return False
    slot.tokens, slot.positions, slot.shifted_at = aside.tokens, aside.positions, aside.shifted_at
    slot.checkpoints, slot.aside = aside.checkpoints, None
    return True


def fold(backend: Backend, slot: Slot) -> None:
    """Self-extend: apply the due folds to the slot's positions in the cache."""
    while (step := slot.positions.fold()) is not None:
        backend.seq_add(slot.seq, step.add_start, step.add_end, step.add_delta)
        backend.seq_div(slot.seq, step.divide_start, step.divide_end, slot.positions.factor)
        backend.seq_add(slot.seq, step.rest_start, step.rest_end, step.rest_delta)


def cut_prompt(prompt: list[int], n_ctx: int, n_keep: int) -> list[int]:
    """Cut a prompt that is too long, as llama.cpp's server did in 2024: keep the first `n_keep` tokens (at most
    `n_ctx` - 4) and drop whole blocks behind them.

    A block here is half of the context that remains for other tokens. The result is shorter than `n_ctx`.
    """
    n_keep = max(min(n_keep, n_ctx - 4), 0)
    block = max((n_ctx - n_keep) // 2, 1)
    n_blocks = (len(prompt) - n_keep - block) // block
    return prompt[:n_keep] + prompt[n_keep + n_blocks * block :]


def count_shared(slots: Iterable[Slot]) -> int:
    """About how many cells the slots save by sharing."""
    seen: list[Slot] = []
    total = 0
    for slot in slots:
        if slot.n_shared:
            total += max(
                (
                    min(count_common_prefix(slot.tokens[: slot.n_shared], other.tokens), other.n_shared)
                    for other in seen
                ),
                default=0,
            )
            seen.append(slot)
    return total


# ---- checkpoints: for models whose state can't be cut ----------------------------------------------------------------

# A recurrent model's state depends on all tokens so far and can't be cut. So it is copied every `step` tokens of a
# prompt and shortly before the prompt's end (`Slot.checkpoints`), and `trim` goes back to the last copy before the cut.
# A step reads a prompt only up to the next token at which a copy is due. Of hybrid models only the recurrent part is
# copied, since attention cells can be cut. Not taken: copies while text is generated. The next request seldom goes back
# there.
END_MARGIN = 4
"""A copy is made this many tokens before a prompt's end. The next prompt may differ from there on: a template ends with
the beginning of an answer, and the prompt's last token may merge with the answer's first characters."""

MIN_TOKENS = 32
"""The copy before a prompt's end has at least this many tokens."""


class Checkpoints:
    """Makes the copies, at most `limit` for each slot."""

    def __init__(self, backend: Backend, limit: int, step: int) -> None:
        self._backend = backend
        self._limit = limit
        self._step = step
        self.is_on = not backend.can_share and limit > 0

    def count_rows(self, slot: Slot) -> int:
        """How many rows of a slot's prompt the next step may read at most. Makes a copy if one is due now."""
        n, end = len(slot.tokens), len(slot.run.prompt) - END_MARGIN
        end = end if end >= MIN_TOKENS else 0
        if slot.run.layout.chunks or slot.positions is not None:
            return len(slot.run.prompt)
        if 0 < n and (n % self._step == 0 or n == end) and not any(one.n == n for one in slot.checkpoints):
            slot.checkpoints.append(Checkpoint(n, self._backend.take_checkpoint(slot.seq)))
            self._thin_out(slot)
        stop = n - n % self._step + self._step
        return (end if n < end < stop else min(stop, len(slot.run.prompt))) - n

    def _thin_out(self, slot: Slot) -> None:
        """Drop the copies that leave the smallest gaps, but never the latest."""
        while len(slot.checkpoints) > self._limit:
            places = [0, *(one.n for one in slot.checkpoints)]
            gaps = [places[i + 1] - places[i - 1] for i in range(1, len(places) - 1)]
            del slot.checkpoints[gaps.index(min(gaps))]
