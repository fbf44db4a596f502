"""What a record depends on: settings, the code of its notebook, and the files that were read for it.

The package's version is recorded elsewhere and is not among these. A new version is no reason to run
again.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from hialign.records import files
from hialign.records.files import Stamp
from hialign.records.stages import ADAPTER, judge_of
from hialign.study import paths
from hialign.study.blocks import probe_of
from hialign.study.digest import json_sha256
from hialign.study.model_files import model_files
from hialign.study.pair_files import data_files, files_of_set
from hialign.study.rubric import rubric_file
from hialign.study.settings import JudgeSettings, ModelSettings, PreferenceSettings
from hialign.study.study import Cell, Sections


class Dependencies(TypedDict):
    """The part of a record that says what it was made from."""

    fingerprint: str  # of the settings, without what changes costs alone
    settings: Sections
    notebook: str  # the hash of the notebook's code
    inputs: dict[str, Stamp]


def depends(cell: Cell, stage: str) -> Dependencies:
    """What the record of a stage depends on. Call it before anything is read."""
    return {
        "fingerprint": cell.fingerprint(stage),
        "settings": cell.settings(stage),
        "notebook": notebook_sha256(stage),
        "inputs": files.stamps(inputs_of(cell, stage)),
    }


def probe_depends(cell: Cell, probe: str) -> Dependencies:
    """What the record of a probe of the cell's model depends on."""
    return {
        "fingerprint": cell.probe_fingerprint(probe),
        "settings": cell.probe_settings(probe),
        "notebook": notebook_sha256(f"probe-{probe}"),
        "inputs": files.stamps(probe_inputs_of(cell, probe)),
    }


def inputs_of(cell: Cell, stage: str) -> dict[str, Path]:
    """The files that a stage reads, by a name that is the same on every machine."""
    if stage == "judge":
        inputs = _judge_inputs(judge_of(cell.study))
    else:
        inputs = _model_inputs(cell.model) | _pair_inputs(cell.study.preferences)
    if stage == "evaluate" and cell.study.evaluation.contrast_prompts:
        inputs |= _pair_inputs(PreferenceSettings(source="builtin"))
    if stage == "evaluate":
        inputs |= _set_inputs(cell.study.evaluation.sets)
    if stage in ("respond", "evaluate") and cell.block != "base":
        inputs |= {name: cell.folder / name for name in ADAPTER}
    if stage in ("evaluate", "judge"):
        inputs["responses.jsonl"] = cell.folder / "responses.jsonl"
    return inputs


def probe_inputs_of(cell: Cell, probe: str) -> dict[str, Path]:
    """The files that a probe of the cell's model reads, by name."""
    settings = cell.probe_settings(probe)[probe]
    inputs = _model_inputs(cell.model) | _pair_inputs(cell.study.preferences)
    inputs |= _pair_inputs(PreferenceSettings(source="builtin"))
    inputs |= _set_inputs(settings.get("sets", ()))
    if tuned := tuned_cell(cell, probe):
        inputs |= {f"{tuned.block}/{name}": tuned.folder / name for name in ADAPTER}
    elif source := settings.get("tuned"):
        inputs |= {f"tuned/{p.name}": p for p in model_files(ModelSettings(source=source))}
    for source in settings.get("datasets", ()):
        place = paths.from_root(source)
        data = sorted(place.rglob("*.json*")) if place.is_dir() else [place]
        inputs |= {f"{source}/{p.relative_to(place)}": p for p in data if p.is_file()}
    return inputs


def tuned_cell(cell: Cell, probe: str) -> Cell | None:
    """The cell whose adapter a probe compares with base. None for a model from elsewhere."""
    block = cell.probe_settings(probe)[probe].get("tuned")
    return Cell(cell.study, cell.model, block) if block in cell.study.blocks else None


def _model_inputs(model: ModelSettings) -> dict[str, Path]:
    return {f"model/{path.name}": path for path in model_files(model)}


def _pair_inputs(settings: PreferenceSettings) -> dict[str, Path]:
    """The files of the pairs, with the folder in the name where there are several folders."""
    data = data_files(settings)
    if len({path.parent for path in data}) == 1:
        return {f"data/{path.name}": path for path in data}
    return {f"data/{path.parent.name}/{path.name}": path for path in data}


def _set_inputs(names: Sequence[str]) -> dict[str, Path]:
    """The files of test sets that people made."""
    return {f"{name}/{path.name}": path for name in names for path in files_of_set(name)}


def _judge_inputs(judge: JudgeSettings) -> dict[str, Path]:
    inputs = {"rubric": rubric_file(judge.rubric)}
    if judge.backend == "local":
        inputs |= _model_inputs(ModelSettings(source=judge.model, revision=judge.revision))
    return inputs


def chosen_by(cell: Cell) -> str | None:
    """The key of the probe's record that chooses the cell's layers. None if no record does (yet)."""
    if not (probe := probe_of(cell.block)):
        return None
    file = paths.probe_record(cell.study.name, cell.model.name, probe, cell.seed)
    return str(files.read_json(file)["key"]) if file.is_file() else None


@lru_cache
def notebook_sha256(stage: str) -> str:
    """The hash of the code cells of a stage's notebook, without the cell that sets up Colab."""
    book = files.read_json(paths.notebooks() / f"{stage}.ipynb")
    code = [
        "".join(cell["source"])
        for cell in book["cells"]
        if cell["cell_type"] == "code" and "remove-cell" not in cell["metadata"].get("tags", ())
    ]
    return json_sha256(code, 16)
