"""Summaries of the margins of preference pairs: means with intervals, and paired tests.

A margin says by how many nats a pair's chosen response is ahead of its rejected one. The unit is the
prompt, as in `hialign.statistics.comparisons`, because pairs of one prompt are not independent.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hialign.statistics.comparisons import BETTER, UNSURE, WORSE, holm, signed_rank
from hialign.statistics.intervals import (
    ALPHA,
    difference_interval,
    pooled_interval,
    wilson,
)


def short(values: Sequence[float]) -> list[float]:
    """`values` with six significant digits, which float32 justifies and which take a third of the bytes."""
    return [float(f"{value:.6g}") for value in values]


def rounded(values: Sequence[float]) -> list[float]:
    """`values` with six decimals, for sums of nats and for gates."""
    return [round(float(value), 6) for value in values]


def of_margins(
    margins: Sequence[Sequence[float]], prompts: Sequence[str], resamples: int
) -> dict[str, Any]:
    """Mean margin (nats) and accuracy over pairs, with 95% intervals over prompts.

    There are no intervals over fewer than five prompts. `resamples` are the bootstrap's, which
    accuracy needs where prompts have several pairs. `margins` is [seed][pair]. The seeds of a pair are averaged first, and a tie counts one half. With
    several seeds, `margin_seed_std` and `accuracy_seed_std` are the standard deviations of the seeds'
    means. With one seed they are None, because the intervals say nothing about other seeds.
    """
    hits = [[hit(m) for m in one] for one in margins]
    margin, accuracy = (np.mean(x, axis=0).tolist() for x in (margins, hits))
    summary: dict[str, Any] = {"n": len(prompts), "prompts": len(set(prompts))}
    summary |= with_interval("margin", margin, difference_interval(margin, prompts))
    summary |= with_interval("accuracy", accuracy, accuracy_interval(accuracy, prompts, resamples))
    for name, values in (("margin", margins), ("accuracy", hits)):
        seed_means = np.mean(values, axis=1)
        summary[f"{name}_seed_std"] = float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None
    return summary


def paired(a: Sequence[float], b: Sequence[float], prompts: Sequence[str]) -> dict[str, Any]:
    """`a` minus `b`, which have one number per pair: the mean difference and its test.

    The mean difference has a 95% interval over prompts. Wilcoxon's signed-rank test of the prompts'
    means gives the effect size and p. If every difference is zero there is nothing to test. Then all
    figures are None, and `reason` says so.
    """
    difference = np.subtract(a, b)
    summary: dict[str, Any] = {"n": len(prompts), "prompts": len(set(prompts))}
    empty = dict.fromkeys(("difference", "difference_low", "difference_high", "effect", "p"))
    if not difference.any():
        return summary | empty | {"reason": "the two are the same on every pair"}
    values = difference.tolist()
    summary |= with_interval("difference", values, difference_interval(values, prompts))
    _, index = np.unique(prompts, return_inverse=True)
    p, effect = signed_rank(np.bincount(index, weights=difference) / np.bincount(index))
    reason = "one prompt alone" if math.isnan(p) else None
    return summary | {"effect": or_none(effect), "p": or_none(p), "reason": reason}


def judge_family(rows: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` and a verdict to rows of `paired`, which are one family of tests.

    The verdict is `better` or `worse` if the adjusted test rejects at 5% and the interval is on the
    same side of zero.
    """
    adjusted = holm([math.nan if row["p"] is None else row["p"] for row in rows])
    for row, p in zip(rows, adjusted.tolist(), strict=True):
        row["p_holm"] = or_none(p)
        significant = row["p_holm"] is not None and p < ALPHA
        above = significant and row["effect"] > 0 and (row["difference_low"] or 0) > 0
        below = significant and row["effect"] < 0 and (row["difference_high"] or 0) < 0
        row["verdict"] = BETTER if above else WORSE if below else UNSURE


def or_none(value: float) -> float | None:
    """`value`, or None if it is NaN, which a record cannot hold."""
    return None if math.isnan(value) else float(value)


def gained(values: Any, receiver: Any, donor: Any) -> np.ndarray:
    """How far each pair's margin went from the receiver's towards the donor's, in the margin's unit.

    The arguments are arrays whose last axis is pairs.
    """
    return np.asarray(np.sign(np.subtract(donor, receiver)) * np.subtract(values, receiver))


def hit(difference: float) -> float:
    """1 if the chosen response is ahead, 0 if it is behind, one half for a tie."""
    return 0.5 if difference == 0 else float(difference > 0)


def accuracy_interval(
    hits: Sequence[float], prompts: Sequence[str], resamples: int
) -> tuple[float, float]:
    """Wilson's interval, or the bootstrap over prompts if some prompts have several pairs."""
    if len(set(prompts)) == len(prompts):
        return wilson(sum(hits), len(hits))
    return pooled_interval(hits, prompts, resamples)


def with_interval(
    name: str, values: Sequence[float], interval: tuple[float, float]
) -> dict[str, float | None]:
    """The mean of `values` as `name`, with its interval. None for NaN and for the mean of nothing."""
    low, high = (or_none(end) for end in interval)
    mean = sum(values) / len(values) if values else None
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
