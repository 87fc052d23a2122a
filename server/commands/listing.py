"""Lists models and whether they fit into memory, describes one, and lists the models of a running server. Main thread.

The server's planner (`memory_plan`) tells whether a model fits, if the native libraries are there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctypes_api.errors import LibsError
from server.commands.catalogue import Call, entries_of, find
from server.commands.talk import Peer
from server.engine.llama import backend
from server.engine.seam.config import EngineConfig
from server.errors import StartError
from server.model_files.gguf import Gguf, GgufError, make_printable, read_all
from server.model_files.tensor_types import TYPES
from server.model_sources import read_model
from server.models.catalogue import ModelEntry, read_model_options
from server.models.file_names import quant_of
from server.options.groups import DownloadOptions, EngineOptions
from server.options.parser import OptionError

HEAD = ("NAME", "SIZE", "TYPE", "CONTEXT", "FITS")
TEXTS = (
    ("general.name", "name"),
    ("general.architecture", "architecture"),
    ("general.size_label", "parameters"),
    ("general.license", "licence"),
)


def list_models(call: Call) -> int:
    """`models`: one line per model. Returns the exit code."""
    entries = entries_of(call.settings)
    if not entries:
        print("no models found: pull USER/MODEL downloads one, --models-dir DIR names a folder of models")
        return 0
    width = max(len(name) for name in ("NAME", *(entry.name for entry in entries)))
    for row in (HEAD, *(_make_row(call, entry) for entry in entries)):
        print(f"{row[0]:<{width}}  {row[1]:>9}  {row[2]:<10}  {row[3]:>7}  {row[4]}".rstrip(), flush=True)
    return 0


def _make_row(call: Call, entry: ModelEntry) -> tuple[str, ...]:
    size = format_size(entry.size) if entry.size else ""
    if entry.fault or not entry.path:
        return entry.name, size, quant_of(entry.path), "", entry.fault or "not downloaded yet"
    try:
        headers = read_all(entry.path)
        return entry.name, size, type_of(entry, headers), context_of(headers[0]), fit_text(call, entry)
    except (OSError, GgufError) as error:
        return entry.name, size, quant_of(entry.path), "", make_printable(str(error))


def format_size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def type_of(entry: ModelEntry, headers: Sequence[Gguf]) -> str:
    """The quantisation: from the file's name, or else the type of tensors with the most bytes; "" if unknown."""
    found: Counter[int] = Counter()
    for header in headers:
        for tensor in header.tensors.values():
            found[tensor.kind] += tensor.n_bytes
    most = found.most_common(1)
    return quant_of(entry.path) or (TYPES[most[0][0]][0].upper() if most else "")


def context_of(header: Gguf) -> str:
    """The number of tokens that the model was trained with; "" if unknown."""
    n = header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length")
    return str(n) if isinstance(n, int) else ""


def plan_of(call: Call, entry: ModelEntry) -> EngineConfig:
    """The configuration that a server would give the engine for this model. StartError, OptionError, LibsError."""
    engines = EngineOptions(libs=call.settings.libs, engine="process")
    downloads = DownloadOptions(hf_token=None, offline=True)
    return read_model(read_model_options(entry, (), os.environ), engines, downloads, None)[1]


def fit_text(call: Call, entry: ModelEntry) -> str:
    """`yes`, `yes` with the context that fits, `no` with the reason, or `unknown`."""
    try:
        plan = backend.plan_of(plan_of(call, entry))
    except (StartError, OptionError) as error:
        return f"no: {error}"
    except LibsError:
        return "unknown: the native libraries are missing"
    if plan is None:
        return "unknown"
    n_slot = plan.n_ctx // plan.n_slots
    return "yes" if not plan.notes else f"yes, with {n_slot} tokens of context"


def show(call: Call) -> int:
    """`show NAME`: describe a model. Returns the exit code."""
    entry, _ = find(call.settings, call.names[0])
    for label, text in _list_facts(entry):
        print(f"{label + ':':<14}{make_printable(text)}")
    if entry.fault or not entry.path:
        return 0
    print("\nmemory on this machine:")
    try:
        print("\n".join(f"  {line}" for line in backend.plan_lines(plan_of(call, entry))[1:]))
    except (StartError, LibsError) as error:
        print(f"  {error}")
    return 0


def _list_facts(entry: ModelEntry) -> Iterator[tuple[str, str]]:
    yield "model", entry.name
    if entry.aliases:
        yield "also called", ", ".join(entry.aliases)
    if entry.fault:
        yield "fault", entry.fault
    if not entry.path:
        yield "file", "not downloaded yet"
        return
    yield "file", entry.path + (f" and {len(entry.parts) - 1} more" if len(entry.parts) > 1 else "")
    yield "size", format_size(sum(Path(part).stat().st_size for part in entry.parts if os.path.isfile(part)))
    if entry.mmproj:
        yield "projector", entry.mmproj
    if entry.changes:
        yield "own options", ", ".join(sorted(entry.changes))
    if entry.fault:
        return
    try:
        headers = read_all(entry.path)
    except (OSError, GgufError) as error:
        yield "fault", str(error)
        return
    for key, label in TEXTS:
        if text := str(headers[0].metadata.get(key, "")):
            yield label, text
    yield "type", type_of(entry, headers)
    yield "context", context_of(headers[0])


def list_running(call: Call) -> int:
    """`ps`: list the models of a running server with their states. Returns the exit code."""
    models = Peer.from_settings(call.settings).list_models()
    rows = [(model.name, model.state, format_size(model.size) if model.size else "", model.context) for model in models]
    width = max(len(row[0]) for row in (("NAME",), *rows))
    for row in (("NAME", "STATE", "SIZE", "CONTEXT"), *rows):
        print(f"{row[0]:<{width}}  {row[1]:<10}  {row[2]:>9}  {row[3]:>7}".rstrip())
    return 0
