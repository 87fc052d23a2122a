"""Ollama's API over HTTP: lines of JSON, whole answers, options, and the routes that clients request first."""

from __future__ import annotations

import base64
import json
import socket
from dataclasses import replace

import pytest

from tests.api.conftest import Answer, Api
from tests.fakes import BOS, EOS, FakeBackend, FakeVocab
from tests.fakes import answer as answers
from tests.media_files import png

HI = [{"role": "user", "content": "hi"}]
HELLO = "Hello, Wörld!\n"
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
COUNTS = ("prompt_eval_count", "eval_count")
ROUTES = [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "hi"})]
LIMIT = {"options": {"num_predict": 8}}  # what isn't refused ends, at least
both = pytest.mark.parametrize(("path", "asked"), ROUTES, ids=["chat", "generate"])


def lines(answer: Answer) -> list[dict]:
    """The objects of a stream, of which the last one and no other is done."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.body.endswith(b"\n") and b"\n\n" not in answer.body
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert [one["done"] for one in found] == [False] * (len(found) - 1) + [True]
    assert len({(one["model"], one["created_at"]) for one in found}) == 1
    return found


def text_of(line: dict) -> str:
    return line["message"]["content"] if "message" in line else line["response"]


def ask(api: Api, path: str, **body: object) -> dict:
    answer = api.post(path, {"model": "llama", "stream": False, **body})
    assert answer.status == 200, answer
    return answer.json()


def refuse(api: Api, path: str, **body: object) -> str:
    """The error of a request that must be refused before the engine hears of it."""
    n_started = len(api.backend.samplers)
    answer = api.post(path, {"model": "llama", **LIMIT, **body})
    assert answer.status == 400, answer
    assert len(api.backend.samplers) == n_started, "the engine was bothered with it"
    [(name, text)] = answer.json().items()
    assert name == "error" and "\n" not in text
    return text


def prompt_of(api: Api, path: str, **body: object) -> str:
    """The prompt that the model gets."""
    ask(api, path, options={"num_predict": 1}, **body)
    [slot] = api.get("/slots").json()
    return slot["prompt"][: slot["n_prompt_tokens"]]


@pytest.fixture
def talker(make_api):
    """`talker(text)`: a server with one slot, whose model says this."""

    def make(text: str = HELLO, *argv: str, end: str = "assistant\n", **options: object) -> Api:
        return make_api(FakeBackend(answers(text, end), n_ctx=8192), argv, **options).start()

    return make


# ---- streams and whole answers -----------------------------------------------------------------------------------


@pytest.mark.covers("L01")
@both
def test_a_stream_is_what_comes_unless_it_is_refused_and_says_the_same(talker, path, asked):
    api = talker()
    found = lines(api.post(path, {"model": "llama", **asked}))
    assert "".join(map(text_of, found)) == HELLO and len(found) > 3
    whole = ask(api, path, **asked)
    assert text_of(whole) == HELLO and whole["done"] is True
    assert set(whole) == set(found[-1]) and text_of(found[-1]) == ""
    if path == "/api/chat":
        assert {one["message"]["role"] for one in [*found, whole]} == {"assistant"}


@pytest.mark.covers("L02")
@both
def test_the_last_line_says_why_it_ended_how_long_it_took_and_how_many_tokens(talker, path, asked):
    api = talker()
    for last in (lines(api.post(path, asked))[-1], ask(api, path, **asked)):
        assert last["done_reason"] == "stop"
        assert all(type(last[name]) is int and last[name] >= 0 for name in (*DURATIONS, *COUNTS))
        assert last["total_duration"] == sum(last[name] for name in DURATIONS[1:])
        assert last["eval_count"] == len(HELLO.encode()) + 1 and last["prompt_eval_count"] > 2
    cut = ask(api, path, **asked, options={"num_predict": 3})
    assert (cut["done_reason"], cut["eval_count"], text_of(cut)) == ("length", 3, "Hel")
    stopped = ask(api, path, **asked, options={"stop": ["Wör"]})
    assert (stopped["done_reason"], text_of(stopped)) == ("stop", "Hello, ")


@both
def test_the_model_is_named_as_the_request_names_it(talker, path, asked):
    api = talker()
    assert ask(api, path, **asked, model="mine:7b")["model"] == "mine:7b"
    assert ask(api, path, **asked, model="")["model"] == ask(api, path, **asked, model="x" * 300)["model"]


@pytest.mark.covers("L03")
@both
def test_nothing_to_say_is_a_question_whether_the_model_is_there(talker, path, asked):
    api = talker()
    for empty in ({}, dict.fromkeys(asked), dict.fromkeys(asked, [] if path == "/api/chat" else "")):
        answer = api.post(path, {"model": "llama", "keep_alive": "5m", **empty})
        assert answer.json()["done_reason"] == "load" and answer.json()["done"] is True
        assert text_of(answer.json()) == "" and "x-warnings" not in answer.headers
    answer = api.post(path, {"model": "llama", "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload" and "keeps its model loaded" in answer.headers["x-warnings"]
    assert not api.backend.samplers


@both
def test_a_stream_that_breaks_off_ends_with_a_line_that_says_why(make_api, path, asked):
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[4] = -1
    answer = api.post(path, asked)
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert answer.status == 200 and set(found[-1]) == {"error"} and "-1" in found[-1]["error"]
    assert all(not one["done"] for one in found[:-1])


@both
def test_an_error_before_the_stream_has_its_status(make_api, path, asked):
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[1] = -1
    answer = api.post(path, asked)
    assert answer.status == 500 and isinstance(answer.json()["error"], str)


@both
def test_a_silent_stream_carries_lines_without_text(make_api, path, asked):
    api = make_api(FakeBackend(answers("x", "assistant\n")), ("--sse-ping-interval", "1")).start()
    api.backend.hold()
    data = json.dumps(asked).encode()
    with socket.create_connection(("127.0.0.1", api.server.port), 30) as sock:
        sock.sendall(
            b"POST %b HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(data), data)
        )
        seen = b""
        while part := sock.recv(65536):
            seen += part
            if b"done" in seen:
                api.backend.go()
    found = [json.loads(line) for line in seen.partition(b"\r\n\r\n")[2].splitlines()]
    assert text_of(found[0]) == "" and not found[0]["done"] and found[-1]["done"]
    assert "".join(map(text_of, found)) == "x"


@both
def test_tokens_have_their_probabilities_where_they_are_asked_for(talker, path, asked):
    api = talker("ab")
    fields = {**asked, "logprobs": True, "top_logprobs": 2}
    whole = ask(api, path, **fields)
    assert [one["token"] for one in whole["logprobs"]] == ["a", "b"]
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 2 for one in whole["logprobs"])
    streamed = [one for line in lines(api.post(path, fields)) for one in line.get("logprobs", ())]
    assert streamed == whole["logprobs"]
    assert "top_logprobs" not in ask(api, path, **asked, logprobs=True)["logprobs"][0]
    assert "logprobs" not in ask(api, path, **asked)


# ---- options -----------------------------------------------------------------------------------------------------

OPTIONS = {
    "num_predict": 3,
    "num_keep": 2,
    "seed": 7,
    "temperature": 0.5,
    "top_k": 11,
    "top_p": 0.7,
    "min_p": 0.2,
    "typical_p": 0.9,
    "tfs_z": 0.8,
    "repeat_penalty": 1.2,
    "repeat_last_n": 33,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.3,
    "penalize_newline": True,
    "mirostat": 2,
    "mirostat_tau": 4.0,
    "mirostat_eta": 0.2,
    "stop": ["###"],
}
OUR_NAMES = {"num_predict": "n_predict", "num_keep": "n_keep", "penalize_newline": "penalize_nl"}


@pytest.mark.covers("L04")
@both
def test_options_take_effect(talker, path, asked):
    api = talker()
    answer = api.post(path, {**asked, "options": OPTIONS})
    assert "x-warnings" not in answer.headers
    [slot] = api.get("/slots").json()
    assert {name: slot[OUR_NAMES.get(name, name)] for name in OPTIONS} == OPTIONS


@both
def test_options_without_effect_are_named_in_a_header_of_moderate_size(talker, path, asked):
    api = talker()
    options = {"num_ctx": 1 << 20, "num_gpu": 1, "evil\r\nX-Other: ü": 1, "stream": True, "grammar": "x"}
    said = api.post(path, {**asked, "strange": 1, "options": options}).headers
    for word in ("8192 tokens", "num_gpu", "evil\\r\\nX-Other: \\xfc", "'stream'", "'grammar'", "'strange'"):
        assert word in said["x-warnings"]
    assert "x-other" not in said
    many = {f"{'x' * 1000}{i}": i for i in range(1000)}
    assert len(api.post(path, {**asked, **many, "options": many}).headers["x-warnings"]) <= 2000
    assert "x-warnings" not in api.post(path, {**asked, "options": {"num_ctx": 4096}}).headers


@both
@pytest.mark.parametrize("value", [0, -1, -2])
def test_a_limit_below_one_is_none(talker, path, asked, value):
    assert text_of(ask(talker(), path, **asked, options={"num_predict": value})) == HELLO


@pytest.mark.covers("L05")
@both
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"options": []}, "options: [] is not an object"),
        ({"options": {"num_predict": "x"}}, "options.num_predict: 'x' is not a whole number"),
        ({"options": {"temperature": 1e9}}, "options.temperature: 1000000000.0 is out of range"),
        ({"options": {"stop": [1]}}, "stop: [1] is not a list of strings"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx: 0 is out of range"),
        ({"format": "xml"}, "format: 'xml' is neither 'json' nor a JSON schema"),
        ({"format": ["json"]}, "format: ['json'] is neither"),
        ({"format": {"type": "strange"}}, "format: "),
        ({"think": "much"}, "think: 'much' is unknown"),
        ({"think": 1}, "think: 1 is unknown"),
        ({"think": {}}, "think: {} is unknown"),
        ({"think": ["low"]}, "think: ['low'] is unknown"),
        ({"keep_alive": "soon"}, "keep_alive: 'soon' is not a time"),
        ({"keep_alive": True}, "keep_alive: True is neither"),
        ({"keep_alive": "1" * 100_000}, "keep_alive: '1111"),
        ({"stream": "yes"}, "stream: 'yes' is not true or false"),
        ({"model": 5}, "model: 5 is not a string"),
        ({"logprobs": True, "top_logprobs": 10**9}, "top_logprobs: 1000000000 is out of range"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(api, path, asked, fields, said):
    assert refuse(api, path, **{**asked, **fields}).startswith(said)


@both
@pytest.mark.parametrize("keep_alive", [5, -1, 0.5, "5m", "1h30m", "-1s", "0", "300", "1.5h"])
def test_times_to_keep_a_model_are_taken_in_all_forms(talker, path, asked, keep_alive):
    assert text_of(ask(talker("x"), path, **asked, keep_alive=keep_alive)) == "x"


@pytest.mark.covers("L06")
@both
def test_answers_are_bound_to_json_or_a_schema(talker, path, asked):
    api = talker()
    grammars = []
    for form in ("json", {"type": "object", "properties": {"n": {"type": "integer"}}}, "", None):
        ask(api, path, **asked, format=form)
        grammars.append(api.backend.samplers[-1].grammar)
    assert grammars[0] and grammars[1] and grammars[0] != grammars[1] and grammars[2:] == ["", ""]


# ---- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("L07")
def test_a_conversation_comes_into_the_prompt(talker):
    prompt = prompt_of(
        talker(),
        "/api/chat",
        messages=[
            {"role": "system", "content": "brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two", "images": None},
            {"role": "user", "content": "three"},
        ],
    )
    assert prompt.index("brief") < prompt.index("one") < prompt.index("two") < prompt.index("three")
    assert prompt.endswith("assistant\n")


def test_an_answer_goes_on_with_the_assistants_message_at_the_end(talker):
    api = talker(" and more", end="once")
    assert text_of(ask(api, "/api/chat", messages=[*HI, {"role": "assistant", "content": "once"}])) == " and more"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ({}, "messages: a list"),
        (5, "messages: a list"),
        ([1], "messages[0] is not an object"),
        ([*HI, {}], "messages[1].role: None is not a role"),
        ([{"role": "<|im_end|>"}], "messages[0].role"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "messages[0].content is not a string"),
        ([{"role": "user", "content": "x", "images": "x"}], "messages[0].images is not a list"),
        ([{"role": "user", "content": "x", "images": ["x"]}], "messages[0].images[0]: this model can't"),
        ([{"role": "assistant", "thinking": 5}], "messages[0].thinking is not a string"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls is not a list"),
        ([{"role": "assistant", "tool_calls": [5]}], "messages[0].tool_calls[0].function is not an object"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            "messages[0].tool_calls[0].function.arguments is not an object",
        ),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0].function.name"),
        ([{"role": "tool", "content": "x", "tool_name": []}], "messages[0].tool_name is not a string"),
        (HI * 20_001, "messages: 20001 are too many"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 129}],
            "messages[0].tool_calls: too many, at most 128",
        ),
    ],
)
def test_a_wrong_message_is_told_with_its_place(api, messages, said):
    assert refuse(api, "/api/chat", messages=messages).startswith(said)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({}, "tools: give a list"),
        ([5], "tools[0] is not an object"),
        ([{"type": "function"}], "tools[0].function is not an object"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        ([{"function": {"name": "f"}}] * 2, "tools[1]: the name 'f' is taken"),
        ([{"function": {"name": f"f{i}"}} for i in range(2000)], "tools: 2000 are too many"),
    ],
)
def test_a_wrong_tool_is_told_with_its_place(api, tools, said):
    assert refuse(api, "/api/chat", messages=HI, tools=tools).startswith(said)


def picture(number: int) -> str:
    return base64.b64encode(png(8 + number)).decode()


@pytest.mark.covers("L08")
@both
def test_images_come_into_the_prompt(eyes, path, asked):
    images = {"images": [picture(1), picture(2)]}
    body = {"messages": [{**HI[0], **images}]} if path == "/api/chat" else {**asked, **images}
    n_plain = ask(eyes, path, **asked, options={"num_predict": 1})["prompt_eval_count"]
    answer = ask(eyes, path, **body, options={"num_predict": 1})
    assert answer["prompt_eval_count"] >= n_plain + 8 and "context" not in answer
    wrong = {"images": [picture(1), "%%%"]}
    body = {"messages": [{**HI[0], **wrong}]} if path == "/api/chat" else {**asked, **wrong}
    assert "images[1]" in refuse(eyes, path, **body)


# ---- prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("L09")
def test_a_prompt_is_the_users_message_and_a_raw_one_all_of_it(talker):
    api = talker()
    prompt = prompt_of(api, "/api/generate", prompt="one", system="two")
    assert prompt.index("two") < prompt.index("one") and prompt.endswith("assistant\n")
    assert prompt_of(api, "/api/generate", prompt="one", raw=True) == "one"
    for field in ({"system": "x"}, {"template": "x"}, {"context": [1]}):
        assert refuse(api, "/api/generate", prompt="x", raw=True, **field).startswith("raw: ")


def test_special_tokens_in_a_raw_prompt_count_and_in_a_users_message_dont(talker):
    api = talker()
    raw = ask(api, "/api/generate", prompt="a</s>b", raw=True, options={"num_predict": 1})["context"]
    assert raw[:4] == [BOS, ord("a"), EOS, ord("b")]
    made = ask(api, "/api/generate", prompt="a</s>b", options={"num_predict": 1})["context"]
    assert EOS not in made
    template = ask(api, "/api/generate", prompt="a</s>b", template="{{ .Prompt }}</s>", options={"num_predict": 1})[
        "context"
    ]
    assert template.count(EOS) == 1


def test_a_raw_prompt_that_begins_with_bos_gets_no_other(make_api):
    backend = FakeBackend()
    backend.info = replace(backend.info, bos_token="<s>")
    api = make_api(backend).start()
    for fields in ({"raw": True}, {"template": "<s>{{ .Prompt }}"}):
        prompt = "<s>a" if "raw" in fields else "a"
        context = ask(api, "/api/generate", prompt=prompt, options={"num_predict": 1}, **fields)["context"]
        assert context[:2] == [BOS, ord("a")]


@pytest.mark.covers("L10")
def test_the_context_of_an_answer_goes_on(talker):
    api = talker("yes", end="assistant\n")
    first = ask(api, "/api/generate", prompt="one")
    tokens = first["context"]
    said = bytes(token for token in tokens if token < 256).decode()
    assert "one" in said and said.endswith("yes")
    second = ask(api, "/api/generate", prompt="two", context=tokens)["context"]
    assert second[: len(tokens)] == tokens and BOS not in second[len(tokens) :]
    assert bytes(token for token in second[len(tokens) :] if token < 256).decode().endswith("yes")
    assert lines(api.post("/api/generate", {"prompt": "one"}))[-1]["context"] == tokens
    for wrong in ([10**9], ["x"], [-1], {"a": 1}, "x", [1.5], [True]):
        assert refuse(api, "/api/generate", prompt="x", context=wrong).startswith("context: ")


def test_a_template_of_the_request_takes_the_place_of_the_models(talker):
    api = talker()
    template = "{{ if .System }}S:{{ .System }};{{ else }}none;{{ end }}U:{{.Prompt}}\nA: {{ .Response }}ignored"
    assert prompt_of(api, "/api/generate", prompt="one", system="two", template=template) == "S:two;U:one\nA: "
    assert prompt_of(api, "/api/generate", prompt="one", template=template) == "none;U:one\nA: "
    trimmed = "a \n{{- .Prompt -}} \n b"
    assert prompt_of(api, "/api/generate", prompt=" one ", template=trimmed) == "a one b"
    assert prompt_of(api, "/api/generate", prompt="{{ .System }}", template="<{{ .Prompt }}>") == "<{{ .System }}>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ range .Messages }}{{ end }}",
        "{{ .Other }}",
        "{{ end }}",
        "{{ else }}",
        "{{ if .System }}x",
        "{{ if .Other }}x{{ end }}",
        "{{ }}",
        "{{ .Prompt | upper }}",
        "{{ if .System }}" * 100 + "{{ end }}" * 100,
        "x" * 70_000,
        "{{" * 30_000 + "}}",
    ],
)
def test_a_template_that_cannot_be_read_is_refused(api, template):
    if template.startswith("{{{{"):  # no action at all: text
        assert ask(api, "/api/generate", prompt="x", template=template[:50], options={"num_predict": 1})
    else:
        assert refuse(api, "/api/generate", prompt="x", template=template).startswith("template: ")


def test_what_belongs_before_a_suffix_is_found_by_models_that_can(make_api):
    fim = {"pre": 1, "suf": 2, "mid": 3}
    api = make_api(FakeBackend(), vocab=FakeVocab(fim)).start()
    context = ask(api, "/api/generate", prompt="ab", suffix="yz", options={"num_predict": 1})["context"]
    assert context[:-1] == [BOS, 1, *b"ab", 2, *b"yz", 3]
    assert "insert" in api.post("/api/show", {"model": "x"}).json()["capabilities"]
    plain = make_api(FakeBackend()).start().post("/api/generate", {"prompt": "ab", "suffix": "yz"})
    assert plain.status == 501 and "can't fill in the middle" in plain.json()["error"]


# ---- the other routes --------------------------------------------------------------------------------------------


@pytest.mark.covers("L11")
def test_models_are_listed_with_a_tag(make_api):
    api = make_api(None, ("-a", "mine,other:7b")).start()
    listed = api.get("/api/tags").json()["models"]
    assert [one["name"] for one in listed] == [one["model"] for one in listed] == ["mine:latest", "other:7b"]
    loaded = api.get("/api/ps").json()["models"]
    for one in (*listed, *loaded):
        assert len(one["digest"]) == 64 and one["details"]["format"] == "gguf" and isinstance(one["size"], int)
    assert [one["context_length"] for one in loaded] == [api.backend.info.n_ctx_slot] * 2
    assert api.get("/api/version").json()["version"].count(".") == 2


@pytest.mark.parametrize("path", ["/dir/My Model.gguf", "C:\\dir\\My Model.gguf"])
def test_a_model_without_an_alias_is_called_as_its_file(make_api, path):
    api = make_api()
    api.context.models.default.own_name = path
    assert [one["name"] for one in api.start().get("/api/tags").json()["models"]] == ["My Model:latest"]


def test_lists_are_there_while_the_model_loads(make_api):
    api = make_api(open_backend=lambda config, on_progress: on_progress.__self__.wait())
    assert api.context.models.default.info is None
    from server.api.embeddings import EmbeddingHandlers
    from server.api.ollama import OllamaHandlers
    from server.web.message import Request

    handlers = OllamaHandlers(api.context, EmbeddingHandlers(api.context))
    listed = json.loads(handlers.list_tags(Request("GET", "/")).body)["models"]
    assert [one["size"] for one in listed] == [0] and json.loads(handlers.list_running(Request("GET", "/")).body) == {
        "models": []
    }


@pytest.mark.covers("L12")
def test_a_model_is_shown(make_api):
    backend = FakeBackend()
    meta = {
        "general.architecture": "llama",
        "general.name": "7",
        "general.file_type": "3",
        "llama.context_length": "8192",
        "llama.rope.freq_base": "10000.000000",
        "tokenizer.ggml.add_bos_token": "true",
    }
    backend.info = replace(backend.info, desc="llama 256M Q4_K - Medium", n_params=134_515_008, meta=meta)
    api = make_api(backend, ("--temp", "0.3")).start()
    shown = api.post("/api/show", {"name": "x"}).json()
    assert shown["details"]["parameter_size"] == "134.52M" and shown["details"]["quantization_level"] == "Q4_K_M"
    info = shown["model_info"]
    assert info["general.name"] == "7" and info["general.file_type"] == 3 and info["llama.context_length"] == 8192
    assert info["llama.rope.freq_base"] == 10000.0 and "tokenizer.ggml.add_bos_token" not in info
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["parameters"].split() == ["num_ctx", str(backend.info.n_ctx_slot), "temperature", "0.3"]
    verbose = api.post("/api/show", {"model": "x", "verbose": True}).json()["model_info"]
    assert verbose["tokenizer.ggml.add_bos_token"] is True
    assert refuse(api, "/api/show", model=["x"]).startswith("model: ")


@pytest.mark.covers("L13")
def test_texts_become_vectors(api):
    both = ask(api, "/api/embed", input=["one", "two"])
    assert len(both["embeddings"]) == 2 and both["model"] == "llama" and both["prompt_eval_count"] > 2
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-5 for vector in both["embeddings"])
    assert ask(api, "/api/embed", input="two")["embeddings"] == both["embeddings"][1:]
    assert [len(one) for one in ask(api, "/api/embed", input="two", dimensions=2)["embeddings"]] == [2]
    [old] = ask(api, "/api/embeddings", prompt="two").values()
    length = sum(x * x for x in old) ** 0.5
    assert [x / length for x in old] == pytest.approx(both["embeddings"][1], abs=1e-5)
    assert ask(api, "/api/embed", input=[])["embeddings"] == ask(api, "/api/embed", input="")["embeddings"] == []
    assert ask(api, "/api/embeddings") == {"embedding": []}
    warned = api.post("/api/embed", {"input": "x", "keep_alive": 0, "truncate": True, "other": 1}).headers["x-warnings"]
    assert all(word in warned for word in ("keeps its model loaded", "truncate", "'other'"))


@pytest.mark.parametrize("value", [None, 5, {}, [1, 2], [["x"]], ["x"] * 3000])
def test_what_is_no_text_becomes_no_vector(api, value):
    assert refuse(api, "/api/embed", input=value).startswith("input: ")


@pytest.mark.covers("L14")
def test_all_errors_are_a_text(make_api):
    api = make_api(None, ("--api-key", "secret")).start()
    for method, path in (("POST", "/api/chat"), ("GET", "/api/ps"), ("POST", "/api/show"), ("GET", "/api/chat")):
        answer = api.send(method, path, {} if method == "POST" else None)
        assert answer.status in (401, 405) and isinstance(answer.json()["error"], str)
    assert api.get("/api/tags").status == api.get("/api/version").status == 200
    key = {"Authorization": "Bearer secret"}
    broken = api.send("POST", "/api/generate", b"{", key)
    assert broken.status == 400 and isinstance(broken.json()["error"], str)
    for method, path in (
        ("POST", "pull"),
        ("POST", "push"),
        ("POST", "create"),
        ("POST", "copy"),
        ("DELETE", "delete"),
    ):
        answer = api.send(method, "/api/" + path, {"model": "x"}, key)
        assert answer.status == 501 and "model" in answer.json()["error"]


@both
def test_a_model_that_only_embeds_writes_nothing(make_api, path, asked):
    backend = FakeBackend()
    backend.info = replace(backend.info, is_generative=False)
    api = make_api(backend).start()
    answer = api.post(path, asked)
    assert answer.status == 501 and "embeddings" in answer.json()["error"]
    assert api.post("/api/show", {"model": "x"}).json()["capabilities"] == ["embedding"]
