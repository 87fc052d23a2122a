"""From `messages` to prompt tokens: checks, the chat template, and tokens that users can't forge. Connection thread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.api.request.fields import listed
from server.api.request.media import PARTS, Files
from server.api.request.prompt import Prompt, tokenize_all
from server.chat.segments import Segments, is_text, plain_text
from server.errors import ApiError
from server.models.model import Model
from server.records import record

ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_MESSAGES = 20_000
CONTENT_TYPES = ("text", "input_text", "output_text", "refusal")
FIELD_TYPES = {
    "name": (str, "a string"),
    "tool_call_id": (str, "a string"),
    "reasoning_content": (str, "a string"),
    "tool_calls": (list, "a list of objects"),
}
MAX_ARGUMENTS = 2 << 20  # characters of all tool calls: they may be read as JSON once more
EFFORT_VARIABLES = ("reasoning_effort", "reasoning_strength")  # how templates call what requests name by the first
REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")


@record(frozen=True)
class ChatPrompt:
    """A rendered conversation: its text, the prompt that it makes, the text that the answer goes on with (assistant
    prefill), and as warnings what of the request the model doesn't get to see."""

    text: str
    prompt: Prompt
    prefill: str = ""
    warnings: tuple[str, ...] = ()


def chat_prompt(model: Model, body: Mapping[str, Any], files: Files | None = None) -> ChatPrompt:
    """Render and tokenise `messages` with the model's template. ApiError 400 says which message is wrong."""
    files = files or Files(model)
    messages = check_messages(body.get("messages"), files)
    check_reasoning_format(body)
    prefill = None
    add_generation_prompt = flag(body, "add_generation_prompt", True)
    continues = flag(body, "continue_final_message", None)
    if continues and body.get("add_generation_prompt"):
        raise ApiError(400, "continue_final_message and add_generation_prompt exclude each other")
    is_open = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    if continues and not is_open:
        raise ApiError(400, "continue_final_message: the last message is not one of the assistant")
    if is_open and continues is not False and (add_generation_prompt or continues):
        prefill = plain_text(messages[-1].get("content"))
        messages, add_generation_prompt = messages[:-1], True
    variables = template_variables(model, body)
    segments = render(model, messages, bool(add_generation_prompt), variables)
    warnings = left_out(model, body, messages, variables)
    if prefill:
        segments = [*segments, (prefill, True)]
    text = "".join(part for part, _ in segments)
    model.vocab.measure(text)
    prompt = tokenize_all(model.vocab, segments, model.chat_template.bos_token, not model.system_prompt.prompt, files)
    return ChatPrompt(files.shown(text), prompt, files.shown(prefill or ""), warnings)


def check_messages(messages: object, files: Files | None = None) -> list[dict[str, Any]]:
    """`messages` as a list of objects with a role and readable content; ApiError names the first bad one.

    Images and sounds go into `files`, and a text with a marker takes their place.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: give a non-empty list of messages")
    if len(messages) > MAX_MESSAGES:
        raise ApiError(400, f"messages: {len(messages)} are too many, at most {MAX_MESSAGES} are allowed")
    checked = [_check_message(i, message, files) for i, message in enumerate(messages)]
    n = sum(len(text) for message in checked for text in map(_arguments, message.get("tool_calls") or ()))
    if n > MAX_ARGUMENTS:
        raise ApiError(
            400,
            f"messages: {n} characters of arguments of tool calls are too many, at most {MAX_ARGUMENTS} are allowed",
        )
    return checked


def _check_message(i: int, message: object, files: Files | None) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ApiError(400, f"messages[{i}] is not an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise ApiError(400, f"messages[{i}].role: {str(role)[:40]!r} is not a role")
    if content is None and not message.get("tool_calls") and role != "assistant":
        raise ApiError(400, f"messages[{i}].content is missing")
    if isinstance(content, list):
        content = [_marked_part(part, f"messages[{i}].content[{k}]", files) for k, part in enumerate(content)]
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
        if value is not None and not (isinstance(value, kind) and (kind is str or all_objects(value))):
            raise ApiError(400, f"messages[{i}].{name} is not {kind_name}")
    return {**message, "content": "" if content is None else content}


def _arguments(call: Mapping[str, Any]) -> str:
    """A tool call's arguments where they are a text."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    return arguments if isinstance(arguments, str) else ""


def _marked_part(part: object, where: str, files: Files | None) -> object:
    """A text with a marker in place of an image or a sound."""
    if files is not None and isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in PARTS:
        return {"type": "text", "text": files.add_part(part, where), "is_media": True}
    return part


def template_variables(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a template may read besides the messages: tools, and `chat_template_kwargs` of server and request."""
    given = body.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise ApiError(400, "chat_template_kwargs: give an object")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all_objects(tools)):
        raise ApiError(400, "tools: give a list of objects")
    variables = {**model.template_kwargs, **(given or {}), **effort_variables(body)}
    if tools:
        variables["tools"] = tools
    return variables


def effort_variables(body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's `reasoning_effort` as variables of templates; `none` is no reasoning."""
    effort = body.get("reasoning_effort")
    if effort is None or effort == "":
        return {}
    if not isinstance(effort, str):
        raise ApiError(400, f"reasoning_effort: {str(effort)[:40]!r} is not a string")
    return {"enable_thinking": False} if effort == "none" else dict.fromkeys(EFFORT_VARIABLES, effort)


def left_out(
    model: Model, body: Mapping[str, Any], messages: list[dict[str, Any]], variables: Mapping[str, Any]
) -> tuple[str, ...]:
    """What the template has no place for, as warnings."""
    given, effort = body.get("chat_template_kwargs") or {}, effort_variables(body)
    found = model.chat_template.leaves_out(messages, variables, [*given, *effort])
    lines = []
    if found.tools:
        lines.append("tools: this model's chat template doesn't show them to the model")
    if found.calls:
        lines.append("messages: this model's chat template leaves tool calls out")
    if effort and all(name in found.variables for name in effort):
        lines.append("reasoning_effort has no effect: this model's chat template doesn't read it")
    unread = [name for name in found.variables if name in given]
    if unread:
        lines.append(f"chat_template_kwargs: this model's chat template doesn't read {listed(unread)}")
    return tuple(lines)


def render(
    model: Model, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> Segments:
    """The template's segments; its errors become 400."""
    template = model.chat_template
    from server.chat.jinja import TemplateError  # here, because the line before has imported it

    try:
        return template.render(messages, add_generation_prompt, variables)
    except TemplateError as error:
        where: dict[str, Any] = {} if error.message_index is None else {"param": f"messages[{error.message_index}]"}
        raise ApiError(400, f"the chat template can't render these messages: {error}", **where) from None


def check_reasoning_format(body: Mapping[str, Any]) -> None:
    """The field is known, and does nothing until reasoning is parsed."""
    value = body.get("reasoning_format")
    if value is not None and value not in REASONING_FORMATS:
        known = ", ".join(REASONING_FORMATS)
        raise ApiError(400, f"reasoning_format: {str(value)[:40]!r} is unknown; known are {known}")


def all_objects(values: list[object]) -> bool:
    """Whether all are JSON objects."""
    return all(isinstance(value, dict) for value in values)


def flag(body: Mapping[str, Any], name: str, default: bool | None) -> bool | None:
    """A boolean field; absent or null gives `default`."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(400, f"{name}: {str(value)[:40]!r} is not true or false")
    return value
