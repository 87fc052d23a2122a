"""Users can follow the advice in messages: executables contain no build scripts."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

from ctypes_api import errors
from server import program
from tests.support import ROOT

SCRIPTS = {path.name for path in (ROOT / "build_scripts").glob("*.py")} | {"build_scripts"}


def advised(tree: ast.AST) -> Iterator[ast.AST]:
    """What is said from source only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "choose_advice":
            yield from ast.walk(node.args[0])


def docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    """Strings that nobody is shown: statements of their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value


def test_a_message_names_a_build_script_only_to_who_has_it():
    found = []
    for path in sorted([*(ROOT / "server").rglob("*.py"), *(ROOT / "ctypes_api").rglob("*.py")]):
        tree = ast.parse(path.read_text("utf-8"))
        fine = {*advised(tree), *docstrings(tree)}
        name = path.relative_to(ROOT).as_posix()
        found += [
            f"{name}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in fine
            and any(script in node.value for script in SCRIPTS)
        ]
    assert found == []


@pytest.mark.parametrize("advice", [program.choose_advice, errors.choose_advice])
def test_advice_is_for_the_program_at_hand(advice, monkeypatch):
    assert advice("a script", "a download") == "a script"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert advice("a script", "a download") == "a download"
