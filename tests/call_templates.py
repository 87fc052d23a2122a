"""Small chat templates that write calls as the families of models do, in a skeleton of our own.

For tests that need each form of calls once: random calls that are written and read, calls that are required. What a row
says is the form of one call, in Jinja, and what stands around all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.tiny_models import CHATML

SKELETON = """\
{%- if tools %}{{ '<|im_start|>system\\nFunctions: ' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ '<|im_start|>user\\nResult: ' + message.content }}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}@reasoning@{% endif %}{{ message.content or '' }}
{%- if message.tool_calls %}{{ @before@ }}
{%- for call in message.tool_calls %}{% set f = call.function %}@call@
{%- if not loop.last %}{{ @between@ }}{% endif %}{% endfor %}{{ @after@ }}{% endif %}
{%- endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
THINK = "{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}"
PARAMETERS = "{%- for key, value in f.arguments.items() %}@one@{% endfor %}"


class Row(NamedTuple):
    """`call` is Jinja, the others are texts."""

    call: str
    before: str = ""
    between: str = "\n"
    after: str = ""
    reasoning: str = ""


def parameters(before: str, one: str, after: str) -> str:
    """A call with a tag for each argument; `V` in `one` is the value as a text or as JSON."""
    return (
        before
        + PARAMETERS.replace("@one@", one.replace("V", "{{ value if value is string else value | tojson }}"))
        + after
    )


def as_json(name: str, arguments: str, more: str = "") -> str:
    return f'{{{{ \'{{"{name}": "\' + f.name + \'", "{arguments}": \' }}}}{{{{ f.arguments | tojson }}}}{more}}}'


ROWS = {
    "hermes": Row("<tool_call>\n" + as_json("name", "arguments") + "\n</tool_call>", reasoning=THINK),
    "llama-3": Row(as_json("name", "parameters"), between="; "),
    "mistral": Row(as_json("name", "arguments", ', "id": "{{ call.id }}"'), "[TOOL_CALLS][", ", ", "]"),
    "mistral-args": Row("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}", between=""),
    "functionary-3.1": Row("<function={{ f.name }}>{{ f.arguments | tojson }}</function>", between=""),
    "nemotron": Row(as_json("name", "arguments"), "<TOOLCALL>[", ", ", "]</TOOLCALL>"),
    "apertus": Row("{{ {f.name: f.arguments} | tojson }}", "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
    "deepseek": Row(
        "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
    "kimi-k2": Row(
        "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
    ),
    "qwen3-coder": Row(
        parameters(
            "<tool_call>\n<function={{ f.name }}>\n",
            "<parameter={{ key }}>\n{{ '' }}V{{ '\\n' }}</parameter>{{ '\\n' }}",
            "</function>\n</tool_call>",
        ),
        reasoning=THINK,
    ),
    "glm": Row(
        parameters(
            "<tool_call>{{ f.name }}{{ '\\n' }}",
            "<arg_key>{{ key }}</arg_key>{{ '\\n' }}<arg_value>V</arg_value>{{ '\\n' }}",
            "</tool_call>",
        ),
        reasoning=THINK,
    ),
    "deepseek-dsml": Row(
        parameters(
            '<｜DSML｜invoke name="{{ f.name }}">\n',
            "<｜DSML｜parameter name=\"{{ key }}\" string=\"{{ 'true' if value is string else 'false' }}\">"
            "V</｜DSML｜parameter>{{ '\\n' }}",
            "</｜DSML｜invoke>",
        ),
        "<｜DSML｜function_calls>\n",
        "\n",
        "\n</｜DSML｜function_calls>",
    ),
    "gemma": Row(
        """{%- macro value(v) %}{% if v is string %}{{ '<|"|>' + v + '<|"|>' }}{% elif v is mapping %}{{ '{' }}"""
        "{% for key, one in v.items() %}{{ key + ':' }}{{ value(one) }}{{ ',' if not loop.last }}{% endfor %}{{ '}' }}"
        "{% elif v is iterable %}{{ '[' }}{% for one in v %}{{ value(one) }}{{ ',' if not loop.last }}{% endfor %}"
        "{{ ']' }}{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
        "<|tool_call>call:{{ f.name }}{{ value(f.arguments) }}<tool_call|>",
        between="",
    ),
}


def call_template(row: Row) -> str:
    """The whole template."""
    made = SKELETON.replace("@call@", row.call).replace("@reasoning@", row.reasoning)
    for name in ("before", "between", "after"):
        made = made.replace(f"@{name}@", repr(getattr(row, name)))
    return made


# what is in a template of a family whose calls can't be found by rendering some
MENTIONS = {
    "harmony": "<|channel|>analysis<|message|>",
    "functionary-3.2": ">>>all\\n",
    "lfm2": "List of tools: [",
    "solar": "<|tool_call:begin|>",
    "atem": "<atem:function_calls>",
    "kimi-k3": "<|end_of_msg|>",
}
PLAIN = call_template(Row("{{ f | tojson }}"))
CALL_TEMPLATES = {
    **{name: call_template(row) for name, row in ROWS.items()},
    **{name: PLAIN + "{# " + mention + " #}" for name, mention in MENTIONS.items()},
    "generic": CHATML,
}
