"""What the swaps did to the preference, pair by pair, with its interval and beside random adapters.

An effect is in nats of m = log p(chosen) - log p(rejected), and positive towards the human preference.
The effect of putting a tuned layer in is m with it minus base's m. The effect of a layer that is left
out is the tuned model's m minus m without it. So both say what the layer's change adds. Exchanging
chosen and rejected turns the sign of every effect.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hialign.probes.pairs import ProbePair
from hialign.probes.patching.recovery import difference, estimate, margins, prompts_of
from hialign.probes.patching.runs import Runs
from hialign.probes.patching.swaps import WAYS, places_of
from hialign.statistics.intervals import pooled_interval
from hialign.statistics.margins import or_none, rounded, short
from hialign.statistics.nulls import null_p
from hialign.study.blocks import split_layers

BOTH = "both"  # the mean of the two ways
Effects = dict[str, dict[str, np.ndarray]]  # way -> `layers` or `thirds` -> pairs x places


def effects_of(runs: Runs, pairs: Sequence[ProbePair]) -> Effects:
    """The effect of every swap on every pair (pairs x places, nats), and the mean of both ways."""
    own = {side: _summed(values, pairs) for side, values in runs.unpatched.items()}
    found: Effects = {}
    for way, direction in WAYS.items():
        found[way] = {}
        for kind, by_place in runs.patched[direction].items():
            swapped = np.array([_summed(values, pairs) for values in by_place]).T
            change = swapped - own["base"][:, None], own["tuned"][:, None] - swapped
            found[way][kind] = change[0] if way == "put_in" else change[1]
    kinds = list(found["put_in"])
    return found | {
        BOTH: {kind: (found["put_in"][kind] + found["leave_out"][kind]) / 2 for kind in kinds}
    }


def _summed(values: Any, pairs: Sequence[ProbePair]) -> np.ndarray:
    return np.array(margins(values, pairs)["summed"])


def swap_record(
    runs: Runs,
    nulls: Mapping[int, Runs],
    pairs: Sequence[ProbePair],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The swaps as the record holds them, and as `probe.patching` describes them.

    Args:
        runs: the swaps between base and tuned.
        nulls: the same with random adapters, by the seed that drew them.
        pairs: the pairs that were run.
        resamples: bootstrap samples of an interval over prompts.
        seed: what draws them.
    """
    effects, drawn = effects_of(runs, pairs), [effects_of(r, pairs) for r in nulls.values()]
    depth, prompts = effects[BOTH]["layers"].shape[1], prompts_of(pairs)
    own = {side: _summed(values, pairs) for side, values in runs.unpatched.items()}

    def row(way: str, values: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
        """The mean of one number per pair, and its p among random adapters, weighted over layers."""
        mean = float(values.mean())
        ends = pooled_interval(values.tolist(), prompts, resamples, seed)
        random = np.array([draw[way]["layers"].mean(axis=0) for draw in drawn])
        p = or_none(null_p(mean, random, weights)) if len(drawn) > 1 else None
        return estimate(mean, ends, len(values)) | {"p": p}

    by_layer, by_third = [], []
    for layer in range(depth):
        alone = np.eye(depth)[layer]
        rows = {way: row(way, of_way["layers"] @ alone, alone) for way, of_way in effects.items()}
        by_layer.append({"layer": layer} | rows)
    for number, (third, layers) in enumerate(split_layers(depth).items()):
        weights = np.isin(np.arange(depth), list(layers)) / len(layers)
        for way, of_way in effects.items():
            whole = of_way["thirds"][:, number]
            ends = pooled_interval(whole.tolist(), prompts, resamples, seed)
            by_third.append(
                {"third": third, "way": way} | row(way, of_way["layers"] @ weights, weights)
            )
            by_third[-1]["whole"] = estimate(float(whole.mean()), ends, len(whole))
    return {
        "pairs": [{"id": pair.id, "prompt": pair.prompt} for pair in pairs],
        "unswapped": {side: rounded(values.tolist()) for side, values in own.items()},
        "difference": difference(own["base"].tolist(), own["tuned"].tolist(), prompts),
        "layers": by_layer,
        "thirds": by_third,
        "nulls": [
            {"seed": number, "difference": _difference(of_draw, pairs)} | _means(draw)
            for (number, of_draw), draw in zip(nulls.items(), drawn, strict=True)
        ],
    } | {
        way: {
            kind: [short(values) for values in effects[way][kind].tolist()]
            for kind in places_of(depth)
        }
        for way in WAYS
    }


def _difference(runs: Runs, pairs: Sequence[ProbePair]) -> float:
    base, tuned = (_summed(runs.unpatched[side], pairs) for side in ("base", "tuned"))
    return float((tuned - base).mean())


def _means(effects: Effects) -> dict[str, dict[str, list[float]]]:
    """The mean effect of every swap over pairs, for each way."""
    return {
        way: {kind: short(values.mean(axis=0).tolist()) for kind, values in effects[way].items()}
        for way in WAYS
    }
