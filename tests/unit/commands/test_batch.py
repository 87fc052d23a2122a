"""The command `batch` without a model: options, refusals, progress, and continuing after a stop."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from server.batches.asking import Answer
from server.batches.lines import ENDPOINTS, read_lines
from server.batches.work import MAX_TRIES, Work
from server.commands import batch
from server.download.local import Bar
from server.engine.seam.task import GAVE_WAY
from server.errors import FAILED, MISCONFIGURED, StartError
from server.launch import main
from tests.support import wait_until


def write(path: Path, n: int = 3, **fields: object) -> Path:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    lines = [{"custom_id": f"r{i}", "method": "POST", "url": ENDPOINTS[0], "body": body} for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


class Asking:
    """Answers everything; what is asked n times gets the nth of `answers`, then the last."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers or (Answer(200, b'{"ok":true}'),)
        self.asked: list[str] = []
        self.gate: threading.Event | None = None

    def ask(self, id_, url, body, key_id, client) -> Answer:
        client.is_in.set()
        self.asked.append(id_)
        if self.gate is not None:
            with client.on_disconnect(self.gate.set):
                self.gate.wait(30)
            return Answer(499, b"")
        return self.answers[min(self.asked.count(id_), len(self.answers)) - 1]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"


def open_files(source: Path, target: Path) -> Work:
    with open(source, "rb") as stream:
        return batch.open_work(source, target, read_lines(stream)[0])


def ask_all(work: Work, asking: Asking, stop: threading.Event | None = None, n: int = 4) -> bool:
    return batch.ask_all(asking, work, n, stop or threading.Event(), Bar(say=lambda line: None))


def test_an_input_that_is_no_batch_is_told_by_line_before_anything_is_loaded(files, capsys):
    source, target = files
    source.write_text(source.read_text("utf-8") * 2 + "hello\n", "utf-8")
    assert main(["batch", str(source), str(target), "-m", "none.gguf"]) == MISCONFIGURED
    said = capsys.readouterr().err
    assert f"{source}:4: custom_id 'r0' is used twice" in said and f"{source}:7: " in said and "no line was run" in said
    assert not target.exists()


def test_what_cannot_be_read_or_loaded_is_one_line(files, capsys):
    source, target = files
    for words in (["none.jsonl", str(target)], [str(source), str(source)], [str(source), str(target)]):
        assert main(["batch", *words, "-m", "none.gguf"]) == MISCONFIGURED
        [line] = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")


def test_answers_to_other_requests_are_left_alone(files, capsys, tmp_path):
    source, target = files
    work = open_files(source, target)
    assert ask_all(work, Asking())
    work.close()
    before = target.read_bytes()
    other = write(tmp_path / "other.jsonl", temperature=0)
    assert main(["batch", str(other), str(target), "-m", "none.gguf"]) == MISCONFIGURED
    assert "requests that aren't in" in capsys.readouterr().err and target.read_bytes() == before


@pytest.mark.covers("J11")
def test_what_is_answered_is_not_asked_again_and_no_model_is_loaded_for_it(files, capsys):
    source, target = files
    work = open_files(source, target)
    assert ask_all(work, Asking())
    work.close()
    assert main(["batch", str(source), str(target), "-m", "none.gguf"]) == 0
    assert "3 of 3 lines have answers" in capsys.readouterr().err
    assert not batch.get_errors_path(target).exists()


def test_errors_go_to_a_file_beside_the_answers_and_are_the_exit_code(files, capsys):
    source, target = files
    work = open_files(source, target)
    assert ask_all(work, Asking(Answer(400, b'{"error":{"message":"no"}}')))
    work.close()
    assert main(["batch", str(source), str(target), "-m", "none.gguf"]) == FAILED
    assert "3 errors in" in capsys.readouterr().err
    found = [json.loads(line) for line in batch.get_errors_path(target).read_text("utf-8").splitlines()]
    assert {one["custom_id"] for one in found} == {"r0", "r1", "r2"}
    assert all(one["response"]["status_code"] == 400 for one in found)


def test_a_busy_engine_is_asked_again_and_one_that_stays_busy_is_an_error(files, monkeypatch):
    monkeypatch.setattr("server.batches.work.FIRST_WAIT_S", 0.0)
    source, target = files
    work, asking = open_files(source, target), Asking(Answer(503, b"{}"), Answer(503, b"{}"), Answer(200, b"{}"))
    assert ask_all(work, asking) and (work.n_completed, work.n_failed) == (3, 0) and len(asking.asked) == 9
    work.close()
    target.unlink()
    work, asking = open_files(source, target), Asking(Answer(503, b"{}"))
    assert ask_all(work, asking) and work.n_failed == 3 and len(asking.asked) == 3 * MAX_TRIES
    work.close()


def test_who_gives_way_is_asked_again_for_ever(files):
    source, target = files
    many = [Answer(503, b"{}", GAVE_WAY)] * 50
    work, asking = open_files(source, target), Asking(*many, Answer(200, b"{}"))
    assert ask_all(work, asking) and work.n_completed == 3 and len(asking.asked) == 153
    work.close()


def test_a_stop_ends_what_is_being_asked_and_leaves_it_open(files):
    source, target = files
    work, asking, stop = open_files(source, target), Asking(), threading.Event()
    asking.gate = threading.Event()
    thread = threading.Thread(target=lambda: (wait_until(lambda: asking.asked, "a question"), stop.set()))
    thread.start()
    assert not ask_all(work, asking, stop)
    thread.join()
    work.close()
    assert target.read_bytes() == b""
    again = open_files(source, target)
    assert ask_all(again, Asking()) and again.n_completed == 3
    again.close()


def test_a_line_that_has_changed_or_can_not_be_read_is_an_error(files):
    source, target = files
    work = open_files(source, target)
    source.write_text(source.read_text("utf-8").replace("hi", "ho"), "utf-8")
    asking = Asking()
    assert ask_all(work, asking) and work.n_failed == 3 and not asking.asked
    work.close()
    batch.get_errors_path(target).unlink()
    work = open_files(source, target)
    work._stream.close()
    assert ask_all(work, asking) and work.n_failed == 3
    work.close()


def test_a_full_disk_ends_it_with_one_line(files, monkeypatch):
    source, target = files
    work = open_files(source, target)

    def add(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(work.journal, "add", add)
    with pytest.raises(StartError, match="No space left"):
        ask_all(work, Asking())
    work.close()


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "1 h 0 min"),
                                           (7500, "2 h 5 min")])  # fmt: skip
def test_durations_are_for_people(seconds, text):
    assert batch.format_duration(seconds) == text


def test_progress_has_the_rate_and_the_time_left(files):
    work = open_files(*files)
    assert batch.describe_progress(work, 0, 5.0) == "0 of 3 lines"
    assert batch.describe_progress(work, 1, 4.0) == "1 of 3 lines, 0.2/s, 8 s left"
    work.close()
