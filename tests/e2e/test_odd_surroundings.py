"""The real program in unusual conditions: nobody reads its log, few file descriptors, few cores, an absurd model.

Each server is the program as a user starts it; the test sets up the conditions.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests import tiny_models
from tests.support import NO_PROXY, PATIENCE, ROOT, wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="not on Windows: it has no such pipes and limits")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Quiet:
    """A server whose outputs go where the test says, so that nothing of it may be read."""

    def __init__(self, arguments: Sequence[object], **options: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "llama_srv.py"), *map(str, arguments), "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUTF8": "1"},
            **options,
        )

    def is_ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return requests.get(self.url + "/health", timeout=PATIENCE, proxies=NO_PROXY).status_code == 200
        except requests.ConnectionError:
            return False

    def post(self, path: str, body: dict[str, object]) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=PATIENCE, proxies=NO_PROXY)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE, proxies=NO_PROXY)


@contextmanager
def quiet(*arguments: object, **options: object) -> Iterator[Quiet]:
    """A `Quiet` that is ready."""
    server = Quiet(arguments, **options)
    try:
        wait_until(server.is_ready, "the server to be ready")
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def lost_lines(server: Quiet) -> int:
    return int(re.search(r"(?m)^llamacpp:log_lines_lost_total (\d+)", server.get("/metrics").text)[1])


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_log_that_nobody_reads_costs_lines_and_nothing_else(libs_folder, tiny_spm_model, engine):
    read, write = os.pipe()
    try:
        with quiet(
            "-m", tiny_spm_model, "-t", 1, "-c", 512, "-v", "--metrics", "--engine", engine, stdout=write, stderr=write
        ) as server:
            for _ in range(40):  # each leaves the prompt in the log, more than once
                answer = server.post(
                    "/completion", {"prompt": "the cat " * 40, "n_predict": 2, "nonsense": "x" * 300_000}
                )
                assert answer.status_code == 200
            assert lost_lines(server) > 0
            text = ""
            while "log lines were lost" not in text:  # once it is read, it says so
                text += os.read(read, 1 << 16).decode()
            for _ in range(40):
                server.post("/completion", {"prompt": "the cat", "n_predict": 2, "nonsense": "x" * 300_000})
            server.process.send_signal(signal.SIGTERM)  # nobody reads it again
            assert server.process.wait(PATIENCE) == 0
    finally:
        os.close(read)
        os.close(write)


def limited(n_files: int):
    """To be run in a child: it and what it starts may have so many files open."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))


def test_with_few_descriptors_silence_keeps_nobody_out(libs_folder, tiny_spm_model, tmp_path):
    with (
        (tmp_path / "log").open("wb") as log,
        quiet("-m", tiny_spm_model, "-t", 1, "-c", 512, stdout=log, stderr=log, preexec_fn=limited(100)) as server,
    ):
        silent = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in range(150)]
        answer = wait_until(lambda: served(server), "a newcomer to be served")
        assert answer == 200
        for one in silent:
            one.close()
        # what its first request would have imported in that distress is there
        answer = server.post("/completion", {"prompt": "the cat", "n_predict": 2, "json_schema": {"type": "object"}})
        assert answer.status_code == 200, answer.text
        text = (tmp_path / "log").read_text()
        assert "ulimit -n" in text and "can be accepted" not in text and "Traceback" not in text


def served(server: Quiet) -> int:
    """The status that a completion has; 0 for a refusal for want of room, or a reset."""
    try:
        status = server.post("/completion", {"prompt": "the cat", "n_predict": 2}).status_code
        return status if status != 503 else 0
    except requests.ConnectionError:
        return 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only on Linux: keeps a process on one core")
def test_threads_without_a_core_are_warned_of_and_their_slowness_is_no_hang(libs_folder, tiny_spm_model, tmp_path):
    """Compute threads meet some sixty times in a step of this model, and spin until the last of them has had a core."""
    with (
        (tmp_path / "log").open("wb") as log,
        quiet(
            "-m",
            tiny_spm_model,
            "-t",
            10,
            "-c",
            512,
            "--no-warmup",
            "--engine-timeout",
            1,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        ) as server,
    ):
        assert server.post("/completion", {"prompt": "the cat", "n_predict": 1}).status_code == 200
    text = (tmp_path / "log").read_text()
    assert "10 compute threads for 1 cores" in text and "died" not in text


def cpu_group() -> Path | None:
    """A control group of version 1 or 2 of our own that can limit CPU time; None where we may not make one."""
    for parent, limit in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")):
        folder = Path(parent, f"llama-srv-test-{os.getpid()}")
        try:
            folder.mkdir()
            (folder / limit).write_text("100000" if limit != "cpu.max" else "100000 100000")
            return folder
        except OSError:
            if folder.is_dir():
                folder.rmdir()
    return None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: control groups")
def test_a_container_s_share_of_the_cpu_decides_how_many_threads_there_are():
    group = cpu_group()
    if group is None:
        pytest.skip("only on machines where a control group can be made (root, a writable /sys/fs/cgroup)")
    code = "from server.engine.seam import config; print(config.count_threads(config.EngineConfig('m', 'l'))[0])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),
        )
    finally:
        group.rmdir()
    assert done.stdout == "1\n"


@pytest.mark.parametrize("arguments", [(), ("-np", 4), ("-np", 4, "-kvu"), ("--embeddings",)])
def test_a_header_that_claims_an_absurd_context_gets_a_usable_one(serve, tmp_path, arguments):
    model = tiny_models.tiny_llama(tmp_path / "model.gguf", n_ctx_train=2**31)
    server = serve("-m", model, "-t", 1, *arguments)
    assert "the header says 2147483648 tokens of context" in server.log
    assert server.get("/slots").json()[0]["n_ctx"] == 16384
    assert server.complete("the cat", 4)["tokens_predicted"] == 4


HOOK = """
import os, sys
def hook(event, args, fd=os.open(os.environ["IMPORTS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
    if event == "import" and args[0] not in sys.modules:
        os.write(fd, (args[0] + "\\n").encode())
sys.addaudithook(hook)
"""


def test_no_request_imports_anything(serve, tiny_bpe_fim_model, tmp_path):
    """An import needs a descriptor, and one that fails for want of it may fail for ever."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)  # the engine's process doesn't read it
    imports = tmp_path / "imports"
    server = serve(
        "-m",
        tiny_bpe_fim_model,
        "-t",
        1,
        "-c",
        512,
        "--metrics",
        "--embeddings",
        "--slot-save-path",
        tmp_path,
        environment={"PYTHONPATH": str(tmp_path / "hook"), "IMPORTS_FILE": str(imports)},
    )
    code = "import server.serving, sys; server.serving.constraints.prepare(); print(*sys.modules)"
    prepared = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    wait_until(
        lambda: "server.grammar.json_schema.convert" in imports.read_text().split(),
        "what is prepared last to be on its way",
    )
    before = imports.read_text()
    text = {"prompt": "the cat", "n_predict": 2}
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "date-time", "pattern": "^a+$"}}}
    for path, body in [
        ("/completion", text),
        ("/completion", {**text, "json_schema": schema}),
        ("/completion", {**text, "regex": "a+"}),
        ("/completion", {**text, "choice": ["a", "b"]}),
        ("/completion", {**text, "grammar": 'root ::= "a"'}),
        ("/completion", {**text, "n_probs": 3, "stop": ["x"], "logit_bias": [[3, 1]]}),
        ("/completion", {"prompt": 5}),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 2,
                "response_format": {"type": "json_object"},
            },
        ),
        ("/v1/completions", {"prompt": "x", "max_tokens": 2, "logprobs": 2}),
        ("/nothing", {}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 2}),
        ("/embedding", {"content": "x"}),
        ("/v1/embeddings", {"input": ["a"], "encoding_format": "base64"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [5]}),
        ("/slots/0?action=save", {"filename": "x"}),
        ("/slots/0?action=restore", {"filename": "x"}),
        ("/lora-adapters", []),
    ]:
        assert server.post(path, body).status_code < 600
    assert len(list(server.stream("/completion", text))) > 0
    for path in ("/", "/completion.js", "/props", "/slots", "/health", "/v1/models", "/metrics"):
        assert server.get(path).status_code < 600
    assert set(imports.read_text()[len(before) :].split()) - set(prepared.stdout.split()) == set()
