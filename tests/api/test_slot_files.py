"""POST /slots/{id}?action=save|restore|erase: the documented answers, and no access outside of the folder."""

from __future__ import annotations

import os
import sys

import pytest

from tests.fakes import FakeBackend

PROMPT = "a prompt of some length"
N_TOKENS = 1 + len(PROMPT) + 4 - 1


@pytest.fixture
def api(make_api, tmp_path):
    """Two slots; saved ones go to `tmp_path`/slots."""
    (tmp_path / "slots").mkdir()
    return make_api(FakeBackend(n_ctx=512, n_slots=2), ("--slot-save-path", str(tmp_path / "slots"))).start()


def act(api, id_slot: object, action: str, filename: object = None):
    body = {} if filename is None else {"filename": filename}
    return api.post(f"/slots/{id_slot}?action={action}", body)


@pytest.mark.covers("E15", "E16", "E17", "C38")
def test_a_slot_is_saved_erased_and_restored(api, tmp_path):
    text = api.complete(PROMPT, 4, id_slot=0)["content"]
    saved = act(api, 0, "save", "my slot.bin").json()
    size = (tmp_path / "slots" / "my slot.bin").stat().st_size
    assert saved == {
        "id_slot": 0,
        "filename": "my slot.bin",
        "n_saved": N_TOKENS,
        "n_written": size,
        "timings": {"save_ms": saved["timings"]["save_ms"]},
    }
    assert act(api, 0, "erase").json() == {"id_slot": 0, "n_erased": N_TOKENS}
    restored = act(api, 1, "restore", "my slot.bin").json()
    assert restored == {
        "id_slot": 1,
        "filename": "my slot.bin",
        "n_restored": N_TOKENS,
        "n_read": size,
        "timings": {"restore_ms": restored["timings"]["restore_ms"]},
    }
    again = api.complete(PROMPT, 4, id_slot=1)
    assert (again["content"], again["timings"]["prompt_n"]) == (text, 1)


def test_an_empty_post_is_enough_to_erase(api):
    assert api.send("POST", "/slots/1?action=erase").json() == {"id_slot": 1, "n_erased": 0}


def test_without_a_folder_there_are_no_slot_actions(make_api):
    api = make_api(FakeBackend()).start()
    for action in ("save", "restore", "erase"):
        answer = act(api, 0, action, "x")
        assert answer.status == 501 and answer.error["type"] == "not_supported_error"
        assert "--slot-save-path" in answer.error["message"]


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "..",
        ".",
        ".hidden",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "c:x",
        "a\x00b",
        "a\nb",
        "con",
        "NUL.bin",
        "com1",
        "x.",
        "x ",
        "",
        "x" * 300,
        "é" * 101,
        "你" * 67,
        "😀" * 60,
        5,
        ["x"],
        {"a": 1},
        "a*b",
        "a?b",
        "a|b",
        "a<b",
        'a"b',
    ],
    ids=repr,
)
@pytest.mark.parametrize("action", ["save", "restore"])
def test_a_name_that_is_no_plain_file_name_is_refused(api, tmp_path, action, name):
    answer = act(api, 0, action, name)
    assert answer.status == 400 and "filename" in answer.error["message"]
    assert os.listdir(tmp_path) == ["slots"] and os.listdir(tmp_path / "slots") == []


def test_a_missing_name_is_refused(api):
    for action in ("save", "restore"):
        assert "filename" in act(api, 0, action).error["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: links need rights there")
def test_no_link_leads_out_of_the_folder(api, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"precious")
    (tmp_path / "slots" / "link").symlink_to(secret)
    (tmp_path / "slots" / "folder").mkdir()
    api.complete(PROMPT, 4, id_slot=0)
    for name in ("link", "folder"):
        for action in ("save", "restore"):
            assert act(api, 0, action, name).status == 400
    assert secret.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("id_slot", "action", "status"),
    [
        (2, "save", 400),
        (99999999999, "save", 400),
        ("x", "save", 400),
        (-1, "erase", 400),
        (0, "dance", 400),
        (0, "", 400),
        ("", "save", 404),
    ],
)
def test_a_wrong_slot_or_action_is_refused(api, id_slot, action, status):
    assert act(api, id_slot, action, "x").status == status


def test_what_is_no_saved_slot_is_refused_and_the_slot_still_works(api, tmp_path):
    (tmp_path / "slots" / "junk").write_bytes(b"junk")
    text = api.complete(PROMPT, 4, id_slot=0)["content"]
    for name in ("junk", "missing"):
        answer = act(api, 0, "restore", name)
        assert answer.status == 400 and name in answer.error["message"]
        assert str(tmp_path) not in answer.error["message"]
    assert api.complete(PROMPT, 4, id_slot=0)["content"] == text
