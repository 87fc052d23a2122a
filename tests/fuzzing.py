"""Settings for tests with random input: a few seconds each in CI, many minutes with LLAMA_SRV_TEST_LONG=1.

Hypothesis generates structured input, reduces failures to minimal ones, and tries the same examples in every run of CI.
`tests/guided` searches for failures that need feedback from coverage.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG_FACTOR = 30


def fuzz(n_examples: int) -> settings:
    """A decorator for `@given` tests: so many examples, thirty times as many in the long form."""
    factor = LONG_FACTOR if os.environ.get("LLAMA_SRV_TEST_LONG") == "1" else 1
    return settings(max_examples=n_examples * factor, deadline=None, suppress_health_check=list(HealthCheck))
