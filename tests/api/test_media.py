"""Images and audio in requests: all ways to send them, and all errors."""

from __future__ import annotations

import base64
import gc
import os
import random
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from server.api.request import media as module
from server.api.request.media_kinds import BadFile, check_image, kind_of
from server.engine.seam.task import Media
from server.engine.slots.png import find_png_fault
from server.errors import ApiError
from server.web.presence import Presence
from tests.api.conftest import PATIENCE, Api
from tests.fake_media import Eyes, FakeMedia, b64, media, seeing
from tests.fakes import BOS, FakeBackend, letters, said_by
from tests.media_files import bmp, data_url, gif, picture, png, png_of, wav
from tests.support import wait_until

CAT, DOG = picture(1), picture(2)


def right(prompt: list[int | bytes], n: int = 8) -> str:
    """What the fake model says to bytes and files."""
    tokens: list[int] = [BOS]
    eyes = Eyes(FakeBackend(), True, True)
    for part in prompt:
        if isinstance(part, int):
            tokens.append(part)
        elif part[:4] in (b"\x89PNG", b"RIFF", b"GIF8") or part[:2] == b"BM":
            for piece in eyes.prepare(media(part)).parts:
                tokens += piece if isinstance(piece, list) else piece.ids
        else:
            tokens += part
    return bytes(said_by(letters, tokens, n)).decode()


def chat(api: Api, content: object, n: int = 8, **fields):
    return api.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": n, **fields}
    )


def image_part(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


CHATML_END = b"<|im_end|>\n<|im_start|>assistant\n"


# ---- ways to send a file ---------------------------------------------------------------------------------------------


@pytest.mark.covers("Q29")
def test_images_of_2024_go_where_the_prompt_names_them(eyes: Api):
    result = eyes.complete(
        "USER:[img-12] and [img-7]?", image_data=[{"data": b64(DOG), "id": 7}, {"data": b64(CAT), "id": 12}]
    )
    assert result["content"] == right([b"USER:", CAT, b" and ", DOG, b"?"])
    assert result["prompt"] == "USER:[img-12] and [img-7]?"


def test_one_image_may_be_named_twice(eyes: Api):
    result = eyes.complete("[img-1][img-1]", image_data=[{"data": data_url(CAT), "id": 1}])
    assert result["content"] == right([CAT, CAT])


def test_files_of_a_prompt_object_replace_its_markers_in_order(eyes: Api):
    prompt = {"prompt_string": "a<__media__>b<__media__>c", "multimodal_data": [b64(CAT), b64(wav(0.1))]}
    result = eyes.complete(prompt)
    assert result["content"] == right([b"a", CAT, b"b", wav(0.1), b"c"])
    assert result["prompt"] == {"prompt_string": prompt["prompt_string"]}, "the files come back with the answer"
    both = eyes.post("/completion", {"prompt": ["x", prompt, {"prompt_string": "y"}], "n_predict": 8}).json()
    assert [one["content"] for one in both] == [right([b"x"]), result["content"], right([b"y"])]


def test_a_prompt_without_files_may_hold_the_markers_as_text(eyes: Api):
    for prompt in ("<__media__>", "[img-1]", {"prompt_string": "<__media__>", "multimodal_data": []}):
        text = prompt if isinstance(prompt, str) else prompt["prompt_string"]
        assert eyes.complete(prompt)["content"] == right([text.encode()])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": data_url(CAT)}},
        {"type": "image_url", "image_url": data_url(CAT)},
        {"type": "input_image", "image_url": data_url(CAT)},
        {"type": "image_url", "image_url": {"url": data_url(CAT), "detail": "low"}},
        {"type": "image_url", "image_url": {"url": data_url(CAT, "x/y")}},
    ],
    ids=["object", "string", "input_image", "detail", "other type"],
)
def test_an_image_in_a_chat_stands_where_its_part_stands(eyes: Api, part: dict):
    answer = chat(eyes, [{"type": "text", "text": "what is "}, part, {"type": "text", "text": "?"}])
    assert answer.status == 200, answer
    text = answer.json()["choices"][0]["message"]["content"]
    assert text == right([b"<|im_start|>user\nwhat is ", CAT, b"?" + CHATML_END])


IMAGE_BLOCKS = [
    {"type": "text", "text": "see "},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(CAT)}},
    {"type": "image", "source": {"type": "url", "url": data_url(DOG)}},
]


def test_an_image_in_a_block_stands_where_its_block_stands(eyes: Api):
    answer = eyes.post("/v1/messages", {"messages": [{"role": "user", "content": IMAGE_BLOCKS}], "max_tokens": 8})
    assert answer.status == 200, answer
    assert answer.json()["content"][0]["text"] == right([b"<|im_start|>user\nsee ", CAT, DOG, CHATML_END])


def test_what_a_tool_has_seen_is_seen_by_the_model(eyes: Api):
    def n_tokens(content: list[dict]) -> int:
        result = {"type": "tool_result", "tool_use_id": "x", "content": content}
        body = {"messages": [{"role": "user", "content": [result]}], "max_tokens": 1}
        usage = eyes.post("/v1/messages", body).json()["usage"]
        return usage["input_tokens"] + usage["cache_read_input_tokens"]

    assert n_tokens(IMAGE_BLOCKS) - n_tokens(IMAGE_BLOCKS[:1]) == len(eyes_tokens(CAT)) + len(eyes_tokens(DOG))


def eyes_tokens(data: bytes) -> list[int]:
    """The cells that a picture takes."""
    pieces = Eyes(FakeBackend(), True, True).prepare(media(data)).parts
    return [token for piece in pieces for token in (piece if isinstance(piece, list) else piece.ids)]


def test_files_in_a_response_and_in_those_that_go_on_from_it(eyes: Api):
    url = "/v1/responses"
    text, image = {"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": data_url(CAT)}
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
    value = [{"role": "user", "content": [text, image, sound]}]
    first = eyes.post(url, {"input": value, "max_output_tokens": 8}).json()
    start = [b"<|im_start|>user\nwhat?", CAT, wav(), CHATML_END]
    said = first["output"][0]["content"][0]["text"]
    assert said == right(start)
    counted = eyes.post(url + "/input_tokens", {"input": value}).json()["input_tokens"]
    assert counted == first["usage"]["input_tokens"]
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    fields = {"previous_response_id": first["id"], "max_output_tokens": 1, "truncation": "auto"}
    for more in ([{"role": "user", "content": [image]}], [call, output]):
        second = eyes.post(url, {"input": more, **fields}).json()
        assert second["usage"]["input_tokens_details"]["cached_tokens"] >= counted - 1
    background = eyes.post(url, {"input": value, "max_output_tokens": 8, "background": True}).json()
    get = lambda: eyes.get(f"{url}/{background['id']}").json()  # noqa: E731
    wait_until(lambda: get()["output"], "the response to end")
    assert get()["output"][0]["content"][0]["text"] == said


def test_several_files_in_several_messages_keep_the_templates_order(eyes: Api):
    messages = [
        {"role": "user", "content": [image_part(CAT), image_part(DOG), {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and "},
                {"type": "input_audio", "input_audio": {"data": b64(wav(0.1)), "format": "wav"}},
            ],
        },
    ]
    answer = eyes.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8})
    said = answer.json()["choices"][0]["message"]["content"]
    assert said == right(
        [
            b"<|im_start|>user\n",
            CAT,
            DOG,
            b"?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nand ",
            wav(0.1),
            CHATML_END,
        ]
    )
    shown = eyes.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert shown.startswith("<|im_start|>user\n<__media__><__media__>?<|im_end|>") and shown.count("<__media__>") == 3


def test_a_marker_that_somebody_types_is_text(eyes: Api):
    text = "<__media__> [img-1] <__media_0123456789abcdef_0__>"
    for content in (text, [{"type": "text", "text": text}, image_part(CAT)]):
        answer = chat(eyes, content)
        files = [CAT] if isinstance(content, list) else []
        assert answer.json()["choices"][0]["message"]["content"] == right(
            [b"<|im_start|>user\n" + text.encode(), *files, CHATML_END]
        )


def test_images_can_be_streamed_about(eyes: Api):
    answer = chat(eyes, [image_part(CAT)], stream=True)
    chunks = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    assert len(chunks) > 8 and answer.status == 200


def test_files_can_come_from_the_folder_of_media_path(make_api: Callable[..., Api], tmp_path: Path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a cat.png").write_bytes(CAT)
    (tmp_path / "secret.png").write_bytes(DOG)
    if hasattr(os, "symlink"):
        (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    api = make_api(seeing(), ("--media-path", str(tmp_path / "in"))).start()
    for url in ("file://sub/a cat.png", "file:///sub/a cat.png", "file://sub/../sub/a cat.png"):
        answer = chat(api, [{"type": "image_url", "image_url": {"url": url}}])
        assert answer.json()["choices"][0]["message"]["content"] == right([b"<|im_start|>user\n", CAT, CHATML_END])
    for name in (
        "../secret.png",
        "link.png",
        "sub",
        "",
        "nothing.png",
        "a\0b",
        "x" * 5000,
        str(tmp_path / "secret.png"),
    ):
        answer = chat(api, [{"type": "image_url", "image_url": {"url": "file://" + name}}])
        assert answer.status == 400 and "there is no file" in answer.error["message"], name


# ---- what can be wrong -----------------------------------------------------------------------------------------------


def bomb() -> bytes:
    return png_of(10_000, 10_001, b"")


BAD_FILES = {
    "truncated": (CAT[:-20], "truncated"),
    "only a head": (CAT[:10], "header is not complete"),
    "text": (b"hello, I am a text file of some length", "neither an image"),
    "html": (b"<html>", "neither an image"),
    "100 megapixels": (bomb(), "10000 x 10001 pixels"),
    "no pixels": (png_of(0, 5, b""), "0 x 5"),
    "webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
    "a sound": (wav(0.1), "is a sound, but an image is expected"),
    "no end": (CAT[:-12], "truncated"),
    "broken data": (png_of(8, 8, b"not zlib"), "broken"),
    "one byte": (b"\xff", "neither"),
    "jpeg without size": (b"\xff\xd8\xff\xe0\0\x10JFIF", "header is not complete"),
    "bmp head": (b"BM" + bytes(10), "header is not complete"),
    "gif head": (b"GIF89a", "header is not complete"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place_and_nothing_is_lost(eyes: Api, name: str):
    data, words = BAD_FILES[name]
    n_started = len(eyes.backend.samplers)
    answer = chat(eyes, [{"type": "text", "text": "see"}, image_part(data)])
    assert answer.status == 400 and len(eyes.backend.samplers) == n_started
    assert answer.error["message"].startswith("messages[0].content[1]") and words in answer.error["message"]
    if name != "a sound":
        error = eyes.refuse(prompt="[img-3]", image_data=[{"data": b64(data), "id": 3}])
        assert error["message"].startswith("image_data[0]") and words in error["message"]


@pytest.mark.parametrize(
    "part, words",
    [
        ({"type": "image_url"}, "not a string"),
        ({"type": "image_url", "image_url": {"url": 5}}, "not a string"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}}, "not base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "must have base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "is empty"),
        ({"type": "image_url", "image_url": {"url": "ftp://x/y.png"}}, "not a data:"),
        ({"type": "image_url", "image_url": {"url": "cat.png"}}, "not a data:"),
        ({"type": "image_url", "image_url": {"url": "file://cat.png"}}, "--media-path"),
        ({"type": "image_url", "image_url": {"url": "http://example.com/cat.png"}}, "--media-urls"),
        ({"type": "input_audio"}, "not a string"),
        ({"type": "input_audio", "input_audio": {"data": "?"}}, "not base64"),
        (
            {"type": "input_audio", "input_audio": {"data": b64(CAT), "format": "wav"}},
            "is an image, but a sound is expected",
        ),
    ],
    ids=str,
)
def test_a_bad_part_is_refused_with_its_place(eyes: Api, part: dict, words: str):
    answer = chat(eyes, [part])
    assert answer.status == 400
    assert answer.error["message"].startswith("messages[0].content[0]") and words in answer.error["message"]


@pytest.mark.parametrize(
    "body, words",
    [
        ({"prompt": "x", "image_data": [{"data": b64(CAT), "id": 1}]}, "the prompt has no [img-1]"),
        ({"prompt": "[img-2]", "image_data": [{"data": b64(CAT), "id": 1}]}, "no image with the id 2"),
        ({"prompt": "[img-1]", "image_data": [{"data": b64(CAT), "id": 1}] * 2}, "given twice"),
        ({"prompt": "[img-1]", "image_data": [{"data": b64(CAT)}]}, "image_data[0] is not an object"),
        ({"prompt": "[img-1]", "image_data": {"data": b64(CAT), "id": 1}}, "give a list"),
        ({"prompt": ["[img-1]", "y"], "image_data": [{"data": b64(CAT), "id": 1}]}, "one string"),
        (
            {"prompt": {"prompt_string": "x", "multimodal_data": [b64(CAT)]}},
            "0 markers <__media__>, but multimodal_data has 1",
        ),
        ({"prompt": {"prompt_string": "<__media__>" * 2, "multimodal_data": [b64(CAT)]}}, "2 markers"),
        ({"prompt": {"prompt_string": "<__media__>", "multimodal_data": "x"}}, "not a list"),
        ({"prompt": ["a", {"prompt_string": "<__media__>", "multimodal_data": ["@"]}]}, "prompt[1].multimodal_data[0]"),
    ],
    ids=str,
)
def test_files_and_markers_that_do_not_match_are_refused(eyes: Api, body: dict, words: str):
    assert words in eyes.refuse(**body)["message"]


def test_a_file_that_only_its_decoder_can_refuse_is_told_with_its_place(eyes: Api):
    good, prepare = eyes.complete("x"), eyes.backend.media.prepare

    def fussy(media):
        return FakeMedia.prepare(eyes.backend.media, media)  # takes only FAKE files

    eyes.client._transport._scheduler._state.media._prepare = fussy
    try:
        answer = chat(eyes, [image_part(CAT)])
    finally:
        eyes.client._transport._scheduler._state.media._prepare = prepare
    assert answer.status == 400 and answer.error["message"].startswith("messages[0].content[0]: ")
    assert eyes.complete("x")["content"] == good["content"]


def test_a_model_without_eyes_says_so(make_api: Callable[..., Api]):
    api = make_api(FakeBackend()).start()
    answer = chat(api, [image_part(CAT)])
    assert answer.status == 400
    assert answer.error["message"].startswith("messages[0].content[0]: this model can't see images; ")
    assert "image_data[0]: " in api.refuse(prompt="[img-1]", image_data=[{"data": b64(CAT), "id": 1}])["message"]
    assert api.get("/props").json()["modalities"] == {"vision": False, "audio": False}


def test_a_model_that_only_sees_refuses_sound(make_api: Callable[..., Api]):
    api = make_api(seeing(audio=False)).start()
    answer = chat(api, [{"type": "input_audio", "input_audio": {"data": b64(wav(0.1)), "format": "wav"}}])
    assert answer.status == 400 and "can't hear sounds" in answer.error["message"]
    error = api.refuse(prompt={"prompt_string": "<__media__>", "multimodal_data": [b64(wav(0.1))]})
    assert "can't hear sounds" in error["message"]


def test_the_limit_on_pixels_is_an_option(make_api: Callable[..., Api]):
    api = make_api(seeing(), ("--image-max-pixels", "2")).start()
    assert chat(api, [image_part(png_of(2000, 1000, zlib.compress(bytes(6001 * 1000), 9)))]).status == 200
    assert "at most 2 million" in chat(api, [image_part(png_of(2001, 1000, b""))]).error["message"]


def test_a_template_that_leaves_an_image_out_is_told(make_api: Callable[..., Api]):
    source = "{% for m in messages %}{{ m.content | length }}{% endfor %}"
    api = make_api(seeing(), ("--chat-template", source)).start()
    assert "omits or repeats this file" in chat(api, [image_part(CAT)]).error["message"]


def test_modalities_are_reported(eyes: Api):
    props = eyes.get("/props").json()
    assert props["modalities"] == {"vision": True, "audio": True} and props["media_marker"] == "<__media__>"
    model = eyes.get("/v1/models").json()["data"][0]
    assert model["architecture"]["input_modalities"] == ["text", "image", "audio"]


@pytest.mark.covers("T18")
def test_files_are_counted_as_the_usage_of_an_answer_counts_them(make_api):
    api = make_api(seeing()).start()
    content = [image_part(CAT), {"type": "text", "text": "and"}, image_part(DOG)]
    n = chat(api, content, 1).json()["usage"]["prompt_tokens"]
    blocks = {"messages": [{"role": "user", "content": IMAGE_BLOCKS}]}
    usage = api.post("/v1/messages", {**blocks, "max_tokens": 1}).json()["usage"]
    n_samplers, n_encoded = len(api.backend.samplers), len(api.backend.media.encoded)
    for path in ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"):
        counted = api.post(path, {"messages": [{"role": "user", "content": content}]})
        assert counted.json() == {"object": "response.input_tokens", "input_tokens": n}
    counted = api.post("/v1/messages/count_tokens", blocks).json()["input_tokens"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
    api.settle()
    assert (len(api.backend.samplers), len(api.backend.media.encoded)) == (n_samplers, n_encoded), "nothing is computed"
    assert api.backend.media.n_open == 0


@pytest.mark.covers("T18")
def test_files_that_are_no_good_or_too_long_are_not_counted(make_api):
    api = make_api(seeing(n_ctx=64)).start()
    path = "/v1/chat/completions/input_tokens"
    answer = api.post(path, {"messages": [{"role": "user", "content": [image_part(b"no image")]}]})
    assert answer.status == 400 and answer.error["message"].startswith("messages[0].content[0]")
    answer = api.post(path, {"messages": [{"role": "user", "content": [image_part(CAT)] * 20}]})
    assert answer.status == 400 and answer.error["type"] == "exceed_context_size_error"
    api.settle()
    assert api.backend.media.n_open == 0


def test_a_client_that_leaves_takes_its_count_along(make_api):
    api = make_api(seeing()).start()
    eyes, begun, go = api.backend.media, threading.Event(), threading.Event()
    prepare = eyes.prepare

    def slowly(file: Media):
        begun.set()
        assert go.wait(PATIENCE)
        return prepare(file)

    api.transport._scheduler._state.media._prepare = slowly
    body = {"messages": [{"role": "user", "content": [image_part(CAT)]}]}
    with api.begin(body, path="/v1/chat/completions/input_tokens"):
        assert begun.wait(PATIENCE)
    wait_until(lambda: api.n_requests == 0, "the count to be given up", PATIENCE)
    go.set()
    api.settle()
    wait_until(lambda: eyes.n_open == 0, "the file to be freed", PATIENCE)


def test_files_are_no_tokens_of_text(eyes: Api):
    answer = eyes.post("/tokenize", {"messages": [{"role": "user", "content": [image_part(CAT)]}]})
    assert answer.status == 400 and answer.error["message"] == "messages[0].content[0]: a file has no token ids"


def test_files_are_not_judged(eyes: Api):
    prompt = {"prompt_string": "see <__media__>", "multimodal_data": [b64(CAT)]}
    answer = eyes.post("/v1/completions", {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0})
    assert answer.status == 400 and "token probabilities" in answer.error["message"]
    answer = eyes.post("/v1/completions", {"prompt": prompt, "echo": True, "max_tokens": 8})
    assert answer.json()["choices"][0]["text"].endswith(right([b"see ", CAT]))


def test_a_slot_with_an_image_is_shown_without_it(eyes: Api):
    eyes.complete("see [img-1]", image_data=[{"data": b64(CAT), "id": 1}], id_slot=0)
    assert eyes.get("/slots").json()[0]["prompt"].startswith("see ")


def test_a_second_question_about_an_image_is_answered_from_the_cache(eyes: Api):
    first = chat(eyes, [image_part(DOG), {"type": "text", "text": "what?"}], id_slot=1).json()
    n_prompt = first["usage"]["prompt_tokens"]
    again = chat(eyes, [image_part(DOG), {"type": "text", "text": "what?"}], id_slot=1).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1
    assert again["choices"][0]["message"] == first["choices"][0]["message"]


# ---- files of all kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, kind",
    [
        (CAT, "image"),
        (bmp(), "image"),
        (gif(), "image"),
        (wav(0.1), "audio"),
        (b"ID3" + bytes(20), "audio"),
        (b"\xff\xfb\x90\x00", "audio"),
        (b"fLaC" + bytes(20), "audio"),
        (b"\xff\xd8\xff\xe0", "image"),
    ],
)
def test_kinds_of_files_are_told_by_their_first_bytes(data: bytes, kind: str):
    assert kind_of(data) == kind


def test_sizes_are_read_from_every_kind_of_header():
    jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc2\0\x11\x08\0\x05\0\x07"
    for data, size in (
        (png(3, 4), "3 x 4"),
        (bmp(5, 6), "5 x 6"),
        (gif(), "1 x 1"),
        (jpeg, "7 x 5"),
        (b"BM" + bytes(12) + b"\x0c\0\0\0\x09\0\x08\0\1\0\x18\0" + bytes(8 * 28), "9 x 8"),
    ):
        with pytest.raises(BadFile, match=size):
            check_image(data, 0)
        if data is not jpeg:
            check_image(data, 72)


def test_a_png_that_inflates_to_far_more_than_its_size_is_refused():
    squeezed = zlib.compress(bytes(1 << 26), 9)
    assert len(squeezed) < 1 << 17
    bomb = png_of(8, 8, squeezed)
    assert "far more data" in find_png_fault(bomb, check_image(bomb, 10**6).n_bytes)
    assert find_png_fault(CAT, check_image(CAT, 10**6).n_bytes) == ""
    assert find_png_fault(bomb, 0, is_wanted=lambda: False) == "", "nobody wants to know"


def test_no_bytes_at_all_bring_the_checks_down():
    rng = random.Random(1)
    seeds = [CAT, bmp(), gif(), wav(0.01), b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\0\x05\0\x07" + bytes(50)]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds)[: rng.choice((5, 20, 60, 10_000))])
        for _ in range(rng.randrange(8)):
            if data:
                data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
        try:
            if kind_of(bytes(data)) == "image":
                check_image(bytes(data), 10**6)
        except BadFile:
            pass


# ---- bounds of a request, and of all -------------------------------------------------------------------------------


def url_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def with_folder(make_api, folder: Path, *argv: str, **fields) -> Api:
    return make_api(seeing(**fields), ("--media-path", str(folder), *argv)).start()


def test_a_file_that_is_named_many_times_is_read_counted_sent_and_decoded_once(make_api, tmp_path: Path):
    (tmp_path / "cat.bmp").write_bytes(bmp(700, 300))
    api = with_folder(make_api, tmp_path, "--max-body", "1")
    taken = []
    take = api.server._server.budget.take
    api.server._server.budget.take = lambda n: (taken.append(n), take(n))
    prepared = []
    prepare = api.backend.media.prepare
    api.transport._scheduler._state.media._prepare = lambda media: (prepared.append(media), prepare(media))[1]
    answer = chat(api, [url_part("file://cat.bmp")] * 34)
    assert answer.status == 200, answer
    assert sum(taken) < 1.5 * len(bmp(700, 300)) and len(prepared) == 1
    assert answer.json()["usage"]["prompt_tokens"] > 34 * 3


def test_files_that_a_request_names_are_bounded_together(make_api, tmp_path: Path):
    for i in range(3):
        (tmp_path / f"{i}.bmp").write_bytes(bmp(400, 300, (i, 0, 0)))  # 360 kB
    api = with_folder(make_api, tmp_path, "--max-body", "1")
    assert chat(api, [url_part(f"file://{i}.bmp") for i in (0, 1, 1)]).status == 200
    answer = chat(api, [url_part(f"file://{i}.bmp") for i in (0, 1, 2)])
    assert answer.status == 400 and "more than 1 MiB together (--max-body)" in answer.error["message"]


def test_base64_is_read_in_pieces_as_if_it_were_in_one(monkeypatch):
    rng = random.Random(4)
    for step in (1, 2, 3, 4, 5, 8, 64):
        monkeypatch.setattr(module, "STEP", step)
        for _ in range(200):
            text = b64(rng.randbytes(rng.randrange(1, 30)))
            if rng.random() < 0.5:
                place = rng.randrange(len(text) + 1)
                text = text[:place] + rng.choice((" ", "\n", "=", "==", "@", "A", "é")) + text[place:]
            if rng.random() < 0.2:
                text = text[: rng.randrange(len(text))]
            try:
                right = base64.b64decode("".join(text.split()), validate=True) or None
            except ValueError:
                right = None
            try:
                found = module.decode(text, "here", "it")
            except ApiError:
                found = None
            assert found == right, (step, text)


@pytest.mark.parametrize("stream", [False, True])
def test_files_count_into_the_bound_of_all_bodies_until_their_answer_has_been_written(make_api, tmp_path: Path, stream):
    (tmp_path / "a.bmp").write_bytes(bmp(400, 300))
    api = with_folder(make_api, tmp_path)
    budget, n = api.server._server.budget, len(bmp(400, 300))
    seen = []
    begin = api.backend.make_sampler
    api.backend.make_sampler = lambda *args: (seen.append(budget.n_used), begin(*args))[1]
    assert chat(api, [url_part("file://a.bmp")], stream=stream).status == 200
    assert n < seen[0] < n + 10_000  # its JSON counts, too
    inline = chat(api, [image_part(CAT)], stream=stream)
    assert inline.status == 200 and seen[1] > len(CAT) * 7 / 3, "the body and what it became"
    api.settle()
    assert budget.n_used == 0
    budget.n_max = n
    answer = chat(api, [url_part("file://a.bmp")])
    assert answer.status == 503 and answer.headers["retry-after"]
    assert chat(api, [image_part(CAT)]).status == 200
    api.settle()
    assert budget.n_used == 0


@pytest.mark.parametrize("stream", [False, True])
def test_files_are_gone_with_their_answer_and_do_not_wait_for_the_garbage_collector(make_api, tmp_path: Path, stream):
    (tmp_path / "a.bmp").write_bytes(bmp(400, 300))
    api = with_folder(make_api, tmp_path, n_ctx=64, n_slots=1)
    gc.collect()
    gc.disable()
    try:
        known = {id(one) for one in gc.get_objects()}
        for n, bad in ((1, False), (30, False), (1, True)):  # answered, too long, no good
            parts = [url_part("file://a.bmp")] * n + [image_part(CAT[:-20])] * bad
            answer = chat(api, parts, stream=stream, messages=[{"role": "user", "content": parts}])
            assert answer.status == (200 if (n, bad) == (1, False) else 400), answer
            api.settle()
            wait_until(
                lambda: not [one for one in gc.get_objects() if type(one) is Media and id(one) not in known],
                "the files to go",
                PATIENCE,
            )
    finally:
        gc.enable()


def test_a_request_whose_client_has_left_brings_no_more_files(make_api, tmp_path: Path, monkeypatch):
    (tmp_path / "a.bmp").write_bytes(bmp(4, 3))
    api = with_folder(make_api, tmp_path)
    read, read_file, left = [], module.read_file, threading.Event()

    def read_and_leave(*args):
        read.append(args[1])
        client.close()
        if not left.wait(PATIENCE):
            read.append("nobody noticed that the client has left")
        return read_file(*args)

    monkeypatch.setattr(module, "read_file", read_and_leave)
    monkeypatch.setattr(Presence, "_end", lambda self, end=Presence._end: (end(self), left.set()))
    parts = [url_part(f"file://{'./' * i}a.bmp") for i in range(5)]
    client = api.begin({"messages": [{"role": "user", "content": parts}]}, path="/v1/chat/completions")
    wait_until(lambda: read, "the first file to be read", PATIENCE)
    api.settle()
    assert len(read) == 1 and not api.backend.media.n_open


def test_what_the_files_of_a_prompt_take_is_known_before_they_are_decoded(make_api):
    api = make_api(seeing(n_ctx=512, n_slots=1)).start()
    api.backend.media.least_tokens = FakeMedia.least_tokens.__get__(api.backend.media)  # a token for each pixel
    api.transport._scheduler._state.media._least_tokens = api.backend.media.least_tokens
    prepared = []
    api.transport._scheduler._state.media._prepare = prepared.append
    answer = chat(api, [image_part(png(30, 20))])
    assert answer.status == 400 and answer.error["type"] == "exceed_context_size_error" and not prepared
    assert "or more" in answer.error["message"] and answer.error["n_prompt_tokens"] > 600


def test_random_requests_with_media_are_answered_or_refused(eyes: Api):
    rng = random.Random(2)
    values = (None, 5, "", "x", [], {}, b64(CAT), data_url(CAT), data_url(b"no"), {"url": data_url(DOG)}, [1], True)
    for _ in range(150):
        pick = rng.choice
        part = {
            "type": pick(("image_url", "input_audio", "input_image", "image", "text")),
            pick(("image_url", "input_audio", "text", "data")): pick(values),
        }
        answer = chat(eyes, [part, pick(({"type": "text", "text": "x"}, part))], 1)
        assert answer.status in (200, 400), answer
        answer = eyes.post(
            "/completion",
            {
                "prompt": pick(("[img-1]", "x", {"prompt_string": "<__media__>", "multimodal_data": pick(values)})),
                "image_data": pick((None, [], [{"data": pick(values), "id": 1}])),
                "n_predict": 1,
            },
        )
        assert answer.status in (200, 400), answer
    eyes.settle()
    assert eyes.is_idle()
