"""The server view's picture of the last minute, in real browsers on a scripted server and on a real one."""

from __future__ import annotations

import pytest

from tests.e2e.scripted import Scripted, scripted  # noqa: F401
from tests.e2e.test_browser import axe, open_page, server  # noqa: F401
from tests.e2e.test_browser_chat import say
from tests.e2e.webdriver import Browser, browser, screenshot_path  # noqa: F401
from tests.support import wait_until

MINUTE = {
    "seconds": 60.0,
    "slots": 2,
    "spans": [
        {"id_slot": 0, "id_task": 1, "owner": "abc", "state": "reading", "from": 50.0, "to": 30.0},
        {"id_slot": 0, "id_task": 1, "owner": "abc", "state": "writing", "from": 30.0, "to": 0.0},
        {"id_slot": 1, "id_task": 2, "owner": "def", "state": "writing", "from": 15.0, "to": 5.0},
    ],
    "waiting": [{"from": 40.0, "n": 0}, {"from": 20.0, "n": 3}, {"from": 10.0, "n": 0}],
    "owners": [
        {"owner": "abc", "is_you": True, "seconds": 50.0, "working": 1, "waiting": 2},
        {"owner": "def", "is_you": False, "seconds": 10.0, "working": 0, "waiting": 1},
    ],
}


@pytest.mark.covers("W18")
def test_the_last_minute_shows_who_read_wrote_and_waited(scripted: Scripted, browser: Browser, axe: str, request):  # noqa: F811
    scripted.props["endpoint_slots"] = True
    scripted.replies["/slots/timeline"] = MINUTE
    scripted.replies["/debug/cache"] = {"sums": {}, "hints": [], "requests": []}
    open_page(browser, scripted, "#server")
    wait_until(lambda: "read 20.0 s, wrote 30.0 s" in browser.text(".lanes"), "the first slot")
    assert "read 0.0 s, wrote 10.0 s" in browser.text(".lanes") and "at most 3" in browser.text(".lanes")
    bars = "return [...document.querySelectorAll(arguments[0])].map((one) => [one.getAttribute('x'), one.getAttribute('width')])"
    assert browser.run(bars, ".lane:first-child rect") == [["100", "200"], ["300", "300"]]
    assert browser.run(bars, "rect.waiting") == [["400", "100"]]
    assert browser.text(".timeline tbody tr").split() == ["abc", "(you)", "83", "%", "1", "2"]
    browser.cdp("Runtime.evaluate", expression=axe)
    assert (
        browser.run_async("return (await axe.run(document)).violations.map((one) => [one.id, one.nodes[0].html])") == []
    )
    browser.screenshot(screenshot_path(request, "minute"))


@pytest.mark.covers("W18")
def test_a_real_servers_work_is_in_the_picture(server, browser: Browser):  # noqa: F811
    open_page(browser, server)
    say(browser, "Hello")
    browser.run("location.hash = '#server'")
    wait_until(lambda: browser.exists(".lane rect"), "a bar")
    assert "(you)" in browser.text(".timeline tbody")
