"""The shared system prompt: set by a completion or POST /props, computed once, placed before every prompt."""

from __future__ import annotations

import pytest

from tests.fakes import BOS, FakeBackend, letters, said_by

SYSTEM = {"prompt": "You are a helpful assistant. ", "anti_prompt": "User:", "assistant_name": "Assistant:"}
TOKENS = [BOS, *SYSTEM["prompt"].encode()]


def said(prompt: str, n: int = 6) -> str:
    return bytes(said_by(letters, [*TOKENS, *prompt.encode()], n)).decode()


@pytest.mark.covers("Q32", "B01")
def test_a_system_prompt_is_set_once_and_stands_in_front_of_every_prompt(make_api):
    api = make_api(FakeBackend(n_ctx=1024, n_slots=2)).start()
    first = api.complete("Hi", 6, system_prompt=SYSTEM)
    assert first["content"] == said("Hi")
    for id_slot in (0, 1):
        result = api.complete("And you?", 6, id_slot=id_slot)
        assert result["content"] == said("And you?"), "no BOS in the middle"
        assert result["timings"]["prompt_n"] <= len("And you?")
    props = api.get("/props").json()
    assert (props["assistant_name"], props["user_name"]) == ("Assistant:", "User:")
    n_steps = api.client.snapshot.n_steps
    api.complete("x", 1, system_prompt=SYSTEM)
    assert api.client.snapshot.n_steps == n_steps + 1, "the same again costs nothing"


def test_another_one_replaces_it_and_an_empty_one_removes_it(make_api):
    api = make_api(FakeBackend(n_ctx=1024, n_slots=2)).start()
    api.complete("Hi", 2, system_prompt={"prompt": "Something else entirely. "})
    assert api.complete("Hi", 6, system_prompt=SYSTEM)["content"] == said("Hi")
    plain = api.complete("Hi", 6, system_prompt={"prompt": ""})
    assert plain["content"] == bytes(said_by(letters, [BOS, *b"Hi"], 6)).decode()


def test_post_props_sets_it_where_that_is_allowed(make_api):
    api = make_api(FakeBackend(n_ctx=1024), ("--props",)).start()
    assert api.post("/props", {"system_prompt": SYSTEM}).json() == {"success": True}
    assert api.complete("Hi", 6)["content"] == said("Hi")
    closed = make_api(FakeBackend()).start()
    answer = closed.post("/props", {"system_prompt": SYSTEM})
    assert answer.status == 501 and "--props" in answer.error["message"]


@pytest.mark.parametrize(
    "value",
    [5, ["x"], True, {"prompt": 5}, {"prompt": "x", "anti_prompt": 5}, {"prompt": "x", "assistant_name": []}],
    ids=repr,
)
def test_what_is_no_system_prompt_is_refused(api, value):
    assert "system_prompt" in api.refuse(system_prompt=value)["message"]


def test_one_that_does_not_fit_is_refused_and_changes_nothing(make_api):
    api = make_api(FakeBackend(n_ctx=64)).start()
    answer = api.post("/completion", {"prompt": "Hi", "n_predict": 2, "system_prompt": {"prompt": "x" * 100}})
    assert answer.status == 400 and "64" in answer.error["message"]
    assert api.complete("Hi", 6)["content"] == bytes(said_by(letters, [BOS, *b"Hi"], 6)).decode()
    assert api.get("/props").json()["system_prompt"] == ""
