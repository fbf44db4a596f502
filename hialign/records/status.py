"""Whether a record says what would be measured today: the one place where that is decided.

A record is the file that a stage or a probe writes last. It names all that it depends on: the
settings, the code of its notebook, the files that it read (`inputs`), and the files that it vouches
for (`files`). `state` compares these with what is there now. `hialign reproduce` runs what is not
done, the stages refuse to read what is not trusted, and the book does not show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hialign.records import files
from hialign.records.dependencies import (
    chosen_by,
    inputs_of,
    notebook_sha256,
    probe_inputs_of,
    tuned_cell,
)
from hialign.records.differences import differences
from hialign.records.stages import (
    ADAPTER,
    COPY_RECORD,
    PRODUCTS,
    UPSTREAM,
    failed_notebook,
    is_published,
    judge_of,
    run_first,
    stage_manifest,
)
from hialign.study import paths
from hialign.study.blocks import probe_of
from hialign.study.errors import HialignError
from hialign.study.pair_files import HH_RLHF
from hialign.study.settings import JudgeSettings, ModelSettings
from hialign.study.study import Cell, Sections, Study, stages_of

# What `hialign publish` leaves behind. A published record vouches for files that are not there.
UNPUBLISHED = (*ADAPTER, "responses.jsonl", "judgments-")


@dataclass(frozen=True)
class State:
    """Whether a record can be used, and why not."""

    status: str  # done, stale, damaged, failed or missing
    why: str = ""
    # Whether the record is there, whole, and made with the study's present settings and inputs. A
    # stale record is still trusted if only the code of its notebook has changed, or if what it was
    # made from will be made again.
    trusted: bool = False
    altered: bool = False  # whether a file is not the one that the record names

    def __str__(self) -> str:
        return f"{self.status} ({self.why})" if self.why else self.status


DONE = State("done", trusted=True)


def state(cell: Cell, stage: str = "train", thorough: bool = False) -> State:
    """The state of a stage of a cell.

    `thorough` reads every file that the record names. Otherwise an equal size and time suffice.
    """
    file = stage_manifest(cell, stage)
    current = _state_alone(file, cell.settings(stage), cell.fingerprint(stage), stage, thorough)
    if current.trusted:
        record = files.read_record(file)
        current = _with_inputs(current, record, inputs_of(cell, stage), cell.study, thorough)
        current = _with_upstream(current, cell, stage, thorough)
        if current.status == "done" and stage == "train" and _chosen_otherwise(cell, record):
            current = State("stale", f"the {probe_of(cell.block)} probe has another record now")
        if current.status == "done" and stage == "judge":
            current = _with_failures(record, judge_of(cell.study))
    blocks = [cell.block]
    if not current.trusted:  # then a notebook that runs several blocks may have failed at this one
        blocks.append("measured" if probe_of(cell.block) else "all")
    if any(_failed_since(file, failed_notebook(cell, stage, block)) for block in blocks):
        return State("failed", "its notebook says why", current.trusted)
    return current


def probe_state(study: Study, model: ModelSettings, probe: str, thorough: bool = False) -> State:
    """The state of a probe of a model, in a study that is a single run."""
    cell = Cell(study, model, "base")
    file = paths.probe_record(study.name, model.name, probe, study.seed)
    settings, fingerprint = cell.probe_settings(probe), cell.probe_fingerprint(probe)
    current = _state_alone(file, settings, fingerprint, f"probe-{probe}", thorough)
    if current.trusted:
        record = files.read_record(file)
        current = _with_inputs(current, record, probe_inputs_of(cell, probe), study, thorough)
        if current.status == "done" and not is_published(study):
            current = _with_probe_needs(current, cell, probe)
    if _failed_since(file, failed_notebook(cell, f"probe-{probe}", "all")):
        return State("failed", "its notebook says why", current.trusted)
    return current


def cell_status(cell: Cell, stage: str = "train") -> str:
    """The word of `state`: done, stale, damaged, failed or missing."""
    return state(cell, stage).status


def probe_status(study: Study, model: ModelSettings, probe: str) -> str:
    """The word of `probe_state`."""
    return probe_state(study, model, probe).status


def status(cell: Cell) -> dict[str, str]:
    """The status of each stage of a cell."""
    return {stage: cell_status(cell, stage) for stage in stages_of(cell)}


def required(cell: Cell, stage: str) -> dict[str, Any]:
    """The record of a stage whose files are about to be read. Each of the files is hashed.

    Raises HialignError, with the command that makes the record, unless the record is there and
    whole and was made with the study's present settings.
    """
    current = state(cell, stage, thorough=True)
    if not current.trusted:
        for before in UPSTREAM[stage]:  # the first stage that is missing is the one to name
            required(cell, before)
        name = f"{cell.model.name} {cell.block} in study {cell.study.name}"
        raise run_first(f"{PRODUCTS[stage].format(name)} {current}", cell, stage)
    return files.read_record(stage_manifest(cell, stage))


# --- comparisons ---------------------------------------------------------------------------------


def _state_alone(
    file: Path, settings: Sections, fingerprint: str, notebook: str, thorough: bool
) -> State:
    """The state by what the record says of itself: checksum, settings, notebook and own files."""
    if not file.is_file():
        return State("missing")
    try:
        record = files.read_record(file)
    except FileNotFoundError:  # a stage that runs again has just deleted it
        return State("missing")
    except HialignError:
        return State("damaged", f"{file.name} was changed after it was written", altered=True)
    if record.get("fingerprint") != fingerprint:
        if "settings" not in record:
            return State("stale", "it was made with other settings")
        if changes := list(differences(record["settings"], settings)):
            return State("stale", "; ".join(changes[:3]) + (" …" if len(changes) > 3 else ""))
    for name, stamp in record.get("files", {}).items():
        if why := _damage(file.parent, name, stamp, thorough):
            return State("damaged", why, altered=True)
    if record.get("notebook", notebook_sha256(notebook)) != notebook_sha256(notebook):
        return State("stale", f"the code of notebooks/{notebook}.ipynb has changed", trusted=True)
    return DONE


def _damage(folder: Path, name: str, stamp: files.Stamp, thorough: bool) -> str:
    """What is wrong with a file that a record vouches for. Empty if the file is as it was."""
    path = folder / name
    if not path.is_file():
        published = any((place / "study.yml").is_file() for place in list(folder.parents)[:3])
        return "" if published and name.startswith(UNPUBLISHED) else f"{name} is missing"
    if files.same(path, stamp, thorough) or _is_copy(path, stamp, thorough):
        return ""
    if "rows" in stamp and (rows := files.rows_of(path)) != stamp["rows"]:
        return f"{name} has {rows} rows where {stamp['rows']} were written"
    return f"{name} was changed after it was written"


def _is_copy(path: Path, stamp: files.Stamp, thorough: bool) -> bool:
    """Whether a file is the published copy of the one that was stamped, by the copy's own record.

    Adapters are published in bfloat16, so that their bytes are not those that training left.
    """
    place = path.with_name(COPY_RECORD)
    if not place.is_file():
        return False
    try:
        record = files.read_record(place)
    except HialignError:
        return False
    own = record.get("files", {}).get(path.name)
    original = record.get("of", {}).get(path.name) == stamp["sha256"]
    return files.CHECKSUM in record and original and own and files.same(path, own, thorough)


def _with_inputs(
    current: State,
    record: Mapping[str, Any],
    inputs: Mapping[str, Path],
    study: Study,
    thorough: bool,
) -> State:
    """`current`, or stale if a file that the record was made from has changed.

    Files that are not on this machine are not compared.
    """
    for name, stamp in record.get("inputs", {}).items():
        path = inputs.get(name)
        if path is None or not path.is_file():
            continue
        if not files.same(path, stamp, thorough) and not _is_copy(path, stamp, thorough):
            return State("stale", f"{name} has changed since", altered=True)
    if "inputs" in record and not is_published(study):
        from_hub = study.preferences.source in (HH_RLHF, "contrasts") and not _names_pairs(
            record["inputs"]
        )
        for name, path in inputs.items():
            if from_hub and name.startswith("data/"):  # a local copy has come since
                continue
            if name not in record["inputs"] and path.is_file():
                return State("stale", f"{name} was not there when it was made")
    return current


def _names_pairs(inputs: Mapping[str, Any]) -> bool:
    """Whether a record was made from local files of preference pairs, beside the built-in ones."""
    return any(name.startswith("data/") and name != "data/builtin.jsonl" for name in inputs)


def _with_upstream(current: State, cell: Cell, stage: str, thorough: bool) -> State:
    """`current`, or stale if a stage before this one is not done."""
    for before in UPSTREAM[stage]:
        above = state(cell, before, thorough)
        if above != DONE and current.status == "done":
            product = PRODUCTS[before].replace(" of {}", "")
            return State("stale", f"{product} {above.status}", current.trusted)
    return current


def _with_probe_needs(current: State, cell: Cell, probe: str) -> State:
    """`current`, or stale if the adapter or another probe that this one rests on is not done."""
    if (tuned := tuned_cell(cell, probe)) and (above := state(tuned, "train")) != DONE:
        return State("stale", f"the training of {tuned.block} is {above.status}", current.trusted)
    for block in cell.probe_settings(probe)[probe].get("blocks", ()):
        if other := probe_of(block):
            above = probe_state(cell.study, cell.model, other)
            if above != DONE:
                return State("stale", f"the {other} probe is {above.status}", current.trusted)
    return current


def _chosen_otherwise(cell: Cell, record: Mapping[str, Any]) -> bool:
    """Whether the probe that chooses the cell's layers has another record now.

    Nothing is known of this without a record of the probe, as in a published study.
    """
    return chosen_by(cell) not in (None, record.get("chosen_by"))


def _with_failures(record: Mapping[str, Any], judge: JudgeSettings) -> State:
    """Done, or failed if more judgments failed than the study accepts."""
    failed, n = record.get("failed", 0), record.get("n", 0)
    if n and failed / n > judge.max_failed:
        return State("failed", f"{failed} of {n} failed", trusted=True)
    return DONE


def _failed_since(file: Path, failed: Path) -> bool:
    """Whether the notebook `failed` was left after the record `file` was written."""
    if not failed.is_file():
        return False
    return not file.is_file() or failed.stat().st_mtime >= file.stat().st_mtime
