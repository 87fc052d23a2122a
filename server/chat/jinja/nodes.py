"""The syntax tree of a template.

Plain data; `parser` makes it, `scopes`, `evaluate` and `execute` read it. `scopes` visits the names in a node in the
order of the node's fields, so this order matters. `offset` is the position in the source. Not taken: one generic node
with a kind; type checkers couldn't tell the kinds apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.records import field, fields, record


@record
class Node:
    """Anything with a position in the source."""

    offset: int = field(kw_only=True, default=0)


# ------------------------------------------------------------------------------------------ expressions


@record
class Const(Node):
    """A literal: string, number, true, false or none."""

    value: Any


@record
class Name(Node):
    """A variable. `use` is load, store or param (a parameter of a macro or call block, or set by `with`)."""

    name: str
    use: str = "load"


@record
class NamespaceRef(Node):
    """`name.attribute` as the target of an assignment."""

    name: str
    attribute: str


@record
class TupleNode(Node):
    """`a, b` as an expression or as targets of an assignment."""

    items: list[Node]


@record
class ListNode(Node):
    """`[a, b]`."""

    items: list[Node]


@record
class DictNode(Node):
    """`{key: value}`."""

    keys: list[Node]
    values: list[Node]


@record
class Attribute(Node):
    """`owner.name`."""

    owner: Node
    name: str


@record
class Item(Node):
    """`owner[key]`."""

    owner: Node
    key: Node


@record
class Slice(Node):
    """`start:stop:step` inside brackets."""

    start: Node | None
    stop: Node | None
    step: Node | None


@record
class Arguments(Node):
    positional: list[Node] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[Node] = field(default_factory=list)
    star: Node | None = None
    double_star: Node | None = None


@record
class Call(Node):
    """`callee(arguments)`."""

    callee: Node
    arguments: Arguments


@record
class Filter(Node):
    """`value | name(arguments)`. Without a value, the filter applies to the text of its block."""

    value: Node | None
    name: str
    arguments: Arguments


@record
class Test(Node):
    """`value is name(arguments)`."""

    value: Node
    name: str
    arguments: Arguments


@record
class Unary(Node):
    """`-value` or `+value`."""

    operator: str
    value: Node


@record
class Not(Node):
    """`not value`."""

    value: Node


@record
class Arithmetic(Node):
    """`first (operator value)...`, from left to right. A list keeps long sums from nesting deeply."""

    first: Node
    operators: list[str]
    values: list[Node]


@record
class Logic(Node):
    """`a and b and c`, or the same with `or`."""

    operator: str
    values: list[Node]


@record
class Concat(Node):
    """`a ~ b ~ c`."""

    values: list[Node]


@record
class Compare(Node):
    """`first (operator value)...`, a chain of comparisons as in Python."""

    first: Node
    operators: list[str]
    values: list[Node]


@record
class Conditional(Node):
    """`yes if test else no`."""

    test: Node
    yes: Node
    no: Node | None


# ------------------------------------------------------------------------------------------ statements


@record
class Data(Node):
    """Text of the template itself, inside an `Output`."""

    text: str


@record
class Output(Node):
    """Consecutive text and `{{ expressions }}`."""

    parts: list[Node]


@record
class For(Node):
    """`{% for target in items if test recursive %} body {% else %} otherwise {% endfor %}`."""

    target: Node
    items: Node
    body: list[Node]
    otherwise: list[Node]
    test: Node | None
    recursive: bool


@record
class If(Node):
    """`{% if %}` with its `elif`s, which are `If`s without further branches."""

    test: Node
    body: list[Node]
    elifs: list[If]
    otherwise: list[Node]


@record
class Set(Node):
    """`{% set target = value %}`."""

    target: Node
    value: Node


@record
class SetBlock(Node):
    """`{% set target | filter %} body {% endset %}`."""

    target: Node
    filter: Filter | None
    body: list[Node]


@record
class MacroNode(Node):
    """`{% macro name(parameters) %}`. The defaults belong to the last parameters."""

    name: str
    parameters: list[Name]
    defaults: list[Node]
    body: list[Node]


@record
class CallBlock(Node):
    """`{% call(parameters) call %} body {% endcall %}`, or `{% generation %}` if `call` is None."""

    call: Call | None
    parameters: list[Name]
    defaults: list[Node]
    body: list[Node]


@record
class FilterBlock(Node):
    """`{% filter name %} body {% endfilter %}`."""

    filter: Filter
    body: list[Node]


@record
class With(Node):
    """`{% with target = value, ... %} body {% endwith %}`."""

    targets: list[Node]
    values: list[Node]
    body: list[Node]


@record
class Do(Node):
    """`{% do expression %}`."""

    value: Node


@record
class Jump(Node):
    """`{% break %}` or `{% continue %}`."""

    kind: str


def list_children(node: Node) -> Iterator[Node]:
    """The direct children of a node, in the order of its fields."""
    for attribute in fields(node):
        value = getattr(node, attribute.name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Node):
                    yield item


def walk(nodes: list[Node]) -> Iterator[Node]:
    """All nodes of these trees, each before its children."""
    for node in nodes:
        yield node
        yield from walk(list(list_children(node)))
