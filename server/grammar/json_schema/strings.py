"""The grammar of JSON itself: fixed rules for any value, string contents with escapes, and named formats.

Pure functions on connection threads; imports only grammar modules. White space is limited to one space, or one line end
and 20 blanks, because some models would write blanks without end. Numbers have limited digits for the same reason. In
patterns, keys and enum values, characters that don't need an escape are never escaped. Free strings allow every JSON
escape except half surrogate pairs.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from server.grammar.automaton import ANY, Charset, Dfa, collect_characters, has_code, make_charset, without
from server.grammar.gbnf_build import Builder, make_char_class, make_choice, make_literal, make_sequence
from server.grammar.regex_gbnf import compile_pattern

# name: (body, names of the rules in it)
CORE_RULES = {
    "ws": ('(" " | "\\n" [ \\t]{0,20})?', ()),  # beside brackets and braces
    "gap": ('(" " | "\\n" [ \\t]{0,20})?', ()),  # behind commas and colons
    "hex": ("[0-9a-fA-F]", ()),
    "escape": (
        r'["\\/bfnrt] | "u" ([0-9a-cA-CeEfF] hex{3} | [dD] ([0-7] hex{2} | high-surrogate))',
        ("hex", "high-surrogate"),
    ),
    "high-surrogate": ("[89abAB] hex{2} low-surrogate", ("hex", "low-surrogate")),
    "low-surrogate": (r'"\\u" [dD] [c-fC-F] hex{2}', ("hex",)),
    "char": (r'[ !#-\[\]-\uD7FF\uE000-\U0010FFFF] | "\\" escape', ("escape",)),
    "string": (r'"\"" char* "\""', ("char",)),
    "integer": ('"0" | "-"? [1-9] [0-9]{0,19}', ()),
    "number": ('"-"? ("0" | [1-9] [0-9]{0,19}) ("." [0-9]{1,20})? exponent?', ("exponent",)),
    "exponent": ('[eE] ("+"? exponent-up | "-" exponent-down)', ("exponent-up", "exponent-down")),
    "exponent-up": ('[03-9] [0-9]? | "1" [0-9]{0,2} | "2" ([0-7] [0-9]? | [89])?', ()),
    "exponent-down": ("[03-9] [0-9]? | [12] [0-9]{0,2}", ()),
    "boolean": ('"true" | "false"', ()),
    "null": ('"null"', ()),
    "array": ('"[" ws (value ("," gap value)* ws)? "]"', ("value", "ws", "gap")),
    "object": ('"{" ws (member ("," gap member)* ws)? "}"', ("member", "ws", "gap")),
    "member": ('string ":" gap value', ("string", "value", "gap")),
    "value": (
        "object | array | string | number | boolean | null",
        ("object", "array", "string", "number", "boolean", "null"),
    ),
}

_QUOTES = collect_characters('"\\')
_CONTROLS = make_charset((0, 0x1F))
_SHORT_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_SURROGATE = re.compile("[\ud800-\udfff]")

_YEAR = r"(\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000)"
_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_MONTH_DAY = (
    r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))"
)
_DATE = rf"({_YEAR}-{_MONTH_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_H16 = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [
        rf"({_H16}:){{7}}{_H16}",
        rf"({_H16}:){{1,7}}:",
        *(rf"({_H16}:){{1,{left}}}(:{_H16}){{1,{7 - left}}}" for left in range(1, 7)),
        rf":((:{_H16}){{1,7}}|:)",
        rf"::[fF]{{4}}:{_IPV4}",
        rf"({_H16}:){{6}}{_IPV4}",
    ]
)
_WORD = "[A-Za-z0-9]+(-+[A-Za-z0-9]+)*"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATEXT = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_URI_CHAR = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_AUTHORITY = (
    r"(([A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})+@)?"
    r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])?(:\d{1,5})?"
)
_PATH = rf"(/{_URI_CHAR}*)*"
_TAIL = rf"(\?({_URI_CHAR}|[/?])*)?(#({_URI_CHAR}|[/?])*)?"
_DURATION_TIME = r"T(\d+H(\d+M)?(\d+S)?|\d+M(\d+S)?|\d+S)"

# Formats as patterns of the whole text. Other formats are not enforced.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": rf"P((\d+Y(\d+M)?(\d+D)?|\d+M(\d+D)?|\d+D)({_DURATION_TIME})?|{_DURATION_TIME}|\d+W)",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "email": rf"{_ATEXT}(\.{_ATEXT})*@{_WORD}(\.{_WORD})*",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:(//{_AUTHORITY}{_PATH}|/?({_URI_CHAR}+{_PATH})?){_TAIL}",
}

# Formats for texts of limited length. They have few unbounded repetitions, which share the length.
_PLAIN = "[A-Za-z0-9._~!$&'()*+,;=:@/?-]"
_REST = rf"({_PLAIN}*|({_PLAIN}|%[0-9A-Fa-f]{{2}})*)"
_SHORT_LABEL = "[A-Za-z0-9]{1,12}(-[A-Za-z0-9]{1,12})?"
_SHORT_HOST = rf"{_SHORT_LABEL}(\.{_SHORT_LABEL})*"
_SHORT_ATEXT = _ATEXT[:-1] + "{1,24}"
FORMATS_BOUNDED = {
    **FORMATS,
    "email": rf"{_SHORT_ATEXT}(\.{_SHORT_ATEXT}){{0,2}}@{_SHORT_HOST}",
    "hostname": _SHORT_HOST,
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]{{0,9}}:(//[A-Za-z0-9._~-]+(:\d{{1,5}})?([/?]{_REST})?|[A-Za-z0-9]{_REST})"
    rf"(#{_PLAIN}{{0,10}})?",
}


def format_dfa(name: str) -> Dfa:
    return compile_pattern(FORMATS[name], search=False)


def add_core(builder: Builder, name: str) -> str:
    """Adds one of CORE_RULES, with the rules that it uses; returns its name."""
    stack = [name]
    while stack:
        current = stack.pop()
        if current not in builder.rules:
            body, uses = CORE_RULES[current]
            builder.rules[current] = body
            builder.names_by_body.setdefault(body, current)
            stack.extend(uses)
    return name


def reserve_core(builder: Builder) -> None:
    """Reserves the names of CORE_RULES, so that no other rule gets one."""
    for name in CORE_RULES:
        builder.next_number[name] = 2


def make_json_text(value: object) -> str:
    """A value as compact JSON. Characters are escaped only where JSON requires it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def make_value_expression(builder: Builder, value: object) -> str:
    """One fixed value, with optional white space between its parts."""
    parts: list[str] = []
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, _Raw):
            parts.append(item.text)
        elif isinstance(item, (dict, list)) and item:
            stack.extend(reversed(_make_pieces(builder, item)))
        else:
            parts.append(make_literal(make_json_text(item)))
    return make_sequence(*parts)


class _Raw:
    """A grammar expression in a list of values."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _make_pieces(builder: Builder, item: dict | list) -> list[object]:
    blank, gap = _Raw(add_core(builder, "ws")), _Raw(add_core(builder, "gap"))
    opening, closing = "{}" if isinstance(item, dict) else "[]"
    pieces: list[object] = [_Raw(make_literal(opening)), blank]
    for index, part in enumerate(item):
        if index:
            pieces += [_Raw(make_literal(",")), gap]
        if isinstance(item, dict):
            pieces += [_Raw(make_literal(make_json_text(part) + ":")), gap, item[part]]
        else:
            pieces.append(part)
    return [*pieces, blank, _Raw(make_literal(closing))]


def make_char_without(char: str) -> str:
    """The body of the core rule "char" in which `char` must be written as an escape."""
    raw = without(without(without(ANY, _QUOTES), _CONTROLS), collect_characters(char))
    return f'{make_char_class(raw)} | "\\\\" escape'


def make_text_class(builder: Builder, chars: Charset) -> str:
    """One character of a set inside a JSON string."""
    if chars == ANY:
        return add_core(builder, "char")
    raw = without(without(chars, _QUOTES), _CONTROLS)
    escapes = _make_escapes(chars)
    if not escapes:
        return builder.make_char_class(raw)
    parts = [make_char_class(raw)] if raw else []
    expression = make_choice([*parts, make_sequence(make_literal("\\"), escapes)])
    return builder.define("chars", expression) if parts else expression


@lru_cache(maxsize=256)
def _make_escapes(chars: Charset) -> str:
    """What may follow a backslash, for the characters of the set that must be escaped; '' if there are none."""
    short = "".join(letter for char, letter in _SHORT_ESCAPES.items() if has_code(chars, ord(char)))
    coded = [code for code in range(0x20) if has_code(chars, code) and chr(code) not in _SHORT_ESCAPES]
    parts = [make_char_class(collect_characters(short))] if short else []
    for high in (0, 1):
        digits = "".join(f"{code & 15:x}{code & 15:X}" for code in coded if code >> 4 == high)
        if digits:
            parts.append(make_sequence(make_literal(f"u00{high}"), make_char_class(collect_characters(digits))))
    return make_choice(parts)
