"""The page as a whole, in a real browser on a real server: start, settings, languages, looks, safety; and
`/completion.js` for other pages.

Runs in the test process, with server and browser in processes of their own. Tests wait for what the page shows, and
never for a time.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests import tiny_models
from tests.e2e.webdriver import DESKTOP, PHONE, Browser, browser, screenshot_path  # noqa: F401
from tests.support import ServerProcess, node_package, wait_until

ANSWER = "".join(tiny_models.RECITE_WORDS)


def set_prefs(browser: Browser, url: str, **prefs: object) -> None:  # noqa: F811
    """Settings as the dialog would store them, for the next time that the page is opened.

    Set from another document of the server: Chromium's storage may never answer again when a page is left while it
    makes its database.
    """
    browser.open(url + "/icon.svg")
    browser.run("localStorage.setItem('llama_srv.prefs', arguments[0])", json.dumps(prefs))
    browser.open("about:blank")


def open_page(browser: Browser, server: ServerProcess, view: str = "") -> None:  # noqa: F811
    """Open the page and wait until it knows the model."""
    browser.open(f"{server.url}/{view}")
    wait_until(lambda: browser.run("return document.querySelector('#status')?.title"), "the model's name on the page")


@pytest.fixture
def server(serve: Callable[..., ServerProcess], recite_model: Path) -> ServerProcess:
    """A server that recites."""
    return serve("-m", recite_model, "-t", "1", "-np", "2", "-c", "4096", "--metrics")


@pytest.mark.both_browsers
@pytest.mark.covers("E12")
def test_the_page_asks_nobody_but_its_server_and_shows_no_error(server: ServerProcess, browser: Browser):
    open_page(browser, server)
    browser.type("#chat-input", "Hello")
    browser.click("#chat-send")
    wait_until(lambda: "end" in browser.text("#log"), "the answer")
    for view in ("complete", "server"):
        browser.click(f"nav a[href='#{view}']")
    wait_until(lambda: "recite" in browser.text(".facts"), "the model's facts")
    urls = [url for url in browser.asked_urls() if not url.startswith(("chrome:", "about:", "blob:"))]
    assert urls and all(url.startswith(server.url + "/") for url in urls), urls
    total = sum(
        len(server.get(url.removeprefix(server.url)).content)
        for url in set(urls)
        if url.endswith((".js", ".mjs", ".css", ".svg", ".html")) or url == server.url + "/"
    )
    assert 50_000 < total < 350_000


@pytest.mark.both_browsers
@pytest.mark.covers("W22")
def test_the_page_can_be_installed(server: ServerProcess, browser: Browser):
    open_page(browser, server)
    found = browser.cdp("Page.getAppManifest")  # as the browser fetches it, under the page's policy
    assert found["url"] == server.url + "/manifest.webmanifest" and found["errors"] == []
    served = server.get("/manifest.webmanifest")
    assert served.headers["Content-Type"].startswith("application/manifest+json")
    manifest = served.json()
    assert json.loads(found["data"])["name"] == manifest["name"] == "llama_srv"
    assert manifest["display"] == "standalone"
    assert server.get("/" + manifest["start_url"]).text.startswith("<!doctype html>")
    assert manifest["icons"]
    for icon in manifest["icons"]:
        answer = server.get("/" + icon["src"])
        assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (200, icon["type"])
        size = "const image = new Image(); image.src = arguments[0]; await image.decode(); return image.naturalWidth"
        assert browser.run_async(size, icon["src"]) > 0


def test_strangers_scripts_styles_and_html_are_refused_by_the_page(server: ServerProcess, browser: Browser):
    open_page(browser, server)
    done = browser.run_async("""
        window.fired = [];
        const tried = {};
        const attempt = (name, work) => { try { work(); tried[name] = 'done';
            } catch (error) { tried[name] = error.name; } };
        attempt('innerHTML', () => { document.querySelector('#toasts').innerHTML = '<img src=x onerror="fired.push(1)">'; });
        attempt('write', () => document.write('<script>fired.push(2)</' + 'script>'));
        const image = document.createElement('img');
        attempt('handler', () => image.setAttribute('onerror', 'fired.push(4)'));
        document.body.append(image);
        image.src = 'http://127.0.0.2:9/x.png';
        const failed = await fetch('http://127.0.0.2:9/x').then(() => 'fetched', () => 'refused');
        await new Promise((resolve) => setTimeout(resolve, 200));
        image.remove();
        return { tried, fired: window.fired, failed };
    """)
    assert done["fired"] == [] and done["failed"] == "refused"
    assert [done["tried"][name] for name in ("innerHTML", "write", "handler")] == ["TypeError"] * 3
    assert browser.console_errors()  # the refusals


@pytest.mark.covers("F01")
def test_the_page_waits_for_the_model_and_then_starts_by_itself(browser: Browser, server: ServerProcess):
    """The server answers 503 first; here a small stand-in in front does, so that it lasts as long as the test needs."""
    with LoadingFront(server) as front:
        browser.open(front.url + "/")
        wait_until(lambda: "42" in browser.text("#loading-text"), "the progress")
        assert browser.run("return document.querySelector('#loading-bar').value") == pytest.approx(0.42)
        front.is_loading = False
        wait_until(lambda: not browser.run("return document.body.classList.contains('loading')"), "the page")
        wait_until(lambda: "recite" in browser.text("#status"), "the model's name")
        browser.open("about:blank")  # the page asks for the server's health as long as it is open
    browser.console_errors()  # the browser reports each 503


@pytest.mark.both_browsers
def test_a_missing_key_is_asked_for_and_kept(serve, recite_model: Path, browser: Browser):
    server = serve("-m", recite_model, "-t", "1", "--api-key", "s3cret")
    browser.open(server.url + "/")
    wait_until(lambda: browser.exists("dialog[open] #api-key"), "the settings")
    browser.type("#api-key", "s3cret")
    browser.press("\ue007")
    wait_until(lambda: "recite" in browser.text("#status"), "the model's name")
    open_page(browser, server)
    assert not browser.exists("dialog[open]")
    browser.type("#chat-input", "Hello")
    browser.click("#chat-send")
    wait_until(lambda: "end" in browser.text("#log"), "the answer")
    assert all("401" in message for message in browser.console_errors())


def test_language_and_theme_are_settings(server: ServerProcess, browser: Browser, request):
    open_page(browser, server)
    choose = (
        "const select = document.querySelectorAll('dialog select')[arguments[0]];"
        "select.value = arguments[1]; select.dispatchEvent(new Event('change'));"
    )
    browser.click("#settings")
    browser.find("dialog[open] select")
    browser.run(choose, 0, "dark")
    browser.run(choose, 1, "de")
    browser.click("dialog button.main")
    wait_until(lambda: browser.exists("#new-chat") and browser.text("#new-chat") == "Neues Gespräch", "German")
    assert browser.run("return document.documentElement.lang") == "de"
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) < 150
    browser.screenshot(screenshot_path(request, "german-dark"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_view_fits_its_window_and_names_its_controls(server, browser: Browser, request, theme, size):
    browser.look(*size, theme, mobile=size == PHONE)
    open_page(browser, server)
    browser.type("#chat-input", "A long word: " + "x" * 300)
    browser.click("#chat-send")
    wait_until(lambda: "end" in browser.text("#log"), "the answer")
    for view in ("chat", "complete", "server"):
        browser.run(
            "location.hash = arguments[0]", "#" + view if view != "chat" else browser.run("return location.hash")
        )
        wait_until(lambda v=view: browser.run("return document.body.dataset.view") == v, view)
        browser.screenshot(screenshot_path(request, view))
        wide = browser.run("""return [...document.querySelectorAll('main *')].filter((e) =>
            e.checkVisibility() &&
            e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, .table')).map((e) =>
                e.outerHTML.slice(0, 80))""")
        assert wide == []
        nameless = [
            node
            for node in browser.cdp("Accessibility.getFullAXTree")["nodes"]
            if not node["ignored"]
            and node["role"]["value"]
            in (
                "button",
                "textbox",
                "combobox",
                "checkbox",
                "link",
                "slider",
                "meter",
                "searchbox",
                "img",
                "spinbutton",
            )
            and not (node.get("name") or {}).get("value")
        ]
        assert nameless == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    return (node_package("axe-core") / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.both_browsers
@pytest.mark.covers("W20")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(server: ServerProcess, browser: Browser, axe: str, theme: str):
    browser.look(*DESKTOP, theme)
    open_page(browser, server)
    browser.type("#chat-input", "Hello")
    browser.click("#chat-send")
    wait_until(lambda: "end" in browser.text("#log"), "the answer")
    browser.cdp("Runtime.evaluate", expression=axe)

    def findings() -> list[object]:
        return browser.run_async("""
            const { violations } = await axe.run(document, { resultTypes: ['violations'] });
            return violations.map((one) => [one.id, one.impact,
                one.nodes.map((node) => node.html.slice(0, 150))])""")

    assert findings() == []
    browser.click("#settings")
    browser.find("dialog[open] select")
    browser.run("for (const one of document.querySelectorAll('dialog details')) one.open = true")
    assert findings() == []
    browser.run("document.querySelector('dialog').close()")
    browser.run("location.hash = '#complete'")
    wait_until(lambda: browser.run("return document.body.dataset.view") == "complete", "the completion view")
    browser.run("for (const one of document.querySelectorAll('.panel details')) one.open = true")
    browser.click("#probs")
    browser.click("#send")
    wait_until(lambda: browser.is_enabled("#take"), "the completion")
    assert findings() == []
    browser.run("location.hash = '#server'")
    wait_until(lambda: browser.exists(".card"), "the slots")
    assert findings() == []


def test_keys_lead_everywhere(server: ServerProcess, browser: Browser):
    alt, control = "\ue00a", "\ue009"
    open_page(browser, server)
    browser.press(alt, "2")
    wait_until(lambda: browser.run("return document.body.dataset.view") == "complete", "the completion view")
    browser.press(alt, "3")
    wait_until(lambda: browser.run("return document.body.dataset.view") == "server", "the server view")
    browser.press(control, "k")
    wait_until(lambda: browser.run("return document.activeElement.role") == "combobox", "the palette")
    browser.press("\ue00c")
    browser.press(alt, "n")
    wait_until(lambda: browser.run("return document.activeElement.id") == "chat-input", "the message field")
    browser.type("#chat-input", "Hi")
    browser.press("\ue007")
    wait_until(lambda: "end" in browser.text("#log"), "the answer")


# ---------------------------------------------------------------------------------------- /completion.js


@pytest.mark.covers("F02")
def test_completion_js_offers_its_five_ways(server: ServerProcess, browser: Browser):
    open_page(browser, server)
    done = browser.run_async("""
        const m = await import('/completion.js');
        const result = {};
        const prompt = 'count: one';
        const chunks = [];
        for await (const chunk of m.llama(prompt, { n_predict: 3, temperature: 0 })) chunks.push(chunk.data);
        result.llama = chunks.map((data) => data.content).join('');
        result.last = chunks.at(-1).stop;
        const seen = [];
        await m.llamaComplete({ prompt, n_predict: 2 }, new AbortController(), (chunk) =>
            seen.push(chunk.data.content));
        result.complete = seen.join('');
        result.promise = await m.llamaPromise(prompt, { n_predict: 2, stop: [' three'] });
        const target = m.llamaEventTarget(prompt, { n_predict: 2 });
        const types = new Set();
        for (const type of ['message', 'generation_settings', 'timings']) target.addEventListener(type,
            () => types.add(type));
        result.done = await new Promise((resolve) => target.addEventListener('done', (event) =>
            resolve(event.detail.content)));
        result.types = [...types].sort();
        result.info = (await m.llamaModelInfo()).n_ctx;
        result.whole = await m.llamaPromise(prompt, { n_predict: 2, stream: false });
        result.defaults = [];
        const fetched = window.fetch;
        window.fetch = (url, options) => { result.defaults.push([url, JSON.parse(options.body),
            options.headers]); return fetched(location.origin + '/completion', options); };
        await m.llamaPromise(prompt, { api_key: 'k' }, { api_url: 'http://other:1/' });
        window.fetch = fetched;
        try { await m.llamaPromise(prompt, { top_k: 'x' }); } catch (error) { result.error = error.message; }
        const controller = new AbortController();
        controller.abort();
        try { await m.llamaPromise(prompt, {}, { controller }); } catch (error) { result.abort = error.name; }
        return result;
    """)
    assert (done["llama"], done["last"]) == (" two three four", True)
    assert done["complete"] == done["done"] == done["whole"] == " two three"
    assert done["promise"] == " two"
    assert done["types"] == ["generation_settings", "message", "timings"]
    assert done["info"] == 2048
    url, body, headers = done["defaults"][0]
    assert url == "http://other:1/completion" and headers["Authorization"] == "Bearer k"
    assert body == {"stream": True, "n_predict": 500, "temperature": 0.2, "stop": ["</s>"], "prompt": "count: one"}
    assert done["error"].startswith("top_k: 'x'") and done["abort"] == "AbortError"
    assert len(browser.console_errors()) <= 1  # the refused request, which Firefox doesn't count as an error


SAMPLE = """<html>
  <body>
    <pre>
      <script type="module">
        import { llama } from '/completion.js'
        const prompt = `### Instruction:
Write dad jokes, each one paragraph.
You can use html formatting if needed.
### Response:`
        for await (const chunk of llama(prompt)) {
          document.write(chunk.data.content)
        }
      </script>
    </pre>
  </body>
</html>
"""


@pytest.mark.covers("F03", "C25")
def test_the_documents_sample_page_works_from_a_users_folder(
    serve, recite_model: Path, browser: Browser, tmp_path: Path
):
    (tmp_path / "index.html").write_text(SAMPLE)
    server = serve("-m", recite_model, "-t", "1", "--path", tmp_path)
    browser.open(server.url + "/")
    wait_until(lambda: ANSWER.strip() in browser.text("body"), "the text on the page")


# ---------------------------------------------------------------------------------------- stand-ins


class Front:
    """A listener that hands each connection on to the server; subclasses look at the first request of each."""

    is_down = False

    def __init__(self, server: ServerProcess) -> None:
        self._port = int(server.url.rsplit(":", 1)[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, name="front", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), name="front-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.append(client)
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(65536)
                if not part:
                    return
                head += part
            parts = self.answer(head)
            if parts is not None:
                for part in [parts] if isinstance(parts, bytes) else parts:
                    client.sendall(part)
                client.shutdown(socket.SHUT_WR)
                return
            upstream = socket.create_connection(("127.0.0.1", self._port))
            self._open.append(upstream)
            # one request per connection, so that each is looked at
            upstream.sendall(head.replace(b"Connection: keep-alive", b"Connection: close"))
            threading.Thread(target=self._pump, args=(client, upstream), name="front-up", daemon=True).start()
            self._pump(upstream, client)
        except OSError:
            pass

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def answer(self, head: bytes) -> bytes | Iterable[bytes] | None:
        """An answer instead of the server's, whole or in parts, or None."""
        return None

    def cut(self) -> None:
        """Break all connections."""
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)  # closing alone would not wake threads that read
            except OSError:
                pass  # closed already
            connection.close()
        self._open.clear()

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()


def answer(status: str, body: str) -> bytes:
    """An HTTP answer with a JSON body."""
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()


class LoadingFront(Front):
    """Says that the model is loading for as long as `is_loading`."""

    is_loading = True

    def answer(self, head: bytes) -> bytes | None:
        if self.is_loading and b" /health " in head:
            return answer(
                "503 Service Unavailable",
                '{"status":"loading model","error":{"code":503,'
                '"message":"Loading model","type":"unavailable_error","progress":0.42}}',
            )
        return None
