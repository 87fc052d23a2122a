"""Vectors of texts with images and audio: the same as by libmtmd's own evaluation, with every kind of pooling.

The file's name puts it after test_objects, which needs the libraries without libmtmd.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.api.embeddings import compute_mean
from server.engine.seam.task import AUDIO, Cancel, Embed, Embedded, Media
from server.errors import ApiError
from tests.media_files import picture, png, wav
from tests.native.engines import STEM, Engine
from tests.native.media_engines import HelperVectors, Parts, image, task

POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3}
KINDS = {
    "gemma3": ("tiny_spm_model", "mmproj_gemma3"),
    "mlp": ("tiny_bpe_model", "mmproj_mlp"),
    "mrope": ("mrope_model", "mmproj_merger"),
}
CONVERSATIONS: tuple[Parts, ...] = (
    ("Once upon", image(picture(1)), " the dog"),
    ("a", image(picture(3)), " the", image(png()), " cat sang"),
    (image(picture(4)),),
    ("the moon", image(picture(5)), image(picture(6))),
)


@pytest.fixture
def helper(mtmd_folder: Path) -> Iterator[Callable[..., HelperVectors]]:
    """`helper(model, mmproj)` evaluates with libmtmd's own functions; the test's end closes it."""
    with ExitStack() as stack:
        yield lambda model, mmproj: HelperVectors(mtmd_folder, model, mmproj, stack)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A text model and its projector, one of each kind."""
    model, mmproj = KINDS[request.param]
    return request.getfixturevalue(model), request.getfixturevalue(mmproj)


def message(engine: Engine, *inputs: Parts) -> Embed:
    """One request for vectors of texts and files."""
    media: list[Media] = []
    numbered: list[tuple[int, ...]] = []
    for parts in inputs:
        one = task(engine, parts)
        numbered.append(tuple(token if token >= 0 else token - len(media) for token in one.prompt))
        media += one.media
    return Embed(engine.client.make_id(), tuple(numbered), media=tuple(media))


def ask(engine: Engine, *inputs: Parts) -> Embedded:
    with engine.client.submit(message(engine, *inputs), stream=False) as results:
        return next(iter(results))


def rows(answer: Embedded) -> list[list[list[float]]]:
    """The rows of each input."""
    numbers, found, at = array("f", answer.vectors).tolist(), [], 0
    for n in answer.n_rows:
        found.append([numbers[i : i + answer.width] for i in range(at, at + n * answer.width, answer.width)])
        at += n * answer.width
    return found


def near(expected: list[list[float]]) -> list[list[float]]:
    return [pytest.approx(row, abs=2e-4) for row in expected]


@pytest.mark.parametrize("pooling", POOLING)
def test_vectors_are_those_of_libmtmds_own_evaluation(see, helper, pair, pooling: str):
    engine, reference = see(*pair, context_params={"pooling_type": POOLING[pooling]}), helper(*pair)
    answer = ask(engine, *CONVERSATIONS)
    n_cells = 0
    for found, parts in zip(rows(answer), CONVERSATIONS):
        expected = reference.rows(parts)
        n_cells += len(expected)
        wanted = {"none": expected, "mean": expected, "cls": expected[:1], "last": expected[-1:]}[pooling]
        assert found == near(wanted)
    assert answer.pooling == pooling and answer.n_tokens == n_cells


def test_different_images_have_different_vectors_and_the_same_image_the_same(see, pair):
    engine = see(*pair, context_params={"pooling_type": POOLING["mean"]})
    answers = [ask(engine, ("the dog", image(picture(i)), " saw")) for i in (1, 2, 3, 1, 2, 3)]
    found = [compute_mean([array("f", row) for row in rows(answer)[0]]).tolist() for answer in answers]
    assert found[:3] == found[3:]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert found[one] != near([found[other]])[0]


def test_parts_of_texts_and_images_larger_than_a_batch_make_the_same_vector(
    see, helper, tiny_bpe_model: Path, mmproj_mlp: Path
):
    engine, reference = see(tiny_bpe_model, mmproj_mlp, n_ubatch=5), helper(tiny_bpe_model, mmproj_mlp)
    parts = (STEM * 2, image(picture(1)), STEM)
    assert rows(ask(engine, parts))[0] == near(reference.rows(parts)[-1:])


def test_an_image_seen_at_once_makes_the_context_as_wide_as_it_must_be(see, helper, pair):
    """Whatever the rows are that the vocabulary's size allows."""
    engine, reference = see(*pair, n_ubatch=64), helper(*pair)
    first = rows(ask(engine, ("the", image(picture(1)))))[0]
    narrow = engine.backend.open_media_embeddings(0)
    narrow.n_rows = 2  # as if it had been opened narrower
    parts = ("a", image(picture(1)), " the dog sang")
    assert rows(ask(engine, parts))[0] == near(reference.rows(parts)[-1:])
    assert rows(ask(engine, ("the", image(picture(1)))))[0] == near(first)


def test_sounds_have_vectors_too(see, helper, tiny_bpe_model: Path, mmproj_whisper: Path):
    engine = see(tiny_bpe_model, mmproj_whisper, n_ctx=2048, context_params={"pooling_type": POOLING["none"]})
    reference = helper(tiny_bpe_model, mmproj_whisper)
    found = []
    for hertz in (300, 3000):
        parts = ("the dog", image(wav(0.5, hertz), AUDIO))
        found.append(rows(ask(engine, parts))[0])
        assert found[-1] == near(reference.rows(parts))
    assert len(found[0]) > 750 and found[0] != near(found[1])


def test_text_answers_and_vectors_of_images_at_the_same_time_all_come_out_right(see, helper, pair):
    engine, reference = see(*pair, n_slots=3, n_ctx=3072), helper(*pair)
    parts = ("the river", image(picture(1)), " near", image(picture(2)), " the")
    alone = engine.ask(task(engine, parts, cache_prompt=False)).tokens
    request = message(engine, *CONVERSATIONS * 3)
    with engine.client.submit(request, stream=False) as results:
        said = engine.say_all([task(engine, parts, cache_prompt=False) for _ in range(6)])
        answer = next(iter(results))
    assert {tuple(one.tokens) for one in said} == {tuple(alone)}
    for found, conversation in zip(rows(answer), CONVERSATIONS * 3):
        assert found == near(reference.rows(conversation)[-1:])


def test_a_cancelled_request_leaves_nothing_wrong(see, pair):
    engine = see(*pair)
    expected = rows(ask(engine, CONVERSATIONS[0]))
    for _ in range(5):
        request = message(engine, *CONVERSATIONS * 4)
        with engine.client.submit(request, stream=False):
            ask(engine, CONVERSATIONS[1])  # some of the other's chunks are evaluated meanwhile
        engine.client._transport.post(Cancel(request.id))
    assert rows(ask(engine, CONVERSATIONS[0])) == expected


def test_what_cant_be_embedded_is_refused_and_the_next_request_answered(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine = see(tiny_bpe_model, mmproj_mlp, n_ctx=256)
    with pytest.raises(ApiError, match="image: the file can't be decoded") as caught:
        ask(engine, ("the", image(png()[:60])))
    assert caught.value.status == 400
    with pytest.raises(
        ApiError, match="the input has 257 tokens, which is too large to process: at most 256"
    ) as caught:
        ask(engine, (*(image(picture(i)) for i in range(16)), "!"))
    assert caught.value.type == "exceed_context_size_error"
    assert len(rows(ask(engine, [image(picture(i)) for i in range(16)]))[0]) == 1


def test_a_model_that_reads_a_whole_text_at_once_refuses_texts_with_images(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine = see(tiny_bpe_model, mmproj_mlp, context_params={"attention_type": 1})
    with pytest.raises(ApiError, match="reads a whole input at once") as caught:
        ask(engine, CONVERSATIONS[0])
    assert caught.value.status == 400
