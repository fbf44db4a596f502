"""The judge's stage of a cell: its responses in, judgments and a manifest out."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from hialign.engine import environment
from hialign.engine.models import locate
from hialign.judging.cost import spent
from hialign.judging.items import judge as judge_items
from hialign.judging.ledger import exclusive, source_of
from hialign.records import dependencies, files, frames, status
from hialign.records.files import read_json
from hialign.records.frames import answered_by
from hialign.records.stages import judge_of, judgments_file, stage_manifest
from hialign.study import paths
from hialign.study.settings import JudgeSettings
from hialign.study.study import Cell, Study

Scores = Mapping[str, float]  # of one judgment, by dimension; empty where it failed


def judge(cell: Cell, *, retry_failed: bool = True) -> dict[str, Any]:
    """Score the cell's responses and leave `judgments-<judge>.jsonl` in its folder.

    Judgments that are on disk for the same response, in this cell or another of the study, are not
    asked for again. Returns the stage's manifest, which is written last; a response without a valid
    answer is counted in `failed` and its scores are missing: it is asked for again the next time,
    unless `retry_failed` is False.
    """
    settings = judge_of(cell.study)
    items = items_of(cell)
    with one_at_a_time(cell.study):
        if settings.backend == "local":
            locate(source_of(settings))  # a model that comes with the package is made first
        depends = dependencies.depends(cell, "judge")
        manifest_path = stage_manifest(cell, "judge")
        manifest_path.unlink(missing_ok=True)
        counts = judge_items(
            *(items, settings, judgments_file(cell)),
            retry_failed=retry_failed,
            spent=spent(cell.study) if settings.max_cost else 0.0,
            also=[judgments_file(c) for c in cell.study.cells() if c != cell],
        )
        judgments = judgments_file(cell)
        rows = files.read_jsonl(judgments)
        manifest: dict[str, Any] = {
            "stage": "judge",
            **depends,
            "files": files.stamps({judgments.name: judgments}),
            "judge": settings.name,
            **{k: rows[0][k] for k in _SAME if rows and k in rows[0]},
            # More than one: the provider changed the model behind the name while this ran.
            "answered_by": answered_by(rows),
            **counts,
            "peak_memory_bytes": environment.peak_memory_bytes(),
            **environment.environment(),
        }
        return files.write_record(manifest_path, manifest)


_SAME = ("rubric_sha256", "weights_sha256", "revision")  # in all records of a cell


def items_of(cell: Cell) -> list[dict[str, Any]]:
    """What there is to judge: prompt_id, prompt and response of each of the cell's responses."""
    status.required(cell, "respond")
    names = ("prompt_id", "prompt", "response")
    rows = files.read_jsonl(cell.folder / "responses.jsonl")
    return [{key: row[key] for key in names} for row in rows]


def one_at_a_time(study: Study) -> ExitStack:
    """Hold the study while a judge behind an API works on it: two processes would pass its limits
    of requests and money together. A local judge has none."""
    stack = ExitStack()
    if study.judge and study.judge.backend == "openai":
        place = paths.judge_lock(study.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        exclusive(stack, place, f"judging the study {study.name}")
    return stack


def same_responses(study: Study) -> dict[str, list[tuple[Scores, Scores]]]:
    """What other judges on disk gave the study's responses, beside its own judge's: by judge.

    Only judgments that are whole and of the responses and rubric of now; the others' settings are
    those in their manifests.
    """
    found: dict[str, list[tuple[Scores, Scores]]] = {}
    for cell in study.cells():
        mine = stage_manifest(cell, "judge")
        if not status.state(cell, "judge").trusted:
            continue
        rubric = read_json(mine)["rubric_sha256"]
        for file in sorted(cell.folder.glob("manifest-judge-*.json")):
            manifest = read_json(file)
            other = JudgeSettings.model_validate(manifest["settings"]["judge"])
            theirs = study.model_copy(update={"judge": other}).cell(cell.model.name, cell.block)
            if file == mine or manifest["rubric_sha256"] != rubric:
                continue
            if status.state(theirs, "judge").trusted:
                ours, others = _scores(cell), _scores(theirs)
                both = [(ours[i], others[i]) for i in ours if i in others]
                found.setdefault(other.name, []).extend(both)
    return found


def _scores(cell: Cell) -> dict[str, Scores]:
    return {row["prompt_id"]: row["scores"] for row in frames.judgments_of(cell)}
