"""Which block helps which objective: each block trained on each objective's pairs, tested on each.

Hypothesis 2 says that grammar lives in the lower third, coherence in the middle one and factuality in
the upper one. If so, training on an objective's pairs should gain most where the objective lives. The
design is a full factorial: training sets x blocks x tested objectives x seeds, on pairs that differ in
one objective only. There is one training set for each objective and one for `all`, of the same size
and on the same prompts.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from hialign.engine import dpo, measures
from hialign.engine.models import depth_of, identity, load_model
from hialign.preferences.formats import prompt_id
from hialign.preferences.pairs import load_pairs
from hialign.probes.pairs import ProbePair, contrast_pairs_of
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import check_trainable, probe_training, tuned_blocks
from hialign.statistics.margins import judge_family, of_margins, paired, short
from hialign.study.blocks import EXPECTED, OBJECTIVES
from hialign.study.errors import HialignError
from hialign.study.probe_settings import MatrixSettings
from hialign.study.study import Cell

SETS = (*OBJECTIVES, "all")
Margins = dict[str, dict[str, list[list[float]]]]  # training set -> block -> seeds x pairs


def matrix(cell: Cell) -> dict[str, Any]:
    """The record of the strategy x objective matrix of the cell's model. Its block plays no role.

    Fields of the record, beside those of every record:

    - `blocks`: by block, its layers.
    - `seeds`, `beta`, and `train`, the number of pairs of each training set.
    - `pairs`: `id`, `objective` and `prompt` (the prompt's id) of each tested pair.
    - `margins`: by training set and block, the implicit reward margins (seeds x pairs, nats; Eq. 1).
    - `cells`: one row per training set, block and tested objective (`trained_on`, `block`,
      `tested_on`), with what `margins.of_margins` says of their margins. Seeds are averaged first.
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
    builtin = load_pairs("builtin", train=None, evaluation=None)
    sets = {seed: training_sets(builtin.train, settings.train, seed) for seed in settings.seeds}
    layers = {block: list(choice.layers) for block, choice in choices.items()}
    weights = identity(cell.model)
    came_from = {
        "model": weights,
        "preferences": builtin.fingerprint,
        "layers": layers,
    }
    beta = cell.study.training.beta

    def compute(parts: Parts) -> dict[str, Any]:
        model, tokenizer = load_model(cell.model)
        pairs = contrast_pairs_of(tokenizer, settings.contrast_prompts)
        check_trainable(model, pairs, cell.study.training)

        def trained(name: str, seed: int) -> dict[str, list[float]]:
            training = probe_training(cell.study.training).model_copy(update={"seed": seed})
            prepared = dpo.prepare(model, tokenizer, sets[seed][name], training, why="")
            with tuned_blocks(model, tokenizer, prepared, choices, training, weights) as tuned:
                by_block = tuned.margins(pairs, beta, f"{name}, seed {seed}")
            return {block: short(values) for block, values in by_block.items()}

        margins: Margins = {name: {block: [] for block in choices} for name in SETS}
        for seed in settings.seeds:
            for name in SETS:
                part = parts.part(f"{name}-{seed}", partial(trained, name, seed))
                for block in choices:
                    margins[name][block].append(part[block])
        return {
            "blocks": layers,
            "seeds": settings.seeds,
            "beta": beta,
            "train": settings.train,
            "pairs": [{"id": p.id, "objective": p.objective, "prompt": p.prompt} for p in pairs],
            "margins": margins,
            **summary(margins, pairs, resamples),
        }

    return measured(cell, "matrix", came_from, compute)


def training_sets(pairs: Dataset, size: int, seed: int) -> dict[str, Dataset]:
    """`size` built-in training pairs of each objective, and as many of `all`, spread evenly over them.

    Every set has the same prompts, which `seed` draws, so that only the objectives differ.
    """
    places: dict[str, dict[str, int]] = {}  # prompt -> objective -> place
    for place, row in enumerate(pairs.select_columns(["prompt", "objective"])):
        places.setdefault(prompt_id(row["prompt"]), {})[row["objective"]] = place
    whole = sorted(prompt for prompt, own in places.items() if set(OBJECTIVES) <= set(own))
    if size > len(whole):
        raise HialignError(
            f"probes.matrix.train asks for {size} pairs of each objective, but the built-in set has "
            f"{len(whole)}: lower it"
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
