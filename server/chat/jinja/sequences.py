"""The filters for sequences: `map`, `select`, `sort`, `join`, ...

They run on the thread that renders the template. Each filter is `call(run, value, *args, **kwargs)` with the parameter
names of jinja2. As in jinja2, many are lazy: their results are true even if empty, have no length, and can be iterated
only once. Not taken: returning lists everywhere; some templates depend on lazy results.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .attributes import get_item, join_text
from .errors import TemplateRuntimeError
from .limits import Run
from .operators import add
from .text import guard, to_text
from .values import Group, Undefined

Getter = Callable[[Any], Any]


def attribute_getter(run: Run, attribute: Any, default: Any = None, fold_case: bool = False) -> Getter:
    """A function that looks up `attribute`: None (the item itself), an index, or names joined by dots."""
    if isinstance(attribute, str):
        path: list[Any] = [int(name) if name.isdigit() else name for name in attribute.split(".")]
    else:
        path = [] if attribute is None else [attribute]

    def get_value(item: Any) -> Any:
        for name in path:
            item = get_item(run, item, name)
            if default is not None and type(item) is Undefined:
                item = default
        if fold_case:
            return item.lower() if isinstance(item, str) else item
        return item

    return get_value


def _sort_key(run: Run, attribute: Any, fold_case: bool) -> Getter:
    """A function that makes the sort key from one or more attributes, separated by commas."""
    names = attribute.split(",") if isinstance(attribute, str) else [attribute]
    getters = [attribute_getter(run, name, fold_case=fold_case) for name in names]

    def make_key(item: Any) -> list[Any]:
        return [getter(item) for getter in getters]

    return make_key


def _sort(run: Run, items: Iterable[Any], key: Getter, reverse: bool) -> list[Any]:
    keyed = [(key(item), item) for item in _count(run, items)]
    guard(run, [key for key, _ in keyed])
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0], reverse=reverse)]


def _count(run: Run, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        run.tick()
        yield item


def _get_named(run: Run, kind: str, name: Any) -> Callable[..., Any]:
    """The filter or test that the template names in a string."""
    table = run.filters if kind == "filter" else run.tests
    call = table.get(name) if isinstance(name, str) else None
    if call is None:
        raise TemplateRuntimeError(f"No {kind} named {name!r}.")
    return call


def do_map(run: Run, value: Any, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """An attribute of each item, or the result of a filter for each item."""
    if not value:
        return
    if not args and "attribute" in kwargs:
        get_value = attribute_getter(run, kwargs.pop("attribute"), kwargs.pop("default", None))
        if kwargs:
            raise TypeError(f"Unexpected keyword argument {next(iter(kwargs))!r}")
    elif args:

        def get_value(item: Any) -> Any:
            return _get_named(run, "filter", args[0])(run, item, *args[1:], **kwargs)
    else:
        raise TypeError("map requires a filter argument")
    for item in _count(run, value):
        yield get_value(item)


def _make_selector(by_attribute: bool, wanted: bool) -> Callable[..., Iterator[Any]]:
    """`select`, `reject`, `selectattr` or `rejectattr`."""

    def select(run: Run, value: Any, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if not value:
            return
        if by_attribute and not args:
            raise TypeError("Missing parameter for attribute name")
        getter = attribute_getter(run, args[0] if by_attribute else None)
        test = args[1:] if by_attribute else args
        for item in _count(run, value):
            tested = getter(item)
            if test:
                tested = _get_named(run, "test", test[0])(run, tested, *test[1:], **kwargs)
            if bool(tested) is wanted:
                yield item

    return select


def do_sort(
    run: Run, value: Any, /, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    return _sort(run, value, _sort_key(run, attribute, not case_sensitive), reverse)


def do_unique(run: Run, value: Any, /, case_sensitive: bool = False, attribute: Any = None) -> Iterator[Any]:
    getter = attribute_getter(run, attribute, fold_case=not case_sensitive)
    seen = set()
    for item in _count(run, value):
        key = getter(item)
        guard(run, key)
        if key not in seen:
            seen.add(key)
            yield item


def _make_extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    """`min` or `max`."""

    def find_extreme(run: Run, value: Any, /, case_sensitive: bool = False, attribute: Any = None) -> Any:
        items = list(_count(run, value))
        if not items:
            return Undefined("No aggregated item, sequence was empty.")
        getter = attribute_getter(run, attribute, fold_case=not case_sensitive)
        keyed = [(getter(item), item) for item in items]
        guard(run, [key for key, _ in keyed])
        return choose(keyed, key=lambda pair: pair[0])[1]

    return find_extreme


def do_groupby(
    run: Run, value: Any, /, attribute: Any, default: Any = None, case_sensitive: bool = False
) -> list[Group]:
    """Pairs of an attribute's value and the items with it, sorted by the value."""
    key = attribute_getter(run, attribute, default, fold_case=not case_sensitive)
    shown = attribute_getter(run, attribute, default)
    groups = [list(items) for _, items in itertools.groupby(_sort(run, value, key, False), key)]
    return [Group((shown(items[0]), items)) for items in groups]


def do_dictsort(
    run: Run, value: Any, /, case_sensitive: bool = False, by: Any = "key", reverse: bool = False
) -> list[Any]:
    """The pairs of a dictionary, sorted by key or value."""
    if type(value) is Undefined:
        value.fail()
    if by not in ("key", "value"):
        raise ValueError('You can only sort by either "key" or "value"')
    place = 0 if by == "key" else 1
    key = attribute_getter(run, None, fold_case=not case_sensitive)
    return _sort(run, dict.items(value), lambda pair: key(pair[place]), reverse)


def do_items(run: Run, value: Any, /) -> Iterator[Any]:
    """The pairs of a dictionary; none if it is undefined."""
    if type(value) is Undefined:
        return
    if type(value) is not dict:
        raise TypeError("Can only get item pairs from a mapping.")
    yield from _count(run, value.items())


def do_join(run: Run, value: Any, /, d: Any = "", attribute: Any = None) -> str:
    getter = attribute_getter(run, attribute)
    return join_text(run, to_text(run, d), [to_text(run, getter(item)) for item in _count(run, value)])


def do_first(run: Run, value: Any, /) -> Any:
    return next(iter(value), Undefined("No first item, sequence was empty."))


def do_last(run: Run, value: Any, /) -> Any:
    """The last item; an error for lazy sequences."""
    return next(iter(reversed(value)), Undefined("No last item, sequence was empty."))


def do_reverse(run: Run, value: Any, /) -> Any:
    """A string reversed, or the items from the last to the first."""
    if isinstance(value, str):
        return value[::-1]
    try:
        return reversed(value)
    except TypeError:
        return list(_count(run, value))[::-1]


def do_list(run: Run, value: Any, /) -> list[Any]:
    run.count_items(len(value) if hasattr(value, "__len__") else 0)
    return list(value)


def do_length(run: Run, value: Any, /) -> int:
    return len(value)


def do_sum(run: Run, value: Any, /, attribute: Any = None, start: Any = 0) -> Any:
    getter = attribute_getter(run, attribute)
    items = [getter(item) for item in _count(run, value)]
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings")
    if all(isinstance(item, (int, float)) for item in items):
        return sum(items, start)  # as jinja2 does; newer Pythons' `sum` rounds differently from a loop
    for item in items:
        start = add(run, start, item)
    return start


def do_batch(run: Run, value: Any, /, linecount: int, fill_with: Any = None) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in _count(run, value):
        if len(batch) == linecount:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        if fill_with is not None and len(batch) < linecount:
            run.count_items(linecount)
            batch += [fill_with] * (linecount - len(batch))
        yield batch


def do_slice(run: Run, value: Any, /, slices: int, fill_with: Any = None) -> Iterator[list[Any]]:
    """The items divided into `slices` lists."""
    run.count_items(slices)
    items = list(_count(run, value))
    size, extra = divmod(len(items), slices)
    start = 0
    for number in _count(run, range(slices)):
        stop = start + size + (number < extra)
        column = items[start:stop]
        if fill_with is not None and number >= extra:
            column.append(fill_with)
        yield column
        start = stop


FILTERS: dict[str, Callable[..., Any]] = {
    "batch": do_batch,
    "count": do_length,
    "dictsort": do_dictsort,
    "first": do_first,
    "groupby": do_groupby,
    "items": do_items,
    "join": do_join,
    "last": do_last,
    "length": do_length,
    "list": do_list,
    "map": do_map,
    "max": _make_extreme(max),
    "min": _make_extreme(min),
    "reject": _make_selector(by_attribute=False, wanted=False),
    "rejectattr": _make_selector(by_attribute=True, wanted=False),
    "reverse": do_reverse,
    "select": _make_selector(by_attribute=False, wanted=True),
    "selectattr": _make_selector(by_attribute=True, wanted=True),
    "slice": do_slice,
    "sort": do_sort,
    "sum": do_sum,
    "unique": do_unique,
}
