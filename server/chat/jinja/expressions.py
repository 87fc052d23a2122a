"""Parses expressions: from tokens to the syntax tree.

Pure functions, any thread; the base of `parser`. There is one method per level of precedence, from the loosest to the
tightest binding. The order is jinja2's: `~` binds tighter than `+`, and a filter tighter than all operators except
signs (`-x|abs` negates first). Not taken: a table of precedences; `is`, filters and signs would be special cases.
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

    def parse_tuple_or_expression(
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
        while not (self.stream.is_at(PRINT_END, TAG_END, ")") or (until and self.stream.is_at_word(until))):
            items.append(self._parse_primary(namespaces) if simple else self.parse_expression(conditional))
            comma = self.stream.is_at(",")
            if not comma:
                break
            self.stream.next()
        if len(items) == 1 and not comma:
            return items[0]
        if not items and not empty:
            self.stream.fail(f"expected an expression, got {describe(self.stream.current)}")
        return nodes.TupleNode(items, offset=offset)

    def parse_target(self, use: str = "store", until: str | None = None, namespaces: bool = False) -> Node:
        """Parse the target of an assignment: a name, a tuple of targets, or with `namespaces` `name.attribute`."""
        offset = self.stream.current.offset
        target = self.parse_tuple_or_expression(simple=True, until=until, namespaces=namespaces)
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

    def parse_expression(self, conditional: bool = True) -> Node:
        return self._parse_conditional() if conditional else self._parse_or()

    def _parse_conditional(self) -> Node:
        offset = self.stream.current.offset
        value = self._parse_or()
        while self.stream.skip_word("if"):
            test = self._parse_or()
            otherwise = self._parse_conditional() if self.stream.skip_word("else") else None
            value = nodes.Conditional(test, value, otherwise, offset=offset)
        return value

    def _parse_or(self) -> Node:
        offset = self.stream.current.offset
        values = [self._parse_and()]
        while self.stream.skip_word("or"):
            values.append(self._parse_and())
        return values[0] if len(values) == 1 else nodes.Logic("or", values, offset=offset)

    def _parse_and(self) -> Node:
        offset = self.stream.current.offset
        values = [self._parse_not()]
        while self.stream.skip_word("and"):
            values.append(self._parse_not())
        return values[0] if len(values) == 1 else nodes.Logic("and", values, offset=offset)

    def _parse_not(self) -> Node:
        offset = self.stream.current.offset
        if self.stream.skip_word("not"):
            return nodes.Not(self._parse_not(), offset=offset)
        return self._compare()

    def _compare(self) -> Node:
        offset = self.stream.current.offset
        first = self._sum()
        operators: list[str] = []
        values: list[Node] = []
        while True:
            if self.stream.is_at(*COMPARISONS):
                operators.append(self.stream.next().type)
            elif self.stream.skip_word("in"):
                operators.append("in")
            elif self.stream.is_at_word("not") and self.stream.peek()[:2] == (NAME, "in"):
                self.stream.next()
                self.stream.next()
                operators.append("not in")
            else:
                break
            values.append(self._sum())
        return nodes.Compare(first, operators, values, offset=offset) if operators else first

    def _sum(self) -> Node:
        return self._parse_chain(self._concat, "+", "-")

    def _concat(self) -> Node:
        offset = self.stream.current.offset
        values = [self._parse_product()]
        while self.stream.skip("~"):
            values.append(self._parse_product())
        return values[0] if len(values) == 1 else nodes.Concat(values, offset=offset)

    def _parse_product(self) -> Node:
        return self._parse_chain(self._power, "*", "/", "//", "%")

    def _power(self) -> Node:
        return self._parse_chain(self._parse_unary, "**")

    def _parse_chain(self, operand: Callable[[], Node], *symbols: str) -> Node:
        offset = self.stream.current.offset
        first = operand()
        operators: list[str] = []
        values: list[Node] = []
        while self.stream.is_at(*symbols):
            operators.append(self.stream.next().type)
            values.append(operand())
        return nodes.Arithmetic(first, operators, values, offset=offset) if operators else first

    def _parse_unary(self, filters: bool = True) -> Node:
        token = self.stream.current
        if token.type in ("-", "+"):
            self.stream.next()
            node: Node = nodes.Unary(token.type, self._parse_unary(filters=False), offset=token.offset)
        else:
            node = self._parse_primary()
        node = self._parse_postfix(node)
        return self._parse_filters_and_tests(node) if filters else node

    def _parse_primary(self, namespaces: bool = False) -> Node:
        token = self.stream.current
        if token.type == NAME:
            return self._parse_name(namespaces)
        if token.type == STRING:
            texts = []
            while self.stream.is_at(STRING):  # adjacent strings are one
                texts.append(str(self.stream.next().value))
            return nodes.Const("".join(texts), offset=token.offset)
        if token.type in (INTEGER, FLOAT):
            return nodes.Const(self.stream.next().value, offset=token.offset)
        if self.stream.skip("("):
            node = self.parse_tuple_or_expression(empty=True)
            self.stream.expect(")")
            return node
        if self.stream.skip("["):
            return nodes.ListNode(self._parse_items("]", self.parse_expression), offset=token.offset)
        if self.stream.skip("{"):
            pairs = self._parse_items("}", self._parse_pair)
            keys, values = [key for key, _ in pairs], [value for _, value in pairs]
            return nodes.DictNode(keys, values, offset=token.offset)
        self.stream.fail(f"unexpected {describe(token)}")

    def _parse_name(self, namespaces: bool) -> Node:
        token = self.stream.next()
        name = str(token.value)
        if name in self.CONSTANTS:
            return nodes.Const(self.CONSTANTS[name], offset=token.offset)
        if namespaces and self.stream.skip("."):
            return nodes.NamespaceRef(name, str(self.stream.expect(NAME).value), offset=token.offset)
        return nodes.Name(name, offset=token.offset)

    def _parse_items(self, end: str, item: Callable[[], Any]) -> list[Any]:
        """Parse the members of a literal; a comma may follow the last one."""
        items: list[Any] = []
        while not self.stream.is_at(end):
            if items:
                self.stream.expect(",")
                if self.stream.is_at(end):
                    break
            items.append(item())
        self.stream.expect(end)
        return items

    def _parse_pair(self) -> tuple[Node, Node]:
        key = self.parse_expression()
        self.stream.expect(":")
        return key, self.parse_expression()

    def _parse_postfix(self, node: Node) -> Node:
        while True:
            if self.stream.is_at(".", "["):
                node = self._parse_subscript(node)
            elif self.stream.is_at("("):
                node = self._call(node)
            else:
                return node

    def _parse_filters_and_tests(self, node: Node) -> Node:
        while True:
            if self.stream.is_at("|"):
                node = self.parse_filters(node)
            elif self.stream.is_at_word("is"):
                node = self._test(node)
            elif self.stream.is_at("("):
                node = self._call(node)
            else:
                return node

    def _parse_subscript(self, owner: Node) -> Node:
        token = self.stream.next()
        if token.type == ".":
            name = self.stream.next()
            if name.type == NAME:
                return nodes.Attribute(owner, str(name.value), offset=token.offset)
            if name.type != INTEGER:
                self.stream.fail("expected name or number", name.offset)
            return nodes.Item(owner, nodes.Const(name.value, offset=name.offset), offset=token.offset)
        keys: list[Node] = []
        while not self.stream.is_at("]"):
            if keys:
                self.stream.expect(",")
            keys.append(self._parse_key())
        self.stream.expect("]")
        if len(keys) == 1:
            return nodes.Item(owner, keys[0], offset=token.offset)
        if any(isinstance(key, nodes.Slice) for key in keys):
            self.stream.fail("a slice can't be one of several indices", token.offset)
        return nodes.Item(owner, nodes.TupleNode(keys, offset=token.offset), offset=token.offset)

    def _parse_key(self) -> Node:
        offset = self.stream.current.offset
        start = None if self.stream.is_at(":") else self.parse_expression()
        if not self.stream.is_at(":"):
            return start  # type: ignore[return-value]
        bounds: list[Node | None] = []
        while len(bounds) < 2 and self.stream.skip(":"):
            bounds.append(None if self.stream.is_at("]", ",", ":") else self.parse_expression())
        return nodes.Slice(start, bounds[0], bounds[1] if len(bounds) > 1 else None, offset=offset)

    def _call(self, callee: Node) -> nodes.Call:
        offset = self.stream.current.offset
        return nodes.Call(callee, self._parse_arguments(), offset=offset)

    def _parse_arguments(self) -> nodes.Arguments:
        start = self.stream.expect("(")
        result = nodes.Arguments(offset=start.offset)
        first = True
        while not self.stream.is_at(")"):
            if not first:
                self.stream.expect(",")
                if self.stream.is_at(")"):
                    break
            first = False
            if not self._parse_argument(result):
                self.stream.fail("invalid order of arguments in a call")
        self.stream.expect(")")
        return result

    def _parse_argument(self, result: nodes.Arguments) -> bool:
        """Parse one argument. False if it isn't allowed at this position."""
        if self.stream.skip("*"):
            allowed = result.star is None and result.double_star is None
            result.star = self.parse_expression()
        elif self.stream.skip("**"):
            allowed = result.double_star is None
            result.double_star = self.parse_expression()
        elif self.stream.is_at(NAME) and self.stream.peek().type == "=":
            name = str(self.stream.next().value)
            allowed = result.double_star is None and name not in result.names
            self.stream.next()
            result.names.append(name)
            result.values.append(self.parse_expression())
        else:
            allowed = result.star is None and result.double_star is None and not result.names
            result.positional.append(self.parse_expression())
        return allowed

    def parse_filters(self, value: Node | None, inline: bool = False) -> nodes.Filter:
        """Parse one or more filters. `inline`: the first one has no `|` before it."""
        while inline or self.stream.skip("|"):
            inline = False
            offset = self.stream.current.offset
            name = self._parse_dotted_name()
            arguments = self._parse_arguments() if self.stream.is_at("(") else nodes.Arguments(offset=offset)
            value = nodes.Filter(value, name, arguments, offset=offset)
        return value  # type: ignore[return-value]

    def _parse_dotted_name(self) -> str:
        name = str(self.stream.expect(NAME).value)
        while self.stream.skip("."):
            name += f".{self.stream.expect(NAME).value}"
        return name

    def _test(self, value: Node) -> Node:
        offset = self.stream.next().offset
        negated = self.stream.skip_word("not")
        name = self._parse_dotted_name()
        arguments = nodes.Arguments(offset=offset)
        if self.stream.is_at("("):
            arguments = self._parse_arguments()
        elif self.stream.is_at(NAME, STRING, INTEGER, FLOAT, "[", "{") and not self.stream.is_at_word(
            "else", "or", "and"
        ):
            if self.stream.is_at_word("is"):
                self.stream.fail("tests can't be chained with 'is'")
            arguments.positional.append(self._parse_postfix(self._parse_primary()))
        test = nodes.Test(value, name, arguments, offset=offset)
        return nodes.Not(test, offset=offset) if negated else test
