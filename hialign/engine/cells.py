"""Training of cells: what is refused before it, and what it leaves in a cell's folder."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hialign.engine import dpo, environment
from hialign.engine.measures import choice
from hialign.engine.models import depth_of, identity, load_model
from hialign.engine.modules import parameters_in
from hialign.engine.reference import Reference
from hialign.engine.tokens import TokenizedPairs
from hialign.engine.trainer import StockTrainer
from hialign.preferences.pairs import load_pairs
from hialign.records import dependencies, files, stages
from hialign.study import blocks, paths
from hialign.study.errors import HialignError
from hialign.study.settings import TrainingSettings
from hialign.study.study import Cell


def train(cell: Cell) -> dict[str, Any]:
    """Tune the cell's block.

    Leaves `adapter/`, `training.jsonl` and `manifest.json` in the cell's folder. Base is not tuned:
    its cell gets a manifest alone, and the reference's log-probabilities are computed for the other
    cells. A run that was killed resumes from its last checkpoint.

    Returns the manifest. Raises HialignError before any training for settings that cannot work.
    """
    return train_together([cell])[0]


def train_together(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Train several cells of one study and model in one pass over one base model.

    The adapters are the same as those of `train`, cell by cell, for a fraction of the time. Returns
    the manifests, in the order of the cells.
    """
    cell = cells[0]
    settings = cell.study.training
    _check_choices(settings)
    depth = depth_of(cell.model)
    choices = {c.block: choice(c, depth) for c in cells}  # refuses before loading
    depends = {c.block: dependencies.depends(c, "train") for c in cells}
    pairs = load_pairs(cell.study.preferences)
    model, tokenizer = load_model(cell.model)
    weights = identity(cell.model)
    _check_space(cell.folder)
    prepared = dpo.prepare(model, tokenizer, pairs.train, settings)
    common: dict[str, Any] = {
        "study": cell.study.name,
        "model": cell.model.name,
        "source": cell.model.source,
        **weights,
        "depth": depth,
        "preferences": {**pairs.report, "fingerprint": pairs.fingerprint},
        "pairs": len(pairs.train),
        "precision": str(model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        **environment.environment(),
    }
    about = {c.block: common | depends[c.block] for c in cells}
    tuned = {block: chosen for block, chosen in choices.items() if chosen.layers}
    passes = [tuned] if tuned else []
    if len(tuned) > 1 and prepared.why_stock:
        print(f"The blocks are trained one after the other by stock TRL: {prepared.why_stock}")
        passes = [{block: chosen} for block, chosen in tuned.items()]
    manifests: dict[str, dict[str, Any]] = {}
    for c in cells:
        if c.block not in tuned:
            started = time.perf_counter()
            if not tuned:  # for the cells that are trained by themselves
                reference = Reference(model, weights, prepared.pairs.tokens)
                packed = not prepared.why_stock
                dpo.fill_reference(reference, model, tokenizer, packed=packed)
            manifest = _of_cell(about[c.block], c, []) | {
                "status": "untrained",
                "steps": 0,
                "tokens": 0,
                "trainable_parameters": 0,
                "seconds": time.perf_counter() - started,
                "shared_seconds": 0.0,
                "peak_memory_bytes": environment.peak_memory_bytes(),
            }
            manifests[c.block] = _publish(c, manifest, None, [])
    for number, together in enumerate(passes):
        if number:
            model, tokenizer = load_model(cell.model)  # the one before has its adapter in it
        members = [c for c in cells if c.block in together]
        checkpoints = _checkpoints(members, together)
        trainer = dpo.train_blocks(
            model, tokenizer, prepared, together, settings, weights, work=checkpoints
        )
        manifests |= _publish_pass(members, trainer, prepared.pairs, about)
        shutil.rmtree(checkpoints, ignore_errors=True)
        del trainer  # or its model would stay in memory while the next one trains
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [manifests[c.block] for c in cells]


def _publish_pass(
    cells: Sequence[Cell],
    trainer: StockTrainer,
    pairs: TokenizedPairs,
    about: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Publish each cell of a finished pass. Returns the manifests by block."""
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    manifests = {}
    with tempfile.TemporaryDirectory(prefix="hialign-") as scratch:
        for cell, strategy in zip(cells, trainer.strategies, strict=True):
            steps = dpo.steps_of(trainer, strategy)
            manifest = _of_cell(about[cell.block], cell, strategy.layers) | {
                "status": "trained",
                "pairs": len(pairs.tokens),
                "pairs_too_long": pairs.total - len(pairs.tokens),
                "pairs_truncated": pairs.truncated,
                "steps": len(steps),
                "tokens": steps[-1]["tokens"],
                "seconds": sum(s["seconds"] for s in steps),
                "shared_seconds": sum(s["shared_seconds"] for s in steps),
                "trained_with": [c.block for c in cells if c is not cell],
                "engine": "stock TRL" if trainer.is_stock else "packed",
                "trainable_parameters": sum(
                    parameter.numel() for parameter in parameters_in(adapted, strategy.adapter)
                ),
                "peak_memory_bytes": environment.peak_memory_bytes(),
                "confinement": trainer.confinement[cell.block],
                "final_loss": steps[-1]["loss"],
            }
            adapted.peft_config[strategy.adapter].base_model_name_or_path = cell.model.source
            folder = _save_adapter(adapted, strategy.adapter, Path(scratch))
            manifests[cell.block] = _publish(cell, manifest, folder, steps)
    return manifests


def _save_adapter(adapted: Any, adapter: str, scratch: Path) -> Path:
    """Save one adapter of a PEFT model below `scratch`. Returns the folder that holds its files."""
    folder = scratch / adapter
    adapted.save_pretrained(
        folder,
        selected_adapters=[adapter],
        safe_serialization=True,
        # PEFT would ask the hub whether the vocabulary was changed. We adapt attention alone.
        save_embedding_layers=False,
    )
    nested = folder / adapter  # where PEFT puts every adapter but the first
    if nested.is_dir():
        for file in nested.iterdir():
            file.rename(folder / file.name)
        nested.rmdir()
    return folder


def _of_cell(common: dict[str, Any], cell: Cell, layers: list[int]) -> dict[str, Any]:
    """What every manifest of a cell begins with."""
    settings = cell.study.training
    tuned = {"seed": settings.seed, "effective_batch": settings.effective_batch}
    return common | {
        "block": cell.block,
        "strategy": cell.strategy,
        "layers": layers,
        **(tuned if layers else {}),
        "chosen_by": dependencies.chosen_by(cell),
    }


def _checkpoints(cells: Sequence[Cell], choices: dict[str, blocks.Choice]) -> Path:
    """The folder for the checkpoints of exactly this pass.

    Those of other settings, or of layers that another record chose, are deleted.
    """
    study, model = cells[0].study, cells[0].model
    place = paths.study_dir(study.name) / ".checkpoints" / paths.slug(model.name)
    names = "+".join(paths.slug(c.block) for c in cells)
    if len(names) > 120:  # no file system takes a name of over 255 bytes
        names = hashlib.sha256(names.encode()).hexdigest()[:16]
    key = repr([(c.fingerprint("train"), choices[c.block]) for c in cells])
    folder = place / f"{names}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for other in place.glob("*"):
        if other != folder and other.name.rpartition("-")[0] == names:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _check_choices(settings: TrainingSettings) -> None:
    """Refuse names that transformers does not know, before anything is loaded."""
    for key, kinds in (("optimizer", OptimizerNames), ("scheduler", SchedulerType)):
        names = [kind.value for kind in kinds]
        if getattr(settings, key) not in names:
            raise HialignError(
                f"training.{key} {getattr(settings, key)!r} is not one of {', '.join(names)}"
            )


def _check_space(folder: Path, needed: int = 1 << 28) -> None:
    """Refuse before training if the disk could not hold an adapter and a checkpoint (256 MiB)."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise HialignError(
            f"only {free >> 20} MiB are free under {existing}, {needed >> 20} are needed: "
            "free some space, or point HIALIGN_OUTPUTS at another disk"
        )


def _publish(
    cell: Cell, manifest: dict[str, Any], adapter: Path | None, steps: list[dict[str, Any]]
) -> dict[str, Any]:
    """Put a finished run into its folder. Returns the manifest as it was written.

    The old manifest goes first, and the new one comes last.
    """
    folder = cell.folder
    (folder / "manifest.json").unlink(missing_ok=True)
    written = {}
    if adapter is not None:
        staged = folder / ".adapter"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(adapter, staged)
            files.replace_folder(staged, folder / "adapter")
        except OSError as error:
            reason = error.strerror or error
            raise HialignError(f"cannot write {folder / 'adapter'}: {reason}") from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        files.write_jsonl(folder / "training.jsonl", steps)
        written = {name: folder / name for name in (*stages.ADAPTER, "training.jsonl")}
    return files.write_record(folder / "manifest.json", manifest | {"files": files.stamps(written)})
