"""GET and POST /lora-adapters, and adapters of a single request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes import FakeBackend


@pytest.fixture
def api(make_api):
    """A server with two adapters, the first switched on."""
    backend = FakeBackend(n_slots=2)
    backend.adapters = ("first.gguf", "second.gguf")
    backend.info = replace(backend.info, adapters=backend.adapters)
    return make_api(backend, lora=(("first.gguf", 1.0), ("second.gguf", 0.0))).start()


def scales(api) -> list[float]:
    listing = api.get("/lora-adapters").json()
    assert [(item["id"], item["path"]) for item in listing] == [(0, "first.gguf"), (1, "second.gguf")]
    return [item["scale"] for item in listing]


def used(api, **fields) -> tuple:
    api.complete("x", 2, cache_prompt=False, **fields)
    return api.backend.lora


def test_the_adapters_are_listed_and_their_scales_can_be_changed(api):
    assert scales(api) == [1.0, 0.0]
    assert used(api) == ((0, 1.0),)
    answer = api.post("/lora-adapters", [{"id": 1, "scale": 0.5}])
    assert answer.status == 200 and scales(api) == [0.0, 0.5], "adapters that are not named are off"
    assert used(api) == ((1, 0.5),)
    api.post("/lora-adapters", [])
    assert scales(api) == [0.0, 0.0] and used(api) == ()


def test_a_request_may_have_adapters_of_its_own(api):
    assert used(api, lora=[{"id": 1, "scale": 2}]) == ((1, 2.0),)
    assert used(api, lora=[]) == ()
    assert used(api) == ((0, 1.0),), "the others' setting is untouched"
    settings = api.complete("x", 1, lora=[{"id": 1, "scale": 2}])["generation_settings"]
    assert settings["lora"] == [{"id": 1, "scale": 2.0}]


@pytest.mark.parametrize(
    "value",
    [
        {},
        5,
        [5],
        [{}],
        [{"id": 2, "scale": 1}],
        [{"id": -1, "scale": 1}],
        [{"id": "0", "scale": 1}],
        [{"id": True, "scale": 1}],
        [{"id": 0, "scale": "x"}],
        [{"id": 0, "scale": True}],
    ],
    ids=repr,
)
def test_what_names_no_adapter_is_refused(api, value):
    assert "lora" in api.post("/lora-adapters", value).error["message"]
    if value != {}:
        assert "lora" in api.refuse(lora=value)["message"]
    assert scales(api) == [1.0, 0.0]


def test_without_adapters_the_list_is_empty(make_api):
    assert make_api(FakeBackend()).start().get("/lora-adapters").json() == []
