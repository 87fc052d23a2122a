"""POST /tokenize and /detokenize."""

from __future__ import annotations

import pytest

from server.records import replace
from tests.fakes import BOS, EOS, N_VOCAB, FakeBackend


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
    assert api.post("/detokenize", {}).json() == {"content": "", "prompt": ""}


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


# ---- as vLLM's clients ask ------------------------------------------------------------------------------------


@pytest.mark.covers("V02")
def test_a_prompt_becomes_tokens_with_bos_and_their_number(api):
    told = api.post("/tokenize", {"model": "m", "prompt": "hé"}).json()
    assert told == {"count": 4, "max_model_len": 4096, "tokens": [BOS, 104, 0xC3, 0xA9]}
    bare = api.post("/tokenize", {"prompt": "h</s>", "add_special_tokens": False, "return_token_strs": True}).json()
    assert bare == {"count": 2, "max_model_len": 4096, "tokens": [104, EOS], "token_strs": ["h", "</s>"]}
    assert api.post("/tokenize", {"prompt": "", "add_special_tokens": False}).json()["tokens"] == []


@pytest.mark.covers("V02")
def test_a_chat_becomes_the_tokens_that_an_answer_would_begin_from(api):
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    told = api.post("/tokenize", {**chat, "return_token_strs": True}).json()
    text = api.post("/apply-template", chat).json()["prompt"]
    assert told["tokens"] == [BOS, *text.encode()] and told["count"] == len(told["tokens"])
    assert "".join(told["token_strs"]) == "<s>" + text
    usage = api.post("/v1/chat/completions", {**chat, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == told["count"]
    ended = api.post("/tokenize", {**chat, "add_generation_prompt": False}).json()
    assert 0 < ended["count"] < told["count"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "x", "add_special_tokens": 1}, "add_special_tokens"),
        ({"prompt": "x", "return_token_strs": "yes"}, "return_token_strs"),
        ({"prompt": "x", "content": "x"}, "content and prompt can't be used together"),
        ({"prompt": "x", "messages": []}, "prompt and messages can't be used together"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "return_token_strs": 1}, "return_token_strs"),
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_refused(api, body, word):
    answer = api.post("/tokenize", body)
    assert answer.status == 400 and word in answer.error["message"]


@pytest.mark.covers("V02")
def test_the_tokenizer_says_what_its_configuration_would(make_api):
    backend = FakeBackend()
    meta = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.padding_token_id": "257"}
    strange = {"tokenizer.ggml.unknown_token_id": "99999"}
    backend.info = replace(backend.info, bos_token="<s>", meta={**meta, **strange})
    told = make_api(backend, ("--chat-template", "{{ bos_token }}")).start().get("/tokenizer_info").json()
    assert told == {
        "tokenizer_class": "gpt2",
        "vocab_size": N_VOCAB,
        "model_max_length": backend.info.n_ctx_slot,
        "bos_token": "<s>",
        "eos_token": None,
        "pad_token": "</s>",
        "unk_token": None,
        "add_bos_token": True,
        "add_eos_token": True,
        "chat_template": "{{ bos_token }}",
    }


def test_the_tokenizer_is_told_to_those_with_a_key_only(make_api):
    assert make_api(FakeBackend(), ("--api-key", "k")).start().get("/tokenizer_info").status == 401
