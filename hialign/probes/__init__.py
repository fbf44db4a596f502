"""Probes: measurements of where in a model alignment happens.

Each takes a cell (a model of a study) and leaves one record, `outputs/<study>/<model>/probes/
<probe>.json`. A record names what it came from; it is computed again only if that has changed.
"""

import shutil
from pathlib import Path
from typing import Any

from hialign import paths, records
from hialign.blocks import MEASURES
from hialign.errors import HialignError
from hialign.models import identity
from hialign.study import Cell


def record_of(cell: Cell, probe: str) -> dict[str, Any]:
    """The record of a probe of the cell's model; HialignError says how to make it."""
    path = paths.probe_record(cell.study.name, cell.model.name, probe)
    if not path.is_file():
        raise HialignError(
            f"there is no record of the {probe} probe of {cell.model.name} in study "
            f"{cell.study.name}: run `hialign run probe-{probe} -p study {cell.study.name} "
            f"-p model {cell.model.name}` first"
        )
    return records.read_json(path)


def forget(cell: Cell, probe: str, but: Path | None = None) -> None:
    """Delete the parts (`common.Parts`) of a probe of the cell's model, all but the folder `but`."""
    for folder in paths.probes_dir(cell.study.name, cell.model.name).glob(f".{probe}-*"):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def scores_of(cell: Cell, measure: str) -> list[float]:
    """What a measure (`blocks.MEASURES`) says of each layer of the cell's model: more is more."""
    if MEASURES[measure]:
        record, other = record_of(cell, MEASURES[measure]), ""
        if record["fingerprint"] != cell.probe_fingerprint(MEASURES[measure]):
            other = f"settings than study {cell.study.name} has"
        elif record.get("came_from", {}).get("model") not in (None, identity(cell.model)):
            other = f"weights than {cell.model.source} has"
        if other:
            raise HialignError(
                f"block {cell.block}: the record of the {MEASURES[measure]} probe of "
                f"{cell.model.name} is of other {other} now: "
                f"run `hialign run probe-{MEASURES[measure]} -p study {cell.study.name} -p model "
                f"{cell.model.name}` again"
            )
        if record.get("layer_scores") is None:
            why = record.get("nothing") or record.get("layer_scores_reason") or "no reason given"
            raise HialignError(
                f"block {cell.block}: the {MEASURES[measure]} probe of {cell.model.name} in study "
                f"{cell.study.name} ranks no layer ({why}): leave the block out"
            )
        return [float(score) for score in record["layer_scores"]]
    from hialign.probes.spectrum import layer_scores

    return layer_scores(cell.model, cell.study.training.target_modules)
