"""`engine.sampling`: the sampler chain of a request's settings: stages, order, arguments."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from server.engine.seam.task import SAMPLER_ALIASES, SAMPLER_NAMES, SamplingParams
from server.engine.slots.sampling import Stage, VocabFacts, compute_history_length, make_chain

FACTS = VocabFacts(eog_tokens=(2, 9), suppress_tokens=(), n_ctx=512)
OFF = SamplingParams(seed=7, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
"""Settings that truncate nothing and leave the probabilities alone."""


def stages(**settings: object) -> list[tuple]:
    return [(stage.name, *stage.args) for stage in make_chain(replace(OFF, **settings), FACTS)]


def names(params: SamplingParams) -> list[str]:
    return [stage.name for stage in make_chain(params, FACTS)]


def test_settings_that_change_nothing_make_no_stage():
    assert stages() == [("dist", 7)]


def test_the_defaults_make_the_usual_chain():
    assert make_chain(SamplingParams(seed=5), FACTS) == [
        Stage("top_k", (40,)),
        Stage("top_p", (0.95, 0)),
        Stage("min_p", (0.05, 0)),
        Stage("temperature", (0.8, 0.0, 1.0)),
        Stage("dist", (5,)),
    ]


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({"temperature": 0.5}, ("temperature", 0.5, 0.0, 1.0)),
        ({"temperature": 1.0, "dynatemp_range": 0.3, "dynatemp_exponent": 2.0}, ("temperature", 1.0, 0.3, 2.0)),
        ({"top_k": 5}, ("top_k", 5)),
        ({"top_k": 5, "min_keep": 9}, ("top_k", 9)),
        ({"top_p": 0.9, "min_keep": 3}, ("top_p", 0.9, 3)),
        ({"min_p": 0.2, "min_keep": 3}, ("min_p", 0.2, 3)),
        ({"typical_p": 0.7, "min_keep": 3}, ("typical_p", 0.7, 3)),
        ({"top_n_sigma": 1.5}, ("top_n_sigma", 1.5)),
        ({"top_n_sigma": 0.0}, ("top_n_sigma", 0.0)),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.2, "min_keep": 1}, ("xtc", 0.5, 0.2, 1, 7)),
        ({"repeat_penalty": 1.2}, ("penalties", 64, 1.2, 0.0, 0.0, True)),
        ({"presence_penalty": 0.4}, ("penalties", 64, 1.0, 0.0, 0.4, True)),
        ({"frequency_penalty": 0.3}, ("penalties", 64, 1.0, 0.3, 0.0, True)),
        ({"repeat_penalty": 1.2, "repeat_last_n": -1, "penalize_nl": False}, ("penalties", 512, 1.2, 0.0, 0.0, False)),
        ({"dry_multiplier": 0.8, "dry_sequence_breakers": ("\n",)}, ("dry", 0.8, 1.75, 2, 512, ("\n",))),
        ({"dry_multiplier": 0.8, "dry_penalty_last_n": 16, "dry_sequence_breakers": ()}, ("dry", 0.8, 1.75, 2, 16, ())),
    ],
)
def test_a_setting_makes_its_stage_with_its_arguments(settings, stage):
    assert stages(**settings) == [stage, ("dist", 7)]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": -1},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"typical_p": 1.0},
        {"top_n_sigma": -1.0},
        {"xtc_probability": 0.0},
        {"repeat_penalty": 1.2, "repeat_last_n": 0},
        {"dry_multiplier": 0.8, "dry_penalty_last_n": 0},
        {"dynatemp_range": -1.0},
    ],
)
def test_a_setting_that_switches_off_makes_no_stage(settings):
    assert stages(**settings) == [("dist", 7)]


ALL_ON = replace(
    OFF,
    temperature=0.7,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    typical_p=0.8,
    top_n_sigma=2.0,
    xtc_probability=0.5,
    repeat_penalty=1.1,
    dry_multiplier=0.5,
)
ORDERED = ("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")


@pytest.mark.parametrize("order", [ORDERED, tuple(reversed(ORDERED)), ("min_p", "top_k"), ()])
def test_stages_come_in_the_order_of_samplers_and_only_those(order):
    assert names(replace(ALL_ON, samplers=order)) == [*order, "dist"]


@pytest.mark.covers("Q33")
def test_a_sampler_named_twice_runs_twice():
    assert names(replace(ALL_ON, samplers=("top_k", "temperature", "top_k"))) == [
        "top_k",
        "temperature",
        "top_k",
        "dist",
    ]


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_keeps_what_can_change_the_best_token_and_leaves_truncation_out(temperature):
    params = replace(ALL_ON, temperature=temperature, logit_bias=((4, 1.0),))
    assert names(params) == ["logit_bias", "penalties", "dry", "greedy"]


def test_greedy_without_more_is_one_stage():
    assert stages(temperature=0.0, top_k=40, top_p=0.5) == [("greedy",)]


@pytest.mark.parametrize(("kind", "last"), [(1, ("mirostat", 7, 4.0, 0.2)), (2, ("mirostat_v2", 7, 4.0, 0.2))])
def test_mirostat_comes_after_penalties_and_temperature_and_picks_the_token(kind, last):
    params = replace(ALL_ON, mirostat=kind, mirostat_tau=4.0, mirostat_eta=0.2)
    assert [(stage.name, *stage.args) for stage in make_chain(params, FACTS)] == [
        ("penalties", 64, 1.1, 0.0, 0.0, True),
        ("temperature", 0.7, 0.0, 1.0),
        last,
    ]


def test_mirostat_without_randomness_is_greedy():
    assert stages(mirostat=2, temperature=0.0) == [("greedy",)]


def test_bias_comes_first():
    assert stages(logit_bias=((4, 1.0), (5, -math.inf)), top_k=3)[0] == ("logit_bias", ((4, 1.0), (5, -math.inf)))


def test_ignoring_the_end_bans_every_token_that_ends_a_text():
    assert stages(ignore_eos=True) == [("logit_bias", ((2, -math.inf), (9, -math.inf))), ("dist", 7)]


def test_tokens_that_the_model_suppresses_are_banned_for_everybody():
    facts = VocabFacts((2,), (30, 31), 512)
    assert make_chain(replace(OFF, temperature=0.0), facts) == [
        Stage("logit_bias", (((30, -math.inf), (31, -math.inf)),)),
        Stage("greedy", ()),
    ]


def test_adaptive_p_picks_the_token_where_it_is_asked_for():
    order = ("top_k", "adaptive_p")
    assert stages(samplers=order, top_k=3, adaptive_target=0.5)[-1] == ("adaptive_p", 0.5, 0.9, 7)
    assert stages(samplers=order, top_k=3)[-1] == ("dist", 7)


@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ({}, 64),
        ({"repeat_last_n": 0}, 0),
        ({"repeat_last_n": -1}, 512),
        ({"repeat_last_n": 10}, 10),
        ({"repeat_last_n": 10, "dry_multiplier": 0.5, "dry_penalty_last_n": 99}, 99),
        ({"repeat_last_n": 10, "dry_multiplier": 0.0, "dry_penalty_last_n": 99}, 10),
        ({"repeat_last_n": 10, "dry_multiplier": 0.5, "dry_penalty_last_n": -1}, 512),
    ],
)
def test_so_much_of_the_prompt_is_told_to_the_penalties(settings, n):
    assert compute_history_length(replace(OFF, **settings), 512) == n


def test_other_spellings_lead_to_known_samplers():
    assert set(SAMPLER_ALIASES.values()) <= set(SAMPLER_NAMES)
    assert not set(SAMPLER_ALIASES) & set(SAMPLER_NAMES)
