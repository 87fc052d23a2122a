"""Keys, Host names and origins."""

from __future__ import annotations

import hmac

import pytest

from server.errors import ApiError
from server.web.auth import CorsPolicy, Grant, HostPolicy, KeyRing, is_loopback, read_key_file, split_host
from server.web.http1.head import Headers
from server.web.message import make_error_body

KEYS = KeyRing(["first", "zwö", ""])


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first"},
        {"authorization": "bearer  first "},
        {"Authorization": "first"},
        {"X-Api-Key": "first"},
        {"Authorization": "Bearer wrong", "X-Api-Key": "first"},
        {"Authorization": "Bearer zwö".encode().decode("latin-1")},
    ],
)
def test_a_known_key_opens(headers):
    assert KEYS.check(Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer"},
        {"X-Api-Key": ""},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer first2"},
        {"Authorization": "Bearer FIRST"},
        {"Authorization": "Basic first"},
        {"Authorization": "Bearer first, zwö"},
        {"X-Api-Key": "Bearer first"},
        {"Cookie": "first"},
    ],
)
def test_anything_else_is_a_401_in_the_documented_shape(headers):
    with pytest.raises(ApiError) as caught:
        KEYS.check(Headers(headers))
    assert make_error_body(caught.value) == {
        "error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}
    }


def test_without_keys_everybody_is_served():
    assert KeyRing().check(Headers()) == KeyRing([""]).check(Headers({"X-Api-Key": "x"})) == ""


def test_a_key_id_tells_keys_apart_and_nothing_else():
    ids = {KEYS.check(Headers({"X-Api-Key": key})) for key in ("first", "zwö".encode().decode("latin-1"))}
    assert len(ids) == 2 and not any("first" in id_ for id_ in ids)


def test_every_key_is_compared_whole_whatever_matched_before(monkeypatch):
    compared = []
    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b))
    ring = KeyRing(f"key {i}" for i in range(5))
    for key in ("key 0", "key 4", "wrong"):
        compared.clear()
        try:
            ring.check(Headers({"X-Api-Key": key}))
        except ApiError:
            pass
        assert len(compared) == 10 and all(len(a) == len(b) == 32 for a, b in compared)


def test_keys_can_be_replaced_while_serving():
    ring = KeyRing(["old"])
    ring.replace(["new"])
    assert ring.check(Headers({"X-Api-Key": "new"})) and len(ring) == 1
    with pytest.raises(ApiError):
        ring.check(Headers({"X-Api-Key": "old"}))


def test_key_files_of_any_editor_are_read(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes("\ufefffirst\r\n\n  zwö\t\r\rthird".encode())
    assert read_key_file(path) == [Grant("first"), Grant("zwö"), Grant("third")]


def test_a_line_may_limit_its_key_to_models(tmp_path):
    path = tmp_path / "keys"
    path.write_text("all\nsome  models=a, user/m-GGUF:Q4_K_M,b\nnone models=\nwith blanks\nmodels=x\n#c models=d\n")
    assert read_key_file(path) == [
        Grant("all"),
        Grant("some", frozenset(("a", "b", "user/m-GGUF:Q4_K_M"))),
        Grant("none", frozenset()),
        Grant("with blanks"),
        Grant("models=x"),
    ]


def test_a_limited_key_may_use_its_models_alone_and_nobody_may_without_a_key():
    ring = KeyRing(["all", Grant("some", frozenset("ab")), Grant("none", frozenset()), Grant("root", is_admin=True)])
    ids = {key: ring.check(Headers({"X-Api-Key": key})) for key in ("all", "some", "none", "root")}
    used = {key: [name for name in "abc" if ring.may_use(id_, (name, "alias"))] for key, id_ in ids.items()}
    assert used == {"all": ["a", "b", "c"], "some": ["a", "b"], "none": [], "root": ["a", "b", "c"]}
    assert ring.may_use(ids["some"], ("c", "b")) and not ring.may_use("", ("a",)) and not ring.may_use("gone", ("a",))
    assert [key for key, id_ in ids.items() if ring.is_admin(id_)] == ["root"] and not ring.is_admin("")
    assert KeyRing(["k"]).may_use("", ("a",)) and KeyRing().may_use("", ("a",))


def test_an_admins_key_alone_leaves_the_server_to_everybody():
    ring = KeyRing([Grant("root", is_admin=True)])
    assert len(ring) == 0 and ring.check(Headers()) == ring.check(Headers({"X-Api-Key": "wrong"})) == ""
    assert ring.is_admin(ring.check(Headers({"Authorization": "Bearer root"})))
    both = KeyRing(["k", Grant("root", is_admin=True)])
    assert both.check(Headers({"X-Api-Key": "root"})) and both.find(Headers({"X-Api-Key": "wrong"})) == ""
    with pytest.raises(ApiError):
        both.check(Headers())


def test_what_is_said_of_a_key_several_times_adds_up():
    limited = Grant("k", frozenset("a"))
    key_id = KeyRing(["k"]).check(Headers({"X-Api-Key": "k"}))
    for keys, models in (
        ([limited, Grant("k", frozenset("b"))], "ab"),
        ([limited, "k"], "abc"),
        (["k", limited], "abc"),
    ):
        ring = KeyRing([*keys, Grant("other", frozenset())])
        assert "".join(name for name in "abc" if ring.may_use(key_id, (name,))) == models
    assert KeyRing([limited, Grant("k", is_admin=True)]).is_admin(key_id)


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8080", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]", "::1"),
        ("[::1]:80", "::1"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("", ""),
        ("a@b", ""),
        ("::1", ""),
        ("[::1", ""),
        ("a:b", ""),
        ("a/b", ""),
        ("localhost:80:80", ""),
        ("localhost:", "localhost"),
    ],
)
def test_host_headers_are_taken_apart(authority, host):
    assert split_host(authority) == host


def test_what_is_loopback():
    assert all(map(is_loopback, ("localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(
        map(
            is_loopback,
            (
                "",
                "0.0.0.0",
                "::",
                "evil.com",
                "localhost.evil.com",
                "127.0.0.1.evil.com",
                "192.168.0.1",
                "notlocalhost",
            ),
        )
    )


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1"])
def test_a_local_server_answers_to_local_names_only(bound):
    policy = HostPolicy.make_for_bind([bound], ["My.Proxy"])
    for host in ("localhost:8080", "127.0.0.1", "[::1]:80", "my.proxy:443", None):
        policy.check(host)
    for host in ("evil.com", "localhost.evil.com:8080", "", "127.0.0.1.nip.io", "192.168.0.7"):
        with pytest.raises(ApiError) as caught:
            policy.check(host)
        assert (caught.value.status, caught.value.type) == (403, "permission_error")


def test_who_sends_a_foreign_host_name_is_told_what_to_set():
    with pytest.raises(ApiError) as caught:
        HostPolicy.make_for_bind(["127.0.0.1"]).check("llama")
    assert all(part in caught.value.message for part in ("'llama'", "--allowed-hosts", "proxy_set_header Host"))


@pytest.mark.parametrize(
    "policy",
    [
        HostPolicy.make_for_bind(["0.0.0.0"]),
        HostPolicy.make_for_bind(["192.168.0.7"]),
        HostPolicy.make_for_bind(["127.0.0.1"], ["*"]),
        HostPolicy.make_for_bind(["/run/x.sock"]),
        HostPolicy.make_for_bind(["127.0.0.1", "192.168.0.7"]),
    ],
)
def test_other_servers_answer_to_every_name(policy):
    policy.check("evil.com")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://server:8080", True),
        ("HTTP://SERVER:8080", True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:5", True),
        ("https://app.example", True),
        ("http://app.example", False),
        ("https://app.example:444", False),
        ("http://server", False),
        ("null", False),
        ("", False),
        ("http://localhost.evil.com", False),
        ("http://evil.com#localhost", False),
        ("localhost", False),
        ("http://localhost@evil.com", False),
    ],
)
def test_which_pages_may_read(origin, allowed):
    policy = CorsPolicy(frozenset(["https://app.example"]))
    headers = policy.make_headers(origin, "server:8080")
    assert (headers.get("Access-Control-Allow-Origin") == origin) is allowed
    assert headers["Vary"] == "Origin"
    assert bool(policy.make_preflight(Headers({"Origin": origin, "Host": "server:8080"}), ["POST"])) is allowed


def test_pages_of_foreign_origins_may_not_write():
    policy = CorsPolicy()
    for method in ("GET", "HEAD", "OPTIONS"):
        policy.check(method, Headers({"Origin": "http://evil.com"}), "localhost")
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        policy.check(method, Headers(), "localhost")
        policy.check(method, Headers({"Origin": "http://localhost:1"}), "localhost")
        for origin in ("http://evil.com", "null"):
            for site in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
                with pytest.raises(ApiError) as caught:
                    policy.check(method, Headers({"Origin": origin, **site}), "localhost")
                assert caught.value.status == 403


def test_an_own_page_behind_a_proxy_that_renames_the_host_may_write():
    headers = Headers({"Origin": "https://llm.example", "Sec-Fetch-Site": "same-origin"})
    CorsPolicy().check("POST", headers, "127.0.0.1:8080")


def test_an_open_policy_allows_all_pages():
    policy = CorsPolicy(frozenset("*"))
    policy.check("POST", Headers({"Origin": "http://evil.com"}), "localhost")
    assert policy.make_headers(None, None)["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in policy.make_headers("http://a.b", "c")


def test_a_preflight_is_answered_with_what_was_asked():
    asked = Headers(
        {
            "Origin": "http://localhost:1",
            "Access-Control-Request-Headers": "authorization, x-stainless-os",
            "Access-Control-Request-Private-Network": "true",
        }
    )
    answer = CorsPolicy().make_preflight(asked, ["POST", "OPTIONS"])
    assert answer["Access-Control-Allow-Headers"] == "authorization, x-stainless-os"
    assert answer["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert answer["Access-Control-Allow-Private-Network"] == "true"
    odd = Headers({**asked, "Access-Control-Request-Headers": "a\tb: c"})
    assert "Authorization" in CorsPolicy().make_preflight(odd, ["POST"])["Access-Control-Allow-Headers"]
