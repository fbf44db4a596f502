"""How many elements two sets share by chance, if they are drawn within the kinds of the elements."""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

ROUNDING = 1e-9  # of an overlap that was stored


@dataclass(frozen=True)
class Chance:
    """The exact distribution of Jaccard's overlap of two random sets.

    Attributes:
        overlaps: every overlap that can be, in rising order.
        chances: the probability of each.
    """

    overlaps: np.ndarray
    chances: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.overlaps @ self.chances)

    @property
    def quantile95(self) -> float:
        """The overlap that 95% of random sets do not exceed."""
        return float(self.overlaps[np.searchsorted(self.chances.cumsum(), 0.95 - 1e-12)])

    def at_least(self, overlap: float) -> float:
        """The probability of this overlap or a larger one."""
        return float(min(1.0, self.chances[self.overlaps >= overlap - ROUNDING].sum()))

    def at_most(self, overlap: float) -> float:
        """The probability of this overlap or a smaller one."""
        return float(min(1.0, self.chances[self.overlaps <= overlap + ROUNDING].sum()))


def by_chance(kinds: Sequence[Hashable], a: Collection[int], b: Collection[int]) -> Chance:
    """The overlap of two random sets with as many elements of each kind as `a` and `b` have.

    If one kind ranks above another in both sets, the sets share elements for that reason alone. So
    chance draws within each kind. The number that is shared within a kind is hypergeometric, and the
    kinds are independent. With a single kind, this is two sets drawn from all elements.

    Args:
        kinds: the kind of each element, such as the type of a matrix.
        a: a set of elements, by their places in `kinds`.
        b: another one.
    """
    total = Counter(kinds)
    of_a, of_b = (Counter(kinds[i] for i in chosen) for chosen in (a, b))
    chances = np.ones(1)  # of 0, 1, … shared elements
    for kind, size in total.items():
        shared = np.arange(min(of_a[kind], of_b[kind]) + 1)
        chances = np.convolve(chances, hypergeom(size, of_a[kind], of_b[kind]).pmf(shared))
    shared = np.arange(len(chances))
    overlaps = shared / (len(set(a)) + len(set(b)) - shared)
    possible = chances > 0
    return Chance(overlaps[possible], chances[possible])
