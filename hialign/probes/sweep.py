"""Held-out accuracy by depth: every window of a third of the layers, and every layer alone.

The thirds are three of many blocks of their size. If alignment has a place, the curve over all
windows shows it. The middle third then has to stand out from its neighbours, from layers drawn at
random, and from as many parameters spread over all layers. All blocks are trained in passes that
share the layers below (`hialign.engine.dpo`), each as if it were alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from hialign.engine import dpo
from hialign.engine.models import depth_of, identity, load_model
from hialign.engine.modules import parameters_in, target_modules
from hialign.preferences.pairs import load_pairs
from hialign.probes.pairs import held_out
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import check_trainable, probe_training, tuned_blocks
from hialign.statistics.margins import judge_family, of_margins, paired, short
from hialign.study import blocks
from hialign.study.blocks import Choice
from hialign.study.errors import HialignError
from hialign.study.probe_settings import SweepSettings
from hialign.study.settings import TrainingSettings
from hialign.study.study import Cell

RANDOM_SETS = 3
# float32 bytes per trained parameter: itself, its gradient, AdamW's two moments
BYTES = 16
# Bytes for the adapters of one pass, by device. A small model and its activations come on top.
BUDGET = {"cpu": 1 << 28, "cuda": 1 << 31}


def sweep(cell: Cell) -> dict[str, Any]:
    """The record of the gain from tuning by depth, of the cell's model. Its block plays no role.

    Fields of the record, beside those of every record:

    - `depth`, and `size`, the number of layers of a window, which is that of the middle third.
    - `beta`, and `train`, the number of pairs that every block was trained on.
    - `pairs`: `id` and `prompt` (the prompt's id) of each held-out pair.
    - `windows`: one row per window, from the lowest, with its `block`, `first` and `last` layer, the
      number of `parameters` trained, its `margins` (nats; Eq. 1), one per pair, and what
      `margins.of_margins` says of them.
    - `singles`: the same for each layer alone. Empty if the study does not ask for them.
    - `controls`: the same, with `layers` and `rank`, for full, the thirds, full at the rank that has
      about a third's parameters, and three draws of a third of the layers.
    - `best`: the window with the highest mean margin. `candidate`: the window that has it on every
      second prompt. Both are None, with `best_reason`, if no training changed a margin.
    - `comparisons` of `block` and `other`, pair by pair (`margins.paired`, `margins.judge_family`
      over all rows). The candidate is compared with the middle third and with each draw, on the
      prompts on which it was not chosen, as the best of many has an undeserved lead where it was.
      The middle third is compared with all other controls, on all pairs.
    - `layer_scores`: each single layer's mean margin. None without singles, or if none moved.
    """
    settings = probe_settings(cell)
    own = settings.sweep or SweepSettings()
    training = probe_training(cell.study.training)
    depth = depth_of(cell.model)
    choices = choices_of(depth, own.singles, training.lora_rank)
    source = load_pairs(cell.study.preferences)
    train = source.train
    if own.train is not None:
        if own.train > len(train):
            raise HialignError(
                f"probes.sweep.train asks for {own.train} pairs, but study {cell.study.name} trains "
                f"on {len(train)}: lower it, or leave it out for all of them"
            )
        train = train.select(range(own.train))
    weights = identity(cell.model)
    came_from = {"model": weights, "preferences": source.fingerprint}

    def compute(parts: Parts) -> dict[str, Any]:
        model, tokenizer = load_model(cell.model)
        pairs, _ = held_out(cell, tokenizer, own.pairs)
        check_trainable(model, pairs, training)
        prepared = dpo.prepare(model, tokenizer, train, training, why="")

        def trained(names: Sequence[str], what: str) -> dict[str, Any]:
            chosen = {name: choices[name] for name in names}
            with tuned_blocks(model, tokenizer, prepared, chosen, training, weights) as tuned:
                margins = tuned.margins(pairs, training.beta, what)
                sizes = {
                    block: sum(p.numel() for p in parameters_in(tuned.model, strategy.adapter))
                    for block, strategy in tuned.strategies.items()
                }
            return {
                block: {"parameters": sizes[block], "margins": short(margins[block])}
                for block in chosen
            }

        results: dict[str, Any] = {}
        # in most models the thirds are windows too, and no layers are trained twice
        once = {choice: name for name, choice in choices.items()}
        groups = passes(model, {name: choice for choice, name in once.items()}, training)
        for number, names in enumerate(groups, 1):
            what = f"pass {number} of {len(groups)}"
            results |= parts.part(f"{number}-of-{len(groups)}", partial(trained, names, what))
        results = {name: results[once[choice]] for name, choice in choices.items()}
        return {
            "depth": depth,
            "beta": training.beta,
            "train": len(train),
            "pairs": [{"id": p.id, "prompt": p.prompt} for p in pairs],
            **summary(depth, choices, results, [p.prompt for p in pairs], settings.resamples),
        }

    return measured(cell, "sweep", came_from, compute)


def choices_of(depth: int, singles: bool, rank: int) -> dict[str, Choice]:
    """All blocks of the sweep: windows of a third, single layers, controls."""
    size = len(blocks.split_layers(depth)["mid"])
    names = [f"window:{first}-{first + size - 1}" for first in range(depth - size + 1)]
    if singles:
        names += [f"layers:{layer}" for layer in range(depth)]
    names += ["full", "local", "mid", "global", f"full:r{max(1, round(rank * size / depth))}"]
    choices = {name: blocks.choice_of(name, depth) for name in names}
    seed = 0
    while sum(name.startswith("random:") for name in choices) < RANDOM_SETS:
        seed += 1
        name = f"random:{round(100 * size / depth)}%:{seed}"
        drawn = blocks.choice_of(name, depth)
        # a small model has few sets, and one may have to be drawn that is trained already
        if drawn not in choices.values() or seed > 100:
            choices[name] = drawn
    return choices


def passes(
    model: PreTrainedModel, choices: Mapping[str, Choice], training: TrainingSettings
) -> list[list[str]]:
    """The blocks in groups that are trained together, as many as `BUDGET` has room for.

    Blocks that start at the same layer come together, as they share what lies below it.
    """
    budget = BUDGET["cpu" if model.device.type == "cpu" else "cuda"]
    groups: list[list[str]] = []
    room = 0
    for name in sorted(choices, key=lambda b: (-min(choices[b].layers), b)):
        choice = choices[name]
        modules = target_modules(model, choice.layers, training.target_modules)
        weights = [model.get_submodule(module).weight for module in modules]
        needed = BYTES * (choice.rank or training.lora_rank) * sum(sum(w.shape) for w in weights)
        if not groups or needed > room:
            groups.append([])
            room = budget
        groups[-1].append(name)
        room -= needed
    return groups


def summary(
    depth: int,
    choices: Mapping[str, Choice],
    results: Mapping[str, Mapping[str, Any]],
    prompts: Sequence[str],
    resamples: int,
) -> dict[str, Any]:
    """The record's rows and comparisons, from each block's `parameters` and per-pair `margins`."""

    def row(block: str) -> dict[str, Any]:
        layers, result = choices[block].layers, results[block]
        of_pairs = of_margins([result["margins"]], prompts, resamples)
        one_seed = {key: value for key, value in of_pairs.items() if not key.endswith("_seed_std")}
        return {
            "block": block,
            "first": min(layers),
            "last": max(layers),
            "parameters": result["parameters"],
            **one_seed,
            "margins": result["margins"],
        }

    kinds = {"windows": "window:", "singles": "layers:"}
    rows = {kind: [row(b) for b in choices if b.startswith(s)] for kind, s in kinds.items()}
    others = [b for b in choices if not b.startswith(tuple(kinds.values()))]
    rows["controls"] = [
        row(b) | {"layers": list(choices[b].layers), "rank": choices[b].rank} for b in others
    ]
    moved = any(m != 0 for result in results.values() for m in result["margins"])
    every = list(range(len(prompts)))
    second = set(list(dict.fromkeys(prompts))[::2])
    choosing = [i for i in every if prompts[i] in second]
    testing = [i for i in every if prompts[i] not in second]

    def highest(places: Sequence[int]) -> str | None:
        """The window with the highest mean margin on some pairs."""
        means = {r["block"]: sum(r["margins"][i] for i in places) for r in rows["windows"]}
        return max(means, key=lambda block: means[block]) if moved else None

    candidate = highest(choosing)
    draws = [b for b in others if b.startswith("random:")]
    tests = [(candidate, b, testing) for b in ("mid", *draws)] if candidate else []
    tests += [("mid", b, every) for b in others if b != "mid"]
    comparisons = []
    for block, other, places in tests:
        a, b = ([results[name]["margins"][i] for i in places] for name in (block, other))
        row_of = paired(a, b, [prompts[i] for i in places])
        comparisons.append({"block": block, "other": other} | row_of)
    judge_family(comparisons)
    best = highest(every)
    alone = [r["margin"] for r in rows["singles"]]
    return {
        "size": len(choices["mid"].layers),
        **rows,
        "best": best,
        "candidate": candidate,
        "best_reason": None if best else "no training changed any margin",
        "comparisons": comparisons,
        "layer_scores": alone if any(alone) else None,
    }
