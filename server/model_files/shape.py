"""The properties of a model that the plan of memory needs: plain data, read from headers by `shape_reader`."""

from __future__ import annotations

from server.records import record


@record(frozen=True)
class Layer:
    weights: int  # bytes
    k: int = 0  # numbers of a key per KV cell
    v: int = 0  # numbers of a value per KV cell
    state: int = 0  # bytes of recurrent state per sequence
    is_windowed: bool = False  # its attention has a sliding window


@record(frozen=True)
class Shape:
    layers: tuple[Layer, ...]
    input: int  # bytes of embeddings and all else
    output: int  # bytes of the head; 0: it uses the embeddings
    pinned: int  # bytes of tensors that options keep on the CPU
    n_ctx_train: int  # tokens
    n_embd: int  # numbers of a row between layers
    n_ff: int  # numbers of the widest hidden row
    n_head: int
    n_query: int  # numbers of all heads' queries
    n_vocab: int  # tokens; 0: the model computes no logits
    window: int = 0  # tokens of a sliding window; 0: none
    can_go_back: bool = False  # a context can keep older recurrent states

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return self.input + self.output + self.pinned + sum(layer.weights for layer in self.layers)
