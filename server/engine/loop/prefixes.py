"""Where the beginning of a prompt comes from: its slot, another slot, a running prefill, memory or disk.

Engine thread only. This module decides; `prompt_cache` and `block_cache` move cells. `Run.first_difference`, which
clients see, compares a prompt only with texts of its owner (`find_nearest`).

If another slot is reading a prompt with the same prefix, a task waits until that slot (its leader) has read the prefix,
and reuses its cells. So common prefixes are computed once. A waiting task never leads another, so there are no cycles.

In a unified cache running tasks can need more cells than there are. Then the newest task waits: its cells are moved to
memory, and back once there is room, so its text doesn't change. A task waits only for older ones, so the oldest always
runs and no task waits for ever. Other tasks come back only when there is room to spare (`SPARE_PART`), so that they can
run for a while. Tasks in the background count as newer than all others.

Not taken: a radix tree over all sequences. They are few, and comparing their token lists takes microseconds. Nor
starting a task only when its whole text has room: the text's length isn't known.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from server.engine.cache import prompt_cache, spelling
from server.engine.cache.block_cache import BlockCache
from server.engine.cache.block_tree import Lora
from server.engine.cache.prompt_cache import MIN_SHARED
from server.engine.loop.state import EngineState, get_arrival
from server.engine.seam.task import CACHE_NONE, CACHE_SHARED, CACHE_SLOT, Task
from server.engine.slots.self_extend import GroupAttention
from server.engine.slots.slot import Leader, Run, Slot, count_common_prefix
from server.log import get_logger

MAX_SAVE_S = 1.0  # seconds for saving one cache, and for saving all of them at the end
PARK_AFTER_ROWS = 64  # rows computed since an idle slot's latest use before its cells are moved to memory
MIN_PARKED = 64  # cells of its own that an idle slot must have to be moved
SPARE_PART = 8
"""A task comes back from memory when its cells (or its whole prompt, if that is more) and 1 / `SPARE_PART` of the cache
fit beside older tasks; the oldest needs only its cells."""
LAST_TOKEN = "the last token is evaluated again"
NOT_ASKED = "cache_prompt is false"
OTHER_LORA = "computed with other adapters"
SHIFTED = "the context was shifted"
SELF_EXTEND = "self-extend reuses nothing"
EXACT = "--exact reuses nothing"
NO_TRIM = "this model's cache can't be cut there"
TOO_SHORT = f"fewer than {MIN_SHARED} more tokens aren't shared"

log = get_logger("engine")


class Prefixes:
    """Decides what each slot's cache keeps, shares and gives up."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self.blocks = BlockCache(state.backend, state.config, state.clock)
        devices = state.backend.info.devices
        is_on_cpu = bool(devices) and all(name == "CPU" for name in devices)
        self._is_parking = not state.backend.is_split and self.blocks.has_memory and is_on_cpu
        self._shared: tuple[tuple[int, ...], int] = ((), 0)  # what the number of shared cells depends on; that number

    def count_kv_used(self) -> int:
        """The cells of the KV cache in use."""
        if self._state.backend.is_split:
            return sum(len(slot.tokens) for slot in self._state.slots)
        slots = [*self._state.slots, self._state.system]
        sharing = tuple(n for slot in slots for n in (slot.n_shared, slot.n_shares))
        if sharing != self._shared[0]:
            self._shared = sharing, prompt_cache.count_shared(slots)
        return sum(len(slot.tokens) for slot in slots) - self._shared[1]

    def choose_slot(self, free: list[Slot], task: Task, prompt: list[int]) -> Any:
        """The free slot that suits a task best. A task with `probs_from` gets one that loses least: with a
        shifted context, else with the least of its prompt. So the slot with its whole text keeps that."""
        if task.probs_from:
            return min(
                free, key=lambda slot: (slot.shifted_at is None, count_common_prefix(slot.tokens, prompt), slot.t_used)
            )
        return prompt_cache.choose_slot(free, prompt, task.cache_prompt, self._state.lora_of(task), self._state.clock())

    def find_nearest(self, task: Task, prompt: list[int]) -> list[int]:
        """The cached text of the task's owner and adapters with the longest prefix of the prompt; of several the
        latest."""
        lora = self._state.lora_of(task)
        texts = [
            slot.tokens[: slot.shifted_at]
            for slot in sorted(self._state.slots, key=lambda slot: -slot.t_used)
            if slot.owner == task.owner and slot.lora == lora
        ]
        texts.append(self.blocks.find_nearest(lora, prompt, task.owner))
        return max(texts, key=lambda tokens: count_common_prefix(tokens, prompt))

    def respell(self, prompt: list[int], cached: list[int]) -> list[int]:
        """The prompt with the cached tokens of the same text, where these differ and can be reused."""
        state = self._state
        if state.config.exact or state.config.n_group > 1:
            return prompt
        spelled = spelling.respell(prompt, cached, state.backend.get_letters)
        return spelled if len(spelled) <= max(len(prompt), state.backend.info.n_ctx_slot - 1) else prompt

    def begin(self, slot: Slot, run: Run) -> None:
        """Prepare the slot's cache for a task: reuse what any cache has of its prompt, and note why not more."""
        state, task = self._state, run.task
        lora = state.lora_of(task)
        n_known, why_not = self._find_longest(run.prompt, lora)
        self._log_difference(run)
        is_kept = task.cache_prompt and slot.lora == lora
        self._give_up(slot, run.prompt, slot.count_reusable(run.prompt) if is_kept else 0)
        is_folding = state.config.n_group > 1
        if is_folding or state.config.exact or slot.lora != lora:
            prompt_cache.trim(state.backend, slot, 0)
        slot.lora = lora
        if is_folding:
            slot.positions = GroupAttention(state.config.n_group, state.config.group_width)
        elif not state.config.exact:
            self._reuse(slot, run)
            run.leader = self._find_leader(slot, run)
        slot.owner = task.owner
        run.cache_reason = self._choose_reason(slot, run, n_known, why_not)

    def must_wait(self, slot: Slot) -> bool:
        """Whether a slot's prompt must wait for its leader. After the wait the slot takes over the leader's cells."""
        run: Run = slot.run  # type: ignore[assignment]
        if run.leader is None:
            return False
        if run.leader.slot.run is run.leader.run and len(run.leader.slot.tokens) < run.leader.n:
            return True
        self._reuse(slot, run)
        run.leader = self._find_leader(slot, run)  # a new one, if another slot is reading more of the prompt
        run.cache_reason = LAST_TOKEN if run.n_cached == run.n_reusable else ""
        if run.task.progress:
            self._state.report_progress(slot)
        return run.leader is not None

    def make_room(self, but: Slot | None = None) -> bool:
        """Give up the least valuable cache of an idle slot other than `but`. False if there is none, or in a split
        cache, where that frees no room for others."""
        if self._state.backend.is_split:
            return False
        others = [slot for slot in self._state.slots if slot is not but]
        slot = prompt_cache.find_least_valuable(others, self._state.clock())
        if slot is None:
            return False
        self.blocks.save(slot, self._save_limit_s())
        prompt_cache.trim(self._state.backend, slot, 0)
        return True

    # ---- room for running tasks --------------------------------------------------------------------------------

    def share_room(self) -> None:
        """Before a step: resume tasks that have room now, the oldest first, and shift full contexts."""
        for slot in list(self._state.aside):
            self._take_up(slot)
        for slot in [slot for slot in self._state.running if slot.run.is_full]:
            if slot.aside is None:
                self._shift(slot)

    def step_aside(self) -> bool:
        """Move the newest running task to memory, where it waits. False if it is the only one, or in a split cache."""
        if self._state.backend.is_split or len(self._state.running) < 2:
            return False
        self._put_aside(self._state.running[-1])
        return True

    def _put_aside(self, slot: Slot) -> None:
        state, run = self._state, slot.run
        try:
            prompt_cache.put_aside(state.backend, slot)
        except (MemoryError, RuntimeError) as error:
            log.warning("task %d can't wait for room in the cache: %s", run.task.id, error or "not enough memory")
            state.fail(run.task.id, 503, "the KV cache is full, and there is no memory to hold this request; try later")
            state.drop(slot, keep_cache=False)
            return
        log.debug("task %d waits for room in the cache, with %d tokens", run.task.id, len(slot.aside.tokens))
        state.suspend(slot)
        state.meter.n_asides += 1

    def _take_up(self, slot: Slot) -> None:
        """Resume a waiting task if there is room beside older ones. Newer tasks have to step aside for it."""
        state, n = self._state, len(slot.aside.tokens)
        older = [other for other in state.running if get_arrival(other) < get_arrival(slot)]
        n_ctx, n_older = state.backend.info.n_ctx, _count_cells([*older, state.system])
        n_wanted = max(n, len(slot.run.prompt)) + n_ctx // SPARE_PART
        if older and (slot.run.is_last_in_line or n_older + n_wanted > n_ctx):
            return
        while self.count_kv_used() + n > n_ctx or not prompt_cache.take_up(state.backend, slot):
            if self.make_room():
                continue
            if len(state.running) == len(older):
                slot.run.is_last_in_line = True
                break
            self._put_aside(state.running[-1])
        if slot.aside is None:
            state.resume(slot)
        elif not older:
            state.fail(slot.run.task.id, 500, "the state of this request could not be restored to the KV cache")
            state.drop(slot, keep_cache=False)

    def _shift(self, slot: Slot) -> None:
        """Shift a full context. A slot that shares cells gets its own first, and room is made for them."""
        state, run = self._state, slot.run
        others = [other for other in state.running if other is not slot]
        while (
            slot.is_sharing
            and not state.backend.is_split
            and self.count_kv_used() + slot.n_shared > state.backend.info.n_ctx
        ):
            if not self.make_room(but=slot):
                if not others:
                    break
                self._put_aside(others.pop())
        run.is_full = False
        try:
            n = prompt_cache.shift(state.backend, slot, state.count_kept(run.task, run.prompt), run.task.n_discard)
        except RuntimeError as error:
            log.error("task %d: its context could not be shifted: %s", run.task.id, error)
            state.fail(run.task.id, 500, "the context could not be shifted")
            state.drop(slot, keep_cache=False)
            return
        log.debug("task %d: context full, dropped %d tokens", run.task.id, n)

    # ---- idle caches --------------------------------------------------------------------------------------------

    def park(self, n_rows: int) -> None:
        """After a step of `n_rows`: move an idle slot's cells to memory if many rows have been computed since its
        latest use.

        In a unified cache a row's attention goes over all slots' cells. On a CPU that soon costs more than moving idle
        cells to memory and back. A step moves at most one slot, and only if memory holds all of its text.
        """
        state = self._state
        state.n_rows += n_rows
        if not self._is_parking:
            return
        for slot in state.slots:
            is_idle = slot.run is None and len(slot.tokens) - slot.n_shared >= MIN_PARKED
            if is_idle and state.n_rows - slot.n_rows_used >= PARK_AFTER_ROWS:
                self._park(slot)
                return

    def unpark(self, slot: Slot) -> None:
        """Bring an idle slot's cells back from memory, as far as they are still there."""
        tokens = slot.parked
        if tokens:
            self.blocks.restore(slot, tokens, len(tokens), lambda n: self._make_room_for(n, slot))
            slot.parked = []

    def _park(self, slot: Slot) -> None:
        if not self.blocks.save(slot, self._save_limit_s()):
            return  # the next step saves the rest
        if self.blocks.can_restore(slot):
            tokens = list(slot.tokens)
            prompt_cache.trim(self._state.backend, slot, 0)
            slot.parked = tokens
        else:
            slot.n_rows_used = math.inf  # memory can't hold all of it: its cells stay

    def close(self) -> None:
        """The engine ends: write the slots' caches to the disk cache, for about `MAX_SAVE_S`."""
        ends = self._state.clock() + MAX_SAVE_S
        while self.blocks.save_idle(self._state.slots) and self._state.clock() < ends:
            pass
        self.blocks.close()

    def _save_limit_s(self) -> float:
        """Seconds for saving a cache: `--max-stall-ms` while slots generate, else `MAX_SAVE_S`."""
        limit_ms = self._state.config.max_stall_ms
        is_read = any(slot.run.next_token is not None for slot in self._state.running)
        return limit_ms / 1e3 if is_read and limit_ms > 0 else MAX_SAVE_S

    def _make_room_for(self, n: int, slot: Slot) -> bool:
        """Make room for `n` more cells without touching those of `slot`; False if there isn't enough."""
        if self._state.backend.is_split:
            return len(slot.tokens) + n <= slot.n_ctx
        while self.count_kv_used() + n > self._state.backend.info.n_ctx:
            if not self.make_room(but=slot):
                return False
        return True

    def _give_up(self, slot: Slot, prompt: list[int], n_kept: int) -> None:
        """Save a slot's cache if more than a quarter of it is about to go. If less, the prompt continues it."""
        if 4 * n_kept < 3 * len(slot.tokens):
            self.blocks.save(slot, self._save_limit_s())

    def _reuse(self, slot: Slot, run: Run) -> None:
        state, task = self._state, run.task
        others = (state.system, *state.slots) if task.cache_prompt else (state.system,)
        donors = [other for other in others if other is not slot and other.tokens and other.lora == slot.lora]
        n_own = slot.count_reusable(run.prompt) if task.cache_prompt else 0
        n_before = run.n_cached
        run.n_cached = n = prompt_cache.reuse_prefix(
            state.backend, slot, run.prompt, task.cache_prompt, donors, run.n_reusable
        )
        if n > n_own:
            run.cache_source = CACHE_SHARED
        elif n > n_before:
            run.cache_source = CACHE_SLOT
        if task.cache_prompt:
            self._fetch(slot, run)
        state.meter.n_reused += max(run.n_cached - n_before, 0)

    def _fetch(self, slot: Slot, run: Run) -> None:
        """Restore what memory or disk have of the prompt beyond the slot's own cells."""
        limit = run.n_reusable
        n_known = min(self.blocks.count_known(slot.lora, run.prompt), limit)
        if n_known >= len(slot.tokens) + MIN_SHARED:
            n, source = self.blocks.restore(slot, run.prompt, limit, lambda n: self._make_room_for(n, slot))
            if n != run.n_cached:
                run.n_cached, run.cache_source = n, source or CACHE_NONE

    def _find_leader(self, slot: Slot, run: Run) -> Leader | None:
        """The slot in prefill that will compute most of what `run` needs next, if that is worth waiting for."""
        if not (self._state.backend.can_share and run.task.cache_prompt):
            return None
        best, n_best = None, len(slot.tokens) + MIN_SHARED - 1
        for other in self._state.running:
            is_reading = other.run.next_token is None and other.run.leader is None
            is_reading &= run.task.in_background or not other.run.task.in_background  # a background leader may be slow
            if is_reading and other is not slot and other.lora == slot.lora:
                n = min(count_common_prefix(other.run.prompt, run.prompt), run.n_reusable)
                if n > n_best:
                    best, n_best = other, n
        return None if best is None else Leader(best, best.run, n_best)  # type: ignore[arg-type]

    def _find_longest(self, prompt: list[int], lora: Lora) -> tuple[int, str]:
        """How many of a prompt's tokens are in any cache, usable or not, and why they might not be usable."""
        slots = (self._state.system, *self._state.slots)
        best = max(slots, key=lambda slot: count_common_prefix(slot.tokens, prompt))
        n = count_common_prefix(best.tokens, prompt)
        return max(self.blocks.count_known(lora, prompt), n), SHIFTED if n > best.count_reusable(prompt) else OTHER_LORA

    def _choose_reason(self, slot: Slot, run: Run, n_known: int, why_not: str) -> str:
        n = len(slot.tokens)
        if n >= n_known:
            return ""
        if n == run.n_reusable:
            return LAST_TOKEN
        if not run.task.cache_prompt:
            return NOT_ASKED
        if slot.positions is not None:
            return SELF_EXTEND
        if self._state.config.exact:
            return EXACT
        if not self._state.backend.can_share:
            return NO_TRIM
        return TOO_SHORT if n_known < n + MIN_SHARED else why_not

    def _log_difference(self, run: Run) -> None:
        found = run.first_difference
        if found is not None and log.isEnabledFor(logging.DEBUG):
            text = [b"".join(map(self._state.backend.piece, tokens)) for tokens in (found.cached, found.prompt)]
            log.debug(
                "task %d: its owner's nearest text in the cache has the prompt's first %d tokens, then %r; the prompt "
                "has %r",
                run.task.id,
                found.position,
                *text,
            )


def _count_cells(slots: list[Slot]) -> int:
    """The cells of a unified cache that these slots have together."""
    return sum(len(slot.tokens) for slot in slots) - prompt_cache.count_shared(slots)
