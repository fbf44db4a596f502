"""Whether a judge agrees with itself, and with another judge, by Krippendorff's alpha.

Alpha (https://doi.org/10.1080/19312450709336664) is 1 if ratings agree and 0 if they agree as often as
by chance. It is computed at the interval level, because a local judge's scores are real numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hialign.judging.cells import Scores
from hialign.statistics.intervals import FEWEST

ALL = "all dimensions"


def reliability(
    ratings: Sequence[Sequence[Scores]], dimensions: Sequence[str], resamples: int = 2_000
) -> list[dict[str, Any]]:
    """One row per dimension and one over all: dimension, n, alpha, low, high, equal.

    `ratings` has the scores of each item, from each pass or each judge. `n` is the number of items
    with two or more. `equal` is the share of these whose scores are exactly the same, for the last
    row in every dimension. `low` and `high` are alpha's 95% bootstrap interval over items
    (percentile). Alpha is None if the scores do not vary at all. In the last row, differences between
    the dimensions add to the agreement.
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
    """The row of one dimension, or of all. `data` is [item, rating, dimension]."""
    rated = data[(~np.isnan(data)).all(2).sum(1) >= 2]
    row: dict[str, Any] = {"dimension": name, "n": len(rated)}
    if not len(rated):
        return row | dict.fromkeys(("alpha", "low", "high", "equal"))
    spread = np.nanmax(rated, 1) - np.nanmin(rated, 1)  # [item, dimension]
    low, high = interval(lambda index: alpha(rated[index]), len(rated), resamples)
    figures = {"alpha": alpha(rated), "low": low, "high": high}
    figures["equal"] = float((spread == 0).all(1).mean())
    return row | {k: None if np.isnan(v) else round(v, 4) for k, v in figures.items()}


def alpha(data: npt.NDArray[np.float64]) -> float:
    """Krippendorff's alpha of [item, rating, dimension]. NaN if all scores are the same.

    At the interval level it is 1 - within / total. `within` is the variance within the units (an item
    and a dimension with at least two ratings), weighted by their ratings. `total` is the variance of
    all ratings. The package `krippendorff`, against which this is tested, sets up a matrix of distinct
    values for each unit, which would take 16 GB for 50 responses of real-valued scores.
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
    """95% bootstrap interval (percentile) of a statistic of n items.

    `statistic` gets the indices of the drawn items. Draws for which it is NaN are left out. NaN for
    fewer than five items, and if every draw gives NaN.
    """
    if n < FEWEST:
        return float("nan"), float("nan")
    rng = np.random.default_rng(42)
    drawn = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])
    if np.isnan(drawn).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)
