"""The types of values in templates, besides Python's own types and `Marked`.

The thread that renders a template uses them. `attributes` has tables of the names that templates may access. The
double-underscore methods give Python's operators the meaning that they have in jinja2. Not taken: jinja2's sandbox,
which gives templates real Python objects and filters their operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from .errors import UndefinedError
from .limits import Run


class Missing:
    """The type of `MISSING`, which stands for a variable without a value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


class Undefined:
    """The value of an undefined name or attribute. It prints as nothing, is false and empty, and equals other undefined
    values; arithmetic, order and access fail."""

    __slots__ = ("_hint", "_owner", "_name", "_error")

    def __init__(
        self, hint: str | None = None, owner: Any = MISSING, name: Any = None, error: type[Exception] = UndefinedError
    ) -> None:
        self._hint = hint
        self._owner = owner
        self._name = name
        self._error = error

    def describe(self) -> str:
        if self._hint:
            return self._hint
        if self._owner is MISSING:
            return f"{self._name!r} is undefined"
        if isinstance(self._name, str):
            return f"{describe_type(self._owner)!r} has no attribute {self._name!r}"
        return f"{describe_type(self._owner)} has no element {self._name!r}"

    def fail(self, *_: Any, **__: Any) -> NoReturn:
        raise self._error(self.describe())

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = fail
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __pos__ = __neg__ = fail
    __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = fail

    def __eq__(self, other: Any) -> bool:
        return type(other) is Undefined

    def __hash__(self) -> int:
        return hash(Undefined)

    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        return "Undefined"

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False


def describe_type(value: Any) -> str:
    """The name of a type in messages, as in jinja2: `dict object`."""
    return "None" if value is None else f"{type(value).__name__.lower().replace('marked', 'str')} object"


class Namespace:
    """`namespace(...)`: the only value whose attributes a template may assign."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"<Namespace {self.values!r}>"


class Function:
    """A global function: `call(run, *args, **kwargs)`."""

    __slots__ = ("name", "call")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self.name = name
        self.call = call

    def __repr__(self) -> str:
        return f"<function {self.name}>"


class BoundMethod:
    """A method of a value: `call(run, owner, *args, **kwargs)`."""

    __slots__ = ("owner", "name", "call")

    def __init__(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self.call = call

    def __repr__(self) -> str:
        return f"<method {self.name} of {describe_type(self.owner)}>"


class Macro:
    """A macro or the body of a call block. `body(arguments)` renders it.

    The arguments are the `parameters` in order (`MISSING` if not given), then, if the body uses them, `caller`, a dict
    of the remaining named arguments, and a tuple of the remaining positional ones.
    """

    __slots__ = ("name", "parameters", "body", "takes_caller", "takes_kwargs", "takes_varargs")

    def __init__(
        self, name: str | None, parameters: tuple[str, ...], body: Callable[[list[Any]], str], takes: frozenset[str]
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.body = body
        self.takes_caller = "caller" in takes
        self.takes_kwargs = "kwargs" in takes
        self.takes_varargs = "varargs" in takes

    def __repr__(self) -> str:
        return f"<Macro {'anonymous' if self.name is None else repr(self.name)}>"

    def call(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        arguments = self._bind(args, kwargs)
        run.enter()
        try:
            return self.body(arguments)
        finally:
            run.leave()

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        count = len(self.parameters)
        arguments = list(args[:count])
        has_caller = len(arguments) == count and "caller" in self.parameters
        for name in self.parameters[len(arguments) :]:
            arguments.append(kwargs.pop(name, MISSING))
            has_caller = has_caller or name == "caller"
        if self.takes_caller and not has_caller:
            caller = kwargs.pop("caller", None)
            arguments.append(Undefined("No caller defined", name="caller") if caller is None else caller)
        if self.takes_kwargs:
            arguments.append(kwargs)
        elif kwargs:
            raise TypeError(f"macro {self.name!r} takes no keyword argument {next(iter(kwargs))!r}")
        if self.takes_varargs:
            arguments.append(args[count:])
        elif len(args) > count:
            raise TypeError(f"macro {self.name!r} takes at most {count} argument(s)")
        return arguments


class Loop:
    """The `loop` variable, and the iterator that updates it.

    `render(items, depth)` renders the loop's body for other items (only in `recursive` loops).
    """

    __slots__ = (
        "items",
        "iterator",
        "render",
        "depth0",
        "index0",
        "_length",
        "_after",
        "_current",
        "_before",
        "_changed",
    )

    def __init__(self, items: Iterable[Any], render: Callable[[Any, int], str] | None = None, depth0: int = 0) -> None:
        self.items = items
        self.iterator = iter(items)
        self.render = render
        self.depth0 = depth0
        self.index0 = -1
        self._length: int | None = None
        self._after: Any = MISSING
        self._current: Any = MISSING
        self._before: Any = MISSING
        self._changed: Any = MISSING

    def __iter__(self) -> Loop:
        return self

    def __next__(self) -> Any:
        if self._after is not MISSING:
            item, self._after = self._after, MISSING
        else:
            item = next(self.iterator)
        self.index0 += 1
        self._before, self._current = self._current, item
        return item

    def __len__(self) -> int:
        if self._length is None:
            try:
                self._length = len(self.items)  # type: ignore[arg-type]
            except TypeError:
                rest = list(self.iterator)
                self.iterator = iter(rest)
                self._length = len(rest) + self.index0 + 1 + (self._after is not MISSING)
        return self._length

    def _peek(self) -> Any:
        if self._after is MISSING:
            self._after = next(self.iterator, MISSING)
        return self._after

    def is_last(self) -> bool:
        return self._peek() is MISSING

    def previtem(self) -> Any:
        return Undefined("there is no previous item") if self.index0 == 0 else self._before

    def nextitem(self) -> Any:
        item = self._peek()
        return Undefined("there is no next item") if item is MISSING else item

    def changed(self, values: tuple[Any, ...]) -> bool:
        """Whether the values differ from those of the last call."""
        if self._changed != values:
            self._changed = values
            return True
        return False

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """`loop(items)` inside a recursive loop."""
        if self.render is None:
            raise TypeError("the loop must be marked 'recursive' to be called")
        if len(args) != 1 or kwargs:
            raise TypeError("loop() takes exactly one argument")
        return self.render(args[0], self.depth0 + 1)

    def __repr__(self) -> str:
        return f"<LoopContext {self.index0 + 1}/{len(self)}>"


class Cycler:
    """`cycler(a, b, ...)`: its items in turn."""

    __slots__ = ("items", "position")

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items
        self.position = 0

    def next(self) -> Any:
        item = self.items[self.position]
        self.position = (self.position + 1) % len(self.items)
        return item

    def __repr__(self) -> str:
        return "<Cycler>"


class Joiner:
    """`joiner(sep)`: empty at the first call, the separator afterwards."""

    __slots__ = ("separator", "used")

    def __init__(self, separator: Any) -> None:
        self.separator = separator
        self.used = False

    def call(self) -> Any:
        if not self.used:
            self.used = True
            return ""
        return self.separator

    def __repr__(self) -> str:
        return "<Joiner>"


class Group(tuple):
    """An item of the `groupby` filter: a pair whose elements are also called `grouper` and `list`."""

    __slots__ = ()


def call_value(run: Run, callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kind = type(callee)
    if kind is BoundMethod:
        return callee.call(run, callee.owner, *args, **kwargs)
    if kind is Function:
        return callee.call(run, *args, **kwargs)
    if kind is Macro:
        return callee.call(run, args, kwargs)
    if kind is Loop:
        return callee.call(args, kwargs)
    if kind is Undefined:
        callee.fail()
    if kind is Joiner and not args and not kwargs:
        return callee.call()
    raise TypeError(f"{describe_type(callee)!r} is not callable")


CALLABLE_TYPES = (BoundMethod, Function, Macro, Loop, Undefined, Joiner)
