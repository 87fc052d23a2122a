"""The page at `/` in a real browser, on a real server with a tiny model.

Runs in the test process, with the server and the browser as processes of their own. What the page shows is
waited for, never timed. The models make the text known (recite) or endless enough to be stopped (tiny llama).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.e2e.webdriver import Browser, browser_missing
from tests.support import ServerProcess, need, wait_until

N_CTX = 65536                   # room for far more tokens than can be made before the click on stop


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A fresh browser; a screenshot of its last page stays in the test's temporary folder."""
    missing = browser_missing()
    need(not missing, f"no browser to test with: {missing}")
    with Browser() as running:
        yield running
        print("screenshot:", running.screenshot(tmp_path / "page.png"))


def test_page_streams_a_completion(serve: Callable[..., ServerProcess], browser: Browser, recite_model: Path):
    server = serve("-m", recite_model)
    browser.open(server.url + "/")
    wait_until(lambda: "recite" in browser.text("#status"), "the model's name on the page")
    browser.clear("#prompt")
    browser.type("#prompt", "count: one")
    browser.click("#send")
    wait_until(lambda: "tokens" in browser.text("#timings"), "the completion to end")
    assert browser.text("#output") == "count: one" + "".join(tiny_models.RECITE_WORDS[1:])
    assert browser.is_enabled("#send") and not browser.is_enabled("#stop")
    assert browser.console_errors() == []


def test_stop_button_ends_the_completion_and_frees_the_slot(
        serve: Callable[..., ServerProcess], browser: Browser, tmp_path: Path):
    model = tiny_models.tiny_llama(tmp_path / "model.gguf", n_ctx_train=N_CTX)
    server = serve("-m", model, "-c", N_CTX)
    browser.open(server.url + "/")
    browser.run("document.querySelector('#n_predict').value = arguments[0]", N_CTX)
    browser.clear("#prompt")
    browser.type("#prompt", "Once upon a time")
    browser.click("#send")
    wait_until(lambda: len(browser.text("#output")) > 100, "text to appear")
    browser.click("#stop")
    wait_until(lambda: server.get("/health").json()["slots_processing"] == 0, "the slot to be idle")
    assert len(browser.text("#output").split()) < N_CTX // 2
    assert browser.is_enabled("#send") and not browser.is_enabled("#stop")
    assert browser.console_errors() == []
