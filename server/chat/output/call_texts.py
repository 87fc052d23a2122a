"""The grammar of single calls: one expression per tool, in the model's format.

Pure, any thread. For arguments in JSON, the schema of each tool is converted to a grammar, whose rules get the tool's
name as a prefix. In other formats, the expression is composed from the schema's properties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.output.formats import (
    KEY,
    NAME,
    CallFormat,
    ChannelCall,
    JsonCall,
    KeyedCall,
    NamedCall,
    ParameterCall,
    PythonCall,
    QuotelessCall,
)
from server.chat.output.heads import find_first_word
from server.grammar.gbnf_build import Builder, make_choice, make_factored, make_literal, make_optional, make_sequence
from server.grammar.json_schema.convert import convert
from server.grammar.json_schema.members import FREE, Member, convert_members
from server.grammar.json_schema.parts import SchemaError
from server.grammar.json_schema.strings import CORE_RULES, make_json_text, reserve_core

_NAMES = re.compile(r'("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{[^}]*\})|([A-Za-z0-9-]+)')
_BARE_KEY = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = '("0" | [1-9] [0-9]{0,2})'
_PYTHON = {"boolean": '"True" | "False"', "null": '"None"'}
_MARKED_KINDS = ("string", "number", "boolean", "null", "object", "array")
_INLINE_MAX = 60  # characters; a longer expression becomes a rule
_SPACES = ("ws", "gap")
_FREE = re.compile(rf"{FREE}(-[0-9]+)?")


class ToolSchemaError(SchemaError):
    """A schema is refused. `tool` is the tool's name, "" if the reason isn't a single tool."""

    def __init__(self, tool: str, message: str, pointer: str) -> None:
        super().__init__(message, pointer)
        self.tool = tool
        self.args = (f"{f'tool {tool!r}: ' if tool else ''}{pointer}: {message}",)


def make_text_literal(text: str) -> str:
    """A text of a format as an expression; "" for ""."""
    return make_literal(text) if text else ""


def read_arguments_schema(parameters: Any) -> Any:
    """The schema of a function's arguments. SchemaError if it isn't for an object."""
    if not parameters:
        return {"type": "object", "properties": {}}
    kinds = parameters.get("type", ["object"])
    if kinds != "object" and "object" not in (kinds if isinstance(kinds, list) else ()):
        raise SchemaError('the type of a function\'s arguments must be "object"', "#/type")
    return {**parameters, "type": "object"}


def can_be_key(shape: ParameterCall | PythonCall | QuotelessCall, key: str) -> bool:
    """Whether the parser can read back an argument with this name."""
    if isinstance(shape, PythonCall):
        return bool(key) and key == key.strip()
    end = find_first_word(shape.after_key) if isinstance(shape, ParameterCall) else shape.quote
    return bool(key) and key == key.strip() and end not in key


class CallTexts:
    """`calls` has an expression for each tool, without the texts around each call; `builder` has their rules. `tools`
    maps names to (parameters, whether keywords that can't be enforced are refused).

    The white space in JSON is that of templates: the call comes back in the next prompt, and its cached tokens are
    reused only if its text is the same. If `is_lazy`, other white space is allowed, since the model begins the call
    without the grammar.
    """

    def __init__(self, form: CallFormat, tools: Mapping[str, tuple[Any, bool]], is_lazy: bool) -> None:
        self.form = form
        self.builder = Builder()
        reserve_core(self.builder)
        is_quoteless = isinstance(form.call, QuotelessCall)  # quoteless templates differ in white space
        self.builder.rules |= {"ws": '""', "gap": '" "?' if is_quoteless else make_literal(" ")}
        self.blank = self.gap = ""
        if is_lazy:
            self.blank = self.gap = self.builder.define("blank", CORE_RULES["ws"][0])
        else:
            self.gap = make_literal(" ")
        self.builder.next_number["root"] = 2
        self.warnings: list[str] = []
        self.arguments: dict[str, str] = {}
        self.calls = [self.call(name, *tool) for name, tool in tools.items()]

    def call(self, name: str, parameters: Any, strict: bool) -> str:
        try:
            return self.make_shaped_call(name, read_arguments_schema(parameters), strict)
        except SchemaError as error:
            raise ToolSchemaError(name, error.message, error.pointer) from None

    def make_shaped_call(self, name: str, schema: Any, strict: bool) -> str:
        shape = self.form.call
        if isinstance(shape, (ParameterCall, PythonCall, QuotelessCall)):
            return self.make_member_call(shape, name, schema, strict)
        arguments = self.arguments[name] = self.make_schema_root(f"tool {name!r}", name, schema, strict)
        if isinstance(shape, KeyedCall):
            keyed = make_sequence(make_literal(f"{make_json_text(name)}:"), self.gap, arguments)
            return make_sequence(make_literal("{"), self.blank, keyed, self.blank, make_literal("}"))
        if isinstance(shape, JsonCall):
            return self.make_json_call(shape, name, arguments)
        if isinstance(shape, ChannelCall):
            return make_sequence(make_literal(name + shape.call_head[1]), arguments)
        return self.make_named_call(shape, name, arguments)

    def make_schema_root(self, what: str, prefix: str, schema: object, strict: bool) -> str:
        """The rule for JSON that fits a schema. `what` names the owner of the schema in warnings."""
        conversion = convert(schema, strict=strict)
        self.warnings += [f"{what}: {warning}" for warning in conversion.warnings]
        rules = dict(line.split(" ::= ", 1) for line in conversion.grammar.strip("\n").split("\n"))
        return self.adopt(rules, prefix)["root"]

    def adopt(self, rules: Mapping[str, str], prefix: str) -> dict[str, str]:
        """Add the rules of another grammar under new names, and return these names by the old ones. Fixed rules, such
        as those of JSON, are shared if they are the same. The rules for white space aren't copied."""
        fixed = [name for name in rules if name not in _SPACES and (name in CORE_RULES or _FREE.fullmatch(name))]
        if any(self.builder.rules.get(name, rules[name]) != rules[name] for name in fixed):
            fixed = []
        kept = {*fixed, *_SPACES}
        names = {name: name if name in kept else self.builder.reserve(f"{prefix}-{name}") for name in rules}
        for name, body in rules.items():
            if name not in _SPACES:
                self.builder.rules[names[name]] = _NAMES.sub(lambda found: found[1] or names[found[2]], body)
        return names

    # Calls that are, or contain, a JSON object

    def make_json_call(self, shape: JsonCall, name: str, arguments: str) -> str:
        """{"name": "f", "arguments": {...}}, with an id if the format has one."""
        blank, gap = self.blank, self.gap
        comma = make_sequence(make_literal(","), gap)
        before = behind = ""
        if shape.id_key:
            quote = make_literal('"')
            own = _NUMBER if shape.id_is_number else self.make_id(name)
            identity = make_sequence(make_literal(f"{make_json_text(shape.id_key)}:"), gap, quote, own, quote)
            before = make_sequence(identity, comma) if shape.id_first else ""
            behind = "" if shape.id_first else make_sequence(comma, identity)
        named = make_sequence(
            make_literal(f"{make_json_text(shape.name_key)}:"), gap, make_literal(make_json_text(name)), comma
        )
        keyed = make_sequence(make_literal(f"{make_json_text(shape.arguments_key)}:"), gap, arguments)
        return make_sequence(make_literal("{"), blank, before, named, keyed, behind, blank, make_literal("}"))

    def make_named_call(self, shape: NamedCall, name: str, arguments: str) -> str:
        """The name, an id or a number if the format has one, and the arguments."""
        identity = make_sequence(make_literal(shape.before_id), self.make_id(name)) if shape.before_id else ""
        named = make_literal(shape.before_name + name)
        first = (identity, named) if shape.id_first else (named, identity)
        head = make_sequence(*first, self.number(shape), make_text_literal(shape.after_name))
        return make_sequence(head, arguments, make_text_literal(shape.after_arguments))

    def make_channel_calls(self, channel: str) -> list[str]:
        """The expressions for Harmony's calls from the name on; `channel` is the text after the name."""
        shape = self.form.call
        assert isinstance(shape, ChannelCall)
        kind = make_choice([make_literal(" <|constrain|>json"), make_literal(" json"), ""])
        return [
            make_sequence(make_literal(name + channel), kind, make_literal(shape.message), arguments)
            for name, arguments in self.arguments.items()
        ]

    def make_id(self, name: str) -> str:
        ids = self.form.ids
        if ids.pattern:
            before, _, after = ids.pattern.replace("{name}", name).partition("{index}")
            return make_sequence(make_text_literal(before), _NUMBER, make_text_literal(after))
        return make_sequence(
            make_text_literal(ids.prefix), f"[A-Za-z0-9]{{{ids.n_letters}}}" if ids.n_letters else _NUMBER
        )

    def number(self, shape: NamedCall | ParameterCall) -> str:
        """The number of a call; "" if the format has none."""
        return make_sequence(make_literal(shape.before_index), _NUMBER) if shape.before_index else ""

    # Calls whose arguments are written one by one

    def make_member_call(
        self, shape: ParameterCall | PythonCall | QuotelessCall, name: str, schema: Any, strict: bool
    ) -> str:
        close, is_marked = "", True
        if isinstance(shape, ParameterCall):
            close = shape.quotes[1] if shape.quotes else shape.after_value.split(KEY)[0].strip()
            is_marked = bool(shape.string_mark or shape.quotes)
        elif isinstance(shape, QuotelessCall):
            close = shape.quote
        members = convert_members(schema, close, is_marked=is_marked, strict=strict)
        self.warnings += [f"tool {name!r}: {warning}" for warning in members.warnings]
        names = self.adopt(members.rules, name)
        ways = [[(self.make_member(member, names), member.is_required) for member in way] for way in members.ways]
        if isinstance(shape, ParameterCall):
            inside = make_choice(
                make_sequence(*(text if needed else make_optional(text) for text, needed in way)) for way in ways
            )
            after_name = make_text_literal(shape.after_name.replace(NAME, name))
            head = make_sequence(make_literal(shape.before_name + name), self.number(shape), after_name)
            return make_sequence(head, inside, make_text_literal(shape.after_arguments))
        if isinstance(shape, PythonCall):
            return make_sequence(
                make_literal(f"{name}("), make_choice(self.join_members(way, ", ") for way in ways), make_literal(")")
            )
        head = make_literal(f"{shape.before_name}{name}{shape.after_name}{{")
        return make_sequence(head, make_choice(self.join_members(way, ",") for way in ways), make_literal("}"))

    def join_members(self, members: Sequence[tuple[str, bool]], comma: str) -> str:
        """Members in their order, with commas between those that are present."""
        start = rest = ""  # the members from here on, without a comma before them and with one
        for text, needed in reversed(members):
            begun = make_sequence(text, rest)
            more = make_sequence(make_literal(comma), begun)
            start = begun if needed else self.shorten(make_choice([begun, start]))
            rest = self.shorten(more if needed else make_choice([more, rest]))
        return start

    def shorten(self, expression: str) -> str:
        """Make a rule of a long expression."""
        return self.builder.define("members", expression) if len(expression) > _INLINE_MAX else expression

    def make_member(self, member: Member, names: Mapping[str, str]) -> str:
        shape = self.form.call
        assert isinstance(shape, (ParameterCall, PythonCall, QuotelessCall))
        if not can_be_key(shape, member.key):
            raise SchemaError("the name of this argument can't be written in this format", f"#/properties/{member.key}")
        text = names[member.text] if member.text else ""
        rules = [(kind, names[rule]) for kind, rule in member.json]
        if isinstance(shape, PythonCall):
            return make_sequence(
                make_literal(f"{member.key}="), self.make_value([self.make_python_value(*rule) for rule in rules])
            )
        if isinstance(shape, QuotelessCall):
            key = member.key if _BARE_KEY.fullmatch(member.key) else f"{shape.quote}{member.key}{shape.quote}"
            texts = [make_sequence(make_literal(shape.quote), text, make_literal(shape.quote))] if text else []
            return make_sequence(make_literal(f"{key}:"), self.make_value([*texts, *(rule for _, rule in rules)]))
        if text and shape.quotes:
            text = make_sequence(make_literal(shape.quotes[0]), text, make_literal(shape.quotes[1]))
        ways = [(self.mark(shape, kind), rule) for kind, rule in ([("string", text)] if text else []) + rules]
        values = self.make_value([make_sequence(make_text_literal(mark), rule) for mark, rule in ways])
        before = make_literal(shape.before_key + member.key + shape.after_key)
        return make_sequence(before, values, make_text_literal(shape.after_value.replace(KEY, member.key)))

    def make_value(self, ways: list[str]) -> str:
        return make_factored(ways) if len(ways) == 1 else self.builder.define("value", make_factored(ways))

    def mark(self, shape: ParameterCall, kind: str) -> str:
        marks = shape.string_mark
        if not marks:
            return ""
        index = _MARKED_KINDS.index(kind)
        return marks[index if len(marks) == len(_MARKED_KINDS) else min(index, 1)] + shape.after_mark

    def make_python_value(self, kind: str, rule: str) -> str:
        """Python's True, False or None, if the schema allows all values of this kind; otherwise as in JSON."""
        if kind in _PYTHON and self.builder.rules[rule] in (kind, CORE_RULES[kind][0]):
            return self.builder.define(f"python-{kind}", _PYTHON[kind])
        return rule
