"""Which browsers the browser tests run in: those on the scripted server in both; of those on a real one all in Chromium,
and those of what everybody does (`both_browsers`) in Firefox, too.

Runs in the test process. A real server answers both alike, so most of what a second browser could find out is found on
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
    """Tests that are for both browsers run once in each."""
    is_scripted = {"browser", "scripted"} <= set(metafunc.fixturenames)
    is_for_both = is_scripted or metafunc.definition.get_closest_marker("both_browsers") is not None
    if is_for_both and "LLAMA_SRV_TEST_BROWSER" not in os.environ:
        metafunc.parametrize("browser_kind", KINDS)
