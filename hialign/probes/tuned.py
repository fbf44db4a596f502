"""One base model with an adapter for each block that a probe compares."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hialign.engine import dpo
from hialign.engine.strategy import Strategy
from hialign.engine.together import LogProbs, strategy_log_probs
from hialign.probes.pairs import ProbePair
from hialign.study.blocks import Choice
from hialign.study.errors import HialignError
from hialign.study.settings import TrainingSettings


@dataclass(frozen=True)
class Tuned:
    """One base model with an adapter for each block. The end of the context takes them off again.

    Attributes:
        model: the PEFT model, in evaluation mode.
        strategies: by block, its layers and the name of its adapter.
        decoder_of: the base model, whose layers hold the adapters.
        losses: by block, the loss of each optimizer step (nats).
    """

    model: Any
    strategies: Mapping[str, Strategy]
    decoder_of: PreTrainedModel
    losses: Mapping[str, list[float]] = field(default_factory=dict)

    def margins(
        self,
        pairs: Sequence[ProbePair],
        beta: float,
        what: str = "",
        base: LogProbs | None = None,
    ) -> dict[str, list[float]]:
        """The implicit reward margin (nats; Eq. 1) of each pair, by block.

        The layers below a block's first one are run once for all blocks. `base` has the base
        model's own log-probabilities, where they are there already.
        """
        tokens = [pair.tokens for pair in pairs]
        log_probs = strategy_log_probs(
            self.model, self.strategies, tokens, pad=0, base=base, what=what, packed=True
        )
        return {
            block: [
                beta * (chosen - chosen0 - rejected + rejected0)
                for (chosen, rejected), (chosen0, rejected0) in zip(
                    log_probs[block], log_probs["base"], strict=True
                )
            ]
            for block in self.strategies
        }


def probe_training(settings: TrainingSettings) -> TrainingSettings:
    """A study's training as probes run it: packed, and followed by no tracker."""
    return settings.model_copy(update={"engine": "packed", "report_to": []})


def check_trainable(
    model: PreTrainedModel, pairs: Sequence[ProbePair], settings: TrainingSettings
) -> None:
    """Refuse a model whose blocks cannot be trained in one pass, before any is trained."""
    if why := dpo.why_stock(model, [pair.tokens for pair in pairs], probe_training(settings)):
        raise HialignError(f"the probes run packed pairs, which this model does not take: {why}")


@contextmanager
def tuned_blocks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset | dpo.TrainingPairs,
    choices: Mapping[str, Choice],
    settings: TrainingSettings,
    weights: dict[str, str],
    callbacks: Sequence[TrainerCallback] = (),
) -> Iterator[Tuned]:
    """Train the blocks in one pass and lend the model with their adapters.

    The arguments are those of `dpo.train_blocks`, the settings as `probe_training` changes them.
    Afterwards `model` is as it was before: the adapters are taken off.
    """
    settings = probe_training(settings)
    with tempfile.TemporaryDirectory(prefix="hialign-probe-") as work:
        trainer = dpo.train_blocks(
            model, tokenizer, pairs, choices, settings, weights, Path(work), callbacks
        )
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    strategies = trainer.strategies
    model.gradient_checkpointing_disable()
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    try:
        yield Tuned(
            adapted.eval(),
            {s.block: s for s in strategies},
            model,
            {s.block: [row["loss"] for row in dpo.steps_of(trainer, s)] for s in strategies},
        )
    finally:
        adapted.unload()
        del trainer
