"""Verdicts of contrasts and detectable differences, against scipy, statsmodels and simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from hialign.statistics.contrasts import detectable, judge_contrasts, p_within
from hialign.statistics.crossed import mean_squares, p_value

# but for what other tests of the process left open
pytestmark = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def gains(rng: np.random.Generator, mean: float, seeds: int = 5, pairs: int = 200) -> np.ndarray:
    noise = 0.05 * rng.standard_normal((seeds, pairs)) + 0.01 * rng.standard_normal((seeds, 1))
    return np.asarray(mean + noise)


def test_the_four_words() -> None:
    rng = np.random.default_rng(0)
    full = gains(rng, 0.1)
    differences = {
        ("full", "local"): gains(rng, 0.08),
        ("mid", "full"): gains(rng, -0.08),
        ("mid", "local"): gains(rng, 0.0),
        ("mid", "random"): 20 * gains(rng, 0.0),
    }
    rows = judge_contrasts(differences, allowance=full / 2)
    words = ["better", "worse", "within the margin", "cannot tell"]
    assert [row["verdict"] for row in rows] == words
    assert [row["within"] for row in rows] == [False, False, True, False]
    assert rows[0]["margin"] == pytest.approx(full.mean() / 2)
    p = [row["p"] for row in rows]
    assert [row["p_holm"] for row in rows] == pytest.approx(multipletests(p, method="holm")[1])
    unlearned = judge_contrasts(differences, allowance=full / 2, learned=False)
    assert {row["verdict"] for row in unlearned} == {"nothing was learned here"}
    assert [row["p"] for row in unlearned] == p


def test_without_an_allowance_nothing_is_within_it() -> None:
    (row,) = judge_contrasts({("a", "b"): gains(np.random.default_rng(1), 0.0)})
    assert (row["verdict"], row["within"], row["margin"], row["p_within"]) == (
        ("cannot tell", None, None, None)
    )


def test_a_fixed_margin_is_two_one_sided_t_tests() -> None:
    """With one seed, as statsmodels has them."""
    from statsmodels.stats.weightstats import DescrStatsW

    values = gains(np.random.default_rng(2), 0.003, seeds=1)
    expected = DescrStatsW(values[0]).ttost_mean(-0.01, 0.01)[0]
    assert p_within(values, 0.01) == pytest.approx(expected, rel=1e-4)


def test_an_uncertain_margin_is_less_easily_met() -> None:
    rng = np.random.default_rng(3)
    values = gains(rng, 0.0)
    fixed = p_within(values, 0.03)
    uncertain = p_within(values, gains(rng, 0.03) + 0.03 * rng.standard_normal((5, 1)))
    assert fixed is not None
    assert uncertain is not None
    assert uncertain > 2 * fixed


def test_too_few_conversations_have_no_verdict_but_cannot_tell() -> None:
    values = np.ones((3, 8))
    (row,) = judge_contrasts({("a", "b"): values}, [*"abcd"] * 2, allowance=2.0)
    assert (row["p"], row["p_holm"], row["p_within"], row["detectable"]) == (None,) * 4
    assert row["verdict"] == "cannot tell"


@pytest.mark.parametrize(("contrasts", "pairs"), [(1, 40), (9, 40), (1, 700)])
def test_of_one_seed_the_detectable_difference_is_statsmodels(contrasts: int, pairs: int) -> None:
    values = np.random.default_rng(4).normal(0, 1, (1, pairs))
    effect = TTestPower().solve_power(nobs=pairs, alpha=0.05 / contrasts, power=0.8)
    expected = effect * values.std(ddof=1)
    assert detectable(mean_squares(values), contrasts) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("seeds", "of_seeds"), [(2, 0.3), (3, 0.3), (6, 0.0), (6, 0.3)])
def test_the_detectable_difference_is_found_in_four_of_five_studies(
    seeds: int, of_seeds: float
) -> None:
    """The variances are estimated from a large study, and the planned ones are simulated."""
    rng = np.random.default_rng(5)

    def drawn(*shape: int) -> np.ndarray:
        between = of_seeds * rng.standard_normal((*shape[:-1], 1))
        pairs = 0.5 * rng.standard_normal((*shape[:-2], 1, shape[-1]))
        return np.asarray(between + pairs + rng.standard_normal(shape))

    pilot = mean_squares(drawn(400, 400))
    least = detectable(pilot, 6, seeds=seeds, conversations=100)
    found = p_value(mean_squares(drawn(1500, seeds, 100) + least)) < 0.05 / 6
    assert found.mean() == pytest.approx(0.8, abs=0.06)
    assert detectable(pilot, 6, seeds=seeds, conversations=400) < least
    assert detectable(pilot, 1, seeds=seeds, conversations=100) < least


def test_one_seed_says_nothing_about_more() -> None:
    one = mean_squares(np.random.default_rng(6).normal(size=(1, 50)))
    assert math.isnan(detectable(one, seeds=6))
    assert math.isnan(detectable(mean_squares(np.ones((3, 4)))))
    assert detectable(mean_squares(np.zeros((3, 40)))) == 0.0


def test_no_difference_is_found_in_at_most_one_family_in_twenty() -> None:
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(60):
        full, *others = (gains(rng, 0.0, 3, 60) for _ in range(4))
        family = {("full", str(i)): full - other for i, other in enumerate(others)}
        found += any(row["verdict"] != "cannot tell" for row in judge_contrasts(family))
    assert found <= stats.binom.ppf(0.999, 60, 0.05)
