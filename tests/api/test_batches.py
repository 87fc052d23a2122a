"""Files and batches over HTTP: results, ownership, refusals, and recovery after a crash."""

from __future__ import annotations

import json

import pytest

from server.batches import runner as runner_module
from server.batches.batch import Batch
from server.batches.lines import ENDPOINTS
from tests.api.openai_wire import chatml, said
from tests.fakes import FakeBackend
from tests.support import wait_until

FILES, BATCHES, CHAT = "/v1/files", "/v1/batches", "/v1/chat/completions"
TYPE = {"Content-Type": "multipart/form-data; boundary=XX"}


def line(custom_id: str, text: str = "hi", url: str = CHAT, **fields: object) -> dict:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def form(data: bytes | None = b"x", filename: str = "in.jsonl", **fields: str) -> bytes:
    parts = [(f'name="{name}"', text.encode()) for name, text in {"purpose": "batch", **fields}.items()]
    if data is not None:
        parts.append((f'name="file"; filename="{filename}"', data))
    return b"".join(
        b"--XX\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode(), body) for head, body in parts
    ) + b"--XX--\r\n"  # fmt: skip


def upload(api, *lines: object, key: dict | None = None) -> str:
    answer = api.send("POST", FILES, form(jsonl(*lines)), TYPE | (key or {}))
    assert answer.status == 200, answer
    return answer.json()["id"]


def begin(api, *lines: object, endpoint: str = CHAT, key: dict | None = None, **fields: object) -> dict:
    body = {"input_file_id": upload(api, *lines, key=key), "endpoint": endpoint, "completion_window": "24h", **fields}
    answer = api.send("POST", BATCHES, body, key or {})
    assert answer.status == 200, answer
    return answer.json()


def ended(api, batch: dict, key: dict | None = None) -> dict:
    """The batch once it has ended."""
    found = [batch]

    def has_ended() -> bool:
        found[0] = api.send("GET", f"{BATCHES}/{batch['id']}", None, key or {}).json()
        return found[0]["status"] in ("completed", "failed", "cancelled", "expired")

    wait_until(has_ended, "the batch to end", 30)
    return found[0]


def lines_of(api, id_: str | None) -> dict[str, dict]:
    """The lines of a file by their custom_id, each of which is there once."""
    if id_ is None:
        return {}
    answer = api.get(f"{FILES}/{id_}/content")
    assert answer.status == 200, answer
    found = [json.loads(text) for text in answer.body.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


def counts(total: int, completed: int, failed: int) -> dict:
    return {"total": total, "completed": completed, "failed": failed}


@pytest.fixture
def make(make_api, tmp_path):
    """A server with a folder."""
    return lambda *argv, backend=None, **engine: make_api(
        backend or FakeBackend(n_ctx=8192, n_slots=2), ("--store-dir", str(tmp_path), *argv), **engine
    ).start()


@pytest.fixture
def api(make):
    return make()


# ---- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.covers("J01", "J02")
def test_each_line_is_answered_as_the_same_request_is(api):
    batch = begin(api, *(line(str(i), f"q{i}") for i in range(5)), metadata={"a": "b"})
    assert batch["status"] in ("validating", "in_progress") and batch["metadata"] == {"a": "b"}
    batch = ended(api, batch)
    assert batch["status"] == "completed" and batch["request_counts"] == counts(5, 5, 0)
    assert batch["error_file_id"] is None and batch["errors"] is None
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    assert batch["expires_at"] == batch["created_at"] + 86400
    found = lines_of(api, batch["output_file_id"])
    for i in range(5):
        response = found[str(i)]["response"]
        assert response["status_code"] == 200 and found[str(i)]["error"] is None
        assert response["request_id"] == found[str(i)]["id"]
        assert response["body"]["choices"][0]["message"]["content"] == said(chatml(("user", f"q{i}")), 4)
    about = api.get(f"{FILES}/{batch['output_file_id']}").json()
    assert about["purpose"] == "batch_output" and about["filename"] == f"{batch['id']}_output.jsonl"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_all_endpoints(make, endpoint):
    api = make("--embeddings")
    bodies = {
        CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        "/v1/completions": {"prompt": "hi", "max_tokens": 3},
        "/v1/embeddings": {"input": "hi"},
        "/v1/responses": {"input": "hi", "max_output_tokens": 3},
    }
    one = {"custom_id": "a", "method": "POST", "url": endpoint, "body": bodies[endpoint]}
    batch = ended(api, begin(api, one, endpoint=endpoint))
    body = lines_of(api, batch["output_file_id"])["a"]["response"]["body"]
    expected = api.post(endpoint, bodies[endpoint]).json()
    unlike = ("id", "created", "created_at", "completed_at", "output", "store", "timings", "usage", "cache")
    assert {name: body[name] for name in body if name not in unlike} == {
        name: expected[name] for name in expected if name not in unlike
    }
    if endpoint == "/v1/responses":
        assert body["store"] is False and api.get(f"/v1/responses/{body['id']}").status == 404


@pytest.mark.covers("J03")
def test_a_line_that_is_refused_is_in_the_file_of_errors(api):
    lines = [line("good"), line("bad", temperature="hot"), line("long", "x" * 9000), line("stream", stream=True)]
    batch = ended(api, begin(api, *lines))
    assert batch["status"] == "completed" and batch["request_counts"] == counts(4, 1, 3)
    assert set(lines_of(api, batch["output_file_id"])) == {"good"}
    found = lines_of(api, batch["error_file_id"])
    assert {name: one["response"]["status_code"] for name, one in found.items()} == dict.fromkeys(
        ("bad", "long", "stream"), 400
    )
    assert "temperature" in found["bad"]["response"]["body"]["error"]["message"]
    assert "context" in found["long"]["response"]["body"]["error"]["message"]


@pytest.mark.parametrize("data, line_, code", [
    (b"", None, "empty_file"), (b"hello\n", 1, "invalid_json_line"), (jsonl(line("a"), line("a")), 2,
    "duplicate_custom_id"), (jsonl(line("a"), line("b", url="/v1/embeddings")), 2, "invalid_url"),
    (jsonl(line("a"))[:-9], 1, "invalid_json_line"),
])  # fmt: skip
@pytest.mark.covers("J04")
def test_a_file_that_is_no_batch_fails_with_the_line_and_asks_nothing(api, data, line_, code):
    file = api.send("POST", FILES, form(data), TYPE).json()["id"]
    answer = api.post(BATCHES, {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"})
    batch = ended(api, answer.json())
    assert batch["status"] == "failed" and batch["output_file_id"] is None
    error = batch["errors"]["data"][0]
    assert (error["line"], error["code"]) == (line_, code) and error["message"]
    assert api.backend.samplers == []


def test_lines_that_begin_alike_share_what_is_computed(make):
    api = make(backend=FakeBackend(n_ctx=4096, n_slots=1))
    topics = {name: name * 900 for name in "abc"}
    lines = [line(f"{name}{i}", f"{topics[name]} {i}", max_tokens=1) for i in range(4) for name in topics]
    ended(api, begin(api, *lines))
    assert api.client.snapshot.n_prompt_tokens < 3 * 900 + len(lines) * 150


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_file_can_be_fetched_listed_and_removed(api):
    data = jsonl(line("a")) + b"\xff\x00" * 300_000
    answer = api.send("POST", FILES, form(data, "my\u00fc file.jsonl"), TYPE)
    file = answer.json()
    assert (file["object"], file["bytes"], file["purpose"], file["status"]) == ("file", len(data), "batch", "processed")
    assert file["filename"] == "my\u00fc file.jsonl" and file["expires_at"] == file["created_at"] + 30 * 86400
    path = f"{FILES}/{file['id']}"
    assert api.get(path).json() == file and api.get(path + "/content").body == data
    assert api.get(path + "/content").headers["content-type"] == "application/octet-stream"
    assert [one["id"] for one in api.get(FILES).json()["data"]] == [file["id"]]
    assert api.get(FILES + "?purpose=batch_output").json()["data"] == []
    assert api.send("DELETE", path).json() == {"id": file["id"], "object": "file", "deleted": True}
    assert [api.send(method, path).status for method in ("GET", "DELETE")] == [404, 404]
    assert api.get(path + "/content").status == 404


@pytest.mark.parametrize("body, status", [
    (form(None), 400), (form(purpose="fine-tune"), 400), (form(purpose=""), 400), (form(model="x"), 400),
    (form()[:-6], 400), (form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}), 400),
    (form(**{"expires_after[seconds]": "7200"}), 400), (form(purpose="x" * 200), 400), (b"{}", 400),
])  # fmt: skip
def test_what_is_no_upload_is_refused_and_leaves_nothing(api, tmp_path, body, status):
    answer = api.send("POST", FILES, body, TYPE)
    assert answer.status == status and answer.error["message"]
    assert list((tmp_path / "files").iterdir()) == []


def test_an_upload_that_is_cut_off_leaves_nothing(api, tmp_path):
    data = form(b"x" * 100_000)
    with api.connect() as sock:
        head = f"POST {FILES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE['Content-Type']}\r\n"
        sock.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data[:50_000])
    api.settle()
    assert list((tmp_path / "files").iterdir()) == [] and api.get(FILES).json()["data"] == []


@pytest.mark.covers("J08")
def test_files_have_a_bound_of_bytes(make):
    api = make("--store-size", "1")
    first = api.send("POST", FILES, form(b"x" * 600_000), TYPE)
    second = api.send("POST", FILES, form(b"x" * 600_000), TYPE)
    assert (first.status, second.status) == (200, 413) and "--store-size" in second.error["message"]
    api.send("DELETE", f"{FILES}/{first.json()['id']}")
    assert api.send("POST", FILES, form(b"x" * 600_000), TYPE).status == 200


def test_a_batch_whose_answers_have_no_room_fails_and_says_so(make):
    api = make("--store-size", "1")
    padding = {**line("p"), "x": "y" * 1_040_000}
    batch = ended(api, begin(api, *(line(str(i)) for i in range(40)), padding))
    assert batch["status"] == "failed" and "--store-size" in batch["errors"]["data"][0]["message"]


# ---- requests about batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"endpoint": "/v1/files"}, {"endpoint": "/v1/rerank"}, {"endpoint": None}, {"completion_window": "1h"},
    {"input_file_id": "file-x"}, {"input_file_id": None}, {"input_file_id": 3}, {"metadata": {"a": 1}},
    {"metadata": {"a": "x" * 600}}, {"output_expires_after": {"seconds": 5}}, {"output_expires_after": 7},
    {"output_expires_after": {"anchor": "created_at", "seconds": True}},
])  # fmt: skip
def test_what_is_wrong_in_a_request_is_told(api, fields):
    body = {"input_file_id": upload(api, line("a")), "endpoint": CHAT, "completion_window": "24h", **fields}
    answer = api.post(BATCHES, body)
    assert answer.status == 400 and next(iter(fields)).partition("_after")[0][-7:] in answer.error["message"]
    assert api.get(BATCHES).json()["data"] == []


def test_without_a_folder_there_are_no_batches(make_api):
    api = make_api().start()
    asks = [("POST", FILES), ("GET", FILES), ("GET", FILES + "/x/content"), ("POST", BATCHES), ("GET", BATCHES + "/x"),
            ("POST", BATCHES + "/x/cancel"), ("DELETE", FILES + "/x")]  # fmt: skip
    for method, path in asks:
        answer = api.send(method, path, b"" if method == "POST" else None)
        assert answer.status == 501 and "--store-dir" in answer.error["message"], path


def test_batches_are_listed_in_pages(api):
    ids = [begin(api, line("a"))["id"] for _ in range(3)]
    page = api.get(BATCHES + "?limit=2").json()
    assert [one["id"] for one in page["data"]] == ids[:0:-1] and page["has_more"]
    assert [one["id"] for one in api.get(f"{BATCHES}?after={ids[1]}").json()["data"]] == ids[:1]


def test_the_input_of_a_batch_stays_until_it_has_ended(make):
    api = make()
    api.backend.hold()
    batch = begin(api, line("a"))
    assert api.send("DELETE", f"{FILES}/{batch['input_file_id']}").status == 409
    api.backend.go()
    ended(api, batch)
    assert api.send("DELETE", f"{FILES}/{batch['input_file_id']}").status == 200


@pytest.mark.covers("J06")
def test_a_batch_can_be_cancelled_and_keeps_what_it_has(make):
    api = make(shift_context=True)
    lines = [line("short", max_tokens=1), *(line(str(i), max_tokens=-1, ignore_eos=True) for i in range(30))]
    batch = begin(api, *lines)
    wait_until(lambda: api.get(f"{BATCHES}/{batch['id']}").json()["request_counts"]["completed"], "an answer")
    answer = api.send("POST", f"{BATCHES}/{batch['id']}/cancel", b"")
    assert answer.status == 200 and answer.json()["status"] == "cancelling" and answer.json()["cancelling_at"]
    batch = ended(api, batch)
    assert batch["status"] == "cancelled" and batch["cancelled_at"] and batch["request_counts"] == counts(31, 1, 0)
    assert set(lines_of(api, batch["output_file_id"])) == {"short"}
    again = api.send("POST", f"{BATCHES}/{batch['id']}/cancel", b"")
    assert again.status == 409 and "cancelled" in again.error["message"]
    wait_until(api.is_idle, "the engine to be idle")


@pytest.mark.covers("J07")
def test_what_is_not_answered_in_time_is_an_error(make, monkeypatch):
    api = make(shift_context=True)
    lines = [line("short", max_tokens=1), *(line(str(i), max_tokens=-1, ignore_eos=True) for i in range(5))]
    batch = begin(api, *lines)
    wait_until(lambda: api.get(f"{BATCHES}/{batch['id']}").json()["request_counts"]["completed"], "an answer")
    monkeypatch.setattr(Batch, "is_late", True)
    batch = ended(api, batch)
    assert batch["status"] == "expired" and batch["expired_at"] and batch["request_counts"] == counts(6, 1, 5)
    errors = lines_of(api, batch["error_file_id"])
    assert {one["error"]["code"] for one in errors.values()} == {"batch_expired"} and len(errors) == 5


def test_batches_have_a_bound_of_number(make, monkeypatch):
    monkeypatch.setattr(runner_module, "MAX_OPEN_OF_KEY", 2)
    api = make()
    api.backend.hold()
    batches = [begin(api, line("a")) for _ in range(2)]
    body = {"input_file_id": batches[0]["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    assert api.post(BATCHES, body).status == 429
    api.backend.go()
    ended(api, batches[1])
    assert api.post(BATCHES, body).status == 200


def test_the_bound_for_all_keys_together_is_told_as_such(make, monkeypatch):
    monkeypatch.setattr(runner_module, "MAX_OPEN", 1)
    api = make()
    api.backend.hold()
    batch = begin(api, line("a"))
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    refused = api.post(BATCHES, body)
    assert refused.status == 429 and b"1 batches of all keys are running" in refused.body
    api.backend.go()
    ended(api, batch)


# ---- whose they are ----------------------------------------------------------------------------------------------


@pytest.mark.covers("J09")
def test_what_a_key_has_is_unknown_to_others(make):
    api = make("--api-key", "alice,bobby")
    alice, bobby = ({"Authorization": f"Bearer {key}"} for key in ("alice", "bobby"))
    batch = ended(api, begin(api, line("a"), key=alice), alice)
    for file in (batch["input_file_id"], batch["output_file_id"]):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert api.send(method, f"{FILES}/{file}{path}", None, bobby).status == 404
    assert api.send("GET", f"{BATCHES}/{batch['id']}", None, bobby).status == 404
    assert api.send("POST", f"{BATCHES}/{batch['id']}/cancel", {}, bobby).status == 404
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    assert api.send("POST", BATCHES, body, bobby).status == 400
    assert api.send("GET", FILES, None, bobby).json()["data"] == []
    assert api.send("GET", BATCHES, None, bobby).json()["data"] == []
    assert len(api.send("GET", FILES, None, alice).json()["data"]) == 2


def test_where_clients_cannot_be_told_apart_there_are_no_lists(make):
    api = make("--host", "0.0.0.0")
    batch = begin(api, line("a"))
    assert [api.get(path).status for path in (FILES, BATCHES)] == [403, 403]
    assert api.get(f"{BATCHES}/{batch['id']}").status == 200


# ---- beside others, and after a restart --------------------------------------------------------------------------


@pytest.mark.covers("J10")
def test_a_request_gets_a_slot_at_once_and_the_line_that_had_it_is_answered_later(make):
    api = make(backend=FakeBackend(n_ctx=8192, n_slots=1))
    api.backend.hold()
    batch = begin(api, line("a", max_tokens=400, ignore_eos=True), line("b"))
    api.wait_for(1)
    done: list[object] = []
    asks = [lambda: done.append(api.complete("x", 3)), api.backend.go]
    api.at_the_same_time(*asks)
    assert done
    batch = ended(api, batch)
    assert batch["request_counts"] == counts(2, 2, 0)
    [text] = [one["response"]["body"] for name, one in lines_of(api, batch["output_file_id"]).items() if name == "a"]
    assert text["choices"][0]["message"]["content"] == said(chatml(("user", "hi")), 400)


@pytest.mark.covers("J05")
def test_another_server_goes_on_where_one_has_ended(make, tmp_path):
    api = make(shift_context=True)
    lines = [line(str(i), f"q{i}", max_tokens=200, ignore_eos=True) for i in range(8)]
    batch = begin(api, *lines)
    wait_until(lambda: api.get(f"{BATCHES}/{batch['id']}").json()["request_counts"]["completed"] >= 2, "some answers")
    api.stop()
    api.wait_for_threads()
    n_before = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "files").glob("*.jsonl")) - len(lines)
    assert 2 <= n_before < 8, "it was stopped in the middle"
    again = make(shift_context=True)
    batch = ended(again, batch)
    assert batch["status"] == "completed" and batch["request_counts"] == counts(8, 8, 0)
    found = lines_of(again, batch["output_file_id"])
    for i in range(8):
        content = found[str(i)]["response"]["body"]["choices"][0]["message"]["content"]
        assert content == said(chatml(("user", f"q{i}")), 200), "an answer was cut short by the end of the server"
    assert len(again.backend.samplers) == 8 - n_before


def test_what_is_damaged_counts_as_gone(make, tmp_path):
    api = make()
    file, batch = upload(api, line("a")), ended(api, begin(api, line("a")))
    api.stop()
    (tmp_path / "files" / f"{file}.json").write_text("{")
    (tmp_path / "files" / "file-00000000000000000000000000000000.jsonl").write_text("cut off")
    (tmp_path / "batches" / f"{batch['id']}.json").write_text('{"about": 3}')
    again = make()
    assert again.get(f"{FILES}/{file}").status == 404 and again.get(f"{BATCHES}/{batch['id']}").status == 404
    assert again.get(f"{FILES}/{batch['output_file_id']}").status == 200
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert "file-00000000000000000000000000000000.jsonl" not in names
