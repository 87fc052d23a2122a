"""Bundles: places of the parts, refusals, and unpacking what was packed. Small stand-ins for program and model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server import launch, program
from server.errands import bundle, bundle_make, one_shot
from server.errands.bundle import ALIGN, Bundle, BundleError
from server.model_sources import find_model, find_projector
from server.options.groups import group
from server.options.parser import OptionError, parse

PROGRAM = b"#!/bin/sh\nexit 0\n" + bytes(5000)


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "llama-srv"
    path.write_bytes(PROGRAM)
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small model ü.gguf"
    path.write_bytes(b"GGUF" + os.urandom(3 * ALIGN + 17))
    return path


@pytest.fixture
def mmproj(tmp_path):
    path = tmp_path / "eyes.gguf"
    path.write_bytes(b"GGUF" + os.urandom(100))
    return path


def make(base, model, mmproj=None, defaults=(), name="app"):
    path = model.with_name(name)
    bundle_make.make(base, path, model, mmproj, defaults, "llama_srv 1.2.3")
    return bundle.read(path)


def test_what_goes_in_is_found_aligned_and_comes_out(base, model, mmproj, tmp_path):
    made = make(base, model, mmproj, (("ctx-size", "4096"), ("open", "on")))
    assert os.access(made.path, os.X_OK) and made.path.read_bytes().startswith(PROGRAM)
    assert (made.program_size, made.made_by) == (len(PROGRAM), "llama_srv 1.2.3")
    assert made.defaults == (("ctx-size", "4096"), ("open", "on"))
    data = made.path.read_bytes()
    for part, source in ((made.find_part("model"), model), (made.find_part("mmproj"), mmproj)):
        assert part.offset % ALIGN == 0 and part.name == source.name
        assert data[part.offset : part.offset + part.size] == source.read_bytes()
    bundle_make.check(made)
    paths = bundle_make.take_apart(made, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == [PROGRAM, model.read_bytes(), mmproj.read_bytes()]
    assert os.access(paths[0], os.X_OK)


def test_the_side_file_begins_with_the_model_so_that_any_gguf_reader_takes_it(base, model):
    program, side = bundle_make.make_with_side_file(base, model.with_name("app.exe"), model, None, (), "x")
    assert side.name == "app.bundle" and program.read_bytes() == PROGRAM
    assert side.read_bytes().startswith(model.read_bytes())
    found = bundle.find(program)
    assert found.path == side and (found.program_size, found.find_part("model").offset) == (0, 0)


def test_a_bundle_is_a_base_without_its_model(base, model, mmproj):
    first = make(base, model)
    second = make(first.path, mmproj, name="other")
    assert second.program_size == len(PROGRAM)
    assert [part.name for part in second.parts] == [mmproj.name]


def test_a_program_or_a_model_is_no_bundle(base, model, tmp_path):
    assert bundle.read(base) is None and bundle.read(model) is None and bundle.read(tmp_path / "none") is None
    (tmp_path / "tiny").write_bytes(b"x")
    assert bundle.read(tmp_path / "tiny") is None and bundle.read(tmp_path) is None


def test_damage_is_told_apart(base, model, tmp_path):
    made = make(base, model)
    data = bytearray(made.path.read_bytes())
    data[made.find_part("model").offset + 100] ^= 1
    made.path.write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged \(small model ü.gguf\): download it again"):
        bundle_make.check(bundle.read(made.path))
    with pytest.raises(BundleError, match="damaged"):
        bundle_make.take_apart(made, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["llama-srv"]
    index = data.rindex(b'"format"')
    data[index + 2] ^= 1
    made.path.write_bytes(data)
    with pytest.raises(BundleError, match="damaged index"):
        bundle.read(made.path)
    made.path.write_bytes(data[:1000] + data[-bundle.TRAILER.size :])
    with pytest.raises(BundleError, match="cut off"):
        bundle.read(made.path)


def test_the_check_covers_the_program(base, model, tmp_path):
    made = make(base, model)
    data = bytearray(made.path.read_bytes())
    data[len(PROGRAM) // 2] ^= 4
    made.path.write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged \(the program\): download it again"):
        bundle_make.check(bundle.read(made.path))
    with pytest.raises(BundleError, match="damaged"):
        bundle_make.take_apart(made, tmp_path / "out")


def test_a_bundle_without_its_end_is_incomplete_not_a_program_without_a_model(base, model, tmp_path):
    start = b"#!/bin/sh\nmain() {\nhead=%d size=%d glibc=34\n" % (60, len(PROGRAM) - 60)
    base.write_bytes(start.ljust(60) + PROGRAM[60:])
    made, whole = make(base, model), model.with_name("app").read_bytes()
    assert bundle.find(base) is None
    for size in (len(PROGRAM) + 1, made.find_part("model").offset + 1000, len(whole) - 1):
        made.path.write_bytes(whole[:size])
        for look in (bundle.read, bundle.find, one_shot.place_of):
            with pytest.raises(BundleError, match="app is incomplete"):
                look(made.path)
    program, side = bundle_make.make_with_side_file(base, tmp_path / "two", model, None, (), "x")
    side.write_bytes(side.read_bytes()[:-1])
    with pytest.raises(BundleError, match="two.bundle is incomplete"):
        bundle.find(program)


def test_what_cant_be_made_says_why_and_leaves_nothing(base, model, tmp_path):
    before = sorted(tmp_path.iterdir())
    target = tmp_path / "app"
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        ((base, target, base), "not a GGUF file"),
        ((model, target, model), "not the one-file program"),
        ((base, tmp_path / "no" / "app", model), "can't be written"),
        ((tmp_path / "none", target, model), "can't be read"),
    ):
        with pytest.raises(BundleError, match=words):
            bundle_make.make(arguments[0], arguments[1], arguments[2], None, (), "x")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "folder"])


def test_taking_apart_never_overwrites(base, model):
    made = make(base, model)
    with pytest.raises(BundleError, match="exists already"):
        bundle_make.take_apart(made, model.parent)
    assert model.read_bytes().startswith(b"GGUF")


def test_a_part_for_a_library_that_needs_a_path_is_unpacked_once(base, model, mmproj, tmp_path):
    made = make(base, model, mmproj)
    path = bundle_make.extract(made, made.find_part("mmproj"), tmp_path / "cache")
    assert path.read_bytes() == mmproj.read_bytes()
    stamp = path.stat().st_mtime_ns
    assert bundle_make.extract(made, made.find_part("mmproj"), tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == stamp


def test_a_newer_format_names_the_version_that_made_it(base, model, monkeypatch):
    monkeypatch.setattr(bundle, "FORMAT", 1)
    made = make(base, model)
    monkeypatch.setattr(bundle, "FORMAT", 0)
    with pytest.raises(BundleError, match="newer version of this program .llama_srv 1.2.3"):
        bundle.read(made.path)


# ---- the options ---------------------------------------------------------------------------------------------------


def run(*argv):
    options = group(parse([str(word) for word in argv], {}))
    return one_shot.run(options.errands, options.model.sources, None, "1.2.3")


def test_options_make_show_check_and_open_up(base, model, tmp_path, capsys):
    output = tmp_path / "my app"
    assert (
        run("--bundle", model, "--base", base, "-o", output, "--defaults", "ctx-size=64", "--defaults", "--open") == 0
    )
    assert str(output) in capsys.readouterr().out
    assert run("-m", output, "--bundle-info", "--bundle-check") == 0
    text = capsys.readouterr().out
    assert "starts with: ctx-size = 64" in text and "starts with: open = on" in text and "are unchanged" in text
    assert run("-m", output, "--unbundle", tmp_path / "out") == 0
    assert (tmp_path / "out" / model.name).read_bytes() == model.read_bytes()
    place = one_shot.place_of(str(output))
    assert (place.name, place.size) == (model.name, model.stat().st_size) and place.offset % ALIGN == 0
    assert one_shot.place_of(str(model)) == one_shot.ModelPlace(str(model))


def test_options_that_cant_be_followed_say_what_to_do(base, model):
    for argv, words in (
        (("--bundle", model), "--base FILE"),
        (("--bundle", model, "--base", base, "--defaults", "ctx-sise=1"), "no option ctx-sise"),
        (("--bundle", model, "--base", base, "--defaults", "bundle=x"), "can be set on the command line only"),
        (("-m", model, "--bundle-info"), "is not a bundle"),
        (("--bundle-info",), "holds no model"),
    ):
        with pytest.raises(BundleError, match=words):
            run(*argv)
    with pytest.raises(OptionError, match="no file 'nothing.gguf'"):
        run("--bundle", "nothing.gguf")


def test_what_a_bundle_starts_with_counts_least(tmp_path):
    file = tmp_path / "llama.ini"
    file.write_text("parallel = 3\n")
    bundled = (("ctx-size", "64"), ("parallel", "2"), ("n-predict", "5"), ("open", "on"))
    options = parse(["-c", "128", "--config", str(file)], {"LLAMA_ARG_N_PREDICT": "7"}, bundled=bundled)
    assert (options.ctx_size, options.parallel, options.n_predict, options.open) == (128, 3, 7, True)


# ---- the program's own file ----------------------------------------------------------------------------------------


def test_only_a_frozen_program_looks_for_its_bundle(base, model, monkeypatch):
    made = make(base, model)
    monkeypatch.setenv("LLAMA_SRV_FILE", str(made.path))
    assert launch.find_own_bundle() is None and program.describe_program() == "python llama_srv.py"
    monkeypatch.setattr("sys.frozen", True, raising=False)
    assert launch.find_own_bundle() == made and program.describe_program() == "app"
    if os.name == "posix":
        assert program.is_one_file()


def test_the_projector_in_a_bundle_goes_with_its_model(tiny_spm_model, mmproj_gemma3, base, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    made = bundle_make.make(base, tmp_path / "app", tiny_spm_model, mmproj_gemma3, (), "x")

    def place_of(own: Bundle | None, *argv: str) -> one_shot.ModelPlace:
        options = group(parse(argv, {}))
        return find_model(options.model, options.downloads, own)[0]

    def projector(place: one_shot.ModelPlace, *argv: str) -> str:
        options = group(parse(argv, {}))
        return find_projector(options.model.sources, options.downloads, "no libraries", place)

    by_name = ("-m", str(made.path))
    place = place_of(None, *by_name)
    assert Path(projector(place, *by_name)).read_bytes() == mmproj_gemma3.read_bytes()
    assert projector(place, "--no-mmproj") == ""
    assert projector(place, "--mmproj", str(mmproj_gemma3)) == str(mmproj_gemma3)
    alone = one_shot.place_of(str(tiny_spm_model))
    assert projector(alone, *by_name) == ""
    assert (place_of(made).offset, place.name) == (place.offset, tiny_spm_model.name)
