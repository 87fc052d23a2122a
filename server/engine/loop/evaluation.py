"""Decodes a batch, and copes with a full cache, errors and aborts.

Engine thread only. Whatever a decode's result, `slot.tokens` is what the cache holds afterwards. If the cache has no
room, first drafts go, then idle caches; then smaller parts are tried, and last the newest task steps aside. If a part
fails, its sequences are tried alone, so only a task that fails alone is lost. With a recurrent model, more may be lost
(`undo`).
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.cache import prompt_cache
from server.engine.loop.answers import Answers
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.state import EngineState
from server.engine.seam.task import STOP_LIMIT, PromptProbs
from server.engine.slots import planner
from server.engine.slots.backend import DECODE_ABORTED, DECODE_NO_ROOM, DECODE_OK, Backend
from server.engine.slots.planner import UNLIMITED, Span
from server.engine.slots.slot import Run, Slot
from server.engine.speculation.speculation import without_drafts
from server.errors import ApiError
from server.log import get_logger

log = get_logger("engine")


class Evaluation:
    """Decodes spans and passes the rows to draw from to `Answers`."""

    def __init__(self, state: EngineState, answers: Answers, prefixes: Prefixes) -> None:
        self._state = state
        self._prefixes = prefixes
        self._answers = answers

    def evaluate(self, spans: Sequence[Span]) -> None:
        """Decode all spans and draw from them."""
        size = UNLIMITED
        rest = list(spans)
        while rest := self._skip_ended(rest):
            part, later = (rest, []) if size == UNLIMITED else planner.split(rest, size)
            started = self._state.clock()
            code = self._state.backend.decode(part)
            if code == DECODE_OK:
                speculation, seconds = self._state.speculation, self._state.clock() - started
                is_prompt = self._state.slots[part[0].id].run.next_token is None
                (speculation.observe_prompt if is_prompt else speculation.observe)(part, seconds)
                self._commit(part)
                rest = later
                continue
            if code != DECODE_ABORTED and any(span.n_draft for span in part):
                self.undo(part)  # try without drafts first
                rest = without_drafts(rest)
                continue
            if code == DECODE_NO_ROOM and self._prefixes.make_room():
                continue
            if code == DECODE_NO_ROOM and (n_rows := sum(len(span) for span in part)) > 1:
                size = n_rows // 2
                continue
            if code == DECODE_NO_ROOM and self._prefixes.step_aside():
                size = UNLIMITED
                continue
            self.undo(part)
            if code == DECODE_ABORTED:
                return
            self.isolate(part, code)
            rest = later

    def _skip_ended(self, spans: list[Span]) -> list[Span]:
        slots = self._state.slots
        return [span for span in spans if slots[span.id].run is not None and slots[span.id].aside is None]

    def isolate(self, part: list[Span], code: int) -> None:
        """A part of the batch can't be decoded: try each of its tasks alone, or fail the only one."""
        if len({span.id for span in part}) > 1:
            for span in part:
                if self._state.slots[span.id].run is not None:
                    self.evaluate([span])
            return
        slot = self._state.slots[part[0].id]
        if slot.run is None:
            return  # `undo` has failed the task: its state was lost
        message = (
            "the KV cache has no room left for this request"
            if code == DECODE_NO_ROOM
            else f"llama_decode failed with code {code}"
        )
        log.error("task %d: %s", slot.run.task.id, message)
        self._state.fail(slot.run.task.id, 500, message)
        self._state.drop(slot, keep_cache=False)

    def undo(self, part: Sequence[Span]) -> None:
        """After a failed decode, drop the cells that it may have added after the slots' tokens.

        A recurrent model's state can't be cut. If the decode has changed it, the state is lost and the task fails.
        """
        for slot in {self._state.slots[span.id] for span in part}:
            n = len(slot.tokens)
            if prompt_cache.trim(self._state.backend, slot, n) < n:
                self._state.fail(slot.run.task.id, 500, "the model's state was lost in an interrupted step; try again")
                self._state.drop(slot, keep_cache=False)

    def _draw_ahead(self, part: Sequence[Span]) -> None:
        """Let several threads draw from the rows that are certainly needed: the row before the drafts of each
        generating sequence.

        Tasks that want probabilities are left out, and tasks whose next token is known or forced.
        """
        if len(part) == 1:
            return
        slots, wanted, row = self._state.slots, [], -1
        for span in part:
            row += len(span)
            run = slots[span.id].run
            is_drawn = not run.is_replaying and (run.phases is None or run.phases.forced is None)
            if span.output and run.next_token is not None and is_drawn and not run.task.sampling.n_probs:
                wanted.append((run.sampler, row - span.n_draft))
        self._state.backend.draw_ahead(wanted)

    def _commit(self, part: Sequence[Span]) -> None:
        started = self._state.clock()
        self._draw_ahead(part)
        row = -1
        for span in part:
            row += len(span)
            self.commit(span, row)
        self._state.meter.sampler_ms += (self._state.clock() - started) * 1e3

    def commit(self, span: Span, row: int) -> None:
        """A span is in the cache: add it to the slot's tokens, and draw if it has logits. `row` is its last row in the
        batch."""
        slot = self._state.slots[span.id]
        slot.tokens.extend(span.tokens)
        if span.all_rows:
            n = len(span)
            report_prompt_probs(self._state, slot, row - n + 1, len(slot.tokens) - n, n)
        if slot.positions is not None:
            slot.positions.pos += len(span)
        run: Run = slot.run  # type: ignore[assignment]
        if run.next_token is None:
            self._state.meter.n_prompt += len(span)
            if self._is_out_of_time(run):
                self._answers.finish(slot, STOP_LIMIT)
                return
            if run.task.progress and not run.task.resume:
                self._state.report_progress(slot)
        if not span.output:
            return
        try:
            if run.is_replaying:
                self._answers.redraw(slot, run, range(row - span.n_draft, row + 1))
            else:
                self._answers.draw(slot, run, row - span.n_draft, span.tokens[len(span) - span.n_draft :])
        except ApiError as error:
            self._state.refuse(run.task.id, error)
            self._state.drop(slot)
        except Exception:
            log.exception("task %d: drawing a token failed", run.task.id)
            self._state.fail(run.task.id, 500, "drawing a token failed; see the server's log")
            self._state.drop(slot, keep_cache=False)

    def _is_out_of_time(self, run: Run) -> bool:
        limit = run.task.t_max_prompt_ms
        return limit > 0 and (self._state.clock() - run.t_start) * 1e3 > limit and len(run.prompt) > 0


# ---- probabilities of a prompt's tokens ------------------------------------------------------------------------------

# If a task wants these probabilities, the row before each reported token has logits. A step reads at most
# `PROMPT_PROBS_ROWS` of these rows, because each takes a float for each token of the vocabulary, and a softmax. A cache
# holds no logits. So the task reuses only tokens whose probabilities aren't reported: the system prompt, and the tokens
# before `Task.probs_from`.
PROMPT_PROBS_ROWS = 64


def has_prompt_probs(run: Run) -> bool:
    return run.task.prompt_probs >= 0


def cut_out(backend: Backend, slot: Slot) -> None:
    """Remove the parts of `Run.cuts` from the task's prompt and from the cache."""
    run: Run = slot.run  # type: ignore[assignment]
    cuts, run.cuts = run.cuts, ()
    for start, end in reversed(cuts):
        prompt_cache.cut(backend, slot, start, end)
        del run.prompt[start:end]
        run.judged_from -= end - start


def report_prompt_probs(state: EngineState, slot: Slot, first_row: int, start: int, n: int) -> None:
    """Report the probabilities of prompt tokens. The batch's `n` rows from `first_row` on hold the prompt from position
    `start`. Reported positions don't count the system prompt."""
    run = slot.run
    n_system = len(run.prompt) - len(run.task.prompt)
    begin, end = max(start + 1, n_system + 1, run.judged_from), min(start + n + 1, len(run.prompt))
    if begin < end:
        probs = tuple(
            run.sampler.compute_row_probs(first_row + place - start - 1, run.prompt[place], run.task.prompt_probs)
            for place in range(begin, end)
        )
        state.events.append(PromptProbs(run.task.id, begin - n_system, probs))
