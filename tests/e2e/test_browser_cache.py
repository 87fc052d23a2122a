"""The server view's report about prompts that missed the cache, with a hint at a place that keeps changing: in real
browsers, on a scripted server and a real one.
"""

from __future__ import annotations

from tests.e2e.scripted import Scripted, scripted  # noqa: F401
from tests.e2e.test_browser import axe, open_page, server  # noqa: F401
from tests.e2e.test_browser_timeline import MINUTE
from tests.e2e.webdriver import Browser, browser, screenshot_path  # noqa: F401
from tests.support import ServerProcess, wait_until

PLACE = {
    "model": "m",
    "position": 31,
    "message": 0,
    "role": "system",
    "field": "messages[0].content",
    "before": "Be brief. Today is ",
    "prompt": ["Fri", "day", " <b>"],
    "cached": ["Mon", "day"],
    "rows_lost": 1180,
    "cost_ms": 2950.4,
}


def report(n_hints: int, *differences: dict | None) -> dict:
    requests = [{"cache": {"source": "slot", "reason": None, "first_difference": one}} for one in differences]
    hints = [{**PLACE, "requests": 3, "of": 4, "rows_lost": 3540, "cost_ms": 8850.0}] * n_hints
    return {"sums": {}, "hints": hints, "requests": requests}


def open_server_view(browser: Browser, scripted: Scripted, found: dict) -> None:  # noqa: F811
    scripted.props["endpoint_slots"] = True
    scripted.replies["/slots/timeline"] = MINUTE
    scripted.replies["/debug/cache"] = found
    open_page(browser, scripted, "#server")


def test_what_was_read_again_is_shown_with_its_cost_and_a_hint(scripted: Scripted, browser: Browser, axe: str, request):  # noqa: F811
    open_server_view(browser, scripted, report(1, PLACE, None, {**PLACE, "rows_lost": 0}, {**PLACE, "field": None}))
    wait_until(lambda: browser.exists(".server .note"), "the hint")
    hint = browser.text(".server .note")
    assert "messages[0].content 3,540 tokens, 8.9 sec" in hint and "3 of 4 requests" in hint
    assert "…Be brief. Today is MondayFriday <b>" in hint, "what a text says is never markup"
    lines = browser.run(
        "return [...document.querySelectorAll('.server section p.small')].map((one) => one.textContent)"
    )
    assert len(lines) == 2 and "1,180 tokens, 3 sec" in lines[0] and lines[1].startswith("? ")
    assert browser.run(
        "return [...document.querySelectorAll('.note del, .note ins')].map((one) => one.textContent)"
    ) == ["Monday", "Friday <b>"]
    browser.cdp("Runtime.evaluate", expression=axe)
    assert (
        browser.run_async("return (await axe.run(document)).violations.map((one) => [one.id, one.nodes[0].html])") == []
    )
    browser.screenshot(screenshot_path(request, "cache"))


def test_where_nothing_was_lost_nothing_is_said(scripted: Scripted, browser: Browser):  # noqa: F811
    open_server_view(browser, scripted, report(0, None, {**PLACE, "rows_lost": 0}))
    has_come = "return performance.getEntriesByType('resource').some((one) => one.name.includes('debug/cache') && one.responseEnd)"
    wait_until(lambda: browser.run(has_come), "the report")
    assert not browser.exists(".server .note") and not browser.exists(".server del")


def test_a_real_servers_changing_date_is_a_hint(server: ServerProcess, browser: Browser):  # noqa: F811
    rules = "You know all about ships and harbours. Answer in few words, be polite, and never make anything up. " * 2
    for day in ("Monday", "Tuesday", "Friday", "Sunday"):
        messages = [{"role": "system", "content": f"Today is {day}. {rules}"}, {"role": "user", "content": "Hello?"}]
        assert server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2}).status_code == 200
    open_page(browser, server, "#server")
    wait_until(lambda: browser.exists(".server .note"), "the hint")
    assert browser.text(".server .note").startswith("messages[0].content")
