"""--record over HTTP with the fake engine: what is and isn't written for each request, and that requests can be run
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.evidence import recorder, replay
from server.evidence.chain import check, read_lines
from server.evidence.recorder import Recorder
from tests.api.conftest import Api
from tests.fake_media import seeing
from tests.fakes import FakeBackend
from tests.media_files import data_url, picture
from tests.support import wait_until

CHAT = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5}


@pytest.fixture
def record(tmp_path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def record_to(make_api) -> Iterator[Callable[..., Api]]:
    """`record_to(path, backend, argv)` makes a server that records, as `serving` does it."""
    made: list[Api] = []

    def make(path: Path, *args: object) -> Api:
        api = make_api(*args)
        api.context.recorder = Recorder(str(path), 1 << 24, api.context.known_models, {"system": "test"})
        made.append(api)
        return api.start()

    yield make
    for api in made:
        if api.context.recorder is not None:
            api.context.recorder.close()


@pytest.fixture
def recording(record_to, record) -> Api:
    return record_to(record, FakeBackend(n_ctx=8192, n_slots=2))


def lines(api: Api, path: Path, kind: str = "request") -> list[dict]:
    """Close the record once all requests have ended; its lines of that kind."""
    api.settle()
    api.context.recorder.close()
    api.context.recorder = None
    return [line.content for line in read_lines(path) if line.content["kind"] == kind]


@pytest.mark.covers("P01")
def test_a_line_says_what_was_asked_and_what_came_of_it(recording, record):
    body = {"prompt": "a b c", "n_predict": 4, "seed": 7, "top_k": 9, "return_tokens": True}
    answer = recording.complete("a b c", 4, seed=7, top_k=9, return_tokens=True)
    [line] = lines(recording, record)
    assert (line["path"], line["body"]) == ("/completion", {**body})
    assert line["body_sha256"] == hashlib.sha256(json.dumps(line["body"]).encode()).hexdigest()
    [prompt], [settings], [said] = line["prompts"], line["settings"], line["answers"]
    assert prompt["tokens"] == recording.client.vocab.tokenize("a b c", True, True)
    assert settings["sampling"]["top_k"] == 9 and said["seed"] == 7
    assert said["tokens"] == answer["tokens"] and said["stop"] == "limit"
    assert said["timings"]["predicted_n"] == 4
    assert check(record).n_unclosed == 0


def test_every_dialect_streams_and_all_is_in_the_record(recording, record):
    for path, body in (
        ("/completion", {"prompt": ["a", "b"], "n_predict": 3}),
        ("/v1/chat/completions", {**CHAT, "n": 2}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 3}),
        ("/v1/messages", CHAT),
        ("/api/chat", {"messages": CHAT["messages"], "options": {"num_predict": 3}}),
        ("/api/generate", {"prompt": "a", "options": {"num_predict": 3}}),
    ):
        for stream in (False, True):
            assert recording.post(path, {**body, "stream": stream}).status == 200
    found = lines(recording, record)
    assert [len(line["answers"]) for line in found] == [2, 2, 2, 2, *[1] * 8]
    whole, streamed = found[::2], found[1::2]
    for one, other in zip(whole, streamed):
        assert [answer["tokens"] for answer in one["answers"]] == [answer["tokens"] for answer in other["answers"]]
        assert one["prompts"] == other["prompts"] and all(answer["stop"] for answer in other["answers"])


@pytest.mark.covers("P03")
def test_secrets_and_files_are_there_by_their_hashes_only(record_to, record):
    api = record_to(record, seeing(), ("--api-key", "sk-very-secret"))
    image = data_url(picture(1))
    body = {**CHAT, "api_key": "sk-another-secret"}
    body["messages"] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "x"}]}
    ]
    headers = {"Authorization": "Bearer sk-very-secret"}
    assert api.send("POST", "/v1/chat/completions", body, headers).status == 200
    [line] = lines(api, record)
    data = record.read_bytes()
    assert b"secret" not in data and image.partition(",")[2].encode() not in data
    masked = line["body"]["messages"][0]["content"][0]["image_url"]["url"]
    assert masked == {"sha256": hashlib.sha256(image.encode()).hexdigest(), "length": len(image)}
    assert len(line["prompts"][0]["files"]) == 1 and line["key"]


def test_a_client_that_leaves_is_recorded_as_far_as_it_got(recording, record):
    recording.backend.hold()
    sock = recording.begin({"prompt": "a", "n_predict": 1000, "stream": True})
    recording.wait_for_decode()
    recording.backend.let(3)
    sock.recv(1)
    sock.close()
    recording.backend.go()
    wait_until(lambda: recording.n_requests == 0, "the end of the request")
    recording.settle()
    [line] = lines(recording, record)
    [answer] = line["answers"]
    assert answer["stop"] is None and answer["timings"] is None and 1 <= len(answer["tokens"]) < 1000


def test_requests_that_are_refused_are_no_answers(recording, record):
    recording.refuse(prompt=5)
    assert lines(recording, record) == []


@pytest.mark.covers("P05")
def test_a_certificate_is_the_same_for_the_same_answer_and_stands_in_the_record(recording, record):
    first, again, other, without = (
        recording.complete("a b", 3, seed=seed, certificate=certificate).get("certificate")
        for seed, certificate in ((1, True), (1, True), (2, True), (1, False))
    )
    assert first == again and without is None
    assert first["sha256"] != other["sha256"] and first["settings"] != other["settings"]
    assert (first["model"], first["prompt"]) == (other["model"], other["prompt"])
    answer = recording.post("/v1/chat/completions", {**CHAT, "n": 2, "certificate": True}).json()
    streamed = recording.post("/v1/chat/completions", {**CHAT, "seed": 3, "certificate": True, "stream": True})
    [streamed] = [
        json.loads(block[6:])["choices"][0]["certificate"]["sha256"]
        for block in streamed.body.decode().split("\n\n")
        if '"certificate"' in block
    ]
    told = [choice["certificate"]["sha256"] for choice in answer["choices"]]
    recorded = [one["certificate"] for line in lines(recording, record) for one in line["answers"]]
    assert recorded == [first["sha256"], again["sha256"], other["sha256"], first["sha256"], *told, streamed]


def test_a_certificate_needs_no_record(api):
    assert len(api.complete("a", 1, certificate=True)["certificate"]["sha256"]) == 64


@pytest.mark.covers("P04")
def test_what_was_recorded_runs_again_and_a_difference_is_shown(recording, record):
    for i in range(3):
        recording.complete("a b c", 6, seed=i, temperature=1.5)
    recording.post("/v1/chat/completions", {**CHAT, "n": 2})
    lines(recording, record)
    [(about, requests)] = replay.read(record)
    verdicts = replay.Verdicts()
    assert list(replay.run(recording.client, requests, verdicts)) == []
    assert str(verdicts) == "5 answers: 5 identical, 0 not"
    requests[1]["answers"][0]["tokens"][2] += 1
    [line] = replay.run(recording.client, requests[1:2], verdicts)
    assert "token 2 of 6 differs" in line and verdicts.n_other == 1
    assert replay.config_of(about).exact


def test_the_shared_system_prompt_and_early_ends_are_part_of_a_replay(recording, record):
    recording.complete("x", 5, system_prompt={"prompt": "you are a parrot"})
    recording.complete("x", 5, stop=["c"], t_max_predict_ms=100000)
    lines(recording, record)
    [(_, requests)] = replay.read(record)
    assert requests[0]["system_prompt"] == "you are a parrot"
    recording.context.models.default.set_system_prompt("")
    verdicts = replay.Verdicts()
    requests[1]["answers"][0]["stop"] = None  # as if the client had left
    requests[1]["answers"][0]["tokens"] = requests[1]["answers"][0]["tokens"][:2]
    assert list(replay.run(recording.client, requests, verdicts)) == [] and verdicts.n_same == 2


def test_what_finds_no_room_is_missing_and_it_says_so(recording, record, monkeypatch):
    monkeypatch.setattr(recorder, "MOST_WAITING", 0)
    for _ in range(3):
        recording.complete("a", 1)
    monkeypatch.setattr(recorder, "MOST_WAITING", 1 << 20)
    recording.complete("a", 1)
    assert [line["requests"] for line in lines(recording, record, "lost")] == [3]
    assert check(record).n_requests == 1 and check(record).n_lost == 3


def test_a_disk_that_is_full_keeps_no_answer_waiting(recording, record, monkeypatch):
    recording.complete("a", 1)
    wait_until(lambda: check_quietly(record) == 1, "the first line")
    chain = recording.context.recorder._chain
    append: Callable = chain.append

    def fail(content: dict) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain, "append", fail)
    recording.complete("a", 1)
    recording.complete("a", 1)
    wait_until(lambda: recording.context.recorder._n_bytes == 0, "both to be tried")
    monkeypatch.setattr(chain, "append", append)
    assert [line["requests"] for line in lines(recording, record, "lost")] == [2]


def check_quietly(path: Path) -> int:
    try:
        return check(path).n_requests
    except Exception:
        return -1


def test_earlier_answers_keep_the_tokens_of_the_tokenizer(recording, record):
    """A replay has no cache in which other tokens for the same text could be."""
    body = {"messages": [*CHAT["messages"], {"role": "assistant", "content": "hi"}, *CHAT["messages"]], "max_tokens": 2}
    recording.post("/v1/chat/completions", body)
    recording.settle()
    [task] = recording.client._recent.values()
    assert not task.may_respell
    lines(recording, record)
