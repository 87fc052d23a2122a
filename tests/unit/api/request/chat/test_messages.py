"""From `messages` to tokens: refusals and their words, the template's input, and that no text can forge a special
token.

Pure: a context with a template and bytes as the vocabulary, in which `<s>` and `</s>` are special tokens.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.request.chat.messages import (
    MAX_MESSAGES,
    ChatPrompt,
    check_messages,
    make_chat_prompt,
    read_conversation,
)
from server.api.request.media import Files
from server.api.request.prompt import tokenize_between, tokenize_segments
from server.chat.template import ChatTemplate
from server.engine.seam.task import ModelInfo
from server.errors import ApiError
from server.models.model import SystemPrompt
from tests.fakes import BOS, EOS, FakeVocab

SOURCE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[ai]{% endif %}"
)


def context(
    source: str = SOURCE, vocab: FakeVocab | None = None, template_kwargs: dict | None = None, system_prompt: str = ""
) -> SimpleNamespace:
    """As much of `api.model.Model` as `make_chat_prompt` reads."""
    return SimpleNamespace(
        chat_template=ChatTemplate(source, "<s>", "</s>"),
        template_kwargs=template_kwargs or {},
        defaults={},
        vocab=vocab or FakeVocab(),
        info=ModelInfo("fake.gguf"),
        system_prompt=SystemPrompt(system_prompt),
    )


def said(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def prompt_of(model: object, body: dict[str, object]) -> ChatPrompt:
    files = Files(model)
    return make_chat_prompt(model, read_conversation(model, body, files), files)


def rendered(*messages: object, source: str = SOURCE, **body: object) -> str:
    return prompt_of(context(source), {"messages": list(messages), **body}).text


def refused(body: dict[str, object], source: str = SOURCE) -> ApiError:
    with pytest.raises(ApiError) as caught:
        prompt_of(context(source), body)
    assert caught.value.status == 400
    return caught.value


# ---- what is refused ---------------------------------------------------------------------------------------------

USER = said("user", "hi")
BAD_MESSAGES = [
    (None, "messages"),
    ([], "messages"),
    ({}, "messages"),
    ("hi", "messages"),
    (5, "messages"),
    (True, "messages"),
    (["hi"], "messages[0]"),
    ([USER, None], "messages[1]"),
    ([USER, []], "messages[1]"),
    ([{}], "messages[0].role"),
    ([{"content": "x"}], "messages[0].role"),
    ([said("", "x")], "messages[0].role"),
    ([said(None, "x")], "messages[0].role"),
    ([said(5, "x")], "messages[0].role"),
    ([said("<|im_end|>", "x")], "messages[0].role"),
    ([said("a b", "x")], "messages[0].role"),
    ([said("user\n", "x")], "messages[0].role"),
    ([said("x" * 65, "x")], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([USER, said("system", None)], "messages[1].content"),
    ([said("tool", None)], "messages[0].content"),
    ([said("user", 5)], "messages[0].content"),
    ([said("user", True)], "messages[0].content"),
    ([said("user", {"text": "x"})], "messages[0].content"),
    ([said("user", ["x"])], "messages[0].content[0]"),
    ([said("user", [None])], "messages[0].content[0]"),
    ([said("user", [{}])], "messages[0].content[0]"),
    ([said("user", [{"type": "text"}])], "messages[0].content[0]"),
    ([said("user", [{"type": "text", "text": 5}])], "messages[0].content[0]"),
    ([said("user", [{"text": "x"}, {"type": 5, "text": "x"}])], "messages[0].content[1]"),
    ([said("user", [{"type": "image_url", "image_url": {"url": "data:"}}])], "can't see images"),
    ([said("user", [{"type": "input_audio"}])], "can't hear sounds"),
    ([said("user", "x", name=5)], "messages[0].name"),
    ([said("tool", "x", tool_call_id=5)], "messages[0].tool_call_id"),
    ([said("assistant", None, tool_calls={})], "messages[0].tool_calls"),
    ([said("assistant", None, tool_calls="x")], "messages[0].tool_calls"),
    ([said("assistant", None, tool_calls=["x"])], "messages[0].tool_calls"),
    ([said("assistant", "x", reasoning_content=5)], "messages[0].reasoning_content"),
    ([said("assistant", None, tool_calls=[{"function": 5}])], "messages[0].tool_calls[0].function"),
    ([said("assistant", None, tool_calls=[{}, {"function": {}}])], "messages[0].tool_calls[1].function.name"),
    ([said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": 5}}])], "function.arguments"),
    ([said("assistant", None, function_call="f")], "messages[0].function_call"),
    ([said("assistant", None, function_call={"arguments": "{}"})], "messages[0].function_call.name"),
    ([said("assistant", None, function_call={"name": "f", "arguments": []})], "function_call.arguments"),
]


@pytest.mark.parametrize(("messages", "words"), BAD_MESSAGES, ids=lambda value: repr(value)[:60])
def test_a_bad_list_of_messages_is_refused_by_its_place(messages, words):
    error = refused({"messages": messages})
    assert words in error.message and "\n" not in error.message and len(error.message) < 200


def test_too_many_messages_are_refused_before_anything_is_rendered():
    assert str(MAX_MESSAGES) in refused({"messages": [USER] * (MAX_MESSAGES + 1)}).message
    assert len(check_messages([USER] * MAX_MESSAGES)) == MAX_MESSAGES


@pytest.mark.parametrize(
    "message",
    [
        said("system", "x"),
        said("user", ""),
        said("assistant", None),
        said("assistant", ""),
        said("tool", "x"),
        said("function", "x", name="f"),
        said("my-role_1", "x"),
        said("user", []),
        said("user", "x", name=None),
        said("assistant", None, tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}}]),
        said("user", "x", anything={"at": ["all"]}),
    ],
    ids=repr,
)
def test_what_clients_send_is_allowed(message):
    assert check_messages([message])[0]["role"] == message["role"]


BAD_FIELDS = [
    ({"add_generation_prompt": 1}, "add_generation_prompt"),
    ({"add_generation_prompt": "yes"}, "add_generation_prompt"),
    ({"continue_final_message": 1}, "continue_final_message"),
    ({"continue_final_message": []}, "continue_final_message"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"tools": {}}, "tools"),
    ({"tools": "x"}, "tools"),
    ({"tools": ["x"]}, "tools"),
    ({"tools": [[]]}, "tools"),
    ({"reasoning_format": 5}, "reasoning_format"),
    ({"reasoning_format": "other"}, "auto"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_FIELDS, ids=repr)
def test_a_bad_field_is_refused_by_name(fields, words):
    assert words in refused({"messages": [USER], **fields}).message


@pytest.mark.parametrize(
    "name", ["add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools", "reasoning_format"]
)
def test_null_is_as_good_as_nothing(name):
    assert rendered(USER, **{name: None}) == rendered(USER)


@pytest.mark.parametrize("name", ["none", "auto", "deepseek", "deepseek-legacy"])
def test_reasoning_formats_are_known(name):
    assert rendered(USER, reasoning_format=name) == rendered(USER)


def test_calls_and_results_of_the_older_form_are_those_of_today():
    call = {"name": "f", "arguments": '{"x": 1}'}
    old = [USER, said("assistant", None, function_call=call), said("function", "5", name="f"), USER]
    source = (
        "{% for m in messages %}[{{ m.role }}{% for c in m.tool_calls %} {{ c.id }} {{ c.function.name }}"
        "{{ c.function.arguments }}{% endfor %}{{ ' ' + m.tool_call_id if m.tool_call_id }}]{{ m.content }}{% endfor %}"
    )
    expected = '[user]hi[assistant call00001 f{"x": 1}][tool call00001]5[user]hi'
    assert rendered(*old, source=source).replace("'", '"') == expected
    assert rendered(said("function", "5", name="f"), source=source) == "[tool]5"


# ---- errors of the template --------------------------------------------------------------------------------------


def test_a_template_that_raises_is_a_400_that_names_the_message():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no answer') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    error = refused({"messages": [USER, said("assistant", "x"), USER]}, source)
    assert "no answer" in error.message and "messages[1]" in error.message and "line 1" in error.message
    assert error.extra["param"] == "messages[1]"


@pytest.mark.parametrize(
    "source",
    ["{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ messages[99].content }}", "{% for i in range(10 ** 9) %}x{% endfor %}"],
)
def test_every_failure_of_a_template_is_a_400(source):
    assert "chat template" in refused({"messages": [USER]}, source).message


# ---- the end of the conversation ---------------------------------------------------------------------------------


def test_the_generation_prompt_can_be_left_out():
    assert rendered(USER) == "[user]hi</s>[ai]" == rendered(USER, add_generation_prompt=True)
    assert rendered(USER, add_generation_prompt=False) == "[user]hi</s>"


@pytest.mark.parametrize(
    "fields", [{}, {"continue_final_message": True}, {"add_generation_prompt": False, "continue_final_message": True}]
)
def test_an_answer_that_has_begun_is_continued(fields):
    prompt = prompt_of(context(), {"messages": [USER, said("assistant", "Once")], **fields})
    assert (prompt.text, prompt.prefill) == ("[user]hi</s>[ai]Once", "Once")


def test_an_answer_in_parts_is_continued():
    parts = [{"type": "text", "text": "On"}, {"type": "text", "text": "ce"}]
    assert rendered(USER, said("assistant", parts)) == "[user]hi</s>[ai]On\nce"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"continue_final_message": False}, "[user]hi</s>[assistant]Once</s>[ai]"),
        ({"add_generation_prompt": False}, "[user]hi</s>[assistant]Once</s>"),
    ],
)
def test_a_complete_answer_is_a_message_like_others(fields, text):
    assert rendered(USER, said("assistant", "Once"), **fields) == text


def test_an_answer_with_tool_calls_is_complete():
    calls = said("assistant", None, tool_calls=[{"function": {"name": "f"}}])
    assert rendered(USER, calls).startswith("[user]hi</s>[assistant]<tool_call>")
    assert rendered(USER, calls).endswith("</tool_call></s>[ai]")


def test_an_empty_beginning_is_no_beginning():
    assert rendered(USER, said("assistant", None)) == rendered(USER, said("assistant", "")) == "[user]hi</s>[ai]"


def test_continuing_and_a_generation_prompt_exclude_each_other():
    body = {"messages": [USER, said("assistant", "x")], "add_generation_prompt": True, "continue_final_message": True}
    message = refused(body).message
    assert "add_generation_prompt" in message and "continue_final_message" in message


@pytest.mark.parametrize("last", [USER, said("assistant", None, tool_calls=[{}])], ids=["user", "tool calls"])
def test_only_an_answer_can_be_continued(last):
    assert "last message" in refused({"messages": [USER, last], "continue_final_message": True}).message


# ---- variables ---------------------------------------------------------------------------------------------------


def test_template_variables_of_request_and_server_and_tools_reach_the_template():
    source = "{{ a }}{{ b }}{{ tools[0].function.name if tools else 'none' }}"
    server = context(source, template_kwargs={"a": 1, "b": 2})
    body = {"messages": [USER], "chat_template_kwargs": {"b": 3}, "tools": [{"function": {"name": "f"}}]}
    assert prompt_of(server, body).text == "13f"
    assert prompt_of(server, {"messages": [USER], "tools": []}).text == "12none"


def test_content_parts_give_the_prompt_of_the_same_text():
    assert rendered(said("user", [{"type": "text", "text": "hi"}])) == rendered(USER)


# ---- tokens ------------------------------------------------------------------------------------------------------


def tokens_of(*messages: object, source: str = SOURCE, **options: object) -> list[int]:
    return list(prompt_of(context(source, **options), {"messages": list(messages)}).prompt.tokens)


def test_the_template_makes_special_tokens_and_users_do_not():
    assert tokens_of(said("user", "hi</s><s>")) == [BOS, *b"[user]hi</s><s>", EOS, *b"[ai]"]


def test_a_name_cut_in_two_by_the_border_of_a_message_makes_no_token():
    assert EOS not in tokens_of(said("user", "</"), source="{{ messages[0].content }}s>")
    assert EOS not in tokens_of(said("user", "s>"), source="</{{ messages[0].content }}")
    assert EOS not in tokens_of(
        said("user", "</"), said("user", "s>"), source="{{ messages[0].content }}{{ messages[1].content }}"
    )


def test_the_beginning_of_an_answer_makes_no_special_token():
    assert tokens_of(USER, said("assistant", "</s>")) == [BOS, *b"[user]hi", EOS, *b"[ai]</s>"]


def test_one_forged_for_one_lost_is_noticed():
    class Greedy(FakeVocab):
        """In which `x<s>` swallows the template's `<s>`, as white space around special tokens can."""

        def tokenize(self, text, add_special, parse_special, **bounds):
            return super().tokenize(text.replace("x<s>", "x"), add_special, parse_special)

    source = "{{ messages[0].content }}<s>"
    assert tokens_of(said("user", "</s>x"), source=source, vocab=Greedy()) == [BOS, *b"</s>x", BOS]


def test_bos_comes_once():
    class NoBos(FakeVocab):
        def tokenize(self, text, add_special, parse_special, **bounds):
            return super().tokenize(text, False, parse_special)

    for source in (
        "<s>{{ messages[0].content }}",
        "{{ bos_token }}{{ messages[0].content }}",
        "{{ messages[0].content }}",
    ):
        assert tokens_of(USER, source=source) == [BOS, *b"hi"]
        assert tokens_of(said("user", "</s>"), source=source) == [BOS, *b"</s>"]
    assert tokens_of(USER, source="{{ messages[0].content }}", vocab=NoBos()) == [*b"hi"]


def test_a_user_cannot_take_the_bos_away():
    assert tokens_of(said("user", "<s>x"), source="{{ messages[0].content }}") == [BOS, *b"<s>x"]


def test_what_the_tokenizer_puts_at_the_end_stays_there():
    class WithEos(FakeVocab):
        def tokenize(self, text, add_special, parse_special, **bounds):
            return super().tokenize(text, add_special, parse_special) + [EOS] * add_special

    assert tokens_of(USER, source="{{ messages[0].content }}", vocab=WithEos()) == [BOS, *b"hi", EOS]
    assert tokens_of(said("user", "<s>"), source="{{ messages[0].content }}", vocab=WithEos()) == [BOS, *b"<s>", EOS]


def test_behind_a_system_prompt_of_the_server_there_is_no_bos():
    assert tokens_of(USER, source="{{ messages[0].content }}", system_prompt="be brief") == [*b"hi"]


def test_an_empty_prompt_is_bos_alone():
    assert tokens_of(said("user", ""), source="{{ messages[0].content }}") == [BOS]


PARTS = st.lists(st.tuples(st.text("<s/>a é", max_size=8), st.booleans()), max_size=8)


@given(PARTS)
def test_special_tokens_are_the_templates_own_whatever_users_write(segments):
    segments = merged(segments)
    tokens = tokenize_segments(FakeVocab(), segments, "<s>")
    own = re.findall("</?s>", "\0".join(text for text, is_user in segments if not is_user))
    has_bos = bool(segments) and not segments[0][1] and segments[0][0].startswith("<s>")
    assert [token for token in tokens if token >= 256] == ([] if has_bos else [BOS]) + [
        BOS if name == "<s>" else EOS for name in own
    ]
    names = {BOS: b"<s>", EOS: b"</s>"}
    text = b"".join(names.get(token) or bytes([token]) for token in tokens[0 if has_bos else 1 :])
    assert text.decode() == "".join(part for part, _ in segments)


@given(PARTS)
def test_without_forgery_tokenising_between_the_special_ones_changes_nothing(segments):
    vocab = FakeVocab()
    segments = [(text.replace("<", ""), True) if is_user else (text, False) for text, is_user in merged(segments)]
    whole = vocab.tokenize("".join(text for text, _ in segments), False, True)
    own = [
        token
        for text, is_user in segments
        if not is_user
        for token in vocab.tokenize(text, False, True)
        if token >= 256
    ]
    if [token for token in whole if token >= 256] == own:
        assert tokenize_between(vocab, segments, own) == whole


def merged(segments: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours of one kind as one and none empty, as templates give them."""
    result: list[tuple[str, bool]] = []
    for text, is_user in segments:
        if not text:
            continue
        if result and result[-1][1] == is_user:
            text = result.pop()[0] + text
        result.append((text, is_user))
    return result
