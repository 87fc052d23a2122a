"""Where the beginning of a prompt comes from: the slot itself, another slot, or a prompt that is being read just now.

Engine thread only. `prompt_cache` has the moves, this module the decisions, and it remembers them: what was reused,
from where, and why not more (`Run.cache_use`). The text that a prompt is compared with, and shown beside it, is only
ever one of the same owner (`nearest`).

A task whose prompt begins like one that another slot is reading waits for that one (its leader) to get that far, and
then shares the cells: what is computed once is computed for all. Who waits is nobody's leader, so nobody waits in a
circle, and waiting costs little, because the batches are the leader's meanwhile.

Not taken: a radix tree over all sequences. There are few of them, and comparing lists of tokens is C's work.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from server.engine.cache import prompt_cache, spelling
from server.engine.cache.block_cache import BlockCache
from server.engine.cache.block_tree import Lora
from server.engine.cache.prompt_cache import MIN_SHARED
from server.engine.loop.state import EngineState
from server.engine.seam.task import CACHE_NONE, CACHE_SHARED, CACHE_SLOT, Task
from server.engine.slots.self_extend import GroupAttention
from server.engine.slots.slot import Leader, Run, Slot, common_prefix
from server.log import get_logger

MAX_SAVE_S = 1.0
PARK_AFTER_ROWS = 64
MIN_PARKED = 64
LAST_TOKEN = "the last token is evaluated again"
NOT_ASKED = "cache_prompt is false"
OTHER_LORA = "computed with other adapters"
SHIFTED = "the context was shifted"
SELF_EXTEND = "self-extend starts anew"
EXACT = "--exact starts anew"
NO_TRIM = "the model can't drop a tail"
TOO_SHORT = f"sharing begins at {MIN_SHARED} tokens"

log = get_logger("engine")


class Prefixes:
    """Decides about the caches of all slots."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self.blocks = BlockCache(state.backend, state.config, state.clock)
        devices = state.backend.info.devices
        is_on_cpu = bool(devices) and all(name == "CPU" for name in devices)
        self._is_parking = not state.backend.is_split and self.blocks.has_memory and is_on_cpu
        self._shared: tuple[tuple[int, ...], int] = ((), 0)  # what the count was made of, and the count

    def kv_used(self) -> int:
        """Cells of the KV cache in use. Counting those that are shared takes time: only when that has changed."""
        if self._state.backend.is_split:
            return sum(len(slot.tokens) for slot in self._state.slots)
        slots = (*self._state.slots, self._state.system)
        sharing = tuple(n for slot in slots for n in (slot.n_shared, slot.n_shares))
        if sharing != self._shared[0]:
            self._shared = sharing, prompt_cache.count_shared(slots)
        return sum(len(slot.tokens) for slot in slots) - self._shared[1]

    def choose_slot(self, free: list[Slot], task: Task, prompt: list[int]) -> Any:
        """The free slot that suits a task best."""
        return prompt_cache.choose_slot(free, prompt, task.cache_prompt, self._state.lora_of(task), self._state.clock())

    def nearest(self, task: Task, prompt: list[int]) -> list[int]:
        """That text of the task's owner in any cache that the prompt has most in common with."""
        lora = self._state.lora_of(task)
        texts = [
            slot.tokens[: slot.shifted_at]
            for slot in self._state.slots
            if slot.owner == task.owner and slot.lora == lora
        ]
        texts.append(self.blocks.nearest(lora, prompt, task.owner))
        return max(texts, key=lambda tokens: common_prefix(tokens, prompt))

    def respelled(self, prompt: list[int], cached: list[int]) -> list[int]:
        """The prompt in the tokens that are cached for its text, where those are others and can be reused."""
        state = self._state
        if state.config.exact or state.config.n_group > 1:
            return prompt
        spelled = spelling.respelled(prompt, cached, state.backend.letters)
        return spelled if len(spelled) <= max(len(prompt), state.backend.info.n_ctx_slot - 1) else prompt

    def begin(self, slot: Slot, run: Run) -> None:
        """Set the slot's cache to what is there of the prompt of `run`, and note how that came."""
        state, task = self._state, run.task
        lora = state.lora_of(task)
        n_known, why_not = self._longest(run.prompt, lora)
        self._log_difference(run)
        is_kept = task.cache_prompt and slot.lora == lora
        self._give_up(slot, run.prompt, slot.reusable(run.prompt) if is_kept else 0)
        is_folding = state.config.n_group > 1
        if is_folding or state.config.exact or slot.lora != lora:
            prompt_cache.trim(state.backend, slot, 0)
        slot.lora = lora
        if is_folding:
            slot.positions = GroupAttention(state.config.n_group, state.config.group_width)
        elif not state.config.exact:
            self._reuse(slot, run)
            run.leader = self._leader(slot, run)
        slot.owner = task.owner
        run.cache_reason = self._reason(slot, run, n_known, why_not)

    def must_wait(self, slot: Slot) -> bool:
        """Whether a slot's prompt waits for its leader; once it need not, it has the leader's cells."""
        run: Run = slot.run  # type: ignore[assignment]
        if run.leader is None:
            return False
        if run.leader.slot.run is run.leader.run and len(run.leader.slot.tokens) < run.leader.n:
            return True
        self._reuse(slot, run)
        run.leader = self._leader(slot, run)  # another one, if that one was cancelled
        run.cache_reason = LAST_TOKEN if run.n_cached == run.layout.reusable(len(run.prompt)) else ""
        if run.task.progress:
            self._state.report_progress(slot)
        return run.leader is not None

    def make_room(self, but: Slot | None = None) -> bool:
        """Give up the least valuable cache of an idle slot (not of `but`); False if there is none, or if it would be
        room for nobody else."""
        if self._state.backend.is_split:
            return False
        others = [slot for slot in self._state.slots if slot is not but]
        slot = prompt_cache.least_valuable(others, self._state.clock())
        if slot is None:
            return False
        self.blocks.save(slot, self._save_limit_s())
        prompt_cache.trim(self._state.backend, slot, 0)
        return True

    def park(self, n_rows: int) -> None:
        """After a step of `n_rows`: move the cells of a slot that many rows have had to look over out of their way.

        In one cache for all, a row's attention goes over everybody's cells. On a CPU that costs more, after some
        tens of rows, than moving idle cells to memory and back. One slot a step; nothing is given up that isn't kept
        whole.
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
        """Bring an idle slot's tokens back from memory, as far as they are still there."""
        tokens = slot.parked
        if tokens:
            self.blocks.restore(slot, tokens, len(tokens), lambda n: self._make_room_for(n, slot))
            slot.parked = []

    def _park(self, slot: Slot) -> None:
        if not self.blocks.save(slot, self._save_limit_s()):
            return  # the rest with the next step
        if self.blocks.holds(slot):
            tokens = list(slot.tokens)
            prompt_cache.trim(self._state.backend, slot, 0)
            slot.parked = tokens
        else:
            slot.n_rows_used = math.inf  # there is no room for it: it stays

    def close(self) -> None:
        """The engine ends: what the slots hold goes to disk, if there is one, within seconds."""
        ends = self._state.clock() + MAX_SAVE_S
        while self.blocks.save_idle(self._state.slots) and self._state.clock() < ends:
            pass
        self.blocks.close()

    def _save_limit_s(self) -> float:
        """What saving a cache may take: as long as a step if somebody reads a stream."""
        limit_ms = self._state.config.max_stall_ms
        is_read = any(slot.run.next_token is not None for slot in self._state.running)
        return limit_ms / 1e3 if is_read and limit_ms > 0 else MAX_SAVE_S

    def _make_room_for(self, n: int, slot: Slot) -> bool:
        """Room for `n` more cells, without touching those of `slot`; False if there is none."""
        if self._state.backend.is_split:
            return len(slot.tokens) + n <= slot.n_ctx
        while self.kv_used() + n > self._state.backend.info.n_ctx:
            if not self.make_room(but=slot):
                return False
        return True

    def _give_up(self, slot: Slot, prompt: list[int], n_kept: int) -> None:
        """Most of a slot's cache is about to go: keep it elsewhere. The rest of a text that goes on needn't be."""
        if 4 * n_kept < 3 * len(slot.tokens):
            self.blocks.save(slot, self._save_limit_s())

    def _reuse(self, slot: Slot, run: Run) -> None:
        state, task = self._state, run.task
        others = (state.system, *state.slots) if task.cache_prompt else (state.system,)
        donors = [other for other in others if other is not slot and other.tokens and other.lora == slot.lora]
        n_own = slot.reusable(run.prompt) if task.cache_prompt else 0
        n_before = run.n_cached
        run.n_cached = n = prompt_cache.reuse_prefix(
            state.backend, slot, run.prompt, task.cache_prompt, donors, run.layout.reusable(len(run.prompt))
        )
        if n > n_own:
            run.cache_source = CACHE_SHARED
        elif n > n_before:
            run.cache_source = CACHE_SLOT
        if task.cache_prompt:
            self._fetch(slot, run)
        state.meter.n_reused += max(run.n_cached - n_before, 0)

    def _fetch(self, slot: Slot, run: Run) -> None:
        """What memory or disk have of the prompt beyond what the slot has now."""
        limit = run.layout.reusable(len(run.prompt))
        n_known = min(self.blocks.known(slot.lora, run.prompt), limit)
        if n_known >= len(slot.tokens) + MIN_SHARED:
            n, source = self.blocks.restore(slot, run.prompt, limit, lambda n: self._make_room_for(n, slot))
            if n != run.n_cached:
                run.n_cached, run.cache_source = n, source or CACHE_NONE

    def _leader(self, slot: Slot, run: Run) -> Leader | None:
        """The running slot that is about to compute most of what `run` needs next, if that is worth waiting for."""
        if not (self._state.backend.can_share and run.task.cache_prompt):
            return None
        best, n_best = None, len(slot.tokens) + MIN_SHARED - 1
        for other in self._state.running:
            is_reading = other.run.next_token is None and other.run.leader is None
            if is_reading and other is not slot and other.lora == slot.lora:
                n = min(common_prefix(other.run.prompt, run.prompt), run.layout.reusable(len(run.prompt)))
                if n > n_best:
                    best, n_best = other, n
        return None if best is None else Leader(best, best.run, n_best)  # type: ignore[arg-type]

    def _longest(self, prompt: list[int], lora: Lora) -> tuple[int, str]:
        """How much of a prompt is in any cache, whether it can be used or not, and why it might not."""
        slots = (self._state.system, *self._state.slots)
        best = max(slots, key=lambda slot: common_prefix(slot.tokens, prompt))
        n = common_prefix(best.tokens, prompt)
        return max(self.blocks.known(lora, prompt), n), SHIFTED if n > best.reusable(prompt) else OTHER_LORA

    def _reason(self, slot: Slot, run: Run, n_known: int, why_not: str) -> str:
        n = len(slot.tokens)
        if n >= n_known:
            return ""
        if n == run.layout.reusable(len(run.prompt)):
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
                "task %d: its owner's nearest text in the cache has the first %d tokens of the prompt; then it has %r, "
                "the prompt %r",
                run.task.id,
                found.position,
                *text,
            )
