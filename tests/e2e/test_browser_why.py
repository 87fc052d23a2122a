"""Attribution on the page, in real browsers on scripted answers and a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scripted import Scripted, end, scripted, text, thought  # noqa: F401
from tests.e2e.test_browser import axe, open_page  # noqa: F401
from tests.e2e.test_browser_chat import press_tool, say
from tests.e2e.test_browser_finding import FINDINGS
from tests.e2e.webdriver import DESKTOP, PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import ServerProcess, wait_until

SYSTEM = "Anna put the key in the kitchen. The dog sleeps. The key is in the kitchen. The bus is late."
QUESTION = "Where is the key? And the dog?"
SPANS = [one + "." for one in SYSTEM.rstrip(".").split(". ")] + ["Where is the key?", "And the dog?"]
ANSWER = "In the kitchen. It sleeps."


def attribution(*nats: float, **found: Any) -> dict[str, Any]:
    """As the server answers; the first sentence of the answer has half of these nats, the second the others."""
    places = [0, 0, 0, 0, 1, 1]
    spans = [
        {"text": span, "start": 0, "end": 0, "message": message, "nats": n}
        for span, message, n in zip(SPANS, places, nats)
    ]
    parts = [
        {"text": one, "nats": [n * share for n in nats]}
        for one, share in (("In the kitchen.", 0.0), ("It sleeps.", 1.0))
    ]
    found = {
        "pairs": [],
        "parts": parts,
        "answer_logprob": -1.0,
        "without_spans_logprob": -15.0,
        "method": "fast",
        **found,
    }
    return {"attribution": {"spans": spans, **found}}


def ask_why(browser: Browser) -> None:  # noqa: F811
    press_tool(browser, -1, "More")
    browser.run("[...document.querySelectorAll('.menu button')].find((one) => one.textContent === 'Why this?').click()")


def marked(browser: Browser) -> dict[str, str]:  # noqa: F811
    """Sentences of the prompt that are coloured, with their classes and factors."""
    return browser.run("""return Object.fromEntries([...document.querySelectorAll('.why .dim ~ p:not(.dim) mark')].map((one) =>
        [one.textContent, (one.className.trim() + one.dataset.times).trim()]).filter(([, kind]) => kind))""")


def talk(script: Scripted, page: Browser) -> None:
    script.will_answer([*text("In the kitchen.", " It sleeps."), end()])
    open_page(page, script)
    page.click(".system-box summary")
    page.type("#system", SYSTEM)
    say(page, QUESTION)


@pytest.mark.covers("P12")
def test_sentences_are_coloured_by_what_they_weigh_and_a_click_asks_about_a_part(
    scripted: Scripted,
    browser: Browser,
    request: pytest.FixtureRequest,  # noqa: F811
):
    scripted.replies["/v1/attribute"] = attribution(0.2, 6.2, 0.0, -1.4, 1.0, 2.5)
    talk(scripted, browser)
    ask_why(browser)
    wait_until(lambda: marked(browser), "the colours")
    expected = {
        "The dog sleeps.": "w3 ×490",
        "The bus is late.": "against",
        "Where is the key?": "w1 ×2.7",
        "And the dog?": "w2 ×12",
    }
    assert marked(browser) == expected
    assert browser.run(
        "return [...document.querySelectorAll('.why .dim ~ p:not(.dim)')].slice(1).map((one) => one.textContent)"
    ) == [SYSTEM, QUESTION], "the prompt is there as it was sent"
    for size, theme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")):
        browser.look(*size, theme, mobile=size == PHONE)
        browser.screenshot(screenshot_path(request, f"{size[0]}-{theme}"))
    browser.click(".why button:nth-child(2)")
    assert marked(browser) == {} and "In the kitchen." in browser.text(".why [aria-pressed=true]")
    browser.click(".why button:nth-child(3)")
    assert marked(browser) == expected
    [(path, sent)] = scripted.told
    assert path == "/v1/attribute" and sent["answer"] == ANSWER
    assert [one["content"] for one in sent["messages"]] == [SYSTEM, QUESTION]


@pytest.mark.covers("P12")
def test_a_legend_says_what_colours_mean_and_a_pair_is_shown_as_one(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.replies["/v1/attribute"] = attribution(
        0.1, 0.0, 0.2, 0.0, 0.0, 0.0, pairs=[{"spans": [0, 2], "nats": 8.0}]
    )
    talk(scripted, browser)
    ask_why(browser)
    wait_until(lambda: marked(browser), "the colours")
    assert marked(browser) == {SPANS[0]: "w3 both ×3K", SPANS[2]: "w3 both ×3K"}
    says = browser.run("return [...document.querySelectorAll('.why .legend mark')].map((one) => one.textContent)")
    assert says == [
        "2–10 times less likely",
        "10–100 times less likely",
        ">100 times less likely",
        "more likely",
        "only without both",
    ]
    assert "if the model can’t read a sentence" in browser.text(".why")
    browser.click(".why button:nth-child(2)")
    assert marked(browser) == {}, "the pair is one of the whole answer"


def test_a_refusal_is_said(scripted: Scripted, browser: Browser):  # noqa: F811
    talk(scripted, browser)
    error = {"code": 400, "message": "the prompt has an image", "type": "invalid_request_error"}
    scripted.replies["/v1/attribute"] = (400, {"error": error})
    ask_why(browser)
    wait_until(lambda: "the prompt has an image" in browser.text(".why"), "the refusal")
    browser.console_errors()


def test_answers_with_reasoning_have_no_such_question(scripted: Scripted, browser: Browser):  # noqa: F811
    """The answer rests on what was thought, which isn't sent again."""
    scripted.will_answer([*thought("Hm."), *text("Yes."), end()])
    open_page(browser, scripted)
    say(browser, "Is it?")
    press_tool(browser, -1, "More")
    assert "Why this?" not in browser.text(".menu")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_about_the_colours(scripted: Scripted, browser: Browser, axe: str, theme: str):  # noqa: F811
    scripted.replies["/v1/attribute"] = attribution(
        0.2, 6.2, 0.0, -1.4, 1.0, 2.5, pairs=[{"spans": [0, 2], "nats": 8.0}]
    )
    talk(scripted, browser)
    ask_why(browser)
    wait_until(lambda: marked(browser), "the colours")
    browser.look(*PHONE, theme, mobile=True)
    browser.cdp("Runtime.evaluate", expression=axe)
    assert browser.run_async(FINDINGS) == []


@pytest.mark.covers("P12")
def test_a_real_server_s_answer_is_coloured(serve: Callable[..., ServerProcess], recite_model: Path, browser: Browser):  # noqa: F811
    server = serve("-m", recite_model, "-t", "1", "-np", "2", "-c", "8192")
    open_page(browser, server)
    say(browser, "Anna put the key in the kitchen. Where is it?")
    ask_why(browser)
    wait_until(lambda: "Where is it?" in browser.text(".why"), "the prompt")
    assert browser.run("return document.querySelectorAll('.why .dim ~ p:not(.dim) mark').length") == 2
