"""The server view's slots and timeline, in real browsers on a scripted server and a real one."""

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


def slot(id_: int, generated: str = "", n_prompt: int = 0) -> dict[str, object]:
    """What /slots says of a slot that works once it has a prompt, and writes once there is text."""
    return {
        "id": id_,
        "n_ctx": 4096,
        "is_processing": n_prompt > 0,
        "n_prompt_tokens": n_prompt,
        "n_prompt_tokens_processed": n_prompt,
        "prompt": f"prompt {id_} " * n_prompt,
        "generated": generated,
        "next_token": {"n_decoded": len(generated.split())},
    }


PLACES = """return [...document.querySelectorAll('.card')].map((one) => {
    const { x, y, width, height } = one.getBoundingClientRect();
    return [one.querySelector('strong').textContent, x, y, width, height]; })"""
STATES = "return [...document.querySelectorAll('.card .badge')].map((one) => one.textContent)"
WRITTEN = "return [...document.querySelectorAll('.card .made')].map((one) => one.textContent)"


@pytest.mark.covers("W11")
def test_slots_show_what_they_write_and_stay_in_place(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.props |= {"endpoint_slots": True, "endpoint_slot_actions": True}
    scripted.replies |= {"/slots/timeline": MINUTE, "/debug/cache": {"sums": {}, "hints": [], "requests": []}}
    scripted.replies["/slots"] = [slot(0), slot(1), slot(2)]
    open_page(browser, scripted, "#server")
    wait_until(lambda: browser.run(STATES) == ["idle"] * 3, "the slots")
    places = browser.run(PLACES)
    assert [place[0] for place in places] == ["Slot 0", "Slot 1", "Slot 2"]
    browser.run("window.cards = [...document.querySelectorAll('.card')]")
    long = "word\n\n" * 300 + "w" * 500
    for states, slots in (
        (["reading", "idle", "idle"], [slot(0, "", 3000), slot(1), slot(2)]),
        (["writing", "idle", "reading"], [slot(0, "Whales", 3000), slot(1), slot(2, "", 1)]),
        (["writing", "idle", "writing"], [slot(2, "Rome is", 1), slot(0, long, 3000), slot(1)]),  # in another order
        (["idle", "reading", "idle"], [slot(0), slot(1, "", 7), slot(2, "Rome is a city.")]),
    ):
        scripted.replies["/slots"] = slots
        wait_until(lambda s=states: browser.run(STATES) == s, f"slots that are {states}")
        by_id = sorted(slots, key=lambda one: one["id"])
        assert browser.run(WRITTEN) == [one["generated"] for one in by_id]
        assert browser.run(PLACES) == places
    assert browser.run("return [...document.querySelectorAll('.card')].every((one, i) => one === window.cards[i])")


@pytest.mark.covers("W18")
def test_a_real_servers_work_is_in_the_picture(server, browser: Browser):  # noqa: F811
    open_page(browser, server)
    say(browser, "Hello")
    browser.run("location.hash = '#server'")
    wait_until(lambda: browser.exists(".lane rect"), "a bar")
    assert "(you)" in browser.text(".timeline tbody")
