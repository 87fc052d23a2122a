"""Firefox for the browser tests, controlled by its Marionette protocol. `tests/e2e/conftest.py` chooses the tests.

Runs in the test process; imports the standard library and `webdriver`. Marionette's commands are those of WebDriver
with other names, as JSON over a socket, so `Firefox` only replaces the transport of `Browser`. Privileged scripts
replace commands of Chromium's own protocol. Way not taken: geckodriver, which does the same but must be downloaded,
because Debian has no package of it.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.webdriver import DESKTOP, Browser, WebDriverError
from tests.support import PATIENCE, wait_until

BINARIES = ("firefox", "firefox-esr")
PREFERENCES = {
    "marionette.port": 0,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.disabledForTesting": True,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "extensions.update.enabled": False,
    "app.normandy.enabled": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "browser.topsites.contile.enabled": False,
    "browser.newtabpage.activity-stream.feeds.section.topstories": False,
    "dom.ipc.processCount": 1,
}
# (method, path) of WebDriver as a pattern -> Marionette's command, and the names of the pattern's groups
COMMANDS = [
    (method, re.compile(pattern), command, names)
    for method, pattern, command, names in (
        ("POST", "/url", "WebDriver:Navigate", ()),
        ("POST", "/refresh", "WebDriver:Refresh", ()),
        ("POST", "/element", "WebDriver:FindElement", ()),
        ("POST", "/elements", "WebDriver:FindElements", ()),
        ("POST", "/element/([^/]+)/click", "WebDriver:ElementClick", ("id",)),
        ("POST", "/element/([^/]+)/clear", "WebDriver:ElementClear", ("id",)),
        ("POST", "/element/([^/]+)/value", "WebDriver:ElementSendKeys", ("id",)),
        ("GET", "/element/([^/]+)/text", "WebDriver:GetElementText", ("id",)),
        ("GET", "/element/([^/]+)/property/(.+)", "WebDriver:GetElementProperty", ("id", "name")),
        ("GET", "/element/([^/]+)/enabled", "WebDriver:IsElementEnabled", ("id",)),
        ("POST", "/execute/sync", "WebDriver:ExecuteScript", ()),
        ("POST", "/execute/async", "WebDriver:ExecuteAsyncScript", ()),
        ("POST", "/actions", "WebDriver:PerformActions", ()),
        ("GET", "/screenshot", "WebDriver:TakeScreenshot", ()),
        ("GET", "/window", "WebDriver:GetWindowHandle", ()),
        ("POST", "/window", "WebDriver:SwitchToWindow", ()),
        ("POST", "/window/new", "WebDriver:NewWindow", ()),
        ("GET", "/window/handles", "WebDriver:GetWindowHandles", ()),
        ("DELETE", "/window", "WebDriver:CloseWindow", ()),
    )
]
WATCH_REQUESTS = """
globalThis.llamaUrls = [];
Services.obs.addObserver((subject) => {
  const channel = subject.QueryInterface(Ci.nsIHttpChannel);
  if (channel.loadInfo.browsingContextID) globalThis.llamaUrls.push(channel.URI.spec);
}, 'http-on-modify-request');
"""
TAKE_REQUESTS = "return globalThis.llamaUrls.splice(0);"
# errors of pages, not of the browser's own scripts
TAKE_ERRORS = """
const found = Services.console.getMessageArray().filter((one) => one instanceof Ci.nsIScriptError
  && !(one.flags & Ci.nsIScriptError.warningFlag) && /^https?:/.test(one.sourceName)).map((one) => one.errorMessage);
Services.console.reset();
return found;
"""
CLEAR = """
const done = arguments[arguments.length - 1];
Services.clearData.deleteData(Ci.nsIClearDataService.CLEAR_ALL, { onDataDeleted: () => done(null) });
"""
# what it would install of the page: fetched under the page's policy; answers with the reason where there is nothing
GET_MANIFEST = """
const done = arguments[arguments.length - 1];
const { ManifestObtainer } = ChromeUtils.importESModule('resource://gre/modules/ManifestObtainer.sys.mjs');
const page = Services.wm.getMostRecentWindow('navigator:browser').gBrowser.selectedBrowser;
ManifestObtainer.browserObtainManifest(page, { checkConformance: true }).then((found) => done(JSON.stringify(found)), (error) => done(
  JSON.stringify({ moz_manifest_url: '', moz_validation: [String(error)] })));
"""
SET_THEME = "Services.prefs.setIntPref('layout.css.prefers-color-scheme.content-override', arguments[0]);"


def firefox_missing() -> str:
    """`""`, or what isn't installed."""
    return "" if any(map(shutil.which, BINARIES)) else "Firefox isn't installed"


class Firefox(Browser):
    """One headless Firefox window; a context manager. It shows no touch screen and no accessibility tree."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp(prefix="llama-srv-firefox-")
        self._number = 0
        self._socket: socket.socket | None = None
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
        Path(self._profile, "user.js").write_text("\n".join(lines))
        binary = next(path for path in map(shutil.which, BINARIES) if path)
        width, height = DESKTOP
        self._driver = subprocess.Popen(
            [
                binary,
                "--headless",
                "--marionette",
                "-remote-allow-system-access",
                "--profile",
                self._profile,
                f"--width={width}",
                f"--height={height + 85}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = Path(self._profile, "MarionetteActivePort")
            wait_until(lambda: port_file.is_file() and port_file.read_text().strip(), "Firefox to listen")
            self._socket = socket.create_connection(("127.0.0.1", int(port_file.read_text())), PATIENCE)
            self._receive()
            self._command("WebDriver:NewSession", {})
            self._privileged(WATCH_REQUESTS)
        except BaseException:
            self.close()
            raise

    def _receive(self) -> Any:
        """One message: its length, a colon, JSON."""
        head = b""
        while not head.endswith(b":"):
            head += self._read(1)
        data = b""
        while len(data) < int(head[:-1]):
            data += self._read(int(head[:-1]) - len(data))
        return json.loads(data)

    def _read(self, n: int) -> bytes:
        data = self._socket.recv(n)
        if not data:
            raise AssertionError("Firefox has ended")
        return data

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        data = json.dumps([0, self._number, name, parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(data), data))
        _, _, error, result = self._receive()
        if error:
            raise WebDriverError(error["error"], error["message"])
        return result["value"] if isinstance(result, dict) and "value" in result else result

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        for wanted, pattern, command, names in COMMANDS:
            if wanted == method and (found := pattern.fullmatch(path)):
                return self._command(command, {**(body or {}), **dict(zip(names, found.groups()))})
        raise AssertionError(f"{method} {path} has no counterpart in Marionette here")

    def _privileged(self, script: str, *arguments: Any, is_async: bool = False) -> Any:
        """Run a script with the browser's own rights."""
        self._command("Marionette:SetContext", {"value": "chrome"})
        try:
            name = "WebDriver:ExecuteAsyncScript" if is_async else "WebDriver:ExecuteScript"
            return self._command(
                name, {"script": script, "args": list(arguments), "sandbox": "system", "newSandbox": False}
            )
        finally:
            self._command("Marionette:SetContext", {"value": "content"})

    def cdp(self, command: str, **parameters: Any) -> Any:
        """What the tests want of Chromium's protocol: to run a script past the page's policy, the manifest; no names of
        elements."""
        if command == "Runtime.evaluate":
            return self._command(
                "WebDriver:ExecuteScript", {"script": parameters["expression"], "args": [], "sandbox": None}
            )
        if command == "Page.getAppManifest":
            found = json.loads(self._privileged(GET_MANIFEST, is_async=True))
            return {"url": found["moz_manifest_url"], "errors": found["moz_validation"], "data": json.dumps(found)}
        return {"nodes": []}

    def look(self, width: int, height: int, theme: str = "light", mobile: bool = False) -> None:
        """A page of this size with this colour scheme; there is no touch screen."""
        self._privileged(SET_THEME, 0 if theme == "dark" else 1)
        for _ in range(2):  # the window is wider than its page by what the first try shows
            have = self.run("return [innerWidth, innerHeight, outerWidth, outerHeight]")
            self._command(
                "WebDriver:SetWindowRect", {"width": width + have[2] - have[0], "height": height + have[3] - have[1]}
            )

    def asked_urls(self) -> list[str]:
        """See `Browser`."""
        return self._privileged(TAKE_REQUESTS)

    def console(self) -> list[dict[str, Any]]:
        """The errors alone."""
        return [{"level": "SEVERE", "message": text} for text in self._privileged(TAKE_ERRORS)]

    def reset(self) -> None:
        """See `Browser`."""
        self.close_other_tabs()
        self.open("about:blank")
        self._privileged(CLEAR, is_async=True)
        self.look(*DESKTOP)
        self.console()
        self.asked_urls()

    def close(self) -> None:
        """End the browser, remove the profile."""
        if self._socket is not None:
            self._socket.close()
        self._driver.kill()
        self._driver.wait()
        shutil.rmtree(self._profile, ignore_errors=True)
