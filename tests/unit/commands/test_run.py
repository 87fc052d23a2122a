"""The conversation of `run`: messages of several lines, slash commands, and answers that are stopped."""

from __future__ import annotations

import io
from collections.abc import Generator
from typing import Any

import pytest

from server.commands import run
from server.commands.run import Chat, Leave, Screen, read_message, run_command, talk
from server.commands.talk import TEXT, THOUGHT, Peer
from server.errors import PassingError


class FakePeer(Peer):
    """Says what it has been given: texts, or errors to raise."""

    def __init__(self, *said: object) -> None:
        super().__init__("http://x")
        FakePeer.said, FakePeer.asked = list(said), []

    said: list[object]
    asked: list[dict[str, Any]]

    def chat(self, body: dict[str, Any]) -> Generator[tuple[str, str]]:
        self.asked.append(body)
        while self.said:
            piece = self.said.pop(0)
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece if isinstance(piece, tuple) else (TEXT, piece)


def lines(*given: object):
    """`input` of a user who types this and leaves."""
    left = list(given)

    def read(prompt: str) -> str:
        if not left:
            raise EOFError
        line = left.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def conversation(peer: FakePeer, *given: object) -> tuple[Chat, str]:
    """The chat and what was shown of answers, after a user has typed this."""
    chat, out = Chat(peer, "m"), io.StringIO()
    talk(chat, Screen(out, False), lines(*given))
    return chat, out.getvalue()


def test_answers_and_messages_are_the_next_questions_context(capsys):
    peer = FakePeer("Hel", "lo", None, "Bye")
    chat, shown = conversation(peer, "hi", "", "/system Be short.", "bye")
    assert shown == "Hello\nBye\n"
    assert peer.asked[0] == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    roles = [(message["role"], message["content"]) for message in peer.asked[1]["messages"]]
    assert roles == [("system", "Be short."), ("user", "hi"), ("assistant", "Hello"), ("user", "bye")]
    assert len(chat.messages) == 4


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(capsys):
    peer = FakePeer("One, two", KeyboardInterrupt(), "three", None)
    chat, shown = conversation(peer, "count", "go on")
    assert shown == "One, two\nthree\n"
    assert [message["content"] for message in chat.messages] == ["count", "One, two", "go on", "three"]


def test_a_message_without_an_answer_does_not_stay(capsys):
    peer = FakePeer(PassingError("too long"), KeyboardInterrupt(), "yes")
    chat, _ = conversation(peer, "first", "second", "third")
    assert [message["content"] for message in chat.messages] == ["third", "yes"]
    assert "error: too long" in capsys.readouterr().out


def test_ctrl_c_at_the_prompt_drops_the_line_and_ctrl_d_ends(capsys):
    _, shown = conversation(FakePeer("x"), KeyboardInterrupt(), "hi", EOFError(), "never")
    assert shown == "x\n" and "Ctrl-D or /bye to leave" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["one"], "one"),
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "two", '"""'], "two"),
        (['"""one line"""'], "one line"),
        (['"""', "  indented", "", '""" '], "indented"),
        (['""""""'], ""),
        (["  spaced  "], "spaced"),
    ],
)
def test_triple_quotes_hold_several_lines(given, message):
    assert read_message(lines(*given)) == message


def test_what_is_set_goes_with_every_request(capsys):
    peer = FakePeer("x")
    given = ["/set temperature 0.5", "/set stop ['a'", '/set stop ["a"]', "/set seed 1", "/set seed", "/set", "hi"]
    chat, _ = conversation(peer, *given)
    assert chat.fields == {"temperature": 0.5, "stop": ["a"]}
    assert peer.asked[0]["temperature"] == 0.5 and peer.asked[0]["stop"] == ["a"]
    assert "temperature = 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model", "messages", "stream"])
def test_what_run_itself_says_cannot_be_set(name):
    chat = Chat(FakePeer(), "m")
    assert run_command(chat, f"/set {name} x") == f"{name} can't be changed" and chat.fields == {}


def test_slash_words():
    chat = Chat(FakePeer(), "m", messages=[{"role": "user", "content": "x"}])
    assert run_command(chat, "/help") == run_command(chat, "/?") == run.HELP
    assert run_command(chat, "/frob") == "unknown command /frob; see /help"
    run_command(chat, "/system   Be kind.  ")
    assert chat.system == "Be kind."
    run_command(chat, "/system")
    assert chat.system == ""
    run_command(chat, "/clear")
    assert chat.messages == []
    for word in ("/bye", "/exit", "/quit"):
        with pytest.raises(Leave):
            run_command(chat, word)


def test_thoughts_are_shown_on_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(run.os, "name", "posix")
    for is_terminal, shown in ((True, "\x1b[2mhm\x1b[0m\n\nyes\n"), (False, "yes\n")):
        out = io.StringIO()
        screen = Screen(out, is_terminal)
        screen.show(THOUGHT, "hm")
        screen.show(TEXT, "yes")
        screen.end()
        assert out.getvalue() == shown
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    screen = Screen(out, True)
    screen.show(THOUGHT, "hm\x1b[0m")
    screen.show(TEXT, "yes")
    screen.end()
    assert out.getvalue() == "hm[0m\n\nyes\n"
