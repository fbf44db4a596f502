"""The records of a study, read back as DataFrames.

Readers take a Study and return every column even if no cell has run, so that tables and figures can
show what is missing as missing. A record that was damaged or was made with other settings than the
study has now counts as missing (`hialign.records.status`). In a study of several seeds each row names
its seed (`seed_name`).
"""

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import numpy as np
import pandas as pd

from hialign.records.files import read_jsonl, read_record
from hialign.records.stages import judgments_file, stage_manifest
from hialign.records.status import probe_state, state
from hialign.study import paths
from hialign.study.rubric import load_rubric
from hialign.study.study import Cell, Study

T = TypeVar("T")


class Response(TypedDict):
    """A line of `responses.jsonl`."""

    prompt_id: str
    prompt: str
    response: str  # untrusted text
    tokens: int
    finish_reason: str  # `stop`, or `length` if the limit on new tokens cut it
    prompt_truncated: NotRequired[bool]


class Judgment(TypedDict):
    """A line of `judgments-<judge>.jsonl`."""

    prompt_id: str
    judge: str  # its name in the study
    model: NotRequired[str]  # as the server or the settings name it
    system_fingerprint: NotRequired[str]  # of a server
    weights_sha256: NotRequired[str]  # of a local judge
    revision: NotRequired[str]  # of a local judge from the hub
    rubric_sha256: str
    key: str  # a hash of all that the judgment depends on
    scores: dict[str, float]  # by dimension. Empty if the judgment failed.
    reasons: dict[str, str]
    distribution: NotRequired[dict[str, list[float]]]  # P(1) to P(5), of a local judge
    error: NotRequired[str]  # why it failed
    attempts: int
    repaired: bool  # whether the answer's JSON had to be mended
    truncated: NotRequired[bool]  # whether the item did not fit a local judge's context
    unsupported: NotRequired[list[str]]  # parameters that the server refused
    order: NotRequired[list[str]]  # of the dimensions, if it was drawn
    usage: dict[str, int]  # prompt_tokens, completion_tokens, cached_tokens
    cost: NotRequired[float]  # USD
    batch: NotRequired[str]  # the provider's name of the batch
    shared: NotRequired[bool]  # whether it was copied from an equal response
    raw: str  # the answer, untrusted text


STEP_COLUMNS = [
    "step", "epoch", "loss", "chosen_reward", "rejected_reward", "reward_accuracy",
    "reward_margin", "grad_norm", "learning_rate", "seconds", "shared_seconds", "tokens",
]  # fmt: skip
CELL_COLUMNS = ["model", "block", "strategy"]
ENDS = ("", "_low", "_high")  # an estimate and its 95% interval
ACCURACIES = ("likelihood_accuracy", "reward_accuracy", "reward_margin")
EVALUATION_COLUMNS = ["objective", "n", *(f"{name}{end}" for name in ACCURACIES for end in ENDS)]
MOVED = ("kl", "response_tokens", "refusal_rate", "repetition")
DIVERGENCE_COLUMNS = ["n", *(f"{name}{end}" for name in MOVED for end in ENDS)]
MANIFEST_COLUMNS = [
    "status", "layers", "pairs", "steps", "seconds", "shared_seconds", "tokens",
    "peak_memory_bytes", "trained_with", "trainable_parameters", "parameters", "device", "seed",
    "fingerprint", "stale",
]  # fmt: skip


def probes(study: Study, probe: str) -> dict[str, dict[str, Any]]:
    """The records of a probe, by the labels of the models. Of several seeds, those of the first."""
    return {
        model.label: read_record(paths.probe_record(one.name, model.name, probe, one.seed))
        for one in [study.at()]
        for model in study.models
        if probe_state(one, model, probe).trusted
    }


def remembered(read: Callable[[Study], T]) -> Callable[[Study], T]:
    """`read` with its last result remembered while neither the study nor a record of it changes."""
    last: list[tuple[Any, T]] = []

    @functools.wraps(read)
    def remember(study: Study) -> T:
        key = (study.model_dump_json(), _stamps(study))
        if not last or last[0][0] != key:
            last[:] = [(key, read(study))]
        result = last[0][1]
        # Each caller gets its own frame. Pandas copies the data when a caller changes it.
        return result.copy(deep=False) if isinstance(result, pd.DataFrame) else result

    return remember


def _stamps(study: Study) -> list[tuple[str, int, int]]:
    folders = [cell.folder for cell in study.cells()]
    folders += [
        paths.probes_dir(one.name, model.name, one.seed)
        for one in study.single_runs()
        for model in study.models
    ]
    folders = [folder for folder in folders if folder.is_dir()]
    files = [file for folder in folders for file in os.scandir(folder) if file.is_file()]
    return sorted((f.path, f.stat().st_mtime_ns, f.stat().st_size) for f in files)


def judgments_of(cell: Cell) -> list[Judgment]:
    """The cell's judgments as they were written, with failed ones. Empty before it is judged."""
    rows = _rows(judgments_file(cell)) if state(cell, "judge").trusted else []
    return cast(list[Judgment], rows)


def responses_of(cell: Cell) -> list[Response]:
    """The cell's responses as they were written, untrusted text. Empty before it has answered."""
    rows = _rows(cell.folder / "responses.jsonl") if state(cell, "respond").trusted else []
    return cast(list[Response], rows)


def cells(study: Study, stage: str) -> list[Cell]:
    """The cells whose records of a stage may be shown."""
    return [cell for cell in study.cells() if state(cell, stage).trusted]


def manifests(study: Study) -> pd.DataFrame:
    """One row per cell: its training manifest, or its status if there is no manifest to show."""
    rows = []
    for cell in study.cells():
        current = state(cell)
        row = {"status": current.status, "stale": current.status == "stale"}
        if current.trusted:
            row = read_record(stage_manifest(cell, "train")) | row
        rows.append(row | _labels(cell))
    return _frame(rows, MANIFEST_COLUMNS)


def training_seconds(runs: pd.DataFrame) -> float:
    """Seconds of training of the cells in `runs` (rows of `manifests`). Shared work counts once."""
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
    """One row per cell and objective. The objective `all` is the study's own held-out pairs."""
    rows = []
    for cell in cells(study, "evaluate"):
        content = read_record(stage_manifest(cell, "evaluate"))
        for objective, values in content["objectives"].items():
            rows.append(_labels(cell) | {"objective": objective} | values)
    return _frame(rows, EVALUATION_COLUMNS)


@remembered
def pairs(study: Study) -> pd.DataFrame:
    """One row per tuned cell and held-out pair: prompt_id, groups (`all`, an objective), margin, hit.

    `margin` is the reward margin in nats. `hit` is 1 if the implicit reward ranks the chosen response
    higher, 0.5 for a tie and 0 otherwise.
    """
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
    """One row per cell: KL divergence from base (nats per token), and of the responses their length
    (tokens), the share that refuses and the share of repeated 4-grams."""
    rows = []
    for cell in cells(study, "evaluate"):
        rows.append(_labels(cell) | read_record(stage_manifest(cell, "evaluate"))["divergence"])
    return _frame(rows, DIVERGENCE_COLUMNS)


@remembered
def responses(study: Study) -> pd.DataFrame:
    """One row per cell and evaluation prompt. Responses are untrusted text."""
    # Half a character cannot be stored in pandas' own strings, which are UTF-8
    with pd.option_context("future.infer_string", False):
        return _frame(
            (_labels(cell) | row for cell in cells(study, "respond") for row in responses_of(cell)),
            ["prompt_id", "prompt", "response", "tokens", "finish_reason"],
        )


@remembered
def judgments(study: Study) -> pd.DataFrame:
    """One row per cell, prompt and dimension. A judgment that failed has NaN scores."""
    frames = []
    if study.judge:
        names = list(load_rubric(study.judge.rubric).dimensions)
        for cell in cells(study, "judge"):
            rows = judgments_of(cell)
            if not rows:
                continue
            scores = [[row["scores"].get(name, math.nan) for name in names] for row in rows]
            columns = {
                "judge": np.repeat([row["judge"] for row in rows], len(names)),
                "prompt_id": np.repeat([row["prompt_id"] for row in rows], len(names)),
                "dimension": np.tile(names, len(rows)),
                "score": np.array(scores, dtype=float).ravel(),
            }
            frames.append(pd.DataFrame(_labels(cell) | columns))
    if not frames:
        return _frame([], ["judge", "prompt_id", "dimension", "score"])
    return pd.concat(frames, ignore_index=True)


def _labels(cell: Cell) -> dict[str, Any]:
    names = {"model": cell.model.label, "block": cell.block, "strategy": cell.strategy}
    return names | ({"seed_name": cell.seed} if cell.seed else {})


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def _frame(rows: Iterable[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """`rows` as a frame that begins with `columns` and has them even without rows."""
    frame = pd.DataFrame(list(rows))
    extra = [c for c in frame.columns if c not in CELL_COLUMNS + columns]
    return frame.reindex(columns=CELL_COLUMNS + columns + extra)


def answered_by(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many judgments each model gave, by the name and the fingerprint that the server gave."""
    names = ((row.get("model"), row.get("system_fingerprint")) for row in rows)
    return dict(Counter(" ".join(str(part) for part in name if part) for name in names))
