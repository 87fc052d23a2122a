"""The shell script of the one-file program, with a real shell and a stand-in program: folders, refusals, messages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support import build_script, need

one_file = build_script("one_file")
common = build_script("common")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="not on Windows: PyInstaller makes the one file there")
PROGRAM = '#!/bin/sh\nprintf "%s|" "$0" "$LLAMA_SRV_FILE" "${PATH-unset}" "$@"\n'
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]


@pytest.fixture
def folder(tmp_path):
    """What build_exe would have made."""
    path = tmp_path / "made"
    (path / "_internal" / "public").mkdir(parents=True)
    (path / "llama-srv").write_text(PROGRAM)
    (path / "llama-srv").chmod(0o755)
    (path / "_internal" / "public" / "index.html").write_text("hello")
    (path / "llama-server").symlink_to("llama-srv")
    return path


@pytest.fixture
def program(folder, tmp_path):
    """The one file."""
    target = tmp_path / "my prögram"
    one_file.write_one_file(one_file.pack(folder, tmp_path / "made.tar.gz"), "llama-srv test", target)
    return target


def run(program, *arguments, shell=None, cwd=None, **environment):
    command = ([shell] if shell else []) + [str(program), *arguments]
    command = ["busybox", "sh", *command[1:]] if shell == "busybox" else command
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def cached(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "llama_srv" / "programs").iterdir())


@pytest.mark.parametrize("shell", SHELLS)
def test_it_unpacks_once_and_becomes_the_program(program, tmp_path, shell):
    first = run(program, "a b", "-c", "", shell=shell, HOME=str(tmp_path / "home"))
    assert (first.returncode, first.stderr) == (0, "")
    (unpacked,) = cached(tmp_path / "home")
    assert first.stdout == f"{unpacked}/llama-srv|{program}|{{}}|a b|-c||".format(first.stdout.split("|")[2])
    assert (unpacked / "_internal" / "public" / "index.html").read_text() == "hello"
    assert (unpacked / "llama-server").is_symlink() and unpacked.parent.stat().st_mode & 0o077 == 0
    (unpacked / "mark").touch()
    second = run(program, "x", shell=shell, HOME=str(tmp_path / "home"))
    assert second.stdout.endswith("|x|") and (unpacked / "mark").exists() and cached(tmp_path / "home") == [unpacked]


def test_the_environment_of_the_program_is_the_users(program, tmp_path):
    for path in ("/nothing", ""):
        result = run(program, HOME=str(tmp_path / "home"), PATH=path)
        assert (result.stdout.split("|")[2], result.stderr) == (path, "")


def test_a_relative_name_becomes_a_full_one(program, tmp_path):
    result = run(f"./{program.name}", HOME=str(tmp_path / "home"), cwd=program.parent)
    assert Path(result.stdout.split("|")[1]).resolve() == program.resolve()
    (tmp_path / "llama-server").symlink_to(program)
    result = run(tmp_path / "llama-server", HOME=str(tmp_path / "home"))
    assert Path(result.stdout.split("|")[1]).resolve() == program.resolve()


@pytest.mark.parametrize(
    "name, place",
    [
        ("LLAMA_SRV_UNPACK", ""),
        ("LLAMA_SRV_CACHE", "programs"),
        ("XDG_CACHE_HOME", "llama_srv/programs"),
        ("HOME", ".cache/llama_srv/programs"),
        ("TMPDIR", f"llama_srv-{os.getuid() if os.name == 'posix' else 0}"),
    ],
)
def test_each_way_to_name_the_folder(program, tmp_path, name, place):
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    result = run(program, **{name: str(chosen)})
    assert result.stdout.startswith(str(chosen / place)), result.stderr


def test_a_home_that_cant_be_written_to_is_passed_over(program, tmp_path):
    (tmp_path / "home").write_text("a file, so nothing can be made in there, not even by root")
    result = run(program, HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path))
    assert result.stdout.startswith(str(tmp_path / "llama_srv-")), result.stderr


def test_no_place_at_all_names_each_and_the_ways_out(program, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(program, LLAMA_SRV_UNPACK=str(tmp_path / "file" / "x"))
    assert result.returncode == 1 and result.stdout == ""
    assert f"{tmp_path}/file/x can't be created" in result.stderr
    assert "LLAMA_SRV_UNPACK=DIR" in result.stderr and "made.tar.gz, which needs no such folder" in result.stderr


def test_a_file_that_was_cut_off_anywhere_runs_nothing_of_it(program, tmp_path):
    data = program.read_bytes()
    for size in (12, 60, 1000, 3000, one_file.HEAD_SIZE - 1, one_file.HEAD_SIZE, len(data) - 1):
        program.write_bytes(data[:size])
        result = run(program, LLAMA_SRV_UNPACK=str(tmp_path / "place"))
        assert result.returncode != 0 and result.stdout == "", size
        assert not (tmp_path / "place").exists()
    assert f"{program} is incomplete ({len(data) - 1} of {len(data)} bytes)" in result.stderr


@pytest.mark.parametrize("tool", ["sha256sum", "openssl", "cksum"])
def test_a_changed_bit_anywhere_is_found_before_anything_is_unpacked(program, tmp_path, tool):
    need(shutil.which(tool), f"{tool} isn't here")
    tools = tmp_path / "tools"
    tools.mkdir()
    others = "sh head tail sed wc id mkdir mktemp chmod gzip tar mv rm getconf".split()
    for name in [tool, *others]:
        (tools / name).symlink_to(shutil.which(name))
    # this shell finds its tools where it is told, and in no folder of the system
    data = program.read_bytes().replace(b":/usr/bin:/bin ", b"               ")
    program.write_bytes(data)
    archive = len(data) - one_file.HEAD_SIZE
    resum(program, one_file.HEAD_SIZE)
    data = program.read_bytes()
    places = [one_file.HEAD_SIZE - 1, data.index(b"sum=") + 6, data.index(b"by build_scripts/one_file.py")]
    places += [one_file.HEAD_SIZE + archive * step // 25 for step in range(25)] + [len(data) - 1]
    environment = {"LLAMA_SRV_UNPACK": str(tmp_path / "place"), "PATH": str(tools)}
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        program.write_bytes(changed)
        result = run(program, **environment)
        assert result.returncode == 1 and f"{program} is damaged: download it again" in result.stderr, place
        assert not (tmp_path / "place").exists()
    program.write_bytes(data)
    assert run(program, "x", **environment).stdout.endswith("|x|")


def resum(program, head_size):
    """Write the sums that fit what is in the file now."""
    data, rest = program.read_bytes(), program.with_name("rest")
    rest.write_bytes(data[head_size:])
    zeros = {b"sum=": b"0" * 64, b"crc='": b"0" * 10}
    head = re.sub(rb"(?m)^(sum=|crc=')[0-9a-f ]+", lambda found: found[1] + zeros[found[1]], data[:head_size])
    program.write_bytes(one_file.with_sums(head, rest) + rest.read_bytes())


def test_a_folder_that_could_not_be_unpacked_wholly_is_not_used(program, tmp_path):
    """gzip fails behind the last byte that tar needs: only gzip's own exit status tells."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gzip").write_text(f'#!/bin/sh\n{shutil.which("gzip")} "$@"\nexit 1\n')
    (tools / "gzip").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    result = run(program, LLAMA_SRV_UNPACK=str(tmp_path / "place"), PATH=path)
    assert result.returncode == 1 and result.stdout == ""
    assert list((tmp_path / "place").iterdir()) == []


def test_a_damaged_files_folder_is_never_that_of_the_good_one(program, tmp_path):
    data = program.read_bytes()
    program.write_bytes(data[:-100] + bytes(100))
    assert run(program, LLAMA_SRV_UNPACK=str(tmp_path / "place")).returncode == 1
    program.write_bytes(data)
    assert run(program, "x", LLAMA_SRV_UNPACK=str(tmp_path / "place")).stdout.endswith("|x|")
    (unpacked,) = (tmp_path / "place").iterdir()
    assert f"sum={unpacked.name}".encode() in data


def test_what_follows_the_archive_is_left_alone(program, tmp_path):
    with open(program, "ab") as file:
        file.write(bytes(100_000) + b"GGUF")
    result = run(program, "x", HOME=str(tmp_path / "home"))
    assert result.stdout.endswith("|x|"), result.stderr


def test_an_older_glibc_is_named_before_anything_is_unpacked(folder, tmp_path):
    ours = common.read_glibc_version()
    if ours is None:
        pytest.skip("only on systems with glibc")
    packed = one_file.pack(folder, tmp_path / "made.tar.gz")
    minor = int(ours.split(".")[1])
    for wanted, code in ((minor, 0), (minor + 1, 1)):
        program = tmp_path / f"for{wanted}"
        one_file.write_one_file(packed._replace(glibc=wanted), "t", program)
        result = run(program, HOME=str(tmp_path / f"home{wanted}"))
        assert result.returncode == code, result.stderr
    assert f"needs glibc 2.{minor + 1} or newer, this system has glibc 2.{minor}" in result.stderr
    assert not (tmp_path / f"home{minor + 1}").exists()


def test_a_folder_of_somebody_else_is_not_used(program, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only on machines where the tests are root: nobody else can give a folder away")
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, 12345, 12345)
    result = run(program, LLAMA_SRV_UNPACK=str(place))
    assert result.returncode == 1 and "belongs to another user" in result.stderr


def test_a_place_that_runs_no_programs_is_named(program, tmp_path):
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o noexec none "$1" && shift && exec "$@"', "sh"]
    place = tmp_path / "place"
    place.mkdir()
    if not shutil.which("unshare") or subprocess.run([*mounted, str(place), "true"], capture_output=True).returncode:
        pytest.skip("only on systems that let a user mount in a namespace")
    environment = {"LLAMA_SRV_UNPACK": str(place), "PATH": os.environ["PATH"]}
    result = subprocess.run([*mounted, str(place), str(program)], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "allow programs (noexec)" in result.stderr
    environment = {"HOME": str(place), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    result = subprocess.run([*mounted, str(place), str(program)], env=environment, capture_output=True, text=True)
    assert result.stdout.startswith(str(tmp_path / "llama_srv-")), result.stderr


def test_packing_depends_on_content_only(folder, tmp_path):
    first = one_file.pack(folder, tmp_path / "1.tar.gz")
    for path in folder.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (1, 1))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    second = one_file.pack(copy, tmp_path / "2.tar.gz")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.unpacked == second.unpacked
    with tarfile.open(first.path) as tar:
        assert {entry.mode for entry in tar if entry.isfile()} == {0o755, 0o644}


def test_the_newest_glibc_is_read_from_libraries_only(tmp_path):
    library, text = tmp_path / "a.so", tmp_path / "a.txt"
    library.write_bytes(b"\x7fELF....\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBCXX_3.4.29\0")
    text.write_bytes(b"GLIBC_2.99\0")
    assert one_file.find_newest_glibc(library) == 34 and one_file.find_newest_glibc(text) is None


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70000])
def test_the_second_sum_is_that_of_cksum(size):
    need(shutil.which("cksum"), "cksum isn't here")
    data = os.urandom(size)
    said = subprocess.run(["cksum"], input=data, capture_output=True, check=True).stdout
    assert one_file.compute_cksum([data[: size // 3], data[size // 3 :]]) == int(said.split()[0])
