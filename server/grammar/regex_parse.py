"""Parses regular expressions into a small tree: mostly the syntax that ECMA-262 and Python's `re` share.

Pure functions on connection threads; imports only the standard library and `automaton`. Where the two syntaxes differ,
`\\d`, `\\w`, `\\s`, `\\S` and `.` have the narrower meaning, so that their text matches in both; `\\D`, `\\W` and
negated classes don't. Not taken: Python's `re._parser`, which is private and knows only Python's syntax.

Nodes are tuples: ("set", charset), ("cat", [nodes]), ("alt", [nodes]), ("rep", node, least, most or None), ("start",),
("end",), ("look", is_negative, node). `regex_gbnf` adds ("dfa", automaton).
"""

from __future__ import annotations

import re

from server.grammar.automaton import ANY, Charset, collect_characters, complement, make_charset, without

Node = tuple

PATTERN_MAX = 20_000  # characters
_DEPTH_MAX = 50  # nested groups

_DIGITS = make_charset((0x30, 0x39))
_WORD = make_charset((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = make_charset(
    (9, 13),
    (0x20, 0x20),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
DOT = complement(make_charset((10, 10), (13, 13), (0x2028, 0x2029)))
# Characters that are white space in only one of the two languages: neither \s nor \S contains them.
_DISPUTED = make_charset((0x1C, 0x1F), (0x85, 0x85), (0xFEFF, 0xFEFF))

_CLASS_ESCAPES = {
    "d": _DIGITS,
    "D": complement(_DIGITS),
    "w": _WORD,
    "W": complement(_WORD),
    "s": without(_SPACE, _DISPUTED),
    "S": without(complement(_SPACE), _DISPUTED),
}
# A class that contains all of these, such as [\s\S], means any character.
_AGREED = make_charset(*_CLASS_ESCAPES["s"], *_CLASS_ESCAPES["S"])
_CONTROL_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0", "a": "\a"}
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}|U([0-9A-Fa-f]{8})")
_LOW_SURROGATE = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})")
_COUNTS = re.compile(r"\{([0-9]+)(,?)([0-9]*)\}")
_GROUP = re.compile(r"\(\?(?::|P?<[A-Za-z_]\w*>)")
_QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_UNSUPPORTED_ESCAPES = {
    "b": "word boundaries",
    "B": "word boundaries",
    "p": "Unicode properties",
    "P": "Unicode properties",
    "k": "back references",
    "G": "\\G",
    "K": "\\K",
    "R": "\\R",
    "X": "\\X",
    "N": "\\N",
    "c": "control escapes",
}


class Unsupported(Exception):
    """A pattern that can't be converted: `message` and `position` in the pattern (from 0)."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(f"{message} (at position {position} of the pattern)")
        self.message = message
        self.position = position


def parse(pattern: str) -> Node:
    """The tree of a pattern. Raises `Unsupported`, for syntax errors too."""
    if len(pattern) > PATTERN_MAX:
        raise Unsupported(f"the pattern is longer than {PATTERN_MAX} characters", PATTERN_MAX)
    parser = _Parser(pattern)
    node = parser.parse_alternatives(0)
    if parser.position < len(pattern):
        raise Unsupported("')' without '('", parser.position)
    return node


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0

    def peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def parse_alternatives(self, depth: int) -> Node:
        if depth > _DEPTH_MAX:
            raise Unsupported(f"groups are nested deeper than {_DEPTH_MAX}", self.position)
        branches = [self.parse_sequence(depth)]
        while self.peek() == "|":
            self.position += 1
            branches.append(self.parse_sequence(depth))
        return branches[0] if len(branches) == 1 else ("alt", branches)

    def parse_sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            start = self.position
            items.append(self.parse_quantified(self.parse_atom(depth), start))
        return items[0] if len(items) == 1 else ("cat", items)

    def parse_quantified(self, node: Node, start: int) -> Node:
        """The node with its quantifier. Lazy ones give the same node as greedy ones."""
        where = self.position
        counts = self.parse_quantifier()
        if counts is None:
            return node
        if node[0] in ("start", "end", "look"):
            raise Unsupported("an assertion can't be repeated", start)
        if self.peek() == "?":
            self.position += 1
        elif self.peek() == "+":
            raise Unsupported("possessive quantifiers are not supported", self.position)
        if self.parse_quantifier() is not None:
            raise Unsupported("two quantifiers in a row", where)
        return ("rep", node, *counts)

    def parse_quantifier(self) -> tuple[int, int | None] | None:
        char = self.peek()
        if char in _QUANTIFIERS:
            self.position += 1
            return _QUANTIFIERS[char]
        match = _COUNTS.match(self.pattern, self.position) if char == "{" else None
        if match is None:
            return None
        if max(len(match.group(1)), len(match.group(3))) > 6:
            raise Unsupported("this repetition count is too large", self.position)
        least = int(match.group(1))
        most = int(match.group(3)) if match.group(3) else None if match.group(2) else least
        if most is not None and most < least:
            raise Unsupported("this repetition has its numbers in the wrong order", self.position)
        self.position = match.end()
        return least, most

    def parse_atom(self, depth: int) -> Node:
        char = self.peek()
        if char == "(":
            return self.group(depth)
        if char == "[":
            return ("set", self.parse_char_class())
        if char == "\\":
            return self.escape()
        if char in "*+?" or (char == "{" and _COUNTS.match(self.pattern, self.position)):
            raise Unsupported("nothing stands before this quantifier", self.position)
        if char == "{" and re.match(r"\{,[0-9]+\}", self.pattern[self.position : self.position + 9]):
            raise Unsupported("'{,n}' means different things in different dialects; write {0,n}", self.position)
        self.position += 1
        if char in "^$.":
            return {"^": ("start",), "$": ("end",), ".": ("set", DOT)}[char]
        return self.make_one(ord(char), self.position - 1)

    def make_one(self, code: int, position: int) -> Node:
        if 0xD800 <= code <= 0xDFFF:
            raise Unsupported("half of a surrogate pair is not a character", position)
        return ("set", ((code, code),))

    def group(self, depth: int) -> Node:
        start = self.position
        look = re.compile(r"\(\?([=!])").match(self.pattern, start)
        plain = _GROUP.match(self.pattern, start)
        if look is None and plain is None and self.pattern.startswith("(?", start):
            raise Unsupported("only (?:...), named groups and lookahead are supported after '(?'", start)
        match = look or plain
        self.position = match.end() if match else start + 1
        node = self.parse_alternatives(depth + 1)
        if self.peek() != ")":
            raise Unsupported("this '(' is never closed", start)
        self.position += 1
        return ("look", look.group(1) == "!", node) if look else node

    def escape(self) -> Node:
        """An escape outside of a class."""
        start = self.position
        char = self.pattern[start + 1 : start + 2]
        if char in ("A", "Z", "z"):
            self.position += 2
            return ("start",) if char == "A" else ("end",)
        if char.isdigit() and char != "0":
            raise Unsupported("back references are not supported", start)
        if char in _UNSUPPORTED_ESCAPES:
            raise Unsupported(
                f"{_UNSUPPORTED_ESCAPES[char]} are not supported"
                if not _UNSUPPORTED_ESCAPES[char].startswith("\\")
                else f"{_UNSUPPORTED_ESCAPES[char]} is not supported",
                start,
            )
        return ("set", self.parse_escaped_set())

    def parse_escaped_set(self) -> Charset:
        """The set that an escape stands for: a class such as \\d, a coded character, or the character itself."""
        start = self.position
        char = self.pattern[start + 1 : start + 2]
        if not char:
            raise Unsupported("the pattern ends in a backslash", start)
        self.position += 2
        if char in _CLASS_ESCAPES:
            return _CLASS_ESCAPES[char]
        if char in _CONTROL_ESCAPES:
            if char == "0" and self.peek().isdigit():
                raise Unsupported("octal escapes are not supported", start)
            return collect_characters(_CONTROL_ESCAPES[char])
        match = _HEX.match(self.pattern, start + 1)
        if match is not None:
            self.position = match.end()
            return self.parse_coded(int(match.group(match.lastindex or 0), 16), start)
        if char.isalnum() and char.isascii():
            raise Unsupported(f"the escape '\\{char}' is not supported", start)
        return collect_characters(char)

    def parse_coded(self, code: int, start: int) -> Charset:
        low = _LOW_SURROGATE.match(self.pattern, self.position) if 0xD800 <= code < 0xDC00 else None
        if low is not None:
            self.position = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + int(low.group(1), 16) - 0xDC00
        if code > 0x10FFFF:
            raise Unsupported("this character is beyond U+10FFFF", start)
        return self.make_one(code, start)[1]

    def parse_char_class(self) -> Charset:
        start = self.position
        self.position += 1
        negated = self.peek() == "^"
        self.position += negated
        ranges: list[tuple[int, int]] = []
        if self.peek() == "]":
            raise Unsupported("empty classes mean different things in different dialects", start)
        while self.peek() != "]":
            if not self.peek():
                raise Unsupported("this '[' is never closed", start)
            ranges.extend(self.parse_class_item())
        self.position += 1
        chars = make_charset(*ranges)
        if not without(_AGREED, chars):
            chars = ANY
        chars = complement(chars) if negated else chars
        if not chars:
            raise Unsupported("this class contains no character", start)
        return chars

    def parse_class_item(self) -> Charset:
        """A character, class escape or range inside a class."""
        start = self.position
        low = self.parse_class_char()
        if self.peek() != "-" or self.pattern[self.position + 1 : self.position + 2] in ("]", ""):
            return low
        self.position += 1
        high = self.parse_class_char()
        if len(low) > 1 or len(high) > 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
            raise Unsupported("a class such as \\d can't be the end of a range", start)
        if high[0][0] < low[0][0]:
            raise Unsupported("this range is in the wrong order", start)
        return make_charset((low[0][0], high[0][0]))

    def parse_class_char(self) -> Charset:
        char = self.peek()
        if char == "\\":
            following = self.pattern[self.position + 1 : self.position + 2]
            if following == "b":
                self.position += 2
                return collect_characters("\b")
            if following in ("p", "P"):
                raise Unsupported("Unicode properties are not supported", self.position)
            return self.parse_escaped_set()
        self.position += 1
        return self.make_one(ord(char), self.position - 1)[1]


def is_nullable(node: Node) -> bool:
    """Whether the node can match the empty text. Assertions count as empty."""
    kind = node[0]
    if kind == "set":
        return False
    if kind == "rep":
        return node[2] == 0 or is_nullable(node[1])
    if kind in ("cat", "alt"):
        return (all if kind == "cat" else any)(is_nullable(part) for part in node[1])
    return True
