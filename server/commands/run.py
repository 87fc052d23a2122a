"""`run NAME`: a chat in the terminal, or one answer for a script, with a server of its own or a running one.

Main thread. A server of its own is a child process that ends with the command, even if that crashes. `docs/models.md`
lists the commands and keys. Way not taken: an engine in this process, whose crash would lose the conversation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from server import program
from server.commands.catalogue import Call, fetch, find
from server.commands.talk import TEXT, THOUGHT, Peer, make_visible
from server.errors import PassingError
from server.models.catalogue import ModelEntry
from server.models.file_names import parse_repository
from server.options.commands import FOLDERS
from server.options.parser import OptionError
from server.records import field, record

READY = re.compile(r"is ready: (\S+)")
MOST_INPUT = 16 << 20  # characters of a message from stdin
QUOTES = '"""'
OWN_FIELDS = ("messages", "model", "stream")  # fields that /set can't change
NOT_FOR_A_CHILD = re.compile(
    "LLAMA_ARG_(MODEL|MODEL_URL|HF_REPO|HF_FILE|MODELS_DIR|MODELS_PRESET|MMPROJ|MMPROJ_URL|ALIAS|HOST|PORT)"
    "|LLAMA_ARG_(SSL|API)_.*"
    "|LLAMA_API_KEY"
)
"""Environment variables for other servers, which a server of our own must not get."""
GREY, PLAIN = "\x1b[2m", "\x1b[0m"
HELP = """\
  /set              show the fields that are set
  /set NAME VALUE   send this field with every request, e.g. /set temperature 0.2
  /set NAME         stop sending it
  /system TEXT      set the system message; without TEXT remove it
  /clear            forget the conversation
  /bye              leave, as Ctrl-D does
  \"\"\"               begin or end a message of several lines
  Ctrl-C            stop the answer"""


class Leave(Exception):
    """The user wants to leave."""


@record
class Chat:
    """A conversation. `fields` are sent with every request."""

    peer: Peer
    model: str
    system: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, text: str, show: Callable[[str, str], None]) -> None:
        """Send a message and show the answer as it comes. The conversation keeps both, even if the answer breaks off,
        unless the answer has no text."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.messages, {"role": "user", "content": text}]
        said = ""
        try:
            with contextlib.closing(
                self.peer.chat({**self.fields, "model": self.model, "messages": system + asked})
            ) as pieces:
                for kind, piece in pieces:
                    said += piece if kind == TEXT else ""
                    show(kind, piece)
        finally:
            if said:
                self.messages = [*asked, {"role": "assistant", "content": said}]


class Screen:
    """Shows answers; reasoning only on a terminal."""

    def __init__(self, out: TextIO, is_terminal: bool) -> None:
        self._out = out
        self._is_terminal = is_terminal
        self._has_colors = is_terminal and os.name == "posix" and not os.environ.get("NO_COLOR")
        self._kind = TEXT

    def show(self, kind: str, piece: str) -> None:
        if kind == THOUGHT and not self._is_terminal:
            return
        if kind != self._kind:
            self._turn(kind)
        self._out.write(make_visible(piece))
        self._out.flush()

    def _turn(self, kind: str) -> None:
        self._out.write(("" if kind == THOUGHT else PLAIN + "\n\n") if self._has_colors or kind == THOUGHT else "\n\n")
        self._out.write(GREY if kind == THOUGHT and self._has_colors else "")
        self._kind = kind

    def end(self) -> None:
        self._out.write((PLAIN if self._kind == THOUGHT and self._has_colors else "") + "\n")
        self._out.flush()
        self._kind = TEXT


def run(call: Call) -> int:
    """Chat until the user leaves, or answer the message from the command line or stdin. Returns the exit code.
    OptionError, PassingError."""
    for stream in (sys.stdin, sys.stdout):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    text = " ".join(call.names[1:])
    if not is_typed and sys.stdin is not None:
        text = "\n\n".join(filter(None, (text, sys.stdin.read(MOST_INPUT).strip())))
        if not text:
            raise OptionError("stdin is empty: there is no message to answer")
    with contextlib.ExitStack() as stack:
        chat = stack.enter_context(open_chat(call))
        screen = Screen(sys.stdout, sys.stdout.isatty())
        if text:
            chat.answer(text, screen.show)
            screen.end()
        else:
            talk(chat, screen)
    return 0


@contextlib.contextmanager
def open_chat(call: Call) -> Iterator[Chat]:
    """A conversation on the server that the options name, or on a server of our own."""
    name = call.names[0]
    if call.settings.url or call.settings.is_set("port"):
        yield Chat(Peer.from_settings(call.settings), name)
        return
    try:
        entry, _ = find(call.settings, name)
    except OptionError:
        if parse_repository(name) is None or os.path.sep in name and not name.count("/") == 1:
            raise
        fetch(call.settings, name)
        entry, _ = find(call.settings, name)
    if entry.fault:
        raise OptionError(entry.fault)
    with start_own_server(make_child_words(entry, call)) as peer:
        yield Chat(peer, entry.name)


def make_child_words(entry: ModelEntry, call: Call) -> list[str]:
    """The command line of a server for this model."""
    settings = call.settings
    words = [word for name, word in call.options if name not in FOLDERS] + [
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--no-ui",
    ]
    if not settings.is_set("log_verbosity"):
        words += ["-lv", "1"]
    if entry.source == "preset":
        folder = ["--models-dir", settings.models_dir] if settings.models_dir else []
        return [*words, "--models-preset", settings.models_preset, *folder]
    words += ["-m", entry.path, "--alias", entry.name]
    words += ["--mmproj", entry.mmproj] if entry.mmproj else []
    return words + [word for path, _ in entry.changes.get("lora", ()) for word in ("--lora", path)]


@contextlib.contextmanager
def start_own_server(words: list[str]) -> Iterator[Peer]:
    """Start a server of our own and wait until it is ready; it ends with the block. Its stderr goes to the terminal. If
    it can't start, SystemExit with the server's exit code."""
    key = secrets.token_hex(16)
    environment = {name: text for name, text in os.environ.items() if not NOT_FOR_A_CHILD.fullmatch(name)}
    environment |= {"LLAMA_API_KEY": key, program.OWNED: "1"}
    own_group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    child = subprocess.Popen(
        program.make_own_command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, **own_group
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        found = next(filter(None, (READY.search(line.decode("utf-8", "replace")) for line in child.stdout)), None)
        if found is None:
            raise SystemExit(child.wait())
        yield Peer(found[1], key)
    finally:
        child.stdin.close()
        program.stop_child(child, patience=10.0)
        child.stdout.close()


# ---- the conversation ------------------------------------------------------------------------------------------------


def talk(chat: Chat, screen: Screen, read: Callable[[str], str] = input) -> None:
    """Chat until the user leaves. `read` returns a line without its end, and raises EOFError at the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing for `input`)
    print(f"{chat.model}: type a message, or /help", flush=True)
    while True:
        try:
            text = read_message(read)
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /bye to leave)", flush=True)
            continue
        except EOFError:
            print(flush=True)
            return
        try:
            if text.startswith("/"):
                print(run_command(chat, text), flush=True)
            elif text:
                _say(chat, screen, text)
        except Leave:
            return
        except PassingError as error:
            print(f"error: {error}", flush=True)


def _say(chat: Chat, screen: Screen, text: str) -> None:
    try:
        chat.answer(text, screen.show)
    except KeyboardInterrupt:
        pass
    finally:
        screen.end()


def read_message(read: Callable[[str], str]) -> str:
    """Read a line, or several lines between triple quotes."""
    line = read(">>> ").strip()
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip()


def run_command(chat: Chat, text: str) -> str:
    """Run a line that begins with a slash. Returns the text to show."""
    word, _, rest = text.partition(" ")
    rest = rest.strip()
    if word in ("/bye", "/exit", "/quit"):
        raise Leave
    if word in ("/help", "/?"):
        return HELP
    if word == "/clear":
        chat.messages = []
        return "the conversation was cleared"
    if word == "/system":
        chat.system = rest
        return "the system message was set" if rest else "the system message was removed"
    if word == "/set":
        return set_field(chat, rest)
    return f"unknown command {word}; see /help"


def set_field(chat: Chat, text: str) -> str:
    """`/set`, `/set NAME` and `/set NAME VALUE`."""
    name, _, value = text.partition(" ")
    if name in OWN_FIELDS:
        return f"{name} can't be changed"
    if not value:
        if name:
            chat.fields.pop(name, None)
        return "\n".join(f"{name} = {json.dumps(value)}" for name, value in chat.fields.items()) or "no field is set"
    try:
        chat.fields[name] = json.loads(value)
    except (ValueError, RecursionError):
        chat.fields[name] = value
    return f"{name} = {json.dumps(chat.fields[name])}"
