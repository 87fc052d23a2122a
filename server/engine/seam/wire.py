"""Encodes the seam's messages as length-prefixed frames for two pipes, and decodes them. Pure: no thread, no I/O.

Used by both processes. A frame is a header (magic, length of the JSON, length of the tail), one message as JSON, and a
tail of bytes. A message in JSON is a row `[number of the class, field, field, ...]`. Messages in its fields are rows,
too, except for the shorter forms in `Frame.events` and `Tasks`. The format is derived from the records of `task`,
`config`, `shape` and this module. `Hello` has a hash of the format.

`json` keeps the GIL while it reads a frame, so that the heartbeat's thread waits. To keep the JSON short, token ids are
packed into the tail, and each further task of a request is written as its differences from the one before.

All that is read is checked against the annotations. A corrupted engine causes a `WireError`, which ends the engine, not
the server. Fields annotated `Any` hold any plain values; their sequences arrive as tuples.
Not taken: pickle and marshal (they trust the other side); a binary format of our own (slower than the C code of
`json`).
"""

from __future__ import annotations

import json
import operator
import struct
import types
import typing
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

from server.engine.seam import config, task
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import Event, Piece
from server.model_files import shape
from server.records import fields, is_record, record

PROTOCOL = 3
HEADER = struct.Struct(">4sII")
MAGIC = b"LSV\x01"
MAX_JSON = 256 << 20  # bytes
MAX_TAIL = 2 << 30  # bytes
BYTES_KEY = "$bytes"
INTS_KEY = "$ints"
MIN_PACKED = 32  # ints; fewer are as fast in JSON

_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class WireError(Exception):
    """The bytes from the pipe are not a valid message, or a message is too long. The text is one line."""


@record(frozen=True)
class Hello:
    """The first message in each direction. Both must be equal."""

    protocol: int
    build: str


@record(frozen=True)
class Start:
    """To the engine, after Hello: load a model."""

    config: EngineConfig
    log_level: int  # the lowest level of log records to send
    beat_s: float  # time between two `Beat`s


@record(frozen=True)
class Beat:
    """The engine's heartbeat."""

    n_steps: int  # this and the others: see `Scheduler.pulse`
    n_rows: int
    is_busy: bool


@record(frozen=True)
class LogLine:
    """A log record of the engine."""

    name: str
    level: int
    text: str
    function: str
    line: int
    thread: str
    created: float  # seconds since the epoch
    trace: str  # a formatted traceback
    n_lost: int = 0  # records dropped before this one


ROUTINE = b"\x1f"
"""Marks lines on the engine's stderr that don't explain its death: llama.cpp's lines below the log level."""


@record(frozen=True)
class AskStacks:
    """To the engine: send the stacks of all Python threads."""


@record(frozen=True)
class Stacks:
    """The answer to `AskStacks`."""

    text: str


def list_classes(*modules: types.ModuleType) -> list[Any]:
    """The records defined in these modules, in order."""
    return [
        value
        for module in modules
        for value in vars(module).values()
        if is_record(value) and value.__module__ == module.__name__
    ]


def describe(layout: Iterable[tuple[str, list[tuple[str, Any]]]]) -> str:
    """A hash of the names of classes and their (field, annotation) pairs."""
    text = repr([(name, [(field, str(annotation)) for field, annotation in fields]) for name, fields in layout])
    return f"{zlib.crc32(text.encode()):08x}"


class Tail:
    """The bytes after a frame's JSON: collected by the encoder, cut into values by the decoder."""

    def __init__(self, data: bytes = b"") -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self._data = data
        self._places: dict[int, list[int]] = {}  # by id() of the value, which `parts` keeps alive
        self._packed: dict[int, tuple[object, bytes]] = {}  # by id() of the ints, which are kept alive here
        self._unpacked: dict[tuple[int, int], tuple[int, ...]] = {}

    def add(self, value: bytes) -> list[int]:
        """Append a value; return its place as [start, size]. The same object isn't appended twice."""
        if id(value) not in self._places:
            self._places[id(value)] = [self.size, len(value)]
            self.parts.append(value)
            self.size += len(value)
        return self._places[id(value)]

    def cut(self, place: Any) -> bytes:
        """The bytes at a place that `add` returned. WireError for any other value."""
        if type(place) is list and list(map(type, place)) == [int, int]:
            start, size = place
            if 0 <= start <= start + size <= len(self._data):
                return self._data[start : start + size]
        raise WireError("a bytes field is outside its frame")

    def add_ints(self, values: Sequence[int]) -> Any:
        """Add ints as 32 bits each, once per object; return their place for `cut_ints`.

        If there are fewer than `MIN_PACKED`, or one needs more bits, return the ints themselves.
        """
        if len(values) < MIN_PACKED:
            return values
        if id(values) not in self._packed:
            try:
                self._packed[id(values)] = values, array("i", values).tobytes()
            except OverflowError:
                return values
        return {INTS_KEY: self.add(self._packed[id(values)][1])}

    def cut_ints(self, value: dict[str, Any]) -> tuple[int, ...]:
        """The ints at a place that `add_ints` returned: the same tuple each time. WireError for any other value."""
        place: Any = value.get(INTS_KEY)
        data = self.cut(place)
        if len(value) > 1 or len(data) % array("i").itemsize:
            raise WireError("invalid packed numbers")
        key = tuple(place)
        if key not in self._unpacked:
            numbers = array("i")
            numbers.frombytes(data)
            self._unpacked[key] = tuple(numbers)
        return self._unpacked[key]


class Codec:
    """Converts messages to frames and back. Threads may share it."""

    def __init__(self) -> None:
        self._classes = [Hello, Start, Beat, LogLine, AskStacks, Stacks, *list_classes(task, config, shape)]
        self._numbers = {cls: number for number, cls in enumerate(self._classes)}
        self._fields = [self._fields_of(cls) for cls in self._classes]
        self._getters = [_make_getter([name for name, _ in fields]) for fields in self._fields]
        self._encoders = [
            [
                (place, encode)
                for place, (_, annotation) in enumerate(fields, 1)
                if (encode := _make_encoder(self, annotation)) is not None
            ]
            for fields in self._fields
        ]
        self._decoders = [[_make_decoder(self, annotation) for _, annotation in fields] for fields in self._fields]
        self._put_events_in_columns()
        self._write_tasks_by_changes()
        self.build = describe((cls.__name__, fields) for cls, fields in zip(self._classes, self._fields))
        self.hello = Hello(PROTOCOL, self.build)

    @staticmethod
    def _fields_of(cls: type) -> list[tuple[str, Any]]:
        hints = typing.get_type_hints(cls)
        return [(field.name, hints[field.name]) for field in fields(cls)]

    def _put_events_in_columns(self) -> None:
        """Use `encode_events` and `decode_events` for `Frame.events`."""
        number, names = self._numbers[task.Frame], [field.name for field in fields(task.Frame)]
        place, kinds = names.index("events"), typing.get_args(task.Event)

        def decode(value: Any, tail: Tail) -> Any:
            try:
                return decode_events(value, lambda row: self.decode_row(row, tail, kinds))
            except ValueError as error:
                raise WireError(str(error)) from None

        self._decoders[number][place] = decode
        self._encoders[number] = [(at, encode) for at, encode in self._encoders[number] if at != place + 1]
        self._encoders[number].append(
            (place + 1, lambda events, tail: encode_events(events, lambda event: self.encode_row(event, tail)))
        )

    def _write_tasks_by_changes(self) -> None:
        """Write each further task of a request as its changes from the one before."""
        number = self._numbers[task.Tasks]

        def encode(tasks: Sequence[task.Task], tail: Tail) -> list[Any]:
            return (
                [self.encode_row(tasks[0], tail), *map(self.encode_changes, tasks[1:], tasks, repeat(tail))]
                if tasks
                else []
            )

        def decode(rows: Any, tail: Tail) -> tuple[task.Task, ...]:
            if type(rows) is not list:
                raise WireError(f"{type(rows).__name__} instead of a sequence")
            tasks = [self.decode_row(row, tail, (task.Task,)) for row in rows[:1]]
            for row in rows[1:]:
                tasks.append(self.apply_changes(tasks[-1], row, tail))
            return tuple(tasks)

        self._encoders[number], self._decoders[number] = [(1, encode)], [decode]

    def encode_changes(self, message: Any, base: Any, tail: Tail) -> list[list[Any]]:
        """[place, value] pairs of the fields that aren't the same objects as in `base`, a message of the same class.
        Records in fields are again written as changes."""
        number = self._numbers[type(message)]
        encoders, values = dict(self._encoders[number]), self._getters[number](message)
        changes = []
        for place, (value, before) in enumerate(zip(values, self._getters[number](base))):
            if value is before:
                continue
            encode = encoders.get(place + 1)
            if type(value) in self._numbers and before is not None:
                value = self.encode_changes(value, before, tail)
            elif encode is not None:
                value = encode(value, tail)
            changes.append([place, value])
        return changes

    def apply_changes(self, base: Any, changes: Any, tail: Tail) -> Any:
        """The reverse of `encode_changes`."""
        number = self._numbers[type(base)]
        values, decoders = list(self._getters[number](base)), self._decoders[number]
        for change in changes if type(changes) is list else (None,):
            if type(change) is not list or len(change) != 2 or type(change[0]) is not int:
                raise WireError("invalid changes of a message")
            place, value = change
            if not 0 <= place < len(values):
                raise WireError(f"{type(base).__name__} has no field {place}")
            if type(values[place]) in self._numbers and value is not None:
                values[place] = self.apply_changes(values[place], value, tail)
            else:
                values[place] = decoders[place](value, tail)
        return type(base)(*values)

    def encode(self, message: Any) -> bytes:
        """A message as a frame. TypeError if it isn't a message, WireError if it is too long."""
        tail = Tail()
        data = _to_json(self.encode_row(message, tail)).encode("ascii")
        if len(data) > MAX_JSON or tail.size > MAX_TAIL:
            raise WireError(f"a frame of {len(data)} + {tail.size} bytes is too long")
        return b"".join((HEADER.pack(MAGIC, len(data), tail.size), data, *tail.parts))

    def decode(self, data: bytes, tail: bytes) -> Any:
        """The message of a frame. WireError if it is invalid."""
        try:
            return self.decode_row(json.loads(data), Tail(tail))
        except (ValueError, RecursionError) as error:
            raise WireError(f"a frame has invalid JSON: {str(error)[:100]}") from None

    def encode_row(self, message: Any, tail: Tail) -> list[Any]:
        """A message as a list: the number of its class, then its fields."""
        number = self._numbers.get(type(message))
        if number is None:
            raise TypeError(f"{type(message).__name__} is not a message of the seam")
        values = [number, *self._getters[number](message)]
        for place, encode in self._encoders[number]:
            values[place] = encode(values[place], tail)
        return values

    def decode_row(self, row: Any, tail: Tail, allowed: tuple[Any, ...] | None = None) -> Any:
        """The reverse of `encode_row`; `allowed` limits the classes."""
        number = row[0] if type(row) is list and row else None
        if type(number) is not int or not 0 <= number < len(self._classes):
            raise WireError("a frame has no message")
        cls, decoders = self._classes[number], self._decoders[number]
        if allowed is not None and cls not in allowed:
            raise WireError(f"{cls.__name__} is not allowed here")
        if len(row) != len(decoders) + 1:
            raise WireError(f"{cls.__name__} with {len(row) - 1} fields instead of {len(decoders)}")
        try:
            return cls(*[decode(value, tail) for decode, value in zip(decoders, row[1:])])
        except WireError as error:
            raise WireError(f"{cls.__name__}: {error}") from None


class FrameReader:
    """Reads messages from a stream of bytes. It keeps at most one incomplete frame in memory."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take bytes and yield the messages that they complete. WireError at the first invalid one."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEADER.size:
            magic, n_json, n_tail = HEADER.unpack_from(buffer, at)
            if magic != MAGIC:
                raise WireError(f"a frame can't begin with {bytes(buffer[at : at + 16])!r}")
            if n_json > MAX_JSON or n_tail > MAX_TAIL:
                raise WireError(f"a frame of {n_json} + {n_tail} bytes is too long")
            middle = at + HEADER.size + n_json
            if len(buffer) < middle + n_tail:
                break
            with memoryview(buffer) as view:
                text, tail = bytes(view[at + HEADER.size : middle]), bytes(view[middle : middle + n_tail])
            at = middle + n_tail
            yield self._codec.decode(text, tail)
        del buffer[:at]


# ---- values by annotation -----------------------------------------------------------------------------------------

Encoder = Callable[[Any, Tail], Any]
_SCALARS = (int, float, str, bool, type(None))


def _make_getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda message: tuple(getattr(message, name) for name in names)


def _union_of(annotation: Any) -> tuple[Any, ...] | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return None


def _make_encoder(codec: Codec, annotation: Any) -> Encoder | None:
    """The function that encodes a field; None if `json` does that (for its own types, and sequences of those)."""
    if annotation in _SCALARS:
        return None
    if annotation is bytes:
        return lambda value, tail: tail.add(value)
    if annotation is Any:
        return _encode_any
    if is_record(annotation):
        return codec.encode_row
    members = _union_of(annotation)
    if members is not None:
        return _make_union_encoder(codec, members)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation == tuple[int, ...]:
        return lambda values, tail: tail.add_ints(values)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        encode: Any = _make_encoder(codec, arguments[0])
        return None if encode is None else lambda values, tail: [encode(value, tail) for value in values]
    if origin is tuple:
        encoders = [_make_encoder(codec, argument) for argument in arguments]
        if not any(encoders):
            return None
        return lambda values, tail: [
            value if encode is None else encode(value, tail) for encode, value in zip(encoders, values)
        ]
    if origin is dict and arguments[0] is str:
        encode = _make_encoder(codec, arguments[1])
        return None if encode is None else lambda value, tail: {key: encode(item, tail) for key, item in value.items()}
    raise TypeError(f"{annotation} can't cross the seam")


def _make_union_encoder(codec: Codec, members: tuple[Any, ...]) -> Encoder | None:
    encoders = {member: _make_encoder(codec, member) for member in members}
    written = [encode for encode in encoders.values() if encode is not None]
    if not written:
        return None
    if all(is_record(member) or member in _SCALARS for member in members):
        return lambda value, tail: codec.encode_row(value, tail) if is_record(value) else value
    if len(members) == 2 and type(None) in members:
        return lambda value, tail: None if value is None else written[0](value, tail)
    raise TypeError(f"a choice of {members} can't cross the seam")


def _encode_any(value: Any, tail: Tail) -> Any:
    """Encode a value of a field annotated `Any`: bytes move to the tail; keys that begin with "$" get a second "$"."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, (tuple, list)):
        return [_encode_any(item, tail) for item in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {"$" + key if key.startswith("$") else key: _encode_any(item, tail) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {BYTES_KEY: tail.add(bytes(value))}
    raise TypeError(f"{type(value).__name__} can't cross the seam")


def _decode_any(value: Any, tail: Tail) -> Any:
    if type(value) is list:
        return tuple([_decode_any(item, tail) for item in value])
    if type(value) is dict:
        if list(value) == [BYTES_KEY]:
            return tail.cut(value[BYTES_KEY])
        return {key.removeprefix("$"): _decode_any(item, tail) for key, item in value.items()}
    return value


def _make_decoder(codec: Codec, annotation: Any) -> Encoder:
    if annotation in _SCALARS:
        return _make_scalar_decoder(annotation)
    if annotation is bytes:
        return lambda value, tail: tail.cut(value)
    if annotation is Any:
        return _decode_any
    if is_record(annotation):
        return lambda value, tail: codec.decode_row(value, tail, (annotation,))
    members = _union_of(annotation)
    if members is not None:
        return _make_union_decoder(codec, members)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _list_decoder(codec, arguments[0])
    if origin is tuple:
        return _make_row_decoder([_make_decoder(codec, argument) for argument in arguments])
    if origin is dict and arguments[0] is str:
        return _make_dict_decoder(_make_decoder(codec, arguments[1]))
    raise TypeError(f"{annotation} can't cross the seam")


def _get_accepted(annotation: type) -> frozenset[type]:
    """The types that a field may have: also ints in float fields, and bools in int fields."""
    return frozenset({float: (float, int), int: (int, bool)}.get(annotation, (annotation,)))


def _make_scalar_decoder(annotation: type) -> Encoder:
    accepted = _get_accepted(annotation)

    def decode(value: Any, tail: Tail) -> Any:
        if type(value) in accepted:
            return value
        raise WireError(f"{type(value).__name__} instead of {annotation.__name__}")

    return decode


def _list_decoder(codec: Codec, item: Any) -> Encoder:
    if item in _SCALARS:
        accepted = _get_accepted(item)

        def decode_scalars(value: Any, tail: Tail) -> Any:
            if type(value) is list and accepted.issuperset(map(type, value)):
                return tuple(value)
            if item is int and type(value) is dict:
                return tail.cut_ints(value)
            raise WireError(f"not a sequence of {item.__name__}")

        return decode_scalars
    decode = _make_decoder(codec, item)

    def decode_items(value: Any, tail: Tail) -> Any:
        if type(value) is list:
            return tuple([decode(part, tail) for part in value])
        raise WireError(f"{type(value).__name__} instead of a sequence")

    return decode_items


def _make_row_decoder(decoders: list[Encoder]) -> Encoder:
    def decode(value: Any, tail: Tail) -> Any:
        if type(value) is list and len(value) == len(decoders):
            return tuple([decode(part, tail) for decode, part in zip(decoders, value)])
        raise WireError(f"not a sequence of {len(decoders)} values")

    return decode


def _make_dict_decoder(decode: Encoder) -> Encoder:
    def decode_items(value: Any, tail: Tail) -> Any:
        if type(value) is dict:
            return {key: decode(item, tail) for key, item in value.items()}
        raise WireError(f"{type(value).__name__} instead of a dict")

    return decode_items


def _make_union_decoder(codec: Codec, members: tuple[Any, ...]) -> Encoder:
    scalars = frozenset().union(*(_get_accepted(member) for member in members if member in _SCALARS))
    messages = tuple(member for member in members if is_record(member))
    rest = [_make_decoder(codec, member) for member in members if member not in _SCALARS and member not in messages]

    def decode(value: Any, tail: Tail) -> Any:
        if type(value) in scalars:
            return value
        if messages:
            return codec.decode_row(value, tail, messages)
        if rest:
            return rest[0](value, tail)
        raise WireError(f"{type(value).__name__} instead of one of {len(members)} kinds")

    return decode


# ---- the events of a frame -------------------------------------------------------------------------------------------

# Nearly all events are pieces without probabilities and timings. Consecutive ones are written as columns (ids, tokens,
# texts), which a few calls in C write and check.
# Not taken: columns in `Frame` itself, which every reader of events would have to handle.
COLUMNS = -1
"""Begins a row of columns, instead of a class's number."""
_INTS, _STRINGS, _LISTS = frozenset((int,)), frozenset((str,)), frozenset((list,))


def encode_events(events: Iterable[Event], row: Callable[[Event], list[Any]]) -> list[list[Any]]:
    """Encode events as rows; `row` encodes a single event."""
    rows: list[list[Any]] = []
    tokens: list[tuple[int, ...]]
    texts: list[str]
    ids: list[int] | None = None
    for event in events:
        if type(event) is Piece and not event.probs and event.timings is None:
            if ids is None:
                ids, tokens, texts = [], [], []
                rows.append([COLUMNS, ids, tokens, texts])
            ids.append(event.id)
            tokens.append(event.tokens)
            texts.append(event.text)
        else:
            ids = None
            rows.append(row(event))
    return rows


def decode_events(rows: Any, event: Callable[[Any], Event]) -> tuple[Event, ...]:
    """The reverse of `encode_events`; `event` decodes a single row. ValueError for invalid rows."""
    if type(rows) is not list:
        raise ValueError(f"{type(rows).__name__} instead of a sequence")
    events: list[Event] = []
    for row in rows:
        if type(row) is list and row and row[0] == COLUMNS:
            events += _decode_pieces(row)
        else:
            events.append(event(row))
    return tuple(events)


def _decode_pieces(row: list[Any]) -> list[Piece]:
    if len(row) == 4 and _LISTS.issuperset(map(type, row[1:])):
        _, ids, tokens, texts = row
        if (
            len(ids) == len(tokens) == len(texts)
            and _INTS.issuperset(map(type, ids))
            and _STRINGS.issuperset(map(type, texts))
            and _LISTS.issuperset(map(type, tokens))
            and all([_INTS.issuperset(map(type, some)) for some in tokens])
        ):
            return list(map(Piece, ids, map(tuple, tokens), texts))
    raise ValueError("invalid columns of pieces")
