"""Which browsers the browser tests run in: those on the scripted server in both, those on a real one in Chromium.

Runs in the test process. A real server answers both alike, so what a second browser could find out is found on
answers that cost nothing. LLAMA_SRV_TEST_BROWSER=firefox runs all of them in Firefox, and only there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.webdriver import Browsers

KINDS = ("chromium", "firefox")


@pytest.fixture(scope="session")
def browsers() -> Iterator[Browsers]:
    """The browsers of this run."""
    with Browsers() as running:
        yield running


@pytest.fixture
def browser_kind() -> str:
    """The browser that a test runs in."""
    return os.environ.get("LLAMA_SRV_TEST_BROWSER", "chromium")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with a browser and a scripted server run once in each browser."""
    if {"browser", "scripted"} <= set(metafunc.fixturenames) and "LLAMA_SRV_TEST_BROWSER" not in os.environ:
        metafunc.parametrize("browser_kind", KINDS)
