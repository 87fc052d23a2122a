"""Every view, dialog and menu in light and dark, on a desktop and a phone: axe finds no fault, and nothing overflows.

In real browsers on a scripted server. Each step saves a screenshot for people to look at (see `browser`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scripted import Scripted, call, delta, end, likely, scripted, text, thought, tokens  # noqa: F401
from tests.e2e.test_browser import axe, open_page, set_prefs  # noqa: F401
from tests.e2e.test_browser_chat import import_file, is_running, messages, press_tool
from tests.e2e.test_browser_manners import HEBREW, RTL, metrics
from tests.e2e.test_browser_models import with_models
from tests.e2e.test_browser_timeline import MINUTE
from tests.e2e.webdriver import DESKTOP, PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import wait_until

CONTROL, ENTER, ESCAPE = "\ue009", "\ue007", "\ue00c"
ANSWER = """## Whales

A *whale* is a **mammal**[^1] of up to $30\\,\\text{t}$; see [the list](https://example.org/whales).

$$\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}$$

1. Blue whale
2. Humpback, with `code`
   - [x] sings

| Whale | Length | Weight |
|:------|-------:|-------:|
| Blue | 30 m | 150 t |
| Minke | 10 m | 10 t |

> Thar she blows!

```python
def whale(n: int) -> str:  # a comment
    return f"{n} whales" if n > 1 else "one whale"
```

<details><summary>More</summary>Press <kbd>Ctrl</kbd>.</details>

[^1]: As H<sub>2</sub>O isn't a fish.
"""
SLOT = {
    "n_ctx": 4096,
    "n_prompt_tokens": 1200,
    "n_prompt_tokens_processed": 1200,
    "prompt": "user: Tell me of whales. ",
}
SLOTS = [
    {**SLOT, "id": 0, "is_processing": True, "next_token": {"n_decoded": 42}, "generated": "Whales are mammals that"},
    {**SLOT, "id": 1, "is_processing": False, "next_token": {"n_decoded": 0}, "generated": ""},
]
LOOKS = {
    "desktop": (DESKTOP, "light"),
    "desktop-dark": (DESKTOP, "dark"),
    "phone": (PHONE, "light"),
    "phone-dark": (PHONE, "dark"),
}
FINDINGS = """const { violations } = await axe.run(document, { resultTypes: ['violations'] });
    return violations.map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 150))])"""
OUTSIDE = """return [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !one.closest('pre, .table, p.math, svg, .offscreen')).map((one) => one.outerHTML.slice(0, 120))"""


def say(browser: Browser, words: str, waits: bool = True) -> None:  # noqa: F811
    """Send a message by its button: on a phone Enter is a new line."""
    browser.type("#chat-input", words)
    browser.click("#chat-send")
    if waits:
        wait_until(lambda: not is_running(browser), "the answer's end")


def open_all(browser: Browser) -> None:  # noqa: F811
    browser.run("for (const one of document.querySelectorAll('dialog details, .panel details')) one.open = true")


def tour(browser: Browser, server: Scripted, path: Path) -> Iterator[str]:  # noqa: F811
    """Goes from stop to stop, and names them."""
    never = threading.Event()
    server.props |= {
        "endpoint_slots": True,
        "endpoint_metrics": True,
        "endpoint_slot_actions": True,
        "chat_template": "{{ x }}",
    }
    server.replies |= {"/slots/timeline": MINUTE, "/slots": SLOTS, "/metrics": metrics(50, 2.0)}
    server.replies["/apply-template"] = {"prompt": "<user>Tell me"}
    open_page(browser, server)
    yield "welcome"

    server.will_answer([*thought("They want to know of whales."), *text(ANSWER), end(n=120, ms=4000.0)])
    say(browser, "Tell me about whales.")
    browser.run("document.querySelector('.md details').open = true; document.querySelector('.think').open = true")
    browser.run("document.querySelector('.scroller').scrollTop = 0")
    yield "answer"
    browser.click(".message:last-child [aria-label=More]")
    browser.find(".menu button")
    yield "menu"
    browser.click(".menu button:last-child")
    browser.find("dialog pre")
    yield "request"
    browser.press(ESCAPE)
    server.will_answer([*likely("Whales", " sing", " songs", ".\n"), end(n=4)], [*likely(" loudly"), end()])
    say(browser, "What do they do?")
    press_tool(browser, -1, "Token probabilities")
    browser.find(".tokens .token")
    yield "tokens"
    browser.click(".message .tokens .token:nth-child(2)")
    browser.find(".alternatives button")
    yield "alternatives"
    browser.click(".alternatives button:last-child")
    wait_until(lambda: browser.exists(".message.assistant .count"), "another version")
    browser.click(".message:last-child [aria-label=More]")
    browser.click(".menu button:nth-child(2)")
    browser.find(".tree li")
    yield "tree"
    browser.press(ESCAPE)
    server.will_answer([*text("I ask."), *call(0, "weather", '{"city": "Rome", "days": 3}'), end("tool_calls")])
    browser.run("for (const one of document.querySelectorAll('.boxes details')) one.open = true")
    say(browser, "And the weather?")
    browser.find(".call-box textarea")
    yield "call"
    browser.run("document.querySelector('.scroller').scrollTop = 0")
    yield "boxes"

    rows = [
        {"id": "1", "parent": None, "role": "user", "content": f"{HEBREW}?\nAnd English?", "time": 1},
        {"id": "2", "parent": "1", "role": "assistant", "content": RTL, "time": 2},
    ]
    chat = {"id": "c", "title": f"{HEBREW} {HEBREW}", "leaf": "2", "messages": rows}
    import_file(browser, path, {"format": "llama_srv chats", "version": 1, "chats": [chat]})
    wait_until(lambda: HEBREW in (messages(browser) or [["", ""]])[0][1], "the imported conversation")
    yield "rtl"

    server.will_answer(
        (400, {"error": {"code": 400, "type": "invalid_request_error", "message": "top_p: 7 is out of range"}})
    )
    say(browser, "x")
    yield "refused"
    server.will_answer([{**delta(), "prompt_progress": {"queue_position": 3}}, *thought("Let me see"), never])
    say(browser, "Think", waits=False)
    browser.find(".think[open]")
    yield "thinking"
    browser.press(ESCAPE)
    never.set()
    browser.run(
        "document.querySelector('#menu').getAttribute('aria-expanded') === 'false' && document.querySelector('#menu').click()"
    )
    browser.type("#sidebar input[type=search]", "whale")
    browser.find(".snippet")
    yield "search"
    browser.run("const s = document.querySelector('#sidebar input'); s.value = ''; s.dispatchEvent(new Event('input'))")
    wait_until(lambda: not browser.exists(".snippet"), "the whole list")
    browser.click(".chats li:last-child button")
    browser.find("dialog[open]")
    yield "conversation"
    browser.press(ESCAPE)
    browser.run("innerWidth < 760 && document.querySelector('#menu').click()")

    browser.press(CONTROL, "k")
    browser.find(".palette li")
    yield "palette"
    browser.type(".palette input", "temp")
    yield "palette-typed"
    browser.press(ESCAPE)
    browser.click("#prompts")
    browser.find("dialog[open]")
    yield "prompts-none"
    browser.click("dialog button[value=new]")
    browser.type("dialog input", "Translate")
    browser.type("dialog textarea", "Translate {{text}} into {{language}}.")
    yield "prompt"
    browser.click("dialog .main")
    browser.click("#prompts")
    browser.find("dialog .prompts li")
    yield "prompts"
    browser.click("dialog .prompts li button")
    browser.find("dialog label:nth-child(2) textarea")
    yield "variables"
    browser.press(ESCAPE)
    browser.click("#settings")
    browser.find("dialog[open] select")
    yield "settings"
    open_all(browser)
    yield "settings-open"
    browser.press(ESCAPE)

    server.will_answer([*tokens("Once", " upon", "\n", " a", " time")])
    browser.run("location.hash = '#complete'")
    browser.type("#prompt", "Begin: <FILL> end")
    browser.click("#probs")
    browser.click("#send")
    wait_until(lambda: browser.is_enabled("#take"), "the text")
    yield "completion"
    browser.click("#output .token")
    browser.find(".alternatives button")
    yield "completion-alternatives"
    browser.press(ESCAPE)
    open_all(browser)
    yield "options"
    browser.run("location.hash = '#server'")
    wait_until(lambda: browser.exists(".lane rect") and browser.exists(".card.working"), "the slots")
    yield "server"
    browser.run("document.querySelector('.server').scrollTop = 1e6")
    yield "server-end"
    browser.click(".card button")
    browser.find("dialog[open] input")
    yield "slot"
    browser.press(ESCAPE)


@pytest.mark.covers("W20")
@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_anywhere_and_nothing_sticks_out(
    scripted: Scripted,  # noqa: F811
    browser: Browser,  # noqa: F811
    axe: str,  # noqa: F811
    look: str,
    tmp_path: Path,
    request,
):
    size, theme = LOOKS[look]
    set_prefs(browser, scripted.url, keepsTokens=True)
    browser.look(*size, theme, mobile=size == PHONE)
    bad = {}
    for stop in tour(browser, scripted, tmp_path / "rtl.json"):
        browser.screenshot(screenshot_path(request, stop))
        browser.cdp("Runtime.evaluate", expression=axe)
        found = [*browser.run_async(FINDINGS), *browser.run(OUTSIDE)]
        if found:
            bad[stop] = found
    browser.console_errors()  # the refusal
    assert bad == {}


@pytest.mark.covers("W20")
@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_about_models_keys_and_loading(
    scripted: Scripted,  # noqa: F811
    browser: Browser,  # noqa: F811
    axe: str,  # noqa: F811
    look: str,
    request,
):
    size, theme = LOOKS[look]
    browser.look(*size, theme, mobile=size == PHONE)

    def check(stop: str) -> None:
        browser.screenshot(screenshot_path(request, stop))
        browser.cdp("Runtime.evaluate", expression=axe)
        assert [*browser.run_async(FINDINGS), *browser.run(OUTSIDE)] == []

    states = {"small-model-of-seven-billion-parameters-instruct-q4": "loaded", "large": "unloaded"}
    with_models(
        scripted,
        **{name: {"value": value} for name, value in states.items()},
        broken={"value": "failed", "failed": True, "reason": "not enough memory"},
    )
    open_page(browser, scripted)
    browser.click("#model")
    browser.find("[data-model=large]")
    check("models")
    scripted.key = "s3cret"
    browser.open(scripted.url + "/?again")
    browser.find("dialog[open] #api-key")
    check("key")
    assert all("401" in message for message in browser.console_errors())
    scripted.key = ""
    scripted.replies["/props"] = (500, {"error": {"code": 500, "type": "server_error", "message": "a fault"}})
    browser.open(scripted.url + "/?more")
    wait_until(lambda: "a fault" in browser.text("#status"), "the fault")
    check("fault")
    browser.console_errors()
    scripted.replies["/health"] = (503, {"error": {"message": "Loading model", "progress": 0.42}})
    browser.open(scripted.url + "/?most")
    wait_until(lambda: browser.run("return document.body.classList.contains('loading')"), "the progress")
    check("loading")
    browser.open("about:blank")
    browser.console_errors()


@pytest.mark.covers("W10", "W19")
@pytest.mark.parametrize("language", ["de", "es", "fr", "zh"])
def test_every_language_fits_a_phone(scripted: Scripted, browser: Browser, language: str, request):  # noqa: F811
    scripted.props |= {"endpoint_slots": True, "endpoint_metrics": True, "endpoint_slot_actions": True}
    scripted.replies |= {"/slots/timeline": MINUTE, "/slots": SLOTS, "/metrics": metrics(50, 2.0)}
    set_prefs(browser, scripted.url, language=language)
    browser.look(*PHONE, mobile=True)
    open_page(browser, scripted)
    say(browser, "Hi")
    for view in ("chat", "complete", "server"):
        browser.run("location.hash = arguments[0]", f"#{view}")
        wait_until(
            lambda v=view: browser.run("return document.querySelector('.view:not([hidden])').className") == f"view {v}",
            view,
        )
        if view == "server":
            browser.find(".card.working")
        browser.screenshot(screenshot_path(request, view))
        assert browser.run(OUTSIDE) == []
    browser.click("#settings")
    browser.find("dialog[open] select")
    open_all(browser)
    browser.screenshot(screenshot_path(request, "settings"))
    assert browser.run(OUTSIDE) == []
