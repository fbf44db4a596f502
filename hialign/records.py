"""Run folders: written whole or not at all, read back as DataFrames.

Readers take a Study and return every column even where no cell has run, so that tables and figures
can show what is missing as missing.
"""

import functools
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from hialign import paths
from hialign.blocks import probe_of
from hialign.errors import HialignError
from hialign.study import Cell, JudgeSettings, ModelSettings, Study

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy")
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


# --- writing -----------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends without an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise HialignError(f"cannot write {path}: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise HialignError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, whole or not at all. NaN and infinity are refused: None is a missing value."""
    with whole_file(path) as temporary:
        temporary.write_text(_dumps(content, path, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line a row, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(_dumps(row, path) + "\n")


def _dumps(content: Any, path: Path, **options: Any) -> str:
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, **options)
        # Half a character (from an API, say) has no UTF-8, only an escape
        if re.search("[\ud800-\udfff]", text):
            text = json.dumps(content, allow_nan=False, **options)
        return text
    except ValueError as error:
        raise HialignError(
            f"{path} would hold a number that is not finite ({error}): the run went wrong; "
            "a lower learning rate is the usual cure"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; HialignError names the file if it is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HialignError(f"{path}: not JSON ({error}); delete it to run again") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; HialignError names the file and line that is not JSON."""
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise HialignError(f"{path}, line {number}: not JSON ({error})") from None
    return rows


# --- provenance --------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, commit and device of this process."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "hialign_version": hialign_version(),
        "hialign_commit": commit(),
        "python": platform.python_version(),
        "packages": {p: version(p) for p in PACKAGES},
        "device": device,
        "device_type": "cuda" if torch.cuda.is_available() else "cpu",
        "cpu_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    return f"{name}, {os.cpu_count()} cores"


def hialign_version() -> str:
    try:
        return version("hialign")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def commit() -> str | None:
    """The commit of the checkout, with `+changes` if the tree differs from it; None in a wheel."""
    if not paths.in_checkout():
        return None
    try:
        run = ["git", "-C", str(paths.root())]
        head = subprocess.run(
            [*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*run, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


# --- reading -----------------------------------------------------------------------------------


def chosen_by(cell: Cell) -> str | None:
    """The key of the probe's record that chooses the cell's layers; None where none does (yet)."""
    if not (probe := probe_of(cell.block)):
        return None
    file = paths.probe_record(cell.study.name, cell.model.name, probe)
    return str(read_json(file)["key"]) if file.is_file() else None


def cell_status(cell: Cell, stage: str = "train") -> str:
    """`done`, `stale` (the study's settings, or the record that chose the block's layers, have
    changed since), `failed` or `missing`."""
    file, failed = stage_manifest(cell, stage), failed_notebook(cell, stage)
    if failed.is_file() and not (file.is_file() and _newer(file, failed)):
        return "failed"
    if file.is_file() and read_json(file).get("fingerprint") == cell.fingerprint(stage):
        trained = stage_manifest(cell, "train")
        known = read_json(trained).get("chosen_by") if trained.is_file() else None
        # Without a record (a published study has none) nothing says that it would choose others
        return "done" if chosen_by(cell) in (None, known) else "stale"
    name = "measured" if probe_of(cell.block) else "all"
    together = failed_notebook(cell, stage, name)  # of a pass in which this cell was to be
    if together.is_file() and not (file.is_file() and _newer(file, together)):
        return "failed"
    return "stale" if file.is_file() else "missing"


def probe_status(study: Study, model: ModelSettings, probe: str) -> str:
    """`cell_status` of a probe of a model."""
    cell = Cell(study, model, "base")
    file = paths.probe_record(study.name, model.name, probe)
    failed = failed_notebook(cell, f"probe-{probe}", "all")
    if failed.is_file() and not (file.is_file() and _newer(file, failed)):
        return "failed"
    if not file.is_file():
        return "missing"
    fresh = read_json(file).get("fingerprint") == cell.probe_fingerprint(probe)
    return "done" if fresh else "stale"


def probes(study: Study, probe: str) -> dict[str, dict[str, Any]]:
    """The records of a probe by the models' labels, of those measured with the study's settings."""
    found = {}
    for model in study.models:
        file = paths.probe_record(study.name, model.name, probe)
        wanted = Cell(study, model, "base").probe_fingerprint(probe)
        if file.is_file() and (record := read_json(file)).get("fingerprint") == wanted:
            found[model.label] = record
    return found


def _newer(a: Path, b: Path) -> bool:
    return a.stat().st_mtime > b.stat().st_mtime


def stage_manifest(cell: Cell, stage: str) -> Path:
    """The file whose presence says that a stage of a cell is whole; it is written last."""
    judge = cell.study.judge.name if cell.study.judge else "none"
    names = {
        "train": "manifest.json",
        "respond": "manifest-respond.json",
        "evaluate": "evaluation.json",
        "judge": f"manifest-judge-{judge}.json",
    }
    return cell.folder / names[stage]


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


def judge_of(study: Study) -> JudgeSettings:
    """The study's judge, or HialignError where it names none."""
    if study.judge is None:
        raise HialignError(f"study {study.name} names no judge: add a `judge:` section to it")
    return study.judge


def judgments_file(cell: Cell) -> Path:
    """Where the judgments of a cell lie: `judgments-<judge>.jsonl` in its folder."""
    return cell.folder / f"judgments-{judge_of(cell.study).name}.jsonl"


def judgments_of(cell: Cell) -> list[dict[str, Any]]:
    """The cell's judgments as they were written, failed ones included; none before it is judged."""
    return _rows(judgments_file(cell))


def responses_of(cell: Cell) -> list[dict[str, Any]]:
    """The cell's responses as they were written, untrusted text; none before it has answered."""
    return _rows(cell.folder / "responses.jsonl")


def failed_notebook(cell: Cell, stage: str, block: str = "") -> Path:
    """Where a stage that failed leaves its notebook, with the error in it."""
    out = paths.notebook_output(cell.study.name, stage, cell.model.name, block or cell.block)
    return out.with_name(out.stem + ".failed.ipynb")


def manifests(study: Study) -> pd.DataFrame:
    """A row a cell: what its training left in manifest.json, and whether it is there at all."""
    rows = []
    for cell in study.cells():
        row = _labels(cell)
        row["status"] = cell_status(cell)
        file = stage_manifest(cell, "train")
        if file.is_file():
            row |= read_json(file) | {
                "stale": row["status"] == "stale",
                "status": "failed" if row["status"] == "failed" else "done",
            }
            row |= _labels(cell)
        rows.append(row)
    return _frame(rows, MANIFEST_COLUMNS)


def training_seconds(runs: pd.DataFrame) -> float:
    """What training the cells in `runs` (rows of `manifests`) took; shared work counts once."""
    passes = [1 + len(v) if isinstance(v, list) else 1 for v in runs["trained_with"]]
    shared = runs["shared_seconds"].astype(float).fillna(0) / passes
    return float((runs["seconds"].astype(float) + shared).sum())


def training(study: Study) -> pd.DataFrame:
    """A row a cell and optimizer step, as in training.jsonl."""
    return _frame(
        (
            _labels(cell) | row
            for cell in study.cells()
            for row in _rows(cell.folder / "training.jsonl")
        ),
        STEP_COLUMNS,
    )


@remembered
def evaluations(study: Study) -> pd.DataFrame:
    """A row a cell and objective; `all` is the study's own held-out pairs."""
    rows = []
    for cell in study.cells():
        if (cell.folder / "evaluation.json").is_file():
            content = read_json(cell.folder / "evaluation.json")
            for objective, values in content["objectives"].items():
                rows.append(_labels(cell) | {"objective": objective} | values)
    return _frame(rows, EVALUATION_COLUMNS)


@remembered
def pairs(study: Study) -> pd.DataFrame:
    """A row a tuned cell and held-out pair: prompt_id, groups (`all`, an objective), margin (nats), and
    hit: 1 where the implicit reward ranks the pair right, 0.5 for a tie."""
    rows = []
    for cell in study.cells():
        file = cell.folder / "evaluation.json"
        if cell.block == "base" or not file.is_file():
            continue
        content = read_json(file)
        for p in content["pairs"]:
            gain = p["chosen"] - p["chosen_base"] - p["rejected"] + p["rejected_base"]
            row = _labels(cell) | {"prompt_id": p["id"].rsplit("-", 1)[0], "groups": p["groups"]}
            row |= {"margin": content["beta"] * gain, "hit": 0.5 + 0.5 * float(np.sign(gain))}
            rows.append(row)
    return _frame(rows, ["prompt_id", "groups", "margin", "hit"])


def divergences(study: Study) -> pd.DataFrame:
    """A row a cell: KL divergence from base (nats a token) and response length (tokens)."""
    rows = []
    for cell in study.cells():
        if (cell.folder / "evaluation.json").is_file():
            rows.append(_labels(cell) | read_json(cell.folder / "evaluation.json")["divergence"])
    return _frame(rows, DIVERGENCE_COLUMNS)


@remembered
def responses(study: Study) -> pd.DataFrame:
    """A row a cell and evaluation prompt. What models wrote is untrusted text."""
    # Half a character has no UTF-8, which pandas' own strings are stored in
    with pd.option_context("future.infer_string", False):
        return _frame(
            (_labels(cell) | row for cell in study.cells() for row in responses_of(cell)),
            ["prompt_id", "prompt", "response", "tokens", "finish_reason"],
        )


@remembered
def judgments(study: Study) -> pd.DataFrame:
    """A row a cell, prompt and dimension; a judgment that failed has NaN scores."""
    from hialign.judge.rubric import load_rubric

    frames = []
    if study.judge:
        names = list(load_rubric(study.judge.rubric).dimensions)
        for cell in study.cells():
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
