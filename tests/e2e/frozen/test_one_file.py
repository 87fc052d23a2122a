"""The one-file program on a machine without Python, environment variables or network, and with little memory."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PATIENCE, URL, ServerProcess, build_script, need, wait_until
from tests.tiny_models import RECITE_WORDS

TEXT = "".join(RECITE_WORDS[1:])
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux")


def run(command: list, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
        **options,
    )


def processes_of(folder: Path) -> list[Path]:
    """Folders in /proc of processes whose program is below `folder`."""
    found = []
    for link in Path("/proc").glob("[0-9]*/exe"):
        try:
            if os.readlink(link).startswith(str(folder)):
                found.append(link.parent)
        except OSError:
            continue
    return found


# ---- showing things ------------------------------------------------------------------------------------------------


def test_version_and_help_need_nothing_at_all(bare, home, tmp_path):
    version = run(bare, "--version", cwd=tmp_path)
    assert (version.returncode, version.stderr) == (0, "")
    assert re.match(r"llama_srv \d+\.\d+\.\d+\nllama.cpp 0\.5\.0", version.stdout), version.stdout
    text = run(bare, "--help", cwd=tmp_path)
    assert text.returncode == 0 and text.stdout.startswith("usage: my llama é MODEL.gguf") or sys.platform == "win32"
    assert "--ctx-size" in text.stdout and text.stderr == ""
    nothing = run(bare, cwd=tmp_path)
    assert nothing.returncode == 2 and "no model given: my llama é model.gguf" in nothing.stderr


def test_libraries_that_cant_be_opened_are_explained_as_they_are_from_source(bare, libs_folder, tmp_path):
    shutil.copytree(libs_folder, tmp_path / "libs", symlinks=True)
    broken = tmp_path / "libs" / json.loads((libs_folder / "manifest.json").read_text())["load_order"][0]
    broken.write_bytes(bytes(broken.stat().st_size))
    result = run(bare, "--version", "--libs", tmp_path / "libs", cwd=tmp_path)
    assert f"{broken} can't be opened: it was built for another machine" in result.stdout, result.stdout


@pytest.mark.covers("F10")
def test_the_program_answers_to_the_names_of_llama_cpp(bare, built, tmp_path):
    for name in ("llama-server", "server"):
        (tmp_path / name).symlink_to(bare[-1])
        assert run([*bare[:-1], tmp_path / name], "--version").stdout.startswith("llama_srv ")
        assert run([built.folder / name], "--version").stdout.startswith("llama_srv ")


# ---- damage --------------------------------------------------------------------------------------------------------


def write_at(path: Path, place: int, byte: int) -> None:
    """Replace one byte. Closed before anything runs the file: what is open for writing can't be run."""
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))


@linux_only
@pytest.mark.parametrize("flips, cuts", [(8, 3), pytest.param(200, 20, marks=pytest.mark.long)])
def test_a_damaged_program_is_refused_and_never_unpacked(one_file, tmp_path, flips, cuts):
    data, chance = one_file.read_bytes(), random.Random(flips)
    damaged, place = tmp_path / "damaged", tmp_path / "place"
    environment = {**os.environ, "LLAMA_SRV_UNPACK": str(place)}

    def is_refused(words: str) -> bool:
        done = run([damaged], "--version", env=environment)
        return done.returncode != 0 and not done.stdout and words in done.stderr and not place.exists()

    damaged.write_bytes(data)
    damaged.chmod(0o755)
    for spot in [chance.randrange(len(data) * 8) for _ in range(flips)]:
        write_at(damaged, spot // 8, data[spot // 8] ^ 1 << spot % 8)
        assert is_refused("damaged" if spot // 8 >= 8192 else ""), spot
        write_at(damaged, spot // 8, data[spot // 8])
    for size in sorted((chance.randrange(8192, len(data)) for _ in range(cuts)), reverse=True):
        os.truncate(damaged, size)
        assert is_refused("incomplete"), size
    damaged.write_bytes(data)
    assert run([damaged], "--version", env=environment).stdout.startswith("llama_srv ")
    assert "files are unchanged" in run([damaged], "--verify", env=environment).stdout
    library = next(place.rglob("libllama*.so"))
    middle = library.stat().st_size // 2
    write_at(library, middle, library.read_bytes()[middle] ^ 1)
    assert str(library) in run([damaged], "--verify", env=environment).stderr


# ---- serving -------------------------------------------------------------------------------------------------------


@linux_only
@pytest.mark.covers("F08")
def test_one_file_is_all_it_takes(serve_frozen, recite_model, home):
    server = serve_frozen("-m", recite_model, "-t", 1)
    assert server.get("/health").json()["status"] == "ok"
    page = server.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["Content-Type"]
    script = re.search(r'src="\.?/?([\w./-]+\.js)"', page.text)[1]
    assert server.get("/" + script.lstrip("/")).status_code == 200
    events = list(server.stream("/completion", {"prompt": "count: one", "n_predict": -1, "temperature": 0}))
    assert "".join(event["content"] for event in events) == TEXT
    chat = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert chat.status_code == 200
    assert len(processes_of(home)) >= 1
    server.terminate()
    assert server.wait() == 0
    assert processes_of(home) == []
    (unpacked,) = (home / ".cache" / "llama_srv" / "programs").iterdir()
    assert sorted(path.name for path in home.parent.iterdir()) == ["bin", "elsewhere", "home"]
    assert [path.name for path in home.rglob("*") if unpacked not in (path, *path.parents)] == [
        ".cache",
        "llama_srv",
        "programs",
    ]


@linux_only
def test_every_end_leaves_nothing_behind(serve_frozen, recite_model, home):
    for end in (lambda server: server.interrupt(), lambda server: server.process.kill()):
        server = serve_frozen("-m", recite_model, "-t", 1)
        end(server)
        server.wait()
        wait_until(lambda: not processes_of(home), "all processes to end")
    assert sorted(path.name for path in home.parent.iterdir()) == ["bin", "elsewhere", "home"]


@linux_only
def test_a_killed_engine_is_started_again_and_the_stream_goes_on(serve_frozen, recite_model, home):
    server = serve_frozen("-m", recite_model, "-t", 1)

    def engines() -> list[int]:
        return [
            int(process.name)
            for process in processes_of(home)
            if b"--engine-process" in (process / "cmdline").read_bytes()
        ]

    (first,) = engines()
    stream = server.stream("/completion", {"prompt": "count: one", "n_predict": -1, "temperature": 0})
    text = next(stream)["content"]
    os.kill(first, signal.SIGKILL)
    text += "".join(event["content"] for event in stream)
    assert text == TEXT
    assert server.complete("count: one", -1)["content"] == TEXT
    (second,) = engines()
    assert second != first
    server.terminate()
    assert server.wait() == 0 and processes_of(home) == []


@linux_only
def test_a_home_of_another_user_that_cant_be_written_to(one_file, serve_frozen, recite_model, home):
    if os.getuid() != 0:
        pytest.skip("only on machines where the tests are root: they become somebody else here")
    need(shutil.which("setpriv"), "setpriv isn't here (Debian: util-linux)")
    public = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        public.chmod(0o755)
        (public / "home").mkdir(mode=0o555)
        (public / "tmp").mkdir()
        os.chown(public / "tmp", 65534, 65534)
        for source, name in ((one_file, "llama srv"), (recite_model, "model.gguf")):
            shutil.copy(source, public / name)
            (public / name).chmod(0o755)
        program = [
            "env",
            "-i",
            f"HOME={public / 'home'}",
            f"TMPDIR={public / 'tmp'}",
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            str(public / "llama srv"),
        ]
        os.chdir(public)
        server = serve_frozen("-m", public / "model.gguf", "-t", 1, program=program)
        assert server.complete("count: one", -1)["content"] == TEXT
        assert (public / "tmp" / "llama_srv-65534").is_dir() and list((public / "home").iterdir()) == []
        server.stop()
    finally:
        os.chdir(home.parent / "elsewhere")
        shutil.rmtree(public)


@linux_only
def test_little_memory_is_enough(serve_frozen, bare, recite_model):
    need(shutil.which("prlimit"), "prlimit isn't here (Debian: util-linux)")
    limit = ["prlimit", f"--as={1 << 30}", "--"]
    server = serve_frozen("-m", recite_model, "-t", 1, "-c", 256, program=[*limit, *bare])
    assert server.complete("count: one", -1)["content"] == TEXT


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket, which can be reached from another network namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


@linux_only
def test_without_any_network_it_serves_page_and_text(bare, recite_model, tmp_path, home):
    alone = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "-rn"]
    if not shutil.which("unshare") or run([*alone, "true"]).returncode:
        pytest.skip("only on systems that let a user have a network namespace")
    path = home / "s.sock"
    with ServerProcess(["-m", str(recite_model), "-t", "1", "--host", str(path)], program=[*alone, *bare]) as server:
        server.wait_for_line("ready")

        def ask(method: str, route: str, body: object = None) -> bytes:
            connection = UnixConnection(path)
            connection.request(method, route, json.dumps(body) if body else None)
            answer = connection.getresponse()
            assert answer.status == 200
            data = answer.read()
            connection.close()
            return data

        assert b"<html" in ask("GET", "/")
        assert json.loads(ask("POST", "/completion", {"prompt": "count: one", "temperature": 0}))["content"] == TEXT
        server.terminate()
        assert server.wait() == 0, server.log
    assert not path.exists()


# ---- bundles -------------------------------------------------------------------------------------------------------


@linux_only
def test_a_bundle_starts_without_arguments_and_serves_the_model_in_it(bare, recite_model, tmp_path, home):
    app = tmp_path / "my äpp"
    made = run(
        bare,
        "--bundle",
        recite_model,
        "-o",
        app,
        "--defaults",
        "port=0",
        "--defaults",
        "threads=1",
        "--defaults",
        "alias=the counter",
    )
    assert made.returncode == 0, made.stderr
    shown = run([*bare[:-1], app], "--bundle-info", "--bundle-check")
    assert "starts with: alias = the counter" in shown.stdout and shown.returncode == 0
    with ServerProcess([], program=[*bare[:-1], str(app)]) as server:
        server.url = server.wait_for_line(URL).group().rstrip("/.")
        server.wait_ready()
        assert server.complete("count: one", -1)["content"] == TEXT
        assert server.get("/v1/models").json()["data"][0]["id"] == "the counter"
        mapped = [(process / "maps").read_bytes() for process in processes_of(home)]
        assert any(os.fsencode(app) in text for text in mapped), "the model isn't mapped from the bundle"
    out = run([*bare[:-1], app], "--unbundle", tmp_path / "out")
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "out" / recite_model.name).read_bytes() == recite_model.read_bytes()
    assert (tmp_path / "out" / "llama-srv").read_bytes() == Path(bare[-1]).read_bytes()


@linux_only
def test_a_side_file_beside_the_program_is_its_bundle(bare, built, recite_model, tmp_path):
    app = tmp_path / "app"
    made = run(bare, "--bundle", recite_model, "-o", app, "--side-file", "--defaults", "n-predict=3")
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.glob("app*")) == ["app", "app.bundle"]
    assert "n-predict = 3" in run([*bare[:-1], app], "--bundle-info").stdout
    refused = run([built.folder / "llama-srv"], "--bundle", recite_model, "-o", tmp_path / "x")
    assert refused.returncode == 2 and "--base FILE" in refused.stderr


# ---- what was built ------------------------------------------------------------------------------------------------


def test_what_is_given_away_is_complete_and_as_the_sums_say(built):
    contents, common = build_script("contents"), build_script("common")
    bill = json.loads((built.folder / contents.SBOM).read_text(encoding="utf-8"))
    listed = {file["name"]: file["hashes"][0]["content"] for row in bill["components"] for file in row["components"]}
    for path in built.folder.rglob("*"):
        name = path.relative_to(built.folder).as_posix()
        if path.is_file() and not path.is_symlink() and name != contents.SBOM:
            assert listed[name] == common.sha256_of(path), name
    text = (built.folder / contents.NOTICES).read_text(encoding="utf-8")
    assert all(row["name"] in text for row in bill["components"] if row["name"] != contents.OUR_OWN)
    sums = dict(reversed(line.split("  ")) for line in (built.one_file.parent / "SHA256SUMS").read_text().splitlines())
    assert {built.one_file.name, built.archive.name} <= set(sums)
    assert all(common.sha256_of(built.one_file.parent / name) == digest for name, digest in sums.items())
    libraries = [path.name for path in built.folder.rglob("*") if re.match(r"lib(llama|ggml)\b", path.name)]
    assert len(libraries) == len(set(libraries)), "a library is in there twice"


@linux_only
def test_no_file_asks_for_a_newer_glibc_only_because_of_a_name(built):
    elf_versions = build_script("elf_versions")
    copies = [path for path in built.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path.name for path in copies if elf_versions.lower(path)] == []


def test_two_builds_are_the_same(built, libs_folder, tmp_path):
    build_exe, common = build_script("build_exe"), build_script("common")
    second = build_exe.ensure(libs_folder, tmp_path / "again", common.Progress(quiet=True))
    assert common.sha256_of(second.archive) == common.sha256_of(built.archive)
    assert common.sha256_of(second.one_file) == common.sha256_of(built.one_file)
