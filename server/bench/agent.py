"""The workload `agent`: the steps of `agent_loop`, one request after the other, each with the whole history.

Main thread of the measuring process. Whatever the model answers, each prompt has the session's history, and each answer
is as long as the session's. Only a model that gives the session's answers (`python -m tests.recited_loop` makes one of
any size) shows the gain from speculative decoding.
"""

from __future__ import annotations

from typing import Any

from server.bench.agent_loop import STEPS, make_prompts
from server.bench.client import Ask

WARM_UP = Ask("Once upon a time", 8, {"temperature": 0.0})
FIELDS = {"temperature": 0.0}


def run(peer: Any, plan: Any) -> tuple:
    """Tokens per second: from the first to the last token of each answer, and over whole requests."""
    peer.generate([WARM_UP])
    steps = make_prompts(min(plan.count(len(STEPS)), len(STEPS)))
    n_tokens, generating, whole = 0, 0.0, 0.0
    for prompt, answer in steps:
        (said,) = peer.generate([Ask(prompt, len(peer.tokenize(answer)[0]), FIELDS)])
        n_tokens += said.n_predicted
        generating += said.arrivals[-1] - said.arrivals[0]
        whole += said.ended
    return (n_tokens - len(steps)) / generating, n_tokens / whole
