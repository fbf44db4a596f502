"""Each stage's record: where it lies, which stages come before it, and the command that makes it."""

from pathlib import Path

from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import JudgeSettings
from hialign.study.study import Cell, Study

UPSTREAM = {"train": (), "respond": ("train",), "evaluate": ("respond",), "judge": ("respond",)}
ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
# Beside a published adapter: what it is a copy of, in bfloat16, and its own hashes
COPY_RECORD = "published.json"
PRODUCTS = {  # what a stage makes, as the subject of a sentence
    "train": "the training of {} is",
    "respond": "the responses of {} are",
    "evaluate": "the evaluation of {} is",
    "judge": "the judgments of {} are",
}


def stage_manifest(cell: Cell, stage: str) -> Path:
    """The record of a stage of a cell. It is written last, so that it vouches for all other files."""
    judge = cell.study.judge.name if cell.study.judge else "none"
    names = {
        "train": "manifest.json",
        "respond": "manifest-respond.json",
        "evaluate": "evaluation.json",
        "judge": f"manifest-judge-{judge}.json",
    }
    return cell.folder / names[stage]


def judge_of(study: Study) -> JudgeSettings:
    """The study's judge. Raises HialignError if the study names none."""
    if study.judge is None:
        raise HialignError(f"study {study.name} names no judge: add a `judge:` section to it")
    return study.judge


def judgments_file(cell: Cell) -> Path:
    """`judgments-<judge>.jsonl` in the folder of a cell."""
    return cell.folder / f"judgments-{judge_of(cell.study).name}.jsonl"


def failed_notebook(cell: Cell, stage: str, block: str = "") -> Path:
    """Where a stage that failed leaves its notebook, with the error in it."""
    name, model = cell.study.name, cell.model.name
    output = paths.notebook_output(name, stage, model, block or cell.block, cell.seed)
    return output.with_name(output.stem + ".failed.ipynb")


def is_published(study: Study) -> bool:
    """Whether the study's folder is one that `hialign publish` made, without weights."""
    return (paths.study_dir(study.name) / "study.yml").is_file()


def command_of(cell: Cell, stage: str) -> str:
    """The command that runs a stage of a cell, or a probe of its model (`probe-…`)."""
    study = cell.study
    command = f"hialign run {stage} -p study {study.argument}"
    if cell.model != study.models[0]:
        command += f" -p model {cell.model.name}"
    if cell.seed:
        command += f" -p seed {cell.seed.removeprefix('seed-')}"
    return command if stage.startswith("probe-") else f"{command} -p block {cell.block}"


def run_first(problem: str, cell: Cell, stage: str) -> HialignError:
    """The error for a `problem` that running a stage of a cell, or a probe, would solve."""
    return HialignError(f"{problem}: run `{command_of(cell, stage)}` first")
