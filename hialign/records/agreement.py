"""How good a judge is: the study's own validation report, or one that the package ships.

`hialign.judging.validation.validate` writes the reports. The shipped ones are in
`hialign/records/judge-agreement.json`, with figures and without any text of the data. A report is
added to them by

    python -m hialign.records.agreement REPORT.json
"""

import json
from pathlib import Path
from typing import Any

import typer

from hialign.records.files import read_json, write_json
from hialign.records.stages import stage_manifest
from hialign.statistics.intervals import wilson
from hialign.study import paths
from hialign.study.rubric import load_rubric
from hialign.study.study import Study

Report = dict[str, Any]
SHIPPED = paths.package() / "records" / "judge-agreement.json"
IDENTITY = ("weights_sha256", "revision", "rubric_sha256")
OTHERS = "mean of the others"  # the score that averages all dimensions but Overall


def measured(study: Study) -> Report | None:
    """The report on the judge that the judgments name, or, without judgments, on the study's judge.

    Entries of the study's own report replace those of a shipped one. None if the judge was not
    measured with these weights (or this snapshot) and this rubric, as a report holds for these alone.
    """
    if study.judge is None:
        return None
    files = [stage_manifest(cell, "judge") for cell in study.cells()]
    manifests = [read_json(file) for file in files if file.is_file()]
    judges = {tuple(manifest.get(name) for name in IDENTITY) for manifest in manifests}
    if len(judges) > 1:
        return None
    weights, revision, rubric = next(iter(judges), (None, None, None))
    rubric_sha256 = rubric or load_rubric(study.judge.rubric).sha256
    judge_id = str(weights or revision or study.judge.model)
    own = report_path(study)
    report = report_on(judge_id, rubric_sha256, published()) or {}
    if own.is_file():
        report |= report_on(judge_id, rubric_sha256, [read_json(own)]) or {}
    return report or None


def sides(study: Study) -> dict[str, tuple[float, float, float, int]]:
    """How often the judge's Overall agrees with people on LLMBar's everyday and adversarial pairs.

    Each value is the share, Wilson's 95% interval (NaN for fewer than five pairs) and the number of
    pairs. Pairs of a kind that was
    not measured are left out.
    """
    shares = {}
    for kind, subsets in (("everyday", "natural"), ("adversarial", "adversarial-")):
        rows = [
            row
            for row in (measured(study) or {}).get("rows", [])
            if row["score"] == "Overall" and row["subset"].startswith(subsets) and row["n"]
        ]
        if n := sum(row["n"] for row in rows):
            share = sum(row["accuracy"] * row["n"] for row in rows) / n
            shares[kind] = (share, *wilson(share * n, n), n)
    return shares


def report_path(study: Study) -> Path:
    """Where the study's own report on its judge lies."""
    name = study.judge.name if study.judge else "none"
    return paths.judge_validation(paths.study_dir(study.name), name)


def published(path: Path = SHIPPED) -> list[Report]:
    """The reports that the package ships."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def report_on(judge_id: str, rubric_sha256: str, reports: list[Report]) -> Report | None:
    """The last of the `reports` on a judge with this rubric. None if it was not measured.

    `judge_id` tells the judge from others. It is the sha256 of its weights, its revision, or the
    snapshot name of a model behind an API (`weights_sha256`, `revision`, `model` of a judgment). The
    judge's name in a study does as well, but anyone may give that name to another model.
    """
    for report in reversed(reports):
        names = [report.get(key) for key in ("weights_sha256", "revision", "model", "judge")]
        if judge_id in names and report["rubric_sha256"] == rubric_sha256:
            return report
    return None


def publish(report: Report, path: Path = SHIPPED) -> Path:
    """Add `report` to the shipped ones, in place of an older one on the same judge."""
    keys = ("judge", "model", "weights_sha256", "revision", "rubric_sha256")
    others = [r for r in published(path) if any(r.get(key) != report.get(key) for key in keys)]
    write_json(path, [*others, report])
    return path


def _add(report: Path) -> None:
    """Add REPORT to what the package ships."""
    typer.echo(publish(read_json(report)))


if __name__ == "__main__":
    typer.run(_add)
