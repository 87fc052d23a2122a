"""Helpers for tests: the rules about skips, and real server processes on their own ports.

Runs in the test process. May import pytest, requests and the standard library; from the server only what a helper
names. A server is started as a user would start it (`python llama_srv.py ... --port 0`), so these tests also cover
argument parsing, start-up and shutdown. Waiting is always for a condition with a generous deadline; nothing here
depends on the machine's speed. Way not taken: running the server inside the test process, which hides signals, exit
codes and leaked threads (the tests in `tests/api` do that, with a fake engine).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0  # seconds; only a hang gets that far
NO_PROXY = {"http": "", "https": ""}
URL = re.compile(r"https?://[^\s,;'\"<>)]+")


def nothing_may_be_skipped() -> bool:
    """True where a missing prerequisite is a failure: in CI, or when the user demands it."""
    return os.environ.get("CI") == "true" or os.environ.get("LLAMA_SRV_TEST_NO_SKIP") == "1"


def need(condition: object, reason: str) -> None:
    """Skip the running test with `reason` unless `condition` holds; where nothing may be skipped, fail.

    For what a machine might lack (a browser, a compiler), never for what the product might lack.
    """
    if condition:
        return
    if nothing_may_be_skipped():
        pytest.fail(f"{reason} (a failure because nothing may be skipped)", pytrace=False)
    pytest.skip(reason)


def build_script(name: str) -> ModuleType:
    """A module of `build_scripts/`, which are scripts: they import one another as neighbours."""
    folder = str(ROOT / "build_scripts")
    sys.path.append(folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def node_package(name: str) -> Path:
    """Folder of a package for Node.js that `build_scripts/test.py` keeps; skips the test where it isn't there."""
    build_script("common")
    # its plain name belongs to the standard library's `test`
    spec = importlib.util.spec_from_file_location("test_command", ROOT / "build_scripts" / "test.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = script.get_node_packages_folder() / "node_modules" / name
    need(folder.exists(), f"the JavaScript package {name} isn't here: run build_scripts/test.py")
    return folder


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE, every: float = 0.02) -> Any:
    """Call `condition` until it returns something true, and return that; AssertionError at the deadline."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain for {what}")
        time.sleep(every)


def n_lines(work: Callable[[], object]) -> int:
    """How many lines of Python `work` runs on this thread: what it costs, on a machine of whatever speed."""
    n = 0

    def trace(frame: object, event: str, argument: object) -> Callable[..., object]:
        nonlocal n
        n += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return n


def child_processes(pid: int) -> list[int]:
    """Processes that `pid` has started, and theirs, while its threads come and go. Linux only."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return found  # the process has ended since
    for task in tasks:
        try:
            children = (task / "children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended since
        for child in map(int, children.split()):
            found += [child, *child_processes(child)]
    return found


def events(response: requests.Response) -> Iterator[Any]:
    """The `data:` values of a streamed answer, as they come: parsed JSON, or the string "[DONE]"."""
    for line in response.iter_lines():
        if line.startswith(b"data: "):
            data = line[6:].decode("utf-8")
            yield data if data == "[DONE]" else json.loads(data)


class ServerProcess:
    """A running `llama_srv.py`, or `program`. Use `start_server`; a context manager that stops the process."""

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str] | None = None, program: Sequence[str] = ()
    ) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()  # guards _lines and _ended
        self._ended = False
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32" else {}
        self.command = [*(program or (sys.executable, str(ROOT / "llama_srv.py"))), *arguments]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **(environment or {})},
            text=True,
            encoding="utf-8",
            errors="replace",
            **own_group,
        )
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy, no .netrc: the server is on this machine
        self.url = ""

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """What the process has printed so far, both streams."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_line(self, pattern: str | re.Pattern[str], patience: float = PATIENCE) -> re.Match[str]:
        """The first match of `pattern` in a printed line; AssertionError if none comes before the end."""

        def find() -> re.Match[str] | None:
            return next((found for line in self._lines if (found := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: find() or self._ended, patience)
            found = find()
        if found is None:
            raise AssertionError(
                f"no line like {pattern!r} from {self.command} (exit code {self.process.poll()}):\n{self.log}"
            )
        return found

    def wait_ready(self, patience: float = PATIENCE) -> None:
        """Wait for `/health` to answer 200; AssertionError at once if the process ends or loading fails."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            try:
                status = self.get("/health").status_code
            except requests.ConnectionError:
                return False
            if status == 500:
                raise AssertionError(f"the server says that loading failed:\n{self.log}")
            return status == 200

        wait_until(ready, f"{self.url}/health to say 200", patience)

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET; `options` go to requests."""
        return self.session.get(self.url + path, **{"timeout": PATIENCE, **options})

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        """POST `body` as JSON; `options` go to requests."""
        return self.session.post(self.url + path, json=body, **{"timeout": PATIENCE, **options})

    def stream(self, path: str, body: dict[str, Any], **options: Any) -> Iterator[Any]:
        """POST with `"stream": true` and yield the events; closing the iterator closes the connection.

        A connection of its own, so that several threads can stream at once.
        """
        options = {"json": {**body, "stream": True}, "timeout": PATIENCE, "proxies": NO_PROXY, **options}
        with requests.post(self.url + path, stream=True, **options) as response:
            if response.status_code != 200:
                raise AssertionError(f"{path} answered {response.status_code}: {response.text}")
            yield from events(response)

    def complete(self, prompt: Any, n_predict: int = 16, **fields: Any) -> dict[str, Any]:
        """A plain greedy `/completion`; AssertionError unless it answers 200."""
        body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0, **fields}
        response = requests.post(self.url + "/completion", json=body, timeout=PATIENCE, proxies=NO_PROXY)
        if response.status_code != 200:
            raise AssertionError(f"/completion answered {response.status_code}: {response.text}")
        return response.json()

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        self.process.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)

    def terminate(self) -> None:
        """Ask the process to end: SIGTERM, or Ctrl-Break where there is no such thing."""
        self.process.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM)

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit code, once the process has ended and its output has been read."""
        code = self.process.wait(patience)
        self._reader.join(patience)
        return code

    def stop(self, patience: float = 30.0) -> int:
        """End the process if it still runs, by force at the deadline; the exit code. May be called again."""
        self.session.close()
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.wait()
        self.process.stdout.close()
        return code

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_server(
    arguments: Sequence[str | Path],
    *,
    environment: dict[str, str] | None = None,
    ready: bool = True,
    program: Sequence[str] = (),
) -> ServerProcess:
    """Start `llama_srv.py` with `arguments` on a free port and wait until it's ready to complete.

    With `ready=False` it only waits for the URL to be printed: the model may still be loading.
    """
    server = ServerProcess([*map(str, arguments), "--port", "0"], environment, program)
    try:
        server.url = server.wait_for_line(URL).group().rstrip("/.")
        if ready:
            server.wait_ready()
    except BaseException:
        server.stop(patience=0)
        raise
    return server


def run_command(
    arguments: Sequence[str | Path], *, environment: dict[str, str] | None = None, patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run `llama_srv.py` to its end (`--help`, a bad model...): `.returncode`, `.stdout`, `.stderr`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "llama_srv.py"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=patience,
        env={**os.environ, "PYTHONUTF8": "1", **(environment or {})},
        check=False,
    )
