"""Fixtures for all tests: models, native libraries, server processes; and the rule about skips.

Runs in the test process, loaded by pytest. Models are written once per session to pytest's temporary folder (tens of
milliseconds each), so there is no cache that could be outdated. If something that a fixture needs is missing, the test
is skipped with the reason, or fails where skips aren't allowed (`tests.support.need`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from server import log
from tests import tiny_hybrids, tiny_media_models, tiny_models
from tests.support import ROOT, ServerProcess, build_script, need, nothing_may_be_skipped, start_server

ORDER = ("unit", "api", "native", "e2e")
# a skip with such a reason is about another system, so no set-up could prevent it
FINE_TO_SKIP = ("only on ", "not on ", "long test")


# examples may take as long as the machine needs, and are the same ones in every run of CI
settings.register_profile("ours", deadline=None, derandomize=nothing_may_be_skipped())
settings.load_profile("ours")


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """What a test has set up of the server's log holds for no other: tests run in any order."""
    root = logging.getLogger("llama_srv")
    before = root.handlers[:], root.level, root.propagate
    yield
    log.set_subject("")  # a test that looks up a model by name does so on this thread
    root.handlers[:], level, root.propagate = before
    root.setLevel(level)


# ------------------------------------------------------------------------------------------------ models


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the session's models."""
    return tmp_path_factory.mktemp("models")


def _model_fixture(name: str, recipe: Callable[..., Path], **options: object) -> Callable[..., Path]:
    def fixture(models_folder: Path) -> Path:
        return recipe(models_folder / f"{name}.gguf", **options)

    fixture.__doc__ = f"A model written by `tiny_models.{recipe.__name__}` with {options or 'defaults'}."
    return pytest.fixture(scope="session", name=name)(fixture)


tiny_spm_model = _model_fixture("tiny_spm_model", tiny_models.tiny_llama, kind="spm")
tiny_bpe_model = _model_fixture("tiny_bpe_model", tiny_models.tiny_llama, kind="bpe")
tiny_spm_fim_model = _model_fixture("tiny_spm_fim_model", tiny_models.tiny_llama, kind="spm", fim=True)
tiny_bpe_fim_model = _model_fixture("tiny_bpe_fim_model", tiny_models.tiny_llama, kind="bpe", fim=True)
tiny_lora = _model_fixture("tiny_lora", tiny_models.tiny_lora)
tiny_mamba_model = _model_fixture("tiny_mamba_model", tiny_models.tiny_mamba)
tiny_jamba_model = _model_fixture("tiny_jamba_model", tiny_models.tiny_mamba, is_hybrid=True)
tiny_lfm2_model = _model_fixture("tiny_lfm2_model", tiny_hybrids.tiny_lfm2)
tiny_qwen35_model = _model_fixture("tiny_qwen35_model", tiny_hybrids.tiny_qwen35)
recite_model = _model_fixture("recite_model", tiny_models.recite)
bert_embed_model = _model_fixture("bert_embed_model", tiny_models.tiny_bert)
bert_rerank_model = _model_fixture("bert_rerank_model", tiny_models.tiny_bert, rerank=True)
bert_classes_model = _model_fixture(
    "bert_classes_model",
    tiny_models.tiny_bert,
    rerank=True,
    labels=("yes", "no", "maybe"),
    rerank_template="[CLS] is {document} [SEP] {query} [SEP]",
)
mmproj_gemma3 = _model_fixture("mmproj_gemma3", tiny_models.tiny_mmproj, kind="gemma3")
mmproj_mlp = _model_fixture("mmproj_mlp", tiny_models.tiny_mmproj, kind="mlp")
mrope_model = _model_fixture("mrope_model", tiny_media_models.tiny_qwen2vl)
mmproj_merger = _model_fixture("mmproj_merger", tiny_media_models.tiny_merger)
mmproj_whisper = _model_fixture("mmproj_whisper", tiny_media_models.tiny_whisper)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real small chat model, if `build_scripts/fetch_model.py` has fetched it."""
    common = build_script("common")
    try:
        return build_script("fetch_model").ensure(offline=True, progress=common.Progress(quiet=True))
    except common.Failure as failure:
        reason = f"SmolLM2 isn't here (run `python build_scripts/fetch_model.py`): {failure}"
    need(False, reason)
    raise AssertionError("not reached")


@pytest.fixture(scope="session")
def published_minilm() -> Path:
    """The archive that all-MiniLM-L6-v2 was published as, if `build_scripts/fetch_model.py --embedding` has fetched
    it."""
    common, fetch_model = build_script("common"), build_script("fetch_model")
    try:
        return fetch_model.ensure(offline=True, progress=common.Progress(quiet=True), key=fetch_model.EMBEDDING_ROW)
    except common.Failure as failure:
        reason = f"all-MiniLM-L6-v2 isn't here (run `python build_scripts/fetch_model.py --embedding`): {failure}"
    need(False, reason)
    raise AssertionError("not reached")


# ------------------------------------------------------------------------------------------------ native code


@pytest.fixture(scope="session")
def libs_folder() -> Path:
    """The folder of native libraries that the server would choose."""
    from ctypes_api import errors, loader

    try:
        return loader.find_folder(ROOT, None)
    except errors.LibsNotFound as error:
        reason = str(error)
    need(False, reason)
    raise AssertionError("not reached")


@pytest.fixture
def serve(libs_folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`serve("-m", path, ...)` starts a server as `support.start_server` does; the test's end stops it.

    What the servers printed is shown when the test fails.
    """
    servers: list[ServerProcess] = []

    def start(*arguments: object, **options: object) -> ServerProcess:
        server = start_server([str(argument) for argument in arguments], **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
        print(f"--- {' '.join(server.command[1:])}\n{server.log}")


# ------------------------------------------------------------------------------------------------ rules


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, and those that want a process without native code before those that load it; long
    tests only when asked for."""
    items.sort(key=lambda item: ORDER.index(_folder(item)) if _folder(item) in ORDER else len(ORDER))
    if os.environ.get("LLAMA_SRV_TEST_LONG") == "1":
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long test: set LLAMA_SRV_TEST_LONG=1"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Where nothing may be skipped, a skip is a failure, whichever way it was asked for."""
    return _skip_to_failure((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same for whole files that skip themselves."""
    return _skip_to_failure((yield))


def _skip_to_failure(report):
    if report.skipped and nothing_may_be_skipped() and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(FINE_TO_SKIP):
            report.outcome = "failed"
            report.longrepr = f"{reason} (a failure because nothing may be skipped)"
    return report
