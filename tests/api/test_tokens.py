"""POST /tokenize and /detokenize."""

from __future__ import annotations

import pytest

from tests.fakes import BOS, EOS, N_VOCAB


def tokenize(api, **body) -> list:
    answer = api.post("/tokenize", body)
    assert answer.status == 200
    return answer.json()["tokens"]


@pytest.mark.covers("E03", "Q40")
def test_text_becomes_tokens_without_bos_unless_it_is_asked_for(api):
    assert tokenize(api, content="hé") == [104, 0xC3, 0xA9]
    assert tokenize(api, content="hé", add_special=False) == [104, 0xC3, 0xA9]
    assert tokenize(api, content="hé", add_special=True) == [BOS, 104, 0xC3, 0xA9]


def test_special_tokens_are_recognised_unless_that_is_switched_off(api):
    assert tokenize(api, content="a</s>") == [97, EOS]
    assert tokenize(api, content="a</s>", parse_special=False) == list(b"a</s>")


def test_tokens_with_their_pieces(api):
    assert tokenize(api, content="aé", with_pieces=True) == [
        {"id": 97, "piece": "a"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
    ]


def test_no_content_is_no_tokens(api):
    assert tokenize(api) == [] and tokenize(api, content="") == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"content": 5}, "content"),
        ({"content": "x", "add_special": "yes"}, "add_special"),
        ({"content": "x", "with_pieces": 1}, "with_pieces"),
        ([], "object"),
    ],
)
def test_what_cannot_be_tokenised_is_refused(api, body, word):
    answer = api.post("/tokenize", body)
    assert answer.status == 400 and word in answer.error["message"]


def detokenize(api, tokens: list[int]) -> str:
    answer = api.post("/detokenize", {"tokens": tokens})
    assert answer.status == 200
    return answer.json()["content"]


@pytest.mark.covers("E04")
@pytest.mark.parametrize("text", ["", "plain", "héllo 世界 😀", 'line\nbreak\t"quoted" \\ '])
def test_tokens_become_the_text_again(api, text):
    assert detokenize(api, tokenize(api, content=text)) == text


def test_half_a_character_becomes_the_replacement_character(api):
    assert detokenize(api, [97, 0xE2, 0x82, 98]) == "a\ufffdb"


def test_no_tokens_are_no_text(api):
    assert detokenize(api, []) == ""
    assert api.post("/detokenize", {}).json() == {"content": ""}


@pytest.mark.parametrize("tokens", [5, "abc", {"a": 1}, [1.5], ["a"], [True], [-1], [N_VOCAB], [2**64]], ids=repr)
def test_what_is_no_list_of_tokens_is_refused(api, tokens):
    answer = api.post("/detokenize", {"tokens": tokens})
    assert answer.status == 400 and "tokens" in answer.error["message"]


def test_tokenizing_does_not_wait_for_the_engine(make_api):
    api = make_api().start()
    api.backend.hold()
    with api.begin({"prompt": "x", "n_predict": 1}):
        api.wait_for_decode()
        assert tokenize(api, content="a") == [97]
        assert detokenize(api, [97]) == "a"
        assert api.get("/health").status == 200
        assert api.get("/slots").status == 200
        assert api.get("/props").status == 200
        api.backend.go()
