"""Fetching and removing models by request: permissions, answers during a download, and the models that each key sees."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from server.api.admin import library as library_routes
from server.api.admin.library import download_event
from server.library.library import Library
from server.models.catalogue import find_models
from server.models.entry import Entry
from server.models.models import Models
from server.options.groups import group
from server.options.parser import parse
from tests.support import PATIENCE, wait_until
from tests.unit.download.fake_site import no_proxy  # noqa: F401
from tests.unit.download.test_download_hub import REPO, FakeHub, model

ADMIN = {"Authorization": "Bearer root"}
MANAGED = ("--manage-models", "--admin-key", "root")


@pytest.fixture
def hub(monkeypatch):
    """The hub that the environment names."""
    hub = FakeHub()
    monkeypatch.setenv("MODEL_ENDPOINT", hub.url)
    yield hub
    hub.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of downloads."""
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two models."""
    (tmp_path / "models").mkdir()
    for name in ("a", "b"):
        (tmp_path / "models" / f"{name}.gguf").write_bytes(b"GGUF" + name.encode() * 100)
    return tmp_path / "models"


def several(api, folder: Path, cache: Path) -> Models:
    """Have a server of the tests serve the models of a folder, none of which it can load."""
    options = group(parse(["--models-dir", str(folder)], {}))

    def entries() -> list[Entry]:
        found = find_models(options.catalogue, cache, lambda line: None)
        return [Entry(one.name, one, one.aliases, one.tags, one.path, one.source, one.size) for one in found]

    models = api.context.models
    models.register.put(entries())
    models.register.lone = None
    if api.context.library is not None:
        api.context.library = Library(
            cache,
            lambda: models.renew(entries()),
            lambda download: models.news.tell(download_event(download)),
            folders=[folder],
        )
    return models


@pytest.fixture
def managed(make_api, cache, folder):
    """A server with two models that an admin may manage, and a key for others."""
    api = make_api(argv=(*MANAGED, "--api-key", "user")).start()
    several(api, folder, cache)
    yield api
    api.context.library.close()
    wait_until(lambda: not api.context.library.list_running(), "the end of downloads")


def names(api, key: str = "") -> list[str]:
    """The models that a key sees."""
    answer = api.send("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    return [row["id"] for row in answer.json()["data"]]


# ---- rights ----------------------------------------------------------------------------------------------------------

REQUESTS = (
    ("POST", "/models", {"model": REPO}),
    ("DELETE", "/models?model=a", None),
    ("POST", "/api/pull", {"model": REPO}),
    ("DELETE", "/api/delete", {"model": "a"}),
)


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
@pytest.mark.covers("D06")
def test_only_an_admin_of_a_server_that_allows_it_manages_models(make_api, managed, folder, method, path, body, hub):
    for headers, status in (({}, 401), ({"X-Api-Key": "user"}, 403), ({"X-Api-Key": "rot"}, 401)):
        answer = managed.send(method, path, body, headers)
        assert answer.status == status and answer.error["message"]
    bare = make_api(argv=("--admin-key", "root")).start()
    assert bare.send(method, path, body, ADMIN).status == 501
    assert bare.send(method, path, body).status == 501
    assert hub.seen == [] and len(list(folder.iterdir())) == 2


def test_a_server_for_everybody_still_asks_for_the_admins_key(make_api, cache, folder):
    api = make_api(argv=MANAGED).start()
    several(api, folder, cache)
    assert names(api) == ["a", "b"]
    assert api.send("DELETE", "/models?model=a").status == 403
    assert api.send("DELETE", "/models?model=a", headers=ADMIN).status == 200
    assert names(api) == ["b"]


# ---- fetching --------------------------------------------------------------------------------------------------------


def test_a_model_is_fetched_while_the_server_goes_on(managed, hub):
    hub.publish("m-Q4_K_M.gguf")
    answer = managed.send("POST", "/models", {"model": REPO, "odd": 1}, ADMIN)
    assert answer.status == 200
    body = answer.json()
    assert (body["success"], body["model"]) == (True, REPO) and "odd" in body["warnings"][0]
    wait_until(lambda: len(names(managed, "user")) == 3, "the model in the list")
    assert f"{REPO}:Q4_K_M" in names(managed, "user")


def test_events_tell_of_a_download(managed, hub):
    hub.publish("m-Q4_K_M.gguf")
    with managed.context.models.news.read() as queue:
        managed.send("POST", "/models", {"model": REPO}, ADMIN)
        told = []
        while not told or told[-1]["event"] not in ("download_finished", "download_failed"):
            told.append(queue.get(timeout=30))
    assert told[-1] == {"model": REPO, "event": "download_finished", "data": {}}
    size = len(model("m-Q4_K_M.gguf"))
    assert {"progress": {"m-Q4_K_M.gguf": {"done": 0, "total": size}}} in [event["data"] for event in told]
    assert all(event["event"] == "download_progress" for event in told[:-1])


def test_ollamas_clients_pull_with_a_bar(managed, hub):
    hub.publish("m-Q4_K_M.gguf")
    answer = managed.send("POST", "/api/pull", {"model": f"hf.co/{REPO}", "insecure": True}, ADMIN)
    assert answer.status == 200 and answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert lines[0] == {"status": "pulling manifest"} and lines[-1] == {"status": "success"}
    bars = [line for line in lines if "digest" in line]
    assert bars and {line["digest"] for line in bars} == {bars[0]["digest"]}
    assert all(line["completed"] <= line["total"] == len(model("m-Q4_K_M.gguf")) for line in bars)
    again = managed.send("POST", "/api/pull", {"name": REPO, "stream": False}, ADMIN)
    assert again.json() == {"status": "success"}


def test_a_failed_pull_says_why(managed, hub):
    answer = managed.send("POST", "/api/pull", {"model": "nobody/nothing"}, ADMIN)
    assert answer.status == 200 and "nobody/nothing" in json.loads(answer.body.splitlines()[-1])["error"]
    answer = managed.send("POST", "/api/pull", {"model": "nobody/nothing", "stream": False}, ADMIN)
    assert answer.status == 500 and "nobody/nothing" in answer.error["message"]


@pytest.mark.parametrize(
    "name",
    [None, "", 5, ["x"], "llama3.2", "http://127.0.0.1:1/x.gguf", "/etc/passwd", "../../x", "u/m:../..", "x" * 10000],
)
@pytest.mark.parametrize("path", ["/models", "/api/pull"])
def test_what_is_no_repository_is_refused_at_once(managed, hub, path, name):
    answer = managed.send("POST", path, {"model": name}, ADMIN)
    assert answer.status == 400 and len(answer.error["message"]) < 300 and hub.seen == []


def test_a_download_without_news_ends_with_the_client_that_waits_for_it(managed, hub, monkeypatch):
    monkeypatch.setattr(library_routes, "TELL_EVERY_S", 0.05)
    hub.publish("m-Q4_K_M.gguf")
    event = threading.Event()
    hub.things[f"/{REPO}/resolve/main/m-Q4_K_M.gguf"].on_request = lambda thing: event.wait(PATIENCE)
    data = json.dumps({"model": REPO}).encode()
    sock = managed.connect()
    head = f"POST /api/pull HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: root\r\nContent-Length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    assert b"pulling manifest" in sock.recv(4096) + sock.recv(4096)
    (download,) = managed.context.library.list_running()
    sock.close()
    wait_until(download.must_stop.is_set, "the end of the download")
    event.set()


# ---- removing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/models?model=a", None),
        ("DELETE", "/models", {"model": "a"}),
        ("DELETE", "/api/delete", {"model": "a"}),
        ("DELETE", "/api/delete", {"name": "a"}),
    ],
)
def test_a_model_is_removed(managed, folder, method, path, body):
    assert managed.send(method, path, body, ADMIN).status == 200
    assert names(managed, "user") == ["b"] and [file.name for file in folder.iterdir()] == ["b.gguf"]
    assert managed.send(method, path, body, ADMIN).status == 404


def test_what_is_at_work_is_not_removed(managed, folder):
    entry = managed.context.models.find("a", "")
    entry.n_leases = 1
    answer = managed.send("DELETE", "/models?model=a", headers=ADMIN)
    assert answer.status == 409 and "a is busy" in answer.error["message"] and (folder / "a.gguf").is_file()
    entry.n_leases = 0
    assert managed.send("DELETE", "/models?model=a", headers=ADMIN).status == 200


def test_files_elsewhere_stay_and_so_does_their_model(managed, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.gguf").write_bytes(b"GGUF" + b"c" * 100)
    try:
        (folder / "way").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("no right to make links")
    managed.context.library.changed()
    assert "way" in names(managed, "user")
    answer = managed.send("DELETE", "/models?model=way", headers=ADMIN)
    assert answer.status == 400 and "is not in a folder of models" in answer.error["message"]
    assert (tmp_path / "elsewhere" / "c.gguf").is_file() and "way" in names(managed, "user")


@pytest.mark.parametrize("name", ["", "../models/a", "a.gguf", "/etc/passwd", "c"])
@pytest.mark.covers("D06")
def test_only_models_of_the_list_are_removed(managed, folder, name):
    answer = managed.send("DELETE", "/models", {"model": name}, ADMIN)
    assert answer.status in (400, 404) and len(list(folder.iterdir())) == 2


def test_a_server_of_one_model_keeps_it(make_api, cache):
    api = make_api(argv=MANAGED).start()
    answer = api.send("DELETE", "/models?model=fake.gguf", headers=ADMIN)
    assert answer.status == 501 and "can't be removed" in answer.error["message"]
    for path in ("push", "create", "copy"):
        assert api.send("POST", f"/api/{path}", {"model": "x"}, ADMIN).status == 501


# ---- keys that are limited -------------------------------------------------------------------------------------------


@pytest.mark.covers("D07")
def test_a_key_sees_and_uses_only_its_models(make_api, cache, folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("all\nana models=a\n", encoding="utf-8")
    api = make_api(argv=("--api-key-file", str(keys), "--admin-key", "root")).start()
    several(api, folder, cache)
    assert [names(api, key) for key in ("all", "ana", "root", "")] == [["a", "b"], ["a"], ["a", "b"], []]
    tags = api.send("GET", "/api/tags", headers={"X-Api-Key": "ana"}).json()["models"]
    assert [row["name"] for row in tags] == ["a:latest"]
    for path, body in (
        ("/v1/chat/completions", {"messages": []}),
        ("/models/load", {}),
        ("/tokenize", {"content": "x"}),
    ):
        answers = [api.send("POST", path, {**body, "model": name}, {"X-Api-Key": "ana"}) for name in ("b", "gone")]
        messages = [answer.error["message"].replace(name, "X") for answer, name in zip(answers, ("b", "gone"))]
        assert [answer.status for answer in answers] == [404, 404] and messages[0] == messages[1], path
    answer = api.send("GET", "/v1/models/b", headers={"X-Api-Key": "ana"})
    assert answer.status == 404
    assert api.send("GET", "/v1/models/a", headers={"X-Api-Key": "ana"}).status == 200


def test_the_one_model_of_a_server_is_refused_to_keys_of_others(make_api, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("all\nana models=other\nben models=mine\n", encoding="utf-8")
    api = make_api(argv=("--api-key-file", str(keys), "-a", "mine")).start()
    status = {
        key: api.send("POST", "/completion", {"prompt": "x", "n_predict": 1}, {"X-Api-Key": key}).status
        for key in ("all", "ana", "ben")
    }
    assert status == {"all": 200, "ana": 404, "ben": 200}
