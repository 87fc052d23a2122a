"""A row of the option table, and the functions that convert texts to its values.

A converter takes a text; some converters read the file that it names. They raise ValueError, or `BadValue` with words
that follow the option's name: `--lora-scaled: 'x.gguf' is not FILE:SCALE`.

Not taken: a class for each kind of option.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from server.records import record

SAME = object()
"""The value of `Option.default_2024` if both profiles have the same default."""

WORKS, IGNORED, PLANNED, REFUSED = "works", "ignored", "planned", "refused"
"""Values of `Option.status`. IGNORED: accepted with a warning, without effect. PLANNED: refused until the server
supports it. REFUSED: refused for good."""

WORKER_PORT = 50052  # llama.cpp's own
MAX_WORKERS = 16  # GGML_RPC_MAX_SERVERS
MAX_CPUS = 512  # GGML_MAX_N_THREADS, the length of llama.cpp's masks

PLAIN_VALUES = frozenset(
    (
        "N",
        "TEXT",
        "JSON",
        "SCHEMA",
        "GRAMMAR",
        "NAMES",
        "LETTERS",
        "ID+BIAS",
        "LEVEL",
        "SHARES",
        "MIB",
        "WORDS",
        "TYPES",
    )
)
"""The `metavar` of options whose text names no file, library or address."""

SWITCH_WORDS = {
    "1": True,
    "on": True,
    "true": True,
    "yes": True,
    "enabled": True,
    "0": False,
    "off": False,
    "false": False,
    "no": False,
    "disabled": False,
}


class OptionError(Exception):
    """What is wrong with an option, in one line for the user."""


class BadValue(ValueError):
    """Why a text is not a value of an option."""


@record(frozen=True)
class Option:
    """One option. `type` converts a text to the value; None is a switch without a value. Together, `low` and
    `high` limit numbers.

    `flags` are all spellings; `off_flags` set a switch to False. `default_2024` replaces `default` with `--compat
    2024`. `dest` is the attribute that the option sets, if it isn't `name`. `choices` maps the allowed words to values.
    `bare` is the text used if no value follows. With `repeat` the type returns tuples, which are concatenated. `target`
    is where `groups` puts the value: `KIND:FIELD`, with a kind of `groups.TARGETS`. `note` says why an option is
    ignored or refused. `secret`: the value must not appear in the log.
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
    default_2024: object = SAME
    dest: str = ""
    choices: Mapping[str, Any] | None = None
    bare: str | None = None
    repeat: bool = False
    target: str = ""
    status: str = WORKS
    note: str = ""
    secret: bool = False

    @property
    def key(self) -> str:
        """The attribute of `Settings` that this row sets."""
        return self.dest or self.name

    @property
    def is_plain(self) -> bool:
        """Whether the value is a number, a switch, a word of a list, or a text that names no secret, file, library or
        address."""
        return not self.secret and (
            self.type in (None, int, float) or self.choices is not None or self.metavar in PLAIN_VALUES
        )

    def choose_default(self, profile: str) -> object:
        """The value of an option that isn't set."""
        return self.default if profile != "2024" or self.default_2024 is SAME else self.default_2024

    def format_value(self, value: object) -> str:
        """A value as the user would write it; "" for none."""
        if self.type is None:
            return "" if value is None else "on" if value else "off"
        for word, meaning in (self.choices or {}).items():
            if meaning == value and type(meaning) is type(value):
                return word
        if isinstance(value, tuple):
            return ", ".join(map(str, value))
        if value is None:
            return ""
        return f"{value:g}" if isinstance(value, float) else str(value)


def convert(option: Option, source: str, text: str) -> object:
    """The value of `text`. OptionError names its `source`: a flag, a variable, a place in a file."""
    if option.type is None:
        return switch(source, text)
    try:
        value = one_of(option.choices, text) if option.choices else option.type(text)
    except BadValue as error:
        raise OptionError(f"{source}: {error}") from None
    except ValueError:
        kinds: dict[object, str] = {int: "a whole number", float: "a number"}
        kind = kinds.get(option.type, "a valid value")
        raise OptionError(f"{source}: '{text}' is not {kind}") from None
    low, high = option.low, option.high
    if low is not None and high is not None and isinstance(value, (int, float)) and not low <= value <= high:
        raise OptionError(f"{source}: {text} is out of range, allowed is {low:.10g} to {high:.10g}")
    return value


def switch(source: str, text: str) -> bool:
    """The value of a switch that is set by a text. OptionError."""
    if text.lower() not in SWITCH_WORDS:
        raise OptionError(f"{source}: '{text}' is neither on nor off")
    return SWITCH_WORDS[text.lower()]


def one_of(choices: Mapping[str, Any], text: str) -> object:
    """The value of a word. If on and off are among the choices, so are their synonyms."""
    word = text.lower()
    if word not in choices and word in SWITCH_WORDS:
        word = "on" if SWITCH_WORDS[word] else "off"
    if word not in choices:
        raise BadValue(f"'{text}' is none of {', '.join(choices)}")
    return choices[word]


# ---- converters ------------------------------------------------------------------------------------------------------


def parse_items(text: str) -> tuple[str, ...]:
    """Items separated by commas, without surrounding blanks. `"a,b"` in double quotes is one item; `""` in it is a
    quote."""
    found = re.findall(r'\s*(?:"((?:[^"]|"")*)"\s*|([^,]*))(?:,|$)', text)
    stripped = (quoted.replace('""', '"') or plain.strip() for quoted, plain in found)
    return tuple(item for item in stripped if item)


def parse_keys(text: str) -> tuple[str, ...]:
    """At least one item: with an empty list of keys the server would serve everybody."""
    found = parse_items(text)
    if not found:
        raise BadValue("it contains no key; leave the option out to serve everybody")
    return found


def require_file(text: str) -> str:
    """A path that can be opened for reading."""
    if os.path.isdir(text):
        raise BadValue(f"'{text}' is a folder, not a file")
    if not os.path.exists(text):
        raise BadValue(f"there is no file '{text}'")
    if not os.access(text, os.R_OK):
        raise BadValue(f"the file '{text}' can't be read: permission denied")
    return text


def require_folder(text: str) -> str:
    if not os.path.isdir(text):
        raise BadValue(f"there is no folder '{text}'")
    return text


def read_file_text(text: str) -> str:
    try:
        with open(require_file(text), encoding="utf-8-sig") as stream:
            return stream.read()
    except OSError as error:
        raise BadValue(f"the file '{text}' can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadValue(f"the file '{text}' is not UTF-8 text") from None


def parse_json_schema(text: str) -> object:
    """A JSON schema: an object or a boolean."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"this is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise BadValue('a JSON schema is an object such as {"type": "object"}')
    return schema


def parse_json_object(text: str) -> dict[str, Any]:
    value = parse_json_schema(text)
    if not isinstance(value, dict):
        raise BadValue('this is not a JSON object such as {"enable_thinking": false}')
    return value


def read_json_schema(text: str) -> object:
    """A JSON schema in a file."""
    return parse_json_schema(read_file_text(text))


def parse_key_value(text: str) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE`, or `NAME` alone for a switch, as one (name, text) pair without leading dashes."""
    name, equals, value = text.partition("=")
    if not name.strip("-"):
        raise BadValue(f"'{text}' is not NAME=VALUE")
    return ((name.strip().lstrip("-"), value if equals else "on"),)


def parse_adapters(text: str) -> tuple[tuple[str, float], ...]:
    """`FILE[,FILE...]` as (path, 1.0) pairs."""
    return tuple((require_file(path), 1.0) for path in parse_some(text))


def parse_scaled_adapters(text: str) -> tuple[tuple[str, float], ...]:
    """`FILE:SCALE[,FILE:SCALE...]` as (path, scale) pairs. A path may contain colons."""
    pairs = []
    for item in parse_some(text):
        path, colon, scale = item.rpartition(":")
        if not colon or not is_number(scale):
            raise BadValue(f"'{item}' is not FILE:SCALE")
        pairs.append((require_file(path), float(scale)))
    return tuple(pairs)


def parse_some(text: str) -> tuple[str, ...]:
    """At least one item."""
    found = parse_items(text)
    if not found:
        raise BadValue(f"'{text}' is an empty list")
    return found


def is_number(text: str) -> bool:
    """Whether `text` is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def wrap_text(text: str) -> tuple[str, ...]:
    """A tuple of the text, for options that may be repeated."""
    return (text,)


def parse_proportions(text: str) -> tuple[float, ...]:
    """`3,1` or `3/1`: numbers of at least 0, and not all 0."""
    parts = [part for part in re.split(r"[,/]", text) if part.strip()]
    if not all(map(is_number, parts)) or not any(float(part) > 0 for part in parts) or min(map(float, parts)) < 0:
        raise BadValue(f"'{text}' is not a list of proportions such as 3,1")
    return tuple(map(float, parts))


def parse_sizes(text: str) -> tuple[int, ...]:
    """`1024` or `1024,512`: whole numbers of at least 0."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise BadValue(f"'{text}' is not a list of sizes such as 1024,512")
    return numbers


def parse_cpu_mask(text: str) -> tuple[int, ...]:
    """`f`, `0xF` or `3c`: the numbers of the set bits."""
    try:
        bits = int(text, 16)
    except ValueError:
        bits = 0
    if bits <= 0 or bits >> MAX_CPUS:
        raise BadValue(f"'{text}' is not a hexadecimal mask of CPUs such as 0xF")
    return tuple(cpu for cpu in range(MAX_CPUS) if bits >> cpu & 1)


def parse_cpu_range(text: str) -> tuple[int, ...]:
    """`0-3`: the numbers from 0 to 3. Either end may be left out, as in llama-server."""
    match = re.fullmatch(r"(\d*)-(\d*)", text)
    low, high = (int(match[1] or 0), int(match[2] or MAX_CPUS - 1)) if match else (1, 0)
    if not 0 <= low <= high < MAX_CPUS:
        raise BadValue(f"'{text}' is not a range of CPUs such as 0-3")
    return tuple(range(low, high + 1))


def parse_gpu_layers(text: str) -> int:
    """A number of layers. `all`, `auto` and negative numbers become -1, which means all."""
    if text.lower() in ("all", "auto"):
        return -1
    return max(int(text), -1)


def parse_slot_count(text: str) -> int:
    """A number of slots. `auto` and -1 are 4, as in llama-server."""
    return 4 if text.lower() in ("auto", "-1") else int(text)


def parse_inverse(text: str) -> float:
    """1/N, for --rope-scale, which is the inverse of --rope-freq-scale."""
    value = float(text)
    if not value > 0:
        raise BadValue(f"{text} is out of range, it must be more than 0")
    return 1.0 / value


def parse_token_bias(text: str) -> tuple[tuple[int, float], ...]:
    """`15043+1` or `15043-inf`: a token id and what is added to its logit."""
    found = re.fullmatch(r"(\d{1,9})([+-](?:inf|\d+\.?\d*(?:e[+-]?\d+)?|\.\d+))", text.strip().lower())
    if not found or found[2] == "+inf":
        raise BadValue(f"'{text}' is not a token id with a bias, such as 15043+1 or 15043-inf")
    return ((int(found[1]), float(found[2])),)


def parse_metadata_overrides(text: str) -> tuple[tuple[str, str, object], ...]:
    """`KEY=TYPE:VALUE[,...]` as (key, type, value); types are int, float, bool, str."""
    return tuple(map(_parse_metadata_override, parse_some(text)))


def _parse_metadata_override(item: str) -> tuple[str, str, object]:
    key, _, rest = item.partition("=")
    kind, colon, value = rest.partition(":")
    readers: dict[str, Callable[[str], object]] = {
        "int": int,
        "float": float,
        "str": str,
        "bool": {"true": True, "false": False}.__getitem__,
    }
    if not colon or not 0 < len(key.encode()) < 128 or kind not in readers or len(value.encode()) > 127:
        raise BadValue(f"'{item}' is not KEY=TYPE:VALUE with a type of int, float, bool or str")
    try:
        return key, kind, readers[kind](value)
    except (ValueError, KeyError):
        raise BadValue(f"'{item}': '{value}' is not a valid {kind}") from None


def parse_buffer_overrides(text: str) -> tuple[tuple[str, str], ...]:
    """`PATTERN=BUFFER[,...]` as (regular expression, buffer type) pairs."""
    pairs = []
    for item in parse_some(text):
        pattern, equals, buffer = item.rpartition("=")
        if not equals or not pattern or not buffer:
            raise BadValue(f"'{item}' is not PATTERN=BUFFER, such as exps=CPU")
        pairs.append((pattern, buffer))
    return tuple(pairs)


def parse_hosts(text: str) -> tuple[str, ...]:
    """Addresses, names, or paths of UNIX sockets."""
    found = parse_items(text)
    if not found:
        raise BadValue(f"'{text}' is not an address; 0.0.0.0 listens on all addresses of this machine")
    return found


def parse_host(text: str) -> str:
    """One address or name."""
    if not re.fullmatch(r"[\w.-]+", text):
        raise BadValue(f"'{text}' is not an address such as 127.0.0.1 or 0.0.0.0")
    return text


def parse_workers(text: str) -> tuple[str, ...]:
    """`host:port` of each worker, separated by commas. The default port is `WORKER_PORT`."""
    found = []
    for item in parse_items(text):
        host, colon, port = item.rpartition(":") if not item.endswith("]") else (item, "", "")
        host, port = (host, port) if colon else (item, str(WORKER_PORT))
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) or not (port.isdecimal() and 0 < int(port) < 65536):
            raise BadValue(f"'{item}' is not the address of a worker such as 192.168.1.7:{WORKER_PORT}")
        found.append(f"{host}:{port}")
    if len(set(found)) < len(found) or len(found) > MAX_WORKERS:
        raise BadValue(f"{len(found)} workers: name each worker once, and at most {MAX_WORKERS}")
    return tuple(found)


def parse_url(text: str) -> str:
    """An http or https address."""
    if not re.match(r"https?://[^/\s]", text):
        raise BadValue(f"'{text}' is not an address that begins with http:// or https://")
    return text


def parse_rate(text: str) -> tuple[int, float] | None:
    """`60/min`, `5/s` or `1000/h` as (number, seconds). The default unit is a minute. None, no limit, for 0."""
    found = re.fullmatch(r"(\d{1,9})(?:/(s|min|h))?", text.strip().lower())
    if not found:
        raise BadValue(f"'{text}' is not a rate such as 60/min, 5/s or 1000/h")
    return (int(found[1]), {"s": 1.0, "h": 3600.0}.get(found[2], 60.0)) if int(found[1]) else None


def parse_hf_repo(text: str) -> str:
    """`USER/MODEL` or `USER/MODEL:QUANT`."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?", text):
        raise BadValue(f"'{text}' is not USER/MODEL or USER/MODEL:QUANT")
    return text


def parse_sha256(text: str) -> str:
    """64 hexadecimal digits, in lower case."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise BadValue(f"'{text}' is not a SHA-256 sum of 64 hexadecimal digits")
    return text.lower()


def parse_path_prefix(text: str) -> str:
    """`/some/prefix` without a slash at the end; "" for "/"."""
    text = text.rstrip("/")
    if text and not re.fullmatch(r"(?:/[\w.~-]+)+", text) or "/.." in text:
        raise BadValue(f"'{text}' is not a path such as /api")
    return text


def parse_origins(text: str) -> tuple[str, ...]:
    """Items that are `*` or SCHEME://HOST[:PORT]. `localhost` is left out: pages of this machine are always allowed."""
    found = []
    for item in parse_items(text):
        item = item.lower().rstrip("/")
        if item != "*" and item != "localhost" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", item):
            raise BadValue(f"'{item}' is not an origin such as https://example.org, nor * nor localhost")
        found.append(item)
    return tuple(item for item in found if item != "localhost")


def lower_items(text: str) -> tuple[str, ...]:
    """`parse_items`, in lower case."""
    return tuple(item.lower() for item in parse_items(text))


# ---- samplers --------------------------------------------------------------------------------------------------------

# The names are those of server.engine.seam.task, the letters those of server.api.request.sampling, which this module
# can't import.
SAMPLER_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typical_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "i": "infill",
    "a": "adaptive_p",
    "f": "tfs_z",
}
SAMPLER_ALIASES = {
    "typ_p": "typical_p",
    "typ-p": "typical_p",
    "typical": "typical_p",
    "typical-p": "typical_p",
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
    "nucleus": "top_p",
    "min-p": "min_p",
    "top-n-sigma": "top_n_sigma",
    "adaptive-p": "adaptive_p",
    "tfs": "tfs_z",
    "tfs-z": "tfs_z",
}


def parse_unless_default(text: str) -> str | None:
    """A word; None for `default`."""
    return None if text == "default" else text


def parse_sampler_names(text: str) -> tuple[str, ...]:
    """`top_k;top_p;temperature`: samplers in the order in which they are applied."""
    names = [SAMPLER_ALIASES.get(name, name) for part in re.split("[;,]", text) if (name := part.strip().lower())]
    for name in names:
        if name not in SAMPLER_LETTERS.values():
            raise BadValue(f"'{name[:40]}' is not a sampler; choose from {', '.join(SAMPLER_LETTERS.values())}")
    return tuple(names)


def parse_sampler_sequence(text: str) -> tuple[str, ...]:
    """`kpt`: one letter for each sampler."""
    for letter in text:
        if letter not in SAMPLER_LETTERS:
            known = ", ".join(f"{letter} {name}" for letter, name in SAMPLER_LETTERS.items())
            raise BadValue(f"'{letter}' stands for no sampler; choose from {known}")
    return tuple(SAMPLER_LETTERS[letter] for letter in text)
