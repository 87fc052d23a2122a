"""Which rows the next batch has: pure functions from jobs to spans.

A batch has either one row for each sequence that is generating, or prompt rows: attention over rows of one kind costs
less than a mixture, and where each sequence has a KV stream of its own, llama.cpp would cut the mixture to pieces.
No thread, no backend, no clock; `batching` says whose turn it is and for how many rows. Jobs and spans live for one
step and are made anew for each, so they aren't frozen (a frozen dataclass costs three times as much to make).

Not taken: batches of both kinds. Beside a reader, 64 rows of a prompt took 302 ms behind 1,500 tokens, and 246 + 9 ms
when the reader's row had a step of its own (SmolLM2, 2 threads).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.records import record

UNLIMITED = 2**31


@record
class Job:
    """What one sequence still has to evaluate: `tokens` from position `pos` on. `id` is the caller's (slot id).

    `is_prefill` tells prompt tokens from the one token of a running generation. `limit` bounds the rows of one step.
    With `ends` False something else follows these tokens, so that their last logits aren't wanted;
    with `all_rows` those of each row are.
    """

    id: int
    seq: int
    pos: int
    tokens: Sequence[int]
    is_prefill: bool
    limit: int = UNLIMITED
    ends: bool = True
    all_rows: bool = False


@record
class Span:
    """Consecutive rows of one sequence in a batch. With `output`, logits of the last row are wanted.

    The last `n_draft` tokens are guesses; then logits of the row before them and of all of theirs are wanted.
    With `all_rows` those of each row are, whatever `output` says.
    """

    id: int
    seq: int
    pos: int
    tokens: Sequence[int]
    output: bool
    n_draft: int = 0
    all_rows: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, n: int) -> tuple[Span, Span]:
        """The first `n` rows, and the rest (which keeps the output)."""
        return (
            Span(self.id, self.seq, self.pos, self.tokens[:n], False, all_rows=self.all_rows),
            Span(self.id, self.seq, self.pos + n, self.tokens[n:], self.output, all_rows=self.all_rows),
        )


def generating(jobs: Iterable[Job], n_batch: int) -> list[Span]:
    """One row for each generating job, as long as there are no more than `n_batch`."""
    return [Span(job.id, job.seq, job.pos, job.tokens, True) for job in jobs if not job.is_prefill][:n_batch]


def reading(prompts: Iterable[Job], n_rows: int, is_alone: bool) -> list[Span]:
    """Spans of at most `n_rows` prompt rows, of the first job only if `is_alone`, else of as many as it takes."""
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
        return [*first, head], [tail, *spans[i + 1 :]]
    return first, []
