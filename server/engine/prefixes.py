"""Where the beginning of a prompt comes from: the slot itself, another slot, or a prompt that is being read just now.

Engine thread only. `prompt_cache` has the moves, this module the decisions, and it remembers them: what was reused,
from where, and why not more (`Run.cache_source`, `Run.cache_reason`; the log names the first differing token).

A task whose prompt begins like one that another slot is reading waits for that one (its leader) to get that far, and
then shares the cells: what is computed once is computed for all. Who waits is nobody's leader, so nobody waits in a
circle, and waiting costs little, because the batches are the leader's meanwhile.

Not taken: a radix tree over all sequences. There are few of them, and comparing lists of tokens is C's work.
"""

from __future__ import annotations

import logging

from server.engine import prompt_cache
from server.engine.prompt_cache import MIN_SHARED
from server.engine.self_extend import GroupAttention
from server.engine.slot import Leader, Run, Slot, common_prefix
from server.engine.state import EngineState
from server.engine.task import CACHE_SHARED, CACHE_SLOT, Task
from server.log import get_logger

LAST_TOKEN = "the last token is evaluated again"
NOT_ASKED = "cache_prompt is false"
OTHER_LORA = "computed with other adapters"
SELF_EXTEND = "self-extend starts anew"
EXACT = "--exact starts anew"
NO_TRIM = "the model can't drop a tail"
TOO_SHORT = f"sharing begins at {MIN_SHARED} tokens"

log = get_logger("engine")


class Prefixes:
    """Decides about the caches of all slots."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._shared: tuple[tuple[int, ...], int] = ((), 0)     # what the count was made of, and the count

    def kv_used(self) -> int:
        """Cells of the KV cache in use. Counting those that are shared takes time: only when that has changed."""
        slots = (*self._state.slots, self._state.system)
        sharing = tuple(n for slot in slots for n in (slot.n_shared, slot.n_shares))
        if sharing != self._shared[0]:
            self._shared = sharing, prompt_cache.count_shared(slots)
        return sum(len(slot.tokens) for slot in slots) - self._shared[1]

    def choose_slot(self, free: list[Slot], task: Task, prompt: list[int]) -> Slot:
        """The free slot that suits a task best."""
        return prompt_cache.choose_slot(free, prompt, task.cache_prompt, self._state.lora_of(task),
                                        self._state.clock())

    def begin(self, slot: Slot, run: Run) -> None:
        """Set the slot's cache to what is there of the prompt of `run`, and note how that came."""
        state, task = self._state, run.task
        lora, n_known = state.lora_of(task), self._longest(run.prompt)
        self._log_difference(slot, run)
        is_folding = state.config.n_group > 1
        if is_folding or state.config.exact or slot.lora != lora:
            prompt_cache.trim(state.backend, slot, 0)
        slot.lora = lora
        if is_folding:
            slot.positions = GroupAttention(state.config.n_group, state.config.group_width)
        elif not state.config.exact:
            self._reuse(slot, run)
            run.leader = self._leader(slot, run)
        run.cache_reason = self._reason(slot, run, n_known)

    def must_wait(self, slot: Slot) -> bool:
        """Whether a slot's prompt waits for its leader; once it need not, it has the leader's cells."""
        run = slot.run
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

    def make_room(self) -> bool:
        """Give up the least valuable cache of an idle slot; False if there is none."""
        return prompt_cache.evict_one(self._state.backend, self._state.slots, self._state.clock())

    def _reuse(self, slot: Slot, run: Run) -> None:
        state, task = self._state, run.task
        others = (state.system, *state.slots) if task.cache_prompt else (state.system,)
        donors = [other for other in others if other is not slot and other.tokens and other.lora == slot.lora]
        n_own = common_prefix(slot.tokens, run.prompt) if task.cache_prompt else 0
        n_before = run.n_cached
        run.n_cached = n = prompt_cache.reuse_prefix(state.backend, slot, run.prompt, task.cache_prompt, donors,
                                                     run.layout.reusable(len(run.prompt)))
        if n > n_own:
            run.cache_source = CACHE_SHARED
        elif n > n_before:
            run.cache_source = CACHE_SLOT
        state.meter.n_reused += n - n_before

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
        return None if best is None else Leader(best, best.run, n_best)

    def _longest(self, prompt: list[int]) -> int:
        """How much of a prompt is in any cache, whether it can be used or not."""
        return max(common_prefix(slot.tokens, prompt) for slot in (self._state.system, *self._state.slots))

    def _reason(self, slot: Slot, run: Run, n_known: int) -> str:
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
        return TOO_SHORT if n_known < n + MIN_SHARED else OTHER_LORA

    def _log_difference(self, slot: Slot, run: Run) -> None:
        if not log.isEnabledFor(logging.DEBUG):
            return
        n = common_prefix(slot.tokens, run.prompt)
        if n < min(len(slot.tokens), len(run.prompt)):
            piece = self._state.backend.piece
            held, asked = slot.tokens[n], run.prompt[n]
            log.debug("task %d: slot %d holds the first %d tokens of the prompt; then it has %d %r, the prompt %d %r",
                      run.task.id, slot.id, n, held, piece(held), asked, piece(asked))
