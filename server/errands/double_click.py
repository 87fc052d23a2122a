"""A start by a double click on the program, or by a model that was dropped on it: somebody looks at a window, not at a
shell. The web page is opened, a missing model is asked for, and the window stays until an error has been read.

Main thread, called by `launch` around everything else. Only the executable on Windows and macOS is started so: there a
click opens a console. A start with options comes from a shell or a service, and nobody is asked anything.

Not taken: a dialog for files. Consoles take a file that is dragged into them, and type its path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from server import program

QUESTION = "Which model? Drag a GGUF file into this window, or type its path, and press Enter: "
FAREWELL = "Press Enter to close this window. "


def is_one(argv: Sequence[str], system: str = sys.platform) -> bool:
    """Whether this is such a start: no words, or one that a drop has left."""
    if not program.is_frozen() or sys.stdin is None or not sys.stdin.isatty():
        return False
    if system == "win32":
        is_bare = not argv or len(argv) == 1 and not argv[0].startswith("-")
        return is_bare and n_console_processes() <= (2 if program.is_one_file() else 1)
    return system == "darwin" and not argv


def n_console_processes() -> int:
    """How many processes share this console; in one that a click has opened, ours alone. The one-file one is two."""
    import ctypes

    return ctypes.WinDLL("kernel32").GetConsoleProcessList((ctypes.c_uint32 * 8)(), 8)  # type: ignore[attr-defined]


def words(
    argv: Sequence[str], has_model: bool, ask: Callable[[str], str] = input, system: str = sys.platform
) -> list[str]:
    """The command line to go on with."""
    model = [] if has_model else path_in(ask(QUESTION), system)
    return [*argv, *model, "--open"]


def path_in(typed: str, system: str) -> list[str]:
    """The path as a console types a dragged file: in quotes on Windows, with backslashes before blanks elsewhere."""
    typed = typed.strip()
    if system != "win32":
        import shlex  # here, because hardly any start is such a one

        try:
            typed = " ".join(shlex.split(typed))
        except ValueError:
            pass  # a quote in the name, typed by hand
    path = typed.strip('"')
    return ["--model", path] if path else []


def hold(ask: Callable[[str], str] = input) -> None:
    """Leave the window open until what it says has been read."""
    try:
        ask(FAREWELL)
    except (EOFError, KeyboardInterrupt):
        pass
