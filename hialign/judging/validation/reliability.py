"""Whether a judge says the same twice, and the same as another judge: Krippendorff's alpha.

Alpha (https://doi.org/10.1080/19312450709336664) is 1 where ratings agree, 0 where they agree
as often as chance would have it. The level is interval: a local judge's scores are real numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hialign.judging.cells import Scores

ALL = "all dimensions"


def reliability(
    ratings: Sequence[Sequence[Scores]], dimensions: Sequence[str], resamples: int = 2_000
) -> list[dict[str, Any]]:
    """A row for each dimension and one over all: dimension, n, alpha, low, high, equal.

    `ratings` has, for each item, the scores that it got (from each pass, or each judge). `n` items
    have two or more; `equal` is the share of them whose scores are exactly the same (over all: in
    every dimension); `low` and `high` bound alpha's 95% bootstrap interval over items (percentile).
    Alpha is None where the scores do not vary at all: there is nothing to agree on. Over all,
    dimensions that score high or low on the whole add to what is agreed on.
    """
    width = max((len(item) for item in ratings), default=0)
    data = np.full((len(ratings), width, len(dimensions)), np.nan)
    for i, item in enumerate(ratings):
        for j, scores in enumerate(item):
            data[i, j] = [scores.get(name, np.nan) for name in dimensions]
    rows = [
        _row(name, data[:, :, [d]], resamples) for d, name in enumerate(dimensions) if data.size
    ]
    return rows + ([_row(ALL, data, resamples)] if len(dimensions) > 1 and data.size else [])


def _row(name: str, data: npt.NDArray[np.float64], resamples: int) -> dict[str, Any]:
    """`data` is [item, rating, dimension]."""
    kept = data[(~np.isnan(data)).all(2).sum(1) >= 2]
    row: dict[str, Any] = {"dimension": name, "n": len(kept)}
    if not len(kept):
        return row | dict.fromkeys(("alpha", "low", "high", "equal"))
    spread = np.nanmax(kept, 1) - np.nanmin(kept, 1)  # [item, dimension]
    low, high = interval(lambda index: alpha(kept[index]), len(kept), resamples)
    figures = {"alpha": alpha(kept), "low": low, "high": high}
    figures["equal"] = float((spread == 0).all(1).mean())
    return row | {k: None if np.isnan(v) else round(v, 4) for k, v in figures.items()}


def alpha(data: npt.NDArray[np.float64]) -> float:
    """Krippendorff's alpha of [item, rating, dimension]; NaN where all scores are the same.

    At the interval level it is 1 - within / total: the variance within the units (here item and
    dimension, at least two ratings each), weighted by their ratings, over that of all ratings. The
    package `krippendorff`, against which this is tested, sets up a matrix of distinct values for
    each unit, which for 50 responses of real-valued scores would take 16 GB.
    """
    units = data.transpose(1, 0, 2).reshape(data.shape[1], -1)  # [rating, unit]
    units = units[:, (~np.isnan(units)).sum(0) >= 2]
    total = np.nanvar(units, ddof=1) if units.size else 0.0
    if total == 0:
        return float("nan")
    within = np.average(np.nanvar(units, 0, ddof=1), weights=(~np.isnan(units)).sum(0))
    return float(1 - within / total)


def interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], n: int, resamples: int = 2_000
) -> tuple[float, float]:
    """95% bootstrap interval (percentile) of a statistic of which of n items are drawn.

    Draws on which it is not defined are left out; NaN for fewer than two items, or if none is left.
    """
    if n < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(42)
    drawn = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])
    if np.isnan(drawn).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)
