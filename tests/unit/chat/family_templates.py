"""Small chat templates, written for these tests, that use the marks of known model families for tool calls and
reasoning.
"""

from __future__ import annotations

import json

FUNCTION = "c.function.name"
ARGUMENTS = "c.function.arguments | tojson"


def say(text: str) -> str:
    """Prints a text as it is."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def show(*parts: str) -> str:
    """Prints texts and, at odd places, expressions."""
    return "".join("{{ " + part + " }}" if i % 2 else say(part) for i, part in enumerate(parts))


def calls(one: str, before: str = "", between: str = "", after: str = "") -> str:
    """All calls of a message."""
    gap = "{% if not loop.first %}" + say(between) + "{% endif %}"
    return say(before) + "{% for c in m.tool_calls %}" + gap + one + "{% endfor %}" + say(after)


def json_call(name: str = "name", arguments: str = "arguments", first: str = "", last: str = "") -> str:
    """A call that is an object."""
    return show("{" + first + f'"{name}": "', FUNCTION, f'", "{arguments}": ', ARGUMENTS, last + "}")


def each(
    before_name: str, after_name: str, before_key: str, after_key: str, after_value: str, end: str, mark: str = ""
) -> str:
    """A call with a tag for each argument; `mark` is an expression between `after_key` and the value."""
    value = "v if v is string else v | tojson"
    parts = (
        (before_key, "k", after_key, mark, '">', value, after_value) if mark else (before_key, "k", after_key, value)
    )
    inner = show(*parts) + ("" if mark else say(after_value))
    loop = "{% for k, v in c.function.arguments.items() %}" + inner + "{% endfor %}"
    return show(before_name, FUNCTION, after_name) + loop + say(end)


def chat(
    body: str,
    think: tuple[str, str] | None = None,
    prompt: str = "",
    turn: tuple[str, str] = ("<|im_start|>", "<|im_end|>\n"),
    names: dict[str, str] | None = None,
    tools: str = "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}",
) -> str:
    """A whole template around what an answer with calls looks like."""
    role = {"system": "system\n", "user": "user\n", "assistant": "assistant\n", "tool": "tool\n", **(names or {})}
    start, end = turn
    reasoning = ""
    if think:
        reasoning = "{% if m.reasoning_content %}" + show(think[0], "m.reasoning_content", think[1]) + "{% endif %}"
    said = "{{ m.content or '' }}{% if m.tool_calls %}" + body + "{% endif %}"
    return (
        tools
        + "{% for m in messages %}{% if m.role == 'assistant' %}"
        + say(start + role["assistant"])
        + reasoning
        + said
        + say(end)
        + "{% elif m.role == 'tool' %}"
        + show(start + role["tool"], "m.content", end)
        + "{% elif m.role == 'system' %}"
        + show(start + role["system"], "m.content", end)
        + "{% else %}"
        + show(start + role["user"], "m.content", end)
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + say(start + role["assistant"] + prompt)
        + "{% endif %}"
    )


HERMES = calls(show("<tool_call>\n") + json_call() + say("\n</tool_call>"), between="\n")
CODER = each("<tool_call>\n<function=", ">\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>\n</tool_call>")
GLM = each("<tool_call>", "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>")
R1 = show("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", FUNCTION, "\n```json\n", ARGUMENTS, "\n```<｜tool▁call▁end｜>")
V3 = show("<｜tool▁call▁begin｜>", FUNCTION, "<｜tool▁sep｜>", ARGUMENTS, "<｜tool▁call▁end｜>")
DSML = each(
    '<｜DSML｜invoke name="',
    '">\n',
    '<｜DSML｜parameter name="',
    '" string="',
    "</｜DSML｜parameter>\n",
    "</｜DSML｜invoke>",
    "'true' if v is string else 'false'",
)
KIMI = show(
    "<|tool_call_begin|>functions.",
    FUNCTION,
    ":",
    "loop.index0",
    "<|tool_call_argument_begin|>",
    ARGUMENTS,
    "<|tool_call_end|>",
)
M3 = "]<]minimax[>["
NESTED = (
    show(M3 + '<invoke name="', FUNCTION, '">')
    + "{% for k, v in c.function.arguments.items() %}"
    + show(M3 + "<", "k", ">", "v if v is string else v | tojson", M3 + "</", "k", ">")
    + "{% endfor %}"
    + say(M3 + "</invoke>\n")
)
GEMMA = (
    show("<|tool_call>call:", FUNCTION, "{")
    + "{% for k, v in c.function.arguments.items() %}{{ k }}:"
    + "{% if v is string %}"
    + show('<|"|>', "v", '<|"|>')
    + "{% else %}{{ v | tojson }}{% endif %}{{ ',' if not loop.last }}{% endfor %}"
    + say("}<tool_call|>")
)
PYTHON = (
    "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}="
    + "{% if v is string %}'{{ v }}'{% else %}{{ v }}{% endif %}{{ ', ' if not loop.last }}{% endfor %})"
)
NINE = "{% if c.id | length != 9 %}{{ raise_exception('an id has nine letters') }}{% endif %}"
INST = {"user": "[INST]", "assistant": "[/INST]", "tool": "[TOOL_RESULTS]", "system": "[SYSTEM]"}
ROLES = {role: f"<|{role}|>\n" for role in ("system", "user", "assistant", "tool")}
THINK = ("<think>\n", "\n</think>\n\n")

FAMILIES = {
    "hermes": chat(HERMES, THINK),
    "qwen3-coder": chat(calls(CODER, between="\n"), THINK, "<think>\n"),
    "glm": chat(calls(GLM, between="\n"), ("<think>", "</think>\n"), turn=("", ""), names=ROLES),
    "seed-oss": chat(
        calls(CODER.replace("tool_call>", "seed:tool_call>"), between="\n"), ("<seed:think>", "</seed:think>")
    ),
    "minimax-m2": chat(
        calls(
            each('<invoke name="', '">\n', '<parameter name="', '">', "</parameter>\n", "</invoke>"),
            "<minimax:tool_call>\n",
            "\n",
            "\n</minimax:tool_call>",
        ),
        THINK,
        "<think>\n",
    ),
    "minimax-m3": chat(
        calls(NESTED, M3 + "<tool_call>\n", after=M3 + "</tool_call>"),
        ("<mm:think>", "</mm:think>"),
        turn=("]~b]", "[e~[\n"),
    ),
    "minimax-m1": chat(calls(json_call(), "<tool_calls>\n", "\n", "\n</tool_calls>")),
    "deepseek": chat(calls(R1, "<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"), prompt="<think>\n"),
    "deepseek-dsml": chat(
        calls(DSML, "<｜DSML｜function_calls>\n", "\n", "\n</｜DSML｜function_calls>"),
        ("<think>", "</think>"),
        "<think>",
    ),
    "kimi-k2": chat(calls(KIMI, "<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>")),
    "hunyuan": chat(
        calls(
            each(
                "<tool_call:x>",
                "<tool_sep:x>\n",
                "<arg_key:x>",
                "</arg_key:x>\n<arg_value:x>",
                "</arg_value:x>\n",
                "</tool_call:x>",
            ),
            "<tool_calls:x>\n",
            "\n",
            "\n</tool_calls:x>",
        ),
        ("<think:x>", "</think:x>"),
    ),
    "minicpm": chat(
        "{# texts may stand in <![CDATA[ and ]]> #}"
        + calls(each('<function name="', '">', '<param name="', '">', "</param>", "</function>"), between="\n"),
        THINK,
    ),
    "functionary-3.1": chat(calls(show("<function=", FUNCTION, ">", ARGUMENTS, "</function>"))),
    "llama-3": chat(
        "{# ipython #}{% if m.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
        + calls(json_call(arguments="parameters"))
    ),
    "mistral": chat(
        calls(
            NINE + show('{"name": "', FUNCTION, '", "arguments": ', ARGUMENTS, ', "id": "', "c.id", '"}'),
            "[TOOL_CALLS][",
            ", ",
            "]",
        ),
        turn=("", "</s>"),
        names=INST,
    ),
    "mistral-ids": chat(
        calls(NINE + show("[TOOL_CALLS]", FUNCTION, "[CALL_ID]", "c.id", "[ARGS]", ARGUMENTS)),
        turn=("", "</s>"),
        names=INST,
    ),
    "mistral-args": chat(
        calls(show("[TOOL_CALLS]", FUNCTION, "[ARGS]", ARGUMENTS)),
        ("[THINK]", "[/THINK]"),
        turn=("", "</s>"),
        names=INST,
    ),
    "command-r": chat(
        "{# <|START_RESPONSE|> #}"
        + calls(
            show(
                '{"tool_call_id": "', "loop.index0", '", "tool_name": "', FUNCTION, '", "parameters": ', ARGUMENTS, "}"
            ),
            "<|START_ACTION|>[\n    ",
            ",\n    ",
            "\n]<|END_ACTION|>",
        ),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "command-r-plus": chat(
        calls(json_call("tool_name", "parameters"), "Action:\n```json\n[\n    ", ",\n    ", "\n]```")
    ),
    "nemotron": chat(calls(json_call(), "<TOOLCALL>[", ", ", "]</TOOLCALL>"), prompt="<think>\n"),
    "lfm2": chat(calls(PYTHON, "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"), ("<think>", "</think>")),
    "apertus": chat(
        "{# <|inner_prefix|> #}"
        + calls(show('{"', FUNCTION, '": ', ARGUMENTS, "}"), "<|tools_prefix|>[", ", ", "]<|tools_suffix|>")
    ),
    "gemma": chat(calls(GEMMA), ("<|channel>thought\n", "\n<channel|>"), turn=("<|turn>", "<turn|>\n")),
    "apriel": chat(
        "{# [BEGIN FINAL RESPONSE] [END FINAL RESPONSE] #}"
        + calls(
            show('{"name": "', FUNCTION, '", "arguments": ', ARGUMENTS, ', "id": "', "c.id", '"}'),
            "<tool_calls>[",
            ", ",
            "]</tool_calls>",
        ),
        prompt="Here are my reasoning steps:\n",
    ),
    "gigachat": chat(
        "{% set one = m.tool_calls[0] %}" + calls(json_call(), "<|function_call|>").replace("m.tool_calls", "[one]"),
        turn=("", "<|message_sep|>\n\n"),
        names={"assistant": "assistant<|role_sep|>\n"},
    ),
}

NO_CALLS = chat("")
"""A template that shows tools and leaves calls out; a comment in front of it makes it a named one."""

NAMED = {
    "harmony": "{# <|channel|>analysis<|message|> #}" + NO_CALLS,
    "solar": "{# <|tool_call:begin|> #}" + NO_CALLS,
    "atem": "{# <atem:function_calls> #}" + NO_CALLS,
    "kimi-k3": "{# <|end_of_msg|> #}" + NO_CALLS,
    "functionary-3.2": "{{ '>>>all\\n'[:0] }}" + NO_CALLS,
    "lfm2": "{{ 'List of tools: ['[:0] }}" + NO_CALLS,
    "granite": "{# respond only with <|tool_call|> followed by a JSON list #}" + NO_CALLS,
    "hermes": "{{ xml_tools | tojson if xml_tools }}" + NO_CALLS,
}
FIREFUNCTION = chat(
    calls(json_call(), " functools[", ", ", "]"),
    tools="{{ 'Functions: ' + functions + '\\nToday is ' + datetime + '.' }}",
)
GENERIC = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
