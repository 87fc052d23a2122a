"""Starts of the real program in unusual environments: no standard streams, no home folder, an isolated interpreter,
little memory.

Each start either serves, or ends with one line that says why; never with a traceback, and never by hanging.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.test_odd_surroundings import quiet
from tests.gguf_edit import scalar, string, take_apart
from tests.support import PATIENCE, ROOT, run_command

PROGRAM = str(ROOT / "llama_srv.py")
posix_only = pytest.mark.skipif(os.name == "nt", reason="not on Windows: it has no such limits and files")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: /dev/full, /proc")


def run(command: Sequence[object], **options: object) -> subprocess.CompletedProcess[str]:
    """To its end, with both outputs as text unless `options` say otherwise."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, text=True, timeout=PATIENCE, check=False, **options
    )


def one_error(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The line that a failed start ends with."""
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def without_streams(*numbers: int):
    """To be run in a child."""
    return lambda: [os.close(number) for number in numbers]


@posix_only
@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)], ids=str)
def test_a_server_without_standard_streams_serves(libs_folder, tiny_spm_model, tmp_path, closed):
    with quiet(
        "-m", tiny_spm_model, "-t", 1, "-c", 512, "--log-file", tmp_path / "log", preexec_fn=without_streams(*closed)
    ) as server:
        assert server.post("/completion", {"prompt": "the cat", "n_predict": 2}).status_code == 200
        if sys.platform.startswith("linux"):  # nothing of ours has got a number that others print to
            for number in closed:
                assert os.readlink(f"/proc/{server.process.pid}/fd/{number}") == os.devnull
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@posix_only
def test_a_failure_without_stderr_is_an_exit_code(tmp_path):
    done = run([sys.executable, PROGRAM, "-m", tmp_path / "nothing"], preexec_fn=without_streams(2))
    assert done.returncode == 2 and done.stdout == ""


@pytest.fixture
def homeless(tmp_path) -> dict[str, str]:
    """The environment of a user whom the system doesn't know."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "def home():\n    raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = home\n"
        "for name in ('HOME', 'USERPROFILE', 'XDG_CACHE_HOME', 'LOCALAPPDATA', 'LLAMA_SRV_CACHE'):\n"
        "    os.environ.pop(name, None)\n"
    )
    return {"PYTHONPATH": str(tmp_path / "hook")}


def test_a_user_without_a_home_is_served(serve, tiny_spm_model, homeless):
    server = serve("-m", tiny_spm_model, "-t", 1, "-c", 512, environment=homeless)
    assert server.complete("the cat", 2)["tokens_predicted"] == 2


@pytest.mark.parametrize("arguments", [("-hf", "user/model", "--offline"), ("--cache-list",)], ids=str)
def test_what_needs_a_home_says_so(homeless, arguments):
    assert "LLAMA_SRV_CACHE" in one_error(run_command(arguments, environment=homeless), 1)


@pytest.mark.parametrize(
    ("flags", "environment"), [(["-I"], {}), (["-P"], {}), ([], {"PYTHONSAFEPATH": "1"})], ids=["-I", "-P", "variable"]
)
def test_an_interpreter_that_trusts_no_folder_finds_the_program(libs_folder, tiny_spm_model, flags, environment):
    if flags == ["-P"] and sys.version_info < (3, 11):
        pytest.skip("only on Python 3.11 and newer: there is no -P before")
    done = run([sys.executable, *flags, PROGRAM, "-m", tiny_spm_model, "--dry-run"], env={**os.environ, **environment})
    assert done.returncode == 0 and "context: " in done.stdout, done.stderr


def test_a_server_and_its_engine_start_where_no_folder_is_trusted(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-t", 1, "-c", 512, environment={"PYTHONSAFEPATH": "1"})
    assert server.complete("the cat", 2)["tokens_predicted"] == 2


@linux_only
@pytest.mark.parametrize("option", ["--help", "--version", "--man", "--completion-bash"])
def test_what_cannot_be_printed_is_one_line(option):
    with open("/dev/full", "w") as full:
        assert "No space left" in one_error(run([sys.executable, PROGRAM, option], stdout=full), 1)


@linux_only
@pytest.mark.parametrize("mib", [40, 80, 160, 640])
def test_too_little_memory_is_one_line(libs_folder, tiny_spm_model, mib):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))

    done = run([sys.executable, PROGRAM, "-m", tiny_spm_model, "--port", 0], preexec_fn=limit)
    assert "ulimit -v" in one_error(done, 1) and len(done.stderr.splitlines()) == 1, done.stderr


@posix_only
@pytest.mark.parametrize("option", ["-m", "--lora", "--mmproj"])
def test_a_pipe_in_a_file_s_place_is_refused_and_not_waited_for(tiny_spm_model, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")
    model = [] if option == "-m" else ["-m", tiny_spm_model]
    done = run([sys.executable, PROGRAM, *model, option, tmp_path / "pipe"])
    assert "a pipe or a device" in one_error(done)


@pytest.mark.parametrize("value", ["", ",", " "])
def test_an_empty_key_protects_nothing_and_is_refused(tmp_path: Path, value):
    assert "--api-key" in one_error(run_command(["-m", tmp_path / "none", "--api-key", value]))


def nameless(base: Path, path: Path) -> Path:
    """The model of `base` in a file without a vocabulary."""
    parts = take_apart(base)
    for key in [name.decode() for name, _ in parts.pairs if name.startswith(b"tokenizer.")]:
        parts.set(key, None)
    n_tokens = parts.tensor("token_embd.weight").dims[1]
    return (
        parts.set("tokenizer.ggml.model", string("none")).set("llama.vocab_size", scalar("u32", n_tokens)).write(path)
    )


CHAT = {"messages": [{"role": "user", "content": "x"}]}


def test_a_model_without_a_vocabulary_computes_on_ids_and_refuses_text(serve, tiny_spm_model, tmp_path):
    server = serve("-m", nameless(tiny_spm_model, tmp_path / "none.gguf"), "-t", 1, "-c", 512, "--props")
    for path, body in (
        ("/completion", {"prompt": "a b"}),
        ("/completion", {"prompt": "a b " * 1000, "stream": True}),
        ("/completion", {"prompt": [1, 2]}),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "x"}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
        ("/apply-template", CHAT),
        ("/v1/chat/completions/input_tokens", CHAT),
        ("/tokenize", {"content": "x"}),
        ("/tokenize", {"content": "x y " * 1000}),
        ("/detokenize", {"tokens": [1, 2]}),
        ("/embedding", {"content": "x"}),
        ("/v1/embeddings", {"input": ["x"]}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/props", {"system_prompt": {"prompt": "x"}}),
    ):
        answer = server.post(path, body)
        assert answer.status_code in (400, 501), (path, answer.text)
        assert "\n" not in answer.json()["error"]["message"], path
    assert server.post("/v1/embeddings", {"input": [[1, 2]]}).status_code == 200
    for path in ("/slots", "/props", "/v1/models", "/health"):
        assert server.get(path).status_code == 200, path
    assert " E " not in server.log


def test_a_system_prompt_without_a_vocabulary_is_one_line(libs_folder, tiny_spm_model, tmp_path):
    (tmp_path / "prompt").write_text('{"prompt": "be kind"}')
    model = nameless(tiny_spm_model, tmp_path / "none.gguf")
    assert "no vocabulary" in one_error(
        run([sys.executable, PROGRAM, "-m", model, "--port", 0, "-spf", tmp_path / "prompt"])
    )


@posix_only
def test_a_model_whose_path_is_no_text_is_served_and_named_in_the_state_file(libs_folder, tiny_spm_model, tmp_path):
    try:
        model = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
        model.write_bytes(tiny_spm_model.read_bytes())
    except OSError:
        pytest.skip("only on file systems that take any bytes as a name")
    with quiet("-m", model, "-t", 1, "-c", 512, "--state-file", tmp_path / "state") as server:
        assert server.post("/completion", {"prompt": "the cat", "n_predict": 2}).status_code == 200
        state = json.loads((tmp_path / "state").read_text("utf-8"))
        assert (state["model"], state["state"]) == (str(model), "ready")
