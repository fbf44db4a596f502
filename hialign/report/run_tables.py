"""What was run, when, on what, for how long and at what cost: tables from manifests and notebooks."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from hialign.records import frames
from hialign.records.files import read_json, read_record
from hialign.records.stages import failed_notebook, stage_manifest
from hialign.records.status import cell_status, probe_state, state
from hialign.report.display import Table, table_of, table_or_none
from hialign.study import paths
from hialign.study.study import Cell, Study, probes_of, stages_of


def stages(study: Study, cells: Sequence[Cell] = ()) -> Table:
    """A row a stage of each cell (or of `cells`): status, when it ended, minutes, memory, device.

    Minutes of a training are its optimizer steps, with its part of what one pass did for several
    strategies together; those of other stages are the whole of it.
    """
    rows = []
    for cell in cells or study.cells():
        for stage in stages_of(cell):
            found = state(cell, stage)
            content = read_record(stage_manifest(cell, stage)) if found.trusted else {}
            row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
            row |= {"Stage": stage, "Status": found.status}
            row |= {"Ended (UTC)": _ended(cell, stage)}
            seconds, memory = content.get("seconds"), content.get("peak_memory_bytes")
            if stage == "train" and seconds is not None:
                passes = 1 + len(content.get("trained_with") or [])
                seconds += (content.get("shared_seconds") or 0) / passes
            row |= {"Minutes": None if seconds is None else seconds / 60}
            row |= {"Peak memory (GiB)": None if memory is None else memory / 2**30}
            row |= {"Device": content.get("device"), "Commit": content.get("hialign_commit")}
            rows.append(row)
    return table_of(rows)


def _ended(cell: Cell, stage: str) -> str | None:
    """When the stage's notebook ended, from what papermill wrote into it."""
    for block in (cell.block, "all"):
        file = paths.notebook_output(cell.study.name, stage, cell.model.name, block)
        if file.is_file():
            end = read_json(file).get("metadata", {}).get("papermill", {}).get("end_time")
            return str(end)[:16].replace("T", " ") if end else None
    return None


def totals(study: Study) -> Table:
    """Cells, hours and peak memory of each stage over all cells, and what they ran on."""
    every, rows = stages(study), []
    for stage, found in every.groupby("Stage", sort=False):
        done = found[found.Status.isin(["done", "stale"])]
        row: dict[str, Any] = {"Stage": stage, "Cells": len(found), "Done": len(done)}
        row |= {"Failed": int((found.Status == "failed").sum())}
        row |= {"Hours": done.Minutes.sum() / 60 if len(done) else None}
        row |= {"Peak memory (GiB)": done["Peak memory (GiB)"].max()}
        row |= {"Devices": ", ".join(sorted(set(done.Device.dropna()))) or None}
        rows.append(row)
    return table_of(rows)


def probes(study: Study) -> Table:
    """A row a probe of each model: status, minutes, memory, device."""
    rows = []
    for model in study.models:
        for probe in probes_of(study):
            found = probe_state(study, model, probe)
            file = paths.probe_record(study.name, model.name, probe)
            content = read_record(file) if found.trusted else {}
            row: dict[str, Any] = {"Model": model.label, "Probe": probe}
            row |= {"Status": found.status}
            seconds, memory = content.get("seconds"), content.get("peak_memory_bytes")
            row |= {"Minutes": None if seconds is None else seconds / 60}
            row |= {"Peak memory (GiB)": None if memory is None else memory / 2**30}
            row |= {"Device": content.get("device"), "Commit": content.get("hialign_commit")}
            rows.append(row)
    return table_or_none(rows, ["Model", "Probe"])


def hours(study: Study) -> float | None:
    """Hours of all stages and probes that are done; None where nothing is."""
    found = totals(study).Hours.dropna().tolist()
    if "Minutes" in (probed := probes(study)):
        found += (probed.Minutes.dropna() / 60).tolist()
    return float(sum(found)) if found else None


def cost(study: Study) -> float | None:
    """USD that the study's judgments cost, by its stated prices; None where it states none."""
    paid = [
        row["cost"]
        for cell in study.cells()
        if study.judge
        for row in frames.judgments_of(cell)
        if "cost" in row and not row.get("shared")
    ]
    return float(sum(paid)) if paid else None


def errors(cell: Cell) -> list[str]:
    """Of each stage of the cell that failed, its name and the error in its notebook."""
    found = []
    for stage in stages_of(cell):
        if cell_status(cell, stage) != "failed":
            continue
        for block in (cell.block, "all"):
            file = failed_notebook(cell, stage, block)
            if file.is_file():
                found.append(f"{stage}: {_error_in(read_json(file))}")
                break
    return found


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
    from hialign.report.display import span

    rows = [{"Name": title, "Value": manifest.get(key)} for key, title in _TRAINED.items()]
    for row in rows:
        if isinstance(row["Value"], list):
            row["Value"] = span(row["Value"]) or "none"
        if row["Name"] == "Weights (sha256)" and row["Value"]:
            row["Value"] = f"{row['Value'][:16]}…"
    check = manifest.get("confinement") or {}
    if check:
        words = f"{check['base_parameters_changed']} of {check['base_parameters_checked']} tensors"
        rows.append({"Name": "Changed outside the block", "Value": words})
    return _texts(rows)


def environment(manifest: dict[str, Any]) -> Table:
    """Device, precision, versions and commit of a run, as Name and Value."""
    names = ["device", "precision", "cpu_threads", "python", "hialign_version", "hialign_commit"]
    values = {name.replace("_", " "): manifest.get(name) for name in names}
    values |= manifest.get("packages", {})
    return _texts([{"Name": name, "Value": value} for name, value in values.items()])


def flat(settings: dict[str, Any], prefix: str = "") -> Table:
    """Nested settings as Name (`training.beta`) and Value."""
    rows = pd.json_normalize(settings).iloc[0].to_dict() if settings else {}
    return _texts([{"Name": f"{prefix}{name}", "Value": value} for name, value in rows.items()])


def _texts(rows: list[dict[str, Any]]) -> Table:
    """Values as text: numbers of several kinds stand in one column."""
    for row in rows:
        value = row["Value"]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        missing = value is None or value != value
        row["Value"] = None if missing else f"{value:,.10g}" if is_number else str(value)
    return Table(rows, columns=["Name", "Value"])
