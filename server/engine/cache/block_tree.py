"""A tree of the token blocks that are kept outside the KV cache.

Pure data, no backend and no files; engine thread. A block has up to `BLOCK` tokens that follow those of its parent, and
their keys and values as bytes, in memory (`state`), on disk (`path`), or both. So a prefix that many prompts share is
kept once, and a longer version of a text adds only its new tokens. The least recently used block is given up first. A
use of a block counts for all blocks before it, so texts are given up from their ends.

Not taken: whole sequences as entries, which would keep a common prefix in each of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from server.engine.slots.slot import count_common_prefix
from server.records import field, record

BLOCK = 128  # tokens

Lora = tuple[tuple[int, float], ...]  # the adapters in use: (index, scale)


@record(eq=False)
class Block:
    """Some `tokens` behind those of `parent`."""

    tokens: tuple[int, ...]
    parent: Block | None
    key: str = ""  # its name on disk
    size: int = 0  # bytes, with its file's header
    state: bytearray | memoryview | None = None  # None if it isn't in memory
    path: str = ""  # "" if it isn't on disk
    owner: str | None = None  # whose text it is; None if unknown
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)


class Shelf:
    """The blocks in memory or on disk, the least recently used first. `size` and `limit` are bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._blocks: OrderedDict[Block, None] = OrderedDict()

    def __contains__(self, block: Block) -> bool:
        return block in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Block) -> None:
        """Add a block as the latest used one."""
        self._blocks[block] = None
        self.size += block.size

    def touch(self, block: Block) -> None:
        """Note the use of a block, if it is here."""
        if block in self._blocks:
            self._blocks.move_to_end(block)

    def discard(self, block: Block) -> None:
        """Take a block out, if it is here."""
        if block in self._blocks:
            del self._blocks[block]
            self.size -= block.size

    def list_excess(self) -> Iterator[Block]:
        """Yield the least recently used blocks until the others keep the limit. The caller discards each."""
        while self.size > self.limit and self._blocks:
            yield next(iter(self._blocks))


class BlockTree:
    """All blocks. Each setting of adapters has a root of its own, because adapters change keys and values."""

    def __init__(self) -> None:
        self._roots: dict[Lora, Block] = {}

    def __iter__(self) -> Iterator[tuple[Lora, Block]]:
        """Every block with its adapters, each behind its parent."""
        for lora, root in self._roots.items():
            blocks = [*root.children.values()]
            for block in blocks:
                yield lora, block
                blocks += block.children.values()

    def get_root(self, lora: Lora) -> Block:
        """The block before the first one."""
        return self._roots.setdefault(lora, Block((), None))

    def find(self, lora: Lora, tokens: Sequence[int]) -> tuple[list[Block], int]:
        """The blocks with the longest known prefix of `tokens`, and its length. The last block may have more tokens."""
        block, path, n = self._roots.get(lora), [], 0
        while block is not None and block.children:
            wanted = tuple(tokens[n : n + BLOCK])
            following = block.children.get(wanted)
            if following is not None and len(wanted) == BLOCK:
                path.append(following)
                n += BLOCK
                block = following
                continue
            best = max(block.children.values(), key=lambda child: count_common_prefix(child.tokens, wanted))
            n_best = count_common_prefix(best.tokens, wanted)
            return ([*path, best], n + n_best) if n_best else (path, n)
        return path, n

    def find_missing(self, lora: Lora, tokens: Sequence[int]) -> tuple[Block, int]:
        """The last of the whole blocks with which `tokens` begins, and the index of the next token."""
        block, n = self.get_root(lora), 0
        while (following := block.children.get(tuple(tokens[n : n + BLOCK]))) is not None:
            block, n = following, n + len(following.tokens)
            if len(following.tokens) < BLOCK:
                break
        return block, n

    def add(self, parent: Block, tokens: tuple[int, ...]) -> tuple[Block, list[Block]]:
        """Add a block. Returns it and the blocks that it replaces: shorter ones that are a beginning of it."""
        needless = [
            child
            for child in parent.children.values()
            if len(child.tokens) < len(tokens) and count_common_prefix(child.tokens, tokens) == len(child.tokens)
        ]
        for child in needless:
            del parent.children[child.tokens]
        block = parent.children[tokens] = Block(tokens, parent)
        return block, needless

    def remove(self, block: Block) -> list[Block]:
        """Remove a block and all behind it, and return them."""
        if block.parent is not None and block.parent.children.get(block.tokens) is block:
            del block.parent.children[block.tokens]
        removed = [block]
        for one in removed:
            removed += one.children.values()
        return removed
