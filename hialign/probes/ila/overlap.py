"""Do two rankings name the same matrices? Jaccard's overlap.

Two random sets that hold 75% of all matrices already share many (their mean overlap is 0.60), and
more if both prefer the same types of matrices. `hialign.report.where.overlaps` sets that beside them.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hialign.statistics.intervals import mean_interval
from hialign.study.blocks import share_of
from hialign.study.probe_settings import IlaSettings, ProbeSettings


def ranked(scores: Sequence[float]) -> list[int]:
    """The places of the scores, the highest first. Of equal scores the earlier comes first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def jaccard(a: Collection[int], b: Collection[int]) -> float:
    """The elements that both sets have, over those that either has, from 0 to 1."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def stability(scores: Sequence[Sequence[float]], size: int) -> dict[str, Any]:
    """How alike the rankings of several seeds are.

    Returns the means over pairs of seeds of Spearman's correlation and of the overlap of the first
    `size`. They are None, with the reason, for a single seed.
    """
    pairs = list(combinations(scores, 2))
    if not pairs:
        return {"spearman": None, "jaccard": None, "reason": "one seed has nothing to agree with"}
    tops = [[ranked(s)[:size] for s in pair] for pair in pairs]
    return {
        "spearman": float(np.mean([spearmanr(*pair).statistic for pair in pairs])),
        "jaccard": float(np.mean([jaccard(*pair) for pair in tops])),
        "reason": None,
    }


def overlap_of(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], size: int, resamples: int, seed: int
) -> dict[str, Any]:
    """The overlap of the first `size` of two data sets' rankings.

    Args:
        a: the scores of the first data set (seeds x matrices).
        b: those of the second, for the same seeds.
        size: the number of matrices that are compared.
        resamples: the number of bootstrap samples.
        seed: what draws them.

    Returns:
        `by_seed` has the overlaps of the two data sets under the same seed, and `mean`, `low`, `high`
        and `n` sum them up (95% interval, without ends for one seed). `of_means` is the overlap of
        the rankings by the mean over seeds. `other_seeds` is the mean over pairs of different seeds,
        whose adapters do not even begin alike.
    """
    tops = [[ranked(s)[:size] for s in scores] for scores in (a, b)]
    same = [jaccard(x, y) for x, y in zip(*tops, strict=True)]
    other = [jaccard(x, y) for i, x in enumerate(tops[0]) for j, y in enumerate(tops[1]) if i != j]
    low, high = mean_interval(same, resamples, seed=seed)
    means = [ranked(np.mean(scores, axis=0).tolist())[:size] for scores in (a, b)]
    return {
        "size": size,
        "by_seed": same,
        "mean": float(np.mean(same)),
        "low": None if np.isnan(low) else low,
        "high": None if np.isnan(high) else high,
        "n": len(same),
        "of_means": jaccard(*means),
        "other_seeds": float(np.mean(other)) if other else None,
    }


def overlaps(
    runs: Sequence[Mapping[str, Any]],
    settings: IlaSettings,
    percents: Sequence[int],
    probes: ProbeSettings,
) -> list[dict[str, Any]]:
    """`overlap_of` for each two data sets, each loss and each per cent of the matrices.

    An entry's `nothing` says why it has no overlap.
    """
    gates = {(r["dataset"], r["loss"], r["seed"]): r["gates"] for r in runs if r["nothing"] is None}
    entries: list[dict[str, Any]] = []
    for loss in settings.losses:
        for a, b in combinations(settings.datasets, 2):
            seeds = [s for s in settings.seeds if {(a, loss, s), (b, loss, s)} <= gates.keys()]
            of_a, of_b = ([gates[name, loss, s] for s in seeds] for name in (a, b))
            for percent in percents:
                entry: dict[str, Any] = {"datasets": [a, b], "loss": loss, "percent": percent}
                if seeds:
                    size = share_of(percent, len(of_a[0]))
                    entry |= overlap_of(of_a, of_b, size, probes.resamples, probes.seed)
                entries.append(entry | {"nothing": None if seeds else "no seed ranks both"})
    return entries
