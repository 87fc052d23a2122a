"""What is known of prompts outside the KV cache: blocks of tokens with their state, as a tree of beginnings.

Pure data, no backend and no files; engine thread. A block holds up to `BLOCK` tokens that follow those of its parent,
and their keys and values as bytes, in memory (`state`), on disk (`path`), or both. So what many prompts begin with is
kept once, and a longer version of a text adds only what is new. What is unused for longest goes first; since using a
block uses all blocks before it, that is always the end of some text, and what is left is always a beginning.

Not taken: whole sequences as entries. Ten conversations with one system prompt would keep it ten times, and each turn
of a conversation would copy all of it again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from server.engine.slots.slot import common_prefix
from server.records import field, record

BLOCK = 128

Lora = tuple[tuple[int, float], ...]


@record(eq=False)
class Block:
    """`tokens` behind those of `parent`. `size` is that of the state in bytes; `path` its file, "" for none; `owner`
    whose text it is, None if nobody knows."""

    tokens: tuple[int, ...]
    parent: Block | None
    key: str = ""
    size: int = 0
    state: bytearray | memoryview | None = None
    path: str = ""
    owner: str | None = None
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)


class Shelf:
    """The blocks that one kind of memory holds, unused for longest first, and how many bytes they take."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._blocks: OrderedDict[Block, None] = OrderedDict()

    def __contains__(self, block: Block) -> bool:
        return block in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Block) -> None:
        """As the one used latest."""
        self._blocks[block] = None
        self.size += block.size

    def touch(self, block: Block) -> None:
        """It was used, if it is here."""
        if block in self._blocks:
            self._blocks.move_to_end(block)

    def discard(self, block: Block) -> None:
        """It is no longer here."""
        if block in self._blocks:
            del self._blocks[block]
            self.size -= block.size

    def too_much(self) -> Iterator[Block]:
        """Blocks to give up until the others fit, unused for longest first; the caller discards each."""
        while self.size > self.limit and self._blocks:
            yield next(iter(self._blocks))


class BlockTree:
    """All blocks; a root for each setting of adapters, since those change what tokens lead to."""

    def __init__(self) -> None:
        self._roots: dict[Lora, Block] = {}

    def __iter__(self) -> Iterator[tuple[Lora, Block]]:
        """Every block with its adapters, behind its parent."""
        for lora, root in self._roots.items():
            blocks = [*root.children.values()]
            for block in blocks:
                yield lora, block
                blocks += block.children.values()

    def root(self, lora: Lora) -> Block:
        """The block before the first."""
        return self._roots.setdefault(lora, Block((), None))

    def find(self, lora: Lora, tokens: Sequence[int]) -> tuple[list[Block], int]:
        """Blocks that hold the longest known beginning of `tokens`, and its length; the last may hold more than
        that."""
        block, path, n = self._roots.get(lora), [], 0
        while block is not None and block.children:
            wanted = tuple(tokens[n : n + BLOCK])
            following = block.children.get(wanted)
            if following is not None and len(wanted) == BLOCK:
                path.append(following)
                n += BLOCK
                block = following
                continue
            best = max(block.children.values(), key=lambda child: common_prefix(child.tokens, wanted))
            n_best = common_prefix(best.tokens, wanted)
            return ([*path, best], n + n_best) if n_best else (path, n)
        return path, n

    def missing(self, lora: Lora, tokens: Sequence[int]) -> tuple[Block, int]:
        """The last block that holds exactly a beginning of `tokens`, and where what isn't known begins."""
        block, n = self.root(lora), 0
        while (following := block.children.get(tuple(tokens[n : n + BLOCK]))) is not None:
            block, n = following, n + len(following.tokens)
            if len(following.tokens) < BLOCK:
                break
        return block, n

    def add(self, parent: Block, tokens: tuple[int, ...]) -> tuple[Block, list[Block]]:
        """A new block, and those that it makes needless: shorter ones with the same beginning."""
        needless = [
            child
            for child in parent.children.values()
            if len(child.tokens) < len(tokens) and common_prefix(child.tokens, tokens) == len(child.tokens)
        ]
        for child in needless:
            del parent.children[child.tokens]
        block = parent.children[tokens] = Block(tokens, parent)
        return block, needless

    def remove(self, block: Block) -> list[Block]:
        """Take a block out, and all behind it, which are of no use without it; the list of them."""
        if block.parent is not None and block.parent.children.get(block.tokens) is block:
            del block.parent.children[block.tokens]
        removed = [block]
        for one in removed:
            removed += one.children.values()
        return removed
