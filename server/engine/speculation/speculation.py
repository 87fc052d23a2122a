"""Speculative decoding: several tokens from one step where the next ones can be guessed.

Engine thread. `extend` adds rows for drafted tokens to the row of a generating sequence. The drafts come from `lookup`,
`past`, `rewriting`, `given` and `draft_model`; `cost` decides how many tokens pay. `answers` draws row by row with the
task's own sampler chain while the drawn token equals the draft, and cuts the rest out of the KV cache. So each token is
drawn by the same chain and with the same random numbers as without drafts.

Not taken: accepting a draft by the ratio of both models' probabilities. It accepts a little more, but a seed would no
longer lead to the same text.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Task
from server.engine.slots.backend import Backend
from server.engine.slots.pace import PATIENCE
from server.engine.slots.planner import Span
from server.engine.slots.slot import Run, Slot
from server.engine.speculation.cost import (
    ASSUMED_DRAFT,
    RowCost,
    StepCost,
    compute_micro_batches,
    find_best_common_length,
    find_best_lengths,
)
from server.engine.speculation.draft_model import ModelDrafts, Want
from server.engine.speculation.given import Given
from server.engine.speculation.lookup import Lookup
from server.engine.speculation.past import LEAD, Past, Pasts
from server.engine.speculation.rewriting import Rewriting
from server.engine.speculation.trust import EXPLORE, ModelTrust
from server.records import field, record

Source = Lookup | Rewriting | Given

MOST_AT_ODDS = 8
"""The most tokens of drafts from text in a step with several sequences in a split cache, unless all get equally many.
More would make micro-batches that other sequences wait for."""


TRY_EVERY, TRY, SURE_OF = 32, 8, 5.0
"""While drafts look too expensive, a cost that was measured on a busy machine isn't measured again. So a single draft
of which `SURE_OF` of `TRY` tokens will probably prove right is sent every `TRY_EVERY`th time."""


class Speculation:
    """Drafts for all tasks of one engine."""

    def __init__(self, config: EngineConfig, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._config = config.spec
        self._n_batch = backend.info.n_batch
        self._longest_s = PATIENCE * config.max_stall_ms / 1e3 or math.inf
        self._is_split = backend.is_split
        self._prompt_row = RowCost()
        self._costs: defaultdict[int, StepCost] = defaultdict(  # by the number of sequences, in powers of two
            lambda: StepCost(self._prompt_row)
        )
        self._usual = ModelTrust()  # over all texts: what to expect of a new one
        self._pasts = Pasts(config.spec.ngram) if config.spec.answers else None
        self._model = (
            None
            if backend.drafter is None
            else ModelDrafts(backend.drafter, backend.info.n_vocab, config.max_stall_ms / 2e3, clock)
        )
        self._n_rollback = backend.n_rollback
        self.is_on = backend.n_rollback > 0 and config.n_group <= 1 and (config.spec.lookup or self._model is not None)
        self.n_drafted = self.n_accepted = self.n_drafts = 0

    def begin(self, task: Task) -> Drafting | None:
        """The state of a new task; None if nothing will be drafted for it."""
        config, asked = self._config, task.draft_n_max
        if not self.is_on or asked == 0:
            return None
        return Drafting(
            n_lookup=min(config.lookup_max if asked < 0 else asked, self._n_rollback),
            n_model=config.n_max if asked < 0 else asked,
            n_min=config.n_min if task.draft_n_min < 0 else task.draft_n_min,
            p_min=config.p_min if task.draft_p_min < 0 else task.draft_p_min,
            trust=ModelTrust(self._usual.chance),
        )

    def extend(self, spans: Sequence[Span], slots: Sequence[Slot]) -> None:
        """Add drafted tokens to the spans of generating sequences, as many as pay and fit."""
        wants = [(span, slots[span.id], n) for span in spans if (n := _compute_most(slots[span.id])) > 0]
        if not wants:
            return
        if self._config.lookup:
            wants = self._from_text(wants, spans)
        if self._model is not None and wants:
            self._from_model(wants, spans)

    def observe(self, spans: Sequence[Span], seconds: float) -> None:
        """Learn from the seconds of a step with these spans of generating sequences, if it had one micro-batch."""
        sizes = [sum(map(len, spans))]
        if self._is_split:
            sizes = compute_micro_batches([(span.seq, len(span)) for span in spans])
        if len(sizes) == 1:
            self._get_cost(spans).observe(sizes[0], seconds)

    def observe_prompt(self, spans: Sequence[Span], seconds: float) -> None:
        """Learn from the seconds of a step of prompt rows, if they were of one prompt."""
        if len(spans) == 1:
            self._prompt_row.observe(len(spans[0]), seconds)

    def judge(self, drafting: Drafting, n_draft: int, tokens: Sequence[int]) -> None:
        """Learn from a step that drew `tokens`; all but the last equal the draft."""
        if drafting.lookup is not None:
            for token in tokens:
                drafting.lookup.append(token)
                drafting.rewriting.append(token)
        if drafting.given.tokens:
            drafting.given.judge(tokens)
        if not n_draft:
            return
        n_accepted = len(tokens) - 1
        if drafting.is_by_model:
            drafting.trust.note(n_draft, n_accepted)
            self._usual.note(n_draft, n_accepted)
        drafting.n_drafted += n_draft
        drafting.n_accepted += n_accepted
        self.n_drafted += n_draft
        self.n_accepted += n_accepted
        self.n_drafts += 1

    def remember(self, run: Run) -> None:
        """Keep a complete answer for drafts in later tasks of its owner, if options and task allow that."""
        lookup = None if run.drafting is None else run.drafting.lookup  # type: ignore[attr-defined]
        if self._pasts is not None and lookup is not None and run.task.cache_prompt:
            self._pasts.add(run.task.owner, lookup.tokens[-run.n_decoded - LEAD :])

    # ---- sources ----------------------------------------------------------------------------------------------

    def _from_text(self, wants: list[tuple[Span, Slot, int]], spans: Sequence[Span]) -> list[tuple[Span, Slot, int]]:
        """Add drafts from grammar, text or earlier answers; return the wants that got none."""
        room = room_alike = self._n_batch - sum(map(len, spans))
        if self._is_split and len(spans) > 1:
            room = min(room, MOST_AT_ODDS)
        sources = [self._choose_likeliest(slot, min(n, slot.run.drafting.n_lookup, room)) for _, slot, n in wants]
        chances = [chances for _, chances in sources]
        if not any(chances):
            return wants
        lengths = find_best_lengths(
            chances,
            len(spans),
            room,
            self._make_seconds(wants, spans),
            self._config.min_gain,
            room_alike if self._is_split else 0,
            self._longest_s,
        )
        if len(wants) == 1 and not any(lengths) and wants[0][1].run.drafting.is_worth_a_try(chances[0]):
            lengths = [min(TRY, len(chances[0]))]
        left = []
        for want, n, (source, _) in zip(wants, lengths, sources):
            span, slot, _ = want
            if not n or not _add(span, slot.run.drafting, source.draft(n), False):
                left.append(want)
        return left

    def _choose_likeliest(self, slot: Slot, n_max: int) -> tuple[Source, list[float]]:
        """The source that expects the most tokens, and their chances."""
        drafting = slot.run.drafting
        if drafting.lookup is None:
            self._read_text(slot)
        drafting.given.foresee(slot.run.sampler.foresee())
        sources = drafting.lookup, drafting.rewriting, drafting.given
        return max(((source, source.estimate_chances(n_max)) for source in sources), key=lambda pair: sum(pair[1]))

    def _read_text(self, slot: Slot) -> None:
        """Make the sources of drafts from text."""
        run, backend = slot.run, self._backend
        tokens: list[Any] = [*slot.tokens, run.next_token]
        is_kept = self._pasts is not None and run.task.cache_prompt
        past = self._pasts.of(run.task.owner) if is_kept else Past(self._config.ngram)
        run.drafting.lookup = Lookup(tokens, self._config.ngram, past)
        run.drafting.rewriting = Rewriting(slot.tokens, backend.spell, backend.piece, past.rewritten)
        run.drafting.rewriting.append(tokens[-1])

    def _from_model(self, wants: list[tuple[Span, Slot, int]], spans: Sequence[Span]) -> None:
        """Add drafts from the small model, of at most the length that pays, to spans without a draft."""
        wants = [
            (span, slot, min(most, slot.run.drafting.n_model))
            for span, slot, most in wants
            if slot.run.drafting.n_model
        ]
        n = find_best_common_length(
            [(slot.run.drafting.trust.chance, most) for _, slot, most in wants],
            len(spans),
            self._make_seconds(wants, spans),
            self._draft_seconds(spans),
            self._config.min_gain,
        )
        if n == 0:
            wants = [want for want in wants if want[1].run.drafting.trust.is_time_to_explore()]
            n = EXPLORE
        n = min(n, (self._n_batch - sum(map(len, spans))) // max(len(wants), 1))
        asked = [
            Want(slot.seq, [*slot.tokens, slot.run.next_token], min(n, most), slot.run.drafting.p_min)
            for _, slot, most in wants
        ]
        if n > 0 and asked:
            for (span, slot, _), draft in zip(wants, self._model.draft(asked)):
                _add(span, slot.run.drafting, draft, True)

    # ---- costs ------------------------------------------------------------------------------------------------

    def _get_cost(self, spans: Sequence[Span]) -> StepCost:
        """The cost of steps with about this number of sequences; in a split cache that of micro-batches."""
        return self._costs[0 if self._is_split else len(spans).bit_length()]

    def _make_seconds(
        self, wants: list[tuple[Span, Slot, int]], spans: Sequence[Span]
    ) -> Callable[[Sequence[int]], float]:
        """A function that estimates the step's seconds by how many more rows each of `wants` gets."""
        cost, n_rows = self._get_cost(spans), sum(map(len, spans))
        if not self._is_split or len(spans) == 1:
            return lambda lengths: cost.estimate(n_rows + sum(lengths))
        places = {span.seq: i for i, (span, _, _) in enumerate(wants)}
        rows = [(span.seq, len(span), places.get(span.seq, -1)) for span in spans]

        def estimate_seconds(lengths: Sequence[int]) -> float:
            sizes = compute_micro_batches([(seq, n + lengths[i] if i >= 0 else n) for seq, n, i in rows])
            return sum(map(cost.estimate, sizes))

        return estimate_seconds

    def _draft_seconds(self, spans: Sequence[Span]) -> Callable[[int], float]:
        if self._model.cost.is_known:
            return self._model.cost.estimate
        cost = self._get_cost(spans)
        return lambda n_rows: ASSUMED_DRAFT * cost.estimate(n_rows)


def _compute_most(slot: Slot) -> int:
    """The longest draft that the slot's task can use now."""
    run = slot.run
    if run.drafting is None or run.next_token is None or slot.positions is not None or run.is_replaying:
        return 0
    n = slot.n_ctx - len(slot.tokens) - 1
    if run.task.n_predict >= 0:
        n = min(n, run.task.n_predict - run.n_decoded - 1)
    return n


def _add(span: Span, drafting: Any, draft: list[int], is_by_model: bool) -> bool:
    if not draft or len(draft) < drafting.n_min:
        return False
    span.tokens = [*span.tokens, *draft]
    span.n_draft = len(draft)
    drafting.is_by_model = is_by_model
    return True


def without_drafts(spans: Sequence[Span]) -> list[Span]:
    return [
        Span(span.id, span.seq, span.pos, span.tokens[: len(span) - span.n_draft], span.output)
        if span.n_draft
        else span
        for span in spans
    ]


@record(eq=False)
class Drafting:
    """A task's limits for drafts, their sources, and how many tokens proved right."""

    n_lookup: int  # tokens of a draft from text or grammar at most
    n_model: int  # tokens of a draft from the small model at most
    n_min: int  # tokens of any draft at least
    p_min: float  # the small model's draft ends before a token less likely than this
    trust: ModelTrust
    given: Given = field(default_factory=Given)
    lookup: Lookup | None = None  # made when first needed, as is the next
    rewriting: Rewriting | None = None
    is_by_model: bool = False  # the latest draft was the small model's
    n_drafted: int = 0  # tokens
    n_accepted: int = 0  # tokens that proved right
    n_passed: int = 0  # steps whose likely draft looked too expensive

    def is_worth_a_try(self, chances: Sequence[float]) -> bool:
        """Whether to send a draft that looks too expensive, to measure its cost again."""
        if sum(chances[:TRY]) < SURE_OF:
            return False
        self.n_passed += 1
        return self.n_passed % TRY_EVERY == 0
