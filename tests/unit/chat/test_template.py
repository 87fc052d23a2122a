"""The choice of the chat template, its input, and which parts of the prompt count as users' text.

Pure: `choose` and `template` with a stand-in for the vocabulary. `tests/unit/jinja` compares the interpreter with
jinja2, and `tests/native/test_chat_native.py` compares segments with libllama's own templates.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.chat.choose import choose_template
from server.chat.jinja import TemplateError
from server.chat.segments import is_text, read_plain_text
from server.chat.template import CHATML, BuiltinTemplate, ChatTemplate
from server.engine.seam.task import ModelInfo
from server.errors import ApiError
from tests.fakes import FakeVocab

USER = [{"role": "user", "content": "hi"}]
LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def template(source: str, tool_source: str = "") -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", tool_source)


def prompt(of, messages=USER, add_generation_prompt: bool = False, **extra: object) -> str:
    return "".join(text for text, _ in of.render(messages, add_generation_prompt, extra))


# ---- Jinja templates ---------------------------------------------------------------------------------------------


def test_chatml_is_the_well_known_form():
    messages = [{"role": "system", "content": "be brief"}, *USER]
    assert prompt(template(CHATML), messages, True) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt(template(CHATML), USER) == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_template_sees_the_special_tokens_and_further_variables():
    source = (
        "{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}|{{ enable_thinking }}|{{ nothing is defined }}"
    )
    assert prompt(template(source), USER, True, enable_thinking=False) == "<s>|</s>|True|False|False"


def test_variables_of_a_request_cannot_replace_the_messages():
    extra = {"messages": [{"role": "user", "content": "other"}], "add_generation_prompt": True}
    segments = template(LOOP + "{{ add_generation_prompt }}").render(USER, False, extra)
    assert "".join(text for text, _ in segments) == "[user]hiFalse"


def test_what_messages_say_is_user_text_and_what_the_template_says_is_not():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert template(LOOP).render(messages, False, {}) == [
        ("[user]", False),
        ("hi", True),
        ("[assistant]", False),
        ("yo", True),
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"name": "<|im_end|>"},
        {"reasoning_content": "<|im_end|>"},
        {"tool_call_id": "<|im_end|>"},
        {"tool_calls": [{"function": {"name": "f", "arguments": "<|im_end|>"}}]},
        {"content": [{"type": "text", "text": "<|im_end|>"}]},
        {"thinking": "<|im_end|>"},
        {"anything": {"a": "<|im_end|>"}},
    ],
    ids=lambda message: next(iter(message)),
)
def test_every_field_of_a_message_but_its_role_is_user_text(message):
    source = "A{{ messages[0] | tojson }}B"
    messages = [{"role": "user", "content": "", **message}]
    owners = [is_user for text, is_user in template(source).render(messages, False, {}) if "<|im_end|>" in text]
    assert owners == [True]


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_and_documents_are_user_text(name):
    extra = {name: [{"description": "<|im_end|>"}]}
    segments = template("A{{ %s[0].description }}B" % name).render(USER, False, extra)
    assert segments == [("A", False), ("<|im_end|>", True), ("B", False)]


def test_rendering_changes_nothing_of_what_it_was_given():
    messages = [{"role": "developer", "content": [{"type": "text", "text": "hi"}], "tool_calls": [{"a": ["b"]}]}]
    extra = {"tools": [{"a": "b"}]}
    before = (repr(messages), repr(extra))
    prompt(template(LOOP), messages, **extra)
    assert (repr(messages), repr(extra)) == before


PARTS_ONLY = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}({{ part.text }})"
    "{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(("source", "expected"), [(LOOP, "[user]hi"), (PARTS_ONLY, "(hi)")], ids=["text", "parts"])
def test_text_and_an_equal_part_give_the_same_prompt(source, expected):
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert prompt(template(source), USER) == prompt(template(source), parts) == expected


def test_several_parts_follow_one_another():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert prompt(template(LOOP), messages) == "[user]a\nb"
    assert prompt(template(PARTS_ONLY), messages) == "(a)(b)"


def test_a_template_that_refuses_everything_still_compiles():
    refusing = template("{{ raise_exception('no') }}")
    with pytest.raises(TemplateError, match="no"):
        prompt(refusing)


@pytest.mark.parametrize("bad", ["{% for %}", "{{ x", "{% if a %}", "{{ 'a' | no_such_filter }}"])
def test_what_is_no_template_says_where(bad):
    with pytest.raises(TemplateError) as caught:
        template("line one\n" + bad)
    assert caught.value.line == 2


def test_developer_is_system_where_the_template_does_not_know_it():
    messages = [{"role": "developer", "content": "x"}]
    assert prompt(template(LOOP), messages) == "[system]x"
    knows = "{% for m in messages %}{% if m.role == 'developer' %}D{% endif %}{{ m.content }}{% endfor %}"
    assert prompt(template(knows), messages) == "Dx"


def test_conversations_with_tools_use_the_template_for_tools():
    both = template("plain", "tools: {{ tools | length }}")
    assert prompt(both) == "plain"
    assert prompt(both, tools=[]) == "plain"
    assert prompt(both, tools=[{}, {}]) == "tools: 2"


# ---- libllama's templates ----------------------------------------------------------------------------------------


def chat(pairs, add_generation_prompt: bool) -> str:
    """A made-up template that trims, and glues the system's text to the next one, as some of libllama's do."""
    system = "".join(f"<<{content.strip()}>>" for role, content in pairs if role == "system")
    rest = "".join(f"[{role}]{content}" for role, content in pairs if role != "system")
    return system + rest + "[assistant]" * add_generation_prompt


def test_a_built_in_template_tells_users_text_too():
    builtin = BuiltinTemplate("made-up", chat)
    messages = [{"role": "system", "content": " be brief\n"}, {"role": "user", "content": " hi "}]
    segments = builtin.render(messages, True, {})
    assert segments == [("<<", False), ("be brief", True), (">>[user] ", False), ("hi", True), (" [assistant]", False)]
    assert "".join(text for text, _ in segments) == chat([("system", " be brief\n"), ("user", " hi ")], True)


@pytest.mark.parametrize("content", ["", " ", "\n", "a", "aa a", " 0-1- ", "x" * 1000, "é\u2028", None])
def test_a_built_in_template_gets_contents_as_they_are(content):
    builtin = BuiltinTemplate("made-up", chat)
    assert prompt(builtin, [{"role": "user", "content": content}], True) == chat([("user", content or "")], True)


def test_a_built_in_template_reads_text_parts_and_developers():
    builtin = BuiltinTemplate("made-up", chat)
    messages = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert prompt(builtin, messages) == "<<a\nb>>"


# ---- content -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "x"}, True),
        ({"text": "x"}, True),
        ({"type": "input_text", "text": "x"}, True),
        ({"type": "output_text", "text": ""}, True),
        ({"type": "text"}, False),
        ({"type": "text", "text": 5}, False),
        ({"type": "image_url", "image_url": {}}, False),
        ({}, False),
        ("x", False),
        (None, False),
    ],
    ids=repr,
)
def test_which_parts_are_text(part, expected):
    assert is_text(part) is expected


@pytest.mark.parametrize(
    ("content", "text"),
    [("a", "a"), (None, ""), ([], ""), ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}], "a\nb")],
    ids=repr,
)
def test_the_plain_text_of_a_content(content, text):
    assert read_plain_text(content) == text


# ---- choosing ----------------------------------------------------------------------------------------------------


class Vocab(FakeVocab):
    """With two names of built-in templates."""

    builtin_templates = ("chatml", "vicuna")

    def apply_template(self, template, messages, add_generation_prompt):
        return f"{template[:6]}:" + super().apply_template(template, messages, add_generation_prompt)


def choose(meta: dict[str, str] | None = None, vocab: FakeVocab | None = None, **options: object):
    options = {"chat_template": None, "chat_template_file": None, "jinja": True, **options}
    info = ModelInfo("m.gguf", bos_token="<s>", eos_token="</s>", meta=meta or {})
    return choose_template(SimpleNamespace(**options), info, vocab or Vocab())


MODELS = {"tokenizer.chat_template": "model {{ eos_token }}"}


def test_the_models_own_template_is_the_default():
    assert prompt(choose(MODELS)) == "model </s>"


def test_the_models_template_for_tools_is_used_with_tools():
    meta = {**MODELS, "tokenizer.chat_template.tool_use": "{{ tools | length }} tools"}
    assert prompt(choose(meta)) == "model </s>"
    assert prompt(choose(meta), tools=[{}]) == "1 tools"
    assert prompt(choose(meta, chat_template="{{ 'mine' }}"), tools=[{}]) == "mine"


def test_a_model_with_nothing_but_a_template_for_tools_uses_that():
    assert prompt(choose({"tokenizer.chat_template.tool_use": "{{ 'tools' }}"})) == "tools"


def test_text_on_the_command_line_comes_before_the_model():
    assert prompt(choose(MODELS, chat_template="{{ 'mine' }}")) == "mine"


def test_a_file_comes_before_everything(tmp_path):
    file = tmp_path / "größe.jinja"
    file.write_text("{{ 'file' }} é", "utf-8")
    assert prompt(choose(MODELS, chat_template="{{ 'mine' }}", chat_template_file=str(file))) == "file é"


def test_chatml_by_name_is_rendered_by_our_interpreter():
    chosen = choose(MODELS, chat_template="chatml")
    assert isinstance(chosen, ChatTemplate) and chosen.source == CHATML


def test_other_names_are_rendered_by_libllama():
    chosen = choose(MODELS, chat_template="vicuna")
    assert isinstance(chosen, BuiltinTemplate) and prompt(chosen) == "vicuna:[user]hi"


@pytest.mark.parametrize(
    ("options", "start"),
    [({}, "model "), ({"chat_template": "vicuna"}, "vicuna"), ({"chat_template": "{{ 'mine' }}"}, "{{ 'mi")],
)
def test_without_jinja_libllama_renders_everything(options, start):
    chosen = choose(MODELS, jinja=False, **options)
    assert isinstance(chosen, BuiltinTemplate) and prompt(chosen).startswith(start + ":")


@pytest.mark.parametrize("jinja", [True, False])
def test_a_model_without_a_template_gets_chatml_and_a_warning(caplog, jinja):
    with caplog.at_level("WARNING", "llama_srv"):
        chosen = choose({}, jinja=jinja)
    assert prompt(chosen) == ("<|im_start|>user\nhi<|im_end|>\n" if jinja else "chatml:[user]hi")
    assert [record.getMessage() for record in caplog.records if "ChatML" in record.getMessage()] != []


def test_no_warning_where_a_template_was_found(caplog):
    with caplog.at_level("WARNING", "llama_srv"):
        choose(MODELS), choose({}, chat_template="vicuna"), choose({}, chat_template="{{ 1 }}")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chat_template": "no-such-name"}, ("no-such-name", "chatml, vicuna")),
        ({"chat_template": "{% for %}"}, ("can't be compiled", "line 1")),
        ({"chat_template_file": "no/such/file"}, ("--chat-template-file no/such/file", "can't be read")),
    ],
)
def test_a_template_that_cannot_be_used_says_why(options, words):
    with pytest.raises(ApiError) as caught:
        choose(MODELS, **options)
    assert caught.value.status == 500 and all(word in caught.value.message for word in words)


def test_what_llama_cpp_does_not_recognise_is_told_at_once():
    class Helpless(Vocab):
        def apply_template(self, template, messages, add_generation_prompt):
            raise ApiError(400, "none fits")

    with pytest.raises(ApiError, match="remove --no-jinja") as caught:
        choose(MODELS, Helpless(), jinja=False)
    assert caught.value.status == 500


def test_a_file_that_is_no_text_says_so(tmp_path):
    (tmp_path / "x.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ApiError, match="can't be read"):
        choose(MODELS, chat_template_file=str(tmp_path / "x.jinja"))
