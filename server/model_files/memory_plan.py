"""Does a model fit into memory, and with how much context and how many layers on the GPU? Numbers in, a plan out.

Pure; runs where the engine is about to load, and for `--dry-run`. Choosing follows llama.cpp's `--fit`: what the
user has set stays; an open context is the model's own if there is room, else smaller, down to `fit_ctx`; open layers
stay on the CPU if even that is too much for the GPUs. What can't fit is refused with numbers, because the
alternative is an allocation that fails after minutes of loading, or a machine that swaps.

The estimate of the cache is exact; of llama.cpp's working memory it has the three moments at which most is alive
(fitted to v0.5.0 over models from 0.3 M to 1.1 B; a native test compares). Programs and libraries are left to the
margin.
"""

from __future__ import annotations

from server.model_files.shape import Layer, Shape
from server.model_files.tensor_types import TYPES
from server.records import record, replace

__all__ = ["MIB", "Place", "Plan", "Wish", "cache_bytes", "compute_bytes", "plan"]

MIB = 1 << 20
CELLS = 256  # llama.cpp rounds contexts up to multiples of this
DEFAULT_MARGIN = 1024 * MIB
MARGIN_PART = 8  # of a small memory, an eighth is margin enough
CONTEXT_PART = 2  # an open context takes at most half of what weights leave of the host's memory
MIN_CTX_SLOT = 256
USEFUL_CTX = 1 << 20  # tokens; what a header claims beyond that is left to --ctx-size
CREDIBLE_CTX = 1 << 24  # no model has been trained for so many: what claims more claims nothing
UNKNOWN_CTX = 16384


@record(frozen=True)
class Place:
    """Memory that can be used: the host's, or a device's. `is_shared`: a device whose memory is the host's."""

    name: str
    free: int
    is_shared: bool = False


@record(frozen=True)
class Wish:
    """What is asked for; None is open. `n_ctx` counts all slots together, 0 is the model's own. `type_k`, `type_v` are
    keys of `tensor_types.TYPES`; `margins` in bytes, one per place or one for all; `extra` bytes for adapters and such.
    `is_split`: each slot has a part of the cache for itself; `n_back` older states are kept of each sequence; `embeds`:
    a second context computes embeddings of texts as long as a slot's context; `draft`: a small model with as much
    context, whose memory is the host's here, with its own types. What `embeds` and `draft` add is theirs from the
    start."""

    n_slots: int = 1
    n_ctx: int | None = None
    n_gpu_layers: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_outputs: int = 0
    type_k: int = 1
    type_v: int = 1
    is_flash: bool = True
    is_window_full: bool = True
    is_cache_on_gpu: bool = True
    is_split: bool = False
    n_back: int = 0
    embeds: bool = False
    fit_ctx: int = 4096
    margins: tuple[int, ...] = ()
    extra: int = 0
    draft: Shape | None = None
    draft_type_k: int = 1
    draft_type_v: int = 1


@record(frozen=True)
class Row:
    """What goes into one place, in bytes."""

    place: Place
    weights: int
    cache: int
    compute: int

    @property
    def used(self) -> int:
        """Together."""
        return self.weights + self.cache + self.compute

    @property
    def left(self) -> int:
        """What stays free; negative if it doesn't fit."""
        return self.place.free - self.used


@record(frozen=True)
class Plan:
    """`n_ctx` for all slots together; `n_gpu_layers` counts the head as one; `fault` says why it can't be."""

    n_ctx: int
    n_slots: int
    n_gpu_layers: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    fault: str = ""

    def lines(self) -> list[str]:
        """The plan as a table for people."""
        rows = [
            (row.place.name, *map(_mib, (row.weights, row.cache, row.compute, row.used, row.place.free)))
            for row in self.rows
        ]
        head = ("MiB", "weights", "cache", "compute", "together", "free")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        table = [
            "  ".join(f"{cell:<{w}}" if not i else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
            for row in (head, *rows)
        ]
        slots = f"{self.n_slots} slot{'s' if self.n_slots > 1 else ''}"
        return [*table, f"context: {self.n_ctx} tokens for {slots}", *self.notes]


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.0f}" if n_bytes >= 10 * MIB else f"{n_bytes / MIB:.1f}"


def plan(shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...] = ()) -> Plan:
    """Choose what is open so that it fits; `Plan.fault` says if it can't."""
    n_most = len(shape.layers) + 1
    n_layers = n_most if wish.n_gpu_layers is None else min(wish.n_gpu_layers, n_most)
    n_layers = n_layers if gpus else 0
    open_ctx = useful_context(shape.n_ctx_train) * wish.n_slots
    largest = _rounded(open_ctx if wish.n_ctx is None else wish.n_ctx or shape.n_ctx_train)
    smallest = largest if wish.n_ctx is not None else min(largest, _rounded(wish.fit_ctx * wish.n_slots))
    for layers in range(n_layers, -1, -1):
        for floor in (smallest, _rounded(min(MIN_CTX_SLOT * wish.n_slots, smallest))):
            is_last = layers == 0 or wish.n_gpu_layers is not None
            if floor < smallest and not (is_last and wish.n_ctx is None):
                continue  # rather fewer layers on the GPU than a tiny context
            n_ctx = _largest_fitting(shape, wish, host, gpus, layers, (floor, largest))
            if n_ctx:
                return _plan(shape, wish, host, gpus, layers, n_ctx)
        if wish.n_gpu_layers is not None:
            break
    return _refused(_plan(shape, wish, host, gpus, n_layers if wish.n_gpu_layers is not None else 0, smallest), wish)


def useful_context(n_claimed: int) -> int:
    """What a slot gets of the context that a header claims, where nothing else is asked for and there is room."""
    return min(n_claimed, USEFUL_CTX) if n_claimed <= CREDIBLE_CTX else UNKNOWN_CTX


def _rounded(n_ctx: int) -> int:
    return -(-max(n_ctx, 1) // CELLS) * CELLS


def _largest_fitting(
    shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...], layers: int, span: tuple[int, int]
) -> int:
    """The largest context between the two that fits, 0 if none does. An open one also leaves room on the host."""

    def fits(n_ctx: int) -> bool:
        rows = _rows(shape, wish, host, gpus, layers, n_ctx)
        if any(row.used and row.left < _margin(wish, i, row.place) for i, row in enumerate(rows)):
            return False
        own = rows[0]
        is_modest = (own.cache + own.compute) * CONTEXT_PART <= own.place.free - _margin(
            wish, 0, own.place
        ) - own.weights
        return wish.n_ctx is not None or is_modest or n_ctx <= _rounded(wish.fit_ctx * wish.n_slots)

    low, high = span[0] // CELLS, span[1] // CELLS
    if not fits(low * CELLS):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * CELLS) else (low, middle - 1)
    return low * CELLS


def _margin(wish: Wish, i: int, place: Place) -> int:
    """Bytes to leave free in place `i` (0 is the host). What the user has set himself may use it all."""
    if wish.margins:
        # as in llama.cpp the values are the GPUs'; the host, alone or with them, takes the first
        return wish.margins[min(max(i - 1, 0), len(wish.margins) - 1)]
    if wish.n_ctx is not None and (wish.n_gpu_layers is not None or not i):
        return 0
    return min(DEFAULT_MARGIN, place.free // MARGIN_PART)


def _plan(shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...], layers: int, n_ctx: int) -> Plan:
    notes = []
    useful = useful_context(shape.n_ctx_train)
    wanted = _rounded(useful * wish.n_slots)
    if wish.n_ctx is None and useful < shape.n_ctx_train:
        notes.append(
            f"the header claims a context of {shape.n_ctx_train} tokens, which is beyond use: taken for {useful}"
        )
    if wish.n_ctx is None and n_ctx < wanted:
        notes.append(f"the model could use {wanted} tokens; --ctx-size takes more than half of the free memory")
    if gpus:
        notes.append(f"{layers} of {len(shape.layers) + 1} layers on the GPU")
    if shape.window and wish.is_window_full:
        notes.append(f"layers with a window of {shape.window} tokens keep all positions")
    return Plan(n_ctx, wish.n_slots, layers, _rows(shape, wish, host, gpus, layers, n_ctx), tuple(notes))


def _refused(plan_: Plan, wish: Wish) -> Plan:
    row = min(plan_.rows, key=lambda row: row.left)
    ways = ["a smaller --ctx-size"] if wish.n_ctx is None or wish.n_ctx > CELLS else []
    ways += ["fewer --n-gpu-layers"] if row is not plan_.rows[0] else []
    ways += ["a model with smaller weights"]
    return replace(
        plan_,
        fault=(
            f"the model doesn't fit: {row.place.name} would need {_mib(row.used)} MiB (weights {_mib(row.weights)}, "
            f"cache {_mib(row.cache)} for {plan_.n_ctx} tokens, compute {_mib(row.compute)}) and has "
            f"{_mib(row.place.free)} free; take {', '.join(ways)}, or --fit off to try nevertheless"
        ),
    )


# ---- who takes how much ----------------------------------------------------------------------------------------------


def _rows(shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...], n_layers: int, n_ctx: int) -> tuple[Row, ...]:
    """The host first, then each GPU. llama.cpp puts the last layers and the head on the GPUs, split by free memory."""
    first = len(shape.layers) - max(n_layers - 1, 0)  # the head counts as a layer, and goes first
    staying, going = shape.layers[:first], shape.layers[first:]
    compute = compute_bytes(shape, wish, n_ctx)
    if wish.embeds:  # in batches of which each row is an output
        compute += compute_bytes(shape, replace(wish, n_batch=wish.n_ubatch, n_outputs=wish.n_ubatch), n_ctx)
    rows, shared = [], 0
    for place, layers, has_head in _shares(going, gpus):
        if not n_layers:
            rows.append(Row(place, 0, 0, 0))
            continue
        weights = sum(layer.weights for layer in layers)
        weights += (shape.output or shape.input) if has_head else 0
        cache = cache_bytes(layers, wish, n_ctx, shape.window) if wish.is_cache_on_gpu else 0
        rows.append(Row(place, weights, cache, compute))
        shared += rows[-1].used if place.is_shared else 0
    on_host = staying if wish.is_cache_on_gpu else shape.layers
    weights = shape.input + shape.pinned + wish.extra + sum(layer.weights for layer in staying)
    weights += 0 if n_layers else shape.output
    is_idle = n_layers and not staying and wish.is_cache_on_gpu
    compute = compute // 8 if is_idle else compute  # a host that only feeds GPUs holds their inputs
    cache = cache_bytes(on_host, wish, n_ctx, shape.window)
    more_cache, more_compute = _draft_bytes(wish, n_ctx)
    own = Row(replace(host, free=host.free - shared), weights, cache + more_cache, compute + more_compute)
    return own, *rows


def _draft_bytes(wish: Wish, n_ctx: int) -> tuple[int, int]:
    """Cache and working memory of the draft model; its weights are in `extra`."""
    if wish.draft is None:
        return 0, 0
    own = replace(wish, type_k=wish.draft_type_k, type_v=wish.draft_type_v, embeds=False, n_outputs=0)
    return (cache_bytes(wish.draft.layers, own, n_ctx, wish.draft.window), compute_bytes(wish.draft, own, n_ctx))


def _shares(layers: tuple[Layer, ...], gpus: tuple[Place, ...]) -> list[tuple[Place, tuple[Layer, ...], bool]]:
    """(GPU, its layers, whether it has the head): contiguous, in proportion to free memory, the last has the head."""
    total = sum(gpu.free for gpu in gpus) or 1
    shares, at, reached = [], 0, 0
    for gpu in gpus:
        reached += gpu.free
        end = len(layers) if gpu is gpus[-1] else round(len(layers) * reached / total)
        shares.append((gpu, layers[at:end], gpu is gpus[-1]))
        at = end
    return shares


def cache_bytes(layers: tuple[Layer, ...], wish: Wish, n_ctx: int, window: int = 0) -> int:
    """Keys, values and states of these layers. In one cache for all there is a sequence more, the system prompt's."""
    n_seqs, n_slot = wish.n_slots + (not wish.is_split), -(-n_ctx // wish.n_slots)
    n_ctx = _rounded(n_slot) * n_seqs if wish.is_split else n_ctx
    n_ctx += n_slot + wish.n_ubatch if wish.embeds else 0
    n_window = n_ctx if wish.is_window_full or not window else min(n_ctx, _rounded(window * n_seqs + wish.n_ubatch))
    return sum(
        (_row_bytes(layer.k, wish.type_k) + _row_bytes(layer.v, wish.type_v))
        * (n_window if layer.is_windowed else n_ctx)
        + layer.state * n_seqs * (1 + wish.n_back)
        for layer in layers
    )


def _row_bytes(n: int, kind: int) -> int:
    _, block, n_bytes = TYPES[kind]
    return -(-n // block) * n_bytes


def compute_bytes(shape: Shape, wish: Wish, n_ctx: int) -> int:
    """llama.cpp's working memory on a device, and its buffer of logits: what is alive at the worst moment.

    Per row of a batch, in numbers of 4 bytes. During the feed-forward net: three rows of its width and four of the
    model's (two where the net is narrow enough for what was freed before). During attention: three of the model's, two
    of the queries, the keys, and without flash attention the values and a row of scores per head. At the end: the
    logits. The mask, a number for each cell, lives through the first two.
    """
    n_batch = min(max(wish.n_batch, wish.n_slots), n_ctx)
    rows = min(wish.n_ubatch, n_batch)
    is_recurrent = any(layer.state for layer in shape.layers)  # and looks at nothing else, if no layer has keys
    n_looked_at = _rounded(-(-n_ctx // wish.n_slots)) if wish.is_split else n_ctx
    n_cells = n_looked_at if any(layer.k for layer in shape.layers) else 0 if is_recurrent else rows
    kinds = {layer.is_windowed for layer in shape.layers if layer.k}
    mask = n_cells * (2 if wish.is_flash else 4) * max(len(kinds), 1)
    scores = 0 if wish.is_flash else 4 * n_cells * shape.n_head
    feed_forward = 4 * (3 * shape.n_ff + (4 if shape.n_ff > shape.n_embd else 2) * shape.n_embd) + mask
    n_kv = max((layer.k for layer in shape.layers), default=0) * (1 if wish.is_flash else 2)
    attention = 4 * (3 * shape.n_embd + 2 * shape.n_query + n_kv) + scores + mask
    n_outputs = min(rows, wish.n_outputs or n_batch)
    ending = n_outputs * 4 * (shape.n_vocab + 2 * shape.n_embd)
    return max(rows * max(feed_forward, attention), ending) + 4 * (wish.n_slots + 1) * shape.n_vocab
