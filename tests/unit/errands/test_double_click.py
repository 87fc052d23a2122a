"""Starts by a double click: asking for a model, the resulting arguments, and a window that stays open."""

from __future__ import annotations

import io
import sys

import pytest

from server import launch, program
from server.errands import double_click


class Console(io.StringIO):
    """Standard input of a window."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clicked(monkeypatch):
    """A frozen program in a console that has so many processes."""

    def make(n_processes: int = 1, is_one_file: bool = False, stdin: object = None) -> None:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin or Console())
        monkeypatch.setattr(program, "is_one_file", lambda: is_one_file)
        monkeypatch.setattr(double_click, "count_console_processes", lambda: n_processes)

    return make


@pytest.mark.parametrize(
    ("system", "argv", "n_processes", "is_one_file", "is_one"),
    [
        ("win32", [], 1, False, True),
        ("win32", ["C:\\a b.gguf"], 1, False, True),
        ("win32", [], 2, True, True),
        ("win32", [], 2, False, False),
        ("win32", [], 3, True, False),
        ("win32", ["--config", "x.ini"], 1, False, False),
        ("win32", ["--help"], 1, False, False),
        ("darwin", [], 9, True, True),
        ("darwin", ["a.gguf"], 9, True, False),
        ("linux", [], 1, True, False),
    ],
)
def test_a_click_is_told_from_a_shell_and_a_service(clicked, system, argv, n_processes, is_one_file, is_one):
    clicked(n_processes, is_one_file)
    assert double_click.is_one(argv, system) is is_one


def test_nobody_is_asked_without_a_window_or_from_source(clicked, monkeypatch):
    clicked(stdin=io.StringIO())
    assert not double_click.is_one([], "win32")
    clicked()
    monkeypatch.delattr(sys, "frozen")
    assert not double_click.is_one([], "win32")


@pytest.mark.parametrize(
    ("system", "typed", "path"),
    [
        ("win32", ' "C:\\my models\\a.gguf" ', "C:\\my models\\a.gguf"),
        ("win32", "C:\\a.gguf", "C:\\a.gguf"),
        ("darwin", "/my\\ models/a.gguf ", "/my models/a.gguf"),
        ("darwin", "it's.gguf", "it's.gguf"),
    ],
)
def test_a_dragged_file_is_the_model_and_the_page_opens(system, typed, path):
    assert double_click.make_words([], False, lambda _: typed, system) == ["--model", path, "--open"]


def test_who_has_a_model_is_not_asked():
    assert double_click.make_words(["a.gguf"], True, lambda _: pytest.fail("asked"), "win32") == ["a.gguf", "--open"]


def test_no_answer_is_no_model():
    assert double_click.make_words([], False, lambda _: " ", "win32") == ["--open"]


def test_a_window_with_an_error_stays_until_it_was_read(clicked, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(double_click, "is_one", lambda argv: True)
    monkeypatch.setattr(double_click, "hold", lambda: asked.append("hold"))
    monkeypatch.setattr(double_click, "make_words", lambda argv, has_model: [*argv, "--open", f"--{has_model}"])
    monkeypatch.setattr(launch, "_drop_output", lambda: None)
    monkeypatch.setattr(program, "open_standard_streams", lambda: None)
    assert launch.main([]) == 2 and asked == ["hold"]
