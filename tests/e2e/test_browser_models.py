"""The choice among several models, in real browsers: on a scripted server with llama-server's lists, and with ten real
ones.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.scripted import Scripted, scripted  # noqa: F401
from tests.e2e.test_browser import axe, open_page  # noqa: F401
from tests.e2e.test_browser_chat import messages, say
from tests.e2e.webdriver import PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import start_server, wait_until
from tests.tiny_models import tiny_llama

ESCAPE = "\ue00c"


def listed(**states: dict[str, Any]) -> dict[str, Any]:
    """What GET /models says."""
    rows = [{"id": name, "aliases": [name], "size": 2_000_000_000, "status": status} for name, status in states.items()]
    return {"object": "list", "data": rows}


def with_models(server: Scripted, **states: dict[str, Any]) -> None:  # noqa: F811
    server.props |= {"role": "router", "model_path": "none", "default_generation_settings": {"params": {}, "n_ctx": 0}}
    server.replies |= {
        "/models": listed(**states),
        "/models/load": {"success": True},
        "/models/unload": {"success": True},
    }


@pytest.mark.covers("D17")
def test_models_are_loaded_chosen_and_remembered(scripted: Scripted, browser: Browser, axe: str, request):  # noqa: F811
    loaded, unloaded = {"value": "loaded"}, {"value": "unloaded"}
    failed = {"value": "failed", "failed": True, "reason": "not enough memory"}
    with_models(scripted, small=loaded, large=unloaded, broken=failed)
    open_page(browser, scripted)
    assert "small" in browser.text("#model") and "loaded" in browser.text("#model")
    say(browser, "Hello")
    assert scripted.requests[-1]["model"] == "small"
    browser.click("#model")
    assert browser.text("[data-model=large]").split("\n")[:2] == ["large", "not loaded, 2.00 GB"]
    assert "not enough memory" in browser.text("[data-model=broken]")
    browser.cdp("Runtime.evaluate", expression=axe)
    assert browser.run_async("return (await axe.run(document)).violations.map((one) => one.id)") == []
    browser.screenshot(screenshot_path(request, "list"))
    browser.click("[data-model=large] .quiet")
    wait_until(lambda: ("/models/load", {"model": "large"}) in scripted.told, "the wish to load it")
    scripted.replies["/models"] = listed(small=loaded, large={"value": "loading", "progress": 0.42}, broken=failed)
    wait_until(lambda: "loading, 42 %" in browser.text("[data-model=large]"), "the progress")
    scripted.replies["/models"] = listed(small=loaded, large=loaded, broken=failed)
    wait_until(lambda: "Unload" in browser.text("[data-model=large]"), "the end of loading")
    browser.click("[data-model=large] .choose")
    wait_until(lambda: "large" in browser.text("#model"), "the choice")
    say(browser, "Again")
    assert scripted.requests[-1]["model"] == "large"
    # another conversation takes the latest choice; the first one has its own again after that
    browser.click("#new-chat")
    wait_until(lambda: browser.run("return location.hash") == "#chat", "a new conversation")
    browser.click("#model")
    browser.click("[data-model=small] .choose")
    wait_until(lambda: "small" in browser.text("#model"), "the other choice")
    browser.click(".chats a")
    wait_until(lambda: "large" in browser.text("#model"), "the model of the first conversation")
    browser.look(*PHONE)
    browser.click("#model")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.screenshot(screenshot_path(request, "phone"))


def test_with_one_model_there_is_nothing_to_choose(scripted: Scripted, browser: Browser):  # noqa: F811
    open_page(browser, scripted)
    assert browser.text("#status") == "scripted" and not browser.exists("#model")
    say(browser, "Hello")
    assert "model" not in scripted.requests[-1]
    assert not any("/models" in url and "/v1/" not in url for url in browser.asked_urls())


def state_of(browser: Browser, name: str) -> str:  # noqa: F811
    """What the open list says of a model."""
    return browser.text(f"[data-model={name}]").split("\n")[1]


@pytest.mark.covers("D17")
def test_a_folder_of_ten_models_works_from_the_page(tmp_path, browser: Browser, request):  # noqa: F811
    """Real libraries: whoever opens the page picks, loads, chats and unloads, and has read nothing."""
    names = [f"model-{letter}" for letter in "abcdefghij"]
    for i, name in enumerate(names):
        tiny_llama(tmp_path / f"{name}.gguf", seed=i + 1)
    options = ("-c", 1024, "-t", 1, "-n", 12, "--models-max", 3)
    with start_server(["--models-dir", tmp_path, *options]) as server:
        open_page(browser, server)
        assert "model-a" in browser.text("#model"), "the first is chosen until somebody chooses"
        browser.click("#model")
        rows = browser.run("return [...document.querySelectorAll('[data-model]')].map((row) => row.dataset.model)")
        assert rows == names and all(state_of(browser, name).startswith("not loaded, ") for name in names)
        browser.screenshot(screenshot_path(request, "ten"))

        browser.click("[data-model=model-g] .choose")
        say(browser, "Hello")  # loads it
        assert messages(browser)[-1][1], "it has answered"
        server.wait_for_line("access: .*POST /v1/chat/completions 200 .*model=model-g$")
        wait_until(lambda: "loaded" in browser.text("#model"), "its state in the bar")

        browser.click("#model")
        for name in ("model-b", "model-c"):
            browser.click(f"[data-model={name}] .quiet")
            wait_until(lambda name=name: state_of(browser, name).startswith("loaded"), "it to be loaded")
        browser.click("[data-model=model-c] .choose")
        say(browser, "And you?")
        server.wait_for_line("access: .*POST /v1/chat/completions 200 .*model=model-c$")
        assert len(messages(browser)) == 4 and messages(browser)[-1][1]

        browser.click("#model")
        browser.click("[data-model=model-j] .choose")
        say(browser, "And you?")  # who was idle for longest leaves for it
        server.wait_for_line("access: .*POST /v1/chat/completions 200 .*model=model-j$")
        browser.click("#model")
        wait_until(lambda: state_of(browser, "model-g").startswith("not loaded"), "the first to have left")
        browser.click("[data-model=model-j] .quiet")
        wait_until(lambda: state_of(browser, "model-j").startswith("not loaded"), "it to be unloaded")
        browser.press(ESCAPE)
        say(browser, "Again")  # comes back by itself
        assert messages(browser)[-1][1]
        states = {one["id"]: one["status"]["value"] for one in server.get("/models").json()["data"]}
        assert [name for name in names if states[name] == "loaded"] == ["model-b", "model-c", "model-j"]
        assert browser.console_errors() == []
