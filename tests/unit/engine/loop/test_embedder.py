"""Requests for vectors in the engine: batched, in turns, beside streams, and one at a time if one is bad."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from server.engine.seam.task import Embedded, Failure
from server.engine.slots.backend import DECODE_ABORTED, DECODE_OK
from server.engine.slots.planner import Span
from tests.fake_embeddings import FakeEmbeddings, vector_of
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Clock, Driver, alone


def driver(clock: Clock | None = None, n_slots: int = 2, max_stall_ms: int = 100, **shape: object) -> Driver:
    backend = FakeBackend(n_ctx=512 * n_slots, n_slots=n_slots, n_batch=16)
    backend.embeddings = FakeEmbeddings(backend, **shape)
    return Driver(backend, clock, max_stall_ms=max_stall_ms)


def result(d: Driver, id_request: int) -> Embedded:
    (end,) = d.outcomes[id_request].ends
    assert isinstance(end, Embedded), end
    return end


def vectors(d: Driver, id_request: int) -> list[list[float]]:
    end = result(d, id_request)
    numbers = struct.unpack(f"{len(end.vectors) // 4}f", end.vectors)
    return [list(numbers[i : i + end.width]) for i in range(0, len(numbers), end.width)]


def expected(*inputs: str) -> list[list[float]]:
    return [vector_of(one.encode()) for one in inputs]


def batch_sizes(d: Driver) -> list[list[int]]:
    return [[len(span) for span in batch] for batch in d.backend.embeddings.batches]


TEXTS = [f"text number {i}" + " and more" * (i % 4) for i in range(23)]


@pytest.mark.parametrize("can_split", [False, True], ids=["encoder", "generative"])
def test_every_input_gets_its_vector_in_the_order_of_the_inputs(can_split):
    d = driver(can_split=can_split, n_input=64, n_rows=40, n_seqs=5)
    request = d.embed(*TEXTS)
    d.finish()
    assert vectors(d, request) == expected(*TEXTS)
    assert result(d, request).n_rows == (1,) * len(TEXTS) and result(d, request).pooling == "mean"
    assert not any(d.backend.embeddings.held.values()), "nothing is left behind"


def test_rows_count_as_prompt_tokens():
    d = driver()
    d.embed("abc", "defgh")
    d.finish()
    assert d.scheduler.snapshot().n_prompt_tokens == 8


def test_a_request_is_announced_before_each_batch_of_it():
    d = driver(n_rows=8, n_seqs=1)
    told: list[tuple[int, int]] = []
    d.scheduler._state.announce = lambda id_: told.append((id_, len(d.backend.embeddings.batches)))
    one, other = d.embed("x" * 8, "y" * 8), d.embed("z" * 8)
    d.finish()
    assert told == [(one, 0), (other, 1), (one, 2)]


def test_inputs_of_several_requests_share_a_batch():
    d = driver(n_rows=32, n_seqs=4)
    requests = [d.embed("aa", "bb"), d.embed("cc"), d.embed("dd")]
    d.finish()
    assert batch_sizes(d) == [[2, 2, 2, 2]]
    assert [vectors(d, one) for one in requests] == [expected("aa", "bb"), expected("cc"), expected("dd")]


def test_a_short_request_does_not_wait_for_a_long_one():
    d = driver(n_rows=16, n_seqs=4)
    long = d.embed(*["x" * 16] * 50)
    short = d.embed("question")
    d.step(3)
    assert vectors(d, short) == expected("question") and not d.outcomes[long].ends
    d.finish()
    assert len(vectors(d, long)) == 50


def test_a_batch_holds_what_fits_and_a_long_input_goes_alone():
    d = driver(n_input=64, n_rows=20, n_seqs=8)
    d.embed("a" * 8, "b" * 8, "c" * 8, "d" * 50, "e" * 3)
    d.finish()
    assert batch_sizes(d) == [[8, 8], [8], [50], [3]]


def test_where_inputs_can_be_cut_batches_are_full():
    d = driver(can_split=True, n_input=64, n_rows=20, n_seqs=3)
    request = d.embed("a" * 8, "b" * 30, "c" * 4, "d" * 50)
    d.finish()
    assert batch_sizes(d) == [[8, 12], [18, 2], [2, 18], [20], [12]]
    assert vectors(d, request) == expected("a" * 8, "b" * 30, "c" * 4, "d" * 50)


def test_without_pooling_every_token_has_a_row():
    for can_split in (False, True):
        d = driver(pooling="none", can_split=can_split, n_rows=5, n_input=20)
        request = d.embed("abc", "defghijk")
        d.finish()
        assert result(d, request).n_rows == (3, 8)
        assert vectors(d, request) == [
            vector_of(b"abcdefghijk"[a:b]) for a, end in ((0, 3), (3, 11)) for b in range(a + 1, end + 1)
        ]


def test_an_input_that_is_too_long_or_empty_is_refused_with_the_numbers():
    d = driver(n_input=10)
    one, many, empty = d.embed("x" * 11), d.embed("fine", "x" * 12), d.embed("")
    fine, none = d.embed("x" * 10), d.embed()
    d.finish()
    failures = [d.outcomes[i].ends[0] for i in (one, many, empty, none)]
    assert all(isinstance(failure, Failure) and failure.status == 400 for failure in failures)
    assert "the input has 11 tokens" in failures[0].message and "at most 10" in failures[0].message
    assert failures[0].extra == {"n_prompt_tokens": 11, "n_ctx": 10}
    assert "input 1 has 12 tokens" in failures[1].message and "empty" in failures[2].message
    assert vectors(d, fine) == expected("x" * 10)


def test_streams_go_on_between_two_batches():
    d = driver(n_rows=8, n_seqs=1)
    task = d.post("tell me", n_predict=12)
    d.step()
    request = d.embed(*["x" * 8] * 10)
    for i in range(2, 8):
        d.step()
        assert len(d.outcomes[task].tokens) == i and len(d.backend.embeddings.batches) == i - 1
    d.finish()
    assert d.text(task) == alone("tell me", 12) and len(vectors(d, request)) == 10


@pytest.mark.parametrize(
    ("is_busy", "max_stall_ms", "n"), [(True, 100, 50), (True, 300, 150), (True, 0, 400), (False, 100, 400)]
)
def test_batches_are_smaller_while_somebody_reads_a_stream(is_busy, max_stall_ms, n):
    clock = Clock()
    d = driver(clock, max_stall_ms=max_stall_ms, can_split=True, n_rows=400, n_input=4000, n_seqs=2)
    embed = d.backend.embeddings.embed

    def slowly(spans: Sequence[Span]) -> int:
        clock.now += 0.001 * sum(map(len, spans))
        return embed(spans)

    d.backend.embeddings.embed = slowly
    if is_busy:
        d.post("tell me", n_predict=30)
    d.embed("x" * 2000)
    d.step(4)
    sizes = [sum(sizes) for sizes in batch_sizes(d)]
    assert sizes[0] == 400, "nothing is known yet"
    assert sizes[1:] == pytest.approx([n] * 3, abs=1)


def test_a_bad_input_fails_its_own_request():
    d = driver(n_rows=32, n_seqs=4)
    d.backend.embeddings.refuse = lambda spans: -3 if any(b"bad" in bytes(s.tokens) for s in spans) else DECODE_OK
    good, bad, other = d.embed("aa", "bb"), d.embed("cc", "bad"), d.embed("dd")
    d.finish()
    assert vectors(d, good) == expected("aa", "bb") and vectors(d, other) == expected("dd")
    assert isinstance(d.outcomes[bad].ends[0], Failure) and "code -3" in d.outcomes[bad].ends[0].message
    assert not any(d.backend.embeddings.held.values())


@pytest.mark.parametrize("can_trim", [True, False])
def test_an_interrupted_batch_is_computed_again(can_trim):
    d = driver(can_split=True, n_input=64, n_rows=10, n_seqs=2, can_trim=can_trim)
    codes = iter([DECODE_OK, DECODE_ABORTED, DECODE_ABORTED])
    d.backend.embeddings.refuse = lambda spans: next(codes, DECODE_OK)
    request = d.embed("a" * 25, "b" * 8)
    d.finish()
    assert vectors(d, request) == expected("a" * 25, "b" * 8)


def test_a_cancelled_request_stops_at_once_and_takes_no_other_along():
    d = driver(n_rows=8, n_seqs=1)
    gone, other = d.embed(*["x" * 8] * 20), d.embed("stays")
    d.step()
    d.cancel(gone)
    d.step_until(lambda: d.outcomes[other].ends)
    n = len(d.backend.embeddings.batches)
    d.step(3)
    assert len(d.backend.embeddings.batches) == n and not d.outcomes[gone].ends
    assert vectors(d, other) == expected("stays")


def test_a_cancelled_input_that_was_cut_leaves_nothing():
    d = driver(can_split=True, n_input=64, n_rows=10)
    gone = d.embed("x" * 30)
    d.step()
    assert d.backend.embeddings.held[0]
    d.cancel(gone)
    d.step()
    assert not any(d.backend.embeddings.held.values())


def test_the_end_fails_what_is_open_and_refuses_what_comes():
    d = driver(n_rows=8, n_seqs=1)
    request = d.embed(*["x" * 8] * 20)
    d.step()
    d.close()
    late = d.embed("late")
    d.step()
    assert [d.outcomes[i].ends[0].status for i in (request, late)] == [503, 503]


def test_running_requests_may_end_within_the_grace_time():
    d = driver(n_rows=8, n_seqs=1)
    request = d.embed(*["x" * 8] * 3)
    d.step()
    d.close(60.0)
    d.finish()
    assert len(vectors(d, request)) == 3


def test_more_requests_than_may_wait_are_refused():
    backend = FakeBackend()
    d = Driver(backend, max_queue=2)
    requests = [d.embed("x") for _ in range(3)]
    d.finish()
    assert [type(d.outcomes[i].ends[0]) for i in requests] == [Embedded, Embedded, Failure]
    assert d.outcomes[requests[2]].ends[0].status == 503


def test_a_context_that_cannot_be_made_fails_the_request_and_nothing_else():
    d = driver()

    def no_memory():
        raise MemoryError("no room")

    d.backend.open_embeddings = no_memory
    request, task = d.embed("x"), d.post("hello", n_predict=4)
    d.finish()
    assert d.outcomes[request].ends[0].status == 500 and "no room" in d.outcomes[request].ends[0].message
    assert d.text(task) == alone("hello", 4)
