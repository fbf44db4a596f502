"""A probe's record, and the parts of it that are there before it is whole."""

import shutil
from pathlib import Path
from typing import Any

from hialign.records import files, status
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Cell


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
