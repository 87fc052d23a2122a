"""How the HTTP edge handles valid and hostile requests: a real server, raw sockets."""

from __future__ import annotations

import socket

import pytest

from server.web import sse
from server.web.auth import CorsPolicy, KeyRing
from server.web.static import StaticFiles
from tests.api.http_edge import HOST, PATIENCE, Client, client, post, server, site, start  # noqa: F401 (fixtures)
from tests.support import wait_until

# ---------------------------------------------------------------------------------------------- hostile
# shapes

HOSTILE = {
    "both lengths": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "two lengths": (post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"), 400),
    "length list": (post(b"Content-Length: 5, 5", body=b"hello"), 400),
    "negative length": (post(b"Content-Length: -5"), 400),
    "signed length": (post(b"Content-Length: +5", body=b"hello"), 400),
    "huge length": (post(b"Content-Length: " + b"9" * 30), 400),
    "too large": (post(b"Content-Length: 1001"), 413),
    "other coding": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "hidden coding": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "compressed": (post(b"Content-Encoding: gzip", b"Content-Length: 5", body=b"hello"), 415),
    "folded header": (post(b"A: b", b" c: d", b"Content-Length: 0"), 400),
    "space before colon": (post(b"Content-Length : 5", body=b"hello"), 400),
    "no length": (post(), 411),
    "bad chunk size": (post(b"Transfer-Encoding: chunked", body=b"xyz\r\n"), 400),
    "overlong chunk": (post(b"Transfer-Encoding: chunked", body=b"1\r\nxx\r\n0\r\n\r\n"), 400),
    "too large in chunks": (post(b"Transfer-Encoding: chunked", body=b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n"), 413),
    "bare line feeds": (b"GET /hello HTTP/1.1\nHost: x\n\n", 400),
    "no version": (b"GET /hello\r\n\r\n", 400),
    "garbage": (b"hello\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "long line": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n", 414),
    "large head": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 90 + b"B: " + b"c" * 70_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101, 431),
    "NUL in header": (b"GET / HTTP/1.1\r\nA: \0\r\n", 400),
}


@pytest.mark.parametrize(("data", "status"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_shape_is_refused_and_the_connection_closed(start, data, status):
    server = start(body_bytes=1000)
    client = Client(server).send(data)
    answer = client.read()
    assert answer.status == status
    answer.error()
    assert answer.headers["connection"] == "close" and answer.headers["x-request-id"]
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed(), "what follows was read as another request"
    assert Client(server).get("/hello").status == 200


HARMLESS = {
    "no host": (b"GET /hello HTTP/1.1\r\n\r\n", 400),
    "bad path": (b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "NUL in path": (b"GET /a%00 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "unknown path": (b"GET /none HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "wrong method": (b"DELETE /hello HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "unknown method": (b"BREW /hello HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "lower case method": (b"get /hello HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "trace": (b"TRACE /hello HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "foreign host": (b"GET /hello HTTP/1.1\r\nHost: evil.com\r\n\r\n", 403),
    "foreign absolute form": (b"GET http://evil.com/hello HTTP/1.1\r\n" + HOST + b"\r\n", 403),
    "foreign page": (
        b"POST /echo HTTP/1.1\r\n" + HOST + b"Origin: http://evil.com\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
        403,
    ),
}


@pytest.mark.parametrize(("data", "status"), HARMLESS.values(), ids=HARMLESS.keys())
def test_a_wrong_but_clear_request_keeps_the_connection(client, data, status):
    answer = client.send(data).read()
    assert answer.status == status
    answer.error()
    assert client.get("/hello").status == 200


def test_a_405_names_the_methods(client):
    assert client.get("/hello", "DELETE").headers["allow"] == "GET, HEAD, OPTIONS"


# ------------------------------------------------------------------------------------------- well-behaved
# clients


def test_one_connection_serves_many_requests(client, server):
    for i in range(20):
        answer = client.get(f"/hello?name={i}")
        assert (answer.status, answer.json()["hello"]) == (200, str(i))
        assert answer.headers["keep-alive"] == "timeout=75" and "connection" not in answer.headers
    assert server.n_connections == 1


def test_pipelined_requests_are_answered_in_order(client):
    client.send(
        b"".join(b"GET /hello?name=%d HTTP/1.1\r\n%b\r\n" % (i, HOST) for i in range(5))
        + post(b"Content-Length: 5", body=b"hello")
        + b"GET /stream HTTP/1.1\r\n"
        + HOST
        + b"\r\n"
        + b"GET /hello?name=last HTTP/1.1\r\n"
        + HOST
        + b"\r\n"
    )
    assert [client.read().json()["hello"] for _ in range(5)] == list("01234")
    assert client.read().json()["start"] == "hello"
    assert client.read().body.endswith(sse.DONE)
    assert client.read().json()["hello"] == "last"


def test_a_chunked_body_is_read_whole_and_does_not_poison_the_next_request(client):
    body = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nA: b\r\n\r\n"
    client.send(post(b"Transfer-Encoding: chunked", body=body) + b"GET /hello?name=next HTTP/1.1\r\n" + HOST + b"\r\n")
    assert client.read().json() == {"n": 11, "start": "hello world"}
    assert client.read().json()["hello"] == "next"


def test_a_large_body_arrives(client):
    assert client.get("/echo", "POST", body=b"x" * 20_000_000).json()["n"] == 20_000_000


def test_a_route_may_do_without_a_body(client):
    assert client.send(b"POST /bare HTTP/1.1\r\n" + HOST + b"\r\n").read().json()["n"] == 0
    assert client.get("/hello").status == 200


def test_head_is_get_without_the_body(client):
    whole, head = client.get("/hello"), client.get("/hello", "HEAD")
    assert head.status == 200 and head.body == b""
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert client.get("/none", "HEAD").status == 404
    assert client.get("/stream", "HEAD").headers["content-type"].startswith("text/event-stream")
    assert client.get("/hello").status == 200


def test_options_says_what_may_be_done(client):
    answer = client.get("/echo", "OPTIONS")
    assert (answer.status, answer.headers["allow"]) == (200, "GET, POST, HEAD, OPTIONS")
    assert answer.headers["content-length"] == "0"
    assert client.get("*", "OPTIONS").status == 200
    assert client.get("/none", "OPTIONS").status == 200


def test_expect_100_is_answered_before_the_body(client):
    client.send(post(b"Content-Length: 5", b"Expect: 100-continue"))
    assert client.read().status == 100
    assert client.send(b"hello").read().json()["n"] == 5
    assert client.get("/hello").status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (post(b"Content-Length: 1001", b"Expect: 100-continue"), 413),
        (b"POST /none HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", 404),
    ],
)
def test_expect_100_is_refused_without_asking_for_the_body(start, data, status):
    client = Client(start(body_bytes=1000)).send(data)
    assert client.read().status == status
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed()


def test_http_1_0_closes_unless_asked_to_stay(server):
    client = Client(server)
    answer = client.send(b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").read()
    assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
    answer = client.send(b"GET /hello HTTP/1.0\r\n\r\n").read()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.is_closed()


def test_a_client_may_ask_to_close(client):
    assert client.get("/hello", fields=b"Connection: close\r\n").headers["connection"] == "close"
    assert client.is_closed()


def test_a_stream_is_chunked_for_http_1_1_and_plain_for_1_0(client, server):
    events = b'data: {"n":1}\n\n: ping\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'
    answer = client.get("/stream")
    assert answer.body == events and answer.is_whole
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    assert client.get("/hello").status == 200
    old = Client(server).send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").read()
    assert old.body == events
    assert "transfer-encoding" not in old.headers and old.headers["connection"] == "close"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_stream_is_closed(client, site, method):
    client.get("/stream", method)
    assert site.closed.acquire(timeout=PATIENCE)


def test_an_empty_first_chunk_sends_the_head_at_once(client, site):
    client.send(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
    assert client.file.peek(1), "waited for the first event"
    site.may_go_on.set()
    answer = client.read()
    assert answer.body == b'data: {"n":1}\n\n' and answer.is_whole


def test_path_parts_and_queries_reach_the_handler_decoded(client):
    assert client.get("/items/a%20%C3%A4").json() == {"name": "a ä"}
    assert client.get("/hello?name=a&name=%26+b").json()["hello"] == "& b"


def test_pages_are_served_beside_the_routes(start, tmp_path):
    (tmp_path / "index.html").write_text("<p>hi")
    (tmp_path / "hello").write_text("not this one")
    (tmp_path.parent / "secret.txt").write_text("secret")
    client = Client(start(static=StaticFiles(tmp_path), auth=KeyRing(["key"])))
    page = client.get("/")
    assert (page.status, page.body) == (200, b"<p>hi")
    assert client.get("/", fields=b"If-None-Match: " + page.headers["etag"].encode() + b"\r\n").status == 304
    assert client.get("/hello").json()["hello"] == ""
    assert client.get("/", "HEAD").headers["content-length"] == "5"
    assert client.get("/", "POST", body=b"x").status == 404
    for path in (
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%5csecret.txt",
        "//secret.txt",
        "/%252e%252e/secret.txt",
        "/./../secret.txt",
        "/..%c0%afsecret.txt",
    ):
        assert client.get(path).status in (400, 404)


# --------------------------------------------------------------------------------------------------- request
# ids


def test_a_request_id_is_taken_if_it_is_harmless(client, site):
    answer = client.get("/hello", fields=b"X-Request-Id: req-1:a_b.c\r\n")
    assert answer.headers["x-request-id"] == answer.json()["id"] == "req-1:a_b.c"
    given = set()
    for odd in (b"a b", b"\xff", b"x" * 129, b"<script>", b"", b"a\tb"):
        id_ = client.get("/hello", fields=b"X-Request-Id: " + odd + b"\r\n").headers["x-request-id"]
        assert id_ != odd.decode("latin-1") and len(id_) == 16
        given.add(id_)
    assert len(given) == 6


def test_the_access_log_has_one_record_per_answer(client, site):
    client.get("/hello?api_key=s3cret", fields=b"X-Request-Id: one\r\n")
    client.get("/none")
    client.send(b"nonsense\r\n").read()
    wait_until(lambda: len(site.access) == 3, "three records")
    first, second, third = site.access
    assert (first.id, first.client, first.method, first.path) == ("one", "127.0.0.1", "GET", "/hello")
    assert first.status == 200 and first.complete and first.n_bytes > 50 and first.seconds >= 0
    assert (second.status, third.status, third.path) == (404, 400, "")
    assert "s3cret" not in repr(site.access)


# --------------------------------------------------------------------------------------------- who may ask


def test_a_key_is_asked_for_before_the_body(start):
    server = start(auth=KeyRing(["good"]))
    client = Client(server).send(post(b"Content-Length: 60000000", b"Authorization: Bearer bad"))
    answer = client.read()
    assert answer.status == 401
    assert answer.json() == {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}
    client = Client(server)
    assert client.get("/echo", "POST", b"Authorization: Bearer good\r\n", b"{}").status == 200
    assert client.get("/echo", "POST", b"X-Api-Key: good\r\n", b"{}").status == 200
    assert client.get("/hello").status == 200
    assert client.get("/echo", "OPTIONS").status == 200
    assert client.get("/none").status == 404


def test_pages_of_allowed_origins_may_read_every_kind_of_answer(client):
    page = b"Origin: http://localhost:3000\r\n"
    for path in ("/hello", "/stream", "/none", "/boom", "/%zz"):
        answer = client.get(path, fields=page)
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert answer.headers["vary"] == "Origin"
    preflight = client.get(
        "/echo",
        "OPTIONS",
        page + b"Access-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: authorization, x-stainless-os\r\n",
    )
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    foreign = client.get("/hello", fields=b"Origin: http://evil.com\r\n")
    assert foreign.status == 200 and "access-control-allow-origin" not in foreign.headers


def test_origins_can_be_opened(start):
    client = Client(start(cors=CorsPolicy(frozenset("*")), allowed_hosts=["my.proxy"]))
    answer = client.get("/echo", "POST", b"Origin: http://any.com\r\n", b"{}")
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "*"
    assert client.send(b"GET /hello HTTP/1.1\r\nHost: my.proxy:80\r\n\r\n").read().status == 200


# -------------------------------------------------------------------------------------------------- errors
# inside


@pytest.mark.parametrize(
    "data, status",
    [
        (b"POST /shaped HTTP/1.1\r\n" + HOST + b"Authorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}", 500),
        (b"POST /shaped?x=1 HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", 401),
        (b"POST /shaped HTTP/1.1\r\n" + HOST + b"Authorization: Bearer k\r\n\r\n", 411),
        (b"POST /shaped HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n", 413),
        (b"GET /shaped HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"POST /shaped HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
    ],
)
def test_all_errors_of_a_path_have_the_shape_of_its_route(start, data, status):
    client = Client(start(auth=KeyRing(["k"]), body_bytes=1000))
    answer = client.send(data).read()
    assert (answer.status, answer.json()) == (status, {"own": status})
    client.close()


@pytest.mark.parametrize("path", ["/boom", "/file", "/odd"])
def test_a_failing_handler_is_a_logged_500_and_the_connection_lives(client, path, caplog):
    answer = client.get(path, fields=b"X-Request-Id: my-id\r\n")
    assert answer.status == 500 and "my-id" in answer.error()["message"]
    assert "my-id" in caplog.text and "Traceback" in caplog.text
    assert client.get("/hello").status == 200


def test_a_stream_that_fails_before_its_first_event_is_an_ordinary_error(client, site):
    answer = client.get("/early")
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert site.closed.acquire(timeout=PATIENCE)
    assert client.get("/hello").status == 200


def test_a_stream_that_fails_later_ends_without_its_last_chunk(client, site, caplog):
    answer = client.get("/late")
    assert answer.status == 200 and answer.body == b'data: {"n":1}\n\n' and not answer.is_whole
    assert client.is_closed()
    wait_until(lambda: site.access, "the access record")
    assert not site.access[0].complete and "KeyError" in caplog.text


@pytest.mark.parametrize("n_bytes", [10, 200_000])
def test_an_early_refusal_of_a_small_body_keeps_the_connection(client, n_bytes):
    assert client.get("/none", "POST", body=b"x" * n_bytes).status == 404
    assert client.get("/hello").status == 200


def test_an_early_refusal_reaches_a_client_that_is_still_sending(start):
    client = Client(start(body_bytes=1000, linger_s=PATIENCE))
    body = b"x" * 20_000_000
    client.send(post(b"Content-Length: %d" % len(body), body=body))
    assert client.read().status == 413
    client.sock.shutdown(socket.SHUT_WR)
    assert client.file.read() == b"", "an end of file, not a reset"


def test_bodies_of_all_clients_together_are_bounded(start, site):
    server = start(all_requests_bytes=1000)
    assert Client(server).get("/echo", "POST", body=b"x" * 1001).status == 503
    for _ in range(5):
        assert Client(server).get("/echo", "POST", body=b"x" * 900).status == 200
    assert server._server.budget.n_used == 0
