"""The page's keys, dialogs, marks, languages and looks; in a real browser on scripted answers."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest

from tests.e2e.scripted import Scripted, end, scripted, text  # noqa: F401
from tests.e2e.test_browser import open_page, set_prefs
from tests.e2e.test_browser_chat import import_file, is_running, messages, press_tool, say
from tests.e2e.webdriver import PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import ROOT, wait_until

ENTER, ESCAPE = "\ue007", "\ue00c"


@pytest.mark.covers("W08")
def test_a_wrong_key_is_asked_for_once_in_a_small_dialog(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.key = "s3cret"
    set_prefs(browser, scripted.url, apiKey="wrong")
    browser.open(scripted.url)
    wait_until(lambda: browser.exists("dialog[open] #api-key"), "the question")
    assert "accept" in browser.text("dialog") and not browser.exists("dialog .options")
    browser.press(ESCAPE)
    asked = "return performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/props')).length"
    n = browser.run(asked)
    wait_until(lambda: browser.run(asked) > n + 1, "two more tries")
    assert not browser.exists("dialog[open]")
    browser.click("#enter-key")
    browser.clear("#api-key")
    browser.type("#api-key", "s3cret" + ENTER)
    wait_until(lambda: browser.text("#status") == "scripted", "the model's name")
    assert not browser.exists("#enter-key:not([hidden])")
    assert all("401" in message for message in browser.console_errors())


@pytest.mark.covers("W08")
def test_nobody_is_asked_for_a_key_while_typing(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    scripted.key = "s3cret"
    browser.click(".system-box summary")
    browser.type("#system", "Be")
    browser.run_async("const { get } = await import('/api.js'); await get('props').catch(() => {})")
    wait_until(lambda: browser.exists("#enter-key:not([hidden])"), "the button")
    assert not browser.exists("dialog[open]")
    browser.type("#system", " brief")
    assert browser.value("#system") == "Be brief"
    assert all("401" in message for message in browser.console_errors())


@pytest.mark.covers("W08")
def test_a_key_is_optional_in_the_settings_and_not_where_the_server_wants_one(scripted: Scripted, browser: Browser):  # noqa: F811
    label = "return document.querySelector('#api-key').closest('label').textContent"
    open_page(browser, scripted)
    browser.click("#settings")
    browser.find("dialog[open] #api-key")
    assert browser.run(label) == "API key (optional)"
    browser.press(ESCAPE)
    scripted.key = "s3cret"
    browser.open(scripted.url)
    browser.find("dialog[open] #api-key")
    assert browser.run(label) == "API key"
    assert all("401" in message for message in browser.console_errors())


@pytest.mark.covers("W12")
def test_the_dialog_of_a_conversation_says_what_its_buttons_do(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    for words in ("First", "Second"):
        browser.click("#new-chat")
        wait_until(lambda: messages(browser) == [], "an empty conversation")
        say(browser, words)
    browser.click(".chats li:first-child button")
    assert browser.run("return getSelection().toString() || document.activeElement.value") == "Second"
    labels = browser.run("return [...document.querySelectorAll('dialog button')].map((one) => one.textContent)")
    assert labels == [
        "Export as Markdown",
        "Export as JSON",
        "Export for llama-server",
        "Delete this conversation",
        "Cancel",
        "Rename",
    ]
    browser.type("dialog input", "Another" + ENTER)  # over the selected name
    wait_until(lambda: browser.text(".chats li:first-child a") == "Another", "the new name")
    focused = "return document.activeElement.closest('li')?.querySelector('a').textContent"
    wait_until(lambda: browser.run(focused) == "Another", "the focus where it was")
    browser.click(".chats li:last-child button")
    browser.click("dialog button.danger")
    wait_until(lambda: browser.run(focused) == "Another", "the focus on what took its place")


@pytest.mark.covers("W12")
def test_the_tabs_title_says_what_is_shown_and_that_it_is_answered(scripted: Scripted, browser: Browser):  # noqa: F811
    more = threading.Event()
    scripted.will_answer([*text("One"), more, end()])
    open_page(browser, scripted)
    title = "return document.title"
    assert browser.run(title) == "New chat – llama_srv"
    say(browser, "Count", waits=False)
    wait_until(lambda: browser.run(title) == "● Count – llama_srv", "the mark")
    more.set()
    wait_until(lambda: browser.run(title) == "Count – llama_srv", "its end")
    browser.click("nav a[href='#complete']")
    wait_until(lambda: browser.run(title) == "Completion – llama_srv", "the view's name")


@pytest.mark.covers("W12")
def test_escape_in_the_search_field_leaves_the_answer_alone(scripted: Scripted, browser: Browser):  # noqa: F811
    more = threading.Event()
    scripted.will_answer([*text("One"), more, *text(" two"), end()])
    open_page(browser, scripted)
    say(browser, "Count", waits=False)
    wait_until(lambda: messages(browser)[-1][1] == "One", "text")
    browser.type("#sidebar input[type=search]", "nothing")
    wait_until(lambda: "Nothing found" in browser.text(".chats"), "the result")
    browser.press(ESCAPE)
    wait_until(lambda: browser.value("#sidebar input[type=search]") == "", "an empty field")
    wait_until(lambda: browser.exists(".chats a"), "the list")
    more.set()
    wait_until(lambda: messages(browser)[-1][1] == "One two" and not is_running(browser), "the whole answer")


@pytest.mark.covers("W12")
def test_the_arrow_that_leads_somewhere_is_the_one_that_shows(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    say(browser, "Go")
    press_tool(browser, -1, "Answer again")
    wait_until(lambda: browser.exists(".message.assistant .count") and not is_running(browser), "another answer")
    say(browser, "And")  # so that it isn't the last message, whose buttons always show
    browser.run("document.activeElement.blur()")
    shown = browser.run("""return [...document.querySelectorAll('.message.assistant .versions button')].map((one) =>
        [one.disabled, Number(getComputedStyle(one).opacity)])""")
    assert [is_disabled for is_disabled, _ in shown] == [False, True]
    assert shown[0][1] > 0.9 > 0.5 > shown[1][1]


@pytest.mark.covers("W19")
def test_the_page_speaks_all_of_its_languages(scripted: Scripted, browser: Browser):  # noqa: F811
    for language, words in {"fr": "Nouvelle conversation", "es": "Nueva conversación", "zh": "新对话"}.items():
        set_prefs(browser, scripted.url, language=language)
        open_page(browser, scripted)
        assert browser.text("#new-chat") == words
        assert browser.run("return document.documentElement.lang") == language
    say(browser, "好")
    assert browser.run("return document.querySelector('.chats a').title").startswith(
        "20"
    )  # a date as Chinese is written


def refusal(status: int, type_: str, message: str, **more: object) -> tuple[int, object]:
    """An answer that refuses."""
    return status, {"error": {"code": status, "type": type_, "message": message, **more}}


@pytest.mark.covers("W13")
def test_errors_are_in_the_users_language(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer(
        refusal(400, "invalid_request_error", "bad thing"),
        refusal(400, "exceed_context_size_error", "too long", n_prompt_tokens=5000, n_ctx=4096),
        refusal(429, "rate_limit_error", "slow down"),
        [*text("Ha"), {"error": {"code": 500, "type": "server_error", "message": "a fault"}}],
    )
    set_prefs(browser, scripted.url, language="de")
    open_page(browser, scripted)
    for words in (
        "Der Server lehnt die Anfrage ab: bad thing",
        "Das sind 5.000 Token, der Kontext hat 4.096. Kürzen oder ein neues Gespräch beginnen.",
        "Zu viele Anfragen in kurzer Zeit. Später noch einmal versuchen.",
        "Fehler im Server: a fault",
    ):
        say(browser, "Hallo")
        assert browser.run("return [...document.querySelectorAll('.message .note.error')].at(-1).textContent") == words
    assert len(browser.console_errors()) <= 3  # the refusals


@pytest.mark.covers("W13")
def test_a_busy_server_is_not_called_a_lost_connection(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer(
        refusal(503, "unavailable_error", "4 requests wait", reason="queue_full"), [*text("Now"), end()]
    )
    open_page(browser, scripted)
    say(browser, "Hi", waits=False)
    wait_until(lambda: "overloaded" in browser.text(".notice"), "the reason")
    wait_until(lambda: messages(browser)[-1] == ["assistant", "Now"], "the answer once there is room")
    assert len(browser.console_errors()) <= 1


@pytest.mark.covers("W21")
def test_the_first_load_is_small(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    browser.asked_urls()
    browser.open(scripted.url + "/?again")
    wait_until(lambda: browser.run("return document.querySelector('#status')?.title"), "the model's name")
    asked = [url for url in browser.asked_urls() if url.startswith(scripted.url)]
    assert 10 < len(asked) <= 40
    names = {url.removeprefix(scripted.url + "/") for url in asked}
    assert not names & {"complete.js", "server.js", "settings.js", "transfer.js", "text-de.js", "math.js"}
    files = [ROOT / "public" / (name or "index.html") for name in names]
    assert sum(len(gzip.compress(file.read_bytes(), 6)) for file in files if file.is_file()) < 120_000


# ---------------------------------------------------------------------------------------- looks

HEBREW = "\u05e9\u05dc\u05d5\u05dd"
RTL = f"""{HEBREW} Rome {HEBREW}.

- {HEBREW}
- two

> {HEBREW}

An English line with {HEBREW}.

| {HEBREW} | Count |
|---|---|
| {HEBREW} | 12 |

```python
access = "user\u202e \u2066# admin\u2069 \u2066"
```
"""


def answered(browser: Browser, path: Path, question: str, text_of_answer: str, title: str = "T") -> None:  # noqa: F811
    """Have a conversation on screen, by importing it."""
    rows = [
        {"id": "1", "parent": None, "role": "user", "content": question, "time": 1},
        {"id": "2", "parent": "1", "role": "assistant", "content": text_of_answer, "time": 2},
    ]
    chat = {"id": "c", "title": title, "leaf": "2", "messages": rows}
    import_file(browser, path, {"format": "llama_srv chats", "version": 1, "chats": [chat]})
    wait_until(lambda: len(messages(browser)) == 2, "the conversation")


@pytest.mark.covers("W09")
def test_text_runs_in_its_own_direction_and_hidden_marks_in_code_show(
    scripted: Scripted,  # noqa: F811
    browser: Browser,  # noqa: F811
    tmp_path: Path,
    request,
):
    open_page(browser, scripted)
    answered(browser, tmp_path / "rtl.json", f"{HEBREW}?\nAnd English?", RTL, f"\u202e{HEBREW} title")
    directions = browser.run("""return [...document.querySelector('.message.assistant .body').children].map((one) =>
        [one.tagName, getComputedStyle(one.querySelector('table') ?? one).direction])""")
    assert directions == [
        ["P", "rtl"],
        ["UL", "rtl"],
        ["BLOCKQUOTE", "rtl"],
        ["P", "ltr"],
        ["DIV", "rtl"],
        ["FIGURE", "ltr"],
    ]
    code = browser.run("return document.querySelector('.message.assistant pre').textContent")
    assert "\u202e" not in code and "\u27e8U+202E\u27e9" in code
    assert browser.run("return document.querySelector('.chats a bdi') !== null")
    browser.screenshot(screenshot_path(request, "rtl"))
    browser.type("#chat-input", HEBREW)
    assert browser.run("return getComputedStyle(document.querySelector('#chat-input')).direction") == "rtl"


WIDE = """| Characteristic | Understandability | Notes |
|---|---|---|
| Internationalization | Straightforwardness | some words in a row here |
| b | c | d |
"""


@pytest.mark.covers("W10")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_words_stay_whole_and_everything_can_be_hit(
    scripted: Scripted,  # noqa: F811
    browser: Browser,  # noqa: F811
    tmp_path: Path,
    request,
    theme: str,
):
    browser.look(*PHONE, theme, mobile=True)
    open_page(browser, scripted)
    answered(browser, tmp_path / "wide.json", "Compare", WIDE)
    heights = browser.run("""const line = parseFloat(getComputedStyle(document.querySelector('td')).lineHeight);
        return [...document.querySelectorAll('th, td:nth-child(-n+2)')].map((one) => Math.round(one.clientHeight / line))""")
    assert max(heights[:3]) == 1, heights
    small = """return [...document.querySelectorAll('button, nav a')].filter((one) => one.checkVisibility()).map((one) =>
        [one.getAttribute('aria-label') ?? one.textContent, one.getBoundingClientRect()])
        .filter(([, box]) => matchMedia('(pointer: coarse)').matches && box.width && (box.width < 40 || box.height < 40)).map(([name, box]) => `${name} ${box.width} ${box.height}`)"""
    assert browser.run(small) == []
    browser.screenshot(screenshot_path(request, "table"))
    browser.click("#menu")
    wait_until(lambda: browser.run("return document.querySelector('#sidebar').checkVisibility()"), "the list")
    assert browser.run(small) == []
    browser.screenshot(screenshot_path(request, "list"))
    browser.click("#menu")
    browser.click("#settings")
    browser.find("dialog[open]")
    browser.run("for (const one of document.querySelectorAll('dialog details')) one.open = true")
    box = browser.run("return document.querySelector('dialog button.main').getBoundingClientRect().toJSON()")
    assert box["bottom"] <= PHONE[1] and box["top"] > 0
    browser.screenshot(screenshot_path(request, "settings"))


# ---------------------------------------------------------------------------------------- charts


def metrics(n: int, first: float | None = None) -> str:
    """What /metrics says after `n` tokens."""
    lines = [f"llamacpp:tokens_predicted_total {n}", f"llamacpp:prompt_tokens_total {100 * n}"]
    lines += ["llamacpp:requests_processing 1", "llamacpp:requests_deferred 0", "llamacpp:kv_cache_usage_ratio 0.5"]
    for name in ("time_to_first_token_seconds", "time_between_tokens_seconds"):
        lines += [f"llamacpp:{name}_count {n if first else 0}", f"llamacpp:{name}_sum {first or 0}"]
    return "\n".join(lines)


@pytest.mark.covers("W11")
def test_charts_have_numbers_on_their_axes_and_show_nothing_where_nothing_was_measured(
    scripted: Scripted,  # noqa: F811
    browser: Browser,  # noqa: F811
    request,
):
    scripted.props["endpoint_metrics"] = True
    scripted.replies["/metrics"] = metrics(0)
    open_page(browser, scripted, "#server")
    legends = "return [...document.querySelectorAll('.chart .legend')].map((one) => one.textContent)"
    wait_until(lambda: "generated 0/s" in browser.run(legends), "two samples")
    assert browser.run(legends)[4:] == ["first token –", "between tokens –"]
    scripted.replies["/metrics"] = metrics(50, 2.0)
    wait_until(lambda: "40 ms" in browser.run(legends)[4], "an average")
    browser.screenshot(screenshot_path(request, "charts"))
    tops = browser.run(
        "return [...document.querySelectorAll('.chart > .axis:nth-of-type(1)')].map((one) => one.textContent)"
    )
    assert tops[3] == "100 %" and all(any(letter.isdigit() for letter in top) for top in tops) and len(tops) == 6
    lit = """const canvas = document.querySelectorAll('canvas')[4];
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const counts = new Map();
        for (const pixel of new Uint32Array(data.buffer)) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
        return counts.size"""
    assert browser.run(lit) > 2
