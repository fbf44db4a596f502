"""How far a sum over layers lies outside what random models give.

A null is a table of draws x layers: the same measure, taken of models in which nothing was learned.
The layers of a draw are independent of each other, because each is drawn by itself. A few draws
therefore say much about a mean over ten layers, although they say little about one of them: its
variance is the sum of the layers' variances, whose degrees of freedom add up (Satterthwaite, 1946).
"""

from typing import Literal

import numpy as np

from hialign.statistics.intervals import CONFIDENCE

Alternative = Literal["two-sided", "greater"]


def prediction(draws: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """What one more draw of the null would give, as a t distribution.

    Args:
        draws: K x L, K of at least 2.
        weights: L, of the sum `draws @ weights`.

    Returns:
        The centre, the spread and the degrees of freedom. The spread holds the variance of a draw and
        that of the centre itself. It is 0 if no draw differs from another.
    """
    count = len(draws)
    parts = weights**2 * draws.var(axis=0, ddof=1)
    centre, total = float(draws.mean(axis=0) @ weights), float(parts.sum())
    if not total > 0:
        return centre, 0.0, float("nan")
    freedom = total**2 / float((parts**2).sum() / (count - 1))
    return centre, float(np.sqrt(total * (1 + 1 / count))), freedom


def null_interval(draws: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The 95% prediction interval of `draws @ weights` of one more draw."""
    from scipy.stats import t

    centre, spread, freedom = prediction(draws, weights)
    reach = spread * t.ppf((1 + CONFIDENCE) / 2, freedom) if spread else 0.0
    return float(centre - reach), float(centre + reach)


def null_p(
    value: float, draws: np.ndarray, weights: np.ndarray, alternative: Alternative = "two-sided"
) -> float:
    """p of `value` being one more draw of the null's `draws @ weights`. NaN if the null is constant."""
    from scipy.stats import t

    centre, spread, freedom = prediction(draws, weights)
    if not spread:
        return float("nan")
    distance = (value - centre) / spread
    if alternative == "greater":
        return float(t.sf(distance, freedom))
    return float(2 * t.sf(abs(distance), freedom))
