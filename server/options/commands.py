"""The commands of the command line as data: their words, options and help. What they do is in `server.commands`.

A leaf, read by `launch` at every start (is the first word one of these?), by the help, the shells' completion and the
manual page.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from server.options import row as to
from server.options.row import Option
from server.records import record

PEER = (
    Option("url", ("--url",), "ask the server at this address, e.g. http://127.0.0.1:8080", "", to.url, metavar="URL"),
    Option("port", ("--port",), "ask the server at this port of this machine", "", int, 8080, "N", low=1, high=65535),
    Option("api_key", ("--api-key",), "a key that the server asks for", "", to.keys, (), "KEY", "LLAMA_API_KEY"),
)
"""Options of commands that ask a running server."""
WORKER = (
    Option("host", ("--host",), "the address to listen on", "", to.one_host, "127.0.0.1", "HOST"),
    Option("port", ("--port",), "the port to listen on", "", int, to.WORKER_PORT, "N", low=1, high=65535),
    Option(
        "cache",
        ("--cache",),
        "keep large tensors in the cache folder, so that a model's next load needn't send them again",
        "",
        None,
        False,
    ),
)
"""Options of rpc-worker."""
FOLDERS = ("models_dir", "models_preset")


@record(frozen=True)
class Command:
    """One command. `words` are shown behind its name, and `n_words` are needed; `takes_text`: more may follow.

    `options` are names of rows of the table. `about` is for `--help`; lines that begin with blanks are examples, in
    which {program} is how the program is called. `own` are rows that the table doesn't have. `has_url`: it
    asks a running server."""

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
            "list what is here, and whether it fits",
            "Lists the models of the download cache, of --models-dir and of --models-preset: size, quantisation, the "
            "context that they were trained for, and whether they fit into this machine's free memory.",
            (*FOLDERS, "libs"),
        ),
        Command(
            "pull",
            "MODEL",
            1,
            "download a model",
            "Downloads a model into the cache, from where it is served and run by its name. What was stopped before "
            "goes on where it was; checksums are compared. MODEL is a repository of Hugging Face, with or without a "
            "quantisation, or the address of a GGUF file:\n"
            "  {program} pull ggml-org/gemma-3-4b-it-GGUF\n"
            "  {program} pull ggml-org/gemma-3-4b-it-GGUF:Q8_0",
            ("hf_file", "hf_token", "model_sha256"),
        ),
        Command(
            "rm",
            "MODEL",
            1,
            "remove its files",
            "Removes the files of a model that lie in the download cache or in --models-dir. Folders of other programs "
            "are left alone.",
            FOLDERS,
        ),
        Command(
            "show",
            "MODEL",
            1,
            "all about one",
            "Shows where a model is, what its file says, and what it would take of this machine's memory. MODEL is a "
            "name that the command models lists, or a file.",
            (*FOLDERS, "libs"),
        ),
        Command(
            "ps",
            "",
            0,
            "what a server has",
            "Asks the server at --url, or at --port of this machine, which models it has and which of them are loaded.",
            (),
            has_url=True,
        ),
        Command(
            "run",
            "MODEL [TEXT]",
            1,
            "chat in the terminal",
            "Loads the model and lets you chat with it in the terminal; /help there shows what else can be typed. With "
            "TEXT, or with an input that isn't typed, there is one answer, and nothing else is written to the output. "
            "MODEL is a name that the command models lists, a file, or a repository, which is downloaded first. With "
            "--url or --port a running server is asked instead.\n"
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
            "Loads the model and answers the requests that are the lines of IN.jsonl, in the form of OpenAI's batches, "
            "without a server. Answers go to OUT.jsonl as they come, lines that are refused to OUT.errors.jsonl. "
            "Stopped or killed at any time, the same command goes on where it was, and answers each line once "
            "(docs/batches.md). There are 16 slots unless -np says how many.\n"
            "  {program} batch in.jsonl out.jsonl -m model.gguf\n"
            "  {program} batch in.jsonl out.jsonl -m model.gguf -np 32 -c 65536",
            ("files", "libs", "hf_token", "offline", "log_verbosity", "verbose", "engine", "media_path", "media_urls"),
            takes_model_options=True,
        ),
        Command(
            "verify",
            "FILE",
            1,
            "check a record",
            "Reads all of a record that a server has written with --record. Each line has the hash of the one before, "
            "so a byte that was changed is found anywhere (docs/evidence.md).",
        ),
        Command(
            "replay",
            "FILE",
            1,
            "run a record again",
            "Loads the model of a record that a server has written with --record, runs all requests again, one by one "
            "as with --exact, and compares the tokens. It says where an answer first differs (docs/evidence.md).",
            ("files", "libs", "cpu_variant", "threads"),
        ),
        Command(
            "rpc-worker",
            "",
            0,
            "lend this machine's devices to a server",
            "Lends the devices of this machine (its GPUs, or else its CPU) to a server on another one, which is "
            "started with --rpc HOST:PORT and puts a part of its model here. It serves one server at a time. Who "
            "reaches the port can use it without any key and may crash it, so it listens to this machine alone unless "
            "--host says otherwise: see docs/rpc.md for a tunnel.\n"
            "  {program} rpc-worker --host 192.168.1.7\n"
            "  {program} -m model.gguf --rpc 192.168.1.7:50052",
            ("libs", "cpu_variant", "devices", "threads"),
            own=WORKER,
        ),
    )
}


def is_command(argv: Sequence[str]) -> bool:
    """Whether the command line is a command. A file that is called like one is a model, as ever."""
    return bool(argv) and argv[0] in COMMANDS and not os.path.isfile(argv[0])
