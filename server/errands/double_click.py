"""A start by double click on the program, or by dropping a model on it, opens a console window. The program then asks
for the model if none was given, opens the web page, and keeps an error visible until Enter is pressed.

Main thread; `launch` calls it. For executables on Windows and macOS only, because elsewhere a click opens no console. A
start with options comes from a shell or a service, so nothing is asked.

Way not taken: a file dialog. A file can be dragged into the console, which types its path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from server import program

QUESTION = "Which model? Drag a GGUF file into this window, or type its path, and press Enter: "
FAREWELL = "Press Enter to close this window. "


def is_one(argv: Sequence[str], system: str = sys.platform) -> bool:
    """Whether this start looks like a double click or a drop. On macOS, any start from a terminal without arguments
    does."""
    if not program.is_frozen() or sys.stdin is None or not sys.stdin.isatty():
        return False
    if system == "win32":
        is_bare = not argv or len(argv) == 1 and not argv[0].startswith("-")
        return is_bare and count_console_processes() <= (2 if program.is_one_file() else 1)
    return system == "darwin" and not argv


def count_console_processes() -> int:
    """The number of processes in this console. A click opens a new console, with one process (two for the one-file
    program)."""
    import ctypes

    return ctypes.WinDLL("kernel32").GetConsoleProcessList((ctypes.c_uint32 * 8)(), 8)  # type: ignore[attr-defined]


def make_words(
    argv: Sequence[str], has_model: bool, ask: Callable[[str], str] = input, system: str = sys.platform
) -> list[str]:
    model = [] if has_model else parse_path(ask(QUESTION), system)
    return [*argv, *model, "--open"]


def parse_path(typed: str, system: str) -> list[str]:
    """`--model` and the path of a dragged file, which consoles quote on Windows and escape elsewhere; [] if none."""
    typed = typed.strip()
    if system != "win32":
        import shlex  # imported here: few starts need it

        try:
            typed = " ".join(shlex.split(typed))
        except ValueError:
            pass  # an unmatched quote, so the path was typed by hand
    path = typed.strip('"')
    return ["--model", path] if path else []


def hold(ask: Callable[[str], str] = input) -> None:
    try:
        ask(FAREWELL)
    except (EOFError, KeyboardInterrupt):
        pass
