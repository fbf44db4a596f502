"""Which block helps which objective: each block trained on each objective's pairs, tested on each.

Hypothesis 2 says that grammar lives in the lower third, coherence in the middle one and factuality in
the upper one. If so, training on an objective's pairs should gain most where the objective lives. The
design is a full factorial: training sets x blocks x tested objectives x seeds, on pairs that differ in
one objective only. There is one training set for each objective and one for `all`, of the same size
and on the same prompts. In a study of several seeds, each seed has a record of its own.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from hialign.engine import dpo, measures
from hialign.engine.models import depth_of, identity, load_model
from hialign.engine.reference import Reference
from hialign.engine.together import strategy_log_probs
from hialign.preferences.formats import prompt_id
from hialign.preferences.pairs import Pairs, load_pairs
from hialign.preferences.test_sets import load_test_set
from hialign.probes.pairs import ProbePair, fitting
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import check_trainable, probe_training, tuned_blocks
from hialign.statistics.margins import judge_family, of_margins, paired, short
from hialign.study.blocks import EXPECTED, OBJECTIVES
from hialign.study.errors import HialignError
from hialign.study.probe_settings import MatrixSettings
from hialign.study.settings import PreferenceSettings
from hialign.study.study import Cell

MADE_OF_CONTRASTS = ("builtin", "contrasts")  # sources whose pairs differ in one objective
SETS = (*OBJECTIVES, "all")
Margins = dict[str, dict[str, list[list[float]]]]  # training set -> block -> seeds x pairs


def matrix(cell: Cell) -> dict[str, Any]:
    """The record of the strategy x objective matrix of the cell's model. Its block plays no role.

    Fields of the record, beside those of every record:

    - `blocks`: by block, its layers.
    - `seeds`, `beta`, and `train`, the number of pairs of each training set.
    - `pairs`: of each tested pair its `id`, `objective`, `prompt` (the prompt's id), and the `set` that
      it is from: `rules` for contrasts that rules made, or a test set that people made.
    - `shuffled`: whether chosen and rejected were exchanged in a random half of the training pairs.
    - `losses`: by training set and block, the loss of each optimizer step (seeds x steps, nats).
    - `margins`: by training set and block, the implicit reward margins (seeds x pairs, nats; Eq. 1).
    - `cells`: one row per training set, block and tested objective (`trained_on`, `block`,
      `tested_on`), on the pairs that rules made, with what `margins.of_margins` says of their margins. Seeds are averaged first.
    - `sizes`: by training set and block, the root mean square of the margins over the pairs of all
      objectives (nats). Seeds are averaged first.
    - `hypothesis`: one row per objective, per other third, and per scale. It compares the block in
      which Hypothesis 2 puts the objective with the `other`, both trained and tested on the
      objective, pair by pair (`margins.paired`, `margins.judge_family` over the rows of a scale).
      The `scale` is `nats`, or `relative`, in which each block's margins are divided by its size
      first. A block that moves the model further has larger margins everywhere, and `relative` asks
      what it does here rather than elsewhere. The size is taken as exact.

    Raises:
        HialignError: before a model is loaded, for blocks without layers and for more pairs than the
            built-in set has.
    """
    settings = probe_settings(cell).matrix or MatrixSettings()
    resamples = probe_settings(cell).resamples
    depth = depth_of(cell.model)
    choices = {b: measures.choice(Cell(cell.study, cell.model, b), depth) for b in settings.blocks}
    if untuned := [block for block, choice in choices.items() if not choice.layers]:
        raise HialignError(f"probes.matrix.blocks: {untuned[0]} tunes nothing; leave it out")
    source = contrasts_source(cell)
    contrasts = load_pairs(source)
    sets = {seed: training_sets(contrasts.train, settings.train, seed) for seed in settings.seeds}
    layers = {block: list(choice.layers) for block, choice in choices.items()}
    weights = identity(cell.model)
    came_from = {
        "model": weights,
        "preferences": contrasts.fingerprint,
        "layers": layers,
    }
    beta = cell.study.training.beta

    def compute(parts: Parts) -> dict[str, Any]:
        model, tokenizer = load_model(cell.model)
        tested = _tested(contrasts, settings)
        pairs = {name: fitting(rows, tokenizer, None, None) for name, rows in tested.items()}
        every = [pair for of_set in pairs.values() for pair in of_set]
        check_trainable(model, every, cell.study.training)
        base = Reference(model, weights, [pair.tokens for pair in every]).fill(
            lambda tokens: strategy_log_probs(model, {}, tokens, 0, what="base", packed=True)[
                "base"
            ]
        )

        def trained(name: str, seed: int) -> dict[str, Any]:
            training = probe_training(cell.study.training).model_copy(update={"seed": seed})
            prepared = dpo.prepare(model, tokenizer, sets[seed][name], training, why="")
            with tuned_blocks(model, tokenizer, prepared, choices, training, weights) as tuned:
                by_block = tuned.margins(every, beta, f"{name}, seed {seed}", base)
                losses = {block: short(values) for block, values in tuned.losses.items()}
            margins = {block: short(values) for block, values in by_block.items()}
            return {"margins": margins, "losses": losses}

        names = SETS if settings.together else OBJECTIVES
        margins: Margins = {name: {block: [] for block in choices} for name in names}
        losses: Margins = {name: {block: [] for block in choices} for name in names}
        for seed in settings.seeds:
            for name in names:
                part = parts.part(f"{name}-{seed}", partial(trained, name, seed))
                for block in choices:
                    margins[name][block].append(part["margins"][block])
                    losses[name][block].append(part["losses"][block])
        of_rules = len(pairs["rules"])
        ruled = {
            name: {block: [one[:of_rules] for one in seeds] for block, seeds in blocks.items()}
            for name, blocks in margins.items()
        }
        return {
            "blocks": layers,
            "seeds": settings.seeds,
            "shuffled": source.shuffled,
            "beta": beta,
            "train": settings.train,
            "pairs": [
                {"id": p.id, "objective": p.objective, "prompt": p.prompt, "set": name}
                for name, of_set in pairs.items()
                for p in of_set
            ],
            "margins": margins,
            "losses": losses,
            **summary(ruled, pairs["rules"], resamples),
        }

    return measured(cell, "matrix", came_from, compute)


def contrasts_source(cell: Cell) -> PreferenceSettings:
    """Where the contrasts come from: all training pairs of the study's source, or of the built-in."""
    own = cell.study.preferences
    if own.source in MADE_OF_CONTRASTS:
        return own.model_copy(update={"train": None})
    update = {
        "source": "builtin",
        "train": None,
        "evaluation": None,
        "revision": None,
        "subsets": None,
    }
    return own.model_copy(update=update)


def _tested(contrasts: Pairs, settings: MatrixSettings) -> dict[str, list[dict[str, Any]]]:
    """The tested pairs by set: `rules`, on the first held-out prompts, and those that people made."""
    held_out = [dict(pair) for pair in contrasts.evaluation]
    prompts = list(dict.fromkeys(prompt_id(pair["prompt"]) for pair in held_out))
    chosen = set(prompts[: settings.contrast_prompts])
    rules = [
        pair
        for objective in OBJECTIVES
        for pair in held_out
        if pair["objective"] == objective and prompt_id(pair["prompt"]) in chosen
    ]
    tested: dict[str, list[dict[str, Any]]] = {"rules": rules}
    for name in settings.sets:
        tested[name] = load_test_set(name, settings.set_pairs)
    return tested


def training_sets(pairs: Dataset, size: int, seed: int) -> dict[str, Dataset]:
    """`size` training pairs of each objective, and as many of `all`, spread evenly over them.

    Every set has the same prompts, which `seed` draws, so that only the objectives differ.
    """
    places: dict[str, dict[str, int]] = {}  # prompt -> objective -> place
    for place, row in enumerate(pairs.select_columns(["prompt", "objective"])):
        places.setdefault(prompt_id(row["prompt"]), {})[row["objective"]] = place
    whole = sorted(prompt for prompt, own in places.items() if set(OBJECTIVES) <= set(own))
    if size > len(whole):
        raise HialignError(
            f"probes.matrix.train asks for {size} pairs of each objective, but its source has "
            f"{len(whole)} prompts with all of them: lower it"
        )
    drawn = random.Random(seed).sample(whole, size)
    chosen = {name: [places[prompt][name] for prompt in drawn] for name in OBJECTIVES}
    turns = zip(drawn, OBJECTIVES * size, strict=False)
    chosen["all"] = [places[prompt][name] for prompt, name in turns]
    return {name: pairs.select(numbers) for name, numbers in chosen.items()}


def summary(
    margins: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    pairs: Sequence[ProbePair],
    resamples: int,
) -> dict[str, Any]:
    """`cells`, `sizes` and `hypothesis` of the record, from seeds x pairs margins."""
    places = {o: [i for i, p in enumerate(pairs) if p.objective == o] for o in OBJECTIVES}
    prompts = {o: [pairs[i].prompt for i in numbers] for o, numbers in places.items()}
    cells = []
    for name, blocks in margins.items():
        for block, seeds in blocks.items():
            for objective, numbers in places.items():
                row = {"trained_on": name, "block": block, "tested_on": objective}
                of_objective = [[one[i] for i in numbers] for one in seeds]
                cells.append(row | of_margins(of_objective, prompts[objective], resamples))
    means = {
        name: {block: np.mean(seeds, axis=0) for block, seeds in blocks.items()}
        for name, blocks in margins.items()
    }
    sizes = {
        name: {block: float(np.sqrt(np.mean(values**2))) for block, values in blocks.items()}
        for name, blocks in means.items()
    }
    hypothesis: list[dict[str, Any]] = []
    for scale in ("nats", "relative"):
        rows = []
        for objective, block in EXPECTED.items():
            values, size = means[objective], sizes[objective]
            for other in EXPECTED.values():
                if other == block or not {block, other} <= set(values):
                    continue
                over = {b: (size[b] or 1.0) if scale == "relative" else 1.0 for b in (block, other)}
                ours, theirs = (values[b][places[objective]] / over[b] for b in (block, other))
                row = {"objective": objective, "block": block, "other": other, "scale": scale}
                rows.append(row | paired(ours, theirs, prompts[objective]))
        judge_family(rows)
        hypothesis += rows
    return {"cells": cells, "sizes": sizes, "hypothesis": hypothesis}
