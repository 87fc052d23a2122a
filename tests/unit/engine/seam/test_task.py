"""The seam is plain data: every message consists of plain types, and can be written and read."""

from __future__ import annotations

import dataclasses
import marshal
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from server.engine.seam import config, task
from server.engine.seam.task import Final, Frame, Piece, SamplingParams, SlotState, Snapshot, Task, Timings
from server.model_files import shape

PLAIN = (int, float, str, bytes, bool, type(None))


def classes(module: types.ModuleType) -> list[type]:
    return [
        value
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    ]


MESSAGES = classes(task) + classes(config) + classes(shape)


def parts(annotation: object) -> Iterator[object]:
    """The leaves of an annotation. Values of `dict[str, Any]` are what the messages' senders put there."""
    origin = typing.get_origin(annotation)
    if origin is None:
        yield annotation
        return
    assert origin in (tuple, dict, typing.Union, types.UnionType), f"{annotation} is no plain container"
    for argument in typing.get_args(annotation):
        if argument is Ellipsis or (origin is dict and argument is Any):
            continue
        yield from parts(argument)


def sample(annotation: object, depth: int = 0) -> object:
    """A value of the annotated type; of a choice the first that is no None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in PLAIN:
        return {int: 7, float: -math.inf, str: "é\n😀", bytes: b"\x00\xff", bool: True, type(None): None}[annotation]
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return annotation(
            **{field.name: sample(hints[field.name], depth + 1) for field in dataclasses.fields(annotation)}
        )
    if annotation is Any:
        return [1, "two", 3.5, None, {"four": (5,)}]
    if origin is tuple:
        return tuple(sample(argument, depth + 1) for argument in arguments if argument is not Ellipsis)
    if origin is dict:
        return {sample(arguments[0], depth + 1): sample(arguments[1], depth + 1)}
    return sample(next(argument for argument in arguments if argument is not type(None)), depth)


def encode(value: object) -> object:
    """Any message as tuples, dicts and plain values."""
    if dataclasses.is_dataclass(value):
        return (
            "message",
            type(value).__name__,
            {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)},
        )
    if isinstance(value, tuple):
        return ("tuple", *map(encode, value))
    if isinstance(value, list):
        return list(map(encode, value))
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    assert isinstance(value, PLAIN), f"{value!r} is not plain"
    return value


def decode(value: object) -> object:
    if isinstance(value, tuple) and value[0] == "message":
        by_name = {cls.__name__: cls for cls in MESSAGES}
        return by_name[value[1]](**{name: decode(item) for name, item in value[2].items()})
    if isinstance(value, tuple):
        return tuple(map(decode, value[1:]))
    if isinstance(value, list):
        return list(map(decode, value))
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    return value


def test_the_seam_has_messages():
    assert {Task, Frame, Piece, Final, Snapshot, SamplingParams} <= set(MESSAGES)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_field_is_plain_data(cls):
    for name, annotation in typing.get_type_hints(cls).items():
        for part in parts(annotation):
            assert part in PLAIN or part in MESSAGES, f"{cls.__name__}.{name}: {part}"


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_messages_survive_being_written_as_plain_data(cls):
    message = sample(cls)
    assert decode(marshal.loads(marshal.dumps(encode(message)))) == message


@pytest.mark.parametrize("cls", [cls for cls in MESSAGES if dataclasses.fields(cls)], ids=lambda cls: cls.__name__)
def test_messages_cannot_be_changed_after_they_were_sent(cls):
    message = sample(cls)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, dataclasses.fields(cls)[0].name, None)


def test_a_frame_with_everything_in_it_survives_too():
    events = tuple(sample(cls) for cls in typing.get_args(task.Event))
    frame = Frame(events, sample(Snapshot))
    assert decode(marshal.loads(marshal.dumps(encode(frame)))) == frame


def test_a_snapshot_counts_its_slots():
    slot = SlotState(0, 1, True, 64, 0, 0, 0, 0, -1, True, "none", "", False)
    snapshot = Snapshot(slots=(slot, dataclasses.replace(slot, id=1, is_processing=False), slot))
    assert (snapshot.n_processing, snapshot.n_idle) == (2, 1)


def test_a_task_has_defaults_for_all_but_id_and_prompt():
    plain = Task(1, (2, 3))
    assert (plain.n_predict, plain.id_slot, plain.cache_prompt, plain.stop) == (-1, -1, True, ())
    assert Timings(0, 1, 2.0, 3, 4.0).prompt_n == 1
