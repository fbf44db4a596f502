"""Intervals around what was measured, and the power to see what was not."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

Statistic = Literal["mean", "std"]
ALPHA = 0.05  # two-sided; of all tests of a family together, once Holm has adjusted them


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
    data = np.asarray(values, dtype=float)
    if groups is not None:
        _, index = np.unique([str(g) for g in groups], return_inverse=True)
        data = np.bincount(index, weights=data) / np.bincount(index)
    return pooled_interval(list(data), range(len(data)), resamples, confidence, seed)


def pooled_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 42,
    of: Statistic = "mean",
) -> tuple[float, float]:
    """Bootstrap interval (BCa) of the plain mean (or `std`) of `values`, drawing whole groups.

    Unlike `mean_interval` with groups, a value counts the same whichever group it is in, so the
    interval belongs to `mean(values)` also where groups differ in size, as prompts do when some of
    their judgments failed. NaN for fewer than two groups; of no width where all groups are alike.

    A bootstrap of few groups is too narrow, as the variance of a resample is 1 - 1/n of what it
    should be and no t stands for the normal. So the level is raised as Hesterberg (2015, "expanded"
    intervals) has it: to 97.2% for 16 groups, 95.4% for 100. What is left at 16 groups is measured
    in benchmarks/results/null_studies.json: intervals of a skewed difference still cover less than
    they say. Where BCa has no answer (leaving out any group gives the same value, as for the
    standard deviation of two), the interval is the percentiles'.
    """
    data = np.asarray(values, dtype=float)
    _, index = np.unique([str(g) for g in groups], return_inverse=True)
    counts = np.bincount(index)
    if len(counts) < 2:
        return float("nan"), float("nan")
    columns = [counts, np.bincount(index, weights=data)]
    if of == "std":
        columns.append(np.bincount(index, weights=data**2))
    statistic: Callable[..., np.ndarray] = _pooled_mean if of == "mean" else _pooled_std
    if all(np.ptp(column / counts) < 1e-12 for column in columns):
        same = float(statistic(*columns, axis=0))
        return same, same
    return _expanded_bootstrap(columns, statistic, resamples, confidence, seed)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 42,
) -> tuple[float, float]:
    """Bootstrap interval (BCa, expanded) of `mean(numerators) / mean(denominators)`, two measurements
    of the same things, drawing whole groups.

    A ratio of means, not the mean of ratios, which explodes where a single denominator is near
    zero. It means nothing where the mean denominator itself may be zero: look at its interval first.
    NaN for fewer than two groups; of no width where all groups have the same ratio.
    """
    _, index = np.unique([str(g) for g in groups], return_inverse=True)
    over, under = (
        np.bincount(index, weights=np.asarray(x, dtype=float)) for x in (numerators, denominators)
    )
    if len(under) < 2:
        return float("nan"), float("nan")
    ratio = float(over.sum() / under.sum())
    if np.allclose(over, ratio * under, rtol=1e-9, atol=1e-12):
        return ratio, ratio
    return _expanded_bootstrap([under, over], _pooled_mean, resamples, confidence, seed)


def expanded_tail(groups: int, confidence: float = 0.95) -> float:
    """The share of bootstrap samples to leave out on either side for an interval at `confidence`:
    Hesterberg's (2015), less than (1 - confidence) / 2, and the less the fewer `groups` there are."""
    from scipy.stats import norm, t

    over = np.sqrt(groups / (groups - 1)) * t.ppf((1 + confidence) / 2, groups - 1)
    return float(norm.sf(over))


def _expanded_bootstrap(
    columns: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """BCa interval of a statistic of columns with a row a group, at Hesterberg's raised level."""
    from scipy.stats import bootstrap

    tail = expanded_tail(len(columns[0]), confidence)

    def drawn(method: str) -> tuple[float, float]:
        found = bootstrap(
            columns,
            statistic,
            paired=True,
            batch=1_000,  # 8 MB at a time for 1,000 groups
            n_resamples=resamples,
            confidence_level=min(1 - 2 * tail, 0.9999),
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of what the next line asks
        low, high = drawn("BCa")
    return drawn("percentile") if np.isnan(low) or np.isnan(high) else (low, high)


def _pooled_mean(counts: np.ndarray, sums: np.ndarray, *, axis: int) -> np.ndarray:
    return np.asarray(sums.sum(axis) / counts.sum(axis))


def _pooled_std(
    counts: np.ndarray, sums: np.ndarray, squares: np.ndarray, *, axis: int
) -> np.ndarray:
    n = counts.sum(axis)
    variance = (squares.sum(axis) - sums.sum(axis) ** 2 / n) / np.maximum(n - 1, 1)
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def interval_of_difference(
    a: float, ends_a: tuple[float, float], b: float, ends_b: tuple[float, float]
) -> tuple[float, float]:
    """Interval of `a - b` from the intervals of two independent estimates.

    MOVER (Zou and Donner, 2008): for two normal means it is the usual interval, and it keeps the
    skew of bootstrap intervals. NaN where an end is.
    """
    low = (a - b) - np.hypot(a - ends_a[0], ends_b[1] - b)
    high = (a - b) + np.hypot(ends_a[1] - a, b - ends_b[0])
    return float(low), float(high)


def prompts_needed(difference: float, std: float, power: float = 0.8) -> float:
    """Prompts at which one paired test at 5% sees `difference` with probability `power`.

    `std` is that of the prompts' differences. Of the paired t-test (statsmodels); Wilcoxon's needs
    5% more where differences are normal and never over 16% more (its asymptotic relative
    efficiency is at least 0.864), often fewer. 6 at least: with fewer, no rank test reaches 5%.
    NaN without a spread or a difference.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm
    from statsmodels.stats.power import TTestPower

    if not (std > 0 and abs(difference) > 0):  # NaN included
        return float("nan")
    effect, solver = abs(difference) / std, TTestPower()
    if effect > 2 or solver.power(effect, 6, ALPHA) >= power:
        return 6.0
    # Normal theory needs fewer, by less than 3 (statsmodels' own search does not always converge)
    least = ((norm.ppf(1 - ALPHA / 2) + norm.ppf(power)) / effect) ** 2
    if least > 1e6:  # where so few prompts more change the power by less than rounding does
        return float(np.ceil(least + norm.ppf(1 - ALPHA / 2) ** 2 / 2))
    return float(
        np.ceil(brentq(lambda n: solver.power(effect, n, ALPHA) - power, max(6, least), least + 9))
    )


def unpaired_needed(difference: float, stds: tuple[float, float], power: float = 0.8) -> float:
    """Responses on either side at which an unpaired z-test at 5% sees `difference` (statsmodels)."""
    from statsmodels.stats.power import normal_sample_size_one_tail

    needed = normal_sample_size_one_tail(difference, power, ALPHA / 2, float(np.hypot(*stds)))
    return float(np.ceil(needed))


def smallest_difference(prompts: float, std: float, power: float = 0.8) -> float:
    """The difference that one paired t-test at 5% sees with probability `power` on `prompts`."""
    from statsmodels.stats.power import TTestPower

    if not (std > 0 and prompts >= 2):
        return float("nan")
    solved = TTestPower().solve_power(nobs=prompts, alpha=ALPHA, power=power)
    return float(np.squeeze(solved)) * std


def interval_text(low: float | None, high: float | None, digits: int = 3) -> str | None:
    """`0.512 to 0.634`; None where there is no interval."""
    if pd.isna(low) or pd.isna(high):
        return None
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")


def p_text(p: float | None) -> str | None:
    """`0.032`, or `< 0.001`; None where there is none."""
    if p is None or pd.isna(p):
        return None
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
