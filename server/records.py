"""`record`: a dataclass whose methods are compiled when they are first needed. A leaf; imports the standard library.

`dataclasses.dataclass` writes and compiles the source of six methods for each class, half a millisecond: for the 27
messages of the seam and the 33 kinds of template nodes that was a quarter of the time in which either process starts,
and most of these methods are never called. Here `__init__` is compiled at the first call, and the others are functions
that all records share. What comes out is a dataclass (`fields`, `replace`, `asdict`, `is_dataclass`, patterns, copying
and pickling work), always with slots.

Not taken: named tuples, which compare equal to any tuple and can't be changed; fewer, larger classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from typing import dataclass_transform  # of Python 3.11; only the type checker needs it
else:

    def dataclass_transform(**_: object) -> Callable[[T], T]:
        """Nothing at run time."""
        return lambda function: function


T = TypeVar("T", bound=type)
_ABSENT = object()


@overload
def record(cls: T, /) -> T: ...
@overload
def record(cls: None = None, /, *, frozen: bool = False, eq: bool = True) -> Callable[[T], T]: ...
@dataclass_transform(field_specifiers=(dataclasses.field,))
def record(cls: T | None = None, /, *, frozen: bool = False, eq: bool = True) -> T | Callable[[T], T]:
    """Like `dataclass(slots=True, frozen=frozen, eq=eq)`, for classes without `InitVar` and `order`."""
    if cls is None:
        return lambda cls: _made(cls, frozen, eq)
    return _made(cls, frozen, eq)


def _made(cls: Any, frozen: bool, eq: bool) -> Any:
    cls.__doc__ = cls.__doc__ or cls.__name__  # else it would be made of the signature, slowly
    cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)  # this compiles nothing
    cls.__init__ = _init_at_first_call(cls, frozen)
    if "__repr__" not in cls.__dict__:
        cls.__repr__ = _repr
    if eq:
        cls.__eq__, hash_ = _comparisons(cls)
        cls.__hash__ = hash_ if frozen else None
    if frozen:
        cls.__setattr__ = cls.__delattr__ = _refuse
        cls.__getstate__, cls.__setstate__ = _state, _set_state
    return cls


def _init_at_first_call(cls: Any, frozen: bool) -> Callable[..., None]:
    def __init__(self: object, *args: object, **kwargs: object) -> None:
        cls.__init__ = _compiled_init(cls, frozen)
        cls.__init__(self, *args, **kwargs)

    return __init__


def _compiled_init(cls: Any, frozen: bool) -> Callable[..., None]:
    """`def __init__(self, a, b=..., *, c=...)`, each field assigned in order."""
    scope: dict[str, Any] = {"_absent": _ABSENT, "_set": object.__setattr__}
    places: dict[Any, list[str]] = {False: [], True: []}
    body = []
    for field in dataclasses.fields(cls):
        name, value, default = field.name, field.name, ""
        if field.default_factory is not dataclasses.MISSING:
            scope[f"_make_{name}"] = field.default_factory
            value, default = f"_make_{name}() if {name} is _absent else {name}", "=_absent"
        elif field.default is not dataclasses.MISSING:
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
    exec(source, scope)  # nothing but the names of fields, as in the standard library
    init = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _comparisons(cls: Any) -> tuple[Callable[..., bool], Callable[..., int]]:
    """`__eq__` and `__hash__` over the fields that count."""
    names = [field.name for field in dataclasses.fields(cls) if field.compare]
    values = attrgetter(*names) if names else type

    def __eq__(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:
        return hash(values(self))

    return __eq__, __hash__


@recursive_repr()
def _repr(self: Any) -> str:
    shown = [f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr]
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse(self: object, name: str, *value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


def _state(self: Any) -> list[object]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[object]) -> None:
    for field, value in zip(dataclasses.fields(self), state):
        object.__setattr__(self, field.name, value)
