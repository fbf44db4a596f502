"""The record of a probe, and the parts that are kept until the record is complete."""

import shutil
from pathlib import Path
from typing import Any

from hialign.records.files import read_record
from hialign.records.stages import run_first
from hialign.records.status import probe_state
from hialign.study import paths
from hialign.study.study import Cell


def record_of(cell: Cell, probe: str) -> dict[str, Any]:
    """The record of a probe of the cell's model. HialignError says how to make it."""
    current = probe_state(cell.study, cell.model, probe)
    if not current.trusted:
        name = f"the record of the {probe} probe of {cell.model.name} in study {cell.study.name}"
        raise run_first(f"{name} is {current}", cell, f"probe-{probe}")
    return read_record(paths.probe_record(cell.study.name, cell.model.name, probe, cell.seed))


def forget(cell: Cell, probe: str, but: Path | None = None) -> None:
    """Delete the parts of a probe of the cell's model, except for those in the folder `but`."""
    for folder in paths.probes_dir(cell.study.name, cell.model.name, cell.seed).glob(f".{probe}-*"):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)
