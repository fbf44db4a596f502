"""Direct Preference Optimization inside blocks (sections 3.2.2 and 3.2.3, Table 5).

The trainer is TRL's `DPOTrainer` (its data, optimizer, schedule, callbacks, checkpoints) with LoRA
adapters on the attention projections of a block's layers and nowhere else. What is ours is the work
of an optimizer step, which costs a fraction of stock's at the same gradients:

- several blocks are trained in one pass over one base model, each with an adapter of its own;
- below a block's first layer policy, reference and all strategies are the same function: those
  layers run once, without gradients (`Decoder`);
- pairs are packed, each prompt computed once (`packing`), and only scored positions reach the LM
  head;
- the reference's log-probabilities are computed along the way, once for a model and data set.

A family for which that cannot be done (`decoder.unpackable` says why) is trained by stock TRL.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hialign.engine.modules import decoder_layers, target_modules
from hialign.engine.reference import Reference
from hialign.engine.tokens import TokenPair, token_pairs, tokenize_pair
from hialign.engine.trainer import COMMON, LOGGED, Strategy, is_of, last_checkpoint
from hialign.engine.trainer import trainer_class as _trainer_class
from hialign.study.blocks import Choice
from hialign.study.errors import HialignError
from hialign.study.settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import DPOConfig, DPOTrainer


def train_blocks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Dataset",
    layers: Mapping[str, Sequence[int] | Choice],
    settings: TrainingSettings,
    weights: dict[str, str],
    work: Path,
    callbacks: Sequence["TrainerCallback"] = (),
) -> "DPOTrainer":
    """Minimise Eq. 1 over LoRA matrices in the layers of each block (Eq. 2); the trainer, after it.

    `layers` maps each block to its layers, or to all that it chooses (`blocks.Choice`): all are
    trained in one pass, each as if it were alone. `weights` is the base model's identity, for the reference's cache; `work` holds checkpoints, from
    which an interrupted run goes on; `callbacks` are transformers' own. The trainer's `strategies` name the adapters in its model and
    its `confinement` the proof, for each block. Raises HialignError where a loss or gradient is not
    finite, memory or disk space runs out, or a parameter outside a block changed.
    """
    from peft import LoraConfig
    from safetensors import SafetensorError
    from transformers import set_seed

    choices = {
        block: inside if isinstance(inside, Choice) else Choice(tuple(sorted(inside)))
        for block, inside in layers.items()
    }
    targets = {
        block: list(c.modules or target_modules(model, c.layers, settings.target_modules))
        for block, c in choices.items()
    }
    kept = token_pairs(tokenizer, pairs, settings.max_length, settings.truncation)
    tokens = kept.tokens
    why = _why_stock(model, tokens, settings)
    if why and len(layers) > 1:
        raise HialignError(f"these blocks cannot be trained in one pass: {why}")
    reference = Reference(model, weights, tokens)
    if why:
        fill_reference(reference, model, tokenizer)
    work.mkdir(parents=True, exist_ok=True)

    def lora(block: str) -> LoraConfig:
        rank = choices[block].rank or settings.lora_rank
        alpha = settings.lora_alpha * rank / settings.lora_rank  # the same scale at any rank
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
            lora_dropout=settings.lora_dropout,
            target_modules=targets[block],
        )

    def strategy(block: str, adapter: str) -> Strategy:
        return Strategy(block, list(choices[block].layers), adapter, choices[block].period)

    first, *others = choices
    config = _config(settings, model, work, packed=not why)
    set_seed(settings.seed)  # so that each adapter begins as it would alone
    trainer = _trainer_class(stock=bool(why))(
        model=model,
        args=config,
        train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=lora(first),
        callbacks=list(callbacks),
    )
    if len(trainer.train_dataset) != len(tokens):
        raise HialignError(
            f"TRL kept {len(trainer.train_dataset)} of {len(pairs)} pairs, we {len(tokens)}: "
            f"training.max_length {settings.max_length} is too short for their prompts"
        )
    trainer.strategies = [strategy(first, "default")]
    for number, block in enumerate(others, 1):
        set_seed(settings.seed)
        trainer.model.add_adapter(f"strategy{number}", lora(block))
        trainer.strategies.append(strategy(block, f"strategy{number}"))
    trainer.reference = reference
    trainer.truncated = kept.truncated
    if why:
        for side, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            column = [both[side] for both in reference.values if both]
            trainer.train_dataset = trainer.train_dataset.add_column(name, column)
        trainer.precompute_ref_logps = True  # TRL then reads them instead of a second forward
    else:
        ids = pairs["id"] if "id" in pairs.column_names else range(len(pairs))
        trainer.prepare(model, tokens, [str(ids[i]) for i in kept.places], settings)
    before = _bits(trainer.model, adapters=False)
    initial = _bits(trainer.model, adapters=True)
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
    except (OSError, SafetensorError) as error:
        raise HialignError(
            f"training could not keep its checkpoint in {work}: {error}; "
            "free some space, or point HIALIGN_OUTPUTS at another disk"
        ) from None
    reference.save()
    trainer.confinement = {
        s.block: _confinement(trainer.model, s, before, initial) for s in trainer.strategies
    }
    return trainer


def why_stock(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Dataset",
    settings: TrainingSettings,
) -> str:
    """Why blocks of this model cannot share a pass and stock TRL trains them; empty if they can.

    With `training.disable_dropout` the model has no dropout any more afterwards, as in training.
    """
    few = pairs.select(range(min(8, len(pairs))))
    limits = settings.max_length, settings.truncation
    return _why_stock(model, [tokenize_pair(tokenizer, pair, *limits) for pair in few], settings)


def _why_stock(
    model: "PreTrainedModel", tokens: Sequence[TokenPair], settings: TrainingSettings
) -> str:
    from hialign.engine import dropout
    from hialign.engine.decoder import unpackable

    if settings.disable_dropout:
        dropout.silence(model)
    if settings.engine == "stock":
        return "training.engine is stock"
    return unpackable(model, tokens)


def fill_reference(
    reference: Reference, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Compute the reference of all pairs now: before stock training, or for runs that follow."""
    from hialign.engine.decoder import pair_log_probs

    pad = tokenizer.pad_token_id or 0
    reference.fill(lambda pairs: pair_log_probs(model, pairs, pad, "reference"))


def _config(
    settings: TrainingSettings, model: "PreTrainedModel", work: Path, packed: bool
) -> "DPOConfig":
    """TRL's configuration. Packed, a batch is a whole optimizer step, which `plan` divides, and what
    TRL would do to gradients and checkpointing is done in the step itself."""
    import torch
    from trl import DPOConfig

    size, times = settings.batch_size, settings.gradient_accumulation_steps
    return DPOConfig(
        output_dir=str(work),
        learning_rate=settings.learning_rate,
        optim=settings.optimizer,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        per_device_train_batch_size=size * times if packed else size,
        gradient_accumulation_steps=1 if packed else times,
        num_train_epochs=settings.epochs,
        beta=settings.beta,
        gradient_checkpointing=settings.gradient_checkpointing and not packed,
        max_length=settings.max_length,
        truncation_mode=settings.truncation,
        seed=settings.seed,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=0.0 if packed else settings.max_grad_norm,
        disable_dropout=settings.disable_dropout,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=model.device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log a loss that is not a number as 0
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=1,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type == "cuda",
        remove_unused_columns=not packed,
    )


def steps_of(trainer: "DPOTrainer", strategy: Strategy) -> list[dict[str, Any]]:
    """A row an optimizer step from TRL's log (training.jsonl's columns)."""
    alone = len(trainer.strategies) == 1
    rows = []
    for entry in trainer.state.log_history:
        if "loss" in entry:
            epoch = entry["epoch"] if trainer.is_stock else trainer.epoch_at(entry["step"])
            row = {"step": entry["step"], "epoch": epoch}
            for theirs, ours in LOGGED.items():
                key = theirs if alone or theirs in COMMON else f"{strategy.block}/{theirs}"
                row[ours] = entry[key]
                if not math.isfinite(row[ours]):  # stock TRL goes on
                    raise HialignError(
                        f"the {ours.replace('_', ' ')} is not finite from step {entry['step']} on: "
                        "lower training.learning_rate"
                    )
            rows.append(row)
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
    model: "torch.nn.Module",
    strategy: Strategy,
    before: dict[str, int],
    initial: dict[str, int],
) -> dict[str, Any]:
    """Proof that training changed adapters inside the block and nothing else, for the manifest."""
    changed = [n for n, bits in _bits(model, adapters=False).items() if bits != before[n]]
    prefix, _ = decoder_layers(model.get_base_model())  # type: ignore[operator]
    inside = tuple(f"base_model.model.{prefix}.{layer}." for layer in strategy.layers)
    everything = _bits(model, adapters=True)
    after = {n: bits for n, bits in everything.items() if is_of(n, strategy.adapter)}
    outside = [n for n in after if not n.startswith(inside)]
    trainable = [n for n, p in model.named_parameters() if p.requires_grad and n not in everything]
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
        "adapted_layers": [
            layer
            for layer, start in zip(strategy.layers, inside, strict=True)
            if any(n.startswith(start) for n in after)
        ],
    }
