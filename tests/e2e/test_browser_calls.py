"""Tool calls and reasoning on the page, in a real browser on scripted answers."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path

import pytest

from tests.e2e.scripted import CLOSE, Scripted, call, end, scripted, text, thought  # noqa: F401
from tests.e2e.test_agents import TOOLS_TEMPLATE
from tests.e2e.test_browser import axe, open_page  # noqa: F401
from tests.e2e.test_browser_chat import import_file, is_running, messages, press_tool, say, stored
from tests.e2e.webdriver import PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.reciting_models import recite_answers
from tests.support import wait_until

CONTROL, ENTER = "\ue009", "\ue007"
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "clock"}},
]


def define_tools(browser: Browser, source: str) -> None:  # noqa: F811
    """Put a text into the box for tools."""
    if not browser.run("return document.querySelector('.tools-box').open"):
        browser.click(".tools-box summary")
    browser.clear("#tools")
    browser.run("const a = document.querySelector('#tools'); a.focus(); a.value = arguments[0];", source[:-1])
    browser.type("#tools", source[-1])


def thinking(browser: Browser) -> list[object] | None:  # noqa: F811
    """Label, text and whether it is open, of the latest reasoning."""
    return browser.run("""const one = [...document.querySelectorAll('.message.assistant .think:not([hidden])')].at(-1);
        return one && [one.querySelector('summary').textContent, one.querySelector('.text').textContent, one.open]""")


def calls(browser: Browser) -> list[list[str]]:  # noqa: F811
    """Name and arguments of all calls on screen."""
    return browser.run("""return [...document.querySelectorAll('.call')].map((one) =>
        [one.querySelector('summary').textContent, one.querySelector('pre').textContent])""")


def has_fields(browser: Browser) -> bool:  # noqa: F811
    """Can calls be answered?"""
    return browser.exists(".call-box textarea")


def results(browser: Browser) -> list[str]:  # noqa: F811
    return browser.run("return [...document.querySelectorAll('.message.tool .body')].map((one) => one.textContent)")


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_calls_are_shown_answered_by_hand_and_kept(scripted: Scripted, browser: Browser, request, size):  # noqa: F811
    if size == "phone":
        browser.look(*PHONE, "dark", mobile=True)
    scripted.will_answer(
        [
            *thought("I need\n\n- the **weather**"),
            *text("Let me see."),
            *call(0, "weather", '{"city": "Ro', 'me", "days": [1, 2]}'),
            *call(1, "clock", "{}"),
            end("tool_calls"),
        ],
        [*text("It rains."), end()],
    )
    open_page(browser, scripted)
    define_tools(browser, json.dumps(TOOLS))
    browser.type("#chat-input", "How is Rome?")
    browser.click("#chat-send")
    wait_until(lambda: has_fields(browser), "the fields for results")
    assert scripted.requests[0]["tools"] == TOOLS
    assert calls(browser) == [["weather", json.dumps({"city": "Rome", "days": [1, 2]}, indent=2)], ["clock", "{}"]]
    browser.type(".call-box:nth-child(1) textarea", '{"rain": true}')
    browser.type(".call-box:nth-child(2) textarea", "noon")
    browser.screenshot(screenshot_path(request, "asked"))
    browser.click(".calls button[type=submit]")
    wait_until(lambda: messages(browser)[-1][1] == "It rains." and not is_running(browser), "the answer")
    browser.screenshot(screenshot_path(request, "answered"))
    sent = scripted.requests[1]["messages"]
    assert sent[1] == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "I need\n\n- the **weather**",
        "tool_calls": [
            {
                "id": "call-0",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome", "days": [1, 2]}'},
            },
            {"id": "call-1", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
        ],
    }
    assert sent[2:] == [
        {"role": "tool", "tool_call_id": "call-0", "name": "weather", "content": '{"rain": true}'},
        {"role": "tool", "tool_call_id": "call-1", "name": "clock", "content": "noon"},
    ]
    shown = messages(browser), calls(browser), results(browser)
    assert results(browser) == ['{\n  "rain": true\n}', "noon"]
    open_page(browser, scripted, browser.run("return location.hash"))
    wait_until(lambda: (messages(browser), calls(browser), results(browser)) == shown, "all of it after a reload")
    assert browser.value("#tools") and browser.text(".tools-box .badge") == "2"
    assert not has_fields(browser)


def test_reasoning_is_open_while_it_streams_and_says_how_long_it_took(scripted: Scripted, browser: Browser, request):  # noqa: F811
    writes, answers = threading.Event(), threading.Event()
    scripted.will_answer([*thought("First\n\n- *this*"), writes, *thought(" and that"), answers, *text("Done"), end()])
    open_page(browser, scripted)
    say(browser, "Think", waits=False)
    wait_until(lambda: thinking(browser) == ["Thinking…", "Firstthis", True], "open reasoning")
    assert browser.exists(".think li em")
    browser.screenshot(screenshot_path(request, "thinking"))
    writes.set()
    wait_until(lambda: thinking(browser)[1] == "Firstthis and that", "more of it")
    answers.set()
    wait_until(lambda: not is_running(browser), "the end")
    label, shown, is_open = thinking(browser)
    assert label.startswith("Thought for ") and label.endswith(" sec") and not is_open
    browser.click(".message.assistant .think summary")
    assert shown == "Firstthis and that" and browser.exists(".think[open]")
    assert [one["reasoning"] for one in stored(browser) if "reasoning" in one] == ["First\n\n- *this* and that"]
    open_page(browser, scripted, browser.run("return location.hash"))
    wait_until(lambda: browser.exists(".think") and thinking(browser)[0] == label, "the same after a reload")


def test_faulty_tools_are_named_and_nothing_is_sent(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    for source, said in (
        ("[{", "Not JSON"),
        ("[3]", "Tool 1"),
        ('[{"type": "function", "function": {"name": "a b"}}]', "name"),
        (json.dumps([TOOLS[1], TOOLS[1]]), "another “clock”"),
        ('{"name": "x", "parameters": []}', "not an object"),
        ('{"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "thing"}}}}', "thing"),
    ):
        define_tools(browser, source)
        wait_until(lambda s=said: s in browser.text("#tools-problem"), said)
    define_tools(browser, "[{")
    browser.type("#chat-input", "Hello")
    browser.press(ENTER)
    wait_until(lambda: browser.run("return document.activeElement.id") == "tools", "the fault in view")
    assert browser.value("#chat-input") == "Hello" and scripted.requests == [] and messages(browser) == []
    define_tools(browser, '{"name": "x"}')
    say(browser, "")
    assert scripted.requests[0]["tools"] == [{"type": "function", "function": {"name": "x"}}]
    browser.click("#new-chat")
    wait_until(lambda: browser.value("#tools") == "", "a conversation without tools")
    browser.click(".chats a")
    wait_until(lambda: browser.value("#tools") == '{"name": "x"}', "the one with them")


def test_edits_and_versions_keep_calls_results_and_reasoning(scripted: Scripted, browser: Browser):  # noqa: F811
    asks = [*thought("Hm"), *text("Look:"), *call(0, "weather", "{}"), *call(1, "clock", "{}"), end("tool_calls")]
    scripted.will_answer(asks, [*text("Wet"), end()], [*text("Dry"), end()])
    open_page(browser, scripted)
    say(browser, "Go")
    browser.type(".call-box:nth-child(1) textarea", "rain")
    browser.type(".call-box:nth-child(2) textarea", "noon")
    browser.press(CONTROL, ENTER)
    wait_until(lambda: messages(browser)[-1][1] == "Wet" and not is_running(browser), "the answer")
    press_tool(browser, 2, "Edit")
    browser.clear(".message textarea.edit")
    browser.type(".message textarea.edit", "sun")
    browser.click(".message.editing button.main")
    wait_until(lambda: messages(browser)[-1][1] == "Dry" and not is_running(browser), "another answer")
    assert [one["content"] for one in scripted.requests[2]["messages"] if one["role"] == "tool"] == ["sun", "noon"]
    press_tool(browser, 2, "Previous version")
    wait_until(lambda: results(browser) == ["rain", "noon"] and messages(browser)[-1][1] == "Wet", "the first branch")
    press_tool(browser, 1, "Edit")
    browser.type(".message textarea.edit", " now")
    browser.click(".message.editing button.main")
    wait_until(lambda: has_fields(browser), "the edited answer, to be answered anew")
    assert messages(browser)[-1][1] == "Look: now"
    assert [name for name, _ in calls(browser)] == ["weather", "clock"] and thinking(browser)[1] == "Hm"


def test_calls_are_copied_searched_exported_and_imported(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    scripted.will_answer(
        [*thought("I wonder"), *call(0, "weather", '{"city":"Oslo"}'), end("tool_calls")], [*text("Fine."), end()]
    )
    open_page(browser, scripted)
    define_tools(browser, '{"name": "weather"}')
    say(browser, "Go")
    browser.type(".call-box textarea", "snow")
    browser.click(".calls button[type=submit]")
    wait_until(lambda: messages(browser)[-1][1] == "Fine." and not is_running(browser), "the answer")
    browser.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    press_tool(browser, 1, "Copy")
    wait_until(lambda: "Oslo" in (browser.run("return window.copied") or ""), "the call in the clipboard")
    browser.click(".message.assistant .think summary")
    browser.click(".message.assistant [aria-label='Copy reasoning']")
    wait_until(lambda: browser.run("return window.copied") == "I wonder", "the reasoning in the clipboard")
    for query, n in (("oslo", 1), ("wonder", 1), ("snow", 1), ("weather", 1), ("hail", 0)):
        browser.clear("#sidebar input[type=search]")
        browser.type("#sidebar input[type=search]", query)
        wait_until(
            lambda n=n: browser.run("return document.querySelectorAll('.chats li[data-id] a').length") == n, query
        )
    exported = browser.run_async("""
        const [store, transfer, { Tree }] = await Promise.all([import('/store.js'),
            import('/transfer.js'), import('/tree.js')]);
        const [chats, rows] = [await store.allChats(), await store.allMessages()];
        return { json: transfer.toJson(chats, rows), markdown: transfer.toMarkdown(chats[0],
            new Tree(rows).path(chats[0].leaf)) };""")
    for part in ("> I wonder", "Call of `weather`", '"city": "Oslo"', "## Result of weather", "snow"):
        assert part in exported["markdown"]
    shown = messages(browser), calls(browser), results(browser)
    import_file(browser, tmp_path / "x.json", json.loads(exported["json"]))
    browser.clear("#sidebar input[type=search]")
    wait_until(lambda: len(stored(browser)) == 8, "the copy")
    wait_until(lambda: (messages(browser), calls(browser), results(browser)) == shown, "the copy on screen")
    assert browser.value("#tools") == '{"name": "weather"}' and thinking(browser)[1] == "I wonder"


def test_a_call_that_is_cut_off_is_not_taken_for_a_whole_one(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer([*text("Well"), *call(0, "weather", '{"city": "Ro'), end("length")])
    open_page(browser, scripted)
    say(browser, "Go")
    assert calls(browser) == [["weather", '{"city": "Ro']]
    assert "cut off" in browser.text(".message.assistant .note") and not has_fields(browser)
    say(browser, "And now?")
    assert scripted.requests[1]["messages"][1] == {"role": "assistant", "content": "Well"}


def test_a_connection_that_breaks_in_a_call_has_it_written_again(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer(
        [*text("Look:"), *call(0, "weather", '{"ci'), CLOSE], [*call(0, "weather", '{"city": 1}'), end("tool_calls")]
    )
    open_page(browser, scripted)
    say(browser, "Go")
    assert calls(browser) == [["weather", '{\n  "city": 1\n}']] and messages(browser)[-1][1] == "Look:"
    assert scripted.requests[1]["messages"][-1] == {"role": "assistant", "content": "Look:"}


def test_half_written_results_stay(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer([*call(0, "weather", "{}"), end("tool_calls")])
    open_page(browser, scripted)
    say(browser, "Go")
    browser.type(".call-box textarea", "half a res")
    open_page(browser, scripted, browser.run("return location.hash"))
    wait_until(lambda: has_fields(browser), "the field")
    assert browser.value(".call-box textarea") == "half a res"


@pytest.mark.covers("W22")
def test_a_request_is_shown_for_programs(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.replies["/apply-template"] = {"prompt": "<|im_start|>user\nIt's"}
    open_page(browser, scripted)
    define_tools(browser, '{"name": "clock"}')
    say(browser, "It's 'so'\u2028")
    press_tool(browser, -1, "More")
    browser.click(".menu button:last-child")
    sent = {name: value for name, value in scripted.requests[0].items() if name in ("messages", "tools")}
    choose = "const s = document.querySelector('dialog select'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
    browser.find("dialog[open] select")

    def shown(name: str, part: str) -> str:
        browser.run(choose, name)
        wait_until(lambda: part in browser.run("return document.querySelector('dialog pre')?.textContent ?? ''"), name)
        return browser.run("return document.querySelector('dialog pre').textContent")

    words = shlex.split(shown("curl", "curl ").replace("\\\n", " "))
    assert words[:2] == ["curl", scripted.url + "/v1/chat/completions"] and json.loads(words[-1]) == sent
    python = shown("Python", "urllib")
    names: dict[str, object] = {}
    exec(python.split("request = ")[0], names)  # the body alone
    assert names["body"] == sent
    assert "process.env" in shown("JavaScript", "fetch(")
    assert "<|im_start|>" in shown("Prompt as the model sees it", "im_start")
    assert json.loads(shown("Answer as it is stored", "content"))["content"] == "ok"
    browser.click("dialog .row.end button")


@pytest.mark.covers("W15")
def test_a_conversation_can_be_forked(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    say(browser, "One")
    say(browser, "Two")
    press_tool(browser, 1, "More")
    browser.click(".menu button:first-child")
    wait_until(lambda: messages(browser) == [["user", "One"], ["assistant", "ok"]], "the fork")
    say(browser, "Other")
    browser.click(".chats li:last-child a")
    wait_until(lambda: [one for _, one in messages(browser)] == ["One", "ok", "Two", "ok"], "the first one, as it was")
    assert len(stored(browser)) == 8


@pytest.mark.both_browsers
def test_a_call_of_a_real_server_is_answered_by_hand(serve, browser: Browser, tmp_path: Path, request):  # noqa: F811
    said = '<think>\nI need the weather.\n</think>\n\nLet me look.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    template = TOOLS_TEMPLATE.replace(
        "{{ message.content or '' }}",
        "{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}{{ message.content or '' }}",
    )
    model = recite_answers(tmp_path / "calls.gguf", {1: said, 3: "It rains."}, template=template)
    server = serve("-m", model, "-c", "8192", "-np", "1", "-t", "1")
    open_page(browser, server)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    define_tools(browser, json.dumps([{"type": "function", "function": {"name": "weather", "parameters": parameters}}]))
    say(browser, "How is Rome?")
    browser.screenshot(screenshot_path(request, "asked"))
    assert calls(browser) == [["weather", '{\n  "city": "Rome"\n}']]
    assert messages(browser)[-1][1] == "Let me look." and thinking(browser)[1].strip() == "I need the weather."
    browser.type(".call-box textarea", "rain")
    browser.click(".calls button[type=submit]")
    wait_until(lambda: messages(browser)[-1][1] == "It rains." and not is_running(browser), "the answer")
    assert "rain\n</tool_response>" in server.get("/slots").json()[0]["prompt"]


@pytest.mark.covers("W20")
def test_axe_finds_nothing_about_calls_menus_and_boxes(scripted: Scripted, browser: Browser, axe: str):  # noqa: F811
    scripted.will_answer(
        [*thought("Hm"), *text("See $x^2$"), *call(0, "weather", '{"a": 1}'), end("tool_calls")], [*text("ok"), end()]
    )
    open_page(browser, scripted)
    define_tools(browser, json.dumps(TOOLS))
    say(browser, "Go")
    browser.click(".boxes details:last-child summary")
    browser.find(".boxes [data-option=top_k]")
    browser.cdp("Runtime.evaluate", expression=axe)

    def findings() -> list[object]:
        return browser.run_async("""
            const { violations } = await axe.run(document, { resultTypes: ['violations'] });
            return violations.map((one) => [one.id, one.impact, one.nodes.map((node) => node.html.slice(0, 150))])""")

    assert findings() == []
    browser.type(".call-box textarea", "rain")
    browser.click(".calls button[type=submit]")
    wait_until(lambda: messages(browser)[-1][1] == "ok" and not is_running(browser), "the answer")
    press_tool(browser, -1, "More")
    browser.find(".menu button")
    assert findings() == []
    browser.click(".menu button:last-child")
    browser.find("dialog[open] select")
    assert findings() == []
    browser.click("dialog .row.end button")
