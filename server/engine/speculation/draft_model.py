"""Drafts from a small model, which is run greedily ahead of the large one for all sequences together.

Engine thread. The small model is a `Drafter`: a backend of its own with the same number of sequences and as much
context. Before each draft, this module compares the tokens in the small model's sequences with the texts. So rejected
drafts, context shifts, new tasks and restored slots need no message. Missing tokens (at first the whole prompt) are
read in limited portions. A text gets a draft once at most a few are missing.

Not taken: feeding the small model each batch of the large one. Prompts would take both models' time even if nothing is
drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from server.engine.slots.backend import DECODE_OK, Drafter
from server.engine.slots.planner import Span
from server.engine.slots.slot import count_common_prefix
from server.engine.speculation.cost import StepCost
from server.log import get_logger
from server.records import record

CATCH_UP_ROWS = (512, 256, 128, 64, 32)  # missing tokens that may be read per step of the large model
GOES_ALONG = 8  # missing tokens that the first drafting step may read as well

log = get_logger("engine")


@record
class Want:
    """Draft at most `n` tokens behind `text` in sequence `seq`, and stop before a token less likely than `p_min`."""

    seq: int
    text: list[Any]
    n: int
    p_min: float


class ModelDrafts:
    """The small model, and the tokens in its KV cache."""

    def __init__(self, drafter: Drafter, n_vocab: int, stall_s: float, clock: Callable[[], float]) -> None:
        """`n_vocab` is the large model's. Reading missing tokens may take `stall_s` seconds per step (0: any
        time)."""
        self.cost = StepCost()
        self._drafter = drafter
        self._n_vocab = n_vocab
        self._stall_s = stall_s
        self._clock = clock
        self._held: dict[int, list[int]] = {}
        self._goes_along = max(min(GOES_ALONG, drafter.info.n_batch // drafter.info.n_slots - 1), 0)

    def draft(self, wants: Sequence[Want]) -> list[list[int]]:
        """A draft for each want, empty if there is none yet."""
        drafts: list[list[int]] = [[] for _ in wants]
        live = self._catch_up(wants)
        for _ in range(max((want.n for want in wants), default=0)):
            if not live:
                break
            rows: list[Span] = []
            for i in live:
                held = self._held[wants[i].seq]
                rest = wants[i].text[len(held) :] or drafts[i][-1:]
                rows.append(Span(i, wants[i].seq, len(held), rest, True))
            if not self._evaluate(rows):
                return [[] for _ in wants]
            live = self._collect(rows, wants, drafts)
        return drafts

    def _collect(self, rows: Sequence[Span], wants: Sequence[Want], drafts: list[list[int]]) -> list[int]:
        """Add one token to each draft; return the indices of the drafts that go on."""
        live = []
        last_row = -1
        for span in rows:
            last_row += len(span)
            token, chance = self._drafter.find_likeliest(last_row)
            want, draft = wants[span.id], drafts[span.id]
            if chance < want.p_min or token >= self._n_vocab:
                continue
            draft.append(token)
            if len(draft) < want.n and token not in self._drafter.eog_tokens:
                live.append(span.id)
        return live

    def _catch_up(self, wants: Sequence[Want]) -> list[int]:
        """Read missing tokens of the texts, except the last few; return the indices of the texts that are ready for
        drafting."""
        budget = min(self._compute_portion(), self._drafter.info.n_batch)
        ready: list[int] = []
        for i, want in enumerate(wants):
            held = self._held.setdefault(want.seq, [])
            n = min(count_common_prefix(held, want.text), len(want.text) - 1)
            if n < len(held):
                n = self._trim(want.seq, n)
            if not 0 <= min(want.text[n:]) <= max(want.text[n:]) < self._drafter.info.n_vocab:
                continue  # tokens that only the large model has, or placeholders of media
            n_missing = len(want.text) - 1 - n
            if n_missing > self._goes_along:
                part = want.text[n : n + min(n_missing, budget)]
                if not part or not self._evaluate([Span(i, want.seq, n, part, False)]):
                    continue
                budget -= len(part)
                n_missing -= len(part)
            if n_missing <= self._goes_along:
                ready.append(i)
        return ready

    def _compute_portion(self) -> int:
        if self._stall_s == 0:
            return CATCH_UP_ROWS[0]
        return next(
            (n for n in CATCH_UP_ROWS if self.cost.is_known and self.cost.estimate(n) <= self._stall_s),
            CATCH_UP_ROWS[-1],
        )

    def _evaluate(self, rows: Sequence[Span]) -> bool:
        started = self._clock()
        code = self._drafter.decode(rows)
        if code != DECODE_OK:
            log.debug("the draft model's decode failed with code %d; its cache is emptied", code)
            for seq in list(self._held):
                self._trim(seq, 0)
            return False
        self.cost.observe(sum(map(len, rows)), self._clock() - started)
        for span in rows:
            self._held[span.seq] += span.tokens
        return True

    def _trim(self, seq: int, n: int) -> int:
        """Cut a sequence to its first `n` tokens, or to none if the model can't drop a tail; return how many are
        left."""
        if not self._drafter.seq_rm(seq, n, -1):
            self._drafter.seq_rm(seq, -1, -1)
            n = 0
        del self._held[seq][n:]
        return n
