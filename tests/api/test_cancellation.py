"""Clients that disconnect in every phase of a request: everything is freed, and the next answer is right.

Tests wait for conditions. What must happen "within one step" is tested with decodes that are held.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from server.web.presence import Presence
from tests.api.conftest import PATIENCE, Api
from tests.fakes import BOS, FakeBackend, FakeVocab, letters, said_by
from tests.support import wait_until

N_SLOTS = 4
PROMPT = "a prompt that fills more than one batch, so that reading it takes a few steps"
ENDLESS = {"n_predict": -1, "cache_prompt": False}


@pytest.fixture
def api(make_api) -> Api:
    """Four slots whose texts never end by themselves."""
    return make_api(FakeBackend(n_ctx=256 * N_SLOTS, n_slots=N_SLOTS, n_batch=32), shift_context=True).start()


def vanish(sock: socket.socket, by_reset: bool = False) -> None:
    """Close, with or without the courtesy of a FIN."""
    if by_reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_a_little(sock: socket.socket) -> None:
    """Wait for the first text of a stream."""
    data = b""
    while b"data: " not in data:
        more = sock.recv(4096)
        assert more, data
        data += more


def all_in_slots(api: Api, n: int) -> None:
    """With decodes held: let steps go one by one until `n` tasks are in slots and a decode waits again."""
    wait_until(lambda: api.n_requests == n, "the requests", PATIENCE, every=0.002)
    api.wait_for_decode()
    while api.client.snapshot.n_processing < n:
        api.backend.let(1)
        api.wait_for_decode()


def assert_nothing_is_left(api: Api, kv_used: int | None = 0) -> None:
    """Slots, queue, samplers, connections and threads as before any client came, the cache too, the next answer
    right."""
    api.settle()
    assert api.is_idle()
    wait_until(
        lambda: set(api.own_threads()) <= {"engine", "http-accept", "http-watcher"},
        f"the end of {api.own_threads()}",
        PATIENCE,
    )
    assert api.client.snapshot.kv_used == api.backend.n_used
    assert kv_used in (None, api.backend.n_used)
    assert api.n_requests == 0
    prompt = "and now a client that waits"
    assert (
        api.complete(prompt, 12, cache_prompt=False)["content"]
        == bytes(said_by(letters, [BOS, *prompt.encode()], 12)).decode()
    )


# ---- one phase at a time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize("n_body", [0, 10])
def test_before_the_whole_body_was_sent(api, n_body, by_reset):
    clients = [api.begin({"prompt": PROMPT}, n_body) for _ in range(16)]
    wait_until(lambda: api.server.n_connections == 16, "the connections", PATIENCE)
    for client in clients:
        vanish(client, by_reset)
    assert_nothing_is_left(api)
    assert len(api.backend.samplers) == 1, "a request without its body never reaches the engine"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_reset", [False, True])
def test_in_the_queue(api, stream, by_reset):
    running = [api.begin({"prompt": f"running {i}", "stream": True, **ENDLESS}) for i in range(N_SLOTS)]
    api.wait_for(N_SLOTS, 0)
    waiting = [api.begin({"prompt": PROMPT, "stream": stream, **ENDLESS}) for _ in range(16)]
    api.wait_for(N_SLOTS, 16)
    n_samplers = len(api.backend.samplers)
    for client in waiting:
        vanish(client, by_reset)
    api.wait_for(N_SLOTS, 0)
    assert len(api.backend.samplers) == n_samplers, "none of them was ever started"
    for client in running:
        vanish(client)
    assert_nothing_is_left(api)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_reset", [False, True])
def test_while_the_prompt_is_read(api, stream, by_reset):
    api.backend.hold()
    clients = [api.begin({"prompt": f"{i} {PROMPT}", "stream": stream, **ENDLESS}) for i in range(N_SLOTS)]
    all_in_slots(api, N_SLOTS)
    assert any(slot.n_prompt_done < slot.n_prompt for slot in api.client.snapshot.slots)
    n_batches = len(api.backend.batches)
    for client in clients:
        vanish(client, by_reset)
    wait_until(lambda: api.n_messages == N_SLOTS, "the engine to be told", PATIENCE, every=0.002)
    api.backend.let(1)
    wait_until(api.is_idle, "all slots to be idle", PATIENCE, every=0.002)
    assert len(api.backend.batches) == n_batches, "a step more than the one that ran"
    api.backend.go()
    assert_nothing_is_left(api)


def test_the_only_client_s_prompt_is_not_read_to_its_end(api):
    api.backend.hold()
    client = api.begin({"prompt": PROMPT, **ENDLESS})
    api.wait_for_decode()
    vanish(client)
    wait_until(api.is_idle, "the slot to be idle though nobody lets the decode go", PATIENCE, every=0.002)
    assert len(api.backend.batches) == 1
    assert_nothing_is_left(api)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_reset", [False, True])
def test_while_the_text_is_generated(api, stream, by_reset):
    clients = [api.begin({"prompt": f"text {i}", "stream": stream, **ENDLESS}) for i in range(N_SLOTS)]
    wait_until(
        lambda: (
            all(len(sampler.accepted) > 20 for sampler in api.backend.samplers) and len(api.backend.samplers) == N_SLOTS
        ),
        "texts of some length",
        PATIENCE,
        every=0.002,
    )
    for client in clients:
        vanish(client, by_reset)
    assert_nothing_is_left(api)


def test_in_the_middle_of_a_stream_that_has_been_read(api):
    clients = [api.begin({"prompt": f"text {i}", "stream": True, **ENDLESS}) for i in range(N_SLOTS)]
    for client in clients:
        read_a_little(client)
        vanish(client)
    assert_nothing_is_left(api)


def test_a_vanished_client_s_slot_is_free_within_one_step(api):
    client = api.begin({"prompt": "text", "stream": True, **ENDLESS})
    read_a_little(client)
    api.backend.hold()
    api.wait_for_decode()
    vanish(client)
    wait_until(lambda: api.n_messages == 1, "the engine to be told", PATIENCE, every=0.002)
    n_batches = len(api.backend.batches)
    api.backend.go()
    assert_nothing_is_left(api)
    assert api.backend.batches[n_batches][0].pos == 0, "the next batch is the next client's"


# ---- clients that only end their sending side ---------------------------------------------------------------------


def expected(prompt: str, n: int) -> str:
    return bytes(said_by(letters, [BOS, *prompt.encode()], n)).decode()


def bytes_to_the_end(sock: socket.socket) -> bytes:
    """All that comes until the server closes; one that resets the connection fails the test."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def streamed_text(answer: bytes) -> str:
    """The text of a whole answer in chunks; FIN or not, it must have its last event and its last chunk."""
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n0\r\n\r\n"), answer
    events = [json.loads(line[6:]) for line in answer.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1]["stop"] is True
    return "".join(event["content"] for event in events)


def half_closed(api: Api, body: dict, path: str = "/completion") -> socket.socket:
    """A client that has sent a request and its FIN."""
    client = api.begin(body, path=path)
    client.shutdown(socket.SHUT_WR)
    return client


def wait_for_ends(n: int):
    """A context in which the server notices the ends of `n` clients."""
    noticed = threading.Semaphore(0)
    end = Presence._end

    @contextmanager
    def waiting():
        with patch.object(Presence, "_end", lambda self: (end(self), noticed.release())):
            yield
            for _ in range(n):
                assert noticed.acquire(timeout=PATIENCE), "an end was missed"

    return waiting()


def test_streams_go_on_for_clients_that_only_end_their_sending_side(api):
    """In a slot or in the queue, before the first token or after it."""
    api.backend.hold()
    prompts = [f"half closed {i}" for i in range(2 * N_SLOTS)]
    with wait_for_ends(len(prompts)):
        clients = [
            half_closed(api, {"prompt": prompt, "n_predict": 30, "stream": True, "cache_prompt": False})
            for prompt in prompts
        ]
        wait_until(lambda: api.n_requests == len(prompts), "all requests", PATIENCE)
    api.backend.go()
    for client, prompt in zip(clients, prompts, strict=True):
        assert streamed_text(bytes_to_the_end(client)) == expected(prompt, 30)
        client.close()
    assert_nothing_is_left(api, kv_used=None)


def test_a_half_closed_stream_ends_when_its_client_leaves(api):
    with wait_for_ends(1):
        client = api.begin({"prompt": "text", "stream": True, **ENDLESS})
        read_a_little(client)
        client.shutdown(socket.SHUT_WR)
    n_tokens = len(api.backend.samplers[0].accepted)
    wait_until(lambda: len(api.backend.samplers[0].accepted) > n_tokens + 20, "more of the text", PATIENCE)
    client.close()
    assert_nothing_is_left(api)


def test_a_plain_request_whose_client_ends_its_sending_side_is_cancelled_without_a_word(api):
    running = [half_closed(api, {"prompt": f"text {i}", **ENDLESS}) for i in range(N_SLOTS + 2)]
    assert [bytes_to_the_end(client) for client in running] == [b""] * len(running)
    for client in running:
        client.close()
    assert_nothing_is_left(api)


def test_plain_requests_are_answered_with_half_close(make_api):
    api = make_api(FakeBackend(n_ctx=512, n_slots=2), ("--half-close",)).start()
    api.backend.hold()
    prompts = [f"half closed {i}" for i in range(5)]
    with wait_for_ends(len(prompts)):
        clients = [half_closed(api, {"prompt": prompt, "n_predict": 30}) for prompt in prompts]
        wait_until(lambda: api.n_requests == len(prompts), "all requests", PATIENCE)
    api.backend.go()
    for client, prompt in zip(clients, prompts, strict=True):
        head, _, body = bytes_to_the_end(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") and json.loads(body)["content"] == expected(prompt, 30)
        client.close()


def test_several_requests_and_an_end_in_one_packet(make_api):
    """As `printf ... | nc -N` sends them: the end lies behind the next request."""
    api = make_api(FakeBackend(n_ctx=512, n_slots=2)).start()
    body = json.dumps({"prompt": "text", "n_predict": 20, "stream": True}).encode()
    request = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    client = api.connect()
    client.sendall(request * 3)
    client.shutdown(socket.SHUT_WR)
    answers = bytes_to_the_end(client).split(b"HTTP/1.1 200 OK\r\n")[1:]
    texts = [streamed_text(b"HTTP/1.1 200 OK\r\n" + answer) for answer in answers]
    assert texts == [expected("text", 20)] * 3
    client.close()


def test_the_others_never_notice(api):
    leaving = [api.begin({"prompt": f"leaving {i}", "stream": True, **ENDLESS}) for i in range(2)]
    api.wait_for(2)

    def ask(i: int) -> bool:
        prompt = f"staying {i}"
        text = bytes(said_by(letters, [BOS, *prompt.encode()], 100)).decode()
        return api.complete(prompt, 100, cache_prompt=False)["content"] == text

    def leave() -> bool:
        for client in leaving:
            vanish(client, by_reset=True)
        return True

    assert all(api.at_the_same_time(*(lambda i=i: ask(i) for i in range(6)), leave))
    assert_nothing_is_left(api, kv_used=None)


# ---- all at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_sixty_four_clients_that_vanish_in_all_phases(api, seed):
    rng = random.Random(seed)
    clients: list[socket.socket] = []
    api.backend.hold()
    for i in range(64):
        body = {"prompt": f"client {i}: {PROMPT}" if i % 2 else f"client {i}", "stream": rng.random() < 0.5, **ENDLESS}
        clients.append(api.begin(body, rng.choice((None, None, None, 5))))
    api.wait_for_decode()
    rng.shuffle(clients)
    for i, client in enumerate(clients):
        if i == 16:
            api.backend.go()
        if i % 16 == 8:
            api.wait_for(n_processing=N_SLOTS if i > 16 else None)
        vanish(client, by_reset=rng.random() < 0.5)
    assert_nothing_is_left(api)


def test_many_rounds_leave_no_more_than_one(api):
    for i in range(20):
        client = api.begin({"prompt": f"round {i} {PROMPT}", "stream": True, **ENDLESS})
        read_a_little(client)
        vanish(client, by_reset=i % 2 == 0)
    assert_nothing_is_left(api)


# ---- before the engine knows -------------------------------------------------------------------------------------


class SlowVocab(FakeVocab):
    """Waits inside the tokenizer, or inside the rendering of a chat, until told to go on."""

    def __init__(self, is_slow_at: str) -> None:
        super().__init__()
        self._is_slow_at = is_slow_at
        self.entered, self.may_go_on = threading.Semaphore(0), threading.Event()

    def _pause(self, place: str, text: str) -> None:
        if place == self._is_slow_at and (place == "template" or "slow" in text):
            self.entered.release()
            assert self.may_go_on.wait(PATIENCE)

    def tokenize(self, text, add_special, parse_special):
        """As slow as a prompt of many megabytes."""
        self._pause("tokenize", text)
        return super().tokenize(text, add_special, parse_special)

    def apply_template(self, template, messages, add_generation_prompt):
        """As slow as a conversation of many thousand messages."""
        self._pause("template", messages[0][1])
        return super().apply_template(template, messages, add_generation_prompt)


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("phase", "path", "body"),
    [
        ("tokenize", "/completion", {"prompt": "a slow one"}),
        ("tokenize", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a slow one"}]}),
        ("template", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a slow one"}]}),
    ],
)
def test_while_the_prompt_is_made(make_api, phase, path, body, stream, by_reset):
    vocab = SlowVocab(phase)
    api = make_api(FakeBackend(n_ctx=256), ("--no-jinja", "--chat-template", "chatml"), vocab=vocab).start()
    noticed = threading.Event()
    leave, end = Presence._leave, Presence._end
    with (
        patch.object(Presence, "_leave", lambda self: (leave(self), noticed.set())),
        patch.object(Presence, "_end", lambda self: (end(self), noticed.set())),
    ):
        client = api.begin({**body, "stream": stream, **ENDLESS}, path=path)
        assert vocab.entered.acquire(timeout=PATIENCE)
        vanish(client, by_reset)
        assert noticed.wait(PATIENCE), "the client was missed while its prompt was being made"
        with patch.object(api.transport, "post", wraps=api.transport.post) as post:
            vocab.may_go_on.set()
            wait_until(lambda: api.server.n_connections == 0, "the connection to end", PATIENCE, every=0.002)
        # The client of a stream that has only sent its last byte may still read: the first write tells.
        may_read = stream and not by_reset
        assert may_read or not post.called, "the engine was bothered with it"
    assert may_read or not api.backend.samplers
    assert_nothing_is_left(api, kv_used=None)
