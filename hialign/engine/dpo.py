"""Direct Preference Optimization inside blocks (sections 3.2.2 and 3.2.3, Table 5).

The trainer is TRL's `DPOTrainer` (its optimizer, schedule, callbacks, checkpoints) with LoRA
adapters on the attention projections of a block's layers and nowhere else. The work of an optimizer
step is ours. It has the same gradients as stock's at a fraction of the cost:

- Several blocks are trained in one pass over one base model, each with an adapter of its own.
- Below a block's first layer, the policy, the reference and all strategies are the same function.
  Those layers run once, without gradients (`decoder.Decoder`).
- Pairs are packed, and each prompt is computed once (`packing`). Only scored positions reach the LM
  head.
- The reference's log-probabilities are computed along the way, once for a model and data set.

A family for which that is not possible is trained by stock TRL. `decoder.unpackable` says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import DPOConfig

from hialign.engine import dropout
from hialign.engine.decoder import pair_log_probs, unpackable
from hialign.engine.modules import decoder_layers, in_adapter, target_modules
from hialign.engine.reference import Reference
from hialign.engine.strategy import Strategy
from hialign.engine.tokens import TokenizedPairs, TokenPair, token_pairs
from hialign.engine.trainer import (
    COMMON,
    LOGGED,
    BlockTrainer,
    StockTrainer,
    indices,
    last_checkpoint,
)
from hialign.study.blocks import Choice
from hialign.study.errors import HialignError
from hialign.study.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingPairs:
    """What is found out once about a model and its training pairs, for all trainings on them.

    Attributes:
        pairs: the pairs, tokenized.
        why_stock: why stock TRL has to train the model, as `why_stock` gives it.
    """

    pairs: TokenizedPairs
    why_stock: str


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    settings: TrainingSettings,
    why: str | None = None,
) -> TrainingPairs:
    """Tokenize the pairs of `train_blocks`, and try whether the model takes them packed.

    Args:
        model: the base model, before it gets adapters.
        tokenizer: its tokenizer.
        pairs: the preference pairs, with `prompt`, `chosen` and `rejected`.
        settings: `max_length`, `truncation`, `engine` and `disable_dropout` matter here.
        why: what `why_stock` said of the same model and settings before. None tries it now.
    """
    tokenized = token_pairs(tokenizer, pairs, settings.max_length, settings.truncation)
    why = why_stock(model, tokenized.tokens, settings) if why is None else why
    return TrainingPairs(tokenized, why)


def why_stock(
    model: PreTrainedModel, tokens: Sequence[TokenPair], settings: TrainingSettings
) -> str:
    """Why blocks of this model cannot share a pass and stock TRL trains them. Empty if they can.

    With `training.disable_dropout` the model has no dropout any more afterwards, as in training.
    """
    if settings.disable_dropout:
        dropout.silence(model)
    if settings.engine == "stock":
        return "training.engine is stock"
    return unpackable(model, tokens)


def train_blocks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset | TrainingPairs,
    layers: Mapping[str, Sequence[int] | Choice],
    settings: TrainingSettings,
    weights: dict[str, str],
    work: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> StockTrainer:
    """Minimise Eq. 1 over LoRA matrices in the layers of each block (Eq. 2).

    All blocks are trained in one pass, each as if it were alone.

    Args:
        model: the base model. Its adapters stay on it.
        tokenizer: its tokenizer.
        pairs: the preference pairs. For several trainings on the same pairs, `prepare` them once.
        layers: by block, its layers or all that it chooses.
        settings: the hyper-parameters (Table 5).
        weights: the base model's identity, for the reference's cache.
        work: the folder of the checkpoints, from which an interrupted run goes on.
        callbacks: transformers' own.

    Returns:
        The trainer after training. Its `strategies` name the adapters in its model, and its
        `confinement` has the proof for each block.

    Raises:
        HialignError: if a loss or a gradient is not finite, if memory or disk space runs out, or if
            a parameter outside a block changed.
    """
    choices = {
        block: inside if isinstance(inside, Choice) else Choice(tuple(sorted(inside)))
        for block, inside in layers.items()
    }
    adapters = {block: _lora(model, choice, settings) for block, choice in choices.items()}
    if settings.disable_dropout:
        dropout.silence(model)
    if not isinstance(pairs, TrainingPairs):
        pairs = prepare(model, tokenizer, pairs, settings)
    if pairs.why_stock and len(layers) > 1:
        raise HialignError(f"these blocks cannot be trained in one pass: {pairs.why_stock}")
    if pairs.why_stock:  # one block alone
        rate = settings.rate_of(next(iter(layers)))
        settings = settings.model_copy(update={"learning_rate": rate, "learning_rates": {}})
    work.mkdir(parents=True, exist_ok=True)
    reference = Reference(model, weights, pairs.pairs.tokens)
    trainer = _trainer(model, tokenizer, pairs, adapters, reference, settings, work, callbacks)
    for block, adapter in zip(choices, trainer.model.peft_config, strict=True):
        choice, rate = choices[block], settings.rate_of(block) / settings.learning_rate
        strategy = Strategy(block, list(choice.layers), adapter, choice.period, rate)
        trainer.strategies.append(strategy)
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


def _lora(model: PreTrainedModel, choice: Choice, settings: TrainingSettings) -> LoraConfig:
    """The adapter of a block: LoRA on its modules and nowhere else (section 3.2.3)."""
    rank = choice.rank or settings.lora_rank
    alpha = settings.lora_alpha * rank / settings.lora_rank  # the same scale at any rank
    modules = choice.modules or target_modules(model, choice.layers, settings.target_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=list(modules),
    )


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: TrainingPairs,
    adapters: Mapping[str, LoraConfig],
    reference: Reference,
    settings: TrainingSettings,
    work: Path,
    callbacks: Sequence[TrainerCallback],
) -> StockTrainer:
    """The trainer, with one adapter per block in its model: `default`, `strategy1`, …"""
    packed = not pairs.why_stock
    if packed:
        rows = Dataset.from_dict({"index": list(range(len(pairs.pairs.tokens)))})
    else:
        fill_reference(reference, model, tokenizer)
        rows = _stock_rows(pairs.pairs, reference)
    first, *others = adapters.values()
    set_seed(settings.seed)  # so that each adapter begins as it would alone
    trainer = (BlockTrainer if packed else StockTrainer)(
        model=model,
        args=_config(settings, model, work, packed),
        train_dataset=rows,
        data_collator=indices if packed else None,
        processing_class=tokenizer,
        peft_config=first,
        callbacks=list(callbacks),
    )
    for number, adapter in enumerate(others, 1):
        set_seed(settings.seed)
        trainer.model.add_adapter(f"strategy{number}", adapter)
    trainer.strategies = []
    trainer.reference = reference
    if isinstance(trainer, BlockTrainer):
        trainer.prepare(model, pairs.pairs, settings)
    else:
        trainer.precompute_ref_logps = True  # TRL then reads them instead of a second forward
    return trainer


def _stock_rows(pairs: TokenizedPairs, reference: Reference) -> Dataset:
    """The pairs as TRL's own tokenization gives them, with the reference's log-probabilities."""
    log_probs = [both for both in reference.values if both]
    return Dataset.from_dict(
        {
            "prompt_ids": [list(chosen.ids[: chosen.start]) for chosen, _ in pairs.uncut],
            "chosen_ids": [list(chosen.ids[chosen.start :]) for chosen, _ in pairs.uncut],
            "rejected_ids": [list(r.ids[r.start :]) for _, r in pairs.uncut],
            "ref_chosen_logps": [chosen for chosen, _ in log_probs],
            "ref_rejected_logps": [rejected for _, rejected in log_probs],
        }
    )


def fill_reference(
    reference: Reference,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    packed: bool = False,
) -> None:
    """Compute the reference of all pairs now: before stock training, or for runs that follow.

    `packed` says that the model is known to take packed pairs. Otherwise this is tried first.
    """
    pad = tokenizer.pad_token_id or 0
    reference.fill(lambda pairs: pair_log_probs(model, pairs, pad, "reference", packed=packed))


def _config(
    settings: TrainingSettings, model: PreTrainedModel, work: Path, packed: bool
) -> DPOConfig:
    """TRL's configuration.

    In packed training a batch is a whole optimizer step, which `packing.plan` divides. Gradients are
    clipped and activations checkpointed by the step itself, and not by TRL.
    """
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
        # With `leave_out` there is nothing to cut
        truncation_mode=settings.truncation.replace("leave_out", "keep_start"),
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


def steps_of(trainer: StockTrainer, strategy: Strategy) -> list[dict[str, Any]]:
    """One row per optimizer step of a strategy, from TRL's log.

    The columns are those of `training.jsonl`. Raises HialignError if a figure is not finite.
    """
    alone = len(trainer.strategies) == 1
    rows = []
    for entry in trainer.state.log_history:
        if "loss" in entry:
            packed = isinstance(trainer, BlockTrainer)
            epoch = trainer.epoch_at(entry["step"]) if packed else entry["epoch"]
            row = {"step": entry["step"], "epoch": epoch}
            for theirs, ours in LOGGED.items():
                key = theirs if alone or theirs in COMMON else f"{strategy.block}/{theirs}"
                row[ours] = entry[key] * (strategy.rate if ours == "learning_rate" else 1)
                if not math.isfinite(row[ours]):  # stock TRL goes on
                    raise HialignError(
                        f"the {ours.replace('_', ' ')} is not finite from step {entry['step']} on: "
                        "lower training.learning_rate"
                    )
            rows.append(row)
    return rows


def _bits(model: torch.nn.Module, adapters: bool) -> dict[str, int]:
    """A checksum of each parameter: the wrapping sum of its bit patterns, on its own device."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(p.detach().contiguous().view(integer[p.element_size()]).sum(dtype=torch.int64))
        for name, p in model.named_parameters()
        if ("lora_" in name) == adapters
    }


def _confinement(
    model: torch.nn.Module,
    strategy: Strategy,
    before: dict[str, int],
    initial: dict[str, int],
) -> dict[str, Any]:
    """Proof that training changed adapters inside the block and nothing else, for the manifest."""
    changed = [n for n, bits in _bits(model, adapters=False).items() if bits != before[n]]
    prefix, _ = decoder_layers(model.get_base_model())  # type: ignore[operator]
    inside = tuple(f"base_model.model.{prefix}.{layer}." for layer in strategy.layers)
    everything = _bits(model, adapters=True)
    after = {n: bits for n, bits in everything.items() if in_adapter(n, strategy.adapter)}
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
