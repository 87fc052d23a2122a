"""Images with libmtmd: the same text as by its own evaluation, whatever is cached, shared or running beside it.

The file's name puts it after test_objects, which needs the libraries without libmtmd.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ctypes_api.errors import LibsError
from ctypes_api.media import Bitmap
from server.api.request import media_kinds, media_sounds
from server.engine.seam.task import AUDIO, IMAGE, Cancel, Media, SamplingParams
from server.errors import ApiError
from tests import tiny_models
from tests.media_files import bmp, flac, gif, mp3, picture, png, riff, wav
from tests.native.engines import PROMPTS, Engine, Said
from tests.native.media_engines import QUIET, HelperReference, Parts, image, task

SAMPLE = 4 * 16_000  # bytes of a second of sound, decoded


@pytest.fixture
def helper(mtmd_folder: Path) -> Iterator[Callable[..., HelperReference]]:
    """`helper(model, mmproj)` is libmtmd's own evaluation; the test's end closes it."""
    with ExitStack() as stack:
        yield lambda model, mmproj: HelperReference(mtmd_folder, model, mmproj, stack)


@pytest.fixture(params=["mmproj_gemma3", "mmproj_mlp"])
def mmproj(request: pytest.FixtureRequest) -> Path:
    """Both kinds of projector: one whose images are seen at once, one whose images are read like text."""
    return request.getfixturevalue(request.param)


def ask(engine: Engine, parts: Parts, n: int = 24, **fields: object) -> Said:
    """Complete texts and images."""
    return engine.ask(task(engine, parts, n, **fields))


CONVERSATIONS: tuple[Parts, ...] = (
    ("Once upon", image(picture(1)), " the dog"),
    ("a", image(png()), " the", image(picture(3)), " cat sang"),
    (image(picture(4)), " the"),
    ("the moon", image(picture(5)), image(picture(6)), "!"),
)


def test_text_behind_images_is_that_of_libmtmds_own_evaluation(see, helper, tiny_model: Path, mmproj: Path):
    engine, reference = see(tiny_model, mmproj), helper(tiny_model, mmproj)
    assert engine.client.info.vision and not engine.client.info.audio
    for parts in CONVERSATIONS:
        said = ask(engine, parts)
        assert said.tokens == reference.greedy(parts, len(said.tokens))
        assert ask(engine, parts).tokens == said.tokens, "what was cached changes the text"


@pytest.mark.covers("T18")
@pytest.mark.parametrize(
    ("model_name", "projector_name", "file"),
    [
        ("tiny_bpe_model", "mmproj_mlp", image(picture(1))),
        ("tiny_bpe_model", "mmproj_gemma3", image(picture(1))),
        ("mrope_model", "mmproj_merger", image(png())),
        ("tiny_bpe_model", "mmproj_whisper", image(wav(seconds=1.0), AUDIO)),
    ],
    ids=["mlp", "gemma3", "merger", "whisper"],
)
def test_a_prompt_with_files_is_counted_without_reading_it(see, request, model_name, projector_name, file):
    engine = see(request.getfixturevalue(model_name), request.getfixturevalue(projector_name), n_ctx=2048)
    parts = ("the dog", file, " saw", file)
    counted = ask(engine, parts, only_counts=True).final
    assert (counted.timings.prompt_n, counted.n_predicted) == (0, 0)
    assert counted.n_prompt == ask(engine, parts, 1).final.n_prompt > 4


def test_different_images_give_different_texts_and_the_same_image_the_same(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine = see(tiny_bpe_model, mmproj_mlp)
    texts = {i: ask(engine, ("the dog", image(picture(i)), " saw")).text for i in (1, 2, 3, 4, 1, 2)}
    assert len(set(texts.values())) == 4
    for i, text in texts.items():
        assert ask(engine, ("the dog", image(picture(i)), " saw"), cache_prompt=False).text == text


def test_formats_that_come_without_a_helper_program_are_decoded(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine = see(tiny_bpe_model, mmproj_mlp)
    green = (10, 200, 10)
    assert (
        ask(engine, ("the", image(bmp(colour=green)), "!")).text
        == ask(engine, ("the", image(png(8, 8, green)), "!")).text
    ), "the same pixels in another format"
    white = png(1, 1, (255, 255, 255))
    assert ask(engine, ("the", image(gif()), "!")).text == ask(engine, ("the", image(white), "!")).text


def test_a_second_question_evaluates_only_what_is_new(see, helper, tiny_bpe_model: Path, mmproj: Path):
    engine, reference = see(tiny_bpe_model, mmproj, n_slots=2), helper(tiny_bpe_model, mmproj)
    first = ("the river", image(picture(1)), " near the")
    second = (*first, " house . ran")
    ask(engine, first, 1)
    said = ask(engine, second)
    assert said.final.timings.prompt_n == len(engine.client.vocab.tokenize(" house . ran", False, True))
    assert said.tokens == reference.greedy(second, len(said.tokens))


def test_a_prompt_that_ends_with_an_image_is_answered_from_the_images_last_cell(
    see, tiny_bpe_model: Path, mmproj_mlp: Path
):
    engine = see(tiny_bpe_model, mmproj_mlp)
    parts = ("the river", image(picture(1)))
    fresh = ask(engine, parts)
    again = ask(engine, parts)
    assert again.tokens == fresh.tokens
    assert (fresh.final.timings.cache_n, again.final.timings.cache_n) == (0, fresh.final.n_prompt - 16)


def test_an_image_that_another_slot_holds_is_shared(see, helper, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine, reference = see(tiny_bpe_model, mmproj_mlp, n_slots=3), helper(tiny_bpe_model, mmproj_mlp)
    start = ("the old house near the river", image(picture(1)), " and then")
    ask(engine, start, 4, id_slot=0)
    for i, end in enumerate((" the moon", " the star"), 1):
        parts = (*start, end)
        said = ask(engine, parts, id_slot=i)
        assert said.final.timings.cache_n >= 16
        assert said.tokens == reference.greedy(parts, len(said.tokens))


def test_images_and_texts_at_the_same_time_all_get_their_own_text(see, reference, tiny_bpe_model: Path, mmproj: Path):
    engine = see(tiny_bpe_model, mmproj, n_slots=6, n_ctx=4096)
    alone = [ask(engine, parts, cache_prompt=False).tokens for parts in CONVERSATIONS]
    tasks = [task(engine, parts) for parts in CONVERSATIONS * 2]
    tasks += [engine.task(text) for text in PROMPTS]
    said = engine.say_all(tasks)
    assert [one.tokens for one in said[: len(alone) * 2]] == alone * 2
    plain = reference(tiny_bpe_model)
    for text, one in zip(PROMPTS, said[len(alone) * 2 :]):
        assert one.tokens == plain.greedy(engine.tokens(text), len(one.tokens))


def test_a_cancelled_request_with_images_leaves_nothing_wrong(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine = see(tiny_bpe_model, mmproj_mlp, n_slots=2)
    parts = ("the", *(image(picture(i)) for i in range(12)), " cat")
    expected = ask(engine, parts, cache_prompt=False)
    for _ in range(5):
        cancelled = task(engine, parts)
        with engine.client.submit(cancelled, stream=True):
            ask(engine, ("a", image(picture(1)), "!"), 2)  # some of the other's chunks are evaluated meanwhile
        engine.client._transport.post(Cancel(cancelled.id))
    assert ask(engine, parts).tokens == expected.tokens
    assert engine.client.snapshot.n_processing == 0


def test_a_saved_slot_with_an_image_can_be_restored(see, tiny_bpe_model: Path, mmproj: Path, tmp_path: Path):
    engine = see(tiny_bpe_model, mmproj)
    parts = ("the river", image(picture(1)), " near the")
    said = ask(engine, parts, 8)
    path = str(tmp_path / "slot.bin")
    n_saved = engine.client.run_command("save", id_slot=0, path=path)["n_saved"]
    engine.client.run_command("erase", id_slot=0)
    assert engine.client.run_command("restore", id_slot=0, path=path)["n_restored"] == n_saved
    again = ask(engine, parts, 8)
    assert again.tokens == said.tokens and again.final.timings.prompt_n == 1


@pytest.mark.parametrize(
    "data, complaint",
    [
        (png()[:60], "can't be decoded"),
        (b"", "can't be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"no image" * 10, "can't be decoded"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "can't be decoded"),
        (wav(0.2), "can't be decoded"),
    ],
    ids=["truncated", "empty", "garbage", "webp", "a sound"],
)
def test_a_bad_file_is_refused_with_its_place_and_others_go_on(
    see, tiny_bpe_model: Path, mmproj_mlp: Path, data: bytes, complaint: str
):
    engine = see(tiny_bpe_model, mmproj_mlp)
    good = ("the", image(png()), " cat")
    expected = ask(engine, good)
    with pytest.raises(ApiError, match=f"image: .*{complaint}") as caught:
        ask(engine, ("the", image(data), " cat"))
    assert caught.value.status == 400
    assert ask(engine, good).tokens == expected.tokens


def test_a_model_that_sees_refuses_sounds(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine = see(tiny_bpe_model, mmproj_mlp)
    with pytest.raises(ApiError, match="can't take audio input"):
        ask(engine, ("the", image(wav(), AUDIO), " cat"))


def test_a_model_without_projector_refuses_images(engine, tiny_bpe_model: Path):
    plain = engine(tiny_bpe_model)
    with pytest.raises(ApiError, match="--mmproj") as caught:
        ask(plain, ("the", image(png()), " cat"))
    assert caught.value.status == 400


def test_an_image_that_must_be_seen_at_once_and_is_too_large_for_that_is_refused(
    see, tiny_bpe_model: Path, mmproj_gemma3: Path
):
    engine = see(tiny_bpe_model, mmproj_gemma3, n_ubatch=2)
    with pytest.raises(ApiError, match="4 tokens.*--ubatch-size 4 or more .now 2"):
        ask(engine, ("the", image(png()), " cat"))


def test_an_image_larger_than_a_batch_is_read_in_parts(see, helper, tiny_bpe_model: Path, mmproj_mlp: Path):
    engine, reference = see(tiny_bpe_model, mmproj_mlp, n_batch=5, n_ubatch=5), helper(tiny_bpe_model, mmproj_mlp)
    parts = ("the", image(picture(1)), " cat")
    said = ask(engine, parts)
    assert said.tokens == reference.greedy(parts, len(said.tokens))


def test_a_prompt_whose_images_fill_the_context_is_refused_even_where_texts_would_be_cut(
    see, tiny_bpe_model: Path, mmproj_mlp: Path
):
    engine = see(tiny_bpe_model, mmproj_mlp, n_ctx=256, shift_context=True)
    with pytest.raises(ApiError, match="exceeds the available context size of 256") as caught:
        ask(engine, [image(picture(i)) for i in range(16)])
    assert caught.value.type == "exceed_context_size_error"
    said = ask(engine, ("the", image(picture(1)), " cat"), 300)
    assert said.final.stop == "limit" and said.final.truncated, "no context shift with images in it"
    assert len(said.tokens) == 256 - said.final.n_prompt + 1


def test_a_projector_for_another_model_is_refused_in_one_line(mtmd_folder: Path, tiny_bpe_model: Path, tmp_path: Path):
    other = tiny_models.tiny_mmproj(tmp_path / "other.gguf", "mlp", n_embd_text=96)
    with pytest.raises(AssertionError, match=r"--mmproj .*other\.gguf.*(mismatch|n_embd)") as caught:
        Engine(mtmd_folder, tiny_bpe_model, mmproj=str(other), mmproj_params=QUIET)
    assert "\n" not in str(caught.value).splitlines()[0]


# ---- positions in three dimensions -----------------------------------------------------------------------------------

ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True)


def wide(n: int) -> bytes:
    """8 x 4 tokens, which take 8 positions."""
    return png(224, 112, lambda x, y: (x * n % 256, y * 7 * n % 256, (x * y + n) % 256))


MROPE_CONVERSATIONS: tuple[Parts, ...] = (
    ("Once upon", image(wide(1)), " the dog"),
    ("Once upon", image(wide(2)), " the dog"),
    ("a", image(wide(3)), " the", image(picture(4)), " cat"),
)


def test_mrope_text_behind_images_is_that_of_libmtmds_own_evaluation(
    see, helper, mrope_model: Path, mmproj_merger: Path
):
    engine, reference = see(mrope_model, mmproj_merger), helper(mrope_model, mmproj_merger)
    texts = set()
    for parts in MROPE_CONVERSATIONS:
        said = ask(engine, parts)
        assert said.tokens == reference.greedy(parts, len(said.tokens))
        again = ask(engine, parts)
        assert again.tokens == said.tokens and again.final.timings.prompt_n == 1
        texts.add(tuple(said.tokens))
    assert len(texts) == len(MROPE_CONVERSATIONS)


def test_mrope_counts_tokens_for_usage_and_context_and_positions_for_the_cache(
    see, mrope_model: Path, mmproj_merger: Path
):
    engine = see(mrope_model, mmproj_merger, n_ctx=256)
    said = ask(engine, ("a", image(wide(1)), " b"), 300, sampling=ENDLESS)
    n_text = said.final.n_prompt - 32
    assert said.final.n_cached == n_text + 8 + len(said.tokens) - 1
    assert said.final.stop == "limit" and len(said.tokens) == 256 - said.final.n_prompt + 1


def test_mrope_images_are_shared_saved_and_restored(
    see, helper, mrope_model: Path, mmproj_merger: Path, tmp_path: Path
):
    engine, reference = see(mrope_model, mmproj_merger, n_slots=2), helper(mrope_model, mmproj_merger)
    start = ("the old house near the river", image(wide(1)), " and then")
    first = ask(engine, start, 6, id_slot=0)
    parts = (*start, " the moon")
    said = ask(engine, parts, id_slot=1)
    assert said.final.timings.cache_n == first.final.n_cached - 5
    assert said.tokens == reference.greedy(parts, len(said.tokens))
    path = str(tmp_path / "slot.bin")
    engine.client.run_command("save", id_slot=1, path=path)
    for i in (0, 1):
        engine.client.run_command("erase", id_slot=i)
    engine.client.run_command("restore", id_slot=0, path=path)
    again = ask(engine, parts, id_slot=0)
    assert again.tokens == said.tokens and again.final.timings.prompt_n == 1


# ---- sound -----------------------------------------------------------------------------------------------------------


def sound(hertz: float, seconds: float = 1.0) -> Media:
    return image(wav(seconds, hertz), AUDIO)


@pytest.mark.parametrize("text_model", ["tiny_bpe_model", "mrope_model"])
def test_text_behind_sounds_is_that_of_libmtmds_own_evaluation(
    see, helper, text_model: str, mmproj_whisper: Path, request: pytest.FixtureRequest
):
    model = request.getfixturevalue(text_model)
    engine, reference = see(model, mmproj_whisper, n_ctx=2048), helper(model, mmproj_whisper)
    assert engine.client.info.audio and not engine.client.info.vision
    second = sound(880, 31.0 if text_model == "tiny_bpe_model" else 0.3)  # a chunk more than 30 seconds take
    for parts in (("Once upon", sound(440), " the dog"), ("the", second, " cat")):
        said = ask(engine, parts)
        assert said.tokens == reference.greedy(parts, len(said.tokens))
        again = ask(engine, parts)
        assert again.tokens == said.tokens and again.final.timings.prompt_n == 1


def test_different_sounds_give_different_texts(see, mrope_model: Path, mmproj_whisper: Path):
    engine = see(mrope_model, mmproj_whisper)
    assert len({ask(engine, ("the", sound(hertz), " dog")).text for hertz in (200, 3000)}) == 2


@pytest.mark.parametrize(
    "data",
    [
        wav(0.0),
        wav(1 / 16000),
        wav(1.0)[:30],
        b"ID3\x04" + bytes(40),
        b"fLaC" + bytes(30),
        b"\xff\xfb\x90\x00" + bytes(100),
    ],
    ids=["no samples", "one sample", "half a head", "mp3 tag", "flac", "mp3 frame"],
)
def test_a_sound_that_is_no_good_is_refused(see, tiny_bpe_model: Path, mmproj_whisper: Path, data: bytes):
    engine = see(tiny_bpe_model, mmproj_whisper)
    with pytest.raises(ApiError) as caught:
        ask(engine, ("the", image(data, AUDIO), " dog"))
    assert caught.value.status == 400 and caught.value.message.startswith("image: ")
    assert ask(engine, ("the", sound(440, 0.2), " dog"), 1).tokens


# ---- hostile files ---------------------------------------------------------------------------------------------------


def test_no_broken_file_brings_the_decoder_down(see, tiny_bpe_model: Path, mmproj_mlp: Path):
    """Changed and cut copies of good files; run in this process, so that a crash would be seen."""
    backend = see(tiny_bpe_model, mmproj_mlp).backend
    draw, n_good = random.Random(7), 0
    files = [picture(1), bmp(), gif(), png(1, 1), png(300, 2)]
    for _ in range(1500):
        data = bytearray(draw.choice(files))
        for _ in range(draw.randrange(6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        data = bytes(data[: draw.randrange(len(data)) if draw.random() < 0.4 else None])
        try:
            if media_kinds.kind_of(data) == IMAGE:
                media_kinds.check_image(data, 10**6)
                backend.media.prepare(image(data)).owner.close()
                n_good += 1
        except (ApiError, media_kinds.BadFile):
            pass
    assert n_good > 100


def around(data: bytes) -> list[bytes]:
    """A sound's file as it is, and with things around it that its reader skips."""
    id3, frames = b"ID3\4\0\0\0\0\0\x0a" + bytes(10), mp3(40, 99)
    return {
        b"RIFF": [data, riff((b"LIST", b"odd"), (b"fmt ", data[20:36]), (b"data", data[44:]), (b"id3 ", bytes(9)))],
        b"fLaC": [data, flac([0, 9000, -9000] * 3, blocks=b"\3\0\0\x12" + bytes(18) + b"\x81\0\0\2ab")],
        b"\xff\xfb\x90\xc4": [data, id3 + data + b"TAG" + bytes(125), frames[:417] + data],
    }[data[:4]]


PLAIN = {"wav": wav(0.7, 300), "flac": flac([0, 9000, -9000] * 3), "mp3": mp3(40)}


@pytest.mark.parametrize("name", PLAIN)
def test_a_sound_written_anew_is_the_same_sound(see, tiny_bpe_model: Path, mmproj_whisper: Path, name: str):
    raw = see(tiny_bpe_model, mmproj_whisper).backend.media._raw
    first, *others = around(PLAIN[name])
    for data in others:
        plain, seconds = media_sounds.make_plain_sound(data)
        with Bitmap(raw, data) as one, Bitmap(raw, plain) as other:
            assert abs(other.n_bytes / SAMPLE - seconds) < 0.06
            if name != "mp3":  # where a wrong number of frames is made true
                assert string_of(one) == string_of(other)
        with Bitmap(raw, first) as whole:
            assert abs(whole.n_bytes / SAMPLE - media_sounds.make_plain_sound(first)[1]) < 1e-3


def string_of(bitmap: Bitmap) -> bytes:
    return ctypes.string_at(bitmap.libs.mtmd.mtmd_bitmap_get_data(bitmap), bitmap.n_bytes)


def test_no_sound_becomes_longer_than_was_read_in_its_header(see, tiny_bpe_model: Path, mmproj_whisper: Path):
    """Changed and cut copies of good files; run in this process, so that a crash would be seen."""
    raw = see(tiny_bpe_model, mmproj_whisper).backend.media._raw
    draw, n_good = random.Random(7), 0
    files = [data for one in PLAIN.values() for data in around(one)]
    files += [mp3(30, 2**31), mp3(2) + flac([5]), flac([5]) + mp3(9)]
    for _ in range(3000):
        data = bytearray(draw.choice(files))
        for _ in range(draw.randrange(6)):
            place = draw.randrange(min(len(data), draw.choice((50, 500, 10**6))))
            data[place] = draw.choice((0, 255, draw.randrange(256)))
        data = bytes(data[: draw.randrange(len(data)) if draw.random() < 0.4 else None])
        try:
            if media_kinds.kind_of(data) == AUDIO:
                plain, seconds = media_sounds.make_plain_sound(data, 600)
                n_good += 1
                with Bitmap(raw, plain) as bitmap:
                    assert bitmap.n_bytes / SAMPLE < seconds + 0.06
        except (LibsError, media_kinds.BadFile):
            pass
    assert n_good > 500


@pytest.mark.parametrize("name", ["mmproj_merger", "mmproj_mlp", "mmproj_gemma3"])
def test_how_many_tokens_an_image_takes_is_known_by_its_size(
    see, tiny_bpe_model: Path, mrope_model: Path, name: str, request: pytest.FixtureRequest
):
    model = mrope_model if name == "mmproj_merger" else tiny_bpe_model
    eyes = see(model, request.getfixturevalue(name)).backend.media
    for width, height in ((56, 56), (300, 200), (1000, 30), (7, 900)):
        file = replace(image(png(width, height)), width=width, height=height)
        prepared = eyes.prepare(file)
        assert eyes.least_tokens(file) == prepared.n_tokens
        prepared.owner.close()
    assert eyes.least_tokens(image(png())) == 0, "nobody has read its header"


def test_how_many_tokens_a_long_sound_takes_is_known_roughly(see, tiny_bpe_model: Path, mmproj_whisper: Path):
    ears = see(tiny_bpe_model, mmproj_whisper).backend.media
    assert ears.least_tokens(replace(sound(440, 0.1), seconds=50.0)) == 0
    for seconds in (61.0, 95.0):
        prepared = ears.prepare(sound(440, seconds))
        n = ears.least_tokens(replace(sound(440, 0.1), seconds=seconds))
        assert prepared.n_tokens / 2.1 < n <= prepared.n_tokens
        prepared.owner.close()
