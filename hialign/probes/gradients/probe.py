"""Gradients: which layers does an objective's loss want to move (Hypothesis 2, section 3.1)?

The paper's inequality is about E ||d l(x) / d Theta_k||, the norm of one pair's gradient in the
parameters of a block, averaged over pairs. Each pair therefore has a backward pass of its own,
through all layers at once. The norms are taken as the gradients come by, and no gradient is kept.

Any loss has a trend with depth. To see what an objective adds to it, objectives are compared within a
prompt, whose three contrasts share the prompt and the good response.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hialign.engine import dpo
from hialign.engine.models import identity, load_model
from hialign.engine.modules import decoder_layers, target_modules
from hialign.preferences.pairs import load_pairs
from hialign.probes.gradients.meter import Meter, PairGradient, norms_of, rms_of
from hialign.probes.pairs import ProbePair, check_packable, contrast_pairs_of, held_out
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import probe_training, tuned_blocks
from hialign.statistics.intervals import mean_interval, pooled_interval
from hialign.statistics.margins import or_none, short, with_interval
from hialign.study.blocks import EXPECTED, OBJECTIVES, Choice, split_layers
from hialign.study.probe_settings import GradientSettings
from hialign.study.study import Cell

PREFERENCE = "preference"  # the study's own pairs
DRAWS = 500  # bootstrap samples of each module, and of each layer along training


def gradients(cell: Cell) -> dict[str, Any]:
    """Measure the gradient of the DPO loss in every layer, and leave `probes/gradients.json`.

    It is measured at initialization, and along the training of `full`. Fields of the record, beside
    those of every record:

    - `depth`, and by layer `parameters`, the number in each module.
    - `pairs`: by source (`preference` and the objectives), one row per pair with `id`, `prompt` and
      `norms`, one number per layer. A norm is the Euclidean norm over all parameters of the layer,
      over the root of their number (nats per root mean square unit of weight).
    - `layers`, `blocks` and `modules` of a layer: means with 95% intervals over prompts, per
      parameter (`rms`) and, but for modules, in `total`.
    - `inequality`: one row per objective and other block, see `inequality`.
    - `along`: one row per step, source and layer, with `rms` and its interval.
    - `layer_scores`: the `rms` over the study's target modules, mean over the preference pairs.
    """
    settings = probe_settings(cell)
    chosen = settings.gradients or GradientSettings()
    model, tokenizer = load_model(cell.model)
    own, fingerprint = held_out(cell, tokenizer)
    sources = {PREFERENCE: own}
    contrasts = contrast_pairs_of(tokenizer, chosen.contrast_prompts)
    for objective in OBJECTIVES:
        sources[objective] = [p for p in contrasts if p.objective == objective]
    check_packable(model, contrasts[:2])
    weights = identity(cell.model)
    builtin = load_pairs("builtin", train=None, evaluation=None).fingerprint
    came_from = {"model": weights, "preferences": fingerprint, "contrasts": builtin}

    def compute(parts: Parts) -> dict[str, Any]:
        meter = Meter(model)
        beta, draws = cell.study.training.beta, settings.resamples
        gradients = {
            name: parts.part(name, partial(meter.measure, pairs, beta, what=name))
            for name, pairs in sources.items()
        }
        few = {name: pairs[: chosen.along_pairs] for name, pairs in sources.items()}
        references = {
            name: [pair["margin"] for pair in gradients[name][: chosen.along_pairs]] for name in few
        }
        along: list[dict[str, Any]] = []
        if chosen.at_steps:
            training = probe_training(cell.study.training)
            train = load_pairs(cell.study.preferences).train
            prepared = dpo.prepare(model, tokenizer, train, training)
            per_epoch = math.ceil(len(prepared.pairs.tokens) / training.effective_batch)
            last = math.ceil(per_epoch * training.epochs)  # optimizer step
            if steps := [step for step in chosen.at_steps if step <= last]:
                measure = partial(_along, cell, model, tokenizer, prepared, weights)
                along = parts.part("along", partial(measure, few, references, steps))
        norms = {n: norms_of(pairs, meter.sizes) for n, pairs in gradients.items()}
        kin = {name: [pair.prompt for pair in pairs] for name, pairs in sources.items()}
        targets = target_modules(model, range(meter.depth), cell.study.training.target_modules)
        inside = {name.split(f"{meter.prefix}.", 1)[1].partition(".")[2] for name in targets}
        return {
            "depth": meter.depth,
            "parameters": meter.sizes,
            "pairs": {
                name: [
                    {"id": p.id, "prompt": p.prompt, "norms": short(row)}
                    for p, row in zip(sources[name], norms[name].tolist(), strict=True)
                ]
                for name in sources
            },
            "modules": _modules(gradients, kin, meter.sizes, DRAWS),
            "layers": [
                row | {"total": row["rms"] * math.sqrt(sum(meter.sizes[row["layer"]].values()))}
                for name, pairs in sources.items()
                for row in _by_layer(name, pairs, gradients[name], meter.sizes, draws)
            ],
            "blocks": _blocks(gradients, kin, meter.sizes, draws),
            "inequality": inequality(
                {name: norms[name] for name in OBJECTIVES}, kin, chosen.permutations, settings.seed
            ),
            "along": _at_step(0, few, gradients, meter.sizes) + along,
            "layer_scores": np.mean(
                [rms_of(pair["squares"], meter.sizes, inside) for pair in gradients[PREFERENCE]],
                axis=0,
            ).tolist(),
        }

    return measured(cell, "gradients", came_from, compute)


# --- along training ------------------------------------------------------------------------------


def _along(
    cell: Cell,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: dpo.TrainingPairs,
    weights: dict[str, str],
    pairs: Mapping[str, Sequence[ProbePair]],
    references: Mapping[str, Sequence[float]],
    steps: Sequence[int],
) -> list[dict[str, Any]]:
    """Train `full` as the study does, up to the last of `steps`, and measure after each of them.

    Returns one row per step, source and layer.
    """
    rows: list[dict[str, Any]] = []
    beta = cell.study.training.beta

    class Along(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in steps:
                meter = Meter(model)
                gradients = {
                    name: meter.measure(some, beta, references[name])
                    for name, some in pairs.items()
                }
                rows.extend(_at_step(state.global_step, pairs, gradients, meter.sizes))
            control.should_training_stop |= state.global_step >= max(steps)

    everything = {"full": Choice(tuple(range(decoder_layers(model)[1])))}
    with tuned_blocks(
        model, tokenizer, train, everything, cell.study.training, weights, callbacks=[Along()]
    ):
        return rows


def _at_step(
    step: int,
    pairs: Mapping[str, Sequence[ProbePair]],
    gradients: Mapping[str, Sequence[PairGradient]],
    sizes: list[dict[str, int]],
) -> list[dict[str, Any]]:
    """The rows of a step. Of the gradients of each source, those of its first `pairs` count."""
    return [
        {"step": step} | row
        for name, some in pairs.items()
        for row in _by_layer(name, some, gradients[name][: len(some)], sizes, DRAWS)
    ]


# --- summaries -----------------------------------------------------------------------------------


def inequality(
    norms: Mapping[str, np.ndarray],
    kin: Mapping[str, Sequence[str]],
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The paper's inequality as numbers, one row per objective and block that is not its own.

    Each row compares the objective's own block with the `other`. Only prompts that have all
    objectives count, and the intervals are over prompts. Fields of a row:

    - `ratio`: the norm per parameter in the own block over that in the other, as a geometric mean
      over prompts.
    - `detrended`: the same in comparison with the other objectives of the prompt. With D the log
      ratio of the two blocks' norms, it is exp of the mean over prompts of D(objective) less the mean
      D of all objectives. Above 1, the objective is more in its block than objectives are in general.
    - `p_above`, `p_below`: how often objectives that are permuted within each prompt have as large
      (as small) a `detrended`. Both are one-sided.

    Args:
        norms: by objective, the norms of its pairs (pairs x depth).
        kin: by objective, the prompts of its pairs.
        permutations: the number of permutations, and of bootstrap samples.
        seed: what draws the permutations.
    """
    objectives = list(norms)
    depth = next(iter(norms.values())).shape[1]
    split = split_layers(depth)
    shared = [p for p in dict.fromkeys(kin[objectives[0]]) if all(p in kin[o] for o in objectives)]
    levels = {  # by objective and block: for each shared prompt, the log of the block's rms norm
        (o, b): np.array(
            [np.log(np.sqrt((norms[o][kin[o].index(p)][list(layers)] ** 2).mean())) for p in shared]
        )
        for o in objectives
        for b, layers in split.items()
    }
    rng = np.random.default_rng(seed)
    # by permutation and prompt, the objective whose value stands in each objective's place
    orders = rng.permuted(
        np.tile(np.arange(len(objectives)), (permutations, len(shared), 1)), axis=2
    )
    rows = []
    for place, objective in enumerate(objectives):
        block = EXPECTED[objective]
        for other in (b for b in split if b != block):
            all_d = np.stack([levels[o, block] - levels[o, other] for o in objectives], axis=1)
            residual = all_d - all_d.mean(axis=1, keepdims=True)  # (prompts, objectives)
            observed = residual[:, place].mean()
            drawn = residual[np.arange(len(shared)), orders[:, :, place]].mean(axis=1)
            raw = all_d[:, place]
            low, high = mean_interval(list(residual[:, place]), permutations)
            raw_low, raw_high = mean_interval(list(raw), permutations)
            rows.append(
                {
                    "objective": objective,
                    "block": block,
                    "other": other,
                    "n": len(shared),
                    "ratio": float(np.exp(raw.mean())),
                    "ratio_low": or_none(float(np.exp(raw_low))),
                    "ratio_high": or_none(float(np.exp(raw_high))),
                    "detrended": float(np.exp(observed)),
                    "detrended_low": or_none(float(np.exp(low))),
                    "detrended_high": or_none(float(np.exp(high))),
                    "detrended_log_std": float(residual[:, place].std(ddof=1)),
                    "p_above": (1 + int((drawn >= observed - 1e-12).sum())) / (1 + permutations),
                    "p_below": (1 + int((drawn <= observed + 1e-12).sum())) / (1 + permutations),
                }
            )
    return rows


def _modules(
    gradients: Mapping[str, Sequence[PairGradient]],
    kin: Mapping[str, Sequence[str]],
    sizes: list[dict[str, int]],
    draws: int,
) -> list[dict[str, Any]]:
    rows = []
    for source, pairs in gradients.items():
        for layer, size in enumerate(sizes):
            for module, count in size.items():
                values = [math.sqrt(p["squares"][layer][module] / count) for p in pairs]
                ends = pooled_interval(values, kin[source], draws)
                row: dict[str, Any] = {"source": source, "layer": layer, "module": module}
                rows.append(row | with_interval("rms", values, ends))
    return rows


def _by_layer(
    source: str,
    pairs: Sequence[ProbePair],
    gradients: Sequence[PairGradient],
    sizes: list[dict[str, int]],
    draws: int,
) -> list[dict[str, Any]]:
    """The `rms` of each layer over the pairs of a source, with its interval."""
    prompts = [pair.prompt for pair in pairs]
    rows = []
    for layer, values in enumerate(norms_of(gradients, sizes).T.tolist()):
        row: dict[str, Any] = {"source": source, "layer": layer, "n": len(values)}
        rows.append(row | with_interval("rms", values, pooled_interval(values, prompts, draws)))
    return rows


def _blocks(
    gradients: Mapping[str, Sequence[PairGradient]],
    kin: Mapping[str, Sequence[str]],
    sizes: list[dict[str, int]],
    draws: int,
) -> list[dict[str, Any]]:
    rows = []
    for source, pairs in gradients.items():
        for block, layers in split_layers(len(sizes)).items():
            count = sum(sum(sizes[i].values()) for i in layers)
            totals = [math.sqrt(sum(sum(p["squares"][i].values()) for i in layers)) for p in pairs]
            low, high = pooled_interval(totals, kin[source], draws)
            root = math.sqrt(count)
            row: dict[str, Any] = {"source": source, "block": block, "n": len(pairs)}
            row["parameters"] = count
            row |= with_interval("total", totals, (low, high))
            row |= with_interval("rms", [t / root for t in totals], (low / root, high / root))
            rows.append(row)
    return rows
