"""The command line: one table of options. Parsing, `--help`, environment variables and the docs read the same rows.

A leaf, used once at start by `app`. Values come from, first wins: command line, environment (`LLAMA_ARG_*`), the
default of the row. Mistakes end in `OptionError`, one line that names the option, the value and what is allowed.

Not taken: argparse. It can't do `-np`/`-ngl` next to `-n` with values in every spelling, nor options with an optional
value, nor tell what the user has set from what is a default; with the table at hand the parser is forty lines.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

SERVER, MODEL, ENGINE, SAMPLING, LOGGING = "Server", "Model and libraries", "Engine", "Sampling", "Logging"
GROUPS = (MODEL, ENGINE, SERVER, LOGGING)


class OptionError(Exception):
    """What is wrong with the command line, in one line for the user."""


@dataclass(slots=True, frozen=True)
class Option:
    """One option. `type` turns text into the value (None: a switch without value); `low`/`high` bound numbers.

    `flags` are all spellings; `off_flags` set a switch to False.
    """

    name: str
    flags: tuple[str, ...]
    help: str
    group: str
    type: Callable[[str], object] | None = str
    default: object = None
    metavar: str = ""
    env: str = ""
    low: float | None = None
    high: float | None = None
    off_flags: tuple[str, ...] = ()


OPTIONS: tuple[Option, ...] = (
    Option("help", ("-h", "--help"), "show this help and exit", SERVER, None, False),
    Option("version", ("--version",), "show the versions of the server and of llama.cpp and exit", SERVER, None, False),

    Option("model", ("-m", "--model"), "the model to serve, a GGUF file", MODEL, metavar="FILE",
           env="LLAMA_ARG_MODEL"),
    Option("alias", ("-a", "--alias"), "name of the model in answers (default: the file's path)", MODEL,
           metavar="NAME", env="LLAMA_ARG_ALIAS"),
    Option("libs", ("--libs",), "folder with the llama.cpp libraries (default: the best one in libs/)", MODEL,
           metavar="DIR", env="LLAMA_SRV_LIBS"),
    Option("cpu_variant", ("--cpu-variant",), "use this libggml-cpu-* plug-in instead of the best one found, e.g. "
           "haswell; helps when a CPU meets illegal instructions", MODEL, metavar="NAME", env="LLAMA_SRV_CPU_VARIANT"),
    Option("list_devices", ("--list-devices",), "show the devices that llama.cpp can compute on and exit", MODEL, None,
           False),

    Option("ctx_size", ("-c", "--ctx-size"), "tokens of context, shared by all slots; 0 takes the model's own "
           "(default: that, up to 16384)", ENGINE, int, None, "N", "LLAMA_ARG_CTX_SIZE", 0, 2**31 - 1),
    Option("parallel", ("-np", "--parallel"), "slots: how many requests are computed at the same time", ENGINE, int, 1,
           "N", "LLAMA_ARG_N_PARALLEL", 1, 255),
    Option("threads", ("-t", "--threads"), "threads for generating (default: the CPU cores)", ENGINE, int, -1, "N",
           "LLAMA_ARG_THREADS", -1, 1024),
    Option("threads_batch", ("-tb", "--threads-batch"), "threads for reading prompts (default: same as --threads)",
           ENGINE, int, -1, "N", "LLAMA_ARG_THREADS_BATCH", -1, 1024),
    Option("batch_size", ("-b", "--batch-size"), "most tokens evaluated in one step", ENGINE, int, 2048, "N",
           "LLAMA_ARG_BATCH", 1, 2**20),
    Option("ubatch_size", ("-ub", "--ubatch-size"), "most tokens computed at once within a step", ENGINE, int, 512, "N",
           "LLAMA_ARG_UBATCH", 1, 2**20),
    Option("n_gpu_layers", ("-ngl", "--n-gpu-layers", "--gpu-layers"), "layers to put on the GPU, -1 for all", ENGINE,
           int, -1, "N", "LLAMA_ARG_N_GPU_LAYERS", -1, 2**20),
    Option("n_predict", ("-n", "--n-predict", "--predict"), "most tokens a request may generate; -1 for no limit",
           ENGINE, int, -1, "N", "LLAMA_ARG_N_PREDICT", -1, 2**31 - 1),
    Option("context_shift", ("--context-shift",), "drop the middle of a full context and go on, instead of stopping",
           ENGINE, None, False, env="LLAMA_ARG_CONTEXT_SHIFT", off_flags=("--no-context-shift",)),
    Option("lora", ("--lora",), "LoRA adapter to load", ENGINE, str, None, "FILE", "LLAMA_ARG_LORA"),
    Option("chat_template", ("--chat-template",), "chat template: a name that llama.cpp knows, or Jinja text", ENGINE,
           metavar="TEXT", env="LLAMA_ARG_CHAT_TEMPLATE"),
    Option("chat_template_file", ("--chat-template-file",), "file with a Jinja chat template", ENGINE, metavar="FILE",
           env="LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    Option("jinja", ("--jinja",), "render chat templates with the built-in Jinja interpreter", ENGINE, None, True,
           env="LLAMA_ARG_JINJA", off_flags=("--no-jinja",)),
    Option("spm_infill", ("--spm-infill",), "put the suffix before the prefix in /infill, as some models want", ENGINE,
           None, False),
    Option("warmup", ("--warmup",), "compute once after loading, so that the first request is fast", ENGINE, None, True,
           off_flags=("--no-warmup",)),
    Option("max_queue", ("--max-queue",), "requests that may wait for a slot; more get 503", ENGINE, int, 1024, "N",
           "LLAMA_SRV_MAX_QUEUE", 0, 10**6),

    Option("host", ("--host",), "address to listen on", SERVER, str, "127.0.0.1", "ADDR", "LLAMA_ARG_HOST"),
    Option("port", ("--port",), "port to listen on; 0 picks a free one", SERVER, int, 8080, "N", "LLAMA_ARG_PORT", 0,
           65535),
    Option("path", ("--path",), "folder with the files of the web page (default: the built-in page)", SERVER,
           metavar="DIR", env="LLAMA_ARG_STATIC_PATH"),
    Option("timeout", ("-to", "--timeout"), "seconds a client may stay silent while it sends or receives", SERVER,
           float, 600.0, "S", "LLAMA_ARG_TIMEOUT", 0.1, 86400),
    Option("max_connections", ("--max-connections",), "connections at the same time; more get 503", SERVER, int, 512,
           "N", "LLAMA_SRV_MAX_CONNECTIONS", 1, 100000),
    Option("max_body", ("--max-body",), "largest request body, in MiB", SERVER, int, 64, "N", "LLAMA_SRV_MAX_BODY", 1,
           65536),
    Option("drain", ("--drain",), "seconds that running requests get to finish after Ctrl-C or SIGTERM", SERVER, float,
           10.0, "S", "LLAMA_SRV_DRAIN", 0, 86400),

    Option("compat", ("--compat",), "profile of defaults and shapes: modern or 2024", SERVER, str, "modern", "NAME",
           "LLAMA_SRV_COMPAT"),
    Option("slots", ("--slots",), "answer GET /slots", SERVER, None, True, env="LLAMA_ARG_ENDPOINT_SLOTS",
           off_flags=("--no-slots", "--slots-endpoint-disable")),
    Option("metrics", ("--metrics",), "answer GET /metrics", SERVER, None, False, env="LLAMA_ARG_ENDPOINT_METRICS"),
    Option("props", ("--props",), "allow POST /props", SERVER, None, False, env="LLAMA_ARG_ENDPOINT_PROPS"),
    Option("slot_save_path", ("--slot-save-path",), "folder for saved slots; unset switches saving off", SERVER,
           metavar="DIR", env="LLAMA_ARG_SLOT_SAVE_PATH"),

    Option("verbose", ("-v", "--verbose"), "log more, llama.cpp's own lines included", LOGGING, None, False,
           env="LLAMA_ARG_VERBOSE"),
)


class Options:
    """The values of all options as attributes; `is_set(name)` tells whether the user gave one."""

    def __init__(self, values: Mapping[str, object], given: Iterable[str]) -> None:
        self.__dict__.update(values)
        self._given = frozenset(given)

    def is_set(self, name: str) -> bool:
        """Whether the value came from the user rather than from the table."""
        return name in self._given


def parse(argv: Sequence[str], environ: Mapping[str, str], table: Sequence[Option] = OPTIONS) -> Options:
    """Read the command line (without the program's name) and the environment. OptionError on the first mistake."""
    values = {option.name: option.default for option in table}
    given: dict[str, object] = {}
    for option in table:
        text = environ.get(option.env) if option.env else None
        if text is not None:
            given[option.name] = _value(option, option.env, text)
    given.update(_parse_argv(argv, table))
    return Options({**values, **given}, given)


def _parse_argv(argv: Sequence[str], table: Sequence[Option]) -> dict[str, object]:
    by_flag = {flag: (option, True) for option in table for flag in option.flags}
    by_flag |= {flag: (option, False) for option in table for flag in option.off_flags}
    given: dict[str, object] = {}
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        flag, equals, text = word.partition("=")
        option, is_on = by_flag.get(flag, (None, True))
        if option is None:
            raise OptionError(_unknown(word, by_flag))
        if option.type is None:
            if equals:
                raise OptionError(f"{flag} is a switch and takes no value")
            given[option.name] = is_on
            continue
        if not equals:
            if not rest:
                raise OptionError(f"{flag} needs a value: {flag} {option.metavar}")
            text = rest.pop()
        given[option.name] = _value(option, flag, text)
    return given


def _value(option: Option, source: str, text: str) -> object:
    if option.type is None:
        return _switch(source, text)
    try:
        value = option.type(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}.get(option.type, "a valid value")
        raise OptionError(f"{source}: '{text}' is not {kind}") from None
    if option.low is not None and not option.low <= value <= option.high:
        raise OptionError(f"{source}: {text} is out of range, allowed is {option.low:g} to {option.high:g}")
    return value


def _switch(source: str, text: str) -> bool:
    known = {"1": True, "on": True, "true": True, "yes": True, "enabled": True,
             "0": False, "off": False, "false": False, "no": False, "disabled": False}
    if text.lower() not in known:
        raise OptionError(f"{source}: '{text}' is neither on nor off")
    return known[text.lower()]


def _unknown(word: str, by_flag: Mapping[str, object]) -> str:
    if not word.startswith("-"):
        return f"'{word}' is not an option (is a -m missing before the model file?); --help lists them"
    import difflib
    close = difflib.get_close_matches(word, by_flag, 1)
    return f"unknown option {word}" + (f", did you mean {close[0]}?" if close else "; --help lists them")


def usage(table: Sequence[Option] = OPTIONS) -> str:
    """The text of `--help`, in groups, as wide as the terminal."""
    width = min(shutil.get_terminal_size((100, 25)).columns, 110)
    lines = ["usage: llama_srv.py -m MODEL.gguf [options]", "",
             "Serves a language model over HTTP, on this machine and without a network.", ""]
    for group in GROUPS:
        lines.append(f"{group}:")
        for option in table:
            if option.group == group:
                lines += _help_lines(option, width)
        lines.append("")
    lines.append("Environment variables in brackets; the command line wins. Every flag also takes --flag=value.")
    return "\n".join(lines)


def _help_lines(option: Option, width: int) -> list[str]:
    flags = ", ".join(option.flags + option.off_flags) + (f" {option.metavar}" if option.type is not None else "")
    text = option.help
    if option.type is not None and option.default is not None and "default" not in text and option.default != -1:
        text += f" (default {option.default:g})" if isinstance(option.default, float) else f" (default {option.default})"
    if option.env:
        text += f" [{option.env}]"
    body = textwrap.wrap(text, max(width - 30, 40))
    head = f"  {flags}"
    if len(head) < 29:
        body[0] = head.ljust(30) + body[0]
        return [body[0], *(" " * 30 + line for line in body[1:])]
    return [head, *(" " * 30 + line for line in body)]
