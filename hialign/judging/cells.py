"""The judge's stage of a cell: reads its responses, writes judgments and a manifest."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hialign.engine import environment
from hialign.engine.models import locate
from hialign.judging.cost import spent
from hialign.judging.items import judge as judge_items
from hialign.judging.ledger import source_of
from hialign.preferences.llmbar import Item
from hialign.records import dependencies, files, frames, status
from hialign.records.files import read_json
from hialign.records.frames import answered_by
from hialign.records.processes import locked
from hialign.records.stages import judge_of, judgments_file, stage_manifest
from hialign.study import paths
from hialign.study.settings import JudgeSettings
from hialign.study.study import Cell, Study

Scores = Mapping[str, float]  # of one judgment by dimension. Empty if it failed.
SHARED = ("rubric_sha256", "weights_sha256", "revision")  # the same in all judgments of a cell


def judge(cell: Cell, *, retry_failed: bool = True) -> dict[str, Any]:
    """Score the cell's responses and leave `judgments-<judge>.jsonl` in its folder.

    Judgments of the same response on disk, in this cell or another of the study, are used again. A
    response without a valid answer is counted in `failed` and has no scores. It is asked for again the
    next time, unless `retry_failed` is False. Returns the stage's manifest, which is written last.
    """
    settings = judge_of(cell.study)
    items = items_of(cell)
    with one_at_a_time(cell.study):
        if settings.backend == "local":
            locate(source_of(settings))  # an embedded model is unpacked before it is hashed
        depends = dependencies.depends(cell, "judge")
        manifest_path = stage_manifest(cell, "judge")
        manifest_path.unlink(missing_ok=True)
        counts = judge_items(
            items,
            settings,
            judgments_file(cell),
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
            **{key: rows[0][key] for key in SHARED if rows and key in rows[0]},
            # If there are several, the provider changed the model behind the name during the run
            "answered_by": answered_by(rows),
            **counts,
            "peak_memory_bytes": environment.peak_memory_bytes(),
            **environment.environment(),
        }
        return files.write_record(manifest_path, manifest)


def items_of(cell: Cell) -> list[Item]:
    """The cell's responses as items to judge."""
    status.required(cell, "respond")
    rows = files.read_jsonl(cell.folder / "responses.jsonl")
    return [
        Item(prompt_id=row["prompt_id"], prompt=row["prompt"], response=row["response"])
        for row in rows
    ]


def one_at_a_time(study: Study) -> AbstractContextManager[None]:
    """Lock the study while a judge behind an API works on it.

    Two processes together would exceed the limits of requests and money. A local judge has no limits.
    """
    if study.judge and study.judge.backend == "openai":
        doing = f"judging (a stop loses no judgment) the study {study.name}"
        return locked(paths.judge_lock(study.name), doing)
    return nullcontext()


def same_responses(study: Study) -> dict[str, list[tuple[Scores, Scores]]]:
    """Scores of the study's judge beside those of another judge on disk, by the other's name.

    Only complete judgments of the present responses with the present rubric count. The settings of
    the other judges are those in their manifests.
    """
    pairs: dict[str, list[tuple[Scores, Scores]]] = {}
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
                pairs.setdefault(other.name, []).extend(both)
    return pairs


def _scores(cell: Cell) -> dict[str, Scores]:
    return {row["prompt_id"]: row["scores"] for row in frames.judgments_of(cell)}
