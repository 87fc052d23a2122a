"""POST /v1/completions over HTTP: prompts in all forms, echo, suffix, log-probabilities in the text form."""

from __future__ import annotations

import dataclasses

import pytest

from server.engine.seam.task import TokenProbs
from tests.api.openai_wire import chunks, said
from tests.fakes import BOS, N_VOCAB, FakeBackend, FakeSampler, FakeVocab
from tests.fakes import answer as answers

URL = "/v1/completions"


def ask(api, prompt: object = "hi", max_tokens: int | None = 6, **fields: object) -> dict:
    """A plain answer that must succeed."""
    answer = api.post(URL, {"prompt": prompt, "max_tokens": max_tokens, **fields})
    assert answer.status == 200, answer
    return answer.json()


def stream(api, prompt: object = "hi", max_tokens: int | None = 6, **fields: object) -> list[dict]:
    """The chunks of a stream that must end well."""
    return chunks(api.post(URL, {"prompt": prompt, "max_tokens": max_tokens, "stream": True, **fields}))


def refuse(api, **body: object) -> dict:
    answer = api.post(URL, {"prompt": "x", "max_tokens": 1, **body})
    assert answer.status == 400, answer
    return answer.error


def texts(result: dict) -> list[str]:
    return [choice["text"] for choice in result["choices"]]


def streamed(found: list[dict], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in found for choice in chunk["choices"] if choice["index"] == index)


def talker(make_api, text: str | bytes):
    """A server whose model goes on with `text` behind a question mark."""
    return make_api(FakeBackend(answers(text))).start()


# ---- prompts and answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("hello", [[BOS, *b"hello"]]),
        ("", [[BOS]]),
        ([104, 105], [[104, 105]]),
        (["one"], [[BOS, *b"one"]]),
        (["one", "two", "three"], [[BOS, *b"one"], [BOS, *b"two"], [BOS, *b"three"]]),
        ([[104], [105, 106]], [[104], [105, 106]]),
        (["one", [104]], [[BOS, *b"one"], [104]]),
    ],
    ids=repr,
)
def test_each_form_of_the_prompt(api, prompt, tokens):
    result = ask(api, prompt)
    assert texts(result) == [said(one, 6) for one in tokens]
    assert [choice["index"] for choice in result["choices"]] == list(range(len(tokens)))
    assert result["usage"]["prompt_tokens"] == sum(map(len, tokens))
    found = stream(api, prompt)
    assert [streamed(found, index) for index in range(len(tokens))] == texts(result)


def test_every_field_of_an_answer(api):
    result = ask(api, model="gpt-3.5-turbo-instruct")
    assert result.pop("id").startswith("cmpl-") and isinstance(result.pop("created"), int) and result.pop("timings")
    assert result.pop("usage")["total_tokens"] == 9 and result.pop("cache")["source"] in ("none", "slot")
    assert result == {
        "object": "text_completion",
        "model": "gpt-3.5-turbo-instruct",
        "system_fingerprint": "b-fake",
        "choices": [{"index": 0, "text": said("hi", 6), "logprobs": None, "finish_reason": "length"}],
    }


def test_every_field_of_a_stream(api):
    found = stream(api, max_tokens=3, stream_options={"include_usage": True})
    assert [chunk["choices"] for chunk in found] == [
        *([{"index": 0, "text": letter, "logprobs": None, "finish_reason": None}] for letter in said("hi", 3)),
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
        [],
    ]
    assert len({chunk["id"] for chunk in found}) == 1 and {chunk["object"] for chunk in found} == {"text_completion"}
    assert found[-1]["usage"]["completion_tokens"] == 3 and "usage" not in found[-2]


def test_several_answers_to_several_prompts_come_in_their_order(api):
    result = ask(api, ["one", "two"], n=2)
    assert texts(result) == [said("one", 6)] * 2 + [said("two", 6)] * 2
    assert result["usage"]["prompt_tokens"] == 8 and result["usage"]["completion_tokens"] == 24


def test_without_v1_completions_are_the_native_ones(api):
    native = api.post("/completions", {"prompt": "hi", "n_predict": 6}).json()
    assert native["content"] == said("hi", 6) and "choices" not in native


@pytest.mark.parametrize("prompt", [None, 5, True, {}, [N_VOCAB], [True], [None]], ids=repr)
def test_what_is_no_prompt_is_refused(api, prompt):
    assert "prompt" in refuse(api, prompt=prompt)["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("echo", 1),
        ("echo", "yes"),
        ("logprobs", -1),
        ("logprobs", 101),
        ("logprobs", "x"),
        ("logprobs", 1.5),
        ("logprobs", True),
        ("suffix", 5),
        ("suffix", ["x"]),
        ("model", 5),
        ("stop", 5),
        ("n", 0),
        ("stream", 1),
        ("response_format", {"type": "xml"}),
    ],
    ids=repr,
)
def test_a_field_of_the_wrong_type_is_refused_by_name(api, name, value):
    assert name in refuse(api, **{name: value})["message"]


@pytest.mark.parametrize(
    "name",
    [
        "echo",
        "logprobs",
        "suffix",
        "best_of",
        "user",
        "model",
        "stop",
        "n",
        "stream",
        "stream_options",
        "logit_bias",
        "seed",
        "temperature",
    ],
)
def test_null_is_as_good_as_nothing(api, name):
    assert texts(ask(api, **{name: None})) == [said("hi", 6)]


# ---- echo --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", ["hi", " héllo 😀", "a<s>b", ["one", "two"], [104, 105], [[104], [105]], ["h", 105]], ids=repr
)
def test_echo_puts_the_prompt_before_the_text(api, prompt):
    plain, echoed = ask(api, prompt), ask(api, prompt, echo=True)
    is_several = isinstance(prompt, list) and len(plain["choices"]) > 1
    prompts = prompt if is_several else [prompt]
    for before, after, one in zip(texts(plain), texts(echoed), prompts):
        one = one if isinstance(one, list) else [one]
        shown = "".join(part if isinstance(part, str) else chr(part) for part in one)
        assert after == shown + before
    found = stream(api, prompt, echo=True)
    assert [streamed(found, index) for index in range(len(prompts))] == texts(echoed)


def test_echo_of_nothing_generated_is_the_prompt(api):
    assert texts(ask(api, max_tokens=0, echo=True)) == ["hi"]


# ---- suffix ------------------------------------------------------------------------------------------------------


def test_a_suffix_fills_in_the_middle(make_api):
    api = make_api(vocab=FakeVocab({"pre": 1, "suf": 2, "mid": 3})).start()
    result = ask(api, "before", suffix="after")
    assert texts(result) == [said([BOS, 1, *b"before", 2, *b"after", 3], 6)]
    assert texts(ask(api, "before", suffix="after", echo=True)) == ["before" + texts(result)[0]]
    for body in ({"prompt": ["a", "b"], "suffix": "x"}, {"prompt": [104], "suffix": "x"}):
        assert "prompt" in refuse(api, **body)["message"]


def test_a_suffix_needs_a_model_that_can(api):
    answer = api.post(URL, {"prompt": "a", "suffix": "b"})
    assert answer.status == 501 and "middle" in answer.error["message"]
    assert texts(ask(api, suffix="")) == [said("hi", 6)]


# ---- log-probabilities -------------------------------------------------------------------------------------------


def test_log_probabilities_in_both_forms(make_api):
    api = talker(make_api, "ab")
    logprobs = ask(api, "?", None, logprobs=2)["choices"][0]["logprobs"]
    content = logprobs.pop("content")
    assert logprobs == {
        "tokens": ["a", "b"],
        "token_logprobs": [0.0, 0.0],
        "text_offset": [0, 1],
        "top_logprobs": [{"a": 0.0, "b": -10.0}, {"b": 0.0, "c": -10.0}],
    }
    assert [(one["token"], one["bytes"]) for one in content] == [("a", [97]), ("b", [98])]
    assert [len(one["top_logprobs"]) for one in content] == [2, 2]


@pytest.mark.parametrize(("fields", "n_top"), [({"logprobs": 0}, 0), ({"logprobs": 1}, 1), ({"n_probs": 3}, 3)])
def test_as_many_rivals_as_asked_for(make_api, fields, n_top):
    logprobs = ask(talker(make_api, "ab"), "?", None, **fields)["choices"][0]["logprobs"]
    n_shown = max(n_top, 1)  # the token itself is always there
    assert [len(top) for top in logprobs["top_logprobs"]] == [n_shown, n_shown] and logprobs["tokens"] == ["a", "b"]


@pytest.mark.parametrize("n_top", [0, 1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_an_unlikely_token_is_there_beside_the_likeliest(make_api, monkeypatch, n_top, stream):
    """A token that was drawn by chance is one more than was asked for, as with OpenAI."""
    sample_probs = FakeSampler.sample_probs

    def unlikely(self, row: int, n_probs: int) -> TokenProbs:
        found = sample_probs(self, row, n_probs)
        rivals = tuple((found.token + 1 + i, -1.0 - i) for i in range(n_probs))
        return dataclasses.replace(found, logprob=-7.5, top_logprobs=rivals)

    monkeypatch.setattr(FakeSampler, "sample_probs", unlikely)
    api = talker(make_api, "ab")
    body = {"prompt": "?", "max_tokens": 2, "logprobs": n_top, "stream": stream}
    answer = api.post(URL, body)
    parts = [choice for chunk in (chunks(answer) if stream else [answer.json()]) for choice in chunk["choices"]]
    tops = [top for part in parts if part["logprobs"] for top in part["logprobs"]["top_logprobs"]]
    rivals = {"a": {"b": -1.0, "c": -2.0}, "b": {"c": -1.0, "d": -2.0}}
    assert tops == [{**dict(list(rivals[token].items())[:n_top]), token: -7.5} for token in "ab"]


def test_no_log_probabilities_unless_asked_for(api):
    for fields in ({}, {"logprobs": None}, {"logprobs": False}):
        assert ask(api, **fields)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("aé", ["a", "bytes:\\xc3", "bytes:\\xa9"], [0, 1, 1]),
        ("é!", ["bytes:\\xc3", "bytes:\\xa9", "!"], [0, 0, 1]),
        (b"\xff!", ["bytes:\\xff", "!"], [0, 1]),
    ],
    ids=repr,
)
def test_halves_of_characters_have_names_of_their_own(make_api, text, tokens, offsets):
    api = talker(make_api, text)
    logprobs = ask(api, "?", None, logprobs=1)["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (tokens, offsets)


@pytest.mark.parametrize(
    ("text", "stop"), [("hello", None), ("naïve 😀!", None), ("hello world", "lo w"), ("aab", "ab")]
)
def test_a_streams_log_probabilities_are_those_of_the_plain_answer(make_api, text, stop):
    api = talker(make_api, text)
    plain = ask(api, "?", None, logprobs=2, stop=stop)["choices"][0]
    parts = [
        choice["logprobs"]
        for chunk in stream(api, "?", None, logprobs=2, stop=stop)
        for choice in chunk["choices"]
        if choice["logprobs"]
    ]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset", "content"):
        assert [one for part in parts for one in part[name]] == plain["logprobs"][name]
    assert all(offset < len(plain["text"]) for offset in plain["logprobs"]["text_offset"])
