"""Opens the native libraries, checks that they fit, binds them and starts the backends.

Runs before any other thread calls the libraries. The order matters: ggml-base, ggml and llama by absolute path with
global symbols, ABI guard, log callback, backend plug-ins, llama_backend_init. A library can't be unloaded safely, so a
process has one set of libraries.

Not taken: LD_LIBRARY_PATH or the libraries' RUNPATH (wrong once they are copied), and an override for the guard.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from ctypes_api import abi, ggml, llama, llama_types
from ctypes_api.binding import Functions, bind, from_addresses, from_handle
from ctypes_api.errors import LibsBroken, LibsError, LibsNotFound, choose_advice
from ctypes_api.folder import FETCH, LibraryFiles, find_folder, get_platform_name, read_folder
from ctypes_api.layout import LAYOUT
from ctypes_api.native_log import LogCallback, NativeLog

__all__ = ["Libs", "find_folder", "load"]

# (pattern of the system loader's message, explanation). {0} is the first group that matched.
_OTHER_MACHINE = "it was built for another machine than this {platform}, or is damaged: " + FETCH
_REASONS = (
    (
        r"version `(GLIBC_[\d.]+)' not found",
        "it needs {0}, this system has glibc {libc}: use a newer system or import a build made on this one",
    ),
    (r"version `([\w.]+)' not found", "it needs {0}, which this system's libstdc++ lacks: update that"),
    (r"(libcuda\.so[\w.]*): cannot open", "there is no NVIDIA driver on this machine ({0} is missing)"),
    (
        r"(libcu\w+\.so[\w.]*): cannot open",
        "{0} of the CUDA runtime is missing: install the CUDA version that this name ends in",
    ),
    (r"(libvulkan\.so[\w.]*): cannot open", "{0} is missing: install a Vulkan driver and loader"),
    (r"(libgomp[\w.]*): cannot open", "{0} is missing: install it (Debian, Ubuntu: apt install libgomp1)"),
    (
        r"(lib[\w.+-]+): cannot open|Library not loaded: (\S+)",
        "{0}, which it needs, is missing: install it or fetch the folder again",
    ),
    (
        r"wrong ELF class|invalid ELF header|file too short|incompatible architecture|not a mach-o|WinError 193",
        _OTHER_MACHINE,
    ),
    (
        r"Could not find module|WinError 126",
        "a DLL that it needs is missing: install the Microsoft Visual C++ Redistributable or fetch the folder again",
    ),
)
_LOADED_FROM = re.compile(r"loaded (\S+) backend from (.+)$")


class Libs:
    """One loaded set of libraries. `llama`, `ggml` and `mtmd` carry the C functions as attributes."""

    def __init__(
        self,
        folder: Path,
        files: LibraryFiles,
        version: str,
        log: NativeLog,
        ggml: Functions,
        llama: Functions,
        cpu_variant: str | None,
        keep: list[Any],
    ) -> None:
        self.folder = folder
        self.files = files
        self.version = version  # of llama_version()
        self.log = log  # keeps the C log callback alive
        self.ggml = ggml
        self.llama = llama
        self.mtmd: Functions | None = None  # None until `load` was called `with_mtmd`
        self.backends: tuple[str, ...] = ()  # registered backends, e.g. ("CUDA", "CPU")
        self.plugins: tuple[str, ...] = ()  # files of loaded plug-ins; empty if the backends are linked in
        self.notes: tuple[str, ...] = ()  # a line per unused plug-in, CPU plug-ins left out
        self.cpu_variant = cpu_variant  # the one given to `load`
        self.has_backends = False  # without them only a vocabulary can be opened
        self.keep = keep  # handles that must stay open


_lock = threading.Lock()
_loaded: dict[Path, Libs] = {}  # guarded by _lock


def load(
    folder: Path,
    *,
    cpu_variant: str | None = None,
    with_mtmd: bool = False,
    log_callback: LogCallback | None = None,
    with_backends: bool = True,
) -> Libs:
    """Open the libraries in `folder`, or return the `Libs` of an earlier call.

    `cpu_variant` names a `ggml-cpu-*` plug-in to use instead of the best one. `log_callback(level, line)` is called
    with every native log line, on any thread; without it nothing is logged. Without `with_backends` no plug-in is
    loaded and no GPU initialised, so only a vocabulary can be opened. Raises LibsError or a subclass.
    """
    folder = Path(folder).resolve()
    with _lock:
        libs = _loaded.get(folder)
        if libs is None:
            if _loaded:
                raise LibsError(
                    f"this process already uses the libraries of {next(iter(_loaded))}: start another one for {folder}"
                )
            libs = _open(folder, cpu_variant, log_callback)
            _loaded[folder] = libs
        elif libs.has_backends and cpu_variant not in (None, libs.cpu_variant):
            raise LibsError(
                f"this process already uses {folder} with CPU variant "
                f"{libs.cpu_variant or 'auto'}: start another one for {cpu_variant}"
            )
        elif log_callback is not None:
            libs.log.sink = log_callback
        if with_backends and not libs.has_backends:
            libs.cpu_variant = cpu_variant
            _start_backends(libs)
            libs.llama.llama_backend_init()  # after the backends: without any it would search the current folder
            libs.has_backends = True
        if with_mtmd and libs.mtmd is None:
            libs.mtmd = _open_mtmd(libs)
        return libs


def _open(folder: Path, cpu_variant: str | None, log_callback: LogCallback | None) -> Libs:
    abi.check_platform()
    files = read_folder(folder)
    if cpu_variant is not None:
        _find_variant_file(files, cpu_variant)  # raises for a misspelt name before anything is opened
    handles, keep = _open_all(files)
    base, registry, handle = (handles[path] for path in (files.ggml_base, files.ggml, files.llama))
    where = str(files.llama)
    version = _version_of(handle)
    abi.check_version(version, where)
    log = NativeLog(log_callback)
    libs = Libs(folder, files, version, log, Functions(base), Functions(handle), cpu_variant, keep)
    bind(ggml.BASE_ROWS, from_handle(base), libs.ggml, version=version, where=str(files.ggml_base))
    bind(ggml.REGISTRY_ROWS, from_handle(registry), libs.ggml, version=version, where=str(files.ggml))
    bind(llama.ROWS, from_handle(handle), libs.llama, version=version, where=where)
    _guard(folder, libs.llama, where, llama_types.STRUCTS + ggml.STRUCTS, abi.LLAMA_DEFAULTS)
    libs.llama.llama_log_set(log.c_callback, None)  # also for ggml
    atexit.register(libs.llama.llama_log_set, _make_silent_callback(), None)
    return libs


def _open_all(files: LibraryFiles) -> tuple[dict[Path, ctypes.CDLL], list[Any]]:
    """Open the libraries in order. Returns their handles, and other handles that must stay open. Raises LibsBroken."""
    keep: list[Any] = []
    if sys.platform == "win32":
        keep.append(os.add_dll_directory(str(files.folder)))
    handles: dict[Path, ctypes.CDLL] = {}
    for path in files.order:
        try:
            handles[path] = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            # without plug-ins libggml needs the backends' libraries: open those first if libggml didn't find them
            opened = [_try_open(plugin) for plugin in files.plugins.values()] if path == files.ggml else []
            if not any(opened):
                raise LibsBroken(_explain(path, _describe_error(error))) from None
            keep += opened
            handles[path] = _open_library(path)
    return handles, keep


def _open_mtmd(libs: Libs) -> Functions:
    from ctypes_api import mtmd  # here, because most models come without

    path = libs.files.mtmd
    if path is None:
        raise LibsNotFound(
            f"{libs.folder} has no libmtmd, which images and audio need: "
            + choose_advice(
                "run `python build_scripts/fetch_libs.py --with-mtmd`",
                "choose a folder of libraries that has it with --libs",
            )
        )
    handle = _open_library(path)
    functions = Functions(handle)
    bind(mtmd.ROWS, from_handle(handle), functions, version=libs.version, where=str(path))
    _guard(libs.folder, functions, str(path), mtmd.STRUCTS, abi.MTMD_DEFAULTS)
    functions.mtmd_helper_log_set(libs.log.c_callback, None)
    atexit.register(functions.mtmd_helper_log_set, _make_silent_callback(), None)
    return functions


def _make_silent_callback() -> Any:
    """A log callback in C that does nothing (libc's `abs` of the level).

    Destructors of the native libraries may log after Python has ended, when a Python callback would crash.
    """
    libc = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    return ctypes.cast(libc.abs, ggml.ggml_log_callback)


def _guard(folder: Path, functions: Functions, where: str, structs: tuple, defaults: abi.Defaults) -> None:
    """Compare layouts and default parameters. LibsIncompatible if one differs."""
    ours = abi.layout_of(structs)
    abi.check_layout(ours, LAYOUT, f"the {abi.EXPECTED} headers")
    beside = folder / abi.LAYOUT_FILE
    theirs = abi.read_layout(beside)
    if theirs is not None:
        abi.check_layout(ours, theirs, str(beside))
    for function, expected in defaults.items():
        abi.check_defaults(function, getattr(functions, function)(), expected, where)


def _version_of(handle: ctypes.CDLL) -> str:
    try:
        function = ctypes.PYFUNCTYPE(ctypes.c_char_p)(("llama_version", handle))
    except AttributeError:
        return ""
    return (function() or b"").decode("utf-8", "replace")


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise LibsBroken(_explain(path, _describe_error(error))) from None


def _try_open(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def _explain(path: Path, error: str) -> str:
    """One line with the file, an explanation, and the system loader's message."""
    error = " ".join(error.split())
    own = ((re.escape(f"{path}: cannot open"), _OTHER_MACHINE),) if path.is_file() else ()  # what glibc says then
    for pattern, meaning in own + _REASONS:
        if match := re.search(pattern, error):
            import platform  # here, because few starts need it

            found = next(filter(None, match.groups()), "")
            meaning = meaning.format(
                found, libc=platform.libc_ver()[1] or "of another version", platform=get_platform_name()
            )
            return f"{path} can't be opened: {meaning} ({error})"
    return f"{path} can't be opened: {error}"


def _start_backends(libs: Libs) -> None:
    """Register the backends, set `backends`, `plugins` and `notes`, and bind the CPU backend's functions."""
    mark = libs.log.mark()
    if sys.platform == "win32":  # ggml's LoadLibrary wouldn't search a plug-in's folder for the DLLs that it needs
        libs.keep += [_try_open(path) for name, path in libs.files.plugins.items() if not _is_cpu(name)]
    if libs.cpu_variant is None:
        libs.ggml.ggml_backend_load_all_from_path(os.fsencode(libs.folder))
    else:
        _load_by_hand(libs, libs.cpu_variant)
    _load_fallbacks(libs, mark)
    libs.plugins = _list_plugin_files(libs, mark)
    libs.backends = tuple(
        libs.ggml.ggml_backend_reg_name(libs.ggml.ggml_backend_reg_get(i)).decode()
        for i in range(libs.ggml.ggml_backend_reg_count())
    )
    taken = {Path(file).name for file in libs.plugins}
    libs.notes = tuple(
        _explain_skip(path)
        for name, path in libs.files.plugins.items()
        if taken and path.name not in taken and not _is_cpu(name)
    )
    device = libs.ggml.ggml_backend_dev_by_type(ggml.GGML_BACKEND_DEVICE_TYPE_CPU)
    if not device:
        names = ", ".join(sorted(libs.files.plugins)) or "none"
        raise LibsBroken(f"no CPU backend in {libs.folder} works on this machine (plug-ins found: {names}): {FETCH}")
    cpu = libs.ggml.ggml_backend_dev_backend_reg(device)
    bind(
        ggml.CPU_ROWS,
        from_addresses(lambda name: libs.ggml.ggml_backend_reg_get_proc_address(cpu, name)),
        libs.ggml,
        version=libs.version,
        where=f"the CPU backend of {libs.folder}",
    )


def _load_by_hand(libs: Libs, variant: str) -> None:
    """Load the plug-ins that aren't for the CPU, then the chosen CPU plug-in."""
    for name, path in libs.files.plugins.items():
        if not _is_cpu(name):
            libs.ggml.ggml_backend_load(os.fsencode(path))
    path = _find_variant_file(libs.files, variant)
    if not libs.ggml.ggml_backend_load(os.fsencode(path)):
        raise LibsBroken(
            f"CPU variant {variant} ({path.name}) doesn't work on this CPU; available: "
            f"{', '.join(sorted(libs.files.cpu_variants))}"
        )


def _load_fallbacks(libs: Libs, mark: int) -> None:
    """Load the second builds of backends whose first build didn't load."""
    loaded = {Path(file).name for file in _list_plugin_files(libs, mark)}
    for path in libs.files.fallbacks.values():
        if path.name not in loaded:
            libs.ggml.ggml_backend_load(os.fsencode(path))


def _is_cpu(plugin: str) -> bool:
    return plugin.partition("-")[0] == "cpu"


def _list_plugin_files(libs: Libs, mark: int) -> tuple[str, ...]:
    """The files of the loaded plug-ins, from ggml's log."""
    matches = (_LOADED_FROM.search(line) for line in libs.log.list_lines_since(mark))
    return tuple(match[2] for match in matches if match)


def _find_variant_file(files: LibraryFiles, variant: str) -> Path:
    if variant not in files.cpu_variants:
        names = ", ".join(sorted(files.cpu_variants)) or "none, its CPU backend is linked in"
        raise LibsNotFound(f"{files.folder} has no CPU variant {variant!r}; available: {names}")
    return files.cpu_variants[variant]


def _describe_error(error: OSError) -> str:
    """The system loader's message. PyInstaller wraps it in an error without a reason."""
    return str(error.__cause__ or error)


def _explain_skip(path: Path) -> str:
    """Why ggml skipped a plug-in: it is opened again for the system loader's message."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return _explain(path, _describe_error(error))
    return f"{path} was loaded, but found no device that it can use"
