"""Random chat templates with tool calls: whatever surrounds names and values, a format is found, and it writes what the
template writes.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.output.formats import CallFormat
from server.chat.template import ChatTemplate
from tests.fuzzing import fuzz

TEMPLATE = """\
{%- for message in messages %}{{ '<|' + message.role + '|>' }}{{ message.content or '' }}
{%- if message.tool_calls %}@before_all@{% for call in message.tool_calls %}
{%- if not loop.first %}@between@{% endif %}@call@{% endfor %}@after_all@{% endif %}{{ '<|end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
CALLS = (
    """@a@{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}@b@""",
    """@a@{{ call.function.name }}@b@{{ call.function.arguments | tojson }}@c@""",
    """@a@{{ call.function.name }}@b@{% for key, value in call.function.arguments.items() %}@c@{{ key }}@d@"""
    """{{ value if value is string else value | tojson }}@e@{% endfor %}@f@""",
    """@a@{{ call.function.name }}({% for key, value in call.function.arguments.items() %}{{ key }}={{ value | tojson }}"""
    """{% if not loop.last %}, {% endif %}{% endfor %})@b@""",
    """@a@{{ {call.function.name: call.function.arguments} | tojson }}@b@""",
    """@a@{"id": "{{ call.id }}", "name": "{{ call.function.name }}", "parameters": {{ call.function.arguments }}}@b@""",
)
MARKS = st.sampled_from(
    [
        "",
        "\n",
        " ",
        ", ",
        "<tool_call>",
        "</tool_call>",
        "<tool_call>\n",
        "<call=",
        ">",
        "</call>",
        "[",
        "]",
        "\n</call>\n",
    ]
    + [
        "<|call|>",
        "<｜call｜>",
        "name",
        "a9f1probe",
        "70197",
        "é",
        "{",
        "}",
        "=",
        ":",
        "<p=",
        "</p>",
        "<p>",
        "true",
        "\\n",
        "|",
    ]
)
PLACES = ("before_all", "between", "after_all", "a", "b", "c", "d", "e", "f")


def template_of(call: str, marks: dict[str, str]) -> str:
    text = TEMPLATE.replace("@call@", call)
    for place, mark in marks.items():
        text = text.replace(f"@{place}@", "{{ " + json.dumps(mark, ensure_ascii=False) + " }}")
    return text


@fuzz(150)
@given(st.sampled_from(CALLS), st.fixed_dictionaries(dict.fromkeys(PLACES, MARKS)))
def test_a_format_is_found_in_any_template(call: str, marks: dict[str, str]):
    found = ChatTemplate(template_of(call, marks), "<s>", "</s>").call_format
    assert isinstance(found, CallFormat)


@pytest.mark.parametrize("marks", [{}, {"d": "true"}, {"d": "=", "e": ""}, {"c": "", "d": "=", "e": "\n"}])
def test_parameters_whose_ends_nobody_could_see_are_no_format(marks: dict[str, str]):
    found = ChatTemplate(template_of(CALLS[2], dict.fromkeys(PLACES, "") | marks), "<s>", "</s>").call_format
    assert not found.is_native
