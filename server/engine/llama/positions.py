"""How many positions a model has: most have as many as one likes, those with a learned table no more than its rows.

Engine thread, when a model is loaded. ggml reads the table's row for each token and ends the
process where there is none, so a slot of such a model never gets more cells than the table has rows. llama.cpp doesn't
say whether a model has one, so the file's header is read again, but only for architectures that may.
"""

from __future__ import annotations

from server.engine.seam.config import EngineConfig
from server.log import get_logger

TABLE = "position_embd.weight"
ARCHITECTURES = ("bert", "gpt2", "mpt", "starcoder")  # of llama.cpp v0.5.0, with a table always or sometimes
PADDING = 256  # llama.cpp makes contexts a multiple of that

log = get_logger("engine")


def learned_positions(architecture: str, config: EngineConfig) -> int:
    """The rows of the model's table of positions; 0 if it has none."""
    if architecture not in ARCHITECTURES:
        return 0
    from server.model_files import gguf  # here, because hardly any model gets here

    for part in gguf.read_all(config.model, span=(config.model_offset, config.model_size)):
        if TABLE in part.tensors:
            return part.tensors[TABLE].dims[1]
    return 0


def bounded_context(n_ctx: int, n_slots: int, n_positions: int) -> int:
    """The size of a context that was asked for, or what the slots can use of it."""
    most = n_positions * n_slots
    if not n_positions or n_ctx <= most:
        return n_ctx
    if n_ctx > -(-most // PADDING) * PADDING:
        log.warning(
            "the context is limited to %d tokens for each slot instead of %d: this model has learned "
            "positions, and no more of them",
            n_positions,
            n_ctx // n_slots,
        )
    return most
