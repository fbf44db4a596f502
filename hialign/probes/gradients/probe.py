"""Gradients: where does the preference show in what the loss asks of the weights (Hypothesis 2)?

Each pair has a backward pass of its own, through all layers at once. Two things are taken from it:

- The signal (`signal.py`): what the gradients of all pairs have in common. It is zero where labels are
  chance, and it is tested against flipped labels. This is the measure of where preferences are.
- The depth trend (`trend.py`): the mean norm of single gradients. The paper's inequality is about it
  (section 3.1). Exchanging chosen and rejected changes it by nothing.

Objectives are compared within a prompt, whose three contrasts share the prompt and the good response.
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
from hialign.probes.gradients import signal, trend
from hialign.probes.gradients.interaction import interaction
from hialign.probes.gradients.meter import Grams, Meter, PairGradient, norms_of
from hialign.probes.gradients.sketch import Sketch
from hialign.probes.pairs import ProbePair, check_packable, contrast_pairs_of, held_out
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import probe_training, tuned_blocks
from hialign.statistics.margins import short
from hialign.study.blocks import EXPECTED, OBJECTIVES, Choice
from hialign.study.probe_settings import GradientSettings
from hialign.study.study import Cell

PREFERENCE = "preference"  # the study's own pairs
DRAWS = 500  # bootstrap samples of each module, and of each layer along training
UNIT = "squared nats per squared unit of weight"


def gradients(cell: Cell) -> dict[str, Any]:
    """Measure the gradient of the DPO loss in every layer, and leave `probes/gradients.json`.

    It is measured at initialization, and its trend also along the training of `full`. Fields of the
    record, beside those of every record:

    - `depth`, and by layer `parameters`, the number in each module.
    - `signal`: what the gradients of the pairs of a source have in common. Its `unit`, the `sketch`'s
      dimensions and the `tuned` modules; `layers`, `modules` and `thirds` with one row each per source,
      tested against flipped labels; `evidence`, the probability that the preference sits in each third;
      `resolution`, how often it would be found there on these pairs; `interaction`, whether
      objectives differ in their thirds; `raw`, by source, each prompt's part in each layer's signal
      (`influences`, prompts x layers, whose means are the signals) and the layers' signals under some
      flips (`flips`, layers x flips). `signal.py` and `interaction.py` say more.
    - `pairs`: by source (`preference` and the objectives), one row per pair with `id`, `prompt` and
      `norms`, one number per layer. A norm is the Euclidean norm over all parameters of the layer,
      over the root of their number (nats per root mean square unit of weight).
    - `layers`, `blocks` and `modules` of a layer: mean norms with 95% intervals over prompts, per
      parameter (`rms`) and, but for modules, in `total`.
    - `inequality`: one row per objective and other block, see `trend.inequality`.
    - `along`: one row per step, source and layer, with `rms` and its interval.
    - `layer_scores`: by layer, the signal of the preference pairs over its standard deviation under
      flipped labels, in the study's target modules. `layer_scores_by` says so.
    """
    settings = probe_settings(cell)
    chosen = settings.gradients or GradientSettings()
    model, tokenizer = load_model(cell.model)
    own, fingerprint = held_out(cell, tokenizer)
    groups = _groups(own, tokenizer, chosen.contrast_prompts)
    pairs_of = {
        name: [groups[group][i] for i in places]
        for group in groups
        for name, places in _sources(group, groups[group], len(groups) == 1).items()
    }
    check_packable(model, groups[list(groups)[-1]][:2])
    weights = identity(cell.model)
    builtin = load_pairs("builtin", train=None, evaluation=None).fingerprint
    came_from = {"model": weights, "preferences": fingerprint, "contrasts": builtin}

    def compute(parts: Parts) -> dict[str, Any]:
        meter = Meter(model)
        beta, draws = cell.study.training.beta, settings.resamples
        targets = target_modules(model, range(meter.depth), cell.study.training.target_modules)
        inside = {name.split(f"{meter.prefix}.", 1)[1].partition(".")[2] for name in targets}
        tuned = [name for name in meter.sizes[0] if name in inside]
        gradients: dict[str, list[PairGradient]] = {}
        signals: list[dict[str, Any]] = []
        scores: list[float] | None = None
        for group, pairs in groups.items():
            sources = _sources(group, pairs, len(groups) == 1)
            measure = partial(_measure, meter, pairs, sources, tuned, beta, chosen, settings.seed)
            part = parts.part(group, partial(measure, group))
            signals.append(part["signal"])
            scores = part["scores"] or scores
            for name, places in sources.items():
                gradients[name] = [part["gradients"][i] for i in places]
        few = {name: pairs[: chosen.along_pairs] for name, pairs in pairs_of.items()}
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
                follow = partial(_along, cell, model, tokenizer, prepared, weights)
                along = parts.part("along", partial(follow, few, references, steps))
        norms = {n: norms_of(pairs, meter.sizes) for n, pairs in gradients.items()}
        kin = {name: [pair.prompt for pair in pairs] for name, pairs in pairs_of.items()}
        return {
            "depth": meter.depth,
            "parameters": meter.sizes,
            "signal": {"unit": UNIT, "sketch": chosen.sketch, "tuned": tuned, **_joined(signals)},
            "pairs": {
                name: [
                    {"id": p.id, "prompt": p.prompt, "norms": short(row)}
                    for p, row in zip(pairs, norms[name].tolist(), strict=True)
                ]
                for name, pairs in pairs_of.items()
            },
            "modules": trend.modules(gradients, kin, meter.sizes, DRAWS),
            "layers": [
                row | {"total": row["rms"] * math.sqrt(sum(meter.sizes[row["layer"]].values()))}
                for name, pairs in pairs_of.items()
                for row in trend.by_layer(name, pairs, gradients[name], meter.sizes, draws)
            ],
            "blocks": trend.blocks(gradients, kin, meter.sizes, draws),
            "inequality": trend.inequality(
                {name: norms[name] for name in OBJECTIVES}, kin, chosen.permutations, settings.seed
            ),
            "along": _at_step(0, few, gradients, meter.sizes) + along,
            "layer_scores": scores,
            "layer_scores_by": "signal over its standard deviation under flipped labels",
        }

    return measured(cell, "gradients", came_from, compute)


# --- pairs ---------------------------------------------------------------------------------------


def _groups(
    own: list[ProbePair], tokenizer: PreTrainedTokenizerBase, wanted: int
) -> dict[str, list[ProbePair]]:
    """The pairs that are measured together: the study's own, and the contrasts.

    The built-in contrasts are not needed if the study's own pairs are contrasts, of `wanted` prompts
    at least.
    """
    prompts = [{p.prompt for p in own if p.objective == objective} for objective in OBJECTIVES]
    if len(set.intersection(*prompts)) >= wanted:
        return {PREFERENCE: own}
    return {PREFERENCE: own, "contrasts": contrast_pairs_of(tokenizer, wanted)}


def _sources(group: str, pairs: Sequence[ProbePair], alone: bool) -> dict[str, list[int]]:
    """The sources of a group, and where their pairs are in it."""
    sources = {PREFERENCE: list(range(len(pairs)))} if group == PREFERENCE else {}
    if group != PREFERENCE or alone:
        for objective in OBJECTIVES:
            sources[objective] = [i for i, p in enumerate(pairs) if p.objective == objective]
    return sources


# --- the signal ----------------------------------------------------------------------------------


def _measure(
    meter: Meter,
    pairs: Sequence[ProbePair],
    sources: Mapping[str, Sequence[int]],
    tuned: Sequence[str],
    beta: float,
    settings: GradientSettings,
    seed: int,
    what: str,
) -> dict[str, Any]:
    """The gradients of a group of pairs, and what the record says of their signal by source."""
    gradients, grams = meter.compare(pairs, beta, Sketch(settings.sketch, seed), what)
    signals, scores = [], None
    for name, places in sources.items():
        prompts = [pairs[i].prompt for i in places]
        one = signal.signal_of(name, _some(grams, places), prompts, meter.sizes, tuned)
        signals.append(signal.summary(one, settings.flips, seed))
        if name == PREFERENCE:
            scores = signal.layer_scores(one)
    if all(objective in sources for objective in OBJECTIVES):
        by_prompt = {name: {pairs[i].prompt: i for i in sources[name]} for name in OBJECTIVES}
        shared = [p for p in by_prompt[OBJECTIVES[0]] if all(p in of for of in by_prompt.values())]
        layers = np.stack([np.sum([layer[m] for m in tuned], axis=0) for layer in grams])
        places_of = {name: [of[p] for p in shared] for name, of in by_prompt.items()}
        rows = interaction(layers, places_of, EXPECTED, settings.flips, seed)
        signals.append({"interaction": rows})
    return {"gradients": gradients, "signal": _joined(signals), "scores": scores}


def _some(grams: Grams, places: Sequence[int]) -> Grams:
    """The Gram matrices of some of the pairs."""
    return [{name: gram[np.ix_(places, places)] for name, gram in of.items()} for of in grams]


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of several sources, one after the other."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name not in joined:
                joined[name] = value
            elif isinstance(value, dict):
                joined[name] = joined[name] | value
            else:
                joined[name] = joined[name] + value
    return joined


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
        for row in trend.by_layer(name, some, gradients[name][: len(some)], sizes, DRAWS)
    ]
