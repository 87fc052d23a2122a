"""From logits to events: draw a token, turn it into text, see whether the task has come to its end.

Engine thread only; the loop calls `draw` once per finished row. How a token is drawn is the sampler's matter, what
may be shown of its text that of `text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from server.engine.cache import prompt_cache
from server.engine.loop import replay
from server.engine.loop.state import EngineState
from server.engine.seam.task import STOP_EOS, STOP_LIMIT, STOP_WORD, Final, Piece, TokenProbs
from server.engine.slots.slot import Run, Slot
from server.log import get_logger
from server.records import record

MAX_TOKENS_TO_FINISH_CHARACTER = 4

log = get_logger("engine")


@record
class Drawn:
    """What one step draws for one task: `texts` and `probs` by token, and why the task ends ("" if it goes on)."""

    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    probs: list[TokenProbs] = field(default_factory=list)
    stop: str = ""


class Answers:
    """Draws for all slots and ends their tasks."""

    def __init__(self, state: EngineState) -> None:
        self._state = state

    def draw(self, slot: Slot, run: Run, row: int, draft: Sequence[int] = ()) -> None:
        """Draw the next tokens of a slot and see whether they end its task.

        Batch row `row` has the logits behind the last certain token, the rows after it those behind each token of
        `draft`. A row counts as long as the tokens drawn before it are the guessed ones; the cache is cut to those.
        """
        if run.task.n_predict == 0:
            run.t_last = self._state.clock()
            self._state.meter.prompt_done(len(run.prompt) - run.n_cached, run.t_last - run.t_start)
            self.finish(slot, STOP_LIMIT)
            return
        n_certain = len(slot.tokens) - len(draft)
        gap = self._tick(run)
        drawn = Drawn()
        try:
            self._draw_rows(run, row, draft, drawn)
        finally:
            if drawn.tokens:
                self._tell(run, drawn, gap)
            if draft:
                prompt_cache.trim(self._state.backend, slot, n_certain + max(len(drawn.tokens) - 1, 0))
        if run.drafting is not None:
            self._state.speculation.judge(run.drafting, len(draft), drawn.tokens)
        if drawn.stop or not self._has_room(slot, run):
            self.finish(slot, drawn.stop or STOP_LIMIT)
        else:
            run.next_token = drawn.tokens[-1]

    def redraw(self, slot: Slot, run: Run, rows: range) -> None:
        """The same for rows whose tokens are known from before a restart; the client has them."""
        replay.redraw(self._state, run, rows)
        if not self._has_room(slot, run):
            self.finish(slot, STOP_LIMIT)

    def _draw_rows(self, run: Run, row: int, draft: Sequence[int], drawn: Drawn) -> None:
        """Draw from one row after the other while the drafted tokens prove right and nothing ends the task."""
        n_probs = run.task.sampling.n_probs
        for i in range(len(draft) + 1):
            if n_probs:
                drawn.probs.append(run.sampler.sample_probs(row + i, n_probs))
                token = drawn.probs[-1].token
            else:
                token = run.sampler.sample(row + i)
            run.n_decoded += 1
            drawn.tokens.append(token)
            drawn.texts.append(run.text.feed(self._state.backend.piece(token)))
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
        """One event for all tokens of the step."""
        n, meter = len(drawn.tokens), self._state.meter
        meter.n_predicted += n
        if gap is not None:
            meter.tokens(n, gap)
        timings = run.timings() if run.task.timings and drawn.stop != STOP_EOS else None
        self._state.events.append(
            Piece(run.task.id, tuple(drawn.tokens), "".join(drawn.texts), tuple(drawn.probs), timings)
        )

    def _tick(self, run: Run) -> float | None:
        """Note the time of the next token; seconds since the one before it, None for the first."""
        now = self._state.clock()
        before, run.t_last = run.t_last, now
        if run.n_decoded:
            return now - before
        run.t_first = now
        self._state.meter.prompt_done(len(run.prompt) - run.n_cached, now - run.t_start)
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
        """Room for one more token in the slot's context, made by shifting if that is switched on.

        With images there is no shifting: what is left of one makes no sense to a model.
        """
        if len(slot.tokens) + run.layout.n_extra() < slot.n_ctx:
            return True
        run.truncated = True
        if not (self._state.config.shift_context and self._state.backend.can_shift) or run.layout.chunks:
            return False
        n = prompt_cache.shift(self._state.backend, slot, self._state.n_keep(run.task, run.prompt), run.task.n_discard)
        log.debug("task %d: context full, dropped %d tokens", run.task.id, n)
        return True

    def finish(self, slot: Slot, stop: str) -> None:
        """The good end of a task; the slot is free."""
        run = slot.run
        text = run.text.finish()
        if run.text.stopping_word:
            stop = STOP_WORD
        self._state.events.append(
            Final(
                id=run.task.id,
                id_slot=slot.id,
                text=text,
                stop=stop,
                stopping_word=run.text.stopping_word,
                n_prompt=len(run.prompt) + run.layout.n_extra(),
                n_predicted=run.n_decoded,
                n_cached=len(slot.tokens),
                truncated=run.truncated,
                timings=run.timings(),
            )
        )
        self._state.meter.text_done(run.n_decoded, run.t_last - run.t_first)
        self._state.release(slot, stop)
