"""GET /health in every state of the server, /props, /slots, /v1/models, the page, and unknown paths."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from unittest.mock import patch

import pytest

from server.api.request.schema import SAMPLING_FIELDS
from server.errors import StartError
from tests.api.conftest import PATIENCE, Api
from tests.fakes import FakeBackend, answer
from tests.support import wait_until


class SlowLoad:
    """A backend that takes until `finish` to load, and then may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.backend = FakeBackend(n_slots=2)
        self.has_begun = threading.Event()
        self.finish = threading.Event()
        self.error = error

    def __call__(self, config, on_progress) -> FakeBackend:
        on_progress(0.25)
        self.has_begun.set()
        assert self.finish.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.backend


@pytest.fixture
def busy(make_api):
    """A server with two slots, both working on endless texts, in the middle of a step (nobody reads them: an engine
    that went on would soon be so far ahead that they are cut off)."""
    api = make_api(FakeBackend(n_ctx=128, n_slots=2), shift_context=True).start()
    clients = [api.begin({"prompt": f"endless {i}", "stream": True, "n_keep": 3 + i}) for i in range(2)]
    api.wait_for(n_processing=2)
    api.backend.hold()
    api.wait_for_decode()
    yield api
    for client in clients:
        client.close()
    api.backend.go()
    api.wait_for(0, 0)


# ---- health ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("E01", "X1")
def test_health_goes_from_loading_to_ok(make_api):
    load = SlowLoad()
    api = make_api(load.backend, open_backend=load).start(is_ready=False)
    assert load.has_begun.wait(PATIENCE)
    answer = api.get("/health")
    assert answer.status == 503 and answer.json()["status"] == "loading model"
    assert answer.error["message"] == "Loading model" and answer.error["progress"] == 0.25
    load.finish.set()
    assert api.client.wait_until_loaded(PATIENCE)
    answer = api.get("/health")
    assert (answer.status, answer.json()) == (200, {"status": "ok", "slots_idle": 2, "slots_processing": 0})


def test_while_loading_requests_get_503_and_a_time_to_come_back(make_api):
    load = SlowLoad()
    api = make_api(load.backend, open_backend=load).start(is_ready=False)
    assert load.has_begun.wait(PATIENCE)
    for method, path, body in (
        ("POST", "/completion", {"prompt": "x"}),
        ("POST", "/tokenize", {"content": "x"}),
        ("POST", "/completion", {"prompt": "x", "stream": True}),
        ("GET", "/props", None),
        ("GET", "/slots", None),
        ("POST", "/detokenize", {"tokens": [1]}),
    ):
        answer = api.send(method, path, body)
        assert answer.status == 503 and "retry-after" in answer.headers, path
        assert "loading" in answer.error["message"].lower()
    assert api.get("/v1/models").status == 200
    assert api.get("/").status == 200
    load.finish.set()


@pytest.mark.parametrize("error", [StartError("tensor 'x' is missing"), ValueError("tensor 'x' is missing")])
def test_health_after_a_failed_load(make_api, error, caplog):
    caplog.set_level("CRITICAL", "llama_srv")
    load = SlowLoad(error)
    load.finish.set()
    api = make_api(load.backend, open_backend=load).start(is_ready=False)
    assert api.client.wait_until_loaded(PATIENCE)
    answer = api.get("/health")
    assert answer.status == 500 and answer.json()["status"] == "error"
    assert "tensor 'x' is missing" in answer.error["message"]
    assert api.post("/completion", {"prompt": "x"}).error["code"] == 500


def test_health_when_all_slots_are_busy(busy):
    expected = {"status": "no slot available", "slots_idle": 0, "slots_processing": 2}
    answer = busy.get("/health")
    assert (answer.status, answer.json()) == (200, expected)
    for query in ("fail_on_no_slot", "fail_on_no_slot=1", "include_slots&fail_on_no_slot"):
        answer = busy.get(f"/health?{query}")
        assert answer.status == 503
        assert {name: value for name, value in answer.json().items() if name != "slots"} == expected


def test_fail_on_no_slot_changes_nothing_while_a_slot_is_free(api):
    answer = api.get("/health?fail_on_no_slot")
    assert (answer.status, answer.json()["status"]) == (200, "ok")


def test_include_slots_adds_the_slots(api):
    assert "slots" not in api.get("/health").json()
    slots = api.get("/health?include_slots").json()["slots"]
    assert slots == api.get("/slots").json() and len(slots) == 2


def test_health_counts_slots_at_work(make_api):
    api = make_api(FakeBackend(n_ctx=256, n_slots=3), shift_context=True).start()
    with api.begin({"prompt": "endless", "stream": True}):
        api.wait_for(n_processing=1)
        assert api.get("/health").json() == {"status": "ok", "slots_idle": 2, "slots_processing": 1}


# ---- slots -------------------------------------------------------------------------------------------------------

# FEATURES 1.5: every key of an entry in the documents
SLOT_KEYS = """dynatemp_exponent dynatemp_range frequency_penalty grammar id ignore_eos logit_bias min_p mirostat
    mirostat_eta mirostat_tau model n_ctx n_keep n_predict n_probs next_token penalize_nl penalty_prompt_tokens
    presence_penalty prompt repeat_last_n repeat_penalty samplers seed state stop stream task_id temperature tfs_z
    top_k top_p typical_p use_penalty_prompt_tokens""".split()
NEXT_TOKEN_KEYS = """has_next_token n_remain num_tokens_predicted n_decoded stopped_eos stopped_limit stopped_word
    stopping_word""".split()


def next_token(slot: dict) -> dict:
    found = slot["next_token"]
    return found[0] if isinstance(found, list) else found


@pytest.mark.covers("E09", "S01")
def test_every_slot_is_shown_with_every_key_of_the_documents(make_api):
    api = make_api(FakeBackend(answer("fine words"), n_ctx=256, n_slots=2)).start()
    for slot in api.get("/slots").json():
        assert set(SLOT_KEYS) <= set(slot) and set(NEXT_TOKEN_KEYS) <= set(next_token(slot))
        assert (slot["state"], slot["task_id"], slot["is_processing"], slot["n_ctx"]) == (0, -1, False, 128)
    api.complete("how?", -1, id_slot=1, temperature=0.5, stop=["word"])
    unused, used = api.get("/slots").json()
    assert (unused["id"], used["id"]) == (0, 1)
    assert unused["task_id"] == -1 and used["task_id"] >= 0
    assert (used["state"], used["prompt"], used["temperature"], used["stop"]) == (0, "how?", 0.5, ["word"])
    assert used["generated"] == "fine " and unused["generated"] == ""
    token = next_token(used)
    assert (token["has_next_token"], token["stopped_word"], token["stopping_word"]) == (False, True, "word")
    assert token["n_decoded"] == token["num_tokens_predicted"] == 9


def test_a_working_slot_shows_its_task(busy):
    for i, slot in enumerate(sorted(busy.get("/slots").json(), key=lambda slot: slot["prompt"])):
        assert (slot["state"], slot["is_processing"], slot["prompt"]) == (1, True, f"endless {i}")
        assert slot["n_keep"] == 3 + i and next_token(slot)["has_next_token"] is True


def test_slots_fail_on_request_when_none_is_free(busy):
    assert busy.get("/slots?fail_on_no_slot=1").status == 503
    assert busy.get("/slots").status == 200


def test_slots_do_not_fail_while_one_is_free(api):
    assert api.get("/slots?fail_on_no_slot=1").status == 200


def test_what_a_slot_works_on_is_known_however_long_it_waited(make_api):
    api = make_api(FakeBackend(n_ctx=128), shift_context=True).start()
    first = api.begin({"prompt": "first", "stream": True})
    api.wait_for(n_processing=1)
    others = [api.begin({"prompt": "waiting", "stream": True, "temperature": 0.5}) for _ in range(140)]
    api.wait_for(n_processing=1, n_deferred=140)
    first.close()
    api.wait_for(n_processing=1, n_deferred=139)
    (slot,) = api.get("/slots").json()
    assert (slot["prompt"], slot["temperature"]) == ("waiting", 0.5)
    for client in others:
        client.close()
    api.wait_for(0, 0)


# ---- props and models --------------------------------------------------------------------------------------------


@pytest.mark.covers("E08")
def test_props_have_the_names_slots_and_defaults_of_the_documents(api):
    props = api.get("/props").json()
    assert (props["assistant_name"], props["user_name"], props["total_slots"]) == ("", "", 2)
    defaults = props["default_generation_settings"]
    for field in SAMPLING_FIELDS:
        assert defaults[field.name] == field.default == defaults["params"][field.name]
    assert (defaults["seed"], defaults["n_predict"], defaults["n_ctx"]) == (-1, -1, 4096)
    assert props["model_path"] == "fake.gguf"


@pytest.mark.covers("E13")
@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_the_model_is_listed(make_api, path):
    api = make_api(FakeBackend(), ("--alias", "my-model")).start()
    listing = api.get(path).json()
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert (model["id"], model["object"]) == ("my-model", "model")
    assert isinstance(model["created"], int) and model["meta"]["n_vocab"] == 258


# ---- the page, and what is not there -----------------------------------------------------------------------------


def test_the_page_and_its_files_are_served(api):
    page = api.get("/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert b"<html" in page.body.lower()
    assert api.get("/index.html").body == page.body


def test_another_folder_of_pages(make_api, tmp_path):
    (tmp_path / "index.html").write_text("my own page")
    api = make_api(FakeBackend(), ("--path", str(tmp_path))).start()
    assert api.get("/").body == b"my own page"
    assert api.get("/../conftest.py").status in (400, 404)


def test_what_is_not_there_is_404(api):
    for path in ("/nothing", "/v2/completion", "/completion/x"):
        answer = api.get(path)
        assert answer.status == 404 and answer.error["type"] == "not_found_error"
    assert api.post("/nothing", {}).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/completion", "POST"),
        ("POST", "/health", "GET"),
        ("DELETE", "/tokenize", "POST"),
        ("PUT", "/slots", "GET"),
    ],
)
def test_the_wrong_method_is_405_and_says_which_is_right(api, method, path, allowed):
    answer = api.send(method, path, {} if method != "GET" else None)
    assert answer.status == 405 and allowed in answer.headers["allow"]
    assert allowed in answer.error["message"]


def test_errors_leave_the_server_well(api):
    for _ in range(3):
        assert api.post("/completion", b"{").status == 400
        assert api.get("/nothing").status == 404
    assert api.get("/health").json()["status"] == "ok" and api.is_idle()


# ---- several users -----------------------------------------------------------------------------------------------


def seen_as_of(api: Api, owner: str):
    """As if all tasks had come from `owner`."""
    task = api.client.get_task
    return patch.object(api.client, "get_task", lambda id_task: replace(task(id_task), owner=owner))


def shown(api: Api, path: str = "/slots", **headers: str) -> dict:
    """The one slot, as a user with these headers sees it."""
    answer = api.send("GET", path, None, {name.replace("_", "-"): value for name, value in headers.items()})
    slots = answer.json()
    return (slots["slots"] if isinstance(slots, dict) else slots)[0]


def test_with_keys_everybody_sees_only_what_they_asked_themselves(make_api):
    api = make_api(FakeBackend(n_ctx=256), ("--api-key", "alice,bobby")).start()
    body = {
        "prompt": "my secret",
        "n_predict": 5,
        "stop": ["secret stop"],
        "grammar": 'root ::= "secret" .*',
        "temperature": 0.123,
    }
    assert api.send("POST", "/completion", body, {"X-Api-Key": "alice"}).status == 200
    mine, theirs = shown(api, X_Api_Key="alice"), shown(api, X_Api_Key="bobby")
    assert (mine["prompt"], mine["stop"], mine["temperature"]) == ("my secret", ["secret stop"], 0.123)
    assert mine["generated"] and theirs["generated"] == ""
    assert theirs["prompt"] == "" and "secret" not in json.dumps(theirs) and theirs["temperature"] != 0.123
    assert (theirs["task_id"], theirs["n_prompt_tokens"]) == (mine["task_id"], mine["n_prompt_tokens"])
    assert set(theirs) == set(mine)
    assert "secret" not in json.dumps(shown(api, "/health?include_slots")), "that route wants no key"


def test_on_a_network_everybody_sees_only_what_came_from_their_address(make_api):
    api = make_api(FakeBackend(n_ctx=256), ("--host", "0.0.0.0")).start()
    api.complete("my secret", 5)
    assert shown(api)["prompt"] == "my secret"
    with seen_as_of(api, "192.0.2.7"):
        assert "secret" not in json.dumps(shown(api))


def test_on_this_machine_without_keys_everything_is_shown(make_api):
    api = make_api(FakeBackend(n_ctx=256)).start()
    api.complete("my secret", 5)
    with seen_as_of(api, "somebody"):
        assert shown(api)["prompt"] == "my secret"


# ---- what the model can do ---------------------------------------------------------------------------------------


def test_props_say_what_the_chat_template_can_show(make_api):
    api = make_api(
        None, ("--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}")
    ).start()
    caps = api.get("/props").json()["chat_template_caps"]
    assert caps["supports_tools"] and not caps["supports_tool_calls"]
    assert caps["tool_call_format"] == "generic"
    assert all(isinstance(value, bool) for name, value in caps.items() if name != "tool_call_format")
    assert make_api(None, ("--chat-template", "{% for %}")).start().get("/props").json()["chat_template_caps"] == {}
    builtin = make_api(None, ("--no-jinja",)).start().get("/props").json()["chat_template_caps"]
    assert builtin["tool_call_format"] == "generic"


def test_the_list_of_models_says_what_each_can_do(make_api):
    thinks = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    api = make_api(None, ("--chat-template", thinks)).start()
    assert api.get("/v1/models").json()["data"][0]["capabilities"] == ["completion", "tools", "thinking"]


def test_the_timeline_says_who_works_and_who_waits(busy):
    with busy.begin({"prompt": "one more", "stream": True}):
        wait_until(
            lambda: sum(one["waiting"] for one in busy.get("/slots/timeline").json()["owners"]) == 1, "the queue"
        )
        body = busy.get("/slots/timeline").json()
    assert (body["seconds"], body["slots"]) == (60.0, 2)
    assert sorted(one["id_slot"] for one in body["spans"] if one["to"] == 0) == [0, 1]
    assert {one["state"] for one in body["spans"]} <= {"reading", "writing"}
    (owner,) = body["owners"]
    assert owner["is_you"] and owner["working"] == 2 and owner["seconds"] >= 0
    assert all(0 <= one["to"] <= one["from"] <= 60 for one in body["spans"])


def test_the_timeline_is_hidden_with_the_slots(make_api):
    assert make_api(None, ("--no-slots",)).start().get("/slots/timeline").status == 501
