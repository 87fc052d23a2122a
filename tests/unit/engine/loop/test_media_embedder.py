"""`engine.media_embedder` over the fake backend: what each step computes, and how a request can end."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.engine.seam.task import Close, Embedded
from tests.fake_embeddings import vector_of
from tests.fake_media import FakeMedia, media, picture_bytes, written_out
from tests.fakes import FakeBackend
from tests.unit.engine.driving import Driver

CAT, DOG = media(picture_bytes(1)), media(picture_bytes(2, n_chunks=2))


def driver(n_slots: int = 2, pooling: str = "last", n_pos_factor: int = 1, **fields: object) -> Driver:
    backend = FakeBackend(n_slots=n_slots, **fields)
    FakeMedia(backend, n_pos_factor=n_pos_factor)
    backend.info = replace(backend.info, pooling=pooling)
    return Driver(backend)


def numbers(answer: Embedded) -> list[list[float]]:
    values = struct.unpack(f"{len(answer.vectors) // 4}f", answer.vectors)
    return [list(values[i : i + 4]) for i in range(0, len(values), 4)]


def answer(d: Driver, id_request: int) -> Embedded:
    ends = d.outcomes[id_request].ends
    assert len(ends) == 1 and isinstance(ends[0], Embedded), ends
    return ends[0]


def prefixes(tokens: Sequence[int]) -> list[list[float]]:
    return [vector_of(tokens[: i + 1]) for i in range(len(tokens))]


HELLO = list(b"hello")


@pytest.mark.parametrize("pooling", ["last", "cls", "mean", "none"])
def test_each_input_has_the_rows_that_its_pooling_needs(pooling):
    d = driver(pooling=pooling)
    inputs = [[*HELLO, -1, 33], [-2, -1], HELLO]
    id_request = d.embed(*inputs, media=(CAT, DOG))
    d.finish()
    found = answer(d, id_request)
    rows = [prefixes(written_out(tokens, [CAT, DOG])) for tokens in inputs]
    wanted = [{"last": one[-1:], "cls": one[:1]}.get(pooling, one) for one in rows]
    assert numbers(found) == [row for one in wanted for row in one]
    assert found.n_rows == tuple(map(len, wanted)) and found.pooling == pooling
    assert found.n_tokens == sum(map(len, rows))
    assert d.backend.media.n_open == 0 and d.backend.media_embeddings.held == []


def test_text_is_cut_to_batches_and_each_chunk_is_encoded_and_evaluated_in_steps_of_their_own():
    d = driver()
    d.embed([*range(20), -1, 7], media=(DOG,))
    for n_pieces in range(1, 9):
        d.step()
        assert len(d.backend.media_embeddings.log) == n_pieces
    d.finish()
    assert d.backend.media_embeddings.log == [8, 8, 5, "encode", "chunk", "encode", "chunk", 2]


def test_a_stream_goes_on_between_the_pieces():
    d = driver()
    text = d.post("hello", n_predict=40)
    d.step(2)
    id_request = d.embed([*HELLO, -1, -1], media=(CAT,))
    d.step()
    n_before = len(d.outcomes[text].tokens)
    d.step_until(lambda: d.outcomes[id_request].ends)
    assert len(d.outcomes[text].tokens) - n_before >= len(d.backend.media_embeddings.log) - 1
    d.finish()


def test_what_a_slot_has_encoded_is_not_overwritten_and_both_come_to_their_end():
    d = driver(n_slots=3)
    prompts = [[*HELLO, -1, 1], [-1, 2], [3, -2, -1]]
    ids = [d.post(prompt, media=(CAT, DOG)) for prompt in prompts]
    vectors = [d.embed([-1, 4, -2, -1], media=(DOG, CAT)) for _ in range(3)]
    d.finish()
    assert [d.outcomes[id_task].final.n_prompt for id_task in ids] == [
        len(written_out(prompt, [CAT, DOG])) for prompt in prompts
    ]
    expected = vector_of(written_out([-1, 4, -2, -1], [DOG, CAT]))
    assert [numbers(answer(d, id_request)) for id_request in vectors] == [[expected]] * 3
    n_chunks = 2 + 1 + 3 + 3 * 5
    assert len(d.backend.media.encoded) <= n_chunks, "nothing is encoded twice"


def test_requests_take_turns_input_by_input():
    d = driver()
    long, short = d.embed(*[[-1, i] for i in range(6)], media=(CAT,)), d.embed([-1], media=(CAT,))
    d.step_until(lambda: d.outcomes[short].ends)
    assert not d.outcomes[long].ends
    d.finish()
    assert answer(d, long).n_rows == (1,) * 6


def test_with_positions_in_three_dimensions_cells_are_counted():
    d = driver(pooling="none", n_pos_factor=2)
    id_request = d.embed([5, -1, 6], media=(CAT,))
    d.finish()
    assert answer(d, id_request).n_rows == (8,) and answer(d, id_request).n_tokens == 8  # with `<` and `>`
    tight = d.backend.media_embeddings
    tight.n_input = 7
    refused = d.embed([5, -1, 6], media=(CAT,))
    d.finish()
    assert d.outcomes[refused].failure.extra == {"n_prompt_tokens": 8, "n_ctx": 7}


@pytest.mark.parametrize("n_steps", range(9))
def test_a_request_can_be_cancelled_at_any_time(n_steps):
    d = driver()
    other = d.embed([-1, 9], media=(CAT,))
    id_request = d.embed([1, 2, -1, 3], [-1], media=(CAT,))
    d.step(n_steps)
    d.cancel(id_request)
    d.step(20)
    assert not d.scheduler._is_busy() and numbers(answer(d, other)) == [vector_of(written_out([-1, 9], [CAT]))]
    assert d.backend.media.n_open == 0 and d.backend.media_embeddings.held == []


@pytest.mark.parametrize("can_trim", [True, False])
def test_an_aborted_piece_is_computed_again(can_trim):
    d = driver(pooling="none")
    d.backend.media_embeddings.can_trim = can_trim
    d.backend.media_embeddings.fail_at = {1: 2, 3: 2}
    tokens = [*HELLO, -1, 9]
    id_request = d.embed(tokens, media=(CAT,))
    d.finish()
    assert numbers(answer(d, id_request)) == prefixes(written_out(tokens, [CAT]))


@pytest.mark.parametrize("fault", [-3, RuntimeError("no luck")])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_piece_that_fails_fails_its_request_and_no_other(fault, at):
    d = driver()
    d.backend.media_embeddings.fail_at = {at: fault}
    bad = d.embed([*HELLO, -1, 9], media=(CAT,))
    d.finish()
    good = d.embed([-1], media=(CAT,))
    d.finish()
    assert d.outcomes[bad].failure.status == 500 and "embedding" in d.outcomes[bad].failure.message
    assert numbers(answer(d, good)) == [vector_of(written_out([-1], [CAT]))]
    assert d.backend.media.n_open == 0


def test_a_chunk_that_cant_be_encoded_fails_its_request():
    d = driver()
    d.backend.media.fail_encode_at = {1: RuntimeError("libmtmd could not encode it")}
    bad, good = d.embed([-1], media=(CAT,)), d.embed([-1], media=(CAT,))
    d.finish()
    assert "libmtmd could not encode it" in d.outcomes[bad].failure.message
    answer(d, good)


def test_a_broken_file_is_refused_with_its_place():
    d = driver()
    refused = d.embed([-1], media=(media(b"no image", where="image_data[0]"),))
    d.finish()
    assert (d.outcomes[refused].failure.status, d.outcomes[refused].failure.message) == (
        400,
        "image_data[0]: the file can't be decoded",
    )


def test_at_the_end_every_request_is_answered():
    d = driver()
    ids = [d.embed(*[[-1]] * 30, media=(CAT,)) for _ in range(3)]
    d.step(4)
    d.scheduler.post(Close(0.0))
    d.step(2)
    assert [d.outcomes[id_request].failure.status for id_request in ids] == [503] * 3
    late = d.embed([-1], media=(CAT,))
    d.step()
    assert d.outcomes[late].failure.status == 503 and d.backend.media.n_open == 0
