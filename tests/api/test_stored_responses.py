"""Stored responses and conversations over HTTP: continuing, fetching, creating them in the background, and ownership."""

from __future__ import annotations

import json

import pytest

from tests.api.openai_wire import chatml, said
from tests.api.responses_wire import events, response_of
from tests.api.test_responses import HI, message, said_in, text
from tests.fakes import FakeBackend
from tests.support import wait_until

URL, TALKS = "/v1/responses", "/v1/conversations"


def ask(api, value: object = "hi", **fields: object) -> dict:
    answer = api.post(URL, {"input": value, "max_output_tokens": 6, **fields})
    assert answer.status == 200, answer
    return answer.json()


def get(api, response: dict, query: str = ""):
    return api.get(f"{URL}/{response['id']}{query}")


def listed(api, path: str) -> list[dict]:
    answer = api.get(path + ("&" if "?" in path else "?") + "order=asc")
    assert answer.status == 200, answer
    return answer.json()["data"]


def wait_for(api, response: dict) -> dict:
    """The response once it has ended."""
    wait_until(lambda: get(api, response).json()["status"] not in ("queued", "in_progress"), "the response to end")
    return get(api, response).json()


@pytest.fixture
def held(make_api):
    """A server whose engine waits before each step until it is let go."""
    api = make_api(FakeBackend(n_ctx=8192)).start()
    api.backend.hold()
    return api


# ---- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("O12")
def test_a_response_goes_on_from_an_earlier_one(api):
    first = ask(api, "hi", instructions="be brief")
    second = ask(api, "and?", previous_response_id=first["id"])
    talk = [("user", "hi"), ("assistant", said_in(first)), ("user", "and?")]
    assert said_in(second) == said(chatml(*talk), 6), "instructions are not carried over"
    third = ask(api, "so?", previous_response_id=second["id"], instructions="be quick")
    talk = [("system", "be quick"), *talk, ("assistant", said_in(second)), ("user", "so?")]
    assert said_in(third) == said(chatml(*talk), 6)
    assert (second["previous_response_id"], third["previous_response_id"]) == (first["id"], second["id"])
    found = listed(api, f"{URL}/{third['id']}/input_items")
    assert [item["role"] for item in found] == ["user", "assistant"] * 2 + ["user"]
    assert [item["content"][0]["text"] for item in found[::2]] == ["hi", "and?", "so?"]


def test_an_incomplete_response_is_gone_on_with_where_it_ended(api):
    first = ask(api)
    second = ask(api, None, previous_response_id=first["id"])
    assert said_in(first) + said_in(second) == said(chatml(("user", "hi")), 12)


def test_a_reference_stands_for_a_stored_item(api):
    first = ask(api)
    [asked], [answered] = listed(api, f"{URL}/{first['id']}/input_items"), first["output"]
    for references in ([{"type": "item_reference", "id": item["id"]} for item in (asked, answered)],
                       [{"id": asked["id"]}, {"id": answered["id"]}]):  # fmt: skip
        second = ask(api, [*references, {"role": "user", "content": "and?"}])
        talk = [("user", "hi"), ("assistant", said_in(first)), ("user", "and?")]
        assert said_in(second) == said(chatml(*talk), 6)
    twice = api.post(URL, {"input": [{"id": asked["id"]}, HI, {"id": asked["id"]}]})
    assert twice.status == 404 and "input[2]: there is no stored item" in twice.error["message"]


def test_a_response_can_be_asked_for_and_forgotten(api):
    first = ask(api, metadata={"a": "b"})
    assert get(api, first).json() == first
    assert get(api, first, "?include[]=x").json() == first
    forgotten = api.send("DELETE", f"{URL}/{first['id']}")
    assert forgotten.json() == {"id": first["id"], "object": "response", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        answer = api.send(method, f"{URL}/{first['id']}{path}", b"" if method == "POST" else None)
        assert answer.status == 404 and answer.error["type"] == "not_found_error"
    assert api.post(URL, {"input": "x", "previous_response_id": first["id"]}).status == 404


def test_a_response_that_is_dropped_while_it_is_asked_for_is_found_whole_or_not_at_all(api, monkeypatch):
    """The store drops it as soon as somebody has read it."""
    store = api.context.stored
    get_from_store = store.get

    def get_once(id_, key_id):
        found = get_from_store(id_, key_id)
        store.delete(id_, key_id)
        return found

    monkeypatch.setattr(store, "get", get_once)
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        response = ask(api)
        answer = api.send(method, f"{URL}/{response['id']}{path}", b"" if method == "POST" else None)
        assert answer.status in (200, 400, 404), answer


def test_what_is_not_to_be_stored_is_not(api):
    first = ask(api, store=False)
    assert first["store"] is False and get(api, first).status == 404


def test_lists_of_items_come_in_pages(api):
    first = ask(api, [message("user", text(str(i))) for i in range(5)])
    path = f"{URL}/{first['id']}/input_items"
    page = api.get(path + "?limit=2").json()
    assert [item["content"][0]["text"] for item in page["data"]] == ["4", "3"] and page["has_more"]
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", page["data"][0]["id"], page["data"][1]["id"])
    rest = api.get(f"{path}?limit=100&after={page['last_id']}").json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "1", "0"] and not rest["has_more"]
    assert api.get(f"{path}?after={rest['last_id']}").json()["data"] == []
    for query in ("limit=0", "limit=101", "limit=x", "limit=%D9%A1", "order=up", "after=msg_1"):
        assert api.get(f"{path}?{query}").status == 400, query


# ---- whose they are ----------------------------------------------------------------------------------------------


@pytest.mark.covers("O13")
def test_what_a_key_has_stored_is_unknown_to_others(make_api):
    api = make_api(FakeBackend(n_ctx=8192), ("--api-key", "a,b")).start()

    def send(key: str, method: str, path: str, body: object = None):
        return api.send(method, path, body, {"Authorization": f"Bearer {key}"})

    body = {"input": "hi", "max_output_tokens": 2}
    mine = send("a", "POST", URL, body).json()
    talk = send("a", "POST", TALKS, {"items": [HI]}).json()["id"]
    item = send("a", "GET", f"{TALKS}/{talk}/items").json()["data"][0]["id"]
    asks = [("GET", f"{URL}/{mine['id']}", None), ("GET", f"{URL}/{mine['id']}?stream=true", None),
            ("GET", f"{URL}/{mine['id']}/input_items", None), ("POST", f"{URL}/{mine['id']}/cancel", {}),
            ("POST", URL, {**body, "previous_response_id": mine["id"]}), ("POST", URL, {**body, "conversation": talk}),
            ("POST", URL, {**body, "input": [{"type": "item_reference", "id": mine["output"][0]["id"]}]}),
            ("POST", URL, {**body, "input": [{"type": "item_reference", "id": item}]}),
            ("GET", f"{TALKS}/{talk}", None), ("GET", f"{TALKS}/{talk}/items", None),
            ("GET", f"{TALKS}/{talk}/items/{item}", None), ("POST", f"{TALKS}/{talk}", {"metadata": {}}),
            ("POST", f"{TALKS}/{talk}/items", {"items": []}), ("DELETE", f"{TALKS}/{talk}/items/{item}", None),
            ("DELETE", f"{URL}/{mine['id']}", None), ("DELETE", f"{TALKS}/{talk}", None)]  # fmt: skip
    for ask_ in asks:
        assert send("b", *ask_).status == 404, ask_
    for ask_ in asks:
        assert send("a", *ask_).status in (200, 400), ask_  # 400: it wasn't in the background


def test_what_runs_for_a_key_is_unknown_to_others(make_api):
    api = make_api(FakeBackend(n_ctx=8192), ("--api-key", "a,b")).start()
    api.backend.hold()
    a, b = ({"Authorization": f"Bearer {key}"} for key in "ab")
    mine = api.send("POST", URL, {"input": "hi", "background": True}, a).json()
    path = f"{URL}/{mine['id']}"
    for method, rest in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")):
        assert api.send(method, path + rest, b"" if method == "POST" else None, b).status == 404
    assert api.send("GET", path, None, a).json()["status"] in ("queued", "in_progress")
    api.backend.go()


# ---- in the background -------------------------------------------------------------------------------------------


@pytest.mark.covers("O14")
def test_a_response_in_the_background_is_made_without_its_client(held):
    begun = held.post(URL, {"input": "hi", "max_output_tokens": 6, "background": True}).json()
    assert (begun["status"], begun["background"], begun["output"], begun["usage"]) == ("queued", True, [], None)
    assert get(held, begun).json()["status"] in ("queued", "in_progress")
    waiting = held.post(URL, {"input": "x", "previous_response_id": begun["id"]})
    assert waiting.status == 400 and "has not ended yet" in waiting.error["message"]
    held.wait_for_decode()
    assert get(held, begun).json() == {**begun, "status": "in_progress"}
    held.backend.go()
    done = wait_for(held, begun)
    assert done["status"] == "incomplete" and said_in(done) == said(chatml(("user", "hi")), 6)
    assert ask(held, "and?", previous_response_id=begun["id"])["usage"]["input_tokens"] > 60


@pytest.mark.parametrize("fields", [{}, {"top_logprobs": 2}], ids=["plain", "logprobs"])
def test_its_stream_can_be_taken_up_anywhere_while_it_runs_and_afterwards(held, fields):
    body = {
        **fields,
        "input": "hi",
        "max_output_tokens": 30,
        "background": True,
        "stream": True,
        "reasoning": {"summary": "auto"},
    }
    with held.begin(body, path=URL) as sock:
        seen = b""
        while b"response.queued" not in seen:
            seen += sock.recv(65536)
    begun = json.loads(seen.partition(b"data: ")[2].partition(b"\n")[0])["response"]
    asked = [lambda after=after: get(held, begun, f"?stream=true&starting_after={after}") for after in (0, 1, 7, 20)]
    wait_until(lambda: held.server.n_connections == 0, "the first client to be gone")
    found: list = []
    ask_all = lambda: found.extend(held.at_the_same_time(lambda: get(held, begun, "?stream=true"), *asked))  # noqa: E731
    held.at_the_same_time(ask_all, held.backend.go)
    whole = events(found[0])
    assert response_of(whole, is_background=True)["output"][0]["status"] == "incomplete" and len(whole) > 30
    for after, answer in zip((0, 1, 7, 20), found[1:], strict=True):
        assert events(answer, after + 1) == whole[after + 1 :]
    wait_for(held, begun)
    for after in (-1, 0, 1, 7, 20, len(whole) - 2):
        query = "" if after < 0 else f"&starting_after={after}"
        assert events(get(held, begun, "?stream=true" + query), after + 1) == whole[after + 1 :]
    assert get(held, begun, "?stream=true&starting_after=1000").body == b""
    assert get(held, begun, "?stream=true&starting_after=x").status == 400


def test_a_response_that_was_not_in_the_background_can_be_streamed_once_more(api):
    first = ask(api)
    assert response_of(events(get(api, first, "?stream=true"))) == first
    likely = ask(api, top_logprobs=2)
    found = events(get(api, likely, "?stream=true"))
    told = [one for event in found if event["type"] == "response.output_text.delta" for one in event["logprobs"]]
    assert told == likely["output"][0]["content"][0]["logprobs"] != []
    assert response_of(found) == likely


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_response_in_the_background_can_be_cancelled(held, is_streamed):
    begun = held.post(URL, {"input": "hi", "ignore_eos": True, "background": True}).json()
    for _ in range(3):
        held.backend.let()
    wait_until(lambda: get(held, begun).json()["status"] == "in_progress", "the engine to begin")
    stop = lambda: held.send("POST", f"{URL}/{begun['id']}/cancel", b"").json()  # noqa: E731
    follow = lambda: get(held, begun, "?stream=true")  # noqa: E731
    calls = [stop, held.backend.go, *([follow] if is_streamed else [])]
    cancelled, _, *streamed = held.at_the_same_time(*calls)
    assert cancelled["status"] == "cancelled" == get(held, begun).json()["status"]
    for answer in streamed:
        assert response_of(events(answer), True) == cancelled
    assert response_of(events(get(held, begun, "?stream=true")), True) == cancelled
    assert stop() == cancelled, "once more changes nothing"
    held.settle()
    assert held.is_idle()


def test_one_that_waits_for_its_turn_can_be_cancelled(held):
    first = held.post(URL, {"input": "hi", "max_output_tokens": 3, "background": True}).json()
    held.wait_for_decode()
    second = held.post(URL, {"input": "ho", "background": True}).json()
    stop = lambda: held.send("POST", f"{URL}/{second['id']}/cancel", b"").json()  # noqa: E731
    cancelled, _ = held.at_the_same_time(stop, held.backend.go)
    assert cancelled["status"] == "cancelled"
    assert wait_for(held, first)["status"] == "incomplete"


def test_only_what_runs_in_the_background_can_be_cancelled(api):
    answer = api.send("POST", f"{URL}/{ask(api)['id']}/cancel", b"")
    assert answer.status == 400 and "only background responses" in answer.error["message"]


def test_one_that_runs_is_ended_when_it_is_forgotten(held):
    begun = held.post(URL, {"input": "hi", "ignore_eos": True, "background": True}).json()
    forget = lambda: held.send("DELETE", f"{URL}/{begun['id']}")  # noqa: E731
    answer, _ = held.at_the_same_time(forget, held.backend.go)
    assert answer.json()["deleted"] and get(held, begun).status == 404
    held.settle()
    assert held.is_idle()


def test_one_that_fails_says_why(make_api):
    api = make_api(FakeBackend(n_ctx=256)).start()
    failed = wait_for(api, api.post(URL, {"input": "x" * 300, "background": True}).json())
    assert failed["status"] == "failed" and failed["error"]["code"] == "invalid_prompt"
    assert "exceeds the available context size" in failed["error"]["message"]
    stream = events(get(api, failed, "?stream=true"))
    assert [event["type"] for event in stream] == ["response.created", "response.queued", "response.failed"]
    api.backend.fail_at[len(api.backend.batches) + 3] = -1
    failed = wait_for(api, api.post(URL, {"input": "hi", "background": True}).json())
    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"


def test_a_key_can_not_fill_the_background(held):
    begun = [held.post(URL, {"input": "hi", "max_output_tokens": 1, "background": True}) for _ in range(17)]
    assert [answer.status for answer in begun] == [200] * 16 + [503]
    assert "16 of your responses" in begun[-1].error["message"] and begun[-1].headers["retry-after"]
    held.backend.go()
    for answer in begun[:16]:
        assert wait_for(held, answer.json())["status"] == "incomplete"


def test_an_end_of_the_server_ends_what_runs(make_api):
    api = make_api(FakeBackend(n_ctx=8192)).start()
    begun = api.post(URL, {"input": "hi", "ignore_eos": True, "background": True}).json()
    wait_until(lambda: get(api, begun).json()["status"] == "in_progress", "the engine to begin")
    api.stop()
    wait_until(
        lambda: api.context.stored.get(begun["id"], "")["response"]["status"] != "queued", "its end to be stored"
    )


@pytest.mark.covers("O16")
def test_a_folder_keeps_them_over_restarts(make_api, tmp_path):
    argv = ("--store-dir", str(tmp_path / "kept"))
    api = make_api(FakeBackend(n_ctx=8192), argv).start()
    first = ask(api)
    begun = wait_for(api, api.post(URL, {"input": "hi", "max_output_tokens": 9, "background": True}).json())
    stream = events(get(api, begun, "?stream=true"))
    talk = api.post(TALKS, {"items": [HI]}).json()
    lost = {**begun, "id": "resp_" + "0" * 48, "status": "queued"}
    api.context.stored.put(lost["id"], "", {"response": lost, "input": [], "was_begun": False})
    api.stop()
    again = make_api(FakeBackend(n_ctx=8192), argv).start()
    assert get(again, first).json() == first and events(get(again, begun, "?stream=true")) == stream
    assert again.get(f"{TALKS}/{talk['id']}").json() == talk
    assert ask(again, "and?", previous_response_id=first["id"])["status"] == "incomplete"
    failed = get(again, lost).json()
    assert failed["status"] == "failed" and "the server ended" in failed["error"]["message"]
    damaged = next((tmp_path / "kept").glob(first["id"] + "*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert get(again, first).status == 404


def test_without_room_responses_say_that_they_are_not_stored(make_api):
    api = make_api(FakeBackend(n_ctx=8192), ("--store-size", "0")).start()
    first = ask(api)
    assert first["store"] is False and "warnings" not in first and get(api, first).status == 404
    assert api.post(TALKS, {}).status == 503
    assert api.post(URL, {"input": "hi", "background": True}).status == 400
    api.context.stored.n_max = 2000
    long = ask(api, "x" * 2000)
    assert long["store"] is False and long["warnings"] == ["store: no room is left for this response (--store-size)"]
    assert api.post(URL, {"input": "x" * 2000, "background": True}).status == 503
    talk = api.post(TALKS, {}).json()
    full = ask(api, "x" * 2000, conversation=talk["id"], store=False)
    assert full["warnings"] == ["conversation: no room is left for these items (--store-size), or it has been deleted"]


# ---- conversations -----------------------------------------------------------------------------------------------


@pytest.mark.covers("O15")
def test_a_conversation_grows_with_its_responses(api):
    talk = api.post(TALKS, {"metadata": {"a": "b"}, "items": [{"role": "system", "content": "be brief"}]}).json()
    assert talk == {
        "id": talk["id"],
        "object": "conversation",
        "created_at": talk["created_at"],
        "metadata": {"a": "b"},
    }
    first = ask(api, "hi", conversation=talk["id"], store=False)
    second = ask(api, "and?", conversation={"id": talk["id"]})
    pairs = [("system", "be brief"), ("user", "hi"), ("assistant", said_in(first)), ("user", "and?")]
    assert said_in(second) == said(chatml(*pairs), 6) and second["conversation"] == {"id": talk["id"]}
    found = listed(api, f"{TALKS}/{talk['id']}/items")
    assert [item["role"] for item in found] == ["system", "user", "assistant", "user", "assistant"]
    assert found[2] == first["output"][0]


def test_items_of_a_conversation_come_and_go(api):
    talk = api.send("POST", TALKS).json()
    path = f"{TALKS}/{talk['id']}"
    added = api.post(path + "/items", {"items": [HI, {"role": "user", "content": "ho"}]}).json()
    assert [item["content"][0]["text"] for item in added["data"]] == ["hi", "ho"] and added["object"] == "list"
    more = api.post(path + "/items", {"items": [HI]}).json()["data"]
    ids = [item["id"] for item in (*added["data"], *more)]
    assert len(set(ids)) == 3 and [item["id"] for item in listed(api, path + "/items")] == ids
    assert api.get(f"{path}/items/{ids[1]}").json() == added["data"][1]
    reference = ask(api, [{"type": "item_reference", "id": ids[1]}])
    assert said_in(reference) == said(chatml(("user", "ho")), 6)
    assert api.send("DELETE", f"{path}/items/{ids[1]}").json() == talk
    assert [item["id"] for item in listed(api, path + "/items")] == [ids[0], ids[2]]
    assert api.get(f"{path}/items/{ids[1]}").status == api.send("DELETE", f"{path}/items/{ids[1]}").status == 404
    assert api.post(path, {"metadata": {"x": "y"}}).json()["metadata"] == {"x": "y"}
    assert api.get(path).json()["metadata"] == {"x": "y"}
    gone = {"id": talk["id"], "object": "conversation.deleted", "deleted": True}
    assert api.send("DELETE", path).json() == gone and api.get(path).status == 404


@pytest.mark.parametrize(
    ("body", "word"),
    [({"items": "x"}, "items: a list of items"), ({"items": [1]}, "items[0] is not an object"),
     ({"items": [{}]}, "items[0].type: 'None' is unknown"),
     ({"items": [{"id": "msg_1"}]}, "items[0].type: 'item_reference' is unknown"), ({"items": [HI] * 21}, "items: 21 are too many"), ({"metadata": {"a": 1}}, "metadata: 'a' must be a name"),
     ({"metadata": []}, "metadata: [] is not an object")],
)  # fmt: skip
def test_what_is_wrong_with_a_conversation_is_refused(api, body, word):
    talk = api.post(TALKS, {}).json()
    paths = [TALKS, f"{TALKS}/{talk['id']}/items"] if "items" in body else [TALKS, f"{TALKS}/{talk['id']}"]
    for path in paths:
        answer = api.post(path, body)
        assert answer.status == 400 and word in answer.error["message"], path


def test_many_that_add_at_once_lose_nothing(api):
    talk = api.post(TALKS, {}).json()
    path = f"{TALKS}/{talk['id']}/items"
    api.at_the_same_time(*[lambda: api.post(path, {"items": [HI]}) for _ in range(20)])
    assert len(api.get(path + "?limit=100").json()["data"]) == 20
