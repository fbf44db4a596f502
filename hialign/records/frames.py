"""Run folders, read back as DataFrames.

Readers take a Study and return every column even where no cell has run, so that tables and figures
can show what is missing as missing. A record that was made with other settings than the study has,
or that was damaged, counts as missing (`hialign.records.status`).
"""

import functools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from hialign.records.files import read_jsonl, read_record
from hialign.records.status import judgments_file, probe_state, stage_manifest, state
from hialign.study import paths
from hialign.study.rubric import load_rubric
from hialign.study.study import Cell, Study

T = TypeVar("T")
STEP_COLUMNS = [
    *("step", "epoch", "loss", "chosen_reward", "rejected_reward", "reward_accuracy"),
    *("reward_margin", "grad_norm", "learning_rate", "seconds", "shared_seconds", "tokens"),
]
CELL_COLUMNS = ["model", "block", "strategy"]
EVALUATION_COLUMNS = [
    *("objective", "n"),
    *("likelihood_accuracy", "likelihood_accuracy_low", "likelihood_accuracy_high"),
    *("reward_accuracy", "reward_accuracy_low", "reward_accuracy_high"),
    *("reward_margin", "reward_margin_low", "reward_margin_high"),
]
DIVERGENCE_COLUMNS = [
    *("n", "kl", "kl_low", "kl_high"),
    *("response_tokens", "response_tokens_low", "response_tokens_high"),
]
MANIFEST_COLUMNS = [
    *("status", "layers", "pairs", "steps", "seconds", "shared_seconds", "tokens"),
    *("peak_memory_bytes", "trained_with"),
    *("trainable_parameters", "parameters", "device", "seed", "fingerprint", "stale"),
]


# --- provenance --------------------------------------------------------------------------------


# --- reading -----------------------------------------------------------------------------------


def probes(study: Study, probe: str) -> dict[str, dict[str, Any]]:
    """The records of a probe by the models' labels."""
    return {
        model.label: read_record(paths.probe_record(study.name, model.name, probe))
        for model in study.models
        if probe_state(study, model, probe).trusted
    }


def remembered(read: Callable[[Study], T]) -> Callable[[Study], T]:
    """`read`, done once a process for as long as neither the study nor a record of it changes."""
    last: list[tuple[Any, T]] = []

    @functools.wraps(read)
    def remember(study: Study) -> T:
        key = (study.model_dump_json(), _stamps(study))
        if not last or last[0][0] != key:
            last[:] = [(key, read(study))]
        found = last[0][1]
        # a frame of its own for each caller; pandas copies when one of them is changed
        return found.copy(deep=False) if isinstance(found, pd.DataFrame) else found

    return remember


def _stamps(study: Study) -> list[tuple[str, int, int]]:
    folders = [cell.folder for cell in study.cells()]
    folders += [paths.probes_dir(study.name, model.name) for model in study.models]
    folders = [folder for folder in folders if folder.is_dir()]
    files = [file for folder in folders for file in os.scandir(folder) if file.is_file()]
    return sorted((f.path, f.stat().st_mtime_ns, f.stat().st_size) for f in files)


def judgments_of(cell: Cell) -> list[dict[str, Any]]:
    """The cell's judgments as they were written, failed ones included; none before it is judged."""
    return _rows(judgments_file(cell)) if state(cell, "judge").trusted else []


def responses_of(cell: Cell) -> list[dict[str, Any]]:
    """The cell's responses as they were written, untrusted text; none before it has answered."""
    return _rows(cell.folder / "responses.jsonl") if state(cell, "respond").trusted else []


def cells(study: Study, stage: str) -> list[Cell]:
    """The cells whose records of a stage may be shown."""
    return [cell for cell in study.cells() if state(cell, stage).trusted]


def manifests(study: Study) -> pd.DataFrame:
    """One row per cell: its training manifest, or its status alone if there is none to be shown."""
    rows = []
    for cell in study.cells():
        found = state(cell)
        row = {"status": found.status, "stale": found.status == "stale"}
        if found.trusted:
            row = read_record(stage_manifest(cell, "train")) | row
        rows.append(row | _labels(cell))
    return _frame(rows, MANIFEST_COLUMNS)


def training_seconds(runs: pd.DataFrame) -> float:
    """What training the cells in `runs` (rows of `manifests`) took; shared work counts once."""
    passes = [1 + len(v) if isinstance(v, list) else 1 for v in runs["trained_with"]]
    shared = runs["shared_seconds"].astype(float).fillna(0) / passes
    return float((runs["seconds"].astype(float) + shared).sum())


def training(study: Study) -> pd.DataFrame:
    """One row per cell and optimizer step, as in training.jsonl."""
    return _frame(
        (
            _labels(cell) | row
            for cell in cells(study, "train")
            for row in _rows(cell.folder / "training.jsonl")
        ),
        STEP_COLUMNS,
    )


@remembered
def evaluations(study: Study) -> pd.DataFrame:
    """One row per cell and objective; `all` is the study's own held-out pairs."""
    rows = []
    for cell in cells(study, "evaluate"):
        content = read_record(stage_manifest(cell, "evaluate"))
        for objective, values in content["objectives"].items():
            rows.append(_labels(cell) | {"objective": objective} | values)
    return _frame(rows, EVALUATION_COLUMNS)


@remembered
def pairs(study: Study) -> pd.DataFrame:
    """A row a tuned cell and held-out pair: prompt_id, groups (`all`, an objective), margin (nats), and
    hit: 1 where the implicit reward ranks the pair right, 0.5 for a tie."""
    rows = []
    for cell in cells(study, "evaluate"):
        if cell.block == "base":
            continue
        content = read_record(stage_manifest(cell, "evaluate"))
        for p in content["pairs"]:
            gain = p["chosen"] - p["chosen_base"] - p["rejected"] + p["rejected_base"]
            row = _labels(cell) | {"prompt_id": p["id"].rsplit("-", 1)[0], "groups": p["groups"]}
            row |= {"margin": content["beta"] * gain, "hit": 0.5 + 0.5 * float(np.sign(gain))}
            rows.append(row)
    return _frame(rows, ["prompt_id", "groups", "margin", "hit"])


def divergences(study: Study) -> pd.DataFrame:
    """A row a cell: KL divergence from base (nats a token) and response length (tokens)."""
    rows = []
    for cell in cells(study, "evaluate"):
        rows.append(_labels(cell) | read_record(stage_manifest(cell, "evaluate"))["divergence"])
    return _frame(rows, DIVERGENCE_COLUMNS)


@remembered
def responses(study: Study) -> pd.DataFrame:
    """A row a cell and evaluation prompt. What models wrote is untrusted text."""
    # Half a character has no UTF-8, which pandas' own strings are stored in
    with pd.option_context("future.infer_string", False):
        return _frame(
            (_labels(cell) | row for cell in cells(study, "respond") for row in responses_of(cell)),
            ["prompt_id", "prompt", "response", "tokens", "finish_reason"],
        )


@remembered
def judgments(study: Study) -> pd.DataFrame:
    """A row a cell, prompt and dimension; a judgment that failed has NaN scores."""
    frames = []
    if study.judge:
        names = list(load_rubric(study.judge.rubric).dimensions)
        for cell in cells(study, "judge"):
            found = judgments_of(cell)
            scores = [[row["scores"].get(name, math.nan) for name in names] for row in found]
            long: dict[str, Any] = dict(_labels(cell))
            for name in ("judge", "prompt_id"):
                long[name] = np.repeat([row[name] for row in found], len(names))
            long |= {"dimension": np.tile(names, len(found))}
            long |= {"score": np.array(scores, dtype=float).ravel()}
            frames += [pd.DataFrame(long)] if found else []
    columns = [*CELL_COLUMNS, "judge", "prompt_id", "dimension", "score"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else _frame([], columns[3:])


def _labels(cell: Cell) -> dict[str, Any]:
    return {"model": cell.model.label, "block": cell.block, "strategy": cell.strategy}


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def _frame(rows: Iterable[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """`rows` with `columns` first, and these even where there are no rows."""
    frame = pd.DataFrame(list(rows))
    extra = [c for c in frame.columns if c not in CELL_COLUMNS + columns]
    return frame.reindex(columns=CELL_COLUMNS + columns + extra)


def answered_by(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many judgments each model gave, by the name (and fingerprint) that the server told."""
    counts: dict[str, int] = {}
    for row in rows:
        parts = (row.get("model"), row.get("system_fingerprint"))
        name = " ".join(str(part) for part in parts if part)
        counts[name] = counts.get(name, 0) + 1
    return counts
