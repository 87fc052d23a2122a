"""`run` and the other commands: the real program in a terminal and in a pipe, with a small model."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, child_processes, run_command, wait_until

POSIX = pytest.mark.skipif(os.name != "posix", reason="only where there are pseudo terminals")
PROGRAM = [sys.executable, str(ROOT / "llama_srv.py")]
QUICK = ["-c", "1024", "-t", "1", "--temp", "0"]


class Terminal:
    """The program, and the terminal that it is in."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip  (a session's first terminal becomes its own: so Ctrl-C is a signal)
        os.close(theirs)
        self.said = ""

    def type(self, text: str) -> None:
        """As if somebody typed it."""
        os.write(self._ours, text.encode())

    def until(self, wanted: str) -> str:
        """What has been shown since the last time, up to `wanted`."""
        while wanted not in self.said:
            assert select.select([self._ours], [], [], PATIENCE)[0], self.said
            try:
                self.said += os.read(self._ours, 4096).decode("utf-8", "replace")
            except OSError:  # its end, on Linux
                raise AssertionError(f"the program has ended: {self.said}") from None
        shown, _, self.said = self.said.partition(wanted)
        return shown

    def close(self) -> None:
        """End it, if it hasn't."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    """With a cache of its own, and nothing of the user's."""
    for name in list(os.environ):
        if name.startswith("LLAMA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "dumb")
    return dict(os.environ)


@pytest.fixture
def open_terminal(environment):
    """`open_terminal(words)`; the program ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> Terminal:
            terminal = Terminal(list(words), environment)
            stack.callback(terminal.close)
            return terminal

        yield start


@pytest.fixture
def models(tmp_path, smollm2) -> Path:
    """A folder with the small model in it."""
    folder = tmp_path / "models"
    folder.mkdir()
    with contextlib.suppress(OSError):
        (folder / "small.gguf").symlink_to(smollm2)
        return folder
    (folder / "small.gguf").write_bytes(smollm2.read_bytes())
    return folder


@pytest.fixture
def descendants() -> Iterator[list[int]]:
    """Processes that must be gone when the test is over."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        wait_until(lambda: not is_alive(pid), f"the end of process {pid}")


def is_alive(pid: int) -> bool:
    """Whether the process still does anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@POSIX
@pytest.mark.covers("D16")
def test_a_chat_in_the_terminal(open_terminal, models, libs_folder):
    terminal = open_terminal("run", "small", "--models-dir", str(models), *QUICK, "-n", "400")
    assert "small: type a message, or /help" in terminal.until(">>> ")
    terminal.type("/set max_tokens 8\n")
    assert "max_tokens = 8" in terminal.until(">>> ")
    terminal.type('"""My name is\nBob."""\n')
    assert len(terminal.until("\n>>> ").splitlines()) > 2
    terminal.type("/set max_tokens\n")
    terminal.until(">>> ")
    terminal.type("/set logit_bias [[2, false]]\n")  # never ends by itself
    terminal.until(">>> ")
    terminal.type("Write a very long story about a king.\n")
    terminal.until("king.\r\n")
    wait_until(lambda: select.select([terminal._ours], [], [], 0.1)[0], "the beginning of the answer")
    terminal.type("\x03")
    terminal.until("\n>>> ")
    terminal.type("/frob\n")
    assert "unknown command /frob" in terminal.until(">>> ")
    terminal.type("\x04")
    assert terminal.process.wait(PATIENCE) == 0


@POSIX
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_nothing_stays_behind_when_the_program_is_killed(open_terminal, models, libs_folder, descendants):
    terminal = open_terminal("run", "small", "--models-dir", str(models), *QUICK)
    terminal.until(">>> ")
    descendants += child_processes(terminal.process.pid)
    assert len(descendants) >= 2 and all(map(is_alive, descendants))
    terminal.process.send_signal(signal.SIGKILL)


def test_a_question_in_a_pipe_is_answered_and_nothing_else_is_written(environment, models, libs_folder):
    words = ["run", "small", "--models-dir", str(models), *QUICK, "-n", "8", "What does it say?"]
    done = subprocess.run(
        [*PROGRAM, *words], input="hello\n", capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and 0 < len(done.stdout.strip()) < 200
    again = subprocess.run(
        [*PROGRAM, *words], input="hello\n", capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=environment,
    )  # fmt: skip
    assert again.stdout == done.stdout


def test_what_can_not_be_loaded_is_told_as_by_the_server(environment, tmp_path, libs_folder):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    done = run_command(["run", str(tmp_path / "bad.gguf"), "hi"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    done = run_command(["run", str(tmp_path / "gone.gguf"), "hi"])
    assert (done.returncode, done.stdout) == (2, "") and "there is no model" in done.stderr


@pytest.mark.covers("D16")
def test_a_running_server_lists_its_models_and_answers(environment, serve, tiny_spm_model, libs_folder):
    server = serve("-m", tiny_spm_model, "-t", 1, "-c", 512, "--alias", "tiny", "--api-key", "secret")
    done = run_command(["ps", "--url", server.url, "--api-key", "secret"])
    assert done.returncode == 0 and done.stdout.splitlines()[1].split()[:2] == ["tiny", "loaded"]
    done = run_command(["run", "tiny", "--url", server.url, "--api-key", "secret", "the cat"])
    assert done.returncode == 0 and done.stdout.strip()
    done = run_command(["run", "tiny", "--url", server.url, "the cat"])
    assert (done.returncode, done.stderr) == (1, "error: Invalid API Key\n")


@pytest.mark.covers("D16")
def test_models_says_that_a_small_model_fits(environment, models, libs_folder):
    done = run_command(["models", "--models-dir", str(models)])
    assert done.returncode == 0 and done.stdout.splitlines()[1].split() == [
        "small",
        "98.4",
        "MB",
        "Q4_1",
        "8192",
        "yes",
    ]
