"""`engine.block_tree`: the longest known prefix is found, common prefixes are stored once, ends are dropped first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.cache.block_tree import BLOCK, Block, BlockTree, Shelf
from server.engine.slots.slot import count_common_prefix


def keep(tree: BlockTree, tokens: list[int], lora: tuple = ()) -> list[Block]:
    """What saving a sequence does; the new blocks."""
    block, at = tree.find_missing(lora, tokens)
    new = []
    while at < len(tokens):
        block, _ = tree.add(block, tuple(tokens[at : at + BLOCK]))
        new.append(block)
        at += BLOCK
    return new


TOKENS = list(range(1000))


def test_nothing_is_known_of_an_empty_tree():
    assert BlockTree().find((), TOKENS) == ([], 0)


def test_a_kept_text_is_known_to_the_token():
    tree = BlockTree()
    keep(tree, TOKENS[:300])
    for n in (1, 127, 128, 129, 300):
        assert tree.find((), TOKENS[:n] + [-5])[1] == n
    assert tree.find((), TOKENS)[1] == 300
    assert tree.find((), [7])[1] == 0


def test_other_adapters_know_nothing_of_it():
    tree = BlockTree()
    keep(tree, TOKENS[:300], ((0, 1.0),))
    assert tree.find((), TOKENS)[1] == 0 and tree.find(((0, 1.0),), TOKENS)[1] == 300


def test_a_common_beginning_is_kept_once():
    tree = BlockTree()
    assert len(keep(tree, TOKENS[:300])) == 3
    assert [len(block.tokens) for block in keep(tree, TOKENS[:256] + [5] * 200)] == [BLOCK, 72]


def test_a_longer_version_replaces_the_short_end():
    tree = BlockTree()
    short = keep(tree, TOKENS[:300])[-1]
    parent, at = tree.find_missing((), TOKENS[:350])
    assert at == 256 and tree.add(parent, tuple(TOKENS[256:350]))[1] == [short]
    assert tree.find((), TOKENS)[1] == 350


def test_without_a_block_those_behind_it_are_of_no_use():
    tree = BlockTree()
    blocks = keep(tree, TOKENS[:500])
    assert tree.remove(blocks[1]) == blocks[1:]
    assert tree.find((), TOKENS)[1] == BLOCK


TEXTS = st.lists(
    st.lists(st.sampled_from([1, 2]), max_size=3).map(
        lambda starts: [token for start in starts for token in [start] * 100]
    ),
    max_size=6,
)


@given(texts=TEXTS, wanted=TEXTS)
def test_find_gives_the_longest_beginning_that_any_kept_text_has(texts, wanted):
    tree = BlockTree()
    for text in texts:
        keep(tree, text)
    for prompt in wanted:
        path, n = tree.find((), prompt)
        whole = [token for block in path for token in block.tokens]
        assert whole[:n] == prompt[:n]
        assert n >= max((count_common_prefix(text, prompt) for text in texts), default=0) // BLOCK * BLOCK
        assert n <= max((count_common_prefix(text, prompt) for text in texts), default=0)


def test_the_shelf_gives_up_what_was_not_used_for_longest():
    shelf = Shelf(250)
    blocks = [Block((i,), None, size=100) for i in range(4)]
    for block in blocks[:3]:
        shelf.add(block)
    shelf.touch(blocks[0])
    shelf.touch(blocks[3])
    gone = []
    for block in shelf.list_excess():
        shelf.discard(block)
        gone.append(block)
    assert gone == [blocks[1]] and shelf.size == 200 and blocks[0] in shelf
