"""The attributes, methods and items of values: `value.name` and `value[key]`.

Runs on the thread that renders. The tables below are the sandbox: what isn't in a type's table is undefined, so a
template reaches no other attribute of Python objects. As in jinja2, `value.name` looks first for an attribute of the
type, `value[key]` first for an item. Methods that change a list or dictionary may be used only if `run.mutable`;
otherwise they are forbidden, as in jinja2's immutable sandbox. Not taken: `getattr` with a list of forbidden names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .errors import SecurityError
from .formatting import format_text
from .limits import LARGE_TEXT, TEXT_PER_STEP, Run
from .marked import Marked, escape, is_safe
from .text import ITEMS, KEYS, VALUES, guard, to_soft_text
from .values import BoundMethod, Cycler, Group, Joiner, Loop, Macro, Namespace, Undefined

Method = Callable[..., Any]

# Python's names that begin with an underscore: forbidden as `value.name`, even if a dictionary has the key
HIDDEN = frozenset(name for kind in (dict, str, list) for name in dir(kind) if name.startswith("_"))

TEXT_METHODS = (
    "capitalize",
    "casefold",
    "count",
    "endswith",
    "find",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "rfind",
    "rindex",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
)
PADDING_METHODS = ("center", "ljust", "rjust", "zfill")


def get_attribute(run: Run, owner: Any, name: str) -> Any:
    """`owner.name`: first the attributes of the type, then a dictionary's item of that name."""
    found = find_type_attribute(run, owner, name)
    if found is not None:
        return found[0]
    if type(owner) is dict and name in owner:
        return owner[name]
    return Undefined(owner=owner, name=name)


def get_item(run: Run, owner: Any, key: Any) -> Any:
    """`owner[key]`: first the item, then the attributes of the type."""
    if type(key) is tuple:
        guard(run, key)
    try:
        return owner[key]
    except (TypeError, LookupError):
        if isinstance(key, str):
            found = find_type_attribute(run, owner, str.__str__(key))
            if found is not None:
                return found[0]
    return Undefined(owner=owner, name=key)


def find_type_attribute(run: Run, owner: Any, name: str) -> tuple[Any] | None:
    """The type's attribute or method `name`, in a tuple; None if there is none. A forbidden one is an `Undefined`.
    Raises if `owner` is an `Undefined`."""
    kind = type(owner)
    if kind is Namespace:
        if name in owner.values:
            return (_make_unsafe(owner, name) if name.startswith("_") else owner.values[name],)
        return None
    if kind is Undefined:
        owner.fail()
    field = FIELDS.get(kind, {}).get(name)
    if field is not None:
        return (field(owner),)
    method = METHODS.get(kind, {}).get(name)
    if method is not None:
        return (BoundMethod(owner, name, method),)
    change = CHANGES.get(kind, {}).get(name)
    if change is not None:
        return (BoundMethod(owner, name, change) if run.mutable else _make_unsafe(owner, name),)
    return (_make_unsafe(owner, name),) if name in HIDDEN else None


def _make_unsafe(owner: Any, name: str) -> Undefined:
    return Undefined(
        f"access to attribute {name!r} of a {type(owner).__name__} is not allowed in templates",
        owner,
        name,
        SecurityError,
    )


# ------------------------------------------------------------------------------------------ strings


def _make_text_method(name: str) -> Method:
    plain, marked = getattr(str, name), getattr(Marked, name)

    def call_method(run: Run, owner: str, /, *args: Any, **kwargs: Any) -> Any:
        if len(owner) > LARGE_TEXT:
            run.spend(len(owner) // TEXT_PER_STEP)
        if type(owner) is str:
            return plain(owner, *args, **kwargs)
        return marked(owner, *args, **kwargs)

    return call_method


def _make_padding_method(name: str) -> Method:
    marked = getattr(Marked, name)

    def call_method(run: Run, owner: str, width: int, /, *fill: str) -> str:
        run.count_text(width)
        return marked(_with_marks(owner), width, *fill)

    return call_method


def _with_marks(text: str) -> Marked:
    """The string as `Marked`, whose methods keep the marks of strings that they insert."""
    return text if type(text) is Marked else Marked(text, ())


def _expandtabs(run: Run, owner: str, /, tabsize: int = 8) -> str:
    run.count_text(len(owner) + owner.count("\t") * max(tabsize, 0))
    return owner.expandtabs(tabsize)


def _format(run: Run, owner: str, /, *args: Any, **kwargs: Any) -> str:
    return format_text(run, owner, args, kwargs, (get_attribute, get_item))


def _format_map(run: Run, owner: str, mapping: dict[str, Any], /) -> str:
    if type(mapping) is not dict:
        raise TypeError("format_map() needs a mapping")
    return format_text(run, owner, (), mapping, (get_attribute, get_item))


def join_text(run: Run, separator: str, items: Iterable[Any], /) -> str:
    texts = list(items)
    run.count_items(len(texts))
    if is_safe(separator):  # joins values of any type, as jinja2's Markup does
        texts = [escape(to_soft_text(run, text)) for text in texts]
    run.count_text(sum(len(text) for text in texts if isinstance(text, str)) + len(separator) * len(texts))
    if type(separator) is str and Marked not in set(map(type, texts)):
        return separator.join(texts)
    return _with_marks(separator).join(texts)


def replace_text(run: Run, text: str, old: str, new: str, count: int = -1) -> str:
    times = text.count(old) if count < 0 else min(count, text.count(old))
    run.count_text(len(text) + times * max(len(new) - len(old), 0))
    if Marked in (type(text), type(new)):
        return _with_marks(text).replace(old, new, count)
    return text.replace(old, new, count)


# ------------------------------------------------------------------------------------------ containers


def _search(name: str, kind: type) -> Method:
    plain = getattr(kind, name)

    def call_method(run: Run, owner: list[Any] | tuple[Any, ...], item: Any, /, *bounds: int) -> int:
        guard(run, item, owner)
        return plain(owner, item, *bounds)

    return call_method


def _make_key_method(name: str) -> Method:
    plain = getattr(dict, name)

    def call_method(run: Run, owner: dict[Any, Any], key: Any, /, *default: Any) -> Any:
        guard(run, key)
        return plain(owner, key, *default)

    return call_method


def _copy(run: Run, owner: list[Any] | dict[Any, Any], /) -> Any:
    run.count_items(len(owner))
    return owner.copy()


def _update(run: Run, owner: dict[Any, Any], /, *args: Any, **kwargs: Any) -> None:
    for pairs in args:
        guard(run, pairs)
    owner.update(*args, **kwargs)
    run.count_items(len(owner))


def _append(run: Run, owner: list[Any], item: Any, /) -> None:
    run.count_items(len(owner))
    owner.append(item)


def _extend(run: Run, owner: list[Any], items: Iterable[Any], /) -> None:
    added = list(items)
    run.count_items(len(owner) + len(added))
    owner.extend(added)


def _insert(run: Run, owner: list[Any], position: int, item: Any, /) -> None:
    run.count_items(len(owner))
    owner.insert(position, item)


def _remove(run: Run, owner: list[Any], item: Any, /) -> None:
    guard(run, item, owner)
    owner.remove(item)


def _sort(run: Run, owner: list[Any], /, *, reverse: bool = False) -> None:
    guard(run, owner)
    owner.sort(reverse=reverse)


def _make_plain_method(call: Callable[..., Any]) -> Method:
    """A method whose cost is bounded by the size of its value."""
    return lambda run, owner, /, *args: call(owner, *args)


# ------------------------------------------------------------------------------------------ loop


def _cycle(run: Run, loop: Loop, /, *items: Any) -> Any:
    if not items:
        raise TypeError("no items for cycling given")
    return items[loop.index0 % len(items)]


def _changed(run: Run, loop: Loop, /, *values: Any) -> bool:
    guard(run, values)
    return loop.changed(values)


def _reset(run: Run, cycler: Cycler, /) -> None:
    cycler.position = 0


# ------------------------------------------------------------------------------------------ tables

NUMBER_FIELDS = {"real": lambda n: n.real, "imag": lambda n: n.imag}

FIELDS: dict[type, dict[str, Callable[..., Any]]] = {
    Loop: {
        "index": lambda loop: loop.index0 + 1,
        "index0": lambda loop: loop.index0,
        "revindex": lambda loop: len(loop) - loop.index0,
        "revindex0": lambda loop: len(loop) - loop.index0 - 1,
        "first": lambda loop: loop.index0 == 0,
        "last": Loop.is_last,
        "length": len,
        "depth": lambda loop: loop.depth0 + 1,
        "depth0": lambda loop: loop.depth0,
        "previtem": Loop.previtem,
        "nextitem": Loop.nextitem,
    },
    Macro: {
        "name": lambda macro: macro.name,
        "arguments": lambda macro: macro.parameters,
        "catch_kwargs": lambda macro: macro.takes_kwargs,
        "catch_varargs": lambda macro: macro.takes_varargs,
        "caller": lambda macro: macro.takes_caller,
        "explicit_caller": lambda macro: "caller" in macro.parameters,
    },
    Cycler: {
        "current": lambda cycler: cycler.items[cycler.position],
        "pos": lambda cycler: cycler.position,
        "items": lambda cycler: cycler.items,
    },
    Joiner: {"sep": lambda joiner: joiner.separator, "used": lambda joiner: joiner.used},
    Group: {"grouper": lambda group: group[0], "list": lambda group: group[1]},
    range: {"start": lambda r: r.start, "stop": lambda r: r.stop, "step": lambda r: r.step},
    bool: {**NUMBER_FIELDS, "numerator": lambda n: n.numerator, "denominator": lambda n: n.denominator},
    int: {**NUMBER_FIELDS, "numerator": lambda n: n.numerator, "denominator": lambda n: n.denominator},
    float: NUMBER_FIELDS,
}

_TEXT: dict[str, Method] = {
    **{name: _make_text_method(name) for name in TEXT_METHODS},
    **{name: _make_padding_method(name) for name in PADDING_METHODS},
    "expandtabs": _expandtabs,
    "format": _format,
    "format_map": _format_map,
    "join": join_text,
    "replace": lambda run, text, old, new, count=-1, /: replace_text(run, text, old, new, count),
}
_INTEGER: dict[str, Method] = {
    "bit_length": _make_plain_method(int.bit_length),
    "conjugate": _make_plain_method(int.conjugate),
}
_PAIR: dict[str, Method] = {"count": _search("count", tuple), "index": _search("index", tuple)}

METHODS: dict[type, dict[str, Method]] = {
    str: _TEXT,
    Marked: _TEXT,
    dict: {
        "copy": _copy,
        "get": _make_key_method("get"),
        "items": _make_plain_method(dict.items),
        "keys": _make_plain_method(dict.keys),
        "values": _make_plain_method(dict.values),
    },
    list: {"copy": _copy, "count": _search("count", list), "index": _search("index", list)},
    tuple: _PAIR,
    Group: _PAIR,
    range: {"count": _make_plain_method(range.count), "index": _make_plain_method(range.index)},
    bool: _INTEGER,
    int: _INTEGER,
    float: {"is_integer": _make_plain_method(float.is_integer), "conjugate": _make_plain_method(float.conjugate)},
    KEYS: {},
    VALUES: {},
    ITEMS: {},
    Loop: {"cycle": _cycle, "changed": _changed},
    Cycler: {"next": _make_plain_method(Cycler.next), "reset": _reset},
}

# methods that change their value
CHANGES: dict[type, dict[str, Method]] = {
    dict: {
        "clear": _make_plain_method(dict.clear),
        "pop": _make_key_method("pop"),
        "popitem": _make_plain_method(dict.popitem),
        "setdefault": _make_key_method("setdefault"),
        "update": _update,
    },
    list: {
        "append": _append,
        "clear": _make_plain_method(list.clear),
        "extend": _extend,
        "insert": _insert,
        "pop": _make_plain_method(list.pop),
        "remove": _remove,
        "reverse": _make_plain_method(list.reverse),
        "sort": _sort,
    },
}

# `dict.name` with one of these names never reads a key
DICT_NAMES = HIDDEN | set(METHODS[dict]) | set(CHANGES[dict])
