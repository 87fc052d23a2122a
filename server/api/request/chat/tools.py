"""Reads which functions a chat's model may or must call: `tools` and `tool_choice`, or the older `functions` and
`function_call`. Pure; any thread.

An error is an ApiError 400 that names its place in the body. The functions' schemas are checked later, when a
grammar is made from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import ApiError
from server.records import record

AUTO, NONE, REQUIRED = "auto", "none", "required"
MAX_TOOLS = 1024
MAX_CHARACTERS = 2 << 20  # of all tools together, as JSON
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # call formats mark the ends of names with other characters
FIELD_TYPES = {"description": (str, "a string"), "parameters": (dict, "an object"), "strict": (bool, "true or false")}

Tool = Mapping[str, Any]
"""{"type": "function", "function": {"name", "description", "parameters", "strict"}}; all but the name may be absent."""


@record(frozen=True)
class Tools:
    """The tools of a chat. The template gets those in `shown`; the model may call those in `callable`. If `choice` is
    REQUIRED, it must call one. If `is_parallel`, one answer may contain several calls. `is_old`: the request uses
    `functions`, so the answer has the older form, too."""

    shown: tuple[Tool, ...] = ()
    callable: tuple[Tool, ...] = ()
    choice: str = NONE
    is_parallel: bool = True
    is_old: bool = False


def read_tools(values: Mapping[str, Any]) -> Tools:
    """The tools of a chat with these fields. ApiError 400."""
    is_old = values["functions"] not in (None, [])
    if is_old and values["tools"]:
        raise ApiError(400, "tools and functions exclude each other; give tools")
    if is_old:
        tools = [
            check_tool({"function": one}, where, where) for one, where in list_items(values["functions"], "functions")
        ]
        field, strange = "function_call", "tool_choice"
    else:
        tools = [check_tool(one, where, f"{where}.function") for one, where in list_items(values["tools"], "tools")]
        field, strange = "tool_choice", "function_call"
    if values[strange] not in (None, AUTO, NONE):
        raise ApiError(400, f"{strange} goes with {'tools' if is_old else 'functions'}")
    by_name = index_tools(tools, "functions" if is_old else "tools")
    choice, names = _read_choice(values[field], field, tuple(by_name))
    if not tools:
        return Tools()
    return Tools(
        shown=tuple(tools),
        callable=tuple(by_name[name] for name in names) if choice != NONE else (),
        choice=choice,
        is_parallel=values["parallel_tool_calls"] and not is_old and not _is_named(values[field]),
        is_old=is_old,
    )


def list_items(value: object, field: str) -> list[tuple[Any, str]]:
    """The items of a list, each with its place in the request. null is an empty list. ApiError 400."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ApiError(400, f"{field}: give a list of objects")
    if len(value) > MAX_TOOLS:
        raise ApiError(400, f"{field}: {len(value)} are too many, at most {MAX_TOOLS} are allowed", reason="too_many")
    return [(item, f"{field}[{i}]") for i, item in enumerate(value)]


def check_tool(tool: object, where: str, function_where: str) -> Tool:
    """The tool with its type. ApiError 400 for a wrong one."""
    if not isinstance(tool, dict):
        raise ApiError(400, f"{where} is not an object")
    if tool.get("type", "function") != "function":
        raise ApiError(400, f"{where}.type: {str(tool['type'])[:40]!r} is unknown; the only known type is function")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise ApiError(400, f"{function_where} is not an object")
    _check_name(function.get("name"), f"{function_where}.name")
    for name, (kind, kind_name) in FIELD_TYPES.items():
        if function.get(name) is not None and not isinstance(function[name], kind):
            raise ApiError(400, f"{function_where}.{name} is not {kind_name}")
    parameters = function.get("parameters") or {}
    if parameters.get("type", "object") != "object":
        raise ApiError(400, f"{function_where}.parameters.type: {str(parameters['type'])[:40]!r} is not object")
    return {"type": "function", **tool}


def _check_name(value: object, where: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ApiError(
            400, f"{where}: {str(value)[:40]!r} is not a function name of 1 to 128 ASCII letters, digits, and _ . -"
        )
    return value


def index_tools(tools: Sequence[Tool], field: str) -> dict[str, Tool]:
    """The tools by name. ApiError 400 if two have the same name, or all together are too large."""
    by_name: dict[str, Tool] = {}
    for i, tool in enumerate(tools):
        if by_name.setdefault(tool["function"]["name"], tool) is not tool:
            raise ApiError(400, f"{field}[{i}]: the name '{tool['function']['name']}' is taken")
    n = len(json.dumps(tools, ensure_ascii=False))
    if n > MAX_CHARACTERS:
        raise ApiError(400, f"{field}: {n} characters are too many, at most {MAX_CHARACTERS} are allowed")
    return by_name


def _read_choice(value: object, field: str, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The choice in `field`, and the functions that it allows (for NONE: all). ApiError 400."""
    known = (AUTO, NONE) if field == "function_call" else (AUTO, NONE, REQUIRED)
    if value is None:
        return AUTO, names
    if isinstance(value, str):
        if value not in known:
            raise ApiError(400, f"{field}: {value[:40]!r} is unknown; use one of {', '.join(known)} or an object")
        if value == REQUIRED and not names:
            raise ApiError(400, f"{field}: there are no tools to call")
        return value, names
    if not isinstance(value, dict):
        raise ApiError(400, f"{field}: {str(value)[:40]!r} is neither a string nor an object")
    if field == "function_call":
        return REQUIRED, (read_known_name(value, field, names),)
    if value.get("type") == "function":
        if "name" in value and "function" not in value:  # the form of /v1/responses; some clients also send it in chats
            return REQUIRED, (read_known_name(value, field, names),)
        return REQUIRED, (read_known_name(value.get("function"), f"{field}.function", names),)
    if value.get("type") == "allowed_tools":
        return _read_allowed_tools(value.get("allowed_tools"), f"{field}.allowed_tools", names)
    raise ApiError(400, f"{field}.type: {str(value.get('type'))[:40]!r} is unknown; use one of function, allowed_tools")


def _read_allowed_tools(value: object, where: str, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} is not an object")
    if value.get("mode") not in (AUTO, REQUIRED):
        raise ApiError(400, f"{where}.mode: {str(value.get('mode'))[:40]!r} is neither auto nor required")
    allowed = set()
    for tool, place in list_items(value.get("tools"), f"{where}.tools"):
        if not isinstance(tool, dict):
            raise ApiError(400, f"{place} is not an object")
        allowed.add(read_known_name(tool.get("function"), f"{place}.function", names))
    if not allowed:
        raise ApiError(400, f"{where}.tools: give one at least")
    return value["mode"], tuple(name for name in names if name in allowed)


def read_known_name(function: object, where: str, names: tuple[str, ...]) -> str:
    """The `name` in an object, which must be a tool's name. ApiError 400."""
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(400, f"{where}.name is not a string")
    if function["name"] not in names:
        raise ApiError(400, f"{where}.name: there is no function {function['name'][:40]!r} among the tools")
    return function["name"]


def _is_named(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("type") != "allowed_tools"
