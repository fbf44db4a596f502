"""`hialign verify`: compares every file of a study with the hash in its record."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hialign.records import files
from hialign.records.stages import is_published, stage_manifest
from hialign.records.status import State, probe_state, state
from hialign.study import paths
from hialign.study.study import Study, probe_runs, stages_of


@dataclass(frozen=True)
class Line:
    """The result for one record."""

    what: str
    result: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.result}"


def verify(study: Study) -> Iterator[Line]:
    """One line per existing record of the study. Every file is read again."""
    files.forget_hashes()
    for cell in study.cells():
        for stage in stages_of(cell):
            what = f"{stage} of {cell.model.name}, {cell.block}{_at(cell.seed)}"
            place = stage_manifest(cell, stage)
            yield from _line(study, what, place, state(cell, stage, thorough=True))
    for one, model, probe in probe_runs(study):
        place = paths.probe_record(one.name, model.name, probe, one.seed)
        current = probe_state(one, model, probe, thorough=True)
        yield from _line(one, f"{probe} probe of {model.name}{_at(one.seed)}", place, current)


def _at(seed: str) -> str:
    return f", {seed}" if seed else ""


def _line(study: Study, what: str, place: Path, current: State) -> Iterator[Line]:
    if not place.is_file():
        return
    if not current.trusted:
        yield Line(what, str(current), wrong=current.altered)
        return
    record = files.read_record(place)
    vouched = record.get("files", {})
    if files.CHECKSUM not in record:
        yield Line(what, "its record has no hashes, as an earlier version wrote it")
        return
    absent = [name for name in vouched if not (place.parent / name).is_file()]
    result = f"its record and {len(vouched) - len(absent)} files are as written"
    if absent and is_published(study):
        result += f", {len(absent)} were not published"
    if current.status != "done":
        result += f"; {current}"
    yield Line(what, result)
