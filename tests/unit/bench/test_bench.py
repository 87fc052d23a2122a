"""build_scripts/bench.py with fake servers: how it starts them, sends requests, counts, compares and fails.

The servers are small programs (`fake_peer.py`), so all workloads run in seconds. No figure that depends on the machine
is checked. The bare loop needs libraries and is tested in `tests/native`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.bench import chart, client, command, report, runner, servers, workloads
from tests.support import ROOT, build_script

bench = build_script("bench")

PEER = Path(__file__).with_name("fake_peer.py")
FAKE = f"{{python}} {PEER} {{port}}"


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run("--server", ...)` calls the script with a model file of no content: (exit code, stdout, stderr)."""
    model = tmp_path / "some model.gguf"
    model.write_bytes(b"GGUF")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = bench.main(["-m", str(model), "--quick", "--repeat", "1", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def outcome(runs: dict[str, list[tuple]], **more: object):
    """An Outcome of a workload with the metrics `rate` and `wait`."""
    row = workloads.Workload(
        "work",
        "some work",
        None,
        (workloads.Metric("rate", "tok/s", workloads.MORE), workloads.Metric("wait", "ms", workloads.LESS)),
        1,
        1,
    )
    return report.Outcome(row, runs, more.pop("troubles", {}), **more)


# ------------------------------------------------------------------------------------------------ whole runs


def test_all_workloads_run_on_two_servers_and_every_metric_gets_a_value(run, tmp_path: Path):
    file = tmp_path / "figures.json"
    code, out, _ = run("--server", f"a={FAKE}", "--server", f"b=GREETING=hello {FAKE}", "--json", file)
    assert code == 0, out
    data = json.loads(file.read_text())
    assert data["peers"] == ["a", "b"]
    assert [row["name"] for row in data["workloads"]] == [row.name for row in workloads.WORKLOADS if not row.is_special]
    for row in data["workloads"]:
        assert row["failed"] == {}
        for metric in row["metrics"]:
            assert {peer: len(runs) for peer, runs in metric["runs"].items()} == {"a": 1, "b": 1}
            may_be_none = metric["name"] == "reader meanwhile"  # the fake's stream may end before the prompts come
            assert may_be_none or all(runs[0] > 0 for runs in metric["runs"].values()), (row["name"], metric)
            assert set(metric["ratio"]) == {"b"}
    assert "6 conversations of 4 turns on 2 slots" in out and "a/b" in out


def test_a_shared_prefix_is_counted_once_by_the_least_possible(run, tmp_path: Path):
    file = tmp_path / "figures.json"
    run("--server", f"a={FAKE}", "--workloads", "prefix,conversations", "--json", file)
    prefix, turns = json.loads(file.read_text())["workloads"]
    evaluated, ratio = (prefix["metrics"][i]["median"]["a"] for i in (1, 2))
    n_least = evaluated / ratio
    # 90 words that all share and 16 times 4 of their own, cut at --quick's tenth
    assert n_least == pytest.approx(90 + 16 * 4, abs=1)
    assert turns["metrics"][1]["median"]["a"] > 0


def test_a_server_that_dies_is_reported_with_its_last_words_and_the_others_go_on(run):
    code, out, _ = run("--server", f"a={FAKE}", "--server", f"b={FAKE} die", "--workloads", "single")
    assert code == 1
    assert "b failed: b ended at its start with code 3: " in out
    assert "no such model | I give up" in out
    line = next(line for line in out.splitlines() if "streamed" in line)
    assert line.split()[-2:] == ["-", "-"] and float(line.split()[-3]) > 0


def test_a_server_that_refuses_is_reported_with_what_it_said(run):
    code, out, _ = run("--server", f"a={FAKE} refuse", "--workloads", "streams8,memory")
    assert code == 1
    assert out.count("a failed: a: /completion answered 400: ") == 2
    assert "not today" in out


def test_a_command_that_does_not_exist_is_one_line(run):
    code, out, _ = run("--server", "a=/no/such/program {port}", "--workloads", "tokenize")
    assert code == 1
    assert "a failed: a: /no/such/program can't be started" in out


def test_no_process_survives(run, tmp_path: Path):
    file = tmp_path / "pid"
    script = tmp_path / "peer.py"
    script.write_text(
        f"import os, runpy, sys\nopen({str(file)!r}, 'a').write(f'{{os.getpid()}} ')\n"
        f"runpy.run_path({str(PEER)!r}, run_name='__main__')\n"
    )
    run("--server", f"a={{python}} {script} {{port}}", "--workloads", "startup,single", "--one-at-a-time")
    pids = [int(pid) for pid in file.read_text().split()]
    assert len(pids) == 2
    if os.name == "posix":
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_repetitions_alternate_and_begin_with_another_server_each_time(tmp_path: Path):
    settings = runner.Settings(tmp_path, 1, repeat=3, seed=100)
    made = runner.Bench(
        [servers.parse_server(f"{name}={FAKE}") for name in "ab"], settings, tmp_path, lambda text: None
    )
    order = []
    row = outcome({}).workload._replace(run=lambda peer, plan: order.append((peer, plan.repetition)) or (1.0, 1.0))
    found = made._measure(row, {"a": "a", "b": "b"}, {})
    seed = settings.seed
    assert order == [("a", seed), ("b", seed), ("b", seed + 1), ("a", seed + 1), ("a", seed + 2), ("b", seed + 2)]
    assert {name: len(runs) for name, runs in found.runs.items()} == {"a": 3, "b": 3}


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--server", "nonsense"], "write it as NAME=COMMAND"),
        (["--server", "bare=x {port}"], "write it as NAME=COMMAND"),
        (["--server", "a="], "the command is missing"),
        (["--server", "a=VAR=1"], "the command is missing"),
        (["--server", "a=serve --port 80"], "needs the placeholder {port}"),
        (["--server", "a=serve '{port}"], "can't be split"),
        (["--server", "a=x {port}", "--server", "a=y {port}"], "same name"),
        (["--workloads", "single,doubel"], "doubel is unknown; use one of startup, single,"),
        (["--threads", "0"], "must be at least 1"),
    ],
)
def test_mistakes_are_one_line(run, arguments: list[str], complaint: str):
    code, _, err = run(*arguments)
    lines = [line for line in err.splitlines() if "isn't idle" not in line]
    assert code == 1 and len(lines) == 1 and complaint in lines[0]


def test_a_missing_model_says_where_to_get_one():
    done = subprocess.run(
        [sys.executable, str(ROOT / "build_scripts" / "bench.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "fetch_model.py" in done.stderr


def test_the_list_shows_every_workload(capsys: pytest.CaptureFixture[str]):
    assert bench.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        row.name for row in workloads.WORKLOADS
    ]


@pytest.mark.parametrize(
    "argv, rest",
    [
        (["--bench", "-m", "x"], ["-m", "x"]),
        (["-m", "x", "--bench", "single,prefill"], ["-m", "x"]),
        (["--bench=single", "-c", "5"], ["-c", "5"]),
        (["-m", "x"], ["-m", "x"]),
    ],
)
def test_the_server_that_measures_itself_starts_one_that_serves(argv, rest):
    assert command.without_bench(argv) == rest


def test_own_workloads_exist_and_the_own_server_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert len(runner.choose(command.OWN)) == len(command.OWN.split(","))
    script = tmp_path / "own.py"
    script.write_text(
        f"import runpy, sys\nassert sys.argv[1:3] == ['-c', '5'], sys.argv\n"
        f"sys.argv = ['x', sys.argv[sys.argv.index('--port') + 1]]\n"
        f"runpy.run_path({str(PEER)!r}, run_name='__main__')\n"
    )
    code = command.measure(
        [sys.executable, str(script)],
        ["--bench", "single", "-c", "5"],
        "single,tokenize",
        "m.gguf",
        1,
        repeat=1,
        scale=0.1,
    )
    out = capsys.readouterr().out
    assert code == 0 and "m.gguf, 1 threads" in out and "tokenize" in out


def test_a_command_keeps_its_braces_and_gets_its_values():
    spec = servers.parse_server(
        "a=LD_LIBRARY_PATH=/x/y A_B=1 'my server' -m {model} --port {port} --json '{\"a\": {}}'"
    )
    assert spec.environment == {"LD_LIBRARY_PATH": "/x/y", "A_B": "1"}
    values = {"model": "a b.gguf", "port": 81}
    assert [servers.fill(word, values) for word in spec.words] == [
        "my server",
        "-m",
        "a b.gguf",
        "--port",
        "81",
        "--json",
        '{"a": {}}',
    ]


# ------------------------------------------------------------------------------------------------ figures


def test_medians_and_ratios_are_of_the_first_over_the_others():
    found = outcome({"a": [(10.0, 5.0), (30.0, 1.0), (20.0, 2.0)], "b": [(20.0, 4.0), (10.0, 4.0), (25.0, 4.0)]})
    rate, wait = (report.compute_figures(found, i, "a") for i in (0, 1))
    assert rate.medians == {"a": 20.0, "b": 20.0} and rate.ratios == {"b": 0.8}
    assert wait.medians == {"a": 2.0, "b": 4.0} and wait.ratios == {"b": 0.5}


def test_a_machine_that_gets_slower_in_the_course_of_a_run_moves_no_ratio():
    found = outcome({"a": [(60.0 / i, 2.0 * i) for i in range(1, 6)], "b": [(30.0 / i, i) for i in range(1, 6)]})
    assert [report.compute_figures(found, i, "a").ratios for i in (0, 1)] == [{"b": 2.0}, {"b": 2.0}]


def test_a_ratio_comes_with_the_range_of_the_repetitions():
    found = outcome({"a": [(10.0, 5.0), (30.0, 1.0), (20.0, 2.0)], "b": [(20.0, 4.0), (10.0, 4.0), (25.0, 4.0)]})
    assert report.compute_figures(found, 0, "a").ranges == {"b": (0.5, 3.0)}
    assert report.text_of(found, ["a", "b"])[2].split()[-2:] == ["0.800", "(0.50-3.00)"]


def test_nothing_is_divided_by_nothing():
    assert report.compute_figures(outcome({"a": [(1.0, 1.0)], "b": [(0.0, 0.0)]}), 0, "a").ratios == {}


def test_the_table_has_dashes_where_a_server_has_no_figure():
    lines = report.text_of(outcome({"a": [(1234.5, 0.5)]}, troubles={"b": "it broke"}), ["a", "b"])
    assert lines[2].split() == ["rate,", "tok/s", "1234", "-", "-"]
    assert lines[3].split() == ["wait,", "ms", "0.500", "-", "-", "(less", "is", "better)"]
    assert lines[4] == "  b failed: it broke"


@pytest.mark.parametrize(
    "metric, runs, goal",
    [
        (("MORE", 1.0), {"a": 10.0, "b": 9.0, "c": 11.0}, ">= 1.00 missed"),  # against the best of the others
        (("MORE", 1.0), {"a": 12.0, "b": 9.0, "c": 11.0, "bare": 99.0}, ">= 1.00 reached"),
        (("LESS", 0.2), {"a": 1.0, "b": 10.0, "c": 4.0}, "<= 0.20 missed"),
        (("LESS", 0.2), {"a": 0.5, "b": 10.0, "c": 4.0}, "<= 0.20 reached"),
        (("MORE", 1.0, 0.98), {"a": 97.0, "bare": 100.0}, ">= 0.98 missed"),
        (("LESS", None, None, 1.05), {"a": 1.2}, "<= 1.05 missed"),
        (("MORE", 1.0), {"a": 1.2}, ""),
        (("MORE",), {"a": 1.0, "b": 2.0}, ""),
    ],
)
def test_goals_are_against_the_strongest_of_the_others(metric, runs, goal):
    row = workloads.Metric("figure", "x", getattr(workloads, metric[0]), *metric[1:])
    found = outcome({name: [(value,)] for name, value in runs.items()})
    found = found._replace(workload=found.workload._replace(metrics=(row,)))
    assert report.compute_figures(found, 0, "a").goal == goal
    assert goal in "\n".join(report.text_of(found, list(runs)))


def test_the_chart_is_xml_with_a_bar_for_each_server_that_was_measured():
    found = outcome({"a": [(10.0, 5.0)], "b <&>": [(20.0, 2.5)]})
    root = ElementTree.fromstring(chart.svg_of([found], ["a", "b <&>"], "one & two"))
    bars = [box for box in root.iter("{http://www.w3.org/2000/svg}rect") if box.get("height") == "10"][2:]
    assert [float(box.get("width")) for box in bars] == [chart.BAR / 2, chart.BAR] * 2  # shorter is worse, both ways
    assert any("b <&>" == text.text for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_a_chart_without_figures_has_no_rows():
    assert "rate" not in chart.svg_of([outcome({}, troubles={"a": "no"})], ["a"], "nothing")


def test_a_disturbed_run_says_so():
    quiet, noisy = (report.text_of(outcome({"a": [(1.0, 1.0)]}, foreign=share), ["a"]) for share in (0.02, 0.4))
    assert "disturbed" not in "".join(quiet)
    assert "other programs used 40% of the processor time" in "".join(noisy)


def test_processor_time_is_divided_into_ours_and_theirs(tmp_path: Path):
    def process(pid: int, parent: int, session: int, ticks: int) -> None:
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "stat").write_text(
            f"{pid} (a (b) c) S {parent} {session} {session} 0 -1 0 0 0 0 0 {ticks} {ticks} 0 0 20 0 1 0"
        )

    def state(busy: int, ours: int, server: int, its_child: int, other: int) -> tuple:
        (tmp_path / "stat").write_text(f"cpu  {busy} 0 0 9999 7 0 0 0 0 0\ncpu0 ...\n")
        process(10, 1, 5, ours)  # the script, in the session of some shell
        process(20, 10, 20, server)
        process(21, 20, 20, its_child)
        process(30, 5, 5, other)
        return servers.read_cpu_seconds(tmp_path, 10)

    before = state(1000, 10, 20, 30, 40)
    after = state(1200, 20, 40, 60, 500)
    assert runner.compute_foreign_share(before, after) == pytest.approx(1 - 2 * (10 + 20 + 30) / 200)
    assert runner.compute_foreign_share(None, after) is None
    assert servers.read_cpu_seconds(tmp_path / "nowhere") is None


def test_a_server_is_all_that_it_started_whatever_the_session():
    def row(pid: int, parent: int, session: int) -> tuple:
        return pid, ["S", str(parent), "0", str(session)]

    rows = [
        row(1, 0, 1),
        row(20, 10, 20),
        row(21, 20, 20),
        row(22, 21, 22),
        row(23, 22, 22),
        row(24, 1, 22),
        row(30, 1, 30),
    ]
    assert [pid for pid, _ in servers.find_family(rows, 20)] == [20, 21, 22, 23, 24]


def test_percentiles_are_values_that_occurred():
    ordered = [1, 2, 3, 4, 5, 6, 7, 8, 9, 100]
    assert [workloads.compute_percentile(ordered, p) for p in (0, 50, 90, 99, 100)] == [1, 5, 9, 100, 100]


def test_swapping_asks_two_models_in_turns(monkeypatch: pytest.MonkeyPatch):
    asked = []

    class TwoModels:
        name = "two"
        has = ["a", "b"]

        def list_models(self):
            return self.has

        def generate(self, asks):
            asked.extend(ask.fields["model"] for ask in asks)
            return [SimpleNamespace(arrivals=(len(asked) / 10,))]

    monkeypatch.setattr(workloads, "SWAP_PAUSE_S", 0.0)
    assert workloads.swap(TwoModels(), workloads.Plan(0)) == (0.3, 0.2) and asked == ["a", "b", "a"]
    TwoModels.has = ["a"]
    with pytest.raises(client.BenchError, match="two models; it has 1"):
        workloads.swap(TwoModels(), workloads.Plan(0))


def test_texts_differ_by_repetition_and_key_but_not_by_run():
    plan = workloads.Plan(3)
    assert plan.make_text(100, "a", 1) == workloads.Plan(3).make_text(100, "a", 1)
    assert (
        len({plan.make_text(100, "a", 1), plan.make_text(100, "a", 2), workloads.Plan(4).make_text(100, "a", 1)}) == 3
    )
    assert len(plan.make_text(1200, "a").split()) == 1200
    assert workloads.Plan(3, 0.1).count(1200) == 120 and workloads.Plan(3, 0.1).count(3) == 4


def test_workloads_have_names_of_their_own_and_metrics():
    names = [row.name for row in workloads.WORKLOADS]
    assert len(set(names)) == len(names)
    for row in workloads.WORKLOADS:
        assert row.metrics and row.help
        assert len({metric.name for metric in row.metrics}) == len(row.metrics)
        assert {metric.better for metric in row.metrics} <= {workloads.MORE, workloads.LESS}


# ------------------------------------------------------------------------------------------------ the client


class Scripted:
    """A response whose reads are given."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    def read1(self, _n: int) -> bytes:
        return self._parts.pop(0) if self._parts else b""


@pytest.mark.parametrize(
    "parts, n_events",
    [
        ((b"data: 1\n\ndata: 2\n\n",), 2),
        ((b"data: 1\n", b"\ndata: 2\n", b"\n"), 2),
        ((b"data: 1\n\n", b"data: 2"), 1),
        ((b"d", b"ata: 1\n", b"\n", b"data: 2\n\n"), 2),
        ((), 0),
    ],
)
def test_an_event_counts_when_it_is_complete_however_it_is_cut(parts: tuple[bytes, ...], n_events: int):
    arrivals, raw = client.read_events(Scripted(*parts))
    assert len(arrivals) == n_events and arrivals == sorted(arrivals)
    assert raw == b"".join(parts)


def test_events_are_parsed_without_the_closing_mark():
    assert client.parse_events(b'data: {"a":1}\n\n: ping\n\ndata: {"b":2}\n\ndata: [DONE]\n\n') == [{"a": 1}, {"b": 2}]


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux")
def test_peak_memory_covers_what_a_server_started(tmp_path: Path):
    script = (
        "import subprocess, sys; x = bytearray(40 << 20); del x; "
        "child = subprocess.Popen([sys.executable, '-c', \"x = bytearray(60 << 20); print('ready', flush=True); "
        'input()"], stdin=0); child.wait()'
    )
    with servers.child_of(
        "some", [sys.executable, "-c", script], tmp_path, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as (child, _):
        assert child.stdout.readline() == b"ready\n"
        assert 100 < servers.read_peak_memory(child.pid) < 300


def test_servers_keep_their_bytecode_as_they_do_for_their_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    script = "import sys; print(sys.dont_write_bytecode, flush=True); input()"
    with servers.child_of(
        "some", [sys.executable, "-c", script], tmp_path, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as (child, _):
        assert child.stdout.readline() == b"False\n"
