"""The imports of each process at its start: limits the time to start without measuring it.

Each module listed here was once imported for a rare feature, and cost every start some milliseconds.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

RARE = (
    "argparse",
    "asyncio",
    "dataclasses",
    "difflib",
    "inspect",
    "multiprocessing",
    "unittest",
    "webbrowser",
    "urllib.request",
    "server.bench",
    "server.download",
)
HTTP = ("http.client", "http.server", "email.parser", "ssl", "server.web", "server.api", "server.chat")
ENGINE = ("server.engine.loop.scheduler", "server.engine.llama.backend", "server.engine.entry.thread")


@pytest.mark.parametrize(
    "module, not_imported",
    [
        # before the engine's process is started
        (
            "server.launch",
            (
                *RARE,
                *HTTP,
                *ENGINE,
                "ctypes",
                "logging",
                "shutil",
                "textwrap",
                "server.log",
                "server.engine.seam.task",
                "server.model_files.gguf",
            ),
        ),
        # before the engine is told what to load
        ("server.app", (*RARE, *HTTP, *ENGINE, "ctypes", "shlex")),
        # while it loads
        (
            "server.serving",
            (*RARE, *ENGINE, "server.chat.jinja", "server.grammar.json_schema.convert", "server.grammar.gbnf"),
        ),
        # the engine's process, before it takes its configuration; its scheduler comes while libllama loads
        ("server.engine.entry.process", (*RARE, *HTTP, *ENGINE, "server.options.parser", "server.model_files.gguf")),
        (
            "server.engine.llama.backend",
            (
                *RARE,
                *HTTP,
                "server.engine.loop.scheduler",
                "server.options.parser",
                "server.model_files.gguf",
                "hashlib",
                "subprocess",
                "server.engine.llama.mtmd",
            ),
        ),
        ("server.engine.loop.scheduler", (*RARE, *HTTP, "server.options.parser", "statistics", "shutil", "hashlib")),
    ],
)
def test_nothing_is_imported_that_can_wait(module: str, not_imported: tuple[str, ...]):
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    found = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = found.stdout.split()
    assert module in loaded
    assert [name for name in loaded if any(name == rare or name.startswith(rare + ".") for rare in not_imported)] == []
