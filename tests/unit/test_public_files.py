"""Rules for all files of the web page, read as text: small, self-contained, in all languages, nothing inline."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT

PUBLIC = ROOT / "public"
SCRIPTS = sorted([*PUBLIC.glob("*.js"), *PUBLIC.glob("*.mjs")])


def texts(name: str) -> dict[str, str]:
    """Key to text of a table of texts."""
    source = (PUBLIC / name).read_text(encoding="utf-8")
    return dict(re.findall(r"(?:^\s*|, )'?([\w-]+)'?:\s'((?:[^'\\]|\\.)*)'", source, re.MULTILINE))


@pytest.mark.covers("W21")
def test_the_page_is_small_and_flat():
    files = [path for path in PUBLIC.rglob("*") if path.is_file()]
    assert all(path.parent == PUBLIC for path in files)
    assert sum(path.stat().st_size for path in files) < 350_000


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_module_is_readable_and_never_makes_html(path: Path):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("// ") and source.count("\n") <= 600
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write(",
        "eval(",
        "new Function",
        "srcdoc",
        "DOMParser",
        "createContextualFragment",
    ):
        assert forbidden not in source.replace("document.write(chunk", ""), forbidden


@pytest.mark.parametrize("path", [*SCRIPTS, PUBLIC / "style.css", PUBLIC / "index.html"], ids=lambda path: path.name)
def test_nothing_points_outside(path: Path):
    source = path.read_text(encoding="utf-8")
    urls = re.findall(r"\bhttps?://[\w.]+", source)
    assert set(urls) <= {"http://127.0.0.1", "http://www.w3.org"}
    for imported in re.findall(r"(?:from|import) '([^']+)'", source.replace("from '/completion.js'", "")):
        assert imported.startswith("./") and (PUBLIC / imported).is_file()


def test_the_style_sheets_braces_fit_together():
    """A brace too many takes the rule behind it away, and no browser says so."""
    depth, deepest = 0, 0
    for one in (PUBLIC / "style.css").read_text(encoding="utf-8"):
        depth += {"{": 1, "}": -1}.get(one, 0)
        assert depth >= 0
        deepest = max(depth, deepest)
    assert (depth, deepest) == (0, 2)


def test_the_html_holds_nothing_inline():
    source = (PUBLIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\son\w+=|\sstyle=|<script(?![^>]*src=)", source)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', source)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert "require-trusted-types-for 'script'" in policy


OTHERS = sorted(path.name for path in PUBLIC.glob("text-*.js") if path.name != "text-en.js")


@pytest.mark.covers("W19")
@pytest.mark.parametrize("name", OTHERS)
def test_every_language_says_the_same_things(name: str):
    english, other = texts("text-en.js"), texts(name)
    assert set(english) == set(other) and len(english) > 150
    for key, text in english.items():
        assert other[key].strip(), key
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", other[key])), key
        assert text.count("{{") == other[key].count("{{"), key


@pytest.mark.parametrize("name", ["text-en.js", *OTHERS])
def test_no_text_is_there_twice(name: str):
    source = (PUBLIC / name).read_text(encoding="utf-8")
    keys = re.findall(r"(?:^\s*|, )'?([\w-]+)'?:\s'(?:[^'\\]|\\.)*'", source, re.MULTILINE)
    assert len(keys) == len(set(keys))


def test_every_table_of_texts_is_offered_as_a_language():
    source = (PUBLIC / "i18n.js").read_text(encoding="utf-8")
    offered = re.findall(r"(\w+): '", re.search(r"LANGUAGES = \{([^}]*)\}", source)[1])
    assert ["text-en.js", *OTHERS] == ["text-en.js", *(f"text-{one}.js" for one in sorted(offered) if one != "en")]


def test_every_text_that_is_asked_for_exists_and_every_text_is_used():
    source = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS if not path.name.startswith("text-"))
    english = set(texts("text-en.js"))
    asked = set(re.findall(r"\bt\('([\w-]+)'", source)) - {"key"}  # the example in i18n.js
    assert asked <= english
    # made of parts: t(`help-${name}`) and the like, or chosen between two
    prefixes = tuple(re.findall(r"`([a-z]+-)\$\{", source))
    quoted = set(re.findall(r"'([a-z][\w-]*)'", source))
    unused = {key for key in english - asked if not key.startswith(prefixes) and key not in quoted}
    assert unused == set()
    options = re.findall(r"row\('\w+', '(\w+)'", source)
    assert len(options) > 30 and {f"help-{name}" for name in options} <= english
