"""Finds the variable that each name means, by the scoping rules of jinja2, before the template runs.

Pure functions, any thread. A block such as a loop body starts with copies of the outer variables that it assigns. A
macro is a closure that sees later changes of outer variables. A variable that a block assigns before reading it is
never looked up in the context, not even by an inner block that runs before the assignment. (An `if` is no block.) Each
block is a `Scope`, each variable a `Slot` in the frame of the enclosing `Function` (the template, a macro, a recursive
loop). Not taken: dictionaries of names at run time, which are slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from . import nodes
from .nodes import Node, list_children

FRAME_HEADER = 3  # entries of a frame before its variables, see `place`


class Slot(NamedTuple):
    """A variable: entry `index` in frames of `function`."""

    function: Function
    index: int  # type: ignore[assignment]  # not the method of tuples


class Load(NamedTuple):
    """The initial value of a slot when its scope is entered: 'param' (set by loop, macro or `with`), 'context' (look up
    `name`), 'alias' (the value of the outer `slot`) or 'missing'."""

    kind: str
    name: str = ""
    slot: Slot | None = None


class Function:
    """A part of the template with frames of its own, inside the function `parent`."""

    def __init__(self, parent: Function | None = None) -> None:
        self.parent = parent
        self._indices: dict[tuple[int, str], int] = {}

    def get_slot(self, level: int, name: str) -> Slot:
        """The variable `name` of a scope at this level. Scopes of one level share it."""
        index = self._indices.setdefault((level, name), FRAME_HEADER + len(self._indices))
        return Slot(self, index)

    def make_extra_slot(self) -> Slot:
        """A variable without a name."""
        return self.get_slot(-1, str(len(self._indices)))

    def __len__(self) -> int:
        return len(self._indices)


class Scope:
    """The names of one block."""

    def __init__(self, function: Function, parent: Scope | None = None) -> None:
        self.function = function
        self.parent = parent
        self.level: int = parent.level + 1 if parent else 0
        self.slots: dict[str, Slot] = {}
        self.loads: dict[Slot, Load] = {}
        self.stores: set[str] = set()

    def find(self, name: str) -> Slot | None:
        """The variable that `name` means here; None if neither this scope nor an outer one has it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.slots:
                return scope.slots[name]
            scope = scope.parent
        return None

    def _define(self, name: str, load: Load) -> Slot:
        slot = self.function.get_slot(self.level, name)
        self.slots[name] = slot
        self.loads[slot] = load
        return slot

    def load(self, name: str) -> None:
        """`name` is read. If no scope has it, it comes from the context."""
        if self.find(name) is None:
            self._define(name, Load("context", name))

    def store(self, name: str) -> None:
        """`name` is assigned, so the scope has its own variable for it."""
        self.stores.add(name)
        if name not in self.slots:
            outer = self.parent.find(name) if self.parent else None
            self._define(name, Load("alias", slot=outer) if outer else Load("missing"))

    def declare_parameter(self, name: str) -> Slot:
        """`name` is set by the loop, macro or `with` that the scope belongs to."""
        self.stores.add(name)
        return self._define(name, Load("param"))

    def make_branch(self) -> Scope:
        """A copy of the scope, for one branch of an `if`."""
        copy = Scope(self.function, self.parent)
        copy.slots, copy.loads, copy.stores = dict(self.slots), dict(self.loads), set(self.stores)
        return copy

    def merge(self, branches: Iterable[Scope]) -> None:
        """Take over the names of the branches. A variable that a branch assigns begins with its outer value."""
        branches = list(branches)
        stores = set().union(*(branch.stores for branch in branches)) - self.stores
        for branch in branches:
            self.slots.update(branch.slots)
            self.loads.update(branch.loads)
            self.stores |= branch.stores
        for name in stores:
            outer = self.parent.find(name) if self.parent else None
            self.loads[self.slots[name]] = Load("alias", slot=outer) if outer else Load("context", name)


def analyze(scope: Scope, members: Iterable[Node]) -> None:
    """Add to `scope` the names that these nodes use, without those of inner blocks."""
    for node in members:
        _VISITORS.get(type(node), _visit_children)(scope, node)


def _visit_children(scope: Scope, node: Node) -> None:
    analyze(scope, list_children(node))


def _visit_name(scope: Scope, node: nodes.Name) -> None:
    uses: dict[str, Callable[[str], Any]] = {"load": scope.load, "store": scope.store, "param": scope.declare_parameter}
    uses[node.use](node.name)


def declare_target(scope: Scope, target: Node) -> None:
    """Add the names of a loop's target, which the loop sets for each item."""
    if isinstance(target, nodes.Name):
        scope.declare_parameter(target.name)
    for child in list_children(target):
        declare_target(scope, child)


def _visit_if(scope: Scope, node: nodes.If) -> None:
    analyze(scope, [node.test])
    branches = []
    for statements in (node.body, node.elifs, node.otherwise):
        branch = scope.make_branch()
        analyze(branch, statements)
        branches.append(branch)
    scope.merge(branches)


def _visit_call_block(scope: Scope, node: nodes.CallBlock) -> None:
    if node.call:
        analyze(scope, [node.call])


_VISITORS: dict[type, Callable[[Scope, Any], None]] = {
    nodes.Name: _visit_name,
    nodes.NamespaceRef: lambda scope, node: scope.load(node.name),
    nodes.If: _visit_if,
    nodes.Set: lambda scope, node: analyze(scope, [node.value, node.target]),
    nodes.MacroNode: lambda scope, node: scope.store(node.name),
    # nodes with an inner block: only the parts that are evaluated outside of it
    nodes.For: lambda scope, node: analyze(scope, [node.items]),
    nodes.CallBlock: _visit_call_block,
    nodes.FilterBlock: lambda scope, node: analyze(scope, [node.filter]),
    nodes.With: lambda scope, node: analyze(scope, node.values),
    nodes.SetBlock: lambda scope, node: analyze(scope, [node.target, *filter(None, [node.filter])]),
}


def find_mentioned(statements: Iterable[Node], names: Iterable[str]) -> set[str]:
    """Those of the names that these statements read before they assign them."""
    found: set[str] = set()
    open_names = set(names)

    def visit(node: Node) -> None:
        if isinstance(node, nodes.Name):
            if node.use == "load" and node.name in open_names:
                found.add(node.name)
            else:
                open_names.discard(node.name)
        for child in list_children(node):
            visit(child)

    for statement in statements:
        visit(statement)
    return found
