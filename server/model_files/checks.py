"""Checks a model's files before it is loaded. No native library.

Runs on the web process's main thread, or on `model-load`. A file that passes has a valid header, all its parts, and
none of the header faults known to end a process that runs libllama. `gguf` reads headers, `header_checks` and
`projector_checks` find faults, this module reports the first. Faults that no header shows can end only the engine's
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from server.errors import StartError
from server.model_files import gguf, projector_checks
from server.model_files import header_checks as model_checks
from server.model_files.rerankers import has_head, template_of

FAULTS: dict[str, Callable[[list[gguf.Gguf]], Iterator[str]]] = {
    "-m": model_checks.find_model_faults,
    "--model-draft": model_checks.find_model_faults,
    "--lora": model_checks.find_adapter_faults,
    "--mmproj": projector_checks.find_projector_faults,
}


def check_model_file(
    path: str, option: str = "-m", overrides: Iterable[tuple[str, str, object]] = (), span: tuple[int, int] = (0, 0)
) -> list[gguf.Gguf]:
    """Read and check the headers of a model's files. StartError with one line if `option` can't use them.

    `option` is a key of `FAULTS`; `overrides` are the (key, type, value) rows of `--override-kv`; `span` is the offset
    and size of the model in a larger file.
    """
    file = Path(path)
    if not file.exists():
        raise StartError(f"there is no model file {path}; {option} takes the path of a .gguf file")
    if file.is_dir():
        raise StartError(f"{path} is a folder; {option} takes the path of a .gguf file")
    if not file.is_file():
        raise StartError(f"{path} is a pipe or a device; {option} takes the path of a .gguf file")
    try:
        parts = gguf.read_all(path, keep=model_checks.KEPT, span=span)
        model_checks.override_metadata(parts[0], {key: value for key, _, value in overrides})
        fault = next(FAULTS[option](parts), None)
    except OSError as error:
        raise StartError(f"{path} can't be read: {error.strerror or error}") from None
    except gguf.GgufError as error:
        raise StartError(str(error)) from None
    if fault:
        raise StartError(gguf.make_printable(f"{path} {fault}"))
    return parts


def check_all(
    model: str,
    others: Mapping[str, Iterable[str]],
    overrides: Iterable[tuple[str, str, object]] = (),
    span: tuple[int, int] = (0, 0),
) -> list[gguf.Gguf]:
    """Check the model and its other files (paths by option). Returns the model's headers."""
    for option, paths in others.items():
        for path in paths:
            check_model_file(path, option)
    return check_model_file(model, "-m", overrides, span)


def check_ranker(parts: list[gguf.Gguf]) -> None:
    """StartError if the model has neither a classification head nor a reranking template."""
    if not has_head(tensor for part in parts for tensor in part.tensors) and not template_of(parts[0].metadata):
        raise StartError(
            f"{parts[0].path} has no classification head and no reranking template, "
            "so it can't rank: leave out --reranking and --pooling rank, or use a reranking model"
        )
