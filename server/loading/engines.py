"""The parts of a loaded model that `app` makes for the one of most servers, and `starter` for each of several.

Main thread at start, else the thread of a load. A part of the composition.
"""

from __future__ import annotations

import subprocess
from typing import Any

from server.engine.client import spawn
from server.engine.client.engine_client import Transport
from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.seam.config import EngineConfig, patience, threads_and_cores
from server.log import get_logger
from server.options.groups import EngineOptions, ModelOptions

log = get_logger("app")


def with_advice(model: ModelOptions, advice: dict[str, Any]) -> ModelOptions:
    """The options with what the model's file advises for requests that don't say otherwise; a line tells of it."""
    requests = model.requests.with_advice(advice)
    if requests.advised:
        log.info(
            "requests that don't say otherwise get what the model's file advises: %s",
            ", ".join(f"{name} {shown(requests.values[name])}" for name in advice if name in requests.advised),
        )
    return model.replace(requests=requests)


def shown(value: object) -> str:
    """A default of requests in a line of the log."""
    return ";".join(value) if isinstance(value, tuple) else str(value)


def warn_of_threads(config: EngineConfig) -> None:
    """Say so if more threads are to compute than have a core."""
    n_threads, n_cores = threads_and_cores(config)
    if n_threads > max(n_cores, 1):
        log.warning(
            "%d threads and %.3g cores for them (-t, -tb): those without a core keep the others waiting, and a "
            "step takes many times longer",
            n_threads,
            n_cores,
        )


def make_transport(
    options: EngineOptions, timeout_s: float, config: EngineConfig, process: subprocess.Popen | None
) -> Transport:
    """The engine as `--engine` wants it; `timeout_s` is --engine-timeout."""
    step_s = timeout_s * patience(config)
    if options.engine == "thread":
        from server.engine.entry.thread import ThreadTransport
        from server.engine.llama.backend import open_backend

        return ThreadTransport(config, open_backend, step_s)
    return ProcessTransport(config, spawn.engine_command(), Limits(step_s=step_s), process)


def open_vocab(config: EngineConfig) -> object:
    """The vocabulary for the web process, once the engine has shown that the file can be opened."""
    from server.engine.client import vocab

    return vocab.open_vocab(config.libs, config.model, config.model_offset)
