"""Lists the models in folders, in a file of presets, in the download cache and on the command line.

It reads presets, names and the first bytes of each model, on the main thread or on the thread of a download or removal.
It may import `server.options` and `folders`.

Not taken: an index file, because other programs change the folders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.models.file_names import stem_of
from server.models.folders import MAX_NAME, Found, clean_name, find_in, list_identities, parts_of
from server.options.config_file import Setting, read_sections
from server.options.groups import CatalogueOptions, ModelOptions, group
from server.options.parser import OptionError, parse, read_model_settings
from server.options.row import switch
from server.records import field, record, replace

MAGIC = b"GGUF"
FOR_ALL = "*"
EAGER = "load-on-startup"
PRESET_ONLY = ("version", "stop-timeout")
"""Keys of llama-server's presets that are ignored here."""
NAMELESS = f"{{}} is left out: it has no name of its own of at most {MAX_NAME} characters"
MAX_TOLD = 20  # most lines about faults that `tell` gets


@record(frozen=True)
class ModelEntry:
    """One model that can be served, and its names.

    `path` is its file, or the first of several `parts`; "" if it isn't on this machine. `mmproj` is its projector, ""
    for none. `size` is the number of bytes of all parts. `source` is "dir", "preset", "cache" or "option". `changes`
    are values of the model's own options, by `Option.key`. `asked` are such values from a request; they override
    `changes`. `is_eager`: the model is loaded at start. `keeper`: see `Found`. `fault` is why the model can't be
    served, in one line; "" if no fault is known.
    """

    name: str
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    path: str = ""
    parts: tuple[str, ...] = ()
    mmproj: str = ""
    size: int = 0
    source: str = "dir"
    changes: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    is_eager: bool = False
    keeper: str = ""
    fault: str = ""


@record(frozen=True)
class _Preset:
    """One section of a file of presets. `place` is where it begins, `values` are its options with those of [*]."""

    name: str
    place: str
    values: Mapping[str, Any]
    is_eager: bool


def find_models(options: CatalogueOptions, cache: Path, tell: Callable[[str], None]) -> list[ModelEntry]:
    """All models: first those of -m, then those of presets, of --models-dir, and of `cache`, the folder of downloads.

    Names and aliases are unique. `tell` gets at most `MAX_TOLD` lines about what is missing, left out or has no effect.
    OptionError for wrong presets.
    """
    tell = _make_bounded(tell)
    presets = read_presets(options.models_preset, tell) if options.models_preset else []
    found = [_make_entry(Found(Path(path), stem_of(Path(path).name)), "option") for path in options.files]
    if options.models_dir:
        found += _make_unique(
            ((_make_entry(model, "dir"), model.spare) for model in find_in(Path(options.models_dir), tell)), tell
        )
        if all(entry.source != "dir" for entry in found):
            tell(f"no model found in {options.models_dir}")
    found += _make_unique(((_make_entry(model, "cache"), model.spare) for model in find_downloads(cache, tell)), tell)
    return _settle_names(_merge_entries(_with_presets(found, presets)), tell)


def read_model_options(
    entry: ModelEntry, argv: Sequence[str], environ: Mapping[str, str], bundled: Sequence[tuple[str, str]] = ()
) -> ModelOptions:
    """The options of one model: its own, and those that all models share (see `parser.parse`). OptionError."""
    model = group(parse(argv, environ, bundled=bundled, own=entry.changes, asked=entry.asked)).model
    sources = model.sources
    if entry.path:
        sources = sources.replace(model=entry.path, mmproj=sources.mmproj or entry.mmproj or None)
    return model.replace(sources=sources, aliases=(entry.name, *entry.aliases), tags=entry.tags or model.tags)


def _make_bounded(tell: Callable[[str], None]) -> Callable[[str], None]:
    """A function that passes `MAX_TOLD` lines to `tell`, and says once that it drops further ones."""
    told: list[str] = []

    def tell_some(line: str) -> None:
        told.append(line)
        if len(told) <= MAX_TOLD:
            tell(line)
        elif len(told) == MAX_TOLD + 1:
            tell("further faults aren't listed")

    return tell_some


# ---- files -----------------------------------------------------------------------------------------------------------


def find_downloads(cache: Path, tell: Callable[[str], None]) -> list[Found]:
    """The models in the download cache."""
    found = find_in(cache / "models" / "hf", tell) if (cache / "models" / "hf").is_dir() else []
    urls = cache / "models" / "url"
    if urls.is_dir():
        found += [replace(model, name=stem_of(model.path.name), aliases=()) for model in find_in(urls, tell)]
    return found


def _make_entry(model: Found, source: str) -> ModelEntry:
    parts = parts_of(model.path)
    return ModelEntry(
        clean_name(model.name),
        tuple(filter(None, map(clean_name, model.aliases))),
        path=str(model.path),
        parts=tuple(map(str, parts)),
        mmproj=model.mmproj,
        size=sum(part.stat().st_size for part in parts if part.is_file()),
        source=source,
        changes={"lora": ((model.lora, 1.0),)} if model.lora else {},
        keeper=model.keeper,
        fault=_find_fault(model.path, parts[-1], source),
    )


def _find_fault(path: Path, last: Path, source: str) -> str:
    if not last.is_file():
        return f"{path.name} is missing" if last == path else f"its part {last.name} is missing"
    try:
        with open(path, "rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        return f"{path.name} can't be read: {error.strerror or error}"
    is_other = magic != MAGIC and source != "option"  # a file of -m may be a bundle
    return f"{path.name} is not a GGUF file" if is_other else ""


# ---- presets ---------------------------------------------------------------------------------------------------------


def read_presets(path: str, tell: Callable[[str], None]) -> list[_Preset]:
    """The named sections of an INI file, each with the options of [*]. OptionError."""
    presets: list[_Preset] = []
    places: dict[str, str] = {}
    for_all: Mapping[str, Any] = {}
    are_eager = False
    sections = [section for section in read_sections(path) if section[0] or section[2]]
    for name, place, settings in sorted(sections, key=lambda section: section[0] != FOR_ALL):
        if name in places:
            raise OptionError(f"{place}: the section [{name}] already exists, at {places[name]}")
        places[name] = place
        if not name and any(key != "version" for key, _, _ in settings):
            raise OptionError(f"{settings[0][2]}: this is before the first section; use [*] for all models")
        if clean_name(name) != name:
            raise OptionError(f"{place}: this can't be a model's name")
        marked = [(key, texts, f"{where} [{name}]") for key, texts, where in settings if key not in PRESET_ONLY]
        values, warnings = read_model_settings([setting for setting in marked if setting[0] != EAGER])
        for line in warnings:
            tell(line)
        if name == FOR_ALL:
            for_all, are_eager = values, _is_eager(marked)
        values = {**for_all, **values}
        try:
            parse((), {}, own=values)
        except OptionError as error:  # options that contradict each other
            raise OptionError(f"{place} [{name}]: {error}") from None
        presets.append(_Preset(name, place, values, _is_eager(marked, are_eager)))
    return [preset for preset in presets if preset.name]


def _is_eager(settings: Iterable[Setting], default: bool = False) -> bool:
    said = [switch(f"{where}: {key}", "".join(texts)) for key, texts, where in settings if key == EAGER]
    return bool(said[-1]) if said else default


def _with_presets(entries: list[ModelEntry], presets: Sequence[_Preset]) -> list[ModelEntry]:
    """The entries with the options of the presets. Models with a section of their own come right behind those of -m."""
    for_all = next((preset for preset in presets if preset.name == FOR_ALL), None)
    if for_all:
        entries = [
            replace(entry, changes={**for_all.values, **entry.changes}, is_eager=for_all.is_eager) for entry in entries
        ]
    own = []
    for preset in presets:
        if preset is not for_all:
            named = next((entry for entry in entries if preset.name in (entry.name, *entry.aliases)), None)
            own.append(_preset_entry(preset, named, entries))
            entries = [entry for entry in entries if entry is not named]
    n_given = sum(entry.source == "option" for entry in entries)
    return entries[:n_given] + own + entries[n_given:]


def _preset_entry(preset: _Preset, named: ModelEntry | None, entries: Sequence[ModelEntry]) -> ModelEntry:
    """The entry of a section. `named` is the entry with the section's name. The model is the first of these: the
    section's file; that of the entry named like its repository, unless `hf_file` is set; that of `named`; one to
    download."""
    values = dict(preset.values)
    base = named or ModelEntry(preset.name)
    files, repo = values.get("files", ()), values.get("hf_repo")
    if files:
        base = replace(_make_entry(Found(Path(files[-1]), preset.name), "preset"), mmproj="")
    elif repo and not values.get("hf_file"):
        base = next((entry for entry in entries if repo in (entry.name, *entry.aliases)), base)
    is_known = bool(base.path or repo or values.get("model_url"))
    if base.path:
        for name in ("files", "hf_repo"):
            values.pop(name, None)
    aliases = [alias.strip() for alias in (values.pop("alias", None) or "").split(",")]
    return replace(
        base,
        name=preset.name,
        aliases=tuple(dict.fromkeys(filter(None, (*aliases, *base.aliases, base.name)))),
        tags=values.pop("tags", ()),
        source="preset",
        changes={**base.changes, **values},
        is_eager=preset.is_eager,
        fault=base.fault if is_known else f"{preset.place}: it names no file, and there is no model of this name",
    )


# ---- models with several names ---------------------------------------------------------------------------------------


def _make_unique(entries: Iterable[tuple[ModelEntry, str]], tell: Callable[[str], None]) -> list[ModelEntry]:
    """The entries of one folder. An entry whose name is taken gets its spare name, or is left out."""
    found: dict[str, ModelEntry] = {}
    for entry, spare in entries:
        name = entry.name if entry.name not in found else clean_name(spare)
        if name and name not in found:
            found[name] = replace(entry, name=name)
        else:
            tell(NAMELESS.format(entry.path))
    return list(found.values())


def _merge_entries(entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """The entries without duplicates: if a file occurs again, its names become aliases of the first entry. A preset
    stays an entry of its own."""
    found: list[ModelEntry] = []
    known: dict[object, int] = {}
    for entry in entries:
        keys = list_identities(Path(entry.path)) if entry.path else []
        first = next((known[key] for key in keys if key in known), None)
        if first is None or entry.source == "preset":
            found.append(entry)
            first = len(found) - 1
        else:
            other = found[first]
            names = dict.fromkeys((*other.aliases, entry.name, *entry.aliases))
            aliases = tuple(name for name in names if name != other.name)
            found[first] = replace(other, aliases=aliases, mmproj=other.mmproj or entry.mmproj)
        for key in keys:
            known.setdefault(key, first)
    return found


def _settle_names(entries: Sequence[ModelEntry], tell: Callable[[str], None]) -> list[ModelEntry]:
    """The entries with unique names and aliases. Nameless entries, and later ones of the same name, are left out. An
    alias that is a name, or an earlier entry's alias, is removed."""
    named: dict[str, ModelEntry] = {}
    for entry in entries:
        if entry.name in named:
            tell(
                f"{entry.path} is left out: there is another model with the name {entry.name}, {named[entry.name].path}"
            )
        elif entry.name:
            named[entry.name] = entry
        else:
            tell(NAMELESS.format(entry.path))
    taken = set(named)
    found = []
    for entry in named.values():
        aliases = tuple(alias for alias in entry.aliases if alias not in taken)
        taken.update(aliases)
        found.append(replace(entry, aliases=aliases))
    return found
