"""Importing archives and folders, and reading library files. No real libraries."""

from __future__ import annotations

import gzip
import random
import re

import pytest

from tests.support import build_script
from tests.unit.build_scripts import fake_packages as fake
from tests.unit.build_scripts.fake_packages import manifest_of, names, posix_only, run

archives = build_script("archives")
native_files = build_script("native_files")


@pytest.fixture
def world(tmp_path, monkeypatch):
    return fake.make_world(tmp_path, monkeypatch)


# --- headers ------------------------------------------------------------------------------------------------

HEADERS = [
    (
        fake.elf("libllama.so.0", ("libggml.so.0", "libc.so.6")),
        native_files.Header("elf", "x64", "libllama.so.0", ("libggml.so.0", "libc.so.6")),
    ),
    (fake.elf("", (), machine=0xB7), native_files.Header("elf", "arm64", "", ())),
    (fake.elf32("libggml.so", ("libc.so.6",)), native_files.Header("elf", "armv7l", "libggml.so", ("libc.so.6",))),
    (
        fake.macho("libllama.0.dylib", ("libggml.0.dylib",)),
        native_files.Header("macho", "arm64", "libllama.0.dylib", ("libggml.0.dylib",)),
    ),
    (
        fake.fat_macho(fake.macho("libllama.dylib", machine=0x01000007), fake.macho("libllama.dylib")),
        native_files.Header("macho", "x64+arm64", "libllama.dylib", ()),
    ),
    (fake.pe(("ggml.dll", "KERNEL32.dll")), native_files.Header("pe", "x64", "", ("ggml.dll", "KERNEL32.dll"))),
    (fake.pe((), machine=0xAA64), native_files.Header("pe", "arm64", "", ())),
]


@pytest.mark.parametrize("content, expected", HEADERS)
def test_header_of_each_format_is_read(tmp_path, content, expected):
    path = tmp_path / "library"
    path.write_bytes(content)
    assert native_files.read_header(path) == expected


@pytest.mark.parametrize("content, expected", HEADERS)
def test_header_cut_off_anywhere_is_none_or_right_but_never_raises(tmp_path, content, expected):
    path = tmp_path / "library"
    for length in range(0, len(content) - 1, 3):
        path.write_bytes(content[:length])
        header = native_files.read_header(path)
        assert header is None or header.format == expected.format


@pytest.mark.parametrize(
    "name, role, family",
    [
        ("libllama.so", "llama", None),
        ("libllama.so.0.5.0", "llama", None),
        ("libllama.cuda.v0.5.0.so", "llama", None),
        ("llama.v0.4.0.dll", "llama", None),
        ("libllama.0.4.1.dylib", "llama", None),
        ("llama.dll", "llama", None),
        ("libggml.vulkan.v0.5.0.so", "ggml", None),
        ("libggml-base.so.0", "ggml-base", None),
        ("mtmd.dll", "mtmd", None),
        ("libggml-cpu-armv8.2_1.so", None, "ggml-cpu-armv8.2_1"),
        ("libggml-metal.0.24.0.dylib", None, "ggml-metal"),
        ("libggml-cpu.so.0", None, "ggml-cpu"),
        ("ggml-cpu-x64.dll", None, "ggml-cpu-x64"),
        ("libllama-common.so", None, None),
        ("llama-addon.node", None, None),
        ("libggml-base.0.dylib", "ggml-base", None),
    ],
)
def test_roles_of_file_names(name, role, family):
    assert (native_files.find_core_role(name), native_files.find_plugin_family(name)) == (role, family)


# --- importing ----------------------------------------------------------------------------------------------

OFFICIAL = {  # real files of a release's build/bin, and its links
    "files": {
        "libggml-base.so.0.9.4": fake.elf("libggml-base.so.0"),
        "libggml.so.0.9.4": fake.elf("libggml.so.0", ("libggml-base.so.0",)),
        "libllama.so.0.5.0": fake.elf("libllama.so.0", ("libggml.so.0", "libggml-base.so.0")),
        "libmtmd.so.0.5.0": fake.elf("libmtmd.so.0", ("libllama.so.0", "libggml.so.0")),
        "libggml-cpu-haswell.so": fake.elf("", ("libggml-base.so.0",)),
        "libggml-rpc.so": fake.elf("", ("libggml-base.so.0",)),
        "llama-server": b"\x7fELF program",
        "LICENSE": b"MIT",
    },
    "links": {
        "libggml-base.so.0": "libggml-base.so.0.9.4",
        "libggml-base.so": "libggml-base.so.0",
        "libggml.so.0": "libggml.so.0.9.4",
        "libggml.so": "libggml.so.0",
        "libllama.so.0": "libllama.so.0.5.0",
        "libllama.so": "./libllama.so.0",
        "libmtmd.so.0": "libmtmd.so.0.5.0",
        "libmtmd.so": "libmtmd.so.0",
    },
}


def official(base):
    return (
        {base + name: content for name, content in OFFICIAL["files"].items()},
        {base + name: end for name, end in OFFICIAL["links"].items()},
    )


@pytest.mark.parametrize(
    "pack, name",
    [(fake.tar_bytes, "llama-b7000-bin-ubuntu-x64.tar.gz"), (fake.zip_bytes, "llama-b7000-bin-ubuntu-x64.zip")],
)
@pytest.mark.parametrize("base", ["build/bin/", "llama-b7000/", ""])
def test_an_official_release_archive_is_imported_with_its_links(world, capsys, tmp_path, pack, name, base):
    archive = tmp_path / name
    archive.write_bytes(pack(*official(base)))
    assert run(world, capsys, "--from", str(archive))[0] == 0
    folder = world.dest / "linux-x64-cpu"
    manifest = manifest_of(folder)
    assert manifest["load_order"] == ["libggml-base.so.0", "libggml.so.0", "libllama.so.0"]
    assert manifest["cpu_plugins"] == ["libggml-cpu-haswell.so"]
    assert manifest["backend_plugins"] == ["libggml-rpc.so"]
    assert (manifest["mtmd"], manifest["version"]) == ("libmtmd.so.0", "v0.5.0")
    assert manifest["source"] == {"kind": "import", "packages": [name]}
    assert names(folder) == {*manifest["files"], "manifest.json", "LICENSE"}
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert run(world, capsys)[0] == 0  # fetching leaves an import alone
    assert manifest_of(folder)["source"]["kind"] == "import" and world.calls == []


@posix_only
def test_a_folder_with_an_own_build_is_imported(world, capsys, tmp_path):
    build = tmp_path / "build" / "bin"
    build.mkdir(parents=True)
    for name, content in OFFICIAL["files"].items():
        (build / name).write_bytes(content)
    for name, end in OFFICIAL["links"].items():
        (build / name).symlink_to(end)
    assert run(world, capsys, "--from", str(tmp_path / "build"))[0] == 0
    assert manifest_of(world.dest / "linux-x64-cpu")["load_order"][-1] == "libllama.so.0"
    assert (build / "libllama.so.0.5.0").read_bytes() == OFFICIAL["files"]["libllama.so.0.5.0"]


@posix_only
def test_importing_again_replaces(world, capsys, tmp_path):
    run(world, capsys)
    archive = tmp_path / "own.tar.gz"
    archive.write_bytes(fake.tar_bytes(*official("")))
    assert run(world, capsys, "--from", str(archive))[0] == 0
    assert run(world, capsys, "--from", str(archive))[0] == 0
    assert "libllama.so.0" in names(world.dest / "linux-x64-cpu")
    assert "libllama.v0.5.0.so" not in names(world.dest / "linux-x64-cpu")


def test_unequal_copies_under_several_names_end_as_the_one_that_neighbours_ask_for(world, capsys, tmp_path):
    files = {}
    for suffix in ("", ".0", ".0.24.0"):  # as in macOS wheels: each copy was signed by itself, so each differs
        payload = suffix.encode()
        files[f"libggml-base{suffix}.dylib"] = fake.macho(f"libggml-base{suffix}.dylib", payload=payload)
        files[f"libggml-metal{suffix}.dylib"] = fake.macho("m", ("libggml-base.0.dylib",), payload=payload)
        files[f"libggml-cpu{suffix}.dylib"] = fake.macho("c", ("libggml-base.0.dylib",), payload=payload)
        files[f"libggml{suffix}.dylib"] = fake.macho(
            f"libggml{suffix}.dylib",
            ("libggml-cpu.0.dylib", "libggml-metal.0.dylib", "libggml-base.0.dylib"),
            payload=payload,
        )
        files[f"libllama{suffix}.dylib"] = fake.macho(f"libllama{suffix}.dylib", ("libggml.0.dylib",), payload=payload)
    files["libmtmd.dylib"] = fake.macho("libmtmd.dylib", ("libllama.0.dylib",))
    archive = tmp_path / "mac.whl"
    archive.write_bytes(fake.zip_bytes({"package/" + name: content for name, content in files.items()}))
    assert run(world, capsys, "--from", str(archive))[0] == 0
    manifest = manifest_of(world.dest / "macos-arm64-metal")
    assert manifest["load_order"] == [
        "libggml-base.0.dylib",
        "libggml-cpu.0.dylib",
        "libggml-metal.0.dylib",
        "libggml.0.dylib",
        "libllama.0.dylib",
    ]
    assert manifest["backend_plugins"] == []  # linked in, not loaded at run time
    assert set(manifest["files"]) == {*manifest["load_order"], "libmtmd.dylib"}


def test_a_windows_archive_keeps_the_runtime_that_its_libraries_need(world, capsys, tmp_path):
    files = {
        "ggml-base.dll": fake.pe(("VCOMP140.DLL", "KERNEL32.dll")),
        "vcomp140.dll": fake.pe(),
        "ggml-cpu-x64.dll": fake.pe(("ggml-base.dll",)),
        "ggml.dll": fake.pe(("ggml-base.dll",)),
        "llama.dll": fake.pe(("ggml.dll", "ggml-base.dll")),
        "llama-common.dll": fake.pe(("llama.dll",)),
        "unrelated.dll": fake.pe(),
        "ggml-vulkan.dll": fake.pe(("ggml-base.dll", "vulkan-1.dll")),
    }
    archive = tmp_path / "llama-b7000-bin-win-vulkan-x64.zip"
    archive.write_bytes(fake.zip_bytes(files))
    assert run(world, capsys, "--from", str(archive))[0] == 0
    manifest = manifest_of(world.dest / "windows-x64-vulkan")
    assert manifest["load_order"] == ["ggml-base.dll", "ggml.dll", "llama.dll"]
    assert (manifest["version"], manifest["backend_plugins"]) == ("b7000", ["ggml-vulkan.dll"])
    assert set(manifest["files"]) == set(files) - {"llama-common.dll", "unrelated.dll"}


def test_parts_in_two_archives_are_imported_together(world, capsys, tmp_path):
    first, second = tmp_path / "llama.zip", tmp_path / "cudart.zip"
    first.write_bytes(
        fake.zip_bytes(
            {
                "ggml-base.dll": fake.pe(),
                "ggml.dll": fake.pe(("ggml-base.dll",)),
                "llama.dll": fake.pe(("ggml.dll",)),
                "ggml-cpu.dll": fake.pe(("ggml-base.dll",)),
                "ggml-cuda.dll": fake.pe(("ggml-base.dll", "cudart64_13.dll")),
            }
        )
    )
    second.write_bytes(fake.zip_bytes({"cuda/cudart64_13.dll": fake.pe(), "cuda/other.dll": fake.pe()}))
    assert run(world, capsys, "--from", str(first), "--from", str(second))[0] == 0
    folder = world.dest / "windows-x64-cuda"
    assert "cudart64_13.dll" in names(folder) and "other.dll" not in names(folder)


@pytest.mark.parametrize(
    "without, words",
    [
        ("libllama", "no libllama"),
        ("libggml.so", "no ggml library beside libllama"),
        ("libggml-base", "no ggml-base library beside libllama"),
        ("libggml-cpu", "no CPU backend"),
    ],
)
def test_incomplete_archives_are_refused_by_what_is_missing(world, capsys, tmp_path, without, words):
    files, links = official("bin/")
    archive = tmp_path / "partial.tar.gz"
    archive.write_bytes(
        fake.tar_bytes(
            {name: content for name, content in files.items() if without not in name},
            {name: end for name, end in links.items() if without not in name},
        )
    )
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and re.search(words, complaint), complaint
    assert names(world.dest) == set()


def test_a_linked_backend_that_is_missing_is_named(world, capsys, tmp_path):
    archive = tmp_path / "linked.tar.gz"
    archive.write_bytes(
        fake.tar_bytes(
            {
                "libggml-base.so.0": fake.elf("libggml-base.so.0"),
                "libllama.so.0": fake.elf("libllama.so.0", ("libggml.so.0",)),
                "libggml.so.0": fake.elf("libggml.so.0", ("libggml-cpu.so.0", "libggml-base.so.0", "libc.so.6")),
            }
        )
    )
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and "libggml-cpu.so.0, which libggml.so.0 needs, isn't in the archive" in complaint


def test_two_builds_in_one_archive_are_refused(world, capsys, tmp_path):
    archive = tmp_path / "both.tar.gz"
    archive.write_bytes(fake.tar_bytes({**official("avx/")[0], **official("noavx/")[0]}))
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and "contains several builds (avx, noavx)" in complaint


def test_libraries_of_another_platform_than_asked_for_are_refused(world, capsys, tmp_path):
    archive = tmp_path / "own.tar.gz"
    archive.write_bytes(fake.tar_bytes(*official("")))
    code, complaint = run(world, capsys, "--from", str(archive), "--platform", "macos-arm64")
    assert code == 1 and "for linux-x64, not for macos-arm64" in complaint


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a complete archive"),
        (b"plain text", "not a complete archive"),
        (fake.tar_bytes(*official(""))[:-300], "damaged|not a complete archive"),
        (fake.zip_bytes(*official(""))[:-30], "damaged|not a complete archive"),
    ],
)
def test_what_is_no_whole_archive_is_refused(world, capsys, tmp_path, content, words):
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and re.search(words, complaint) and "download it again" in complaint
    assert names(world.dest) == set()


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_an_archive_with_a_changed_byte_is_refused(world, capsys, tmp_path, kind):
    """Only the checksum at the end of the first half tells."""
    compress = gzip.compress if kind == "gz" else pytest.importorskip("lzma").compress
    data = gzip.decompress(fake.tar_bytes({"bin/libllama.so": random.Random(5).randbytes(1 << 18)}))
    first = bytearray(compress(data[: 1 << 17]))
    first[len(first) // 2] ^= 1
    archive = tmp_path / f"archive.tar.{kind}"
    archive.write_bytes(first + compress(data[1 << 17 :]))
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and "damaged" in complaint and "download it again" in complaint
    assert names(world.dest) == set()


def test_a_path_that_does_not_exist(world, capsys, tmp_path):
    code, complaint = run(world, capsys, "--from", str(tmp_path / "nowhere.zip"))
    assert code == 1 and "doesn't exist" in complaint


@pytest.mark.parametrize(
    "name", ["../libllama.so", "/etc/libllama.so", "a/../../libllama.so", "C:/libllama.so", "..\\libllama.so"]
)
@pytest.mark.parametrize("pack", [fake.tar_bytes, fake.zip_bytes])
def test_an_archive_that_tries_to_leave_its_folder_is_refused(world, capsys, tmp_path, pack, name):
    files, _ = official("bin/")
    archive = tmp_path / "evil"
    archive.write_bytes(pack({**files, name: fake.elf("libllama.so.0")}))
    before = set(tmp_path.rglob("*"))
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and "unsafe path" in complaint
    assert set(tmp_path.rglob("*")) - before <= {world.dest}


@pytest.mark.parametrize("pack", [fake.tar_bytes, fake.zip_bytes])
@pytest.mark.parametrize("end", ["/etc/passwd", "../../../../etc/passwd", "libggml.so.0", "libllama.so.0"])
def test_links_that_lead_nowhere_inside_are_never_followed(world, capsys, tmp_path, pack, end):
    """Outside, in a ring, or to the wrong library: the needed file then counts as missing or unfit."""
    files, links = official("bin/")
    del files["bin/libggml.so.0.9.4"]
    links["bin/libggml.so.0"] = end
    links["bin/libggml.so"] = "libggml.so.0"
    archive = tmp_path / "links"
    archive.write_bytes(pack(files, links))
    code, _ = run(world, capsys, "--from", str(archive))
    installed = world.dest / "linux-x64-cpu" / "libggml.so.0"
    assert code == 1 or installed.read_bytes() == files["bin/libllama.so.0.5.0"]
    assert not any(path.is_symlink() for path in world.dest.rglob("*"))


def test_hard_links_in_a_tar_are_files(tmp_path):
    archive = tmp_path / "hard.tar.gz"
    archive.write_bytes(
        fake.tar_bytes({"bin/libllama.so.0.5.0": b"content"}, hard={"bin/libllama.so": "bin/libllama.so.0.5.0"})
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = archives.unpack([archive], scratch).libraries
    assert found["bin/libllama.so"].read_bytes() == b"content"


def test_an_archive_with_absurdly_many_libraries_is_refused(world, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(fake.tar_bytes(*official("")))
    code, complaint = run(world, capsys, "--from", str(archive))
    assert code == 1 and "more than 3 libraries" in complaint
