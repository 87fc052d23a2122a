"""Search, saved prompts, and import from and export to llama-server's page; in real browsers on scripted answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.scripted import Scripted, scripted  # noqa: F401
from tests.e2e.test_browser import axe, open_page  # noqa: F401
from tests.e2e.test_browser_chat import import_file, messages, say, stored
from tests.e2e.webdriver import Browser, browser  # noqa: F401
from tests.support import wait_until

CONTROL, ENTER, DOWN, ESCAPE = "\ue009", "\ue007", "\ue015", "\ue00c"
ROWS = "return [...document.querySelectorAll('.palette li')].map((one) => one.firstChild.textContent)"
FINDINGS = """const { violations } = await axe.run(document, { resultTypes: ['violations'] });
    return violations.map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 150))])"""


def find(browser: Browser, words: str) -> list[str]:  # noqa: F811
    """Open the palette and type; what it offers."""
    browser.press(CONTROL, "k")
    browser.type(".palette input", words)
    return browser.run(ROWS)


@pytest.mark.covers("W16")
def test_the_palette_finds_conversations_settings_and_actions(scripted: Scripted, browser: Browser, axe: str):  # noqa: F811
    open_page(browser, scripted)
    say(browser, "About whales")
    browser.click("#new-chat")
    wait_until(lambda: messages(browser) == [], "an empty conversation")
    browser.run("location.hash = '#server'")
    wait_until(lambda: browser.run("return document.body.dataset.view") == "server", "another view")
    rows = find(browser, "")
    assert rows[:2] == ["About whales", "New chat"] and len(rows) == 12
    browser.press(ESCAPE)
    assert find(browser, "whales") == ["About whales", "Search all conversations for “whales”"]
    browser.cdp("Runtime.evaluate", expression=axe)
    assert browser.run_async(FINDINGS) == []
    browser.press(ENTER)
    wait_until(lambda: messages(browser)[:1] == [["user", "About whales"]], "the conversation")
    assert find(browser, "TEMPER")[0] == "temperature"
    browser.press(ENTER)
    wait_until(lambda: browser.run("return document.activeElement.dataset.option") == "temperature", "the field")
    browser.press(ESCAPE)
    assert find(browser, "dark") == ["Colours: dark", "Search all conversations for “dark”"]
    browser.press(ENTER)
    wait_until(lambda: browser.run("return document.documentElement.dataset.theme") == "dark", "the colours")
    find(browser, "ok")
    browser.press(DOWN)
    browser.run("document.querySelector('.palette li:last-child').click()")
    wait_until(lambda: browser.exists(".snippet"), "what was found in texts")


@pytest.mark.covers("W16")
def test_the_newest_conversations_come_first_where_nothing_is_typed(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    for n in range(7):
        browser.click("#new-chat")
        wait_until(lambda: messages(browser) == [], "an empty conversation")
        say(browser, f"Chat {n}")
    assert find(browser, "")[:6] == ["Chat 6", "Chat 5", "Chat 4", "Chat 3", "Chat 2", "New chat"]
    browser.press(DOWN)
    browser.press(ENTER)
    wait_until(lambda: messages(browser)[:1] == [["user", "Chat 5"]], "the one before")


@pytest.mark.covers("W15")
def test_a_prompt_is_kept_and_asks_for_its_variables(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    browser.type("#chat-input", "Translate {{text}} into {{language}}, and {{text}} again.")
    browser.click("#prompts")
    browser.click("dialog button[value=keep]")
    browser.type("dialog input", "Translate" + ENTER)
    wait_until(lambda: not browser.exists("dialog"), "the prompt to be kept")
    browser.run("const a = document.querySelector('#chat-input'); a.value = ''; a.dispatchEvent(new Event('input'))")
    assert find(browser, "transl")[0] == "Translate"
    browser.press(ENTER)
    browser.type("dialog label:nth-child(1) textarea", "$& cat")
    browser.type("dialog label:nth-child(2) textarea", "French")
    browser.click("dialog .main")
    wait_until(lambda: browser.value("#chat-input") == "Translate $& cat into French, and $& cat again.", "the text")
    browser.click("#prompts")
    browser.click("dialog button[value='edit:Translate']")
    wait_until(lambda: browser.exists("dialog input"), "the prompt to be shown")
    browser.run("document.querySelector('dialog input').value = 'Say'")
    browser.click("dialog .main")
    wait_until(lambda: not browser.exists("dialog input"), "the prompt to be kept")
    browser.click("#prompts")
    browser.click("dialog .prompts .quiet[aria-label]")
    wait_until(lambda: browser.text("dialog .prompts") == "", "the prompt to go")
    wait_until(lambda: browser.exists(".toast button"), "the way back")
    browser.run("document.querySelector('.toast button').click()")
    assert browser.run("return JSON.parse(localStorage.getItem('llama_srv.prefs')).prompts") == {
        "Say": "Translate {{text}} into {{language}}, and {{text}} again."
    }


THEIRS = [
    {
        "conv": {"id": "c", "name": "Theirs", "lastModified": 1765279699684, "currNode": "a2"},
        "messages": [
            {"id": "r", "convId": "c", "type": "root", "role": "system", "content": "", "parent": None, "timestamp": 1},
            {
                "id": "s",
                "convId": "c",
                "type": "text",
                "role": "system",
                "content": "Be kind",
                "parent": "r",
                "timestamp": 2,
            },
            {
                "id": "u",
                "convId": "c",
                "type": "text",
                "role": "user",
                "content": "Read it",
                "parent": "s",
                "timestamp": 3,
                "extra": [{"type": "TEXT", "name": "a.txt", "content": "inside"}],
            },
            {
                "id": "a1",
                "convId": "c",
                "type": "text",
                "role": "assistant",
                "content": "One",
                "parent": "u",
                "timestamp": 4,
            },
            {
                "id": "a2",
                "convId": "c",
                "type": "text",
                "role": "assistant",
                "content": "",
                "parent": "u",
                "timestamp": 5,
                "thinking": "Hm",
                "toolCalls": '[{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]',
            },
        ],
    },
    {"conv": None, "messages": 5},
]


@pytest.mark.covers("W16")
def test_conversations_come_from_llama_servers_page_and_go_there(
    scripted: Scripted,  # noqa: F811
    browser: Browser,  # noqa: F811
    tmp_path: Path,
):
    open_page(browser, scripted)
    import_file(browser, tmp_path / "theirs.json", THEIRS)
    wait_until(lambda: len(messages(browser)) == 2, "the conversation")
    assert browser.value("#system") == "Be kind" and browser.text(".message .count") == "2 / 2"
    assert browser.run("return document.querySelector('.thought .text').textContent") == "Hm"
    assert browser.run("return document.querySelector('.call summary').textContent") == "look"
    written = browser.run_async("""const { toTheirs } = await import('/peers.js');
        const store = await import('/store.js');
        return toTheirs(await store.allChats(), await store.allMessages())""")
    (only,) = json.loads(written)
    assert only["conv"]["name"] == "Theirs"
    by_content = {one["content"]: one for one in only["messages"]}
    root = next(one for one in only["messages"] if one["type"] == "root")
    assert (
        by_content["Be kind"]["parent"] == root["id"] and by_content["Read it"]["parent"] == by_content["Be kind"]["id"]
    )
    assert by_content["Read it"]["extra"] == [{"type": "TEXT", "name": "a.txt", "content": "inside"}]
    assert len(by_content["Read it"]["children"]) == 2
    import_file(browser, tmp_path / "again.json", json.loads(written))
    wait_until(lambda: len(stored(browser)) == 6, "the same once more")
    import_file(browser, tmp_path / "not.json", [{"conv": 5}])
    wait_until(lambda: browser.exists(".toast.error"), "the refusal")
