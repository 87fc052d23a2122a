"""Compares the statuses in docs/ACCEPTANCE.md with the `covers` marks in the tests.

Reads files only. Marks are found with `ast`, not by collecting tests, so that marks of tests that can't run on this
machine count, too. A mark must be written out (`@pytest.mark.covers("Q12", "R01")`) to be found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support import ROOT

AREAS = ("slice 1", "native API", "chat", "web", "media", "packaging")
# how many items each letter has; ids are stable, so this changes only when an item is added
COUNTS = {
    "C": 56,
    "E": 20,
    "Q": 42,
    "R": 16,
    "S": 1,
    "M": 8,
    "B": 15,
    "F": 10,
    "W": 22,
    "X": 10,
    "T": 21,
    "V": 4,
    "H": 3,
    "L": 18,
    "A": 14,
    "N": 1,
    "O": 18,
    "P": 12,
    "G": 2,
    "J": 11,
    "Y": 2,
    "D": 19,
}
ROW = re.compile(r"\| (?P<id>[A-Z]\d+) \| (?P<what>[^|]+) \| (?P<status>[^|]+) \|")


def table() -> list[tuple[str, str]]:
    """(id, status) of every row, in the order of the document."""
    text = (ROOT / "docs" / "ACCEPTANCE.md").read_text(encoding="utf-8")
    return [(row["id"], row["status"].strip()) for row in map(ROW.fullmatch, text.splitlines()) if row]


def covered_in(source: str) -> Iterator[tuple[str, int]]:
    """(id, line) of every `pytest.mark.covers(...)` in a Python source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.covers"):
            for argument in node.args:
                is_written_out = isinstance(argument, ast.Constant)
                yield (argument.value if is_written_out else ast.unparse(argument)), node.lineno


def covers() -> dict[str, list[str]]:
    """Id -> places (`file:line`) of the marks that name it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for id_, line in covered_in(path.read_text(encoding="utf-8")):
            found.setdefault(id_, []).append(f"{path.relative_to(ROOT).as_posix()}:{line}")
    return found


def test_every_item_is_listed_once_and_in_order():
    expected = [
        f"{letter}{number:0{1 if letter in 'MX' else 2}d}"
        for letter, count in COUNTS.items()
        for number in range(1, count + 1)
    ]
    assert [id_ for id_, _ in table()] == expected


def test_every_status_is_known():
    known = {"tested", *(f"planned: {area}" for area in AREAS)}
    assert {id_: status for id_, status in table() if status not in known} == {}


def test_marks_name_items_that_exist():
    known = dict(table())
    unknown = {id_: places for id_, places in covers().items() if id_ not in known}
    assert unknown == {}, "marks with an id that docs/ACCEPTANCE.md doesn't have"


def test_tested_items_have_a_test():
    covered = covers()
    missing = [id_ for id_, status in table() if status == "tested" and id_ not in covered]
    assert missing == [], "docs/ACCEPTANCE.md says tested, but no test carries pytest.mark.covers for"


def test_planned_items_have_no_test_yet():
    covered = covers()
    done = {id_: covered[id_] for id_, status in table() if status != "tested" and id_ in covered}
    assert done == {}, "there are tests already; set these to `tested` in docs/ACCEPTANCE.md"


def test_marks_are_found_on_functions_classes_and_parameters():
    source = (
        'import pytest\n@pytest.mark.covers("A1", "A2")\ndef test_x(): pass\n'
        '@pytest.mark.covers("A3")\nclass TestY: pass\n'
        'z = pytest.param(1, marks=pytest.mark.covers("A4"))\n'
    )
    assert list(covered_in(source)) == [("A1", 2), ("A2", 2), ("A3", 4), ("A4", 6)]
