"""The first steps of the program: read the options, start the engine's process if one is needed, go on to `app`.

Main thread. To keep the start short, the engine's process is started before this one imports the web's half, so both
import at the same time. This module imports little.

Not taken: starting the engine before the options are read. Every --help would start one.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctypes_api.errors import LibsError
from ctypes_api.folder import find_folder
from server import program
from server.engine.client import spawn
from server.errands import double_click
from server.errands.tuned import choose_tuned
from server.errors import FAILED, MISCONFIGURED
from server.options.commands import is_command
from server.options.groups import Options, group
from server.options.parser import OptionError, parse, render_usage

if TYPE_CHECKING:
    from server.errands.bundle import Bundle

MIN_ADDRESS_SPACE = 1 << 30
"""Bytes of address space that the program needs, mostly for threads' stacks. With less, some threads can't start, and
native code aborts."""
NO_MEMORY = "there is not enough memory, or a limit such as ulimit -v allows too little"


def main(argv: Sequence[str]) -> int:
    """Return the exit code, see `shells.EXIT_STATUS`."""
    program.open_standard_streams()
    if os.environ.pop(program.OWNED, ""):
        threading.Thread(target=_end_with_input, name="owner", daemon=True).start()
    is_click = double_click.is_one(argv) and not is_command(argv)
    code = _main(argv, is_click)
    if code and is_click:
        double_click.hold()
    return code


def _main(argv: Sequence[str], is_click: bool) -> int:
    try:
        code = _run(argv, is_click)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # as with `--help | head`
        _drop_output()
        return 0
    except KeyboardInterrupt:
        return 130
    except (OSError, MemoryError, RuntimeError) as error:  # a full disk under stdout, a limit of the system
        if isinstance(error, RuntimeError) and "thread" not in str(error):
            raise
        return _fail(NO_MEMORY if isinstance(error, MemoryError) else str(error))


def _drop_output() -> None:
    """Discard what stdout still buffers: the interpreter would try to write it at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(why: str, code: int = FAILED) -> int:
    _drop_output()
    if sys.stderr is not None:
        print(f"error: {why}", file=sys.stderr)
    return code


def _end_with_input() -> None:
    """Stop the server once its standard input ends: the process that started it has ended. Reads the descriptor,
    because a thread that waits inside `sys.stdin` would block the interpreter's exit."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    _thread.interrupt_main()


def _run(argv: Sequence[str], is_click: bool) -> int:
    if is_command(argv):
        from server.commands import main as commands  # here, because a server doesn't need it

        return commands.main(argv)
    try:
        own = find_own_bundle()
        bundled = own.defaults if own else ()
        options = group(parse(argv, os.environ, bundled=bundled))
        if is_click:
            sources = options.model.sources
            argv = double_click.make_words(argv, bool(own or sources.model or sources.must_fetch))
            options = group(parse(argv, os.environ, bundled=bundled))
    except OptionError as error:
        return _fail(str(error), MISCONFIGURED)
    if options.errands.help:
        name = program.describe_program().removeprefix("python ")
        print(render_usage(program=name, is_short=options.errands.help == "short"), flush=True)
        return 0
    room = read_address_space()
    if room is not None and room < MIN_ADDRESS_SPACE:
        return _fail(
            f"ulimit -v allows {room >> 20} MiB of address space; the server needs {MIN_ADDRESS_SPACE >> 20} MiB and "
            "the model's size"
        )
    process = start_engine(options, own)
    try:
        if process is not None:
            gc.disable()  # `serving` enables it again
        from server import app  # here, while the engine's process gets ready

        return app.run(options, own, argv, process)
    finally:
        gc.enable()
        if process is not None and process.poll() is None:
            spawn.end_process(process)


def read_address_space() -> int | None:
    """Bytes that each process of the program may map; None for no limit."""
    try:
        import resource
    except ImportError:
        return None  # Windows has no such limit
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def find_own_bundle() -> Bundle | None:
    """The bundle in this executable, or in a file beside it; None without one. OptionError if it is damaged."""
    if not program.is_frozen():
        return None
    from server.errands.bundle import BundleError, find  # here, because only executables have one

    try:
        return find(program.find_own_file())
    except BundleError as error:
        raise OptionError(str(error)) from None


def start_engine(options: Options, own: Bundle | None) -> subprocess.Popen | None:
    """Start the engine's process, which waits for its configuration. None if it may not be needed, or can't start."""
    sources = options.model.sources
    is_at_hand = (own or sources.model) and not sources.must_fetch
    if not is_at_hand or options.engines.engine == "thread" or options.errands:
        return None
    try:
        return spawn.start_process(spawn.make_engine_command(*find_library_hints(options)))
    except OSError:
        return None  # the supervisor tries again and reports the error


def find_library_hints(options: Options) -> list[str]:
    """The folder of the libraries, and the CPU variant if one is chosen. Empty without libraries: `app` reports
    that."""
    try:
        folder = find_folder(program.ROOT, options.engines.libs)
    except LibsError:
        return []
    variant = choose_tuned(options.model, options.model.sources.model or "", folder).cpu_variant
    return [str(folder), variant] if variant else [str(folder)]
