"""The effect of Vertex AI's variables, and that there is none outside of Vertex AI."""

from __future__ import annotations

import pytest

from server.options.groups import group
from server.options.parser import OptionError, parse

ARGV = ("-m", "x.gguf", "--port", "5")


def read(**environ: str):
    return group(parse(ARGV, environ))


@pytest.mark.covers("V03")
def test_where_vertex_asks_is_where_the_server_is():
    here = read(AIP_MODE="PREDICTION")
    assert (here.http.port, here.api.health_route, here.api.predict_route) == (8080, "", "/predict")
    route = "/v1/endpoints/1/deployedModels/2"
    there = read(
        AIP_MODE="PREDICTION", AIP_HTTP_PORT="7080", AIP_HEALTH_ROUTE=route, AIP_PREDICT_ROUTE=route[1:] + ":predict"
    )
    assert (there.http.port, there.api.health_route) == (7080, route)
    assert there.api.predict_route == route + ":predict"
    empty = read(AIP_MODE="PREDICTION", AIP_HTTP_PORT="", AIP_HEALTH_ROUTE="", AIP_PREDICT_ROUTE="")
    assert (vars(empty.http), vars(empty.api)) == (vars(here.http), vars(here.api))


@pytest.mark.covers("V03")
def test_elsewhere_the_variables_mean_nothing():
    here = read(AIP_MODE="TRAINING", AIP_HTTP_PORT="x", AIP_HEALTH_ROUTE="/h", AIP_PREDICT_ROUTE="??")
    assert (here.http.port, here.api.health_route, here.api.predict_route) == (5, "", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIP_HTTP_PORT", "x"),
        ("AIP_HTTP_PORT", "70000"),
        ("AIP_HEALTH_ROUTE", "/a?b"),
        ("AIP_PREDICT_ROUTE", "/{name}"),
        ("AIP_PREDICT_ROUTE", "/a b"),
        ("AIP_PREDICT_ROUTE", "/" + "a" * 1000),
        ("AIP_PREDICT_ROUTE", "/\u0660"),
    ],
)
def test_what_is_no_port_or_path_is_refused_by_its_name(name: str, value: str):
    with pytest.raises(OptionError, match=name):
        read(AIP_MODE="PREDICTION", **{name: value})
