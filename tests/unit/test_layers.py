"""The architecture as a table of allowed imports, compared with the source.

Reads files with `ast` and imports no module of the server, so a forbidden import inside a function or under
`TYPE_CHECKING` is found as well. Each module of the server must match a row of `RULES`; a module in a new place needs a
new row.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

LEAVES = (
    "server.errors",
    "server.log",
    "server.log_output",
    "server.memory",
    "server.metrics",
    "server.program",
    "server.records",
    "server.stacks",
)
COMPOSITION = ("server.launch", "server.app", "server.serving", "server.model_sources")
EVERYTHING = ("server", "ctypes_api")
PRODUCT = ("llama_srv", *EVERYTHING)

API = (
    "server.api.dialects",
    "server.chat",
    "server.engine.seam",
    "server.grammar",
    "server.model_files.rerankers",
    "server.options",
    "server.web.message",
    "server.web.router",
    "server.web.sse",
)

# folder -> what of the product its modules may import, besides their own folder and the leaves; a row for each folder,
# and for the few modules that lie in none; an entry allows what lies below it, too
RULES: dict[str, tuple[str, ...]] = {
    # one program is all three
    "llama_srv": ("server.launch", "server.program", "server.engine.entry.process", "server.service.janitor"),
    "ctypes_api": (),
    "server": (),
    **dict.fromkeys(LEAVES, ()),
    "server.memory": ("server.errors",),
    "server.log": ("server.log_output",),  # one leaf in two files
    **dict.fromkeys(COMPOSITION, EVERYTHING),
    "server.options": ("server.model_files.tensor_types",),
    "server.model_files": (),
    "server.download": ("server.models.file_names",),  # what files are called
    "server.bench": (),
    "server.batches": ("server.engine.seam", "server.web.message", "server.web.presence", "server.web.router"),
    "server.library": (
        "server.download",
        "server.models.catalogue",
        "server.models.file_names",
        "server.models.removal",
    ),
    "server.errands": ("server.options",),
    "server.commands": (
        "ctypes_api",  # a worker lends the libraries alone
        "server.api",  # answers the lines of a batch
        "server.batches",
        "server.download",
        "server.engine.client",  # runs a record again
        "server.engine.llama.backend",  # asks it what a model would take
        "server.engine.seam",
        "server.evidence",
        "server.loading",
        "server.model_files",
        "server.model_sources",
        "server.models",
        "server.options",
    ),
    "server.service": ("server.options", "server.web"),
    "server.web": ("server.web.http1",),
    "server.web.http1": ("server.web.limits",),
    "server.grammar": (),
    "server.grammar.json_schema": ("server.grammar",),
    "server.chat": ("server.chat.jinja", "server.chat.output"),
    "server.chat.jinja": (),
    "server.chat.output": ("server.engine.seam", "server.grammar"),
    "server.evidence": ("server.engine.seam", "server.model_files.identity", "server.models", "server.web.message"),
    "server.loading": EVERYTHING,
    "server.models": ("server.chat", "server.engine.seam", "server.options"),
    "server.api": (
        "server.batches",
        "server.library",
        "server.api.admin",
        "server.api.dialects",
        "server.api.request",
        "server.api.stored",
        "server.chat.output",
        "server.engine.seam",
        "server.evidence",
        "server.model_files.rerankers",
        "server.models",
        "server.options",
        "server.web.message",
        "server.web.router",
        "server.web.sse",
    ),
    "server.api.stored": (
        "server.api.context",
        "server.api.dialects",
        "server.api.generation",
        "server.api.request",
        "server.api.tokens",
        "server.batches",
        "server.chat.output",
        "server.web.http1.multipart",
        "server.web.message",
        "server.web.sse",
    ),
    "server.api.admin": (
        "server.library",
        "server.api.context",
        "server.api.serialize",
        "server.api.request",
        "server.engine.seam",
        "server.models",
        "server.web.message",
        "server.web.sse",
    ),
    "server.api.dialects": (
        "server.api.context",
        "server.api.serialize",
        "server.api.request",
        "server.chat.output",
        "server.chat.segments",
        "server.engine.seam",
        "server.models",
        "server.web.message",
        "server.web.sse",
    ),
    "server.api.request": (
        "server.api.context",
        "server.chat",
        "server.engine.seam",
        "server.grammar",
        "server.models",
        "server.web.message",
    ),
    "server.api.request.chat": (
        "server.api.request",
        "server.chat",
        "server.engine.seam",
        "server.grammar",
        "server.models",
    ),
    "server.engine": (),
    "server.engine.seam": ("server.model_files",),
    "server.engine.client": ("server.engine.seam", "ctypes_api"),
    "server.engine.slots": ("server.engine.seam", "server.model_files"),
    "server.engine.cache": ("server.engine.slots", "server.engine.seam", "server.model_files"),
    "server.engine.speculation": ("server.engine.slots", "server.engine.seam"),
    "server.engine.loop": (
        "server.engine.cache",
        "server.engine.speculation",
        "server.engine.slots",
        "server.engine.seam",
    ),
    "server.engine.llama": (
        "ctypes_api",
        "server.engine.cache",
        "server.engine.slots",
        "server.engine.seam",
        "server.grammar.given",  # what comes next under a grammar is guessed where its text leaves no choice
        "server.grammar.gbnf",
        "server.model_files",
    ),
    "server.engine.entry": ("server.engine.loop", "server.engine.llama", "server.engine.slots", "server.engine.seam"),
}
# what knows the whole is left alone by all others
IMPORTED_ONLY_BY = {
    "server.launch": ("llama_srv",),
    "server.app": ("server.launch",),
    "server.serving": ("server.app",),
    "server.model_sources": (
        "server.app",
        "server.commands.batch",
        "server.commands.listing",
        "server.commands.records",
        "server.loading.starter",
    ),
    "server.loading": ("server.app", "server.commands.batch", "server.loading.starter", "server.loading.engines"),
}
MAX_MODULES = 12
CROWDED_FOR_A_REASON = ("server.chat.jinja",)  # one language, cut along its grammar
FORBIDDEN_STDLIB = {"multiprocessing": "a frozen program has one entry: use threads, or start the program itself"}


def product_files() -> list[Path]:
    """Every Python file of the product; the folders that don't exist yet have none."""
    files = [ROOT / "llama_srv.py", *(ROOT / "server").rglob("*.py"), *(ROOT / "ctypes_api").rglob("*.py")]
    return sorted(path for path in files if path.is_file())


def module_name(path: Path) -> str:
    """`server.web.httpd` for `server/web/httpd.py`, `server.web` for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of everything imported; `from a import b` gives `a.b`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno
        elif (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and ast.unparse(node.func) in ("__import__", "importlib.import_module", "import_module")
        ):
            yield str(node.args[0].value), node.lineno


def within(name: str, places: tuple[str, ...]) -> bool:
    """Is `name` one of `places` or below one? `from server import errors` arrives as `server.errors`."""
    return any(name == place or name.startswith(place + ".") for place in places)


def rule_of(module: str) -> str:
    """The row that counts for `module`: the longest one it matches."""
    return max((row for row in RULES if within(module, (row,))), key=len, default="")


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What `module` imports and mustn't, one line each."""
    row = rule_of(module)
    leaves = () if row in (*LEAVES, "ctypes_api", "llama_srv", "server") else LEAVES
    allowed = (*RULES.get(row, ()), *leaves)
    found = []
    for name, line in imports(source, module, is_package):
        top = name.split(".")[0]
        where = f"{module}:{line} imports {name}"
        if top in PRODUCT:
            only = next((who for what, who in IMPORTED_ONLY_BY.items() if within(name, (what,))), (module,))
            is_own = rule_of(name) == row and "." in row + name[: len("ctypes_api.")]
            if not (is_own or within(name, allowed)) or module not in only:
                found.append(f"{where}: not by the rule for {row or 'a module without a rule'}")
        elif top in FORBIDDEN_STDLIB:
            found.append(f"{where}: {FORBIDDEN_STDLIB[top]}")
        elif top not in sys.stdlib_module_names:
            found.append(f"{where}: only the standard library may be used")
    return found


@pytest.mark.parametrize("path", product_files(), ids=module_name)
def test_module_imports_only_what_its_layer_allows(path: Path):
    source = path.read_text(encoding="utf-8")
    assert violations(module_name(path), source, path.name == "__init__.py") == []


def folders() -> dict[str, list[str]]:
    """Each folder of the product as a package, with the names of its modules."""
    found: dict[str, list[str]] = {}
    for path in product_files():
        if path.parent != ROOT:
            modules = found.setdefault(".".join(path.parent.relative_to(ROOT).parts), [])
            modules += [] if path.name == "__init__.py" else [path.stem]
    return found


def test_each_row_of_the_rules_is_a_folder_or_a_module_that_lies_in_none():
    loose = {"llama_srv", *LEAVES, *COMPOSITION}
    assert set(RULES) == set(folders()) | loose
    assert {name for name in loose if "." in name} == {f"server.{name}" for name in folders()["server"]}


def test_rules_and_exceptions_name_what_exists():
    known = {module_name(path) for path in product_files()}
    named = [name for row in (RULES, IMPORTED_ONLY_BY) for what, names in row.items() for name in (what, *names)]
    assert sorted({name for name in (*named, *CROWDED_FOR_A_REASON) if name not in known}) == []


@pytest.mark.parametrize("folder", [name for name in folders() if name.startswith("server")])
def test_a_folder_has_no_more_modules_than_one_can_keep_in_mind(folder: str):
    assert folder in CROWDED_FOR_A_REASON or len(folders()[folder]) <= MAX_MODULES


def test_the_architecture_page_has_a_row_for_each_folder():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^\| `([\w/]+)` \|", page.split("## The folders")[1].split("\n## ")[0])
    assert sorted(listed) == sorted(folder.replace(".", "/") for folder in folders())


def test_the_unit_tests_have_the_folders_of_the_product():
    known = {folder.removeprefix("server.") for folder in folders()} | {"build_scripts"}
    found = {
        ".".join(path.parent.relative_to(ROOT / "tests" / "unit").parts)
        for path in (ROOT / "tests" / "unit").rglob("test_*.py")
    }
    assert found - known <= {""}


def test_no_module_imports_itself_by_a_detour():
    """Imports inside functions and under TYPE_CHECKING count: a cycle of names is a cycle for the reader."""
    files = {module_name(path): path for path in product_files()}
    needs = {
        module: {
            next((known for known in (name, name.rpartition(".")[0]) if known in files), module)
            for name, _ in imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        }
        - {module}
        for module, path in files.items()
    }
    while free := [module for module, others in needs.items() if not others & needs.keys()]:
        for module in free:
            del needs[module]
    assert sorted(needs) == [], "these, or modules that they need, import each other in a circle"


def test_tests_import_only_packages_that_requirements_dev_pins():
    """Otherwise they pass where somebody happens to have the package, and fail on a fresh machine."""
    pinned = re.findall(r"(?m)^([\w-]+)==", (ROOT / "requirements-dev.txt").read_text(encoding="utf-8"))
    known = (
        {name.replace("-", "_").removesuffix("_slim") for name in pinned}
        | sys.stdlib_module_names
        | {"tests", *PRODUCT}
    )
    known |= {path.stem for path in (ROOT / "build_scripts").glob("*.py")}
    missing = [
        f"{path.relative_to(ROOT).as_posix()}:{line} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name, line in imports(path.read_text(encoding="utf-8"), module_name(path), False)
        if name.split(".")[0] not in known
    ]
    assert missing == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("server.web.httpd", "import socket\nfrom server.errors import x\nfrom server.web.message import y"),
        ("server.web.httpd", "from . import message\nfrom ..errors import ApiError"),
        ("server.web.httpd", "from server import errors, log"),
        ("server.engine.llama.backend", "from ctypes_api import loader"),
        ("server.engine.client.vocab", "import ctypes_api.objects"),
        ("server.engine.llama.backend", "from server.engine.llama.sampler import LlamaSampler"),
        ("server.api.routes", "from server.web.router import Route"),
        (
            "server.api.request.chat.messages",
            "from server.engine.seam.task import Task\nfrom server.chat.template import render",
        ),
        ("server.app", "from server.api import x\nfrom ctypes_api import y\nfrom server.web.httpd import z"),
        ("llama_srv", "from server.launch import main"),
        ("server.launch", "def later():\n    from server import app"),
        ("server.options.row", "import os"),
        ("ctypes_api.loader", "from ctypes_api.errors import LibsError\nfrom . import binding"),
    ],
)
def test_allowed_imports_pass(module: str, source: str):
    assert violations(module, source) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("server.web.httpd", "from server.engine.seam.task import Task"),
        ("server.web.httpd", "from ..engine.seam import task"),
        ("server.web.httpd", "def later():\n    from server.api import completion"),
        ("server.web.httpd", "import importlib\nimportlib.import_module('server.engine.loop.scheduler')"),
        ("server.chat.template", "import jinja2"),
        ("server.engine.loop.scheduler", "import ctypes_api.llama"),
        ("server.engine.loop.scheduler", "from server.engine.llama.sampler import LlamaSampler"),
        ("server.engine.loop.scheduler", "from server.web import sse"),
        ("server.engine.loop.scheduler", "from server.engine.client.supervisor import ProcessTransport"),
        ("server.engine.client.supervisor", "from server.engine.loop.state import EngineState"),
        ("server.grammar.gbnf", "from server.grammar.json_schema.convert import convert"),
        ("server.engine.slots.backend", "import ctypes_api.llama"),
        ("server.api.completion", "from server.engine.loop.scheduler import Scheduler"),
        ("server.api.completion", "from server.engine.loop import scheduler"),
        ("server.api.completion", "from server.web.httpd import HttpServer"),
        ("server.api.completion", "from server import engine"),
        ("server.app", "import multiprocessing"),
        ("server.app", "import numpy as np"),
        ("server.web.router", "from server import app"),
        ("server.app.extra", "from server.app import run"),
        ("server.launch", "from server import serving"),
        ("llama_srv", "from server.app import run"),
        ("server.options.parser", "from server.web.message import Request"),
        ("server.errors", "from server.web.message import Response"),
        ("server.strange", "from server.web import router"),
        ("ctypes_api.loader", "from server.errors import ApiError"),
        ("llama_srv", "from server.web.httpd import HttpServer"),
        ("server", "from server.app import main"),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str):
    assert len(violations(module, source)) == 1
