"""Compares the documents with the code: generated tables, mentions, links, paths, names of functions.

Reads files; from the server it imports the tables that the documents describe. If a table has changed, `python
build_scripts/make_docs.py` updates the documents.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support import ROOT, build_script

make_docs = build_script("make_docs")
common = build_script("common")

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "ACCEPTANCE.md"),
]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
PATH = re.compile(r"`((?:server|ctypes_api|build_scripts|tests|public|docs)/[\w./-]+?\.\w+|llama_srv\.py)`")
STATION = re.compile(r"\| `(?P<path>[\w./]+\.py)` \| (?P<names>(?:`\w+`(?:, )?)+) \|")
COMMAND = re.compile(r"^ {4}(python (?:build_scripts/\w+|llama_srv)\.py\b.*)$", re.MULTILINE)
FLAG = re.compile(r"(?<![\w`-])`?(--[a-z][\w-]+)")
# hidden, a family's name, docker, systemctl, Qwen Code
FLAGS_OF_OTHERS = {"--engine-process", "--fim-qwen-1", "--gpus", "--now", "--auth-type"}
VARIABLE = re.compile(r"\b(?:LLAMA|GGML|HF|CUDA)_[A-Z_0-9]+\b")


def text_of(path: Path) -> str:
    """The document."""
    return path.read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """What a link can jump to, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_generated_parts_are_up_to_date():
    assert [path.name for path in make_docs.find_outdated()] == [], "run build_scripts/make_docs.py"


def test_every_flag_is_in_the_options_page():
    from server.options.parser import ALL_OPTIONS

    page = text_of(ROOT / "docs" / "options.md")
    flags = [flag for option in ALL_OPTIONS for flag in (*option.flags, *option.off_flags)]
    assert [flag for flag in flags if not re.search(rf"`{re.escape(flag)}[` ]", page)] == []


def test_every_route_and_field_is_in_the_api_page():
    from server.api.context import Context
    from server.api.routes import make_routes
    from server.options.groups import group
    from server.options.parser import parse

    page = text_of(ROOT / "docs" / "api.md")
    rows = make_routes(Context(None, group(parse([], {})).api))
    assert [row.path for row in rows if f"`{row.method} {row.path}`" not in page] == []
    tables = make_docs.find_field_tables()
    assert {"COMPLETION_FIELDS", "SAMPLING_FIELDS"} <= set(tables)
    names = [name for fields in tables.values() for field in fields for name in (field.name, *field.aliases)]
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    broken = []
    for target, anchor in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(text_of(file))):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    assert [name for name in PATH.findall(text_of(page)) if not (ROOT / name).is_file()] == []


def test_the_traced_request_goes_through_functions_that_exist():
    rows = list(STATION.finditer(text_of(ROOT / "docs" / "architecture.md")))
    assert len(rows) > 25, "the tables of the traced request have another form now"
    missing = []
    for row in rows:
        source = text_of(ROOT / row["path"])
        missing += [
            f"{row['path']}: {name}"
            for name in re.findall(r"`(\w+)`", row["names"])
            if not re.search(rf"(?:def|class) {name}\b", source)
        ]
    assert missing == []


def test_the_file_map_of_the_readme_names_real_files():
    lines = text_of(ROOT / "README.md").split("## What is where")[1].split("\n## ")[0].splitlines()
    folder, missing = "", []
    for line in lines:
        match = re.match(r" {4}( *)([\w/., ]+?) {2,}\S|^ {4}( *)([\w/.]+)$", line)
        if not match:
            continue
        indent, names = match[1] or match[3] or "", match[2] or match[4]
        for name in names.split(", "):
            parent = {0: "", 2: folder, 4: folder + "engine/"}[len(indent)]
            if not (ROOT / parent / name).exists() and name != "libs/":
                missing.append(parent + name)
            if not indent and name.endswith("/"):
                folder = name
    assert missing == []


def test_printed_commands_name_scripts_and_options_that_exist():
    unknown = []
    for page in PAGES:
        for line in COMMAND.findall(text_of(page).replace("\\\n", " ")):
            words = shlex.split(line.split("   ")[0])
            source = text_of(ROOT / words[1])
            if words[1] == "llama_srv.py":
                source = text_of(ROOT / "docs" / "options.md")
            if words[1].endswith("quickstart.py"):
                source += text_of(ROOT / "docs" / "options.md")
            unknown += [
                f"{words[1]} {word}"
                for word in words[2:]
                if word.startswith("-") and not re.search(rf"[\"'`]{re.escape(word)}[\"'` ]", source)
            ]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_variables_that_are_named_exist(page: Path):
    from server.options.commands import PEER
    from server.options.parser import ALL_OPTIONS

    flags = {flag for option in (*ALL_OPTIONS, *PEER) for flag in (*option.flags, *option.off_flags)} | FLAGS_OF_OTHERS
    scripts = "".join(
        text_of(path)
        for folder in ("build_scripts", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".mjs", ".service")
    )
    source = scripts + "".join(
        text_of(path) for folder in ("server", "ctypes_api", "tests") for path in (ROOT / folder).rglob("*.py")
    )
    unknown = [
        flag
        for flag in FLAG.findall(text_of(page))
        if flag not in flags and not re.search(rf"{re.escape(flag)}(?![\w-])", scripts)
    ]
    unknown += [name for name in VARIABLE.findall(text_of(page)) if name not in source]
    assert unknown == []


def test_a_new_group_and_a_new_table_appear_by_themselves(monkeypatch: pytest.MonkeyPatch):
    from server.api import tokens
    from server.api.request import schema
    from server.options import parser as options

    new = options.Option("zz", ("--zz-new",), "something | new", "Zoo", int, 3, "N", "ZZ", 1, 9)
    monkeypatch.setattr(options, "OPTIONS", (*options.OPTIONS, new))
    monkeypatch.setattr(
        tokens, "ZEBRA_FIELDS", (schema.Field("stripes", int, 7, "how many", 0, 2**31 - 1, ("n_s",)),), raising=False
    )
    assert "## Zoo\n" in make_docs.render_options_page()
    assert "| `--zz-new N` | `3` | 1 to 9 | `ZZ` | something \\| new |" in make_docs.render_options_page()
    assert "### Zebra\n" in make_docs.render_fields_part()
    assert "| `stripes`, `n_s` | integer | `7` | 0 and more | how many |" in make_docs.render_fields_part()


def test_a_page_without_markers_is_refused():
    with pytest.raises(common.Failure, match="must contain the lines"):
        make_docs.render_api_page("# nothing here")


@pytest.mark.parametrize(
    "low, high, text",
    [
        (None, None, ""),
        (1, 255, "1 to 255"),
        (0, 2**31 - 1, "0 and more"),
        (0.1, 86400, "0.1 to 86400"),
        (float("-inf"), 1, "up to 1"),
        (float("-inf"), float("inf"), ""),
        (-1e6, 1e6, "-1000000 to 1000000"),
    ],
)
def test_bounds_are_readable(low: float | None, high: float | None, text: str):
    assert make_docs.format_bounds(low, high) == text
