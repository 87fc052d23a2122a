"""Access: API keys, key files that change, CORS, TLS, UNIX sockets, a prefix for all paths.

The servers are set up by command line options, with real sockets and the fake backend. Single decisions of the edge are
tested in `unit/web/test_auth.py` and `test_http_edge*.py`.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from pathlib import Path
from unittest.mock import patch

import pytest

from server.engine.seam.task import Task
from server.options.parser import OptionError
from server.service import edge
from tests.api.conftest import PATIENCE, Answer, Api

PEM = Path(__file__).with_name("localhost_tls.pem")  # a key and its certificate for localhost
PAGE = {"Origin": "http://localhost:3000"}
BODY = {"prompt": "x", "n_predict": 2}
INVALID = {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}


def ask(api: Api, key: str | None) -> int:
    """The status of a completion with this key."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return api.send("POST", "/completion", BODY, headers).status


# ---- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.covers("C26", "E18")
def test_with_a_key_set_nobody_is_served_without_it(make_api):
    api = make_api(None, ("--api-key", "first", "--api-key", "second,third")).start()
    for headers in (
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer second"},
        {"X-Api-Key": "third"},
        {"Authorization": "first"},
    ):
        assert api.send("POST", "/completion", BODY, headers).status == 200, headers
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"X-Api-Key": "first,second"},
        {"Authorization": "Bearer second,third"},
    ):
        answer = api.send("POST", "/completion", BODY, headers)
        assert (answer.status, answer.json()) == (401, INVALID), headers


def test_every_task_says_whose_it_is(make_api):
    api = make_api(None, ("--api-key", "first,second")).start()
    owners = []
    with patch.object(api.transport, "post", wraps=api.transport.post) as post:
        for key, stream in (("first", False), ("first", True), ("second", False)):
            body = {**BODY, "messages": [{"role": "user", "content": "x"}], "stream": stream}
            for path in ("/completion", "/v1/completions", "/v1/chat/completions"):
                assert api.send("POST", path, body, {"X-Api-Key": key}).status == 200
            owners.append({call.args[0].owner for call in post.call_args_list if isinstance(call.args[0], Task)})
            post.reset_mock()
    assert owners[0] == owners[1] != owners[2] and all(len(owner) == 1 and "" not in owner for owner in owners)


def test_without_keys_a_task_is_its_address_s(make_api):
    api = make_api().start()
    with patch.object(api.transport, "post", wraps=api.transport.post) as post:
        api.complete("x", 2)
    assert [call.args[0].owner for call in post.call_args_list if isinstance(call.args[0], Task)] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/completion"),
        ("POST", "/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/infill"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/props"),
        ("POST", "/props"),
        ("GET", "/slots"),
        ("GET", "/slots/timeline"),
        ("GET", "/debug/cache"),
        ("POST", "/slots/0?action=erase"),
        ("GET", "/metrics"),
        ("GET", "/lora-adapters"),
        ("POST", "/lora-adapters"),
        ("POST", "/apply-template"),
    ],
)
def test_everything_that_tells_or_does_something_wants_a_key(keyed, method, path):
    answer = keyed.send(method, path, {} if method == "POST" else None)
    assert (answer.status, answer.json()) == (401, INVALID)
    assert keyed.send(method, path, {} if method == "POST" else None, {"X-Api-Key": "good"}).status != 401


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/models", "/", "/completion.js"])
def test_whether_it_is_alive_what_it_serves_and_the_page_are_public(keyed, path):
    assert keyed.get(path).status == 200


def test_asking_what_may_be_done_needs_no_key(keyed):
    answer = keyed.send(
        "OPTIONS",
        "/completion",
        headers={**PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"},
    )
    assert answer.status == 200 and answer.body == b""
    assert answer.headers["access-control-allow-origin"] == PAGE["Origin"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_an_unknown_path_is_no_matter_of_keys(keyed):
    answer = keyed.get("/nothing-here")
    assert answer.status == 404 and answer.error["type"] == "not_found_error"


@pytest.fixture(scope="module")
def keyed():
    """A server with the key "good"."""
    one = Api(argv=("--api-key", "good")).start()
    yield one
    one.stop()


@pytest.mark.covers("C27")
def test_a_key_file_adds_keys_and_is_read_again_when_it_changes(make_api, tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("one\n\n# a comment\ntwo\n")
    api = make_api(None, ("--api-key", "given", "--api-key-file", str(path))).start()
    assert [ask(api, key) for key in ("given", "one", "two", "# a comment", None)] == [200, 200, 200, 401, 401]
    path.write_text("three\n")
    os.utime(path, (1, 1))  # a clock that doesn't tick between two writes hides nothing
    api.keys.refresh()
    assert [ask(api, key) for key in ("given", "one", "three")] == [200, 401, 200]


@pytest.mark.parametrize("change", ["gone", "empty", "not text"])
def test_a_key_file_that_breaks_leaves_the_keys_as_they_are(make_api, tmp_path, change, caplog):
    path = tmp_path / "keys.txt"
    path.write_text("one\n")
    api = make_api(None, ("--api-key-file", str(path))).start()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\n \n" if change == "empty" else b"\xff\xfe\xff")
    for _ in range(3):
        api.keys.refresh()
    assert [ask(api, key) for key in ("one", None, "")] == [200, 401, 401], "never open by accident"
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1, "said once"
    path.write_text("new\n")
    api.keys.refresh()
    assert [ask(api, key) for key in ("one", "new")] == [401, 200]


@pytest.mark.parametrize("data", [b"", b"# only a comment\n", b"\xff\xfe\xff"])
def test_a_key_file_without_a_key_does_not_open_the_server(tmp_path, data):
    path = tmp_path / "keys.txt"
    path.write_bytes(data)
    with pytest.raises(OptionError, match="--api-key-file"):
        Api(argv=("--api-key-file", str(path)))


# ---- pages of other origins --------------------------------------------------------------------------------------


@pytest.mark.covers("E14")
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/completion", BODY, 200),
        ("POST", "/completion", {**BODY, "stream": True}, 200),
        ("POST", "/completion", {**BODY, "top_k": "x"}, 400),
        ("POST", "/completion", b"{", 400),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}, 200),
        ("GET", "/health", None, 200),
        ("GET", "/metrics", None, 501),
        ("GET", "/nothing", None, 404),
        ("DELETE", "/completion", None, 405),
        ("GET", "/", None, 200),
    ],
)
def test_every_kind_of_answer_may_be_read_by_pages_of_this_machine(api, method, path, body, status):
    answer = api.send(method, path, body, PAGE)
    assert answer.status == status, answer
    assert answer.headers["access-control-allow-origin"] == PAGE["Origin"]
    foreign = api.send("GET", path, None, {"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_a_refused_key_may_be_read_too(keyed):
    answer = keyed.send("POST", "/completion", BODY, PAGE)
    assert answer.status == 401 and answer.headers["access-control-allow-origin"] == PAGE["Origin"]


def test_further_origins_are_an_option(make_api):
    page = {"Origin": "https://chat.example"}
    closed, opened, all_open = (
        make_api(None, argv).start()
        for argv in ((), ("--cors-origins", "https://chat.example"), ("--cors-origins", "*"))
    )
    assert closed.send("POST", "/completion", BODY, page).status == 403
    assert opened.send("POST", "/completion", BODY, page).headers["access-control-allow-origin"] == page["Origin"]
    assert (
        all_open.send("POST", "/completion", {**BODY, "stream": True}, page).headers["access-control-allow-origin"]
        == "*"
    )


def test_answers_say_their_type_and_characters(api):
    for path, kind in (
        ("/health", "application/json; charset=utf-8"),
        ("/props", "application/json; charset=utf-8"),
        ("/nothing", "application/json; charset=utf-8"),
        ("/", "text/html; charset=utf-8"),
    ):
        assert api.get(path).headers["content-type"] == kind, path
    stream = api.post("/completion", {**BODY, "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")


# ---- TLS ---------------------------------------------------------------------------------------------------------


def over_tls(api: Api, path: str, body: object = None, trust: Path = PEM) -> Answer:
    """One request over TLS by a client that checks the certificate and the name."""
    context = ssl.create_default_context(cafile=str(trust))
    connection = http.client.HTTPSConnection("localhost", api.server.port, timeout=PATIENCE, context=context)
    connection.sock = context.wrap_socket(api.connect(), server_hostname="localhost")
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


@pytest.mark.covers("C55", "C56")
def test_with_a_certificate_the_server_speaks_tls_and_nothing_else(make_api):
    api = make_api(None, ("--ssl-key-file", str(PEM), "--ssl-cert-file", str(PEM))).start()
    assert api.server.url.startswith("https://")
    assert over_tls(api, "/health").json()["status"] == "ok"
    plain = over_tls(api, "/completion", {"prompt": "secret", "n_predict": 6}).json()["content"]
    events = over_tls(api, "/completion", {"prompt": "secret", "n_predict": 6, "stream": True}).events()
    assert "".join(event["content"] for event in events) == plain != "" and events[-1]["stop"]
    refused = api.get("/health")  # in plain HTTP
    assert refused.status == 400 and "https://" in refused.error["message"]


@pytest.mark.parametrize("names", [("--ssl-key-file",), ("--ssl-cert-file",)])
def test_half_of_a_certificate_is_refused(names):
    with pytest.raises(OptionError, match="HTTPS needs both"):
        Api(argv=(names[0], str(PEM)))


def test_what_is_no_certificate_is_refused_in_one_line(tmp_path):
    path = tmp_path / "not.pem"
    path.write_text("hello")
    with pytest.raises(OptionError) as caught:
        Api(argv=("--ssl-key-file", str(path), "--ssl-cert-file", str(PEM)))
    assert "--ssl-key-file" in str(caught.value) and "\n" not in str(caught.value)


# ---- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("C23")
@pytest.mark.skipif(os.name == "nt", reason="not on Windows: no UNIX sockets")
def test_a_unix_socket_serves_completions(make_api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # such paths must be short
    make_api(None, ("--host", "llm.sock", "--api-key", "good")).start()
    body = json.dumps({**BODY, "stream": True}).encode()
    for key, status in ((b"good", b"200"), (b"bad", b"401")):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect("llm.sock")
            sock.sendall(
                b"POST /completion HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Api-Key: %s\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (key, len(body), body)
            )
            answer = sock.makefile("rb").read()
        assert answer.split(b" ")[1] == status
        assert (b'"stop":true' in answer) == (key == b"good")


def test_all_paths_move_behind_a_prefix(make_api):
    api = make_api(None, ("--api-prefix", "/llm/v2", "--api-key", "good", "--slots")).start()
    key = {"X-Api-Key": "good"}
    assert api.get("/llm/v2/health").json()["status"] == "ok"
    assert api.get("/llm/v2/v1/models").json()["object"] == "list"
    assert len(api.send("POST", "/llm/v2/completion", BODY, key).json()["content"]) == 2
    assert api.send("GET", "/llm/v2/slots", None, key).status == 200
    assert api.send("POST", "/llm/v2/completion", BODY).status == 401
    page = api.get("/llm/v2/")
    assert page.status == 200 and b"<html" in page.body.lower()
    assert api.get("/llm/v2/completion.js").status == 200
    for path in ("/health", "/completion", "/completion.js", "/llm/health", "/llm/v2x/health"):
        assert api.send("GET", path, None, key).status == 404, path


# ---- what is said at the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), []),
        (("-v",), []),
        (("--host", "0.0.0.0"), ["without an API key"]),
        (("--host", "0.0.0.0", "--api-key", "k"), []),
        (("--api-key", "k", "-v"), ["--verbose"]),
        (("--host", "0.0.0.0", "-v"), ["without an API key", "--verbose"]),
    ],
)
def test_an_open_door_and_a_telling_log_are_warned_of(make_api, caplog, argv, said):
    api = make_api(None, argv)
    edge.warn_if_open(api.options.http, api.server, api.keys, api.options.logging.verbose)
    assert len(caplog.records) == len(said)
    assert all(part in record.getMessage() for part, record in zip(said, caplog.records))


@pytest.mark.parametrize(
    ("argv", "is_local", "is_said"),
    [
        ((), True, True),
        (("--allowed-hosts", "llm.example.com"), True, False),
        ((), False, False),  # it listens on other addresses as well
    ],
)
def test_the_check_of_the_host_header_is_told_where_it_is_made(make_api, monkeypatch, caplog, argv, is_local, is_said):
    api = make_api(None, argv)
    monkeypatch.setattr(type(api.server), "is_local", is_local)
    caplog.set_level("INFO")
    edge.warn_if_open(api.options.http, api.server, api.keys, False)
    assert any("--allowed-hosts" in record.getMessage() for record in caplog.records) == is_said
