"""The archive for machines without a network: its contents, and the text of OFFLINE.md. Nothing is fetched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, build_script, need

common = build_script("common")
pack_offline = build_script("pack_offline")
native_files = build_script("native_files")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Small stand-ins for libraries, model, wheels and tree."""
    libs, model, tree = tmp_path / "linux-x64-cpu", tmp_path / "Smol.gguf", tmp_path / "tree"
    for path in (
        libs / "libllama.so",
        libs / "fallback" / "x.so",
        model,
        tree / "llama_srv.py",
        tree / "a b" / "ü.txt",
        tree / "__pycache__" / "x.pyc",
        tree / "libs" / "README.md",
        tree / "libs" / "own" / "libllama.so",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (tree / "llama_srv.py").chmod(0o755)

    def ensure(*_: object, with_mtmd: bool = False, **__: object) -> Path:
        if with_mtmd:
            (libs / "libmtmd.so").write_text("images and sound")
            if os.name == "posix":
                (libs / "libllama.so.0").symlink_to("libllama.so")
        return libs

    monkeypatch.setattr(pack_offline, "ROOT", tree)
    monkeypatch.setattr(pack_offline.fetch_libs, "ensure", ensure)
    monkeypatch.setattr(pack_offline.fetch_model, "ensure", lambda **k: model)

    def fetch_wheels(folder, platform, python, offline, progress):
        folder.mkdir()
        (folder / f"x-{platform}-{python}.whl").write_text("wheel")

    monkeypatch.setattr(pack_offline, "fetch_wheels", fetch_wheels)
    return tmp_path


def run(world, *arguments):
    target = world / "out.tar"
    assert pack_offline.main(["--quiet", "--output", str(target), *arguments]) == 0
    with tarfile.open(target) as tar:
        assert all((entry.isfile() or entry.issym()) and entry.name.startswith("llama_srv-offline/") for entry in tar)
        links = {entry.name.partition("/")[2] for entry in tar if entry.issym()}
        assert links == (
            {"libs/linux-x64-cpu/libllama.so.0"} if os.name == "posix" and "linux-x64" in arguments else set()
        )
        return {entry.name.partition("/")[2]: (entry.mode, tar.extractfile(entry).read().decode()) for entry in tar}


def test_tree_libraries_model_and_wheels_are_in_it_and_nothing_else(world):
    files = run(world, "--platform", "linux-x64", "--python", "3.12")
    assert set(files) == {
        "OFFLINE.md",
        "llama_srv.py",
        "a b/ü.txt",
        "libs/README.md",
        "libs/linux-x64-cpu/libllama.so",
        "libs/linux-x64-cpu/libmtmd.so",
        *(["libs/linux-x64-cpu/libllama.so.0"] if os.name == "posix" else []),
        "libs/linux-x64-cpu/fallback/x.so",
        "cache/models/Smol.gguf",
        "wheels/x-linux-x64-3.12.whl",
    }
    assert files["llama_srv.py"][0] == 0o755 and files["OFFLINE.md"][0] == 0o644
    text = files["OFFLINE.md"][1]
    assert "python3 llama_srv.py -m cache/models/Smol.gguf" in text and "Python 3.12 with pip" in text
    assert sorted(path.name for path in world.iterdir()) == ["Smol.gguf", "linux-x64-cpu", "out.tar", "tree"]


def test_without_tests_the_page_says_so(world):
    files = run(world, "--platform", "windows-x64", "--no-tests")
    text = files["OFFLINE.md"][1]
    assert not any(name.startswith("wheels") for name in files) and "PIP_NO_INDEX" not in text
    assert "    python llama_srv.py -m" in text and "has no packages for the tests" in text and "{" not in text


def test_the_commands_of_the_page_are_scripts_that_there_are(world):
    text = run(world, "--platform", "linux-x64")["OFFLINE.md"][1]
    scripts = re.findall(r"python3? (\S+\.py)", text.replace("\\", "/"))
    assert set(scripts) == {"llama_srv.py", "build_scripts/quickstart.py", "build_scripts/test.py"}
    assert all((ROOT / script).is_file() for script in scripts)


def test_wheels_are_known_for_each_platform_that_libraries_are_fetched_for():
    usable = {variant.platform for variant in pack_offline.fetch_libs.VARIANTS if not variant.unusable}
    assert usable == set(pack_offline.WHEEL_TAGS) and usable <= set(native_files.PLATFORMS)


def test_without_pip_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_offline, "find_pip", lambda: None)
    with pytest.raises(common.Failure, match="--no-tests"):
        pack_offline.fetch_wheels(tmp_path / "w", "linux-x64", "3.11", True, common.Progress(quiet=True))


@pytest.mark.skipif(os.name != "posix", reason="only on Unix: the other commands are for PowerShell")
def test_the_commands_of_the_page_find_the_wheels_in_a_folder_with_a_blank_in_its_name(world):
    pip = pack_offline.find_pip()
    need(pip, "pip isn't installed")
    folder = world / "a folder"
    (folder / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(folder / "wheels" / "leaf-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("leaf.py", "")
        wheel.writestr("leaf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: leaf\nVersion: 1.0\n")
        wheel.writestr("leaf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("leaf-1.0.dist-info/RECORD", "")
    text = run(world, "--platform", "linux-x64")["OFFLINE.md"][1]
    setting = next(line.strip() for line in text.splitlines() if "PIP_FIND_LINKS" in line)
    command = [shutil.which("sh"), "-c", f'{setting}; exec "$@"', "sh", *pip, "download", "leaf", "--dest", "found"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "found").iterdir()] == ["leaf-1.0-py3-none-any.whl"]
