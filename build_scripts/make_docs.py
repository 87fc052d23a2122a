"""Generate tables in the documentation from tables in the code: `python build_scripts/make_docs.py [--check]`.

A command; one thread; imports the standard library, this folder, and the server's tables of options, routes and request
fields. It writes all of docs/options.md, and in docs/api.md the text between markers. `--check` writes nothing and
fails if a document isn't up to date.

The way not taken: writing the tables by hand. They would soon differ from the code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pkgutil
import re
import sys
from typing import Callable, Iterable, Iterator

from common import ROOT, Failure, run_main

OPTIONS_PAGE, API_PAGE = ROOT / "docs" / "options.md", ROOT / "docs" / "api.md"
LARGE = 2**20  # this and larger bounds aren't shown
KINDS = {"int": "integer", "float": "number", "bool": "true/false", "str": "string", "dict": "object", "object": "any"}
# Tables' headings in page order. Other tables follow.
TITLES = {
    "COMPLETION_FIELDS": "Completion: the request",
    "SAMPLING_FIELDS": "Completion: choosing the next token",
    "PROMPT_FIELDS": "Prompt",
    "CONSTRAINT_FIELDS": "Constraints",
    "LAZY_FIELDS": "Constraints of a part",
    "CHAT_FIELDS": "Chat",
    "MESSAGES_FIELDS": "Messages",
    "RESPONSES_FIELDS": "Responses",
    "CONVERSATION_FIELDS": "Conversations",
    "EVIDENCE_FIELDS": "Evidence",
    "ATTRIBUTE_FIELDS": "Attribution",
    "MODEL_FIELDS": "Model",
    "OPENAI_FIELDS": "OpenAI",
    "STREAM_OPTION_FIELDS": "Stream options",
    "TEXT_FIELDS": "Text completion",
    "OLLAMA_FIELDS": "Ollama",
    "OLLAMA_CHAT_FIELDS": "Ollama: chat",
    "OLLAMA_GENERATE_FIELDS": "Ollama: generate",
    "OLLAMA_OPTION_FIELDS": "Ollama: options",
    "OLLAMA_EMBED_FIELDS": "Ollama: embed",
    "OLLAMA_PROMPT_FIELDS": "Ollama: embeddings",
    "OLLAMA_SHOW_FIELDS": "Ollama: show",
    "INFILL_FIELDS": "Infill",
    "EMBEDDING_FIELDS": "Embeddings",
    "TRANSCRIPTION_FIELDS": "Transcription",
    "RERANK_FIELDS": "Rerank",
    "TOKENIZE_FIELDS": "Tokenize",
    "TOKENIZE_PROMPT_FIELDS": "Tokenize: vLLM's names",
    "DETOKENIZE_FIELDS": "Detokenize",
    "LORA_FIELDS": "Adapters",
    "LOAD_FIELDS": "Loading a model",
    "PROPS_FIELDS": "Props",
    "SLOT_FIELDS": "Slot files",
    "ABORT_FIELDS": "Abort",
    "CONTROL_FIELDS": "Control",
    "IDLE_FIELDS": "Known, but without effect",
}

OPTIONS_HEAD = """\
# Options

<!-- Written by build_scripts/make_docs.py from server/options/table.py; don't edit. -->

For operators: all options of `python llama_srv.py MODEL.gguf [options]`. Every flag also takes the form `--flag=value`.
The column "environment" names a variable that sets the option, too. The command line takes precedence over the
environment, the environment over the file named by `--config`, and that file over the defaults. Switches take no value
on the command line; elsewhere their values are `1`/`on`/`true`/`yes` and `0`/`off`/`false`/`no`. If a value is invalid,
the program doesn't start, and prints one line that names the option and the allowed values.
"""

PROFILES_HEAD = """\
## What `--compat 2024` changes

llama.cpp's servers of 2024 and of today differ in defaults and in the shape of answers. Where it isn't possible to
support both, the profile decides. An explicit option takes precedence over the profile.

"""
OTHERS_HEAD = """\
## Known, but without effect here

Options of llama-server, of today and of 2024, that launch scripts may contain. *Ignored* options are accepted, with a
line in the log. *Refused* options end the program with a reason.
"""
STATUS = {"ignored": "ignored", "planned": "refused for now", "refused": "refused"}


def render_options_page() -> str:
    """The text of docs/options.md."""
    from server.options.parser import GROUPS, OPTIONS, OTHER_GROUPS, OTHER_OPTIONS, list_compat_rows

    heads = ("option", "default", "allowed", "environment", "what")
    parts = [OPTIONS_HEAD, *group_tables("##", GROUPS, OPTIONS, heads, make_option_row)]
    parts.append(
        PROFILES_HEAD
        + render_table(
            ("option", "what", "modern", "2024"),
            [(f"`{flag}`" if flag else "", what, modern, old) for flag, what, modern, old in list_compat_rows()],
        )
    )
    parts.append(OTHERS_HEAD)
    parts += group_tables(
        "###",
        OTHER_GROUPS,
        OTHER_OPTIONS,
        ("option", "here", "why"),
        lambda option: (flags_of(option), STATUS.get(option.status, option.status), option.note),
    )
    return "\n".join(parts)


def group_tables(mark: str, groups: Iterable, options: Iterable, heads: tuple, row: Callable) -> Iterator[str]:
    """A heading and a table for each group with options, including groups missing in `groups`."""
    for group in dict.fromkeys([*groups, *(option.group for option in options)]):
        rows = [row(option) for option in options if option.group == group]
        if rows:
            yield f"{mark} {group}\n\n" + render_table(heads, rows)


def make_option_row(option: object) -> tuple:
    if option.default in (None, ()) or option.help.endswith("and exit"):
        default = ""
    else:
        default = option.format_value(option.default)
        default = f"`{default}`" if default and option.type is not None else default
    allowed = (
        ", ".join(f"`{word}`" for word in option.choices) if option.choices else format_bounds(option.low, option.high)
    )
    return flags_of(option), default, allowed, f"`{option.env}`" if option.env else "", option.help


def flags_of(option: object) -> str:
    """The flags of an option, the last one with its value; then the flags that switch it off."""
    value = f" {option.metavar}" if option.type is not None and option.metavar else ""
    flags = ", ".join(f"`{flag}{value if flag == option.flags[-1] else ''}`" for flag in option.flags)
    return flags + ("; off: " + ", ".join(f"`{flag}`" for flag in option.off_flags) if option.off_flags else "")


def format_bounds(low: float | None, high: float | None) -> str:
    """`1 to 255`, `up to 255`, `0 and more`, or "" without bounds below LARGE."""
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if math.isinf(low) and math.isinf(high):
        return ""
    if high >= LARGE:
        return f"{low:.10g} and more" if math.isfinite(low) and abs(low) < LARGE else ""
    return f"{low:.10g} to {high:.10g}" if math.isfinite(low) else f"up to {high:.10g}"


def render_routes_part() -> str:
    from server.api.context import Context
    from server.api.routes import make_routes
    from server.options.groups import group
    from server.options.parser import parse

    rows = [
        (f"`{route.method} {route.path}`", "" if route.public else "yes")
        for route in make_routes(Context(None, group(parse([], {})).api))
    ]
    return render_table(("route", "needs the API key, if there is one"), rows)


def render_fields_part() -> str:
    from server.api.request.fields import BODIES

    tables = find_field_tables()
    titles = {
        id(fields): TITLES.get(name, name.replace("_FIELDS", "").replace("_", " ").capitalize())
        for name, fields in tables.items()
    }
    parts = [
        render_table(
            ("routes", "tables of their fields", "but without these fields"),
            [
                (
                    ", ".join(f"`{route}`" for route in body.routes),
                    "; ".join(titles[id(fields)] for fields in body.tables),
                    ", ".join(f"`{name}`" for name in body.without),
                )
                for body in BODIES
            ],
        )
    ]
    for fields in tables.values():
        title = titles[id(fields)]
        rows = [
            (
                ", ".join(f"`{spelling}`" for spelling in (field.name, *field.aliases)),
                KINDS.get(field.kind.__name__, field.kind.__name__),
                f"`{json.dumps(field.default)}`",
                format_bounds(field.low, field.high),
                field.help,
            )
            for field in fields
        ]
        parts.append(f"### {title}\n\n" + render_table(("field", "type", "default", "allowed", "what"), rows))
    return "\n".join(parts)


def find_field_tables() -> dict:
    """The tables named *_FIELDS in `server.api`, by name; those in TITLES first, in that order."""
    import server.api
    from server.api.request.schema import Field

    found = {}
    for info in sorted(pkgutil.walk_packages(server.api.__path__, "server.api."), key=lambda info: info.name):
        for name, value in vars(importlib.import_module(info.name)).items():
            if (
                name.endswith("_FIELDS")
                and isinstance(value, tuple)
                and value
                and all(isinstance(row, Field) for row in value)
            ):
                found.setdefault(name, value)
    first = [name for name in TITLES if name in found]
    return {name: found[name] for name in [*first, *(name for name in found if name not in first)]}


def render_table(heads: Iterable, rows: Iterable) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(tuple(heads))]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


PARTS = {"routes": render_routes_part, "fields": render_fields_part}


def render_api_page(text: str) -> str:
    """The text of docs/api.md with up-to-date tables between its markers. Raises Failure without the markers."""
    for name, part in PARTS.items():
        begin, end = f"<!-- {name}: written by build_scripts/make_docs.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise Failure(f"docs/api.md must contain the lines '{begin}' and '{end}' once each: restore them")
        fresh = f"{begin}\n\n{part()}\n{end}"
        text = pattern.sub(lambda _, fresh=fresh: fresh, text)
    return text


def find_outdated() -> dict:
    """Path -> new text of each document that isn't up to date."""
    pages = {OPTIONS_PAGE: render_options_page(), API_PAGE: render_api_page(API_PAGE.read_text(encoding="utf-8"))}
    return {
        path: text for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def run_command(check: bool) -> int:
    pages = find_outdated()
    if check and pages:
        raise Failure(f"{', '.join(path.name for path in pages)}: not up to date, run build_scripts/make_docs.py")
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"written: {path.relative_to(ROOT)}")
    return 0


def main(argv: list | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make_docs.py", description="Write the generated parts of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document isn't up to date")
    options = parser.parse_args(argv)
    return run_main("make_docs", lambda: run_command(options.check))


if __name__ == "__main__":
    sys.exit(main())
