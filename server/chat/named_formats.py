"""Formats of calls and reasoning that `find_format` can't find by rendering, and the names of families. Pure.

Most tables are looked up by a text in the template's source. A format can't be found by rendering if
- the template doesn't render calls, although its model was trained with a format;
- the marks of calls and text look like beginnings of messages;
- the template doesn't render the reasoning of messages.
"""

from __future__ import annotations

from typing import Any

from server.chat.output.formats import (
    GENERIC,
    CallFormat,
    ChannelCall,
    IdForm,
    JsonCall,
    NamedCall,
    ParameterCall,
    PythonCall,
    Tags,
)
from server.records import replace

HARMONY = CallFormat(
    "harmony",
    ChannelCall(),
    between="",
    can_be_many=False,
    reasoning=Tags("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>"),
    opening="<|start|>assistant",
)
SOLAR = CallFormat(
    "solar",
    NamedCall("<|tool_call:name|>", "<|tool_call:args|>", before_id="<|tool_call:begin|>", id_first=True),
    before_all="<|begin|>assistant<|tool_calls|>",
    after_call="<|tool_call:end|>",
    between="",
    reasoning=Tags("<|begin|>assistant<|think|>", "<|end|>"),
    content=Tags("<|begin|>assistant<|content|>", "<|end|>"),
    opening="<|begin|>assistant",
    ids=IdForm("", 10),
)
ATEM = CallFormat(
    "atem",
    ParameterCall(
        "<|start|>assistant to=",
        '<|message|><atem:function_calls>\n<atem:invoke name="{name}">\n',
        '<atem:parameter name="',
        '">',
        "</atem:parameter>\n",
        "</atem:invoke>\n",
    ),
    after_call="</atem:function_calls>",
    between="<|eom|>",
    reasoning=Tags("<|start|>assistant to=self<|message|>", "<|eom|>"),
    content=Tags("<|start|>assistant to=user<|message|>", "<|eom|>"),
    opening="<|start|>assistant",
)
KIMI_K3 = CallFormat(
    "kimi-k3",
    ParameterCall(
        '<|open|>call tool="',
        '"<|sep|>',
        '<|open|>argument key="',
        '" type="',
        "<|close|>argument<|sep|>",
        "<|close|>call<|sep|>",
        ("string", "number", "boolean", "null", "object", "array"),
        '"<|sep|>',
        before_index='" index="',
        first_index=1,
    ),
    before_all="<|open|>tools<|sep|>",
    after_all="<|close|>tools<|sep|><|close|>message<|sep|>",
    between="",
    reasoning=Tags("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    content=Tags("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    silent=("<|close|>message<|sep|>",),
)
FUNCTIONARY = CallFormat(
    "functionary-3.2", NamedCall(">>>", "\n"), between="", content=Tags(">>>all\n", ""), opening=">>>"
)
LFM2 = CallFormat("lfm2", PythonCall(), before_all="<|tool_call_start|>[", after_all="]<|tool_call_end|>", between=", ")
GRANITE = CallFormat("granite", JsonCall(), before_all="<|tool_call|>[", after_all="]", between=", ")
HERMES = replace(GENERIC, family="hermes", is_native=True)

# a text in a template's source -> the format that its model speaks
FORMATS = (
    ("<|channel|>analysis<|message|>", HARMONY),
    ("<|tool_call:begin|>", SOLAR),
    ("<atem:function_calls>", ATEM),
    ("<|end_of_msg|>", KIMI_K3),
    (">>>all\\n", FUNCTIONARY),
    ("List of tools: <|tool_list_start|>[", LFM2),
    ("List of tools: [", LFM2),
    ("respond only with <|tool_call|> followed by a JSON list", GRANITE),
    ("xml_tools", HERMES),
)

# a text in a template's source -> fields that its format gets if they are empty; the first row for a field counts
DETAILS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("<|inner_prefix|>", {"reasoning": Tags("<|inner_prefix|>", "<|inner_suffix|>")}),
    (
        "Here are my reasoning steps:\\n",
        {"reasoning": Tags("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n", ends_at="<tool_calls>[")},
    ),
    ("[BEGIN FINAL RESPONSE]", {"reasoning": Tags("", "\n[BEGIN FINAL RESPONSE]\n", True, "<tool_calls>[")}),
    ("[END FINAL RESPONSE]", {"silent": ("[END FINAL RESPONSE]",)}),
    ("<|START_RESPONSE|>", {"content": Tags("<|START_RESPONSE|>", "<|END_RESPONSE|>")}),
    ("<|START_TEXT|>", {"content": Tags("<|START_TEXT|>", "<|END_TEXT|>")}),
    ("between <response></response>", {"content": Tags("<response>", "</response>")}),
)
# opening and closing tags of reasoning, for templates that don't render it
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
# quotes that may be around an argument
QUOTES = (("<![CDATA[", "]]>"),)
# marks that end only answers with calls
END_MARKS = ("<|eom_id|>", "<|call|>", "<|calls|>", "<|tool_response>")

# a text in a written call -> the name of the family; the first row that fits counts
FAMILIES = (
    ("<｜DSML｜", "deepseek-dsml"),
    ("<｜tool▁sep｜>", "deepseek"),
    ("]<]minimax[>[", "minimax-m3"),
    ("<minimax:tool_call>", "minimax-m2"),
    ("<seed:tool_call>", "seed-oss"),
    ("<tool_sep", "hunyuan"),
    ("<arg_key>", "glm"),
    ("<parameter=", "qwen3-coder"),
    ("<param name=", "minicpm"),
    ("<function=", "functionary-3.1"),
    ("<|tool_calls_section_begin|>", "kimi-k2"),
    ("<|tool_call>call:", "gemma"),
    ("<|START_ACTION|>", "command-r"),
    ("Action:\n```json", "command-r-plus"),
    ("[CALL_ID]", "mistral-ids"),
    ("[ARGS]", "mistral-args"),
    ("[TOOL_CALLS]", "mistral"),
    ("<TOOLCALL>", "nemotron"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|tools_prefix|>", "apertus"),
    ("functools[", "firefunction"),
    ("<|role_sep|>", "gigachat"),
    ("<|function_call|>", "gigachat"),
    ("<tool_calls>\n", "minimax-m1"),
    ("<tool_calls>[", "apriel"),
    ("<tool_call>\n{", "hermes"),
    ('", "parameters": {', "llama-3"),
)


def find_named_format(source: str) -> CallFormat | None:
    """The first format in the table that fits; None if there is none."""
    return next((found for mark, found in FORMATS if mark in source), None)


def find_named_details(source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mark, fields in DETAILS:
        if mark in source:
            found = {**fields, **found}
    return found


def guess_reasoning(source: str, prompt: str) -> Tags | None:
    """The tags of reasoning, if the source has the closing tag (to remove reasoning from earlier answers), or the
    prompt ends with the opening tag."""
    for opening, closing in THINKING:
        if closing in source or prompt.rstrip().endswith(opening):
            is_bare = prompt.endswith(opening)
            return Tags(opening, closing) if is_bare else Tags(f"{opening}\n", f"\n{closing}\n\n")
    return None


def family_of(written: str) -> str:
    """The family of models that writes calls like this one; "other" if it is unknown."""
    return next((name for mark, name in FAMILIES if mark in written), "other")
