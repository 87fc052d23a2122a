"""Grammars that begin inside a text, over HTTP: `grammar_lazy`, `grammar_triggers`, `preserved_tokens`. Also ending a
running request's reasoning with POST /v1/chat/completions/control.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from server.engine.seam.task import FULL, PATTERN, TOKEN, WORD, Trigger
from tests.api.conftest import PATIENCE, Answer, Api
from tests.fakes import EOS, FakeBackend, answer
from tests.support import wait_until

GRAMMAR = 'root ::= "<call>" [a-z]+'
LAZY = {"prompt": "how?", "n_predict": 40, "grammar": GRAMMAR, "grammar_lazy": True}
ROUTES = ("/completion", "/v1/completions")
URL, CONTROL = "/v1/chat/completions", "/v1/chat/completions/control"
TEMPLATE = """\
{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>
{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]<think>
{% endif %}"""


@pytest.fixture
def talker(make_api):
    """`talker(text)`: a server whose model says this, and whose grammars allow one call."""

    def make(text: str = "well <call>nothing", *argv: str) -> Api:
        backend = FakeBackend(answer(text), n_ctx=1024)
        backend.language = ("<call>good",)
        return make_api(backend, argv).start()

    return make


# ---- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "triggers", [["<call>"], [{"type": 1, "value": "<call>"}], [{"type": 2, "value": "<c[a-z]+>"}]]
)
def test_text_is_free_until_a_trigger_and_bound_from_there(talker, triggers):
    api = talker()
    result = api.post("/completion", {**LAZY, "grammar_triggers": triggers}).json()
    assert result["content"] == "well <call>good"
    settings = result["generation_settings"]
    shown = triggers if isinstance(triggers[0], dict) else [{"type": 1, "value": triggers[0]}]
    assert (settings["grammar_lazy"], settings["grammar_triggers"]) == (True, shown)


def test_a_stream_says_the_same(talker):
    events = talker().post("/completion", {**LAZY, "grammar_triggers": ["<call>"], "stream": True}).events()
    assert "".join(event["content"] for event in events) == "well <call>good"


@pytest.mark.parametrize("path", ROUTES)
def test_all_routes_of_prompts_know_the_fields(talker, path):
    api = talker()
    answered = api.post(path, {**LAZY, "grammar_triggers": ["<call>"], "preserved_tokens": [EOS]})
    assert answered.status == 200 and "grammar" not in str(answered.json().get("warnings"))
    assert api.backend.samplers[-1].grammar == GRAMMAR


def test_a_schema_can_be_lazy_too(talker):
    api = talker("no")
    body = {"prompt": "how?", "json_schema": {"type": "integer"}, "grammar_lazy": True, "grammar_triggers": ["{"]}
    assert api.post("/completion", body).json()["content"] == "no"


def test_the_names_of_preserved_tokens_are_text(talker):
    api = talker("a")
    assert api.post("/completion", {"prompt": "how?"}).json()["content"] == "a"
    for token in (EOS, "</s>"):
        body = {"prompt": "how?", "preserved_tokens": [token, "two words"]}
        assert api.post("/completion", body).json()["content"] == "a</s>"


def triggers_of(api: Api, rows: list) -> tuple[Trigger, ...]:
    """As the engine got them."""
    asked = []
    submit = api.client.submit
    api.client.submit = lambda *tasks, **fields: (asked.extend(tasks), submit(*tasks, **fields))[1]
    try:
        assert api.post("/completion", {**LAZY, "grammar_triggers": rows, "n_predict": 1}).status == 200
    finally:
        api.client.submit = submit
    return asked[0].sampling.grammar_triggers


def test_triggers_come_in_all_forms_of_llama_server(talker):
    api = talker()
    rows = [
        "word",
        {"type": 0, "token": EOS},
        {"type": 1, "value": "</s>"},
        {"type": 2, "value": "ab"},
        {"type": 3, "value": "(a|b)$"},
        {"type": 2, "value": "^a"},
    ]
    word, token, name, pattern, full, anchored = triggers_of(api, rows)
    assert (word, token, name) == (Trigger(WORD, "word"), Trigger(TOKEN, token=EOS), Trigger(TOKEN, token=EOS))
    a, b = ord("a"), ord("b")
    assert pattern == Trigger(PATTERN, "ab", states=((0, a, a, 1), (0, b, b, 2), (1,)))
    assert full == Trigger(FULL, "(a|b)$", states=((0, a, b, 1), (1,)))
    assert anchored == Trigger(FULL, "^a", states=((0, a, a, 1), (1,)))


BAD = [
    ({"grammar_triggers": []}, "grammar_lazy"),
    ({"grammar_lazy": 1, "grammar_triggers": ["a"]}, "grammar_lazy"),
    ({"grammar_triggers": "a"}, "grammar_triggers"),
    ({"grammar_triggers": [1]}, "grammar_triggers[0]"),
    ({"grammar_triggers": ["a", ""]}, "grammar_triggers[1]"),
    ({"grammar_triggers": ["a\0"]}, "grammar_triggers[0]"),
    ({"grammar_triggers": ["a" * 1001]}, "too long"),
    ({"grammar_triggers": ["é" * 501]}, "too long"),
    ({"grammar_triggers": ["a"] * 101}, "at most 100"),
    ({"grammar_triggers": [{"value": "a"}]}, "type"),
    ({"grammar_triggers": [{"type": 4, "value": "a"}]}, "type"),
    ({"grammar_triggers": [{"type": True, "value": "a"}]}, "type"),
    ({"grammar_triggers": [{"type": 1}]}, "value"),
    ({"grammar_triggers": [{"type": 0, "value": "a"}]}, "token"),
    ({"grammar_triggers": [{"type": 0, "token": 10**9}]}, "token"),
    ({"grammar_triggers": [{"type": 2, "value": "(?<=a)b"}]}, "position 0"),
    ({"grammar_triggers": [{"type": 2, "value": "a(b)"}]}, "position 1"),
    ({"grammar_triggers": [{"type": 2, "value": "a*"}]}, "empty"),
    ({"grammar_triggers": [{"type": 2, "value": "a(?=b)"}]}, "lookahead"),
    ({"grammar_triggers": [{"type": 2, "value": "[a"}]}, "never closed"),
    ({"grammar_triggers": [{"type": 2, "value": "(?:a|b){500}"}]}, "too large"),
    ({"grammar_triggers": [{"type": 2, "value": f"a{i}"} for i in range(9)]}, "at most 8"),
    ({"grammar_triggers": [{"type": 2, "value": f"[a-c]{{300}}{i}"} for i in range(8)]}, "transitions"),
    ({"grammar_triggers": ["a"], "preserved_tokens": 5}, "preserved_tokens"),
    ({"grammar_triggers": ["a"], "preserved_tokens": [-1]}, "preserved_tokens"),
    ({"grammar_triggers": ["a"], "preserved_tokens": [None]}, "preserved_tokens"),
    ({"grammar_triggers": ["a"], "preserved_tokens": [1] * 1001}, "at most 1000"),
    ({"grammar_triggers": ["a"], "preserved_tokens": ["a" * 1001]}, "preserved_tokens: the text is too long"),
    ({"grammar_triggers": ["a"], "preserved_tokens": ["é" * 501]}, "preserved_tokens: the text is too long"),
]


@pytest.mark.parametrize(("fields", "part"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_a_trigger_is_refused_before_any_work(talker, fields, part):
    api = talker()
    answered = api.post("/completion", {**LAZY, **fields})
    assert answered.status == 400 and part in answered.error["message"], answered
    assert not api.backend.samplers


def test_a_grammar_that_its_trigger_does_not_begin_is_an_error(talker):
    api = talker("well <tool>x")
    body = {**LAZY, "grammar_triggers": ["<tool>"]}
    assert api.post("/completion", body).status == 400
    *_, last = api.post("/completion", {**body, "stream": True}).events()
    assert last["error"]["code"] == 400


# ---- the end of the thinking -----------------------------------------------------------------------------------------


@pytest.fixture
def thinking(make_api):
    """A server whose template opens the thinking, and whose model never closes it."""

    def make(*argv: str) -> Api:
        backend = FakeBackend(n_ctx=1024, n_slots=2)
        backend.info = replace(backend.info, meta={"tokenizer.chat_template": TEMPLATE})
        return make_api(backend, argv).start()

    return make


def control(api: Api, id_: object, **headers: str) -> bool:
    answered = api.send("POST", CONTROL, {"id": id_, "action": "reasoning_end"}, headers)
    assert answered.status == 200 and answered.json()["id"] == id_, answered
    return answered.json()["success"]


def while_it_thinks(api: Api, act: Callable[[], object], **headers: str) -> tuple[object, Answer]:
    """What `act` gives while a chat of 200 tokens has said some of them, and the chat's answer."""
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "cache_prompt": False}
    api.backend.hold()

    def chat() -> Answer:
        return api.send("POST", URL, body, {"X-Request-Id": "mine", **headers})

    def meanwhile() -> object:
        api.wait_for_decode()
        api.backend.let(5)
        wait_until(lambda: api.backend.samplers and len(api.backend.samplers[-1].accepted) > 3, "text", PATIENCE)
        threading.Thread(
            target=lambda: (wait_until(lambda: api.n_messages, "it to be told", PATIENCE), api.backend.go()),
            daemon=True,
        ).start()
        return act()

    answered, done = api.at_the_same_time(chat, meanwhile)
    return done, answered


def test_the_thinking_of_a_running_request_is_ended_by_its_id(thinking):
    api = thinking()
    done, answered = while_it_thinks(api, lambda: control(api, "mine"))
    assert done is True
    choice, usage = answered.json()["choices"][0], answered.json()["usage"]
    assert 3 < usage["completion_tokens_details"]["reasoning_tokens"] < 30 and usage["completion_tokens"] == 200
    assert len(choice["message"]["content"]) > 150 and len(choice["message"]["reasoning_content"]) < 30
    assert control(api, "mine") is False, "it has ended"


def test_only_the_key_that_asked_may_end_it(thinking):
    api = thinking("--api-key", "one,two")
    keys = {name: {"Authorization": f"Bearer {name}"} for name in ("one", "two", "no")}
    assert api.send("POST", CONTROL, {"id": "x", "action": "reasoning_end"}, keys["no"]).status == 401

    def act() -> object:
        done = control(api, "mine", **keys["two"])
        api.backend.go()
        return done

    done, answered = while_it_thinks(api, act, **keys["one"])
    assert done is False
    assert answered.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == 200


@pytest.mark.parametrize(
    "body",
    [{}, [], {"id": "x"}, {"id": 5, "action": "reasoning_end"}, {"id": "x", "action": "stop"}, {"id": "", "action": 1}],
)
def test_what_says_nothing_to_do_is_refused(thinking, body):
    answered = thinking().send("POST", CONTROL, body, {})
    assert answered.status == 400 and answered.error["message"].startswith(("id", "action"))


def test_both_paths_lead_there(thinking):
    for path in (CONTROL, CONTROL.removeprefix("/v1")):
        answered = thinking().send("POST", path, {"id": "none", "action": "reasoning_end", "more": 1}, {})
        assert answered.json()["success"] is False and "more" in json.dumps(answered.json()["warnings"])
