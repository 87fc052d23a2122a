"""`echo` with `logprobs` in /v1/completions over the fake engine: an entry for each token, as evaluation programs
expect.
"""

from __future__ import annotations

import pytest

from tests.api.openai_wire import chunks
from tests.fakes import BOS, FakeBackend, FakeVocab, answer, judged, letters

URL = "/v1/completions"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset", "content")


def ask(api, prompt: object = "hello", max_tokens: int = 0, logprobs: int = 2, **fields: object) -> dict:
    body = {"prompt": prompt, "max_tokens": max_tokens, "echo": True, "logprobs": logprobs, **fields}
    result = api.post(URL, body)
    assert result.status == 200, result
    return result.json()["choices"][0]


def expected(tokens: list[int], reply=letters) -> list[float | None]:
    """What the fake model thinks of each token."""
    likely = [reply(tokens[:i]) for i in range(len(tokens))]
    return [None] + [0.0 if tokens[i] == likely[i] else judged(tokens[:i], tokens[i]) for i in range(1, len(tokens))]


def tops(tokens: list[int], n_top: int) -> list[dict[str, float] | None]:
    """The likeliest tokens in the place of each, and the token itself, which is always there."""
    found: list[dict[str, float] | None] = [None]
    for i, logprob in enumerate(expected(tokens)[1:], 1):
        likely = letters(tokens[:i])
        found.append({chr((likely + j) % 256): -float(j) for j in range(n_top)} | {chr(tokens[i]): logprob})
    return found


@pytest.mark.parametrize("prompt", ["hello", [BOS, *b"hello"]])
def test_each_token_of_the_prompt_has_its_number(api, prompt):
    choice = ask(api, prompt)
    tokens = [BOS, *b"hello"]
    assert choice["text"] == "hello" and choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<s>", *"hello"] and logprobs["token_logprobs"] == expected(tokens)
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 4]
    assert logprobs["top_logprobs"] == tops(tokens, 2)
    assert [len(one["top_logprobs"]) for one in logprobs["content"]] == [0, 2, 2, 2, 2, 2]
    assert all(
        max(top.values()) == 0.0 and top[chr(letters(tokens[:i]))] == 0.0
        for i, top in enumerate(logprobs["top_logprobs"])
        if i
    )
    assert [one["id"] for one in logprobs["content"]] == tokens
    assert [one["logprob"] for one in logprobs["content"]] == logprobs["token_logprobs"]


def test_what_is_generated_comes_behind_it(api):
    choice, plain = ask(api, max_tokens=3), ask(api, max_tokens=3, echo=False)
    assert choice["text"] == "hello" + plain["text"]
    logprobs = choice["logprobs"]
    for name in LISTS:
        assert len(logprobs[name]) == 6 + 3
    assert logprobs["token_logprobs"][6:] == plain["logprobs"]["token_logprobs"]
    assert logprobs["text_offset"][6:] == [5, 6, 7] and plain["logprobs"]["text_offset"] == [0, 1, 2]


def test_an_end_of_text_has_an_entry_too_so_that_the_last_one_is_the_generated_one(make_api):
    """lm-eval-harness takes all entries but the last."""
    api = make_api(FakeBackend(answer("", end="?"))).start()
    choice = ask(api, "what?", max_tokens=1)
    assert choice["text"] == "what?" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"] == ["<s>", *"what?", "</s>"]
    assert choice["logprobs"]["text_offset"][-1] == 5
    assert choice["logprobs"]["token_logprobs"][:-1] == expected([BOS, *b"what?"], answer("", end="?"))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_long_prompts_are_judged_in_parts(api, n):
    text = "the quick brown fox jumps over "[:31] * 7
    choice = ask(api, text[:n])
    assert choice["logprobs"]["token_logprobs"] == expected([BOS, *text[:n].encode()])


def test_nothing_of_such_a_prompt_is_reused(api):
    first, second = ask(api, "the same prompt again"), ask(api, "the same prompt again")
    assert first["logprobs"] == second["logprobs"] and len(first["logprobs"]["tokens"]) == 22


def test_several_prompts_at_once_have_their_own(api):
    prompts = ["one", "and another", "x" * 100]
    body = {"prompt": prompts, "max_tokens": 1, "echo": True, "logprobs": 1, "n": 2}
    choices = api.post(URL, body).json()["choices"]
    assert [choice["text"][:-1] for choice in choices] == [prompt for prompt in prompts for _ in range(2)]
    for i, choice in enumerate(choices):
        assert choice["logprobs"]["token_logprobs"][:-1] == expected([BOS, *prompts[i // 2].encode()])


def test_no_rivals_unless_asked_for(api):
    assert ask(api, logprobs=0)["logprobs"]["top_logprobs"] == tops([BOS, *b"hello"], 0)


def test_a_stream_has_the_same_entries(api):
    plain = ask(api, "naïve", max_tokens=4)
    body = {"prompt": "naïve", "max_tokens": 4, "echo": True, "logprobs": 2, "stream": True}
    found = [choice for chunk in chunks(api.post(URL, body)) for choice in chunk["choices"]]
    parts = [choice["logprobs"] for choice in found if choice["logprobs"]]
    assert "".join(choice["text"] for choice in found) == plain["text"]
    for name in LISTS:
        assert [one for part in parts for one in part[name]] == plain["logprobs"][name]


def test_a_blank_that_the_tokenizer_puts_in_front_does_not_shift_the_offsets(make_api):
    class BlankInFront(FakeVocab):
        def tokenize(self, text, add_special, parse_special):
            return super().tokenize(" " + text, add_special, parse_special)

    api = make_api(vocab=BlankInFront()).start()
    logprobs = ask(api, "ab", max_tokens=1)["logprobs"]
    assert logprobs["tokens"][:4] == ["<s>", " ", "a", "b"] and logprobs["text_offset"] == [0, 0, 0, 1, 2]


def test_the_system_prompt_is_shared_and_not_judged(make_api):
    api = make_api().start()
    api.post("/completion", {"prompt": "x", "n_predict": 1, "system_prompt": "be kind "})
    logprobs = ask(api, "hello")["logprobs"]
    system = api.backend.history(1)
    assert bytes(token for token in system if token < 256) == b"be kind "
    whole = expected([*system, *b"hello"])
    assert logprobs["tokens"] == [*"hello"] and logprobs["token_logprobs"] == [None, *whole[len(system) + 1 :]]


def test_a_prompt_that_is_too_long_is_refused_even_where_others_are_cut(make_api):
    api = make_api(FakeBackend(n_ctx=64), ("--context-shift",), shift_context=True).start()
    answer = api.post(URL, {"prompt": "x" * 100, "max_tokens": 0, "echo": True, "logprobs": 1})
    assert answer.status == 400 and answer.error["type"] == "exceed_context_size_error"


def test_with_a_suffix_it_is_refused(make_api):
    api = make_api(vocab=FakeVocab({"pre": 1, "suf": 2, "mid": 3})).start()
    answer = api.post(URL, {"prompt": "a", "suffix": "b", "echo": True, "logprobs": 1})
    assert answer.status == 400 and "suffix" in answer.error["message"]
