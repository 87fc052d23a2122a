"""A small WebDriver client: the part of the W3C protocol that is needed to control a headless Chromium by chromedriver.

Runs in the test process; imports requests and the standard library. One `Browser` is one chromedriver process with one
session and an empty profile; closing it ends the process and removes the profile. Elements are named by CSS selectors
in every call. If the page replaces an element between look-up and command, it is looked up again, so tests never have
stale handles. Way not taken: selenium, 10 MB for a dozen POST requests.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import PATIENCE, need, wait_until

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ELEMENT_KEY = "element-6066-11e4-a52e-4f735466cecf"  # how the protocol marks an element in JSON
# no sandbox: CI runs as root in a container; the rest keeps the browser from calling anywhere by itself
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
)
STARTS = 3
DESKTOP = (1200, 900)
PHONE = (390, 844)
STARTED = re.compile(r"started successfully on port (\d+)")
# what the browsers say of an element or a document that the page has just replaced: the command was not carried out
REPLACED_KINDS = ("stale element reference", "no such element")
REPLACED_WORDS = re.compile(
    r"does not belong to the document|No node with given id|Cannot find context with"
    r"|aborted by navigation|execution context|destroyed before query"
)
NOT_YET_KINDS = ("element click intercepted", "element not interactable")  # it is still covered, or not shown


class WebDriverError(AssertionError):
    """What chromedriver answered instead of a result: `.kind` is its error code."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.is_replaced = kind in REPLACED_KINDS or (kind == "unknown error" and bool(REPLACED_WORDS.search(message)))


def browser_missing() -> str:
    """`""`, or what isn't installed."""
    if not shutil.which("chromedriver"):
        return "chromedriver isn't installed"
    return "" if any(map(shutil.which, BROWSERS)) else "neither Chromium nor Chrome is installed"


class Browser:
    """One headless browser window; a context manager."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp(prefix="llama-srv-browser-")
        self._http = requests.Session()
        self._http.trust_env = False  # chromedriver is on this machine, whatever the proxy
        self._base = ""
        self._driver = subprocess.Popen(
            [shutil.which("chromedriver"), "--port=0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self._base = f"http://127.0.0.1:{self._port()}"
            self._base += f"/session/{self._start()}"
        except BaseException:
            self.close()
            raise

    def _start(self) -> str:
        """Have chromedriver start the browser; the session's id. One that doesn't come up on a busy machine is started
        again, in a profile that nothing has touched."""
        binary = next(path for path in map(shutil.which, BROWSERS) if path)
        for number in range(1, STARTS + 1):
            profile = Path(self._profile, str(number))
            chrome = {"binary": binary, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": chrome,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            try:
                return self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            except WebDriverError as error:
                if error.kind != "session not created" or number == STARTS:
                    raise
        raise AssertionError("not reached")

    def _port(self) -> int:
        """Read chromedriver's output up to its port; a thread reads the rest, so that it never blocks."""
        said = []
        for line in self._driver.stdout:
            said.append(line)
            if found := STARTED.search(line):
                rest = self._driver.stdout.read
                threading.Thread(target=rest, name="chromedriver-output", daemon=True).start()
                return int(found[1])
        raise AssertionError("chromedriver didn't start: " + "".join(said))

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command; its `value`, or WebDriverError."""
        json = body if body is not None or method == "GET" else {}
        answer = self._http.request(method, self._base + path, json=json, timeout=PATIENCE).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise WebDriverError(answer["error"], answer["message"])
        return answer

    def open(self, url: str) -> None:
        """Go to a page and wait for its load event."""
        self._call("POST", "/url", {"url": url})

    def refresh(self) -> None:
        """Load the page again, and wait for its load event."""
        self._call("POST", "/refresh")

    def find(self, selector: str) -> str:
        """Id of the first element that matches a CSS selector, once there is one."""

        def look() -> str:
            try:
                found = self._call("POST", "/element", {"using": "css selector", "value": selector})
                return found[ELEMENT_KEY]
            except WebDriverError as error:
                if not error.is_replaced:
                    raise
                return ""

        return wait_until(look, f"an element {selector!r}")

    def _ask(
        self, method: str, selector: str, command: str, body: dict[str, Any] | None = None, also: tuple[str, ...] = ()
    ) -> Any:
        """A command for the first element that matches; looked up again if the page has replaced it meanwhile.

        Errors of the kinds `also` are waited out as well. None of them has changed the page. The last one is raised
        if it lasts.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._call(method, f"/element/{self.find(selector)}/{command}", body)
            except WebDriverError as error:
                if not (error.is_replaced or error.kind in also) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def exists(self, selector: str) -> bool:
        """Is there such an element now?"""

        def look() -> list[bool]:
            try:
                return [bool(self._call("POST", "/elements", {"using": "css selector", "value": selector}))]
            except WebDriverError as error:
                if not error.is_replaced:
                    raise
                return []

        return wait_until(look, "a page")[0]

    def click(self, selector: str) -> None:
        """Click an element as a user would: once it is visible and not covered."""
        self._ask("POST", selector, "click", also=NOT_YET_KINDS)

    def clear(self, selector: str) -> None:
        """Empty a field."""
        self._ask("POST", selector, "clear", also=NOT_YET_KINDS)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self._ask("POST", selector, "value", {"text": text}, also=NOT_YET_KINDS)

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return self._ask("GET", selector, "text")

    def value(self, selector: str) -> Any:
        """The current value of a field."""
        return self._ask("GET", selector, "property/value")

    def is_enabled(self, selector: str) -> bool:
        """Can the user press it?"""
        return self._ask("GET", selector, "enabled")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page: `return ...` gives the result, `arguments[0]` is the first argument."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """Run the body of an async function in the page; what it returns, or what it throws as WebDriverError."""
        body = (
            "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);"
            "(async (...arguments) => {" + script + "})(...given)"
            ".then((value) => done({value}), (error) => done({problem: String(error)}));"
        )
        result = self._call("POST", "/execute/async", {"script": body, "args": list(arguments)})
        if "problem" in result:
            raise WebDriverError("javascript error", result["problem"])
        return result.get("value")

    def press(self, *keys: str) -> None:
        """Press keys in the page, wherever the focus is; all go down in this order and come up in the other."""
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in a file field, which may be hidden."""
        self.type(selector, str(path))

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, width: int, height: int, theme: str = "light", mobile: bool = False) -> None:
        """Show the page in a window of this size (CSS pixels) with this colour scheme; `mobile` has a touch screen."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=mobile)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def asked_urls(self) -> list[str]:
        """URLs that the page has asked for since the last call, answered or not; no data: URLs."""
        entries = self._call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def new_tab(self) -> str:
        """Open a tab and go there; the handle of the one before."""
        before = self._call("GET", "/window")
        self.switch(self._call("POST", "/window/new", {"type": "tab"})["handle"])
        return before

    def switch(self, handle: str) -> str:
        """Go to a tab; the handle of the one before."""
        before = self._call("GET", "/window")
        self._call("POST", "/window", {"handle": handle})
        return before

    def close_other_tabs(self) -> None:
        """Leave one tab."""
        first, *others = self._call("GET", "/window/handles")
        for handle in others:
            self._call("POST", "/window", {"handle": handle})
            self._call("DELETE", "/window")
        self._call("POST", "/window", {"handle": first})

    def reset(self) -> None:
        """As good as a new browser: nothing stored, an empty page, no emulation, logs read."""
        self.close_other_tabs()
        self.cdp("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        self.open("about:blank")
        self.look(*DESKTOP)
        self.console()
        self.asked_urls()

    def console(self) -> list[dict[str, Any]]:
        """Console messages since the last call: dicts with `level` ("SEVERE" for errors) and `message`."""
        return self._call("POST", "/se/log", {"type": "browser"})

    def console_errors(self) -> list[str]:
        """The errors among them, failed requests included; not that of an icon which no page has named.

        The browser asks for that one by itself, at a time of its own.
        """
        errors = [entry["message"] for entry in self.console() if entry["level"] == "SEVERE"]
        return [message for message in errors if "/favicon.ico" not in message]

    def screenshot(self, path: Path) -> Path:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
        return path

    def close(self) -> None:
        """End the session and chromedriver, remove the profile."""
        if "/session/" in self._base:
            try:
                self._call("DELETE", "")
            except (requests.RequestException, WebDriverError):
                pass  # the browser is gone already; chromedriver follows
        self._base = ""
        self._http.close()
        self._driver.terminate()
        try:
            self._driver.wait(10)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Browsers:
    """The browsers of a test run, one of each kind, started when a test wants it; a context manager."""

    def __init__(self) -> None:
        self._running: dict[str, Browser] = {}

    def get(self, kind: str) -> Browser:
        """The browser "chromium" or "firefox", as good as new; one that has died is replaced."""
        for _ in range(2):
            try:
                if kind not in self._running:
                    self._running[kind] = start_browser(kind)
                self._running[kind].reset()
                return self._running[kind]
            except (OSError, requests.RequestException, WebDriverError):
                if kind in self._running:
                    self._running.pop(kind).close()
        raise AssertionError(f"{kind} doesn't come up")

    def __enter__(self) -> Browsers:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._running.values():
            one.close()


def start_browser(kind: str) -> Browser:
    """A new one of this kind, where it is installed."""
    from tests.e2e.firefox import Firefox, firefox_missing

    missing = {"chromium": browser_missing, "firefox": firefox_missing}[kind]()
    need(not missing, f"no browser to test with: {missing}")
    return Firefox() if kind == "firefox" else Browser()


@pytest.fixture
def browser(browsers: Browsers, browser_kind: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser, reset; a screenshot of the test's last page is kept, and the console has no errors.

    Screenshots lie in LLAMA_SRV_SCREENSHOTS, or else in pytest's temporary folder. A test that expects errors
    reads them with `console_errors`.
    """
    for name in ("serve", "scripted"):
        if name in request.fixturenames:
            request.getfixturevalue(name)  # made before, so ended after: a page asks its server until the end
    running = browsers.get(browser_kind)
    picture = screenshot_path(request, "end")
    yield running
    running.screenshot(picture)
    found = running.console_errors()
    assert found == [], found


def screenshot_path(request: pytest.FixtureRequest, name: str) -> Path:
    """Where a test keeps the picture `name`."""
    folder = os.environ.get("LLAMA_SRV_SCREENSHOTS")
    path = Path(folder) if folder else request.getfixturevalue("tmp_path_factory").getbasetemp() / "screenshots"
    path.mkdir(parents=True, exist_ok=True)
    return path / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', request.node.name)}-{name}.png"
