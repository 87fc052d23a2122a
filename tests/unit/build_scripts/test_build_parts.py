"""fetch_libs --with-mtmd, --with-rpc: adding a library to a folder, building it, errors. Nothing is compiled."""

from __future__ import annotations

import io
import os
import sys

import pytest

from tests.support import build_script
from tests.unit.build_scripts import fake_packages as fake
from tests.unit.build_scripts.fake_packages import manifest_of, posix_only, run

build_parts = build_script("build_parts")
common = build_script("common")
fetch_libs = build_script("fetch_libs")
packages = build_script("packages")


@pytest.fixture
def world(tmp_path, monkeypatch):
    return fake.make_world(tmp_path, monkeypatch)


@pytest.fixture
def installed(world, capsys, monkeypatch):
    """An installed linux-x64-cpu, the source in the lock, and a build that takes no time."""
    if os.name != "posix":
        pytest.skip("not on Windows: libmtmd is built on Linux")
    run(world, capsys)
    world.publish(
        "npm:source-v0.5.0",
        "npm",
        "node-llama-cpp",
        "source-1.0.0.tgz",
        fake.tar_bytes({"package/llama/gitRelease.bundle": b"bundle"}),
        llama_cpp="v0.5.0",
    )
    monkeypatch.setattr(build_parts, "get_this_platform", lambda: "linux-x64")
    monkeypatch.setattr(build_parts.sys, "platform", "linux")

    def build(part, target, package, cache, progress):
        target.parent.mkdir(parents=True)
        target.write_bytes(fake.elf(part.library, ("libllama.so.0", "libggml.so.0", "libggml-base.so.0")))

    monkeypatch.setattr(build_parts, "require_tools", lambda: None)
    monkeypatch.setattr(build_parts, "_build", build)
    monkeypatch.setattr(build_parts, "_run_smoke", lambda part, folder, order: None)
    return world


def test_libmtmd_is_added_with_the_links_that_lead_to_the_installed_libraries(installed, capsys):
    assert run(installed, capsys, "--with-mtmd")[0] == 0
    folder = installed.dest / "linux-x64-cpu"
    manifest = manifest_of(folder)
    assert manifest["mtmd"] == "libmtmd.so" and "libmtmd.so" in manifest["files"]
    assert manifest["links"] == {
        "libllama.so.0": "libllama.v0.5.0.so",
        "libggml.so.0": "libggml.v0.5.0.so",
        "libggml-base.so.0": "libggml-base.so",
    }
    assert {name: os.readlink(folder / name) for name in manifest["links"]} == manifest["links"]
    assert run(installed, capsys, "--verify")[0] == 0
    calls = list(installed.calls)
    assert run(installed, capsys, "--with-mtmd")[0] == 0
    assert run(installed, capsys, "--force", "--with-mtmd")[0] == 0  # the build is kept in the cache
    assert installed.calls == calls and manifest_of(folder)["mtmd"] == "libmtmd.so"


def test_the_library_for_workers_is_added_as_a_plug_in(installed, capsys):
    assert run(installed, capsys, "--with-rpc")[0] == 0
    manifest = manifest_of(installed.dest / "linux-x64-cpu")
    assert manifest["backend_plugins"] == ["libggml-rpc.so"] and "libggml-rpc.so" in manifest["files"]
    assert manifest["mtmd"] is None and run(installed, capsys, "--verify")[0] == 0
    assert run(installed, capsys, "--with-rpc", "--with-mtmd")[0] == 0
    manifest = manifest_of(installed.dest / "linux-x64-cpu")
    assert manifest["mtmd"] == "libmtmd.so" and manifest["backend_plugins"] == ["libggml-rpc.so"]


def test_no_link_takes_the_place_of_a_library_that_has_the_wanted_name():
    manifest = {
        "load_order": ["libggml-base.so.0", "libggml.so", "libllama.so.0"],
        "files": {"libggml-base.so.0": {}, "libggml.so": {}, "libllama.so.0": {}},
    }
    assert build_parts.find_wanted_links(manifest, ("libllama.so.0", "libggml.so.0", "libc.so.6")) == {
        "libggml.so.0": "libggml.so"
    }


def test_a_libmtmd_that_does_not_load_is_not_kept(installed, capsys, monkeypatch):
    def smoke(part, folder, order):
        raise common.Failure("the built libmtmd.so doesn't load (undefined symbol): update the checkout")

    monkeypatch.setattr(build_parts, "_run_smoke", smoke)
    code, complaint = run(installed, capsys, "--with-mtmd")
    assert code == 1 and "doesn't load" in complaint
    folder = installed.dest / "linux-x64-cpu"
    assert manifest_of(folder)["mtmd"] is None and not (folder / "libmtmd.so").exists()
    assert not any(path.is_symlink() for path in folder.iterdir()), "links that only the new library needs"
    assert not list((installed.cache / "mtmd").rglob("libmtmd.so"))
    assert (
        fetch_libs.read_folder_state(
            folder, fetch_libs.find_variant("linux-x64", "cpu"), packages.load_lock(installed.lock_path)
        )
        == "current"
    )


def test_links_that_another_library_needs_stay_when_one_does_not_load(installed, capsys, monkeypatch):
    assert run(installed, capsys, "--with-mtmd")[0] == 0

    def smoke(part, folder, order):
        raise common.Failure("the built libggml-rpc.so doesn't load (undefined symbol): update the checkout")

    monkeypatch.setattr(build_parts, "_run_smoke", smoke)
    assert run(installed, capsys, "--with-rpc")[0] == 1
    folder = installed.dest / "linux-x64-cpu"
    assert all((folder / name).is_symlink() for name in manifest_of(folder)["links"])
    assert manifest_of(folder)["links"] and run(installed, capsys, "--verify")[0] == 0


@posix_only
def test_missing_build_tools_are_named_in_one_line(world, capsys, monkeypatch):
    run(world, capsys)
    world.publish("npm:source-v0.5.0", "npm", "node-llama-cpp", "source-1.0.0.tgz", b"", llama_cpp="v0.5.0")
    monkeypatch.setattr(build_parts, "get_this_platform", lambda: "linux-x64")
    monkeypatch.setattr(build_parts.sys, "platform", "linux")
    code, complaint = run(world, capsys, "--with-mtmd")
    assert code == 1 and "needs git, cmake, c++, cc, ninja" in complaint and "apt-get install" in complaint


def test_libmtmd_for_another_machine_or_an_unpinned_version_is_refused(installed, capsys, monkeypatch):
    monkeypatch.setattr(build_parts, "get_this_platform", lambda: "linux-arm64")
    assert "can only be built on Linux, for the same platform" in run(installed, capsys, "--with-mtmd")[1]
    monkeypatch.setattr(build_parts, "get_this_platform", lambda: "linux-x64")
    del installed.rows["npm:source-v0.5.0"]
    installed.write_lock()
    assert "isn't in the lock file" in run(installed, capsys, "--with-mtmd")[1]


SECOND = {
    "libggml-base.so": fake.elf("libggml-base.so"),
    "libggml-cpu.so": fake.elf("libggml-cpu.so"),
    "libggml.so": fake.elf("libggml.so", ("libggml-cpu.so", "libggml-base.so")),
    "libllama.so": fake.elf("libllama.so", ("libggml.so",)),
    "libmtmd.so": fake.elf("libmtmd.so", ("libllama.so",)),
}


@posix_only
def test_without_a_compiler_all_libraries_come_from_the_source_that_has_libmtmd(world, capsys, monkeypatch):
    """Never libmtmd of one build beside libllama of another."""
    run(world, capsys)
    world.install_client("pip3")
    facts = {"llama_cpp": "b11067", "tag": "manylinux2014_x86_64"}
    world.publish("pip:linux-x64", "pip", "llama-cpp-py-sync", "x-1.0.0.whl", fake.zip_bytes(SECOND), **facts)
    monkeypatch.setattr(build_parts, "get_this_platform", lambda: "linux-x64")
    assert run(world, capsys, "--with-mtmd")[0] == 0
    manifest = manifest_of(world.dest / "linux-x64-cpu")
    assert manifest["mtmd"] == "libmtmd.so" and manifest["source"]["kind"] == "pip"
    assert manifest["version"] == "b11067" and set(manifest["files"]) == set(SECOND)
    assert run(world, capsys, "--with-mtmd")[0] == 0  # and stays
    assert manifest_of(world.dest / "linux-x64-cpu")["source"]["kind"] == "pip"


@posix_only
@pytest.mark.parametrize("has_tools", [True, False])
def test_what_is_given_away_has_libmtmd_where_it_can_be_had(installed, monkeypatch, has_tools):
    def refuse() -> None:
        raise common.Failure("building libmtmd needs cmake")

    said = io.StringIO()
    monkeypatch.setattr(build_parts, "require_tools", (lambda: None) if has_tools else refuse)
    options = {"dest": installed.dest, "lock": fetch_libs.load_lock(installed.lock_path), "cache": installed.cache}
    folder = fetch_libs.ensure_with_media("linux-x64", "cpu", progress=common.Progress(said), **options)
    assert bool(manifest_of(folder)["mtmd"]) == has_tools
    assert ("without libmtmd (images and audio)" in said.getvalue()) != has_tools


@posix_only
def test_elsewhere_the_second_source_brings_libmtmd_ready_made(world, capsys):
    world.install_client("pip3")
    libraries = {
        "libggml-base.0.dylib": fake.macho("b"),
        "libggml-cpu.0.dylib": fake.macho("c"),
        "libggml.0.dylib": fake.macho("g", ("libggml-cpu.0.dylib", "libggml-base.0.dylib")),
        "libllama.0.dylib": fake.macho("l", ("libggml.0.dylib",)),
        "libmtmd.dylib": fake.macho("m", ("libllama.0.dylib",)),
    }
    world.publish(
        "pip:macos-arm64",
        "pip",
        "llama-cpp-py-sync",
        "mac-1.0.0.whl",
        fake.zip_bytes(libraries),
        llama_cpp="b11067",
        tag="macosx_14_0_arm64",
    )
    assert run(world, capsys, "--platform", "macos-arm64", "--with-mtmd")[0] == 0
    assert manifest_of(world.dest / "macos-arm64-metal")["mtmd"] == "libmtmd.dylib"
    code, complaint = run(world, capsys, "--platform", "windows-arm64", "--with-mtmd")
    assert code == 1 and "no package contains libmtmd for windows-arm64-cpu" in complaint


@pytest.mark.parametrize(
    "log, shown",
    [
        ("-- Configuring done", "step  7 s"),
        ("[12/345] Building a\n[13/345] Building b\n", "step [13/345]  7 s"),
        ("[ 12%] Building a\n[ 40%] Building b\n", "step [40 %]  7 s"),
    ],
)
def test_build_progress_is_the_build_tools_own_count(tmp_path, log, shown):
    path = tmp_path / "log"
    path.write_text(log)
    assert build_parts._describe("step", path, 7.2) == shown


@posix_only
def test_a_failing_build_step_ends_in_one_line_and_no_leftovers(world, monkeypatch):
    tool = world.bin / "git"
    tool.write_text(f"#!{sys.executable}\nprint('fatal: error: bundle is broken')\nraise SystemExit(128)\n")
    tool.chmod(0o755)
    package = world.root / "source.tgz"
    package.write_bytes(fake.tar_bytes({"package/llama/gitRelease.bundle": b"bundle"}))
    monkeypatch.setattr(build_parts.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    with pytest.raises(common.Failure, match="step source failed: fatal: error: bundle is broken"):
        build_parts._build(
            build_parts.MTMD, world.cache / "mtmd" / "libmtmd.so", package, world.cache, common.Progress(quiet=True)
        )
    assert world.leftovers() == [] and not (world.cache / "mtmd").exists()
