"""Converts the messages of a conversation into the form that a chat template reads. Pure, any thread.

Messages come in OpenAI's form. `Probe` knows which forms the template reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.probe import REASONING_KEYS, Message, Probe
from server.chat.segments import is_text, read_plain_text

SYSTEM_ROLES = ("system", "developer")
BLANK_LINE = "\n\n"
"""Separates the messages that `place_system` joins, as in templates that join system and user messages themselves."""
SHORT_ID = re.compile("[A-Za-z0-9]{9}")


def adapt(messages: Sequence[Message], probe: Probe) -> list[dict[str, Any]]:
    """The messages in the template's form, as a new list."""
    named = name_results(place_system(rename_developer(messages, probe), probe))
    named = split_calls(shorten_ids(named, probe), probe)
    return [adapt_content(adapt_calls(adapt_reasoning(message, probe), probe), probe) for message in named]


def rename_developer(messages: Sequence[Message], probe: Probe | None) -> list[Message]:
    """Rename the role `developer` (OpenAI's newer name) to `system`, unless the template knows it."""
    if not any(message.get("role") == "developer" for message in messages) or probe and probe.knows_developer:
        return list(messages)
    return [{**message, "role": "system"} if message.get("role") == "developer" else message for message in messages]


def place_system(messages: list[Message], probe: Probe) -> list[Message]:
    """Change the system messages that the template doesn't render. Those at the beginning are joined into one, if the
    template renders that. Any other becomes a user message, joined with adjacent ones."""
    is_system = [message.get("role") in SYSTEM_ROLES for message in messages]
    n_first = (*is_system, False).index(False)
    is_question = not messages or messages[-1].get("role") == "user"
    reads_first = n_first and (probe.reads_system if is_question else probe.reads_system_without_question)
    if (not n_first or reads_first) and (sum(is_system) == n_first <= 1 or probe.reads_later_system):
        return messages
    groups: list[list[Message]] = [messages[:n_first]] if reads_first else []
    was_moved = False
    for message in messages[n_first if reads_first else 0 :]:
        is_moved = message.get("role") in SYSTEM_ROLES
        if is_moved:
            message = {**message, "role": "user"}
        if groups and (is_moved or was_moved) and groups[-1][-1].get("role") == message.get("role") == "user":
            groups[-1].append(message)
        else:
            groups.append([message])
        was_moved = is_moved
    return [join_texts(group, BLANK_LINE) if len(group) > 1 else group[0] for group in groups]


def join_texts(messages: Sequence[Message], between: str) -> Message:
    texts = [text for message in messages if (text := read_plain_text(message.get("content")))]
    return {**messages[-1], "role": messages[0]["role"], "content": between.join(texts)}


def name_results(messages: Sequence[Message]) -> list[Message]:
    """Add the tool's name to tool results. Clients often send only the id of the call."""
    names: dict[str, Any] = {}
    named = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call.get("id"), str) and isinstance(call.get("function"), dict):
                names[call["id"]] = call["function"].get("name")
        name = names.get(message.get("tool_call_id") or "") if message.get("role") == "tool" else None
        named.append({**message, "name": name} if name and not message.get("name") else message)
    return named


def split_calls(messages: list[Message], probe: Probe) -> list[Message]:
    """If the template renders only one call per message, split messages with several calls: one message for each call,
    followed by the call's results."""
    if all(len(message.get("tool_calls") or ()) < 2 for message in messages) or probe.reads_many_calls:
        return messages
    split: list[Message] = []
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            split.append(message)
            continue
        end = next((i for i in range(at, len(messages)) if messages[i].get("role") != "tool"), len(messages))
        results, at = messages[at:end], end
        for i, call in enumerate(calls):
            split.append({**message, "content": "" if i else message.get("content"), "tool_calls": [call]})
            split += [result for result in results if _is_result_of(result, call, calls, i)]
    return split


def _is_result_of(result: Message, call: Message, calls: Sequence[Message], i: int) -> bool:
    """Whether a result belongs to `call`, which is `calls[i]`. One with an unknown id belongs to the last call."""
    result_id = result.get("tool_call_id")
    if any(one.get("id") == result_id for one in calls):
        return result_id == call.get("id")
    return i == len(calls) - 1


def shorten_ids(messages: list[Message], probe: Probe) -> list[Message]:
    """If the template accepts only call ids of nine letters and digits, replace all others, such as another model's."""
    ids = [call.get("id") for message in messages for call in message.get("tool_calls") or ()]
    strange = {call_id for call_id in ids if isinstance(call_id, str) and not SHORT_ID.fullmatch(call_id)}
    if not strange or not probe.wants_short_ids:
        return messages
    short = {call_id: hashlib.sha256(call_id.encode()).hexdigest()[:9] for call_id in strange}
    return [_replace_ids(message, short) for message in messages]


def _replace_ids(message: Message, ids: Mapping[str, str]) -> Message:
    if message.get("tool_calls"):
        calls = [{**call, "id": ids.get(call.get("id"), call.get("id"))} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    old = message.get("tool_call_id")
    return {**message, "tool_call_id": ids[old]} if isinstance(old, str) and old in ids else message


def adapt_reasoning(message: Message, probe: Probe) -> Message:
    """Put the assistant's reasoning under the key that the template reads. If the template refuses text beside
    reasoning and calls, the text is appended to the reasoning."""
    if message.get("role") != "assistant":
        return message
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key) and isinstance(message[key], str)), "")
    key = probe.reasoning_key if reasoning else ""
    if not key or message.get(key) == reasoning:
        return message
    if key == "content":
        return {**message, "content": [{"type": "thinking", "thinking": reasoning}, *make_text_parts(message)]}
    if message.get("tool_calls") and message.get("content") and probe.refuses_text_beside_reasoning:
        reasoning, message = f"{reasoning}\n{read_plain_text(message['content'])}", {**message, "content": ""}
    return {**message, key: reasoning}


def adapt_calls(message: Message, probe: Probe) -> Message:
    """In a message with calls, make arguments an object or JSON text, and empty content "" or None, as the template
    needs."""
    calls = message.get("tool_calls")
    if not calls:  # an empty list is removed, since some templates only test whether the key exists
        return {key: message[key] for key in message if key != "tool_calls"} if "tool_calls" in message else message
    if probe.call_form is None:
        return message
    content, wants_object = probe.call_form
    adapted = {**message, "tool_calls": [_adapt_call(call, wants_object) for call in calls]}
    return adapted if message.get("content") else {**adapted, "content": content}


def _adapt_call(call: Mapping[str, Any], wants_object: bool) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if wants_object:
        arguments = {} if arguments in (None, "") else read_object(arguments)
    elif not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def read_object(arguments: object) -> object:
    """Parse JSON text to an object. Anything else is returned unchanged, such as the arguments of a call that was cut
    off."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def adapt_content(message: Message, probe: Probe) -> dict[str, Any]:
    """Make text a list of parts if the template needs a list, or if the client sent a list without media and the
    template reads lists. Any other list of texts becomes one text."""
    content = message.get("content")
    if isinstance(content, str) and probe.wants_parts:
        return {**message, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, list) or not all(is_text(part) for part in content):
        return dict(message)
    has_media = any(part.get("is_media") for part in content)
    if probe.wants_parts or not has_media and probe.can_read_parts(str(message.get("role"))):
        return {**message, "content": make_text_parts(message)}
    return {**message, "content": read_plain_text(content)}


def make_text_parts(message: Message) -> list[dict[str, Any]]:
    content = message.get("content")
    texts = [part["text"] for part in content if is_text(part)] if isinstance(content, list) else [content or ""]
    return [{"type": "text", "text": text} for text in texts]
