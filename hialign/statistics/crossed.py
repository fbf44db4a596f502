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

It was chosen by simulated coverage (benchmarks/results/crossed_coverage.json: 2 to 6 seeds, 100 to
1,000 pairs, seeds being 0 to 90% of the mean's variance, 2,000 studies each). The lowest and the
highest coverage of 95% intervals over normal, heavy-tailed, and skewed and clustered pairs are:

    seeds                        2            3            4            6
    generalized (here)     .950-.997    .949-.992    .950-.984    .945-.978
    Satterthwaite's t      .891-.999    .925-.986    .931-.981    .939-.971
    mixed model, normal    .880-.955    .900-.950    .915-.960    .915-.950
    pigeonhole bootstrap   .726-.985    .812-.988    .844-.987    .877-.989
    pairs alone            .446-.960    .458-.958    .449-.956    .447-.963

The mixed model (statsmodels) was fitted to 200 studies of 100 normal pairs, with seeds at 0 and 60%. At
the level of the strictest of nine tests (99.4%), it covers .990 or more where Satterthwaite's t covers
.974. The price is a median length 2 to 9% above that of Satterthwaite's at 6 seeds, and twice it at 2.
Trainings that either work or fail altogether are beyond any of these with few seeds: its coverage then
falls to .77 at 3 seeds and .87 at 4, and is .947 at 6.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from hialign.statistics.intervals import CONFIDENCE, FEWEST


class _Interval(TypedDict):
    mean: float
    low: float | None
    high: float | None
    p: float | None
    conversations: int
    over: Literal["pairs and seeds", "pairs"]


class Effect(_Interval):
    """A mean over seeds and pairs. `low`, `high` and `p` are None where there is no interval."""

    seeds: int
    pairs: int
    seed_std: float | None


class MeanSquares(NamedTuple):
    """The two-way ANOVA of one or several matrices [..., seed, conversation].

    All arrays have the leading shape of the matrices. `over_seeds` is the mean square between seeds,
    `over_conversations` between conversations, and `residual` what is left. `freedom` is the degrees
    of freedom between seeds. If it is 0, `over_seeds` and `residual` are too. The mean squares over
    `cells`, which is seeds times conversations, are the variance of the mean.
    """

    mean: np.ndarray
    over_seeds: np.ndarray
    over_conversations: np.ndarray
    residual: np.ndarray
    freedom: int
    conversations: int
    cells: float


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
    return _anova([np.atleast_2d(np.asarray(differences, dtype=float))], [1], conversations)


def unpaired_mean_squares(
    ours: np.ndarray, theirs: np.ndarray, conversations: Sequence[Hashable] | None = None
) -> MeanSquares:
    """The same of `ours` minus `theirs`, which have the same pairs but seeds of their own.

    Both are [..., seed, pair]. They may have different numbers of seeds, whose spread and noise count
    as equal. That is so where the two do the same, and so a test of `ours` above `theirs` is right.
    """
    both = [np.atleast_2d(np.asarray(x, dtype=float)) for x in (ours, theirs)]
    if both[0].shape[-1] != both[1].shape[-1]:
        raise ValueError(f"{both[0].shape[-1]} pairs of ours and {both[1].shape[-1]} of theirs")
    return _anova(both, [1, -1], conversations)


def _anova(
    matrices: Sequence[np.ndarray], signs: Sequence[int], conversations: Sequence[Hashable] | None
) -> MeanSquares:
    """Mean squares of the signed sum of the matrices' means. Seeds are nested in matrices."""
    index = _index(matrices[0].shape[-1], conversations)
    many = int(index.max(initial=-1)) + 1
    mean, of_groups = np.zeros(()), np.zeros(())
    over_seeds, residual = np.zeros(()), np.zeros(())
    for data, sign in zip(matrices, signs, strict=True):
        own_mean = data.mean((-2, -1))
        sums = _sums(data - own_mean[..., None, None], index)
        of_seeds, own_groups = sums.mean(-1), sums.mean(-2)
        rest = sums - of_seeds[..., :, None] - own_groups[..., None, :]
        mean, of_groups = mean + sign * own_mean, of_groups + sign * own_groups
        over_seeds = over_seeds + many * (of_seeds**2).sum(-1)
        residual = residual + (rest**2).sum((-2, -1))
    freedom = sum(data.shape[-2] - 1 for data in matrices)
    seeds = 1 / sum(1 / data.shape[-2] for data in matrices)
    shares = max(freedom, 1), max(many - 1, 1)
    return MeanSquares(
        mean,
        over_seeds / shares[0],
        seeds * (of_groups**2).sum(-1) / shares[1],
        residual / (shares[0] * shares[1]),
        freedom,
        many,
        seeds * many,
    )


def _index(pairs: int, conversations: Sequence[Hashable] | None) -> np.ndarray:
    """The number of each pair's conversation, from 0."""
    if conversations is None:
        return np.arange(pairs)
    if len(conversations) != pairs:
        raise ValueError(f"{len(conversations)} conversations for {pairs} pairs: give one per pair")
    return np.asarray(np.unique([str(label) for label in conversations], return_inverse=True)[1])


def _sums(deviations: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Sums of [..., pair] by conversation, times conversations / pairs."""
    if not np.isfinite(deviations).all():
        raise ValueError("differences[seed, pair] has values that are missing or not finite")
    starts = np.flatnonzero(np.diff(np.sort(index), prepend=-1))
    if len(starts) == len(index):
        return deviations
    sorted_pairs = deviations[..., np.argsort(index, kind="stable")]
    return np.asarray(np.add.reduceat(sorted_pairs, starts, axis=-1) * len(starts) / len(index))


def p_above(squares: MeanSquares, bound: float | np.ndarray = 0.0) -> np.ndarray:
    """One-sided p that the true mean is above `bound`. NaN for fewer than 5 conversations."""
    from scipy.special import ndtr

    distance = (squares.mean - bound)[..., None]
    spreads, weights = _spreads(squares)
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread: 0 / 0 is no evidence
        scaled = np.nan_to_num(distance / spreads, nan=0.0, posinf=np.inf, neginf=-np.inf)
    p = np.asarray(ndtr(-scaled) @ weights)
    return np.where(squares.conversations < FEWEST, np.nan, p)


def p_value(squares: MeanSquares) -> np.ndarray:
    """Two-sided p that the true mean is not zero. NaN for fewer than 5 conversations."""
    above = p_above(squares)
    return np.asarray(np.minimum(2 * np.minimum(above, 1 - above), 1.0).round(15))


def half_width(squares: MeanSquares, confidence: float = CONFIDENCE) -> np.ndarray:
    """Half the length of the interval of the mean, which is symmetric. NaN below 5 conversations."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    spreads, weights = _spreads(squares)
    halves = np.full(squares.mean.size, np.nan)
    for row, errors in enumerate(spreads.reshape(-1, len(weights))):
        if squares.conversations < FEWEST or not errors.any():
            halves[row] = np.nan if squares.conversations < FEWEST else 0.0
            continue
        errors = np.maximum(errors, errors.max() * 1e-12)

        def excess(half: float, errors: np.ndarray = errors) -> float:
            return float(2 * (ndtr(-half / errors) @ weights) - (1 - confidence))

        halves[row] = brentq(excess, 0.0, 10 * errors.max(), xtol=1e-12 * errors.max(), rtol=1e-9)
    return halves.reshape(squares.mean.shape)


def _spreads(squares: MeanSquares) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors that the mean may have, [..., node], and the weight of each node.

    With X and Y being chi-squares over their degrees of freedom:

        max(MS_seeds / X, MS_residual) + max(MS_conversations / Y - MS_residual, 0), over `cells`

    The seeds' variance is not allowed below zero, hence the first maximum, and the conversations' not
    either. MS_residual has so many degrees of freedom that it counts as known. With one seed there
    is only MS_conversations, and the result is Student's t.
    """
    over_groups, group_weights = spread_nodes(max(squares.conversations - 1, 1))
    residual = squares.residual[..., None]
    between_groups = squares.over_conversations[..., None] / over_groups
    if not squares.freedom:
        return np.sqrt(between_groups / squares.cells), group_weights
    over_seeds, seed_weights = spread_nodes(squares.freedom)
    between_seeds = np.maximum(squares.over_seeds[..., None] / over_seeds, residual)
    between_groups = np.maximum(between_groups - residual, 0)
    variance = between_seeds[..., :, None] + between_groups[..., None, :]
    flat = variance.reshape(*squares.mean.shape, -1) / squares.cells
    return np.sqrt(flat), np.outer(seed_weights, group_weights).ravel()


@lru_cache  # of degrees of freedom there are few
def spread_nodes(freedom: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values of a chi-square over its degrees of freedom, as nodes and weights of an integral.

    They are the quantiles at the probabilities of `count` normal nodes of Gauss and Hermite. Few
    degrees of freedom need many, because small values make an interval long. With the default count, p
    is right to a thousandth of it.
    """
    from scipy.stats import chi2, norm

    nodes, weights = np.polynomial.hermite_e.hermegauss(count or (48 if freedom < 30 else 7))
    lower, upper = chi2.ppf(norm.cdf(nodes), freedom), chi2.isf(norm.sf(nodes), freedom)
    values = np.where(nodes < 0, lower, upper) / freedom
    return np.maximum(values, 1e-20), weights / weights.sum()  # the first has next to no weight


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
    found = effect_of(mean_squares(data, conversations), confidence)
    seeds, pairs = data.shape
    seed_std = float(data.mean(1).std(ddof=1)) if seeds > 1 else None
    return {**found, "seeds": seeds, "pairs": pairs, "seed_std": seed_std}


def unpaired_effect(
    ours: np.ndarray,
    theirs: np.ndarray,
    conversations: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
) -> Effect:
    """The mean of `ours` minus that of `theirs`: the same pairs, under other seeds.

    Arguments as of `unpaired_mean_squares`. `seeds` is that of the fewer, and `seed_std` None.
    """
    squares = unpaired_mean_squares(ours, theirs, conversations)
    (seeds, pairs), (others, _) = (np.atleast_2d(np.asarray(x)).shape for x in (ours, theirs))
    found = effect_of(squares, confidence)
    return {**found, "seeds": min(seeds, others), "pairs": pairs, "seed_std": None}


def effect_of(squares: MeanSquares, confidence: float = CONFIDENCE) -> _Interval:
    """The mean of one matrix with its interval and two-sided p, from its mean squares."""
    mean, half, p = float(squares.mean), half_width(squares, confidence), p_value(squares)
    known = squares.conversations >= FEWEST
    return {
        "mean": mean,
        "low": mean - float(half) if known else None,
        "high": mean + float(half) if known else None,
        "p": float(p) if known else None,
        "conversations": squares.conversations,
        "over": "pairs and seeds" if squares.freedom else "pairs",
    }
