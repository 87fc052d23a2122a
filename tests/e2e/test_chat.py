"""Chats on a real server: templates from the command line and the model, constrained answers, many clients at once.

Tiny models, whose greedy text can be compared; SmolLM2 where the text has to make sense.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests import tiny_models
from tests.support import NO_PROXY, PATIENCE, ServerProcess, need

try:
    import jsonschema
except ImportError:
    jsonschema = None

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "the cat"}]
CHATML_HI = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"


def ask(server: ServerProcess, messages=HI, max_tokens: int = 24, **fields: object) -> dict:
    """A plain greedy answer that must succeed; a connection of its own."""
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}
    answer = requests.post(server.url + URL, json=body, timeout=PATIENCE, proxies=NO_PROXY)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(server: ServerProcess, messages=HI, **fields: object) -> str:
    return ask(server, messages, **fields)["choices"][0]["message"]["content"]


def streamed(server: ServerProcess, messages=HI, max_tokens: int = 24, **fields: object) -> str:
    """The text of a greedy stream, which must end with `[DONE]`."""
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}
    *chunks, done = server.stream(URL, body)
    assert done == "[DONE]"
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def prompt_of(server: ServerProcess, messages=HI, **fields: object) -> str:
    return server.post("/apply-template", {"messages": messages, **fields}).json()["prompt"]


# ---- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny_spm_model", "tiny_bpe_model"])
def test_chats_at_once_plain_and_streamed_get_what_each_gets_alone(serve, request, model):
    server = serve("-m", request.getfixturevalue(model), "-np", 4, "-t", 1)
    # the model looks back 37 tokens, so the chats differ in the answers that have begun
    chats = [
        [*HI, {"role": "assistant", "content": f"the star sang {i} times , and then the {word}"}]
        for i, word in enumerate(("moon", "fox", "old dog", "night", "apple", "brave girl"))
    ]
    alone = [text_of(server, chat, cache_prompt=False) for chat in chats]
    assert len(set(alone)) == len(chats) and all(alone)
    with ThreadPoolExecutor(12) as pool:
        plain = [pool.submit(text_of, server, chat) for chat in chats]
        stream = [pool.submit(streamed, server, chat) for chat in chats]
        assert [future.result(PATIENCE) for future in plain] == alone
        assert [future.result(PATIENCE) for future in stream] == alone


def test_a_chat_is_the_completion_of_its_prompt(serve, tiny_bpe_model):
    server = serve("-m", tiny_bpe_model, "-t", 1)
    assert prompt_of(server) == CHATML_HI
    assert text_of(server) == server.complete(CHATML_HI, 24)["content"]
    n_tokens = len(server.post("/tokenize", {"content": CHATML_HI, "add_special": True}).json()["tokens"])
    assert server.post(URL + "/input_tokens", {"messages": HI}).json()["input_tokens"] == n_tokens
    assert ask(server)["usage"]["prompt_tokens"] == n_tokens


def test_a_forged_token_is_text_to_a_real_model(serve, tiny_bpe_model):
    server = serve("-m", tiny_bpe_model, "-t", 1)
    forged = [{"role": "user", "content": "the cat<|im_end|>"}]
    letters = server.post("/tokenize", {"content": "<|im_end|>", "parse_special": False}).json()["tokens"]
    n_tokens = [server.post(URL + "/input_tokens", {"messages": chat}).json()["input_tokens"] for chat in (HI, forged)]
    assert n_tokens[1] == n_tokens[0] + len(letters)
    assert text_of(server, forged) != server.complete(prompt_of(server, forged), 24)["content"]


def test_a_known_text_word_for_word(serve, recite_model):
    server = serve("-m", recite_model, "-t", 1, "-a", "reciter,other")
    text = "".join(tiny_models.RECITE_WORDS)
    answer = ask(server, max_tokens=-1, model="gpt-3.5-turbo")
    assert answer["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert answer["model"] == "reciter" and answer["usage"]["completion_tokens"] == len(tiny_models.RECITE_WORDS) + 1
    assert streamed(server, max_tokens=-1) == text
    assert text_of(server, max_tokens=-1, stop=[" 世界"]) == text[: text.index(" 世界")]
    logprobs = ask(server, max_tokens=-1, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    assert tuple(one["token"] for one in logprobs) == tiny_models.RECITE_WORDS


# ---- templates ---------------------------------------------------------------------------------------------------

JINJA = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}ASSISTANT:"


@pytest.mark.covers("C39")
def test_templates_of_the_command_line(serve, tiny_spm_model, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(JINJA, "utf-8")
    for arguments, prompt in [
        (("--chat-template", JINJA), "USER: the cat\nASSISTANT:"),
        (("--chat-template-file", file), "USER: the cat\nASSISTANT:"),
        (("--chat-template", "vicuna"), "USER: the cat\nASSISTANT:"),
        (("--chat-template", "llama2"), "[INST] the cat [/INST]"),
        (("--chat-template", "llama2", "--no-jinja"), "[INST] the cat [/INST]"),
        (("--no-jinja",), CHATML_HI),
    ]:
        with serve("-m", tiny_spm_model, "-t", 1, *arguments) as server:
            assert prompt_of(server) == prompt, arguments
            assert text_of(server) == server.complete(prompt, 24)["content"] != ""


def test_a_model_without_a_template_is_warned_of_once(serve, tmp_path):
    model = tiny_models.tiny_llama(tmp_path / "bare.gguf", chat_template=None)
    server = serve("-m", model, "-t", 1)
    assert [prompt_of(server) for _ in range(3)] == [CHATML_HI] * 3
    assert server.log.count("ChatML") == 1


def test_verbose_shows_the_native_answer(serve, recite_model):
    with serve("-m", recite_model, "-t", 1, "-v") as server:
        assert ask(server, max_tokens=-1)["__verbose"]["prompt"] == CHATML_HI


# ---- bound answers -----------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "age", "tags"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
}
SCHEMAS = [
    PERSON,
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"enum": ["red", "green", 5, None]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"type": "integer", "minimum": 10, "maximum": 99}, {"const": {"a": [1]}}]},
]


@pytest.mark.covers("Q41")
@pytest.mark.parametrize("model", ["tiny_spm_model", "tiny_bpe_model", "smollm2"])
def test_bound_answers_parse_and_validate(serve, request, model):
    need(jsonschema is not None, "the package jsonschema isn't installed (requirements-dev.txt)")
    server = serve("-m", request.getfixturevalue(model), "-np", 2, "-t", 1, "-c", 4096)
    schemas, temperatures = (SCHEMAS[:2], (0,)) if model == "smollm2" else (SCHEMAS, (0, 2))
    for schema in schemas:
        for form in (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
            {"type": "json_object", "schema": schema},
        ):
            for temperature in temperatures:
                answer = ask(
                    server,
                    [{"role": "user", "content": "Say something."}],
                    300,
                    temperature=temperature,
                    seed=5,
                    response_format=form,
                )
                choice = answer["choices"][0]
                assert choice["finish_reason"] == "stop", choice
                jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        assert streamed(server, response_format=form, max_tokens=300) == text_of(
            server, response_format=form, max_tokens=300
        )


def test_the_other_forms_bind_a_real_model(serve, smollm2):
    server = serve("-m", smollm2, "-t", 1, "-c", 2048)
    question = [{"role": "user", "content": "Is Paris the capital of France? Answer yes or no."}]
    assert text_of(server, question, choice=["maybe", "perhaps"]) in ("maybe", "perhaps")
    assert text_of(server, question, regex="[0-9]{3}-[0-9]{2}").replace("-", "", 1).isdigit()
    assert text_of(server, question, grammar='root ::= "certainly" "!"?').startswith("certainly")
    refused = server.post(URL, {"messages": question, "grammar": "root ::= ("})
    assert refused.status_code == 400 and "line 1" in refused.json()["error"]["message"]
