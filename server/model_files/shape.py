"""A model as the planner of memory sees it: plain data, which `shape_reader` makes of headers."""

from __future__ import annotations

from server.records import record


@record(frozen=True)
class Layer:
    """One block. `weights` in bytes; `k`, `v`: numbers in the cache per cell; `state`: bytes per sequence."""

    weights: int
    k: int = 0
    v: int = 0
    state: int = 0
    is_windowed: bool = False


@record(frozen=True)
class Shape:
    """A model. `input` (embeddings), `output` (the head) and `pinned` (what the user keeps on the CPU) in bytes;
    widths in numbers; `n_vocab` is 0 where no logits are computed; `window` 0 without sliding windows. With
    `can_go_back` a context can keep states of some tokens ago."""

    layers: tuple[Layer, ...]
    input: int
    output: int
    pinned: int
    n_ctx_train: int
    n_embd: int
    n_ff: int
    n_head: int
    n_query: int
    n_vocab: int
    window: int = 0
    can_go_back: bool = False

    @property
    def weights(self) -> int:
        """All of them, once."""
        return self.input + self.output + self.pinned + sum(layer.weights for layer in self.layers)
