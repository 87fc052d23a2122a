"""Finding the folder, sorting its files, the ABI guard's checks and the native log, all without a library.

A refusal must name what is loaded and what is expected, in one line; the tests compare the whole message.
"""

from __future__ import annotations

import copy
import ctypes
import json
from pathlib import Path

import pytest

from ctypes_api import abi, folder, ggml, layout, llama_types, loader, objects
from ctypes_api.errors import LibsBroken, LibsError, LibsIncompatible, LibsNotFound
from ctypes_api.native_log import NativeLog

PREBUILT = [
    "libggml-base.so",
    "libggml.v0.5.0.so",
    "libllama.v0.5.0.so",
    "libllama-common.so",
    "llama-addon.node",
    "libggml-cpu-haswell.so",
    "libggml-cpu-armv8.2_1.so",
    "libggml-cuda.so",
]


def make_folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(b"not a library")
    return path


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and text
    return text


# ------------------------------------------------------------------------------------------- which folder


def test_the_best_fetched_backend_is_chosen(tmp_path: Path) -> None:
    here = folder.get_platform_name()
    cpu = make_folder(tmp_path / "libs" / f"{here}-cpu", "libllama.so")
    assert loader.find_folder(tmp_path, None, {}) == cpu
    cuda = make_folder(tmp_path / "libs" / f"{here}-cuda", "libllama.cuda.v0.5.0.so")
    assert loader.find_folder(tmp_path, None, {}) == cuda


def test_a_folder_without_libllama_is_passed_over(tmp_path: Path) -> None:
    here = folder.get_platform_name()
    make_folder(tmp_path / "libs" / f"{here}-cuda", "libllama-common.so", "manifest.json")
    cpu = make_folder(tmp_path / "libs" / f"{here}-cpu", "llama.dll")
    assert loader.find_folder(tmp_path, None, {}) == cpu


def test_named_folder_wins_over_environment_and_libs(tmp_path: Path) -> None:
    make_folder(tmp_path / "libs" / f"{folder.get_platform_name()}-cpu", "libllama.so")
    named = make_folder(tmp_path / "a", "libllama.so")
    environment = make_folder(tmp_path / "b", "libllama.so")
    assert loader.find_folder(tmp_path, str(named), {"LLAMA_SRV_LIBS": str(environment)}) == named
    assert loader.find_folder(tmp_path, None, {"LLAMA_SRV_LIBS": str(environment)}) == environment


def test_nothing_found_lists_every_folder_and_the_cure(tmp_path: Path) -> None:
    with pytest.raises(LibsNotFound) as caught:
        loader.find_folder(tmp_path, None, {})
    text = one_line(caught.value)
    for backend in ("cuda", "metal", "vulkan", "cpu"):
        assert f"{folder.get_platform_name()}-{backend}" in text
    assert str(tmp_path / "libs") in text
    assert "python build_scripts/fetch_libs.py" in text


@pytest.mark.parametrize(
    "explicit, environment, said_by", [("gone", {}, "--libs"), (None, {"LLAMA_SRV_LIBS": "gone"}, "LLAMA_SRV_LIBS")]
)
def test_a_named_folder_without_libraries_is_not_replaced(tmp_path, explicit, environment, said_by) -> None:
    make_folder(tmp_path / "libs" / f"{folder.get_platform_name()}-cpu", "libllama.so")
    with pytest.raises(LibsNotFound, match=rf"gone.*{said_by}"):
        loader.find_folder(tmp_path, explicit, environment)


@pytest.mark.parametrize(
    "system, tag, bits, name",
    [
        ("linux", "linux-x86_64", 64, "linux-x64"),
        ("linux", "linux-aarch64", 64, "linux-arm64"),
        ("linux", "linux-aarch64", 32, "linux-armv7l"),
        ("linux", "linux-armv7l", 32, "linux-armv7l"),
        ("darwin", "macosx-14.0-arm64", 64, "macos-arm64"),
        ("darwin", "macosx-10.9-x86_64", 64, "macos-x64"),
        ("win32", "win-amd64", 64, "windows-x64"),
        ("win32", "win-arm64", 64, "windows-arm64"),
    ],
)
def test_platforms_are_named_as_fetch_libs_names_folders(system, tag, bits, name) -> None:
    assert folder.get_platform_name(system, tag, bits) == name


# ------------------------------------------------------------------------------------------- which file


@pytest.mark.parametrize(
    "names",
    [
        ["libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.5.0.so"],
        ["libggml-base.so", "libggml.cuda.v0.5.0.so", "libllama.cuda.v0.5.0.so"],
        ["libggml-base.so.0", "libggml.so.0.23.0", "libllama.so.0"],
        ["libggml-base.dylib", "libggml.metal.v0.4.0.dylib", "libllama.metal.v0.4.0.dylib"],
        ["libggml-base.0.dylib", "libggml.0.dylib", "libllama.0.5.0.dylib"],
        ["ggml-base.dll", "ggml.v0.4.0.dll", "llama.v0.4.0.dll"],
        ["ggml-base.dll", "GGML.dll", "Llama.dll"],
    ],
)
def test_files_are_told_apart_however_they_are_called(tmp_path: Path, names: list[str]) -> None:
    files = folder.read_folder(make_folder(tmp_path / "libs", *names, "libllama-common.so", "readme.txt"))
    assert [path.name for path in (files.ggml_base, files.ggml, files.llama)] == names
    assert list(files.order) == [files.ggml_base, files.ggml, files.llama]
    assert files.mtmd is None and not files.plugins


def test_plugins_carry_the_name_of_their_backend(tmp_path: Path) -> None:
    files = folder.read_folder(make_folder(tmp_path / "libs", *PREBUILT))
    assert sorted(files.plugins) == ["cpu-armv8.2_1", "cpu-haswell", "cuda"]
    assert sorted(files.cpu_variants) == ["armv8.2_1", "haswell"]


def test_second_builds_in_the_fallback_folder_are_kept_apart(tmp_path: Path) -> None:
    libs = make_folder(tmp_path / "libs", *PREBUILT)
    second = make_folder(libs / "fallback", "libggml-cuda.so") / "libggml-cuda.so"
    files = folder.read_folder(libs)
    assert files.plugins["cuda"].parent == libs
    assert files.fallbacks == {"cuda": second}


def test_links_and_equal_copies_are_one_library_and_different_files_are_not(tmp_path: Path) -> None:
    libs = make_folder(tmp_path / "libs", *PREBUILT, "libllama.so.0")
    assert folder.read_folder(libs).llama.name in ("libllama.so.0", "libllama.v0.5.0.so")
    (libs / "libllama.so.0").write_bytes(b"another build")
    assert folder.read_folder(libs)  # as long as it has the same size it may be a copy
    (libs / "libllama.so.0").write_bytes(b"certainly another build")
    with pytest.raises(LibsBroken, match="different builds of one library.*llama.so.0.*llama.v0.5.0.so"):
        folder.read_folder(libs)


def test_load_order_of_the_manifest_counts(tmp_path: Path) -> None:
    libs = make_folder(tmp_path / "libs", "libgomp.so.1", "libggml-base.so", "libggml.so", "libllama.so")
    order = ["libgomp.so.1", "libggml-base.so", "libggml.so", "libllama.so"]
    (libs / "manifest.json").write_text(json.dumps({"format": 1, "version": "v0.5.0", "load_order": order}))
    files = folder.read_folder(libs)
    assert [path.name for path in files.order] == order
    assert files.release == "v0.5.0"


@pytest.mark.parametrize("text", ["{", "[]", '{"load_order": 3}', "\xff"])
def test_damaged_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    libs = make_folder(tmp_path / "libs", *PREBUILT)
    (libs / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LibsBroken, match="manifest.json") as caught:
        folder.read_folder(libs)
    assert "fetch_libs.py" in one_line(caught.value)


@pytest.mark.parametrize("name", ["libllama.so", "libggml-cpu-x64.so"])
def test_a_library_of_another_size_than_the_manifest_says_is_named(tmp_path: Path, name: str) -> None:
    libs = make_folder(tmp_path / "libs", "libggml-base.so", "libggml.so", "libllama.so", "libggml-cpu-x64.so")
    sizes = {path.name: {"size": path.stat().st_size} for path in libs.iterdir()}
    (libs / "manifest.json").write_text(json.dumps({"files": sizes}))
    folder.read_folder(libs)
    (libs / name).write_bytes((libs / name).read_bytes() + b"x")
    with pytest.raises(LibsBroken, match=f"{name} is damaged"):
        folder.read_folder(libs)


def test_file_that_the_manifest_names_but_is_gone(tmp_path: Path) -> None:
    libs = make_folder(tmp_path / "libs", *PREBUILT)
    order = ["libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.6.0.so"]
    (libs / "manifest.json").write_text(json.dumps({"load_order": order}))
    with pytest.raises(LibsBroken, match="libllama.v0.6.0.so can't be read"):
        folder.read_folder(libs)


def test_incomplete_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LibsBroken, match="no library for ggml-base, ggml:"):
        folder.read_folder(make_folder(tmp_path / "libs", "libllama.so"))


def test_misspelt_cpu_variant_lists_the_good_names(tmp_path: Path) -> None:
    with pytest.raises(LibsNotFound, match="no CPU variant 'haswel'; available: armv8.2_1, haswell"):
        loader.load(make_folder(tmp_path / "libs", *PREBUILT), cpu_variant="haswel")


def test_file_that_is_no_library_is_named_with_the_reason(tmp_path: Path) -> None:
    libs = make_folder(tmp_path / "libs", *PREBUILT)
    with pytest.raises(LibsBroken, match="libggml-base.so can't be opened: ") as caught:
        loader.load(libs)
    one_line(caught.value)


@pytest.mark.parametrize(
    "said, means",
    [
        (
            "/lib/libc.so.6: version `GLIBC_2.38' not found (required by /x.so)",
            "needs GLIBC_2.38, this system has glibc",
        ),
        (
            "/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found",
            "GLIBCXX_3.4.32, which this system's libstdc++ lacks",
        ),
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "apt install libgomp1"),
        (
            "libcudart.so.12: cannot open shared object file: No such file",
            "libcudart.so.12 of the CUDA runtime is missing",
        ),
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "there is no NVIDIA driver"),
        ("/x.so: wrong ELF class: ELFCLASS64", "built for another machine than this " + folder.get_platform_name()),
        (
            "dlopen(/x.dylib): tried: '/x.dylib' (mach-o file, but is an incompatible architecture (have 'x86_64'))",
            "built for another machine",
        ),
        (
            "dlopen(/x.dylib, 10): Library not loaded: @rpath/libggml.0.dylib\n  Referenced from: /x.dylib",
            "@rpath/libggml.0.dylib, which it needs, is missing",
        ),
        ("[WinError 193] %1 is not a valid Win32 application", "built for another machine"),
        ("Could not find module 'x.dll' (or one of its dependencies).", "Microsoft Visual C++ Redistributable"),
        ("something nobody has seen before", "something nobody has seen before"),
    ],
)
def test_the_system_loaders_words_become_one_clear_line(said: str, means: str) -> None:
    text = loader._explain(Path("/libs/libllama.so"), said)
    assert text.startswith(f"{Path('/libs/libllama.so')} can't be opened: ")
    assert means in text and "\n" not in text


def test_an_error_of_pyinstaller_gives_way_to_the_one_behind_it() -> None:
    error = OSError("Failed to load dynlib/dll '/libs/libllama.so'")
    assert loader._describe_error(error) == str(error)
    error.__cause__ = OSError("libcuda.so.1: cannot open shared object file")
    assert loader._describe_error(error) == "libcuda.so.1: cannot open shared object file"


def test_glibc_calls_a_file_for_another_machine_missing(tmp_path: Path) -> None:
    path = tmp_path / "libggml-base.so"
    path.write_bytes(b"")
    said = f"{path}: cannot open shared object file: No such file or directory"
    assert "built for another machine" in loader._explain(path, said)
    path.unlink()
    assert "is missing" in loader._explain(path, said)


# ------------------------------------------------------------------------------------------- the ABI guard


def test_known_versions_pass_and_others_name_both_sides() -> None:
    for version in ("0.5.0", "0.5.0-dev", "0.4.0-dev"):
        abi.check_version(version, "/libs/libllama.so")
    with pytest.raises(LibsIncompatible) as caught:
        abi.check_version("9.9.9", "/libs/libllama.so")
    text = one_line(caught.value)
    assert "/libs/libllama.so is llama.cpp 9.9.9" in text
    assert "these bindings are for llama.cpp v0.5.0" in text


def test_32_bit_python_is_refused() -> None:
    abi.check_platform(8)
    with pytest.raises(LibsIncompatible, match="this Python is 32-bit"):
        abi.check_platform(4)


def doctored(struct: str, size: int | None = None, **fields: tuple[int, int] | None) -> dict:
    """The true layout with one struct changed; None removes a field."""
    result = copy.deepcopy(layout.LAYOUT)
    old_size, members = result[struct]
    members.update(fields)
    result[struct] = (size or old_size, {name: place for name, place in members.items() if place is not None})
    return result


@pytest.mark.parametrize(
    "theirs, says",
    [
        (
            doctored("llama_model_params", n_gpu_layers=(24, 4)),
            "llama_model_params.n_gpu_layers is 4 bytes at offset 24, these bindings (for llama.cpp v0.5.0) have "
            "4 bytes at offset 16",
        ),
        (doctored("llama_context_params", n_ctx=(0, 8)), "llama_context_params.n_ctx is 8 bytes at offset 0"),
        (
            doctored("llama_batch", extra=(56, 8)),
            "llama_batch.extra is 8 bytes at offset 56, these bindings (for llama.cpp v0.5.0) have absent",
        ),
        (doctored("llama_token_data", p=None), "llama_token_data.p is absent"),
        (
            doctored("llama_model_params", size=96),
            "llama_model_params is 96 bytes, these bindings (for llama.cpp v0.5.0) have 80 bytes",
        ),
    ],
)
def test_doctored_layout_is_refused_naming_both_sides(theirs: dict, says: str) -> None:
    ours = abi.layout_of(ggml.STRUCTS + llama_types.STRUCTS)
    abi.check_layout(ours, layout.LAYOUT, "/libs/abi.json")
    with pytest.raises(LibsIncompatible) as caught:
        abi.check_layout(ours, theirs, "/libs/abi.json")
    text = one_line(caught.value)
    assert text.startswith(f"/libs/abi.json: {says}") and "fetch_libs.py" in text


def test_layout_file_beside_the_libraries_is_read(tmp_path: Path) -> None:
    path = tmp_path / "abi.json"
    assert abi.read_layout(path) is None
    path.write_text(json.dumps({"pointer_size": 8, "structs": layout.LAYOUT}))
    assert abi.read_layout(path) == layout.LAYOUT
    for broken in ("", "[]", '{"structs": {"llama_batch": 3}}', '{"structs": {"s": [8, {"token": [1]}]}}'):
        path.write_text(broken)
        with pytest.raises(LibsIncompatible, match="abi.json is not a valid layout file"):
            abi.read_layout(path)


DEFAULT_STRUCTS = {
    "llama_model_default_params": llama_types.llama_model_params,
    "llama_context_default_params": llama_types.llama_context_params,
    "llama_sampler_chain_default_params": llama_types.llama_sampler_chain_params,
    "llama_model_quantize_default_params": llama_types.llama_model_quantize_params,
}


@pytest.mark.parametrize("function", DEFAULT_STRUCTS)
def test_every_field_of_the_default_parameters_is_compared(function: str) -> None:
    expected, struct = abi.LLAMA_DEFAULTS[function], DEFAULT_STRUCTS[function]
    assert set(expected) == {name for name, *_ in struct._fields_}
    params = struct(**{name: value for name, value in expected.items() if value is not None})
    abi.check_defaults(function, params, expected, "/libs/libllama.so")


@pytest.mark.parametrize(
    "field, value, shown",
    [
        ("n_batch", 77, "n_batch is 77, in llama.cpp v0.5.0 it is 2048"),
        ("kv_unified", True, "kv_unified is True"),
        ("yarn_beta_slow", 0.5, "yarn_beta_slow is 0.5"),
        ("abort_callback", ggml.ggml_abort_callback(4096), "abort_callback is 4096, in llama.cpp v0.5.0 it is None"),
        ("samplers", ctypes.cast(4096, ctypes.POINTER(llama_types.llama_sampler_seq_config)), "samplers is 4096"),
    ],
)
def test_another_default_is_refused_naming_both_values(field: str, value: object, shown: str) -> None:
    expected = abi.LLAMA_DEFAULTS["llama_context_default_params"]
    params = llama_types.llama_context_params(**{name: v for name, v in expected.items() if v is not None})
    setattr(params, field, value)
    with pytest.raises(LibsIncompatible) as caught:
        abi.check_defaults("llama_context_default_params", params, expected, "/libs/libllama.so")
    assert f"/libs/libllama.so: llama_context_default_params().{shown}" in one_line(caught.value)


# ------------------------------------------------------------------------------------------- the native log


def spoken(log: NativeLog, *messages: tuple[int, bytes]) -> None:
    for level, text in messages:
        log.c_callback(level, text, None)


def test_log_lines_are_joined_and_split() -> None:
    lines: list[tuple[int, str]] = []
    log = NativeLog(lambda level, text: lines.append((level, text)))
    spoken(log, (2, b"one\n"), (2, b"load"), (5, b"ing"), (5, b" ...\n"), (4, b"bad\nworse\n"))
    assert lines == [(2, "one"), (2, "loading ..."), (4, "bad"), (4, "worse")]


def test_unfinished_line_ends_where_the_next_message_begins() -> None:
    lines: list[tuple[int, str]] = []
    log = NativeLog(lambda level, text: lines.append((level, text)))
    spoken(log, (3, b"no newline"), (2, b"next\n"))
    assert lines == [(3, "no newline"), (2, "next")]


def test_a_line_that_never_ends_is_cut() -> None:
    lines: list[tuple[int, str]] = []
    log = NativeLog(lambda level, text: lines.append((level, text)))
    spoken(log, *[(5, b"x" * 4096)] * 40)
    assert lines and all(len(text) <= 70_000 for _, text in lines)


def test_errors_since_a_mark_survive_a_flood_of_other_lines() -> None:
    log = NativeLog()
    spoken(log, (4, b"old\n"))
    mark = log.mark()
    spoken(log, (4, b"the reason\n"), *[(2, b"chatter\n")] * 500)
    assert log.list_errors_since(mark) == ["the reason"]
    assert "the reason" not in log.list_lines_since(mark)


def test_bytes_that_are_no_utf8_do_not_hurt() -> None:
    log = NativeLog()
    spoken(log, (4, b"\xff\xfe\n"))
    assert log.list_errors_since(0) == ["\ufffd\ufffd"]


# ------------------------------------------------------------------------------------------- owners without a
# library


def test_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="llama_context_params has no field 'n_ctxx'"):
        objects._set_fields(llama_types.llama_context_params(), {"n_ctxx": 1}, [])


def test_list_for_a_pointer_field_becomes_a_zero_terminated_array() -> None:
    params, keep = llama_types.llama_model_params(), []
    fields = {"devices": [11, 22], "tensor_split": [0.25, 0.75]}
    objects._set_fields(params, fields, keep, {"tensor_split": 16})
    assert params.devices[:3] == [11, 22, None]
    assert params.tensor_split[:16] == [0.25, 0.75] + [0.0] * 14


def test_batch_rows_point_into_its_arrays() -> None:
    batch = objects.Batch(None, 4, n_seq_max=2)
    batch.token[1:3] = [7, 8]
    batch.pos[:4] = range(4)
    batch.logits[3] = 1
    batch.seq_id[2][1] = 5
    batch.n_tokens = 3
    struct = batch.struct
    assert struct.n_tokens == batch.n_tokens == 3
    assert struct.token[:4] == [0, 7, 8, 0] and struct.pos[:4] == [0, 1, 2, 3] and struct.logits[3] == 1
    assert struct.n_seq_id[:4] == [1, 1, 1, 1]
    assert batch.seq[5] == 5 and struct.seq_id[2][:2] == [0, 5]
    assert not struct.seq_id[4] and not struct.embd
    batch.close()
    batch.close()
    assert struct.n_tokens == 0


@pytest.mark.parametrize("count", [-1, 5])
def test_batch_takes_no_more_rows_than_it_has(count: int) -> None:
    batch = objects.Batch(None, 4)
    with pytest.raises(ValueError, match="a batch of 4 rows"):
        batch.n_tokens = count


def test_batch_of_embeddings_has_no_tokens() -> None:
    batch = objects.Batch(None, 2, n_embd=3, n_pos=4)
    batch.embd[3:6] = [1.0, 2.0, 3.0]
    assert not batch.struct.token and batch.struct.embd[:6] == [0, 0, 0, 1, 2, 3]
    assert len(batch.pos) == 8


def test_abort_flag_is_read_by_c() -> None:
    flag = objects.AbortFlag()
    answers = []
    for switch in (lambda: None, flag.set, flag.clear):
        switch()
        answers.append((flag.is_set(), flag.callback(flag.address)))
    assert answers == [(False, False), (True, True), (False, False)]


@pytest.mark.parametrize("length", [0, 255, 256, 5000])
def test_strings_longer_than_the_first_buffer_come_whole(length: int) -> None:
    text = b"x" * length

    def fill(buffer, size: int) -> int:
        buffer.value = text[: size - 1]
        return length

    assert objects._read_string(fill) == text.decode()


class Closable(objects.Owner):
    """An owner whose native side is a list of what was freed."""

    def __init__(self, freed: list, raw: int, parent: objects.Owner | None = None) -> None:
        super().__init__(None)
        self.freed = freed
        self._own(raw, parent)

    def _free(self, raw: int) -> None:
        self.freed.append(raw)


def test_closing_frees_children_first_and_once() -> None:
    freed: list[int] = []
    with Closable(freed, 1) as parent:
        first, second = Closable(freed, 2, parent), Closable(freed, 3, parent)
        first.close()
        assert freed == [2]
    parent.close()
    second.close()
    assert freed == [2, 3, 1]
    assert parent.raw is second.raw is None


def test_a_closed_owner_cannot_be_passed_to_c() -> None:
    owner = Closable([], 1)
    assert owner._as_parameter_ == 1
    owner.close()
    with pytest.raises(LibsError, match="Closable is closed"):
        _ = owner._as_parameter_


def test_a_forgotten_owner_warns_and_frees_nothing() -> None:
    freed: list[int] = []
    owner = Closable(freed, 1)
    with pytest.warns(ResourceWarning, match="Closable was never closed"):
        owner.__del__()
    assert freed == []
    owner.close()
