"""Whether a record says what would be found today: the one place where that is decided.

A record is the file that a stage or a probe writes last. It names all that it depends on: the
settings, the code of its notebook, the files that it read (`inputs`), and the files that it vouches
for (`files`). `state` compares these with what is there now. `hialign reproduce` runs what is not
done, the stages refuse to read what is not trusted, and the book does not show it.

The package's own version is no reason to run again: the manifest names it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hialign.records import files
from hialign.study import paths
from hialign.study.blocks import probe_of
from hialign.study.errors import HialignError
from hialign.study.model_files import model_files
from hialign.study.pair_files import data_files
from hialign.study.probe_settings import ProbeSettings
from hialign.study.rubric import rubric_file
from hialign.study.settings import JudgeSettings, ModelSettings, PreferenceSettings
from hialign.study.study import PROBES, Cell, Study, stages_of, without_costs

UPSTREAM = {"train": (), "respond": ("train",), "evaluate": ("respond",), "judge": ("respond",)}
ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
# What `hialign publish` leaves behind. A published record vouches for files that are not there.
UNPUBLISHED = (*ADAPTER, "responses.jsonl", "judgments-")


@dataclass(frozen=True)
class State:
    """What is to be said of a record."""

    status: str  # done, stale, damaged, failed or missing
    why: str = ""
    # Whether it is there, whole, and made with the study's present settings and inputs. A record
    # may be stale and trusted: when the code of its notebook has changed, or when what it was made
    # from will be made again.
    trusted: bool = False
    altered: bool = False  # whether a file is not the one that the record names

    def __str__(self) -> str:
        return f"{self.status} ({self.why})" if self.why else self.status


DONE = State("done", trusted=True)


# --- where records are ---------------------------------------------------------------------------


def stage_manifest(cell: Cell, stage: str) -> Path:
    """The file whose presence says that a stage of a cell is whole; it is written last."""
    judge = cell.study.judge.name if cell.study.judge else "none"
    names = {
        "train": "manifest.json",
        "respond": "manifest-respond.json",
        "evaluate": "evaluation.json",
        "judge": f"manifest-judge-{judge}.json",
    }
    return cell.folder / names[stage]


def judge_of(study: Study) -> JudgeSettings:
    """The study's judge, or HialignError where it names none."""
    if study.judge is None:
        raise HialignError(f"study {study.name} names no judge: add a `judge:` section to it")
    return study.judge


def judgments_file(cell: Cell) -> Path:
    """Where the judgments of a cell lie: `judgments-<judge>.jsonl` in its folder."""
    return cell.folder / f"judgments-{judge_of(cell.study).name}.jsonl"


def failed_notebook(cell: Cell, stage: str, block: str = "") -> Path:
    """Where a stage that failed leaves its notebook, with the error in it."""
    out = paths.notebook_output(cell.study.name, stage, cell.model.name, block or cell.block)
    return out.with_name(out.stem + ".failed.ipynb")


# --- what a record depends on --------------------------------------------------------------------


def depends(cell: Cell, stage: str) -> dict[str, Any]:
    """What a stage's record says that it depends on. Taken before anything is read."""
    return {
        "fingerprint": cell.fingerprint(stage),
        "settings": cell.settings(stage),
        "notebook": notebook_sha256(stage),
        "inputs": files.stamps(inputs_of(cell, stage)),
    }


def probe_depends(cell: Cell, probe: str) -> dict[str, Any]:
    """As `depends`, of a probe of the cell's model."""
    return {
        "fingerprint": cell.probe_fingerprint(probe),
        "settings": cell.probe_settings(probe),
        "notebook": notebook_sha256(f"probe-{probe}"),
        "inputs": files.stamps(probe_inputs_of(cell, probe)),
    }


def inputs_of(cell: Cell, stage: str) -> dict[str, Path]:
    """The files that a stage reads, by a name that is the same on every machine."""
    inputs = _of_model(cell.model)
    if stage == "judge":
        inputs = _of_judge(judge_of(cell.study))
    else:
        inputs |= _of_pairs(cell.study.preferences)
    if stage == "evaluate" and cell.study.evaluation.contrast_prompts:
        inputs |= _of_pairs(PreferenceSettings(source="builtin"))
    if stage in ("respond", "evaluate") and cell.block != "base":
        inputs |= {name: cell.folder / name for name in ADAPTER}
    if stage in ("evaluate", "judge"):
        inputs["responses.jsonl"] = cell.folder / "responses.jsonl"
    return inputs


def probe_inputs_of(cell: Cell, probe: str) -> dict[str, Path]:
    """As `inputs_of`, of a probe of the cell's model."""
    inputs = _of_model(cell.model) | _of_pairs(cell.study.preferences)
    inputs |= _of_pairs(PreferenceSettings(source="builtin"))
    if tuned := _tuned(cell, probe):
        folder = tuned.folder
        inputs |= {f"{tuned.block}/{name}": folder / name for name in ADAPTER}
    elif source := cell.probe_settings(probe)[probe].get("tuned"):
        inputs |= {f"tuned/{p.name}": p for p in model_files(ModelSettings(source=source))}
    for source in cell.probe_settings(probe)[probe].get("datasets", ()):
        place = paths.root() / Path(source).expanduser()
        found = sorted(place.rglob("*.json*")) if place.is_dir() else [place]
        inputs |= {f"{source}/{p.relative_to(place)}": p for p in found if p.is_file()}
    return inputs


def _tuned(cell: Cell, probe: str) -> Cell | None:
    """The cell whose adapter a probe compares with base; None for a model from elsewhere."""
    block = cell.probe_settings(probe)[probe].get("tuned")
    return Cell(cell.study, cell.model, block) if block in cell.study.blocks else None


def _of_model(model: ModelSettings) -> dict[str, Path]:
    return {f"model/{path.name}": path for path in model_files(model)}


def _of_pairs(settings: PreferenceSettings) -> dict[str, Path]:
    found = data_files(settings)
    top = {path.parent for path in found}
    return {
        f"data/{path.name if len(top) == 1 else f'{path.parent.name}/{path.name}'}": path
        for path in found
    }


def _of_judge(judge: JudgeSettings) -> dict[str, Path]:
    inputs = {"rubric": rubric_file(judge.rubric)}
    if judge.backend == "local":
        inputs |= _of_model(ModelSettings(source=judge.model, revision=judge.revision))
    return inputs


@lru_cache
def notebook_sha256(stage: str) -> str:
    """The hash of the code cells of a stage's notebook, less the one that sets up Colab."""
    book = files.read_json(paths.notebooks() / f"{stage}.ipynb")
    code = [
        "".join(cell["source"])
        for cell in book["cells"]
        if cell["cell_type"] == "code" and "remove-cell" not in cell["metadata"].get("tags", ())
    ]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


# --- states --------------------------------------------------------------------------------------


def state(cell: Cell, stage: str = "train", thorough: bool = False) -> State:
    """The state of a stage of a cell. `thorough` reads every file that the record names, where it
    is otherwise enough that size and time are the same."""
    file = stage_manifest(cell, stage)
    found = _state(file, cell.settings(stage), cell.fingerprint(stage), stage, thorough)
    if found.trusted:
        record = files.read_record(file)
        found = _of_inputs(found, record, inputs_of(cell, stage), cell.study, thorough)
        found = _of_upstream(found, cell, stage, thorough)
        if found.status == "done" and stage == "train" and _chosen_otherwise(cell, record):
            found = State("stale", f"the {probe_of(cell.block)} probe has another record now")
        if found.status == "done" and stage == "judge":
            found = _of_judgments(record, judge_of(cell.study))
    blocks = [
        cell.block,
        *([] if found.trusted else ["measured" if probe_of(cell.block) else "all"]),
    ]
    if any(_failed_since(file, failed_notebook(cell, stage, block)) for block in blocks):
        return State("failed", "its notebook says why", found.trusted)
    return found


def probe_state(study: Study, model: ModelSettings, probe: str, thorough: bool = False) -> State:
    """The state of a probe of a model."""
    cell = Cell(study, model, "base")
    file = paths.probe_record(study.name, model.name, probe)
    settings, fingerprint = cell.probe_settings(probe), cell.probe_fingerprint(probe)
    found = _state(file, settings, fingerprint, f"probe-{probe}", thorough)
    if found.trusted:
        record = files.read_record(file)
        found = _of_inputs(found, record, probe_inputs_of(cell, probe), study, thorough)
        if found.status == "done" and not is_published(study):
            found = _of_what_it_needs(found, cell, probe)
    if _failed_since(file, failed_notebook(cell, f"probe-{probe}", "all")):
        return State("failed", "its notebook says why", found.trusted)
    return found


def cell_status(cell: Cell, stage: str = "train") -> str:
    """done, stale, damaged, failed or missing: the word of `state`."""
    return state(cell, stage).status


def probe_status(study: Study, model: ModelSettings, probe: str) -> str:
    """The word of `probe_state`."""
    return probe_state(study, model, probe).status


def status(cell: Cell) -> dict[str, str]:
    """The status of each stage of a cell."""
    return {stage: cell_status(cell, stage) for stage in stages_of(cell)}


def required(cell: Cell, stage: str) -> dict[str, Any]:
    """The record of a stage whose files are about to be read, each of which is hashed.

    Raises HialignError, with the command that makes it, unless the record is there and whole and
    was made with the study's present settings.
    """
    found = state(cell, stage, thorough=True)
    if not found.trusted:
        for before in UPSTREAM[stage]:  # where it begins
            required(cell, before)
        raise HialignError(
            f"{WHAT[stage]} of {cell.model.name} {cell.block} in study {cell.study.name} "
            f"{BE[stage]} {found}: run `{command_of(cell, stage)}` first"
        )
    return files.read_record(stage_manifest(cell, stage))


WHAT = {
    "train": "the training",
    "respond": "the responses",
    "evaluate": "the evaluation",
    "judge": "the judgments",
}
BE = {"train": "is", "respond": "are", "evaluate": "is", "judge": "are"}


def command_of(cell: Cell, stage: str) -> str:
    """The command that runs a stage of a cell, or a probe of its model (`probe-…`)."""
    study = cell.study
    command = f"hialign run {stage} -p study {study.argument}"
    if cell.model != study.models[0]:
        command += f" -p model {cell.model.name}"
    return command if stage.startswith("probe-") else f"{command} -p block {cell.block}"


def chosen_by(cell: Cell) -> str | None:
    """The key of the probe's record that chooses the cell's layers; None where none does (yet)."""
    if not (probe := probe_of(cell.block)):
        return None
    file = paths.probe_record(cell.study.name, cell.model.name, probe)
    return str(files.read_json(file)["key"]) if file.is_file() else None


def is_published(study: Study) -> bool:
    """Whether the study's folder is one that `hialign publish` made, without weights."""
    return (paths.study_dir(study.name) / "study.yml").is_file()


# --- comparisons ---------------------------------------------------------------------------------


def _state(
    file: Path, settings: dict[str, Any], fingerprint: str, notebook: str, thorough: bool
) -> State:
    """What a record by itself says: its checksum, its settings, its notebook, its own files."""
    if not file.is_file():
        return State("missing")
    try:
        record = files.read_record(file)
    except HialignError:
        return State("damaged", f"{file.name} was changed after it was written", altered=True)
    if record.get("fingerprint") != fingerprint:
        if "settings" not in record:
            return State("stale", "it was made with other settings")
        if changes := list(differences(record["settings"], settings)):
            return State("stale", "; ".join(changes[:3]) + (" …" if len(changes) > 3 else ""))
    for name, known in record.get("files", {}).items():
        if why := _damage(file.parent, name, known, thorough):
            return State("damaged", why, altered=True)
    if record.get("notebook", notebook_sha256(notebook)) != notebook_sha256(notebook):
        return State("stale", f"the code of notebooks/{notebook}.ipynb has changed", trusted=True)
    return DONE


def _damage(folder: Path, name: str, known: files.Stamp, thorough: bool) -> str:
    """What is wrong with a file that a record vouches for; empty if it is as it was."""
    path = folder / name
    if not path.is_file():
        published = (folder.parent.parent / "study.yml").is_file()
        return "" if published and name.startswith(UNPUBLISHED) else f"{name} is missing"
    if files.same(path, known, thorough):
        return ""
    if "rows" in known and (rows := files.rows_of(path)) != known["rows"]:
        return f"{name} has {rows} rows where {known['rows']} were written"
    return f"{name} was changed after it was written"


def _of_inputs(
    found: State,
    record: Mapping[str, Any],
    inputs: Mapping[str, Path],
    study: Study,
    thorough: bool,
) -> State:
    """`found`, or stale if a file that the record was made from is another now. Files that are not
    here (data that stayed elsewhere) say nothing."""
    for name, known in record.get("inputs", {}).items():
        path = inputs.get(name)
        if path is not None and path.is_file() and not files.same(path, known, thorough):
            return State("stale", f"{name} has changed since", altered=True)
    if "inputs" in record and not is_published(study):
        for name, path in inputs.items():
            if name not in record["inputs"] and path.is_file():
                return State("stale", f"{name} was not there when it was made")
    return found


def _of_upstream(found: State, cell: Cell, stage: str, thorough: bool) -> State:
    for before in UPSTREAM[stage]:
        above = state(cell, before, thorough)
        if above != DONE and found.status == "done":
            return State("stale", f"{WHAT[before]} {BE[before]} {above.status}", found.trusted)
    return found


def _of_what_it_needs(found: State, cell: Cell, probe: str) -> State:
    """As `_of_upstream`, of a probe: what it compares with base, and what chooses its blocks."""
    if (tuned := _tuned(cell, probe)) and (above := state(tuned, "train")) != DONE:
        return State("stale", f"the training of {tuned.block} is {above.status}", found.trusted)
    for block in cell.probe_settings(probe)[probe].get("blocks", ()):
        if other := probe_of(block):
            above = probe_state(cell.study, cell.model, other)
            if above != DONE:
                return State("stale", f"the {other} probe is {above.status}", found.trusted)
    return found


def _chosen_otherwise(cell: Cell, record: Mapping[str, Any]) -> bool:
    """Whether the probe that chooses the cell's layers has another record than the one that did.
    Without a record (a published study has none) nothing says so."""
    return chosen_by(cell) not in (None, record.get("chosen_by"))


def _of_judgments(record: Mapping[str, Any], judge: JudgeSettings) -> State:
    failed, n = record.get("failed", 0), record.get("n", 0)
    if n and failed / n > judge.max_failed:
        return State("failed", f"{failed} of {n} failed", trusted=True)
    return DONE


def _failed_since(file: Path, failed: Path) -> bool:
    if not failed.is_file():
        return False
    return not file.is_file() or failed.stat().st_mtime >= file.stat().st_mtime


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that changed, as `training.beta was 0.1 and is 0.2`.

    What changes costs alone is left out. So is what an earlier version did not write down: a whole
    section, or a setting that has its default.
    """
    sections = {name: part for name, part in now.items() if name in before}
    old, new = _flat(without_costs(dict(before))), _flat(without_costs(sections))
    for key in sorted({*old, *new}):
        if key not in old and new[key] == _defaults().get(key):
            continue
        if old.get(key) != new.get(key):
            yield f"{key} was {_told(old, key)} and is {_told(new, key)}"


@lru_cache
def _defaults() -> dict[str, Any]:
    """Every setting of a study that has a default, by its dotted name as in a record."""
    probes = ProbeSettings().model_dump()
    whole = Study(name="default", title="", models=[ModelSettings(source="x")]).model_dump()
    whole["model"] = whole.pop("models")[0]
    whole |= {"probes": probes} | {name: probes[name] for name in PROBES}
    return _flat(whole)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {
        key: value
        for name, part in settings.items()
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _told(settings: Mapping[str, Any], key: str) -> str:
    return f"{json.dumps(settings[key])[:60]}" if key in settings else "not there"
