"""How many of a sequence's last tokens llama.cpp can drop now, in models whose state can't be cut.

Engine thread. With `llama_context_params::n_rs_seq` a context keeps a sequence's state as it was 1, 2, ... tokens ago.
Only states within the sequence's latest batch are valid, and only until one is restored. llama.cpp would restore others
without an error, so this module notes how far each sequence can go back.

Not taken: going back in all architectures for which llama.cpp allows it. A wrong state would show only in the text, so
only architectures that a test has compared go back (`shape_reader.GOES_BACK`).
"""

from __future__ import annotations

from collections.abc import Iterable

from server.engine.seam.config import EngineConfig
from server.engine.slots.planner import Span
from server.model_files.shape import Shape

MAX_BACK = 8  # tokens
MAX_BYTES = 256 << 20  # for the states of all slots


def count_back(config: EngineConfig, shape: Shape | None) -> int:
    """How many tokens a sequence should be able to drop."""
    if shape is None or not shape.can_go_back or not config.spec.lookup or config.exact or config.n_group > 1:
        return 0
    size = config.n_slots * sum(layer.state for layer in shape.layers)
    return max(0, min(MAX_BACK, min(config.n_ubatch, config.n_batch) - 2, MAX_BYTES // max(size, 1)))


class Rollback:
    """How far each sequence can go back now, `n` tokens at most."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._n_left: dict[int, int] = {}

    def note(self, spans: Iterable[Span]) -> None:
        """Note that these spans were evaluated."""
        if self.n:
            self._n_left |= {span.seq: min(len(span) - 1, self.n) for span in spans}

    def forget(self, seq: int) -> None:
        """Note that the sequence's state was replaced."""
        self._n_left.pop(seq, None)

    def take(self, seq: int, n_tokens: int) -> bool:
        """Whether the sequence can drop its last `n_tokens` tokens now, which the caller then does. Either way it can
        drop no more before its next batch."""
        return n_tokens <= 0 or n_tokens <= self._n_left.pop(seq, 0)
