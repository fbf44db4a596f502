"""The depth trend: the norm of single pairs' gradients by layer, and the paper's inequality about it.

The norm does not change if chosen and rejected are exchanged. So it says how a network of this shape
passes gradients on, and nothing about preferences. `signal` holds what labels decide.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hialign.probes.gradients.meter import PairGradient, norms_of
from hialign.probes.pairs import ProbePair
from hialign.statistics.intervals import mean_interval, pooled_interval
from hialign.statistics.margins import or_none, with_interval
from hialign.study.blocks import EXPECTED, split_layers


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


def modules(
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


def by_layer(
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


def blocks(
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
