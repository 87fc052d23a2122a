"""Chooses the rows of the next batch: pure functions from jobs to spans.

A batch has either one row for each generating sequence (drafts come later), or prompt rows. Attention over rows of one
kind costs less than over a mixture, which in a split cache would be cut into micro-batches (docs/performance.md).
`batching` decides whose turn it is and how many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.records import record

UNLIMITED = 2**31  # rows


@record
class Job:
    """The tokens that a sequence has to evaluate next: a prompt's if `is_prefill`, else its latest token."""

    id: int  # of the slot
    seq: int
    pos: int  # of the first token
    tokens: Sequence[int]
    is_prefill: bool
    limit: int = UNLIMITED  # rows in one step at most
    ends: bool = True  # the last token's logits are wanted
    all_rows: bool = False  # every token's logits are wanted


@record
class Span:
    """Consecutive rows of one sequence in a batch."""

    id: int
    seq: int
    pos: int
    tokens: Sequence[int]
    output: bool  # the last row's logits are wanted
    n_draft: int = 0  # drafted tokens at the end; the logits of their rows and of the row before are wanted
    all_rows: bool = False  # every row's logits are wanted, whatever `output` says

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, n: int) -> tuple[Span, Span]:
        """The first `n` rows, and the rest, which keeps the output."""
        return (
            Span(self.id, self.seq, self.pos, self.tokens[:n], False, all_rows=self.all_rows),
            Span(self.id, self.seq, self.pos + n, self.tokens[n:], self.output, all_rows=self.all_rows),
        )


def plan_generating(jobs: Iterable[Job], n_batch: int) -> list[Span]:
    """One row for each generating job, `n_batch` at most."""
    return [Span(job.id, job.seq, job.pos, job.tokens, True) for job in jobs if not job.is_prefill][:n_batch]


def plan_reading(prompts: Iterable[Job], n_rows: int, is_alone: bool) -> list[Span]:
    """Spans with at most `n_rows` prompt rows together, from one job after the other; if `is_alone`, from the first job
    only."""
    spans: list[Span] = []
    for job in prompts:
        n = min(n_rows, len(job.tokens), job.limit)
        if n <= 0 or spans and is_alone:
            break
        spans.append(
            Span(job.id, job.seq, job.pos, job.tokens[:n], job.ends and n == len(job.tokens), all_rows=job.all_rows)
        )
        n_rows -= n
    return spans


def split(spans: Sequence[Span], n_rows: int) -> tuple[list[Span], list[Span]]:
    """Cut a batch in two, the first part with at most `n_rows` rows. Their order stays."""
    first: list[Span] = []
    for i, span in enumerate(spans):
        if len(span) <= n_rows:
            first.append(span)
            n_rows -= len(span)
            continue
        if n_rows == 0:
            return first, list(spans[i:])
        head, tail = span.split(n_rows)
        return [*first, head], [tail, *spans[i + 1 :]]
    return first, []
