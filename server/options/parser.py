"""Reads the options from the command line, the environment and the config file, and writes `--help`.

Used at start, and wherever a model's options are read. The value of an option comes from the first of these places that
sets it: command line, environment, config file, bundle, the default of the profile that `--compat` chooses. (`parse`
and `vertex` have exceptions.) Errors are an `OptionError` with one line for the user.

Not taken: argparse. It can't tell set values from defaults, nor read files and the environment by the same rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from server.options import config_file
from server.options.commands import COMMANDS
from server.options.groups import ERRAND, MODEL, Settings, scope_of
from server.options.known import OTHER_GROUPS, OTHER_OPTIONS
from server.options.row import IGNORED, SAME, WORKS, Option, OptionError, convert, switch
from server.options.table import GROUPS, INT_MAX, KV_TYPES, OPTIONS, ROPE_SCALING, SHORT_HELP
from server.options.vertex import read_vertex

__all__ = [
    "ALL_OPTIONS",
    "GROUPS",
    "OPTIONS",
    "OTHER_GROUPS",
    "OTHER_OPTIONS",
    "Option",
    "OptionError",
    "Settings",
    "list_compat_rows",
    "parse",
    "read_asked",
    "read_model_settings",
    "render_usage",
]

ALL_OPTIONS = OPTIONS + OTHER_OPTIONS
MAX_TOLD = 300  # characters of an error message about a request
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}
OF_ONE_MODEL = ("files", "alias", "model_url", "hf_repo", "hf_file", "model_sha256", "mmproj", "mmproj_url")
"""Options that choose the model. With several models, only a model's own settings can set them, except `files`, which
lists the models."""
YARN_ATTENTION = "--yarn-attn-factor has no effect: llama.cpp computes this factor itself unless --yarn-ext-factor is 0"
QUANTISED = tuple(number for word, number in KV_TYPES.items() if "q" in word)


def parse(
    argv: Sequence[str],
    environ: Mapping[str, str],
    table: Sequence[Option] = ALL_OPTIONS,
    bundled: Sequence[tuple[str, str]] = (),
    own: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """Read the command line (without the program's name), the environment, and the config file that one of them names.
    `bundled` are the (name, text) defaults of a bundle. OptionError for the first error.

    For one of several models, `own` are the settings of that model (see `read_model_settings`). They override all but
    the command line, and only they can set the options `OF_ONE_MODEL`. `asked` are options that a request has set for
    the model (see `read_asked`); they override everything."""
    try:
        return _parse(argv, environ, table, bundled, own, asked)
    except OptionError as error:
        raise OptionError(_make_one_line(str(error))) from None


def _make_one_line(text: str) -> str:
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _parse(
    argv: Sequence[str],
    environ: Mapping[str, str],
    table: Sequence[Option],
    bundled: Sequence[tuple[str, str]],
    own: Mapping[str, Any] | None,
    asked: Mapping[str, Any],
) -> Settings:
    line = _Source(table)
    _read_argv(line, argv)
    variables = _Source(table)
    _read_environment(variables, environ)
    path = line.values.get("config") or variables.values.get("config")
    file = _Source(table)
    if path:
        _read_file(file, str(path))
    start = _Source(table)
    _read_settings(start, [(name, (text,), "in the bundle") for name, text in bundled])
    given = {**start.values, **file.values, **variables.values, **line.values}
    if own is not None:
        given = {**start.values, **file.values, **variables.values, **own, **line.values}
        given = {key: value for key, value in given.items() if key not in OF_ONE_MODEL or key in own}
        given |= {**{key: own[key] for key in OF_ONE_MODEL if key in own}, **asked}
    given |= {} if table is not ALL_OPTIONS else read_vertex(environ, line.by_flag["--port"][0])
    profile = str(given.get("compat", "modern"))
    values = {option.key: option.choose_default(profile) for option in table if not option.dest}
    warnings = tuple(dict.fromkeys(file.warnings + variables.warnings + line.warnings))
    settings = Settings(**{**values, **given}, given=frozenset(given), warnings=warnings)
    if table is not ALL_OPTIONS:
        return settings
    if own is None and (settings.models_dir or settings.models_preset or len(settings.files) > 1):
        settings = settings.replace(warnings=(*warnings, *_list_dropped(settings)))
    return _finish_settings(settings)


def _list_dropped(settings: Settings) -> Iterator[str]:
    """A warning for each set option that has no effect with several models."""
    for option in ALL_OPTIONS:
        if option.key in OF_ONE_MODEL and option.key != "files" and settings.is_set(option.key):
            yield f"{option.flags[-1]} has no effect with several models: set it in a section of --models-preset"


def read_model_settings(settings: Iterable[config_file.Setting]) -> tuple[dict[str, Any], list[str]]:
    """The settings of one of several models: values by `Option.key`, and warnings about options without effect.
    OptionError for a wrong setting, or for an option of the server."""
    source = _Source(ALL_OPTIONS)
    _read_settings(source, settings, MODEL)
    return source.values, source.warnings


def read_asked(wanted: Mapping[str, object]) -> dict[str, Any]:
    """The options that a request sets for one of several models: values by `Option.key`. OptionError names the field
    that is wrong, or that requests may not set."""
    try:
        return _read_asked(wanted)
    except OptionError as error:
        raise OptionError(_make_one_line(str(error)[:MAX_TOLD])) from None


def _read_asked(wanted: Mapping[str, object]) -> dict[str, Any]:
    source = _Source(ALL_OPTIONS)
    by_name = _index_by_name(source)
    for key, value in wanted.items():
        name, place = key.lstrip("-"), f"options.{key[:60]}"
        option, is_on = by_name.get(name) or by_name.get(name.replace("_", "-")) or (None, True)
        if option is None:
            raise OptionError(f"{place}: there is no such option{_describe_near(key, by_name)}")
        if scope_of(option) != MODEL or option.key in OF_ONE_MODEL or option.status != WORKS:
            raise OptionError(f"{place}: this is not an option of a model")
        if not option.is_plain:
            raise OptionError(f"{place}: requests may not set options that name files, libraries or addresses")
        if option.key in source.values:
            raise OptionError(f"{place} is set twice, by two of its names")
        for text in _list_texts(option, place, value):
            found = convert(option, place, text)
            source.set(option, place, found if is_on else not found)
    return source.values


def _list_texts(option: Option, place: str, value: object) -> list[str]:
    """The texts that the command line would have for a JSON value. OptionError."""
    if option.metavar in ("JSON", "SCHEMA") and not isinstance(value, str):
        return [json.dumps(value)]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) for one in values):
        raise OptionError(f"{place}: give a text, a number, true or false, or a list of them")
    texts = [("on" if one else "off") if isinstance(one, bool) else str(one) for one in values]
    return texts if option.repeat else [",".join(texts)]


class _Source:
    """The options of one source: `values` by `Option.key`, and warnings about options without effect."""

    def __init__(self, table: Sequence[Option]) -> None:
        self.table = table
        self.by_flag = {flag: (option, True) for option in table for flag in option.flags}
        self.by_flag |= {flag: (option, False) for option in table for flag in option.off_flags}
        self.values: dict[str, Any] = {}
        self.warnings: list[str] = []

    def set(self, option: Option, source: str, value: Any) -> None:
        """Set the option, or warn if it has no effect."""
        if option.status == IGNORED:
            self.warnings.append(f"{source} has no effect: {option.note}")
        elif option.repeat:
            self.values[option.key] = (*self.values.get(option.key, ()), *value)
        elif option.type is None and option.choices:
            self.values[option.key] = option.choices["on" if value else "off"]
        else:
            self.values[option.key] = value


def _refuse(option: Option, source: str) -> None:
    if option.status not in (WORKS, IGNORED):
        raise OptionError(f"{source}: {option.note}")


# ---- the command line ------------------------------------------------------------------------------------------------


def read_command(
    argv: Sequence[str], environ: Mapping[str, str], table: Sequence[Option]
) -> tuple[Settings, list[str], list[tuple[str, str]]]:
    """The options of a command, the words that aren't options, and the words of the options, as (`Option.name`, word)
    pairs in order. After `--` no word is an option. OptionError."""
    end = argv.index("--") if "--" in argv else len(argv)
    line, variables = _Source(table), _Source(table)
    words: list[str] = []
    given = _read_argv(line, argv[:end], words)
    _read_environment(variables, environ)
    values = {option.key: option.default for option in table if not option.dest}
    found = {**variables.values, **line.values}
    return Settings(**{**values, **found}, given=frozenset(found), warnings=()), [*words, *argv[end + 1 :]], given


def _read_argv(source: _Source, argv: Sequence[str], words: list[str] | None = None) -> list[tuple[str, str]]:
    """Read the options into `source`. A word that isn't an option is added to `words`; without `words` it is the
    model's file. Return the words of the options, as (`Option.name`, word) pairs in order."""
    rest = list(reversed(argv))
    given: list[tuple[str, str]] = []
    while rest:
        word = rest.pop()
        n_left = len(rest)
        flag, equals, text = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        option, is_on = source.by_flag.get(flag, (None, True))
        if option is None and words is not None and not (word.startswith("-") and word != "-"):
            words.append(word)
            continue
        if option is None:
            _read_model(source, word)
            continue
        _refuse(option, flag)
        if option.type is None:
            if equals:
                raise OptionError(f"{flag} is a switch and takes no value")
            source.set(option, flag, is_on)
        else:
            if not equals:
                text = _take_word(option, flag, rest)
            source.set(option, flag, convert(option, flag, text))
        given += [(option.name, taken) for taken in (word, *argv[len(argv) - n_left : len(argv) - len(rest)])]
    return given


def _read_model(source: _Source, word: str) -> None:
    """Take a word that isn't an option as the model's file. OptionError if it can't be one."""
    option, _ = source.by_flag.get("--model", (None, True))
    if option is None or word.startswith("-") or not (word.lower().endswith(".gguf") or os.path.isfile(word)):
        raise OptionError(_describe_unknown(word, source.by_flag))
    source.set(option, word, convert(option, word, word))


def _take_word(option: Option, flag: str, rest: list[str]) -> str:
    if option.bare is not None and (not rest or rest[-1].startswith("-")):
        return option.bare
    if not rest:
        raise OptionError(f"{flag} needs a value: {flag} {option.metavar}")
    return rest.pop()


def _describe_unknown(word: str, by_flag: Mapping[str, tuple[Option, bool]]) -> str:
    import difflib  # here, because only errors need it

    if not word.startswith("-"):
        close = difflib.get_close_matches(word.lower(), COMMANDS, 1) if word.isalpha() else []
        advice = f", did you mean the command {close[0]}?" if close else "; --help lists the options"
        return f"'{word}' is neither an option nor a model's file{advice}"
    word = word.partition("=")[0]  # the value may be a secret
    return f"unknown option {word}{_describe_near(word, by_flag)}"


def _describe_near(word: str, by_name: Mapping[str, tuple[Option, bool]]) -> str:
    import difflib

    names = [name for name, (option, _) in by_name.items() if option.status == WORKS]
    close = difflib.get_close_matches(word, names, 3)
    close.sort(key=lambda name: sorted(name) != sorted(word))  # swapped letters are the most likely typing error
    return f", did you mean {close[0]}?" if close else "; --help lists them"


# ---- the environment and the config file -----------------------------------------------------------------------------


def _read_environment(source: _Source, environ: Mapping[str, str]) -> None:
    """Empty variables count as not set, since compose files often have them."""
    for option in source.table:
        off = option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") if option.off_flags else ""
        if off != option.env and environ.get(off) and switch(off, environ[off]):
            _refuse(option, off)
            source.set(option, off, False)
        elif option.env and environ.get(option.env):
            _refuse(option, option.env)
            source.set(option, option.env, convert(option, option.env, environ[option.env]))


def _read_file(source: _Source, path: str) -> None:
    takes_json = {name for name, (option, _) in _index_by_name(source).items() if option.metavar in ("SCHEMA", "JSON")}
    _read_settings(source, config_file.read(path, takes_json))


def _index_by_name(source: _Source) -> dict[str, tuple[Option, bool]]:
    by_name = {flag.lstrip("-"): pair for flag, pair in source.by_flag.items()}
    return by_name | {option.env: (option, True) for option in source.table if option.env}


def _read_settings(source: _Source, settings: Iterable[config_file.Setting], scope: str = "") -> None:
    """Set the options of a file or a bundle. With a `scope`, OptionError for options of other scopes, except
    `OF_ONE_MODEL`."""
    by_name = _index_by_name(source)
    seen: dict[str, str] = {}
    for key, texts, where in settings:
        name = key.lstrip("-")
        option, is_on = by_name.get(name) or by_name.get(name.replace("_", "-")) or (None, True)
        if option is None:
            raise OptionError(f"{where}: there is no option {key}{_describe_near(key, by_name)}")
        if scope_of(option) == ERRAND or option.name == "config":
            raise OptionError(f"{where}: {key} can be set on the command line only")
        if scope and scope_of(option) not in (scope, None) and option.key not in OF_ONE_MODEL:
            raise OptionError(f"{where}: {key} is an option of the server, not of a model")
        place = f"{where}: {key}"
        _refuse(option, place)
        if not option.repeat:
            if option.name in seen:
                raise OptionError(f"{place} is set a second time, after {seen[option.name]}")
            texts = (",".join(texts),)
        seen[option.name] = where
        for text in texts:
            value = convert(option, place, text)
            source.set(option, place, value if is_on else not value)


# ---- options that depend on each other -------------------------------------------------------------------------------


def _finish_settings(s: Settings) -> Settings:
    """Add values that follow from other options. OptionError if options contradict each other."""
    changes: dict[str, Any] = {}
    if not s.is_set("ubatch_size"):
        changes["ubatch_size"] = min(s.ubatch_size, s.batch_size)
    if s.is_set("kv_unified_per_slot") and not s.is_set("ctx_size"):
        changes["ctx_size"] = s.kv_unified_per_slot * s.parallel
    if s.lora_init_without_apply:
        changes["lora"] = tuple((path, 0.0) for path, _ in s.lora)
    breakers = s.dry_sequence_breakers
    if breakers and "none" in breakers:
        breakers = breakers[len(breakers) - breakers[::-1].index("none") :]
    if s.escape:
        changes["stop"] = tuple(map(_unescape, s.stop))
        breakers = breakers and tuple(map(_unescape, breakers))
    changes["dry_sequence_breakers"] = breakers
    is_yarn = s.rope_scaling == ROPE_SCALING["yarn"]
    if is_yarn and s.yarn_attn_factor is not None and s.yarn_ext_factor != 0:
        changes["warnings"] = (*s.warnings, YARN_ATTENTION)
    settings = s.replace(**changes)
    for message in _find_contradictions(settings):
        raise OptionError(message)
    return settings


def _unescape(text: str) -> str:
    return re.sub(
        r"\\(?:x([0-9a-fA-F]{2})|(.))",
        lambda found: chr(int(found[1], 16)) if found[1] else ESCAPES.get(found[2], found[0]),
        text,
    )


def _find_contradictions(o: Settings) -> Iterator[str]:
    if o.ubatch_size > o.batch_size:
        yield f"--ubatch-size {o.ubatch_size} is more than --batch-size {o.batch_size}: raise the batch size, too"
    if o.memory_f32 and (o.is_set("cache_type_k") or o.is_set("cache_type_v")):
        yield "--memory-f32 already sets --cache-type-k and --cache-type-v: leave out either it or these two"
    if o.cache_type_v in QUANTISED and not o.flash_attn:
        word = next(word for word, number in KV_TYPES.items() if number == o.cache_type_v)
        yield f"--cache-type-v {word} needs flash attention: add --flash-attn on"
    if o.ctx_size is not None and o.ctx_size > INT_MAX:
        yield f"--kv-unified-per-slot {o.kv_unified_per_slot} times {o.parallel} slots is too much"
    if o.exact and o.kv_unified:
        yield "--exact needs a KV cache for each slot: leave out --kv-unified"
    if o.grp_attn_n > 1 and o.grp_attn_w % o.grp_attn_n:
        yield f"--grp-attn-w {o.grp_attn_w} is not a multiple of --grp-attn-n {o.grp_attn_n}"
    if bool(o.ssl_key_file) != bool(o.ssl_cert_file):
        yield "HTTPS needs both --ssl-key-file and --ssl-cert-file"
    if o.is_set("load_mode") and any(map(o.is_set, ("mlock", "mmap", "direct_io"))):
        yield "--load-mode replaces --mlock, --mmap and --direct-io: leave these out"
    if o.direct_io and (o.mlock or o.is_set("mmap") and o.mmap):
        yield "--direct-io can't be combined with --mlock or --mmap"
    if o.hf_file and not o.hf_repo:
        yield "--hf-file needs the repository: add --hf-repo USER/MODEL"
    if o.model_url and o.hf_repo:
        yield "--model-url and --hf-repo name two models: give only one of them"
    if o.grammar and o.json_schema is not None:
        yield "--grammar and --json-schema can't be combined: give only one of them"
    if o.manage_models and not o.admin_key:
        yield "--manage-models needs an admin key: add --admin-key KEY"
    if o.log_disable and o.is_set("log_file"):
        yield "--log-disable and --log-file contradict each other: leave one out"
    if (
        o.rope_freq_scale is not None
        and not o.rope_freq_scale > 0
        or o.rope_freq_base is not None
        and not o.rope_freq_base > 0
    ):
        yield "--rope-freq-base and --rope-freq-scale must be more than 0; leave them out to use the model's"


# ---- help ------------------------------------------------------------------------------------------------------------

SHAPES_2024 = (
    ("", "`next_token` in `/slots`", "a list of one object", "an object"),
    ("", "`prompt` as a list of strings", "one prompt for each string", "one sequence"),
    ("", "order of the samplers", "penalties where `samplers` has them", "penalties first"),
)
"""Differences between the profiles apart from options' defaults: (option, subject, modern, 2024)."""


def list_compat_rows() -> list[tuple[str, str, str, str]]:
    """All differences that `--compat` makes, in the columns of `SHAPES_2024`."""
    rows = []
    for option in OPTIONS:
        if option.default_2024 is not SAME:
            about, _, default = option.help.rstrip(")").partition(" (default: ")
            rows.append(
                (
                    next(flag for flag in option.flags if flag.startswith("--")),
                    about,
                    option.format_value(option.default) or default,
                    option.format_value(option.default_2024),
                )
            )
    return rows + list(SHAPES_2024)


def render_usage(table: Sequence[Option] = OPTIONS, program: str = "llama_srv.py", is_short: bool = False) -> str:
    """The text of `--help all` in groups, or with `is_short` that of `--help`."""
    import shutil  # here, because only --help needs it
    import textwrap

    width = max(min(shutil.get_terminal_size((100, 25)).columns, 110), 50)
    about = "Serves a language model over HTTP. The model runs on this machine."
    lines = [f"usage: {program} MODEL.gguf [options]", "", *textwrap.wrap(about, width), ""]
    commands = ", ".join(f"{command.name} ({command.help})" for command in COMMANDS.values())
    lines += [*textwrap.wrap(f"Commands: {commands}. COMMAND --help says more.", width, break_on_hyphens=False), ""]
    if is_short:
        shown = [option for option in table if option.name in SHORT_HELP]
        lines += [line for option in shown for line in render_help_lines(option, width, is_short)]
        return "\n".join([*lines, "", f"--help all shows all {len(table)} options and their environment variables."])
    for group in dict.fromkeys(option.group for option in table):
        lines.append(f"{group}:")
        for option in table:
            if option.group == group:
                lines += render_help_lines(option, width)
        lines.append("")
    lines += textwrap.wrap(
        "Environment variables are in brackets. Every flag can also be written as --flag=value. The command line "
        "overrides the environment, and the environment overrides the file of --config. docs/options.md also lists "
        "llama-server's options that have no effect here.",
        width,
    )
    return "\n".join(lines)


def render_help_lines(option: Option, width: int, is_short: bool = False) -> list[str]:
    """The help about an option. `is_short`: without the option's variable and default of 2024."""
    flags = ", ".join(option.flags + option.off_flags) + (f" {option.metavar}" if option.type is not None else "")
    text = option.help
    if "default" not in text and option.type is not None and option.default not in (None, ()):
        text += f" (default {option.format_value(option.default)})" if option.format_value(option.default) else ""
    elif option.type is None and option.default:
        text += " (default on)"
    if option.default_2024 is not SAME and not is_short:
        text += f" (2024: {option.format_value(option.default_2024)})"
    if option.env and not is_short:
        text += f" [{option.env}]"
    margin = 30 if width >= 80 else 8
    import textwrap

    head = textwrap.wrap(f"  {flags}", width, subsequent_indent="      ", break_on_hyphens=False)
    body = [" " * margin + line for line in textwrap.wrap(text, width - margin, break_on_hyphens=False)]
    if len(head) == 1 and len(head[0]) < margin - 1:
        return [head[0].ljust(margin) + body[0].lstrip(), *body[1:]]
    return [*head, *body]
