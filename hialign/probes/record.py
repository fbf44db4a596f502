"""A probe's record: computed part by part, and only if what it came from has changed."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hialign.engine import environment
from hialign.engine.embedded import weights_sha256
from hialign.engine.models import identity
from hialign.records import dependencies, files, stages, status
from hialign.records.probe_files import forget
from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.probe_settings import ProbeSettings
from hialign.study.study import Cell


def probe_settings(cell: Cell) -> ProbeSettings:
    """The study's probe settings; the defaults where it has none and a probe is run by hand."""
    return cell.study.probes or ProbeSettings()


class Parts:
    """Results of the parts of a long probe, each kept as soon as it is there, so that a run that was
    killed goes on from the last. `key` is all that they came from.

    They outlive the record until it is read again or its notebook is whole (`forget`): Snakemake
    deletes a record whose notebook fails after it, at a figure.
    """

    def __init__(self, cell: Cell, probe: str, key: str) -> None:
        self.folder = paths.probe_parts(cell.study.name, cell.model.name, probe, key)
        forget(cell, probe, self.folder)  # those of other settings

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives (JSON), from disk if it was computed before."""
        path = self.folder / f"{paths.slug(name)}.json"
        if not (known := _known(path)):
            files.write_record(path, {"part": compute()})
            known = files.read_record(path)
        return known["part"]


def measured(
    cell: Cell,
    probe: str,
    came_from: Mapping[str, Any],
    compute: Callable[[Parts], Mapping[str, Any]],
) -> dict[str, Any]:
    """The record of a probe: as it is on disk if it came from the same, else computed and written.

    `came_from` are hashes of what was measured (weights, pairs, an adapter); with the probe's
    settings they are the record's key. `compute` gives the record's own fields.
    """
    path = paths.probe_record(cell.study.name, cell.model.name, probe)
    depends = dependencies.probe_depends(cell, probe)
    key = json_sha256([depends["fingerprint"], came_from], 16)
    if (known := _known(path)).get("key") == key:
        forget(cell, probe)
        if known.get("notebook", depends["notebook"]) != depends["notebook"]:
            # What a notebook shows is drawn from the record: there is nothing to measure again.
            files.write_record(path, known | {"notebook": depends["notebook"]})
        return known
    about = environment.environment()
    # bfloat16 of a GPU and float32 of a CPU do not go into one record
    parts, started = Parts(cell, probe, f"{key}-{about['device_type']}"), time.perf_counter()

    def content() -> dict[str, Any]:
        return {
            "probe": probe,
            "study": cell.study.name,
            "model": cell.model.name,
            "key": key,
            **depends,
            "came_from": dict(came_from),
            **compute(parts),
            "seconds": time.perf_counter() - started,  # of this run: a resumed one has fewer
            "peak_memory_bytes": environment.peak_memory_bytes(),
            **about,
        }

    files.write_record(path, parts.part("record", content) | depends)
    return files.read_record(path)


def _known(path: Path) -> dict[str, Any]:
    """What is on disk; empty if there is none, or if it was changed since it was written."""
    try:
        return files.read_record(path) if path.is_file() else {}
    except HialignError:
        return {}


def adapter_of(cell: Cell, block: str) -> tuple[Path, dict[str, str]]:
    """The folder of a block's adapter of the cell's model, and its hash. Raises HialignError if it is
    not there, or was trained with other settings or on other weights than the model has now."""
    tuned_cell = cell.study.cell(cell.model.name, block)
    known, folder = status.required(tuned_cell, "train"), tuned_cell.folder / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():  # published without weights
        name = f"{cell.model.name} {block} of study {cell.study.name}"
        raise stages.run_first(f"{name} has no adapter", tuned_cell, "train")
    if any(known.get(key) != value for key, value in identity(cell.model).items()):
        raise HialignError(
            f"the adapter in {folder} was trained on other weights than {cell.model.source} has now: "
            "train the block again"
        )
    return folder, {"adapter_sha256": weights_sha256(folder)}
