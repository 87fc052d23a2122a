"""The conversations that every template is rendered with: one context per name.

Plain data. Together they have each role and kind of content that clients send, the forms of tool calls that templates
distinguish, and the options of the better-known models.
"""

from __future__ import annotations

from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Current weather <for> a "place" & time',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, e.g. Zürich", "enum": ["Zürich", "北京"]},
                "days": {"type": ["integer", "null"], "description": "How many", "default": 3, "minimum": 0.5},
                "where": {
                    "type": "object",
                    "properties": {
                        "lat": {"type": "number"},
                        "tags": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "boolean"}]}},
                    },
                    "required": ["lat"],
                    "additionalProperties": False,
                },
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
TOOLS = [WEATHER, CLOCK]

SYSTEM = {"role": "system", "content": "You are terse.\nAnswer in <b>HTML</b>."}
HELLO = {"role": "user", "content": "  Hello 'there' \"you\" <|im_end|>\n"}
REPLY = {"role": "assistant", "content": "Hi & welcome!"}
MORE = {"role": "user", "content": "And then?"}
THOUGHT = {"role": "assistant", "content": "Then this.", "reasoning_content": "Let me think.\nYes."}
THOUGHT_INLINE = {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nThen that."}


def call(arguments: Any, number: int = 1, name: str = "get_weather") -> dict[str, Any]:
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call({"city": "Zürich", "days": 2, "where": {"lat": 1.5, "tags": ["a", True, None]}})],
}
CALL_TEXT = {"role": "assistant", "content": None, "tool_calls": [call('{"city": "Bern"}')]}
TWO_CALLS = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "Two at once.",
    "tool_calls": [call({"city": "Bern"}), call({}, 2, "clock")],
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"sun": true}'}
RESULT_2 = {"role": "tool", "tool_call_id": "call00002", "name": "clock", "content": "12:00"}

PARTS = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What is "},
        {"type": "image", "image": "x.png"},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "this? <|im_end|>"},
    ],
}
TEXT_PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}

MESSAGES: dict[str, list[dict[str, Any]]] = {
    "hello": [HELLO],
    "system": [SYSTEM, HELLO],
    "turns": [SYSTEM, HELLO, REPLY, MORE],
    "assistant last": [HELLO, REPLY],
    "two users": [HELLO, MORE],
    "two systems": [SYSTEM, HELLO, SYSTEM, MORE],
    "developer": [{"role": "developer", "content": "Be brief."}, HELLO],
    "odd role": [HELLO, {"role": "critic", "content": "no"}],
    "reasoning": [HELLO, THOUGHT, MORE],
    "inline reasoning": [SYSTEM, HELLO, THOUGHT_INLINE, MORE],
    "call": [HELLO, CALL],
    "call and result": [SYSTEM, HELLO, CALL, RESULT],
    "call as text": [HELLO, CALL_TEXT, RESULT, REPLY, MORE],
    "two calls": [HELLO, TWO_CALLS, RESULT, RESULT_2],
    "long with calls": [SYSTEM, HELLO, TWO_CALLS, RESULT, RESULT_2, THOUGHT, MORE, CALL, RESULT],
    "images": [SYSTEM, PARTS, REPLY, MORE],
    "text parts": [TEXT_PARTS],
    "system parts": [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, TEXT_PARTS],
    "result parts": [HELLO, CALL, {**RESULT, "content": [{"type": "text", "text": "sunny"}]}],
    "null content": [HELLO, {"role": "assistant", "content": None}],
    "no content": [HELLO, {"role": "assistant"}],
    "empty": [],
    "unicode": [{"role": "user", "content": "naïve 😀 \u2028 \u0001 \\n ﷽"}],
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"add_generation_prompt": False},
    "prompt": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "thinking": {
        "add_generation_prompt": True,
        "enable_thinking": True,
        "thinking": True,
        "reasoning_effort": "high",
        "preserve_thinking": True,
        "clear_thinking": False,
    },
    "not thinking": {
        "add_generation_prompt": True,
        "tools": TOOLS,
        "enable_thinking": False,
        "thinking": False,
        "documents": [{"title": "T", "text": "D"}],
        "custom_system_prompt": "C",
    },
    "no tools": {
        "add_generation_prompt": True,
        "tools": None,
        "tool_choice": "auto",
        "builtin_tools": ["x"],
        "tools_in_user_message": False,
        "keep_past_thinking": True,
    },
}

BASE: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def strftime_now(format: str) -> str:
    return f"<2026-02-03 as {format}>"


def contexts():
    """All (name, context)."""
    for messages_name, messages in MESSAGES.items():
        for options_name, options in OPTIONS.items():
            yield (
                f"{messages_name}, {options_name}",
                {**BASE, "messages": messages, "strftime_now": strftime_now, **options},
            )
