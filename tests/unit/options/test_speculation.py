"""The options of speculative decoding: llama-server's names, the older names, and the engine's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.seam.config import SpecConfig
from server.errors import StartError
from server.model_sources import find_draft_model, make_spec_config
from server.options.groups import Settings, group
from server.options.parser import OptionError, parse


def config_of(settings: Settings, model: str = "") -> SpecConfig:
    options = group(settings).model
    return make_spec_config(options.spec, model, options.threads)


def spec(*argv: str, model: str = "") -> SpecConfig:
    return config_of(parse(argv, {}), model)


def draft_file(*argv: str) -> str:
    options = group(parse(argv, {}))
    return find_draft_model(options.model, options.downloads)


def draft_params(argv: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    draft = group(parse(argv, {})).model.spec
    return draft.model_params, draft.context_params


def test_lookup_in_the_text_and_in_earlier_answers_is_on_without_any_option():
    config = spec()
    assert config.lookup and config.answers and config.model == "" and config.min_gain > 1


@pytest.mark.parametrize(
    ("words", "answers"),
    [("ngram", False), ("none", False), ("ngram-map-k", False), ("answers", True), ("ngram-mod", True)],
)
def test_earlier_answers_are_left_alone_where_only_the_text_is_to_be_looked_at(words, answers):
    config = spec("--spec-type", words)
    assert config.answers is answers and config.lookup is (words != "none")


@pytest.mark.parametrize(
    ("words", "lookup", "draft"),
    [
        ("none", False, False),
        ("auto", True, True),
        ("ngram", True, False),
        ("draft-simple", False, True),
        ("ngram-simple,draft-simple", True, True),
        ("ngram-mod", True, False),
        ("NGRAM-CACHE", True, False),
    ],
)
def test_sources_have_llama_servers_names(words, lookup, draft, tiny_spm_model):
    argv = ["--spec-type", words, "-md", str(tiny_spm_model)]
    assert spec(*argv).lookup is lookup
    assert bool(draft_file(*argv)) is draft


def test_spec_default_is_auto():
    assert parse(["--spec-type", "none", "--spec-default"], {}).spec_type == parse([], {}).spec_type


@pytest.mark.parametrize("word", ["draft-mtp", "draft-eagle3", "bigram"])
def test_what_this_server_can_not_do_is_refused_with_what_it_can(word):
    with pytest.raises(OptionError, match="--spec-draft-model|choose from"):
        parse(["--spec-type", word], {})


def test_a_draft_model_that_is_needed_or_not_there_is_told_before_the_start(tmp_path):
    with pytest.raises(OptionError, match="--spec-draft-model FILE"):
        draft_file("--spec-type", "draft")
    with pytest.raises(StartError, match="there is no model file"):
        draft_file("-md", str(tmp_path / "none.gguf"))


def test_the_older_names_and_the_environment_set_the_same():
    new = parse(["--spec-draft-n-max", "7", "--spec-draft-n-min", "2", "--spec-draft-p-min", "0.3"], {})
    for options in (
        parse(["--draft-max", "7", "--draft-min", "2", "--draft-p-min", "0.3"], {}),
        parse([], {"LLAMA_ARG_DRAFT_MAX": "7", "LLAMA_ARG_DRAFT_MIN": "2", "LLAMA_ARG_SPEC_DRAFT_P_MIN": "0.3"}),
    ):
        assert config_of(options) == config_of(new)
    assert (config_of(new).n_max, config_of(new).n_min, config_of(new).p_min) == (7, 2, 0.3)


def test_the_small_model_shares_what_is_about_the_machine_and_not_what_is_about_the_model():
    argv = [
        "-dev",
        "CUDA0",
        "--mlock",
        "-fa",
        "on",
        "-ngl",
        "3",
        "--override-kv",
        "a.b=int:1",
        "-ot",
        "x=CPU",
        "--rope-freq-base",
        "5",
    ]
    model, context = draft_params(argv)
    assert model == {"devices": ("CUDA0",), "load_mode": model["load_mode"]} and context == {"flash_attn_type": 1}
    model, context = draft_params(
        [*argv, "-devd", "none", "-ngld", "9", "-ctkd", "q8_0", "-otd", "y=CPU", "-ncmoed", "1"]
    )
    assert (model["devices"], model["n_gpu_layers"], context["type_k"]) == (("none",), 9, 8)
    assert [pattern for pattern, _ in model["tensor_buft_overrides"]][0] == "y" and len(
        model["tensor_buft_overrides"]
    ) == 2


@pytest.mark.parametrize(
    ("argv", "threads"),
    [([], (-1, -1)), (["-t", "3"], (3, 3)), (["-t", "3", "-td", "2"], (2, 2)), (["-td", "2", "-tbd", "4"], (2, 4))],
)
def test_the_small_models_threads_follow_the_large_ones(argv, threads):
    config = spec(*argv)
    assert (config.n_threads, config.n_threads_batch) == threads


def test_the_path_reaches_the_engine():
    assert spec(model=str(Path("small.gguf"))).model == "small.gguf"
