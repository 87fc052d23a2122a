"""The program opens no sockets except those to its clients: checked by an audit hook in every process, and in the
system's list of sockets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import child_processes

HOOK = """
import os, sys
def hook(event, args, path=os.environ["AUDIT_FILE"], pid=os.getpid()):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
                 "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect", "subprocess.Popen"):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{event} {args!r}\\n".encode("utf-8", "replace"))
        os.close(fd)
sys.addaudithook(hook)
open(os.environ["AUDIT_FILE"], "a").write("begin\\n")
"""


@pytest.fixture
def audited(tmp_path) -> tuple[Path, dict[str, str]]:
    """The file that every Python process writes its network calls to, and the environment that makes it do so."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    return tmp_path / "audit", {"PYTHONPATH": str(tmp_path / "hook"), "AUDIT_FILE": str(tmp_path / "audit")}


def use(server) -> None:
    """A little of everything."""
    assert server.complete("the cat", 8)["tokens_predicted"] > 0
    list(server.stream("/v1/chat/completions", {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4}))
    image = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/image.png"}}
    assert server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [image]}]}).status_code >= 400
    for path in ("/", "/completion.js", "/props", "/slots", "/health", "/v1/models"):
        assert server.get(path).status_code == 200


def test_nothing_is_connected_to_or_looked_up(serve, tiny_spm_model, audited):
    path, environment = audited
    server = serve("-m", tiny_spm_model, "-t", 1, environment=environment)
    use(server)
    assert server.stop() == 0
    lines = path.read_text().splitlines()
    assert "begin" in lines, "the hook was not in force"
    own = [
        line for line in lines if line.startswith(("socket.connect", "socket.getaddrinfo")) and "127.0.0.1" not in line
    ]
    assert own == []
    assert [line for line in lines if line.startswith("socket.connect")] == []
    assert [
        line
        for line in lines
        if line.split()[0] in ("socket.sendto", "socket.gethostbyname", "urllib.Request", "http.client.connect")
    ] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: sockets are read from /proc")
def test_the_system_knows_of_no_socket_but_the_listening_one_and_the_clients(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1)
    port = int(server.url.rpartition(":")[2])
    use(server)
    inodes: set[str] = set()
    for process in (server.process.pid, *child_processes(server.process.pid)):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            target = str(entry.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for row in (line.split() for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]):
            if row[9] in inodes:
                assert int(row[1].rpartition(":")[2], 16) == port, f"{kind} {row}"
