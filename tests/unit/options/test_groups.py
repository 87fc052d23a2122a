"""The groups of options compared with the table: each working option is in one group, with the right type."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Union, get_args, get_origin, get_type_hints

import pytest

from server.options.groups import (
    ERRAND,
    EXCEPTIONS,
    MODEL,
    SCOPES,
    SERVER,
    TARGETS,
    Group,
    ModelOptions,
    Options,
    group,
    scope_of,
)
from server.options.parser import ALL_OPTIONS, OptionError, parse
from server.options.row import WORKS
from server.options.table import GROUPS, OPTIONS
from tests.support import ROOT

FOLDED = {
    "config": "",
    "files": "model",
    "compat": "profile",
    "verbose": "is_verbose",
    "max_body": "max_mib",
    "sse_ping_interval": "native_ping_interval",
    "ctx_size": "is_ctx_given",
    "alias": "aliases",
    "lora_init_without_apply": "lora",
    "escape": "values",
    "memory_f32": "context_params",
    **dict.fromkeys(("cpu_moe", "n_cpu_moe", "n_cpu_ffn", "mlock", "mmap", "direct_io"), "model_params"),
    **dict.fromkeys(("spec_draft_override_tensor", "spec_draft_cpu_moe", "spec_draft_n_cpu_moe"), "model_params"),
}
"""Options that reach a group under another name, too or only: as a part of the field beside them."""

FIELD_OF_TARGET = {
    "model": "model_params",
    "context": "context_params",
    "pool": "pool_params",
    "mmproj": "mmproj_params",
    "draft_model": "model_params",
    "draft_context": "context_params",
    "request": "values",
}
"""The fields that hold what `Option.target` names."""

SCOPE_OF_FIELD = {"errands": ERRAND, "model": MODEL}


def all_groups(kind: type[Group] = Options, scope: str = SERVER) -> Iterator[tuple[type[Group], str]]:
    """Each group within `kind`, with whose options it has."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, Group):
            yield hint, SCOPE_OF_FIELD.get(name, scope)
            yield from all_groups(hint, SCOPE_OF_FIELD.get(name, scope))


def fields() -> Iterator[tuple[type[Group], str, str, object]]:
    """Group, scope, name and type of each field that is no group itself."""
    for kind, scope in all_groups():
        for name, hint in get_type_hints(kind).items():
            if not (isinstance(hint, type) and issubclass(hint, Group)):
                yield kind, scope, name, hint


def parts(hint: object) -> set[object]:
    """The types of a union, or the one type."""
    return set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}


def types_of(name: str) -> set[object]:
    """What an option's value may be, by its rows."""
    found: set[object] = set()
    for option in OPTIONS:
        if option.key != name:
            continue
        if option.choices:
            found |= {type(value) for value in option.choices.values()} - {tuple}
        elif option.type in (None, int, float, str):
            found.add(option.type or bool)
        else:
            found |= parts(get_type_hints(option.type)["return"])
        if not option.dest and None in (option.default, option.default_2024):
            found.add(types.NoneType)
    return found


WORKING = sorted({option.key for option in OPTIONS if option.status == WORKS})


@pytest.mark.parametrize("name", WORKING)
def test_an_option_that_works_is_in_one_group_of_its_scope_with_its_type(name: str):
    rows = [option for option in OPTIONS if option.key == name]
    (scope,) = {scope_of(option) for option in rows}
    found = [(kind, where, hint) for kind, where, field, hint in fields() if field == name]
    is_in_another = name in FOLDED or any(option.target for option in rows)
    assert len(found) == 1 or not found and is_in_another
    for _, where, hint in found:
        assert where == scope and parts(hint) == types_of(name)


def test_a_group_has_nothing_but_options_and_what_is_made_of_them():
    made = {*FOLDED.values(), *FIELD_OF_TARGET.values(), "warnings", "secrets", "advised"}
    made |= {"health_route", "predict_route"}  # of the environment alone
    assert {name for _, _, name, _ in fields()} - set(WORKING) <= made
    assert (
        {option.target.partition(":")[0] for option in OPTIONS if option.target} == set(FIELD_OF_TARGET) == set(TARGETS)
    )
    assert set(FOLDED) <= set(WORKING)


def test_what_the_groups_have_is_read_by_somebody():
    """Otherwise an option would silently do nothing. `parse` itself reads `config`."""
    owners = "|".join(("s", "o", r"\w*options", *get_type_hints(Options), *get_type_hints(ModelOptions)))

    def unread(names: set[str], *, inside: bool) -> set[str]:
        files = [path for path in (ROOT / "server").rglob("*.py") if (path.parent.name == "options") is inside]
        source = "\n".join(path.read_text(encoding="utf-8") for path in files)
        return {name for name in names if not re.search(rf"\b(?:{owners})\.{name}\b", source)}

    assert unread({name for _, _, name, _ in fields()}, inside=False) == set()
    assert unread(set(FOLDED), inside=True) == {"config"}


def test_each_group_of_the_table_has_a_scope_and_exceptions_are_needed():
    assert set(SCOPES) == set(GROUPS)
    named = {name: scope for scope, names in EXCEPTIONS.items() for name in names}
    rows = {option.name: option for option in OPTIONS}
    assert all(SCOPES[rows[name].group] != scope for name, scope in named.items())
    assert all(scope_of(option) for option in OPTIONS if option.status == WORKS)
    assert all(option.status != WORKS for option in ALL_OPTIONS if scope_of(option) is None)


@pytest.mark.parametrize("argv", [[], ["--compat", "2024"], ["-lv", "1", "-m", "x.gguf", "-c", "64", "-a", "b, c"]])
def test_a_value_has_the_type_that_its_group_declares(argv: list[str]):
    def check(part: Group) -> None:
        for name, hint in get_type_hints(type(part)).items():
            value = getattr(part, name)
            if isinstance(value, Group):
                check(value)
            assert any(isinstance(value, get_origin(kind) or kind) for kind in parts(hint)), (name, value, hint)
        assert set(vars(part)) == set(get_type_hints(type(part)))

    check(group(parse(argv, {})))


def test_options_do_not_change():
    settings = parse(["-c", "64"], {})
    options = group(settings)
    for part in (settings, options, options.model, options.http):
        with pytest.raises(AttributeError, match="can't be changed"):
            part.ctx_size = 1
    assert options.model.replace(ctx_size=128).ctx_size == 128 and options.model.ctx_size == 64


@pytest.mark.parametrize(
    ("argv", "is_errand"),
    [
        ([], False),
        (["-m", "x.gguf", "--defaults", "ctx-size=1", "-o", "y"], False),
        (["--tune"], True),
        (["--man"], True),
    ],
)
def test_an_errand_is_told_from_how_it_is_to_be_done(argv: list[str], is_errand: bool):
    assert bool(group(parse(argv, {})).errands) is is_errand


def test_an_option_that_asks_for_an_errand_belongs_on_the_command_line(tmp_path):
    file = tmp_path / "x.ini"
    for option in OPTIONS:
        if scope_of(option) == ERRAND:
            file.write_text(f"{option.name} = on\n", encoding="utf-8")
            with pytest.raises(OptionError, match="can be set on the command line only"):
                parse(["--config", str(file)], {})
