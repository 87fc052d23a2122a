"""From `messages` to prompt tokens: checks, the chat template, and tokens that users can't forge. Connection thread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from server.api.context import Context, Vocab
from server.chat.jinja import TemplateError
from server.chat.template import Segments, is_text, plain_text
from server.errors import ApiError

ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_MESSAGES = 20_000
CONTENT_TYPES = ("text", "input_text", "output_text", "refusal")


@dataclass(slots=True, frozen=True)
class ChatPrompt:
    """A rendered conversation: its text, its tokens, and the text that the answer goes on with (assistant prefill)."""

    text: str
    tokens: tuple[int, ...]
    prefill: str = ""


def chat_prompt(context: Context, body: Mapping[str, object]) -> ChatPrompt:
    """Render and tokenise `messages` with the server's template. ApiError 400 says which message is wrong."""
    messages = check_messages(body.get("messages"))
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
    segments = render(context, messages, add_generation_prompt, template_variables(context, body))
    if prefill:
        segments = [*segments, (prefill, True)]
    text = "".join(part for part, _ in segments)
    tokens = tokenize_segments(context.engine.vocab, segments, context.chat_template.bos_token)
    return ChatPrompt(text, tuple(tokens), prefill or "")


def check_messages(messages: object) -> list[dict[str, object]]:
    """`messages` as a list of objects with a role and readable content; ApiError names the first bad one."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: give a non-empty list of messages")
    if len(messages) > MAX_MESSAGES:
        raise ApiError(400, f"messages: {len(messages)} are too many, at most {MAX_MESSAGES} are allowed")
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(i: int, message: object) -> dict[str, object]:
    if not isinstance(message, dict):
        raise ApiError(400, f"messages[{i}] is not an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise ApiError(400, f"messages[{i}].role: {str(role)[:40]!r} is not a role")
    if content is None and not message.get("tool_calls") and role != "assistant":
        raise ApiError(400, f"messages[{i}].content is missing")
    if isinstance(content, list):
        for k, part in enumerate(content):
            if not is_text(part):
                kind = part.get("type") if isinstance(part, dict) else part
                known = kind in CONTENT_TYPES
                reason = "has no text" if known else f"is of type {str(kind)[:40]!r}, which this model can't read"
                raise ApiError(400, f"messages[{i}].content[{k}] {reason}")
    elif content is not None and not isinstance(content, str):
        raise ApiError(400, f"messages[{i}].content is neither a string nor a list of parts")
    return {**message, "content": "" if content is None else content}


def template_variables(context: Context, body: Mapping[str, object]) -> dict[str, object]:
    """What a template may read besides the messages: tools, and `chat_template_kwargs` of server and request."""
    given = body.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise ApiError(400, "chat_template_kwargs: give an object")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ApiError(400, "tools: give a list of objects")
    variables = {**context.template_kwargs, **(given or {})}
    if tools:
        variables["tools"] = tools
    return variables


def render(context: Context, messages: list[dict[str, object]], add_generation_prompt: bool,
           variables: Mapping[str, object]) -> Segments:
    """The template's segments; its errors become 400."""
    try:
        return context.chat_template.render(messages, add_generation_prompt, variables)
    except TemplateError as error:
        where = {} if error.message_index is None else {"param": f"messages[{error.message_index}]"}
        raise ApiError(400, f"the chat template can't render these messages: {error}", **where) from None


def tokenize_segments(vocab: Vocab, segments: Segments, bos_token: str) -> list[int]:
    """Token ids of a rendered prompt in which no user text has become a special token.

    Usually the whole text is tokenised at once, as the model has seen it in training. Only where that gives special
    tokens that the template itself didn't write is each segment tokenised alone, users' ones as plain text.
    """
    text = "".join(part for part, _ in segments)
    add_special = not (bos_token and text.startswith(bos_token))
    tokens = vocab.tokenize(text, add_special, True)
    if not any(is_user for _, is_user in segments):
        return tokens
    own = [token for part, is_user in segments if not is_user for token in vocab.tokenize(part, False, True)
           if vocab.is_control(token)]
    bos = vocab.tokenize("", add_special, True)
    if sum(map(vocab.is_control, tokens)) == len(own) + sum(map(vocab.is_control, bos)):
        return tokens
    return bos + [token for part, is_user in segments for token in vocab.tokenize(part, False, not is_user)]


def flag(body: Mapping[str, object], name: str, default: bool | None) -> bool | None:
    """A boolean field; absent or null gives `default`."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(400, f"{name}: {str(value)[:40]!r} is not true or false")
    return value
