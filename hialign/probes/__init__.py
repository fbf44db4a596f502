"""Probes: measurements of where in a model alignment happens.

Each takes a cell (a model of a study) and leaves one record, `outputs/<study>/<model>/probes/
<probe>.json`. A record names what it came from; it is computed again only if that has changed.
"""

import shutil
from pathlib import Path
from typing import Any

from hialign import files, paths, status
from hialign.blocks import MEASURES
from hialign.errors import HialignError
from hialign.models import identity
from hialign.study import Cell


def record_of(cell: Cell, probe: str) -> dict[str, Any]:
    """The record of a probe of the cell's model; HialignError says how to make it."""
    path = paths.probe_record(cell.study.name, cell.model.name, probe)
    found = status.probe_state(cell.study, cell.model, probe)
    if not found.trusted:
        raise HialignError(
            f"the record of the {probe} probe of {cell.model.name} in study {cell.study.name} is "
            f"{found}: run `{status.command_of(cell, f'probe-{probe}')}` first"
        )
    return files.read_record(path)


def forget(cell: Cell, probe: str, but: Path | None = None) -> None:
    """Delete the parts (`common.Parts`) of a probe of the cell's model, all but the folder `but`."""
    for folder in paths.probes_dir(cell.study.name, cell.model.name).glob(f".{probe}-*"):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def scores_of(cell: Cell, measure: str) -> list[float]:
    """What a measure (`blocks.MEASURES`) says of each layer of the cell's model: more is more."""
    if MEASURES[measure]:
        try:
            record = record_of(cell, MEASURES[measure])
        except HialignError as error:
            raise HialignError(f"block {cell.block}: {error}") from None
        if record.get("came_from", {}).get("model") not in (None, identity(cell.model)):
            raise HialignError(
                f"block {cell.block}: the record of the {MEASURES[measure]} probe of "
                f"{cell.model.name} is of other weights than {cell.model.source} has now: "
                f"run `{status.command_of(cell, f'probe-{MEASURES[measure]}')}` again"
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
