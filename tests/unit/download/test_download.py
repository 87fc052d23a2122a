"""Downloading one file by its URL, from a server on 127.0.0.1 that misbehaves.

Runs in the test process. Nothing sleeps: waits between attempts are recorded instead. `test_download_hub` tests names
of repositories, `test_download_local` the disk, the lock and the progress.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable

import pytest

from server.download import DownloadError, Progress, transfer
from server.download.client import Redirects, describe_url
from tests.support import ROOT
from tests.unit.download.fake_site import Site, Thing, no_proxy, other, site, world  # noqa: F401

MODEL = b"GGUF" + bytes(range(256)) * 1200
OTHER = b"GGUF" + bytes(reversed(range(256))) * 1200
HALF = len(MODEL) // 2
SHA = hashlib.sha256(MODEL).hexdigest()
CERTIFICATE = ROOT / "tests" / "api" / "localhost_tls.pem"


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


# -- when all goes well


@pytest.mark.covers("C06")
def test_a_url_is_downloaded_once(site, world):
    url = site.put("/dir/tiny.gguf", MODEL)
    path = world.fetch(url)
    assert path.read_bytes() == MODEL and path.name == "tiny.gguf" and world.cache in path.parents
    assert world.files() == {"tiny.gguf", "tiny.gguf.sha256"}
    assert path.with_name("tiny.gguf.sha256").read_text() == f"{SHA}  tiny.gguf\n"
    assert world.fetch(url) == path
    assert len(site.seen) == 1 and "range" not in site.seen[0].headers and world.waits == []


def test_files_of_one_name_at_two_addresses_are_two(site, world):
    first, second = (site.put(f"/{name}/model.gguf", data) for name, data in (("a", MODEL), ("b", OTHER)))
    assert world.fetch(first).read_bytes() == MODEL
    assert world.fetch(second).read_bytes() == OTHER


def test_the_user_may_say_where_it_goes(site, world, tmp_path):
    place = tmp_path / "my" / "model.gguf"
    url = site.put("/x.gguf", MODEL)
    assert world.fetch(url, path=place) == place
    assert place.read_bytes() == MODEL and os.listdir(place.parent) == ["model.gguf"]
    assert world.fetch(url, path=place) == place and len(site.seen) == 1


def test_a_model_in_several_files_is_fetched_whole(site, world, tmp_path):
    for number in (1, 2, 3):
        site.put(f"/big-0000{number}-of-00003.gguf", MODEL + bytes([number]))
    path = world.fetch(site.url + "/big-00002-of-00003.gguf")
    assert path.name == "big-00001-of-00003.gguf"
    for number in (1, 2, 3):
        assert path.with_name(f"big-0000{number}-of-00003.gguf").read_bytes()[-1] == number
    place = tmp_path / "there" / "m.gguf"
    path = world.fetch(site.url + "/big-00001-of-00003.gguf", path=place)
    assert path.parent == place.parent and len(os.listdir(place.parent)) == 3


def test_a_chunked_answer_needs_no_length(site, world):
    assert world.fetch(site.put("/x.gguf", MODEL, length="chunked")).read_bytes() == MODEL


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, other, world, status):
    url = site.redirect("/x.gguf", other.put("/y.gguf", MODEL), status)
    path = world.fetch(url)
    assert path.name == "x.gguf" and path.read_bytes() == MODEL


def test_addresses_with_spaces_and_foreign_letters_work(site, world):
    site.put("/ein%20gr%C3%B6%C3%9Feres%20Modell.gguf", MODEL)
    path = world.fetch(site.url + "/ein größeres%20Modell.gguf")
    assert path.name == "ein größeres Modell.gguf" and path.read_bytes() == MODEL


def test_a_proxy_is_honoured(site, world, monkeypatch):
    site.put("http://models.example/x.gguf", MODEL)
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy")
    assert world.fetch("http://models.example/x.gguf").read_bytes() == MODEL
    assert site.seen[0].headers["host"] == "models.example"


# -- connections that break


@pytest.mark.covers("C06")
def test_a_broken_connection_is_continued_where_it_broke(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[HALF])
    assert world.fetch(url).read_bytes() == MODEL
    first, second = site.requests("/x.gguf")
    assert second["range"] == f"bytes={HALF}-" and second["if-range"] == site.things["/x.gguf"].tag
    assert site.n_sent == len(MODEL) and world.waits == [1.0]
    assert world.files() == {"x.gguf", "x.gguf.sha256"}


def test_any_number_of_breaks_is_survived_as_long_as_something_arrives(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[1, 2, 3] + [5000] * 20)
    assert world.fetch(url).read_bytes() == MODEL
    assert site.n_sent == len(MODEL) and set(world.waits) == {1.0}


def test_a_server_without_etag_is_continued_by_its_date(site, world):
    date = "Sun, 22 Nov 2026 05:00:00 GMT"
    url = site.put("/x.gguf", MODEL, etag=None, headers={"Last-Modified": date}, cuts=[HALF])
    assert world.fetch(url).read_bytes() == MODEL
    assert site.seen[1].headers["if-range"] == date and site.n_sent == len(MODEL)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_what_nobody_can_tell_to_be_the_same_file_is_fetched_from_the_start(site, world, etag):
    url = site.put("/x.gguf", MODEL, etag=etag, cuts=[HALF])
    assert world.fetch(url).read_bytes() == MODEL
    assert "range" not in site.seen[1].headers


def test_with_a_checksum_it_is_continued_without_a_tag(site, world):
    url = site.put("/x.gguf", MODEL, etag=None, cuts=[HALF])
    assert world.fetch(url, sha256=SHA).read_bytes() == MODEL
    assert site.n_sent == len(MODEL)


def test_a_server_that_never_sends_a_range_is_asked_for_the_whole(site, world):
    url = site.put("/x.gguf", MODEL, has_ranges=False, cuts=[HALF, HALF + 10, HALF + 5])
    assert world.fetch(url).read_bytes() == MODEL
    assert len(site.seen) == 4


def test_a_server_that_never_gets_further_is_given_up_and_what_came_is_kept(site, world):
    url = site.put("/x.gguf", MODEL, has_ranges=False, cuts=[HALF] * 100)
    message = world.refusal(url)
    assert "run this again to continue" in message
    assert len(site.seen) <= 5 and world.waits == [1.0, 2.0, 4.0]
    assert world.files() == {"x.gguf.part", "x.gguf.part.json"}


@pytest.mark.covers("D08")
def test_the_next_run_goes_on_where_the_last_one_gave_up(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[HALF, 0, 0, 0, 0, 0])
    world.refusal(url)
    site.things["/x.gguf"].cuts.clear()
    n_before = len(site.seen)
    site.things["/x.gguf"].cuts += [0] * 4
    world.refusal(url)
    assert len(site.seen) == n_before + 4  # what an earlier run has brought is no progress of this one
    assert world.fetch(url).read_bytes() == MODEL
    assert site.seen[n_before].headers["range"] == f"bytes={HALF}-" and site.n_sent == len(MODEL)


def test_ctrl_c_keeps_what_came(site, world, monkeypatch):
    url = site.put("/x.gguf", MODEL)
    monkeypatch.setattr(transfer, "BLOCK", 4096)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "show", interrupt)
        world.fetch(url)
    [part] = world.cache.rglob("*.part")
    size = part.stat().st_size
    assert 0 < size < len(MODEL)
    assert world.fetch(url).read_bytes() == MODEL
    assert site.seen[1].headers["range"] == f"bytes={size}-"


def test_a_crash_between_the_last_byte_and_the_name_costs_nothing(site, world, monkeypatch):
    url = site.put("/x.gguf", MODEL)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer.os, "replace", interrupt)
        world.fetch(url)
    assert world.fetch(url).read_bytes() == MODEL
    assert len(site.seen) == 1


def test_a_part_without_its_note_is_not_trusted(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[HALF, 0, 0, 0, 0, 0])
    world.refusal(url)
    [note] = world.cache.rglob("*.part.json")
    good = json.loads(note.read_text())
    damaged = [
        json.dumps(good | change)
        for change in ({"url": 1}, {"size": "x"}, {"size": None, "validator": 5}, {"sha256": None}, {"validator": []})
    ]
    for text in ("", "[]", "{}", "\0", *damaged):
        note.write_text(text)
        part = note.with_name("x.gguf.part")
        part.write_bytes(OTHER[:HALF])
        site.things["/x.gguf"].cuts[:] = [None]
        path = world.fetch(url)
        assert path.read_bytes() == MODEL
        path.unlink()


def test_a_part_from_another_address_is_not_continued(site, world, tmp_path):
    place = tmp_path / "m.gguf"
    world.refusal(site.put("/x.gguf", MODEL, etag='"same"', cuts=[HALF, 0, 0, 0, 0]), path=place)
    assert world.fetch(site.put("/y.gguf", OTHER, etag='"same"'), path=place).read_bytes() == OTHER
    assert "range" not in site.requests("/y.gguf")[0] and os.listdir(tmp_path) == ["m.gguf"]


def test_a_wrong_checksum_of_one_run_does_not_spoil_the_next(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[HALF, 0, 0, 0, 0])
    world.refusal(url, sha256="1" * 64)
    assert world.fetch(url, sha256=SHA).read_bytes() == MODEL
    assert site.n_sent == len(MODEL)


def test_an_unfinished_chunked_answer_is_noticed(site, world):
    url = site.put("/x.gguf", MODEL, length="chunked", cuts=[HALF, len(MODEL) // 4])
    assert world.fetch(url).read_bytes() == MODEL
    assert len(site.seen) == 3


def test_a_server_that_is_busy_is_asked_again_when_it_wants(site, world):
    url = site.put("/x.gguf", MODEL, statuses=[(503, {"Retry-After": "7"}), (429, {"Retry-After": "junk"}), (500, {})])
    assert world.fetch(url).read_bytes() == MODEL
    assert world.waits == [7.0, 2.0, 4.0]


def test_a_server_that_stays_busy_is_given_up(site, world):
    message = world.refusal(site.put("/x.gguf", MODEL, statuses=[(503, {"Retry-After": "99999"})] * 50))
    assert "503" in message and "try later" in message
    assert len(site.seen) == 4 and max(world.waits) == 60 and world.files() == set()


def test_a_server_that_is_not_there_is_one_line(world):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        message = world.refusal(f"http://127.0.0.1:{unused.getsockname()[1]}/x.gguf")
    assert "can't be reached" in message and len(world.waits) == 3


def test_an_unknown_host_is_not_waited_for(world, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = world.refusal("http://nowhere.example/x.gguf")
    assert "nowhere.example can't be resolved" in message and world.waits == []


def test_a_server_that_speaks_no_http_is_one_line(world):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        message = world.refusal(f"http://127.0.0.1:{listener.getsockname()[1]}/x.gguf")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert "broke" in message or "reached" in message


# -- files that change in between


def swap(data: bytes, at_request: int = 2) -> Callable[[Thing], None]:
    """For `on_request`: from that request on the thing is another one."""
    n_seen = 0

    def on_request(thing: Thing) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == at_request:
            thing.data = data

    return on_request


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heeds_if_range": False},
        {"has_ranges": False},
        {"etag": None},
        {
            "heeds_if_range": False,
            "etag": None,
            "headers": {"Last-Modified": "Sun, 22 Nov 2026 05:00:00 GMT"},
            "partial_headers": {"Last-Modified": "Sun, 22 Nov 2026 06:00:00 GMT"},
        },
    ],
    ids=str,
)
def test_a_file_that_was_replaced_in_between_is_fetched_anew(site, world, options):
    url = site.put("/x.gguf", MODEL, cuts=[HALF], on_request=swap(OTHER), **options)
    assert world.fetch(url).read_bytes() == OTHER


@pytest.mark.parametrize("new", [OTHER[: HALF // 2], OTHER[:HALF], OTHER + OTHER], ids=["shorter", "as far", "longer"])
def test_a_file_of_another_length_is_fetched_anew(site, world, new):
    url = site.put("/x.gguf", MODEL, etag='"same"', heeds_if_range=False, cuts=[HALF], on_request=swap(new))
    assert world.fetch(url).read_bytes() == new


def test_pieces_of_two_files_under_one_tag_are_found_out_by_the_checksum(site, world):
    sha256 = hashlib.sha256(OTHER).hexdigest()
    url = site.put("/x.gguf", MODEL, etag='"same"', cuts=[HALF], on_request=swap(OTHER))
    assert world.fetch(url, sha256=sha256).read_bytes() == OTHER
    assert "range" in site.seen[1].headers and "range" not in site.seen[2].headers


def test_a_checksum_that_changed_in_between_stops_the_continuing(site, world):
    new = hashlib.sha256(OTHER).hexdigest()
    url = site.put(
        "/x.gguf",
        MODEL,
        etag='"same"',
        cuts=[HALF],
        headers={"X-Linked-Etag": SHA},
        partial_headers={"X-Linked-Etag": new},
    )

    def replace(thing):
        if len(site.seen) == 3:
            thing.data, thing.headers = OTHER, {"X-Linked-Etag": new}

    site.things["/x.gguf"].on_request = replace
    assert world.fetch(url).read_bytes() == OTHER
    assert any("another version of the file" in line for line in world.said)


@pytest.mark.parametrize(
    "options",
    [
        {"shift": 1},
        {"shift": -1},
        {"partial_headers": {"Content-Range": None}},
        {"partial_headers": {"Content-Range": "bytes 0-9/*"}},
        {"partial_headers": {"Content-Range": "junk"}},
    ],
    ids=str,
)
def test_a_wrong_part_is_never_appended(site, world, options):
    url = site.put("/x.gguf", MODEL, cuts=[HALF], **options)
    assert world.fetch(url).read_bytes() == MODEL
    assert "range" not in site.seen[-1].headers


def test_a_file_that_was_whole_all_along_is_recognised(site, world):
    # all bytes came, but not the end of the chunked coding; the server then says that nothing is left
    sums = {"X-Linked-Etag": f'"{SHA}"'}
    n_chunked = len(b"%x\r\n" % (len(MODEL) // 2)) * 2 + len(MODEL) + 2
    url = site.put("/x.gguf", MODEL, length="chunked", cuts=[n_chunked], headers=sums)
    assert world.fetch(url).read_bytes() == MODEL
    assert site.seen[1].headers["range"] == f"bytes={len(MODEL)}-" and len(site.seen) == 2


# -- servers that lie


def test_a_promise_of_more_than_there_is_is_found_out(site, world):
    message = world.refusal(site.put("/x.gguf", MODEL, length=str(len(MODEL) + 1000), has_ranges=False))
    assert "ended after" in message and len(site.seen) <= 5


def test_a_promise_of_more_is_found_out_with_ranges_too(site, world):
    assert "another version of the file" in world.refusal(site.put("/x.gguf", MODEL, length=str(len(MODEL) + 1000)))
    assert len(site.seen) <= 10


def test_a_promise_of_less_is_found_out_by_the_checksum(site, world):
    message = world.refusal(site.put("/x.gguf", MODEL, length=str(HALF)), sha256=SHA)
    assert "sha256" in message and world.files() == set()


@pytest.mark.parametrize("length", ["none", "-5", "many", "1e9"])
def test_without_a_length_only_a_checksum_can_tell_the_end(site, world, length):
    url = site.put("/x.gguf", MODEL, length=length)
    assert "the file's length" in world.refusal(url)
    assert world.fetch(url, sha256=SHA).read_bytes() == MODEL


def test_without_a_length_a_cut_off_file_is_not_taken_for_whole(site, world):
    url = site.put("/x.gguf", MODEL, length="none", cuts=[HALF])
    assert world.fetch(url, sha256=SHA).read_bytes() == MODEL
    assert len(site.seen) == 2


def test_a_packed_answer_is_refused(site, world):
    message = world.refusal(site.put("/x.gguf", MODEL, headers={"Content-Encoding": "gzip"}))
    assert "compresses the file (gzip)" in message and site.seen[0].headers["accept-encoding"] == "identity"


def test_a_web_page_is_refused_at_once(site, world):
    url = site.put("/x.gguf", b"<!DOCTYPE html>" + bytes(5_000_000), headers={"Content-Type": "text/html"})
    assert "/resolve/" in world.refusal(url) and world.files() == set()


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"GGU", b"G", b""])
def test_what_is_not_gguf_is_refused(site, world, data):
    assert "not a GGUF file" in world.refusal(site.put("/x.gguf", data)) and world.files() == set()


@pytest.mark.parametrize(
    "status, words",
    [
        (404, "doesn't exist"),
        (410, "doesn't exist"),
        (401, "is denied"),
        (403, "is denied"),
        (400, "answers 400"),
        (418, "answers 418"),
        (204, "GGUF"),
        (304, "answers 304"),
        (300, "answers 300"),
    ],
)
def test_a_refusal_is_one_line_and_not_repeated(site, world, status, words):
    message = world.refusal(site.put("/x.gguf", status=status))
    assert words in message and len(site.seen) == 1 and world.files() == set()


def test_redirects_in_a_circle_end(site, world):
    site.redirect("/a.gguf", site.url + "/b.gguf")
    site.redirect("/b.gguf", site.url + "/a.gguf")
    assert "answers 302" in world.refusal(site.url + "/a.gguf") and len(site.seen) < 30


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x", "http://[::1/x", "http://127.0.0.1:99999999/x"]
)
def test_redirects_to_strange_places_are_not_followed(site, world, to):
    assert world.refusal(site.redirect("/x.gguf", to)) and len(site.seen) == 1


@pytest.mark.parametrize("host", ["a b", "a%20b", "127.0.0.1%0a"])
def test_a_url_that_can_not_be_asked_for_is_refused_at_once(site, world, host):
    assert "not a valid URL" in world.refusal(f"http://{host}/x.gguf") and world.waits == []
    assert "not a valid URL" in world.refusal(site.redirect("/x.gguf", f"http://{host}/x")) and world.waits == []


# -- checksums


def test_a_checksum_from_the_user_is_checked(site, world):
    url = site.put("/x.gguf", MODEL)
    assert world.fetch(url, sha256=SHA.upper()).read_bytes() == MODEL
    wrong = "0" * 64
    assert "sha256" in world.refusal(site.put("/y.gguf", MODEL), sha256=wrong)
    assert len(site.requests("/y.gguf")) == 1 and "y.gguf" not in world.files()


@pytest.mark.parametrize("name", ["X-Linked-Etag", "X-Checksum-Sha256"])
@pytest.mark.covers("D08")
def test_a_checksum_from_the_server_is_checked(site, world, name):
    assert world.fetch(site.put("/x.gguf", MODEL, headers={name: f'"{SHA}"'})).read_bytes() == MODEL
    assert "sha256" in world.refusal(site.put("/y.gguf", OTHER, headers={name: SHA}))
    assert "y.gguf" not in world.files()


def test_a_checksum_told_beside_a_redirect_counts(site, other, world):
    to = other.put("/y.gguf", OTHER)
    assert "sha256" in world.refusal(site.redirect("/x.gguf", to, X_Linked_Etag=f'"{SHA}"'))
    to = other.put("/z.gguf", MODEL, cuts=[HALF])
    assert world.fetch(site.redirect("/z.gguf", to, X_Linked_Etag=f'"{SHA}"')).read_bytes() == MODEL


def test_another_file_than_expected_is_refused_before_it_comes(site, world):
    message = world.refusal(site.put("/x.gguf", OTHER, headers={"X-Linked-Etag": "1" * 64}), sha256=SHA)
    assert "another version of the file" in message and world.files() == set()


def test_a_file_that_is_there_is_checked_once(site, world):
    url = site.put("/x.gguf", MODEL)
    path = world.fetch(url)
    world.said.clear()
    assert world.fetch(url, sha256=SHA) == path and world.said == []  # known from the download
    path.with_name("x.gguf.sha256").unlink()
    world.fetch(url, sha256=SHA)
    assert world.said == [f"checking {path}"]
    world.fetch(url, sha256=SHA)
    assert len(world.said) == 1
    path.write_bytes(OTHER)
    os.utime(path, (2**31, 2**31))
    assert "delete the file" in world.refusal(url, sha256=SHA) and path.read_bytes() == OTHER


def test_a_file_of_the_user_s_is_checked_where_it_is(world, tmp_path):
    place = tmp_path / "mine.gguf"
    place.write_bytes(MODEL)
    assert world.fetch("http://127.0.0.1:1/x.gguf", path=place, sha256=SHA) == place
    assert "delete the file" in world.refusal("http://127.0.0.1:1/x.gguf", path=place, sha256="1" * 64)
    assert os.listdir(tmp_path) == ["mine.gguf"]


@pytest.mark.parametrize("sha256", ["abc", SHA + "0", "sha256:" + SHA, "g" * 64])
def test_a_checksum_that_is_none_is_refused(world, sha256):
    assert "64 hexadecimal digits" in world.refusal("http://127.0.0.1:1/x.gguf", sha256=sha256)


def test_one_checksum_for_several_files_is_refused(world):
    assert "several files" in world.refusal("http://127.0.0.1:1/x-00001-of-00002.gguf", sha256=SHA)


# -- secrets


def test_a_password_in_a_url_is_sent_to_its_host_and_shown_to_nobody(site, other, world):
    place = site.url.replace("://", "://anna:ge%40heim@")
    site.redirect("/x.gguf", site.url + "/y.gguf")
    site.redirect("/y.gguf", other.url + "/z.gguf")
    other.put("/z.gguf", MODEL)
    path = world.fetch(place + "/x.gguf?sig=querysecret")
    basic = "Basic YW5uYTpnZUBoZWlt"
    assert [seen.headers.get("authorization") for seen in site.seen] == [basic, basic]
    assert "authorization" not in other.seen[0].headers
    told = " ".join([*world.said, str(path), world.refusal(place + "/no.gguf?sig=querysecret")])
    assert "heim" not in told and "querysecret" not in told
    for note in world.cache.rglob("*.json"):
        assert "querysecret" not in note.read_text()


def test_a_query_stays_out_of_notes(site, world):
    url = site.put("/x.gguf", MODEL, cuts=[HALF, 0, 0, 0, 0]) + "?sig=querysecret"
    assert "querysecret" not in world.refusal(url)
    [note] = world.cache.rglob("*.part.json")
    assert "querysecret" not in note.read_text() and site.seen[0].path == "/x.gguf?sig=querysecret"


@pytest.mark.parametrize(
    "url, expected",
    [
        ("https://a:b@host/x?y#z", "https://host/x"),
        ("http://token@host:81/x", "http://host:81/x"),
        ("http://a:b@c@host", "http://host"),
        ("nonsense", "nonsense"),
        ("http://h/a@b", "http://h/a@b"),
        ("http://h/\n\x1b[2J", "http://h/ [2J"),
    ],
)
def test_addresses_are_shown_without_secrets(url, expected):
    assert describe_url(url) == expected


def test_encryption_is_not_left_by_a_redirect(world):
    request = urllib.request.Request("https://hub.example/x")
    with pytest.raises(DownloadError, match="isn't encrypted"):
        Redirects({}).redirect_request(request, None, 302, "Found", {}, "http://hub.example/x")


def test_certificates_are_checked(world, monkeypatch):
    if not CERTIFICATE.exists():
        pytest.skip("not on checkouts without the tests' certificate")
    site = Site(str(CERTIFICATE))
    try:
        url = site.put("/x.gguf", MODEL).replace("127.0.0.1", "localhost")
        assert "isn't trusted" in world.refusal(url) and "SSL_CERT_FILE" in world.refusal(url)
        assert world.waits == []
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        if ssl.get_default_verify_paths().cafile == str(CERTIFICATE):
            assert world.fetch(url).read_bytes() == MODEL
    finally:
        site.stop()
