"""From logits to events: draw a token, turn it into text, check whether its task has ended.

Engine thread only. `evaluation` calls `draw` (in a replay `redraw`) for each slot with logits in the batch. The sampler
chain draws; `text` and `phases` decide how much of the text may be sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.engine.cache import prompt_cache
from server.engine.loop.state import EngineState
from server.engine.seam.task import STOP_EOS, STOP_LIMIT, STOP_WORD, Final, Piece, TokenProbs
from server.engine.slots.phases import Phases
from server.engine.slots.planner import UNLIMITED, Span
from server.engine.slots.slot import Run, Slot
from server.errors import ApiError
from server.records import field, record

MAX_TOKENS_TO_FINISH_CHARACTER = 4  # tokens beyond n_predict to complete a UTF-8 character

DRAWS_S, DRAW_S = 5.0, 0.2
"""Processor time that all draws of a task may take: `DRAWS_S` seconds, plus `DRAW_S` seconds for each token."""


@record
class Drawn:
    """What one step draws for one task. `texts` and, if wanted, `probs` have an entry per token; `stop` says why the
    task ends ("" if it doesn't)."""

    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    probs: list[TokenProbs] = field(default_factory=list)
    stop: str = ""


class Answers:
    """Draws for all slots and ends their tasks."""

    def __init__(self, state: EngineState) -> None:
        self._state = state

    def draw(self, slot: Slot, run: Run, row: int, draft: Sequence[int] = ()) -> None:
        """Draw the next tokens of a slot and end its task if it is complete.

        Row `row` of the batch has the logits after the last token that is certain. The next rows have the logits after
        each token of `draft`. A row is used only if all tokens drawn from the rows before it equal the draft. The other
        drafted tokens are cut from the cache.
        """
        if run.task.n_predict == 0:
            run.t_last = self._state.clock()
            self._state.meter.note_prompt(len(run.prompt) - run.n_cached, run.t_last - run.t_start)
            self.finish(slot, STOP_LIMIT)
            return
        n_certain = len(slot.tokens) - len(draft)
        gap = self._tick(run)
        drawn = Drawn()
        started = self._state.work_clock()
        try:
            self._draw_rows(run, row, draft, drawn)
        finally:
            run.draw_s = self._state.work_clock() - started
            run.draws_s += run.draw_s
            if drawn.tokens:
                self._tell(run, drawn, gap)
            if draft:
                prompt_cache.trim(self._state.backend, slot, n_certain + max(len(drawn.tokens) - 1, 0))
        if run.drafting is not None:
            self._state.speculation.judge(run.drafting, len(draft), drawn.tokens)  # type: ignore[arg-type]
        if drawn.stop or not self._has_room(slot, run):
            self.finish(slot, drawn.stop or STOP_LIMIT)
        elif run.draws_s > DRAWS_S + DRAW_S * run.n_decoded:
            raise ApiError(
                400,
                f"sampling {run.n_decoded} tokens took {run.draws_s:.1f} s of processor time and kept other requests "
                "waiting: the grammar has too many ways to go on, or the samplers are too slow",
            )
        else:
            run.next_token = drawn.tokens[-1]

    def redraw(self, slot: Slot, run: Run, rows: range) -> None:
        """`draw` for rows whose tokens are known from before the engine's restart."""
        redraw_known(self._state, run, rows)
        if not self._has_room(slot, run):
            self.finish(slot, STOP_LIMIT)

    def _draw_rows(self, run: Run, row: int, draft: Sequence[int], drawn: Drawn) -> None:
        n_probs, phases = run.task.sampling.n_probs, run.phases
        for i in range(len(draft) + 1):
            if phases is not None and (phases.is_waiting or phases.forced is not None):
                token = draw_watched(run, phases, row + i, drawn.probs)
            elif n_probs:
                drawn.probs.append(run.sampler.sample_probs(row + i, n_probs))
                token = drawn.probs[-1].token
            else:
                token = run.sampler.sample(row + i)
            run.n_decoded += 1
            drawn.tokens.append(token)
            drawn.texts.append(take_token(self._state, run, token))
            if token in self._state.backend.eog_tokens:
                drawn.stop = STOP_EOS
                return
            if run.text.stopping_word:
                drawn.stop = STOP_WORD
            elif run.text.is_outdented or self._is_at_limit(run):
                drawn.stop = STOP_LIMIT
            if drawn.stop or i == len(draft) or token != draft[i]:
                return

    def _tell(self, run: Run, drawn: Drawn, gap: float | None) -> None:
        n, meter = len(drawn.tokens), self._state.meter
        meter.n_predicted += n
        if gap is not None:
            meter.note_tokens(n, gap)
        timings = run.make_timings() if run.task.timings and drawn.stop != STOP_EOS else None
        for i, token in enumerate(drawn.tokens):
            probs = (drawn.probs[i],) if drawn.probs else ()
            self._state.events.append(Piece(run.task.id, (token,), drawn.texts[i], probs, timings))

    def _tick(self, run: Run) -> float | None:
        """Note the time of the next token; return the seconds since the token before, None for the first token."""
        now = self._state.clock()
        before, run.t_last = run.t_last, now
        if run.n_decoded:
            return now - before
        run.t_first = now
        self._state.meter.note_prompt(len(run.prompt) - run.n_cached, now - run.t_start)
        self._state.meter.first_token(now - run.t_arrived)
        return None

    def _is_at_limit(self, run: Run) -> bool:
        n_predict, t_max = run.task.n_predict, run.task.t_max_predict_ms
        if t_max > 0 and run.text.has_new_line and (run.t_last - run.t_first) * 1e3 > t_max:
            return True
        if n_predict < 0 or run.n_decoded < n_predict:
            return False
        return not run.text.is_inside_character or run.n_decoded >= n_predict + MAX_TOKENS_TO_FINISH_CHARACTER

    def _has_room(self, slot: Slot, run: Run) -> bool:
        """Whether the slot's context has room for one more token, or can be shifted before the next step.

        A context with images or sound isn't shifted, since a shift might cut one in two.
        """
        if len(slot.tokens) + run.layout.count_extra() < slot.n_ctx:
            return True
        run.truncated = True
        if not (self._state.config.shift_context and self._state.backend.can_shift) or run.layout.chunks:
            return False
        run.is_full = True
        return True

    def finish(self, slot: Slot, stop: str) -> None:
        """Complete a task and free its slot."""
        run = slot.run
        n_read = None
        if not (run.n_decoded or run.t_last):  # its prompt is being read
            run.t_last = self._state.clock()
            n_read = len(slot.tokens if slot.aside is None else slot.aside.tokens)
        text = run.text.finish() if run.phases is None else run.phases.finish()
        if run.text.stopping_word:
            stop = STOP_WORD
        self._state.events.append(
            Final(
                id=run.task.id,
                id_slot=slot.id,
                text=text,
                stop=stop,
                stopping_word=run.text.stopping_word,
                n_prompt=len(run.prompt) + run.layout.count_extra(),
                n_predicted=run.n_decoded,
                n_cached=len(slot.tokens),
                truncated=run.truncated,
                timings=run.make_timings(n_read),
                cache=run.make_cache_use(),
                n_reasoning=0 if run.phases is None else run.phases.n_thought,
            )
        )
        self._state.speculation.remember(run)  # type: ignore[arg-type]
        self._state.meter.note_text(run.n_decoded, run.t_last - run.t_first)
        self._state.release(slot, stop)


# ---- tokens before a lazy grammar begins, and forced tokens ----------------------------------------------------------


def take_token(state: EngineState, run: Run, token: int) -> str:
    """Add a token to the task's text; return the part of the text that may be sent now."""
    phases = run.phases
    if phases is None:
        return run.text.feed(state.backend.piece(token))
    was_waiting = phases.is_waiting
    text = phases.take(token)
    if phases.is_waiting and not was_waiting:
        run.sampler.end_grammar()
    return text


def draw_watched(run: Run, phases: Phases, row: int, probs: list[TokenProbs], known: int | None = None) -> int:
    """Draw the next token of a text whose grammar hasn't begun, or take the forced token. Wanted probabilities are
    added to `probs`. In a replay the result is the `known` token, and the grammar begins where it did before."""
    sampler, n_probs = run.sampler, 0 if known is not None else run.task.sampling.n_probs
    if phases.forced is not None:
        token = phases.forced if known is None else known
        if n_probs:
            probs.append(sampler.compute_row_probs(row, token, n_probs))
        sampler.commit(token)
        return token
    if n_probs:
        probs.append(sampler.draw_probs(row, n_probs))
        drawn = probs[-1].token
    else:
        drawn = sampler.draw(row)
    token = _fit(run, phases, row, drawn) if known is None else _fit_known(run, phases, row, drawn, known)
    if n_probs and token != drawn:
        probs[-1] = sampler.compute_row_probs(row, token, n_probs)
    sampler.commit(token)
    return token


def _fit(run: Run, phases: Phases, row: int, drawn: int) -> int:
    """Begin the grammar if the drawn token triggers it. Returns that token, or another if the grammar refuses it."""
    begin = phases.look(drawn)
    if begin is None:
        return drawn
    run.sampler.begin_grammar(begin)
    token = run.sampler.fit(row, drawn)
    phases.bind(token == drawn)
    return token


def _fit_known(run: Run, phases: Phases, row: int, drawn: int, known: int) -> int:
    """`_fit` for a known token, which is either the drawn token or what `_fit` drew in its place. Because of rounding,
    `drawn` may differ from the draw before the restart."""
    sampler = run.sampler
    for token in dict.fromkeys((drawn, known)):
        begin = phases.look(token)
        if begin is None:
            continue
        sampler.begin_grammar(begin)
        is_same = token == known
        if is_same == sampler.is_allowed(token) and sampler.is_allowed(known):
            if not is_same:
                sampler.fit(row, token)  # for the random number generator: the same number of draws as before
            phases.bind(is_same)
            return known
        if is_same:
            raise ApiError(500, "after a restart of the engine, the text so far doesn't fit the grammar")
        sampler.end_grammar()
    return known


MAX_LOGITS = 64 << 20  # bytes of logits for known tokens in one batch (libllama never frees this buffer)


# ---- tasks resumed after a restart of the engine ---------------------------------------------------------------------

# A resumed task goes through prompt and draws like any other, but while `Task.resume` has tokens left, these replace
# the results of the draws. So random numbers, mirostat, adaptive-p, penalties and grammar come to the same state as
# before. The text is made again but not sent. A full context is shifted at the same tokens.
#
# Known tokens are evaluated like drafts: as rows with logits behind the sequence's latest token. Not taken: evaluating
# them as part of the prompt and skipping random numbers. libllama has no such call, and not every stage draws once per
# token.


def add_known_tokens(state: EngineState, spans: Sequence[Span]) -> None:
    """Add known tokens to the spans of resumed tasks, as many as fit into the batch, the context and `MAX_LOGITS`.

    With `--exact` none are added: each row is computed alone.
    """
    slots = {span.id: state.slots[span.id] for span in spans if _is_within(state.slots[span.id].run)}
    info = state.backend.info
    n_logits = 0 if state.config.exact else max(MAX_LOGITS // (4 * info.n_vocab), len(slots))
    room = min(n_logits, info.n_batch - sum(map(len, spans)))
    for span in spans:
        if span.id in slots:
            known = _list_known(slots[span.id], room // len(slots))
            span.tokens = [*span.tokens, *known]
            span.n_draft = len(known)


def redraw_known(state: EngineState, run: Run, rows: Iterable[int]) -> None:
    """Take the known tokens as the results of these rows of the batch."""
    for row in rows:
        token, phases = run.task.resume[run.n_decoded], run.phases
        if phases is not None and (phases.is_waiting or phases.forced is not None):
            draw_watched(run, phases, row, [], token)
        else:
            run.sampler.replay(row, token)
        take_token(state, run, token)
        run.n_decoded += 1
        run.next_token = token
    run.t_last = state.clock()
    run.t_first = run.t_first or run.t_last
    if not run.is_replaying:
        _go_on(run)


def _is_within(run: Any) -> bool:
    """Whether the task's prompt has been read and it has known tokens left."""
    return run.is_replaying and run.next_token is not None


def _list_known(slot: Slot, room: int) -> tuple[int, ...]:
    """At most `room` known tokens after the latest one, but never the last: what follows it isn't known."""
    n = min(room, slot.n_ctx - len(slot.tokens) - 1, UNLIMITED if slot.positions is None else slot.positions.room - 1)
    return slot.run.task.resume[slot.run.n_decoded : -1][: max(n, 0)]


def _go_on(run: Run) -> None:
    """Move the times of the task's start and first token, so that its timings don't include the replay."""
    late = run.t_last - run.task.resume_ms / 1e3 - run.t_first
    run.t_start += late
    run.t_first += late
