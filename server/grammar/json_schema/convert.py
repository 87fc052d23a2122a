"""Converts JSON schema to GBNF. The API layer and tool calls use `convert`.

Runs on connection threads. Results are cached by the text of the schema.

Constraints that a grammar of acceptable size can't express are not enforced. A warning names the JSON pointer; with
`strict` most such schemas are refused. Objects and arrays are queued and written one after the other, so a recursive
schema becomes recursive rules. Alternatives without a finite value (such as an object that must contain itself) are
found at the end and left out in another round. Not taken: translating each keyword on its own while walking the schema,
as llama.cpp does; that is wrong for allOf, siblings of $ref, and anyOf beside properties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from server.grammar import automaton
from server.grammar.automaton import Charset, Dfa, TooLarge
from server.grammar.gbnf import GrammarError, check
from server.grammar.gbnf_build import (
    COUNT_MAX,
    Builder,
    count_rules,
    make_choice,
    make_factored,
    make_literal,
    make_sequence,
    print_dfa,
)
from server.grammar.json_schema.containers import make_array_expression, make_object_expression
from server.grammar.json_schema.numbers import make_range_dfa, make_sign_expression
from server.grammar.json_schema.parts import Conjunction, Part, SchemaError
from server.grammar.json_schema.shapes import ANNOTATIONS, TYPES, Document, Shape, compute_deadline
from server.grammar.json_schema.strings import (
    FORMATS,
    FORMATS_BOUNDED,
    add_core,
    format_dfa,
    make_json_text,
    make_text_class,
    make_value_expression,
    reserve_core,
)
from server.grammar.json_schema.values import are_disjoint, can_fit_shape, kind_of, without_one_of
from server.grammar.regex_gbnf import STATES_MAX, Unsupported, compile_pattern, make_bounded_pieces, make_pattern_pieces
from server.records import record, replace

__all__ = ["ANY_OBJECT", "Conversion", "SchemaError", "convert"]

DEPTH_MAX = 128  # nested levels of a schema
TEXT_MAX = 1 << 19  # characters of a schema
GRAMMAR_MAX = 1 << 20  # characters of a grammar
_BITS_MAX = 3321  # bits of an integer with 1,000 digits
_POINTERS_MAX = 50_000_000  # characters in the JSON pointers of all parts
_ROUNDS_MAX = 8  # conversions, each without the endless alternatives found before
_RULES_MAX = 5000  # different subschemas
_ONE_OF_MAX = 60  # branches that are compared in pairs
_INLINE_MAX = 60  # characters; longer expressions become rules
_SHARED_LENGTH = 32  # characters; longer strings become rules, because llama.cpp unrolls counts
_UNROLLED_MAX = 50_000  # a grammar with a larger sum of repetition counts is checked for llama.cpp's limits
_TEXT_STATES_MAX = 4000  # states of the automaton of a string with several conditions
_TEXT_RULES_MAX = 500  # rules of such an automaton; if it needs more, `make_bounded` is tried
_RULES_MOST = 1600  # rules of such an automaton, after `make_bounded` has failed
_SHORTER = (2000, 1000, 500, 200, 100)  # lengths to try if a pattern can't be combined with the schema's maxLength
_COUNTS = re.compile(r"\{(\d+)(?:,(\d*))?\}")

_TYPE_ONLY = {"type", *ANNOTATIONS}

AnyConverter = TypeVar("AnyConverter", bound="Converter")

# The schema of `response_format: {"type": "json_object"}`.
ANY_OBJECT = {"type": "object"}


@record(frozen=True)
class Conversion:
    """A grammar with the rule `root`. `warnings`: how it differs from the schema, one line each, JSON pointer first."""

    grammar: str
    warnings: list[str]


def convert(schema: object, *, strict: bool = False) -> Conversion:
    """The grammar of the JSON texts that fit a schema. Raises `SchemaError` if it is no schema or too large, or if no
    value fits; with `strict` also if a constraint can't be enforced."""
    grammar, warnings = _convert_text(make_checked_text(schema), strict)
    return Conversion(grammar, list(warnings))


def make_checked_text(schema: object) -> str:
    """A schema as JSON text. Raises `SchemaError` if it is no JSON object or boolean, or too large."""
    _check_json(schema)
    text = json.dumps(schema, ensure_ascii=True, separators=(",", ":"))
    if len(text) > TEXT_MAX:
        raise SchemaError(f"the schema has {len(text)} characters, the limit is {TEXT_MAX}", "#")
    return text


def _check_json(schema: object) -> None:
    """Refuses values that aren't JSON, are nested too deep, or have too long JSON pointers."""
    if not isinstance(schema, (dict, bool)):
        raise SchemaError("a schema must be an object or a boolean", "#")
    level: list[tuple[object, int]] = [(schema, 1)]
    pointers = 0
    for _ in range(DEPTH_MAX):
        below: list[tuple[object, int]] = []
        for node, length in level:
            if isinstance(node, (dict, list, bool)):
                pointers += length
            if isinstance(node, dict):
                if not all(isinstance(key, str) for key in node):
                    raise SchemaError("a key is not a string", "#")
                below.extend((child, length + 1 + len(key)) for key, child in node.items())
            elif isinstance(node, list):
                below.extend((child, length + 6) for child in node)
            elif node is not None and not isinstance(node, (str, int, float)):
                raise SchemaError(f"{type(node).__name__} is not a JSON value", "#")
            elif isinstance(node, float) and node - node != 0:
                raise SchemaError("numbers must be finite", "#")
            elif isinstance(node, int) and node.bit_length() > _BITS_MAX:
                raise SchemaError("a number has more than 1,000 digits", "#")
        if pointers > _POINTERS_MAX:
            raise SchemaError("the keys of this schema are too long for how deep they are nested", "#")
        if not below:
            return
        level = below
    raise SchemaError(f"the schema is nested deeper than {DEPTH_MAX} levels", "#")


@lru_cache(maxsize=64)
def _convert_text(text: str, strict: bool) -> tuple[str, tuple[str, ...]]:
    root, converter = settle(json.loads(text), strict, Converter)
    return check_grammar(converter.builder.render_text(root)), tuple(converter.document.warnings)


def settle(
    schema: object, strict: bool, kind: Callable[[Document, set[tuple[str, ...]]], AnyConverter]
) -> tuple[str, AnyConverter]:
    """(the root's expression, the converter that wrote it). Converts in rounds, each without the alternatives that the
    rounds before found to be endless."""
    until = compute_deadline()
    dead: set[tuple[str, ...]] = set()
    reason: tuple[str, str] | None = None
    for _ in range(_ROUNDS_MAX):
        converter = kind(Document(schema, strict, until), dead)
        root = converter.run()
        endless = converter.find_endless()
        reason = reason or converter.contradiction
        if not endless:
            break
        dead |= endless
        reason = reason or ("every value would have to contain another one of the same schema", min(endless)[0])
    if root is None:
        raise SchemaError(*(reason or ("no value fits this schema", "#")))
    if endless:
        raise SchemaError("alternatives without a finite value are nested too deep", min(endless)[0])
    return root, converter


def check_grammar(grammar: str) -> str:
    """Raises `SchemaError` if the grammar is too large for this server or for llama.cpp."""
    if len(grammar) > GRAMMAR_MAX:
        raise SchemaError(f"the grammar would have {len(grammar)} characters, the limit is {GRAMMAR_MAX}", "#")
    if sum(int(most or least) for least, most in _COUNTS.findall(grammar)) > _UNROLLED_MAX:
        try:
            check(grammar)
        except GrammarError as error:
            raise SchemaError(f"the grammar would be too large for llama.cpp: {error.message}", "#") from None
    return grammar


class Converter:
    """One conversion: the rules written so far, and the conjunctions whose rules are not yet written."""

    def __init__(self, document: Document, dead: set[tuple[str, ...]]) -> None:
        self.document = document
        self.dead = dead
        self.builder = Builder(check=document.check_time)
        reserve_core(self.builder)
        self.builder.next_number["root"] = 2
        self.contradiction: tuple[str, str] | None = None
        self.known: dict[tuple[str, ...], str | None] = {}
        self.queue: list[tuple[tuple[str, ...], list[Shape], str]] = []
        self.needs: dict[tuple[str, ...], list[list[tuple[str, ...]]]] = {}
        self.strings: dict[tuple, str | None] = {}

    def note_contradiction(self, pointer: str, message: str) -> None:
        """Remembers the first reason why no value fits."""
        self.contradiction = self.contradiction or (message, pointer)

    def run(self) -> str | None:
        """Returns the expression of the root; None if no value fits."""
        root = self.make_expression((self.document.follow_references(self.document.root),), "")
        self.write_queue()
        self.check_one_ofs()
        return root

    def write_queue(self) -> None:
        """Writes the queued rules, and those that they queue."""
        while self.queue:
            key, shapes, name = self.queue.pop(0)
            body = make_factored(self.make_alternatives(shapes, name, self.needs.setdefault(key, []), key))
            self.builder.rules[name] = body or '""'

    def make_expression(self, conjunction: Conjunction, hint: str) -> str | None:
        """The expression of a conjunction; None if no value fits. Objects and arrays become rules."""
        key = tuple(part.pointer for part in conjunction)
        self.document.check_time()
        if key in self.known:
            return self.known[key]
        plain = _find_plain_type(conjunction)
        if plain is not None:
            self.known[key] = add_core(self.builder, plain)
            return plain
        shapes = [] if key in self.dead else self.document.make_shapes(conjunction)
        if not shapes:
            self.note_contradiction(conjunction[0].pointer if conjunction else "#", "no value fits this schema")
            self.known[key] = None
        elif any(shape.is_free() for shape in shapes):
            self.known[key] = add_core(self.builder, "value")
        elif any(shape.values is None and ("object" in shape.types or "array" in shape.types) for shape in shapes):
            name = self.known[key] = self.add_rule(_choose_rule_hint(conjunction, hint))
            self.queue.append((key, shapes, name))
            if len(self.known) > _RULES_MAX:
                raise SchemaError(f"more than {_RULES_MAX} different subschemas", "#")
        else:
            expression = make_factored(self.make_alternatives(shapes, hint, [])) or None
            if expression is not None and len(expression) > _INLINE_MAX:
                expression = self.builder.define(hint, expression)
            self.known[key] = expression
        return self.known[key]

    def add_rule(self, hint: str) -> str:
        """Returns a new rule's name: 'root' if `hint` is empty."""
        if hint:
            return self.builder.reserve(hint)
        self.builder.rules["root"] = None
        return "root"

    def find_endless(self) -> set[tuple[str, ...]]:
        """The conjunctions that are rules and have no finite value. Call it after `run`."""
        finite: set[tuple[str, ...]] = set()
        grown = True
        while grown:
            grown = False
            for key, alternatives in reversed(self.needs.items()):  # a conjunction comes after those that need it
                self.document.check_time()
                if key not in finite and any(
                    all(need in finite or need not in self.needs for need in needs) for needs in alternatives
                ):
                    finite.add(key)
                    grown = True
        return self.needs.keys() - finite

    def make_alternatives(
        self, shapes: list[Shape], hint: str, needs: list[list[tuple[str, ...]]], key: tuple[str, ...] = ()
    ) -> list[str]:
        """The expressions of merged shapes. Adds to `needs`, for each expression, the conjunctions that its values must
        contain. If only one shape has objects or arrays, a shape of one part becomes a reference to the part's rule,
        unless `key` is empty or that part. Other shapes are written in place: common beginnings can be shared."""
        found = []
        containers = sum("object" in shape.types or "array" in shape.types for shape in shapes)
        for shape in shapes:
            if shape.is_free():
                found.append(add_core(self.builder, "value"))
                needs.append([])
                continue
            if shape.values is not None:
                expression = self.make_enum_expression(shape)
                found += [expression] if expression else []
                needs += [[]] if expression else []
                continue
            if containers == 1 and key and len(shape.parts) == 1 and key != (shape.parts[0].pointer,):
                expression = self.make_expression(shape.parts, hint)
                found += [expression] if expression else []
                needs += [[(shape.parts[0].pointer,)]] if expression else []
                continue
            for kind in shape.types:
                inside: list[Conjunction] = []
                expression = self.make_typed_expression(kind, shape, hint, inside)
                if expression is not None:
                    found.append(expression)
                    needs.append([tuple(part.pointer for part in conjunction) for conjunction in inside])
        return found

    def make_typed_expression(self, kind: str, shape: Shape, hint: str, needs: list[Conjunction]) -> str | None:
        """A shape's values of one type; None if there are none."""
        if kind == "object":
            self.warn_refused(shape, kind)
            return make_object_expression(self, shape, needs)
        if kind == "array":
            self.warn_refused(shape, kind)
            return make_array_expression(self, shape, needs)
        if kind == "string":
            return self.make_string_expression(shape, hint)
        if kind in ("number", "integer"):
            self.warn_refused(shape, kind)
            return self.number_expression(shape, kind == "integer", hint)
        refused = [value for value in shape.refused_values if kind_of(value) == kind]
        if kind == "null":
            return None if refused else add_core(self.builder, "null")
        left = [text for text in ("true", "false") if (text == "true") not in refused]
        return add_core(self.builder, "boolean") if len(left) == 2 else make_choice(map(make_literal, left)) or None

    def warn_refused(self, shape: Shape, kind: str) -> None:
        """Warns about values under `not` that can't be excluded: numbers, objects and arrays."""
        for value in shape.refused_values:
            if kind_of(value) == kind or (kind == "number" and kind_of(value) == "integer"):
                self.document.loosen(shape.pointer, f"'not' does not exclude the {kind} {make_json_text(value)[:40]}")

    def make_enum_expression(self, shape: Shape) -> str | None:
        """The enum or const values that fit the rest of the shape; None if there are none."""
        found = [
            make_value_expression(self.builder, value)
            for value in shape.values
            if can_fit_shape(self.document, value, shape)
        ]
        if not found:
            self.note_contradiction(shape.pointer, "no value of the enum fits the rest of the schema")
        return make_factored(found) or None

    def number_expression(self, shape: Shape, is_integer: bool, hint: str) -> str | None:
        """The numbers within a shape's bounds; None if there are none."""
        wanted = replace(shape.numbers, integer=is_integer)
        if wanted == replace(wanted, low=None, high=None, multiple=None):
            return add_core(self.builder, "integer" if is_integer else "number")
        simple = make_sign_expression(wanted)
        if simple is not None:
            return self.builder.define(hint, simple)
        try:
            dfa = make_range_dfa(wanted)
        except TooLarge:
            self.document.loosen(f"{shape.pointer}/multipleOf", "not enforced: too many combinations")
            return self.number_expression(replace(shape, numbers=replace(wanted, multiple=None)), is_integer, hint)
        if dfa.is_empty():
            self.note_contradiction(shape.pointer, "no number lies within these bounds")
            return None
        key = ("number", wanted)
        if key not in self.strings:
            self.strings[key] = print_dfa(self.builder, dfa, hint, self.builder.make_char_class)
        return self.strings[key]

    # Strings

    def make_string_expression(self, shape: Shape, hint: str) -> str | None:
        """A shape's strings, with quotes; None if there are none."""
        refused = [value for value in shape.refused_values if isinstance(value, str)]
        if not (refused or shape.patterns or shape.formats or shape.min_length or shape.max_length is not None):
            return add_core(self.builder, "string")
        key = (shape.min_length, shape.max_length, tuple(shape.patterns), tuple(shape.formats), tuple(refused))
        if key not in self.strings:
            inside = self.make_string_contents(shape, refused, hint)
            expression = None if inside is None else make_sequence(make_literal('"'), inside, make_literal('"'))
            if expression and max(shape.min_length, shape.max_length or 0) > _SHARED_LENGTH:
                expression = self.builder.define("string", expression)
            self.strings[key] = expression
        return self.strings[key]

    def make_string_contents(self, shape: Shape, refused: list[str], hint: str) -> str | None:
        """The expression between the quotes; None if no text fits."""
        least, most = self.limit_counts(shape.pointer, shape.min_length, shape.max_length, "lengths")
        if most is not None and least > most:
            self.note_contradiction(shape.pointer, "'minLength' is above 'maxLength'")
            return None
        text = self.make_text(shape, refused, least, most, hint)
        if text is None:
            return self.builder.repeat("char", add_core(self.builder, "char"), least, most)
        if isinstance(text, str):
            return text
        if text.is_empty():
            self.note_contradiction(shape.pointer, "no text fits these conditions")
            return None
        return print_dfa(self.builder, text, hint, self.class_of)

    def limit_counts(self, pointer: str, least: int, most: int | None, what: str) -> tuple[int, int | None]:
        """Two bounds, limited to COUNT_MAX. Lowering `most` is no error under `strict`."""
        if least > COUNT_MAX:
            self.document.loosen(pointer, f"{what} beyond {COUNT_MAX} are not enforced")
            return COUNT_MAX, None
        if most is not None and most > COUNT_MAX:
            self.document.loosen(pointer, f"{what} beyond {COUNT_MAX} are never generated", fatal=False)
        return least, most if most is None else min(most, COUNT_MAX)

    def class_of(self, chars: Charset) -> str:
        return make_text_class(self.builder, chars)

    def make_text(self, shape: Shape, refused: list[str], least: int, most: int | None, hint: str) -> Dfa | str | None:
        """The texts of a shape: an automaton, or an expression if that is too large; None if only the length counts. A
        format is an annotation, so one that can't be combined with the other conditions is left out."""
        text = self.make_asserted_text(shape, refused, least, most, hint)
        for name, pointer in shape.formats:
            better: Dfa | str | None = None
            if name in FORMATS and text is None:
                better = self.with_length(format_dfa(name), least, most)
                if better is None:
                    better = self.make_bounded(FORMATS_BOUNDED[name], False, least, most, hint)
            elif name in FORMATS and isinstance(text, Dfa):
                better = self.intersect_dfas(text, format_dfa(name))
            if better is None or (isinstance(better, Dfa) and better.is_empty()):
                beside = " beside the other conditions" if name in FORMATS else ""
                self.document.loosen(pointer, f"the format {name[:40]!r} is not enforced{beside}", fatal=False)
            else:
                text = better
        return text

    def make_asserted_text(
        self, shape: Shape, refused: list[str], least: int, most: int | None, hint: str
    ) -> Dfa | str | None:
        """The same as `make_text`, without formats."""
        dfas, large = self.make_conditions(shape, refused, hint)
        if large is not None:
            pattern, pieces = large
            if not dfas and not least and most is None:
                return pieces
            bounded = None if dfas else self.make_bounded(pattern, True, least, most, hint)
            if bounded is None:
                self.document.loosen(
                    shape.pointer, "only the pattern is enforced: it is too large to combine with other conditions"
                )
            return bounded or pieces
        dfa = self.make_common_dfa(dfas, shape.pointer, STATES_MAX * 4)
        found: Dfa | str | None = dfa and self.with_length(dfa, least, most)
        if dfa is None or found is not None:
            return found
        if len(dfas) == 1 and len(shape.patterns) == 1 and not shape.patterns[0][2]:
            found = self.make_bounded(shape.patterns[0][0], True, least, most, hint)
        for end in (most, *_SHORTER):
            if (
                found is None
                and (end is None or least < end)
                and (most is None or end == most or end is not None and end < most)
            ):
                found = self.with_length(dfa, least, end, _RULES_MOST)
                if found is not None and end != most:
                    self.document.loosen(
                        shape.pointer,
                        f"texts end after {end} characters: pattern and length make too many combinations",
                        fatal=False,
                    )
        if found is None:
            self.document.loosen(shape.pointer, "the length is not enforced beside the pattern: too many combinations")
        return found or dfa

    def make_conditions(self, shape: Shape, refused: list[str], hint: str) -> tuple[list[Dfa], tuple[str, str] | None]:
        """(the automata of patterns and `not`; (pattern, expression) of a pattern too large for that, else None)."""
        dfas, large = [], None
        for pattern, pointer, is_negative in shape.patterns:
            self.document.check_time()
            try:
                dfa = compile_pattern(pattern, search=True)
                dfas.append(automaton.minimise(automaton.negate(dfa)) if is_negative else dfa)
            except Unsupported as error:
                self.document.loosen(pointer, f"the pattern is not enforced: {error}")
            except TooLarge:
                large = self.make_large_pattern(pattern, pointer, is_negative, large, hint)
        if refused:
            dfas.append(automaton.negate(automaton.make_words(refused)))
        return dfas, large

    def make_large_pattern(
        self, pattern: str, pointer: str, is_negative: bool, large: tuple[str, str] | None, hint: str
    ) -> tuple[str, str] | None:
        """(pattern, expression) of the first pattern too large for an automaton; `large` for later or negative ones."""
        try:
            if not is_negative and large is None:
                return pattern, make_pattern_pieces(self.builder, pattern, hint, self.class_of, search=True)
            self.document.loosen(
                pointer, "the pattern is not enforced: it is too large to combine with other conditions"
            )
        except Unsupported as error:
            self.document.loosen(pointer, f"the pattern is not enforced: {error}")
        return large

    def make_bounded(self, pattern: str, search: bool, least: int, most: int | None, hint: str) -> str | None:
        """A pattern within a length, piece by piece; None if that is not possible."""
        try:
            return (
                None
                if most is None
                else make_bounded_pieces(
                    self.builder, pattern, hint, self.class_of, search=search, least=least, most=most
                )
            )
        except Unsupported:
            return None

    def make_common_dfa(self, dfas: list[Dfa], pointer: str, limit: int) -> Dfa | None:
        """The intersection of the automata; None if there are none. Drops automata that would make it too large, with a
        warning."""
        common = None
        for dfa in dfas:
            self.document.check_time()
            try:
                common = dfa if common is None else automaton.minimise(automaton.intersect_dfas(common, dfa, limit))
            except TooLarge:
                self.document.loosen(pointer, "not all conditions on the text are enforced: too many combinations")
        return None if common is None else automaton.minimise(common)

    def intersect_dfas(self, one: Dfa, other: Dfa, rules_max: int = _TEXT_RULES_MAX) -> Dfa | None:
        """None if the intersection would be too large."""
        self.document.check_time()
        try:
            dfa = automaton.minimise(automaton.intersect_dfas(one, other, _TEXT_STATES_MAX))
        except TooLarge:
            return None
        return dfa if count_rules(dfa) <= rules_max else None

    def with_length(self, dfa: Dfa, least: int, most: int | None, rules_max: int = _TEXT_RULES_MAX) -> Dfa | None:
        """The automaton limited to a length; None if it would be too large."""
        shortest, longest = dfa.compute_lengths()
        if dfa.is_empty() or (shortest >= least and (most is None or (longest is not None and longest <= most))):
            return dfa
        if max(least, most or 0) > _TEXT_STATES_MAX:
            return None
        return self.intersect_dfas(dfa, automaton.make_length_between(least, most), rules_max)

    def make_key_dfa(self, part: Part) -> Dfa | None:
        """The automaton of the keys that fit a schema; None if keys aren't restricted."""
        shapes = [shape for shape in self.document.make_shapes((part,)) if "string" in shape.types]
        if not shapes:
            return automaton.make_words([])
        if len(shapes) > 1:
            self.document.loosen(part.pointer, "alternatives of keys are not enforced")
            return None
        shape = shapes[0]
        if shape.values is not None:
            return automaton.make_words(
                [
                    value
                    for value in shape.values
                    if isinstance(value, str) and can_fit_shape(self.document, value, shape)
                ]
            )
        least, most = shape.min_length, shape.max_length
        text = self.make_text(
            shape, [value for value in shape.refused_values if isinstance(value, str)], least, most, "key"
        )
        if text is None and (least or most is not None):
            text = self.with_length(Dfa([True], [[(automaton.ANY, 0)]]), least, most)
        if isinstance(text, str) or (text is None and (least or most is not None)):
            self.document.loosen(part.pointer, "the pattern or length of keys is not enforced: too large")
        return text if isinstance(text, Dfa) else None

    # oneOf

    def check_one_ofs(self) -> None:
        """Warns if a value could fit two branches of a oneOf, which the grammar treats as anyOf."""
        for part in list(self.document.one_ofs.values()):
            count = len(part.schema["oneOf"])
            rest = without_one_of(part)
            branches = [(rest, self.document.follow_references(part.get_at("oneOf", index))) for index in range(count)]
            if count > _ONE_OF_MAX or not all(
                are_disjoint(self.document, branches[i], branches[j]) for i in range(count) for j in range(i)
            ):
                self.document.loosen(
                    f"{part.pointer}/oneOf", "a value may fit several branches: they are treated as 'anyOf'"
                )


def _find_plain_type(conjunction: Conjunction) -> str | None:
    """The type of a schema without other constraints."""
    schema = conjunction[0].schema if len(conjunction) == 1 else None
    if not isinstance(schema, dict) or not _TYPE_ONLY.issuperset(schema):
        return None
    kind = schema.get("type")
    return kind if isinstance(kind, str) and kind in TYPES else None


def _choose_rule_hint(conjunction: Conjunction, hint: str) -> str:
    """The name for a conjunction's rule: that of a shared definition, else `hint`."""
    segments = conjunction[0].pointer.split("/") if len(conjunction) == 1 else []
    if len(segments) > 2 and segments[-2] in ("$defs", "definitions", "schemas"):
        return segments[-1]
    return hint
