"""The results of `--tune` for models on this machine, in the cache folder; each start looks them up.

Main thread, or the thread that loads a model. Imports little, because `launch` asks before it starts the engine's
process. Each model (by name and size) has a file with a line per CPU, since machines may share a home folder. A line
counts only on its CPU, and only while the file of its plug-in, if it has one, keeps its size. A damaged file is
ignored.

Way not taken: measuring without being asked. It needs the whole machine.
"""

from __future__ import annotations

import binascii
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from server.program import find_cache_folder

if TYPE_CHECKING:
    from server.options.groups import ModelOptions

CPU_INFO = "/proc/cpuinfo"
CPU_KEYS = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags", b"CPU ", b"Features")
MOST_BYTES = 1 << 16  # read of a file
MOST_THREADS = 1024  # a line with a larger number is ignored


class Tuned(NamedTuple):
    """The CPU plug-in (None: llama.cpp's choice) and the number of threads (-1: the default)."""

    cpu_variant: str | None = None
    n_threads: int = -1

    def __str__(self) -> str:
        words = [f"--cpu-variant {self.cpu_variant}"] * (self.cpu_variant is not None)
        return " ".join(words + [f"-t {self.n_threads}"] * (self.n_threads > 0))


AUTO = "auto"  # the value of --cpu-variant for llama.cpp's choice, whatever was found
NOTHING = Tuned()


def choose_tuned(options: ModelOptions, model: str, libs: Path) -> Tuned:
    """The settings of the options, completed by what was found for this model file ("" for none)."""
    found = recall(model, libs) if model else NOTHING
    variant = options.cpu_variant or found.cpu_variant
    return Tuned(None if variant == AUTO else variant, options.threads if options.threads > 0 else found.n_threads)


def recall(model: str, libs: Path, environ: Mapping[str, str] = os.environ) -> Tuned:
    """What was found for this model file on this CPU, if the plug-in has the same size; else `NOTHING`."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        cpu = compute_cpu_name()
        for line in _read(file_of(model, environ)):
            fields = dict(word.split("=", 1) for word in line.split(" "))
            n_threads = int(fields["threads"])
            if (
                fields["cpu"] == cpu
                and _is_same_plugin(libs, fields["plugin"], int(fields["bytes"]))
                and -1 <= n_threads <= MOST_THREADS
            ):
                return Tuned(fields["variant"] or None, n_threads or -1)
    return NOTHING


def remember(model: str, plugin: Path | None, tuned: Tuned, environ: Mapping[str, str] = os.environ) -> Path:
    """Save a result; `plugin` is the file of `tuned.cpu_variant`. Returns the path of the results. OSError."""
    path, cpu = file_of(model, environ), compute_cpu_name()
    lines = []
    with contextlib.suppress(OSError, ValueError):
        lines = [line for line in _read(path) if not line.startswith(f"cpu={cpu} ")]
    if tuned != NOTHING:
        name, n_bytes = (plugin.name, plugin.stat().st_size) if plugin else ("", 0)
        lines.append(
            f"cpu={cpu} plugin={name} bytes={n_bytes} variant={tuned.cpu_variant or ''} threads={tuned.n_threads}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    os.replace(temporary, path)
    return path


def compute_cpu_name() -> str:
    """A short hash of what Linux or Windows says about the CPU; elsewhere the same for all CPUs."""
    try:
        with open(CPU_INFO, "rb") as file:
            first = file.read(MOST_BYTES).partition(b"\n\n")[0]
        said = b"\n".join(line for line in first.split(b"\n") if line.startswith(CPU_KEYS))
    except OSError:
        said = os.environ.get("PROCESSOR_IDENTIFIER", "").encode("utf-8", "replace")
    return f"{binascii.crc32(said):08x}"


def file_of(model: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The file with the results of a model. OSError if the model doesn't exist."""
    return find_cache_folder(environ) / "tuned" / f"{os.path.basename(model)}-{os.stat(model).st_size}"


def _read(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.read(MOST_BYTES).splitlines()


def _is_same_plugin(libs: Path, name: str, n_bytes: int) -> bool:
    return not name or (os.path.basename(name) == name and os.stat(libs / name).st_size == n_bytes)
