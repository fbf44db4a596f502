"""Intervals around what was measured."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion `successes / n` (which may count ties as halves)."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return float("nan"), float("nan")
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def mean_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 42,
) -> tuple[float, float]:
    """Bootstrap interval (BCa) of the mean of `values`.

    With `groups` (the prompt of each value, say) whole groups are drawn, as values of one group are
    not independent: the interval is of the mean of the groups' means. NaN where there are fewer
    than two groups; of no width where all are equal.
    """
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    if groups is not None:
        _, index = np.unique([str(g) for g in groups], return_inverse=True)
        data = np.bincount(index, weights=data) / np.bincount(index)
    if len(data) < 2:
        return float("nan"), float("nan")
    if np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    found = bootstrap(
        (data,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def pooled_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 42,
) -> tuple[float, float]:
    """Bootstrap interval (BCa) of the plain mean of `values`, drawing whole groups.

    Unlike `mean_interval` with groups, a value counts the same whichever group it is in, so the
    interval belongs to `mean(values)` also where groups differ in size, as prompts do when some of
    their judgments failed. NaN for fewer than two groups; of no width where all values are equal.
    """
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    _, index = np.unique([str(g) for g in groups], return_inverse=True)
    sums, counts = np.bincount(index, weights=data), np.bincount(index)
    if len(counts) < 2:
        return float("nan"), float("nan")
    if np.ptp(sums / counts) == 0:
        return float(sums[0] / counts[0]), float(sums[0] / counts[0])
    found = bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        batch=1_000,  # 8 MB at a time for 1,000 groups
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def against_base(scores: pd.DataFrame, block: str) -> pd.DataFrame:
    """`score` of `block` minus Base's for the same model and prompt, where both were scored.

    Nothing for Base itself.
    """
    key = ["model", "prompt_id"]
    both = scores[scores.block == block].merge(
        scores.loc[scores.block == "base", [*key, "score"]], on=key, suffixes=("", "_base")
    )
    both["score"] -= both.score_base
    return both.dropna(subset="score")[: 0 if block == "base" else None]


def interval_text(low: float | None, high: float | None, digits: int = 3) -> str | None:
    """`0.512 to 0.634`; None where there is no interval."""
    if pd.isna(low) or pd.isna(high):
        return None
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")
