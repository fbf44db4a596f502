"""A probe's record, which is computed part by part, and only if what it came from has changed."""

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
    """The study's settings for probes, or the defaults for a probe that is run without any."""
    return cell.study.probes or ProbeSettings()


class Parts:
    """The results of the parts of a long probe, each written to disk as soon as it is there.

    A run that was killed goes on from the last part. The parts outlive the record until it is read
    again or its notebook is whole (`forget`), because Snakemake deletes the record of a notebook that
    fails after it, at a figure. `key` stands for all that the parts came from.
    """

    def __init__(self, cell: Cell, probe: str, key: str) -> None:
        self.folder = paths.probe_parts(cell.study.name, cell.model.name, probe, key, cell.seed)
        forget(cell, probe, self.folder)  # those of other settings

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns (JSON), from disk if it was computed before."""
        path = self.folder / f"{paths.slug(name)}.json"
        if not _on_disk(path):
            files.write_record(path, {"part": compute()})
        return files.read_record(path)["part"]


def measured(
    cell: Cell,
    probe: str,
    came_from: Mapping[str, Any],
    compute: Callable[[Parts], Mapping[str, Any]],
) -> dict[str, Any]:
    """The record of a probe, from disk if it came from the same, and computed otherwise.

    Args:
        cell: a cell of the study and the model.
        probe: the name of the probe.
        came_from: hashes of what is measured (weights, pairs, an adapter). With the probe's settings
            they are the record's key.
        compute: returns the record's own fields. The results of its parts are kept by the `Parts`
            that it is given.
    """
    path = paths.probe_record(cell.study.name, cell.model.name, probe, cell.seed)
    depends = dependencies.probe_depends(cell, probe)
    key = json_sha256([depends["fingerprint"], came_from], 16)
    if (record := _on_disk(path)).get("key") == key:
        forget(cell, probe)
        if record.get("notebook", depends["notebook"]) != depends["notebook"]:
            # A notebook draws what it shows from the record, so nothing has to be measured again.
            files.write_record(path, record | {"notebook": depends["notebook"]})
        return record
    about = environment.environment()
    # The bfloat16 of a GPU and the float32 of a CPU must not meet in one record.
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
            "seconds": time.perf_counter() - started,  # of this run alone, if it was resumed
            "peak_memory_bytes": environment.peak_memory_bytes(),
            **about,
        }

    files.write_record(path, parts.part("record", content) | depends)
    return files.read_record(path)


def _on_disk(path: Path) -> dict[str, Any]:
    """A record on disk. Empty if there is none, or if it was changed after it was written."""
    try:
        return files.read_record(path) if path.is_file() else {}
    except HialignError:
        return {}


def adapter_of(cell: Cell, block: str) -> tuple[Path, dict[str, str]]:
    """The folder of the adapter of a block of the cell's model, and its hash.

    Raises HialignError if it is not there, or if it was trained with other settings or on other
    weights than the model has now.
    """
    tuned_cell = Cell(cell.study, cell.model, block)
    manifest, folder = status.required(tuned_cell, "train"), tuned_cell.folder / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():  # published without weights
        name = f"{cell.model.name} {block} of study {cell.study.name}"
        raise stages.run_first(f"{name} has no adapter", tuned_cell, "train")
    if any(manifest.get(key) != value for key, value in identity(cell.model).items()):
        raise HialignError(
            f"the adapter in {folder} was trained on other weights than {cell.model.source} has now: "
            "train the block again"
        )
    return folder, {"adapter_sha256": weights_sha256(folder)}
