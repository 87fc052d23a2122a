"""Completion scripts and the manual page: they contain every option, and the shells and `man` accept them."""

from __future__ import annotations

import os
import re
import select
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from server.options import shells
from server.options.commands import COMMANDS
from server.options.row import Option
from server.options.table import OPTIONS
from tests.support import PATIENCE

if os.name == "posix":
    import fcntl
    import termios

FLAGS = [flag for option in OPTIONS for flag in option.flags + option.off_flags]
CHECKS = {
    "bash": ("bash", "-n"),
    "zsh": ("zsh", "-n"),
    "fish": ("fish", "-n"),
    "powershell": ("pwsh", "-NoProfile", "-File"),
}


def has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


@pytest.mark.parametrize("shell", ["bash", "zsh", "powershell"])
def test_each_flag_can_be_completed(shell):
    script = shells.render_completion(shell)
    assert [flag for flag in FLAGS if not has_word(script, flag)] == []


def test_each_flag_can_be_completed_in_fish_in_its_own_spelling():
    script = shells.render_completion("fish")
    for flag in FLAGS:
        kind = "-l" if flag.startswith("--") else "-s" if len(flag) == 2 else "-o"
        assert f" {kind} {flag.lstrip('-')} " in script, flag


@pytest.mark.parametrize("shell", sorted(CHECKS))
def test_the_shell_accepts_its_script(shell, tmp_path):
    if not shutil.which(CHECKS[shell][0]):
        pytest.skip(f"only on machines with {CHECKS[shell][0]}")
    script = tmp_path / "completion.ps1"
    script.write_text(shells.render_completion(shell), encoding="utf-8")
    done = subprocess.run([*CHECKS[shell], str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def complete(line: str, cwd: Path, own_name: str = "") -> list[str]:
    """The arguments that the program gets when somebody types `line` in bash, and has it insert all completions."""
    import pty

    command = line.split()[0].rpartition("/")[2]
    script = cwd / "completion.bash"
    show = f"{command}() {{ printf '<%s>\\n' \"$@\" E''ND; }}"
    script.write_text(f"{shells.render_completion('bash', own_name)}\nPS1='$ '\n{show}\n")
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "INPUTRC": "/dev/null"}
    # a wide terminal: readline breaks long lines
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 5000, 0, 0))
    shell = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", str(script), "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, b"$ ")
        os.write(ours, line.encode() + b"\x1b*\n")  # M-*: insert-completions
        said = read_until(ours, b"<END>").decode()
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    return re.findall(r"(?m)^<(.*)>\r?$", said.partition("\n")[2])[:-1]


def read_until(terminal: int, wanted: bytes) -> bytes:
    said = b""
    while wanted not in said:
        assert select.select([terminal], [], [], PATIENCE)[0], said
        said += os.read(terminal, 4096)
    return said


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="only on machines with bash")
def test_bash_offers_flags_words_files_and_folders(tmp_path):
    (tmp_path / "my model.gguf").touch()
    (tmp_path / "my models").mkdir()
    (tmp_path / "mix").mkdir()
    assert complete("llama-srv --ctx-s", tmp_path) == ["--ctx-size"]
    assert complete("llama-srv --compat ", tmp_path) == ["--compat", "2024", "modern"]
    assert complete("llama-srv -m my", tmp_path) == ["-m", "my model.gguf", "my models"]
    assert complete("llama-srv -m my\\ model.", tmp_path) == ["-m", "my model.gguf"]
    assert complete("llama-srv --libs my", tmp_path) == ["--libs", "my models"]
    assert complete("llama-srv my\\ model.", tmp_path) == ["my model.gguf"]


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="only on machines with bash")
def test_bash_offers_commands_as_the_first_word(tmp_path):
    (tmp_path / "pumpkin.gguf").touch()
    assert complete("llama-srv pul", tmp_path) == ["pull"]
    assert complete("llama-srv pum", tmp_path) == ["pumpkin.gguf"]
    assert complete("llama-srv run pum", tmp_path) == ["run", "pumpkin.gguf"]
    assert complete("llama-srv -m pul", tmp_path) == ["-m", "pul"]
    assert complete("llama-srv ps --ur", tmp_path) == ["ps", "--url"]


@pytest.mark.parametrize("shell", sorted(CHECKS))
def test_each_command_can_be_completed(shell):
    script = shells.render_completion(shell)
    assert [name for name in COMMANDS if not has_word(script, name)] == []


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="only on machines with bash")
def test_bash_completes_behind_an_equals_sign(tmp_path):
    (tmp_path / "my model.gguf").touch()
    (tmp_path / "mix").mkdir()
    assert complete("llama-srv --compat=m", tmp_path) == ["--compat=modern"]
    assert complete("llama-srv --log-format=j", tmp_path) == ["--log-format=json"]
    assert complete("llama-srv --model=my", tmp_path) == ["--model=my model.gguf"]
    assert complete("llama-srv --libs=m", tmp_path) == ["--libs=mix"]


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="only on machines with bash")
def test_a_program_completes_under_the_name_that_it_has(tmp_path):
    assert complete("llama-srv-linux-x64-cpu --ctx-s", tmp_path, "llama-srv-linux-x64-cpu") == ["--ctx-size"]
    for shell in CHECKS:
        assert "llama-srv-x" in shells.render_completion(shell, "llama-srv-x")
        assert shells.render_completion(shell, "my app; rm -r /") == shells.render_completion(shell)


@pytest.mark.skipif(not shutil.which("fish"), reason="only on machines with fish")
def test_fish_offers_flags_and_words():
    script = (
        f"{shells.render_completion('fish')}\ncomplete -C 'llama-server --ctx-s'\ncomplete -C 'llama-srv --compat '"
    )
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["--ctx-size", "2024", "modern"]


def test_words_with_marks_of_the_shells_are_written_so_that_they_stay_text():
    option = Option("odd", ("--odd",), "it's [odd]: a\\b", "General", metavar="WHAT:EVER")
    assert shells._escape_zsh(shells.make_summary(option)) == "it'\\''s \\[odd\\]\\: a\\\\b"
    page = shells.render_manual("1.0", [option])
    assert "it's [odd]: a\\(rsb" in page and "\\fB\\-\\-odd\\fR \\fIWHAT:EVER\\fR" in page


# ---- the manual page -------------------------------------------------------------------------------------------------


def test_the_manual_has_each_option_with_its_variable():
    page = shells.render_manual("1.2.3")
    assert "llama_srv 1.2.3" in page
    for option in OPTIONS:
        assert all(f"\\fB{flag.replace('-', chr(92) + '-')}\\fR" in page for flag in option.flags), option.name
        assert option.env in page
    assert all(f"\\fB{name}\\fR" in page for name in COMMANDS)


@pytest.mark.parametrize("reader", [("groff", "-man", "-Tutf8", "-ww", "-z"), ("mandoc", "-Tlint", "-W", "warning")])
def test_readers_of_manual_pages_have_no_complaint(reader, tmp_path):
    if not shutil.which(reader[0]):
        pytest.skip(f"only on machines with {reader[0]}")
    page = tmp_path / "llama-srv.1"
    page.write_text(shells.render_manual("1.2.3"), encoding="utf-8")
    done = subprocess.run([*reader, str(page)], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "missing date" not in line]
    assert complaints == []
