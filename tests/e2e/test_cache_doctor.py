"""Reports about the prompt cache with the small real model, its tokens and template: where a prompt differs from a
cached one, and what that costs. The cost must be the time that is saved without the difference.

Needs the native libraries and SmolLM2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_media import mtmd_folder  # noqa: F401
from tests.media_files import data_url, picture
from tests.support import ServerProcess, start_server

RULES = (
    "You answer questions about ships and harbours. Say it in few words, and be polite to everybody who asks. Never make "
    "anything up; if you are not sure, say so, and ask what is meant. Distances are in miles, times are local ones. "
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": what}}},
        },
    }
    for name, about, what in (
        ("find_ship", "Tells where a ship is now, where it comes from, and where it goes.", "The name of the ship."),
        ("look_at_weather", "Tells wind, waves and visibility for the next three days.", "The name of the sea."),
    )
]
TURNS = [
    {"role": "user", "content": "Where is the Anna, and when will she be in Oslo?"},
    {
        "role": "assistant",
        "content": "She is in Bergen. She will be in Oslo on the fourth of May, if the wind is kind.",
    },
    {"role": "user", "content": "And the Berta?"},
]


@pytest.fixture(scope="module")
def server(libs_folder, smollm2) -> Iterator[ServerProcess]:
    options = ("-m", str(smollm2), "-c", "4096", "-np", "2", "-t", "1", "--api-key", "mine,yours")
    with start_server([*options]) as running:
        yield running
        print(running.log)


def asked(server: ServerProcess, *messages: dict[str, Any], key: str = "mine", **fields: object) -> dict[str, Any]:
    body = {"messages": list(messages), "max_tokens": 2, "temperature": 0, **fields}
    answer = server.post("/v1/chat/completions", body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def difference(*arguments: object, **fields: object) -> dict[str, Any]:
    return asked(*arguments, **fields)["cache"]["first_difference"]  # type: ignore[arg-type]


def dated(day: str) -> dict[str, str]:
    return {"role": "system", "content": f"Today is {day}. {RULES}"}


@pytest.mark.covers("P10", "P11")
def test_a_changing_date_is_found_with_what_it_costs(server):
    first = asked(server, dated("Monday, 12:00"), *TURNS)
    for time in ("12:01", "12:02", "12:03"):
        answer = asked(server, dated(f"Monday, {time}"), *TURNS)
        found, timings = answer["cache"]["first_difference"], answer["timings"]
        assert (found["message"], found["role"], found["field"]) == (0, "system", "messages[0].content")
        assert found["before"].endswith("Monday, 12:0")
        assert timings["prompt_n"] - 20 <= found["rows_lost"] <= timings["prompt_n"]
        assert 0.8 * timings["prompt_ms"] < found["cost_ms"] <= timings["prompt_ms"]
    assert first["timings"]["prompt_n"] > 100
    again = asked(server, dated("Monday, 12:03"), *TURNS)
    assert again["timings"]["prompt_n"] < 5 and again["cache"]["first_difference"] is None
    report = server.get("/debug/cache", headers={"Authorization": "Bearer mine"}).json()
    [hint] = report["hints"]
    assert hint["field"] == "messages[0].content" and hint["requests"] == 3 and hint["rows_lost"] > 300


def test_an_edited_message_a_trimmed_answer_and_other_tools_are_found(server):
    asked(server, dated("Tuesday"), *TURNS, tools=TOOLS)
    edited = [{"role": "user", "content": "Where is the Dora, and when will she be in Oslo?"}, *TURNS[1:]]
    found = difference(server, dated("Tuesday"), *edited, tools=TOOLS)
    assert (found["field"], found["message"]) == ("messages[1].content", 1) and found["rows_lost"] >= 32
    asked(server, dated("Tuesday"), *TURNS, tools=TOOLS)
    trimmed = [TURNS[0], {"role": "assistant", "content": "She is in Bergen."}, TURNS[2]]
    found = difference(server, dated("Tuesday"), *trimmed, tools=TOOLS)
    assert (found["field"], found["role"]) == ("messages[2].content", "assistant")
    asked(server, dated("Tuesday"), *TURNS, tools=TOOLS)
    found = difference(server, dated("Tuesday"), *TURNS, tools=TOOLS[::-1])
    assert found["field"] == "tools[0].function.name" and found["rows_lost"] > 100


def test_two_keys_with_the_same_beginning_are_told_nothing_of_each_other(server):
    secret = [{"role": "user", "content": "My password is swordfish, keep it for yourself."}, *TURNS[1:]]
    asked(server, dated("Friday"), *secret, key="yours")
    asked(server, dated("Friday"), *secret, key="yours")
    found = difference(server, dated("Friday"), *TURNS)
    assert found is None or "sword" not in str(found)
    report = server.get("/debug/cache", headers={"Authorization": "Bearer mine"})
    assert "sword" not in report.text and server.get("/debug/cache").status_code == 401


def test_another_image_is_found_with_a_real_projector(serve, mtmd_folder, tiny_bpe_model, mmproj_mlp):  # noqa: F811
    options = ("--no-mmproj-offload", "-np", "2", "-t", "1", "--no-warmup", "-c", "2048")
    server = serve("-m", tiny_bpe_model, "--mmproj", mmproj_mlp, *options)

    def look(number: int, text: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": data_url(picture(number))}}
        return {
            "role": "user",
            "content": [{"type": "text", "text": "the dog "}, image, {"type": "text", "text": text}],
        }

    def told(*messages: dict[str, Any]) -> dict[str, Any]:
        answer = server.post("/v1/chat/completions", {"messages": list(messages), "max_tokens": 2})
        return answer.json()["cache"]["first_difference"]

    told(look(1, "saw the moon"))
    assert told(look(2, "saw the moon"))["field"] == "messages[0].content[1]"
    assert told(look(2, "saw a river"))["field"] == "messages[0].content[2].text"
