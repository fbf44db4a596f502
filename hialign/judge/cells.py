"""The judge's stage of a cell: its responses in, judgments and a manifest out."""

from typing import Any

from hialign import records
from hialign.errors import HialignError
from hialign.judge import judge as judge_items
from hialign.study import Cell


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
