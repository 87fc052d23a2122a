"""The route table."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.web.router import Route, Router


def handler_named(name: str):
    return lambda request: name


ROUTES = [
    Route("GET", "/health", handler_named("health"), public=True),
    Route("POST", "/completion", handler_named("completion")),
    Route("GET", "/slots", handler_named("slots")),
    Route("POST", "/slots/{id_slot}", handler_named("slot")),
    Route("GET", "/slots/all", handler_named("all")),
    Route("GET", "/models/{name...}", handler_named("model")),
    Route("DELETE", "/models/{name...}", handler_named("unload")),
    Route("GET", "/a/{x}/b/{y}", handler_named("two")),
]


def resolve(method: str, path: str, prefix: str = "") -> tuple[str, dict[str, str]]:
    handler, params = Router(ROUTES, prefix).resolve(method, path)
    return handler(None), params


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/health", ("health", {})),
        ("HEAD", "/health", ("health", {})),
        ("POST", "/slots/3", ("slot", {"id_slot": "3"})),
        ("GET", "/slots/all", ("all", {})),
        ("GET", "/models/org/name", ("model", {"name": "org/name"})),
        ("DELETE", "/models/a", ("unload", {"name": "a"})),
        ("GET", "/a/1/b/ä ", ("two", {"x": "1", "y": "ä "})),
    ],
)
def test_a_path_finds_its_handler(method, path, found):
    assert resolve(method, path) == found
    assert resolve(method, "/api" + path, prefix="/api/") == found


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/Health",
        "/health/",
        "//health",
        "/slots/",
        "/slots/1/2",
        "/models",
        "/models/",
        "/a//b/c",
        "/a/1/b",
        "*",
        "",
    ],
)
def test_an_unknown_path_is_a_404(path):
    with pytest.raises(ApiError) as caught:
        resolve("GET", path)
    assert (caught.value.status, caught.value.type) == (404, "not_found_error")


@pytest.mark.parametrize("prefix", ["", "/llm"])
@pytest.mark.parametrize(
    ("path", "is_hinted"),
    [("/old", True), ("/old/", True), ("/old/a/b", True), ("/older", False), ("/x/old", False), ("/", False)],
)
def test_an_unknown_path_gets_the_hint_of_its_beginning(prefix, path, is_hinted):
    router = Router(ROUTES, prefix, {"/old": "Ask {prefix}/health."})
    for asked in {path, prefix + path}:
        with pytest.raises(ApiError) as caught:
            router.resolve("GET", asked)
        assert ("'. Ask " + prefix + "/health." in caught.value.message) == is_hinted


def test_a_path_outside_the_prefix_is_a_404():
    with pytest.raises(ApiError):
        resolve("GET", "/health", prefix="/api")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("GET", "/completion", "POST, OPTIONS"),
        ("HEAD", "/completion", "POST, OPTIONS"),
        ("PUT", "/models/x", "DELETE, GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(method, path, allowed):
    with pytest.raises(ApiError) as caught:
        resolve(method, path)
    assert caught.value.status == 405
    assert caught.value.headers == {"Allow": allowed}


def test_the_matched_row_says_whether_a_key_is_needed():
    router = Router(ROUTES)
    assert router.match("GET", "/health")[0].public
    assert not router.match("GET", "/slots")[0].public


def test_two_routes_for_one_path_are_a_bug_found_at_start():
    with pytest.raises(ValueError, match="two routes"):
        Router([*ROUTES, ROUTES[0]])
