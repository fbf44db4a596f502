"""What a study is at now, and how far: small files that other processes read.

A stage that `hialign reproduce` started says in its report what it does, and later how that ended.
The cells of its notebook show nothing before they end, so the notebook writes how far it is into a
second file. `hialign.run.console` draws both.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from hialign.records import processes

REPORT = "HIALIGN_REPORT"  # where the process of a stage writes its report, if anyone reads it
PROGRESS = "HIALIGN_PROGRESS"  # where a notebook writes its progress, if anyone reads it


class Report(TypedDict, total=False):
    what: str
    process: str  # `host:pid`
    seconds: float  # that it took; absent while it is at work
    error: str  # absent if it did not fail


class Progress(TypedDict):
    step: str  # of the stage: what is counted
    done: int
    total: int | None
    remaining: float | None  # seconds that the rest of the step will take


def report_of(marker: Path) -> Path:
    """The report of the job that leaves this marker when it is done."""
    return marker.with_name(f"{marker.name}.report")


def progress_of(report: Path) -> Path:
    """Where the notebook of a stage writes its progress."""
    return report.with_name(f"{report.name}.progress")


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Report what this process does and how it ends, if `REPORT` names a file for it."""
    if not os.environ.get(REPORT):
        yield
        return
    place = Path(os.environ[REPORT]).absolute()
    os.environ[PROGRESS] = str(progress_of(place))
    report = Report(what=what, process=processes.watched())
    began = time.monotonic()
    write(place, report)
    try:
        yield
    except Exception as error:
        write(place, report | Report(seconds=time.monotonic() - began, error=str(error)))
        raise
    write(place, report | Report(seconds=time.monotonic() - began))


def write(place: Path, content: Report | Progress) -> None:
    """Write a report or progress. A stage must not fail because it cannot."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content), encoding="utf-8")


def read(place: Path) -> dict[str, Any]:
    """A report or progress. Empty if there is none, or if it is being written at this moment."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
