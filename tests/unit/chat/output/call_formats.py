"""Tool call formats of model families: their descriptions, and example texts, for tests of the parser and the grammar."""

from __future__ import annotations

from server.chat.output.formats import (
    GENERIC,
    CallFormat,
    ChannelCall,
    IdForm,
    JsonCall,
    KeyedCall,
    NamedCall,
    ParameterCall,
    PythonCall,
    QuotelessCall,
    Tags,
)


def tool(name: str, parameters: dict | None = None) -> dict:
    """A tool in OpenAI's form."""
    function = {"name": name, "description": "x"}
    return {"type": "function", "function": function if parameters is None else {**function, "parameters": parameters}}


THINK = Tags("<think>\n", "\n</think>\n\n")
OPENED = Tags("<think>", "</think>", is_opened=True)
ARGS = ParameterCall("", "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")
FUNCTION = ParameterCall("<function=", ">\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>")
INVOKE = ParameterCall(
    '<｜DSML｜invoke name="',
    '">\n',
    '<｜DSML｜parameter name="',
    '" string="',
    "</｜DSML｜parameter>\n",
    "</｜DSML｜invoke>",
    ("true", "false"),
    '">',
)
KINDS = ParameterCall(
    '<|open|>call tool="',
    '"<|sep|>',
    '<|open|>argument key="',
    '" type="',
    "<|close|>argument<|sep|>",
    "<|close|>call<|sep|>",
    ("string", "number", "boolean", "null", "object", "array"),
    '"<|sep|>',
    before_index='" index="',
)

ELEMENTS = CallFormat(
    "elements",
    ParameterCall("", ">", "[<", ">", "[</{key}>", "[</invoke>"),
    before_all="[<tool_call>\n",
    after_all="\n[</tool_call>",
    before_call="[<invoke name=",
)

FORMATS = {
    form.family: form
    for form in (
        GENERIC,
        CallFormat("hermes", JsonCall(), before_call="<tool_call>\n", after_call="\n</tool_call>", reasoning=THINK),
        CallFormat("keyed", KeyedCall(), before_all="<|tools_prefix|>[", after_all="]<|tools_suffix|>", between=", "),
        CallFormat(
            "list", JsonCall(id_key="id"), before_all="[TOOL_CALLS][", after_all="]", between=", ", ids=IdForm("", 9)
        ),
        CallFormat(
            "action",
            JsonCall("tool_name", "parameters", "tool_call_id", id_first=True),
            before_all="<|START_ACTION|>[\n    ",
            after_all="\n]<|END_ACTION|>",
            between=",\n    ",
            reasoning=Tags("<|START_THINKING|>", "<|END_THINKING|>"),
            content=Tags("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            ids=IdForm("", 0),
        ),
        CallFormat(
            "bare",
            JsonCall(arguments_key="parameters"),
            can_be_many=False,
            at_start=True,
            also_before=("<|python_tag|>",),
        ),
        CallFormat("functools", JsonCall(), before_all=" functools[", after_all="]", between=", "),
        CallFormat(
            "numbered",
            NamedCall("functions.", "<|tool_call_argument_begin|>", before_index=":"),
            before_all="<|tool_calls_section_begin|>",
            after_all="<|tool_calls_section_end|>",
            before_call="<|tool_call_begin|>",
            after_call="<|tool_call_end|>",
            between="",
            ids=IdForm(pattern="functions.{name}:{index}"),
        ),
        CallFormat(
            "later id",
            NamedCall("", "[ARGS]", before_id="[CALL_ID]"),
            before_call="[TOOL_CALLS]",
            between="",
            ids=IdForm("", 9),
            reasoning=Tags("[THINK]", "[/THINK]"),
        ),
        CallFormat(
            "first id",
            NamedCall("<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>", "<|tool_call:begin|>", True),
            before_all="<|tool_calls|>",
            between="",
            silent=("<|begin|>assistant",),
            content=Tags("<|content|>", "<|end|>"),
            reasoning=Tags("<|think|>", "<|end|>"),
        ),
        CallFormat(
            "fenced",
            NamedCall("", "\n```json\n", "\n```"),
            before_all="<｜tool▁calls▁begin｜>",
            before_call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            after_call="<｜tool▁call▁end｜>",
            after_all="<｜tool▁calls▁end｜>",
            reasoning=Tags("<think>\n", "\n</think>\n\n", is_opened=True),
        ),
        CallFormat("function", NamedCall("<function=", ">", "</function>"), between=""),
        CallFormat(
            "prompted", NamedCall("", "\n"), before_call=">>>", between="", opening=">>>", content=Tags(">>>all\n", "")
        ),
        CallFormat("functions", FUNCTION, before_call="<tool_call>\n", after_call="\n</tool_call>", reasoning=THINK),
        CallFormat("pairs", ARGS, before_call="<tool_call>", after_call="</tool_call>", reasoning=OPENED),
        CallFormat(
            "invoke",
            INVOKE,
            before_all="<｜DSML｜function_calls>\n",
            after_all="\n</｜DSML｜function_calls>",
            reasoning=OPENED,
        ),
        CallFormat(
            "kinds",
            KINDS,
            before_all="<|open|>tools<|sep|>",
            after_all="<|close|>tools<|sep|>",
            between="",
            content=Tags("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
            silent=("<|close|>message<|sep|>",),
            reasoning=Tags("<|open|>think<|sep|>", "<|close|>think<|sep|>", is_opened=True),
        ),
        CallFormat(
            "cdata",
            ParameterCall(
                '<function name="', '">', '<param name="', '">', "</param>", "</function>", quotes=("<![CDATA[", "]]>")
            ),
            reasoning=THINK,
        ),
        CallFormat(
            "python", PythonCall(), before_all="<|tool_call_start|>[", after_all="]<|tool_call_end|>", between=", "
        ),
        CallFormat(
            "quoteless",
            QuotelessCall("call:", quote='<|"|>'),
            before_call="<|tool_call>",
            after_call="<tool_call|>",
            between="",
            reasoning=Tags("<|channel>thought\n", "<channel|>"),
        ),
        CallFormat(
            "harmony",
            ChannelCall(),
            between="",
            can_be_many=False,
            opening="<|start|>assistant",
            reasoning=Tags("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>"),
            content=Tags("<|start|>assistant<|channel|>final<|message|>", "<|end|>"),
        ),
        ELEMENTS,
    )
}
