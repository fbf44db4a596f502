"""Direct Preference Optimization inside one block (sections 3.2.2 and 3.2.3, Table 5).

The trainer is TRL's `DPOTrainer` with LoRA adapters on the attention projections of the block's
layers and nowhere else. What is ours: which modules are adapted, one reference for all strategies
(the base model is the same for each), a record of each step, and the proof that nothing outside
the block has changed.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hialign import blocks, paths, records
from hialign.errors import HialignError
from hialign.logprobs import Tokens, reference_log_probs, tokenize_pair
from hialign.models import depth_of, identity, load_model
from hialign.preferences import load_pairs
from hialign.progress import Progress
from hialign.study import Cell, TrainingSettings

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import DPOTrainer

# TRL's names of what each optimizer step logs, and ours (training.jsonl)
LOGGED = {
    "loss": "loss",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "seconds": "seconds",
    "num_tokens": "tokens",
}


def train(cell: Cell) -> dict[str, Any]:
    """Tune the cell's block and leave `adapter/`, `training.jsonl` and `manifest.json` in its folder.

    Base is not tuned: its cell gets a manifest alone, and the reference's log-probabilities are
    computed for the others. A run that was killed resumes from its last checkpoint. Returns the
    manifest; raises HialignError before any training for settings that cannot work.
    """
    import torch

    settings = cell.study.training
    _check_choices(settings)
    layers = blocks.layers_of(cell.block, depth_of(cell.model))  # refuses before anything is loaded
    pairs = load_pairs(cell.study.preferences)
    model, tokenizer = load_model(cell.model)
    weights = identity(cell.model)
    _check_space(cell.folder)
    manifest: dict[str, Any] = {
        "study": cell.study.name,
        "model": cell.model.name,
        "source": cell.model.source,
        **weights,
        "block": cell.block,
        "strategy": cell.strategy,
        "layers": layers,
        "depth": depth_of(cell.model),
        "settings": cell.settings("train"),
        "fingerprint": cell.fingerprint("train"),
        "effective_batch": settings.effective_batch,
        "preferences": {**pairs.report, "fingerprint": pairs.fingerprint},
        "pairs": len(pairs.train),
        "seed": settings.seed,
        "precision": str(model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        **records.environment(),
    }
    started = time.perf_counter()
    if cell.block == "base":
        reference_columns(model, tokenizer, pairs.train, settings, weights)
        manifest |= {"status": "untrained", "steps": 0, "tokens": 0, "trainable_parameters": 0}
        manifest |= {"seconds": time.perf_counter() - started}
        manifest |= {"peak_memory_bytes": records.peak_memory_bytes()}
        _publish(cell, manifest, None, [])
        return manifest
    checkpoints = _checkpoints(cell)
    with tempfile.TemporaryDirectory(prefix="hialign-") as scratch:
        try:
            trainer = train_block(
                model, tokenizer, pairs.train, layers, settings, weights, work=checkpoints
            )
            steps = _steps(trainer)
        except HialignError:  # it would only fail again from its checkpoint
            shutil.rmtree(checkpoints, ignore_errors=True)
            raise
        tuned = trainer.accelerator.unwrap_model(trainer.model)
        tuned.peft_config["default"].base_model_name_or_path = cell.model.source
        manifest |= {
            "status": "trained",
            "pairs": len(trainer.train_dataset),
            "pairs_too_long": len(pairs.train) - len(trainer.train_dataset),
            "steps": len(steps),
            "tokens": steps[-1]["tokens"],
            "seconds": sum(s["seconds"] for s in steps),
            "trainable_parameters": sum(p.numel() for p in tuned.parameters() if p.requires_grad),
            "peak_memory_bytes": records.peak_memory_bytes(),
            "confinement": trainer.confinement,
            "final_loss": steps[-1]["loss"],
        }
        # PEFT would ask the hub whether the vocabulary was changed; attention is all we adapt
        tuned.save_pretrained(
            Path(scratch) / "adapter", safe_serialization=True, save_embedding_layers=False
        )
        _publish(cell, manifest, Path(scratch) / "adapter", steps)
    shutil.rmtree(checkpoints, ignore_errors=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return manifest


def train_block(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Dataset",
    layers: Sequence[int],
    settings: TrainingSettings,
    weights: dict[str, str],
    work: Path,
) -> "DPOTrainer":
    """Minimise Eq. 1 over LoRA matrices in `layers` (Eq. 2); the trainer, after training.

    `weights` is the base model's identity, for the reference's cache; `work` holds checkpoints, from
    which an interrupted run goes on. Raises HialignError if a parameter outside `layers` changed.
    """
    import torch
    from peft import LoraConfig
    from safetensors import SafetensorError
    from trl import DPOConfig

    targets = blocks.target_modules(model, layers, settings.target_modules)
    columns = reference_columns(model, tokenizer, pairs, settings, weights)
    work.mkdir(parents=True, exist_ok=True)
    trainer = _trainer_class()(
        model=model,
        args=DPOConfig(
            output_dir=str(work),
            learning_rate=settings.learning_rate,
            optim=settings.optimizer,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.epochs,
            beta=settings.beta,
            gradient_checkpointing=settings.gradient_checkpointing,
            max_length=settings.max_length,
            truncation_mode=settings.truncation,
            seed=settings.seed,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=settings.warmup_steps,
            max_grad_norm=settings.max_grad_norm,
            disable_dropout=settings.disable_dropout,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would log a loss that is not a number as 0
            save_strategy="steps",
            save_steps=settings.save_steps,
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=model.device.type == "cuda",
        ),
        train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets,
        ),
    )
    kept = trainer.train_dataset
    if len(kept) != len(columns["ref_chosen_logps"]):
        raise HialignError(
            f"TRL kept {len(kept)} of {len(pairs)} pairs, we {len(columns['ref_chosen_logps'])}: "
            f"training.max_length {settings.max_length} is too short for their prompts"
        )
    for name, values in columns.items():
        kept = kept.add_column(name, values)
    trainer.train_dataset = kept
    trainer.precompute_ref_logps = True  # TRL then reads the columns instead of a second forward
    before = _bits(trainer.model, adapters=False)
    initial = _bits(trainer.model, adapters=True)
    try:
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    except (OSError, SafetensorError) as error:
        raise HialignError(
            f"training could not keep its checkpoint in {work}: {error}; "
            "free some space, or point HIALIGN_OUTPUTS at another disk"
        ) from None
    trainer.confinement = _confinement(trainer.model, layers, before, initial)
    return trainer


def reference_columns(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Dataset",
    settings: TrainingSettings,
    weights: dict[str, str],
) -> dict[str, list[float]]:
    """The reference's log-probabilities of each pair that TRL will keep, as its two columns.

    TRL drops pairs whose prompt alone fills `max_length` when it cuts at the end; so do we.
    """
    rows: list[tuple[Tokens, Tokens]] = []
    for pair in pairs:
        both = tokenize_pair(tokenizer, pair, settings.max_length, settings.truncation)
        if settings.truncation == "keep_end" or both[0].start < settings.max_length:
            rows.append(both)
    if not rows:
        raise HialignError(
            f"training.max_length {settings.max_length}: every prompt alone is longer, "
            "so no response would be left to train on; raise it"
        )
    flat = [tokens for both in rows for tokens in both]
    found = reference_log_probs(
        model, weights, flat, 2 * settings.batch_size, tokenizer.pad_token_id or 0
    )
    return {"ref_chosen_logps": found[::2], "ref_rejected_logps": found[1::2]}


def _trainer_class() -> type["DPOTrainer"]:
    """DPOTrainer that times each optimizer step and shows one line of progress."""
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOTrainer

    class Bar(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = Progress(total=state.max_steps, initial=state.global_step, desc="train")

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if "loss" in (logs or {}):
                self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
                self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    class BlockTrainer(DPOTrainer):  # type: ignore[misc]
        confinement: dict[str, Any]

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.remove_callback(PrinterCallback)
            self.add_callback(Bar())
            self._since = time.perf_counter()

        def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
            if resume_from_checkpoint:  # TRL would count tokens from 0 again
                state = records.read_json(Path(resume_from_checkpoint) / "trainer_state.json")
                self._total_train_tokens = int(state["log_history"][-1]["num_tokens"])
            self._since = time.perf_counter()
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            now = time.perf_counter()
            logs["seconds"], self._since = now - self._since, now
            super().log(logs, start_time)

    return BlockTrainer


def _steps(trainer: "DPOTrainer") -> list[dict[str, Any]]:
    """A row an optimizer step from TRL's log; HialignError if a value in it is not finite."""
    rows = []
    for entry in trainer.state.log_history:
        if "loss" in entry:
            row = {"step": entry["step"], "epoch": entry["epoch"]}
            rows.append(row | {ours: entry[theirs] for theirs, ours in LOGGED.items()})
            for name, value in rows[-1].items():
                if not math.isfinite(value):
                    raise HialignError(
                        f"the {name.replace('_', ' ')} is not finite from step {entry['step']} on: "
                        "lower training.learning_rate"
                    )
    return rows


def _bits(model: "torch.nn.Module", adapters: bool) -> dict[str, int]:
    """A checksum of each parameter: the wrapping sum of its bit patterns, on its own device."""
    import torch

    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(p.detach().contiguous().view(integer[p.element_size()]).sum(dtype=torch.int64))
        for name, p in model.named_parameters()
        if ("lora_" in name) == adapters
    }


def _confinement(
    model: "torch.nn.Module", layers: Sequence[int], before: dict[str, int], initial: dict[str, int]
) -> dict[str, Any]:
    """Proof that training changed adapters inside `layers` and nothing else, for the manifest."""
    changed = [n for n, bits in _bits(model, adapters=False).items() if bits != before[n]]
    prefix, _ = blocks.decoder_layers(model.get_base_model())  # type: ignore[operator]
    inside = tuple(f"base_model.model.{prefix}.{layer}." for layer in layers)
    after = _bits(model, adapters=True)
    outside = [n for n in after if not n.startswith(inside)]
    trainable = [n for n, p in model.named_parameters() if p.requires_grad and n not in after]
    if changed or outside or trainable:
        raise HialignError(
            "training was not confined to the block: "
            f"{(changed + outside + trainable)[0]} changed or may change; nothing was written"
        )
    return {
        "base_parameters_checked": len(before),
        "base_parameters_changed": 0,
        "adapter_tensors": len(after),
        "adapter_tensors_changed": sum(after[n] != initial[n] for n in after),
        "adapted_layers": sorted(
            {
                layer
                for layer, start in zip(layers, inside, strict=True)
                for n in after
                if n.startswith(start)
            }
        ),
    }


def _checkpoints(cell: Cell) -> Path:
    """Where checkpoints of exactly this run lie; those of other settings are thrown away."""
    place = paths.study_dir(cell.study.name) / ".checkpoints" / f"{paths.slug(cell.model.name)}"
    here = place / f"{paths.slug(cell.block)}-{cell.fingerprint('train')}"
    for other in place.glob("*"):
        if other != here and other.name.rpartition("-")[0] == paths.slug(cell.block):
            shutil.rmtree(other, ignore_errors=True)
    return here


def _last_checkpoint(work: Path) -> str | None:
    """The latest whole checkpoint; a run killed while writing one goes on from the one before."""
    whole = []
    for state in work.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            json.loads(state.read_text())
            whole.append(state.parent)
        except ValueError:
            pass
    for torn in set(work.glob("checkpoint-*")) - set(whole):
        shutil.rmtree(torn, ignore_errors=True)
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None


def _check_choices(settings: TrainingSettings) -> None:
    """Refuse names that transformers does not know, before anything is loaded."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    known = {"optimizer": OptimizerNames, "scheduler": SchedulerType}
    for key, kinds in known.items():
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
) -> None:
    """Put a finished run into its folder; the manifest goes first and comes last."""
    folder = cell.folder
    (folder / "manifest.json").unlink(missing_ok=True)
    if adapter is not None:
        staged = folder / ".adapter"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(adapter, staged)
            shutil.rmtree(folder / "adapter", ignore_errors=True)
            staged.rename(folder / "adapter")
        except OSError as error:
            reason = error.strerror or error
            raise HialignError(f"cannot write {folder / 'adapter'}: {reason}") from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        records.write_jsonl(folder / "training.jsonl", steps)
    records.write_json(folder / "manifest.json", manifest)


def load_cell(cell: Cell) -> "tuple[Any, PreTrainedTokenizerBase]":
    """The cell's model, its adapter active (Base: the model alone), and its tokenizer."""
    manifest = cell.folder / "manifest.json"
    if not manifest.is_file():
        raise HialignError(
            f"{cell.model.name} {cell.block} of study {cell.study.name} has not been trained: "
            f"run `hialign run train -p study {cell.study.name} -p block {cell.block}` first"
        )
    model, tokenizer = load_model(cell.model)
    if cell.block == "base":
        return model, tokenizer
    from peft import PeftModel

    return PeftModel.from_pretrained(model, cell.folder / "adapter").eval(), tokenizer
