"""The life of connections: slow and vanishing clients, crowds, memory, shutdown, addresses, TLS.

No test depends on the machine's speed: tests wait for conditions with generous deadlines, and tiny limits are set only
where the client is meant to exceed them.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import ssl
import sys
import threading
from pathlib import Path

import pytest

from server.web import httpd, listen
from server.web.connection import ConnectionHandler
from server.web.http1.wire import Wire
from server.web.httpd import HttpServer
from server.web.limits import Limits
from server.web.listen import BindError
from server.web.router import Router
from tests.api.http_edge import HOST, PATIENCE, Answer, Client, client, post, server, site, start, tls_context  # noqa: F401 (fixtures)
from tests.support import wait_until

# ---------------------------------------------------------------------------------------------------- slow
# clients


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_client_that_says_nothing_is_sent_away(start, sent):
    client = Client(start(head_s=0.05)).send(sent)
    assert client.file.read() == b"" or sent


def test_a_head_that_never_ends_is_a_408(start):
    client = Client(start(head_s=0.1)).send(b"GET /hello HTTP/1.1\r\nA: ")
    answer = client.read()
    assert answer.status == 408
    answer.error()
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed()


def test_a_kept_connection_is_closed_when_idle(start):
    client = Client(start(idle_s=0.05))
    assert client.get("/hello").status == 200
    assert client.is_closed()


@pytest.mark.parametrize(
    "sent", [post(b"Content-Length: 5", body=b"he"), post(b"Transfer-Encoding: chunked", body=b"5\r\nhe")]
)
def test_a_body_that_never_ends_is_a_408(start, sent):
    client = Client(start(body_s=0.05)).send(sent)
    answer = client.read()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed()


def test_a_reader_that_stops_reading_is_cut_off(start, site):
    server = start(write_s=0.1)
    client = Client(server).send(b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n")
    assert site.closed.acquire(timeout=PATIENCE), "the stream waits for a reader that does not read"
    wait_until(lambda: server.n_connections == 0, "the thread to end")
    client.close()


def test_a_large_answer_arrives(client):
    assert client.get("/big").body == b"x" * 50_000_000


# --------------------------------------------------------------------------------------------- vanishing
# clients


@pytest.mark.parametrize("leave", [Client.close, Client.reset], ids=["close", "reset"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_client_that_leaves_while_its_request_waits_is_noticed(start, site, leave, tls):
    server = start(tls=tls_context() if tls else None)
    client = Client(server, tls).send(b"POST /hold HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}")
    assert site.entered.acquire(timeout=PATIENCE)
    leave(client)
    assert site.gone.acquire(timeout=PATIENCE)
    wait_until(lambda: server.n_connections == 0, "the thread to end")


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: it can't tell EOF behind unread data")
def test_a_client_that_leaves_behind_a_pipelined_request_is_noticed(server, site):
    client = Client(server).send((b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n") * 2)
    assert site.entered.acquire(timeout=PATIENCE)
    client.close()
    assert site.gone.acquire(timeout=PATIENCE)


def test_a_stream_to_a_client_that_left_is_closed(server, site, caplog):
    client = Client(server).send(b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n")
    client.file.read(1000)
    client.close()
    assert site.closed.acquire(timeout=PATIENCE)
    wait_until(lambda: server.n_connections == 0, "the thread to end")
    assert not site.access[0].complete
    assert caplog.text == "", "a broken pipe is no news"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        b"GET /hello HTTP/1.1\r\n",
        post(b"Content-Length: 5", body=b"he"),
        post(b"Transfer-Encoding: chunked", body=b"5\r\nhe"),
        b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
@pytest.mark.parametrize("leave", [Client.close, Client.reset], ids=["close", "reset"])
def test_a_client_may_vanish_at_any_point_without_a_trace(server, caplog, sent, leave):
    for _ in range(5):
        leave(Client(server).send(sent))
    wait_until(lambda: server.n_connections == 0, "all threads to end")
    assert caplog.text == ""
    assert Client(server).get("/hello").status == 200


# --------------------------------------------------------------------------------------- threads and memory


def http_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("http-")]


class NoDescriptors:
    """A listening socket that somebody waits at while the process can't open anything more."""

    def accept(self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_out_of_descriptors_the_silent_make_room_and_the_log_is_told_once(start, monkeypatch, caplog):
    server = start(spare_s=0.0)
    monkeypatch.setattr(httpd, "POLL_S", 0.0)
    silent, served = [Client(server) for _ in range(3)], Client(server)
    assert served.get("/hello").status == 200
    wait_until(lambda: server.n_connections == 4, "the connections")
    for n_left in (3, 2, 1):
        server._server._accept(NoDescriptors())
        wait_until(lambda n=n_left: server.n_connections <= n, "a connection to go")
    assert all(client.is_closed() for client in silent[:2])
    assert caplog.text.count("can be accepted") == 1


def test_connections_beyond_the_limit_get_a_503_and_no_thread(start, site, monkeypatch):
    monkeypatch.setattr(httpd, "REFUSED_KEEP_S", PATIENCE)
    server = start(n_connections=3)
    kept = [Client(server) for _ in range(3)]
    assert all(client.get("/hello").status == 200 for client in kept)
    for _ in range(20):
        refused = Client(server)
        answer = refused.read()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        answer.error()
        assert refused.is_closed()
        refused.close()
    talker = Client(server)
    assert talker.read().status == 503
    for _ in range(10):
        talker.send(post(b"Content-Length: 5", body=b"hello"))  # would fail if the connection were reset
    assert talker.is_closed()
    assert len(http_threads()) == 3 + 1
    assert kept[0].get("/hello").status == 200
    kept.pop().close()
    wait_until(lambda: server.n_connections == 2, "a place")
    assert Client(server).get("/hello").status == 200


def test_a_crowd_is_served_and_leaves_no_thread(start):
    server = start(n_connections=50)
    before = threading.active_count()
    for _ in range(4):
        crowd = [Client(server) for _ in range(60)]
        statuses = []
        for one in crowd:
            with contextlib.suppress(ConnectionError):
                one.send(b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n")
            statuses.append(one.read().status)
        assert sorted(statuses) == [200] * 50 + [503] * 10
        assert threading.active_count() <= before + 50
        for one in crowd:
            one.close()
        wait_until(lambda: threading.active_count() <= before, "the threads to end")
    assert server.n_connections == 0


def test_a_body_is_not_kept_by_an_idle_connection(client, site, server):
    client.get("/echo", "POST", body=b"x" * 1_000_000)
    (entry,) = server._server.connections.values()
    wait_until(lambda: entry.is_idle, "the connection to rest")
    body, mine = site.kept_bodies.pop(), bytes(bytearray(b"held by this test alone"))
    assert sys.getrefcount(body) == sys.getrefcount(mine), "somebody besides this test holds the body"


def test_an_answer_is_one_send_and_an_event_is_one_send(client, monkeypatch):
    sends = []
    original = Wire.send
    monkeypatch.setattr(Wire, "send", lambda self, data: sends.append(data) or original(self, data))
    client.get("/hello")
    assert len(sends) == 1
    sends.clear()
    client.get("/stream")
    assert len(sends) == 5, "head with the first event, three more, the last chunk"


def test_a_bug_in_the_edge_itself_costs_one_connection(server, monkeypatch, caplog):
    monkeypatch.setattr(ConnectionHandler, "_answer", lambda self, exchange: 1 / 0)
    client = Client(server).send(b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n")
    assert client.is_closed()
    wait_until(lambda: server.n_connections == 0, "the thread to end")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert Client(server).get("/hello").status == 200


# --------------------------------------------------------------------------------------------------------
# stopping


def test_stop_ends_idle_connections_at_once_and_lets_requests_finish(server, site):
    idle, fresh, busy = Client(server), Client(server), Client(server)
    assert idle.get("/hello").status == 200
    busy.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
    assert site.entered.acquire(timeout=PATIENCE)
    wait_until(lambda: server.n_connections == 3, "all to be accepted")
    cut = []
    stopper = threading.Thread(target=lambda: cut.append(server.stop(PATIENCE)))
    stopper.start()
    assert idle.is_closed() and fresh.is_closed()
    busy.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        busy.sock.recv(1)
    busy.sock.settimeout(PATIENCE)
    assert stopper.is_alive() and not cut
    site.may_go_on.set()
    answer = busy.read()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    stopper.join(PATIENCE)
    assert cut == [0] and http_threads() == []
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_stop_cuts_a_stream_at_the_deadline(server, site):
    client = Client(server).send(b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n")
    reader = threading.Thread(target=lambda: client.file.read())
    reader.start()
    assert site.entered.acquire(timeout=PATIENCE)
    assert server.stop(0.1) == 1
    assert site.closed.acquire(timeout=PATIENCE)
    reader.join(PATIENCE)
    assert http_threads() == []


def test_stop_tells_waiting_handlers_that_their_client_is_gone(server, site):
    client = Client(server).send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n")
    assert site.entered.acquire(timeout=PATIENCE)
    assert server.stop(0) == 1
    assert site.gone.acquire(timeout=PATIENCE)
    client.close()


def test_stop_may_come_twice_or_before_start(site):
    server = HttpServer("127.0.0.1", 0, Router([]))
    assert server.stop() == 0 and server.stop() == 0


# -------------------------------------------------------------------------------------------------------
# addresses


def test_clients_may_connect_before_the_server_answers(site):
    server = HttpServer("localhost", 0, Router(site.routes()))
    client = Client(server).send(b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n")
    server.start()
    assert client.read().status == 200
    assert server.url == f"http://localhost:{server.port}"
    server.stop(0)


def test_a_taken_port_is_one_line_of_advice(server):
    with pytest.raises(BindError) as caught:
        HttpServer("127.0.0.1", server.port, Router([]))
    assert str(server.port) in str(caught.value) and "--port" in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 70_000), ("a" * 300, 0), ("a..b", 0)])
def test_an_impossible_address_is_one_line(host, port):
    with pytest.raises(BindError) as caught:
        HttpServer(host, port, Router([]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_is_spoken(site, host):
    if not has_ipv6():
        pytest.skip("only on machines with IPv6")
    server = HttpServer(host, 0, Router(site.routes()))
    server.start()
    assert server.url == f"http://[::1]:{server.port}"
    connection = http.client.HTTPConnection("::1", server.port, timeout=PATIENCE)
    connection.request("GET", "/hello")
    assert connection.getresponse().status == 200
    connection.close()
    server.stop(0)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: no UNIX sockets")
def test_a_unix_socket_is_served_and_removed(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # such paths must be short
    for _ in range(2):
        server = HttpServer("llm.sock", 0, Router(site.routes()), access_log=site.access.append)
        server.start()
        assert (server.url, server.port) == ("unix:llm.sock", 0)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect("llm.sock")
            sock.sendall(b"GET /hello HTTP/1.1\r\nHost: any.name\r\n\r\n")
            assert Answer(sock.makefile("rb"), "GET").status == 200
        wait_until(lambda: site.access, "the access record")
        assert site.access.pop().client == "unix"
        with pytest.raises(BindError, match="in use"):
            HttpServer("llm.sock", 0, Router([]))
        server.stop(0)
        assert not Path("llm.sock").exists()


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: no UNIX sockets")
def test_a_stale_unix_socket_is_replaced_and_a_file_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind("llm.sock")
    stale.close()
    HttpServer("llm.sock", 0, Router([])).stop()
    Path("llm.sock").write_text("precious")
    with pytest.raises(BindError, match="not a socket"):
        HttpServer("llm.sock", 0, Router([]))
    assert Path("llm.sock").read_text() == "precious"


# ------------------------------------------------------------------------------------------------------------
# - TLS


def test_tls_is_spoken(start, site):
    server = start(tls=tls_context())
    assert server.url.startswith("https://")
    client = Client(server, tls=True)
    assert client.get("/hello").status == 200
    assert client.get("/stream").is_whole
    assert client.get("/echo", "POST", body=b"x" * 3_000_000).json()["n"] == 3_000_000
    assert client.get("/hello", fields=b"Connection: close\r\n").status == 200
    assert client.is_closed()


def test_a_noisy_or_silent_client_of_a_tls_port_disturbs_nobody(start, caplog):
    server = start(tls=tls_context(), head_s=5)
    silent = Client(server)
    noise = Client(server).send(b"\0" * 100)
    assert noise.is_closed() or True  # OpenSSL may send an alert first
    assert Client(server, tls=True).get("/hello").status == 200
    silent.close()
    assert caplog.text == ""


@pytest.mark.parametrize("body", [b"", b"x" * 300_000], ids=["GET", "POST"])
def test_plain_http_to_a_tls_port_is_told_so_in_plain_http(start, site, caplog, body):
    server = start(tls=tls_context())
    client = Client(server)
    answer = client.get("/hello", "POST" if body else "GET", body=body)
    assert answer.status == 400 and "https://" in answer.error()["message"]
    assert client.is_closed() and caplog.text == ""
    wait_until(lambda: [record.status for record in site.access] == [400], "the line in the access log")
    wait_until(lambda: server.n_connections == 0, "the connection to be given up")
    assert Client(server, tls=True).get("/hello").status == 200


def test_stop_ends_idle_tls_connections(start):
    server = start(tls=tls_context())
    client = Client(server, tls=True)
    assert client.get("/hello").status == 200
    assert server.stop(PATIENCE) == 0
    with contextlib.suppress(ssl.SSLError):
        assert client.is_closed()


# --------------------------------------------------------------------------------------- several addresses


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: no UNIX sockets")
def test_all_addresses_are_served_by_one_server(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # such paths must be short
    server = HttpServer(
        ["127.0.0.1", "127.0.0.2", "llm.sock"], 0, Router(site.routes()), limits=Limits(n_connections=2)
    )
    server.start()
    assert server.urls == [f"http://127.0.0.1:{server.port}", f"http://127.0.0.2:{server.port}", "unix:llm.sock"]
    assert server.url == server.urls[0] and server.is_local
    clients = []
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", server.port)),
        (socket.AF_INET, ("127.0.0.2", server.port)),
        (socket.AF_UNIX, "llm.sock"),
    ):
        sock = socket.socket(family)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        clients.append((sock, sock.recv(4096)))
    assert [answer.split()[1] for _, answer in clients] == [b"200", b"200", b"503"], "they share one limit"
    for sock, _ in clients:
        sock.close()
    server.stop(0)
    assert not os.path.exists("llm.sock")
    for address in ("127.0.0.1", "127.0.0.2"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, server.port), PATIENCE)


def test_if_one_address_can_t_be_had_none_is_kept(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        hosts = ["127.0.0.2", *(["llm.sock"] if os.name != "nt" else []), "127.0.0.1"]
        with pytest.raises(BindError, match="in use"):
            HttpServer(hosts, other.getsockname()[1], Router(site.routes()))
        assert os.listdir(tmp_path) == []
        socket.create_server(("127.0.0.2", other.getsockname()[1])).close()


@pytest.mark.parametrize(
    ("hosts", "is_local"), [(["127.0.0.1", "::1"], True), (["127.0.0.1", "0.0.0.0"], False), (["x.sock"], True)]
)
def test_a_server_is_local_if_all_its_addresses_are(hosts, is_local):
    assert all(map(listen.is_local, hosts)) is is_local
