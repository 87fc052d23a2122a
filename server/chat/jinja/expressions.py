"""Parses expressions: from tokens to the syntax tree.

Pure functions, any thread; the base of `parser`. There is one method per level of precedence, from the loosest to the
tightest binding, in jinja2's order: `~` binds tighter than `+`, a filter binds tighter than all operators except signs
and attribute access (`-x|abs` negates first). Not taken: a table of precedences, since the irregular levels (`is`,
filters, signs) would need many special cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import nodes
from .lexer import FLOAT, INTEGER, NAME, PRINT_END, STRING, TAG_END, Source
from .nodes import Node
from .stream import TokenStream, describe

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


class ExpressionParser:
    CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "none": None, "None": None}

    def __init__(self, source: Source) -> None:
        self.stream = TokenStream(source)

    def tuple_or_expression(
        self,
        conditional: bool = True,
        until: str | None = None,
        empty: bool = False,
        simple: bool = False,
        namespaces: bool = False,
    ) -> Node:
        """Parse an expression, or several with commas as a tuple.

        `conditional`: an inline `if` is allowed. `until`: a word that ends the tuple. `empty`: an empty tuple is
        allowed. `simple`: only names and literals, for targets; `namespaces`: also `name.attribute`.
        """
        offset = self.stream.current.offset
        items: list[Node] = []
        comma = False
        while not (self.stream.at(PRINT_END, TAG_END, ")") or (until and self.stream.at_word(until))):
            items.append(self._primary(namespaces) if simple else self.expression(conditional))
            comma = self.stream.at(",")
            if not comma:
                break
            self.stream.next()
        if len(items) == 1 and not comma:
            return items[0]
        if not items and not empty:
            self.stream.fail(f"expected an expression, got {describe(self.stream.current)}")
        return nodes.TupleNode(items, offset=offset)

    def target(self, use: str = "store", until: str | None = None, namespaces: bool = False) -> Node:
        """Parse the target of an assignment: a name, a tuple of names, or an attribute of a namespace."""
        offset = self.stream.current.offset
        target = self.tuple_or_expression(simple=True, until=until, namespaces=namespaces)
        if not self._make_target(target, use):
            self.stream.fail("can't assign to this", offset)
        return target

    def _make_target(self, node: Node, use: str) -> bool:
        if isinstance(node, nodes.TupleNode):
            return all([self._make_target(item, use) for item in node.items])
        if isinstance(node, nodes.Name):
            node.use = use
            return True
        return isinstance(node, nodes.NamespaceRef)

    def expression(self, conditional: bool = True) -> Node:
        return self._conditional() if conditional else self._or()

    def _conditional(self) -> Node:
        offset = self.stream.current.offset
        value = self._or()
        while self.stream.skip_word("if"):
            test = self._or()
            otherwise = self._conditional() if self.stream.skip_word("else") else None
            value = nodes.Conditional(test, value, otherwise, offset=offset)
        return value

    def _or(self) -> Node:
        offset = self.stream.current.offset
        values = [self._and()]
        while self.stream.skip_word("or"):
            values.append(self._and())
        return values[0] if len(values) == 1 else nodes.Logic("or", values, offset=offset)

    def _and(self) -> Node:
        offset = self.stream.current.offset
        values = [self._not()]
        while self.stream.skip_word("and"):
            values.append(self._not())
        return values[0] if len(values) == 1 else nodes.Logic("and", values, offset=offset)

    def _not(self) -> Node:
        offset = self.stream.current.offset
        if self.stream.skip_word("not"):
            return nodes.Not(self._not(), offset=offset)
        return self._compare()

    def _compare(self) -> Node:
        offset = self.stream.current.offset
        first = self._sum()
        operators: list[str] = []
        values: list[Node] = []
        while True:
            if self.stream.at(*COMPARISONS):
                operators.append(self.stream.next().type)
            elif self.stream.skip_word("in"):
                operators.append("in")
            elif self.stream.at_word("not") and self.stream.peek()[:2] == (NAME, "in"):
                self.stream.next()
                self.stream.next()
                operators.append("not in")
            else:
                break
            values.append(self._sum())
        return nodes.Compare(first, operators, values, offset=offset) if operators else first

    def _sum(self) -> Node:
        return self._chain(self._concat, "+", "-")

    def _concat(self) -> Node:
        offset = self.stream.current.offset
        values = [self._product()]
        while self.stream.skip("~"):
            values.append(self._product())
        return values[0] if len(values) == 1 else nodes.Concat(values, offset=offset)

    def _product(self) -> Node:
        return self._chain(self._power, "*", "/", "//", "%")

    def _power(self) -> Node:
        return self._chain(self._unary, "**")

    def _chain(self, operand: Callable[[], Node], *symbols: str) -> Node:
        offset = self.stream.current.offset
        first = operand()
        operators: list[str] = []
        values: list[Node] = []
        while self.stream.at(*symbols):
            operators.append(self.stream.next().type)
            values.append(operand())
        return nodes.Arithmetic(first, operators, values, offset=offset) if operators else first

    def _unary(self, filters: bool = True) -> Node:
        token = self.stream.current
        if token.type in ("-", "+"):
            self.stream.next()
            node: Node = nodes.Unary(token.type, self._unary(filters=False), offset=token.offset)
        else:
            node = self._primary()
        node = self._postfix(node)
        return self._filters_and_tests(node) if filters else node

    def _primary(self, namespaces: bool = False) -> Node:
        token = self.stream.current
        if token.type == NAME:
            return self._name(namespaces)
        if token.type == STRING:
            texts = []
            while self.stream.at(STRING):  # adjacent strings are one
                texts.append(str(self.stream.next().value))
            return nodes.Const("".join(texts), offset=token.offset)
        if token.type in (INTEGER, FLOAT):
            return nodes.Const(self.stream.next().value, offset=token.offset)
        if self.stream.skip("("):
            node = self.tuple_or_expression(empty=True)
            self.stream.expect(")")
            return node
        if self.stream.skip("["):
            return nodes.ListNode(self._items("]", self.expression), offset=token.offset)
        if self.stream.skip("{"):
            pairs = self._items("}", self._pair)
            keys, values = [key for key, _ in pairs], [value for _, value in pairs]
            return nodes.DictNode(keys, values, offset=token.offset)
        self.stream.fail(f"unexpected {describe(token)}")

    def _name(self, namespaces: bool) -> Node:
        token = self.stream.next()
        name = str(token.value)
        if name in self.CONSTANTS:
            return nodes.Const(self.CONSTANTS[name], offset=token.offset)
        if namespaces and self.stream.skip("."):
            return nodes.NamespaceRef(name, str(self.stream.expect(NAME).value), offset=token.offset)
        return nodes.Name(name, offset=token.offset)

    def _items(self, end: str, item: Callable[[], Any]) -> list[Any]:
        """Parse the members of a literal; a comma may follow the last one."""
        items: list[Any] = []
        while not self.stream.at(end):
            if items:
                self.stream.expect(",")
                if self.stream.at(end):
                    break
            items.append(item())
        self.stream.expect(end)
        return items

    def _pair(self) -> tuple[Node, Node]:
        key = self.expression()
        self.stream.expect(":")
        return key, self.expression()

    def _postfix(self, node: Node) -> Node:
        while True:
            if self.stream.at(".", "["):
                node = self._subscript(node)
            elif self.stream.at("("):
                node = self._call(node)
            else:
                return node

    def _filters_and_tests(self, node: Node) -> Node:
        while True:
            if self.stream.at("|"):
                node = self.filters(node)
            elif self.stream.at_word("is"):
                node = self._test(node)
            elif self.stream.at("("):
                node = self._call(node)
            else:
                return node

    def _subscript(self, owner: Node) -> Node:
        token = self.stream.next()
        if token.type == ".":
            name = self.stream.next()
            if name.type == NAME:
                return nodes.Attribute(owner, str(name.value), offset=token.offset)
            if name.type != INTEGER:
                self.stream.fail("expected name or number", name.offset)
            return nodes.Item(owner, nodes.Const(name.value, offset=name.offset), offset=token.offset)
        keys: list[Node] = []
        while not self.stream.at("]"):
            if keys:
                self.stream.expect(",")
            keys.append(self._key())
        self.stream.expect("]")
        if len(keys) == 1:
            return nodes.Item(owner, keys[0], offset=token.offset)
        if any(isinstance(key, nodes.Slice) for key in keys):
            self.stream.fail("a slice can't be one of several indices", token.offset)
        return nodes.Item(owner, nodes.TupleNode(keys, offset=token.offset), offset=token.offset)

    def _key(self) -> Node:
        offset = self.stream.current.offset
        start = None if self.stream.at(":") else self.expression()
        if not self.stream.at(":"):
            return start  # type: ignore[return-value]
        bounds: list[Node | None] = []
        while len(bounds) < 2 and self.stream.skip(":"):
            bounds.append(None if self.stream.at("]", ",", ":") else self.expression())
        return nodes.Slice(start, bounds[0], bounds[1] if len(bounds) > 1 else None, offset=offset)

    def _call(self, callee: Node) -> nodes.Call:
        offset = self.stream.current.offset
        return nodes.Call(callee, self._arguments(), offset=offset)

    def _arguments(self) -> nodes.Arguments:
        start = self.stream.expect("(")
        result = nodes.Arguments(offset=start.offset)
        first = True
        while not self.stream.at(")"):
            if not first:
                self.stream.expect(",")
                if self.stream.at(")"):
                    break
            first = False
            if not self._argument(result):
                self.stream.fail("invalid order of arguments in a call")
        self.stream.expect(")")
        return result

    def _argument(self, result: nodes.Arguments) -> bool:
        """Parse one argument. False if it isn't allowed at this position."""
        if self.stream.skip("*"):
            allowed = result.star is None and result.double_star is None
            result.star = self.expression()
        elif self.stream.skip("**"):
            allowed = result.double_star is None
            result.double_star = self.expression()
        elif self.stream.at(NAME) and self.stream.peek().type == "=":
            name = str(self.stream.next().value)
            allowed = result.double_star is None and name not in result.names
            self.stream.next()
            result.names.append(name)
            result.values.append(self.expression())
        else:
            allowed = result.star is None and result.double_star is None and not result.names
            result.positional.append(self.expression())
        return allowed

    def filters(self, value: Node | None, inline: bool = False) -> nodes.Filter:
        """Parse one or more filters. `inline`: the first one has no `|` before it."""
        while inline or self.stream.skip("|"):
            inline = False
            offset = self.stream.current.offset
            name = self._dotted_name()
            arguments = self._arguments() if self.stream.at("(") else nodes.Arguments(offset=offset)
            value = nodes.Filter(value, name, arguments, offset=offset)
        return value  # type: ignore[return-value]

    def _dotted_name(self) -> str:
        name = str(self.stream.expect(NAME).value)
        while self.stream.skip("."):
            name += f".{self.stream.expect(NAME).value}"
        return name

    def _test(self, value: Node) -> Node:
        offset = self.stream.next().offset
        negated = self.stream.skip_word("not")
        name = self._dotted_name()
        arguments = nodes.Arguments(offset=offset)
        if self.stream.at("("):
            arguments = self._arguments()
        elif self.stream.at(NAME, STRING, INTEGER, FLOAT, "[", "{") and not self.stream.at_word("else", "or", "and"):
            if self.stream.at_word("is"):
                self.stream.fail("tests can't be chained with 'is'")
            arguments.positional.append(self._postfix(self._primary()))
        test = nodes.Test(value, name, arguments, offset=offset)
        return nodes.Not(test, offset=offset) if negated else test
