"""The browser client of the tests: a page that changes during a command doesn't make a test fail by chance.

Runs in the test process, with a browser and without a server.
"""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.e2e.webdriver import Browser, browser  # noqa: F401

# replaces its elements for a second or two, and then stays: a slow machine's commands must come to an end as well
RESTLESS = """<body><script>
let rounds = 0;
const fill = () => {
  const one = document.createElement('button');
  one.id = 'one';
  one.textContent = 'here';
  const field = document.createElement('input');
  field.value = 'there';
  document.body.replaceChildren(one, field);
  if (++rounds < 300) setTimeout(fill, 4);
};
fill();
</script></body>"""
# a button that is there at once and can be pressed later
LATE = """<body><button id="one" hidden onclick="document.title = 'pressed'">One</button><script>
setTimeout(() => { document.querySelector('#one').hidden = false; }, 300);
</script></body>"""


def open_html(browser: Browser, html: str) -> None:  # noqa: F811
    browser.open("data:text/html," + quote(html))


@pytest.mark.parametrize("command, result", [("text", "here"), ("is_enabled", True), ("exists", True)])
def test_a_page_that_replaces_its_elements_can_be_read(browser: Browser, command: str, result: object):  # noqa: F811
    open_html(browser, RESTLESS)
    assert {getattr(browser, command)("#one") for _ in range(100)} == {result}


def test_a_field_that_is_replaced_can_be_read_and_pressed(browser: Browser):  # noqa: F811
    open_html(browser, RESTLESS)
    assert {browser.value("input") for _ in range(100)} == {"there"}
    open_html(browser, RESTLESS)
    browser.click("#one")  # where it lands is the page's affair: the button may go while it is held down


def test_a_click_waits_until_the_user_could_click(browser: Browser):  # noqa: F811
    open_html(browser, LATE)
    browser.click("#one")
    assert browser.run("return document.title") == "pressed"
