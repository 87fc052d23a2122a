"""The bare loop of build_scripts/bench.py compared with the server, on a tiny model.

The figures depend on the machine and aren't checked. Both sides must compute the same text.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.bench import client, servers, workloads
from tests.support import build_script

bench = build_script("bench")
loop = build_script("bench_loop")

PROMPTS = ("Once upon a time there was a", "The sun", "All of the children went to the house of the old man and")


def asks(fields: dict, n_predict: int = 24) -> list:
    """A request for each prompt."""
    return [client.Ask(prompt, n_predict, fields) for prompt in PROMPTS]


def test_the_bare_loop_computes_what_our_server_answers(libs_folder: Path, tiny_spm_model: Path, tmp_path: Path):
    setup = servers.Setup(tiny_spm_model, 1, len(PROMPTS), 1024)
    with loop.BareSpec().run(setup, tmp_path, 60) as bare:
        greedy, alone = bare.generate(asks(workloads.GREEDY)), bare.generate(asks(workloads.GREEDY)[:1])
        sampled = [bare.generate(asks(workloads.SAMPLED)) for _ in range(2)]
    with servers.parse_server(servers.OURS).run(setup, tmp_path, 60) as ours:
        served, served_sampled = ours.generate(asks(workloads.GREEDY)), ours.generate(asks(workloads.SAMPLED))
    assert [answer.text for answer in greedy] == [answer.text for answer in served]
    assert alone[0].text == greedy[0].text
    assert [answer.text for answer in sampled[0]] == [answer.text for answer in sampled[1]]
    assert [answer.text for answer in sampled[0]] == [answer.text for answer in served_sampled]
    assert [answer.n_prompt for answer in greedy] == [answer.n_prompt for answer in served]
    for answer in (*greedy, *served):
        assert answer.n_predicted == 24
        assert list(answer.arrivals) == sorted(answer.arrivals) and answer.arrivals[-1] <= answer.ended


def test_one_run_compares_our_server_with_the_bare_loop(
    libs_folder: Path, tiny_spm_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    file = tmp_path / "figures.json"
    code = bench.main(
        [
            "-m",
            str(tiny_spm_model),
            "--threads",
            "1",
            "--workloads",
            "single,prefill,streams8",
            "--bare",
            "--quick",
            "--repeat",
            "2",
            "--json",
            str(file),
        ]
    )
    assert code == 0, capfd.readouterr()
    for row in json.loads(file.read_text())["workloads"]:
        for metric in row["metrics"]:
            # tokens of so quick a model are sent together: the median between two of them is nothing
            assert set(metric["runs"]) == {"ours", "bare"} and metric["ratio"]["bare"] >= 0


def test_a_model_that_cannot_be_loaded_is_reported(
    libs_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    code = bench.main(["-m", str(tmp_path / "broken.gguf"), "--workloads", "single", "--bare", "--repeat", "1"])
    out = capfd.readouterr().out
    assert code == 1
    assert "ours failed: ours ended at its start with code 2: error: " in out
    assert "bare failed: bare ended with code 1: can't load model" in out
