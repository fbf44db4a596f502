"""Means over held-out pairs and training seeds, which are crossed: every seed has every pair.

    differences[seed, pair] = mean + seed + conversation + (seed x conversation) + noise

A seed is a training of its own, and its pairs and its initialization move all held-out pairs together.
An interval over pairs alone leaves that out. So seeds and pairs both count as drawn at random, and the
pairs of one conversation are drawn together. The result speaks about other seeds and other pairs.

The interval is the generalized confidence interval of the two-way random model (Weerahandi, 1993;
Burdick, Borror and Montgomery, 2005, for the crossed design). The mean squares of the ANOVA estimate

    variance of the mean = (MS_seeds + MS_conversations - MS_residual) / (seeds * conversations)

and the interval takes over how uncertain they are: a mean square of n degrees of freedom is an unknown
variance times a chi-square over n. With a few seeds that matters more than anything else. No library
that we know has this interval. Its integral is a sum over a fixed grid, so nothing is drawn at random.

It was chosen by simulated coverage, see benchmarks/results/crossed_coverage.json.
"""

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from hialign.statistics.intervals import CONFIDENCE

FEWEST = 5  # conversations for which an interval is given


class Effect(TypedDict):
    """A mean over seeds and pairs. `low`, `high` and `p` are None where there is no interval."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    pairs: int
    conversations: int
    over: Literal["pairs and seeds", "pairs"]
    seed_std: float | None


class MeanSquares(NamedTuple):
    """The two-way ANOVA of one or several matrices [..., seed, conversation].

    All arrays have the leading shape of the matrices. `over_seeds` is the mean square between seeds,
    `over_conversations` between conversations, and `residual` what is left. With one seed
    `over_seeds` and `residual` are zero.
    """

    mean: np.ndarray
    over_seeds: np.ndarray
    over_conversations: np.ndarray
    residual: np.ndarray
    seeds: int
    conversations: int


def mean_squares(
    differences: np.ndarray, conversations: Sequence[Hashable] | None = None
) -> MeanSquares:
    """The mean of `differences` and the mean squares between seeds and between conversations.

    Every pair counts the same in the mean, whatever the size of its conversation. The mean squares
    are those of each conversation's summed deviations from the mean, times conversations / pairs.
    With conversations of one size this is the usual balanced ANOVA of their means.

    Args:
        differences: [..., seed, pair], in any unit. A vector is one seed.
        conversations: a label per pair. Without it, each pair is a conversation.

    Raises:
        ValueError: values are missing, or the labels do not match the pairs.
    """
    data = np.atleast_2d(np.asarray(differences, dtype=float))
    seeds, pairs = data.shape[-2:]
    if not np.isfinite(data).all():
        raise ValueError("differences[seed, pair] has values that are missing or not finite")
    if conversations is not None and len(conversations) != pairs:
        raise ValueError(f"{len(conversations)} conversations for {pairs} pairs: give one per pair")
    mean = data.mean((-2, -1))
    sums = data - mean[..., None, None]
    groups = pairs
    if conversations is not None:
        _, index = np.unique([str(label) for label in conversations], return_inverse=True)
        groups = int(index.max()) + 1
        order = np.argsort(index, kind="stable")
        starts = np.flatnonzero(np.diff(index[order], prepend=-1))
        sums = np.add.reduceat(sums[..., order], starts, axis=-1) * (groups / pairs)
    of_seeds, of_groups = sums.mean(-1), sums.mean(-2)
    rest = sums - of_seeds[..., :, None] - of_groups[..., None, :]
    freedom = max(seeds - 1, 1), max(groups - 1, 1)
    return MeanSquares(
        mean,
        groups * (of_seeds**2).sum(-1) / freedom[0],
        seeds * (of_groups**2).sum(-1) / freedom[1],
        (rest**2).sum((-2, -1)) / (freedom[0] * freedom[1]),
        seeds,
        groups,
    )


def p_above(squares: MeanSquares, bound: float | np.ndarray = 0.0) -> np.ndarray:
    """One-sided p that the true mean is above `bound`. NaN for fewer than 5 conversations."""
    from scipy.stats import norm

    distance = (squares.mean - bound)[..., None]
    spreads, weights = _spreads(squares)
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread: 0 / 0 is no evidence
        scaled = np.nan_to_num(distance / spreads, nan=0.0, posinf=np.inf, neginf=-np.inf)
    p = np.asarray((norm.sf(scaled) * weights).sum(-1))
    return np.where(squares.conversations < FEWEST, np.nan, p)


def p_value(squares: MeanSquares) -> np.ndarray:
    """Two-sided p that the true mean is not zero. NaN for fewer than 5 conversations."""
    above = p_above(squares)
    return np.asarray(2 * np.minimum(above, 1 - above))


def half_width(squares: MeanSquares, confidence: float = CONFIDENCE) -> np.ndarray:
    """Half the length of the interval of the mean, which is symmetric. NaN below 5 conversations."""
    from scipy.optimize.elementwise import find_root
    from scipy.stats import norm

    spreads, weights = _spreads(squares)
    scales = np.atleast_1d((spreads * weights).sum(-1)).ravel()  # near the standard errors
    flat = spreads.reshape(len(scales), -1)
    relative = np.divide(flat, scales[:, None], out=np.ones(flat.shape), where=flat > 0)

    def excess(width: np.ndarray, row: np.ndarray) -> np.ndarray:
        outside = 2 * (norm.sf(width[..., None] / relative[row]) * weights).sum(-1)
        return np.asarray(outside - (1 - confidence))

    rows = np.arange(len(scales))
    found = find_root(
        excess, (0.0, 10 * relative.max(-1)), args=(rows,), tolerances={"xrtol": 1e-9}
    )
    known = squares.conversations >= FEWEST
    return (found.x * scales if known else np.full(len(scales), np.nan)).reshape(squares.mean.shape)


def _spreads(squares: MeanSquares) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors that the mean may have, [..., node], and the weight of each node.

    With s seeds and c conversations, X and Y being chi-squares over their degrees of freedom:

        variance = (max(MS_seeds / X, MS_residual) + max(MS_conversations / Y - MS_residual, 0)) / sc

    The seeds' variance is not allowed below zero, hence the first maximum, and the conversations' not
    either. MS_residual has so many degrees of freedom that it counts as known. With one seed there
    is only MS_conversations, and the result is Student's t.
    """
    seeds, groups = squares.seeds, squares.conversations
    over_groups, group_weights = _chi_squares(max(groups - 1, 1))
    residual = squares.residual[..., None]
    between_groups = squares.over_conversations[..., None] / over_groups
    if seeds == 1:
        return np.sqrt(between_groups / groups), group_weights
    over_seeds, seed_weights = _chi_squares(seeds - 1)
    between_seeds = np.maximum(squares.over_seeds[..., None] / over_seeds, residual)
    between_groups = np.maximum(between_groups - residual, 0)
    variance = between_seeds[..., :, None] + between_groups[..., None, :]
    flat = variance.reshape(*squares.mean.shape, -1) / (seeds * groups)
    return np.sqrt(flat), np.outer(seed_weights, group_weights).ravel()


def _chi_squares(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of a chi-square over its degrees of freedom, as nodes and weights of an integral.

    The nodes are Gauss-Legendre's between probabilities that are dense near zero, where few degrees
    of freedom make an interval long.
    """
    from scipy.stats import chi2

    few = freedom < 30
    tail = [10.0**-power for power in range(8, 0, -1)] if few else [0.001, 0.03, 0.2]
    edges = np.array([0.0, *tail, 0.5, 0.9, 1.0] if few else [0.0, *tail, 0.8, 0.97, 0.999, 1.0])
    nodes, weights = np.polynomial.legendre.leggauss(8 if few else 4)
    widths = np.diff(edges)[:, None] / 2
    probabilities = edges[:-1, None] + widths * (nodes + 1)
    return chi2.ppf(probabilities.ravel(), freedom) / freedom, (widths * weights).ravel()


def mean_effect(
    differences: np.ndarray,
    conversations: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
) -> Effect:
    """The mean of `differences[seed, pair]` with its interval and two-sided p.

    With one seed the interval is Student's t over conversations, and `over` says so: the spread
    between seeds is then not known. With fewer than 5 conversations there is no interval.
    `seed_std` is the standard deviation of the seeds' means, which includes their noise.

    Args:
        differences: [seed, pair], in any unit, such as gains in nats. A vector is one seed.
        conversations: a label per pair. Without it, each pair is a conversation.
        confidence: of the interval.

    Raises:
        ValueError: values are missing, or the labels do not match the pairs.
    """
    data = np.atleast_2d(np.asarray(differences, dtype=float))
    squares = mean_squares(data, conversations)
    mean, half, p = float(squares.mean), half_width(squares, confidence), p_value(squares)
    known = squares.conversations >= FEWEST
    seed_means = data.mean(1)
    return {
        "mean": mean,
        "low": mean - float(half) if known else None,
        "high": mean + float(half) if known else None,
        "p": float(p) if known else None,
        "seeds": squares.seeds,
        "pairs": data.shape[1],
        "conversations": squares.conversations,
        "over": "pairs and seeds" if squares.seeds > 1 else "pairs",
        "seed_std": float(seed_means.std(ddof=1)) if squares.seeds > 1 else None,
    }
