"""The completion view on scripted answers, in a real browser: text never becomes HTML, and typed text is kept."""

from __future__ import annotations

import pytest

from tests.e2e.scripted import Scripted, last, scripted, tokens  # noqa: F401
from tests.e2e.test_browser import open_page
from tests.e2e.test_browser_complete import complete, option, output
from tests.e2e.webdriver import Browser, browser  # noqa: F401
from tests.support import wait_until

ESCAPE = "\ue00c"


@pytest.mark.covers("W02")
def test_neither_menus_nor_errors_become_text(scripted: Scripted, browser: Browser):  # noqa: F811
    refusal = {"error": {"code": 501, "type": "not_supported_error", "message": "Infill is not supported"}}
    scripted.will_answer([*tokens(" upon", " a", " time"), last()], (501, refusal))
    open_page(browser, scripted, "#complete")
    browser.click("#probs")
    complete(browser, "Once")
    browser.click(".tokens .token")
    wait_until(
        lambda: browser.run("return document.querySelector('.alternatives').matches(':popover-open')"), "the menu"
    )
    browser.press(ESCAPE)
    browser.click("#take")
    assert browser.value("#prompt") == "Once upon a time" == output(browser)
    complete(browser, "a <FILL> b")
    assert "not supported" in browser.text(".complete .note.error")
    browser.click("#take")
    assert browser.value("#prompt") == "a  b"
    assert len(browser.console_errors()) <= 1  # the refusal


@pytest.mark.covers("W02")
def test_everything_in_the_view_survives_a_reload(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer([*tokens(" upon", "\n", "a"), last()])
    open_page(browser, scripted, "#complete")
    browser.run(
        "const s = document.querySelector('#constraint'); s.value = 'grammar'; s.dispatchEvent(new Event('change'))"
    )
    browser.type("#rule", 'root ::= " upon"')
    browser.click("#probs")
    complete(browser, "Once")
    browser.type("#prompt", " more")
    open_page(browser, scripted)
    open_page(browser, scripted, "#complete")
    assert browser.value("#prompt") == "Once more" and output(browser) == "Once upon\na"
    assert browser.value("#constraint") == "grammar" and browser.value("#rule") == 'root ::= " upon"'
    assert browser.run("return document.querySelector('#probs').checked")
    assert browser.run("return document.querySelectorAll('.tokens .token').length") == 3


@pytest.mark.covers("W12")
def test_a_line_break_can_be_clicked_and_colours_are_explained(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer([*tokens("one", "\n", "two"), last()], [*tokens("three"), last()])
    open_page(browser, scripted, "#complete")
    browser.click("#probs")
    complete(browser, "Count:")
    assert "≥ 90" in browser.text(".legend")
    browser.click(".tokens .token.line")
    browser.click(".alternatives button:last-child")
    wait_until(lambda: output(browser) == "Count:onexthree", "the other branch")


@pytest.mark.covers("W12")
def test_no_gap_is_offered_where_the_model_cannot_fill_it(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.props["endpoint_infill"] = False
    open_page(browser, scripted, "#complete")
    assert not browser.run("return document.querySelector('#gap').checkVisibility()")
    complete(browser, "a <FILL> b")
    assert scripted.paths == ["/completion"] and scripted.requests[0]["prompt"] == "a <FILL> b"


@pytest.mark.covers("W04")
def test_options_that_another_tab_has_changed_are_kept(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted, "#complete")
    first = browser.new_tab()
    open_page(browser, scripted, "#complete")
    option(browser, "temperature", "0.5")
    browser.switch(first)
    wait_until(lambda: browser.value(".complete [data-option=temperature]") == "0.5", "the other tab's option")
    option(browser, "top_k", "3")
    complete(browser, "x")
    assert (scripted.requests[0]["temperature"], scripted.requests[0]["top_k"]) == (0.5, 3)
