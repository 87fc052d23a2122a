"""Plans a model's memory: the size of the context and the number of layers on GPUs with which the model fits.

Pure. Runs before a load, in the engine or (with several models) the web process, and for `--dry-run`. It chooses like
llama.cpp's `--fit`. Values set by the user stay. Without `--ctx-size` the context is the model's own if there is room,
else smaller, down to `fit_ctx` tokens per slot. If even that doesn't fit the GPUs, and the user set no number of
layers, some layers stay on the CPU. The last try is `MIN_CTX_SLOT` tokens per slot. A model that can't fit is refused:
otherwise loading would fail after minutes, or the machine would swap.

The size of llama.cpp's compute buffers is estimated (`compute_bytes`, fitted to v0.5.0). The margin covers the program
and the libraries.
"""

from __future__ import annotations

from server.model_files.shape import Layer, Shape
from server.model_files.tensor_types import TYPES
from server.records import record, replace

__all__ = ["MIB", "Place", "Plan", "Wish", "count_cache_bytes", "compute_bytes", "plan"]

MIB = 1 << 20
CELLS = 256  # tokens; llama.cpp rounds contexts up to a multiple of this
DEFAULT_MARGIN = 1024 * MIB
MARGIN_PART = 8  # the margin is at most an eighth of a memory's free bytes
CONTEXT_PART = 2  # without --ctx-size the context takes at most half of the host's memory that weights leave
MIN_CTX_SLOT = 256  # tokens
USEFUL_CTX = 1 << 20  # tokens of a slot; only --ctx-size allows more
CREDIBLE_CTX = 1 << 24  # tokens; a header with more is wrong, and the slot gets UNKNOWN_CTX
UNKNOWN_CTX = 16384  # tokens


@record(frozen=True)
class Place:
    """A memory: the host's, or a device's."""

    name: str
    free: int  # bytes
    is_shared: bool = False  # a device that uses the host's memory


@record(frozen=True)
class Wish:
    """The settings that decide how much memory a model takes. None: to be chosen."""

    n_slots: int = 1
    n_ctx: int | None = None  # tokens of all slots together; 0: the model's own context
    n_gpu_layers: int | None = None
    n_batch: int = 2048  # rows
    n_ubatch: int = 512  # rows
    n_outputs: int = 0  # rows of a batch with logits; 0: all
    type_k: int = 1  # a key of `tensor_types.TYPES`
    type_v: int = 1
    is_flash: bool = True  # flash attention
    is_window_full: bool = True  # layers with sliding windows keep all positions
    is_cache_on_gpu: bool = True
    is_split: bool = False  # each slot has a part of the KV cache to itself
    n_back: int = 0  # older recurrent states kept per sequence
    embeds: bool = False  # a second context embeds texts as long as a slot's context
    fit_ctx: int = 4096  # tokens of context per slot that take precedence over layers on GPUs
    margins: tuple[int, ...] = ()  # bytes to leave free, one per GPU or one for all
    extra: int = 0  # bytes of adapters and other files
    draft: Shape | None = None  # a draft model with as much context, planned in the host's memory
    draft_type_k: int = 1
    draft_type_v: int = 1


@record(frozen=True)
class Row:
    """The use of one memory, in bytes."""

    place: Place
    weights: int
    cache: int
    compute: int

    @property
    def used(self) -> int:
        return self.weights + self.cache + self.compute

    @property
    def left(self) -> int:
        """The rest of the free memory; negative if the model doesn't fit."""
        return self.place.free - self.used


@record(frozen=True)
class Plan:
    """How to load a model."""

    n_ctx: int  # tokens of all slots together
    n_slots: int
    n_gpu_layers: int  # the head counts as one
    rows: tuple[Row, ...]  # the host's first
    notes: tuple[str, ...] = ()
    fault: str = ""  # why the model can't fit; "": it fits

    def render_lines(self) -> list[str]:
        rows = [
            (row.place.name, *map(_format_mib, (row.weights, row.cache, row.compute, row.used, row.place.free)))
            for row in self.rows
        ]
        head = ("MiB", "weights", "cache", "compute", "sum", "free")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        table = [
            "  ".join(f"{cell:<{w}}" if not i else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
            for row in (head, *rows)
        ]
        slots = f"{self.n_slots} slot{'s' if self.n_slots > 1 else ''}"
        return [*table, f"context: {self.n_ctx} tokens for {slots}", *self.notes]


def _format_mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.0f}" if n_bytes >= 10 * MIB else f"{n_bytes / MIB:.1f}"


def plan(shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...] = ()) -> Plan:
    """Choose the open settings so that the model fits. `Plan.fault` is set if it can't."""
    n_most = len(shape.layers) + 1
    n_layers = n_most if wish.n_gpu_layers is None else min(wish.n_gpu_layers, n_most)
    n_layers = n_layers if gpus else 0
    open_ctx = choose_useful_context(shape.n_ctx_train) * wish.n_slots
    largest = _round_up(open_ctx if wish.n_ctx is None else wish.n_ctx or shape.n_ctx_train)
    smallest = largest if wish.n_ctx is not None else min(largest, _round_up(wish.fit_ctx * wish.n_slots))
    for layers in range(n_layers, -1, -1):
        for floor in (smallest, _round_up(min(MIN_CTX_SLOT * wish.n_slots, smallest))):
            is_last = layers == 0 or wish.n_gpu_layers is not None
            if floor < smallest and not (is_last and wish.n_ctx is None):
                continue  # try fewer layers on the GPU before a tiny context
            n_ctx = _find_largest_fitting(shape, wish, host, gpus, layers, (floor, largest))
            if n_ctx:
                return _plan(shape, wish, host, gpus, layers, n_ctx)
        if wish.n_gpu_layers is not None:
            break
    return _refuse_plan(
        _plan(shape, wish, host, gpus, n_layers if wish.n_gpu_layers is not None else 0, smallest), wish
    )


def choose_useful_context(n_claimed: int) -> int:
    """The tokens of a slot's context without --ctx-size, if there is room. `n_claimed` is the header's."""
    return min(n_claimed, USEFUL_CTX) if n_claimed <= CREDIBLE_CTX else UNKNOWN_CTX


def _round_up(n_ctx: int) -> int:
    return -(-max(n_ctx, 1) // CELLS) * CELLS


def _find_largest_fitting(
    shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...], layers: int, span: tuple[int, int]
) -> int:
    """The largest context within `span` that fits; 0 if none does. Without --ctx-size `CONTEXT_PART` limits it."""

    def can_fit(n_ctx: int) -> bool:
        rows = _make_rows(shape, wish, host, gpus, layers, n_ctx)
        if any(row.used and row.left < _choose_margin(wish, i, row.place) for i, row in enumerate(rows)):
            return False
        own = rows[0]
        is_modest = (own.cache + own.compute) * CONTEXT_PART <= own.place.free - _choose_margin(
            wish, 0, own.place
        ) - own.weights
        return wish.n_ctx is not None or is_modest or n_ctx <= _round_up(wish.fit_ctx * wish.n_slots)

    low, high = span[0] // CELLS, span[1] // CELLS
    if not can_fit(low * CELLS):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if can_fit(middle * CELLS) else (low, middle - 1)
    return low * CELLS


def _choose_margin(wish: Wish, i: int, place: Place) -> int:
    """Bytes to leave free in memory `i` (0: the host). Without `margins`, 0 if the user has set all that goes there."""
    if wish.margins:
        # as in llama.cpp the values are the GPUs'; the host has the first one's
        return wish.margins[min(max(i - 1, 0), len(wish.margins) - 1)]
    if wish.n_ctx is not None and (wish.n_gpu_layers is not None or not i):
        return 0
    return min(DEFAULT_MARGIN, place.free // MARGIN_PART)


def _plan(shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...], layers: int, n_ctx: int) -> Plan:
    notes = []
    useful = choose_useful_context(shape.n_ctx_train)
    wanted = _round_up(useful * wish.n_slots)
    if wish.n_ctx is None and useful < shape.n_ctx_train:
        notes.append(f"the header says {shape.n_ctx_train} tokens of context; {useful} are used (--ctx-size sets more)")
    if wish.n_ctx is None and n_ctx < wanted:
        notes.append(f"the model can use {wanted} tokens; only --ctx-size takes more than half of the free memory")
    if gpus:
        notes.append(f"{layers} of {len(shape.layers) + 1} layers on the GPU")
    if shape.window and wish.is_window_full:
        notes.append(f"layers with a window of {shape.window} tokens keep all positions")
    return Plan(n_ctx, wish.n_slots, layers, _make_rows(shape, wish, host, gpus, layers, n_ctx), tuple(notes))


def _refuse_plan(plan_: Plan, wish: Wish) -> Plan:
    row = min(plan_.rows, key=lambda row: row.left)
    ways = ["a smaller --ctx-size"] if wish.n_ctx is None or wish.n_ctx > CELLS else []
    ways += ["fewer --n-gpu-layers"] if row is not plan_.rows[0] else []
    ways += ["a model with smaller weights"]
    return replace(
        plan_,
        fault=(
            f"the model doesn't fit: {row.place.name} would need {_format_mib(row.used)} MiB "
            f"(weights {_format_mib(row.weights)}, "
            f"cache {_format_mib(row.cache)} for {plan_.n_ctx} tokens, compute {_format_mib(row.compute)}) and has "
            f"{_format_mib(row.place.free)} free; use {', '.join(ways)}, or --fit off to try it anyway"
        ),
    )


# ---- how much each part takes ----------------------------------------------------------------------------------------


def _make_rows(
    shape: Shape, wish: Wish, host: Place, gpus: tuple[Place, ...], n_layers: int, n_ctx: int
) -> tuple[Row, ...]:
    """The host's row, then the GPUs'. llama.cpp puts the last layers and the head on the GPUs, split by free memory."""
    first = len(shape.layers) - max(n_layers - 1, 0)  # the head counts as a layer, the first to go to a GPU
    staying, going = shape.layers[:first], shape.layers[first:]
    compute = compute_bytes(shape, wish, n_ctx)
    if wish.embeds:  # each row of its batches is an output
        compute += compute_bytes(shape, replace(wish, n_batch=wish.n_ubatch, n_outputs=wish.n_ubatch), n_ctx)
    rows, shared = [], 0
    for place, layers, has_head in _compute_shares(going, gpus):
        if not n_layers:
            rows.append(Row(place, 0, 0, 0))
            continue
        weights = sum(layer.weights for layer in layers)
        weights += (shape.output or shape.input) if has_head else 0
        cache = count_cache_bytes(layers, wish, n_ctx, shape.window) if wish.is_cache_on_gpu else 0
        rows.append(Row(place, weights, cache, compute))
        shared += rows[-1].used if place.is_shared else 0
    on_host = staying if wish.is_cache_on_gpu else shape.layers
    weights = shape.input + shape.pinned + wish.extra + sum(layer.weights for layer in staying)
    weights += 0 if n_layers else shape.output
    is_idle = n_layers and not staying and wish.is_cache_on_gpu
    compute = compute // 8 if is_idle else compute  # a host without layers only holds inputs for the GPUs
    cache = count_cache_bytes(on_host, wish, n_ctx, shape.window)
    more_cache, more_compute = _draft_bytes(wish, n_ctx)
    own = Row(replace(host, free=host.free - shared), weights, cache + more_cache, compute + more_compute)
    return own, *rows


def _draft_bytes(wish: Wish, n_ctx: int) -> tuple[int, int]:
    """Bytes of the draft model's KV cache and compute buffers. Its weights are in `extra`."""
    if wish.draft is None:
        return 0, 0
    own = replace(wish, type_k=wish.draft_type_k, type_v=wish.draft_type_v, embeds=False, n_outputs=0)
    return (count_cache_bytes(wish.draft.layers, own, n_ctx, wish.draft.window), compute_bytes(wish.draft, own, n_ctx))


def _compute_shares(layers: tuple[Layer, ...], gpus: tuple[Place, ...]) -> list[tuple[Place, tuple[Layer, ...], bool]]:
    """(GPU, its layers, whether it has the head). Layers are contiguous, in proportion to the GPUs' free memory."""
    total = sum(gpu.free for gpu in gpus) or 1
    shares, at, reached = [], 0, 0
    for gpu in gpus:
        reached += gpu.free
        end = len(layers) if gpu is gpus[-1] else round(len(layers) * reached / total)
        shares.append((gpu, layers[at:end], gpu is gpus[-1]))
        at = end
    return shares


def count_cache_bytes(layers: tuple[Layer, ...], wish: Wish, n_ctx: int, window: int = 0) -> int:
    """Bytes of keys, values and states of these layers. A unified cache has one more sequence, for the system
    prompt."""
    n_seqs, n_slot = wish.n_slots + (not wish.is_split), -(-n_ctx // wish.n_slots)
    n_ctx = _round_up(n_slot) * n_seqs if wish.is_split else n_ctx
    n_ctx += n_slot + wish.n_ubatch if wish.embeds else 0
    n_window = n_ctx if wish.is_window_full or not window else min(n_ctx, _round_up(window * n_seqs + wish.n_ubatch))
    return sum(
        (_count_row_bytes(layer.k, wish.type_k) + _count_row_bytes(layer.v, wish.type_v))
        * (n_window if layer.is_windowed else n_ctx)
        + layer.state * n_seqs * (1 + wish.n_back)
        for layer in layers
    )


def _count_row_bytes(n: int, kind: int) -> int:
    _, block, n_bytes = TYPES[kind]
    return -(-n // block) * n_bytes


def compute_bytes(shape: Shape, wish: Wish, n_ctx: int) -> int:
    """Bytes of llama.cpp's compute buffers on a device and of its buffer of logits, at the largest moment of a step: a
    ubatch's feed-forward or attention, or the end, for rows with logits."""
    n_batch = min(max(wish.n_batch, wish.n_slots), n_ctx)
    rows = min(wish.n_ubatch, n_batch)
    is_recurrent = any(layer.state for layer in shape.layers)  # no attention if no layer has keys
    n_looked_at = _round_up(-(-n_ctx // wish.n_slots)) if wish.is_split else n_ctx
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
