"""Recipes of the tiny GGUF models for the tests: all float32, at most a megabyte or two, always the same bytes.

    tiny_llama   text model, SPM or BPE vocabulary; its greedy text varies and can be compared (see below)
    recite       text model that knows one sentence; its greedy text is known beforehand
    tiny_mamba   recurrent text model: no attention, a state that can't be cut
    tiny_bert    embedding model, or with rerank=True a reranker
    tiny_lora    adapter for tiny_llama
    tiny_mmproj  image projector for tiny_llama (or any text model of the given width)

Not taken for tiny_llama: random weights. The best two logits would often be nearly equal, so that another batch size or
CPU changes a greedy text, and the text would soon repeat itself. Instead it computes with bits. Every token has 32
random bits (+1/-1). Each attention head looks at exactly one earlier token, a fixed distance back (`DISTANCES`),
because its query and key are constants and only RoPE distinguishes cells. Each of 6 bits of the next token is the
majority of 25 earlier bits. A majority of an odd number of +-1 is never close to zero, so the best token leads by a
fixed margin (`MIN_MARGIN` logits, far above rounding errors). The text has no cycle, never ends by itself, and consists
of 64 words that tokenise back to the same ids. A wrong, missing or foreign KV cell within the last 37 positions nearly
always changes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.gguf_writer import GgufFile

# what tiny_llama can say, one token each: 60 words and 4 signs, as many as 6 bits can tell apart
WORDS = tuple(
    "the once upon time little girl boy fox dog cat bird tree river house moon star night day red blue green "
    "old new big small ran saw found went came said asked told sang slept woke and but then when very happy "
    "sad quiet brave kind into over under near away home bread apple water café été größe naïve 😀".split()
)
SIGNS = (",", ".", "!", "?")
RECITE_WORDS = (
    " one",
    " two",
    " three",
    " four",
    " five",
    " six",
    " seven",
    " eight",
    " nine",
    " ten",
    " héllo",
    " 世界",
    " 😀",
    " end",
)

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# token types of a GGUF vocabulary
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6

FIM_TOKENS = ("<PRE>", "<SUF>", "<MID>")


# ---------------------------------------------------------------------------------------- weights


class Weights:
    """Adds tensors with random, constant or hand-made values to a file.

    Uniform numbers from `random()` alone: the same bits on every platform, which `gauss` doesn't promise.
    """

    def __init__(self, gguf: GgufFile, seed: int) -> None:
        self._gguf = gguf
        self._random = random.Random(seed)

    def uniform(self, spread: float) -> float:
        """A number in [-spread, spread)."""
        return spread * (2.0 * self._random.random() - 1.0)

    def matrix(self, name: str, n_in: int, *n_out: int, spread: float | None = None) -> None:
        """Random values; by default of a size that keeps the output about as large as the input."""
        spread = math.sqrt(3.0 / n_in) if spread is None else spread
        n_values = n_in * math.prod(n_out)
        self._gguf.tensor(name, (n_in, *n_out), [self.uniform(spread) for _ in range(n_values)])

    def fill(self, name: str, value: float, *dims: int) -> None:
        """One value everywhere."""
        self._gguf.tensor(name, dims, [value] * math.prod(dims))

    def rows(self, name: str, rows: Sequence[Sequence[float]]) -> None:
        """A matrix given as n_out rows of n_in values."""
        self._gguf.tensor(name, (len(rows[0]), len(rows)), [value for row in rows for value in row])

    def norm(self, name: str, n: int) -> None:
        """A layer norm that scales by one, with a zero bias."""
        self.fill(name + ".weight", 1.0, n)
        self.fill(name + ".bias", 0.0, n)

    def linear(self, name: str, n_in: int, n_out: int, spread: float | None = None) -> None:
        """A random matrix with a zero bias."""
        self.matrix(name + ".weight", n_in, n_out, spread=spread)
        self.fill(name + ".bias", 0.0, n_out)


# ---------------------------------------------------------------------------------------- vocabularies


@dataclass(slots=True)
class Vocabulary:
    """Token texts as the file stores them, their types, and which of them tiny_llama may say."""

    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)

    def add(self, text: str, kind: int = NORMAL) -> None:
        """Append a token unless it's there already."""
        if text not in self.tokens:
            self.tokens.append(text)
            self.types.append(kind)

    def write(self, gguf: GgufFile, model: str, fim: bool) -> None:
        """The metadata that every kind of vocabulary has; with `fim`, fill-in-the-middle tokens come last."""
        if fim:
            for text in FIM_TOKENS:
                self.add(text, CONTROL)
            ids = {
                f"fim_{name}_token_id": self.tokens.index(text) for name, text in zip(("pre", "suf", "mid"), FIM_TOKENS)
            }
            gguf.scalars("tokenizer.ggml.", "u32", **ids)
        gguf.string("tokenizer.ggml.model", model)
        gguf.strings("tokenizer.ggml.tokens", self.tokens)
        gguf.array("tokenizer.ggml.token_type", "i32", self.types)


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte 0..255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


def prefixes(word: str) -> list[str]:
    """The first 2, 3, ... characters of a word: each merge adds one character, so any word can be reached."""
    return [word[:end] for end in range(2, len(word) + 1)]


def spm_vocabulary(gguf: GgufFile, fim: bool, n_unused: int = 0) -> Vocabulary:
    """SentencePiece style: bytes as fallback, printable ASCII, `WORDS`; `<s>` 1 and `</s>` 2."""
    vocabulary = Vocabulary()
    for text, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        vocabulary.add(text, kind)
    for byte in range(256):
        vocabulary.add(f"<0x{byte:02X}>", BYTE)
    n_fixed = len(vocabulary.tokens)
    for text in ("\u2581", *map(chr, range(33, 127))):
        vocabulary.add(text)
    for word in WORDS:
        for piece in prefixes("\u2581" + word):
            vocabulary.add(piece)
    # merging takes the best score first: longer is better, single characters are never the result of a merge
    scores = [0.0] * n_fixed + [len(text) - 1000.0 for text in vocabulary.tokens[n_fixed:]]
    vocabulary.tokens += [f"<unused{i}>" for i in range(n_unused)]
    vocabulary.types += [UNUSED] * n_unused
    vocabulary.write(gguf, "llama", fim)
    gguf.array("tokenizer.ggml.scores", "f32", scores + [0.0] * (len(vocabulary.tokens) - len(scores)))
    gguf.scalars("tokenizer.ggml.", "u32", bos_token_id=1, eos_token_id=2, unknown_token_id=0)
    return vocabulary


def bpe_vocabulary(
    gguf: GgufFile, words: Iterable[str], fim: bool, *, control: Iterable[str] = (), unread: Iterable[str] = ()
) -> Vocabulary:
    """GPT-2 style with ChatML's tokens: 256 bytes and `words`; `<|im_end|>` (2) ends a text, no BOS.

    `control` are more special tokens. `unread` are tokens, in symbols, that a model can say, but that no text is
    tokenised to: no merge leads to them.
    """
    vocabulary, merges, symbols = Vocabulary(), [], byte_symbols()
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *control):
        vocabulary.add(text, CONTROL)
    for symbol in symbols:
        vocabulary.add(symbol)
    for word in words:
        for piece in prefixes("".join(symbols[byte] for byte in word.encode())):
            if piece not in vocabulary.tokens:
                vocabulary.add(piece)
                merges.append(piece[:-1] + " " + piece[-1])
    for piece in unread:
        vocabulary.add(piece)
    vocabulary.write(gguf, "gpt2", fim)
    gguf.string("tokenizer.ggml.pre", "gpt-2")
    gguf.strings("tokenizer.ggml.merges", merges)
    gguf.scalars("tokenizer.ggml.", "u32", bos_token_id=1, eos_token_id=2, padding_token_id=0)
    gguf.scalar("tokenizer.ggml.add_bos_token", "bool", False)
    return vocabulary


def wordpiece_vocabulary(gguf: GgufFile) -> Vocabulary:
    """BERT style: letters and digits at the start of a word and inside one, and a few whole words."""
    vocabulary = Vocabulary()
    for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        vocabulary.add(text, CONTROL)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    for text in (
        *("\u2581" + letter for letter in letters + ".,!?'-"),
        *letters,
        "\u2581the",
        "\u2581cat",
        "\u2581dog",
        "\u2581is",
        "ing",
    ):
        vocabulary.add(text)
    vocabulary.write(gguf, "bert", fim=False)
    gguf.string("tokenizer.ggml.pre", "default")
    # "seperator" is spelled so in the format; without it libllama aborts at the first decode
    gguf.scalars(
        "tokenizer.ggml.",
        "u32",
        token_type_count=2,
        bos_token_id=2,
        eos_token_id=3,
        seperator_token_id=3,
        unknown_token_id=1,
        padding_token_id=0,
        mask_token_id=4,
    )
    return vocabulary


# ---------------------------------------------------------------------------------------- tiny llama

N_EMBD, N_HEAD_KV, HEAD_SIZE, N_FF = 64, 2, 32, 64
DISTANCES = ((0, 1, 4, 5), (11, 21, 32, 37))  # [block][head]: how far back that head looks, in tokens
OWN = 0.4  # and how strongly at its own token: decides early in a text
N_BITS = 32  # of a token: embedding rows 0..31
CONSTANT = 32  # embedding row that is 1 in every token
VOTE = 33  # rows from here collect the votes for the next token
N_VOTES = 6  # 2**6 == 64 tokens to say
BITS_PER_VOTE = 3  # that one head gives: 3 * 8 heads + 1 = 25 in all
VOTE_SIZE = 1 / 32  # small, so that votes hardly change the length of the row
KEY = 24.0  # size of queries and keys: makes attention pick one cell
GAIN = math.sqrt(N_EMBD / (N_BITS + 1))  # what RMS norm multiplies our rows with
N_MEMORIES, MEMORY = 12, 8.0  # of the values of a head, and how strong they are, see `remembers`
SEED = 5  # with it no word goes on repeating itself for ever
MIN_MARGIN = 0.3  # logits between the best two tokens, at least


def tiny_llama(
    path: Path,
    kind: str = "spm",
    *,
    n_ctx_train: int = 2048,
    fim: bool = False,
    seed: int = SEED,
    chat_template: str | None = CHATML,
    remembers: bool = False,
    n_unused: int = 0,
) -> Path:
    """Write the text model described on top: `kind` "spm" or "bpe"; another `seed` says other things.

    With `remembers` the values of the second block depend on the tokens before, as in any real model: what was computed
    behind one beginning doesn't fit another. (Then there is no margin that is guaranteed.) `n_unused` tokens more make
    an "spm" file of half a kilobyte more each.
    """
    gguf = GgufFile("llama", f"tiny-llama-{kind}")
    if kind == "spm":
        vocabulary = spm_vocabulary(gguf, fim, n_unused)
        spoken = ["\u2581" + word for word in WORDS] + list(SIGNS)
    else:
        vocabulary = bpe_vocabulary(gguf, (" " + word for word in WORDS), fim)
        symbols = byte_symbols()
        spoken = ["".join(symbols[byte] for byte in (" " + word).encode()) for word in WORDS] + list(SIGNS)
    if chat_template is not None:
        gguf.string("tokenizer.chat_template", chat_template)
    llama_shape(
        gguf,
        n_ctx_train,
        n_blocks=len(DISTANCES),
        n_embd=N_EMBD,
        n_ff=N_FF,
        n_head=len(DISTANCES[0]),
        n_head_kv=N_HEAD_KV,
        head_size=HEAD_SIZE,
    )
    weights = Weights(gguf, seed)
    _embedding(weights, len(vocabulary.tokens))
    _readout(weights, [spoken.index(text) if text in spoken else None for text in vocabulary.tokens])
    for block, distances in enumerate(DISTANCES):
        _attention(weights, block, distances, N_MEMORIES if remembers and block else 0)
        _feed_forward(weights, block)
    return gguf.write(path)


def llama_shape(
    gguf: GgufFile,
    n_ctx_train: int,
    *,
    n_blocks: int,
    n_embd: int,
    n_ff: int,
    n_head: int,
    n_head_kv: int,
    head_size: int,
) -> None:
    gguf.scalars(
        "llama.",
        "u32",
        context_length=n_ctx_train,
        embedding_length=n_embd,
        block_count=n_blocks,
        feed_forward_length=n_ff,
        attention__head_count=n_head,
        attention__head_count_kv=n_head_kv,
        attention__key_length=head_size,
        attention__value_length=head_size,
        rope__dimension_count=head_size,
    )
    gguf.scalar("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5)


def _embedding(weights: Weights, n_vocab: int) -> None:
    """Token rows: 32 random bits as +-1, the constant, zeros where votes will be added."""

    def row() -> list[float]:
        bits = [math.copysign(1.0, weights.uniform(1.0)) for _ in range(N_BITS)]
        return bits + [1.0] + [0.0] * (N_EMBD - N_BITS - 1)

    weights.rows("token_embd.weight", [row() for _ in range(n_vocab)])


def _attention(weights: Weights, block: int, distances: Sequence[int], n_memories: int = 0) -> None:
    """Heads that each copy the bits of the token at one distance, and the votes those bits cast.

    RoPE turns pair j of a query or key at position p by p * 10000**(-2j/size). A key of (1, 0) and a query of
    (cos a, -sin a) with a = distance * that angle fit best where the key lies `distance` before the query. A
    second, weaker fit at distance 0 gives each head one clear choice also while the text is still too short;
    the distances are chosen for that (a test checks it). The last `n_memories` values are votes of the block before in
    the place of bits.
    """
    angles = [10000.0 ** (-2.0 * j / HEAD_SIZE) for j in range(HEAD_SIZE // 2)]
    query, key, value = [], [], []
    for distance in distances:
        for angle in angles:
            query.append(_one_at(CONSTANT, KEY * (math.cos(distance * angle) + OWN)))
            query.append(_one_at(CONSTANT, -KEY * math.sin(distance * angle)))
    for _ in range(N_HEAD_KV):
        for j in range(HEAD_SIZE):
            key.append(_one_at(CONSTANT, KEY if j % 2 == 0 else 0.0))
            value.append(_one_at(j, 1.0) if j < HEAD_SIZE - n_memories else _one_at(VOTE + j % N_VOTES, MEMORY))
    output = [[0.0] * (len(distances) * HEAD_SIZE) for _ in range(N_EMBD)]
    for vote in range(N_VOTES):
        row = output[VOTE + vote]
        voters = [head for head, _ in enumerate(distances)] * BITS_PER_VOTE
        if block == 0:
            voters.append(0)  # one more: their number has to be odd
        for head in voters:
            bit = _free_place(weights, row, head * HEAD_SIZE)
            row[bit] = math.copysign(VOTE_SIZE, weights.uniform(1.0))
    prefix = f"blk.{block}."
    weights.fill(prefix + "attn_norm.weight", 1.0 / GAIN, N_EMBD)
    weights.rows(prefix + "attn_q.weight", query)
    weights.rows(prefix + "attn_k.weight", key)
    weights.rows(prefix + "attn_v.weight", value)
    weights.rows(prefix + "attn_output.weight", output)


def _one_at(index: int, value: float) -> list[float]:
    row = [0.0] * N_EMBD
    row[index] = value
    return row


def _free_place(weights: Weights, row: Sequence[float], start: int) -> int:
    """A random bit of the head whose values start at `start`, one that doesn't vote yet."""
    while True:
        place = start + int((weights.uniform(0.5) + 0.5) * HEAD_SIZE)
        if row[place] == 0.0:
            return place


def _feed_forward(weights: Weights, block: int) -> None:
    """Ordinary random layers that change the votes a little: no two logits are equal, no vote turns."""
    prefix = f"blk.{block}."
    weights.fill(prefix + "ffn_norm.weight", 1.0 / GAIN, N_EMBD)
    weights.matrix(prefix + "ffn_gate.weight", N_EMBD, N_FF)
    weights.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
    down = [[0.0] * N_FF for _ in range(N_EMBD)]
    for vote in range(N_VOTES):
        down[VOTE + vote] = [weights.uniform(0.02 * VOTE_SIZE) for _ in range(N_FF)]
    weights.rows(prefix + "ffn_down.weight", down)


def _readout(weights: Weights, places: Sequence[int | None]) -> None:
    """Logits: a spoken token gains from each vote that agrees with its place's binary digit, others stay low.

    The votes weigh a little differently, and each token has a small handicap, so that lower ranks differ too.
    """

    def row(place: int | None) -> list[float]:
        values = [0.0] * N_EMBD
        values[CONSTANT] = weights.uniform(0.05) if place is not None else -10.0 + weights.uniform(0.5)
        for vote in range(N_VOTES):
            if place is not None:
                sign = 1.0 if place >> vote & 1 else -1.0
                values[VOTE + vote] = sign * (0.25 + 0.015 * vote) / VOTE_SIZE
        return values

    weights.fill("output_norm.weight", 1.0 / GAIN, N_EMBD)
    weights.rows("output.weight", [row(place) for place in places])


# ---------------------------------------------------------------------------------------- recite


def recite(path: Path, words: Sequence[str] = RECITE_WORDS, *, n_ctx_train: int = 2048) -> Path:
    """Write a model whose next token depends on the last one alone, with certainty.

    After the i-th of `words` (each one BPE token) comes the next, after the last the end of the text
    (`<|im_end|>`), after anything else the first. Embedding rows are one-hot and the single block adds
    nothing, so the row of the last token reaches the output unmixed.
    """
    gguf = GgufFile("llama", "recite")
    vocabulary = bpe_vocabulary(gguf, words, fim=False)
    gguf.string("tokenizer.chat_template", CHATML)
    symbols = byte_symbols()
    chain = [vocabulary.tokens.index("".join(symbols[byte] for byte in word.encode())) for word in words]
    follower = dict(zip(chain, [*chain[1:], vocabulary.tokens.index("<|im_end|>")]))
    n_vocab = len(vocabulary.tokens)
    return follow(gguf, path, [follower.get(token, chain[0]) for token in range(n_vocab)], n_ctx_train)


def follow(gguf: GgufFile, path: Path, followers: Sequence[int], n_ctx_train: int) -> Path:
    """Add the weights of a model that says `followers[token]` after each token of its vocabulary, and write the file."""
    n_vocab, n_ff, n_head, head_size = len(followers), 32, 2, 32
    n_embd = -(-n_vocab // 32) * 32
    llama_shape(
        gguf, n_ctx_train, n_blocks=1, n_embd=n_embd, n_ff=n_ff, n_head=n_head, n_head_kv=1, head_size=head_size
    )
    embedding = [[0.0] * n_embd for _ in range(n_vocab)]
    readout = [[0.0] * n_embd for _ in range(n_vocab)]
    for token, follower in enumerate(followers):
        embedding[token][token] = 1.0
        readout[follower][token] = 1.0
    weights = Weights(gguf, seed=0)
    weights.rows("token_embd.weight", embedding)
    weights.rows("output.weight", readout)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        weights.fill(name + ".weight", 1.0, n_embd)
    for name, dims in (
        ("attn_q", (n_embd, n_head * head_size)),
        ("attn_k", (n_embd, head_size)),
        ("attn_v", (n_embd, head_size)),
        ("attn_output", (n_head * head_size, n_embd)),
        ("ffn_gate", (n_embd, n_ff)),
        ("ffn_up", (n_embd, n_ff)),
        ("ffn_down", (n_ff, n_embd)),
    ):
        weights.fill(f"blk.0.{name}.weight", 0.0, *dims)
    return gguf.write(path)


# ---------------------------------------------------------------------------------------- recurrent


def tiny_mamba(path: Path, *, is_hybrid: bool = False, seed: int = 11) -> Path:
    """Write a Mamba model with random weights and the SPM vocabulary, whose logits are far apart.

    With `is_hybrid` it is a Jamba model: recurrent layers and, in between, one with attention.
    """
    name = "jamba" if is_hybrid else "mamba"
    n_embd, n_inner, n_state, n_conv, rank, n_ff = 32, 64, 16, 4, 2, 48 if is_hybrid else 0
    heads_kv = [0, 2, 0] if is_hybrid else [0, 0]
    gguf = GgufFile(name, f"tiny-{name}")
    vocabulary = spm_vocabulary(gguf, fim=False)
    gguf.scalars(
        f"{name}.",
        "u32",
        context_length=2048,
        embedding_length=n_embd,
        block_count=len(heads_kv),
        feed_forward_length=n_ff,
        attention__head_count=2 if is_hybrid else 0,
        ssm__conv_kernel=n_conv,
        ssm__inner_size=n_inner,
        ssm__state_size=n_state,
        ssm__time_step_rank=rank,
    )
    if is_hybrid:
        gguf.array("jamba.attention.head_count_kv", "i32", heads_kv)
    gguf.scalar(f"{name}.attention.layer_norm_rms_epsilon", "f32", 1e-5)
    weights = Weights(gguf, seed)
    weights.matrix("token_embd.weight", n_embd, len(vocabulary.tokens), spread=1.0)
    weights.fill("output_norm.weight", 1.0, n_embd)
    weights.matrix("output.weight", n_embd, len(vocabulary.tokens), spread=2.0)
    for block, n_heads in enumerate(heads_kv):
        prefix = f"blk.{block}."
        weights.fill(prefix + "attn_norm.weight", 1.0, n_embd)
        if n_heads:
            for part in ("q", "k", "v", "output"):
                weights.matrix(f"{prefix}attn_{part}.weight", n_embd, n_embd)
        else:
            _recurrent(weights, prefix, n_embd, n_inner, n_state, n_conv, rank, has_norms=is_hybrid)
        if n_ff:
            weights.fill(prefix + "ffn_norm.weight", 1.0, n_embd)
            weights.matrix(prefix + "ffn_gate.weight", n_embd, n_ff)
            weights.matrix(prefix + "ffn_up.weight", n_embd, n_ff)
            weights.matrix(prefix + "ffn_down.weight", n_ff, n_embd)
    return gguf.write(path)


def _recurrent(
    weights: Weights, prefix: str, n_embd: int, n_inner: int, n_state: int, n_conv: int, rank: int, has_norms: bool
) -> None:
    """A Mamba layer that forgets slowly."""
    weights.matrix(prefix + "ssm_in.weight", n_embd, 2 * n_inner)
    weights.matrix(prefix + "ssm_conv1d.weight", n_conv, n_inner)
    weights.fill(prefix + "ssm_conv1d.bias", 0.0, n_inner)
    weights.matrix(prefix + "ssm_x.weight", n_inner, rank + 2 * n_state)
    weights.matrix(prefix + "ssm_dt.weight", rank, n_inner)
    weights.fill(prefix + "ssm_dt.bias", -3.0, n_inner)
    weights.rows(prefix + "ssm_a", [[-1.0 - i for i in range(n_state)]] * n_inner)
    weights.fill(prefix + "ssm_d", 1.0, n_inner)
    weights.matrix(prefix + "ssm_out.weight", n_inner, n_embd, spread=1.0)
    if has_norms:
        for part, n in (("dt", rank), ("b", n_state), ("c", n_state)):
            weights.fill(f"{prefix}ssm_{part}_norm.weight", 1.0, n)


# ---------------------------------------------------------------------------------------- bert


def tiny_bert(
    path: Path,
    *,
    rerank: bool = False,
    n_ctx_train: int = 512,
    seed: int = 5,
    labels: Sequence[str] = (),
    rerank_template: str = "",
) -> Path:
    """Write an embedding model (32 wide, mean pooling) or a reranker (scores `[CLS] query [SEP] text [SEP]`).

    A reranker with `labels` has a score for each of them; a `rerank_template` says how its prompts are made.

    The blocks change the token rows only a little, so that texts which share words get similar embeddings.
    Rerank scores are reproducible and differ between texts, but they mean nothing.
    """
    n_embd, n_ff, n_head, n_blocks, gentle = 32, 64, 4, 2, 0.1
    gguf = GgufFile("bert", "tiny-bert-rerank" if rerank else "tiny-bert-embed")
    vocabulary = wordpiece_vocabulary(gguf)
    gguf.scalars(
        "bert.",
        "u32",
        context_length=n_ctx_train,
        embedding_length=n_embd,
        block_count=n_blocks,
        feed_forward_length=n_ff,
        attention__head_count=n_head,
        pooling_type=4 if rerank else 1,
    )
    gguf.scalar("bert.attention.layer_norm_epsilon", "f32", 1e-12)
    gguf.scalar("bert.attention.causal", "bool", False)
    if labels:
        gguf.strings("bert.classifier.output_labels", labels)
    if rerank_template:
        gguf.string("tokenizer.chat_template.rerank", rerank_template)
    weights = Weights(gguf, seed)
    weights.matrix("token_embd.weight", n_embd, len(vocabulary.tokens), spread=1.7)
    weights.matrix("token_types.weight", n_embd, 2, spread=0.1)
    weights.matrix("position_embd.weight", n_embd, n_ctx_train, spread=0.1)
    weights.norm("token_embd_norm", n_embd)
    for block in range(n_blocks):
        prefix = f"blk.{block}."
        for name in ("attn_q", "attn_k", "attn_v"):
            weights.linear(prefix + name, n_embd, n_embd)
        weights.linear(prefix + "attn_output", n_embd, n_embd, spread=0.3 if rerank else gentle)
        weights.norm(prefix + "attn_output_norm", n_embd)
        weights.linear(prefix + "ffn_up", n_embd, n_ff)
        weights.linear(prefix + "ffn_down", n_ff, n_embd, spread=gentle)
        weights.norm(prefix + "layer_output_norm", n_embd)
    if rerank:
        weights.linear("cls", n_embd, n_embd)
        weights.linear("cls.output", n_embd, len(labels) or 1, spread=1.0)
    return gguf.write(path)


# ---------------------------------------------------------------------------------------- adapters, images


def tiny_lora(path: Path, *, bits: Sequence[int] = range(8)) -> Path:
    """Write a LoRA adapter for `tiny_llama` that turns the given token bits around in every value.

    At scale 1 the model says other things, with the same margin; at scale 0 it changes nothing; in between
    some votes cancel out and the margin is gone. Adapters for disjoint bits can be combined.
    """
    gguf = GgufFile("llama", "tiny-llama-lora")
    gguf.string("general.type", "adapter")
    gguf.string("adapter.type", "lora")
    gguf.scalar("adapter.lora.alpha", "f32", len(bits))  # effective scale = alpha / rank * scale
    down = [_one_at(bit, 1.0) for bit in bits]
    up = [[-2.0 if row % N_BITS == bit else 0.0 for bit in bits] for row in range(N_HEAD_KV * HEAD_SIZE)]
    weights = Weights(gguf, seed=0)
    for block in range(len(DISTANCES)):
        weights.rows(f"blk.{block}.attn_v.weight.lora_a", down)
        weights.rows(f"blk.{block}.attn_v.weight.lora_b", up)
    return gguf.write(path)


def tiny_mmproj(path: Path, kind: str = "gemma3", *, n_embd_text: int = N_EMBD, seed: int = 9) -> Path:
    """Write an image projector for a text model that is `n_embd_text` wide; images are 56 x 56 pixels.

    `kind` "gemma3" makes 4 embeddings of an image, "mlp" (the LLaVA one) 16.
    """
    size, patch, n_embd, n_ff, n_head, n_blocks = 56, 14, 32, 64, 4, 2
    gguf = GgufFile("clip", f"tiny-mmproj-{kind}")
    gguf.string("general.type", "mmproj")
    gguf.string("clip.projector_type", kind)
    gguf.scalar("clip.has_vision_encoder", "bool", True)
    gguf.scalar("clip.use_gelu", "bool", True)
    gguf.scalars(
        "clip.vision.",
        "u32",
        image_size=size,
        patch_size=patch,
        embedding_length=n_embd,
        feed_forward_length=n_ff,
        block_count=n_blocks,
        projection_dim=n_embd_text,
        attention__head_count=n_head,
    )
    gguf.scalar("clip.vision.attention.layer_norm_epsilon", "f32", 1e-6)
    gguf.array("clip.vision.image_mean", "f32", [0.5] * 3)
    gguf.array("clip.vision.image_std", "f32", [0.5] * 3)
    weights = Weights(gguf, seed)
    weights.matrix("v.patch_embd.weight", patch, patch, 3, n_embd, spread=0.07)
    weights.fill("v.patch_embd.bias", 0.0, n_embd)
    weights.matrix("v.position_embd.weight", n_embd, (size // patch) ** 2, spread=0.17)
    for block in range(n_blocks):
        _vision_block(weights, f"v.blk.{block}.", n_embd, n_ff)
    weights.norm("v.post_ln", n_embd)
    if kind == "gemma3":
        gguf.scalar("clip.vision.projector.scale_factor", "u32", 2)
        weights.matrix("mm.input_projection.weight", n_embd_text, n_embd, spread=0.35)
        weights.fill("mm.soft_emb_norm.weight", 1.0, n_embd)
    elif kind == "mlp":
        weights.linear("mm.0", n_embd, n_embd_text)
        weights.linear("mm.2", n_embd_text, n_embd_text)
    else:
        raise ValueError(f"no recipe for a {kind!r} projector")
    return gguf.write(path)


def _vision_block(weights: Weights, prefix: str, n_embd: int, n_ff: int) -> None:
    for name in ("ln1", "ln2"):
        weights.norm(prefix + name, n_embd)
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        weights.linear(prefix + name, n_embd, n_embd)
    weights.linear(prefix + "ffn_up", n_embd, n_ff)
    weights.linear(prefix + "ffn_down", n_ff, n_embd)
