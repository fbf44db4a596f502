"""How well each block ranks held-out pairs, against how far it has moved from base, along training.

One number at the end of training mixes two things: what a block has learned, and how far it went for
it. Along training, each block draws a curve of accuracy against KL divergence. Of two curves, the
higher one learns more for the same distance.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from hialign.engine import dpo
from hialign.engine.decoder import TILE, Decoder, Layout, layouts
from hialign.engine.measures import choice
from hialign.engine.models import depth_of, identity, load_model
from hialign.engine.strategy import Strategy
from hialign.engine.together import active
from hialign.preferences.pairs import load_pairs
from hialign.probes.pairs import ROW, ProbePair, held_out
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import check_trainable, probe_training, tuned_blocks
from hialign.statistics.log_loss import gains
from hialign.statistics.margins import hit, short
from hialign.study.blocks import Choice, probe_of
from hialign.study.probe_settings import FrontierSettings
from hialign.study.study import Cell


def frontier(cell: Cell) -> dict[str, Any]:
    """The record of the frontier of the cell's model. Its block plays no role.

    Fields of the record, beside those of every record:

    - `beta`, and `steps`, the optimizer steps after which it was measured.
    - `pairs`: `id` and `prompt` (the prompt's id) of each held-out pair.
    - `points`: one row per step and `block`, with `margins` (nats; Eq. 1), one per pair, `accuracy`,
      `gain` (nats, of the cross-fitted log loss) and `kl`, the divergence of the tuned model from
      base in nats per token, along both responses of each pair.

    Raises:
        HialignError: if there are fewer pairs than asked for, or the model does not take packed pairs.
    """
    settings = probe_settings(cell).frontier or FrontierSettings()
    depth, study = depth_of(cell.model), cell.study
    blocks = [block for block in study.blocks if block != "base" and not probe_of(block)]
    choices = {block: choice(Cell(study, cell.model, block), depth) for block in blocks}
    model, tokenizer = load_model(cell.model)
    pairs, fingerprint = held_out(cell, tokenizer, settings.pairs)
    check_trainable(model, pairs, study.training)
    weights = identity(cell.model)
    layers = {block: list(chosen.layers) for block, chosen in choices.items()}
    came_from = {"model": weights, "preferences": fingerprint, "layers": layers}

    def compute(_: Parts) -> dict[str, Any]:
        training = probe_training(study.training)
        prepared = dpo.prepare(model, tokenizer, load_pairs(study.preferences).train, training, "")
        per_epoch = math.ceil(len(prepared.pairs.tokens) / training.effective_batch)
        last = math.ceil(per_epoch * training.epochs)
        steps = sorted({step for step in settings.at_steps if step < last} | {last})
        along = _Along(model, choices, pairs, steps, training.beta)
        with tuned_blocks(model, tokenizer, prepared, choices, training, weights, [along]):
            pass
        return {
            "beta": training.beta,
            "steps": steps,
            "pairs": [{"id": pair.id, "prompt": pair.prompt} for pair in pairs],
            "points": along.points,
        }

    return measured(cell, "frontier", came_from, compute)


class _Along(TrainerCallback):  # type: ignore[misc]
    """Measures every block of a pass after some of its optimizer steps."""

    def __init__(
        self,
        model: PreTrainedModel,
        choices: Mapping[str, Choice],
        pairs: Sequence[ProbePair],
        steps: Sequence[int],
        beta: float,
    ) -> None:
        self.model, self.choices, self.pairs = model, choices, pairs
        self.steps, self.beta = steps, beta
        self.points: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.steps:
            return
        adapted = kwargs["model"].eval()
        strategies = {
            block: Strategy(block, list(chosen.layers), adapter)
            for (block, chosen), adapter in zip(
                self.choices.items(), adapted.peft_config, strict=True
            )
        }
        prompts = [pair.prompt for pair in self.pairs]
        margins, divergences = _measured(self.model, adapted, strategies, self.pairs, self.beta)
        adapted.train()  # TRL's log of the step asks for it
        for block, values in margins.items():
            row: dict[str, Any] = {"step": state.global_step, "block": block}
            row |= {"margins": short(values), "kl": divergences[block]}
            row |= {"accuracy": float(np.mean([hit(value) for value in values]))}
            self.points.append(row | {"gain": float(gains(np.array(values), prompts).mean())})


def _measured(
    model: PreTrainedModel,
    adapted: Any,
    strategies: Mapping[str, Strategy],
    pairs: Sequence[ProbePair],
    beta: float,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """By block, the margin (nats) of each pair and the KL divergence from base (nats per token)."""
    margins = {block: [0.0] * len(pairs) for block in strategies}
    divergences = dict.fromkeys(strategies, 0.0)
    tokens = 0
    with torch.inference_mode(), Decoder(model) as decoder:
        depth = decoder.depth
        taps = {strategy.start for strategy in strategies.values()} - {0} | {depth}
        for row, layout in layouts([pair.tokens for pair in pairs], decoder.device, ROW):
            with active(adapted, strategies, "base"):
                hidden = decoder.run(layout, taps)
            of_base = decoder.log_probs(hidden[depth], layout).view(-1, 2)
            tokens += len(layout.prediction)
            for block, strategy in strategies.items():
                with active(adapted, strategies, block):
                    entering = hidden.get(strategy.start)
                    top = decoder.run(layout, [depth], strategy.start, entering)[depth]
                gained = beta * (decoder.log_probs(top, layout).view(-1, 2) - of_base)
                for i, (chosen, rejected) in zip(row, gained.tolist(), strict=True):
                    margins[block][i] = chosen - rejected
                divergences[block] += _divergence(decoder, top, hidden[depth], layout)
    return margins, {block: total / tokens for block, total in divergences.items()}


def _divergence(decoder: Decoder, tuned: torch.Tensor, base: torch.Tensor, layout: Layout) -> float:
    """KL(tuned || base) in nats, summed over the scored positions of a row.

    Args:
        decoder: the model.
        tuned, base: what leaves the last layer of each (1 x T x width).
        layout: the row of T tokens.
    """
    values = []
    for scored in layout.scored.split(TILE):
        log_p, log_q = (
            decoder.logits(hidden[0].index_select(0, scored)).log_softmax(-1)
            for hidden in (tuned, base)
        )
        values.append((log_p.exp() * (log_p - log_q)).sum(-1))
    # Where the two responses begin alike, they share positions
    return float(torch.cat(values)[layout.prediction].sum())
