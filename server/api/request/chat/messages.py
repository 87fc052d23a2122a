"""Makes a prompt from `messages`: checks them, renders the chat template, tokenises the result so that users' text
can't become special tokens. Connection thread."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.api.request.chat.places import Origin
from server.api.request.chat.reasoning import ReasoningWish, make_reasoning_variables, read_reasoning
from server.api.request.chat.tools import Tools, read_tools
from server.api.request.fields import CHAT_FIELDS, format_names
from server.api.request.media import PARTS, Files
from server.api.request.prompt import Prompt, tokenize_all
from server.api.request.schema import read
from server.chat.output.formats import Tags
from server.chat.segments import Segments, is_text, read_plain_text
from server.errors import ApiError
from server.models.model import Model
from server.records import record, replace

ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_MESSAGES = 20_000
CONTENT_TYPES = ("text", "input_text", "output_text", "refusal")
FIELD_TYPES = {
    "name": (str, "a string"),
    "tool_call_id": (str, "a string"),
    "reasoning_content": (str, "a string"),
    "tool_calls": (list, "a list of objects"),
    "function_call": (dict, "an object"),
}
MAX_ARGUMENTS = 2 << 20  # characters of arguments in all tool calls; templates may need them parsed as JSON


@record(frozen=True)
class Conversation:
    """A chat in any dialect. `messages` are checked and have OpenAI's format. The answer begins with `prefill`.
    `variables` are further variables of the template."""

    messages: list[dict[str, Any]]
    tools: Tools
    reasoning: ReasoningWish
    variables: Mapping[str, Any]
    prefill: str = ""
    add_generation_prompt: bool = True
    warnings: tuple[str, ...] = ()


@record(frozen=True)
class ChatPrompt:
    """A rendered conversation. The answer begins with `prefill`. `warnings` name parts of the request that have no
    effect."""

    text: str
    prompt: Prompt
    prefill: str
    tools: Tools
    reasoning: ReasoningWish
    tags: Tags | None
    warnings: tuple[str, ...] = ()


def read_conversation(model: Model, body: Mapping[str, Any], files: Files) -> Conversation:
    """The conversation of a request in OpenAI's format. ApiError 400."""
    values = read(body, CHAT_FIELDS, model.defaults)
    tools = read_tools(values)
    messages = with_tool_calls(check_messages(values["messages"], files))
    variables = make_template_variables(model, values, body, tools)
    reasoning = read_reasoning(values, variables)
    prefill = ""
    add_generation_prompt = values["add_generation_prompt"]
    must_continue = body.get("continue_final_message")
    if must_continue and body.get("add_generation_prompt"):
        raise ApiError(400, "continue_final_message and add_generation_prompt exclude each other")
    is_open = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    if must_continue and not is_open:
        raise ApiError(400, "continue_final_message: the last message is not the assistant's")
    if is_open and values["continue_final_message"] and (add_generation_prompt or must_continue):
        if len(messages) > 1 and messages[-2]["role"] == "assistant":
            raise ApiError(400, "messages: the last two are the assistant's; the answer can continue only one message")
        prefill = read_plain_text(messages[-1].get("content"))
        messages, add_generation_prompt = messages[:-1], True
    warnings = list_unread(model, body)
    return Conversation(messages, tools, reasoning, variables, prefill, add_generation_prompt, warnings)


def make_chat_prompt(model: Model, chat: Conversation, files: Files) -> ChatPrompt:
    """Render a conversation with the model's template and tokenise it. ApiError 400, also for the template's errors."""
    segments = render(model, chat.messages, chat.add_generation_prompt, chat.variables)
    end = "".join(part for part, is_user in segments[-3:] if not is_user)
    tags = model.chat_template.find_reasoning_tags(end, chat.prefill)
    if chat.prefill:
        segments = [*segments, (chat.prefill, True)]
    text = "".join(part for part, _ in segments)
    model.vocab.measure(text)
    prompt = tokenize_all(model.vocab, segments, model.chat_template.bos_token, not model.system_prompt.prompt, files)
    has_answers = bool(chat.prefill) or any(message["role"] == "assistant" for message in chat.messages)
    source = Origin(chat.messages, chat.variables, text, partial(_render_again, model, chat.add_generation_prompt))
    prompt = replace(prompt, may_respell=has_answers and not prompt.media, source=source)
    shown, prefill = files.replace_markers(text), files.replace_markers(chat.prefill)
    return ChatPrompt(shown, prompt, prefill, chat.tools, chat.reasoning, tags, chat.warnings)


def check_messages(messages: object, files: Files | None = None) -> list[dict[str, Any]]:
    """`messages`, checked: a list of objects with a role and content. ApiError 400. Images and sounds are added to
    `files`, and replaced by a text with their marker."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: give a non-empty list of messages")
    require_few(len(messages))
    checked = [_check_message(i, message, files) for i, message in enumerate(messages)]
    require_short_arguments(checked, "messages")
    return checked


def require_few(n: int, field: str = "messages") -> None:
    if n > MAX_MESSAGES:
        raise ApiError(400, f"{field}: {n} are too many, at most {MAX_MESSAGES} are allowed")


def require_short_arguments(messages: Sequence[Mapping[str, Any]], field: str) -> None:
    """ApiError 400 if the arguments of all calls in the messages of `field` are too long."""
    n = sum(len(text) for message in messages for text in map(_get_arguments, message.get("tool_calls") or ()))
    if n > MAX_ARGUMENTS:
        raise ApiError(
            400, f"{field}: {n} characters of arguments of tool calls are too many, at most {MAX_ARGUMENTS} are allowed"
        )


def _check_message(i: int, message: object, files: Files | None) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ApiError(400, f"messages[{i}] is not an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise ApiError(400, f"messages[{i}].role: {str(role)[:40]!r} is not a role")
    if content is None and not message.get("tool_calls") and role != "assistant":
        raise ApiError(400, f"messages[{i}].content is missing")
    if isinstance(content, list):
        content = [_mark_part(part, f"messages[{i}].content[{k}]", files) for k, part in enumerate(content)]
        for k, part in enumerate(content):
            if not is_text(part):
                kind = part.get("type") if isinstance(part, dict) else part
                known = kind in CONTENT_TYPES
                reason = "has no text" if known else f"is of type {str(kind)[:40]!r}, which this model can't read"
                raise ApiError(400, f"messages[{i}].content[{k}] {reason}")
    elif content is not None and not isinstance(content, str):
        raise ApiError(400, f"messages[{i}].content is neither a string nor a list of parts")
    for name, (kind, kind_name) in FIELD_TYPES.items():
        value = message.get(name)
        if value is not None and not (isinstance(value, kind) and (kind is not list or has_only_objects(value))):
            raise ApiError(400, f"messages[{i}].{name} is not {kind_name}")
    for k, call in enumerate(message.get("tool_calls") or ()):
        if call.get("function") is not None:
            _check_call(call["function"], f"messages[{i}].tool_calls[{k}].function")
    if message.get("function_call"):
        _check_call(message["function_call"], f"messages[{i}].function_call")
    return {**message, "content": "" if content is None else content}


def _check_call(function: object, where: str) -> None:
    if not isinstance(function, dict):
        raise ApiError(400, f"{where} is not an object")
    if not isinstance(function.get("name"), str):
        raise ApiError(400, f"{where}.name is not a string")
    if not isinstance(function.get("arguments"), (str, dict, type(None))):
        raise ApiError(400, f"{where}.arguments is neither JSON text nor an object")


def with_tool_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with `tool_calls` and the role `tool` instead of the older `function_call` and the role `function`.
    The older forms have no ids; new ones are made in a form that all templates accept."""
    call_id, result = "", []
    for i, message in enumerate(messages):
        call = message.get("function_call")
        if call and message["role"] == "assistant" and not message.get("tool_calls"):
            call_id = f"call{i:05d}"
            calls = [{"id": call_id, "type": "function", "function": call}]
            message = {**{name: message[name] for name in message if name != "function_call"}, "tool_calls": calls}
        elif message["role"] == "function":
            message = {**message, "role": "tool", **({"tool_call_id": call_id} if call_id else {})}
        result.append(message)
    return result


def _get_arguments(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    return arguments if isinstance(arguments, str) else ""


def _mark_part(part: object, where: str, files: Files | None) -> object:
    """A part of a message. An image or a sound becomes a text with its marker, an assistant's refusal a text."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return part
    if files is not None and part["type"] in PARTS:
        return {"type": "text", "text": files.add_part(part, where), "is_media": True}
    return {"type": "text", "text": part.get("refusal")} if part["type"] == "refusal" else part


def make_template_variables(
    model: Model, values: Mapping[str, Any], body: Mapping[str, Any], tools: Tools
) -> dict[str, Any]:
    """The template's variables besides the messages: tools, settings of reasoning, and the `chat_template_kwargs` of
    server and request."""
    given = values["chat_template_kwargs"]
    ours = {**model.template_kwargs, **make_reasoning_variables(read({}, CHAT_FIELDS, model.defaults))}
    variables = {**ours, **(given or {}), **make_reasoning_variables(read(body, CHAT_FIELDS))}
    if tools.shown:
        variables["tools"] = list(tools.shown)
    return variables


def list_unread(model: Model, body: Mapping[str, Any]) -> tuple[str, ...]:
    """Warnings about fields and variables that the template doesn't read. Turning reasoning off needs no warning if the
    template or the engine can do it."""
    template, given = model.chat_template, body.get("chat_template_kwargs") or {}
    is_off = body.get("enable_thinking") is False or body.get("reasoning_effort") == "none"
    asked = [name for name in ("reasoning_effort", "enable_thinking") if body.get(name)]
    if is_off and (template.call_format.reasoning is not None or not template.list_unread(["enable_thinking"])):
        asked = []
    lines = [
        f"{name} has no effect: this model's chat template doesn't read it" for name in template.list_unread(asked)
    ]
    names = template.list_unread(given)
    if names:
        lines.append(f"chat_template_kwargs: this model's chat template doesn't read {format_names(names)}")
    return tuple(lines)


def render(
    model: Model, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> Segments:
    """The rendered segments. ApiError 400 for an error of the template."""
    template = model.chat_template
    from server.chat.jinja import TemplateError  # here: `chat_template` has loaded it

    try:
        return template.render(messages, add_generation_prompt, variables)
    except TemplateError as error:
        where: dict[str, Any] = {} if error.message_index is None else {"param": f"messages[{error.message_index}]"}
        raise ApiError(400, f"the chat template can't render these messages: {error}", **where) from None


def _render_again(model: Model, add_generation_prompt: bool, messages: Any, variables: Mapping[str, Any]) -> str:
    return "".join(part for part, _ in render(model, messages, add_generation_prompt, variables))


def has_only_objects(values: list[object]) -> bool:
    return all(isinstance(value, dict) for value in values)
