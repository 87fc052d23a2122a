"""Reads the command line of a command and runs it. Main thread.

A command has those options of the server that it uses; `run` and `batch` have all that are about a model. An error is
reported in one line, with the server's exit codes.

Way not taken: options instead of commands (`--pull`).
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from ctypes_api.errors import LibsError
from server import log, program
from server.commands import catalogue
from server.commands.catalogue import Call, tell
from server.errors import FAILED, MISCONFIGURED, PassingError, StartError
from server.options.commands import COMMANDS, PEER, Command
from server.options.groups import MODEL, scope_of
from server.options.parser import OptionError, read_command, render_help_lines
from server.options.row import Option
from server.options.table import OPTIONS

HELP = Option("help", ("-h", "--help"), "show this and exit", "", None, False)
WIDTH = 100  # columns of the help


def main(argv: Sequence[str]) -> int:
    """Run the command `argv[0]`. Returns the exit code (`shells.EXIT_STATUS`)."""
    command = COMMANDS[argv[0]]
    try:
        call = read(command, argv[1:])
        if call is None:
            print(render_usage(command))
            return 0
        return DOERS[command.name](call)
    except (OptionError, StartError, LibsError, OSError) as error:
        log.flush()
        tell(f"error: {error}")
        return FAILED if isinstance(error, (PassingError, OSError)) else MISCONFIGURED


def table_of(command: Command) -> list[Option]:
    own = [option for option in OPTIONS if option.name in command.options]
    if command.takes_model_options:
        own += [option for option in OPTIONS if scope_of(option) == MODEL and option not in own]
    return [HELP, *command.own, *(PEER if command.has_url else ()), *own]


def read(command: Command, words: Sequence[str]) -> Call | None:
    """The command's settings and words; None if the help is wanted. OptionError."""
    settings, names, rest = read_command(words, os.environ, table_of(command))
    if settings.help:
        return None
    if len(names) < command.n_words:
        raise OptionError(f"{command.name} needs {command.words}: see {command.name} --help")
    if len(names) > command.n_words and not command.takes_text:
        raise OptionError(f"unexpected word '{names[command.n_words]}': see {command.name} --help")
    return Call(settings, names, rest)


def render_usage(command: Command) -> str:
    name = program.describe_program().removeprefix("python ")
    lines = [f"usage: {name} {command.name} {command.words}".rstrip() + " [options]", ""]
    for paragraph in command.about.split("\n"):
        is_example = paragraph.startswith("  ")
        lines += [paragraph.format(program=name)] if is_example else textwrap.wrap(paragraph, WIDTH) or [""]
    lines.append("")
    shown = [option for option in table_of(command) if not command.takes_model_options or option.name in SHOWN]
    lines += [line for option in shown for line in render_help_lines(option, WIDTH, is_short=True)]
    if command.takes_model_options:
        lines += ["", "The server's options about a model work here, too: see --help all."]
    return "\n".join(lines)


SHOWN = (
    *("help", "url", "port", "api_key", "files", "models_dir", "models_preset", "ctx_size", "parallel", "temperature"),
    *("threads", "libs"),
)
"""The options that the help of `run` and `batch` shows."""


def _list_models(call: Call) -> int:
    from server.commands import listing

    return listing.list_models(call)


def _show(call: Call) -> int:
    from server.commands import listing

    return listing.show(call)


def _list_running(call: Call) -> int:
    from server.commands import listing

    return listing.list_running(call)


def _pull(call: Call) -> int:
    return catalogue.pull(call)


def _rm(call: Call) -> int:
    return catalogue.remove(call)


def _run(call: Call) -> int:
    from server.commands import run

    return run.run(call)


def _batch(call: Call) -> int:
    from server.commands import batch

    return batch.run(call)


def _verify(call: Call) -> int:
    from server.commands import records

    return records.verify(call)


def _replay(call: Call) -> int:
    from server.commands import records

    return records.run_again(call)


def _serve_rpc_worker(call: Call) -> int:
    from server.commands import worker

    return worker.serve(call)


DOERS = {
    "models": _list_models,
    "show": _show,
    "ps": _list_running,
    "pull": _pull,
    "rm": _rm,
    "run": _run,
    "batch": _batch,
    "verify": _verify,
    "replay": _replay,
    "rpc-worker": _serve_rpc_worker,
}
