"""ILA's interventions: what does it cost to tune only the matrices that rank high?

All variants are trained in one pass on the study's own pairs and compared on the same held-out ones.
The variants are full, full without the least important 25%, the top 10%, 20% and 30% alone, and as
many matrices drawn at random. The thirds are trained at the LoRA rank that gives them the parameters
of the largest top set.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hialign.engine.dpo import TrainingPairs
from hialign.probes.ila.gates import Subject
from hialign.probes.pairs import ProbePair
from hialign.probes.record import probe_settings
from hialign.probes.tuned import tuned_blocks
from hialign.statistics.intervals import pooled_interval
from hialign.statistics.margins import or_none, rounded
from hialign.study.blocks import Choice, share_of, split_layers
from hialign.study.probe_settings import IlaSettings

Variant = dict[str, Any]  # name, kind, percent, matrices, rank, and then what was measured


def interventions(
    subject: Subject,
    ranking: Mapping[str, Any],
    pairs: TrainingPairs,
    held_out: Sequence[ProbePair],
    settings: IlaSettings,
) -> dict[str, Any]:
    """Train every variant on `pairs` (DPO, the study's own seed) and measure it on `held_out`.

    Fields of the result:

    - `ranking_from`: the loss and the data set that the matrices were ranked by.
    - `pairs`, `prompts`: the ids of the held-out pairs and of their prompts.
    - `variants`: one entry each, with `name`, `kind` (full, freeze, top, random, third at equal
      parameters), `percent` and `matrices` tuned, `layers`, `rank`, `parameters` and the `margins` of
      the pairs (nats; Eq. 1). The mean `margin` and the `accuracy` (margin above 0, a tie is one
      half) have n and a 95% interval over pairs.
    - `differences`: `of` minus `minus` in `measure`, pair by pair. The mean over random sets is taken
      first, so the interval does not contain what the draw of the sets adds.
    - `nothing`: why there are no variants.
    """
    about = {"dataset": ranking["dataset"], "loss": ranking["loss"], "seeds": ranking["seeds"]}
    result: dict[str, Any] = {"ranking_from": about, "nothing": ranking["nothing"]}
    if ranking["nothing"]:
        return result | {"pairs": [], "prompts": [], "variants": [], "differences": []}
    cell, training = subject.cell, subject.training(subject.cell.study.training.seed)
    trained = variants(subject, ranking["ranking"], settings)
    choices = {variant["name"]: choice_of(subject, variant) for variant in trained}
    with tuned_blocks(
        subject.model, subject.tokenizer, pairs, choices, training, subject.weights
    ) as adapted:
        margins = adapted.margins(held_out, training.beta, "interventions")
    prompts = [pair.prompt for pair in held_out]
    probes = probe_settings(cell)

    def estimate(values: np.ndarray) -> dict[str, Any]:
        ends = pooled_interval(values.tolist(), prompts, probes.resamples, seed=probes.seed)
        low, high = (or_none(end) for end in ends)
        return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}

    values = {name: np.array(rounded(of_pairs)) for name, of_pairs in margins.items()}
    measures = {
        "margin": values,
        "accuracy": {name: (np.sign(v) + 1) / 2 for name, v in values.items()},
    }
    for variant in trained:
        name = variant["name"]
        sizes = subject.parameters(variant["rank"])
        variant |= {
            "layers": list(choices[name].layers),
            "parameters": sum(sizes[i] for i in variant["matrices"]),
            "margins": values[name].tolist(),
            **{measure: estimate(by_name[name]) for measure, by_name in measures.items()},
        }
    differences = []
    for of, minus in comparisons(trained):
        for measure, by_name in measures.items():
            against = np.mean([by_name[name] for name in minus["names"]], axis=0)
            differences.append(
                {"of": of, "minus": minus["name"], "measure": measure}
                | estimate(by_name[of] - against)
            )
    return result | {
        "pairs": [pair.id for pair in held_out],
        "prompts": prompts,
        "variants": trained,
        "differences": differences,
    }


def variants(subject: Subject, ranking: Sequence[int], settings: IlaSettings) -> list[Variant]:
    """All that is trained, with `full` first."""
    total, rank = len(ranking), subject.cell.study.training.lora_rank
    rng = random.Random(probe_settings(subject.cell).seed)
    made = [_variant("full", "full", 100, range(total), rank)]
    selected = [("freeze", settings.freeze, 100 - settings.freeze)]
    selected += [("top", percent, percent) for percent in settings.top]
    for kind, percent, tuned_percent in selected:
        size, name = share_of(tuned_percent, total), f"{kind} {percent}%"
        made.append(_variant(name, kind, tuned_percent, ranking[:size], rank))
        for number in range(1, settings.random_sets + 1):
            drawn = rng.sample(range(total), size)
            made.append(_variant(f"{name} random {number}", "random", tuned_percent, drawn, rank))
    most = ranking[: share_of(max(settings.top), total)]
    of_one = subject.parameters(1)
    thirds = {
        third: [i for i, layer in enumerate(subject.layers) if layer in layers]
        for third, layers in split_layers(subject.depth).items()
    }
    for third, inside in thirds.items():
        aim = rank * sum(of_one[i] for i in most) / sum(of_one[i] for i in inside)
        equal = max(1, round(aim))
        kind = "third at equal parameters"
        made.append(_variant(f"{third} rank {equal}", kind, None, inside, equal))
    return made


def _variant(
    name: str, kind: str, percent: int | None, matrices: Sequence[int], rank: int
) -> Variant:
    return {
        "name": name,
        "kind": kind,
        "percent": percent,
        "matrices": sorted(matrices),
        "rank": rank,
    }


def choice_of(subject: Subject, variant: Variant) -> Choice:
    """The block of a variant: its matrices alone, in the layers that hold them."""
    layers = sorted({subject.layers[i] for i in variant["matrices"]})
    modules = tuple(subject.names[i] for i in variant["matrices"])
    return Choice(tuple(layers), rank=variant["rank"], modules=modules)


def comparisons(made: Sequence[Variant]) -> list[tuple[str, dict[str, Any]]]:
    """Which variant is compared with which.

    Each selection is compared with full and with its random sets, and the largest top set with each
    third at the same number of parameters.
    """
    chosen: list[tuple[str, dict[str, Any]]] = []
    tops = [v for v in made if v["kind"] in ("freeze", "top")]
    for variant in tops:
        name = variant["name"]
        at_random = [v["name"] for v in made if v["name"].startswith(f"{name} random ")]
        chosen.append((name, {"name": "full", "names": ["full"]}))
        chosen.append((name, {"name": f"{name} random", "names": at_random}))
    most = max((v for v in tops if v["kind"] == "top"), key=lambda v: v["percent"])
    for variant in made:
        if variant["kind"] == "third at equal parameters":
            only = {"name": variant["name"], "names": [variant["name"]]}
            chosen.append((most["name"], only))
    return chosen
