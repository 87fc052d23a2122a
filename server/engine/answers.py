"""From logits to events: draw a token, turn it into text, see whether the task has come to its end.

Engine thread only; the loop calls `draw` once per finished row. How a token is drawn is the sampler's matter, what
may be shown of its text that of `text`.
"""

from __future__ import annotations

from server.engine import prompt_cache
from server.engine.slot import Run, Slot
from server.engine.state import EngineState
from server.engine.task import STOP_EOS, STOP_LIMIT, STOP_WORD, Final, Piece, TokenProbs
from server.log import get_logger

MAX_TOKENS_TO_FINISH_CHARACTER = 4

log = get_logger("engine")


class Answers:
    """Draws for all slots and ends their tasks."""

    def __init__(self, state: EngineState) -> None:
        self._state = state

    def draw(self, slot: Slot, run: Run, row: int) -> None:
        """Draw the next token of a slot whose logits are in batch row `row`, and see whether it ends the task."""
        if run.task.n_predict == 0:
            run.t_last = self._state.clock()
            self._state.meter.prompt_done(len(run.prompt) - run.n_cached, run.t_last - run.t_start)
            self.finish(slot, STOP_LIMIT)
            return
        probs: tuple[TokenProbs, ...] = ()
        if run.task.sampling.n_probs:
            probs = (run.sampler.sample_probs(row, run.task.sampling.n_probs),)
            token = probs[0].token
        else:
            token = run.sampler.sample(row)
        self._count(run)
        text = run.text.feed(self._state.backend.piece(token))
        if token in self._state.backend.eog_tokens:
            self._state.events.append(Piece(run.task.id, (token,), text, probs))
            self.finish(slot, STOP_EOS)
            return
        timings = run.timings() if run.task.timings else None
        self._state.events.append(Piece(run.task.id, (token,), text, probs, timings))
        if run.text.stopping_word:
            self.finish(slot, STOP_WORD)
        elif run.text.is_outdented or self._is_at_limit(run) or not self._has_room(slot, run):
            self.finish(slot, STOP_LIMIT)
        else:
            run.next_token = token

    def _count(self, run: Run) -> None:
        now = self._state.clock()
        run.n_decoded += 1
        self._state.meter.n_predicted += 1
        if run.n_decoded == 1:
            run.t_first = now
            self._state.meter.prompt_done(len(run.prompt) - run.n_cached, now - run.t_start)
            self._state.meter.first_token(now - run.t_arrived)
        else:
            self._state.meter.token(now - run.t_last)
        run.t_last = now

    def _is_at_limit(self, run: Run) -> bool:
        n_predict, t_max = run.task.n_predict, run.task.t_max_predict_ms
        if t_max > 0 and run.text.has_new_line and (run.t_last - run.t_first) * 1e3 > t_max:
            return True
        if n_predict < 0 or run.n_decoded < n_predict:
            return False
        return not run.text.is_inside_character or run.n_decoded >= n_predict + MAX_TOKENS_TO_FINISH_CHARACTER

    def _has_room(self, slot: Slot, run: Run) -> bool:
        """Room for one more token in the slot's context, made by shifting if that is switched on."""
        if len(slot.tokens) < slot.n_ctx:
            return True
        run.truncated = True
        if not (self._state.config.shift_context and self._state.backend.can_shift):
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
        self._state.events.append(Final(
            id=run.task.id, id_slot=slot.id, text=text, stop=stop, stopping_word=run.text.stopping_word,
            n_prompt=len(run.prompt), n_predicted=run.n_decoded, n_cached=len(slot.tokens), truncated=run.truncated,
            timings=run.timings()))
        self._state.meter.text_done(run.n_decoded, run.t_last - run.t_first)
        self._state.release(slot, stop)
