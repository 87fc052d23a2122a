"""No text is lost: two tabs, reloads in the middle of an answer, drafts; in a real browser on scripted answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.e2e.scripted import CLOSE, Scripted, call, end, scripted, text, thought, timings  # noqa: F401
from tests.e2e.test_browser import open_page
from tests.e2e.test_browser_chat import import_file, is_running, messages, press_tool, say, stored
from tests.e2e.webdriver import Browser, browser  # noqa: F401
from tests.support import wait_until

ENTER, ESCAPE = "\ue007", "\ue00c"
TITLES = "return [...document.querySelectorAll('.chats li[data-id] a')].map((one) => one.textContent)"


def reload(browser: Browser, server: Scripted) -> None:  # noqa: F811
    """Press the button for it, and wait until the page knows the model again."""
    browser.refresh()
    wait_until(lambda: browser.run("return document.querySelector('#status')?.title"), "the page")


# ---------------------------------------------------------------------------------------- two tabs


@pytest.mark.covers("W04")
def test_settings_of_two_tabs_do_not_overwrite_each_other(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    first = browser.new_tab()
    open_page(browser, scripted)
    browser.click("#settings")
    second = browser.switch(first)
    browser.click("#settings")
    browser.type("#api-key", "s3cret")
    browser.click("dialog button.main")
    browser.switch(second)
    browser.type("dialog .settings textarea", "Be brief.")
    browser.click("dialog button.main")
    kept = json.loads(browser.run("return localStorage.getItem('llama_srv.prefs')"))
    assert (kept["apiKey"], kept["system"]) == ("s3cret", "Be brief.")
    browser.switch(first)
    browser.click("#settings")
    assert browser.value("dialog .settings textarea") == "Be brief."
    browser.click("dialog .row.end button")


@pytest.mark.covers("W04")
def test_what_one_tab_writes_the_other_shows(scripted: Scripted, browser: Browser):  # noqa: F811
    goes_on = threading.Event()
    scripted.will_answer([*text("Hi."), end()], [*text("More"), goes_on, *text(" of it."), end()])
    open_page(browser, scripted)
    say(browser, "Hello")
    where = browser.run("return location.hash")
    first = browser.new_tab()
    open_page(browser, scripted, where)
    wait_until(lambda: len(messages(browser)) == 2, "the conversation")
    second = browser.switch(first)
    say(browser, "Go on", waits=False)
    browser.switch(second)
    wait_until(lambda: messages(browser)[2:] == [["user", "Go on"], ["assistant", "More"]], "the other tab's answer")
    assert browser.exists(".message.busy")
    goes_on.set()
    wait_until(lambda: messages(browser)[-1] == ["assistant", "More of it."], "its end")
    wait_until(lambda: not browser.exists(".message.busy"), "its end, marked")
    browser.click("#new-chat")
    wait_until(lambda: messages(browser) == [], "an empty conversation")
    say(browser, "Another")
    browser.switch(first)
    wait_until(lambda: browser.run(TITLES) == ["Another", "Hello"], "the new conversation in the other tab's list")


@pytest.mark.covers("W04")
def test_a_conversation_that_another_tab_deletes_stays_deleted(scripted: Scripted, browser: Browser):  # noqa: F811
    never = threading.Event()
    scripted.will_answer([*text("Hi."), end()], [*text("More"), never])
    open_page(browser, scripted)
    say(browser, "Hello")
    first = browser.new_tab()
    open_page(browser, scripted)
    second = browser.switch(first)
    say(browser, "Go on", waits=False)
    wait_until(lambda: messages(browser)[-1][1] == "More", "an answer that is being written")
    browser.type("#chat-input", "unsent")
    browser.switch(second)
    browser.click(".chats li:first-child button")
    browser.click("dialog button.danger")
    wait_until(lambda: browser.run(TITLES) == [], "an empty list")
    browser.switch(first)
    wait_until(lambda: messages(browser) == [] and browser.run(TITLES) == [], "nothing there, either")
    assert "another tab" in browser.text("#toasts")
    assert stored(browser) == []
    never.set()
    say(browser, "New")
    assert {one["content"] for one in stored(browser)} == {"New", "ok"}


# ---------------------------------------------------------------------------------------- reloads


@pytest.mark.covers("W03")
def test_an_answer_goes_on_where_a_reload_cut_it_off(scripted: Scripted, browser: Browser):  # noqa: F811
    never = threading.Event()
    scripted.will_answer(
        [*thought("Let me see"), *text("One, two"), never], [*text(", three."), end(n=3)], [*text("Well"), end()]
    )
    open_page(browser, scripted)
    say(browser, "Count", waits=False)
    wait_until(lambda: messages(browser)[-1][1] == "One, two", "text")
    reload(browser, scripted)
    wait_until(lambda: messages(browser)[-1][1] == "One, two, three." and not is_running(browser), "the rest")
    never.set()
    assert scripted.requests[1]["messages"][-1] == {"role": "assistant", "content": "One, two"}
    assert browser.exists(".message.assistant .think:not([hidden])")
    reload(browser, scripted)
    wait_until(lambda: messages(browser)[-1][1] == "One, two, three.", "all of it")
    assert len(scripted.requests) == 2


@pytest.mark.covers("W03")
def test_a_stream_is_taken_up_again_and_nothing_is_asked_anew(scripted: Scripted, browser: Browser):  # noqa: F811
    """Also thoughts and calls, which no request could go on with; and what is on the page stays there meanwhile."""
    never, more = threading.Event(), threading.Event()
    first = [*thought("Let me see"), *text("I ask. "), *call(0, "find", '{"a":')]
    scripted.will_answer([*first, never])
    open_page(browser, scripted)
    say(browser, "Go", waits=False)
    wait_until(lambda: browser.exists(".call pre"), "the half call")
    (id_,) = scripted.stream_ids
    assert len(id_) == 24
    scripted.streams[id_] = [first[0], more, *first[1:], *call(0, "", " 1}")[1:], end("tool_calls", n=7)]
    reload(browser, scripted)
    wait_until(lambda: is_running(browser) and messages(browser)[-1][1] == "I ask.", "the text from before")
    more.set()
    wait_until(lambda: not is_running(browser) and browser.exists(".call-box textarea"), "the whole call")
    assert len(scripted.requests) == 1 and scripted.ended == []
    never.set()
    (row,) = [one for one in stored(browser) if one["role"] == "assistant"]
    assert (row["content"], row["reasoning"], row["calls"][0]["arguments"]) == ("I ask. ", "Let me see", '{"a": 1}')
    assert row["finish"] == "tool_calls" and row["speed"]["n"] == 7 and "asked" not in row


@pytest.mark.covers("W03")
def test_a_stream_that_continues_a_text_is_taken_up_behind_it(scripted: Scripted, browser: Browser):  # noqa: F811
    never = threading.Event()
    scripted.will_answer([*text("One"), end("length", n=5)], [*text(" two"), never])
    open_page(browser, scripted)
    say(browser, "Count")
    press_tool(browser, -1, "Continue this answer")
    wait_until(lambda: messages(browser)[-1][1] == "One two", "more text")
    scripted.streams[scripted.stream_ids[-1]] = [*text(" two", " three"), end(n=5)]
    reload(browser, scripted)
    wait_until(
        lambda: messages(browser)[-1:] == [["assistant", "One two three"]] and not is_running(browser), "the rest"
    )
    never.set()
    assert browser.text(".message.assistant .meta").startswith("10 tokens") and len(scripted.requests) == 2


@pytest.mark.covers("W03")
def test_a_tab_goes_on_with_the_answer_of_one_that_is_closed(scripted: Scripted, browser: Browser):  # noqa: F811
    never = threading.Event()
    scripted.will_answer([*text("One"), never])
    open_page(browser, scripted)
    say(browser, "Count", waits=False)
    wait_until(lambda: messages(browser)[-1][1] == "One", "text")
    where = browser.run("return location.hash")
    first = browser.new_tab()
    open_page(browser, scripted, where)
    wait_until(lambda: browser.exists(".message.busy"), "the other tab's answer")
    scripted.streams[scripted.stream_ids[0]] = [*text("One", " two"), end()]
    second = browser.switch(first)
    browser.open("about:blank")
    browser.switch(second)
    wait_until(lambda: messages(browser)[-1] == ["assistant", "One two"] and not is_running(browser), "the rest")
    never.set()
    assert len(scripted.requests) == 1


@pytest.mark.covers("W03")
def test_stop_ends_the_stream_at_the_server(scripted: Scripted, browser: Browser):  # noqa: F811
    never = threading.Event()
    scripted.will_answer([*text("One"), never])
    open_page(browser, scripted)
    say(browser, "Count", waits=False)
    wait_until(lambda: messages(browser)[-1][1] == "One", "text")
    browser.press(ESCAPE)
    wait_until(lambda: scripted.ended == scripted.stream_ids, "the end of the stream")
    never.set()


@pytest.mark.covers("W03")
def test_the_last_letters_before_a_reload_are_kept(scripted: Scripted, browser: Browser):  # noqa: F811
    """The page goes in the same moment in which the text comes, before any write to the database is done."""
    goes_on, never = threading.Event(), threading.Event()
    scripted.will_answer([*text("Start"), goes_on, *text(" tail"), never], [*text("!"), end()])
    open_page(browser, scripted)
    say(browser, "Go", waits=False)
    wait_until(lambda: messages(browser)[-1][1] == "Start", "text")
    browser.run("""const log = document.querySelector('#log');
        new MutationObserver(() => log.textContent.includes('tail') && location.reload())
            .observe(log, { childList: true, subtree: true, characterData: true })""")
    goes_on.set()
    wait_until(lambda: messages(browser)[-1:] == [["assistant", "Start tail!"]], "the rest")
    wait_until(lambda: not is_running(browser), "the end")
    never.set()


@pytest.mark.covers("W12")
def test_the_list_marks_answers_that_are_being_written_or_were_cut_off(scripted: Scripted, browser: Browser):  # noqa: F811
    never = threading.Event()
    scripted.will_answer([*text("One"), never], [*text(" two"), end()])
    open_page(browser, scripted)
    say(browser, "Count", waits=False)
    wait_until(lambda: browser.exists(".chats li.running"), "the mark")
    browser.click("#new-chat")
    wait_until(lambda: messages(browser) == [] and browser.exists(".chats li.running"), "the mark in the background")
    open_page(browser, scripted)
    reload(browser, scripted)
    wait_until(lambda: browser.exists(".chats li.cut"), "the mark of what was cut off")
    browser.click(".chats a")
    wait_until(lambda: messages(browser)[-1:] == [["assistant", "One two"]] and not is_running(browser), "the rest")
    wait_until(lambda: not browser.exists(".chats li.cut, .chats li.running"), "no mark")
    never.set()


@pytest.mark.covers("W12")
def test_speed_counts_all_parts_of_an_answer(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer(
        [*text("One"), {"timings": timings(10, 1000.0), "choices": []}, CLOSE], [*text(" two"), end(n=30, ms=1000.0)]
    )
    open_page(browser, scripted)
    say(browser, "Count")
    assert browser.text(".message.assistant .meta") == "40 tokens, 20.0/s"


# ---------------------------------------------------------------------------------------- drafts


@pytest.mark.covers("W05")
def test_a_draft_stays_with_its_conversation(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    (tmp_path / "notes.txt").write_text("a note")
    open_page(browser, scripted)
    say(browser, "Hello")
    browser.type("#chat-input", "half a thou")
    browser.upload("#attach-file", tmp_path / "notes.txt")
    wait_until(lambda: "notes.txt" in browser.text("#composer"), "the chip")
    browser.click("#new-chat")
    wait_until(lambda: browser.value("#chat-input") == "" and "notes" not in browser.text("#composer"), "a clean box")
    browser.type("#chat-input", "something new")
    browser.click(".chats a")
    wait_until(lambda: browser.value("#chat-input") == "half a thou", "the draft")
    wait_until(lambda: "notes.txt" in browser.text("#composer"), "its file")
    reload(browser, scripted)
    wait_until(lambda: browser.value("#chat-input") == "half a thou", "the draft after a reload")
    wait_until(lambda: "notes.txt" in browser.text("#composer"), "its file after a reload")
    browser.type("#chat-input", "ght")
    say(browser, "")
    assert scripted.requests[-1]["messages"][-1]["content"].endswith("half a thought")
    reload(browser, scripted)
    assert browser.value("#chat-input") == "" and "notes.txt" not in browser.text("#composer")
    browser.click("#new-chat")
    wait_until(lambda: browser.value("#chat-input") == "something new", "the other draft")


@pytest.mark.covers("W05")
def test_a_new_conversations_system_prompt_and_half_made_edits_survive_a_reload(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    browser.click(".system-box summary")
    browser.type("#system", "Be kind.")
    reload(browser, scripted)
    wait_until(lambda: browser.value("#system") == "Be kind.", "the system prompt")
    assert "Be kind." in browser.text(".system-box summary")
    say(browser, "Hello")
    assert scripted.requests[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    press_tool(browser, 0, "Edit")
    browser.type(".message textarea.edit", " again")
    reload(browser, scripted)
    wait_until(lambda: len(messages(browser)) == 2, "the conversation")
    press_tool(browser, 0, "Edit")
    assert browser.value(".message textarea.edit") == "Hello again"
    browser.press(ESCAPE)
    press_tool(browser, 0, "Edit")
    assert browser.value(".message textarea.edit") == "Hello"


@pytest.mark.covers("W15")
def test_a_conversation_has_a_sampling_of_its_own(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    choose = "const s = document.querySelector('#composer select'); s.value = [...s.options].find((one) => one.textContent === arguments[0]).value; s.dispatchEvent(new Event('change'))"
    browser.run(choose, "always the likeliest")
    reload(browser, scripted)
    say(browser, "Hello")
    assert scripted.requests[0]["temperature"] == 0
    browser.click(".boxes details:last-child summary")
    browser.type(".boxes [data-option=top_k]", "7")
    say(browser, "Again")
    assert (scripted.requests[1]["temperature"], scripted.requests[1]["top_k"]) == (0, 7)
    browser.click("#new-chat")
    wait_until(lambda: messages(browser) == [], "an empty conversation")
    say(browser, "Another")
    assert "temperature" not in scripted.requests[2] and "top_k" not in scripted.requests[2]
    browser.click(".chats li:last-child a")
    wait_until(lambda: browser.text(".boxes details:last-child .badge") == "2", "the first one's sampling")


@pytest.mark.covers("W15")
def test_a_long_text_that_is_pasted_becomes_a_file(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    paste = """const data = new DataTransfer(); data.setData('text/plain', arguments[0]);
        return document.querySelector('#chat-input').dispatchEvent(
            new ClipboardEvent('paste', { clipboardData: data, cancelable: true }))"""
    if browser.run("return navigator.userAgent.includes('Firefox')"):
        return  # it lets no script fill a clipboard
    assert browser.run(paste, "short") is True
    assert browser.run(paste, "long line\n" * 1000) is False
    wait_until(lambda: "pasted-1.txt" in browser.text("#composer"), "the chip")
    say(browser, "Read it")
    assert "long line" in scripted.requests[0]["messages"][0]["content"]


@pytest.mark.covers("W15")
def test_deleted_messages_come_back_with_all_that_followed_them(scripted: Scripted, browser: Browser):  # noqa: F811
    scripted.will_answer(*([*text(f"Answer {n}"), end()] for n in range(3)))
    open_page(browser, scripted)
    for words in ("One", "Two"):
        say(browser, words)
    press_tool(browser, -1, "Answer again")
    wait_until(lambda: messages(browser)[-1:] == [["assistant", "Answer 2"]] and not is_running(browser), "a version")
    shown, kept = messages(browser), sorted(stored(browser), key=lambda row: row["id"])
    assert len(shown) == 4 and len(kept) == 5
    press_tool(browser, 2, "Delete")
    wait_until(lambda: messages(browser) == shown[:2] and len(stored(browser)) == 2, "a question less, and its answers")
    assert "what followed (2 messages)" in browser.text(".toast")
    browser.click(".toast button")
    wait_until(lambda: messages(browser) == shown, "all of it")
    assert browser.text(".message:last-child .count") == "2 / 2" and not browser.exists(".toast")
    reload(browser, scripted)
    wait_until(lambda: messages(browser) == shown, "all of it after a reload")
    assert sorted(stored(browser), key=lambda row: row["id"]) == kept
    say(browser, "Three")
    assert [one["content"] for one in scripted.requests[-1]["messages"]] == [*(words for _, words in shown), "Three"]


@pytest.mark.covers("W15")
def test_a_deleted_conversation_comes_back_whole(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    for words in ("First", "Second", "Third"):
        browser.click("#new-chat")
        wait_until(lambda: messages(browser) == [], "an empty conversation")
        say(browser, words)
    wait_until(lambda: browser.run(TITLES) == ["Third", "Second", "First"], "the list")
    browser.click(".chats li:nth-child(2) a")
    wait_until(lambda: messages(browser) == [["user", "Second"], ["assistant", "ok"]], "the conversation")
    browser.click(".chats li:nth-child(2) button")
    browser.click("dialog button.danger")
    wait_until(lambda: browser.run(TITLES) == ["Third", "First"] and messages(browser) == [], "one less")
    browser.click(".toast button")
    wait_until(lambda: browser.run(TITLES) == ["Third", "Second", "First"], "it is back, in its place")
    reload(browser, scripted)
    wait_until(lambda: browser.run(TITLES) == ["Third", "Second", "First"], "the list after a reload")
    browser.click(".chats li:nth-child(2) a")
    wait_until(lambda: messages(browser) == [["user", "Second"], ["assistant", "ok"]], "its messages")


@pytest.mark.covers("W16")
def test_what_is_found_leads_to_its_place(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    open_page(browser, scripted)
    import_file(browser, tmp_path / "long.json", long_chat(300))
    wait_until(lambda: len(messages(browser)) == 40, "the conversation")
    browser.type("#sidebar input[type=search]", "message 123")
    wait_until(lambda: browser.exists(".snippet"), "a snippet")
    assert browser.run("return document.querySelector('.snippet mark').textContent") == "message 123"
    browser.click(".snippet a")
    at_top = """const { left, top, width } = document.querySelector('.scroller').getBoundingClientRect();
        return document.elementFromPoint(left + width / 2, top + 30)?.closest('.message')?.querySelector('.body').textContent"""
    wait_until(lambda: (browser.run(at_top) or "").startswith("message 123"), "its place")
    browser.run_async(FRAMES)
    assert browser.run(at_top).startswith("message 123")


@pytest.mark.covers("W22")
def test_all_of_a_conversation_is_printed_and_nothing_else(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    open_page(browser, scripted)
    import_file(browser, tmp_path / "long.json", long_chat(100))
    wait_until(lambda: len(messages(browser)) == 40, "the conversation")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert len(messages(browser)) == 100
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    if not browser.run("return matchMedia('print').matches"):
        return  # Firefox shows what is printed to nobody
    shown = "return ['.bar', '#sidebar', '#composer', '.message footer'].filter((one) => document.querySelector(one).checkVisibility())"
    assert browser.run(shown) == []
    assert browser.run("return document.body.scrollHeight > 100 * 20")
    browser.cdp("Emulation.setEmulatedMedia", media="")


# ---------------------------------------------------------------------------------------- scrolling


def long_chat(n: int) -> object:
    """An exported conversation of `n` messages of different length."""
    rows = [
        {
            "id": str(i),
            "parent": str(i - 1) if i else None,
            "role": "assistant" if i % 2 else "user",
            "content": f"message {i}\n\n" + f"line of {i}\n\n" * (1 + i * 7 % 23),
            "time": i + 1,
        }
        for i in range(n)
    ]
    chat = {"id": "c", "title": "Long", "leaf": str(n - 1), "messages": rows}
    return {"format": "llama_srv chats", "version": 1, "chats": [chat]}


LEFT = "const s = document.querySelector('.scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
FRAMES = "for (let i = 0; i < 10; i++) await new Promise(requestAnimationFrame);"


@pytest.mark.covers("W07")
def test_a_long_conversation_opens_at_its_end(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    open_page(browser, scripted)
    import_file(browser, tmp_path / "long.json", long_chat(300))
    wait_until(lambda: len(messages(browser)) == 40, "the conversation")
    browser.run_async(FRAMES)
    assert abs(browser.run(LEFT)) < 2
    open_page(browser, scripted, browser.run("return location.hash"))
    wait_until(lambda: len(messages(browser)) == 40, "the conversation")
    browser.run_async(FRAMES)
    assert abs(browser.run(LEFT)) < 2
    assert not browser.run("return document.querySelector('.to-end').checkVisibility()")
    browser.run("document.querySelector('.scroller').scrollBy(0, -700)")
    wait_until(lambda: browser.run("return document.querySelector('.to-end').checkVisibility()"), "the way back")


@pytest.mark.covers("W07")
def test_scrolling_up_only_ever_leads_up(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    open_page(browser, scripted)
    import_file(browser, tmp_path / "long.json", long_chat(300))
    wait_until(lambda: len(messages(browser)) == 40, "the conversation")
    browser.run_async(FRAMES)
    seen = browser.run_async("""
        const box = document.querySelector('.scroller');
        const seen = [];
        for (let i = 0; i < 120; i++) {
          box.scrollTop -= 900;
          await new Promise(requestAnimationFrame);
          await new Promise(requestAnimationFrame);
          const { left, top, width } = box.getBoundingClientRect();
          const one = document.elementFromPoint(left + width / 2, top + 30)?.closest('.message');
          if (one) seen.push(Number(one.querySelector('.body').textContent.match(/\\d+/)[0]));
        }
        return seen;""")
    assert len(seen) > 60 and seen == sorted(seen, reverse=True), seen
    assert seen[-1] < 200


@pytest.mark.covers("W07")
def test_who_reads_further_up_is_left_there_while_an_answer_grows(scripted: Scripted, browser: Browser, tmp_path: Path):  # noqa: F811
    more = threading.Event()
    scripted.will_answer([*text("Begin\n\n" * 10), more, *text("more\n\n" * 60), end()])
    open_page(browser, scripted)
    import_file(browser, tmp_path / "long.json", long_chat(60))
    wait_until(lambda: len(messages(browser)) == 40, "the conversation")
    say(browser, "Go", waits=False)
    wait_until(lambda: "Begin" in messages(browser)[-1][1] and abs(browser.run(LEFT)) < 2, "the end in view")
    browser.run("document.querySelector('.scroller').scrollBy(0, -40)")  # a little is enough
    browser.run_async(FRAMES)
    place = browser.run("return document.querySelector('.scroller').scrollTop")
    more.set()
    wait_until(lambda: not is_running(browser), "the end")
    browser.run_async(FRAMES)
    assert browser.run("return document.querySelector('.scroller').scrollTop") == place
    browser.click(".to-end")
    wait_until(lambda: abs(browser.run(LEFT)) < 2, "the end")
