"""Drafts from a small model: it is run greedily a few tokens ahead of the large one, for all sequences together.

Engine thread. The small model is a `Drafter`, a backend of its own with as many sequences and as much context. What
its cache holds of each sequence is known here as a list of tokens, and compared with the text before each draft: so
rejected drafts, context shifts, a slot's next task and restored slots all need no message. What it lacks of a text (at
first the whole prompt) is read in bounded portions; a text that hasn't been caught up with gets no draft yet.

Not taken: feeding it each batch of the large model (prompts would cost both models' time even if nothing is drafted).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.backend_types import DECODE_OK, Drafter
from server.engine.planner import Span
from server.engine.slot import common_prefix
from server.engine.spec_cost import StepCost
from server.log import get_logger

CATCH_UP_ROWS = 256     # prompt tokens read per step of the large model
GOES_ALONG = 8          # so few missing tokens are read with the first drafting step
FIRST_CHANCE, FIRST_WEIGHT, DECAY = 0.7, 4.0, 0.95
EXPLORE = 4
FIRST_PAUSE, LAST_PAUSE = 128, 4096     # tokens without drafts when they don't pay

log = get_logger("engine")


class ModelTrust:
    """How often the small model was right about one text, and for how long it isn't asked after it did not pay."""

    __slots__ = ("_hits", "_trials", "_pause", "_n_idle")

    def __init__(self) -> None:
        self._hits, self._trials = FIRST_CHANCE * FIRST_WEIGHT, FIRST_WEIGHT
        self._pause, self._n_idle = FIRST_PAUSE, 0

    @property
    def chance(self) -> float:
        """How likely a drafted token holds if those before it did."""
        return self._hits / self._trials

    def note(self, n_drafted: int, n_accepted: int) -> None:
        """Of a draft so many tokens held; behind the first that did not, nothing was learnt."""
        for is_hit in [1.0] * n_accepted + [0.0] * (n_accepted < n_drafted):
            self._hits = self._hits * DECAY + is_hit
            self._trials = self._trials * DECAY + 1.0

    def is_time_to_explore(self) -> bool:
        """Called for each step in which drafts don't look worth it; now and then True, ever more rarely."""
        self._n_idle += 1
        if self._n_idle < self._pause:
            return False
        self._pause, self._n_idle = min(self._pause * 2, LAST_PAUSE), 0
        return True


@dataclass(slots=True)
class Want:
    """Draft at most `n` tokens behind `text` in sequence `seq`, as long as each is at least `p_min` likely."""

    seq: int
    text: list[int]
    n: int
    p_min: float


class ModelDrafts:
    """The small model with its books."""

    def __init__(self, drafter: Drafter, clock: Callable[[], float]) -> None:
        self.cost = StepCost()
        self._drafter = drafter
        self._clock = clock
        self._held: dict[int, list[int]] = {}

    def draft(self, wants: Sequence[Want]) -> list[list[int]]:
        """A draft for each want, empty where there is none (yet)."""
        drafts: list[list[int]] = [[] for _ in wants]
        live = self._catch_up(wants)
        for _ in range(max((want.n for want in wants), default=0)):
            if not live:
                break
            rows: list[Span] = []
            for i in live:
                held = self._held[wants[i].seq]
                rest = wants[i].text[len(held):] or drafts[i][-1:]
                rows.append(Span(i, wants[i].seq, len(held), rest, True))
            if not self._evaluate(rows):
                return [[] for _ in wants]
            live = self._collect(rows, wants, drafts)
        return drafts

    def _collect(self, rows: Sequence[Span], wants: Sequence[Want], drafts: list[list[int]]) -> list[int]:
        """Add one token to each draft that goes on; which these are."""
        live = []
        last_row = -1
        for span in rows:
            last_row += len(span)
            token, chance = self._drafter.likeliest(last_row)
            want, draft = wants[span.id], drafts[span.id]
            if chance < want.p_min:
                continue
            draft.append(token)
            if len(draft) < want.n and token not in self._drafter.eog_tokens:
                live.append(span.id)
        return live

    def _catch_up(self, wants: Sequence[Want]) -> list[int]:
        """Bring the cache to all but the last tokens of the texts; the numbers of those that it got ready."""
        budget = min(CATCH_UP_ROWS, self._drafter.info.n_batch)
        ready: list[int] = []
        for i, want in enumerate(wants):
            held = self._held.setdefault(want.seq, [])
            n = min(common_prefix(held, want.text), len(want.text) - 1)
            if n < len(held):
                self._trim(want.seq, n)
            n_missing = len(want.text) - 1 - n
            if n_missing > GOES_ALONG:
                part = want.text[n:n + min(n_missing, budget)]
                if not part or not self._evaluate([Span(i, want.seq, n, part, False)]):
                    continue
                budget -= len(part)
                n_missing -= len(part)
            if n_missing <= GOES_ALONG:
                ready.append(i)
        return ready

    def _evaluate(self, rows: Sequence[Span]) -> bool:
        started = self._clock()
        code = self._drafter.decode(rows)
        if code != DECODE_OK:
            log.debug("the draft model could not go on (code %d); its cache begins anew", code)
            for seq in list(self._held):
                self._trim(seq, 0)
            return False
        self.cost.observe(sum(map(len, rows)), self._clock() - started)
        for span in rows:
            self._held[span.seq] += span.tokens
        return True

    def _trim(self, seq: int, n: int) -> None:
        if not self._drafter.seq_rm(seq, n, -1):
            self._drafter.seq_rm(seq, -1, -1)
            n = 0
        del self._held[seq][n:]
