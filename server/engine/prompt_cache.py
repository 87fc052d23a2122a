"""What stays in the KV cache between and during tasks: reuse of a prefix, room by eviction, context shift.

Engine thread only. Each function keeps the one invariant: `slot.tokens[i]` is what the cache holds at position i of
the slot's sequence. All of them go through `Backend.seq_*`.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.engine.backend_types import Backend
from server.engine.slot import Slot, common_prefix


def choose_slot(slots: Iterable[Slot], prompt: list[int], cache_prompt: bool) -> Slot | None:
    """The idle slot that shares the longest beginning with `prompt`; among equals the one unused for longest."""
    idle = [slot for slot in slots if slot.run is None]
    if not idle:
        return None
    if not cache_prompt:
        return min(idle, key=lambda slot: (bool(slot.tokens), slot.t_used))
    return max(idle, key=lambda slot: (common_prefix(slot.tokens, prompt), -slot.t_used))


def reuse_prefix(backend: Backend, slot: Slot, prompt: list[int], cache_prompt: bool) -> int:
    """Keep what `prompt` can use of the slot's cache, drop the rest; how many tokens were kept.

    At least the prompt's last token is evaluated again: its logits are needed, and only evaluation gives them.
    """
    n = common_prefix(slot.tokens, prompt) if cache_prompt else 0
    n = max(min(n, len(prompt) - 1), 0)
    return trim(backend, slot, n)


def trim(backend: Backend, slot: Slot, n: int) -> int:
    """Cut the slot's cache to its first `n` tokens; fewer (none) where the model can't drop a tail."""
    if not backend.seq_rm(slot.seq, n, -1):
        backend.seq_rm(slot.seq, -1, -1)
        n = 0
    del slot.tokens[n:]
    return n


def evict_one(backend: Backend, slots: Iterable[Slot]) -> bool:
    """Give up the cache of the idle slot that was used longest ago; False if there is none."""
    idle = [slot for slot in slots if slot.run is None and slot.tokens]
    if not idle:
        return False
    trim(backend, min(idle, key=lambda slot: slot.t_used), 0)
    return True


def shift(backend: Backend, slot: Slot, n_keep: int, n_discard: int) -> int:
    """Make room in a full slot: drop tokens after the first `n_keep`, renumber the rest; how many were dropped.

    `n_discard` 0 means half of what isn't kept. The caller has checked `backend.can_shift`.
    """
    n_past = len(slot.tokens)
    n_keep = max(min(n_keep, n_past - 4), 0)
    n_left = n_past - n_keep
    n_discard = min(n_discard or n_left // 2, n_left - 1) or 1
    backend.seq_rm(slot.seq, n_keep, n_keep + n_discard)
    backend.seq_add(slot.seq, n_keep + n_discard, n_past, -n_discard)
    del slot.tokens[n_keep:n_keep + n_discard]
    return n_discard


def cut_prompt(prompt: list[int], n_ctx: int, n_keep: int) -> list[int]:
    """Fit an over-long prompt: keep the first `n_keep`, drop whole blocks from the middle (2024 behaviour).

    A block is half of what isn't kept; what is left is shorter than `n_ctx`.
    """
    n_keep = max(min(n_keep, n_ctx - 4), 0)
    block = max((n_ctx - n_keep) // 2, 1)
    n_blocks = (len(prompt) - n_keep - block) // block
    return prompt[:n_keep] + prompt[n_keep + n_blocks * block:]
