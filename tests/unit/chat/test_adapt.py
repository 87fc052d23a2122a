"""Each kind of chat template gets conversations in the form that it can read, without loss.

Pure: small templates written for these tests, one for each habit of published ones.
"""

from __future__ import annotations

import json
import threading

import pytest

from server.chat.jinja import TemplateError
from server.chat.template import BuiltinTemplate, ChatTemplate

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
RESULT = {"role": "tool", "tool_call_id": "call00001", "content": "mild"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
ARGUMENTS = {"city": "Röm", "n": [1, {"a": None}]}
TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)


def prompt(source: str, *messages: dict, **extra: object) -> str:
    return "".join(text for text, _ in ChatTemplate(source, "<s>", "</s>").render(messages, False, extra))


def called(arguments: object, content: str | None = "", **more: object) -> dict:
    call = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call], **more}


def loop(inner: str) -> str:
    """A template that says this of each message."""
    return "{% for m in messages %}" + inner + "{% endfor %}"


# ---- arguments of tool calls -------------------------------------------------------------------------------------

CALLS = "{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}<"
END = ">{% endfor %}{{ m.content }}"
KINDS = {
    "prints text": (CALLS + "{{ a }}" + END, TEXT),
    "adds text": (CALLS + "{{ 'f' + a }}" + END, "f" + TEXT),
    "writes JSON": (CALLS + "{{ a | tojson }}" + END, TEXT),
    "writes JSON of the call": (
        CALLS + "{{ c.function | tojson }}" + END,
        '{"name": "look", "arguments": ' + TEXT + "}",
    ),
    "takes text as it is": (CALLS + "{{ a if a is string else a | tojson }}" + END, TEXT),
    "goes over items": (
        CALLS + "{% for k, v in a | items %}{{ k }}={{ v }};{% endfor %}" + END,
        "city=Röm;n=[1, {'a': None}];",
    ),
    "asks for items": (
        CALLS + "{% for k, v in a.items() %}{{ k ~ v | tojson }};{% endfor %}" + END,
        'city"Röm";n[1, {"a": null}];',
    ),
    "refuses text": (CALLS + "{% if a is string %}{{ raise_exception('no') }}{% endif %}{{ a | tojson }}" + END, TEXT),
    "refuses objects": (CALLS + "{% if a is not string %}{{ raise_exception('no') }}{% endif %}{{ a }}" + END, TEXT),
    "calls only without content": (
        "{% if m.content is none %}" + CALLS + "{{ 'f' + a }}>{% endfor %}{% else %}{{ m.content }}{% endif %}",
        "f" + TEXT,
    ),
}


@pytest.mark.parametrize("sent", [TEXT, ARGUMENTS], ids=["text", "object"])
@pytest.mark.parametrize(("inner", "shown"), KINDS.values(), ids=KINDS)
def test_arguments_reach_each_template_in_the_form_it_reads(inner, shown, sent):
    assert f"<{shown}>" in prompt(loop(inner), USER, called(sent), RESULT)
    assert f"<{shown}>" in prompt(loop(inner), USER, called(sent, None), RESULT)


def test_arguments_stay_the_users_text():
    source = loop(CALLS + "{{ a | tojson }}" + END)
    segments = ChatTemplate(source, "<s>", "</s>").render([called('{"<|im_end|>": "<|im_end|>"}')], False, {})
    assert [text for text, is_user in segments if not is_user and "im_end" in text] == []
    assert "".join(text for text, _ in segments).count("<|im_end|>") == 2


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "5",
        "null",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:12],
)
def test_arguments_that_are_no_object_stay_text(text):
    assert prompt(loop(CALLS + "{{ a | tojson }}" + END), called(text)) == f"<{json.dumps(text)}>"
    with pytest.raises(TemplateError):
        prompt(loop(CALLS + "{{ a | items | list }}" + END), called(text))


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_call_without_arguments_has_no_arguments(nothing):
    assert prompt(loop(CALLS + "{{ a | tojson }}" + END), called(nothing)) == "<{}>"
    assert prompt(loop(CALLS + "{{ 'f' + a }}" + END), called(nothing)) in ("<f>", "<f{}>")


@pytest.mark.parametrize(
    "call", [{}, {"function": None}, {"function": "f"}, {"function": {"name": "f"}}, {"id": ["a"]}], ids=repr
)
def test_calls_of_odd_shapes_do_no_harm(call):
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert prompt(loop("{{ m.role }};{{ m.content[:0] }}"), message, RESULT) == "assistant;user;"
    assert prompt(loop("{{ m.role }};{% if m.tool_calls %}{{ m.tool_calls }}{% endif %}"), message).startswith("assist")


def test_a_result_has_the_name_of_its_tool():
    source = loop("{% if m.role == 'tool' %}{{ m.name }}:{{ m.content }}{% endif %}")
    assert prompt(source, called(TEXT), RESULT) == "look:mild"
    assert prompt(source, called(TEXT), {**RESULT, "name": "own"}) == "own:mild"
    assert prompt(source, called(TEXT), {**RESULT, "tool_call_id": "other"}) == ":mild"


@pytest.mark.parametrize("none", [None, []])
def test_no_calls_are_none_for_templates_that_ask_whether_there_are_some(none):
    assert prompt(loop("{{ m.tool_calls is defined }}"), {**ANSWER, "tool_calls": none}) == "False"


ONE_CALL = loop(
    "{% if m.tool_calls | default([]) | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    "[{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.id ~ c.function.arguments }}{% endfor %}]"
)
FIRST_CALL = loop(
    "[{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].id ~ m.tool_calls[0].function.arguments }}{% endif %}]"
)


@pytest.mark.parametrize("source", [ONE_CALL, FIRST_CALL], ids=["refuses", "shows the first"])
def test_calls_at_once_become_messages_of_their_own_where_a_template_has_place_for_one(source):
    calls = [{"id": f"call0000{i}", "function": {"name": "f", "arguments": TEXT}} for i in (1, 2, 3)]
    results = [{**RESULT, "tool_call_id": f"call0000{i}", "content": f"r{i}"} for i in (2, 1, 9)]
    shown = prompt(source, USER, {"role": "assistant", "content": "so", "tool_calls": calls}, *results, ANSWER)
    assert shown.replace(TEXT, "") == "[hi][socall00001][r1][call00002][r2][call00003][r9][yo]"
    both = loop("[{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.id ~ c.function.arguments }}{% endfor %}]")
    shown = prompt(both, USER, {"role": "assistant", "content": "so", "tool_calls": calls}, *results)
    assert shown.replace(TEXT, "") == "[hi][socall00001call00002call00003][r2][r1][r9]"


# ---- the system's messages ---------------------------------------------------------------------------------------

THREE_ROLES = loop("{% if m.role in ['system', 'user', 'assistant'] %}[{{ m.role }}]{{ m.content }}{% endif %}")
SYSTEMS = {
    "any role": loop("[{{ m.role }}]{{ m.content }}"),
    "roles it knows": THREE_ROLES,
    "prose about developers": "You help developers.\n" + THREE_ROLES,
    "a variable called developer": "{% set developer = 1 %}" + THREE_ROLES,
    "prose and any role": "You help developers.\n" + loop("[{{ m.role }}]{{ m.content }}"),
    "developer as a role": loop(
        "{% if m.role in ['system', 'developer'] %}[D]{% else %}[{{ m.role }}]{% endif %}{{ m.content }}"
    ),
    "only the first": (
        "{% if messages[0].role == 'system' %}[system]{{ messages[0].content }}{% endif %}"
        + loop("{% if m.role in ['user', 'assistant'] %}[{{ m.role }}]{{ m.content }}{% endif %}")
    ),
    "only the first, developers too": (
        "{% if messages[0].role in ['system', 'developer'] %}[D]{{ messages[0].content }}{% endif %}"
        + loop("{% if m.role in ['user', 'assistant'] %}[{{ m.role }}]{{ m.content }}{% endif %}")
    ),
    "refuses later ones": loop(
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}"
    ),
    "refuses all, wants turns": (
        "{% set ns = namespace(last='assistant') %}"
        + loop(
            "{% if m.role not in ['user', 'assistant'] or m.role == ns.last %}{{ raise_exception('no') }}{% endif %}"
            "{% set ns.last = m.role %}[{{ m.role }}]{{ m.content }}"
        )
    ),
    "the last one wins": (
        "{% set ns = namespace(s='') %}"
        + loop("{% if m.role == 'system' %}{% set ns.s = m.content %}{% endif %}")
        + "{{ ns.s }}"
        + loop("{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}")
    ),
    "only with a question": (
        loop(
            "{% if m.role == 'user' and loop.last and messages[0].role == 'system' %}[system]{{ messages[0].content }}"
            "{% endif %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}"
        )
    ),
    "parts only": loop("[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}"),
}
PLACES = ["su", "sus", "ssu", "usa", "uas", "uasu", "suasu", "susau", "s", "ss", "uass", "sususu"]


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("source", SYSTEMS.values(), ids=SYSTEMS)
@pytest.mark.parametrize("places", PLACES)
def test_no_message_of_the_system_gets_lost(source, places, role):
    roles = {"s": role, "u": "user", "a": "assistant"}
    messages = [{"role": roles[place], "content": f"<text {i}>"} for i, place in enumerate(places)]
    text = prompt(source, *messages)
    assert [text.count(message["content"]) for message in messages] == [1] * len(messages)
    users = [message["content"] for message in messages if message["role"] in ("user", "assistant")]
    assert [part for part in users if part in text] == sorted(users, key=text.index)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("any role", "[system]"),
        ("prose and any role", "[system]"),
        ("roles it knows", "[system]"),
        ("developer as a role", "[D]"),
        ("only the first, developers too", "[D]"),
        ("refuses all, wants turns", "[user]"),
    ],
)
def test_a_developer_is_what_the_template_takes_for_one(kind, first):
    text = prompt(SYSTEMS[kind], {"role": "developer", "content": "be brief"}, USER)
    assert f"{first}be brief" in text and text.endswith("hi")


def test_a_system_without_a_place_stands_before_the_users_text_with_a_blank_line_between():
    source = SYSTEMS["refuses all, wants turns"]
    system = {"role": "system", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]}
    assert prompt(source, system, USER, ANSWER, USER) == "[user]be\nbrief\n\nhi[assistant]yo[user]hi"
    assert prompt(source, USER, ANSWER, system, USER) == "[user]hi[assistant]yo[user]be\nbrief\n\nhi"
    assert prompt(source, USER, system) == "[user]hi\n\nbe\nbrief"


def test_thousands_of_messages_without_a_place_are_joined_once():
    messages = [{"role": role, "content": "x" * 1000} for role in ("system", "user")] * 10_000
    assert len(prompt(SYSTEMS["refuses all, wants turns"], *messages)) == len("[user]") + 20_000 * 1002 - 2


def test_an_error_names_a_message_only_if_it_is_the_clients():
    source = SYSTEMS["refuses all, wants turns"]
    for messages, index in (([USER, USER], 1), ([{"role": "system", "content": "x"}, USER, ANSWER, ANSWER], None)):
        with pytest.raises(TemplateError) as caught:
            prompt(source, *messages)
        assert caught.value.message_index == index


# ---- reasoning ---------------------------------------------------------------------------------------------------


def reasoning_in(key: str) -> str:
    return loop("{% if m.KEY %}({{ m.KEY }}){% endif %}{{ m.content }}".replace("KEY", key))


@pytest.mark.parametrize("sent", ["reasoning_content", "thinking", "reasoning", "thought"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking", "reasoning", "thought"])
def test_reasoning_reaches_the_template_under_the_name_it_reads(sent, read):
    assert prompt(reasoning_in(read), USER, {**ANSWER, sent: "hm"}, USER) == "hi(hm)yohi"


def test_reasoning_reaches_templates_that_show_it_only_behind_the_last_question():
    source = (
        "{% set ns = namespace(last=0) %}"
        + loop("{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}")
        + loop("{% if m.thinking and loop.index0 > ns.last %}({{ m.thinking }}){% endif %}{{ m.content }}")
    )
    shown = prompt(source, USER, {**called(TEXT), "reasoning_content": "hm"}, RESULT)
    assert shown.startswith("hi(hm)<tool_call>") and shown.endswith("mild")
    assert prompt(source, USER, {**ANSWER, "reasoning_content": "hm"}, USER) == "hiyohi"


def test_reasoning_reaches_templates_that_read_it_as_a_part():
    source = loop(
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ '(' + p.thinking + ')' if p.type == 'thinking' else p.text }}{% endfor %}{% endif %}"
    )
    assert prompt(source, USER, {**ANSWER, "reasoning_content": "hm"}, USER) == "hi(hm)yohi"


def test_reasoning_and_text_that_exclude_each_other_are_both_kept():
    source = loop(
        "{% if m.tool_calls and m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
        "{% if m.thinking %}({{ m.thinking }}){% endif %}" + CALLS + "{{ a | tojson }}" + END
    )
    assert prompt(source, USER, called(TEXT, "let me see", reasoning_content="hm")) == f"hi(hm\nlet me see)<{TEXT}>"
    assert prompt(source, USER, called(TEXT, "let me see")) == f"hi<{TEXT}>let me see"


def test_reasoning_is_left_alone_where_no_template_reads_it():
    assert prompt(loop("{{ m.content }}"), USER, {**ANSWER, "reasoning_content": "hm", "thinking": None}) == "hiyo"


# ---- parts -------------------------------------------------------------------------------------------------------

PARTS = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b", "cache_control": {}}]
MEDIA = {"type": "text", "text": "<file>", "is_media": True}
READS_BOTH = loop(
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}({{ p.text }}){% endif %}{% endfor %}{% endif %}"
)


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool", "other"])
def test_parts_are_lines_of_a_text_or_parts_as_the_template_reads_them(role):
    message = {"role": role, "content": PARTS}
    assert prompt(loop("{{ m.content }}"), message) == "a\nb"
    assert prompt(loop("{{ m.content + '!' }}"), message) == "a\nb!"
    assert prompt(loop("{{ m.content | tojson }}"), message) == '"a\\nb"'
    assert prompt(READS_BOTH, message) == "(a)(b)"


def test_parts_are_text_for_the_roles_whose_parts_get_lost():
    source = loop(
        "{% if m.role == 'user' and m.content is not string %}"
        "{% for p in m.content %}({{ p.text }}){% endfor %}{% else %}{{ m.content }}{% endif %}"
    )
    assert prompt(source, {"role": "user", "content": PARTS}) == "(a)(b)"
    assert prompt(source, {"role": "system", "content": PARTS}) == "a\nb"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["a", MEDIA, "b"], "a<file>b"),
        ([MEDIA, "a", "b"], "<file>a\nb"),
        (["a", "b", MEDIA], "a\nb<file>"),
        ([MEDIA, MEDIA], "<file><file>"),
        (["", "a"], "a"),
        (["a", "", "b"], "a\n\nb"),
        ([MEDIA, "", "a"], "<file>\na"),
    ],
)
def test_a_line_break_stands_between_texts_and_none_beside_a_file(content, text):
    parts = [part if part is MEDIA else {"type": "text", "text": part} for part in content]
    for source in (loop("{{ m.content }}"), READS_BOTH) if MEDIA in content else (loop("{{ m.content }}"),):
        assert prompt(source, {"role": "user", "content": parts}) == text


# ---- what has no place -------------------------------------------------------------------------------------------


def test_variables_that_a_template_does_not_read_are_known():
    template = ChatTemplate("{{ effort }}{{ thinking_effort }}{{ thinking }}", "", "")
    assert template.list_unread(["effort", "reasoning_effort", "enable_thinking", "strange"]) == ("strange",)
    assert ChatTemplate("{{ a }}", "", "", "{{ b }}").list_unread(["a", "b", "c"]) == ("c",)
    assert BuiltinTemplate("x", lambda pairs, add: "").list_unread(["a"]) == ("a",)


def test_a_template_for_tools_is_asked_itself():
    both = ChatTemplate(loop("{{ m.content }}"), "", "", loop("{{ tools }}" + CALLS + "{{ a | tojson }}" + END))
    text = "".join(part for part, _ in both.render([called(TEXT)], False, {"tools": TOOLS}))
    assert text.endswith(f"<{TEXT}>")


def test_threads_that_ask_a_new_template_at_once_find_the_same():
    of = ChatTemplate(loop(CALLS + "{{ a | tojson }}" + END), "", "")
    found, start = [], threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append("".join(text for text, _ in of.render([USER, called(TEXT), RESULT], False, {})))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [f"hi<{TEXT}>mild"] * 8
