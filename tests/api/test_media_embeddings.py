"""POST /embedding and its aliases with images and audio: forms of input, answers, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.api.test_embeddings import close, unit
from tests.fake_embeddings import vector_of
from tests.fake_media import Eyes, b64, media, seeing
from tests.fakes import BOS, FakeBackend
from tests.media_files import data_url, picture, png, wav

CAT, DOG, MEOW = picture(1), picture(2), wav(0.1)
PNG = b64(CAT)


def tokens_of(*parts: str | bytes) -> list[int]:
    """What a text with files becomes."""
    eyes, tokens = Eyes(FakeBackend(), True, True), [BOS]
    for part in parts:
        if isinstance(part, str):
            tokens += part.encode()
            continue
        for piece in eyes.prepare(media(part)).parts:
            tokens += piece if isinstance(piece, list) else piece.ids
    return tokens


def vector(*parts: str | bytes) -> list[float]:
    return close(unit(tokens_of(*parts)))


@pytest.mark.covers("E05", "Q29")
@pytest.mark.parametrize("field", ["content", "input"])
def test_images_of_2024_go_where_the_content_names_them(eyes, field):
    body = {
        field: "Image: [img-21].\nCaption: a house [img-3]",
        "image_data": [{"data": b64(DOG), "id": 3}, {"data": data_url(CAT), "id": 21}],
    }
    expected = vector("Image: ", CAT, ".\nCaption: a house ", DOG)
    assert eyes.post("/embedding", body).json() == {"embedding": expected}
    assert eyes.post("/embeddings", body).json() == [{"index": 0, "embedding": [expected]}]


def test_objects_with_files_are_inputs_like_any_other(eyes):
    with_files = {"prompt_string": "a<__media__>b<__media__>c", "multimodal_data": [PNG, b64(MEOW)]}
    one = eyes.post("/embedding", {"content": with_files}).json()
    assert one == [{"index": 0, "embedding": [vector("a", CAT, "b", MEOW, "c")]}]
    inputs = [
        "hello",
        with_files,
        {"prompt_string": "<__media__>", "multimodal_data": []},
        [104, 105],
        {"prompt_string": "<__media__>", "multimodal_data": [b64(DOG)]},
    ]
    data = eyes.post("/v1/embeddings", {"input": inputs}).json()
    assert [item["embedding"] for item in data["data"]] == [
        vector("hello"),
        vector("a", CAT, "b", MEOW, "c"),
        vector("<__media__>"),
        close(unit([104, 105])),
        vector(DOG),
    ]
    n_tokens = sum(
        map(
            len,
            (tokens_of("hello"), tokens_of("a", CAT, "b", MEOW, "c"), tokens_of("<__media__>"), "hi", tokens_of(DOG)),
        )
    )
    assert data["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def test_without_files_markers_are_text(eyes):
    for content in ("[img-1]", "<__media__>"):
        assert eyes.post("/embedding", {"content": content, "image_data": []}).json() == {"embedding": vector(content)}


@pytest.mark.parametrize("pooling", ["mean", "cls", "none"])
def test_rows_are_pooled_as_the_server_pools(make_api, pooling):
    backend = seeing()
    backend.info = replace(backend.info, pooling=pooling)
    api = make_api(backend).start()
    body = {"content": "a[img-1]b", "image_data": [{"data": PNG, "id": 1}], "embd_normalize": -1}
    tokens = tokens_of("a", CAT, "b")
    rows = [vector_of(tokens[: i + 1]) for i in range(len(tokens))]
    found = api.post("/embedding", body).json()["embedding"]
    assert (
        found
        == {"mean": close([sum(column) / len(rows) for column in zip(*rows)]), "cls": rows[0], "none": rows}[pooling]
    )


def test_dimensions_and_norms_are_those_of_texts(eyes):
    body = {"content": "[img-1]", "image_data": [{"data": PNG, "id": 1}], "dimensions": 2}
    assert eyes.post("/embedding", body).json() == {"embedding": close(unit(tokens_of(CAT), 2))}


@pytest.mark.parametrize(
    "body, words",
    [
        ({"content": "x", "image_data": [{"data": PNG, "id": 1}]}, "image_data[0]: the content has no [img-1]"),
        ({"content": "[img-2]", "image_data": [{"data": PNG, "id": 1}]}, "content: there is no image with the id 2"),
        ({"content": "[img-1]", "image_data": {"data": PNG, "id": 1}}, "give a list"),
        ({"content": ["[img-1]"], "image_data": [{"data": PNG, "id": 1}]}, "one string"),
        ({"content": "[img-1]", "image_data": [{"data": "@", "id": 1}]}, "image_data[0]: it is not base64"),
        ({"content": "[img-1]", "image_data": [{"data": b64(b"text"), "id": 1}]}, "image_data[0]"),
        ({"content": "[img-1]", "image_data": [{"data": b64(png()[:60]), "id": 1}]}, "image_data[0]"),
        ({"content": {"prompt_string": "x", "multimodal_data": [PNG]}}, "input: prompt_string has 0 markers"),
        ({"content": ["a", {"prompt_string": "<__media__>", "multimodal_data": ["@"]}]}, "input[1].multimodal_data[0]"),
        ({"content": {"multimodal_data": [PNG]}}, "input.prompt_string is not a string"),
        ({"content": {}}, "give a string"),
        ({"content": [{"prompt_string": ""}, []]}, "input[1]: the text is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_refused_with_its_place(eyes, body, words):
    for path in ("/embedding", "/v1/embeddings"):
        answer = eyes.post(path, body)
        assert answer.status == 400 and words in answer.json()["error"]["message"]


def test_an_input_that_is_too_long_is_refused_with_the_numbers(eyes):
    body = {"content": "[img-1]" + "x" * 300, "image_data": [{"data": PNG, "id": 1}]}
    answer = eyes.post("/embedding", body)
    error = answer.json()["error"]
    assert answer.status == 400 and error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] == len(tokens_of(CAT)) + 300 and error["n_ctx"] == 200


def test_a_model_that_ranks_refuses_files(make_api):
    backend = seeing()
    backend.info = replace(backend.info, pooling="rank")
    api = make_api(backend).start()
    answer = api.post("/embedding", {"content": "[img-1]", "image_data": [{"data": PNG, "id": 1}]})
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "image_data[0]: this model scores texts only, not files"


def test_a_client_that_hangs_up_takes_its_files_along(make_api):
    api = make_api(seeing()).start()
    api.backend.hold()
    sock = api.begin(
        {"input": [{"prompt_string": "<__media__>", "multimodal_data": [PNG]}] * 20}, path="/v1/embeddings"
    )
    api.wait_for_decode()
    sock.close()
    api.backend.go()
    api.settle()
    assert api.n_requests == 0 and api.backend.media.n_open == 0
    n = len(api.backend.media_embeddings.log)
    body = {"content": "[img-1]", "image_data": [{"data": PNG, "id": 1}]}
    assert api.post("/embedding", body).status == 200
    assert len(api.backend.media_embeddings.log) < n + 6, "nothing else was left to do"
