"""The pool that compute threads wait in between two graphs.

Engine's thread, when the backend opens. A part of the backend (it knows `ctypes_api`). Without a pool ggml starts its
threads anew for each graph, and a step has a graph for each micro-batch (for each change between CPU and GPU, too):
that is a thirtieth of a step of a small model. All contexts share one pool, since they compute one after the other.

Not taken: threads that poll between two steps by default, as llama-server's do: the web process and the clients need
that core just then (`--poll` is for machines that have enough of them).
"""

from __future__ import annotations

from ctypes import c_bool

from ctypes_api.ggml import GGML_MAX_N_THREADS
from ctypes_api.loader import Libs
from ctypes_api.objects import Threadpool
from server.engine.seam.config import EngineConfig, thread_counts


def open_pool(libs: Libs, config: EngineConfig) -> Threadpool | None:
    """The pool; None where one thread computes, which is the engine's own, and nothing is wanted of it."""
    n_threads = max(thread_counts(config))
    if n_threads == 1 and not config.pool_params:
        return None
    fields = {"poll": 0, **config.pool_params}
    cpus = fields.get("cpumask", ())
    if cpus:
        fields["cpumask"] = (c_bool * GGML_MAX_N_THREADS)(*(cpu in cpus for cpu in range(GGML_MAX_N_THREADS)))
    return Threadpool(libs, n_threads, **fields)
