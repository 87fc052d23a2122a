"""Compiles expressions: from the syntax tree to closures.

Compiles on any thread; the closures run on the thread that renders the template. A closure that can fail has its
position in the source as the default of its parameter `at`. After an exception, `template` finds the innermost `at` in
the traceback. Not taken: handling exceptions in each closure, which costs time in successful calls too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import nodes
from .attributes import DICT_NAMES, METHODS, get_attribute, get_item, join_text
from .errors import TemplateRuntimeError
from .nodes import Node
from .operators import BINARY, COMPARE, UNARY
from .place import RUN, Evaluate, Frame, Place, get_outer_frame
from .text import guard, to_text
from .values import MISSING, Undefined, call_value

Args = tuple[tuple[Any, ...], dict[str, Any]]
NO_METHODS: dict[str, Callable[..., Any]] = {}


def compile_expression(node: Node, place: Place) -> Evaluate:
    return _COMPILERS[type(node)](node, place)


def _compile_all(members: list[Node], place: Place) -> list[Evaluate]:
    return [compile_expression(node, place) for node in members]


def _compile_const(node: nodes.Const, place: Place) -> Evaluate:
    value = node.value
    return lambda frame: value


def _compile_name(node: nodes.Name, place: Place) -> Evaluate:
    name = node.name
    slot = place.scope.find(name)
    if slot is None:
        raise place.source.make_error(f"the name {name!r} can't be used here", node.offset)
    index, hops = slot.index, place.count_hops(slot)

    def get_own(frame: Frame) -> Any:
        value = frame[index]
        return Undefined(name=name) if value is MISSING else value

    def get_outer(frame: Frame) -> Any:
        value = get_outer_frame(frame, hops)[index]
        return Undefined(name=name) if value is MISSING else value

    return get_outer if hops else get_own


def _compile_tuple(node: nodes.TupleNode, place: Place) -> Evaluate:
    items = _compile_all(node.items, place)
    return lambda frame: tuple([item(frame) for item in items])


def _list(node: nodes.ListNode, place: Place) -> Evaluate:
    items = _compile_all(node.items, place)
    return lambda frame: [item(frame) for item in items]


def _compile_dict(node: nodes.DictNode, place: Place) -> Evaluate:
    pairs = list(zip(_compile_all(node.keys, place), _compile_all(node.values, place)))

    def make(frame: Frame, at: int = node.offset) -> Any:
        made = {}
        for key, value in pairs:
            name = key(frame)
            guard(frame[RUN], name)
            made[name] = value(frame)
        return made

    return make


def _attribute(node: nodes.Attribute, place: Place) -> Evaluate:
    owner, name = compile_expression(node.owner, place), node.name
    is_key = name not in DICT_NAMES

    def attribute(frame: Frame, at: int = node.offset) -> Any:
        value = owner(frame)
        if is_key and type(value) is dict and name in value:
            return value[name]
        return get_attribute(frame[RUN], value, name)

    return attribute


def _compile_item(node: nodes.Item, place: Place) -> Evaluate:
    owner = compile_expression(node.owner, place)
    if isinstance(node.key, nodes.Slice):
        return _slice(owner, node.key, place)
    key = compile_expression(node.key, place)

    def compute_item(frame: Frame, at: int = node.offset) -> Any:
        return get_item(frame[RUN], owner(frame), key(frame))

    return compute_item


def _slice(owner: Evaluate, node: nodes.Slice, place: Place) -> Evaluate:
    bounds = [compile_expression(bound, place) if bound else None for bound in (node.start, node.stop, node.step)]

    def cut(frame: Frame, at: int = node.offset) -> Any:
        value = owner(frame)
        if isinstance(value, (list, tuple)):
            frame[RUN].count_items(len(value))
        if isinstance(value, str):
            frame[RUN].count_text(len(value))
        return value[slice(*[bound(frame) if bound else None for bound in bounds])]

    return cut


def compile_arguments(node: nodes.Arguments, place: Place) -> Callable[[Frame], Args]:
    positional, values = _compile_all(node.positional, place), _compile_all(node.values, place)
    names = node.names
    if not node.star and not node.double_star:
        if not names:
            return lambda frame: (tuple([value(frame) for value in positional]), {})
        return lambda frame: (
            tuple([value(frame) for value in positional]),
            {name: value(frame) for name, value in zip(names, values)},
        )
    star = compile_expression(node.star, place) if node.star else lambda frame: ()
    double_star = compile_expression(node.double_star, place) if node.double_star else lambda frame: {}

    def compute_arguments(frame: Frame, at: int = node.offset) -> Args:
        args = [value(frame) for value in positional]
        kwargs = {name: value(frame) for name, value in zip(names, values)}
        args += star(frame)
        more = double_star(frame)
        if type(more) is not dict or not all(isinstance(name, str) for name in more):
            raise TypeError("the argument after ** must be a dictionary of names")
        if kwargs.keys() & more.keys():
            raise TypeError("an argument is given twice")
        return tuple(args), {**kwargs, **more}

    return compute_arguments


def _call(node: nodes.Call, place: Place) -> Evaluate:
    arguments = compile_arguments(node.arguments, place)
    if isinstance(node.callee, nodes.Attribute):
        return _compile_method_call(node.callee, arguments, place)
    callee = compile_expression(node.callee, place)

    def call(frame: Frame, at: int = node.offset) -> Any:
        function = callee(frame)
        return call_value(frame[RUN], function, *arguments(frame))

    return call


def _compile_method_call(node: nodes.Attribute, arguments: Callable[[Frame], Args], place: Place) -> Evaluate:
    """`owner.name(...)` without making a `BoundMethod`."""
    owner, name = compile_expression(node.owner, place), node.name

    def call(frame: Frame, at: int = node.offset) -> Any:
        value = owner(frame)
        run = frame[RUN]
        method = METHODS.get(type(value), NO_METHODS).get(name)
        if method is None:
            return call_value(run, get_attribute(run, value, name), *arguments(frame))
        args, kwargs = arguments(frame)
        return method(run, value, *args, **kwargs)

    return call


def _filter(node: nodes.Filter, place: Place) -> Evaluate:
    captured = place.captured
    value = compile_expression(node.value, place) if node.value else lambda frame: frame[captured]
    return _compile_application(_find("filter", node, place), value, node, place)


def _test(node: nodes.Test, place: Place) -> Evaluate:
    return _compile_application(_find("test", node, place), compile_expression(node.value, place), node, place)


def _compile_application(
    function: Callable[..., Any], value: Evaluate, node: nodes.Filter | nodes.Test, place: Place
) -> Evaluate:
    arguments = compile_arguments(node.arguments, place)

    def apply_plain(frame: Frame, at: int = node.offset) -> Any:
        return function(frame[RUN], value(frame))

    def apply(frame: Frame, at: int = node.offset) -> Any:
        subject = value(frame)
        args, kwargs = arguments(frame)
        return function(frame[RUN], subject, *args, **kwargs)

    return apply if any(True for _ in nodes.list_children(node.arguments)) else apply_plain


def _find(kind: str, node: nodes.Filter | nodes.Test, place: Place) -> Callable[..., Any]:
    """The filter or test. An unknown one is a syntax error, but inside an `if` an error only when it is called."""
    table = place.filters if kind == "filter" else place.tests
    function = table.get(node.name)
    if function is not None:
        return function
    message = f"No {kind} named {node.name!r}."
    if not place.soft:
        raise place.source.make_error(message, node.offset)

    def fail_unknown(*_: Any, **__: Any) -> Any:
        raise TemplateRuntimeError(message)

    return fail_unknown


def _compile_unary(node: nodes.Unary, place: Place) -> Evaluate:
    value, apply = compile_expression(node.value, place), UNARY[node.operator]

    def compute_unary(frame: Frame, at: int = node.offset) -> Any:
        return apply(frame[RUN], value(frame))

    return compute_unary


def _compile_not(node: nodes.Not, place: Place) -> Evaluate:
    value = compile_expression(node.value, place)
    return lambda frame: not value(frame)


def _compile_arithmetic(node: nodes.Arithmetic, place: Place) -> Evaluate:
    first = compile_expression(node.first, place)
    steps = [(BINARY[symbol], compile_expression(value, place)) for symbol, value in zip(node.operators, node.values)]

    def compute_chain(frame: Frame, at: int = node.offset) -> Any:
        run = frame[RUN]
        result = first(frame)
        for apply, value in steps:
            result = apply(run, result, value(frame))
        return result

    return compute_chain


def _compile_logic(node: nodes.Logic, place: Place) -> Evaluate:
    *others, last = _compile_all(node.values, place)

    def compute_both(frame: Frame) -> Any:
        for value in others:
            result = value(frame)
            if not result:
                return result
        return last(frame)

    def compute_either(frame: Frame) -> Any:
        for value in others:
            result = value(frame)
            if result:
                return result
        return last(frame)

    return compute_both if node.operator == "and" else compute_either


def _concat(node: nodes.Concat, place: Place) -> Evaluate:
    values = _compile_all(node.values, place)

    def join_values(frame: Frame, at: int = node.offset) -> Any:
        run = frame[RUN]
        return join_text(run, "", [to_text(run, value(frame)) for value in values])

    return join_values


def _compare(node: nodes.Compare, place: Place) -> Evaluate:
    first = compile_expression(node.first, place)
    steps = [(COMPARE[symbol], compile_expression(value, place)) for symbol, value in zip(node.operators, node.values)]
    only, second = steps[0]

    def compare(frame: Frame, at: int = node.offset) -> Any:
        return only(frame[RUN], first(frame), second(frame))

    def compute_chain(frame: Frame, at: int = node.offset) -> Any:
        run = frame[RUN]
        left, result = first(frame), True
        for apply, value in steps:
            right = value(frame)
            result = apply(run, left, right)
            if not result:
                break
            left = right
        return result

    return compare if len(steps) == 1 else compute_chain


def _compile_conditional(node: nodes.Conditional, place: Place) -> Evaluate:
    place = place.soften()
    test, yes = compile_expression(node.test, place), compile_expression(node.yes, place)
    if node.no is None:
        line, _ = place.source.place(node.offset)
        hint = f"the inline if-expression on line {line} evaluated to false and no else section was defined."
        return lambda frame: yes(frame) if test(frame) else Undefined(hint)
    no = compile_expression(node.no, place)
    return lambda frame: yes(frame) if test(frame) else no(frame)


_COMPILERS: dict[type, Callable[..., Evaluate]] = {
    nodes.Const: _compile_const,
    nodes.Name: _compile_name,
    nodes.TupleNode: _compile_tuple,
    nodes.ListNode: _list,
    nodes.DictNode: _compile_dict,
    nodes.Attribute: _attribute,
    nodes.Item: _compile_item,
    nodes.Call: _call,
    nodes.Filter: _filter,
    nodes.Test: _test,
    nodes.Unary: _compile_unary,
    nodes.Not: _compile_not,
    nodes.Arithmetic: _compile_arithmetic,
    nodes.Logic: _compile_logic,
    nodes.Concat: _concat,
    nodes.Compare: _compare,
    nodes.Conditional: _compile_conditional,
}
