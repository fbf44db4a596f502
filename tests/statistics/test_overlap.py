"""What two random sets share, against sets that are drawn, and against scipy's hypergeometric."""

import random

import numpy as np
import pytest
from scipy.stats import hypergeom

from hialign.statistics.overlap import by_chance


def jaccard(a: list[int], b: list[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b))


@pytest.mark.parametrize(
    ("kinds", "a", "b"),
    [
        ("q" * 24, range(18), range(18)),
        ("q" * 9, [0], [0]),
        ("q" * 5, range(5), range(5)),
        ("qqqqqqqqvvvvvvvvoooo", [0, 1, 8, 9, 10, 11, 12, 16, 17], [0, 8, 9, 10, 11, 12, 13, 18]),
    ],
)
def test_chance_is_what_sets_drawn_within_kinds_share(
    kinds: str, a: list[int], b: list[int]
) -> None:
    rng = random.Random(0)
    places = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in kinds}

    def drawn(like: list[int]) -> list[int]:
        counts = {kind: sum(kinds[i] == kind for i in like) for kind in places}
        return [i for kind, n in counts.items() for i in rng.sample(places[kind], n)]

    overlaps = np.array([jaccard(drawn(a), drawn(b)) for _ in range(8_000)])
    chance = by_chance(kinds, a, b)
    assert chance.chances.sum() == pytest.approx(1)
    assert chance.mean == pytest.approx(overlaps.mean(), abs=0.01)
    assert np.mean(overlaps <= chance.quantile95 + 1e-9) >= 0.94
    assert np.mean(overlaps < chance.quantile95 - 1e-9) <= 0.96  # no lower value would do
    for overlap in set(overlaps.tolist()):
        assert chance.at_least(overlap) == pytest.approx(np.mean(overlaps >= overlap), abs=0.02)
        assert chance.at_most(overlap) == pytest.approx(np.mean(overlaps <= overlap), abs=0.02)


def test_one_kind_is_hypergeometric() -> None:
    chance = by_chance(["q"] * 120, range(90), range(90))
    assert chance.mean == pytest.approx(0.60, abs=0.005)  # of three quarters, three fifths
    assert chance.at_least(85 / 95) == pytest.approx(hypergeom(120, 90, 90).sf(84))
    assert chance.at_most(65 / 115) == pytest.approx(hypergeom(120, 90, 90).cdf(65))


def test_sets_that_take_whole_kinds_share_them_always() -> None:
    chance = by_chance("qqvv", [0, 1], [0, 1])
    assert (chance.mean, chance.quantile95, chance.at_least(1.0)) == (1, 1, 1)
    apart = by_chance("qqvv", [0, 1], [2, 3])
    assert (apart.mean, apart.at_most(0.0), apart.at_least(0.1)) == (0, 1, 0)
