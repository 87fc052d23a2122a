"""Compiles statements: from the syntax tree to closures.

Compiles on any thread; the closures run on the thread that renders the template. As in `evaluate`, `at` is the position
in the source. Entering a scope initializes its variables, leaving it clears them. `break` and `continue` are signals: a
closure returns the word. Not taken: exceptions for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import nodes
from .evaluate import compile_arguments, compile_expression
from .limits import Run
from .marked import concat
from .nodes import Node
from .place import OUT, RUN, Evaluate, Execute, Frame, Place, get_outer_frame, make_frame
from .scopes import Function, Scope, analyze, declare_target, find_mentioned
from .text import to_text
from .values import MISSING, Loop, Macro, Namespace, Undefined, call_value

Assign = Callable[[Frame, Any], None]


def compile_template(statements: list[Node], place: Place) -> Execute:
    """A closure that renders a whole template. `place` has an empty root scope."""
    analyze(place.scope, statements)
    enter, body = _enter(place), _compile_block(statements, place)

    def render(frame: Frame) -> str | None:
        enter(frame)
        return body(frame)

    return render


def _compile_block(statements: list[Node], place: Place) -> Execute:
    steps = tuple(_COMPILERS[type(node)](node, place) for node in statements)
    if len(steps) == 1:
        return steps[0]

    def run_block(frame: Frame) -> str | None:
        for step in steps:
            signal = step(frame)
            if signal is not None:
                return signal
        return None

    return run_block


# ------------------------------------------------------------------------------------------ scopes


def _enter(place: Place) -> Callable[[Frame], None]:
    context, aliases, missing = [], [], []
    for slot, load in place.scope.loads.items():
        if load.kind == "context":
            context.append((slot.index, load.name))
        elif load.kind == "alias" and load.slot:
            aliases.append((slot.index, place.count_hops(load.slot), load.slot.index))
        elif load.kind == "missing":
            missing.append(slot.index)

    def enter(frame: Frame) -> None:
        for index, name in context:
            frame[index] = frame[RUN].variables.get(name, MISSING)
        for index, hops, outer in aliases:
            frame[index] = get_outer_frame(frame, hops)[outer]
        for index in missing:
            frame[index] = MISSING

    return enter


def _leave(place: Place) -> Callable[[Frame], None]:
    indices = [slot.index for slot in place.scope.loads]

    def leave(frame: Frame) -> None:
        for index in indices:
            frame[index] = MISSING

    return leave


def _make_scoped_place(scope_nodes: Iterable[Node], place: Place, captured: int = 0) -> Place:
    """A place with a new scope in the same function."""
    scope = Scope(place.scope.function, place.scope)
    analyze(scope, scope_nodes)
    return place.make_inner(scope, place.in_loop, captured)


# ------------------------------------------------------------------------------------------ output


def _write(frame: Frame, value: Any) -> None:
    run: Run = frame[RUN]
    text = value if type(value) is str else to_text(run, value)
    run.count_printed(len(text))
    frame[OUT].append(text)


def _write_text(frame: Frame, value: Any) -> None:
    """Write a string; any other value is an error, since jinja2 doesn't convert it here."""
    if not isinstance(value, str):
        raise TypeError("the result of a filter or call block must be a string")
    _write(frame, value)


def _compile_output(node: nodes.Output, place: Place) -> Execute:
    parts: list[Any] = [
        part.text if isinstance(part, nodes.Data) else compile_expression(part, place) for part in node.parts
    ]

    def write_output(frame: Frame, at: int = node.offset) -> None:
        for part in parts:
            _write(frame, part if type(part) is str else part(frame))

    return write_output


def _capture(body: Execute) -> Callable[[Frame], tuple[str | None, str]]:
    """A closure that runs a block and returns its signal and its output."""

    def capture(frame: Frame) -> tuple[str | None, str]:
        outer, frame[OUT] = frame[OUT], []
        signal = body(frame)
        inner, frame[OUT] = frame[OUT], outer
        return signal, _join(frame[RUN], inner)

    return capture


def _join(run: Run, texts: list[str]) -> str:
    run.count_text(sum(map(len, texts)))
    return concat(texts)


# ------------------------------------------------------------------------------------------ assignment


def _compile_target(node: Node, place: Place) -> Assign:
    if isinstance(node, nodes.Name):
        index = place.scope.slots[node.name].index

        def assign(frame: Frame, value: Any) -> None:
            frame[index] = value

        return assign
    if isinstance(node, nodes.NamespaceRef):
        return _compile_namespace_target(node, place)
    return _compile_tuple_target(node, place)  # type: ignore[arg-type]


def _compile_namespace_target(node: nodes.NamespaceRef, place: Place) -> Assign:
    read, attribute = compile_expression(nodes.Name(node.name, offset=node.offset), place), node.attribute

    def assign(frame: Frame, value: Any, at: int = node.offset) -> None:
        namespace = read(frame)
        if type(namespace) is not Namespace:
            raise TypeError("cannot assign attribute on non-namespace object")
        namespace.values[attribute] = value

    return assign


def _compile_tuple_target(node: nodes.TupleNode, place: Place) -> Assign:
    targets = [_compile_target(item, place) for item in node.items]

    def assign(frame: Frame, value: Any, at: int = node.offset) -> None:
        values = list(value)
        if len(values) != len(targets):
            raise ValueError(f"{len(values)} values to unpack into {len(targets)} names")
        for target, item in zip(targets, values):
            target(frame, item)

    return assign


def _set(node: nodes.Set, place: Place) -> Execute:
    value, assign = compile_expression(node.value, place), _compile_target(node.target, place)

    def execute(frame: Frame, at: int = node.offset) -> None:
        assign(frame, value(frame))

    return execute


def _set_block(node: nodes.SetBlock, place: Place) -> Execute:
    inner, capture, apply = _compile_filtered_block(node.body, node.filter, place)
    enter, leave = _enter(inner), _leave(inner)
    assign = _compile_target(node.target, place)

    def execute(frame: Frame, at: int = node.offset) -> str | None:
        enter(frame)
        signal, text = capture(frame)
        if signal is None:
            assign(frame, apply(frame, text))
        leave(frame)
        return signal

    return execute


def _filter_block(node: nodes.FilterBlock, place: Place) -> Execute:
    inner, capture, apply = _compile_filtered_block(node.body, node.filter, place)
    enter, leave = _enter(inner), _leave(inner)

    def execute(frame: Frame, at: int = node.offset) -> str | None:
        enter(frame)
        signal, text = capture(frame)
        if signal is None:
            _write_text(frame, apply(frame, text))
        leave(frame)
        return signal

    return execute


def _compile_filtered_block(body: list[Node], filter_: nodes.Filter | None, place: Place) -> tuple[Any, Any, Any]:
    """(place inside the block, closure that captures its text, closure that filters this text)."""
    captured = place.scope.function.make_extra_slot().index
    inner = _make_scoped_place(body, place, captured)
    capture = _capture(_compile_block(body, inner))
    if filter_ is None:
        return inner, capture, lambda frame, text: text
    evaluate = compile_expression(filter_, inner)

    def apply(frame: Frame, text: str) -> Any:
        frame[captured] = text
        return evaluate(frame)

    return inner, capture, apply


# ------------------------------------------------------------------------------------------ branches


def _compile_if(node: nodes.If, place: Place) -> Execute:
    place = place.soften()
    branches = [
        (compile_expression(branch.test, place), _compile_block(branch.body, place)) for branch in (node, *node.elifs)
    ]
    otherwise = _compile_block(node.otherwise, place)

    def execute(frame: Frame) -> str | None:
        for test, body in branches:
            if test(frame):
                return body(frame)
        return otherwise(frame)

    return execute


def _with(node: nodes.With, place: Place) -> Execute:
    inner = _make_scoped_place([*node.targets, *node.body], place)
    values = [
        (_compile_target(target, inner), compile_expression(value, place))
        for target, value in zip(node.targets, node.values)
    ]
    enter, leave, body = _enter(inner), _leave(inner), _compile_block(node.body, inner)

    def execute(frame: Frame, at: int = node.offset) -> str | None:
        enter(frame)
        for assign, value in values:
            assign(frame, value(frame))
        signal = body(frame)
        leave(frame)
        return signal

    return execute


def _do(node: nodes.Do, place: Place) -> Execute:
    value = compile_expression(node.value, place)

    def execute(frame: Frame) -> None:
        value(frame)

    return execute


def _jump(node: nodes.Jump, place: Place) -> Execute:
    if not place.in_loop:
        raise place.source.make_error(f"'{node.kind}' outside of a loop", node.offset)
    signal = node.kind
    return lambda frame: signal


# ------------------------------------------------------------------------------------------ loops


def _compile_for(node: nodes.For, place: Place) -> Execute:
    for below in nodes.walk([node]):
        if isinstance(below, nodes.Name) and below.use == "store" and below.name == "loop":
            raise place.source.make_error("can't assign to the special variable 'loop' in a loop", below.offset)
    items = compile_expression(node.items, place)
    function = Function(place.scope.function) if node.recursive else place.scope.function
    walk = _compile_loop(node, place, function)
    if not node.recursive:

        def execute(frame: Frame, at: int = node.offset) -> str | None:
            return walk(frame, frame, items(frame), None, 0)

        return execute

    def recurse(frame: Frame, at: int = node.offset) -> None:
        def render(nested: Any, depth: int) -> str:
            inner = make_frame(frame, function)
            inner[RUN].enter()
            walk(inner, frame, nested, render, depth)
            inner[RUN].leave()
            return _join(inner[RUN], inner[OUT])

        _write(frame, render(items(frame), 0))

    return recurse


def _compile_loop(node: nodes.For, place: Place, function: Function) -> Callable[..., str | None]:
    """A closure (frame of the body, frame around the loop, items, renderer for recursion, depth) -> signal."""
    scope = Scope(function, place.scope)
    has_loop = node.recursive or bool(find_mentioned(node.body, ("loop",)))
    loop_index = scope.declare_parameter("loop").index if has_loop else 0
    declare_target(scope, node.target)
    analyze(scope, node.body)
    inner = place.make_inner(scope, in_loop=True)
    assign, enter, leave = _compile_target(node.target, inner), _enter(inner), _leave(inner)
    body = _compile_block(node.body, inner)
    selected = _compile_loop_test(node, place) if node.test else None
    otherwise = _compile_otherwise(node.otherwise, place, function)

    def walk(frame: Frame, outer: Frame, items: Any, render: Any, depth: int, at: int = node.offset) -> str | None:
        run: Run = frame[RUN]
        if selected:
            items = selected(outer, items)
        if has_loop:
            items = frame[loop_index] = Loop(items, render, depth)
        completed = False  # as in jinja2, `else` runs if no iteration reached its end
        for item in items:
            run.tick()
            assign(frame, item)
            enter(frame)
            signal = body(frame)
            if signal is None:
                completed = True
            elif signal == "break":
                break
        leave(frame)
        return None if completed else otherwise(frame)

    return walk


def _compile_otherwise(statements: list[Node], place: Place, function: Function) -> Execute:
    scope = Scope(function, place.scope)
    analyze(scope, statements)
    inner = place.make_inner(scope, in_loop=place.in_loop and function is place.scope.function)
    enter, leave, body = _enter(inner), _leave(inner), _compile_block(statements, inner)

    def execute(frame: Frame) -> str | None:
        enter(frame)
        signal = body(frame)
        leave(frame)
        return signal

    return execute


def _compile_loop_test(node: nodes.For, place: Place) -> Callable[[Frame, Iterable[Any]], Iterator[Any]]:
    """A generator function of the items that pass the loop's `if`. Its frame has copies of the loop's variables."""
    function = Function(place.scope.function)
    scope = Scope(function, place.scope)
    declare_target(scope, node.target)
    analyze(scope, [node.test])  # type: ignore[list-item]
    inner = place.make_inner(scope, in_loop=False)
    assign, enter = _compile_target(node.target, inner), _enter(inner)
    test = compile_expression(node.test, inner)  # type: ignore[arg-type]
    reread = compile_expression(_as_loaded(node.target), inner)

    def select(outer: Frame, items: Iterable[Any], at: int = node.offset) -> Iterator[Any]:
        frame = make_frame(outer, function)
        enter(frame)
        for item in items:
            frame[RUN].tick()
            assign(frame, item)
            if test(frame):
                yield reread(frame)

    return select


def _as_loaded(target: Node) -> Node:
    """The expression that reads back the value of a target."""
    if isinstance(target, nodes.TupleNode):
        return nodes.TupleNode([_as_loaded(item) for item in target.items], offset=target.offset)
    return nodes.Name(target.name, offset=target.offset)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------ macros


def _compile_macro(node: nodes.MacroNode, place: Place) -> Execute:
    make = _compile_macro_maker(node, node.name, place)
    index = place.scope.slots[node.name].index

    def execute(frame: Frame) -> None:
        frame[index] = make(frame)

    return execute


def _call_block(node: nodes.CallBlock, place: Place) -> Execute:
    make = _compile_macro_maker(node, None, place)
    if node.call is None:

        def write_generation(frame: Frame, at: int = node.offset) -> None:
            _write(frame, make(frame).call(frame[RUN], (), {}))

        return write_generation
    callee = compile_expression(node.call.callee, place)
    arguments = compile_arguments(node.call.arguments, place)

    def execute(frame: Frame, at: int = node.offset) -> None:
        caller, function = make(frame), callee(frame)
        args, kwargs = arguments(frame)
        if "caller" in kwargs:
            raise TypeError("a call block can't be given another caller")
        _write_text(frame, call_value(frame[RUN], function, args, {**kwargs, "caller": caller}))

    return execute


def _compile_macro_maker(
    node: nodes.MacroNode | nodes.CallBlock, name: str | None, place: Place
) -> Callable[[Frame], Macro]:
    """A closure that makes the macro. The macro keeps the frame in which it was made."""
    function = Function(place.scope.function)
    scope = Scope(function, place.scope)
    analyze(scope, [*node.parameters, *node.defaults, *node.body])
    parameters = tuple(parameter.name for parameter in node.parameters)
    takes = _find_special_parameters(node, parameters, place)
    for special in ("caller", "kwargs", "varargs"):
        if special in takes and special not in parameters:
            scope.declare_parameter(special)
    order = [
        *parameters,
        *(name for name in ("caller", "kwargs", "varargs") if name in takes and name not in parameters),
    ]
    indices = [scope.slots[parameter].index for parameter in order]
    inner = place.make_inner(scope, in_loop=False)
    defaults = _compile_defaults(node, inner)
    enter, body = _enter(inner), _compile_block(node.body, inner)

    def make(frame: Frame) -> Macro:
        def render(arguments: list[Any]) -> str:
            own = make_frame(frame, function)
            for index, value in zip(indices, arguments):
                own[index] = value
            enter(own)
            for index, default in defaults:
                if own[index] is MISSING:
                    own[index] = default(own)
            body(own)
            return _join(own[RUN], own[OUT])

        return Macro(name, parameters, render, takes)

    return make


def _find_special_parameters(
    node: nodes.MacroNode | nodes.CallBlock, parameters: tuple[str, ...], place: Place
) -> frozenset[str]:
    """Those of `caller`, `kwargs` and `varargs` that the body reads as special variables."""
    used = find_mentioned(node.body, ("caller", "kwargs", "varargs"))
    if "caller" in used and "caller" in parameters[: len(parameters) - len(node.defaults)]:
        raise place.source.make_error("the special parameter 'caller' needs a default", node.offset)
    return frozenset(name for name in used if name == "caller" or name not in parameters)


def _compile_defaults(node: nodes.MacroNode | nodes.CallBlock, inner: Place) -> list[tuple[int, Evaluate]]:
    """For each parameter: (index of its variable, closure for its value if it isn't given)."""
    result = []
    first_default = len(node.parameters) - len(node.defaults)
    for number, parameter in enumerate(node.parameters):
        index = inner.scope.slots[parameter.name].index
        if number >= first_default:
            result.append((index, compile_expression(node.defaults[number - first_default], inner)))
        else:
            result.append((index, _compile_not_given(parameter.name)))
    return result


def _compile_not_given(name: str) -> Evaluate:
    return lambda frame: Undefined(f"parameter {name!r} was not provided", name=name)


_COMPILERS: dict[type, Callable[..., Execute]] = {
    nodes.Output: _compile_output,
    nodes.Set: _set,
    nodes.SetBlock: _set_block,
    nodes.FilterBlock: _filter_block,
    nodes.If: _compile_if,
    nodes.With: _with,
    nodes.Do: _do,
    nodes.Jump: _jump,
    nodes.For: _compile_for,
    nodes.MacroNode: _compile_macro,
    nodes.CallBlock: _call_block,
}
