"""The judge's stage of a cell: its responses in, judgments and a manifest out."""

from collections.abc import Mapping
from typing import Any

from hialign import records
from hialign.errors import HialignError
from hialign.judge import judge as judge_items
from hialign.study import Cell, JudgeSettings, Study

Scores = Mapping[str, float]  # of one judgment, by dimension; empty where it failed


def judge(cell: Cell) -> dict[str, Any]:
    """Score the cell's responses and leave `judgments-<judge>.jsonl` in its folder.

    Judgments that are on disk for the same response are not asked for again. Returns the stage's
    manifest, which is written last; a response without a valid answer is counted in `failed` and
    its scores are missing.
    """
    settings = cell.study.judge
    if settings is None:
        raise HialignError(f"study {cell.study.name} names no judge: add a `judge:` section to it")
    source = cell.folder / "responses.jsonl"
    if not source.is_file():
        raise HialignError(
            f"{cell.model.name} {cell.block} of study {cell.study.name} has no responses: "
            f"run `hialign run respond -p study {cell.study.name} -p block {cell.block}` first"
        )
    items = [
        {key: row[key] for key in ("prompt_id", "prompt", "response")}
        for row in records.read_jsonl(source)
    ]
    place = cell.folder / f"judgments-{settings.name}.jsonl"
    records.stage_manifest(cell, "judge").unlink(missing_ok=True)
    counts = judge_items(items, settings, place)
    first = next(iter(records.read_jsonl(place)), {})
    manifest: dict[str, Any] = {
        "stage": "judge",
        "fingerprint": cell.fingerprint("judge"),
        "settings": cell.settings("judge"),
        "judge": settings.name,
        **{k: first[k] for k in ("rubric_sha256", "weights_sha256", "revision") if k in first},
        **counts,
        "peak_memory_bytes": records.peak_memory_bytes(),
        **records.environment(),
    }
    records.write_json(records.stage_manifest(cell, "judge"), manifest)
    return manifest


def same_responses(study: Study) -> dict[str, list[tuple[Scores, Scores]]]:
    """What other judges on disk gave the study's responses, beside its own judge's: by judge.

    Only judgments that are whole and of the responses and rubric of now; the others' settings are
    those in their manifests.
    """
    found: dict[str, list[tuple[Scores, Scores]]] = {}
    for cell in study.cells():
        mine = records.stage_manifest(cell, "judge")
        if records.cell_status(cell, "judge") != "done":
            continue
        rubric = records.read_json(mine)["rubric_sha256"]
        for file in sorted(cell.folder.glob("manifest-judge-*.json")):
            manifest = records.read_json(file)
            other = JudgeSettings.model_validate(manifest["settings"]["judge"])
            theirs = study.model_copy(update={"judge": other}).cell(cell.model.name, cell.block)
            if file == mine or manifest["rubric_sha256"] != rubric:
                continue
            if records.cell_status(theirs, "judge") == "done":
                ours, others = _scores(cell), _scores(theirs)
                both = [(ours[i], others[i]) for i in ours if i in others]
                found.setdefault(other.name, []).extend(both)
    return found


def _scores(cell: Cell) -> dict[str, Scores]:
    name = cell.study.judge.name if cell.study.judge else "none"
    rows = records.read_jsonl(cell.folder / f"judgments-{name}.jsonl")
    return {row["prompt_id"]: row["scores"] for row in rows}
