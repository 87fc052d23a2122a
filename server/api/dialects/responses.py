"""The dialect of POST /v1/responses, OpenAI's newer interface: items in, items out. Connection thread.

An item is a message, a call, a call's result or what the model has thought. Here those that the model has said in a row
become one message of a `Conversation`. A response may go on from an earlier one or from a conversation, whose items are
stored (`server/api/stored`); what the store has to know of a request is its `Exchange`.

A tool that takes text (`custom`) is a function with one argument to the model. What a model thinks is sent as a summary
where one is asked for, since who asks for it shows nothing else, and else in its own words; the text is the same.
"""

from __future__ import annotations

import json
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from server import memory
from server.api.context import Context
from server.api.dialects.dialect import Dialect
from server.api.dialects.response_events import (
    IN_PROGRESS,
    INCOMPLETE,
    LOGPROBS,
    QUEUED,
    Exchange,
    ResponsesReply,
    unseal,
)
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import (
    ChatPrompt,
    Conversation,
    chat_prompt,
    require_few,
    require_short_arguments,
    template_variables,
    unread,
)
from server.api.request.chat.parts import Part, joined, one_of, required, text_part
from server.api.request.chat.reasoning import read_reasoning
from server.api.request.chat.tools import AUTO, NONE, REQUIRED, Tools, check_tool, known_name, list_items, tools_by_name
from server.api.request.constraints import Wanted, read_wanted, response_format_schema
from server.api.request.fields import CHAT_FIELDS, RESPONSES, listed
from server.api.request.media import Files, decode
from server.api.request.sampling import strings
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS, read
from server.api.request.text_request import Incoming, TextRequest, text_request
from server.errors import ApiError
from server.models.model import Model
from server.records import replace

Message = dict[str, Any]
Placed = tuple[Any, str]
"""An item, and its place in the request."""

ROLES = ("user", "assistant", "system", "developer")
TRUNCATIONS = ("auto", "disabled")
CHOICES = (AUTO, NONE, REQUIRED)
FORMATS = ("text", "json_object", "json_schema")
SYNTAXES = ("regex", "lark")
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512  # of metadata
N_TOKEN = 24  # bytes of what is drawn for an id
PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
FOREIGN = (
    *("additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction"),
    *("computer_call", "computer_call_output", "configuration_update", "file_search_call", "image_generation_call"),
    *("local_shell_call", "local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call"),
    *("mcp_list_tools", "program", "program_output", "shell_call", "shell_call_output", "tool_search_call"),
    *("tool_search_output", "web_search_call"),
)
"""Items about tools that OpenAI's own servers have."""


# ---- requests ---------------------------------------------------------------------------------------------------


def read_response(incoming: Incoming) -> TextRequest:
    """A request for a response."""
    context, model, body = incoming.context, incoming.model, incoming.body
    own = read_fields(model, body)
    key_id, token = incoming.files.request.key_id, secrets.token_hex(N_TOKEN)
    is_stored = own["store"] and context.stored.n_max > 0
    if own["background"] and not is_stored:
        raise ApiError(400, "background: what nobody waits for has to be stored (store, --store-size)")
    own["input"] = items = with_ids(own["input"], token)
    chat, customs = read_conversation(context, model, own, incoming.files)
    exchange = Exchange(
        token,
        key_id,
        int(time.time()),
        items,
        customs,
        conversation=conversation_id(own["conversation"]),
        is_stored=is_stored,
        is_background=own["background"],
        is_streamed=own["stream"],
    )
    values = {**read({}, (*COMPLETION_FIELDS, *SAMPLING_FIELDS), model.defaults), **own}
    n_predict = own["max_output_tokens"]
    values |= {
        "n_predict": values["n_predict"] if n_predict is None else n_predict,
        "n_cmpl": 1,
        "n_probs": max(own["top_logprobs"], 1) if own["top_logprobs"] or LOGPROBS in own["include"] else 0,
        "stream": own["stream"] or own["background"],
        "return_progress": own["stream"] or own["background"],
    }
    is_cut = own["truncation"] == "auto" and not incoming.files.media
    prompt = (
        fitting_prompt(model, chat, incoming.files, values["n_predict"])
        if is_cut
        else chat_prompt(model, chat, incoming.files)
    )
    asked = text_request(
        incoming,
        values,
        [prompt.prompt],
        prompt.text,
        default_ping_s=context.options.sse_ping_interval,
        warnings=(*prompt.warnings, *RESPONSES.unread(body)),
        form=answer_form(model, prompt, read_format(own["text"], model.defaults)),
    )
    return replace(asked, own=exchange)


def fitting_prompt(model: Model, chat: Conversation, files: Files, n_predict: int) -> ChatPrompt:
    """The prompt of a conversation without as many of its oldest turns as don't fit into the context; what the system
    says in front of them stays, and so does the latest turn."""
    n_ctx = model.info.n_ctx_slot
    room = n_ctx - min(n_predict if n_predict > 0 else n_ctx, n_ctx // 4)
    roles = [message["role"] for message in chat.messages]
    n_first = next((i for i, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
    cuts = sorted({n_first, *(i for i, role in enumerate(roles) if role == "user" and i > n_first)})

    def prompt_from(cut: int) -> ChatPrompt:
        left_out = f"truncation: {cut - n_first} messages don't fit into the context and are left out"
        messages = [*chat.messages[:n_first], *chat.messages[cut:]]
        warnings = chat.warnings if cut == n_first else (*chat.warnings, left_out)
        return chat_prompt(model, replace(chat, messages=messages, warnings=warnings), files)

    def fits(cut: int) -> bool:
        try:
            return len(prompt_from(cut).prompt.tokens) <= room
        except ApiError as error:
            if error.type != "exceed_context_size_error":
                raise
            return False

    return prompt_from(cuts[min(bisect_left(cuts, True, key=fits), len(cuts) - 1)])


def read_fields(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the dialect's own fields, as far as each can be checked alone."""
    values = RESPONSES.read(body, model.defaults)
    if values["prompt"] is not None:
        raise ApiError(400, "prompt: no prompts are kept here; give their text as instructions and input")
    if values["input"] is None and values["previous_response_id"] is None and values["conversation"] is None:
        raise ApiError(400, "input: this field is required: a text, or a list of items")
    one_of(TRUNCATIONS, values["truncation"], "truncation")
    values["include"] = strings("include", values["include"])
    check_metadata(values["metadata"])
    return values


def check_metadata(metadata: Mapping[str, Any] | None) -> None:
    """ApiError 400 unless they are few short texts."""
    if len(metadata or {}) > MAX_PAIRS:
        raise ApiError(400, f"metadata: more than {MAX_PAIRS} pairs")
    for name, value in (metadata or {}).items():
        if len(name) > MAX_KEY or not isinstance(value, str) or len(value) > MAX_VALUE:
            raise ApiError(
                400,
                f"metadata: {name[:MAX_KEY]!r} is no pair of a name of at most {MAX_KEY} characters and a text of at "
                f"most {MAX_VALUE}",
            )


def read_conversation(
    context: Context, model: Model, values: Mapping[str, Any], files: Files
) -> tuple[Conversation, frozenset[str]]:
    """The conversation of a request with these fields, behind what it goes on from, and which of its tools take text.
    ApiError 400 says which part of it is wrong."""
    tools, customs, warnings = read_tools(values["tools"], values["tool_choice"], values["parallel_tool_calls"])
    before = earlier_items(context, files.request.key_id, values)
    messages, left_out = read_messages(context, values, before, files)
    warnings += left_out
    wish = read_wish(values)
    wishes = read(wish, CHAT_FIELDS, model.defaults)
    variables = template_variables(model, wishes, wish, tools)
    prefill = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"]
    warnings += unread(model, wish)
    return (
        Conversation(messages, tools, read_reasoning(wishes, variables), variables, prefill, warnings=warnings),
        customs,
    )


def read_messages(
    context: Context, values: Mapping[str, Any], before: list[Placed], files: Files
) -> tuple[list[Message], tuple[str, ...]]:
    """The messages of a request behind the items `before`, and a warning about those that only OpenAI's own servers
    know what to do with."""
    messages: list[Message] = []
    if values["instructions"]:
        messages.append({"role": "system", "content": [text_part(values["instructions"])]})
    foreign: list[str] = []
    pool: dict[str, dict[str, Any]] = {}
    items = [*before, *((item, f"input[{i}]") for i, item in enumerate(with_ids(values["input"], "")))]
    require_few(len(items), "input")
    for item, where in items:
        kind = one_of((*ITEMS, *FOREIGN, "item_reference"), item.get("type"), f"{where}.type")
        if kind == "item_reference":
            item = referred_item(context, files.request.key_id, item, where, pool)
            kind = item["type"]
        if kind in FOREIGN:
            foreign.append(kind)
        else:
            ITEMS[kind](messages, item, where, files)
    if not messages:
        raise ApiError(400, "input: there is nothing to answer")
    messages = [{**message, "content": joined(message["content"])} for message in messages]
    require_short_arguments(messages, "input")
    left_out = f"input: left out, because this server has no tools of these kinds: {listed(foreign)}"
    return messages, (left_out,) if foreign else ()


def read_wish(values: Mapping[str, Any]) -> dict[str, Any]:
    """How much the model is to think, in the words that all chats have for it."""
    names = ("enable_thinking", "reasoning_budget_tokens", "chat_template_kwargs")
    wish = {name: values[name] for name in names if values[name] is not None}
    effort = (values["reasoning"] or {}).get("effort")
    if effort is not None:
        wish["reasoning_effort"] = required(values["reasoning"], "effort", "reasoning")
    return wish


def read_format(text: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> Wanted | None:
    """What the answer must look like."""
    form = (text or {}).get("format")
    if form is None:
        return read_wanted({}, defaults)
    if not isinstance(form, dict):
        raise ApiError(400, "text.format is not an object")
    kind = one_of(FORMATS, form.get("type"), "text.format.type")
    if kind == "text":
        return read_wanted({}, defaults)
    if kind == "json_object":
        return Wanted("text.format", *(response_format_schema({"type": kind}) or ()))
    if not isinstance(form.get("schema"), dict):
        raise ApiError(400, "text.format.schema is not an object")
    if not isinstance(form.get("strict"), (bool, type(None))):
        raise ApiError(400, "text.format.strict is neither true nor false")
    return Wanted("text.format.schema", form["schema"], bool(form.get("strict")))


# ---- tools ------------------------------------------------------------------------------------------------------


def read_tools(value: object, choice: object, is_parallel: bool) -> tuple[Tools, frozenset[str], tuple[str, ...]]:
    """The tools and which calls are wanted; those that take text; a warning about those that only OpenAI's own servers
    have."""
    tools, customs, strange = [], [], []
    for tool, where in list_items(value, "tools"):
        if not isinstance(tool, dict):
            raise ApiError(400, f"{where} is not an object")
        kind = required(tool, "type", where)
        if kind == "function":
            named = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
            tools.append(check_tool({"function": named}, where, where))
        elif kind == "custom":
            tools.append(check_tool({"function": custom_function(tool, where)}, where, where))
            customs.append(tool["name"])
        else:
            strange.append(kind)
    by_name = tools_by_name(tools, "tools")
    mode, names = read_choice(choice, tuple(by_name))
    warnings = (f"tools: left out, because this server has none of these types: {listed(strange)}",) if strange else ()
    if not tools:
        return Tools(), frozenset(), warnings
    is_named = isinstance(choice, dict) and choice["type"] != "allowed_tools"
    allowed = () if mode == NONE else tuple(by_name[name] for name in names)
    return Tools(tuple(tools), allowed, mode, is_parallel and not is_named), frozenset(customs), warnings


def custom_function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A tool that takes text as a function with the argument `input`. A regular expression binds that; of a grammar in
    Lark's language the model is told only."""
    form = tool.get("format") or {"type": "text"}
    if not isinstance(form, dict):
        raise ApiError(400, f"{where}.format is not an object")
    schema: dict[str, Any] = {"type": "string"}
    about = "" if tool.get("description") is None else required(tool, "description", where)
    if one_of(("text", "grammar"), form.get("type"), f"{where}.format.type") == "grammar":
        rule = required(form, "definition", f"{where}.format")
        if one_of(SYNTAXES, form.get("syntax"), f"{where}.format.syntax") == "regex":
            schema["pattern"] = f"^(?:{rule})$"
        else:
            about = f"{about}\n\nThe input has to follow this Lark grammar:\n{rule}".strip()
    parameters = {"type": "object", "properties": {"input": schema}, "required": ["input"]}
    function = {"name": tool.get("name"), "description": about, "strict": True}
    return {**function, "parameters": {**parameters, "additionalProperties": False}}


def read_choice(choice: object, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """`tool_choice`: which choice, and which tools it leaves."""
    if choice is None:
        return AUTO, names
    if not isinstance(choice, dict):
        mode = one_of(CHOICES, choice, "tool_choice")
        if mode == REQUIRED and not names:
            raise ApiError(400, "tool_choice: there are no tools to call")
        return mode, names
    kind = one_of(("function", "custom", "allowed_tools"), choice.get("type"), "tool_choice.type")
    if kind != "allowed_tools":
        return REQUIRED, (known_name(choice, "tool_choice", names),)
    mode = one_of((AUTO, REQUIRED), choice.get("mode"), "tool_choice.mode")
    allowed = []
    for tool, where in list_items(choice.get("tools"), "tool_choice.tools"):
        if not isinstance(tool, dict):
            raise ApiError(400, f"{where} is not an object")
        if tool.get("type") in ("function", "custom"):  # others are left out as among the tools
            allowed.append(known_name(tool, where, names))
    if not allowed:
        raise ApiError(400, "tool_choice.tools: give one of the tools at least")
    return mode, tuple(name for name in names if name in allowed)


# ---- items ------------------------------------------------------------------------------------------------------


def with_ids(value: object, token: str, field: str = "input") -> tuple[Any, ...]:
    """The items in `field` in their full form, each with an id: its own, or one by which it can be found."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if isinstance(value, tuple):  # which have them
        return value
    if not isinstance(value, list):
        raise ApiError(400, f"{field} is neither a text nor a list of items")
    require_few(len(value), field)
    items = []
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise ApiError(400, f"{field}[{i}] is not an object")
        if item.get("type") is None and ("role" in item or "id" in item):
            item = {**item, "type": "message" if "role" in item else "item_reference"}
        if item.get("type") == "message" and isinstance(item.get("content"), str):
            kind = "output_text" if item.get("role") == "assistant" else "input_text"
            item = {**item, "content": [{"type": kind, "text": item["content"]}]}
        if not isinstance(item.get("id"), str) and item.get("type") != "item_reference":
            prefix = PREFIXES.get(item["type"], "item") if isinstance(item.get("type"), str) else "item"
            item = {**item, "id": f"{prefix}_{token}i{i}"}
        items.append(item)
    return tuple(items)


def conversation_id(value: object) -> str:
    """What `conversation` says: an id, or an object with one."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return required(value, "id", "conversation")
    if not isinstance(value, str):
        raise ApiError(400, "conversation is neither an id nor an object with one")
    return value


def earlier_items(context: Context, key_id: str, values: Mapping[str, Any]) -> list[Placed]:
    """What a request goes on from. ApiError 404 where that isn't stored, or is somebody else's."""
    conversation, previous = conversation_id(values["conversation"]), values["previous_response_id"]
    if conversation and previous:
        raise ApiError(400, "conversation and previous_response_id exclude each other")
    if conversation:
        found = context.stored.get(conversation, key_id)
        if found is None:
            raise ApiError(404, f"conversation: there is no conversation {conversation[:80]!r}", param="conversation")
        return [(item, "conversation") for item in found["items"]]
    earlier = earlier_records(context, key_id, previous) if previous else []
    if earlier and earlier[-1]["response"]["status"] in (QUEUED, IN_PROGRESS):
        raise ApiError(400, f"previous_response_id: {previous} has not ended yet")
    return [(item, "previous_response_id") for found in earlier for item in items_of_record(found)]


def earlier_records(context: Context, key_id: str, id_: str) -> list[dict[str, Any]]:
    """A stored response and those that it goes on from, the first one first."""
    found: dict[str, dict[str, Any]] = {}
    while id_:
        one = context.stored.get(id_, key_id) if id_ not in found else None
        if one is None:
            raise ApiError(
                404, f"previous_response_id: there is no response {id_[:80]!r}", param="previous_response_id"
            )
        found[id_] = one
        id_ = one["response"]["previous_response_id"]
    return list(found.values())[::-1]


def items_of_record(found: Mapping[str, Any]) -> list[Any]:
    """The items of a stored response: those of its input, and what the model has said."""
    return [*found["input"], *found["response"]["output"]]


def referred_item(
    context: Context, key_id: str, item: Mapping[str, Any], where: str, pool: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The stored item that a reference means. Ids that are made here say where to look. What has been looked up is in
    `pool`, but for items that have been referred to: a request can't multiply what is stored."""
    id_ = required(item, "id", where)
    token = id_.partition("_")[2][: 2 * N_TOKEN]
    if token not in pool:
        response, conversation = (context.stored.get(prefix + token, key_id) for prefix in ("resp_", "conv_"))
        items = [*(items_of_record(response) if response else ()), *(conversation["items"] if conversation else ())]
        pool[token] = {one["id"]: one for one in items if one["type"] != "item_reference"}
    found: dict[str, Any] | None = pool[token].pop(id_, None)
    if found is None:
        raise ApiError(404, f"{where}: there is no stored item {id_[:80]!r}, or only once", param=where)
    return found


def add_message(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """What somebody says. What a user says in a row is one message."""
    role = one_of(ROLES, item.get("role"), f"{where}.role")
    parts = content_parts(item.get("content"), f"{where}.content", files)
    if role == "assistant":
        said(messages)["content"] += parts
    elif role == "user" and messages and messages[-1]["role"] == "user":
        messages[-1]["content"] += parts
    else:
        messages.append({"role": role, "content": parts})


def add_reasoning(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """What the model has thought, which begins a message."""
    texts = [
        required(part if isinstance(part, dict) else {}, "text", f"{place}")
        for name in ("content", "summary")
        for part, place in list_items(item.get(name), f"{where}.{name}")
    ]
    if item.get("content"):  # the summary of it needn't be read
        texts = texts[: len(item["content"])]
    text = "\n\n".join(texts) or unseal(item.get("encrypted_content"))
    last = said(messages)
    if last["content"] or last.get("tool_calls"):
        messages.append({"role": "assistant", "content": []})
    if text:
        messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + text


def add_call(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """A call of a function, or of a tool that takes text. One that was cut off is left out."""
    name, call_id = required(item, "name", where), required(item, "call_id", where)
    if item["type"] == "function_call":
        arguments = required(item, "arguments", where)
    else:
        arguments = json.dumps({"input": required(item, "input", where)}, ensure_ascii=False)
    if item.get("status") != INCOMPLETE:
        function = {"name": name, "arguments": arguments}
        said(messages).setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})


def add_output(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """What a call has resulted in."""
    parts = content_parts(item.get("output"), f"{where}.output", files)
    messages.append({"role": "tool", "tool_call_id": required(item, "call_id", where), "content": parts})


def said(messages: list[Message]) -> Message:
    """The message of the assistant that is last, or a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": []})
    return messages[-1]


ITEMS: dict[str, Callable[[list[Message], Mapping[str, Any], str, Files], None]] = {
    "message": add_message,
    "reasoning": add_reasoning,
    "function_call": add_call,
    "function_call_output": add_output,
    "custom_tool_call": add_call,
    "custom_tool_call_output": add_output,
}


def content_parts(content: object, where: str, files: Files) -> list[Part]:
    """The parts of a message: texts, and markers of images and sounds."""
    if isinstance(content, str):
        return [text_part(content)]
    if not isinstance(content, list):
        raise ApiError(400, f"{where} is neither a text nor a list of parts")
    parts = []
    for i, part in enumerate(content):
        place = f"{where}[{i}]"
        if not isinstance(part, dict):
            raise ApiError(400, f"{place} is not an object")
        kind = one_of((*TEXTS, *FILES), part.get("type"), f"{place}.type")
        parts.append(
            text_part(required(part, TEXTS[kind], place)) if kind in TEXTS else FILES[kind](part, place, files)
        )
    return parts


def image_part(part: Mapping[str, Any], where: str, files: Files) -> Part:
    """An image, at a URL."""
    if part.get("image_url") is None:
        raise ApiError(400, f"{where}: no files are kept here; give an image as image_url")
    return {**text_part(files.add_image(required(part, "image_url", where), where)), "is_media": True}


def sound_part(part: Mapping[str, Any], where: str, files: Files) -> Part:
    """A sound."""
    return {**text_part(files.add_part(part, where)), "is_media": True}


def file_part(part: Mapping[str, Any], where: str, files: Files) -> Part:
    """A file of text, with its name in front."""
    if part.get("file_data") is None:
        raise ApiError(400, f"{where}: no files are kept or fetched here; give one as file_data")
    data = decode(part["file_data"], where, "file_data")
    memory.hold(len(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ApiError(400, f"{where}: only files of text (UTF-8) can be read here; send a document as text") from None
    return text_part(text if part.get("filename") is None else f"{required(part, 'filename', where)}\n{text}")


TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
FILES: dict[str, Callable[[Mapping[str, Any], str, Files], Part]] = {
    "input_image": image_part,
    "input_audio": sound_part,
    "input_file": file_part,
}


DIALECT = Dialect(read_response, ResponsesReply)
