"""Commands of the command line, their options and their help: from words to a function that does it.

Main thread, instead of serving. Options are rows of the same table as the server's, read by the same parser; a command
has those that it uses, and `run` all that are about a model. Mistakes are one line and the exit codes of the server.

Not taken: commands as options (`--pull`). They take names and words of their own, and people know them so from others.
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
from server.options.parser import OptionError, help_lines, read_command
from server.options.row import Option
from server.options.table import OPTIONS

HELP = Option("help", ("-h", "--help"), "show this and exit", "", None, False)
WIDTH = 100


def main(argv: Sequence[str]) -> int:
    """Do what the command `argv[0]` says; the exit code, see `shells.EXIT_STATUS`."""
    command = COMMANDS[argv[0]]
    try:
        call = read(command, argv[1:])
        if call is None:
            print(usage(command))
            return 0
        return DOERS[command.name](call)
    except (OptionError, StartError, LibsError, OSError) as error:
        log.flush()
        tell(f"error: {error}")
        return FAILED if isinstance(error, (PassingError, OSError)) else MISCONFIGURED


def table_of(command: Command) -> list[Option]:
    """The options of a command."""
    own = [option for option in OPTIONS if option.name in command.options]
    if command.takes_model_options:
        own += [option for option in OPTIONS if scope_of(option) == MODEL and option not in own]
    return [HELP, *command.own, *(PEER if command.has_url else ()), *own]


def read(command: Command, words: Sequence[str]) -> Call | None:
    """What is to be done, and with what; None to show the help. OptionError."""
    settings, names, rest = read_command(words, os.environ, table_of(command))
    if settings.help:
        return None
    if len(names) < command.n_words:
        raise OptionError(f"{command.name} needs {command.words}: see {command.name} --help")
    if len(names) > command.n_words and not command.takes_text:
        raise OptionError(f"'{names[command.n_words]}' is one word too many: see {command.name} --help")
    return Call(settings, names, rest)


def usage(command: Command) -> str:
    """The text of `COMMAND --help`."""
    name = program.program().removeprefix("python ")
    lines = [f"usage: {name} {command.name} {command.words}".rstrip() + " [options]", ""]
    for paragraph in command.about.split("\n"):
        is_example = paragraph.startswith("  ")
        lines += [paragraph.format(program=name)] if is_example else textwrap.wrap(paragraph, WIDTH) or [""]
    lines.append("")
    shown = [option for option in table_of(command) if not command.takes_model_options or option.name in SHOWN]
    lines += [line for option in shown for line in help_lines(option, WIDTH, is_short=True)]
    if command.takes_model_options:
        lines += ["", "All options of the server about a model work here, too: see --help all."]
    return "\n".join(lines)


SHOWN = (
    *("help", "url", "port", "api_key", "files", "models_dir", "models_preset", "ctx_size", "parallel", "temperature"),
    *("threads", "libs"),
)
"""The options that the help shows of the many that commands about a model have."""


def _models(call: Call) -> int:
    from server.commands import listing

    return listing.list_models(call)


def _show(call: Call) -> int:
    from server.commands import listing

    return listing.show(call)


def _ps(call: Call) -> int:
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


def _rpc_worker(call: Call) -> int:
    from server.commands import worker

    return worker.serve(call)


DOERS = {
    "models": _models,
    "show": _show,
    "ps": _ps,
    "pull": _pull,
    "rm": _rm,
    "run": _run,
    "batch": _batch,
    "verify": _verify,
    "replay": _replay,
    "rpc-worker": _rpc_worker,
}
