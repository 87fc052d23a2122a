"""The bindings with real libraries: loading, the ABI guard, backends, the native log; and refusal of modified
libraries.

A process can load only one set of libraries, so each test that loads another set, or must fail to load, runs in a
process of its own (`in_new_process`). Modified libraries are compiled here if there is a C compiler.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from ctypes_api import abi, binding, folder, ggml, layout, llama, loader
from ctypes_api.devices import list_devices
from ctypes_api.errors import LibsError, ModelLoadError
from ctypes_api.objects import Model
from tests.support import ROOT, need

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
PREFIX = "" if sys.platform == "win32" else "lib"


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C compiler."""
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    need(found, "no C compiler: install gcc or clang")
    return found


def in_new_process(code: str, *arguments: object) -> str:
    """What `code` prints in a fresh Python, with `arguments` as sys.argv[1:]. A crash fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


LOAD = """
import json
from ctypes_api import errors, loader
lines = []
try:
    libs = loader.load(sys.argv[1], log_callback=lambda level, text: lines.append(text),
    **json.loads(sys.argv[2]))
except errors.LibsError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
else:
    print(json.dumps({"version": libs.version, "backends": libs.backends, "plugins": libs.plugins,
                      "notes": libs.notes, "lines": lines}))
"""


def load_elsewhere(libs: Path, **options: object) -> dict:
    """How loading `libs` ends in a process of its own: the facts, or the error's class and text."""
    return json.loads(in_new_process(LOAD, libs, json.dumps(options)))


def copy_of(libs_folder: Path, target: Path, *, plugins: bool = True) -> Path:
    """The libraries in another folder, by links where the system has them."""
    target.mkdir()
    files = folder.read_folder(libs_folder)
    for path in [*files.order, *(files.plugins.values() if plugins else ())]:
        try:
            (target / path.name).hardlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, target / path.name)
    return target


# ------------------------------------------------------------------------------------------- loading


def test_libraries_load_and_every_row_is_bound_raw(libs: loader.Libs) -> None:
    assert libs.version in abi.KNOWN_VERSIONS
    assert "CPU" in libs.backends
    for functions, rows in ((libs.llama, llama.ROWS), (libs.ggml, ggml.BASE_ROWS + ggml.REGISTRY_ROWS + ggml.CPU_ROWS)):
        for row in rows:
            function = getattr(functions, row.name)
            assert isinstance(function, ctypes._CFuncPtr) or not row.required and binding.is_stub(function)


def test_loading_again_gives_the_same_libraries_and_another_folder_is_refused(libs, tmp_path: Path) -> None:
    assert loader.load(libs.folder) is libs
    with pytest.raises(LibsError, match="already uses the libraries of .* start another one for"):
        loader.load(tmp_path)
    with pytest.raises(LibsError, match="with CPU variant auto: start another one for x"):
        loader.load(libs.folder, cpu_variant="x")


def test_devices_are_listed_with_their_backend(libs: loader.Libs) -> None:
    cpu = [device for device in list_devices(libs) if device.type == "CPU"]
    assert len(cpu) == 1 and cpu[0].memory_total > 0 and cpu[0].backend in libs.backends
    assert cpu[0].description and cpu[0].raw


def test_threadpool_functions_come_from_the_cpu_backend(libs: loader.Libs) -> None:
    params = libs.ggml.ggml_threadpool_params_default(3)
    assert (params.n_threads, params.poll, params.strict_cpu, params.paused) == (3, 50, False, False)
    features = libs.ggml.ggml_backend_get_features(libs.ggml.ggml_backend_reg_by_name(b"CPU"))
    assert features[0].name and features[0].value


def test_struct_results_and_types_arrive_whole(libs: loader.Libs) -> None:
    batch = libs.llama.llama_batch_init(8, 0, 2)
    batch.seq_id[7][1] = 3
    assert batch.n_tokens == 0 and batch.token and not batch.embd and batch.seq_id[7][1] == 3
    libs.llama.llama_batch_free(batch)
    assert libs.ggml.ggml_type_name(ggml.GGML_TYPE_Q8_0) == b"q8_0"
    assert libs.ggml.ggml_type_size(ggml.GGML_TYPE_Q8_0) == 34
    assert libs.llama.llama_flash_attn_type_name(-1) == b"auto"


def test_native_log_stays_off_the_terminal_and_reaches_the_callback(libs, capfd, tmp_path: Path) -> None:
    lines: list[tuple[int, str]] = []
    before, libs.log.sink = libs.log.sink, lambda level, text: lines.append((level, text))
    try:
        with pytest.raises(ModelLoadError):
            Model(libs, tmp_path / "absent.gguf")
    finally:
        libs.log.sink = before
    assert any(level == ggml.GGML_LOG_LEVEL_ERROR and "absent.gguf" in text for level, text in lines)
    assert capfd.readouterr() == ("", "")


def test_process_ends_well_with_everything_left_open(libs_folder: Path, tiny_spm_model: Path) -> None:
    code = (
        "from ctypes_api import loader, objects\n"
        "libs = loader.load(sys.argv[1])\n"
        "model = objects.Model(libs, sys.argv[2])\n"
        "context = objects.Context(model, n_ctx=64)\n"
        "print('done')\n"
    )
    assert in_new_process(code, libs_folder, tiny_spm_model) == "done\n"


# ------------------------------------------------------------------------------------------- backends


def test_cpu_variant_by_hand_loads_that_plugin_only(libs_folder: Path) -> None:
    variants = folder.read_folder(libs_folder).cpu_variants
    need(variants, "not on this build: its CPU backend is linked in")
    plainest = next((name for name in ("x64", "armv8.0_1", "apple_m1") if name in variants), min(variants))
    facts = load_elsewhere(libs_folder, cpu_variant=plainest)
    assert set(facts["backends"]) - {"RPC"} == {"CPU"}
    assert [path for path in facts["plugins"] if "ggml-rpc" not in path] == [str(variants[plainest])]
    assert any(str(variants[plainest]) in line for line in facts["lines"])


def test_plugin_that_cannot_be_opened_is_noted_and_the_rest_works(libs_folder: Path, tmp_path: Path) -> None:
    copy = copy_of(libs_folder, tmp_path / "libs")
    need(folder.read_folder(copy).plugins, "not on this build: its CPU backend is linked in")
    broken = copy / f"{PREFIX}ggml-cuda{'.dll' if sys.platform == 'win32' else '.so'}"
    broken.unlink(missing_ok=True)
    broken.write_bytes(b"no library at all")
    facts = load_elsewhere(copy)
    assert "CPU" in facts["backends"]
    assert [note for note in facts["notes"] if str(broken) in note and "can't be opened" in note]


def test_second_build_of_a_backend_is_tried_when_the_first_fails(libs_folder: Path, tmp_path: Path) -> None:
    copy = copy_of(libs_folder, tmp_path / "libs")
    plugins = folder.read_folder(copy).cpu_variants
    need(plugins, "not on this build: its CPU backend is linked in")
    name = f"{PREFIX}ggml-hip{'.dll' if sys.platform == 'win32' else '.so'}"
    (copy / name).write_bytes(b"no library at all")
    (copy / "fallback").mkdir()
    working = load_elsewhere(libs_folder)["plugins"][-1]
    shutil.copyfile(working, copy / "fallback" / name)  # any plug-in that loads will do
    assert load_elsewhere(copy)["plugins"][-1] == str(copy / "fallback" / name)


def test_folder_without_a_cpu_backend_is_refused(libs_folder: Path, tmp_path: Path) -> None:
    need(folder.read_folder(libs_folder).plugins, "not on this build: its CPU backend is linked in")
    result = load_elsewhere(copy_of(libs_folder, tmp_path / "libs", plugins=False))
    assert result["error"] == "LibsBroken"
    assert "no CPU backend in" in result["text"] and "plug-ins found: none" in result["text"]


def test_mtmd_that_is_not_there_says_how_to_get_it(libs_folder: Path, tmp_path: Path) -> None:
    result = load_elsewhere(copy_of(libs_folder, tmp_path / "libs"), with_mtmd=True)
    assert result["error"] == "LibsNotFound" and "fetch_libs.py --with-mtmd" in result["text"]


# ------------------------------------------------------------------------------------------- refusals


def test_doctored_layout_beside_real_libraries_is_refused(libs_folder: Path, tmp_path: Path) -> None:
    copy = copy_of(libs_folder, tmp_path / "libs")
    structs = json.loads(json.dumps(layout.LAYOUT))
    (copy / "abi.json").write_text(json.dumps({"structs": structs}))
    assert "error" not in load_elsewhere(copy)
    structs["llama_context_params"][1]["n_threads"] = [32, 4]
    (copy / "abi.json").write_text(json.dumps({"structs": structs}))
    result = load_elsewhere(copy)
    assert result["error"] == "LibsIncompatible"
    assert result["text"].startswith(
        f"{copy / 'abi.json'}: llama_context_params.n_threads is 4 bytes at offset 32, these bindings (for "
        f"llama.cpp v0.5.0) have 4 bytes at offset 28"
    )


def build(compiler: str, target: Path, source: str) -> None:
    """Compiles `source` into the shared library `target`."""
    code = target.with_suffix(".c")
    code.write_text(source)
    command = [compiler, "-shared", "-fPIC", str(code), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)


def fake_libs(compiler: str, target: Path, libllama: str) -> Path:
    """A folder whose libllama is compiled from `libllama` and whose libggml has every function, doing
    nothing."""
    target.mkdir()
    for name, rows in (("ggml-base", ggml.BASE_ROWS), ("ggml", ggml.REGISTRY_ROWS)):
        build(compiler, target / f"{PREFIX}{name}{SUFFIX}", empty_functions(row.name for row in rows))
    build(compiler, target / f"{PREFIX}llama{SUFFIX}", libllama)
    return target


def empty_functions(names: Iterable[str]) -> str:
    return "".join(f"void {name}(void) {{}}\n" for name in names)


def version_source(version: str) -> str:
    return f'const char * llama_version(void) {{ return "{version}"; }}\n'


def test_another_version_is_refused_naming_both_sides(compiler: str, tmp_path: Path) -> None:
    libs = fake_libs(compiler, tmp_path / "libs", version_source("9.9.9"))
    result = load_elsewhere(libs)
    assert result["error"] == "LibsIncompatible"
    file = libs / f"{PREFIX}llama{SUFFIX}"
    assert result["text"].startswith(f"{file} is llama.cpp 9.9.9, these bindings are for llama.cpp v0.5.0")


def test_library_without_a_version_is_refused(compiler: str, tmp_path: Path) -> None:
    result = load_elsewhere(fake_libs(compiler, tmp_path / "libs", "int nothing;\n"))
    assert result["error"] == "LibsIncompatible" and "llama.cpp of unknown version" in result["text"]


def test_missing_functions_are_all_named_and_optional_ones_are_not(compiler: str, tmp_path: Path) -> None:
    missing = {"llama_decode", "llama_n_ctx", "llama_adapter_lora_init_from_file_ptr", "llama_version"}
    source = empty_functions(row.name for row in llama.ROWS if row.name not in missing)
    result = load_elsewhere(fake_libs(compiler, tmp_path / "libs", version_source("0.5.0") + source))
    assert result["error"] == "LibsBroken"
    assert "(0.5.0) lacks 2 function(s)" in result["text"]
    assert ": llama_n_ctx, llama_decode;" in result["text"]


def test_other_defaults_are_refused_naming_both_values(compiler: str, tmp_path: Path) -> None:
    source = "#include <string.h>\n" + version_source("0.5.0")
    for row in llama.ROWS:
        if row.name in abi.LLAMA_DEFAULTS:
            size = ctypes.sizeof(row.result)
            source += (
                f"struct {row.name}_result {{ char bytes[{size}]; }};\n"
                f"struct {row.name}_result {row.name}(void) {{ struct {row.name}_result all_zero; "
                f"memset(&all_zero, 0, {size}); return all_zero; }}\n"
            )
        elif row.name != "llama_version":
            source += empty_functions([row.name])
    result = load_elsewhere(fake_libs(compiler, tmp_path / "libs", source))
    assert result["error"] == "LibsIncompatible"
    assert "llama_model_default_params().n_gpu_layers is 0, in llama.cpp v0.5.0 it is -1" in result["text"]


# ------------------------------------------------------------------------------------------- the two kinds

WAIT = """
#include <time.h>
/* 1 as soon as *flag is set by someone else, 0 if that doesn't happen within `milliseconds`. */
int wait_for(volatile int * flag, int milliseconds) {
    struct timespec pause = {0, 1000000};
    for (int i = 0; i < milliseconds; i++) {
        if (*flag) return 1;
        nanosleep(&pause, 0);
    }
    return 0;
}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: the probe needs POSIX nanosleep")
@pytest.mark.parametrize("kind, patience_ms, seen", [(binding.call, 60_000, 1), (binding.quick, 300, 0)])
def test_call_lets_other_threads_run_and_quick_does_not(compiler, tmp_path, kind, patience_ms, seen) -> None:
    build(compiler, tmp_path / f"wait{SUFFIX}", WAIT)
    handle = ctypes.CDLL(str(tmp_path / f"wait{SUFFIX}"))
    functions = binding.Functions(handle)
    row = kind("wait_for", ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int)
    binding.bind([row], binding.from_handle(handle), functions, version="", where="")
    flag, inside = ctypes.c_int(0), threading.Event()

    def set_flag() -> None:
        inside.wait()
        flag.value = 1

    # Waking is all the other thread can do before the C call holds the GIL: its first bytecode needs the GIL
    # back.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    setter = threading.Thread(target=set_flag)
    try:
        setter.start()
        inside.set()
        result = functions.wait_for(ctypes.byref(flag), patience_ms)
    finally:
        sys.setswitchinterval(interval)
        setter.join()
    assert result == seen
