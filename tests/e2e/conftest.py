"""Chooses the browsers for the browser tests. Tests on the scripted server run in Chromium and Firefox. Tests on a real
server run in Chromium; those of everyday use (`both_browsers`) also in Firefox.

Runs in the test process. Both browsers get the same answers from a real server, so the cheap scripted ones are enough
to find most differences. LLAMA_SRV_TEST_BROWSER=firefox runs all tests in Firefox only.
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
    """Tests that are for both browsers run once in each."""
    is_scripted = {"browser", "scripted"} <= set(metafunc.fixturenames)
    is_for_both = is_scripted or metafunc.definition.get_closest_marker("both_browsers") is not None
    if is_for_both and "LLAMA_SRV_TEST_BROWSER" not in os.environ:
        metafunc.parametrize("browser_kind", KINDS)
