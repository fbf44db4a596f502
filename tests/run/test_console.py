"""What the terminal shows of stages at work, and what a log says without a terminal."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hialign.engine.progress import Progress
from hialign.records import processes, running
from hialign.run import console


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "train" / "a-model" / "mid.cell"


def test_times_are_read_as_people_say_them() -> None:
    assert [console.duration(s) for s in (0.4, 41.2, 60, 83, 7500)] == [
        "0 s",
        "41 s",
        "1 min",
        "1 min 23 s",
        "2 h 5 min",
    ]
    assert [console.clock(s) for s in (0, 83, 7507)] == ["0:00:00", "0:01:23", "2:05:07"]


def test_a_stage_that_has_ended_is_a_line_and_its_report_goes(
    marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = running.report_of(marker)
    monkeypatch.setenv(running.REPORT, str(report))
    monkeypatch.setenv(running.PROGRESS, "")  # which `reported` changes
    with console.Board([marker]) as board:
        with running.reported("train: a-model, mid"):
            board.update()
            assert capsys.readouterr().out == ""
        board.update()
        board.update()
        assert capsys.readouterr().out == "train: a-model, mid: 0 s\n"
    assert not report.exists()


def test_a_stage_that_fails_says_why_in_one_line(
    marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(running.REPORT, str(running.report_of(marker)))
    monkeypatch.setenv(running.PROGRESS, "")
    with (
        console.Board([marker]),
        pytest.raises(ValueError, match="no such layer"),
        running.reported("train: mid"),
    ):
        raise ValueError("no such layer, " + "a path that is longer than a line/" * 5)
    out = capsys.readouterr().out
    assert out.startswith("train: mid: failed after 0 s: no such layer, a path that")
    assert out.count("\n") == 1


def test_a_process_that_was_killed_is_told(
    marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    process = processes.watched().replace(str(os.getpid()), str(ended.pid))
    with console.Board([marker]) as board:
        running.write(running.report_of(marker), running.Report(what="train", process=process))
        board.update()
        assert capsys.readouterr().out == "train: failed after 0 s: its process was killed\n"


def test_one_of_another_machine_is_told_at_the_end(
    marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.Board([marker]) as board:
        elsewhere = running.Report(what="train", process="elsewhere:1")
        running.write(running.report_of(marker), elsewhere)
        board.update()
        assert capsys.readouterr().out == ""
    assert capsys.readouterr().out == "train: ended without a word\n"


def test_a_log_mentions_a_long_stage_at_growing_intervals(
    marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, now = running.report_of(marker), time.monotonic()
    running.write(report, running.Report(what="train", process=processes.watched()))
    board = console.Board([marker])
    done = running.Progress(step="steps", done=12, total=40, remaining=3.0)
    running.write(running.progress_of(report), done)
    for seconds in range(0, 600, 20):
        monkeypatch.setattr(time, "monotonic", lambda: now + seconds)  # noqa: B023
        board.update()
    at = [line.removesuffix(" (steps 12/40)") for line in capsys.readouterr().out.splitlines()]
    assert at == [f"train: at work for {m} min" for m in (1, 2, 4, 8)]


def test_the_bar_of_a_notebook_is_written_for_others_to_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "new" / "bar"
    monkeypatch.setenv(running.PROGRESS, str(place))
    with Progress(total=3, desc="steps", mininterval=0) as bar:
        bar.update(2)
        bar.refresh()
        read = running.read(place)
        assert (read["step"], read["done"], read["total"]) == ("steps", 2, 3)
        assert read["remaining"] >= 0
    stage = console.Stage("train: a model", place)
    stage.update()
    assert stage.counted() == "steps 2/3"
    place.write_text('{"step": ')  # is being written
    stage.update()
    assert stage.counted() == "steps 2/3"


def test_a_terminal_draws_the_stage_and_clears_it(tmp_path: Path) -> None:
    """In a pseudo-terminal: a live line while a notebook runs by hand, nothing of it afterwards."""
    code = f"""
import time
from pathlib import Path
from hialign.engine.progress import Progress
from hialign.run.console import shown
with shown("train: a model, mid", Path({str(tmp_path / "bar")!r})):
    with Progress(range(8), desc="steps", file=open("/dev/null", "w"), mininterval=0) as bar:
        for _ in bar:
            time.sleep(0.1)
    time.sleep(0.5)
print("end")
"""
    pty = "import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', sys.argv[1]]))"
    done = subprocess.run(
        [sys.executable, "-c", pty, code],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm"},
    )
    assert "train: a model, mid" in done.stdout
    assert "steps 8/8" in done.stdout
    assert "\x1b[2K" in done.stdout, "the line is cleared"
    assert not (tmp_path / "bar").exists()
