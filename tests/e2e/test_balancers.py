"""The load balancer configurations in `examples/deploy` with real balancers and servers: a rolling restart interrupts
no stream, and conversations stay on the server that has their prefix.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support import NO_PROXY, PATIENCE, ROOT, ServerProcess, events, need, wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="not on Windows: neither nginx nor HAProxy runs there")
NAME = "llm.example.com"
N_STREAMS, N_TOKENS, N_SERVERS = 64, 60, 3
NGINX = """daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/example.conf;
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def balancing(balancer: str, ports: list[int], folder: Path, changes: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    """A balancer with its example's configuration, but for the ports and `changes`; its URL."""
    program = shutil.which(balancer, path=os.environ["PATH"] + ":/usr/sbin")
    need(program, f"{balancer} is not installed")
    port = free_port()
    name, listen = ("nginx.conf", "listen 8080") if balancer == "nginx" else ("haproxy.cfg", "bind :8080")
    text = (ROOT / "examples" / "deploy" / name).read_text("utf-8")
    assert text.count(listen) == 1
    text = text.replace(listen, f"{listen.split()[0]} 127.0.0.1:{port}")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    for old, new in zip((8081, 8082, 8083), ports, strict=True):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    (folder / "example.conf").write_text(text, "utf-8")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder), "utf-8")
    arguments = ("-c", folder / "nginx.conf") if balancer == "nginx" else ("-db", "-f", folder / "example.conf")
    process = subprocess.Popen([program, *map(str, arguments)], stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_answering(url), "the balancer to pass a request on", PATIENCE)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def is_answering(url: str) -> bool:
    try:
        return requests.get(url + "/health", headers={"Host": NAME}, timeout=PATIENCE, proxies=NO_PROXY).ok
    except requests.ConnectionError:
        return False


def has_answered(url: str) -> bool:
    """Whether a server has evaluated any token, which it does for clients of the balancer alone."""
    text = requests.get(url + "/metrics", headers={"Host": NAME}, timeout=PATIENCE, proxies=NO_PROXY).text
    found = re.search(r"^llamacpp:tokens_predicted_total (\S+)", text, re.MULTILINE)
    return bool(found) and float(found[1]) > 0


class Streams:
    """Clients that ask for one stream after the other, until told to stop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.done = threading.Event()
        self.n_whole, self.faults, self.longest_s = 0, [], 0.0
        self._lock = threading.Lock()  # protects the three
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(N_STREAMS)]
        for thread in self._threads:
            thread.start()

    def _run(self, i: int) -> None:
        while not self.done.is_set():
            begun, fault = time.monotonic(), ""
            try:
                fault = self._ask(i)
            except (requests.RequestException, ValueError) as error:
                fault = repr(error)
            with self._lock:
                self.n_whole += not fault
                self.faults += [fault] if fault else []
                self.longest_s = max(self.longest_s, time.monotonic() - begun)

    def _ask(self, i: int) -> str:
        body = {"prompt": f"client {i}", "n_predict": N_TOKENS, "ignore_eos": True, "stream": True}
        with requests.post(
            self.url + "/completion", json=body, headers={"Host": NAME}, stream=True, timeout=PATIENCE, proxies=NO_PROXY
        ) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {answer.text[:200]}"
            got = list(events(answer))
        is_whole = got and got[-1].get("stop") is True and got[-1].get("tokens_predicted") == N_TOKENS
        return "" if is_whole else f"cut off after {len(got)} events: {got[-1:]}"

    def stop(self) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client got no answer"


@pytest.mark.parametrize("balancer", ["nginx", "haproxy"])
def test_a_rolling_restart_behind_a_balancer_loses_no_stream(serve, tiny_spm_model, tmp_path, balancer):
    arguments = ["-m", str(tiny_spm_model), "-c", "4096", "-np", "8", "-t", "1", "--metrics"]
    arguments += ["--allowed-hosts", NAME, "--drain-delay", "2.5", "--drain", str(PATIENCE)]
    servers = [serve(*arguments) for _ in range(N_SERVERS)]
    ports = [int(server.url.rpartition(":")[2]) for server in servers]
    new: list[ServerProcess] = []
    try:
        with balancing(balancer, ports, tmp_path) as url:
            streams = Streams(url)
            for server, port in zip(servers, ports, strict=True):
                n_before = streams.n_whole
                wait_until(lambda n=n_before: streams.n_whole > n + N_STREAMS, "streams", PATIENCE)
                server.terminate()
                assert server.wait() == 0
                new.append(ServerProcess([*arguments, "--port", str(port)]))
                new[-1].wait_for_line("is ready")
                wait_until(
                    lambda url=server.url: has_answered(url), "the balancer to use the restarted server", PATIENCE
                )
            streams.stop()
        print(f"{balancer}: {streams.n_whole} streams, the longest took {streams.longest_s:.1f} s")
        assert streams.faults == []
    finally:
        for server in new:
            server.stop()


# ---- conversations --------------------------------------------------------------------------------------------------

BY = {
    "round robin": [("balance hash var(txn.conversation)", "balance roundrobin")],
    "client": [("balance hash var(txn.conversation)", "balance hash req.hdr(authorization)")],
    "beginning": [],
}
STEM = "once upon a time the little girl and the big dog went into the old house near the river , and then "
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"


class Conversations:
    """Each of several turns, which begin with all of the last one; two for each key. As clients of OpenAI send them."""

    def __init__(self, url: str, n: int, n_turns: int, n_words: int) -> None:
        self._url, self._n_turns, self._n_words = url, n_turns, n_words
        self.n_cached = self.n_prompt = 0
        self._lock = threading.Lock()  # protects the two
        begun = time.monotonic()
        threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * PATIENCE)
        self.seconds = time.monotonic() - begun

    def _run(self, i: int) -> None:
        messages = [{"role": "system", "content": "you are a dog ."}]
        words = (STEM * (self._n_words // 20 + 1)).split()[: self._n_words]
        headers = {"Host": NAME, "Authorization": f"Bearer key{i // 2}"}
        for turn in range(self._n_turns):
            messages.append({"role": "user", "content": " ".join([f"number {i} {turn} :", *words])})
            body = {"messages": messages, "max_tokens": 16, "temperature": 0}
            answer = requests.post(
                self._url + "/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE, proxies=NO_PROXY
            ).json()
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
            with self._lock:
                self.n_cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                self.n_prompt += answer["usage"]["prompt_tokens"]


def conversations_by(serve, way: str, folder: Path, model: Path, arguments: Sequence[str], **how: int) -> Conversations:
    """Three new servers, and HAProxy with one way of choosing."""
    servers = [serve("-m", str(model), "-t", "1", "--allowed-hosts", NAME, *arguments) for _ in range(N_SERVERS)]
    ports = [int(server.url.rpartition(":")[2]) for server in servers]
    folder = folder / way.replace(" ", "")
    folder.mkdir()
    with balancing("haproxy", ports, folder, BY[way]) as url:
        done = Conversations(url, **how)
    for server in servers:
        server.stop()
    print(f"{way}: {done.n_cached} of {done.n_prompt} tokens from a cache, {done.seconds:.1f} s")
    return done


def test_conversations_stay_where_their_beginnings_are(serve, tiny_spm_model, tmp_path):
    """With round robin a turn finds its past by chance; by beginning, unless its server has too much to do."""
    arguments = ["-c", "65536", "-np", "32", "--chat-template", TEMPLATE]
    how = {"n": 8, "n_turns": 4, "n_words": 40}
    share = {}
    for way in ("round robin", "beginning"):
        done = conversations_by(serve, way, tmp_path, tiny_spm_model, arguments, **how)
        share[way] = done.n_cached / done.n_prompt
    assert share["beginning"] > share["round robin"] + 0.05


@pytest.mark.long
@pytest.mark.parametrize("way", BY)
def test_what_each_way_of_choosing_costs(serve, smollm2, tmp_path, way):
    """The figures of docs/deploy.md: 32 conversations over three servers on one machine."""
    arguments = ["-c", "24576", "-np", "12"]
    assert conversations_by(serve, way, tmp_path, smollm2, arguments, n=32, n_turns=4, n_words=60).n_prompt
