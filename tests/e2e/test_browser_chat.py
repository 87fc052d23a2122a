"""The chat view, in a real browser on a real server.

The recite model makes answers known. A tiny llama whose text may not end gives answers of any length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny_models
from tests.e2e.test_browser import ANSWER, Front, open_page, set_prefs
from tests.e2e.webdriver import PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import ServerProcess, wait_until

ENTER, ESCAPE, SHIFT = "\ue007", "\ue00c", "\ue008"
N_CTX = 65536
ENDLESS = {"ignore_eos": True, "temperature": 0}


@pytest.fixture
def server(serve: Callable[..., ServerProcess], recite_model: Path) -> ServerProcess:
    """A server that recites."""
    return serve("-m", recite_model, "-t", "1", "-c", "8192")


@pytest.fixture
def endless(serve: Callable[..., ServerProcess], tmp_path: Path) -> ServerProcess:
    """A server whose answers go on until they are stopped."""
    model = tiny_models.tiny_llama(tmp_path / "model.gguf", n_ctx_train=N_CTX)
    return serve("-m", model, "-t", "1", "-c", N_CTX)


def say(browser: Browser, text: str, waits: bool = True) -> None:  # noqa: F811
    """Send a message, and wait for the end of its answer."""
    browser.type("#chat-input", text)
    browser.press(ENTER)
    if waits:
        wait_until(lambda: not is_running(browser), "the answer's end")


def is_running(browser: Browser) -> bool:  # noqa: F811
    return browser.run(
        "return !document.querySelector('#chat-stop').hidden || document.querySelector('.message.busy') !== null"
    )


def messages(browser: Browser) -> list[list[str]]:  # noqa: F811
    """Role and text of what is shown; nothing while the page is being loaded (Firefox answers null then)."""
    rows = browser.run("""return [...document.querySelectorAll('.message')].map((one) =>
        [one.classList.contains('user') ? 'user' : 'assistant', one.querySelector('.body').textContent.trim()])""")
    return rows or []


def press_tool(browser: Browser, n: int, name: str) -> None:  # noqa: F811
    """A button of the n-th message, by its label."""
    browser.run(
        """[...document.querySelectorAll('.message')].at(arguments[0]).querySelector(
        `.tools [aria-label="${arguments[1]}"]`).click()""",
        n,
        name,
    )


def stored(browser: Browser) -> list[dict[str, object]]:  # noqa: F811
    """All messages in the browser's database."""
    return browser.run_async("return (await import('/store.js')).allMessages()")


def import_file(browser: Browser, path: Path, content: object) -> None:  # noqa: F811
    path.write_text(json.dumps(content))
    browser.upload("#import-file", path)


# ---------------------------------------------------------------------------------------- talking


@pytest.mark.both_browsers
@pytest.mark.covers("F01")
def test_a_conversation_is_kept_and_found_again(server, browser: Browser):
    open_page(browser, server)
    say(browser, "First question")
    say(browser, "Second question")
    shown = messages(browser)
    assert shown == [
        ["user", "First question"],
        ["assistant", ANSWER.strip()],
        ["user", "Second question"],
        ["assistant", ANSWER.strip()],
    ]
    assert "tokens" in browser.text(".message:last-child .meta")
    assert "of 8,192 tokens" in browser.text("#composer")
    prompt = server.get("/slots").json()[0]["prompt"]
    assert f"user\nFirst question<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>" in prompt
    open_page(browser, server, browser.run("return location.hash"))
    wait_until(lambda: messages(browser) == shown, "the same conversation after a reload")
    browser.click("#new-chat")
    wait_until(lambda: messages(browser) == [], "an empty conversation")
    browser.click(".chats a")
    wait_until(lambda: messages(browser) == shown, "the conversation from the list")


def test_the_system_prompt_belongs_to_the_conversation(server, browser: Browser):
    open_page(browser, server)
    browser.click(".system-box summary")
    browser.type("#system", "Speak like a pirate.")
    say(browser, "Hi")
    assert "<|im_start|>system\nSpeak like a pirate.<|im_end|>" in server.get("/slots").json()[0]["prompt"]
    browser.click("#new-chat")
    wait_until(lambda: browser.value("#system") == "", "a new conversation without it")
    browser.click(".chats a")
    wait_until(lambda: browser.value("#system") == "Speak like a pirate.", "the old one with it")


def test_shift_enter_makes_a_line_and_enter_sends(server, browser: Browser):
    open_page(browser, server)
    browser.type("#chat-input", "one")
    browser.press(SHIFT, ENTER)
    browser.type("#chat-input", "two")
    say(browser, "")
    assert messages(browser)[0] == ["user", "one\ntwo"]


@pytest.mark.both_browsers
def test_stop_keeps_the_text_and_frees_the_slot(endless, browser: Browser):
    set_prefs(browser, endless.url, sampling=ENDLESS)
    open_page(browser, endless)
    for stop in (lambda: browser.click("#chat-stop"), lambda: browser.press(ESCAPE)):
        say(browser, "Once upon a time", waits=False)
        wait_until(lambda: len(messages(browser)[-1][1]) > 100, "text to appear")
        stop()
        wait_until(lambda: endless.get("/health").json()["slots_processing"] == 0, "the slot to be idle")
        wait_until(lambda: not is_running(browser), "the page to notice")
        assert len(messages(browser)[-1][1]) > 100
    kept = stored(browser)
    assert sorted(len(one["content"]) > 100 for one in kept) == [False, False, True, True]
    assert all(one.get("finish") == "stopped" for one in kept if one["role"] == "assistant")


# ---------------------------------------------------------------------------------------- versions


@pytest.mark.both_browsers
def test_editing_regenerating_and_switching_versions(server, browser: Browser):
    open_page(browser, server)
    say(browser, "Original")
    press_tool(browser, 0, "Edit")
    browser.clear(".message textarea.edit")
    browser.type(".message textarea.edit", "Changed")
    browser.click(".message form button.main")
    changed = [["user", "Changed"], ["assistant", ANSWER.strip()]]
    wait_until(lambda: messages(browser) == changed and not is_running(browser), "the new answer")
    assert browser.text(".message.user .count") == "2 / 2"
    press_tool(browser, -1, "Answer again")
    wait_until(lambda: browser.exists(".message.assistant .count") and not is_running(browser), "another answer")
    assert browser.text(".message.assistant .count") == "2 / 2"
    press_tool(browser, 0, "Previous version")
    wait_until(lambda: messages(browser)[0] == ["user", "Original"], "the first branch")
    assert not browser.exists(".message.assistant .count")
    press_tool(browser, 0, "Next version")
    wait_until(lambda: messages(browser)[0] == ["user", "Changed"], "the second branch")
    assert browser.text(".message.assistant .count") == "2 / 2"
    press_tool(browser, -1, "Delete")
    wait_until(lambda: not browser.exists(".message.assistant .count"), "one answer less")
    assert len(stored(browser)) == 4
    browser.click(".toast button")
    wait_until(lambda: browser.exists(".message.assistant .count"), "it is back")
    assert browser.text(".message.assistant .count") == "2 / 2" and len(stored(browser)) == 5


def test_an_edited_answer_is_a_version_and_can_be_continued(server, browser: Browser):
    open_page(browser, server)
    say(browser, "Count")
    press_tool(browser, -1, "Edit")
    browser.clear(".message textarea.edit")
    browser.type(".message textarea.edit", "Well: one two")
    browser.click(".message form button.main")
    wait_until(lambda: messages(browser)[-1][1] == "Well: one two", "the edited answer")
    press_tool(browser, -1, "Continue this answer")
    wait_until(lambda: "end" in messages(browser)[-1][1] and not is_running(browser), "its continuation")
    assert messages(browser)[-1][1] == "Well: one two" + "".join(tiny_models.RECITE_WORDS[2:])
    assert browser.text(".message.assistant .count") == "2 / 2"


def test_an_answer_cut_at_the_limit_says_so_and_goes_on(server, browser: Browser):
    set_prefs(browser, server.url, sampling={"n_predict": 3})
    open_page(browser, server)
    say(browser, "Count")
    assert messages(browser)[-1][1] == "one two three"
    assert "cut off" in browser.text(".message.assistant .note")
    press_tool(browser, -1, "Continue this answer")
    wait_until(
        lambda: messages(browser)[-1][1] == "one two three four five six" and not is_running(browser), "three more"
    )


# ---------------------------------------------------------------------------------------- trouble


def test_a_refused_request_is_explained_in_place(server, browser: Browser):
    set_prefs(browser, server.url, sampling={"grammar": "not a grammar"})
    open_page(browser, server)
    say(browser, "Hi")
    assert "grammar" in browser.text(".message .note.error")
    assert len(browser.console_errors()) <= 1  # the refused request, which Firefox doesn't count as an error


def test_the_page_says_that_the_server_is_busy(endless, browser: Browser):
    open_page(browser, endless)
    with_stream = endless.stream("/completion", {"prompt": "Once", "n_predict": N_CTX // 2, "ignore_eos": True})
    next(with_stream)
    say(browser, "Hello", waits=False)
    wait_until(lambda: "queue" in browser.text(".notice"), "the notice")
    with_stream.close()
    wait_until(lambda: messages(browser)[-1][1] != "", "the answer")
    browser.press(ESCAPE)
    wait_until(lambda: not is_running(browser), "its end")


@pytest.mark.both_browsers
def test_a_lost_connection_loses_no_text(endless, browser: Browser):
    with Front(endless) as front:
        set_prefs(browser, front.url, sampling=ENDLESS)
        browser.open(front.url + "/")
        wait_until(lambda: browser.run("return document.querySelector('#status')?.title"), "the model's name")
        say(browser, "Once upon a time", waits=False)
        wait_until(lambda: len(messages(browser)[-1][1]) > 100, "text to appear")
        front.is_down = True
        front.cut()
        wait_until(lambda: "lost" in browser.text(".notice"), "the notice")
        kept = messages(browser)[-1][1]
        task = endless.get("/slots").json()[0]["id_task"]
        front.is_down = False
        wait_until(lambda: len(messages(browser)[-1][1]) > len(kept) + 100, "the text to go on")
        assert messages(browser)[-1][1].startswith(kept)
        assert endless.get("/slots").json()[0]["id_task"] == task  # the same stream, which nobody has ended
        browser.press(ESCAPE)
        wait_until(lambda: not is_running(browser), "its end")
        wait_until(lambda: not endless.get("/slots").json()[0]["is_processing"], "a free slot")
        browser.open("about:blank")  # the page asks for the server's health as long as it is open
    browser.console_errors()  # the lost connections


@pytest.mark.both_browsers
@pytest.mark.covers("W03")
def test_after_a_reload_the_page_goes_on_with_the_running_answer(endless, browser: Browser):
    set_prefs(browser, endless.url, sampling=ENDLESS)
    open_page(browser, endless)
    say(browser, "Once upon a time", waits=False)
    wait_until(lambda: len(messages(browser)[-1][1]) > 100, "text to appear")
    task = endless.get("/slots").json()[0]["id_task"]
    kept = messages(browser)[-1][1]
    browser.refresh()
    wait_until(lambda: len((messages(browser) or [["", ""]])[-1][1]) > len(kept) + 100, "the text to go on")
    assert messages(browser)[-1][1].startswith(kept)
    assert endless.get("/slots").json()[0]["id_task"] == task
    browser.press(ESCAPE)
    wait_until(lambda: not endless.get("/slots").json()[0]["is_processing"], "a free slot")
    wait_until(lambda: not is_running(browser), "its end")


# ---------------------------------------------------------------------------------------- files


def test_text_files_go_with_the_message(server, browser: Browser, tmp_path: Path):
    open_page(browser, server)
    (tmp_path / "notes.txt").write_text("The code is 1234.\n```\nfence\n```")
    (tmp_path / "blob.bin").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    browser.upload("#attach-file", tmp_path / "notes.txt")
    wait_until(lambda: "notes.txt" in browser.text("#composer"), "the chip")
    for name, said in (("blob.bin", "not a text file"), ("photo.png", "can’t see")):
        browser.upload("#attach-file", tmp_path / name)
        wait_until(lambda s=said: s in browser.text("#toasts"), said)
    browser.run("""const files = new DataTransfer();
        files.items.add(new File(['dropped text'], '<img src=x onerror=alert(1)>.md'));
        document.querySelector('.view.chat').dispatchEvent(new DragEvent('drop', { dataTransfer: files,
            bubbles: true, cancelable: true }));""")
    wait_until(lambda: browser.run("return document.querySelectorAll('.chip').length") == 2, "what was dropped")
    browser.run("""const pasted = new DataTransfer();
        pasted.items.add(new File(['pasted text'], 'pasted.py'));
        // Firefox lets no script fill a clipboard: there this one is dropped, too
        document.querySelector('#chat-input').dispatchEvent(navigator.userAgent.includes('Firefox')
            ? new DragEvent('drop', { dataTransfer: pasted, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: pasted, cancelable: true }));""")
    wait_until(lambda: browser.run("return document.querySelectorAll('.chip').length") == 3, "all chips")
    browser.click(".chip:last-child button")
    say(browser, "What is the code?")
    prompt = server.get("/slots").json()[0]["prompt"]
    assert "notes.txt:\n````\nThe code is 1234.\n```\nfence\n```\n````\n\n<img src=x onerror=alert(1)>.md:\n" in prompt
    assert "dropped text" in prompt and "pasted" not in prompt and prompt.count("What is the code?") == 1
    assert browser.run("return document.querySelectorAll('.message.user .file').length") == 2
    assert not browser.exists(".message img")


# ---------------------------------------------------------------------------------------- many conversations


def test_conversations_are_renamed_searched_and_deleted(server, browser: Browser):
    open_page(browser, server)
    for text in ("About apples", "About pears"):
        browser.click("#new-chat")
        wait_until(lambda: messages(browser) == [], "an empty conversation")
        say(browser, text)
    titles = "return [...document.querySelectorAll('.chats li[data-id] a')].map((one) => one.textContent)"
    wait_until(lambda: browser.run(titles) == ["About pears", "About apples"], "both names, the latest first")
    browser.click(".chats li:first-child button")
    browser.clear("dialog input")
    browser.type("dialog input", "Fruit")
    browser.press(ENTER)
    wait_until(lambda: browser.run(titles) == ["Fruit", "About apples"], "the new name")
    for query, found in (
        ("pears", ["Fruit"]),
        ("APPLES", ["About apples"]),
        ("plums", []),
        ("", ["Fruit", "About apples"]),
    ):
        browser.clear("#sidebar input[type=search]")
        browser.run(
            "const f = document.querySelector('#sidebar input[type=search]'); f.value = arguments[0];"
            "f.dispatchEvent(new Event('input'))",
            query,
        )
        wait_until(lambda f=found: browser.run(titles) == f, query)
    browser.click(".chats li:first-child button")
    browser.click("dialog button.danger")
    wait_until(lambda: browser.run(titles) == ["About apples"], "one conversation less")
    wait_until(lambda: messages(browser) == [], "a new conversation in its place")
    assert len(stored(browser)) == 2
    browser.click(".toast button")
    wait_until(lambda: browser.run(titles) == ["Fruit", "About apples"], "it is back")
    assert len(stored(browser)) == 4


@pytest.mark.both_browsers
def test_an_exported_conversation_can_be_imported_again(server, browser: Browser, tmp_path: Path):
    open_page(browser, server)
    say(browser, "Keep me")
    exported = browser.run_async("""
        const [store, transfer, { Tree }] = await Promise.all([import('/store.js'),
            import('/transfer.js'), import('/tree.js')]);
        const [chats, rows] = [await store.allChats(), await store.allMessages()];
        return { json: transfer.toJson(chats, rows), markdown: transfer.toMarkdown(chats[0],
            new Tree(rows).path(chats[0].leaf)) };""")
    assert "# Keep me\n\n" in exported["markdown"] and exported["markdown"].endswith(f"## Model\n\n{ANSWER}\n")
    (tmp_path / "chats.json").write_text(exported["json"])
    browser.upload("#import-file", tmp_path / "chats.json")
    wait_until(
        lambda: browser.run("return document.querySelectorAll('.chats li[data-id] a').length") == 2, "the imported copy"
    )
    wait_until(lambda: messages(browser) == [["user", "Keep me"], ["assistant", ANSWER.strip()]], "its messages")
    for content, said in (("{", "not JSON"), ('{"format": "other"}', "no conversations"), ("[]", "no conversations")):
        (tmp_path / "bad.json").write_text(content)
        browser.upload("#import-file", tmp_path / "bad.json")
        wait_until(lambda s=said: s in browser.text("#toasts"), said)


# ---------------------------------------------------------------------------------------- hostile text

EVIL = r"""# <img src=x onerror="fired.push(1)"> [a](javascript:fired.push(2)) ![b](javascript:fired.push(3))
<script>fired.push(4)</script> <svg onload=fired.push(5)> **<iframe srcdoc="<script>fired.push(6)</script>">**
[c](https://a.example/"onmouseover="fired.push(7)) <https://a.example/'><img src=x onerror=fired.push(8)>
[d](data:text/html,<script>fired.push(9)</script>) ![e](http://127.0.0.2:9/tracker.png)

```"><img src=x onerror=fired.push(10)>
</code></pre><script>fired.push(11)</script>
```

| <b onclick=fired.push(12)>x</b> | y |
|---|---|
| [z](vbscript:fired.push(13)) | `<style>*{display:none}</style>` |
"""


def check_harmless(browser: Browser) -> None:  # noqa: F811
    browser.run("for (const one of document.querySelectorAll('main *')) one.dispatchEvent(new Event('mouseover'))")
    assert browser.run("return window.fired ?? []") == []
    assert not browser.exists("main script, main iframe, main svg:not(.icon), main style, main b, main img")
    links = browser.run("return [...document.querySelectorAll('main .body a')].map((one) => one.href)")
    assert links and all(link.startswith(("http://", "https://")) for link in links)
    assert not [url for url in browser.asked_urls() if "127.0.0.2" in url or "example" in url]


def test_html_in_a_models_answer_stays_text(serve, browser: Browser, tmp_path: Path):
    model = tiny_models.recite(
        tmp_path / "evil.gguf", [EVIL[at : at + 50] for at in range(0, len(EVIL), 50)], n_ctx_train=4096
    )
    server = serve("-m", model, "-t", "1")
    open_page(browser, server)
    browser.run("window.fired = []")
    say(browser, "Go")
    assert "<script>fired.push(4)</script>" in messages(browser)[-1][1]
    check_harmless(browser)


def test_html_in_an_imported_conversation_stays_text(server, browser: Browser, tmp_path: Path):
    open_page(browser, server)
    browser.run("window.fired = []")
    file = {"name": EVIL, "kind": "text", "data": EVIL}
    rows = [
        {
            "id": "1",
            "parent": None,
            "role": "user",
            "content": EVIL,
            "time": 1,
            "files": [
                file,
                {"name": "x", "kind": "image", "data": "javascript:fired.push(20)"},
                {"name": "x", "kind": "image", "data": "http://127.0.0.2:9/x.png"},
                None,
                3,
            ],
        },
        {"id": "2", "parent": "1", "role": "assistant", "content": EVIL, "reasoning": EVIL, "time": 2, "finish": EVIL},
        {"id": "3", "parent": "3", "role": "assistant", "content": "its own parent", "time": 3},
        {"id": "4", "parent": "2", "role": "<img>", "content": "no role", "time": 3},
        None,
        7,
    ]
    import_file(
        browser,
        tmp_path / "evil.json",
        {
            "format": "llama_srv chats",
            "version": 1,
            "chats": [
                {
                    "id": EVIL,
                    "title": EVIL,
                    "system": EVIL,
                    "created": "x",
                    "changed": None,
                    "leaf": "2",
                    "messages": rows,
                },
                None,
                "x",
            ],
        },
    )
    wait_until(lambda: len(messages(browser)) == 2, "the conversation")
    check_harmless(browser)
    assert EVIL.splitlines()[1][:30] in browser.text(".chats a") or "<img" in browser.text(".chats a")
