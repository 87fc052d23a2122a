"""`--compat 2024` and `--compat modern`: every row of the table of differences, as a client sees it.

Real server processes with a tiny model, one per profile for the whole file, each in its own folder (the older profile
writes `llama.log` there). Options without effect for clients (`--flash-attn`, `--timeout`) are tested in
`native/test_context_params.py` and `unit/test_options_table.py`; here they must only be accepted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.options.parser import list_compat_rows
from tests.support import ServerProcess, start_server, wait_until

# the defaults in the table of request parameters, as both documents have it
DOCUMENTED = {
    "temperature": 0.8,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "n_predict": -1,
    "n_keep": 0,
    "stream": False,
    "stop": [],
    "tfs_z": 1.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
    "penalize_nl": True,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalty_prompt_tokens": [],
    "use_penalty_prompt_tokens": False,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "grammar": "",
    "seed": -1,
    "ignore_eos": False,
    "logit_bias": [],
    "n_probs": 0,
    "min_keep": 0,
    "cache_prompt": False,
    "n_ctx": 512,
}
DOCUMENTED_SAMPLERS = ["top_k", "tfs_z", "typical_p", "top_p", "min_p", "temperature"]

SEEN_HERE = {
    "--ctx-size",
    "--cont-batching",
    "--context-shift",
    "--repeat-penalty",
    "--cache-prompt",
    "--log-format",
    "--log-file",
    "`next_token` in `/slots`",
    "`prompt` as a list of strings",
    "order of the samplers",
}
SEEN_ELSEWHERE = {"--flash-attn", "--timeout"}


def start(folder: Path, model: Path, profile: str, *more: object) -> ServerProcess:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return start_server(["-m", model, "--compat", profile, "-t", 1, "--metrics", *more])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {profile: tmp_path_factory.mktemp(f"profile-{profile}") for profile in ("2024", "modern")}


@pytest.fixture(scope="module")
def old(libs_folder, tiny_spm_model, folders) -> Iterator[ServerProcess]:
    """A server with the defaults of 2024."""
    with start(folders["2024"], tiny_spm_model, "2024") as server:
        yield server


@pytest.fixture(scope="module")
def new(libs_folder, tiny_spm_model, folders) -> Iterator[ServerProcess]:
    """A server with today's defaults."""
    with start(folders["modern"], tiny_spm_model, "modern") as server:
        yield server


def defaults(server: ServerProcess) -> dict[str, object]:
    return server.get("/props").json()["default_generation_settings"]


def test_every_row_of_the_table_is_looked_at():
    assert {option or what for option, what, _, _ in list_compat_rows()} == SEEN_HERE | SEEN_ELSEWHERE


@pytest.mark.covers("X9")
def test_the_defaults_of_2024_are_the_documented_ones(old):
    shown = defaults(old)
    assert {name: shown[name] for name in DOCUMENTED} == DOCUMENTED
    assert [name for name in shown["samplers"] if name in DOCUMENTED_SAMPLERS] == DOCUMENTED_SAMPLERS
    effective = old.complete("the cat", 1)["generation_settings"]
    assert {name: effective[name] for name in DOCUMENTED if name not in ("n_predict", "seed", "temperature")} == {
        name: value for name, value in DOCUMENTED.items() if name not in ("n_predict", "seed", "temperature")
    }


def test_today_s_defaults_differ_where_the_table_says(old, new):
    before, after = defaults(old), defaults(new)
    differing = {name for name in DOCUMENTED if before[name] != after[name]}
    assert differing == {"repeat_penalty", "cache_prompt", "n_ctx"}
    assert (after["repeat_penalty"], after["cache_prompt"], after["n_ctx"]) == (1.0, True, 2048)


def test_a_tail_free_cut_works_without_naming_the_samplers(old, new):
    """It is among the documented default samplers, so giving its value is enough."""
    for server in (old, new):
        free = {"n_probs": 40, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        for tfs_z, n_left in ((1.0, 40), (0.05, 1)):
            probs = server.complete("the cat", 1, **free, tfs_z=tfs_z)["completion_probabilities"][0]["probs"]
            assert sum(prob["prob"] > 0 for prob in probs) == n_left


def test_the_repeat_penalty_is_in_effect(old, new):
    """The same request; only in 2024 is a repeated word less likely than without penalty."""
    body = {"n_probs": 200, "temperature": 1.0, "samplers": ["top_k"], "top_k": 0, "seed": 1}
    for server, is_penalised in ((old, True), (new, False)):
        plain, default = (
            server.complete("the cat saw the cat", 1, **body, **more)["completion_probabilities"][0]
            for more in ({"repeat_penalty": 1.0}, {})
        )
        assert (plain["probs"] != default["probs"]) is is_penalised


def test_a_prompt_is_kept_only_today(old, new):
    for server, is_kept in ((old, False), (new, True)):
        first, second = (server.complete("the old tree near the river", 2) for _ in range(2))
        assert (second["timings"]["cache_n"] > 0) is is_kept
        assert first["content"] == second["content"]
        assert server.complete("the old tree near the river", 2, cache_prompt=True)["timings"]["prompt_n"] in (
            1,
            first["tokens_evaluated"],
        )


def test_a_full_context_goes_on_only_in_2024(old, new):
    cat = old.post("/tokenize", {"content": "the cat"}).json()["tokens"]
    for server, n_ctx, goes_on in ((old, 512, True), (new, 2048, False)):
        prompt = (cat * n_ctx)[: n_ctx - 20]
        result = server.complete(prompt, 60)
        assert result["truncated"] and (result["tokens_predicted"] == 60) is goes_on
        assert result["stop_type"] == "limit"
        too_long = server.post("/completion", {"prompt": (cat * n_ctx)[: n_ctx + 100], "n_predict": 3})
        assert too_long.status_code == (200 if goes_on else 400)
        if goes_on:
            assert too_long.json()["truncated"] and too_long.json()["tokens_evaluated"] < n_ctx
        else:
            error = too_long.json()["error"]
            assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == (
                "exceed_context_size_error",
                n_ctx + 100,
                n_ctx,
            )


def test_next_token_has_the_shape_of_its_time(old, new):
    assert isinstance(old.get("/slots").json()[0]["next_token"], dict)
    (item,) = new.get("/slots").json()[0]["next_token"]
    assert item["n_decoded"] == item["num_tokens_predicted"]


def test_a_list_of_strings_is_one_prompt_in_2024_and_several_today(old, new):
    body = {"prompt": ["the cat", " ran home"], "n_predict": 2, "temperature": 0}
    one = old.post("/completion", body).json()
    parts = [
        old.post("/tokenize", {"content": text, "add_special": i == 0}).json()["tokens"]
        for i, text in enumerate(body["prompt"])
    ]
    assert one["tokens_evaluated"] == sum(map(len, parts)), "BOS once, in front"
    assert [answer["index"] for answer in new.post("/completion", body).json()] == [0, 1]


def test_penalties_come_first_in_2024_and_where_they_are_named_today(old, new):
    for server, shown in ((old, ["penalties", "top_k", "temperature"]), (new, ["top_k", "temperature"])):
        settings = server.complete("x", 1, samplers=["top_k", "temperature"])["generation_settings"]
        assert settings["samplers"] == shown
        settings = server.complete("x", 1, samplers=["top_k", "penalties"])["generation_settings"]
        assert settings["samplers"] == ["top_k", "penalties"]


@pytest.mark.covers("C30")
@pytest.mark.parametrize(("profile", "is_joined"), [("2024", False), ("modern", True)])
def test_a_new_request_joins_the_running_ones_only_today(libs_folder, tiny_spm_model, folders, profile, is_joined):
    with start(folders[profile], tiny_spm_model, profile, "-np", 2, "--context-shift") as server:
        endless = server.stream("/completion", {"prompt": "the cat", "n_predict": -1, "ignore_eos": True})
        next(endless)
        answers: list[dict] = []
        thread = threading.Thread(target=lambda: answers.append(server.complete("red fox", 2)), daemon=True)
        thread.start()
        if is_joined:
            thread.join(60)
            assert answers and server.get("/health").json()["slots_processing"] == 1
        else:
            wait_until(lambda: "llamacpp:requests_deferred 1" in server.get("/metrics").text, "one that waits")
            assert server.get("/health").json()["slots_idle"] == 1 and not answers
        endless.close()
        thread.join(60)
        assert answers[0]["tokens_predicted"] == 2


def test_the_log_is_json_in_a_file_only_in_2024(old, new, folders):
    old.get("/health")
    new.get("/health")
    lines = (folders["2024"] / "llama.log").read_text("utf-8").splitlines()
    assert len(lines) > 3
    for record in map(json.loads, lines):
        assert {"timestamp", "level", "msg"} <= set(record), record
    assert any(line.startswith("{") for line in old.log.splitlines()), "and on stdout"
    assert list(folders["modern"].iterdir()) == []
    assert not any(line.startswith("{") for line in new.log.splitlines())
