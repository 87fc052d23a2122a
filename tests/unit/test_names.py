"""Functions and methods of the product have verbs as names; questions begin with is, has, can, may, must or are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

VERBS = frozenset(
    """
    abort absorb accept account act adapt add admit adopt advance allow analyze announce answer append apply arrange ask
    assign attempt attribute authorize balance batch beat begin bill bind bound branch bring bucket build bury call
    cancel capture catch change chat check choose clean clear clone close collect comment commit compare compile
    complain complement complete compute concat conclude confirm connect control convert convict copy count cover create
    cut cycle declare decode define delete describe determinise detokenize diagnose discard dispatch divert do download
    draft drain draw drop embed emit encode end enqueue ensure enter erase escape estimate evaluate exchange exclude
    execute expand expect expire explain explore extend extract fail fall feed fetch fill filter find finish fire fit
    fix flush fold follow foresee forget format forward frame free freeze generate get give go grant group grow guard
    guess hand handle hash hear hide hint hold identify ignore import index inflate inherit init insert install
    intersect isolate iterate join judge jump keep kill lay learn leave lend let limit link list listen live load locate
    lock log look loosen lose lower make mark mask match measure merge minimise move multiply name negate normalise note
    number observe offer open order override own pack park parse partition peek persist pick ping place plan point pool
    pop post power predict preload prepare preset print probe provide pull pulse push put quote raise rank read rebase
    recall receive record recover recurse redirect redraw refill refresh refuse register release reload relock remember
    remove rename render renew reopen repeat replace replay reply report require reserve reset resolve respell respond
    rest restart restore resume retire retry return reuse rewrite rm round route run sample satisfy save say scan seal
    search see select send serve set settle setup shake share shift shorten show shrink shut shutdown sift simplify skip
    sleep slice snapshot soften sort spell spend split stand start status step stop store stream strip stub submit
    subtract succeed sum suspend swap sweep switch sync tag take talk tell test thin think tick tidy time tokenize touch
    trigger trim try tune turn unblock undo unescape unlink unload unlock unpack unpark unregister unseal unshare unwrap
    update upload use verify visit wait wake walk warm warn watch weigh wind withdraw work wrap write
    help request
    """.split()
)
"""A new verb goes here, once somebody has looked whether one of these says the same."""

QUESTIONS = frozenset(("is", "has", "can", "may", "must", "are"))
FORMS = frozenset(("to", "as", "from", "with", "without", "on"))
"""First words of conversions, of copies with a change, and of callbacks."""

PRESCRIBED = frozenset(
    """
    main piece least_tokens of both quick
    changed expandtabs nextitem previtem lstrip removeprefix removesuffix rpartition rsplit rstrip splitlines
    strftime_now next content
    dataclass_transform field fields
    process_request process_request_thread server_close service_actions
    seq_add seq_cp seq_div seq_rm token_to_piece
    """.split()
)
"""Names of Python, Jinja, socketserver and llama.h; names that are data of a table; terms that many classes share."""


def product_files() -> list[Path]:
    """The sources that users run."""
    folders = (ROOT / "server", ROOT / "ctypes_api", ROOT / "build_scripts")
    return [ROOT / "llama_srv.py", *(path for folder in folders for path in sorted(folder.rglob("*.py")))]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions that are no properties and no special methods."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("__"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            if not any("property" in mark or mark.endswith((".setter", ".deleter")) for mark in marks):
                yield node


def is_verb(name: str) -> bool:
    """Whether a function may have this name: `x_of` names, which read as "the x of ...", are fine, too."""
    first, *rest = name.strip("_").split("_")
    return first.lower() in VERBS | QUESTIONS | FORMS or "of" in rest or name.strip("_") in PRESCRIBED


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_verbs(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"{node.lineno}: {node.name}" for node in functions(tree) if not is_verb(node.name)] == []


@pytest.mark.parametrize("name", ["limits", "_neighbours", "wants_probs", "text", "n_rows"])
def test_nouns_and_third_persons_are_found(name: str):
    assert not is_verb(name)
