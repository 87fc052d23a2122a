"""Recorded requests of real clients get the answers that the clients expect, even where the clients aren't installed.

`client_requests.json` has requests of the clients in `tests/e2e`: method, path, headers and body. One test has an error
in the middle of a stream, which a real server can't be made to send, read by the real package.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.openai_wire import chunks
from tests.fakes import FakeBackend

RECORDED = json.loads(Path(__file__).with_name("client_requests.json").read_text("utf-8"))


@pytest.mark.parametrize("sent", RECORDED, ids=lambda sent: f"{sent['client']}: {sent['what']}")
def test_a_recorded_request_gets_what_its_client_waits_for(api, sent):
    body = sent["body"] and {**sent["body"], **({} if limit(sent["body"]) else {"max_tokens": 8})}
    answer = api.send(sent["method"], sent["path"], body, sent["headers"])
    assert answer.status == 200, answer
    if body is None:
        assert [model["object"] for model in answer.json()["data"]] == ["model"]
    elif body.get("stream"):
        check_stream(chunks(answer), body)
    else:
        check_answer(answer.json(), body)


def limit(body: dict) -> int | None:
    return body.get("max_tokens") or body.get("max_completion_tokens")


def n_choices(body: dict) -> int:
    """How many answers a request is about."""
    prompt = body.get("prompt")
    return body.get("n", 1) * (len(prompt) if isinstance(prompt, list) else 1)


def check_answer(found: dict, body: dict) -> None:
    """A plain answer has all that clients read without asking."""
    is_chat = "messages" in body
    assert found["object"] == ("chat.completion" if is_chat else "text_completion")
    assert isinstance(found["id"], str) and isinstance(found["created"], int) and found["model"] == body["model"]
    assert [choice["index"] for choice in found["choices"]] == list(range(n_choices(body)))
    for choice in found["choices"]:
        text = choice["message"]["content"] if is_chat else choice["text"]
        assert len(text) == limit(body) and choice["finish_reason"] == "length"
        assert bool(choice["logprobs"]) == bool(body.get("logprobs"))
        if is_chat:
            assert choice["message"]["role"] == "assistant"
    usage = found["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0


def check_stream(found: list[dict], body: dict) -> None:
    """So does a stream."""
    is_chat = "messages" in body
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk" if is_chat else "text_completion"}
    assert {chunk["model"] for chunk in found} == {body["model"]} and len({chunk["id"] for chunk in found}) == 1
    wants_usage = (body.get("stream_options") or {}).get("include_usage", False)
    assert [chunk["choices"] == [] for chunk in found] == [False] * (len(found) - wants_usage) + [True] * wants_usage
    assert [("usage" in chunk) for chunk in found] == [chunk["choices"] == [] for chunk in found]
    ends = [choice["index"] for chunk in found for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(ends) == list(range(n_choices(body)))


def test_the_real_package_reports_an_error_in_the_middle_of_a_stream(make_api):
    openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[4] = -1
    with openai.OpenAI(base_url=api.server.url + "/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="x", stream=True, messages=[{"role": "user", "content": "hi"}])
        heard = []
        with pytest.raises(openai.APIError, match="-1") as caught:
            for chunk in stream:
                heard.append(chunk.choices[0].delta.content)
    assert len(heard) == 4 and caught.value.type == "server_error"


def test_the_real_package_sees_the_status_of_an_error_before_the_stream(make_api):
    openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
    api = make_api(FakeBackend()).start()
    api.backend.fail_at[1] = -1
    with openai.OpenAI(base_url=api.server.url + "/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="x", stream=True, messages=[{"role": "user", "content": "hi"}])
