"""What the gradients of several units have in common, from their inner products alone.

A unit is a prompt, and g_i is the mean gradient of the loss on its pairs. Its Gram matrix
G_ij = <g_i, g_j> is all that is needed here. Exchanging chosen and rejected turns the sign of g_i, so
every other labelling of the same pairs is a sign for each row and column of the same matrix.
"""

import numpy as np
from scipy.stats import t

from hialign.statistics.intervals import ALPHA

LEAST = 5  # units: an interval from fewer is none


def signal(grams: np.ndarray) -> np.ndarray:
    """The squared norm of the expected gradient, without bias.

    The mean gradient of n units has the squared norm |E g|^2 + trace(Cov g) / n, which is large for
    noise alone. The mean of the inner products of two different units has no such part:
    (|sum g|^2 - sum |g|^2) / (n (n - 1)), a U-statistic. It may be negative.

    Args:
        grams: … x n x n.

    Returns:
        One number per Gram matrix, in the unit of a squared gradient.
    """
    n = grams.shape[-1]
    return np.asarray((grams.sum((-2, -1)) - _trace(grams)) / (n * (n - 1)))


def flipped(grams: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """`signal` under other labels.

    Args:
        grams: … x n x n.
        signs: R x n, each 1 or -1. A -1 exchanges chosen and rejected in all pairs of a unit.

    Returns:
        R x ….
    """
    n = grams.shape[-1]
    # one matrix at a time, because all products of all matrices together take gigabytes
    sums = [((signs @ gram) * signs).sum(1) for gram in grams.reshape(-1, n, n)]
    sums_of = np.stack(sums, axis=-1).reshape(len(signs), *grams.shape[:-2])
    return np.asarray((sums_of - _trace(grams)) / (n * (n - 1)))


def deviation(grams: np.ndarray) -> np.ndarray:
    """The standard deviation of `signal` under independent flips of labels, without drawing any.

    Its variance is 2 sum G_ij^2 / (n (n - 1))^2 over i != j, and its mean is zero.
    """
    n = grams.shape[-1]
    squares = (grams**2).sum((-2, -1)) - (np.diagonal(grams, axis1=-2, axis2=-1) ** 2).sum(-1)
    return np.asarray(np.sqrt(2 * squares) / (n * (n - 1)))


def without_each(grams: np.ndarray) -> np.ndarray:
    """`signal` without one unit, for each unit (n x …). n must be 3 at least."""
    n = grams.shape[-1]
    diagonal = np.diagonal(grams, axis1=-2, axis2=-1)
    rows = grams.sum(-1) - diagonal
    sums = rows.sum(-1)[..., None] - 2 * rows
    return np.moveaxis(sums / ((n - 1) * (n - 2)), -1, 0)


def influences(grams: np.ndarray) -> np.ndarray:
    """The jackknife's pseudo-values of `signal` (n x …), whose mean over units is `signal` itself."""
    n = grams.shape[-1]
    return np.asarray(n * signal(grams) - (n - 1) * without_each(grams))


def jackknife(value: np.ndarray, without: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """95% intervals of some numbers from the same numbers without each unit (Tukey's jackknife, t).

    Args:
        value: the numbers, of any shape.
        without: n x that shape.

    Returns:
        The low ends, the high ends, and the p of one-sided t-tests that the numbers are above zero. All
        are NaN for fewer than `LEAST` units.
    """
    n, value = len(without), np.asarray(value)
    if n < LEAST:
        return (np.full(value.shape, np.nan),) * 3
    error = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    reach = t.ppf(1 - ALPHA / 2, n - 1) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = t.sf(value / error, n - 1)
    return value - reach, value + reach, np.asarray(p)


def by_unit(gram: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The Gram matrix of the units' mean gradients, from that of single pairs.

    Args:
        gram: … x pairs x pairs.
        units: the number of each pair's unit, from 0.
    """
    means = np.zeros((units.max() + 1, len(units)))
    means[units, np.arange(len(units))] = 1
    means /= means.sum(1, keepdims=True)
    return np.asarray(means @ gram @ means.T)


def cosines(grams: np.ndarray) -> np.ndarray:
    """Gram matrices of gradients of length 1. A unit without any gradient has zeros."""
    lengths = np.sqrt(np.maximum(np.diagonal(grams, axis1=-2, axis2=-1), 0))
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.asarray(grams * inverse[..., :, None] * inverse[..., None, :])


def _trace(grams: np.ndarray) -> np.ndarray:
    return np.asarray(np.trace(grams, axis1=-2, axis2=-1))
