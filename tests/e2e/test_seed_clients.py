"""The clients of the documents: chat.mjs and index.js in Node.js, chat.sh in bash, curl, the OpenAI-like wrapper in
Python.

Runs in the test process; servers and clients are processes of their own. The recite model makes every answer known:
after an unknown prompt it writes all its words.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests import tiny_models
from tests.support import NO_PROXY, PATIENCE, ROOT, URL, ServerProcess, events, need
from tests.unit.grammar.gbnf_oracle import Matcher

EXAMPLES = ROOT / "examples"
ANSWER = "".join(tiny_models.RECITE_WORDS)


@pytest.fixture
def server(serve: Callable[..., ServerProcess], recite_model: Path) -> ServerProcess:
    """A server that recites."""
    return serve("-m", recite_model, "-np", "2", "-c", "4096", "-t", "1")


def run(server: ServerProcess, *command: object, said: str = "", **environment: str) -> str:
    """What a client prints when `said` is typed."""
    need(shutil.which(str(command[0])), f"{command[0]} isn't installed")
    done = subprocess.run(
        list(map(str, command)),
        input=said,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        env={**os.environ, "API_URL": server.url, "NO_PROXY": "*", "no_proxy": "*", **environment},
        check=False,
    )
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr + done.stdout
    return done.stdout


def last_prompt(server: ServerProcess) -> str:
    slots = server.get("/slots").json()
    return max(slots, key=lambda slot: slot["task_id"])["prompt"]


@pytest.mark.covers("F07")
def test_the_node_example_prints_the_answer(server: ServerProcess):
    assert run(server, "node", EXAMPLES / "node" / "index.js") == ANSWER + "\n"


def test_the_node_example_says_what_went_wrong(server: ServerProcess):
    done = subprocess.run(
        ["node", str(EXAMPLES / "node" / "index.js")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "API_URL": server.url, "N_PREDICT": "-5"},
    )
    assert done.returncode == 1 and done.stderr.startswith("error: n_predict: -5"), done.stderr


@pytest.mark.covers("F04", "F05")
@pytest.mark.parametrize("client", ["chat.mjs", "chat.sh"])
def test_a_chat_in_the_terminal_remembers_and_keeps_its_slot(server: ServerProcess, client: str):
    if client == "chat.sh":
        need(shutil.which("jq"), "jq isn't installed")
        need(sys.platform != "win32", "not on Windows: bash")
    shell = "node" if client == "chat.mjs" else "bash"
    said = run(server, shell, EXAMPLES / client, said='Who are you?\nReally "so"?\n')
    assert said.count(ANSWER.strip()) == 2
    prompt = last_prompt(server)
    assert f'### Human: Who are you?\n### Assistant: {ANSWER.strip()}\n### Human: Really "so"?\n' in prompt
    slots = server.get("/slots").json()
    used = [slot for slot in slots if slot["task_id"] >= 0]
    assert len(used) == 1 and used[0]["n_prompt_tokens_cache"] > 100, slots
    instruction = prompt.split("\n")[0]
    n_keep = len(server.post("/tokenize", {"content": instruction}).json()["tokens"])
    assert used[0]["n_keep"] == n_keep > 10


def test_chat_mjs_follows_a_schema_in_the_wanted_order(server: ServerProcess, tmp_path: Path):
    schema = {
        "type": "object",
        "required": ["name", "age"],
        "additionalProperties": False,
        "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"type": "integer"}},
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    said = run(
        server,
        "node",
        EXAMPLES / "chat.mjs",
        "--grammar-json-schema",
        tmp_path / "schema.json",
        "--grammar-json-schema-prop-order",
        "age,name",
        said="Who?\n",
    )
    answer = json.loads(re.search(r"\{.*\}", said, re.DOTALL).group())
    assert list(answer) == ["age", "name"] and answer["name"] in ("Ann", "Bo") and type(answer["age"]) is int


def test_chat_mjs_follows_a_grammar(server: ServerProcess, tmp_path: Path):
    (tmp_path / "g.gbnf").write_text('root ::= " four" " two"')
    assert " four two\n" in run(server, "node", EXAMPLES / "chat.mjs", "--grammar", tmp_path / "g.gbnf", said="x\n")


@pytest.mark.parametrize(("command", "client"), [("node", "chat.mjs"), ("bash", "chat.sh")])
def test_a_chat_client_ends_with_an_error_when_no_server_answers(serve, recite_model: Path, command: str, client: str):
    need(command == "node" or shutil.which("jq"), "jq isn't installed")
    server = serve("-m", recite_model)
    server.stop()
    done = subprocess.run(
        [command, str(EXAMPLES / client)],
        input="x\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "API_URL": server.url, "NO_PROXY": "*"},
        timeout=PATIENCE,
    )
    assert done.returncode != 0 and done.stderr.strip()


@pytest.mark.covers("F07")
def test_the_curl_line_of_the_documents_works(server: ServerProcess):
    said = run(
        server,
        "curl",
        "--silent",
        "--request",
        "POST",
        "--url",
        server.url + "/completion",
        "--header",
        "Content-Type: application/json",
        "--data",
        '{"prompt": "Building a website can be done in 10 simple steps:","n_predict": 128}',
    )
    assert json.loads(said)["content"] == ANSWER


# ---------------------------------------------------------------------------------------- api_like_OAI.py


class Wrapper:
    """A running api_like_OAI.py."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "api_like_OAI.py"), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "no_proxy": "*"},
        )
        self.url = URL.search(self.process.stdout.readline()).group()

    def post(self, path: str, body: dict[str, object], **options: object) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=PATIENCE, proxies=NO_PROXY, **options)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


@pytest.fixture
def wrap(server: ServerProcess) -> Iterator[Callable[..., Wrapper]]:
    """`wrap(...)` starts a wrapper in front of the server."""
    running: list[Wrapper] = []

    def start(*arguments: str) -> Wrapper:
        running.append(Wrapper("--llama-api", server.url, *arguments))
        return running[-1]

    yield start
    for wrapper in running:
        wrapper.close()


CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"text": "Hi"}]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "More"},
    ]
}


@pytest.mark.covers("F06")
def test_the_wrapper_answers_chats_in_openais_form(server: ServerProcess, wrap):
    wrapper = wrap(
        "--user-name",
        "\\nU: ",
        "--ai-name",
        "\\nA: ",
        "--system-name",
        "\\nS: ",
        "--chat-prompt",
        "Talk.",
        "--stop",
        "<end>",
    )
    for path in ("/chat/completions", "/v1/chat/completions"):
        answer = wrapper.post(path, {**CHAT, "max_tokens": 3}).json()
        assert answer["choices"] == [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": "".join(tiny_models.RECITE_WORDS[:3])},
            }
        ]
        assert answer["object"] == "chat.completion" and answer["usage"]["completion_tokens"] == 3
    assert last_prompt(server).endswith("Talk.\nS: Be kind.\nU: Hi\nA: Yes?<end>\nU: More\nA:")
    assert wrapper.post("/v1/chat/completions", CHAT).json()["choices"][0]["finish_reason"] == "stop"


def test_the_wrapper_continues_texts_and_gives_tokens(server: ServerProcess, wrap):
    body = {"prompt": "count: one", "stop": [" four"], "tokenize": True, "logit_bias": {"5": 0.0}, "temperature": 0}
    answer = wrap().post("/v1/completions", body).json()
    assert answer["choices"][0]["text"] == " two three" and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["promptToken"] == server.post("/tokenize", {"content": "count: one"}).json()["tokens"]


def test_the_wrapper_streams(wrap):
    wrapper = wrap()
    with wrapper.post("/v1/chat/completions", {**CHAT, "stream": True}, stream=True) as response:
        chunks = list(events(response))
    assert chunks.pop() == "[DONE]" and chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    with wrapper.post("/completions", {"prompt": "x", "stream": True}, stream=True) as response:
        assert "".join(chunk["choices"][0]["text"] for chunk in list(events(response))[:-1]) == ANSWER


def test_the_wrapper_wants_its_key_and_passes_errors_on(wrap):
    wrapper = wrap("--api-key", "secret")
    assert wrapper.post("/v1/completions", {"prompt": "x"}).status_code == 403
    key = {"Authorization": "Bearer secret"}
    assert wrapper.post("/v1/completions", {"prompt": "x"}, headers=key).status_code == 200
    assert wrapper.post("/v1/completions", {}, headers=key).status_code == 400
    refused = wrapper.post("/v1/completions", {"prompt": "x", "top_k": "many"}, headers=key)
    assert refused.status_code == 400 and "top_k" in refused.json()["error"]["message"]
    assert wrapper.post("/nothing", {}, headers=key).status_code == 404


# ---------------------------------------------------------------------------------------- json-schema-to-grammar.mjs

SCHEMAS = [
    (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["b"]},
        ['{"b":"x"}', '{ "b": "x", "a": -3 }'],
        ['{"a":1}', "{}", '{"b":"x","c":1}', '{"b":"x",}'],
    ),
    (
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}}},
        ["{}", '{"a":null}', '{"b":true}', '{"a":null,"b":false}'],
        ['{,"b":true}', '{"a":null "b":true}'],
    ),
    (
        {"type": "object", "additionalProperties": {"type": "number"}},
        ["{}", '{"q":1.5e3}', '{"q":1,"r":-2}'],
        ['{"q":"x"}'],
    ),
    (
        {"type": "array", "items": {"enum": ["a", 'b"c\n', 3, None]}, "minItems": 1, "maxItems": 2},
        ['["a"]', '["b\\"c\\n",3]', "[ null ]"],
        ["[]", '["a","a","a"]', '["b"]'],
    ),
    (
        {"prefixItems": [{"const": 1}, {"type": "string", "minLength": 1, "maxLength": 2}]},
        ['[1,"ab"]'],
        ['[1,""]', '[1,"abc"]'],
    ),
    (
        {"anyOf": [{"type": "string", "format": "date"}, {"type": ["integer", "null"]}]},
        ['"2024-02-29"', "7", "null"],
        ['"2024-2-29"', "true"],
    ),
    ({"type": "string", "pattern": "^[A-C]{2}-\\d+(x|y)?\\.$"}, ['"AB-12x."', '"CC-0."'], ['"AB-x."', '"AD-1."']),
    (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "required": ["next"],
                    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                }
            },
        },
        ['{"next":null}', '{"next":{"next":{"next":null}}}'],
        ['{"next":1}', "{}"],
    ),
    (
        {
            "allOf": [
                {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "integer"}}},
            ]
        },
        ['{"a":1}', '{"a":1,"b":2}'],
        ['{"b":2}'],
    ),
    ({}, ['{"any":["thing",1,true,null,{"x":{}}]}', "3", '"s"'], ["{", "tru"]),
]


def convert(schemas: list[object], folder: Path) -> list[str]:
    """The grammars of the module for Node."""
    need(shutil.which("node"), "node isn't installed")
    module = (ROOT / "public" / "json-schema-to-grammar.mjs").as_uri()
    script = (
        f"import {{ schemaToGrammar }} from '{module}';"
        "const all = JSON.parse(process.argv[2]).map((one) => { try { return schemaToGrammar(one); }"
        " catch (error) { return 'error: ' + error.message; } }); console.log(JSON.stringify(all));"
    )
    (folder / "convert.mjs").write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["node", str(folder / "convert.mjs"), json.dumps(schemas)],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=True,
    )
    return json.loads(done.stdout)


def test_grammars_from_schemas_accept_what_fits_and_nothing_else(tmp_path: Path):
    for grammar, (schema, good, bad) in zip(convert([schema for schema, _, _ in SCHEMAS], tmp_path), SCHEMAS):
        matcher = Matcher(grammar)
        assert [text for text in good if not matcher.accepts(text)] == [], (schema, grammar)
        assert [text for text in bad if matcher.accepts(text)] == [], (schema, grammar)


def test_what_the_converter_cannot_say_is_an_error(tmp_path: Path):
    refused = convert(
        [
            False,
            {"$ref": "http://x/y"},
            {"$ref": "#/nowhere"},
            {"type": "thing"},
            {"pattern": "a^b"},
            {"pattern": "\\bx"},
        ],
        tmp_path,
    )
    assert all(text.startswith("error: ") for text in refused), refused


def test_the_server_takes_the_converters_grammars(server: ServerProcess, tmp_path: Path):
    for grammar, (schema, *_) in zip(convert([schema for schema, _, _ in SCHEMAS], tmp_path), SCHEMAS):
        answer = server.complete("x", 4, grammar=grammar, seed=random.Random(3).getrandbits(31))
        assert answer["tokens_predicted"] >= 1, schema
