"""What was run, when, on what, for how long and at what cost: tables from manifests and notebooks."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from hialign.records import frames
from hialign.records.files import read_json, read_record
from hialign.records.stages import failed_notebook, stage_manifest
from hialign.records.status import cell_status, probe_state, state
from hialign.report.display import Columns, Table, span, table_of, view
from hialign.study import paths
from hialign.study.study import Cell, Study, probes_of, stages_of

OF_A_RUN: Columns = {  # of a stage or a probe; without its record, all are missing
    "Minutes": lambda row: None if row["seconds"] is None else row["seconds"] / 60,
    "Peak memory (GiB)": lambda row: row["memory"] / 2**30 if row["memory"] else None,
    "Device": "device",
    "Commit": "hialign_commit",
}


def stages(study: Study, cells: Sequence[Cell] = ()) -> Table:
    """One row per stage of each cell (or of `cells`): status, end, minutes, memory, device.

    The minutes of a training are its optimizer steps and its part of what one pass did for several
    strategies together. Those of another stage are the whole of it.
    """
    rows = []
    for cell in cells or study.cells():
        for stage in stages_of(cell):
            run = state(cell, stage)
            record = read_record(stage_manifest(cell, stage)) if run.trusted else {}
            row: dict[str, Any] = {
                "model": cell.model.label,
                "strategy": cell.strategy,
                "stage": stage,
            }
            row |= {"status": run.status, "ended": _ended(cell, stage)}
            seconds = record.get("seconds")
            if stage == "train" and seconds is not None:
                passes = 1 + len(record.get("trained_with") or [])
                seconds += (record.get("shared_seconds") or 0) / passes
            memory = record.get("peak_memory_bytes")
            rows.append(record | row | {"seconds": seconds, "memory": memory})
    columns: Columns = {"Model": "model", "Strategy": "strategy", "Stage": "stage"}
    return view(rows, columns | {"Status": "status", "Ended (UTC)": "ended"} | OF_A_RUN)


def _ended(cell: Cell, stage: str) -> str | None:
    """When the stage's notebook ended, from what papermill wrote into it."""
    for block in (cell.block, "all"):
        file = paths.notebook_output(cell.study.name, stage, cell.model.name, block, cell.seed)
        if file.is_file():
            end = read_json(file).get("metadata", {}).get("papermill", {}).get("end_time")
            return str(end)[:16].replace("T", " ") if end else None
    return None


def totals(study: Study) -> Table:
    """Cells, hours and peak memory of each stage over all cells, and what they ran on."""
    rows = []
    for stage, runs in stages(study).groupby("Stage", sort=False):
        done = runs[runs.Status.isin(["done", "stale"])]
        rows.append(
            {
                "Stage": stage,
                "Cells": len(runs),
                "Done": len(done),
                "Failed": int((runs.Status == "failed").sum()),
                "Hours": done.Minutes.sum() / 60 if len(done) else None,
                "Peak memory (GiB)": done["Peak memory (GiB)"].max(),
                "Devices": ", ".join(sorted(set(done.Device.dropna()))) or None,
            }
        )
    return table_of(rows)


def probes(study: Study) -> Table:
    """One row per probe of each model: status, minutes, memory, device."""
    rows = []
    for model in study.models:
        for probe in probes_of(study):
            run = probe_state(study, model, probe)
            file = paths.probe_record(study.name, model.name, probe, study.seed)
            record = read_record(file) if run.trusted else {}
            row: dict[str, Any] = {"model": model.label, "probe": probe, "status": run.status}
            row |= {"seconds": record.get("seconds"), "memory": record.get("peak_memory_bytes")}
            rows.append(record | row)
    columns: Columns = {"Model": "model", "Probe": "probe", "Status": "status"}
    return view(rows, columns | OF_A_RUN, "none yet", 2)


def hours(study: Study) -> float | None:
    """Hours of all stages and probes that are done, or None where nothing is."""
    taken = totals(study).Hours.dropna().tolist()
    if "Minutes" in (probed := probes(study)):
        taken += (probed.Minutes.dropna() / 60).tolist()
    return float(sum(taken)) if taken else None


def cost(study: Study) -> float | None:
    """USD that the study's judgments cost, by its stated prices, or None where it states none."""
    paid = [
        row["cost"]
        for cell in study.cells()
        if study.judge
        for row in frames.judgments_of(cell)
        if "cost" in row and not row.get("shared")
    ]
    return float(sum(paid)) if paid else None


def errors(cell: Cell) -> list[str]:
    """The name and the error of each stage of the cell that failed, from its notebook."""
    texts = []
    for stage in stages_of(cell):
        if cell_status(cell, stage) != "failed":
            continue
        for block in (cell.block, "all"):
            file = failed_notebook(cell, stage, block)
            if file.is_file():
                texts.append(f"{stage}: {_error_in(read_json(file))}")
                break
    return texts


def _error_in(notebook: dict[str, Any]) -> str:
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return f"{output.get('ename')}: {output.get('evalue')}"
    return "the notebook holds no error"


def failures(study: Study) -> Table:
    """The stages that failed, each with its error."""
    rows = [
        {"Model": cell.model.label, "Strategy": cell.strategy, "Error": text}
        for cell in study.cells()
        for text in errors(cell)
    ]
    return table_of(rows or [{"Model": "none"}], ["Model", "Strategy", "Error"])


# --- of one cell ---------------------------------------------------------------------------------

_TRAINED = {
    "layers": "Layers with adapters",
    "trainable_parameters": "Trained parameters",
    "parameters": "All parameters",
    "pairs": "Preference pairs",
    "effective_batch": "Pairs in a step",
    "steps": "Optimizer steps",
    "tokens": "Tokens seen",
    "final_loss": "Final loss",
    "engine": "Engine",
    "weights_sha256": "Weights (sha256)",
    "revision": "Revision",
    "fingerprint": "Fingerprint of the settings",
}


def facts_of(manifest: dict[str, Any]) -> Table:
    """What a training's manifest says of it, as Name and Value."""
    values = {title: manifest.get(key) for key, title in _TRAINED.items()}
    if isinstance(layers := values["Layers with adapters"], list):
        values["Layers with adapters"] = span(layers) or "none"
    if checksum := values["Weights (sha256)"]:
        values["Weights (sha256)"] = f"{checksum[:16]}…"
    if check := manifest.get("confinement"):
        words = f"{check['base_parameters_changed']} of {check['base_parameters_checked']} tensors"
        values["Changed outside the block"] = words
    return _texts(values)


def environment(manifest: dict[str, Any]) -> Table:
    """Device, precision, versions and commit of a run, as Name and Value."""
    names = ["device", "precision", "cpu_threads", "python", "hialign_version", "hialign_commit"]
    values = {name.replace("_", " "): manifest.get(name) for name in names}
    return _texts(values | manifest.get("packages", {}))


def flat(settings: dict[str, Any], prefix: str = "") -> Table:
    """Nested settings as Name (`training.beta`) and Value."""
    values = pd.json_normalize(settings).iloc[0].to_dict() if settings else {}
    return _texts({f"{prefix}{name}": value for name, value in values.items()})


def _texts(values: dict[str, Any]) -> Table:
    """Names and values, all as text, since numbers of several kinds stand in one column."""

    def text(value: Any) -> str | None:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return None if value != value else f"{value:,.10g}"  # NaN is not itself
        return None if value is None else str(value)

    rows = [(name, text(value)) for name, value in values.items()]
    return Table(rows, columns=["Name", "Value"])
