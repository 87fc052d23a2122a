"""Settings for tests that try random input: a few seconds each in CI, many minutes with LLAMA_SRV_TEST_LONG=1.

Hypothesis knows the shape of what it makes, shrinks what it finds to the few bytes that matter, and tries the same
examples in every run of CI. What only coverage finds is searched for in `tests/guided`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG_FACTOR = 30


def fuzz(n_examples: int) -> settings:
    """A decorator for `@given` tests: so many examples, thirty times as many in the long form."""
    factor = LONG_FACTOR if os.environ.get("LLAMA_SRV_TEST_LONG") == "1" else 1
    return settings(max_examples=n_examples * factor, deadline=None, suppress_health_check=list(HealthCheck))
