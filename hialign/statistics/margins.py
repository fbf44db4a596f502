"""What margins of pairs come to: means with intervals, and paired differences with their tests.

The unit is the prompt, as everywhere (`hialign.statistics.comparisons`): pairs of one prompt are kin.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hialign.statistics.comparisons import BETTER, UNSURE, WORSE, holm, signed_rank
from hialign.statistics.intervals import ALPHA, pooled_interval, wilson


def short(values: Sequence[float]) -> list[float]:
    """Six significant digits: more than float32 weights have, and a third of the bytes."""
    return [float(f"{value:.6g}") for value in values]


def rounded(values: Sequence[float]) -> list[float]:
    """Six decimals, for sums of nats and for gates."""
    return [round(float(value), 6) for value in values]


def of_margins(
    margins: Sequence[Sequence[float]], prompts: Sequence[str], resamples: int
) -> dict[str, Any]:
    """Mean margin (nats) and accuracy over pairs, with 95% intervals over prompts.

    `margins` is seeds x pairs; a pair's seeds are averaged before anything else, and a tie counts
    one half. With several seeds `margin_seed_std` and `accuracy_seed_std` are the standard
    deviation of the seeds' means, else None: the intervals say nothing about other seeds.
    """
    hits = [[hit(m) for m in one] for one in margins]
    margin, accuracy = (np.mean(x, axis=0).tolist() for x in (margins, hits))
    found: dict[str, Any] = {"n": len(prompts), "prompts": len(set(prompts))}
    found |= with_interval("margin", margin, pooled_interval(margin, prompts, resamples))
    found |= with_interval("accuracy", accuracy, accuracy_interval(accuracy, prompts, resamples))
    for name, values in (("margin", margins), ("accuracy", hits)):
        of_seeds = np.mean(values, axis=1)
        found[f"{name}_seed_std"] = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None
    return found


def paired(
    a: Sequence[float], b: Sequence[float], prompts: Sequence[str], resamples: int
) -> dict[str, Any]:
    """`a` minus `b` (a number a pair each): mean difference with its 95% interval over prompts, and
    Wilcoxon's signed-rank test of the prompts' means (effect size and p).

    Where every difference is zero there is nothing to test: all is None, and `reason` says so.
    """
    difference = np.subtract(a, b)
    found: dict[str, Any] = {"n": len(prompts), "prompts": len(set(prompts))}
    empty = dict.fromkeys(("difference", "difference_low", "difference_high", "effect", "p"))
    if not difference.any():
        return found | empty | {"reason": "the two are the same on every pair"}
    values = difference.tolist()
    found |= with_interval("difference", values, pooled_interval(values, prompts, resamples))
    _, index = np.unique(prompts, return_inverse=True)
    p, effect = signed_rank(np.bincount(index, weights=difference) / np.bincount(index))
    reason = "one prompt alone" if math.isnan(p) else None
    return found | {"effect": known(effect), "p": known(p), "reason": reason}


def judge_family(rows: Sequence[dict[str, Any]]) -> None:
    """Add to rows of `paired`, which are one family of tests, `p_holm` and the verdict: `better` or
    `worse` where the adjusted test rejects at 5% and the interval is on the same side of zero."""
    adjusted = holm([math.nan if row["p"] is None else row["p"] for row in rows])
    for row, p in zip(rows, adjusted.tolist(), strict=True):
        row["p_holm"] = known(p)
        told = row["p_holm"] is not None and p < ALPHA
        above = told and row["effect"] > 0 and (row["difference_low"] or 0) > 0
        below = told and row["effect"] < 0 and (row["difference_high"] or 0) < 0
        row["verdict"] = BETTER if above else WORSE if below else UNSURE


def known(value: float) -> float | None:
    """None for what is not a number: a record has no NaN."""
    return None if math.isnan(value) else float(value)


def gained(values: Any, receiver: Any, donor: Any) -> np.ndarray:
    """How far each pair's m went from the receiver's towards the donor's, in m's unit;
    arrays whose last axis is pairs."""
    return np.asarray(np.sign(np.subtract(donor, receiver)) * np.subtract(values, receiver))


def hit(difference: float) -> float:
    """1 where the chosen response is ahead, 0 where it is not, one half for a tie."""
    return 0.5 if difference == 0 else float(difference > 0)


def accuracy_interval(
    hits: Sequence[float], prompts: Sequence[str], resamples: int
) -> tuple[float, float]:
    """Wilson's interval; where prompts repeat, the bootstrap over prompts, as their pairs are kin."""
    if len(set(prompts)) == len(prompts):
        return wilson(sum(hits), len(hits))
    return pooled_interval(hits, prompts, resamples)


def with_interval(
    name: str, values: Sequence[float], interval: tuple[float, float]
) -> dict[str, float | None]:
    """The mean of `values` as `name`, with its interval; None for what is not known."""
    low, high = (None if x != x else x for x in interval)
    mean = sum(values) / len(values) if values else None
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
