"""Going back by a few tokens in models whose state can't be cut: how far llama.cpp can, and when.

Engine thread. `llama_context_params::n_rs_seq` has a context keep a sequence's state as it was 1, 2, ... tokens ago.
Only those of its latest batch are true, and only once: what is older in their places belongs to other tokens, and
llama.cpp would put it back without a word. So it is noted here what each sequence can go back to.

Not taken: all architectures that llama.cpp lists for it. Guesses are on without being asked for, and a wrong state
would show in nothing but the text, so there are those that a test has compared (`shape_reader.GOES_BACK`).
"""

from __future__ import annotations

from collections.abc import Iterable

from server.engine.seam.config import EngineConfig
from server.engine.slots.planner import Span
from server.model_files.shape import Shape

MAX_BACK = 8
MAX_BYTES = 256 << 20  # of states, all slots together


def n_back(config: EngineConfig, shape: Shape | None) -> int:
    """By how many tokens a sequence shall be able to go back; 0 for none."""
    if shape is None or not shape.can_go_back or not config.spec.lookup or config.exact or config.n_group > 1:
        return 0
    size = config.n_slots * sum(layer.state for layer in shape.layers)
    return max(0, min(MAX_BACK, min(config.n_ubatch, config.n_batch) - 2, MAX_BYTES // max(size, 1)))


class Rollback:
    """Which of the latest states can be gone back to, `n` at most."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._n_left: dict[int, int] = {}

    def note(self, spans: Iterable[Span]) -> None:
        """These rows were evaluated."""
        if self.n:
            self._n_left |= {span.seq: min(len(span) - 1, self.n) for span in spans}

    def forget(self, seq: int) -> None:
        """The sequence was filled otherwise."""
        self._n_left.pop(seq, None)

    def take(self, seq: int, n_tokens: int) -> bool:
        """Whether the sequence can go back by so many tokens now. It can't do that again before the next batch."""
        return n_tokens <= 0 or n_tokens <= self._n_left.pop(seq, 0)
