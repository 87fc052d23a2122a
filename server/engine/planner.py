"""Who gets which rows of the next batch: a pure function from jobs to spans.

Every step carries one row for each sequence that is generating, then prompt tokens of waiting prompts in order of
arrival until the step's budget is used. So a long prompt can't starve the others: it only fills what they leave.
No thread, no backend, no clock; the scheduler says what the budget is. Jobs and spans live for one step and are made
anew for each, so they aren't frozen (a frozen dataclass costs three times as much to make).

Not taken: prefill-only steps (shorter code, but every running stream stalls while a prompt is read).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


UNLIMITED = 2**31


@dataclass(slots=True)
class Job:
    """What one sequence still has to evaluate: `tokens` from position `pos` on. `id` is the caller's (slot id).

    `is_prefill` tells prompt tokens from the one token of a running generation. `limit` bounds the rows of one step.
    """

    id: int
    seq: int
    pos: int
    tokens: Sequence[int]
    is_prefill: bool
    limit: int = UNLIMITED


@dataclass(slots=True)
class Span:
    """Consecutive rows of one sequence in a batch. With `output`, logits of the last row are wanted."""

    id: int
    seq: int
    pos: int
    tokens: Sequence[int]
    output: bool

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, n: int) -> tuple[Span, Span]:
        """The first `n` rows, and the rest (which keeps the output)."""
        return (Span(self.id, self.seq, self.pos, self.tokens[:n], False),
                Span(self.id, self.seq, self.pos + n, self.tokens[n:], self.output))


def plan(jobs: Iterable[Job], n_batch: int, n_prefill: int) -> list[Span]:
    """Spans for one `llama_decode`: at most `n_batch` rows, of them at most `n_prefill` prompt rows.

    Jobs come in order of arrival. Generating jobs always have room as long as there are no more than `n_batch`.
    """
    spans: list[Span] = []
    prompts: list[Job] = []
    room = n_batch
    for job in jobs:
        if job.is_prefill:
            prompts.append(job)
        elif room:
            spans.append(Span(job.id, job.seq, job.pos, job.tokens, True))
            room -= 1
    room = min(room, n_prefill)
    for job in prompts:
        n = min(room, len(job.tokens), job.limit)
        if n == 0:
            break
        spans.append(Span(job.id, job.seq, job.pos, job.tokens[:n], n == len(job.tokens)))
        room -= n
    return spans


def split(spans: Sequence[Span], n_rows: int) -> tuple[list[Span], list[Span]]:
    """Cut a batch in two, the first part with at most `n_rows` rows; the order of rows stays."""
    first: list[Span] = []
    for i, span in enumerate(spans):
        if len(span) <= n_rows:
            first.append(span)
            n_rows -= len(span)
            continue
        if n_rows == 0:
            return first, list(spans[i:])
        head, tail = span.split(n_rows)
        return [*first, head], [tail, *spans[i + 1:]]
    return first, []
