"""What the terminal shows of stages at work: a live line for each, a plain one when it has ended.

Without a terminal there are only plain lines. They mention a stage that works for long now and
again, at growing intervals.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hialign.records import processes, running

FIRST_MENTION = 60.0  # seconds after which a log mentions a stage that is still at work


@dataclass
class Stage:
    """A stage at work."""

    what: str
    progress_file: Path
    began: float = field(default_factory=lambda: time.monotonic())
    next_mention: float = FIRST_MENTION
    progress: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def update(self) -> None:
        """Read how far it is. While the file is being written, what was read last stays."""
        self.progress = running.read(self.progress_file) or self.progress

    def counted(self) -> str:
        """How far its present step is, such as `train 12/40`. Empty before the first."""
        if not self.progress:
            return ""
        total = f"/{self.progress['total']}" if self.progress["total"] else ""
        return f"{self.progress['step']} {self.progress['done']}{total}".strip()


def table_of(stages: Sequence[Stage]) -> Table:
    """A line per stage: what it is, a bar, how far it is, elapsed and remaining time."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(5):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for stage in stages:
        total, remaining = stage.progress.get("total"), stage.progress.get("remaining")
        table.add_row(
            Text(stage.what),
            ProgressBar(total, stage.progress.get("done", 0), width=20, pulse=not total),
            Text(stage.counted()),
            clock(stage.seconds),
            f"{clock(remaining)} left" if remaining else "",
        )
    return table


class Board:
    """The stages that `hialign reproduce` runs, read from the reports beside their markers."""

    def __init__(self, markers: Sequence[Path]) -> None:
        self._reports = [running.report_of(marker) for marker in markers]
        self._at_work: dict[Path, Stage] = {}
        self._ended: set[Path] = set()
        self._began = time.monotonic()
        self._screen = Console(highlight=False)
        self._live = Live(
            get_renderable=self._drawn, console=self._screen, auto_refresh=False, transient=True
        )

    def __enter__(self) -> "Board":
        self._delete_reports()
        if self._screen.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.update()
        self._live.stop()
        if kind is None:  # on another machine nobody sees that a process was killed
            for stage in self._at_work.values():
                self._print(f"{stage.what}: ended without a word", "red")
        self._delete_reports()

    def update(self) -> None:
        """Read the reports, print a line for each stage that has ended, and draw the others."""
        for place in self._reports:
            if place not in self._ended and (report := _report(place)):
                self._follow(place, report)
        if self._live.is_started:
            self._live.refresh()

    def _follow(self, place: Path, report: dict[str, Any]) -> None:
        stage = self._at_work.setdefault(place, Stage(report["what"], running.progress_of(place)))
        if "seconds" not in report and "error" not in report:
            stage.update()
            self._mention(stage)
            return
        del self._at_work[place]
        self._ended.add(place)
        took = duration(report.get("seconds", stage.seconds))
        if error := report.get("error"):
            self._print(f"{stage.what}: failed after {took}: {error}", "red")
        else:
            self._print(f"{stage.what}: {took}")

    def _mention(self, stage: Stage) -> None:
        """Without a terminal, say that a stage is still at work, each time it took twice as long."""
        if self._live.is_started or stage.seconds < stage.next_mention:
            return
        stage.next_mention *= 2
        counted = f" ({stage.counted()})" if stage.counted() else ""
        self._print(f"{stage.what}: at work for {duration(stage.seconds)}{counted}")

    def _print(self, line: str, style: str = "") -> None:
        self._screen.print(Text(line, style), soft_wrap=True)

    def _drawn(self) -> Group:
        count = f"{len(self._ended)} of {len(self._reports)} stages have run"
        elapsed = clock(time.monotonic() - self._began)
        return Group(table_of([*self._at_work.values()]), Text(f"{count}  {elapsed}", "dim"))

    def _delete_reports(self) -> None:
        for report in self._reports:
            report.unlink(missing_ok=True)
            running.progress_of(report).unlink(missing_ok=True)


def _report(place: Path) -> dict[str, Any]:
    """The report of a stage. If its process was killed, the report says so."""
    report = running.read(place)
    if "process" in report and "seconds" not in report and processes.is_gone(report["process"]):
        report = running.read(place) or report  # it may have ended by itself just now
        if "seconds" not in report:
            report["error"] = "its process was killed"
    return report


@contextlib.contextmanager
def shown(what: str, progress_file: Path) -> Iterator[None]:
    """On a terminal, draw how far the notebook is that is executed inside."""
    screen = Console(stderr=True)
    if running.PROGRESS in os.environ or not screen.is_terminal:  # `hialign reproduce` draws it
        yield
        return
    stage = Stage(what, progress_file)

    def drawn() -> Table:
        stage.update()
        return table_of([stage])

    os.environ[running.PROGRESS] = str(progress_file)
    try:
        with Live(get_renderable=drawn, console=screen, transient=True):
            yield
    finally:
        del os.environ[running.PROGRESS]
        progress_file.unlink(missing_ok=True)


def clock(seconds: float) -> str:
    """A time as a clock shows it: `0:01:23`, `2:05:07`."""
    return str(timedelta(seconds=round(seconds)))


def duration(seconds: float) -> str:
    """A time in words, in its two largest units: `41 s`, `1 min 23 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    units = {"h": hours, "min": minutes, "s": rest}
    words = [f"{count} {unit}" for unit, count in units.items() if count]
    return " ".join(words[:2]) or "0 s"
