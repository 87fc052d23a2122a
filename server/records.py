"""`record`: a replacement for `dataclasses.dataclass` that is faster to import. A leaf.

The two processes define about two hundred such classes before a server is ready. `dataclasses.dataclass` compiles up to
six methods for each, which takes half a millisecond; importing `dataclasses` takes four. A record's `__init__` is
compiled at its first call. `__eq__` and `__hash__` are closures; the other methods are shared. `dataclasses` is
imported only when its functions are used on a record, or when a frozen one refuses a change. `fields`, `replace`,
`asdict`, `is_dataclass`, pattern matching, copying and pickling work.

Not taken: named tuples, which equal any tuple with the same items and can't be changed; fewer, larger classes; a lazy
import of `inspect`, which isn't safe when two threads use it first.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from dataclasses import field, fields, replace
    from dataclasses import is_dataclass as is_record
    from typing import dataclass_transform  # of Python 3.11; only the type checker needs it
else:

    def dataclass_transform(**_: object) -> Callable[[T], T]:
        """Has no effect at run time."""
        return lambda function: function

    def field(**said: object) -> Field:
        """See `dataclasses.field`."""
        return Field(**said)

    def fields(record: Any) -> tuple[Field, ...]:
        return tuple(record.__record_fields__.values())

    def is_record(value: object) -> bool:
        return hasattr(value, "__record_fields__")

    def replace(record: T, /, **changes: object) -> T:
        for field in record.__record_fields__.values():
            if field.init and field.name not in changes:
                changes[field.name] = getattr(record, field.name)
        return record.__class__(**changes)


__all__ = ["Field", "dataclass_transform", "field", "fields", "is_record", "record", "replace"]

T = TypeVar("T", bound=type)
_ABSENT: Any = object()


class Field:
    """One field of a record: most of what `dataclasses.field` takes, and its name and annotation."""

    __slots__ = ("compare", "default", "default_factory", "init", "kw_only", "name", "repr", "type")
    name: str
    type: Any

    def __init__(
        self,
        default: Any = _ABSENT,
        default_factory: Any = _ABSENT,
        init: bool = True,
        repr: bool = True,
        compare: bool = True,
        kw_only: bool = False,
    ) -> None:
        self.default, self.default_factory = default, default_factory
        self.init, self.repr, self.compare, self.kw_only = init, repr, compare, kw_only


@overload
def record(cls: T, /) -> T: ...
@overload
def record(cls: None = None, /, *, frozen: bool = False, eq: bool = True) -> Callable[[T], T]: ...
@dataclass_transform(field_specifiers=(field,))
def record(cls: T | None = None, /, *, frozen: bool = False, eq: bool = True) -> T | Callable[[T], T]:
    """Like `dataclass(slots=True, frozen=frozen, eq=eq)`, for classes without `ClassVar`, `InitVar` and `order`. But
    `eq` replaces the class's own `__eq__` and `__hash__`."""
    if cls is None:
        return lambda cls: _make_class(cls, frozen, eq)
    return _make_class(cls, frozen, eq)


def _make_class(cls: Any, frozen: bool, eq: bool) -> Any:
    """A new class with slots and the same content: slots can't be added to an existing class."""
    body = dict(cls.__dict__)
    all_fields: dict[str, Field] = {}
    for base in cls.__mro__[:0:-1]:
        all_fields.update(base.__dict__.get("__record_fields__", ()))
    inherited = set(all_fields)
    for name, annotation in cls.__annotations__.items():
        default = body.pop(name, _ABSENT)
        if type(default) is not Field:
            if default.__class__.__hash__ is None or default.__class__.__module__ == "dataclasses":
                raise TypeError(f"{name}: all would share this default; use `field` of this module")
            default = Field(default)
        default.name, default.type = name, annotation
        all_fields[name] = default
    body.pop("__dict__", None)
    body.pop("__weakref__", None)
    body["__slots__"] = tuple([name for name in all_fields if name not in inherited])
    body["__qualname__"] = cls.__qualname__
    body["__record_fields__"] = all_fields
    body["__dataclass_fields__"] = _ASKED
    body["__match_args__"] = tuple([field.name for field in all_fields.values() if field.init and not field.kw_only])
    body.setdefault("__repr__", _format_record)
    if eq:
        body["__eq__"], hash_ = _make_comparisons(all_fields)
        body["__hash__"] = hash_ if frozen else None
    if frozen:
        body["__setattr__"] = body["__delattr__"] = _refuse
        body["__getstate__"], body["__setstate__"] = _get_state, _set_state
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__init__ = _init_at_first_call(made, frozen)
    return made


def _init_at_first_call(cls: Any, frozen: bool) -> Callable[..., None]:
    def __init__(self: object, *args: object, **kwargs: object) -> None:
        cls.__init__ = _compile_init(cls, frozen)
        cls.__init__(self, *args, **kwargs)

    return __init__


def _compile_init(cls: Any, frozen: bool) -> Callable[..., None]:
    """Compile `def __init__(self, a, b=..., *, c=...)`, which assigns each field in order."""
    scope: dict[str, Any] = {"_absent": _ABSENT, "_set": object.__setattr__}
    places: dict[Any, list[str]] = {False: [], True: []}
    body = []
    for name, field in cls.__record_fields__.items():
        value, default = name, ""
        if field.default_factory is not _ABSENT:
            scope[f"_make_{name}"] = field.default_factory
            value, default = f"_make_{name}() if {name} is _absent else {name}", "=_absent"
        elif field.default is not _ABSENT:
            scope[f"_default_{name}"] = field.default
            default = f"=_default_{name}"
        if field.init:
            places[field.kw_only].append(name + default)
        elif default:
            scope[name] = _ABSENT if default == "=_absent" else field.default
        else:
            continue
        body.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = ["self", *places[False], *(["*", *places[True]] if places[True] else [])]
    source = f"def __init__({', '.join(parameters)}):\n  " + "\n  ".join(body or ["pass"])
    exec(source, scope)  # the source is made of names of fields alone, as in the standard library
    init = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _make_comparisons(all_fields: dict[str, Field]) -> tuple[Callable[..., bool], Callable[..., int]]:
    """`__eq__` and `__hash__` over the fields with `compare`."""
    names = [name for name, field in all_fields.items() if field.compare]
    values = attrgetter(*names) if names else type

    def __eq__(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:
        return hash(values(self))

    return __eq__, __hash__


@recursive_repr()
def _format_record(self: Any) -> str:
    shown = [f"{name}={getattr(self, name)!r}" for name, field in self.__record_fields__.items() if field.repr]
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse(self: object, name: str, *value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


def _get_state(self: Any) -> list[object]:
    return [getattr(self, name) for name in self.__record_fields__]


def _set_state(self: Any, state: list[object]) -> None:
    for name, value in zip(self.__record_fields__, state):
        object.__setattr__(self, name, value)


class _Asked:
    """The attribute `__dataclass_fields__` of a record, computed when `dataclasses` reads it."""

    def __get__(self, record: object, cls: Any) -> dict[str, Any]:
        import dataclasses

        rows = []
        for field in cls.__record_fields__.values():
            said = {name: getattr(field, name) for name in ("init", "repr", "compare", "kw_only")}
            for name in ("default", "default_factory"):
                if (value := getattr(field, name)) is not _ABSENT:
                    said[name] = value
            rows.append((field.name, field.type, dataclasses.field(**said)))
        bare: Any = dataclasses.make_dataclass(cls.__name__, rows, init=False, repr=False, eq=False)
        cls.__dataclass_fields__ = bare.__dataclass_fields__
        return cls.__dataclass_fields__


_ASKED = _Asked()
