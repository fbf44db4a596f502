"""Intervals around what was measured, and the number of prompts that a difference needs."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

Statistic = Literal["mean", "std"]
ALPHA = 0.05  # two-sided, for all tests of a family together after Holm's correction
CONFIDENCE = 0.95  # of every interval
FEWEST = 5  # units of which an interval is given: the bootstrap of two covers 51%, not 95%


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of the proportion `successes / n`, whose ties may count as halves.

    Fewer than five give NaN.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n < FEWEST:
        return float("nan"), float("nan")
    low, high = proportion_confint(successes, n, alpha=1 - CONFIDENCE, method="wilson")
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], resamples: int = 10_000, seed: int = 42
) -> tuple[float, float]:
    """95% bootstrap interval (BCa) of the mean of independent `values`, as of `pooled_interval`."""
    return pooled_interval(values, range(len(values)), resamples, seed)


def difference_interval(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """95% interval of the plain mean of differences: Student's t over whole groups.

    Differences of two strategies on one prompt, and margins, are spread to both sides. Student's t
    holds their mean more often than a bootstrap does, above all for few prompts. With 16, it is in
    95.0% of studies and the bootstrap's in 93.4% (benchmarks/results/null_studies.json). Lengths,
    divergences and shares near 0 or 1 lean to one side. `pooled_interval` follows the skew and is
    better there.

    The standard error is that of a mean over clusters of unequal size, as in survey statistics. With
    a value per group it is the usual one. Fewer than five groups give NaN, and groups of equal means
    an interval of no width.
    """
    from scipy.stats import sem, t

    data = np.asarray(values, dtype=float)
    _, index = np.unique([str(g) for g in groups], return_inverse=True)
    counts = np.bincount(index)
    if len(counts) < FEWEST:
        return float("nan"), float("nan")
    mean = float(data.mean())
    totals = np.bincount(index, weights=data - mean) * len(counts) / len(data)
    if np.ptp(np.bincount(index, weights=data) / counts) < 1e-12:
        return mean, mean
    low, high = t.interval(CONFIDENCE, len(counts) - 1, mean, sem(totals))
    return float(low), float(high)


def pooled_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = 10_000,
    seed: int = 42,
    of: Statistic = "mean",
) -> tuple[float, float]:
    """95% bootstrap interval (BCa) of the plain mean (or `std`) of `values`, drawing whole groups.

    Whole groups (such as the values of one prompt) are drawn, because the values of one group are not
    independent. Each value counts the same, whatever its group. So the interval belongs to
    `mean(values)` even if groups differ in size, as prompts do when some of their judgments failed.
    Fewer than five groups give NaN, and equal groups an interval of no width. Of a mean difference
    take `difference_interval`.

    A bootstrap of few groups is too narrow, because the variance of a resample is 1 - 1/n of what it
    should be, and because it uses the normal distribution instead of t. So the level is raised as
    Hesterberg (2015, "expanded" intervals) proposes, to 97.2% for 16 groups and 95.4% for 100.
    Intervals of a skewed difference over 16 groups still cover less than 95%, which
    benchmarks/results/null_studies.json measures. BCa fails if leaving out any group gives the same
    value, as for the standard deviation of two. The interval is then that of the percentiles.
    """
    data = np.asarray(values, dtype=float)
    _, index = np.unique([str(g) for g in groups], return_inverse=True)
    counts = np.bincount(index)
    if len(counts) < FEWEST:
        return float("nan"), float("nan")
    columns = [counts, np.bincount(index, weights=data)]
    if of == "std":
        columns.append(np.bincount(index, weights=data**2))
    statistic: Callable[..., np.ndarray] = _pooled_mean if of == "mean" else _pooled_std
    if all(np.ptp(column / counts) < 1e-12 for column in columns):
        same = float(statistic(*columns, axis=0))
        return same, same
    return _expanded_bootstrap(columns, statistic, resamples, seed)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = 10_000,
    seed: int = 42,
) -> tuple[float, float]:
    """Bootstrap interval (BCa, expanded) of `mean(numerators) / mean(denominators)`, by group.

    Numerators and denominators are two measurements of the same items. This is a ratio of means, not
    the mean of ratios, which explodes if a single denominator is near zero. It has no meaning if the
    mean denominator may be zero, so look at the interval of that first. Fewer than five groups give
    NaN, and groups with equal ratios an interval of no width.
    """
    _, index = np.unique([str(g) for g in groups], return_inverse=True)
    over, under = (
        np.bincount(index, weights=np.asarray(x, dtype=float)) for x in (numerators, denominators)
    )
    if len(under) < FEWEST:
        return float("nan"), float("nan")
    ratio = float(over.sum() / under.sum())
    if np.allclose(over, ratio * under, rtol=1e-9, atol=1e-12):
        return ratio, ratio
    return _expanded_bootstrap([under, over], _pooled_mean, resamples, seed)


def expanded_tail(groups: int) -> float:
    """The share of bootstrap samples to leave out on either side for a 95% interval.

    By Hesterberg (2015) it is below 2.5%, and falls with the number of `groups`.
    """
    from scipy.stats import norm, t

    over = np.sqrt(groups / (groups - 1)) * t.ppf((1 + CONFIDENCE) / 2, groups - 1)
    return float(norm.sf(over))


def _expanded_bootstrap(
    columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], resamples: int, seed: int
) -> tuple[float, float]:
    """BCa interval of a statistic of columns with one row per group, at Hesterberg's raised level."""
    from scipy.stats import bootstrap

    tail = expanded_tail(len(columns[0]))

    def drawn(method: str) -> tuple[float, float]:
        interval = bootstrap(
            columns,
            statistic,
            paired=True,
            batch=1_000,  # 8 MB at a time for 1,000 groups
            n_resamples=resamples,
            confidence_level=min(1 - 2 * tail, 0.9999),
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(interval.low), float(interval.high)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the last line of this function handles a failed BCa
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

    The method is MOVER (Zou and Donner, 2008). It gives the usual interval for two normal means and
    keeps the skew of bootstrap intervals. NaN if an end is NaN.
    """
    low = (a - b) - np.hypot(a - ends_a[0], ends_b[1] - b)
    high = (a - b) + np.hypot(ends_a[1] - a, b - ends_b[0])
    return float(low), float(high)


def prompts_needed(
    difference: float, std: float, power: float = 0.8, alpha: float = ALPHA
) -> float:
    """Prompts at which one paired test sees `difference` with probability `power`.

    The test is the paired t-test. Wilcoxon's needs 5% more prompts if differences are
    normal, never over 16% more (its asymptotic relative efficiency is at least 0.864), and often
    fewer. The result is at least what a rank test needs to reach `alpha` at all: 6 for 5%.

    Args:
        difference: the true mean of the prompts' differences.
        std: their standard deviation.
        power: the probability.
        alpha: the level of the two-sided test. For one of m tests under Holm's correction it is
            5% / m at the strictest step.

    Returns:
        The number of prompts. NaN if there is no spread or no difference.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not (std > 0 and abs(difference) > 0):  # NaN included
        return float("nan")
    effect, z = abs(difference) / std, norm.ppf(1 - alpha / 2)
    fewest = float(np.ceil(1 - np.log2(alpha)))  # at which 2 / 2^n is no more than alpha
    if effect >= _effect_seen(fewest, power, alpha):
        return fewest
    least = ((z + norm.ppf(power)) / effect) ** 2  # by normal theory, which needs a few less
    if least > 1e6:  # here a few more prompts change the power by less than rounding does
        return float(np.ceil(least + z**2 / 2))
    most = max(fewest, least) + 2 * z**2 + 9
    exact = brentq(lambda n: _effect_seen(n, power, alpha) - effect, max(fewest, least), most)
    return float(np.ceil(exact))


def unpaired_needed(
    difference: float, stds: tuple[float, float], power: float = 0.8, alpha: float = ALPHA
) -> float:
    """Responses per side at which an unpaired z-test sees `difference` (statsmodels).

    `alpha` is the level of the two-sided test, as of `prompts_needed`.
    """
    from statsmodels.stats.power import normal_sample_size_one_tail

    needed = normal_sample_size_one_tail(difference, power, alpha / 2, float(np.hypot(*stds)))
    return float(np.ceil(needed))


def smallest_difference(
    prompts: float, std: float, power: float = 0.8, alpha: float = ALPHA
) -> float:
    """The difference that one paired t-test on `prompts` sees with probability `power`.

    `alpha` is the level of the two-sided test, as of `prompts_needed`. NaN without a spread, and for
    fewer than two prompts.
    """
    if not (std > 0 and prompts >= 2):
        return float("nan")
    return _effect_seen(prompts, power, alpha) * std


def _effect_seen(prompts: float, power: float, alpha: float) -> float:
    """The mean, in standard deviations, that a paired t-test sees with probability `power`.

    It is the non-centrality (scipy) at which t is above its critical value that often. Rejecting in
    the wrong direction does not count.
    """
    from scipy.special import nctdtrinc
    from scipy.stats import t

    critical = t.isf(alpha / 2, prompts - 1)
    return float(nctdtrinc(prompts - 1, 1 - power, critical) / np.sqrt(prompts))


def interval_text(low: float | None, high: float | None, digits: int = 3) -> str | None:
    """`0.512 to 0.634`. None if there is no interval."""
    if pd.isna(low) or pd.isna(high):
        return None
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")


def p_text(p: float | None) -> str | None:
    """`0.032`, or `< 0.001`. None if there is no p."""
    if p is None or pd.isna(p):
        return None
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
