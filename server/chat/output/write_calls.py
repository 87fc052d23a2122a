"""Writes calls in a `CallFormat`, as the model would write them.

Pure. Used for templates that don't show a model how to call or don't render earlier calls, and to check the format that
was found for a template.
"""

from __future__ import annotations

import json
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
from server.records import record


@record(frozen=True)
class WrittenCall:
    """A call with everything that a format may contain. `index` is its number in the conversation, from 0."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    index: int = 0


def write_calls(format: CallFormat, calls: Sequence[WrittenCall]) -> str:
    return "".join(put_together(format, [write_call(format, call) for call in calls]))


def put_together(format: CallFormat, written: Sequence[str]) -> list[str]:
    """The parts of the text of all calls: written calls, with the marks around and between them."""
    parts = [format.before_all]
    for i, call in enumerate(written):
        parts += [format.between if i else "", format.before_call, call, format.after_call]
    return [*parts, format.after_all]


def write_call(format: CallFormat, call: WrittenCall) -> str:
    """One call, without `before_call` and `after_call`."""
    kind = format.call
    if isinstance(kind, JsonCall):
        return _write_json_call(kind, call)
    if isinstance(kind, KeyedCall):
        return to_json({call.name: call.arguments})
    if isinstance(kind, NamedCall):
        return _write_named_call(kind, call)
    if isinstance(kind, ParameterCall):
        return _write_parameter_call(kind, call)
    if isinstance(kind, PythonCall):
        return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
    if isinstance(kind, ChannelCall):
        return kind.start + call.name.join(kind.call_head) + to_json(call.arguments)
    return kind.before_name + call.name + kind.after_name + _write_quoteless(kind, call.arguments)


def to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_json_call(kind: JsonCall, call: WrittenCall) -> str:
    ids = {kind.id_key: str(call.index) if kind.id_is_number else call.id} if kind.id_key else {}
    body = {kind.name_key: call.name, kind.arguments_key: call.arguments}
    return to_json({**ids, **body} if kind.id_first else {**body, **ids})


def _write_named_call(kind: NamedCall, call: WrittenCall) -> str:
    call_id = kind.before_id + call.id if kind.before_id else ""
    index = _index(kind, call)
    head = [call_id, kind.before_name + call.name] if kind.id_first else [kind.before_name + call.name, call_id]
    return "".join(head) + index + kind.after_name + to_json(call.arguments) + kind.after_arguments


def _write_parameter_call(kind: ParameterCall, call: WrittenCall) -> str:
    after_name = kind.after_name.replace(NAME, call.name)
    arguments = "".join(
        f"{kind.before_key}{key}{kind.after_key}{_mark(kind, value)}{_write_plain(value)}"
        f"{kind.after_value.replace(KEY, key)}"
        for key, value in call.arguments.items()
    )
    return kind.before_name + call.name + _index(kind, call) + after_name + arguments + kind.after_arguments


def _index(kind: NamedCall | ParameterCall, call: WrittenCall) -> str:
    return f"{kind.before_index}{kind.first_index + call.index}" if kind.before_index else ""


def _mark(kind: ParameterCall, value: object) -> str:
    if not kind.string_mark:
        return ""
    return kind.string_mark[min(get_kind_number(value), len(kind.string_mark) - 1)] + kind.after_mark


def get_kind_number(value: object) -> int:
    """The index of a value's mark in a `string_mark` that has one mark for each type."""
    kinds = {str: 0, bool: 2, type(None): 3, dict: 4, list: 5}
    return kinds.get(type(value), 1)


def _write_plain(value: object) -> str:
    return value if isinstance(value, str) else to_json(value)


def _write_quoteless(kind: QuotelessCall, value: object) -> str:
    if isinstance(value, str):
        return kind.quote + value + kind.quote
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_write_quoteless(kind, item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_write_quoteless(kind, item) for item in value) + "]"
    return to_json(value)
