"""Completion scripts and the manual page: every option is in them, and those who read them accept them."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from server.options import shells
from server.options.row import Option
from server.options.table import OPTIONS

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
    script = shells.completion(shell)
    assert [flag for flag in FLAGS if not has_word(script, flag)] == []


def test_each_flag_can_be_completed_in_fish_in_its_own_spelling():
    script = shells.completion("fish")
    for flag in FLAGS:
        kind = "-l" if flag.startswith("--") else "-s" if len(flag) == 2 else "-o"
        assert f" {kind} {flag.lstrip('-')} " in script, flag


@pytest.mark.parametrize("shell", sorted(CHECKS))
def test_the_shell_accepts_its_script(shell, tmp_path):
    if not shutil.which(CHECKS[shell][0]):
        pytest.skip(f"only on machines with {CHECKS[shell][0]}")
    script = tmp_path / "completion.ps1"
    script.write_text(shells.completion(shell), encoding="utf-8")
    done = subprocess.run([*CHECKS[shell], str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def complete(line: str, cwd: object) -> list[str]:
    """What bash offers at the end of `line`."""
    words = line.split(" ")
    script = (
        f"{shells.completion('bash')}\nCOMP_WORDS=({' '.join(map(repr, words))})\nCOMP_CWORD={len(words) - 1}\n"
        'COMPREPLY=()\n_llama_srv\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=cwd, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="only on machines with bash")
def test_bash_offers_flags_words_files_and_folders(tmp_path):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "models").mkdir()
    assert complete("llama-srv --ctx-s", tmp_path) == ["--ctx-size"]
    assert complete("llama-srv --compat ", tmp_path) == ["modern", "2024"]
    assert sorted(complete("llama-srv -m mod", tmp_path)) == ["model.gguf", "models"]
    assert complete("llama-srv --libs mod", tmp_path) == ["models"]


@pytest.mark.skipif(not shutil.which("fish"), reason="only on machines with fish")
def test_fish_offers_flags_and_words():
    script = f"{shells.completion('fish')}\ncomplete -C 'llama-server --ctx-s'\ncomplete -C 'llama-srv --compat '"
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["--ctx-size", "2024", "modern"]


def test_words_with_marks_of_the_shells_are_written_so_that_they_stay_text():
    option = Option("odd", ("--odd",), "it's [odd]: a\\b", "General", metavar="WHAT:EVER")
    assert shells._zsh(shells.summary(option)) == "it'\\''s \\[odd\\]\\: a\\\\b"
    page = shells.manual("1.0", [option])
    assert "it's [odd]: a\\(rsb" in page and "\\fB\\-\\-odd\\fR \\fIWHAT:EVER\\fR" in page


# ---- the manual page -------------------------------------------------------------------------------------------------


def test_the_manual_has_each_option_with_its_variable():
    page = shells.manual("1.2.3")
    assert "llama_srv 1.2.3" in page
    for option in OPTIONS:
        assert all(f"\\fB{flag.replace('-', chr(92) + '-')}\\fR" in page for flag in option.flags), option.name
        assert option.env in page


@pytest.mark.parametrize("reader", [("groff", "-man", "-Tutf8", "-ww", "-z"), ("mandoc", "-Tlint", "-W", "warning")])
def test_readers_of_manual_pages_have_no_complaint(reader, tmp_path):
    if not shutil.which(reader[0]):
        pytest.skip(f"only on machines with {reader[0]}")
    page = tmp_path / "llama-srv.1"
    page.write_text(shells.manual("1.2.3"), encoding="utf-8")
    done = subprocess.run([*reader, str(page)], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "missing date" not in line]
    assert complaints == []
