"""`records.record` compared with the standard library's dataclasses: faster, with the same behaviour."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from server.records import field, fields, is_record, record, replace
from tests.support import ROOT


def pair(**how: bool) -> tuple[type, type]:
    """The same class made by both."""

    def body(field: Callable[..., Any]) -> type:
        class Sample:
            """A sample."""

            a: int
            b: str = "b"
            c: list = field(default_factory=list)
            hidden: bytes = field(default=b"", repr=False, compare=False)
            later: int = field(init=False, default_factory=lambda: 7)
            named: int = field(kw_only=True, default=1)

            def double(self) -> int:
                return self.a * 2

        return Sample

    how = {"frozen": False, "eq": True} | how
    return record(**how)(body(field)), dataclasses.dataclass(slots=True, **how)(body(dataclasses.field))


@record(frozen=True)
class Point:
    """On the level of the module, so that it can be pickled."""

    x: int
    y: int = 0


@record
class Node:
    """May contain itself."""

    children: list = field(default_factory=list)
    offset: int = field(kw_only=True, default=0)


@record
class Leaf(Node):
    """Fields of its own go behind those that it inherits, before those by keyword only."""

    text: str = ""


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((1,), {}),
        ((1, "x"), {}),
        ((1, "x", [2]), {"hidden": b"1"}),
        ((), {"a": 3, "named": 5}),
        ((), {}),
        ((1, 2, 3, 4, 5), {}),
        ((1,), {"a": 1}),
        ((1,), {"later": 2}),
        ((1,), {"other": 1}),
    ],
    ids=repr,
)
def test_it_is_made_and_shown_like_a_dataclass(frozen: bool, args: tuple, kwargs: dict):
    outcomes = []
    for cls in pair(frozen=frozen):
        for _ in range(2):  # the first call compiles
            try:
                made = cls(*args, **kwargs)
                outcomes.append((repr(made), dataclasses.asdict(made), made.double(), cls.__match_args__))
            except TypeError as error:
                outcomes.append(str(error).replace("pair.<locals>.body.<locals>.", ""))
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("how", [{}, {"frozen": True}, {"eq": False}, {"eq": False, "frozen": True}], ids=repr)
def test_it_compares_and_hashes_like_a_dataclass(how: dict):
    outcomes = []
    for cls in pair(**how):
        one, same, hidden, other = cls(1, c=()), cls(1, c=()), cls(1, c=(), hidden=b"x"), cls(2, c=())
        outcome = [one == same, one == hidden, one == other, one != other, one == (1, "b", ()), one == one]
        try:
            outcome += [hash(one) == hash(same), hash(one) == hash(one)]
        except TypeError:
            outcome.append("unhashable")
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]


def test_frozen_ones_cannot_be_changed():
    point = Point(1)
    for change in (lambda: setattr(point, "x", 2), lambda: setattr(point, "z", 2), lambda: delattr(point, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert point == Point(1) and not hasattr(point, "__dict__")


def test_fields_that_are_not_there_cannot_be_set():
    with pytest.raises(AttributeError):
        Node().text = "x"


def test_copies_and_pickles_are_equal():
    for made in (Point(1, 2), Node([Point(3)]), Leaf([1], "x", offset=4)):
        for other in (
            copy.copy(made),
            copy.deepcopy(made),
            pickle.loads(pickle.dumps(made)),
            dataclasses.replace(made),
            replace(made),
        ):
            assert other == made and other is not made
    assert dataclasses.replace(Point(1, 2), y=5) == replace(Point(1, 2), y=5) == Point(1, 5)
    with pytest.raises(TypeError):
        replace(Point(1, 2), z=5)


def test_what_is_known_of_the_fields_is_what_dataclasses_say():
    ours, theirs = pair()
    names = ("name", "type", "init", "repr", "compare", "kw_only")
    rows = [
        [[getattr(one, name) for name in names] for one in said] for said in (fields(ours), dataclasses.fields(ours))
    ]
    assert rows[0] == rows[1] == [[getattr(one, name) for name in names] for one in dataclasses.fields(theirs)]
    assert [is_record(value) for value in (ours, ours(1), theirs, 1)] == [True, True, False, False]


def test_a_default_that_all_would_share_is_refused():
    for default in ([], {}, set(), dataclasses.field(default=1)):
        with pytest.raises(TypeError, match="b: all would share"):
            record(type("Sample", (), {"__annotations__": {"b": "list"}, "b": default}))


def test_subclasses_inherit_fields():
    leaf = Leaf([1], "x", offset=3)
    assert (leaf.children, leaf.text, leaf.offset) == ([1], "x", 3)
    assert leaf != Node([1], offset=3) and Node(offset=2).offset == 2


def test_one_that_contains_itself_is_shown():
    node = Node()
    node.children.append(node)
    assert repr(node) == "Node(children=[...], offset=0)"


def test_default_values_are_made_for_each():
    assert Node().children is not Node().children


def test_patterns_match_by_place():
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_making_one_compiles_and_imports_nothing():
    """That is what it is for: a program has 150 of them, and needs the methods of few."""
    code = (
        "import sys\n"
        "from server.records import record, replace\n"
        "compiled = []\n"
        "sys.addaudithook(lambda event, args: event == 'compile' and compiled.append(args))\n"
        "class Sample:\n"
        "    a: int\n"
        "    b: int = 0\n"
        "made = record(frozen=True)(Sample)\n"
        "assert not compiled, compiled\n"
        "assert replace(made(1), b=2) == made(1, 2)\n"
        "assert len(compiled) == 1, compiled\n"
        "assert 'dataclasses' not in sys.modules and 'inspect' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)
