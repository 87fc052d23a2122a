"""Saved slots and blocks on disk are never used for another model, and shifted cells never count as their tokens' own.

`Files` are a model in two parts, an adapter and a projector, which can be replaced by others with the same path, size,
scale and modification time: only the whole content differs. Models and caches are F32, so a text either equals that of
a new engine or is wrong.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest

from server.engine.seam.task import CACHE_DISK, CACHE_SLOT
from server.errors import ApiError
from tests import tiny_models
from tests.gguf_edit import scalar, split, string, take_apart
from tests.media_files import picture
from tests.native.engines import STEM, Engine
from tests.native.media_engines import image, task

F32 = {"type_k": 0, "type_v": 0, "flash_attn_type": 0}
N_SLOT = 128  # tokens of a slot
KEEP, DISCARD = 4, 100  # of a context shift: its border is then near enough for the model to look back to
LAYOUTS = pytest.mark.parametrize("kv_unified", [True, False], ids=["one cache", "streams"])
KINDS = ("lora", "part", "edit")  # what can be exchanged
CHOICES = list(product((0, 1), repeat=len(KINDS)))
Contents = dict[str, tuple[str, tuple[bytes, bytes]]]
SAMPLED = 1 << 20  # an earlier version looked at so many bytes at four places


class Files:
    """`choose((0, 1, 0))` lays out one of eight combinations of contents."""

    def __init__(self, folder: Path, contents: Contents) -> None:
        self._folder, self._contents = folder, contents
        self.model, self.lora = folder / contents["edit"][0], folder / contents["lora"][0]
        for name, two in contents.values():
            (folder / name).write_bytes(two[0])
            os.utime(folder / name, (10**9, 10**9))

    def choose(self, choice: Sequence[int]) -> None:
        """No engine may be running on them."""
        for kind, which in zip(KINDS, choice, strict=True):
            name, two = self._contents[kind]
            path = self._folder / name
            if path.read_bytes() != two[which]:
                path.write_bytes(two[which])  # the same file, and not a new one of that name
                os.utime(path, (10**9, 10**9))


def parts_of(folder: Path, seed: int) -> list[Path]:
    """A model in two parts, with some megabytes in front of and behind the embeddings of its words."""
    path = tiny_models.tiny_llama(folder / "whole.gguf", seed=seed, remembers=True, n_unused=8000)
    take_apart(path).set("general.description", string("x" * 1_200_000)).write(path)
    return split(path, folder)


def edited(path: Path) -> bytes:
    """The embeddings of all words turned around, at a place that isn't among the samples of old."""
    parts, data = take_apart(path), bytearray(path.read_bytes())
    table, size = parts.tensor("token_embd.weight"), len(data)
    start = size - len(parts.data) + table.offset
    end = start + 4 * table.dims[0] * 700
    for at in (0, size // 3, 2 * size // 3, size - SAMPLED):
        assert end <= at or at + SAMPLED <= start
    for row in range(start, end, 4 * table.dims[0]):
        for at in range(row + 3, row + 4 * tiny_models.N_BITS, 4):
            data[at] ^= 0x80  # the sign
    return bytes(data)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """For each kind a file's name and two contents of one size."""
    first, second = (parts_of(tmp_path_factory.mktemp("parts"), seed) for seed in (5, 6))
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [tiny_models.tiny_lora(folder / f"{i}.gguf", bits=range(8 * i, 8 * i + 8)).read_bytes() for i in (0, 1)]
    found = {
        "lora": ("lora.gguf", tuple(adapters)),
        "edit": (first[0].name, (first[0].read_bytes(), edited(first[0]))),
        "part": (first[1].name, (first[1].read_bytes(), second[1].read_bytes())),
    }
    assert all(len(one) == len(other) and one != other for _, (one, other) in found.values())
    return found


@pytest.fixture
def files(tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Fresh ones, and a memory of hashes of their own."""
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    return Files(tmp_path / "files", contents)


@pytest.fixture
def open_engine(engine, files: Files) -> Callable[..., Engine]:
    """An engine on the files as they are."""

    def make(**config: object) -> Engine:
        return engine(
            files.model,
            **{
                "lora": ((str(files.lora), 1.0),),
                "n_slots": 2,
                "n_ctx": 2 * N_SLOT,
                "n_ctx_slot": N_SLOT,
                "context_params": F32,
                "shift_context": True,
                **config,
            },
        )

    return make


def refused(one: Engine, path: Path) -> str:
    with pytest.raises(ApiError) as caught:
        one.client.run_command("restore", id_slot=0, path=str(path))
    assert caught.value.status == 400
    return caught.value.message


def shifted(one: Engine, prompt: list[int], n: int, **fields: object) -> list[int]:
    """Have a slot shift its context; the tokens that it holds then, and the last one, which it doesn't."""
    said = one.say(prompt, n, n_keep=KEEP, n_discard=DISCARD, **fields)
    held = list(prompt)
    for token in said.tokens:
        if len(held) == N_SLOT:
            del held[KEEP : KEEP + DISCARD]
        held.append(token)
    assert said.final.truncated and len(held) < N_SLOT // 2
    return held


@LAYOUTS
@pytest.mark.parametrize(
    ("kind", "words"), [("lora", "other adapters (--lora)"), ("part", "another model"), ("edit", "another model")]
)
def test_states_of_other_contents_are_neither_restored_nor_found(open_engine, files, tmp_path, kv_unified, kind, words):
    config = {"kv_unified": kv_unified, "cache_disk": str(tmp_path / "disk")}
    first = open_engine(**config)
    said = first.say(STEM, 20)
    first.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    first.close()
    files.choose([kind == one for one in KINDS])
    other = open_engine(**config).settled()
    assert words in refused(other, tmp_path / "slot")
    fresh = other.say(STEM, 20)
    assert fresh.final.timings.cache_n == 0 and fresh.tokens != said.tokens, "contents that make no difference"
    other.close()
    files.choose((0, 0, 0))
    again = open_engine(**config)
    again.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))
    restored = again.say(STEM, 20)
    assert restored.tokens == said.tokens and restored.final.cache.source == CACHE_SLOT
    again.client.run_command("erase", id_slot=0)
    found = again.say(STEM, 20, id_slot=1)
    assert found.tokens == said.tokens and found.final.cache.source == CACHE_DISK


def test_a_slot_of_another_projector_is_refused(see, tiny_bpe_model, mmproj_mlp, tmp_path):
    """Its placeholders stand for what the other one has made of the image."""
    place = shutil.copyfile(mmproj_mlp, tmp_path / "mmproj.gguf")
    one = see(tiny_bpe_model, place)
    one.say(STEM, 5)
    one.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    one.close()
    data = bytearray(place.read_bytes())
    data[-2000] ^= 0x80
    place.write_bytes(data)
    assert "another projector" in refused(see(tiny_bpe_model, place), tmp_path / "slot")


@pytest.mark.covers("T20")
def test_a_slot_with_an_image_is_refused_without_the_projector(see, engine, tiny_bpe_model, mmproj_mlp, tmp_path):
    seeing = see(tiny_bpe_model, mmproj_mlp)
    seeing.ask(task(seeing, ("the river", image(picture(1)), " near the"), 4))
    seeing.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    seeing.close()
    blind = engine(tiny_bpe_model)
    assert "--mmproj" in refused(blind, tmp_path / "slot") and "images or sound" in refused(blind, tmp_path / "slot")
    assert blind.say(STEM, 5).tokens


def test_a_slot_whose_keys_would_be_turned_otherwise_in_another_context_is_refused(engine, tiny_spm_model, tmp_path):
    """`rope_factors_long` count from a length of the context on, whatever is in it."""
    half = tiny_models.HEAD_SIZE // 2
    parts = take_apart(tiny_spm_model)
    for name, factor in (("short", b"\0\0\x80\x3f"), ("long", b"\0\0\0\x40")):
        parts.tensors.append(
            type(parts.tensors[0])(f"rope_factors_{name}.weight".encode(), (half,), 0, len(parts.data))
        )
        parts.data += factor * half
    parts.set("llama.rope.scaling.type", string("longrope"))
    parts.set("llama.rope.scaling.original_context_length", scalar("u32", 512))
    model = parts.write(tmp_path / "long.gguf")
    small, large = (engine(model, n_ctx=n_ctx, context_params=F32) for n_ctx in (512, 768))
    assert small.say(STEM, 20).tokens != large.say(STEM, 20).tokens, "factors that make no difference"
    small.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
    assert "--ctx-size (saved: 512 tokens or less; here: more than 512 tokens)" in refused(large, tmp_path / "slot")
    same = engine(model, n_ctx=256, context_params=F32)
    assert same.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))["n_restored"] > 40


@LAYOUTS
@pytest.mark.parametrize(
    "way",
    [
        "the slot itself",
        "another slot",
        "a saved slot",
        "a saved slot, then another",
        "disk",
        "a saved slot, then disk",
        "another slot, then disk",
    ],
)
def test_what_was_shifted_is_not_taken_for_what_its_tokens_give(open_engine, tmp_path, kv_unified, way):
    config = {"kv_unified": kv_unified, "cache_disk": str(tmp_path / "disk"), "cache_ram": 8}
    fresh, one = open_engine(), open_engine(**config)
    held = shifted(one, list(one.tokens(STEM)), 120, id_slot=0)
    if "saved" in way:
        one.client.run_command("save", id_slot=0, path=str(tmp_path / "slot"))
        one.close()
        one = open_engine(**config).settled()
        n = one.client.run_command("restore", id_slot=0, path=str(tmp_path / "slot"))["n_restored"]
        assert n == len(held) - 1
    elif way == "another slot, then disk":
        one.say(held[:-1], 1, id_slot=1)  # takes what it can, and leaves it behind
    if "disk" in way:
        one.close()
        one = open_engine(**config).settled()
    said = one.say(held, 24, id_slot=1 if way.endswith("another") or way == "another slot" else 0)
    assert said.tokens == fresh.say(held, 24).tokens
    assert said.final.timings.cache_n <= KEEP or way == "another slot, then disk"


@LAYOUTS
def test_what_was_kept_before_a_shift_is_still_shared_and_goes_to_disk(open_engine, tmp_path, kv_unified):
    prompt = STEM.split(" , ")[0]
    config = {"kv_unified": kv_unified, "cache_disk": str(tmp_path)}
    one, fresh = open_engine(**config), open_engine()
    n_kept = len(one.tokens(prompt))
    assert one.say(prompt, 150, id_slot=0, n_keep=-1).final.truncated
    said = one.say(prompt + " moon", 10, id_slot=1)
    assert said.final.timings.cache_n == n_kept and said.tokens == fresh.say(prompt + " moon", 10).tokens
    one.close()
    again = open_engine(**config).settled().say(prompt + " star", 10)
    assert again.final.timings.cache_n == n_kept and again.final.cache.source == CACHE_DISK
    assert again.tokens == fresh.say(prompt + " star", 10).tokens


class Mixture:
    """Random engines on exchanged files, one after the other: each saves, restores, shifts and answers for a while."""

    def __init__(self, seed: int, files: Files, open_engine: Callable[..., Engine], folder: Path) -> None:
        self.rng = random.Random(seed)
        self.n_engines = self.n_asked = self.n_reused = self.n_from_disk = self.n_refused = self.n_restored = (
            self.n_shifts
        ) = 0
        self._files, self._open, self._folder = files, open_engine, folder
        self._expected: dict[tuple[object, ...], list[int]] = {}
        self._saved: dict[Path, tuple[tuple[int, ...], tuple]] = {}  # what was in use when it was saved
        self._held: list[list[int]] = []  # what slots held after shifts: as prompts, these are traps

    def run(self, n: int) -> None:
        """At least `n` requests."""
        choice = CHOICES[0]
        while self.n_asked < n:
            wanted = []
            one = self._engine(choice, wanted)
            one.close()
            self._check(choice, wanted)
            choice = choice if self.rng.random() < 0.3 else self.rng.choice(CHOICES)
            self._files.choose(choice)

    def _engine(self, choice: tuple[int, ...], wanted: list) -> Engine:
        rng = self.rng
        self.n_engines += 1
        one = self._open(
            kv_unified=rng.random() < 0.5, cache_disk=str(self._folder / "disk"), cache_ram=rng.choice((0, 8))
        )
        if rng.random() < 0.7:
            one.settled()
        for _ in range(rng.randrange(4, 9)):
            rng.choice((self._restore, self._save, self._shift, self._ask, self._ask, self._ask))(one, choice, wanted)
        return one

    def _path(self) -> Path:
        return self._folder / f"slot{self.rng.randrange(4)}"

    def _save(self, one: Engine, choice: tuple[int, ...], wanted: list) -> None:
        path = self._path()
        one.client.run_command("save", id_slot=self.rng.randrange(2), path=str(path))
        self._saved[path] = choice

    def _restore(self, one: Engine, choice: tuple[int, ...], wanted: list) -> None:
        path = self._path()
        if path not in self._saved:
            return
        if self._saved[path] == choice:
            one.client.run_command("restore", id_slot=self.rng.randrange(2), path=str(path))
            self.n_restored += 1
        else:
            assert "was saved with" in refused(one, path)
            self.n_refused += 1

    def _shift(self, one: Engine, choice: tuple[int, ...], wanted: list) -> None:
        prompt = list(one.tokens(STEM))
        self._held.append(
            shifted(one, prompt, N_SLOT - len(prompt) + self.rng.randrange(2, 20), id_slot=self.rng.randrange(2))
        )
        self.n_shifts += 1

    def _ask(self, one: Engine, choice: tuple[int, ...], wanted: list) -> None:
        rng = self.rng
        words = STEM.split()
        prompt = list(one.tokens(" ".join(words[: rng.choice((12, 20, len(words)))] + rng.choices(words, k=3))))
        if self._held and rng.random() < 0.5:
            prompt = rng.choice(self._held[-4:])
        scales = rng.choice((((0, 1.0),), ((0, 1.0),), ()))
        said = one.say(prompt, 16, lora=scales, id_slot=rng.choice((-1, 0, 1)))
        wanted.append((tuple(prompt), scales, said.tokens))
        self.n_asked += 1
        self.n_reused += said.final.timings.cache_n > 0
        self.n_from_disk += said.final.cache.source == CACHE_DISK

    def _check(self, choice: tuple[int, ...], wanted: list) -> None:
        """Against an engine that has never seen anything."""
        missing = [(prompt, scales) for prompt, scales, _ in wanted if (choice, prompt, scales) not in self._expected]
        if missing:
            fresh = self._open(n_slots=1, n_ctx=2 * N_SLOT, n_ctx_slot=0)
            for prompt, scales in missing:
                self._expected[choice, prompt, scales] = fresh.say(prompt, 16, lora=scales, cache_prompt=False).tokens
            fresh.close()
        for prompt, scales, tokens in wanted:
            assert tokens == self._expected[choice, prompt, scales], f"request of {self.n_asked}, contents {choice}"


@pytest.mark.parametrize("n", [40, pytest.param(300, marks=pytest.mark.long)])
def test_a_mixture_of_exchanged_files_and_shifts_says_what_fresh_engines_say(open_engine, files, tmp_path, n):
    mixture = Mixture(n, files, open_engine, tmp_path)
    mixture.run(n)
    print(
        f"\n{mixture.n_asked} requests on {mixture.n_engines} engines, {mixture.n_reused} with reuse ({mixture.n_from_disk} "
        f"from disk); {mixture.n_shifts} shifts; {mixture.n_restored} slots restored, {mixture.n_refused} refused"
    )
    assert mixture.n_from_disk and mixture.n_refused and mixture.n_restored and mixture.n_shifts
