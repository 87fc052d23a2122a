"""The table of commands: their names, options and help. `server.commands` runs them.

`launch` reads it at every start, because the first word of a command line may be a command. The help, the completion
scripts and the manual page are made from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from server.options import row as to
from server.options.row import Option
from server.records import record

PEER = (
    Option(
        "url", ("--url",), "ask the server at this address, e.g. http://127.0.0.1:8080", "", to.parse_url, metavar="URL"
    ),
    Option("port", ("--port",), "ask the server at this port of this machine", "", int, 8080, "N", low=1, high=65535),
    Option("api_key", ("--api-key",), "the API key for that server", "", to.parse_keys, (), "KEY", "LLAMA_API_KEY"),
)
"""Options of commands that ask a running server."""
WORKER = (
    Option("host", ("--host",), "the address to listen on", "", to.parse_host, "127.0.0.1", "HOST"),
    Option("port", ("--port",), "the port to listen on", "", int, to.WORKER_PORT, "N", low=1, high=65535),
    Option(
        "cache",
        ("--cache",),
        "keep large tensors in the cache folder, so that the next load of a model needn't send them again",
        "",
        None,
        False,
    ),
)
"""Options of rpc-worker."""
FOLDERS = ("models_dir", "models_preset")


@record(frozen=True)
class Command:
    """One command. `words` are its arguments as the help shows them, `n_words` is how many are required. With
    `takes_text` more words may follow.

    `options` are names of options in the table, `own` are options that only this command has. With
    `takes_model_options` it also takes a model's options. `about` is the text above the options in `COMMAND --help`.
    Lines in it that begin with blanks are examples; {program} stands for the program's name. `has_url`: it can ask a
    running server."""

    name: str
    words: str
    n_words: int
    help: str
    about: str
    options: tuple[str, ...] = ()
    own: tuple[Option, ...] = ()
    has_url: bool = False
    takes_text: bool = False
    takes_model_options: bool = False


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "models",
            "",
            0,
            "list the models on this machine",
            "Lists the models in the download cache, in --models-dir and in --models-preset: size, quantisation, the "
            "context that they were trained with, and whether they fit into this machine's free memory.",
            (*FOLDERS, "libs"),
        ),
        Command(
            "pull",
            "MODEL",
            1,
            "download a model",
            "Downloads a model into the cache. Then it can be served and run by its name. A download that was stopped "
            "continues where it was; checksums are compared. MODEL is a Hugging Face repository, with or without a "
            "quantisation, or the URL of a GGUF file:\n"
            "  {program} pull ggml-org/gemma-3-4b-it-GGUF\n"
            "  {program} pull ggml-org/gemma-3-4b-it-GGUF:Q8_0",
            ("hf_file", "hf_token", "model_sha256"),
        ),
        Command(
            "rm",
            "MODEL",
            1,
            "remove a model's files",
            "Removes the files of a model in the download cache or in --models-dir. It removes nothing from folders of "
            "other programs.",
            FOLDERS,
        ),
        Command(
            "show",
            "MODEL",
            1,
            "show details of a model",
            "Shows a model's path, the metadata in its file, and how much of this machine's memory it would take. "
            "MODEL is a name that the command models lists, or a file.",
            (*FOLDERS, "libs"),
        ),
        Command(
            "ps",
            "",
            0,
            "list the models of a running server",
            "Asks the server at --url, or at --port of this machine, which models it has and which of them are loaded.",
            (),
            has_url=True,
        ),
        Command(
            "run",
            "MODEL [TEXT]",
            1,
            "chat in the terminal",
            "Loads the model and lets you chat with it in the terminal; type /help there for its commands. With TEXT, "
            "or if the input isn't a terminal, it prints one answer and nothing else. MODEL is a name that the command "
            "models lists, a file, or a repository, which is downloaded first. With --url or --port it asks a running "
            "server instead of loading a model.\n"
            "  {program} run model.gguf\n"
            "  {program} run ggml-org/gemma-3-4b-it-GGUF -c 8192 --temp 0.2\n"
            "  git diff | {program} run model.gguf 'What does this change?'",
            (*FOLDERS, "libs", "hf_token", "offline", "log_verbosity", "verbose"),
            has_url=True,
            takes_text=True,
            takes_model_options=True,
        ),
        Command(
            "batch",
            "IN.jsonl OUT.jsonl",
            2,
            "answer a file of requests",
            "Loads the model and answers the requests in IN.jsonl, one in each line, in the format of OpenAI's "
            "batches, without a server. Answers go to OUT.jsonl, errors to OUT.errors.jsonl. If it is stopped or "
            "killed, the same command continues where it was and answers each line once (docs/batches.md). It uses 16 "
            "slots unless -np sets another number.\n"
            "  {program} batch in.jsonl out.jsonl -m model.gguf\n"
            "  {program} batch in.jsonl out.jsonl -m model.gguf -np 32 -c 65536",
            ("files", "libs", "hf_token", "offline", "log_verbosity", "verbose", "engine", "media_path", "media_urls"),
            takes_model_options=True,
        ),
        Command(
            "verify",
            "FILE",
            1,
            "check a record of requests",
            "Checks a whole record that a server has written with --record. Each line has the hash of the line before "
            "it, so any changed byte is found (docs/evidence.md).",
        ),
        Command(
            "replay",
            "FILE",
            1,
            "run the requests of a record again",
            "Loads the model of a record that a server has written with --record, runs all requests again, one by one "
            "as with --exact, and compares the tokens. It shows where an answer first differs (docs/evidence.md).",
            ("files", "libs", "cpu_variant", "threads"),
        ),
        Command(
            "rpc-worker",
            "",
            0,
            "lend this machine's devices to a server",
            "Lends the devices of this machine (its GPUs, or else its CPU) to a server on another machine, which is "
            "started with --rpc HOST:PORT and puts a part of its model here. It works for one server at a time. Anyone "
            "who can reach the port can use it without a key and may crash it, so by default it listens on 127.0.0.1 "
            "only: see docs/rpc.md for a tunnel.\n"
            "  {program} rpc-worker --host 192.168.1.7\n"
            "  {program} -m model.gguf --rpc 192.168.1.7:50052",
            ("libs", "cpu_variant", "devices", "threads"),
            own=WORKER,
        ),
    )
}


def is_command(argv: Sequence[str]) -> bool:
    """Whether the command line begins with a command, and not with the name of an existing file."""
    return bool(argv) and argv[0] in COMMANDS and not os.path.isfile(argv[0])
