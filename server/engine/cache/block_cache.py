"""The prompt cache outside the KV cache, in memory and on disk. It keeps what slots give up, and restores it.

Engine thread only, except for `scan`. Keys and values are moved block by block (`block_moves`), so saving can stop
after each block, and a prefix that many texts share is kept once. With a disk cache, a saved block is written to disk
too. `open` is called once the model's identity is known and the folder has been scanned.

The cache works only with models whose sequences can share cells and be cut, and not with self-extend or `--exact`. It
keeps a sequence's tokens up to the first image, sound or place of a context shift (cells behind such a place depend on
dropped tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server.engine.cache.block_files import BlockFiles, StoredBlock
from server.engine.cache.block_moves import InParts, ThroughScratch
from server.engine.cache.block_tree import BLOCK, Block, BlockTree, Lora, Shelf
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import CACHE_DISK, CACHE_RAM
from server.engine.slots.backend import Backend
from server.engine.slots.slot import Slot
from server.log import get_logger
from server.model_files import host_memory

MIB = 1 << 20
MAX_RAM_MIB = 8192  # MiB; the largest default
UNLIMITED = 1 << 62

log = get_logger("engine")


def compute_ram_limit(mib: int | None) -> int:
    """Bytes for --cache-ram: a negative number is no limit; None is 8 GiB, but at most half of the free memory."""
    if mib is not None:
        return UNLIMITED if mib < 0 else mib * MIB
    free = host_memory.read_available()
    return MAX_RAM_MIB * MIB if free is None else min(MAX_RAM_MIB * MIB, free // 2)


class BlockCache:
    def __init__(self, backend: Backend, config: EngineConfig, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._moves = InParts(backend) if backend.is_split else ThroughScratch(backend, config.n_slots + 1)
        self._tree = BlockTree()
        is_possible = (
            backend.can_share and not config.exact and config.n_group == 1 and not 0 < backend.window < BLOCK
        )  # with a smaller sliding window, llama.cpp may drop a part of a block
        self._ram = Shelf(compute_ram_limit(config.cache_ram) if is_possible else 0)
        self._disk = Shelf(config.cache_disk_mib * MIB)
        self._folder = BlockFiles(config.cache_disk, self._disk.limit) if config.cache_disk and is_possible else None
        self._files: BlockFiles | None = None  # the folder, once it is open
        if config.cache_disk and not is_possible:
            log.warning(
                "--cache-disk has no effect: with this model or these options, cached prompts can't be cut into blocks"
            )

    @property
    def is_on(self) -> bool:
        """Whether blocks are kept now."""
        return self._ram.limit > 0 or self._files is not None

    @property
    def has_disk(self) -> bool:
        """Whether there is a disk cache, open or not."""
        return self._folder is not None

    @property
    def has_memory(self) -> bool:
        return self._ram.limit > 0

    @property
    def ram_used(self) -> int:
        """Bytes of the blocks in memory."""
        return self._ram.size

    def scan(self, facts: Mapping[str, Any]) -> list[StoredBlock]:
        """The blocks on disk with this identity. Any thread, before `open`."""
        return [] if self._folder is None else self._folder.scan(facts)

    def open(self, found: list[StoredBlock]) -> None:
        """Use the disk from now on, with the blocks that `scan` has found. Blocks in memory are written to it."""
        self._files = self._folder
        if self._files is None:
            return
        by_key: dict[str, Block] = {}
        for stored in found:
            parent = by_key[stored.parent] if stored.parent else self._tree.get_root(stored.lora)
            block = parent.children.get(stored.tokens)
            if block is None:
                block, needless = self._tree.add(parent, stored.tokens)
                self._forget(needless)
                block.size = stored.size
            block.key, block.path = stored.key, stored.path
            by_key[stored.key] = block
            self._disk.add(block)
            self._touch(block)
        for lora, block in self._tree:
            if not block.key:
                self._write(block, lora)
        self._keep_limits()
        log.info("prompt cache on disk: %d blocks, %d MiB", len(self._disk), self._disk.size // MIB)

    def count_known(self, lora: Lora, tokens: list[int]) -> int:
        """The length of the longest prefix of `tokens` that is kept, also by other servers in the same folder."""
        self._adopt(lora, tokens)
        return self._tree.find(lora, tokens)[1]

    def find_nearest(self, lora: Lora, tokens: list[int], owner: str) -> list[int]:
        """The longest kept prefix of `tokens`, then the owner's latest text behind it. [] if the prefix ends inside a
        block of another owner."""
        path, n = self._tree.find(lora, tokens)
        block: Block | None = path[-1] if path else self._tree.get_root(lora)
        rest = block.tokens[n - sum(len(one.tokens) for one in path[:-1]) :]
        if rest and block.owner != owner:
            return []
        text = [*tokens[:n], *rest]
        while block := next((one for one in reversed(block.children.values()) if one.owner == owner), None):
            text += block.tokens
        return text

    def save(self, slot: Slot, limit_s: float, n_blocks: int = UNLIMITED) -> bool:
        """Keep the part of an idle slot's cache that isn't kept yet. False if `limit_s` seconds or `n_blocks` blocks
        didn't suffice."""
        tokens = self._get_savable(slot)
        if not self.is_on or not tokens:
            return True
        started = self._clock()
        block, at = self._tree.find_missing(slot.lora, tokens)
        self._touch(block)
        while at < len(tokens):
            if n_blocks == 0:
                return False  # `_moves` keeps the state that it has read, for the next call
            if self._clock() - started > limit_s:
                self._moves.finish(slot)
                return False
            part = tuple(tokens[at : at + BLOCK])
            saved = self._save_block(slot, block, at, part)
            if saved is None or saved.state is None and not saved.path:
                break  # there is no room for more
            block, at, n_blocks = saved, at + len(part), n_blocks - 1
        self._moves.finish(slot)
        return True

    def can_restore(self, slot: Slot) -> bool:
        """Whether a slot's whole cache could be restored from memory."""
        path, n = self._tree.find(slot.lora, slot.tokens)
        return n == len(slot.tokens) == len(self._get_savable(slot)) and all(block.state is not None for block in path)

    def restore(self, slot: Slot, prompt: list[int], limit: int, room: Callable[[int], bool]) -> tuple[int, str]:
        """Give the slot what it lacks of the first `limit` tokens of `prompt`, as far as it is kept here. Returns how
        many tokens the slot has then, and the source of the new ones ("" if there are none).

        `room(n)` makes room for `n` cells of a unified cache; it returns False if that fails.
        """
        path, n = self._tree.find(slot.lora, prompt)
        n, at, source = min(n, limit), 0, ""
        if self._backend.is_split:
            return self._restore_all(slot, path, prompt[:n])
        for block in path:
            end = min(at + len(block.tokens), n)
            if end > len(slot.tokens):
                is_in_memory = block.state is not None
                if not (room(len(block.tokens)) and self._restore_block(slot, block, at, end)):
                    break
                slot.tokens += prompt[len(slot.tokens) : end]
                source = CACHE_RAM if is_in_memory and source != CACHE_DISK else CACHE_DISK
            self._touch(block)
            at += len(block.tokens)
        return len(slot.tokens), source

    def save_idle(self, slots: list[Slot]) -> bool:
        """Save another block of idle slots, while the engine is idle. False if none is left, or without a disk
        cache."""
        if self._files is None:
            return False
        return any(not self.save(slot, UNLIMITED, 1) for slot in slots if slot.run is None)

    def close(self) -> None:
        """Finish the pending writes."""
        if self._files is not None:
            self._files.close()

    def _adopt(self, lora: Lora, tokens: list[int]) -> None:
        """Add the full blocks of `tokens` that other servers have written to the folder."""
        if self._files is None:
            return
        block, at = self._tree.find_missing(lora, tokens)
        if block.parent is not None and len(block.tokens) < BLOCK:
            block, at = block.parent, at - len(block.tokens)
        while len(part := tuple(tokens[at : at + BLOCK])) == BLOCK:
            key = self._files.make_key(lora, block.key, part)
            found = self._files.find(key, block.key)
            if found is None:
                break
            block, needless = self._tree.add(block, part)
            block.key, (block.path, block.size) = key, found
            self._forget(needless)
            self._disk.add(block)
            at += BLOCK

    # ---- inside -----------------------------------------------------------------------------------------------

    def _get_savable(self, slot: Slot) -> list[int]:
        if slot.positions is not None or self._backend.compute_least_left(slot.seq):
            return []
        tokens = slot.tokens if slot.shifted_at is None else slot.tokens[: slot.shifted_at]
        if min(tokens, default=0) >= 0:
            return tokens
        return tokens[: next(i for i, token in enumerate(tokens) if token < 0)]

    def _save_block(self, slot: Slot, parent: Block, at: int, tokens: tuple[int, ...]) -> Block | None:
        """Save one block. None if this model's state can't be cut; then saving is switched off."""
        state = self._moves.copy_out(slot, at, at + len(tokens))
        if state is None:
            log.info(
                "prompts that leave the KV cache are not kept: this model's state can't be cut into blocks; with "
                "--kv-unified it can"
            )
            self._ram.limit, self._files, self._folder = 0, None, None
            return None
        block, needless = self._tree.add(parent, tokens)
        self._forget(needless)
        block.owner = slot.owner
        block.size = len(state) + 10 * len(tokens) + 300  # an estimate that includes the header of its file
        if self._ram.limit:
            block.state = state
            self._ram.add(block)
        if self._files is not None:
            self._write(block, slot.lora, state)
        self._touch(block)
        self._keep_limits()
        return block

    def _write(self, block: Block, lora: Lora, state: bytearray | memoryview | None = None) -> None:
        """Have a block written to disk, unless too many are waiting."""
        state = block.state if state is None else state
        block.key = self._files.make_key(lora, block.parent.key, block.tokens)
        block.path = self._files.put(block.key, block.parent.key, block.tokens, lora, state)  # type: ignore[arg-type]
        if block.path:
            self._disk.add(block)

    def _restore_block(self, slot: Slot, block: Block, at: int, end: int) -> bool:
        is_there = self._moves.copy_into(slot, self._state_of(block), end)
        if not is_there:
            log.debug("prompt cache: a block of %d tokens at %d can't be used", len(block.tokens), at)
            self._forget(self._tree.remove(block))
        return is_there

    def _restore_all(self, slot: Slot, path: list[Block], tokens: list[int]) -> tuple[int, str]:
        """Replace the slot's cache by the blocks, if they have more tokens than it."""
        states, source, n = [], CACHE_RAM, 0
        for block in path:
            state = self._state_of(block) if n < len(tokens) else None
            if state is None:
                break
            source = source if block.state is not None else CACHE_DISK
            states.append(state)
            n += len(block.tokens)
            self._touch(block)
        if n < len(tokens) and len(states) < len(path):
            self._forget(self._tree.remove(path[len(states)]))  # its file was damaged or is gone
        tokens = tokens[:n]
        if len(tokens) <= len(slot.tokens):
            return len(slot.tokens), ""
        if not self._moves.fill(slot, states, tokens):
            log.debug("prompt cache: %d blocks can't be used", len(states))
            self._forget(self._tree.remove(path[0]))
            return 0, ""
        return len(tokens), source

    def _state_of(self, block: Block) -> bytearray | memoryview | None:
        return block.state if block.state is not None else self._files.get(block.path)

    def _touch(self, block: Block | None) -> None:
        """Note the use of a block, then of the blocks before it, so that these are given up later."""
        while block is not None:
            self._ram.touch(block)
            self._disk.touch(block)
            block = block.parent

    def _keep_limits(self) -> None:
        for block in self._ram.list_excess():
            self._ram.discard(block)
            block.state = None
            if not block.path:
                self._forget(self._tree.remove(block))
        if self._files is None:
            return
        for block in self._disk.list_excess():
            self._disk.discard(block)
            self._files.remove(block.path)
            block.path = ""
            if block.state is None:
                self._forget(self._tree.remove(block))

    def _forget(self, blocks: list[Block]) -> None:
        """Free the memory and files of blocks that were removed from the tree."""
        for block in blocks:
            self._ram.discard(block)
            self._disk.discard(block)
            block.state = None
            if block.path:
                self._files.remove(block.path)
                block.path = ""
