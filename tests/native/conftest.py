"""Fixtures of the tests with native libraries: engines over tiny models, and a reference to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ctypes_api import loader
from ctypes_api.objects import Model
from tests.native.engines import Engine, Reference


@pytest.fixture(scope="session")
def libs(libs_folder: Path) -> loader.Libs:
    """The real libraries, loaded into this process for good."""
    return loader.load(libs_folder)


@pytest.fixture(scope="module")
def model(libs: loader.Libs, tiny_spm_model: Path) -> Iterator[Model]:
    """A tiny model, without a context."""
    with Model(libs, tiny_spm_model) as made:
        yield made


@pytest.fixture
def engine(libs_folder: Path) -> Iterator[Callable[..., Engine]]:
    """`engine(model, **config fields)` loads a model; the test's end closes it."""
    made: list[Engine] = []

    def make(model: Path, **config: object) -> Engine:
        made.append(Engine(libs_folder, model, **config))
        return made[-1]
    yield make
    for one in made:
        one.close()


@pytest.fixture
def reference(libs_folder: Path) -> Iterator[Callable[[Path], Reference]]:
    """`reference(model)` opens a model on its own; the test's end closes it."""
    with ExitStack() as stack:
        yield lambda model: Reference(libs_folder, model, stack)


@pytest.fixture(params=["tiny_spm_model", "tiny_bpe_model"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each of the two tiny text models."""
    return request.getfixturevalue(request.param)
