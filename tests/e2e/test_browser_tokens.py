"""Token probabilities of chat answers, and the tree of versions, in real browsers on scripted answers and a real
server.
"""

from __future__ import annotations

import pytest

from tests.e2e.scripted import Scripted, end, likely, scripted  # noqa: F401
from tests.e2e.test_browser import open_page, set_prefs
from tests.e2e.test_browser_chat import messages, press_tool, say, server  # noqa: F401
from tests.e2e.webdriver import Browser, browser  # noqa: F401
from tests.support import wait_until


@pytest.mark.covers("W17")
def test_an_answer_goes_on_from_any_of_its_tokens_and_the_tree_shows_where(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer([*likely("A", " white", " cat"), end()], [*likely(" dog"), end()])
    set_prefs(browser, scripted.url, keepsTokens=True)
    open_page(browser, scripted)
    say(browser, "What is there?")
    assert (scripted.requests[0]["logprobs"], scripted.requests[0]["top_logprobs"]) == (True, 5)
    press_tool(browser, -1, "Token probabilities")
    browser.click(".tokens .token:nth-child(2)")
    browser.click(".alternatives button:last-child")
    wait_until(lambda: messages(browser)[-1][1] == "A other dog", "the other branch")
    assert scripted.requests[1]["messages"][-1] == {"role": "assistant", "content": "A other"}
    assert browser.text(".message:last-child .count") == "2 / 2"
    press_tool(browser, -1, "Token probabilities")
    wait_until(lambda: browser.text(".tokens") == "A other dog", "the tokens of both parts")
    press_tool(browser, -1, "More")
    browser.run("document.querySelector('.menu button:nth-child(2)').click()")
    rows = "return [...document.querySelectorAll('.tree bdi')].map((one) => one.textContent)"
    wait_until(lambda: browser.run(rows) == ["What is there?", "A white cat", "A other dog"], "the tree")
    assert browser.run("return document.querySelectorAll('.tree .chosen').length") == 2
    browser.click(".tree ul li:first-child button")
    wait_until(lambda: messages(browser)[-1][1] == "A white cat", "the first branch")


@pytest.mark.both_browsers
@pytest.mark.covers("W17")
def test_the_tokens_of_a_real_server_are_its_text(server, browser: Browser):  # noqa: F811
    set_prefs(browser, server.url, keepsTokens=True)
    open_page(browser, server)
    say(browser, "Hello")
    text = messages(browser)[-1][1]
    press_tool(browser, -1, "Token probabilities")
    wait_until(
        lambda: browser.run("return document.querySelector('.tokens')?.textContent.trim()") == text, "the tokens"
    )
    assert browser.run("return document.querySelectorAll('.tokens .token').length") > 5
