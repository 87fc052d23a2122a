"""The first steps of the program: read the options, start the engine's process if there is to be one, go on to `app`.

Main thread. Everything here is about the time until the server is ready: an interpreter takes a tenth of a second to
import either half of the program, so the engine's half is started before the web's half is imported, and both do it at
once. Hence this module imports next to nothing, and cyclic garbage isn't looked for until the server serves (there is
none at a start, and looking for it among a hundred thousand new objects costs a tenth of the time).

Not taken: starting the engine before the options are read. It would be for nothing with every --help.
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
from server.errands.tuned import chosen
from server.errors import FAILED, MISCONFIGURED
from server.options.commands import is_command
from server.options.groups import Options, group
from server.options.parser import OptionError, parse, usage

if TYPE_CHECKING:
    from server.errands.bundle import Bundle

MIN_ADDRESS_SPACE = 1 << 30
"""Mapped, not used: threads reserve most of it. With less, some can't be started, and native code aborts."""
NO_MEMORY = "there is not enough memory, or a limit such as ulimit -v allows too little"


def main(argv: Sequence[str]) -> int:
    """The whole program; the exit code, see `shells.EXIT_STATUS`."""
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
    except BrokenPipeError:  # `--help | head`: the reader has had enough
        _drop_output()
        return 0
    except KeyboardInterrupt:
        return 130
    except (OSError, MemoryError, RuntimeError) as error:  # a full disk under stdout, a limit of the system
        if isinstance(error, RuntimeError) and "thread" not in str(error):
            raise
        return _fail(NO_MEMORY if isinstance(error, MemoryError) else str(error))


def _drop_output() -> None:
    """What stdout still holds can't be written, and the interpreter must not try."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(why: str, code: int = FAILED) -> int:
    _drop_output()
    if sys.stderr is not None:
        print(f"error: {why}", file=sys.stderr)
    return code


def _end_with_input() -> None:
    """As Ctrl-C does, once whoever has started this server has gone. (A thread within `sys.stdin` would end the
    interpreter's end.)"""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    _thread.interrupt_main()


def _run(argv: Sequence[str], is_click: bool) -> int:
    if is_command(argv):
        from server.commands import main as commands  # here, because no server needs it

        return commands.main(argv)
    try:
        own = own_bundle()
        bundled = own.defaults if own else ()
        options = group(parse(argv, os.environ, bundled=bundled))
        if is_click:
            sources = options.model.sources
            argv = double_click.words(argv, bool(own or sources.model or sources.must_fetch))
            options = group(parse(argv, os.environ, bundled=bundled))
    except OptionError as error:
        return _fail(str(error), MISCONFIGURED)
    if options.errands.help:
        name = program.program().removeprefix("python ")
        print(usage(program=name, is_short=options.errands.help == "short"), flush=True)
        return 0
    room = address_space()
    if room is not None and room < MIN_ADDRESS_SPACE:
        return _fail(
            f"ulimit -v allows {room >> 20} MiB of address space; {MIN_ADDRESS_SPACE >> 20} MiB and the model's "
            "size are needed"
        )
    process = start_engine(options, own)
    try:
        if process is not None:
            gc.disable()  # until it serves
        from server import app  # here, while the engine's process gets ready

        return app.run(options, own, argv, process)
    finally:
        gc.enable()
        if process is not None and process.poll() is None:
            spawn.end_process(process)


def address_space() -> int | None:
    """Bytes that each of our processes may map; None for no limit."""
    try:
        import resource
    except ImportError:
        return None  # Windows has no such limit
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def own_bundle() -> Bundle | None:
    """The bundle that this very program is, or has beside it. OptionError if it is damaged."""
    if not program.is_frozen():
        return None
    from server.errands.bundle import BundleError, find  # here, because Python source holds no bundle

    try:
        return find(program.own_file())
    except BundleError as error:
        raise OptionError(str(error)) from None


def start_engine(options: Options, own: Bundle | None) -> subprocess.Popen | None:
    """The engine's process, which waits for its configuration; None where it isn't clear that one will be needed."""
    sources = options.model.sources
    is_at_hand = (own or sources.model) and not sources.must_fetch
    if not is_at_hand or options.engines.engine == "thread" or options.errands:
        return None
    try:
        return spawn.start_process(spawn.engine_command(*library_hints(options)))
    except OSError:
        return None  # the supervisor tries again, and knows whom to tell


def library_hints(options: Options) -> list[str]:
    """The folder of the libraries, and the CPU variant if one is asked for; nothing if `app` will have to say why."""
    try:
        folder = find_folder(program.ROOT, options.engines.libs)
    except LibsError:
        return []
    variant = chosen(options.model, options.model.sources.model or "", folder).cpu_variant
    return [str(folder), variant] if variant else [str(folder)]
