"""The first look at a model file: what can't be a model is refused in one line, before anything is loaded."""

from __future__ import annotations

import os
import struct

import pytest

from server.engine.model_file import check_model_file
from server.errors import ApiError

GOOD = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)


def refusal(path) -> str:
    with pytest.raises(ApiError) as caught:
        check_model_file(str(path))
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("version", [2, 3])
def test_a_gguf_header_is_accepted(tmp_path, version):
    path = tmp_path / "model.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", version, 5, 7) + b"rest")
    check_model_file(str(path))


def test_a_real_model_is_accepted(recite_model):
    check_model_file(str(recite_model))


def test_a_file_that_is_not_there(tmp_path):
    assert "no model file" in refusal(tmp_path / "nothing.gguf")


def test_a_folder(tmp_path):
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"GG", b"\x7fELF" + bytes(100), b"ggml" + bytes(100), b"<html>" + bytes(100)])
def test_a_file_that_is_no_gguf(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert "not a GGUF file" in refusal(path)


@pytest.mark.parametrize("n_bytes", [4, 8, 23])
def test_a_header_that_is_cut_off(tmp_path, n_bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD[:n_bytes])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("header", [struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), struct.pack("<4sIQQ", b"GGUF", 4, 0, 0),
                                    struct.pack(">4sIQQ", b"GGUF", 3, 0, 0)])
def test_a_version_that_nobody_here_can_read(tmp_path, header):
    path = tmp_path / "model.gguf"
    path.write_bytes(header)
    assert "version" in refusal(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)

    def refuse(*args, **options):
        raise PermissionError(13, os.strerror(13))
    monkeypatch.setattr("builtins.open", refuse)
    assert "can't be read" in refusal(path)
