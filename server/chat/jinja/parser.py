"""Parses statements: from tokens to the syntax tree.

Pure functions, any thread. It is a recursive-descent parser; `expressions` parses expressions. Tags of jinja2 that need
other templates or escaping (`include`, `import`, `extends`, `block`, `autoescape`) are refused by name. Not taken: a
parser generator for this small grammar.
"""

from __future__ import annotations

from collections.abc import Callable

from . import nodes
from .expressions import ExpressionParser
from .lexer import DATA, END, NAME, PRINT, PRINT_END, TAG, TAG_END, Source
from .nodes import Node

ABSENT_TAGS = ("include", "import", "from", "extends", "block", "autoescape")


def parse(source: Source, extras: bool) -> list[Node]:
    """The statements of a template. `extras` allows tags that transformers doesn't have (`do`)."""
    try:
        return _Parser(source, extras).parse_body(())
    except RecursionError:
        raise source.make_error("the template is nested too deeply", 0) from None


class _Parser(ExpressionParser):
    def __init__(self, source: Source, extras: bool) -> None:
        super().__init__(source)
        self._open_tags: list[str] = []  # for messages about a missing end tag
        self._tags: dict[str, Callable[[int], Node]] = {
            "for": self._tag_for,
            "if": self._tag_if,
            "set": self._tag_set,
            "macro": self._tag_macro,
            "call": self._tag_call,
            "filter": self._tag_filter_block,
            "with": self._tag_with,
            "print": self._tag_print,
            "generation": self._tag_generation,
            "break": lambda offset: nodes.Jump("break", offset=offset),
            "continue": lambda offset: nodes.Jump("continue", offset=offset),
        }
        if extras:
            self._tags["do"] = lambda offset: nodes.Do(self.parse_tuple_or_expression(), offset=offset)

    def parse_body(self, ends: tuple[str, ...]) -> list[Node]:
        """Parse statements up to one of the end tags, whose name is then the current token; without `ends`, up to the
        end of the template."""
        statements: list[Node] = []
        output = nodes.Output([], offset=self.stream.current.offset)
        while not self.stream.is_at(END):
            token = self.stream.next()
            if token.type == DATA:
                output.parts.append(nodes.Data(token.value, offset=token.offset))
            elif token.type == PRINT:
                output.parts.append(self.parse_tuple_or_expression())
                self.stream.expect(PRINT_END)
            elif token.type == TAG:
                if output.parts:
                    statements.append(output)
                if ends and self.stream.is_at_word(*ends):
                    return statements
                statements.append(self._parse_statement(ends))
                self.stream.expect(TAG_END)
                output = nodes.Output([], offset=self.stream.current.offset)
        if ends:
            self.stream.fail(f"unexpected end of template: {self._describe_ends(ends)}")
        if output.parts:
            statements.append(output)
        return statements

    def _describe_ends(self, ends: tuple[str, ...]) -> str:
        names = " or ".join(repr(end) for end in ends)
        return f"looking for {names} of the block {self._open_tags[-1]!r}"

    def _parse_statement(self, ends: tuple[str, ...]) -> Node:
        token = self.stream.current
        if token.type != NAME:
            self.stream.fail("tag name expected")
        name = str(token.value)
        parse_tag = self._tags.get(name)
        if parse_tag is None:
            reason = "isn't available in chat templates" if name in ABSENT_TAGS else "is unknown"
            self.stream.fail(f"the tag {name!r} {reason}" + (f"; {self._describe_ends(ends)}" if ends else ""))
        self.stream.next()
        self._open_tags.append(name)
        statement = parse_tag(token.offset)
        self._open_tags.pop()
        return statement

    def _parse_block(self, *ends: str) -> list[Node]:
        self.stream.skip(":")
        self.stream.expect(TAG_END)
        return self.parse_body(ends)

    def _parse_last_block(self, end: str) -> list[Node]:
        statements = self._parse_block(end)
        self.stream.next()
        return statements

    # the tags; each function gets the name's offset, after the name has been read

    def _tag_for(self, offset: int) -> Node:
        target = self.parse_target(until="in")
        self.stream.expect_word("in")
        items = self.parse_tuple_or_expression(conditional=False, until="recursive")
        test = self.parse_expression() if self.stream.skip_word("if") else None
        recursive = self.stream.skip_word("recursive")
        body = self._parse_block("endfor", "else")
        otherwise = self._parse_last_block("endfor") if self.stream.next().value == "else" else []
        return nodes.For(target, items, body, otherwise, test, recursive, offset=offset)

    def _tag_if(self, offset: int) -> Node:
        result = branch = nodes.If(self.parse_tuple_or_expression(conditional=False), [], [], [], offset=offset)
        while True:
            branch.body = self._parse_block("elif", "else", "endif")
            token = self.stream.next()
            if token.value == "elif":
                test = self.parse_tuple_or_expression(conditional=False)
                branch = nodes.If(test, [], [], [], offset=token.offset)
                result.elifs.append(branch)
                continue
            if token.value == "else":
                result.otherwise = self._parse_last_block("endif")
            return result

    def _tag_set(self, offset: int) -> Node:
        target = self.parse_target(namespaces=True)
        if self.stream.skip("="):
            return nodes.Set(target, self.parse_tuple_or_expression(), offset=offset)
        filter_ = self.parse_filters(None) if self.stream.is_at("|") else None
        return nodes.SetBlock(target, filter_, self._parse_last_block("endset"), offset=offset)

    def _tag_macro(self, offset: int) -> Node:
        name = str(self.stream.expect(NAME).value)
        if name in self.CONSTANTS:
            self.stream.fail(f"can't assign to {name!r}", offset)
        parameters, defaults = self._parse_signature()
        return nodes.MacroNode(name, parameters, defaults, self._parse_last_block("endmacro"), offset=offset)

    def _parse_signature(self) -> tuple[list[nodes.Name], list[Node]]:
        parameters: list[nodes.Name] = []
        defaults: list[Node] = []
        self.stream.expect("(")
        while not self.stream.is_at(")"):
            if parameters:
                self.stream.expect(",")
            token = self.stream.expect(NAME)
            name = str(token.value)
            if name in self.CONSTANTS or any(name == other.name for other in parameters):
                self.stream.fail(f"{name!r} can't be a parameter here", token.offset)
            if self.stream.skip("="):
                defaults.append(self.parse_expression())
            elif defaults:
                self.stream.fail("non-default argument follows default argument")
            parameters.append(nodes.Name(name, "param", offset=token.offset))
        self.stream.expect(")")
        return parameters, defaults

    def _tag_call(self, offset: int) -> Node:
        parameters, defaults = self._parse_signature() if self.stream.is_at("(") else ([], [])
        call = self.parse_expression()
        if not isinstance(call, nodes.Call):
            self.stream.fail("expected a call", offset)
        return nodes.CallBlock(call, parameters, defaults, self._parse_last_block("endcall"), offset=offset)

    def _tag_generation(self, offset: int) -> Node:
        return nodes.CallBlock(None, [], [], self._parse_last_block("endgeneration"), offset=offset)

    def _tag_filter_block(self, offset: int) -> Node:
        filter_ = self.parse_filters(None, inline=True)
        return nodes.FilterBlock(filter_, self._parse_last_block("endfilter"), offset=offset)

    def _tag_with(self, offset: int) -> Node:
        targets: list[Node] = []
        values: list[Node] = []
        while not self.stream.is_at(TAG_END):
            if targets:
                self.stream.expect(",")
            targets.append(self.parse_target(use="param"))
            self.stream.expect("=")
            values.append(self.parse_expression())
        return nodes.With(targets, values, self._parse_last_block("endwith"), offset=offset)

    def _tag_print(self, offset: int) -> Node:
        parts: list[Node] = []
        while not self.stream.is_at(TAG_END):
            if parts:
                self.stream.expect(",")
            parts.append(self.parse_expression())
        return nodes.Output(parts, offset=offset)
