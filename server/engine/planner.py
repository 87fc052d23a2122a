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
        return (Span(self.id, self.seq, self.pos, self.tokens[:n], False, all_rows=self.all_rows),
                Span(self.id, self.seq, self.pos + n, self.tokens[n:], self.output, all_rows=self.all_rows))


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
        spans.append(Span(job.id, job.seq, job.pos, job.tokens[:n], job.ends and n == len(job.tokens),
                          all_rows=job.all_rows))
        n_rows -= n
    return spans


def split(self, n: int) -> tuple[Span, Span]:
        """The first `n` rows, and the rest (which keeps the output)."""
        return (Span(self.id, self.seq, self.pos, self.tokens[:n], False, all_rows=self.all_rows),
                Span(self.id, self.seq, self.pos + n, self.tokens[n:], self.output, all_rows=self.all_rows))


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
    return spans + _share(prompts, min(room, n_prefill))


def _share(prompts: list[Job], room: int) -> list[Span]:
    """Spans of at most `room` prompt rows: half for the oldest, then the shortest, what is left for the oldest
    again."""
    if not prompts or room <= 0:
        return []
    oldest, *others = prompts
    n_oldest = _rows(oldest, room - room // 2)
    room -= n_oldest
    spans: list[Span] = []
    for job in sorted(others, key=_length):
        n = _rows(job, room)
        if n:
            spans.append(_span(job, n))
            room -= n
    return [_span(oldest, _rows(oldest, n_oldest + room)), *spans]


def _length(job: Job) -> int:
    return len(job.tokens)


def _rows(job: Job, room: int) -> int:
    return min(room, len(job.tokens), job.limit)


def _span(job: Job, n: int) -> Span:
    return Span(job.id, job.seq, job.pos, job.tokens[:n], job.ends and n == len(job.tokens), all_rows=job.all_rows)


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
