"""What is known of a judge: the study's own validation report, or one that the package ships.

Reports are those of `hialign.judging.validation.validate`. The shipped ones stand in
`hialign/data/judge-agreement.json`, figures alone and no text of the data.

    python -m hialign.records.agreement REPORT.json

adds a report to them.
"""

import json
from pathlib import Path
from typing import Any

import typer

from hialign.records.files import read_json, write_json
from hialign.records.status import stage_manifest
from hialign.statistics.intervals import wilson
from hialign.study import paths
from hialign.study.rubric import load_rubric
from hialign.study.study import Study

IDENTITY = ("weights_sha256", "revision", "rubric_sha256")


def measured(study: Study) -> dict[str, Any] | None:
    """The report on the judge that the judgments name; before there are any, on the study's.

    What the study's own report has goes before what a shipped one has. None if the judge was not measured with these
    weights (or this snapshot) and this rubric: it is only known to be as good as it was found to be.
    """
    if study.judge is None:
        return None
    files = [stage_manifest(cell, "judge") for cell in study.cells()]
    used = [read_json(file) for file in files if file.is_file()]
    found = {tuple(manifest.get(name) for name in IDENTITY) for manifest in used}
    if len(found) > 1:
        return None
    weights, revision, rubric = next(iter(found), (None, None, None))
    asked = rubric or load_rubric(study.judge.rubric).sha256
    judge_id = str(weights or revision or study.judge.model)
    own = report_path(study)
    known = _last_of(published(), judge_id, asked) or {}
    if own.is_file():
        known |= _last_of([read_json(own)], judge_id, asked) or {}
    return known or None


def sides(study: Study) -> dict[str, tuple[float, float, float, int]]:
    """How often the judge's Overall sides with people on LLMBar's everyday and adversarial pairs:
    share, Wilson's 95% interval, pairs. Without what was not measured."""
    found = {}
    for kind, subsets in (("everyday", "natural"), ("adversarial", "adversarial-")):
        rows = [
            row
            for row in (measured(study) or {}).get("rows", [])
            if row["score"] == "Overall" and row["subset"].startswith(subsets) and row["n"]
        ]
        if n := sum(row["n"] for row in rows):
            share = sum(row["accuracy"] * row["n"] for row in rows) / n
            found[kind] = (share, *wilson(share * n, n), n)
    return found


def report_path(study: Study) -> Path:
    """Where the study's own report on its judge lies."""
    name = study.judge.name if study.judge else "none"
    return paths.judge_validation(paths.study_dir(study.name), name)


def published(path: Path | None = None) -> list[dict[str, Any]]:
    """The reports that the package ships."""
    path = path or paths.package() / "records" / "judge-agreement.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def agreement_of(
    judge_id: str, rubric_sha256: str, path: Path | None = None
) -> dict[str, Any] | None:
    """The shipped report on a judge with this rubric; None if it was not measured.

    `judge_id` is what tells the judge from others: the sha256 of its weights, its revision, or the
    snapshot name of a model behind an API (`weights_sha256`, `revision`, `model` of a judgment).
    The judge's name in a study does as well, but anyone may give that name to another model.
    """
    return _last_of(published(path), judge_id, rubric_sha256)


def _last_of(
    reports: list[dict[str, Any]], judge_id: str, rubric_sha256: str
) -> dict[str, Any] | None:
    record: dict[str, Any]
    for record in reversed(reports):
        names = [record.get(k) for k in ("weights_sha256", "revision", "model", "judge")]
        if judge_id in names and record["rubric_sha256"] == rubric_sha256:
            return record
    return None


def publish(record: dict[str, Any], path: Path | None = None) -> Path:
    """Add `record` to the shipped reports, in place of an older one on the same judge."""
    path = path or paths.package() / "records" / "judge-agreement.json"
    same = ("judge", "model", "weights_sha256", "revision", "rubric_sha256")
    kept = [r for r in published(path) if any(r.get(k) != record.get(k) for k in same)]
    write_json(path, [*kept, record])
    return path


OTHERS = "mean of the others"  # all dimensions but Overall


def _main() -> None:
    def command(report: Path) -> None:
        """Add REPORT to what the package ships."""
        typer.echo(publish(read_json(report)))

    typer.run(command)


if __name__ == "__main__":
    _main()
