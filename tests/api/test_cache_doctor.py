"""Reports about prompts that miss the cache because they differ from an earlier one: in each answer and GET
/debug/cache.
"""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import Api
from tests.fake_media import seeing
from tests.fakes import FakeBackend, FakeVocab, answer
from tests.media_files import data_url, picture

RULES = "You help with ships and harbours, in few words. "
REST = "Never make anything up, and ask whenever you are not sure what is meant."
TOOLS = [
    {"type": "function", "function": {"name": name, "description": about, "parameters": {"type": "object"}}}
    for name, about in (("harbour", "Where a ship is now, and where it goes."), ("weather", "Wind and waves there."))
]


@pytest.fixture
def api(make_api) -> Api:
    return make_api(FakeBackend(n_ctx=8192, n_slots=2)).start()


def dated(day: str) -> dict:
    return {"role": "system", "content": f"{RULES}Today is {day}. {REST}"}


def asked(api: Api, *messages: dict, key: str = "", stream: bool = False, **fields: object) -> dict:
    """The first difference that a chat is told."""
    body = {"messages": list(messages), "max_tokens": 3, "stream": stream, **fields}
    got = api.send("POST", "/v1/chat/completions", body, {"X-Api-Key": key} if key else {})
    assert got.status == 200, got
    if not stream:
        return got.json()["cache"]["first_difference"]
    [told] = [block[6:] for block in got.body.decode().split("\n\n") if '"cache"' in block]
    return json.loads(told)["cache"]["first_difference"]


def user(text: object) -> dict:
    return {"role": "user", "content": text}


@pytest.mark.covers("P10")
@pytest.mark.parametrize("stream", [False, True])
def test_a_date_in_the_system_prompt_is_told_with_what_it_costs(api, stream):
    assert asked(api, dated("monday"), user("Hello?")) is None
    found = asked(api, dated("friday"), user("Hello?"), stream=stream)
    assert (found["message"], found["role"], found["field"]) == (0, "system", "messages[0].content")
    assert found["before"].endswith("is ") and "".join(found["prompt"]) == "friday" and found["cached"][0] == "m"
    same = f"day. {REST}<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    assert found["rows_lost"] == len(same) and found["cost_ms"] > 0
    assert asked(api, dated("friday"), user("Hello?"), stream=stream) is None, "all of it is there"


@pytest.mark.covers("P10")
def test_an_edited_message_a_trimmed_answer_and_other_tools_are_told_by_their_fields(api):
    turns = [dated("monday"), user("Where is the Anna?"), {"role": "assistant", "content": "In Oslo, I think."}]
    asked(api, *turns, user("And the Berta, do you know that one?"), tools=TOOLS)
    edited = [turns[0], user("Where is the Dora?"), turns[2], user("And the Berta, do you know that one?")]
    found = asked(api, *edited, tools=TOOLS)
    assert (found["message"], found["field"]) == (1, "messages[1].content") and found["rows_lost"] > 30
    asked(api, *turns, user("And the Berta, do you know that one?"), tools=TOOLS)
    trimmed = [*turns[:2], {"role": "assistant", "content": "In Oslo,"}, user("And the Berta, do you know that one?")]
    found = asked(api, *trimmed, tools=TOOLS)
    assert (found["message"], found["role"], found["field"]) == (2, "assistant", "messages[2].content")
    found = asked(api, *turns, user("And the Berta, do you know that one?"), tools=TOOLS[::-1])
    assert found["message"] in (None, 0) and found["rows_lost"] > len(REST)
    assert found["field"] == "tools[0].function.name"


def test_another_image_is_told_by_its_place(make_api):
    api = make_api(seeing()).start()

    def looking(number: int) -> dict:
        image = {"type": "image_url", "image_url": {"url": data_url(picture(number))}}
        return user([{"type": "text", "text": "Look at this picture, please:"}, image, {"type": "text", "text": REST}])

    asked(api, dated("monday"), looking(1))
    found = asked(api, dated("monday"), looking(2))
    assert (found["message"], found["field"]) == (1, "messages[1].content[1]") and found["prompt"][0] == "[file]"
    assert found["rows_lost"] >= len(REST) - 10
    changed = looking(2)
    changed["content"][2]["text"] = REST.replace("anything", "a thing")
    assert asked(api, dated("monday"), changed)["field"] == "messages[1].content[2].text"


def test_a_prompt_without_messages_differs_in_its_field(api):
    api.complete(RULES + "Today is monday. " + REST, 2)
    found = api.complete(RULES + "Today is friday. " + REST, 2)["cache"]["first_difference"]
    assert (found["field"], found["message"], found["role"]) == ("prompt", None, None) and found["rows_lost"] > 50
    assert set(found) == {
        *("position", "message", "role", "field", "before", "prompt", "cached", "rows_lost", "cost_ms")
    }


def test_another_conversation_loses_nothing(api):
    asked(api, dated("monday"), user("Hello?"))
    found = asked(api, dated("monday"), user("Something else entirely"))
    assert found["field"] == "messages[1].content"
    assert found["rows_lost"] <= len("<|im_end|>\n<|im_start|>assistant\n"), "each byte is a token here"


@pytest.mark.covers("P11")
def test_all_that_was_lost_is_summed_up_with_a_hint_at_the_place(api):
    for i, day in enumerate(("monday", "tuesday", "friday", "sunday")):
        asked(api, dated(day), user(f"Hello {i}?"))
    report = api.get("/debug/cache").json()
    assert [one["path"] for one in report["requests"]] == ["/v1/chat/completions"] * 4
    assert report["sums"]["requests"] == 4 and report["sums"]["rows_lost"] > 3 * len(REST)
    [hint] = report["hints"]
    assert (hint["field"], hint["requests"], hint["of"]) == ("messages[0].content", 3, 4)
    assert "".join(hint["prompt"]).startswith("s") and hint["cost_ms"] == report["sums"]["cost_ms"]
    latest = report["requests"][0]
    assert latest["cache"]["first_difference"]["message"] == 0 and latest["cache_n"] > 0
    model = api.get("/v1/models").json()["data"][0]["id"]
    assert api.get(f"/debug/cache?model={model}").json() == report


def test_requests_in_other_dialects_are_in_the_report(api):
    body = {"system": RULES, "messages": [user("x")], "max_tokens": 2}
    assert api.post("/v1/messages", body).status == 200
    assert api.post("/api/chat", {"messages": [user("x")], "stream": False}).status == 200
    paths = [one["path"] for one in api.get("/debug/cache").json()["requests"]]
    assert paths == ["/api/chat", "/v1/messages"]


@pytest.mark.covers("P11")
def test_nobody_is_told_of_another_keys_text(make_api):
    api = make_api(FakeBackend(n_ctx=8192, n_slots=2), ("--api-key", "mine,yours")).start()
    secret = f"{RULES}The password is swordfish. {REST}"
    for _ in range(4):
        asked(api, {"role": "system", "content": secret}, user("Hello?"), key="mine")
    found = [asked(api, dated(day), user("Hello?"), key="yours") for day in ("monday", "tuesday", "friday")]
    assert found[0] is None and found[1]["field"] == "messages[0].content"
    reports = {key: api.send("GET", "/debug/cache", None, {"X-Api-Key": key}) for key in ("mine", "yours")}
    assert b"swordfish" not in reports["yours"].body and b"monday" not in reports["mine"].body
    assert [reports[key].json()["sums"]["requests"] for key in ("mine", "yours")] == [4, 3]
    assert api.get("/debug/cache").status == 401


def test_a_server_that_hides_its_slots_hides_this_too(make_api):
    assert make_api(None, ("--no-slots",)).start().get("/debug/cache").status == 501


def test_a_prompt_is_never_changed_by_being_looked_at(make_api):
    backend = FakeBackend(n_ctx=8192, n_slots=1, reply=answer("so it is"))
    api = make_api(backend).start()
    for day in ("monday", "friday"):
        asked(api, dated(day), user("Hello?"))
        text = bytes(token for token in backend.history(0) if token < 256).decode()
        assert dated(day)["content"] in text and "Hello?" in text


def test_what_reuses_all_of_its_nearest_text_is_rendered_once(api, monkeypatch):
    from server.chat.template import ChatTemplate

    n_renders, render = [0], ChatTemplate.render

    def counted(self, *args):
        n_renders[0] += 1
        return render(self, *args)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    monkeypatch.setattr(FakeVocab, "builtin_templates", ())
    asked(api, dated("monday"), user("Hello?"))
    asked(api, dated("monday"), user("Hello?"))
    assert n_renders[0] == 2
    asked(api, dated("friday"), user("Hello?"), n=2)
    assert n_renders[0] in (4, 5), "once more for each answer that is told of a difference"


def test_an_answer_comes_also_where_its_place_cant_be_found_out(api, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("broken")

    asked(api, dated("monday"), user("Hello?"))
    monkeypatch.setattr("server.api.request.chat.places.Origin.place", broken)
    found = asked(api, dated("friday"), user("Hello?"))
    assert found["field"] is None and found["rows_lost"] > 0 and "could not be found" in caplog.text
