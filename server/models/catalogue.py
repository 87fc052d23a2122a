"""Which models there are: what folders, a file of presets, the download cache and the command line have.

Pure reading of names and a few bytes of each file, on the main thread at start and on a connection's thread when the
list is asked for anew. Nothing is imported that a server with one model doesn't need, and such a server doesn't import
this. It may import `server.options`; what is in a model's header is read when it is loaded (`server.model_files`).

Not taken: an index of our own beside the files. It would have to be kept in step with folders that others change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from server.options.config_file import Setting
from server.options.groups import CatalogueOptions, ModelOptions, group
from server.options.parser import parse
from server.records import record

MAGIC = b"GGUF"
SPLIT = re.compile(r"(?P<prefix>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.ASCII)
PROJECTOR = "mmproj"
FOR_ALL = "*"
EAGER = "load-on-startup"
PRESET_ONLY = ("version", EAGER, "stop-timeout")
"""Keys of llama-server's presets that are no options. Here no model is stopped while it works, so the last one says
nothing."""


@record(frozen=True)
class ModelEntry:
    """One model that can be served, and how it is called.

    `path` is its file, of several `parts` the first; "" for one that is still to be fetched (`changes` say from where).
    `mmproj` is the projector beside it, "" for none. `size` are the bytes of all parts. `source` is "dir", "preset",
    "cache" or "option". `changes` are the options of its own, as a config file has them: (name, texts, place).
    `is_eager`: to be loaded at start. `fault` is why it can't be served, in one line; "" if nothing is known against
    it.
    """

    name: str
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    path: str = ""
    parts: tuple[str, ...] = ()
    mmproj: str = ""
    size: int = 0
    source: str = "dir"
    changes: tuple[Setting, ...] = ()
    is_eager: bool = False
    fault: str = ""


def find_models(options: CatalogueOptions, cache: Path, tell: Callable[[str], None]) -> list[ModelEntry]:
    """All models, in the order of their names; those of -m come first. `cache` is the folder of downloads. `tell` gets
    a line about each thing that looks like a model and isn't one. OptionError for a file of presets that is wrong."""
    found = [_entry_of_file(Path(path), "option") for path in options.files]
    if options.models_dir:
        found += find_in_folder(Path(options.models_dir), tell)
    return found


def model_options(
    entry: ModelEntry, argv: Sequence[str], environ: Mapping[str, str], bundled: Sequence[tuple[str, str]] = ()
) -> ModelOptions:
    """The options of one model: its own, and what the command line, the environment and the config file say of all.
    OptionError. For the parameters see `parser.parse`."""
    model = group(parse(argv, environ, bundled=bundled, own=entry.changes)).model
    sources = model.sources
    if entry.path:
        sources = sources.replace(model=entry.path, mmproj=sources.mmproj or entry.mmproj or None)
    return model.replace(sources=sources, aliases=(entry.name, *entry.aliases), tags=entry.tags or model.tags)


# ---- a folder --------------------------------------------------------------------------------------------------------


def find_in_folder(folder: Path, tell: Callable[[str], None]) -> list[ModelEntry]:
    """The models whose files lie in `folder` itself."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    return [_entry_of_file(path, "dir") for path in files if PROJECTOR not in path.name and _is_first(path)]


def _is_first(path: Path) -> bool:
    found = SPLIT.fullmatch(path.name)
    return not found or int(found["no"]) == 1


def stem_of(path: Path) -> str:
    """The name of a model's file without .gguf, and without the number of its part."""
    found = SPLIT.fullmatch(path.name)
    return found["prefix"] if found else path.name[: -len(".gguf")] if path.suffix.lower() == ".gguf" else path.name


def _entry_of_file(path: Path, source: str, name: str = "") -> ModelEntry:
    parts = parts_of(path)
    return ModelEntry(
        name or stem_of(path),
        path=str(path),
        parts=tuple(map(str, parts)),
        size=sum(part.stat().st_size for part in parts if part.is_file()),
        source=source,
        fault=_fault(path, parts),
    )


def parts_of(path: Path) -> list[Path]:
    """All files of the model whose first one is `path`, also those that aren't there."""
    found = SPLIT.fullmatch(path.name)
    if not found:
        return [path]
    names = (f"{found['prefix']}-{no:05}-of-{found['count']}.gguf" for no in range(1, int(found["count"]) + 1))
    return [path.with_name(name) for name in names]


def _fault(path: Path, parts: Iterable[Path]) -> str:
    missing = next((part.name for part in parts if not part.is_file()), "")
    if missing:
        return f"{missing} isn't there" if missing == path.name else f"its part {missing} isn't there"
    try:
        with open(path, "rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        return f"{path.name} can't be read: {error.strerror or error}"
    return "" if magic == MAGIC else f"{path.name} is not a GGUF file"
