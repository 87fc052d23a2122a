"""The source of each part of a rendered prompt: messages, tools, or the template itself, with all kinds of templates."""

from __future__ import annotations

import json
import random

import pytest

from server.api.request.chat.places import FIRST, Origin, Rewriter, find_offset
from server.api.request.prompt import Place, Prompt
from server.chat.template import ChatTemplate, TemplateError
from server.errors import ApiError
from tests.fake_media import media
from tests.fakes import BOS, FakeVocab
from tests.unit.api.request.chat.test_messages import SOURCE, context, prompt_of, said
from tests.unit.chat.family_templates import FAMILIES

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Says {about}.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": f"a {place}"}}},
        },
    }
    for name, about, place in (("weather", "sunshine", "town"), ("clock", "oclock", "village"))
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CONVERSATION = [
    said("system", "Be brief. Now: monday (noon)."),
    said("user", "  What is up, *friend*?  "),
    said("assistant", "", tool_calls=[CALL]),
    said("tool", "mild weathers", tool_call_id="abcdefghi"),
    said("assistant", "Answered <b>boldly</b>!"),
    said("user", "Then again: monday."),
]
FIELDS = {
    "monday": "messages[0].content",
    "friend": "messages[1].content",
    "Oslo": "messages[2].tool_calls[0].function.arguments",
    "mild": "messages[3].content",
    "Answered": "messages[4].content",
    "again": "messages[5].content",
    "sunshine": "tools[0].function.description",
    "oclock": "tools[1].function.description",
    "village": "tools[1].function.parameters.properties.city.description",
}


def place_at(at: int, messages: list, source: str = SOURCE, **body: object) -> Place | None:
    """Whose the character of the prompt is."""
    model = context(source)
    chat = prompt_of(model, {"messages": messages, **body})
    n_bytes, n_tokens = len(chat.text[:at].encode()), 0
    tokens = [token for token in chat.prompt.tokens if token != BOS]
    while n_bytes > 0:
        n_bytes -= len(model.vocab.piece(tokens[n_tokens]))
        n_tokens += 1
    return chat.prompt.place(model.vocab, n_tokens + (chat.prompt.tokens[0] == BOS), 0)


def owner(word: str, messages: list, source: str = SOURCE, **body: object) -> str | None:
    """The field that a word of the prompt is from, which has to be that of each of its characters."""
    text = prompt_of(context(source), {"messages": messages, **body}).text
    at = text.index(word)
    fields = {place and place.field for place in (place_at(at + i, messages, source, **body) for i in range(len(word)))}
    assert len(fields) == 1, fields
    return fields.pop()


@pytest.mark.parametrize("name", [*FAMILIES])
def test_each_text_of_a_conversation_is_found_under_every_kind_of_template(name):
    template = ChatTemplate(FAMILIES[name], "<s>", "</s>")

    def render(messages, variables):
        return "".join(text for text, _ in template.render(messages, True, variables))

    text, n = render(CONVERSATION, {"tools": TOOLS}), 0
    origin = Origin(CONVERSATION, {"tools": TOOLS}, text, render)
    for word, field in FIELDS.items():
        at = text.find(word)
        if at >= 0:
            n += 1
            assert origin.place([text[:at].encode()], 0).field == field, word
    assert n >= len(FIELDS) - 3


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("monday (", "messages[0].content"),
        ("  What", "messages[1].content"),
        ("*friend*?  ", "messages[1].content"),
        ("<b>boldly</b>!", "messages[2].content"),
        ("!</s>"[:1], "messages[2].content"),
    ],
)
def test_characters_that_are_no_letters_belong_to_the_text_around_them(word, field):
    messages = [
        one for one in CONVERSATION if one["role"] in ("system", "user") or one["content"] == "Answered <b>boldly</b>!"
    ]
    assert owner(word, messages) == field


def test_a_message_says_its_number_and_role():
    at = prompt_of(context(), {"messages": CONVERSATION}).text.index("friend")
    assert place_at(at, CONVERSATION) == Place("messages[1].content", 1, "user")


def test_a_text_that_ends_earlier_is_the_place_itself():
    """The prompt goes on with the template's text where the cached one has more of the message."""
    messages = [said("user", "hello. (you)"), said("user", "x")]
    assert place_at(len("[user]hello. (you)"), messages).field == "messages[0].content"


def test_a_text_twice_is_told_apart_by_its_place():
    messages = [said("user", "same"), said("assistant", "same"), said("user", "same")]
    text = prompt_of(context(), {"messages": messages}).text
    places = [at for at in range(len(text)) if text.startswith("same", at)]
    assert [place_at(at, messages).message for at in places] == [0, 1, 2]


def test_what_the_template_writes_itself_is_its_own():
    source = "Today is {{ strftime_now('%Y') }}. " + SOURCE
    messages = [said("user", "hello"), said("assistant", "yes"), said("user", "x")]
    assert place_at(3, messages, source) == Place("chat_template", 0, "user")
    text = prompt_of(context(source), {"messages": messages}).text
    assert place_at(text.index("[assistant]") + 3, messages, source) == Place("messages[1].role", 1, "assistant")
    assert place_at(text.index("[ai]"), messages, source) == Place("chat_template")


def test_between_two_texts_of_a_tool_it_is_the_tool():
    source = "{% for t in tools %}{{ t | tojson }}{% endfor %}" + SOURCE
    messages = [said("user", "x")]
    assert owner('"properties"', messages, source, tools=TOOLS).startswith("tools[0].function")
    assert owner("clock", messages, source, tools=TOOLS[::-1]) == "tools[0].function.name"


def test_an_answer_that_is_continued_is_the_last_message():
    messages = [said("user", "hello"), said("assistant", "I thi")]
    text = prompt_of(context(), {"messages": messages}).text
    assert place_at(len(text) - 2, messages) == Place("messages[1].content", 1, "assistant")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | tojson(ensure_ascii=True) }}{% endfor %}",
        "{% for m in messages %}{% if 'hello' not in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_writes_something_else_then_tells_nothing(source):
    assert place_at(8, [said("user", "hello there"), said("user", "hello again")], source) is None


def test_what_is_behind_a_part_that_came_out_otherwise_isnt_guessed():
    source = "{% for m in messages %}[{{ m.content }}]{% if m.content == 'hello' %}!!{% endif %}{% endfor %}"
    messages = [said("user", "hello"), said("user", "again")]
    text = prompt_of(context(source), {"messages": messages}).text
    assert place_at(2, messages, source).field == "messages[0].content"
    assert place_at(text.index("again"), messages, source) is None


def test_texts_in_the_rare_letters_themselves_are_no_trouble():
    messages = [said("system", chr(FIRST) * 3 + " word"), said("user", chr(FIRST + 1) + chr(FIRST))]
    assert owner("word", messages) == "messages[0].content" and owner(chr(FIRST + 1), messages) == "messages[1].content"


def test_a_prompt_without_messages_is_its_field():
    assert Prompt((1, 2)).place(FakeVocab(), 1, 0) == Place("prompt")


def test_a_file_is_the_place_that_it_came_in():
    files = (media(b"x", where="messages[2].content[1]"), media(b"y", where="prompt.multimodal_data[0]"))
    prompt = Prompt((5, -1, -2, 6), files)
    assert prompt.place(FakeVocab(), 1, 0) == Place("messages[2].content[1]", 2)
    assert prompt.place(FakeVocab(), 2, 0) == Place("prompt.multimodal_data[0]")


@pytest.mark.parametrize(
    "value", ['{"city": "Os\\"lo \\u00e9", "n": 12, "ok": true}', "no JSON", '{"cut": "off', '"', "{}", ""]
)
def test_arguments_stay_json(value):
    rewriter = Rewriter("")
    written = rewriter.rewrite({"arguments": value}, ())["arguments"]
    assert len(written) == len(value)
    try:
        was = json.loads(value)
    except ValueError:
        return
    assert len(json.loads(written)) == len(was)
    assert [one for one in json.loads(written).values() if not isinstance(one, str)] == [
        one for one in was.values() if not isinstance(one, str)
    ]


@pytest.mark.parametrize(
    "text", ['"' + '\\"' * 200_000 + "\\", '"' * 500_001, "<" * 500_000, "<a" * 300_000, "[A" * 300_000]
)
def test_no_text_takes_more_than_its_length(text):
    """Each would take hours if it took its length squared."""
    for path in (("arguments",), ("content",)):
        assert len(Rewriter("").rewrite(text, path)) == len(text)


def test_names_by_which_templates_decide_stay():
    message = {"role": "tool", "tool_call_id": "call1", "content": "a <think>b</think> [TOOL_CALLS] c", "n": 5}
    written = Rewriter("").rewrite(message, ("messages", 0))
    letter = chr(FIRST)
    assert written == {**message, "content": f"{letter} <think>{letter}</think> [TOOL_CALLS] {letter}"}
    part = {"type": "text", "text": "<__media_1__>", "is_media": True}
    assert Rewriter("").rewrite([part], ()) == [part]


# ---- tokens and characters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "n"),
    [
        ([], 0),
        ([b"<s>", b"The", b" cat"], 7),
        ([b" The", b" cat"], 7),
        ([b"The", b" cat", b" sat", b"\n"], 12),
        ([b"The", b" cat", b" sat", b"on"], 15),
        ([b"The cat sat\n\non", None, b" m\xc3"], 15 + len("<__media_ab_0__>") + 2),
        ([b"The cat sat\n\non", None, b" m\xc3", b"\xa4t"], 15 + len("<__media_ab_0__>") + 4),
    ],
)
def test_tokens_are_followed_through_the_text(pieces, n):
    """Tokens that a model's metadata adds, a space in front, white space that a special token swallows, files, letters
    cut in two."""
    assert find_offset("The cat sat\n\non<__media_ab_0__> m\u00e4t", pieces) == n


def test_tokens_of_another_text_lead_nowhere():
    assert find_offset("The cat sat on the mat", [b"xyz"] * 20) is None


def test_bytes_behind_a_token_count():
    assert find_offset("noon", [], 2) == 2 and find_offset("n\u00e4in", [], 2) == 1


def test_any_place_of_any_conversation_is_told_without_a_fault():
    draw = random.Random(7)
    for _ in range(25):
        messages = [
            said(
                draw.choice(("user", "assistant", "system")),
                "".join(draw.choices("ab .<>\"'[]/\\\u00e9\U00020000\n", k=draw.randrange(12))),
            )
            for _ in range(draw.randrange(1, 5))
        ]
        messages.append(said("user", "end"))
        model = context(draw.choice((SOURCE, *FAMILIES.values())))
        try:
            prompt = prompt_of(model, {"messages": messages}).prompt
        except (ApiError, TemplateError):
            continue
        for at in range(len(prompt.tokens)):
            place = prompt.place(model.vocab, at, draw.randrange(3))
            assert place is None or place.field
