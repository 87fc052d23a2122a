"""Writes tools, calls and results as plain text, for templates that don't render them. Pure, any thread.

The model must see the whole conversation. A system message lists the tools and explains how to call one. Earlier calls
become part of the assistant's text, in the form that the model is asked to write. Results become part of the user's
text. Only the explanation and the marks around calls may become special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.adapt import SYSTEM_ROLES, join_texts, read_object
from server.chat.jinja.marked import Marked, concat
from server.chat.output.formats import CallFormat
from server.chat.output.write_calls import WrittenCall, put_together, write_call, write_calls
from server.chat.segments import read_plain_text

Message = Mapping[str, Any]
EXAMPLE = WrittenCall("name_of_the_function", {"name_of_an_argument": "value"}, "000000000")


def explain_calls(format: CallFormat) -> str:
    """The text before the list of tools in the system message."""
    many = " Several calls may follow each other." if format.can_be_many else ""
    return (
        "You may call functions where they help. A call is written like this, with all its marks, and nothing follows "
        f"it:\n{write_calls(format, [EXAMPLE])}\n"
        f"Its arguments have to fit the schema of the function.{many} The results come with the next message.\n\n"
        "These are the functions:\n"
    )


def show_tools(messages: Sequence[Message], tools: Sequence[Message], format: CallFormat) -> list[Message]:
    """Put a system message with the tools first. If it replaces a system message, that one's text follows the tools."""
    lines = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
    has_system = bool(messages) and messages[0].get("role") in SYSTEM_ROLES
    own = read_plain_text(messages[0].get("content")) if has_system else ""
    content = concat([explain_calls(format), Marked("\n".join([*lines, *(["", own] if own else [])]))])
    return [{"role": "system", "content": content}, *messages[has_system:]]


def spell_calls(messages: Sequence[Message], format: CallFormat) -> list[Message]:
    spelled = []
    n_calls = 0
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            text = read_plain_text(message.get("content"))
            written = [Marked(write_call(format, _to_written_call(call, n_calls + i))) for i, call in enumerate(calls)]
            n_calls += len(written)
            content = concat([Marked(f"{text}\n" if text else ""), *put_together(format, written)])
            message = {**{key: message[key] for key in message if key != "tool_calls"}, "content": content}
        spelled.append(message)
    return spelled


def spell_results(messages: Sequence[Message]) -> list[Message]:
    """Turn tool results into user messages, joined with each other and with the user's next one."""
    groups: list[list[Message]] = []
    is_behind_result = False
    for message in messages:
        is_result = message.get("role") == "tool"
        if is_result:
            content = f"<tool_response>\n{read_plain_text(message.get('content'))}\n</tool_response>"
            message = {"role": "user", "content": content}
        if is_behind_result and message.get("role") == "user":
            groups[-1].append(message)
        else:
            groups.append([message])
        is_behind_result = is_result
    return [join_texts(group, "\n") if len(group) > 1 else group[0] for group in groups]


def _to_written_call(call: Message, index: int) -> WrittenCall:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = read_object(function.get("arguments") or {})
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}  # not a JSON object, as in an answer that was cut off
    return WrittenCall(str(function.get("name", "")), arguments, str(call.get("id") or ""), index)
