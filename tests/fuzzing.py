"""Settings for tests that try random input: a few seconds each in CI, many minutes with LLAMA_SRV_TEST_LONG=1.

Way not taken: a coverage-guided fuzzer. It finds more in a night, but needs an instrumented interpreter; Hypothesis
shrinks what it finds to the few bytes that matter, and the examples of CI are the same ones in every run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG_FACTOR = 30


def fuzz(n_examples: int) -> settings:
    """A decorator for `@given` tests: so many examples, thirty times as many in the long form."""
    factor = LONG_FACTOR if os.environ.get("LLAMA_SRV_TEST_LONG") == "1" else 1
    return settings(max_examples=n_examples * factor, deadline=None, suppress_health_check=list(HealthCheck))
