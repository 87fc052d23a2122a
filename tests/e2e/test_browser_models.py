"""The choice among several models, in real browsers on a scripted server with llama-server's lists of models."""

from __future__ import annotations

from typing import Any

from tests.e2e.scripted import Scripted, scripted  # noqa: F401
from tests.e2e.test_browser import axe, open_page  # noqa: F401
from tests.e2e.test_browser_chat import say
from tests.e2e.webdriver import PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import wait_until

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
