"""Files of one folder; no path leads out of it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from server.web.http1.head import Headers
from server.web.static import StaticFiles, can_accept_gzip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`public` with a few files, beside a secret."""
    public = tmp_path / "public"
    (public / "lib").mkdir(parents=True)
    (public / "index.html").write_text("<p>home")
    (public / "lib" / "a b.js").write_text("1")
    (public / "lib" / "index.html").write_text("<p>lib")
    (public / ".env").write_text("hidden")
    (public / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "public2").mkdir()
    (tmp_path / "public2" / "secret").write_text("secret")
    return public


def get(folder: Path, path: str, **headers: str):
    return StaticFiles(folder).respond(path, Headers({k.replace("_", "-"): v for k, v in headers.items()}))


@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        ("/", b"<p>home", "text/html; charset=utf-8"),
        ("/index.html", b"<p>home", "text/html; charset=utf-8"),
        ("/lib/", b"<p>lib", "text/html; charset=utf-8"),
        ("/lib/a b.js", b"1", "text/javascript; charset=utf-8"),
        ("/x.gguf", b"GGUF", "application/octet-stream"),
    ],
)
def test_files_are_served_with_their_type(folder, path, body, content_type):
    response = get(folder, path)
    assert (response.status, response.body, response.headers["Content-Type"]) == (200, body, content_type)
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/lib",
        "/none",
        "/.env",
        "/lib/..",
        "/../secret",
        "/lib/../../secret",
        "/..",
        "/.",
        "/./index.html",
        "//index.html",
        "/lib//a b.js",
        "/..\\secret",
        "/lib\\a b.js",
        "\\..\\secret",
        "/C:/secret",
        "/c:secret",
        "/index.html\0",
        "/\0",
        "/index.html:stream",
        "/index.html.",
        "/index.html ",
        "/con",
        "/NUL.txt",
        "/com1",
        "/COM\u00b9.log",
        "/aux .txt",
        "",
        "index.html",
        "*",
        "/../public2/secret",
        "/" + "a" * 5000,
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/\u2025/secret",
        "/\ud800",
    ],
)
def test_no_other_spelling_finds_anything(folder, path):
    assert get(folder, path) is None


def test_an_absolute_path_stays_inside(folder):
    assert get(folder, f"/{folder.parent / 'secret'}") is None
    assert get(folder, str(folder.parent / "secret")) is None


@pytest.mark.skipif(os.name == "nt", reason="not on Windows: links need rights there")
def test_links_and_special_files_do_not_lead_out(folder):
    os.symlink(folder.parent / "secret", folder / "link.txt")
    os.symlink(folder.parent, folder / "up")
    os.symlink(folder / "loop", folder / "loop")
    os.symlink(folder / "index.html", folder / "inside.html")
    os.mkfifo(folder / "pipe")
    for path in ("/link.txt", "/up/secret", "/loop", "/pipe"):
        assert get(folder, path) is None
    assert get(folder, "/inside.html").body == b"<p>home"


def test_a_known_file_is_not_sent_again(folder):
    etag = get(folder, "/").headers["ETag"]
    for known in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        response = get(folder, "/", If_None_Match=known)
        assert (response.status, response.body, response.headers["ETag"]) == (304, b"", etag)
    assert get(folder, "/", If_None_Match='"other"').status == 200


def test_a_changed_file_has_another_etag(folder):
    before = get(folder, "/").headers["ETag"]
    (folder / "index.html").write_text("<p>home again")
    assert get(folder, "/").headers["ETag"] != before


def test_a_prefix_is_part_of_every_path(folder):
    files = StaticFiles(folder, "/llm/")
    assert files.respond("/llm/", Headers()).body == b"<p>home"
    assert files.respond("/", Headers()) is None
    assert files.respond("/llmindex.html", Headers()) is None


def test_a_missing_folder_has_no_files(tmp_path):
    assert get(tmp_path / "nothing", "/") is None


def test_long_text_is_compressed_for_those_who_take_it(folder):
    script = "let a = 1;\n" * 1000
    (folder / "long.mjs").write_text(script)
    (folder / "long.png").write_bytes(b"\0" * 5000)
    packed = get(folder, "/long.mjs", Accept_Encoding="br, gzip;q=0.5")
    assert gzip.decompress(packed.body).decode() == script and len(packed.body) < 500
    assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert packed.headers["Content-Type"] == "text/javascript; charset=utf-8"
    plain = get(folder, "/long.mjs")
    assert (plain.body.decode(), plain.headers.get("Content-Encoding")) == (script, None)
    assert plain.headers["Vary"] == "Accept-Encoding"
    for path in ("/", "/long.png"):  # too short, nothing to gain
        assert "Content-Encoding" not in get(folder, path, Accept_Encoding="gzip").headers


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("x-gzip", True),
        ("gzip;q=0.001", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        (";q=1,,", False),
    ],
)
def test_accept_encoding_is_understood(header, expected):
    assert can_accept_gzip(header) is expected


def test_what_the_users_folder_lacks_comes_from_the_builtin_one(folder, tmp_path):
    builtin = tmp_path / "builtin"
    builtin.mkdir()
    (builtin / "completion.js").write_text("export {}")
    (builtin / "index.html").write_text("<p>builtin")
    (tmp_path / "builtin2").mkdir()
    (tmp_path / "builtin2" / "secret").write_text("secret")
    files = StaticFiles(folder, builtin=builtin)
    assert files.respond("/", Headers()).body == b"<p>home"
    assert "Content-Security-Policy" not in files.respond("/", Headers()).headers
    script = files.respond("/completion.js", Headers())
    assert script.body == b"export {}"
    assert script.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    for path in ("/../builtin2/secret", "/../secret", "/none"):
        assert files.respond(path, Headers()) is None


def test_the_builtin_page_may_not_be_framed(folder):
    response = StaticFiles(folder, builtin=folder).respond("/", Headers())
    assert response.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
