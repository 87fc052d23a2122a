"""`engine.wire`: every message of the seam as bytes and back, however the bytes are split; and invalid bytes."""

from __future__ import annotations

import dataclasses
import json
import math
import typing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.engine.seam import config, task, wire
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import (
    Command,
    Embed,
    Failure,
    Final,
    Frame,
    Media,
    Piece,
    Reply,
    SamplingParams,
    Snapshot,
    Task,
    Tasks,
    Thinking,
    Timings,
    TokenProbs,
)
from server.engine.seam.wire import HEADER, MAGIC, Beat, Codec, FrameReader, Hello, LogLine, Start, WireError
from server.model_files import shape
from tests.fuzzing import fuzz
from tests.unit.engine.seam.test_task import sample

CODEC = Codec()
MESSAGE_NUMBERS = CODEC._numbers
MESSAGES = [Hello, Start, Beat, LogLine, *wire.list_classes(task, config, shape)]
FRAME = Frame(
    (
        Piece(
            7, (1, 2), "é😀", (TokenProbs(1, 0.5, -math.inf, ((1, 0.5),), ((1, -0.7),)),), Timings(0, 1, 2.0, 3, 4.5)
        ),
        Final(7, 0, "\ud800", "eos", "", 1, 2, 0, False, Timings(0, 1, 2.0, 3, 4.0)),
        Failure(8, 400, "no", None, {"n_ctx": 5, "deep": {"a": (1, None, "x")}}),
    ),
    Snapshot(n_steps=3),
)
BIG = Task(
    1,
    tuple(range(5000)),
    SamplingParams(logit_bias=((5, -math.inf), (6, 1.5)), penalty_prompt=(1,)),
    media=(Media("image", bytes(range(256)) * 300, "h", "w"), Media("audio", b"", "h", "w")),
)


def whole(*messages: object) -> bytes:
    return b"".join(map(CODEC.encode, messages))


def read(data: bytes, size: int | None = None) -> list[object]:
    """All messages of `data`, fed in pieces of `size` bytes."""
    reader = FrameReader(CODEC)
    size = size or len(data) or 1
    return [message for at in range(0, len(data), size) for message in reader.feed(data[at : at + size])]


def broken(row: object, tail: bytes = b"") -> bytes:
    """A frame around any JSON."""
    data = json.dumps(row).encode()
    return HEADER.pack(MAGIC, len(data), len(tail)) + data + tail


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_comes_out_as_it_went_in(cls):
    message = sample(cls)
    (back,) = read(whole(message))
    assert type(back) is cls
    for field in dataclasses.fields(cls):  # lists in untyped fields arrive as tuples
        was, now = getattr(message, field.name), getattr(back, field.name)
        assert now == was or repr(now) == repr(was).replace("[", "(").replace("]", ")"), field.name


@pytest.mark.parametrize(
    "message",
    [
        FRAME,
        BIG,
        Command(3, "save", {"data": b"\x00\xff", "$x": {"$bytes": (0, 1)}}),
        Reply(4, {"n": 1}, (503, "later")),
        Hello(1, "x"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_stream_of_messages_whole_in_pieces_and_with_a_beginning_of_the_next(message):
    data = whole(message, Beat(1, 2, True), message)
    expected = [message, Beat(1, 2, True), message]
    assert read(data) == expected
    for size in (1, 7, HEADER.size, 4096):
        if size > 1 or len(data) < 5000:
            assert read(data, size) == expected
    assert read(data + CODEC.encode(message)[:-1]) == expected


def test_infinities_and_bytes_survive():
    (back,) = read(whole(BIG))
    assert back.sampling.logit_bias == ((5, -math.inf), (6, 1.5)) and back.media[0].data == BIG.media[0].data


def test_a_file_of_several_tasks_is_sent_once():
    media = Media("image", bytes(5000), "hash", "here")
    message = Tasks(tuple(Task(i, (1, -1), media=(media,)) for i in range(4)))
    data = CODEC.encode(message)
    assert len(data) < 9000 and list(FrameReader(CODEC).feed(data)) == [message]


def test_what_tasks_of_one_request_share_is_sent_once_and_shared_again():
    """Else a request of a few kilobytes, times its answers, is a message that takes seconds to read."""
    prompt, bias, stop = tuple(range(20_000)), tuple((i, 1.5) for i in range(5000)), ("x" * 5000,)
    sampling = SamplingParams(logit_bias=bias, grammar="g" * 50_000)
    message = Tasks(
        tuple(Task(i, prompt, dataclasses.replace(sampling, seed=i), stop=stop, media=BIG.media) for i in range(1000))
    )
    data = CODEC.encode(message)
    _, n_json, n_tail = HEADER.unpack_from(data)
    assert n_json < 1 << 18 and n_tail < 4 * len(prompt) + 100_000
    (back,) = read(data)
    assert back == message
    first = back.tasks[0]
    for one in back.tasks[1:]:
        assert one.prompt is first.prompt and one.stop is first.stop
        assert one.sampling.logit_bias is first.sampling.logit_bias


def test_tasks_of_one_request_may_differ_in_what_only_some_of_them_have():
    tasks = [
        Task(1, (1,)),
        Task(2, (1,), reasoning=Thinking("<a>", "</a>", end_tokens=(1, 2))),
        Task(3, (1,), reasoning=Thinking("<a>", "</a>", budget=3)),
        Task(4, (1,)),
    ]
    assert read(whole(Tasks(tuple(tasks)))) == [Tasks(tuple(tasks))]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=100), st.integers(0, 3))
def test_whole_numbers_come_back_however_many_and_large(numbers, n):
    numbers += [2**31] * (n == 1) + [-(2**63)] * (n == 2)
    message = Embed(1, (tuple(numbers), (), tuple(numbers)))
    assert read(whole(message)) == [message]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=6))
def test_tasks_that_differ_in_whatever_way_come_back_as_they_were(kinds):
    prompts = [(1, 2), tuple(range(50)), tuple(range(50))]
    samplings = [SamplingParams(), SamplingParams(seed=7, penalty_prompt=tuple(range(40))), SamplingParams(grammar="g")]
    loras = [None, (), ((0, 0.5),)]
    message = Tasks(
        tuple(
            Task(i, prompts[a], samplings[b], lora=loras[c], stream=d, media=BIG.media if d else ())
            for i, (a, b, c, d) in enumerate(kinds)
        )
    )
    assert read(whole(message)) == [message]


@pytest.mark.parametrize(
    "change", [1, [], [1], [[1]], [[1, 2, 3]], [["id", 1]], [[True, 1]], [[-1, 1]], [[99, 1]], [[0, "x"]], [[2, 5]]]
)
def test_changes_that_are_none_are_refused(change):
    row = json.loads(json.dumps(CODEC.encode_row(Task(1, (1,)), wire.Tail())))
    if change == []:
        assert len(CODEC.decode_row([MESSAGE_NUMBERS[Tasks], [row, change]], wire.Tail()).tasks) == 2
        return
    with pytest.raises(WireError):
        CODEC.decode_row([MESSAGE_NUMBERS[Tasks], [row, change]], wire.Tail())


@pytest.mark.parametrize("value", [{"$ints": [0, 3]}, {"$ints": [0, 40]}, {"$ints": 1}, {}, {"$ints": [0, 4], "x": 1}])
def test_packed_numbers_that_are_none_are_refused(value):
    with pytest.raises(WireError):
        CODEC.decode_row([MESSAGE_NUMBERS[Embed], 1, [value], "", []], wire.Tail(bytes(8)))


def test_what_is_no_message_is_refused_before_it_is_sent():
    for wrong in (3, {"id": 1}, Command(1, "x", {"f": object()}), Command(1, "x", {"f": {1: 2}})):
        with pytest.raises(TypeError):
            CODEC.encode(wrong)


def test_a_changed_message_is_another_build():
    builds = {
        wire.describe(layout)
        for layout in (
            [("Beat", [("n", int)])],
            [("Beat", [("n", str)])],
            [("Beat", [("m", int)])],
            [("Beet", [("n", int)])],
            [("Beat", [("n", int), ("m", int)])],
            [("Beat", [("n", int)]), ("Bear", [])],
        )
    }
    assert len(builds) == 6 and Codec().build == CODEC.build


# ---- the other side is broken ---------------------------------------------------------------------------------------


def number(cls: type) -> int:
    return CODEC.encode_row(sample(cls), wire.Tail())[0]


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        {},
        3,
        "x",
        [1.0],
        [True],
        [-1, 2],
        [9999],
        [number(Beat)],
        [number(Beat), 1, 2],
        [number(Beat), 1, 2, "x"],
        [number(Beat), 1, 2, True, 4],
        [number(Beat), None, 2, True],
        [number(Beat), 1.5, 2, True],
        [number(Frame), [[number(Beat), 1, 2, True]], None],
        [number(Frame), 5, None],
        [number(Frame), [], [number(Beat), 1, 2, True]],
        [number(Piece), 1, ["a"], "", [], None],
        [number(Piece), 1, [1], None, [], None],
        [number(Reply), 1, [], None],
        [number(Reply), 1, {}, [1]],
        [number(Reply), 1, {"x": {"$bytes": [0, 99]}}, None],
        [number(Reply), 1, {"x": {"$bytes": "no"}}, None],
        [number(Reply), 1, {"x": {"$bytes": [-1, 1]}}, None],
    ],
    ids=repr,
)
def test_json_that_is_no_message_is_an_error(row):
    with pytest.raises(WireError):
        read(broken(row, b"tail"))


@pytest.mark.parametrize(
    "data",
    [
        b"Traceback (most recent call last):",
        HEADER.pack(b"LSV\x02", 2, 0) + b"[]",
        HEADER.pack(MAGIC, wire.MAX_JSON + 1, 0),
        HEADER.pack(MAGIC, 2, wire.MAX_TAIL + 1),
        HEADER.pack(MAGIC, 3, 0) + b"\xff\xfe\xfd",
        HEADER.pack(MAGIC, 200_000, 0) + b"[" * 200_000,
        HEADER.pack(MAGIC, 6000, 0) + b"9" * 6000,
        HEADER.pack(MAGIC, 0, 0),
    ],
    ids=range(8),
)
def test_bytes_that_are_no_frame_are_an_error(data):
    for size in (None, 1000):
        with pytest.raises(WireError):
            read(data, size)


def test_a_frame_that_the_other_side_would_not_take_is_not_made(monkeypatch):
    message = Embed(1, ((5,),), media=(Media("image", bytes(500), "", ""), Media("image", bytes([1]) * 500, "", "")))
    for name, limit in (("MAX_TAIL", 999), ("MAX_JSON", 10)):
        with monkeypatch.context() as patch, pytest.raises(WireError, match="too long"):
            patch.setattr(wire, name, limit)
            CODEC.encode(message)
    assert list(read(CODEC.encode(message))) == [message]


@fuzz(100)
@given(st.binary(max_size=200), st.integers(1, 50))
@example(MAGIC + b"\0" * 8, 1)
def test_random_bytes_never_do_anything_else(data, size):
    try:
        read(data, size)
    except WireError:
        pass


@fuzz(100)
@given(st.data())
def test_a_damaged_frame_is_a_message_or_an_error(data):
    frame = bytearray(whole(FRAME, BIG if data.draw(st.booleans()) else Beat(1, 2, False)))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, min(len(frame), 600) - 1))] = data.draw(st.integers(0, 255))
    try:
        messages = read(bytes(frame))
    except WireError:
        return
    assert all(type(message) in (*MESSAGES, wire.AskStacks, wire.Stacks) for message in messages)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@fuzz(100)
@given(st.sampled_from(range(60)), st.lists(JSON, max_size=7))
def test_random_rows_are_messages_of_the_declared_types_or_errors(index, fields):
    try:
        (message,) = read(broken([index, *fields]))
    except WireError:
        return
    for name, annotation in typing.get_type_hints(type(message)).items():
        if annotation in (str, bool):
            assert type(getattr(message, name)) is annotation
        elif annotation in (int, float):
            assert isinstance(getattr(message, name), (int, float))


def test_a_start_carries_the_whole_configuration():
    start = Start(
        EngineConfig("m.gguf", "libs", lora=(("a", 0.5),), model_params={"kv_overrides": (("k", "int", 3),)}), 20, 1.0
    )
    assert read(whole(start)) == [start]
