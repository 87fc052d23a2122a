"""The reader of GGUF headers: the content of a valid file, and errors of one line for every fault."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_files import gguf
from server.model_files.gguf import Array, GgufError
from tests.fuzzing import fuzz
from tests.gguf_edit import Info, Parts, numbers, scalar, split, string, take_apart, text, texts


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(GgufError) as caught:
        gguf.read_all(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_says_what_was_written(tiny_spm_model):
    found = gguf.read(tiny_spm_model)
    parts = take_apart(tiny_spm_model)
    assert found.get_text("general.architecture") == "llama" and found.number("llama.block_count") == 2
    assert found.metadata.keys() == {key.decode() for key, _ in parts.pairs}
    assert [(t.name.encode(), t.dims, t.offset) for t in found.tensors.values()] == [
        (info.name, info.dims, info.offset) for info in parts.tensors
    ]
    assert all(tensor.n_bytes == 4 * prod(tensor.dims) for tensor in found.tensors.values())
    assert found.size == found.data_start + len(parts.data)


def test_all_types_of_values(tmp_path):
    parts = Parts(
        [
            (b"text", string("häß")),
            (b"u8", struct.pack("<IB", 0, 200)),
            (b"i8", struct.pack("<Ib", 1, -3)),
            (b"u16", struct.pack("<IH", 2, 60000)),
            (b"i16", struct.pack("<Ih", 3, -3)),
            (b"u32", scalar("u32", 2**32 - 1)),
            (b"i32", scalar("i32", -7)),
            (b"f32", scalar("f32", 0.5)),
            (b"bool", scalar("bool", True)),
            (b"u64", struct.pack("<IQ", 10, 2**63)),
            (b"i64", struct.pack("<Iq", 11, -(2**62))),
            (b"f64", struct.pack("<Id", 12, 0.1)),
            (b"list", numbers("u32", [1, 2, 3])),
            (b"texts", texts([b"a", b"", b"a", b"b"])),
        ]
    )
    found = gguf.read(parts.write(tmp_path / "x.gguf"), keep=("texts",)).metadata
    assert found == {
        "text": "häß",
        "u8": 200,
        "i8": -3,
        "u16": 60000,
        "i16": -3,
        "u32": 2**32 - 1,
        "i32": -7,
        "f32": 0.5,
        "bool": True,
        "u64": 2**63,
        "i64": -(2**62),
        "f64": 0.1,
        "list": (1, 2, 3),
        "texts": Array(8, 4, frozenset({b"a", b"b", b""}), b"a"),
    }


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3(tmp_path, version):
    assert gguf.read(Parts(head=b"GGUF" + struct.pack("<I", version)).write(tmp_path / "x")).version == version


def test_long_arrays_are_stepped_over_and_what_follows_is_right(tmp_path):
    parts = Parts(
        [
            (b"floats", numbers("f32", [1.0] * 600_000)),
            (b"texts", texts([b"x" * 30] * 60_000)),
            (b"end", scalar("u32", 5)),
        ]
    )
    found = gguf.read(parts.write(tmp_path / "x.gguf"))
    assert found.metadata == {"floats": Array(6, 600_000), "texts": Array(8, 60_000), "end": 5}


def test_texts_across_the_ends_of_chunks_are_whole(tmp_path):
    words = [b"%d-" % i + b"y" * (i * 7919 % 300_000) for i in range(40)]
    path = Parts([(b"texts", texts(words)), (b"end", scalar("u32", 5))]).write(tmp_path / "x.gguf")
    found = gguf.read(path, keep=("texts",)).metadata
    assert found["texts"].texts == frozenset(words) and found["end"] == 5


def test_another_alignment(tmp_path):
    parts = Parts([(b"general.alignment", scalar("u32", 64))], [Info(b"a", (3,), 0, 0), Info(b"b", (3,), 0, 64)], b"")
    front = len(parts.pack()) + 31 & ~31
    data = parts.pack().rstrip(b"\0")
    path = write(tmp_path / "x", data.ljust(-(-front // 64) * 64 + 64 + 12, b"\0"))
    assert gguf.read(path).tensors["b"].offset == 64


def test_every_place_where_a_file_can_be_cut_is_noticed(tmp_path, tiny_spm_model):
    parts = take_apart(tiny_spm_model)
    data = parts.pack()
    path = tmp_path / "cut.gguf"
    places = {at + shift for at in parts.boundaries for shift in (-1, 0, 1)} | {len(data) - 40}
    assert len(places) > 100
    for at in sorted(places):
        said = refusal(write(path, data[:at]))
        assert str(path) in said and ("incomplete" in said or "GGUF" in said), (at, said)


def test_a_tensor_that_ends_behind_the_file_is_named_with_both_numbers(tmp_path, tiny_spm_model):
    data = tiny_spm_model.read_bytes()
    said = refusal(write(tmp_path / "x.gguf", data[:-100]))
    last = take_apart(tiny_spm_model).tensors[-1].name.decode()
    assert last in said and str(len(data) - 100) in said and "download is incomplete" in said


def test_parts_of_a_split_model_belong_together(tmp_path, tiny_spm_model):
    first, _ = split(tiny_spm_model, tmp_path)
    whole = gguf.read(tiny_spm_model)
    parts = gguf.read_all(first)
    assert [name for part in parts for name in part.tensors] == list(whole.tensors)


def test_a_missing_part_is_named(tmp_path, tiny_spm_model):
    first, second = split(tiny_spm_model, tmp_path)
    second.unlink()
    assert "m-00002-of-00002.gguf isn't there" in refusal(first)


def test_a_later_part_leads_to_the_first(tmp_path, tiny_spm_model):
    _, second = split(tiny_spm_model, tmp_path)
    assert "m-00001-of-00002.gguf" in refusal(second)


def test_a_renamed_first_part_is_refused(tmp_path, tiny_spm_model):
    first, _ = split(tiny_spm_model, tmp_path)
    assert "-00001-of-00002.gguf" in refusal(first.rename(tmp_path / "model.gguf"))


def test_a_part_of_another_place_is_refused(tmp_path, tiny_spm_model):
    first, _ = split(tiny_spm_model, tmp_path, split__no=struct.pack("<IH", 2, 5))
    assert "part 6, not 2" in refusal(first)


def test_parts_that_lack_tensors_are_refused(tmp_path, tiny_spm_model):
    first, second = split(tiny_spm_model, tmp_path)
    take_apart(second).drop("blk.1.ffn_down").write(second)
    assert "its parts should have" in refusal(first)


def test_a_truncated_part_is_noticed(tmp_path, tiny_spm_model):
    first, second = split(tiny_spm_model, tmp_path)
    write(second, second.read_bytes()[:-50])
    assert second.name in (said := refusal(first)) and "incomplete" in said


@pytest.fixture(scope="session")
def small_file(tmp_path_factory) -> Path:
    """A file small enough that each byte of it is hit by the fuzzer."""
    parts = Parts(
        [
            (b"general.architecture", string("llama")),
            (b"n", numbers("u32", [1, 2, 3])),
            (b"t", texts([b"one", b"two", b"three"])),
            (b"x", scalar("f32", 1.0)),
        ],
        [Info(b"a.weight", (4, 2), 0, 0), Info(b"b.weight", (32,), 8, 32)],
        bytes(32 + 34),
    )
    return parts.write(tmp_path_factory.mktemp("fuzz") / "small.gguf")


def test_the_file_that_is_fuzzed_is_sound(small_file):
    assert len(gguf.read(small_file).tensors) == 2


def read_or_refuse(path: Path) -> None:
    try:
        found = gguf.read_all(path, keep=("t",))
    except GgufError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 + len(str(path))
    else:
        assert all(found[0].data_start + t.offset + t.n_bytes <= found[0].size for t in found[0].tensors.values())


@fuzz(100)
@given(st.data())
def test_any_mutation_is_read_or_refused(small_file, tmp_path_factory, data):
    """Bytes replaced by others, by numbers that overflow, cut out or doubled."""
    spoilt = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        how = data.draw(st.sampled_from(["bytes", "number", "cut", "double"]))
        if how == "bytes":
            spoilt[at : at + 4] = data.draw(st.binary(min_size=1, max_size=8))
        elif how == "number":
            number = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
            spoilt[at : at + 8] = struct.pack("<Q", number)
        elif how == "cut":
            del spoilt[at : at + data.draw(st.integers(1, 40))]
        else:
            spoilt[at:at] = spoilt[at : at + 24]
        spoilt = spoilt or bytearray(b"G")
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    read_or_refuse(write(path, bytes(spoilt)))


@fuzz(100)
@given(st.binary(max_size=200))
def test_any_bytes_behind_a_header_are_read_or_refused(tmp_path_factory, rest):
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    read_or_refuse(write(path, b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + rest))


def test_names_from_a_file_cannot_break_the_line_or_reach_the_terminal(tmp_path):
    path = Parts(tensors=[Info(b"a\n\x1b[2Jb", (), 0, 0)], data=bytes(32)).write(tmp_path / "x")
    assert "tensor a\\n\\x1b[2Jb has 0 dimensions" in refusal(path)


def test_a_key_is_compared_as_text(tmp_path):
    path = Parts([(b"a", scalar("u32", 1)), (b"b", scalar("u32", 1))]).write(tmp_path / "x")
    write(path, path.read_bytes().replace(text("b"), text("a")))
    assert "'a' occurs twice" in refusal(path)
