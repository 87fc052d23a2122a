"""Rules about the repository's files: forbidden content, and their length.

Reads files only: those that git would commit (tracked files and new ones that aren't ignored), or all files without
git, for instance in an unpacked archive.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

MAX_BYTES = 512 * 1024
MAX_LINES = 700
MAX_COLUMNS = 120
NOT_OURS = {".git", ".venv-test", "__pycache__", ".pytest_cache", ".hypothesis", "build", "dist"}

# written in pieces so that this file doesn't break its own rules
FORBIDDEN = {
    "the host name of a package registry (use the ordinary clients)": "|".join(
        (
            r"registry\.npm" + r"js\.",
            r"\bnpm" + r"js\.com",
            r"\bpypi" + r"\.org",
            r"python" + r"hosted\.org",
            r"anaconda" + r"\.org",
            r"\bcrates" + r"\.io",
            r"rubygems" + r"\.org",
            r"proxy\.golang" + r"\.org",
        )
    ),
    "a path of somebody's machine": r"(?<![\w.}$*])/(?:work/(?:main|shared)|root/|tmp/(?:src|venv|brief|bash_jobs)\b)",
    "a folder or paper outside the repository": "|".join(
        (
            r"\.\./shar" + r"ed\b",
            r"\bshar" + r"ed/(?:DESIGN|STYLE|FEATURES|MODELS|seeds|models)\b",
            r"\b(?:STYLE|FEATURES|MODELS|CONTRACT)" + r"\.md\b",
        )
    ),
    "an unfinished-work note (finish it, or open an issue)": r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
}
BINARY = {".gguf", ".png", ".ico", ".jpg", ".woff2", ".pem"}


def repository_files() -> list[Path]:
    """What a commit would hold, as paths below ROOT."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        try:
            names = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.split(b"\0")
            found = [ROOT / os.fsdecode(name) for name in sorted(set(names)) if name]
            return [path for path in found if path.is_file()]
        except (OSError, subprocess.CalledProcessError):
            pass  # no usable git: look at everything
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if name not in NOT_OURS]
        found += [Path(folder) / name for name in names]
    libs = ROOT / "libs"
    return sorted(path for path in found if libs not in path.parents or path.name == "README.md")


def python_files() -> list[Path]:
    """The Python sources among them."""
    return [path for path in repository_files() if path.suffix == ".py"]


def relative(path: Path) -> str:
    """For test names and messages."""
    return path.relative_to(ROOT).as_posix()


def is_product(path: Path) -> bool:
    """What runs at the user's, and the scripts that prepare it."""
    return relative(path).split("/")[0] in ("llama_srv.py", "server", "ctypes_api", "build_scripts")


def offences(text: str) -> list[str]:
    """`line: what` for each forbidden thing in a text."""
    return [
        f"line {number}: {what}: {found.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if (found := re.search(pattern, line))
    ]


def test_files_mention_nothing_forbidden():
    found = {}
    for path in repository_files():
        if path.suffix not in BINARY:
            lines = offences(path.read_text(encoding="utf-8", errors="replace"))
            if lines:
                found[relative(path)] = lines
    assert found == {}


def test_no_file_is_large():
    sizes = {relative(path): path.stat().st_size for path in repository_files()}
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES} == {}


def test_text_files_end_with_a_newline_and_use_plain_line_ends():
    bad = []
    for path in repository_files():
        data = path.read_bytes()
        if path.suffix in (".py", ".md", ".js", ".css", ".html", ".txt", ".ini") and data:
            if b"\r" in data or not data.endswith(b"\n"):
                bad.append(relative(path))
    assert bad == []


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_python_file_is_short_or_says_why_not(path: Path):
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    n_lines = len(source.splitlines())
    assert n_lines <= MAX_LINES or f"{MAX_LINES} lines" in docstring, (
        f"{n_lines} lines: cut it, or say in its docstring why it's longer than {MAX_LINES} lines"
    )


@pytest.mark.parametrize("path", [path for path in python_files() if is_product(path)], ids=relative)
def test_lines_of_the_product_fit_a_screen(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"line {n}: {len(line)}" for n, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("path", [path for path in python_files() if is_product(path)], ids=relative)
def test_module_of_the_product_says_what_it_is(path: Path):
    source = path.read_text(encoding="utf-8")
    if source.strip():
        assert ast.get_docstring(ast.parse(source)), "a module docstring: what it is, which thread runs it"


@pytest.mark.parametrize(
    "text",
    [
        "see https://py" + "pi.org/simple",
        "npm install --registry https://registry.npm" + "js.org",
        "run /wo" + "rk/main/llama_srv.py",
        "in /tm" + "p/src/llama.cpp",
        "as ../sh" + "ared/DESIGN says",
        "rules of STYLE" + ".md",
        "# TO" + "DO: later",
        "x = 1  # FIX" + "ME",
    ],
)
def test_the_rules_find_what_they_are_for(text: str):
    assert len(offences(text)) == 1


@pytest.mark.parametrize("text", ["a network/worker pool", "shared/ memory", "$HOME/root.txt", "/tmp/server.sock"])
def test_the_rules_let_ordinary_text_pass(text: str):
    assert offences(text) == []
