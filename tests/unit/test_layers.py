"""Who may import whom: the architecture as a table, checked in the source.

Reads files with `ast`, imports nothing of the product, so a forbidden import inside a function or under
`TYPE_CHECKING` is found as well. Each module of the product has to match a row of `RULES`; a module that
isn't there yet needs no row, and one that appears in a new place has to be given one here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

LEAVES = ("server.errors", "server.log", "server.metrics", "server.options", "server.records")
EVERYTHING = ("server", "ctypes_api")
PRODUCT = ("llama_srv", *EVERYTHING)
API = (*LEAVES, "server.web.message", "server.web.sse", "server.chat", "server.engine.task")
NATIVE = (*LEAVES, "ctypes_api")

# module or package -> what of the product it may import (its own package is always allowed, except by
# leaves); the longest matching row counts, an entry allows what lies below it too
RULES: dict[str, tuple[str, ...]] = {
    "llama_srv": ("server.launch", "server.engine.process", "server.janitor"),  # the same program is all three
    "server.janitor": ("server.engine.spawn",),
    "ctypes_api": (),
    **{leaf: () for leaf in LEAVES},
    "server.option_row": ("server.records",),  # the option table is a leaf of six modules
    "server.option_table": ("server.option_row", "server.option_spec"),
    "server.option_spec": ("server.option_row",),
    "server.option_rest": ("server.option_row",),
    "server.config_file": ("server.option_row",),
    "server.options": ("server.option_row", "server.option_table", "server.option_rest", "server.config_file"),
    "server.ggml_types": (),
    "server.gguf": ("server.ggml_types", "server.records"),
    "server.bench": (),
    "server.cache_folder": (),
    "server.tuned": ("server.cache_folder", "server.options"),
    "server.tune": ("server.tuned",),
    "server.download": (*LEAVES, "server.cache_folder"),
    "server.draft_model": (
        *LEAVES,
        "server.fetching",
        "server.engine.config",
        "server.engine.model_file",
        "server.option_spec",
    ),
    "server.fetching": (*LEAVES, "server.download", "server.engine.model_file"),
    "server.frozen": (),
    "server.bundle": ("server.records",),
    "server.bundle_make": ("server.bundle",),
    "server.shells": ("server.option_row", "server.option_table"),
    "server.one_shot": (
        "server.bundle",
        "server.bundle_make",
        "server.frozen",
        "server.shells",
        "server.options",
        "server.records",
    ),
    "server.edge": (*LEAVES, "server.web"),
    "server.housekeeping": (
        *LEAVES,
        "server.edge",
        "server.run_files",
        "server.systemd",
        "server.stacks",
        "server.web",
    ),
    "server.web": LEAVES,
    "server.chat": LEAVES,
    "server.engine": LEAVES,
    "server.engine.model_checks": ("server.gguf", "server.records"),
    "server.engine.projector_checks": ("server.gguf",),
    "server.engine.model_file": (*LEAVES, "server.gguf"),
    "server.engine.shape": ("server.records",),
    "server.engine.model_shape": ("server.errors", "server.gguf"),
    "server.engine.fit": ("server.ggml_types", "server.records"),
    "server.engine.host_memory": (),
    "server.engine.positions": (*LEAVES, "server.gguf"),
    "server.engine.backend_fit": NATIVE,
    "server.engine.backend": NATIVE,
    "server.engine.backend_sampler": NATIVE,  # parts of the backend, see IMPORTED_ONLY_BY
    "server.engine.backend_custom": NATIVE,
    "server.engine.backend_params": NATIVE,
    "server.engine.backend_pool": NATIVE,
    "server.engine.backend_report": NATIVE,
    "server.engine.backend_mtmd": NATIVE,
    "server.engine.backend_draft": NATIVE,
    "server.engine.backend_embed": NATIVE,
    "server.engine.backend_embed_media": NATIVE,
    "server.engine.backend_rerank": (*NATIVE, "server.gguf"),
    "server.engine.vocab": NATIVE,
    "server.engine.process": (*LEAVES, "server.stacks"),
    "server.api": API,
    "server.api.debug": (*API, "server.stacks"),
    "server.api.routes": (*API, "server.web.router"),  # the table of routes is made of the router's rows
    "server.launch": (
        *LEAVES,
        "ctypes_api.errors",
        "ctypes_api.folder",
        "server.app",
        "server.bundle",
        "server.engine.spawn",
        "server.frozen",
        "server.tuned",
    ),
    "server.app": EVERYTHING,
    "server.serving": EVERYTHING,
    "server": (),
}
# modules that all others leave alone: what knows the whole, and the inside of the native seam
BACKEND = (
    "server.engine.backend",
    "server.engine.backend_sampler",
    "server.engine.backend_custom",
    "server.engine.backend_params",
    "server.engine.backend_draft",
    "server.engine.backend_mtmd",
    "server.engine.backend_embed",
    "server.engine.backend_embed_media",
    "server.engine.backend_rerank",
    "server.engine.backend_fit",
    "server.engine.backend_report",
)
IMPORTED_ONLY_BY = {
    "server.launch": ("llama_srv",),
    "server.app": ("server.launch",),
    "server.serving": ("server.app",),
    "server.engine.backend_sampler": BACKEND,
    "server.engine.backend_custom": BACKEND,
    "server.engine.backend_params": BACKEND,
    "server.engine.backend_fit": BACKEND,
    "server.engine.backend_mtmd": BACKEND,
    "server.engine.backend_draft": BACKEND,
    "server.engine.backend_embed": BACKEND,
    "server.engine.backend_embed_media": BACKEND,
    "server.engine.backend_rerank": BACKEND,
    "server.engine.backend_report": BACKEND,
}
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
    own = () if row in (*LEAVES, "server", "llama_srv") else (".".join(row.split(".")[:2]),)
    allowed = (*RULES.get(row, ()), *own)
    found = []
    for name, line in imports(source, module, is_package):
        top = name.split(".")[0]
        where = f"{module}:{line} imports {name}"
        if top in PRODUCT:
            only = next((who for what, who in IMPORTED_ONLY_BY.items() if within(name, (what,))), (module,))
            if not within(name, allowed) or module not in only:
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


def test_tests_import_only_packages_that_requirements_dev_pins():
    """Otherwise they pass where somebody happens to have the package, and fail on a fresh machine."""
    pinned = re.findall(r"(?m)^([\w-]+)==", (ROOT / "requirements-dev.txt").read_text(encoding="utf-8"))
    known = {name.replace("-", "_") for name in pinned} | sys.stdlib_module_names | {"tests", *PRODUCT}
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
        ("server.engine.backend", "from ctypes_api import loader"),
        ("server.engine.vocab", "import ctypes_api.objects"),
        ("server.engine.backend", "from server.engine.backend_sampler import LlamaSampler"),
        ("server.api.routes", "from server.web.router import Route"),
        ("server.api.completion", "from server.engine.task import Task\nfrom server.chat.template import render"),
        ("server.app", "from server.api import x\nfrom ctypes_api import y\nfrom server.web.httpd import z"),
        ("llama_srv", "from server.launch import main"),
        ("server.launch", "def later():\n    from server import app"),
        ("server.options", "import os"),
        ("ctypes_api.loader", "from ctypes_api.errors import LibsError\nfrom . import binding"),
    ],
)
def test_allowed_imports_pass(module: str, source: str):
    assert violations(module, source) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("server.web.httpd", "from server.engine.task import Task"),
        ("server.web.httpd", "from ..engine import task"),
        ("server.web.httpd", "def later():\n    from server.api import completion"),
        ("server.web.httpd", "import importlib\nimportlib.import_module('server.engine.scheduler')"),
        ("server.chat.template", "import jinja2"),
        ("server.engine.scheduler", "import ctypes_api.llama"),
        ("server.engine.scheduler", "from server.engine.backend_sampler import LlamaSampler"),
        ("server.engine.scheduler", "from server.web import sse"),
        ("server.engine.backendish", "import ctypes_api.llama"),
        ("server.api.completion", "from server.web.router import Route"),
        ("server.api.completion", "from server.engine.scheduler import Scheduler"),
        ("server.api.completion", "from server.engine import scheduler"),
        ("server.api.completion", "from server.web.httpd import HttpServer"),
        ("server.api.completion", "from server import engine"),
        ("server.app", "import multiprocessing"),
        ("server.app", "import numpy as np"),
        ("server.web.router", "from server import app"),
        ("server.app.extra", "from server.app import run"),
        ("server.launch", "from server import serving"),
        ("llama_srv", "from server.app import run"),
        ("server.options", "from server.errors import ApiError"),
        ("server.errors", "from server.web.message import Response"),
        ("server.strange", "from server.web import router"),
        ("ctypes_api.loader", "from server.errors import ApiError"),
        ("llama_srv", "from server.web.httpd import HttpServer"),
        ("server", "from server.app import main"),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str):
    assert len(violations(module, source)) == 1
