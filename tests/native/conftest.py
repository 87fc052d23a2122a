"""Fixtures of the tests with native libraries: engines with tiny models, and a reference to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ctypes_api import loader
from ctypes_api.objects import Model
from tests.native.engines import Engine, Reference
from tests.native.media_engines import QUIET
from tests.support import need


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
def engine(libs_folder: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """`engine(model, **config fields)` loads a model; the test's end closes it. See `in_both_layouts`."""
    made: list[Engine] = []
    layout = getattr(request, "param", {})

    def make(model: Path, **config: object) -> Engine:
        made.append(Engine(libs_folder, model, **{**layout, **config}))
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


@pytest.fixture(scope="session")
def mtmd_folder(libs_folder: Path) -> Path:
    """The folder of native libraries, which holds libmtmd."""
    from ctypes_api import loader

    need(
        loader.load(libs_folder).files.mtmd, "libmtmd isn't here (run `python build_scripts/fetch_libs.py --with-mtmd`)"
    )
    return libs_folder


@pytest.fixture
def see(mtmd_folder: Path) -> Iterator[Callable[..., Engine]]:
    """`see(model, mmproj, **config fields)` loads a model with its projector; the test's end closes it."""
    with ExitStack() as stack:

        def make(model: Path, mmproj: Path, **config: object) -> Engine:
            params = {**QUIET, **config.pop("mmproj_params", {})}
            engine = Engine(mtmd_folder, model, mmproj=str(mmproj), mmproj_params=params, **config)
            stack.callback(engine.close)
            return engine

        yield make
