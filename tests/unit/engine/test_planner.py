"""`engine.planner`: running streams first, then prompts, oldest and shortest sharing the budget; batches cut
cleanly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.planner import Job, Span, plan, split


def prompt(id_: int, n: int, pos: int = 0, **fields: int) -> Job:
    return Job(id_, id_, pos, list(range(100 * id_, 100 * id_ + n)), True, **fields)


def running(id_: int, pos: int = 9) -> Job:
    return Job(id_, id_, pos, [7], False)


def shape(spans: list[Span]) -> list[tuple[int, int, int, bool]]:
    return [(span.id, span.pos, len(span), span.output) for span in spans]


def test_nothing_to_do_is_an_empty_batch():
    assert plan([], 8, 8) == []


def test_a_short_prompt_is_one_span_with_output():
    assert plan([prompt(0, 3)], 8, 8) == [Span(0, 0, 0, [0, 1, 2], True)]


def test_running_streams_come_before_prompts_that_arrived_earlier():
    assert shape(plan([prompt(0, 3), running(1), prompt(2, 2), running(3)], 8, 8)) == [
        (1, 9, 1, True), (3, 9, 1, True), (0, 0, 3, True), (2, 0, 2, True)]


def test_a_long_prompt_takes_only_what_the_streams_leave():
    assert shape(plan([running(0), running(1), prompt(2, 100, pos=5)], 8, 8)) == [
        (0, 9, 1, True), (1, 9, 1, True), (2, 5, 6, False)]


def test_the_budget_of_prompt_rows_is_kept():
    assert shape(plan([running(0), prompt(1, 100)], 64, 16)) == [(0, 9, 1, True), (1, 0, 16, False)]


def test_no_budget_leaves_the_streams_alone():
    assert shape(plan([prompt(0, 5), running(1)], 64, 0)) == [(1, 9, 1, True)]


def test_the_oldest_prompt_gets_half_of_the_rows_and_short_ones_the_other():
    assert shape(plan([prompt(0, 100), prompt(1, 100), prompt(2, 1)], 8, 8)) == [
        (0, 0, 4, False), (2, 0, 1, True), (1, 0, 3, False)]


def test_an_only_prompt_gets_all_rows():
    assert shape(plan([prompt(0, 100)], 8, 8)) == [(0, 0, 8, False)]


def test_the_oldest_prompt_gets_what_the_short_ones_leave():
    assert shape(plan([prompt(0, 100), prompt(1, 1)], 8, 8)) == [(0, 0, 7, False), (1, 0, 1, True)]


def test_a_single_row_goes_to_the_oldest_prompt():
    assert shape(plan([prompt(0, 100), prompt(1, 1)], 8, 1)) == [(0, 0, 1, False)]


def test_output_comes_only_with_the_last_row_of_a_prompt():
    assert shape(plan([prompt(0, 8)], 8, 8)) == [(0, 0, 8, True)]
    assert shape(plan([prompt(0, 9)], 8, 8)) == [(0, 0, 8, False)]


def test_a_job_with_a_limit_of_its_own_leaves_room_for_the_next():
    assert shape(plan([prompt(0, 8, limit=3), prompt(1, 2)], 8, 8)) == [(0, 0, 3, False), (1, 0, 2, True)]


JOBS = st.lists(st.tuples(st.booleans(), st.integers(1, 30), st.integers(0, 50)), max_size=8).map(
    lambda rows: [prompt(i, n, pos) if is_prefill else running(i, pos)
                  for i, (is_prefill, n, pos) in enumerate(rows)])


@given(jobs=JOBS, n_batch=st.integers(8, 40), n_prefill=st.integers(0, 40))
def test_every_batch_keeps_the_rules(jobs, n_batch, n_prefill):
    spans = plan(jobs, n_batch, n_prefill)
    by_id = {job.id: job for job in jobs}
    streams = [job.id for job in jobs if not job.is_prefill]
    prompts = [job.id for job in jobs if job.is_prefill]
    assert sum(map(len, spans)) <= n_batch
    assert sum(len(span) for span in spans if by_id[span.id].is_prefill) <= n_prefill
    assert [span.id for span in spans[:len(streams)]] == streams
    assert len({span.id for span in spans}) == len(spans)
    for span in spans:
        job = by_id[span.id]
        assert (span.seq, span.pos) == (job.seq, job.pos)
        assert 0 < len(span) and list(span.tokens) == list(job.tokens[:len(span)])
        assert span.output == (len(span) == len(job.tokens))
    if prompts and n_prefill and len(streams) < n_batch:
        by_prompt = {span.id: len(span) for span in spans if by_id[span.id].is_prefill}
        n_rows = min(n_prefill, n_batch - len(streams))
        assert sum(by_prompt.values()) == min(n_rows, sum(len(by_id[i].tokens) for i in prompts)), "rows were wasted"
        assert by_prompt[prompts[0]] >= min(len(by_id[prompts[0]].tokens), n_rows / 2), "the oldest has its half"
        unfinished = [i for i in prompts[1:] if by_prompt.get(i, 0) < len(by_id[i].tokens)]
        finished = [i for i in prompts[1:] if i not in unfinished]
        assert not unfinished or all(len(by_id[i].tokens) <= len(by_id[j].tokens) for i in finished for j in unfinished)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), n_batch=st.integers(1, 16))
def test_prompts_get_every_row_once_and_in_order(lengths, n_batch):
    rest = {i: list(range(n)) for i, n in enumerate(lengths)}
    seen: dict[int, list[int]] = {i: [] for i in rest}
    for _ in range(sum(lengths)):
        for span in plan([Job(i, i, len(seen[i]), tokens, True) for i, tokens in rest.items() if tokens],
                         n_batch, n_batch):
            assert span.pos == len(seen[span.id])
            seen[span.id] += span.tokens
            rest[span.id] = rest[span.id][len(span):]
            assert span.output == (not rest[span.id])
    assert seen == {i: list(range(n)) for i, n in enumerate(lengths)}


def rows(spans: list[Span]) -> list[tuple[int, int, int, int, bool]]:
    """Every row: (id, seq, position, token, output)."""
    return [(span.id, span.seq, span.pos + i, token, span.output and i == len(span) - 1)
            for span in spans for i, token in enumerate(span.tokens)]


SPANS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30), st.booleans()), max_size=6).map(
    lambda shapes: [Span(i, i + 10, pos, list(range(pos, pos + n)), output)
                    for i, (n, pos, output) in enumerate(shapes)])


@given(spans=SPANS, n=st.integers(0, 60))
def test_a_batch_in_two_has_the_same_rows_in_the_same_order(spans, n):
    first, rest = split(spans, n)
    assert rows(first) + rows(rest) == rows(spans)
    assert len(rows(first)) == min(n, len(rows(spans)))
    assert all(len(span) > 0 for span in (*first, *rest))


def test_a_batch_that_fits_is_left_whole():
    spans = [Span(0, 0, 0, [1, 2], True), Span(1, 1, 0, [3], True)]
    assert split(spans, 3) == (spans, [])
