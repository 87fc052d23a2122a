"""Write the parts of the documents that are tables of the code: `python build_scripts/make_docs.py [--check]`.

A command; one thread; imports the standard library, this folder, and of the product only tables: the options, the
routes, the request fields. docs/options.md is written whole, in docs/api.md what lies between its markers. New rows,
groups and tables appear by themselves. `--check` writes nothing and fails if a document isn't up to date.

The way not taken: writing them by hand. A table that exists twice is wrong in one place.
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
LARGE = 2**20
KINDS = {"int": "integer", "float": "number", "bool": "true/false", "str": "string", "dict": "object", "object": "any"}
# headings of the field tables that deserve better ones than their names
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

<!-- Written by build_scripts/make_docs.py from server/options/parser.py; don't edit. -->

`python llama_srv.py MODEL.gguf [options]`. Every flag also takes `--flag=value`. An option that has a variable in
the column "environment" can be set there. The command line wins over the environment, that over the file that
`--config` names, and that over the defaults. Switches take no value on the command line; elsewhere they are
`1`/`on`/`true`/`yes` or `0`/`off`/`false`/`no`. A mistake ends the program before it starts, with one line that names
the option and what is allowed.
"""

PROFILES_HEAD = """\
## What `--compat 2024` changes

llama.cpp's server of 2024 and today's differ in defaults and shapes. Where both can't be served, the profile decides;
an option that is given wins over it.

"""
OTHERS_HEAD = """\
## Known, but without effect here

Options of llama-server, of today and of 2024, that launch scripts may name. *Ignored* ones are taken, with a line in
the log; *refused* ones end the program with their reason.
"""
STATUS = {"ignored": "ignored", "planned": "refused for now", "refused": "refused"}


def options_page() -> str:
    """docs/options.md: a table for each group, what the profiles change, and what is known without doing anything."""
    from server.options.parser import GROUPS, OPTIONS, OTHER_GROUPS, OTHER_OPTIONS, compat_rows

    heads = ("option", "default", "allowed", "environment", "what")
    parts = [OPTIONS_HEAD, *group_tables("##", GROUPS, OPTIONS, heads, option_row)]
    parts.append(
        PROFILES_HEAD
        + table(
            ("option", "what", "modern", "2024"),
            [(f"`{flag}`" if flag else "", what, modern, old) for flag, what, modern, old in compat_rows()],
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
    """A heading and a table for each group that has options, also for groups nobody has listed."""
    for group in dict.fromkeys([*groups, *(option.group for option in options)]):
        rows = [row(option) for option in options if option.group == group]
        if rows:
            yield f"{mark} {group}\n\n" + table(heads, rows)


def option_row(option: object) -> tuple:
    """The cells of one option."""
    if option.default in (None, ()) or option.help.endswith("and exit"):
        default = ""
    else:
        default = option.shown(option.default)
        default = f"`{default}`" if default and option.type is not None else default
    allowed = ", ".join(f"`{word}`" for word in option.choices) if option.choices else bounds(option.low, option.high)
    return flags_of(option), default, allowed, f"`{option.env}`" if option.env else "", option.help


def flags_of(option: object) -> str:
    """All spellings, the value behind the last one."""
    value = f" {option.metavar}" if option.type is not None and option.metavar else ""
    flags = ", ".join(f"`{flag}{value if flag == option.flags[-1] else ''}`" for flag in option.flags)
    return flags + ("; off: " + ", ".join(f"`{flag}`" for flag in option.off_flags) if option.off_flags else "")


def bounds(low: float | None, high: float | None) -> str:
    """`1 to 255`, `0 and more`, or nothing where there is no bound worth naming."""
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if math.isinf(low) and math.isinf(high):
        return ""
    if high >= LARGE:
        return f"{low:.10g} and more" if math.isfinite(low) and abs(low) < LARGE else ""
    return f"{low:.10g} to {high:.10g}" if math.isfinite(low) else f"up to {high:.10g}"


def routes_part() -> str:
    """The table of all routes."""
    from server.api.context import Context
    from server.api.routes import routes
    from server.options.groups import group
    from server.options.parser import parse

    rows = [
        (f"`{route.method} {route.path}`", "" if route.public else "yes")
        for route in routes(Context(None, group(parse([], {})).api))
    ]
    return table(("route", "needs the API key, if there is one"), rows)


def fields_part() -> str:
    """Which routes take which fields, and a table for each table of them."""
    from server.api.request.fields import BODIES

    tables = field_tables()
    titles = {
        id(fields): TITLES.get(name, name.replace("_FIELDS", "").replace("_", " ").capitalize())
        for name, fields in tables.items()
    }
    parts = [
        table(
            ("routes", "tables of their fields", "without"),
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
                bounds(field.low, field.high),
                field.help,
            )
            for field in fields
        ]
        parts.append(f"### {title}\n\n" + table(("field", "type", "default", "allowed", "what"), rows))
    return "\n".join(parts)


def field_tables() -> dict:
    """Every tuple of fields in `server.api` by its name, the completion's first."""
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


def table(heads: Iterable, rows: Iterable) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(tuple(heads))]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


PARTS = {"routes": routes_part, "fields": fields_part}


def api_page(text: str) -> str:
    """docs/api.md with fresh tables between its markers."""
    for name, part in PARTS.items():
        begin, end = f"<!-- {name}: written by build_scripts/make_docs.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise Failure(f"docs/api.md needs the lines '{begin}' and '{end}' once each: put them back")
        fresh = f"{begin}\n\n{part()}\n{end}"
        text = pattern.sub(lambda _, fresh=fresh: fresh, text)
    return text


def outdated() -> dict:
    """Path -> new text of each document that isn't what the code says."""
    pages = {OPTIONS_PAGE: options_page(), API_PAGE: api_page(API_PAGE.read_text(encoding="utf-8"))}
    return {
        path: text for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def command(check: bool) -> int:
    pages = outdated()
    if check and pages:
        raise Failure(f"{', '.join(path.name for path in pages)}: not up to date, run build_scripts/make_docs.py")
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"written: {path.relative_to(ROOT)}")
    return 0


def main(argv: list | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make_docs.py", description="Write the generated parts of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something isn't up to date")
    options = parser.parse_args(argv)
    return run_main("make_docs", lambda: command(options.check))


if __name__ == "__main__":
    sys.exit(main())
