"""Fields that constrain the answer, as one GBNF grammar: `grammar`, `json_schema`, `response_format`, `regex`,
`choice`, and vLLM's names for them.

Pure; any thread. Each grammar, also one that is made here, is parsed in Python before llama.cpp gets it, because
llama.cpp's parser overflows its stack on deep nesting. The modules that make and parse grammars would add a tenth to
the start's time, so they are imported when first needed, or by `prepare` after the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from server.api.request.fields import format_names
from server.chat.output.parser import OutputParser
from server.engine.seam.task import Thinking, Trigger
from server.errors import ApiError
from server.records import record, replace
from server.web.message import parse_json

GRAMMAR, SCHEMA, REGEX, CHOICE = "grammar", "schema", "regex", "choice"
KINDS = {"grammar": GRAMMAR, "json_schema": SCHEMA, "regex": REGEX, "choice": CHOICE}
GUIDED = {"guided_json": SCHEMA, "guided_regex": REGEX, "guided_choice": CHOICE, "guided_grammar": GRAMMAR}
STRUCTURED = {"json": SCHEMA, "regex": REGEX, "choice": CHOICE, "grammar": GRAMMAR}
"""The fields of vLLM's `structured_outputs`."""


@record(frozen=True)
class Constraint:
    """A grammar ("" for none), and as `warnings` the parts of the request that it doesn't enforce. If it `is_lazy`, it
    applies only from one of the `triggers` on."""

    grammar: str = ""
    warnings: tuple[str, ...] = ()
    is_lazy: bool = False
    triggers: tuple[Trigger, ...] = ()


FREE = Constraint()


@record(frozen=True)
class AnswerForm:
    """The form of an answer. `thinking` describes its reasoning. `preserved_tokens` are control tokens that appear in
    its text. `new_parser` makes the parser of calls and reasoning; it is None if the answer is only text. If `has_text`
    is False, the client sees no text of the answer, and stop words have no effect."""

    constraint: Constraint = FREE
    thinking: Thinking | None = None
    preserved_tokens: tuple[int, ...] = ()
    new_parser: Callable[[], OutputParser] | None = None
    has_text: bool = True


@record(frozen=True)
class Wanted:
    """The field that constrains the answer, its value, and the `kind` of constraint. If `is_strict`, a schema with a
    part that can't be enforced is refused. `warnings` name parts of the field that are ignored."""

    field: str
    value: Any
    is_strict: bool = False
    kind: str = SCHEMA
    warnings: tuple[str, ...] = ()

    @property
    def is_schema(self) -> bool:
        return self.kind == SCHEMA


def read_wanted(body: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Wanted | None:
    """The constraint that a request asks for, else the command line's (in `defaults`), else None. ApiError 400 for two
    constraints at once."""
    given = [Wanted(name, body[name], kind=kind) for name, kind in KINDS.items() if body.get(name) not in (None, "")]
    given += _read_guided(body, "", GUIDED)
    given += read_structured(body.get("structured_outputs"))
    wanted = read_response_format_schema(body.get("response_format"))
    if wanted is not None:
        given.append(Wanted("response_format", *wanted))
    if len(given) > 1:
        raise ApiError(400, f"{given[0].field} and {given[1].field} exclude each other; give only one of them")
    ours = {name: defaults[name] for name in KINDS if name in defaults}
    return given[0] if given else read_wanted(ours) if ours else None


def read_constraint(body: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Constraint:
    """The constraint that a request asks for, as a grammar. ApiError 400 if it can't be used."""
    return constraint_of(read_wanted(body, defaults))


def constraint_of(wanted: Wanted | None) -> Constraint:
    """The grammar of what `read_wanted` has found. ApiError 400 if it can't be used."""
    if wanted is None:
        return Constraint()
    if wanted.is_schema:
        made = make_schema_constraint(wanted.field, wanted.value, wanted.is_strict)
        return replace(made, warnings=(*made.warnings, *wanted.warnings))
    if wanted.kind == CHOICE:
        return Constraint(_make_grammar(wanted), wanted.warnings)
    if not isinstance(wanted.value, str):
        raise ApiError(400, f"{wanted.field}: {str(wanted.value)[:60]!r} is not a string")
    return Constraint(_make_grammar(wanted) if wanted.kind == REGEX else check_grammar(wanted.value), wanted.warnings)


def read_structured(value: Any) -> list[Wanted]:
    """The constraints in vLLM's `structured_outputs`. ApiError 400, also for structural tags."""
    if value is None:
        return []
    if not isinstance(value, dict):
        raise ApiError(400, f"structured_outputs is not an object with {', '.join(STRUCTURED)} or json_object")
    if value.get("structural_tag") is not None:
        raise ApiError(400, "structured_outputs.structural_tag is not supported; give a grammar or tools")
    found = _read_guided(value, "structured_outputs.", STRUCTURED)
    if value.get("json_object"):
        found.append(Wanted("structured_outputs.json_object", get_any_object()))
    others = [name for name in value if value[name] and name not in (*STRUCTURED, "json_object")]
    if not others:
        return found
    if not found:
        raise ApiError(400, f"structured_outputs has none of {', '.join(STRUCTURED)}, json_object")
    warning = f"structured_outputs: unknown and ignored: {format_names(others)}"
    return [replace(found[0], warnings=(warning,)), *found[1:]]


def _read_guided(body: Mapping[str, Any], where: str, kinds: Mapping[str, str]) -> list[Wanted]:
    """The constraints in fields with vLLM's names. There, a schema may also be JSON text."""
    found = []
    for name, kind in kinds.items():
        value = body.get(name)
        if value not in (None, ""):
            if kind == SCHEMA and isinstance(value, str):
                value = _schema_of_text(where + name, value)
            found.append(Wanted(where + name, value, kind=kind))
    return found


def _schema_of_text(name: str, text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "replace"))
    except ApiError as error:
        raise ApiError(400, f"{name}: {error.message}") from None


def read_response_format_schema(value: Any) -> tuple[Any, bool] | None:
    """The schema that a `response_format` asks for, and whether it is strict; None for free text."""
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ApiError(400, "response_format: give an object with a type")
    kind = value["type"]
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return get_any_object() if schema is None else schema, False
    if kind == "json_schema":
        inner = value.get("json_schema", value)
        if not isinstance(inner, dict) or inner.get("schema") is None:
            raise ApiError(400, "response_format.json_schema: the schema is missing")
        strict = inner.get("strict")
        if strict is not None and not isinstance(strict, bool):
            raise ApiError(400, f"response_format.json_schema.strict: {str(strict)[:40]!r} is not true or false")
        return inner["schema"], bool(strict)
    raise ApiError(400, f"response_format: type '{kind[:40]}' is unknown; use one of text, json_object, json_schema")


def get_any_object() -> Any:
    from server.grammar.json_schema.convert import ANY_OBJECT

    return ANY_OBJECT


def make_schema_constraint(name: str, schema: Any, strict: bool) -> Constraint:
    from server.grammar.json_schema.convert import SchemaError, convert

    try:
        conversion = convert(schema, strict=strict)
    except SchemaError as error:
        raise ApiError(400, f"{name}: {error}") from None
    return Constraint(check_grammar(conversion.grammar), tuple(conversion.warnings))


def _make_grammar(wanted: Wanted) -> str:
    from server.grammar.regex_gbnf import Unsupported, make_choice_grammar, make_regex_grammar

    make = make_choice_grammar if wanted.kind == CHOICE else make_regex_grammar
    try:
        grammar = make(wanted.value)
    except (Unsupported, ValueError) as error:
        raise ApiError(400, f"{wanted.field}: {error}") from None
    return check_grammar(grammar)


def check_grammar(grammar: str) -> str:
    """The grammar for llama.cpp, rewritten if it would be slow. ApiError 400 with line and column if it is wrong."""
    affordable, fault = _check_affordable(grammar)
    if fault:
        raise ApiError(400, f"Failed to parse grammar: {fault}", param="grammar")
    return affordable


@lru_cache(maxsize=256)
def _check_affordable(grammar: str) -> tuple[str, str]:
    from server.grammar import gbnf, gbnf_rewrite

    try:
        return gbnf_rewrite.make_affordable(grammar), ""
    except gbnf.GrammarError as error:
        return "", str(error)


def prepare() -> None:
    """Import the modules for which the first request with a constraint would have to wait."""
    from server.grammar import gbnf_rewrite  # noqa: F401
    from server.grammar.json_schema import convert as json_schema  # noqa: F401
