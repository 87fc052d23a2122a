"""`engine.planner`: batches of streams, batches of prompts, and where batches are split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.slots.planner import Job, Span, plan_generating, plan_reading, split


def prompt(id_: int, n: int, pos: int = 0, **fields: int) -> Job:
    return Job(id_, id_, pos, list(range(100 * id_, 100 * id_ + n)), True, **fields)


def running(id_: int, pos: int = 9) -> Job:
    return Job(id_, id_, pos, [7], False)


def shape(spans: list[Span]) -> list[tuple[int, int, int, bool]]:
    return [(span.id, span.pos, len(span), span.output) for span in spans]


def test_nothing_to_do_is_an_empty_batch():
    assert plan_generating([], 8) == [] and plan_reading([], 8, False) == []


def test_each_running_stream_has_one_row_and_prompts_have_none():
    assert shape(plan_generating([prompt(0, 3), running(1), prompt(2, 2), running(3)], 8)) == [
        (1, 9, 1, True),
        (3, 9, 1, True),
    ]


def test_a_batch_holds_no_more_streams_than_rows():
    assert shape(plan_generating([running(0), running(1), running(2)], 2)) == [(0, 9, 1, True), (1, 9, 1, True)]


def test_a_short_prompt_is_one_span_with_output():
    assert plan_reading([prompt(0, 3)], 8, False) == [Span(0, 0, 0, [0, 1, 2], True)]


def test_the_budget_of_prompt_rows_is_kept():
    assert shape(plan_reading([prompt(1, 100, pos=5)], 16, False)) == [(1, 5, 16, False)]


def test_what_one_prompt_leaves_goes_to_the_next():
    assert shape(plan_reading([prompt(0, 3), prompt(1, 100), prompt(2, 1)], 8, False)) == [
        (0, 0, 3, True),
        (1, 0, 5, False),
    ]


def test_a_prompt_can_have_a_batch_for_itself():
    assert shape(plan_reading([prompt(0, 3), prompt(1, 100)], 8, True)) == [(0, 0, 3, True)]


def test_output_comes_only_with_the_last_row_of_a_prompt():
    assert shape(plan_reading([prompt(0, 8)], 8, False)) == [(0, 0, 8, True)]
    assert shape(plan_reading([prompt(0, 9)], 8, False)) == [(0, 0, 8, False)]


def test_a_job_with_a_limit_of_its_own_leaves_room_for_the_next():
    assert shape(plan_reading([prompt(0, 8, limit=3), prompt(1, 2)], 8, False)) == [(0, 0, 3, False), (1, 0, 2, True)]


PROMPTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=8).map(
    lambda rows: [prompt(i, n, pos) for i, (n, pos) in enumerate(rows)]
)


@given(jobs=PROMPTS, n_rows=st.integers(1, 60), is_alone=st.booleans())
def test_every_batch_keeps_the_rules(jobs, n_rows, is_alone):
    spans = plan_reading(jobs, n_rows, is_alone)
    assert [span.id for span in spans] == list(range(len(spans))), "in the order given, nobody left out"
    for span, job in zip(spans, jobs):
        assert (span.seq, span.pos) == (job.seq, job.pos)
        assert 0 < len(span) and list(span.tokens) == list(job.tokens[: len(span)])
        assert span.output == (len(span) == len(job.tokens))
    wanted = len(jobs[0].tokens) if is_alone else sum(len(job.tokens) for job in jobs)
    assert sum(map(len, spans)) == min(n_rows, wanted), "rows were wasted"
    assert len(spans) == 1 or not is_alone


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), n_batch=st.integers(1, 16), is_alone=st.booleans())
def test_prompts_get_every_row_once_and_in_order(lengths, n_batch, is_alone):
    rest = {i: list(range(n)) for i, n in enumerate(lengths)}
    seen: dict[int, list[int]] = {i: [] for i in rest}
    for _ in range(sum(lengths)):
        for span in plan_reading(
            [Job(i, i, len(seen[i]), tokens, True) for i, tokens in rest.items() if tokens], n_batch, is_alone
        ):
            assert span.pos == len(seen[span.id])
            seen[span.id] += span.tokens
            rest[span.id] = rest[span.id][len(span) :]
            assert span.output == (not rest[span.id])
    assert seen == {i: list(range(n)) for i, n in enumerate(lengths)}


def rows(spans: list[Span]) -> list[tuple[int, int, int, int, bool]]:
    """Every row: (id, seq, position, token, output)."""
    return [
        (span.id, span.seq, span.pos + i, token, span.output and i == len(span) - 1)
        for span in spans
        for i, token in enumerate(span.tokens)
    ]


SPANS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30), st.booleans()), max_size=6).map(
    lambda shapes: [
        Span(i, i + 10, pos, list(range(pos, pos + n)), output) for i, (n, pos, output) in enumerate(shapes)
    ]
)


@given(spans=SPANS, n=st.integers(0, 60))
def test_a_batch_in_two_has_the_same_rows_in_the_same_order(spans, n):
    first, rest = split(spans, n)
    assert rows(first) + rows(rest) == rows(spans)
    assert len(rows(first)) == min(n, len(rows(spans)))
    assert all(len(span) > 0 for span in (*first, *rest))


def test_a_batch_that_fits_is_left_whole():
    spans = [Span(0, 0, 0, [1, 2], True), Span(1, 1, 0, [3], True)]
    assert split(spans, 3) == (spans, [])
