"""A server with several models: real HTTP, real loops, a fake backend for each model."""

from __future__ import annotations

import json
import socket
import struct
import threading

import pytest

from tests.api.conftest import PATIENCE
from tests.api.many import ManyApi
from tests.fakes import FakeBackend
from tests.support import wait_until


@pytest.fixture
def make_many():
    """Servers that end with the test."""
    made: list[ManyApi] = []

    def make(*names: str, **options: object) -> ManyApi:
        makers = dict.fromkeys(names or ("first", "second", "third"), FakeBackend)
        made.append(ManyApi(**options, **makers).start())
        return made[-1]

    yield make
    for api in made:
        api.stop()


@pytest.mark.covers("D02")
def test_the_name_in_a_request_chooses_in_every_dialect(make_many):
    api = make_many()
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for path, body in (
        ("/completion", {"prompt": "a", "n_predict": 2}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}),
        ("/v1/chat/completions", chat),
        ("/v1/messages", chat),
        ("/api/generate", {"prompt": "a", "stream": False, "options": {"num_predict": 2}}),
        ("/api/chat", {"messages": chat["messages"], "stream": False, "options": {"num_predict": 2}}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 16}),
    ):
        answer = api.post(path, {**body, "model": "second"})
        assert answer.status == 200, (path, answer)
        assert answer.json()["model"] in ("second", "second:latest"), path
    assert api.states() == {"first": "unloaded", "second": "loaded", "third": "unloaded"}
    assert api.starter.started == ["second"]
    assert api.complete("a")["model"] == "first", "without a name it is the first"


@pytest.mark.covers("D02")
def test_an_unknown_name_is_told_what_there_is(make_many):
    api = make_many()
    answer = api.say("frist")
    assert answer.status == 404 and "'first'" in answer.error["message"]
    assert api.get("/v1/models/frist").status == 404
    assert api.get("/props?model=frist").status == 404
    assert api.starter.started == []


def test_lists_have_each_model_once_with_its_state(make_many):
    api = make_many("a", "b")
    assert api.say("b").status == 200
    listed = api.get("/v1/models").json()
    assert [(one["id"], one["status"]["value"]) for one in listed["data"]] == [("a", "unloaded"), ("b", "loaded")]
    assert [one["name"] for one in listed["models"]] == ["a", "b"]
    assert listed["models"][1]["capabilities"] == listed["data"][1]["capabilities"] == ["completion", "tools"]
    assert api.get("/v1/models/b").json() == listed["data"][1] and listed["data"][0]["meta"] is None
    assert [one["name"] for one in api.get("/api/tags").json()["models"]] == ["a:latest", "b:latest"]
    [running] = api.get("/api/ps").json()["models"]
    assert running["name"] == "b:latest" and running["expires_at"].startswith("9999")


@pytest.mark.covers("D03")
def test_one_load_serves_all_who_wait(make_many):
    api = make_many()
    api.starter.gates["first"] = threading.Event()
    asks = [threading.Thread(target=api.say, args=("first",)) for _ in range(4)]
    for ask in asks:
        ask.start()
    api.until(first="loading")
    wait_until(lambda: api.get("/models").json()["data"][0]["status"]["progress"] == 0.5, "progress", PATIENCE)
    assert api.say("second").status == 200, "others are served meanwhile"
    api.starter.gates["first"].set()
    for ask in asks:
        ask.join(PATIENCE)
    assert api.starter.started == ["first", "second"]


def test_a_client_that_leaves_while_its_model_loads_is_forgotten(make_many):
    api = make_many()
    api.starter.gates["first"] = threading.Event()
    sock = api.begin({"prompt": "a", "n_predict": 1, "model": "first"})
    api.until(first="loading")
    sock.close()
    wait_until(lambda: not api.models.entries[0].load.tickets, "it to be forgotten", PATIENCE)
    api.starter.gates["first"].set()
    api.until(first="loaded")
    assert api.models.entries[0].n_leases == 0


@pytest.mark.covers("D09")
def test_models_leave_for_others_and_never_with_work(make_many):
    api = make_many(room=1)
    assert api.say("first").status == 200
    assert api.say("second").status == 200
    assert api.states() == {"first": "unloaded", "second": "loaded", "third": "unloaded"}
    backend = api.starter.backends["second"]
    backend.hold()
    running = api.begin({"prompt": "a", "n_predict": 3, "model": "second"})
    assert backend.decoding.acquire(timeout=PATIENCE)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(api.say("third")))
    waiting.start()
    api.until(third="loading")
    assert api.states()["second"] == "loaded" and not answers
    backend.go()
    waiting.join(PATIENCE)
    assert answers[0].status == 200 and b'"model":"second"' in running.recv(1 << 20)
    running.close()


def test_a_stream_that_goes_on_without_its_client_has_its_model_until_its_end(make_many):
    api = make_many(room=1)
    assert api.say("first").status == 200
    backend = api.starter.backends["first"]
    backend.hold()
    data = json.dumps({"prompt": "a", "n_predict": 3, "model": "first", "stream": True}).encode()
    sock = api.connect()
    sock.sendall(
        b"POST /completion HTTP/1.1\r\nHost: localhost\r\nX-Conversation-Id: c\r\nContent-Length: %d\r\n\r\n"
        % len(data)
        + data
    )
    assert backend.decoding.acquire(timeout=PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    sock.close()
    wait_until(lambda: api.server.n_connections == 0, "its connection to end", PATIENCE)
    assert api.models.entries[0].n_leases == 1
    api.post("/models/unload", {"model": "first"})
    backend.go()
    api.until(first="unloaded")
    assert api.models.entries[0].n_leases == 0
    assert b'"stop":true' in api.send("GET", "/v1/stream?conv_id=c").body


def test_a_stream_has_its_model_until_its_last_byte(make_many):
    api = make_many(room=1)
    assert api.say("first").status == 200
    backend = api.starter.backends["first"]
    backend.hold()
    sock = api.begin({"prompt": "a", "n_predict": 3, "model": "first", "stream": True})
    assert backend.decoding.acquire(timeout=PATIENCE)
    wait_until(lambda: api.models.entries[0].n_leases == 1, "the end of the first request")
    api.post("/models/unload", {"model": "first"})
    assert api.states()["first"] == "loaded"
    backend.go()
    api.until(first="unloaded")
    data = b""
    while more := sock.recv(1 << 16):
        data += more
        if b'"stop":true' in data:
            break
    assert b'"stop":true' in data
    sock.close()


@pytest.mark.covers("D05")
def test_models_are_loaded_and_unloaded_by_order(make_many):
    api = make_many("a", argv=("--no-models-autoload",))
    assert api.say("a").status == 400
    answer = api.post("/models/load", {"model": "a"})
    assert answer.status == 200 and answer.json()["success"] is True
    api.until(a="loaded")
    assert api.say("a").status == 200
    assert api.post("/models/unload", {"model": "a"}).json()["success"] is True
    api.until(a="unloaded")
    assert api.post("/models/unload", {"model": "x"}).status == 404
    for body in ({}, {"model": 1}, {"model": ""}):
        assert api.post("/models/load", body).status == 400


ADMIN = {"X-Api-Key": "root"}


@pytest.mark.covers("D06")
def test_an_admin_gives_a_model_options_of_its_own(make_many):
    api = make_many("a", "b", argv=("--manage-models", "--admin-key", "root"))

    def load(options: object, model: str = "a"):
        return api.send("POST", "/models/load", {"model": model, "options": options}, ADMIN)

    options = {"ctx_size": 4096, "sleep-idle-seconds": 7}
    assert load(options).status == 200
    api.until(a="loaded")
    assert api.starter.asked["a"] == {"ctx_size": 4096, "sleep_idle_seconds": 7}
    assert api.models.entries[0].idle_s == 7
    assert load(options).status == 200, "it has them"
    other = load({"ctx_size": 512})
    assert other.status == 409 and "unload it first" in other.error["message"]
    api.post("/models/unload", {"model": "a"})
    api.until(a="unloaded")
    assert api.say("a").status == 200 and api.starter.asked["a"] == {"ctx_size": 4096, "sleep_idle_seconds": 7}
    api.post("/models/unload", {"model": "a"})
    api.until(a="unloaded")
    assert load({}).status == 200
    api.until(a="loaded")
    assert api.starter.asked["a"] == {} and api.models.entries[0].idle_s == -1
    assert api.say("b").status == 200 and api.starter.asked["b"] == {}, "they are one model's alone"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ctx_size": "x"}, "options.ctx_size: 'x' is not a whole number"),
        ({"model": "/etc/passwd"}, "options.model: this is not an option of a model"),
        ({"lora": "x.gguf"}, "options.lora: requests may not set options that name files, libraries or addresses"),
        ({"batch_size": 16, "ubatch_size": 32}, "options: --ubatch-size 32 is more than --batch-size 16"),
        (["ctx_size"], "options: "),
        ("ctx_size=1", "options: "),
    ],
)
def test_options_that_cant_be_are_refused_with_their_path(make_many, options, why):
    api = make_many("a", argv=("--manage-models", "--admin-key", "root"))
    answer = api.send("POST", "/models/load", {"model": "a", "options": options}, ADMIN)
    assert answer.status == 400 and answer.error["message"].startswith(why), answer.error
    assert api.states() == {"a": "unloaded"} and api.models.entries[0].asked == {}


@pytest.mark.covers("D06")
def test_options_of_its_own_need_an_admin_and_a_server_that_allows_them(make_many):
    api = make_many("a", argv=("--manage-models", "--admin-key", "root", "--api-key", "user"))
    body = {"model": "a", "options": {"ctx_size": 512}}
    for headers, status in (({}, 401), ({"X-Api-Key": "user"}, 403)):
        assert api.send("POST", "/models/load", body, headers).status == status
    assert api.states() == {"a": "unloaded"} and api.models.entries[0].asked == {}
    assert api.send("POST", "/models/load", {"model": "a"}, {"X-Api-Key": "user"}).status == 200, "without, as ever"
    bare = make_many("a", argv=("--admin-key", "root"))
    answer = bare.send("POST", "/models/load", body, ADMIN)
    assert answer.status == 501 and "--manage-models" in answer.error["message"] and bare.starter.started == []


@pytest.mark.covers("D05")
def test_what_is_wrong_with_a_model_is_told_and_shown(make_many):
    api = make_many()
    api.starter.faults["first"] = "first.gguf: the file ends in the middle"
    answer = api.say("first")
    assert answer.status == 500 and "ends in the middle" in answer.error["message"]
    status = api.get("/models").json()["data"][0]["status"]
    assert status["value"] == "failed" and status["failed"] is True and "ends in the middle" in status["reason"]
    assert api.say("second").status == 200
    del api.starter.faults["first"]
    api.post("/models/load", {"model": "first"})
    api.until(first="loaded")


@pytest.mark.covers("D10")
def test_what_has_no_room_is_503_with_the_numbers(make_many):
    api = make_many("a", room=0)
    answer = api.say("a")
    assert answer.status == 503 and "0 bytes are free" in answer.error["message"]


@pytest.mark.covers("D12")
def test_a_sleeping_model_answers_what_needs_no_engine_and_wakes_for_the_rest(make_many):
    api = make_many("a", argv=("--metrics",))
    entry = api.models.entries[0]
    n = api.say("a").json()["tokens_predicted"]
    entry.idle_s = 0.001
    wait_until(lambda: api.models.tick() or api.states() == {"a": "sleeping"}, "sleep", PATIENCE)
    assert api.get("/props?model=a").json()["is_sleeping"] is True
    assert len(api.get("/slots?model=a").json()) == 1
    assert api.post("/tokenize", {"content": "ab", "model": "a"}).json() == {"tokens": [97, 98]}
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
    assert api.post("/v1/chat/completions/input_tokens", body).json()["input_tokens"] > 2
    assert f'llamacpp:tokens_predicted_total{{model="a"}} {n}\n' in api.get("/metrics").body.decode()
    assert api.get("/health").status == api.get("/health/ready").status == 200
    assert api.states() == {"a": "sleeping"} and api.starter.started == ["a"]
    entry.idle_s = -1
    assert api.say("a").status == 200 and api.starter.started == ["a", "a"]


def test_keep_alive_says_how_long_a_model_stays(make_many):
    api = make_many("a", "b")
    for model, keep_alive in (("a", 0), ("b", "5m")):
        body = {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": 1}, "keep_alive": keep_alive}
        answer = api.post("/api/generate", body)
        assert answer.status == 200 and "x-warnings" not in answer.headers
    api.until(a="unloaded", b="loaded")
    [running] = api.get("/api/ps").json()["models"]
    assert running["name"] == "b:latest" and not running["expires_at"].startswith("9999")
    unload = api.post("/api/generate", {"model": "b", "keep_alive": 0})
    assert unload.json()["done_reason"] == "unload"
    api.until(b="unloaded")


@pytest.mark.covers("D14")
def test_slots_and_metrics_are_those_of_each_model(make_many):
    api = make_many("a", "b", argv=("--metrics",))
    assert api.get("/slots").json() == [] and api.get("/slots?model=a").status == 503
    api.say("a")
    api.say("b")
    assert [slot["model"] for slot in api.get("/slots").json()] == ["a", "b"]
    assert len(api.get("/slots?model=b").json()) == 1
    text = api.get("/metrics").body.decode()
    assert text.count("# TYPE llamacpp:prompt_tokens_total") == 1
    assert 'prompt_tokens_total{model="a"} 3\n' in text and 'prompt_tokens_total{model="b"} 3\n' in text
    assert 'model="a"' not in api.get("/metrics?model=b").body.decode()
    assert api.get("/props").json()["role"] == "router"
    assert api.get("/props?model=b").json()["model_alias"] == "b"


def test_slots_fail_on_request_when_no_loaded_model_has_a_free_one(make_many):
    api = make_many("a", "b")
    assert api.get("/slots?fail_on_no_slot").json() == []
    api.say("a")
    api.say("b")
    running = []
    for name in ("a", "b"):
        assert len(api.get("/slots?fail_on_no_slot").json()) == 2
        backend = api.starter.backends[name]
        backend.hold()
        running.append(api.begin({"prompt": "a", "n_predict": 3, "model": name}))
        assert backend.decoding.acquire(timeout=PATIENCE)
        backend.let()
        assert backend.decoding.acquire(timeout=PATIENCE), "the first step has been told of"
    answer = api.get("/slots?fail_on_no_slot")
    assert answer.status == 503 and answer.error["message"] == "no slot available"
    assert len(api.get("/slots").json()) == 2
    for sock in running:
        sock.close()


@pytest.mark.covers("D05")
def test_changes_are_told_as_events(make_many):
    api = make_many("a")
    sock = api.connect()
    sock.sendall(b"GET /models/sse HTTP/1.1\r\nHost: localhost\r\n\r\n")
    data = b""

    def seen() -> list[str]:
        lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line[6:])["data"]["status"] for line in lines]

    while seen() != ["unloaded"]:
        data += sock.recv(1 << 16)
    assert api.say("a").status == 200
    while seen()[-1] != "loaded":
        data += sock.recv(1 << 16)
    assert seen() == ["unloaded", "loading", "loaded"]
    sock.close()
    wait_until(lambda: not api.models.news._queues or api.post("/models/unload", {"model": "a"}), "its end", PATIENCE)


@pytest.mark.covers("D07")
def test_a_key_sees_only_its_models(make_many, tmp_path):
    (tmp_path / "keys").write_text("all\nonly-a models=a\n")
    api = make_many("a", "b", argv=("--api-key-file", str(tmp_path / "keys")))

    def ask(key: str, path: str, body: object = None):
        return api.send("GET" if body is None else "POST", path, body, {"Authorization": f"Bearer {key}"})

    def names(key: str) -> list[str]:
        return [one["id"] for one in ask(key, "/v1/models").json()["data"]]

    assert (names("all"), names("only-a"), names("none")) == (["a", "b"], ["a"], [])
    body = {"prompt": "x", "n_predict": 1}
    assert ask("only-a", "/completion", {**body, "model": "a"}).status == 200
    hidden = ask("only-a", "/completion", {**body, "model": "b"})
    assert hidden.status == 404 and "mean" not in hidden.error["message"]
    assert ask("only-a", "/models/unload", {"model": "b"}).status == 404
    assert ask("all", "/completion", {**body, "model": "b"}).status == 200
    assert [slot["model"] for slot in ask("only-a", "/slots").json()] == ["a"]
    assert [one["name"] for one in ask("only-a", "/api/tags").json()["models"]] == ["a:latest"]


def test_stopping_ends_who_waits_for_a_model(make_many):
    api = make_many("a")
    api.starter.gates["a"] = threading.Event()
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(api.say("a")))
    waiting.start()
    api.until(a="loading")
    api.stop()
    waiting.join(PATIENCE)
    assert answers[0].status == 503
