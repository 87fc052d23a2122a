"""Attacks on the real routes: hostile JSON, requests from other sites' pages, wrong host names, greedy and silent
clients.

Every case runs against the whole server with the fake backend; `test_http_edge*.py` tests how the edge parses bytes.
Each attack must be answered by a clear 4xx, take no slot and cause no 500, and the next valid request must be answered.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from dataclasses import replace
from unittest.mock import patch

import pytest

from server.api.context import Context
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS
from server.api.routes import make_routes
from server.options.groups import group
from server.options.parser import parse
from server.service import edge
from tests.api.conftest import PATIENCE, Api
from tests.fakes import FakeBackend
from tests.support import wait_until

BODY = {"prompt": "x", "n_predict": 1}
FIELDS = sorted(
    {name for field in (*COMPLETION_FIELDS, *SAMPLING_FIELDS) for name in (field.name, *field.aliases)}
    | set(
        """messages model tools tool_choice response_format json_schema grammar regex choice logprobs top_logprobs
    stream_options echo suffix chat_template_kwargs system_prompt user metadata image_data""".split()
    )
    - {"n_predict", "max_tokens", "max_completion_tokens", "n_cmpl", "n"}
)
LIMITS = edge.read_limits


@pytest.fixture(scope="module")
def open_api():
    """A server with everything switched on that can be."""
    one = Api(FakeBackend(n_ctx=1024, n_slots=2), ("--props", "--metrics", "--debug-stacks")).start()
    yield one
    one.stop()


def post_paths() -> list[str]:
    """Every POST route, with its placeholders filled in."""
    return sorted(
        {
            route.path.replace("{id_slot}", "0")
            for route in make_routes(Context(None, group(parse([], {})).api))
            if route.method == "POST"
        }
    )


def serves(api: Api) -> None:
    """The next honest request is answered, and nothing is left of the others."""
    assert api.post("/completion", BODY).status == 200
    api.settle()
    assert api.is_idle()


# ---- bodies ------------------------------------------------------------------------------------------------------

NASTY = {
    "nothing": b"",
    "blank": b" \n",
    "half": b'{"prompt": "x',
    "two": b"{} {}",
    "number": b"5",
    "text": b'"x"',
    "null": b"null",
    "list": b"[]",
    "list of lists": b"[" * 200 + b"]" * 200,
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep and closed": b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "top_k": Infinity}',
    "minus Infinity": b'{"prompt": "x", "top_p": -Infinity}',
    "1e999": b'{"prompt": "x", "temperature": 1e999}',
    "digits": b'{"prompt": "x", "n_predict": ' + b"9" * 100_000 + b"}",
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate in a name": b'{"\\udfff": 1, "prompt": "x"}',
    "raw NUL": b'{"prompt": "a\0b"}',
    "raw newline": b'{"prompt": "a\nb"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "UTF-32": '{"prompt": "x"}'.encode("utf-32"),
    "Latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "half a character": b'{"prompt": "\xe2\x82"}',
    "overlong": b'{"prompt": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "comment": b'{"prompt": "x" /* y */}',
    "single quotes": b"{'prompt': 'x'}",
    "trailing comma": b'{"prompt": "x",}',
    "form": b"prompt=x&n_predict=1",
    "multipart": b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--x--',
    "gzip": gzip.compress(b'{"prompt": "x"}'),
    "pickle": b"\x80\x04\x95.",
    "xml": b"<?xml version='1.0'?><a/>",
}


@pytest.mark.parametrize("path", post_paths())
def test_a_body_that_is_no_json_object_is_refused_by_every_route(open_api, path):
    for name, body in NASTY.items():
        answer = open_api.send("POST", path, body)
        if path == "/debug/stacks" or path.startswith("/slots/") or path.endswith("/cancel"):
            assert answer.status in (200, 400, 404, 501), (name, answer)  # these take no body
            continue
        empty_is_fine = path in ("/lora-adapters", "/v1/conversations")  # an empty list, or no body at all
        expected = (415,) if "/audio/" in path else (200, 400) if empty_is_fine else (400, 501)  # those take forms
        assert answer.status in expected, (name, answer)
        assert answer.status == 200 or len(answer.error["message"]) < 300, name
    serves(open_api)


@pytest.mark.parametrize(
    "value",
    [
        1e308,
        -1e308,
        5e-324,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**400,
        True,
        "",
        "x" * 100_000,
        "\0",
        "\x1b[2J",
        "\r\nX-A: b",
        [],
        {},
        [[]],
        [None],
        {"a": {"b": []}},
        "../../etc/passwd",
        "%00",
        "é" * 1000,
        "\u202e",
        [1e308] * 1000,
        list(range(10_000)),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_odd_value_in_any_field_is_taken_or_refused(open_api, value):
    for path, body in (
        ("/completion", BODY),
        ("/v1/completions", {"prompt": "x", "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    ):
        for name in FIELDS:
            answer = open_api.post(path, {**body, "n_predict": 1, name: value})
            assert answer.status in (200, 400, 501), (path, name, answer)
            assert b"\r\nX-A" not in answer.body and "x-a" not in answer.headers
    serves(open_api)


@pytest.mark.parametrize(
    "prompt",
    [
        "\0",
        "a\0b",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
        "\x7f\x80\x9f",
        "\u2028\u2029",
        "\\u0000",
        "<s></s><s>",
        "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=ascii,
)
def test_every_character_may_stand_in_a_prompt(open_api, prompt):
    assert open_api.complete(prompt, 1)["prompt"] == prompt


def test_of_two_equal_names_the_last_counts(open_api):
    answer = open_api.send("POST", "/completion", b'{"prompt": "a", "n_predict": 50, "prompt": "b", "n_predict": 1}')
    assert (answer.json()["prompt"], answer.json()["tokens_predicted"]) == ("b", 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP", "x-gzip"])
def test_compressed_bodies_are_refused_before_they_are_looked_at(open_api, coding):
    bomb = gzip.compress(b'{"prompt": "' + b"x" * 10_000_000 + b'"}')
    answer = open_api.send("POST", "/completion", bomb, {"Content-Encoding": coding})
    assert answer.status == 415 and "Content-Encoding" in answer.error["message"]
    serves(open_api)


# ---- pages and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "file://",
        "http://evil.example:8080",
        "chrome-extension://abc",
        "localhost",
    ],
)
@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", ""],
)
def test_a_foreign_page_cannot_make_the_server_do_anything(open_api, origin, kind):
    headers = {"Origin": origin, **({"Content-Type": kind} if kind else {})}
    for path in post_paths():
        answer = open_api.send("POST", path, BODY, headers)
        assert answer.status == 403 and answer.error["type"] in ("permission_error", ""), path
        assert "access-control-allow-origin" not in answer.headers
    assert open_api.send("POST", "/completion", BODY, {**headers, "Sec-Fetch-Site": "cross-site"}).status == 403
    serves(open_api)


def test_a_foreign_page_gets_no_preflight(open_api):
    answer = open_api.send(
        "OPTIONS",
        "/completion",
        None,
        {
            "Origin": "https://evil.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1].evil.example",
        "127.0.0.1@evil.example",
        "evil.example#localhost",
        "0x7f.1",
        "169.254.169.254",
    ],
)
def test_a_name_that_points_here_by_a_trick_is_not_served(open_api, host):
    for path in ("/slots", "/props", "/health", "/", "/v1/models"):
        with open_api.connect() as sock, sock.makefile("rb") as answer:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert answer.readline().split()[1] in (b"403", b"400"), path


@pytest.mark.parametrize(
    "path",
    [
        "/../llama_srv.py",
        "/..%2fllama_srv.py",
        "/%2e%2e/llama_srv.py",
        "/%2e%2e%2fllama_srv.py",
        "/..%5cllama_srv.py",
        "/..\\llama_srv.py",
        "/%252e%252e/llama_srv.py",
        "/%c0%ae%c0%ae/llama_srv.py",
        "/%e0%80%ae%e0%80%ae/llama_srv.py",
        "/....//llama_srv.py",
        "/./../llama_srv.py",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/C:/Windows/win.ini",
        "/C%3a%5cWindows",
        "/index.html/../../llama_srv.py",
        "/index.html%00.png",
        "/index.html%0d%0aX-A:%20b",
        "/.git/config",
        "/%2egit/config",
        "/index.html::$DATA",
        "/index.html.",
        "/con",
        "/slots/../completion.js",
        "/index.html%20",
        "/～/x",
    ],
)
def test_no_spelling_of_a_path_leads_out_of_the_page_s_folder(open_api, path):
    with open_api.connect() as sock, sock.makefile("rb") as answer:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode("utf-8"))
        text = answer.read()
    assert text.split()[1] in (b"404", b"400"), text[:200]
    assert b"import" not in text and b"root:" not in text and b"X-A" not in text


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "a\0b", "é", "x" * 200, "<script>", "a b"])
def test_an_id_that_could_do_harm_is_replaced(open_api, name):
    with open_api.connect() as sock, sock.makefile("rb") as answer:
        sock.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: %b\r\n\r\n"
            % name.encode("utf-8")
        )
        head = answer.read().partition(b"\r\n\r\n")[0]
    assert b"Evil" not in head and name.encode() not in head


def test_an_alias_is_only_ever_a_json_string(make_api):
    alias = 'a"b\r\nX-Evil: 1<script>'
    api = make_api(None, ("--alias", alias)).start()
    for answer in (api.post("/completion", BODY), api.get("/v1/models"), api.get("/props")):
        assert answer.status == 200 and "x-evil" not in answer.headers
        assert json.dumps(alias, ensure_ascii=False).encode() in answer.body


# ---- greedy and silent clients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /health HTTP/1.1\r\nX-A: b\r\n"])
def test_silent_connections_keep_nobody_out(make_api, sent):
    silent: list[socket.socket] = []
    with patch.object(edge, "read_limits", lambda options: replace(LIMITS(options), spare_s=0.0)):
        api = make_api(None, ("--max-connections", "20")).start()
    try:
        for _ in range(15):
            silent += [api.connect() for _ in range(20)]
            for sock in silent[-20:]:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(sent)
            assert api.complete("x", 2)["tokens_predicted"] == 2
        wait_until(lambda: api.server.n_connections <= 21, "the end of those that were cut", PATIENCE)
    finally:
        for sock in silent:
            sock.close()


def test_who_has_just_come_is_not_sent_away_for_others(make_api):
    api = make_api(None, ("--max-connections", "3")).start()
    first = [api.connect() for _ in range(3)]
    wait_until(lambda: api.server.n_connections == 3, "the connections", PATIENCE)
    assert api.get("/health").status == 503
    first[0].sendall(b"GET /health HTTP/1.0\r\n\r\n")
    assert first[0].recv(100).startswith(b"HTTP/1.1 200")
    for sock in first:
        sock.close()


def test_a_reader_that_reads_nothing_holds_up_nobody(make_api):
    api = make_api(FakeBackend(n_ctx=4096, n_slots=2), shift_context=True).start()
    stuck = api.begin({"prompt": "x", "n_predict": -1, "stream": True})
    api.wait_for(1)
    for i in range(5):
        assert api.complete(f"other {i}", 20)["tokens_predicted"] == 20
    stuck.close()
    api.settle()
    assert api.is_idle()


@pytest.mark.covers("C22")
def test_the_timeout_is_how_long_a_client_may_stay_silent(make_api):
    api = make_api(None, ("--timeout", "0.2")).start()
    with api.begin(BODY, n_body=5) as sock, sock.makefile("rb") as answer:
        assert answer.readline().split()[1] == b"408"
    assert api.complete("x", 2)["tokens_predicted"] == 2


@pytest.mark.covers("C22")
@pytest.mark.parametrize(
    ("argv", "seconds"),
    [
        ((), 30.0),
        (("--timeout", "600"), 600.0),
        (("-to", "5"), 5.0),
        (("--compat", "2024"), 600.0),
        (("--compat", "2024", "-to", "7"), 7.0),
    ],
)
def test_the_timeout_counts_for_reading_and_writing(argv, seconds):
    made = edge.read_limits(group(parse(list(argv), {})).http)
    assert (made.body_s, made.write_s) == (seconds, seconds)
