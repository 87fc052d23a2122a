"""Repositories of a model hub: the choice of the file, answers from the cache, and which servers get the token.

Runs in the test process, with a fake hub on 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest

from server.download import client, fetch_projector, list_cached_models
from server.download import hub as hub_module
from server.download.local import Progress, is_safe_path, make_safe_name
from server.model_sources import fetch_repository_projector, find_model, find_projector
from server.models.file_names import choose_file, choose_projector, split_names
from server.options.groups import group
from server.options.parser import parse
from tests.unit.download.fake_site import Site, World, no_proxy, other  # noqa: F401

REPO = "someone/Tiny-1.5B-GGUF"
TREE = f"/api/models/{REPO}/tree/main?recursive=true"
TOKEN = "hf_" + "SecretToken" * 3


def model(name: str) -> bytes:
    return b"GGUF" + name.encode() * 1000


class FakeHub(Site):
    """A site with repositories of `REPO`'s kind."""

    def publish(self, *names: str, repo: str = REPO) -> None:
        rows = [{"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0}]
        for name in names:
            data = model(name)
            self.put(f"/{repo}/resolve/main/{name}", data)
            rows.append(
                {
                    "type": "file",
                    "path": name,
                    "oid": "0" * 40,
                    "size": len(data),
                    "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)},
                }
            )
        self.list(rows, repo)

    def list(self, rows: object, repo: str = REPO) -> None:
        self.put(f"/api/models/{repo}/tree/main?recursive=true", json.dumps(rows).encode())


@pytest.fixture
def hub():
    hub = FakeHub()
    yield hub
    hub.stop()


@pytest.fixture
def world(tmp_path, hub):
    world = World(tmp_path)
    world.environ = {"MODEL_ENDPOINT": hub.url + "/"}
    return world


def paths(hub):
    return [seen.path for seen in hub.seen]


# -- which file


@pytest.mark.covers("C07", "C08")
def test_a_file_of_a_repository_is_downloaded_once(hub, world):
    hub.publish("a-Q8_0.gguf", "sub/b-Q4_0.gguf")
    path = world.fetch(hf_repo=REPO, hf_file="sub/b-Q4_0.gguf")
    assert path.read_bytes() == model("sub/b-Q4_0.gguf")
    assert path == world.cache / "models" / "hf" / "someone" / "Tiny-1.5B-GGUF" / "sub" / "b-Q4_0.gguf"
    assert paths(hub) == [f"/{REPO}/resolve/main/sub/b-Q4_0.gguf"]
    assert world.fetch(hf_repo=REPO, hf_file="sub/b-Q4_0.gguf", offline=True) == path
    assert len(hub.seen) == 1


@pytest.mark.covers("C07")
@pytest.mark.parametrize(
    "wanted, files, expected",
    [
        ("", ["a-Q2_K.gguf", "a-Q4_K_M.gguf", "a-Q8_0.gguf"], "a-Q4_K_M.gguf"),
        ("", ["a-Q2_K.gguf", "a-Q8_0.gguf"], "a-Q8_0.gguf"),
        ("", ["README.md", "mmproj-a-Q4_K_M.gguf", "a-F16.gguf", "a-F32.gguf"], "a-F16.gguf"),
        (":q2_k", ["a-Q2_K.gguf", "a-Q4_K_M.gguf"], "a-Q2_K.gguf"),
        (":Q4_0", ["a-IQ4_0.gguf", "a-Q4_0.gguf"], "a-Q4_0.gguf"),
        (":Q4_K", ["a-Q4_K_M.gguf", "a-Q4_K.gguf"], "a-Q4_K.gguf"),
        (":BF16", ["BF16/a.gguf", "Q8/a.gguf"], "BF16/a.gguf"),
        (":UD-Q2_K_XL", ["a-Q2_K_XL-x.gguf", "a-UD-Q2_K_XL.gguf"], "a-UD-Q2_K_XL.gguf"),
    ],
)
def test_the_quantisation_decides_and_has_defaults(hub, world, wanted, files, expected):
    hub.publish(*files)
    path = world.fetch(hf_repo=REPO + wanted)
    assert path.read_bytes() == model(expected)
    assert paths(hub) == [TREE, f"/{REPO}/resolve/main/{expected}"]


def test_the_file_overrides_the_quantisation(hub, world):
    hub.publish("a-Q4_K_M.gguf", "a-Q8_0.gguf")
    assert world.fetch(hf_repo=REPO + ":Q4_K_M", hf_file="a-Q8_0.gguf").name == "a-Q8_0.gguf"


@pytest.mark.parametrize(
    "options", [{"hf_repo": REPO + ":Q6_K"}, {"hf_repo": REPO, "hf_file": "Q6_K/m-00001-of-00002.gguf"}]
)
def test_a_model_in_several_files_is_fetched_whole(hub, world, options):
    names = [f"Q6_K/m-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.publish(*reversed(names))
    path = world.fetch(**options)
    assert path.read_bytes() == model(names[0])
    assert path.with_name("m-00002-of-00002.gguf").read_bytes() == model(names[1])


def test_names_with_strange_letters_are_asked_for_as_they_are(hub, world):
    hub.put(f"/{REPO}/resolve/main/a%20%23b%25.gguf", model("x"))
    assert world.fetch(hf_repo=REPO, hf_file="a #b%.gguf").name == "a #b%.gguf"


def test_long_listings_are_read_page_by_page(hub, world, other):
    hub.publish("a-Q2_K.gguf", "b-Q4_K_M.gguf")
    rows = json.loads(hub.things[TREE].data)
    hub.things[TREE].data = json.dumps(rows[:2]).encode()
    hub.things[TREE].headers = {"Link": f'<{hub.url}/more?cursor=2>; rel="next"'}
    hub.put("/more?cursor=2", json.dumps(rows[2:]).encode(), headers={"Link": f'<{other.url}/x>; rel="next"'})
    assert world.fetch(hf_repo=REPO).name == "b-Q4_K_M.gguf"
    assert other.seen == []


def test_a_listing_that_never_ends_is_left(hub, world, monkeypatch):
    monkeypatch.setattr(hub_module, "MAX_PAGES", 3)
    hub.publish("a-Q2_K.gguf")
    hub.things[TREE].headers = {"Link": f'<{hub.url}{TREE}>; rel="next"'}
    assert world.fetch(hf_repo=REPO).name == "a-Q2_K.gguf"
    assert paths(hub).count(TREE) == 3


def test_a_quantisation_that_is_not_there_is_answered_with_those_that_are(hub, world):
    hub.publish("a-Q2_K.gguf", "mmproj-a.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf", "README.md")
    message = world.refusal(hf_repo=REPO + ":Q5_K_M")
    assert "no Q5_K_M GGUF file" in message and message.endswith("--hf-file: a-Q2_K.gguf, a-Q8_0-00001-of-00002.gguf")


def test_a_repository_without_gguf_is_told_apart(hub, world):
    hub.publish("model.safetensors")
    assert "choose another repository" in world.refusal(hf_repo=REPO)


@pytest.mark.parametrize("body", [b"", b"{}", b"[", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b"<html>"])
def test_a_listing_that_is_none_is_one_line(hub, world, body):
    hub.put(TREE, body)
    assert "MODEL_ENDPOINT" in world.refusal(hf_repo=REPO)


def test_a_listing_without_end_is_not_read_into_memory(hub, world, monkeypatch):
    hub.publish("a-Q4_K_M.gguf")
    monkeypatch.setattr(client, "MAX_LISTING", len(hub.things[TREE].data) - 1)
    assert "is not a list of files" in world.refusal(hf_repo=REPO)


def test_rows_of_strange_shape_are_left_out(hub, world):
    hub.publish("ok-Q4_K_M.gguf")
    rows = json.loads(hub.things[TREE].data)
    hub.list(
        [
            None,
            3,
            [],
            {"type": "file"},
            {"type": "file", "path": 5},
            {"type": "file", "path": "no-lfs.gguf", "lfs": 7, "size": "big"},
            {"type": "file", "path": "x-Q4_K_M", "lfs": {"oid": 3}},
            *rows,
        ]
    )
    assert world.fetch(hf_repo=REPO).name == "ok-Q4_K_M.gguf"


def test_a_file_that_is_not_what_the_listing_says_is_refused(hub, world):
    hub.publish("a-Q4_K_M.gguf")
    hub.things[f"/{REPO}/resolve/main/a-Q4_K_M.gguf"].data = model("b-Q4_K_M.gguf")
    assert "sha256" in world.refusal(hf_repo=REPO)
    hub.things[f"/{REPO}/resolve/main/a-Q4_K_M.gguf"].data = model("longer") * 2
    assert "another version of the file" in world.refusal(hf_repo=REPO)
    assert world.files() == set()


def test_a_checksum_of_the_user_s_that_the_hub_contradicts_is_refused(hub, world):
    hub.publish("a-Q4_K_M.gguf")
    assert "the hub says" in world.refusal(hf_repo=REPO, sha256="1" * 64)
    assert paths(hub) == [TREE]


# -- names that would be dangerous


@pytest.mark.parametrize(
    "name",
    [
        "../x.gguf",
        "/etc/x.gguf",
        "a/../../x.gguf",
        "a//x.gguf",
        "..",
        ".",
        "a/./x.gguf",
        "a\\..\\x.gguf",
        "C:x.gguf",
        "con",
        "a/nul.gguf",
        "x.gguf.",
        "x.gguf ",
        ".hidden.gguf",
        "a\nb.gguf",
        "a\0.gguf",
        "a/",
        "x" * 200 + ".gguf",
        "a?.gguf",
        "\udc80.gguf",
        "a/" * 600 + "x.gguf",
    ],
)
def test_files_that_would_leave_their_folder_do_not_exist(hub, world, name):
    assert "--hf-file" in world.refusal(hf_repo=REPO, hf_file=name)
    hub.list([{"type": "file", "path": path, "size": 4} for path in (name, "ok-F16.gguf")])
    assert not is_safe_path(name)
    assert world.refusal(hf_repo=REPO + ":missing").endswith("--hf-file: ok-F16.gguf")


@pytest.mark.parametrize(
    "name", ["x.gguf", "a/b/c.gguf", "a-b_c.d+e (1).gguf", "größe.gguf", "con-x.gguf", "a #b%.gguf"]
)
def test_ordinary_names_are_kept(name):
    assert is_safe_path(name)


@pytest.mark.parametrize(
    "repo",
    [
        "x",
        "a/b/c",
        "../b",
        "a/..",
        "a/b/..",
        "/a/b",
        "a/b/",
        "a b/c",
        "a/b?x",
        "a\\b/c",
        "-a/b",
        "a/.b",
        "a/b.",
        "ä/b",
        "a/b\n",
        "http://a/b",
        ":Q4",
        "a/" + "b" * 300,
        "a/b#c",
        "a/b%2e%2e",
    ],
)
def test_repositories_that_are_none_are_refused_without_asking(hub, world, repo):
    assert "--hf-repo" in world.refusal(hf_repo=repo)
    assert hub.seen == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x.gguf", "x.gguf"),
        ("../../x.gguf", "_.._.._x.gguf"),
        ("..", "_"),
        ("", "_"),
        (".x", "_.x"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("C:\\x", "C__x"),
        ("nul", "_nul"),
        ("COM1.gguf", "_COM1.gguf"),
        ("a\0b\n", "a_b_"),
        ("x. . ", "x"),
        ("a?b*c", "a_b_c"),
    ],
)
def test_names_from_addresses_are_made_harmless(text, expected):
    assert make_safe_name(text) == expected


@pytest.mark.parametrize("text", ["x" * 500, "x" * 500 + ".gguf", "ü" * 500 + ".gguf", "." * 500, "a." + "b" * 500])
def test_long_names_are_cut_and_keep_their_ending(text):
    name = make_safe_name(text)
    assert 0 < len(name.encode()) <= 150 and make_safe_name(name) == name
    assert name.endswith(".gguf") is text.endswith(".gguf")


@pytest.mark.parametrize(
    "last",
    ["..%2f..%2f..%2fescape.gguf", "%2e%2e", "..%5c..%5cescape.gguf", "%00.gguf", "", "con.gguf", "x" * 400 + ".gguf"],
)
def test_whatever_an_address_ends_with_stays_in_the_cache(hub, world, last):
    url = hub.put(f"/dir/{last}", model("x"))
    path = world.fetch(url)
    assert path.read_bytes() == model("x")
    folder = world.cache / "models" / "url" / "127.0.0.1"
    assert path.parent.parent == folder and path.resolve().parent.parent == folder.resolve()
    assert {entry.name for entry in world.cache.parent.iterdir()} == {"cache"}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.gguf", ["a.gguf"]),
        ("a-00001-of-00002.gguf", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]),
        ("a-00001-of-00000.gguf", ["a-00001-of-00000.gguf"]),
        ("a-1-of-2.gguf", ["a-1-of-2.gguf"]),
    ],
)
def test_the_files_of_a_split_model_are_known_from_one(name, expected):
    assert split_names(name) == expected


def test_a_quantisation_is_no_pattern():
    assert choose_file(["a-Q4_0.gguf"], ".*") == "" and choose_file(["a-Q4_0.gguf"], "(") == ""


# -- the cache and the network


def test_what_is_in_the_cache_is_not_asked_for_again(hub, world):
    hub.publish("a-Q4_K_M.gguf", "a-Q8_0.gguf")
    first, second = world.fetch(hf_repo=REPO), world.fetch(hf_repo=REPO + ":q8_0")
    hub.seen.clear()
    assert world.fetch(hf_repo=REPO) == first and world.fetch(hf_repo=REPO + ":Q8_0") == second
    assert hub.seen == []


def test_a_file_in_the_cache_that_might_not_be_the_best_is_compared_with_the_hub(hub, world):
    hub.publish("a-Q8_0.gguf", "a-Q4_K_M.gguf")
    world.fetch(hf_repo=REPO + ":Q8_0")
    assert world.fetch(hf_repo=REPO).name == "a-Q4_K_M.gguf"


def test_when_the_hub_is_down_the_cache_has_to_do(hub, world):
    hub.publish("a-Q8_0.gguf")
    path = world.fetch(hf_repo=REPO)
    hub.put(TREE, statuses=[(503, {})] * 50)
    assert world.fetch(hf_repo=REPO) == path
    assert "using a-Q8_0.gguf" in world.said[-1]


@pytest.mark.covers("C06", "C07")
def test_offline_never_asks(hub, world):
    hub.publish("a-Q8_0.gguf")
    for options in ({"hf_repo": REPO}, {"hf_repo": REPO, "hf_file": "a-Q8_0.gguf"}, {"url": hub.url + "/x.gguf"}):
        message = world.refusal(offline=True, **options)
        assert message.startswith("offline:") and "--offline" in message
    path = world.fetch(hf_repo=REPO)
    hub.seen.clear()
    assert world.fetch(hf_repo=REPO, offline=True) == path
    assert world.fetch(hf_repo=REPO, hf_file="a-Q8_0.gguf", offline=True) == path
    assert "offline" in world.refusal(hf_repo=REPO + ":Q4_K_M", offline=True)
    assert hub.seen == [] and world.waits == []


def test_a_file_at_a_place_of_the_user_s_needs_no_hub(hub, world, tmp_path):
    place = tmp_path / "m.gguf"
    place.write_bytes(b"GGUF")
    assert world.fetch(hf_repo=REPO, path=place) == place and hub.seen == []


# -- the token, and where the hub is


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, other, world):
    hub.publish("a-Q8_0.gguf")
    place = f"/{REPO}/resolve/main/a-Q8_0.gguf"
    data = hub.things[place].data
    hub.redirect(place, hub.url + "/moved")
    hub.redirect("/moved", other.url + "/cdn", 307)
    other.put("/cdn", data, cuts=[100])
    world.fetch(hf_repo=REPO, token=TOKEN)
    assert {seen.headers.get("authorization") for seen in hub.seen} == {"Bearer " + TOKEN}
    assert len(other.seen) == 2 and not any("authorization" in seen.headers for seen in other.seen)
    world.fetch(other.put("/direct.gguf", data), token=TOKEN)
    assert "authorization" not in other.seen[-1].headers
    world.fetch(hub.put("/direct.gguf", data), token=TOKEN)
    assert hub.seen[-1].headers["authorization"] == "Bearer " + TOKEN


def test_a_foreign_host_that_leads_back_to_the_hub_does_not_see_the_token(hub, other, world):
    hub.redirect(f"/{REPO}/resolve/main/x.gguf", other.redirect("/there", hub.put("/back", model("x"))))
    world.fetch(hf_repo=REPO, hf_file="x.gguf", token=TOKEN)
    assert "authorization" not in other.seen[0].headers


@pytest.mark.parametrize(
    "given, environ, expected",
    [
        (TOKEN, {"HF_TOKEN": "hf_other"}, TOKEN),
        (None, {"HF_TOKEN": f" {TOKEN}\n"}, TOKEN),
        (None, {}, None),
        ("", {"HF_TOKEN": ""}, None),
    ],
)
def test_the_token_is_given_or_from_the_environment(hub, world, given, environ, expected):
    hub.publish("a-Q8_0.gguf")
    world.fetch(hf_repo=REPO, token=given, environ=world.environ | environ)
    assert hub.seen[0].headers.get("authorization") == (expected and "Bearer " + expected)


@pytest.mark.parametrize("token", ["a b", "a\r\nX: y", "tökén", "\0"])
def test_a_token_that_is_none_is_refused_and_not_shown(hub, world, token):
    message = world.refusal(hf_repo=REPO, token=token)
    assert "HF_TOKEN" in message and token not in message and hub.seen == []


@pytest.mark.parametrize("token, words", [(None, "--hf-token"), (TOKEN, "accept the model's terms")])
@pytest.mark.parametrize("status", [401, 403])
def test_a_private_or_gated_repository_says_what_it_needs(hub, world, token, words, status):
    hub.put(TREE, status=status)
    message = world.refusal(hf_repo=REPO, token=token)
    assert words in message and str(status) in message and TOKEN not in message
    hub.put(f"/{REPO}/resolve/main/a.gguf", status=status)
    assert words in world.refusal(hf_repo=REPO, hf_file="a.gguf", token=token)


def test_a_repository_that_is_not_there_is_one_line(hub, world):
    assert "doesn't exist" in world.refusal(hf_repo=REPO)
    assert "doesn't exist" in world.refusal(hf_repo=REPO, hf_file="a.gguf")


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_ENDPOINT": "{}"},
        {"MODEL_ENDPOINT": "{}", "HF_ENDPOINT": "http://x.invalid"},
        {"MODEL_ENDPOINT": "", "HF_ENDPOINT": "{}/"},
    ],
)
def test_the_hub_may_be_another_one(hub, world, environ):
    hub.publish("a-Q8_0.gguf")
    environ = {name: value.format(hub.url) for name, value in environ.items()}
    assert world.fetch(hf_repo=REPO, environ=environ).name == "a-Q8_0.gguf"


def test_a_hub_in_a_folder_of_its_host_works(hub, world):
    hub.put(f"/mirror/{REPO}/resolve/main/a.gguf", model("a"))
    assert world.fetch(hf_repo=REPO, hf_file="a.gguf", environ={"HF_ENDPOINT": hub.url + "/mirror/"})


@pytest.mark.parametrize("endpoint", ["huggingface.co", "file:///x", "ftp://x", "http://", "http://[", "http://x:y/"])
def test_a_hub_that_is_no_web_address_is_refused(world, endpoint):
    assert "MODEL_ENDPOINT" in world.refusal(hf_repo=REPO, environ={"HF_ENDPOINT": endpoint})


# -- options that don't fit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "http://x/y", "hf_repo": REPO},
        {"hf_file": "x.gguf"},
        {"url": "http://x/y", "hf_file": "x.gguf"},
        {"url": "", "hf_repo": ""},
    ],
)
def test_it_has_to_be_clear_what_to_download(world, options):
    assert "unclear" in world.refusal(**options)


@pytest.mark.parametrize(
    "url",
    [
        "x.gguf",
        "file:///etc/passwd",
        "ftp://h/x",
        "data:,GGUF",
        "http:///x",
        "//h/x",
        "http://h:0/x",
        "http://h:99999/x",
        "http://[::1/x",
        "http://a..b/x",
        "http://" + "a" * 70 + "/x",
        "javascript:x",
        " ",
    ],
)
def test_only_web_addresses_are_fetched(world, url):
    assert "--model-url takes" in world.refusal(url)


def test_downloaded_models_are_listed_as_one_would_ask_for_them(tmp_path):
    environ = {"LLAMA_SRV_CACHE": str(tmp_path)}
    assert list_cached_models(environ) == [f"no model has been downloaded to {tmp_path / 'models'}"]
    for name in ("hf/user/repo/sub/a.gguf", "url/host/abc/b.gguf", "hf/user/repo/a.gguf.sha256"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 2**19)
    assert [line.split(maxsplit=2) for line in list_cached_models(environ)] == [
        ["0.5", "MiB", "-hf user/repo -hff sub/a.gguf"],
        ["0.5", "MiB", f"-m {tmp_path / 'models/url/host/abc/b.gguf'}"],
    ]


# -- the projector beside a model


@pytest.mark.parametrize(
    "model, files, expected",
    [
        ("a-Q4_K_M.gguf", ["a-Q4_K_M.gguf"], ""),
        ("a-Q4_K_M.gguf", ["mmproj-a-F16.gguf", "a-Q4_K_M.gguf", "mmproj-a-F32.gguf"], "mmproj-a-F16.gguf"),
        ("a-Q8_0.gguf", ["mmproj-a-F16.gguf", "mmproj-a-Q8_0.gguf"], "mmproj-a-Q8_0.gguf"),
        ("a-BF16.gguf", ["mmproj-a-Q8_0.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (
            "sub/a-Q8_0.gguf",
            ["mmproj-a-Q8_0.gguf", "sub/mmproj-F16.gguf", "other/mmproj-Q8_0.gguf"],
            "sub/mmproj-F16.gguf",
        ),
        ("a-Q8_0.gguf", ["sub/mmproj-Q8_0.gguf", "mmproj.txt"], ""),
        ("a-Q8_0.gguf", ["a.mmproj-Q8_0.GGUF"], "a.mmproj-Q8_0.GGUF"),
    ],
)
def test_the_projector_is_the_one_that_llama_cpp_takes(model, files, expected):
    assert choose_projector(files, model) == expected


def projector(world, path, **options):
    options = {
        "environ": world.environ,
        "cache": world.cache,
        "sleep": world.sleep,
        "progress": Progress(io.StringIO(), world.say),
    } | options
    return fetch_projector(REPO, path, **options)


def test_a_projector_is_downloaded_once(hub, world):
    hub.publish("a-Q8_0.gguf", "mmproj-a-F16.gguf")
    path = world.fetch(hf_repo=REPO)
    found = projector(world, path)
    assert found == path.with_name("mmproj-a-F16.gguf") and found.read_bytes() == model("mmproj-a-F16.gguf")
    n = len(hub.seen)
    assert projector(world, path) == projector(world, path, offline=True) == found
    assert len(hub.seen) == n
    assert world.fetch(hf_repo=REPO, offline=True) == path, "it isn't taken for a model"


def test_a_repository_without_a_projector_is_asked_once(hub, world):
    hub.publish("a-Q8_0.gguf")
    path = world.fetch(hf_repo=REPO)
    assert projector(world, path) is None
    n = len(hub.seen)
    assert projector(world, path) is None and len(hub.seen) == n


def test_offline_nobody_is_asked_for_a_projector(hub, world):
    hub.publish("a-Q8_0.gguf", "mmproj-a-F16.gguf")
    path = world.fetch(hf_repo=REPO, hf_file="a-Q8_0.gguf")
    n = len(hub.seen)
    assert projector(world, path, offline=True) is None and len(hub.seen) == n


@pytest.mark.covers("C32")
def test_a_model_of_a_repository_gets_its_projector(hub, tmp_path, monkeypatch, tiny_bpe_model, mmproj_mlp, caplog):
    for name, path in (("a-F32.gguf", tiny_bpe_model), ("mmproj-a-F32.gguf", mmproj_mlp)):
        hub.put(f"/{REPO}/resolve/main/{name}", path.read_bytes())
    hub.list([{"type": "file", "path": name, "size": None} for name in ("a-F32.gguf", "mmproj-a-F32.gguf")])
    monkeypatch.setenv("MODEL_ENDPOINT", hub.url)
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    libs = tmp_path / "libs"
    libs.mkdir()
    options = group(parse(["-hf", REPO], {}))
    place, _ = find_model(options.model, options.downloads, None)
    assert fetch_repository_projector(REPO, options.downloads, place.path, str(libs)) == "", "nothing could use it"
    (libs / "libmtmd.so").touch()
    found = fetch_repository_projector(REPO, options.downloads, place.path, str(libs))
    assert Path(found).read_bytes() == mmproj_mlp.read_bytes()
    without = group(parse(["-hf", REPO, "--no-mmproj"], {})).model.sources
    assert find_projector(without, options.downloads, str(libs), place) == ""
    Path(found).write_bytes(b"GGUF but no projector")
    assert (
        fetch_repository_projector(REPO, options.downloads, place.path, str(libs)) == ""
        and "continuing without images" in caplog.text
    )
