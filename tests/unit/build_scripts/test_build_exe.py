"""Building executables, without running PyInstaller: inputs, licences, checksums, the check of other platforms'
libraries.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ctypes_api import ggml, llama
from tests.support import ROOT, build_script
from tests.unit.build_scripts.fake_packages import linux_build

build_exe = build_script("build_exe")
check_platform = build_script("check_platform")
common = build_script("common")
contents = build_script("contents")
fetch_libs = build_script("fetch_libs")
native_files = build_script("native_files")
windows_resources = build_script("windows_resources")
FUNCTIONS = b"".join(b"\0" + row.name.encode() for row in (*ggml.BASE_ROWS, *ggml.REGISTRY_ROWS, *llama.ROWS)) + b"\0"


@pytest.fixture
def libs(tmp_path) -> Path:
    """A folder as fetch_libs makes it, of tiny libraries that name all functions."""
    source = tmp_path / "source"
    source.mkdir()
    files = linux_build()
    files["libllama.v0.5.0.so"] += FUNCTIONS
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "LICENSE").write_text("MIT License of llama.cpp")
    folder, _ = fetch_libs.install([source], tmp_path / "libs", source={"kind": "import"})
    return folder


@pytest.fixture
def folder(tmp_path, libs) -> Path:
    """What PyInstaller leaves, in small, with our files in it."""
    inner = tmp_path / "made" / "_internal"
    inner.mkdir(parents=True)
    (inner.parent / "llama-srv").write_bytes(b"program")
    for name in ("base_library.zip", "libpython3.11.so.1.0", "libssl.so.3", "libz.so.1", "libffi.so.8"):
        (inner / name).write_bytes(name.encode())
    (inner / "python3.11" / "lib-dynload").mkdir(parents=True)
    (inner / "python3.11" / "lib-dynload" / "_json.cpython-311-x86_64-linux-gnu.so").write_bytes(b"json")
    (inner / "public").mkdir()
    (inner / "public" / "index.html").write_text("hello")
    build_exe.copy_libs(libs, inner / "libs" / libs.name)
    return inner.parent


# ---- contents ------------------------------------------------------------------------------------------------------


def test_every_file_is_in_the_bill_with_its_hash_and_a_licence(folder, libs, monkeypatch):
    monkeypatch.setattr(contents.importlib.metadata, "version", lambda name: "6.0")
    monkeypatch.setattr(contents.importlib.metadata, "files", lambda name: ())
    bill = contents.write_documents(folder, libs, "llama-srv-test")
    listed = {file["name"]: file["hashes"][0]["content"] for row in bill["components"] for file in row["components"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == there - {contents.SBOM}
    assert all(common.sha256_of(folder / name) == digest for name, digest in listed.items())
    rows = {row["name"]: row for row in bill["components"]}
    assert rows["llama.cpp"]["version"] == "v0.5.0" and rows["OpenSSL"]["version"][0].isdigit()
    assert all(row["licenses"] for row in rows.values())
    assert json.loads((folder / contents.SBOM).read_text()) == bill
    text = (folder / contents.NOTICES).read_text()
    for words in ("MIT License of llama.cpp", "Apache License", "PYTHON SOFTWARE FOUNDATION"):
        assert words in text
    assert contents.write_documents(folder, libs, "llama-srv-test") == bill


def test_a_library_that_nobody_has_looked_at_ends_the_build(folder, libs):
    (folder / "_internal" / "libreadline.so.8").write_bytes(b"")
    with pytest.raises(common.Failure, match=r"libreadline.so.8 belongs to no known component: add its licence"):
        contents.sort_files(folder)


def test_only_what_the_manifest_names_is_taken_along(libs, tmp_path):
    (libs / "stray.txt").write_text("")
    (libs / "libggml-stray.so").write_text("")
    build_exe.copy_libs(libs, tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {*native_files.read_manifest(libs)["files"], "manifest.json", "LICENSE"}


# ---- when it is built ----------------------------------------------------------------------------------------------


def test_a_build_is_repeated_only_if_something_that_goes_in_has_changed(libs, tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for name in ("server/app.py", "ctypes_api/x.py", "public/index.html", "llama_srv.py", "LICENSE"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("1")
    (tree / "build_scripts").mkdir()
    monkeypatch.setattr(build_exe, "ROOT", tree)
    monkeypatch.setattr(build_exe, "OUR_SCRIPTS", ())
    before = build_exe.inputs_of(libs)
    (tree / "server" / "__pycache__").mkdir()
    (tree / "server" / "__pycache__" / "app.pyc").write_text("x")
    assert build_exe.inputs_of(libs) == before
    (tree / "public" / "index.html").write_text("2")
    assert build_exe.inputs_of(libs) != before
    built = build_exe.Built(*(tmp_path / name for name in ("folder", "archive", "file")))
    for path in built:
        path.touch()
    assert not build_exe.is_current(built, before)
    build_exe.get_inputs_file(built).write_text(json.dumps(before))
    assert build_exe.is_current(built, before) and not build_exe.is_current(built, {**before, "libs": "others"})
    built.one_file.unlink()
    assert not build_exe.is_current(built, before)


def test_libraries_of_another_platform_are_refused(libs, tmp_path, monkeypatch):
    monkeypatch.setattr(build_exe, "get_this_platform", lambda: "macos-arm64")
    with pytest.raises(common.Failure, match="no libraries for macos-arm64"):
        build_exe.ensure(libs, tmp_path / "dist", common.Progress(quiet=True))


def test_sums_are_what_sha256sum_reads(tmp_path):
    for name in ("llama-srv-linux-x64-cpu", "llama-srv-linux-x64-cpu.tar.gz", "other"):
        (tmp_path / name).write_text(name)
    build_exe.write_sums(tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["llama-srv-linux-x64-cpu", "llama-srv-linux-x64-cpu.tar.gz"]
    assert lines[0].split()[0] == common.sha256_of(tmp_path / "llama-srv-linux-x64-cpu")


def test_the_scripts_that_decide_are_all_there():
    assert all((ROOT / "build_scripts" / name).exists() for name in build_exe.OUR_SCRIPTS)


# ---- other platforms -----------------------------------------------------------------------------------------------


def test_a_complete_folder_passes_and_says_what_the_system_must_have(libs):
    assert check_platform.troubles_of(libs) == []
    assert "from the system: libc.so.6" in check_platform.make_summary(libs)


def rewrite(libs: Path, name: str, data: bytes, **changes: object) -> None:
    """Replace a file and say so in the manifest."""
    (libs / name).unlink()
    (libs / name).write_bytes(data)
    manifest = native_files.read_manifest(libs)
    manifest["files"][name] = {"sha256": common.sha256_of(libs / name), "size": len(data)}
    native_files.write_manifest(libs, {**manifest, **changes})


def test_each_kind_of_trouble_is_told(libs):
    llama_so, ggml_so = "libllama.v0.5.0.so", "libggml.v0.5.0.so"
    good = (libs / llama_so).read_bytes()
    rewrite(libs, llama_so, good.replace(b"\0llama_decode\0", b"\0llama_decoda\0"))
    assert check_platform.troubles_of(libs) == ["no function llama_decode"]
    rewrite(libs, llama_so, good, load_order=["libggml-base.so", llama_so, ggml_so])
    assert check_platform.troubles_of(libs) == [f"{llama_so} needs {ggml_so}, which is loaded later or not at all"]
    rewrite(libs, llama_so, good, load_order=["libggml-base.so", ggml_so, llama_so])
    changed = bytearray((libs / ggml_so).read_bytes())
    changed[-1] ^= 1
    (libs / ggml_so).unlink()
    (libs / ggml_so).write_bytes(changed)
    assert check_platform.troubles_of(libs) == [f"{ggml_so} doesn't match the manifest"]


def test_an_unknown_variant_names_the_known_ones(tmp_path):
    with pytest.raises(common.Failure, match="no variant beos: linux-x64-cpu, "):
        check_platform.check("beos", tmp_path, common.Progress(quiet=True), offline=True)


# ---- Windows -------------------------------------------------------------------------------------------------------


def test_windows_resources_are_written_for_windows_only(tmp_path):
    assert windows_resources.write(tmp_path, "linux") == {} and list(tmp_path.iterdir()) == []
    variables = windows_resources.write(tmp_path, "win32")
    icon = Path(variables["LLAMA_SRV_ICON"]).read_bytes()
    kind, count = struct.unpack_from("<HH", icon, 2)
    width, height, _, _, _, bits, size, offset = struct.unpack_from("<BBBBHHII", icon, 6)
    assert (kind, count, width, height, bits) == (1, 1, 32, 32, 32) and offset + size == len(icon)
    text = Path(variables["LLAMA_SRV_VERSION_FILE"]).read_text()
    assert f"'ProductVersion', '{contents.read_server_version()}'" in text
    compile(text, "version.txt", "eval")


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, str(ROOT / "build_scripts" / "build_exe.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and "--check-platform" in done.stdout
