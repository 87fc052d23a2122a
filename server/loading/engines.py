"""Makes parts of a loaded model, for `app` (a server with one model) and for `starter` (with several).

Part of the composition root. Runs on the main thread at start, or on the thread of a load.
"""

from __future__ import annotations

import subprocess
from typing import Any

from server.engine.client import spawn
from server.engine.client.engine_client import Transport
from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.seam.config import EngineConfig, compute_patience, count_threads_and_cores
from server.log import get_logger
from server.options.groups import EngineOptions, ModelOptions

log = get_logger("app")


def with_advice(model: ModelOptions, advice: dict[str, Any]) -> ModelOptions:
    """Add the defaults of requests that the model's file recommends, and log them."""
    requests = model.requests.with_advice(advice)
    if requests.advised:
        log.info(
            "defaults of requests from the model's file: %s",
            ", ".join(f"{name} {format_default(requests.values[name])}" for name in advice if name in requests.advised),
        )
    return model.replace(requests=requests)


def format_default(value: object) -> str:
    """A default of requests as the log shows it."""
    return ";".join(value) if isinstance(value, tuple) else str(value)


def warn_of_threads(config: EngineConfig) -> None:
    """Warn if there are more compute threads than cores."""
    n_threads, n_cores = count_threads_and_cores(config)
    if n_threads > max(n_cores, 1):
        log.warning(
            "%d compute threads for %.3g cores (-t, -tb): threads without a core delay all others, and a step "
            "takes many times longer",
            n_threads,
            n_cores,
        )


def make_transport(
    options: EngineOptions, timeout_s: float, config: EngineConfig, process: subprocess.Popen | None
) -> Transport:
    """The transport that `--engine` chooses. `timeout_s` is the value of --engine-timeout."""
    step_s = timeout_s * compute_patience(config)
    if options.engine == "thread":
        from server.engine.entry.thread import ThreadTransport
        from server.engine.llama.backend import open_backend

        return ThreadTransport(config, open_backend, step_s)
    return ProcessTransport(config, spawn.make_engine_command(), Limits(step_s=step_s), process)


def open_vocab(config: EngineConfig) -> object:
    """Open the vocabulary in the web process. An engine must have opened the file without crashing before."""
    from server.engine.client import vocab

    return vocab.open_vocab(config.libs, config.model, config.model_offset)
