"""Means over crossed seeds and pairs, against scipy's t, numpy's ANOVA, mixed models and simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from hialign.statistics.crossed import half_width, mean_effect, mean_squares, p_above, p_value

pytestmark = pytest.mark.filterwarnings("error")


def drawn(rng: np.random.Generator, shape: tuple[int, ...], seed: float, pair: float) -> np.ndarray:
    """Differences without an effect: standard deviations of seeds and of pairs, and noise of 1."""
    *many, seeds, pairs = shape
    of_seeds = seed * rng.standard_normal((*many, seeds, 1))
    return of_seeds + pair * rng.standard_normal((*many, 1, pairs)) + rng.standard_normal(shape)


@pytest.mark.parametrize("pairs", [5, 16, 40, 300])
def test_one_seed_is_students_t_over_pairs(pairs: int) -> None:
    values = np.random.default_rng(pairs).exponential(1, pairs)
    found = mean_effect(values)
    low, high = stats.t.interval(0.95, pairs - 1, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4)
    assert found["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-5)
    assert (found["seeds"], found["over"], found["seed_std"]) == (1, "pairs", None)
    assert mean_effect(values[None]) == found


def test_mean_squares_are_those_of_the_two_way_anova() -> None:
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    data = drawn(np.random.default_rng(1), (4, 12), 0.5, 1.0)
    seeds, pairs = np.indices(data.shape)
    table = pd.DataFrame({"y": data.ravel(), "seed": seeds.ravel(), "pair": pairs.ravel()})
    anova = anova_lm(smf.ols("y ~ C(seed) + C(pair)", table).fit())
    squares = mean_squares(data)
    found = [squares.over_seeds, squares.over_conversations, squares.residual]
    assert [float(x) for x in found] == pytest.approx((anova.sum_sq / anova.df).to_list())


@pytest.mark.filterwarnings("ignore")
def test_standard_errors_are_those_of_a_mixed_model_where_seeds_are_many() -> None:
    """With 30 seeds, what the mean squares leave uncertain hardly matters."""
    import statsmodels.api as sm

    data = drawn(np.random.default_rng(2), (30, 25), 0.6, 0.8) + 0.2
    seeds, pairs = np.indices(data.shape)
    table = pd.DataFrame({"y": data.ravel(), "seed": seeds.ravel(), "pair": pairs.ravel()})
    parts = {"seed": "0 + C(seed)", "pair": "0 + C(pair)"}
    model = sm.MixedLM.from_formula("y ~ 1", table, groups=np.ones(data.size), vc_formula=parts)
    fitted = model.fit(reml=True)
    found = mean_effect(data)
    assert found["mean"] == pytest.approx(fitted.params["Intercept"])
    assert found["high"] is not None
    half = found["high"] - found["mean"]
    assert half == pytest.approx(stats.t.ppf(0.975, 24) * fitted.bse["Intercept"], rel=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_generalized_p_by_scipys_integral(seeds: int) -> None:
    data = drawn(np.random.default_rng(seeds), (seeds, 100), 0.3, 0.5) + 0.2
    squares = mean_squares(data)
    over_seeds, over_pairs, residual = map(float, squares[1:4])

    def tail(seed_share: float, pair_share: float) -> float:
        between = max(over_seeds * (seeds - 1) / stats.chi2.ppf(seed_share, seeds - 1), residual)
        pairs = max(over_pairs * 99 / stats.chi2.ppf(pair_share, 99) - residual, 0)
        return float(stats.norm.sf(data.mean() / math.sqrt((between + pairs) / data.size)))

    middles = (np.arange(9) + 0.5) / 9
    points = [1e-6, 1e-4, 1e-2]
    expected = np.mean(
        [integrate.quad(tail, 0, 1, args=(q,), points=points, limit=200)[0] for q in middles]
    )
    assert float(p_above(squares)) == pytest.approx(expected, rel=0.01)


def test_interval_and_p_agree_at_every_level() -> None:
    squares = mean_squares(drawn(np.random.default_rng(3), (50, 4, 60), 0.2, 0.5) + 0.1)
    for confidence in (0.8, 0.95, 0.99):
        outside = np.abs(squares.mean) > half_width(squares, confidence)
        assert (outside == (p_value(squares) < 1 - confidence)).all()
    assert p_above(squares, 0.1) + p_above(squares._replace(mean=0.2 - squares.mean), 0.1) == (
        pytest.approx(np.ones(50))
    )


def test_pairs_of_a_conversation_are_one() -> None:
    """Five copies of each pair tell as much as the pair, and no label is a conversation each."""
    data = drawn(np.random.default_rng(4), (3, 40), 0.1, 1.0)
    labels = [f"c{i}" for i in range(40)]
    copied = mean_effect(np.repeat(data, 5, axis=1), np.repeat(labels, 5).tolist())
    alone = mean_effect(data)
    assert {k: v for k, v in copied.items() if k != "pairs"} == pytest.approx(
        {k: v for k, v in alone.items() if k != "pairs"}
    )
    assert mean_effect(data, labels) == alone
    order = np.random.default_rng(5).permutation(200)
    shuffled = np.repeat(data, 5, axis=1)[:, order]
    assert mean_effect(shuffled, np.repeat(labels, 5)[order].tolist()) == pytest.approx(copied)


def test_the_mean_counts_pairs_not_conversations() -> None:
    data = np.array([[1.0] * 10 + [0.0] * 8])
    found = mean_effect(data, ["big"] * 10 + [f"c{i}" for i in range(8)])
    assert found["mean"] == pytest.approx(10 / 18)
    assert (found["pairs"], found["conversations"]) == (18, 9)
    # The linearized standard error of a ratio of means, as survey statistics has it
    totals = np.array([10 * (1 - 10 / 18)] + [-10 / 18] * 8) * 9 / 18
    half = stats.t.ppf(0.975, 8) * math.sqrt((totals**2).sum() / 8 / 9)
    assert found["high"] == pytest.approx(found["mean"] + half, rel=1e-4)


def test_too_little_has_no_interval() -> None:
    few = mean_effect(np.ones((6, 4)))
    assert (few["mean"], few["low"], few["high"], few["p"]) == (1.0, None, None, None)
    grouped = mean_effect(np.random.default_rng(6).normal(size=(3, 90)), [*"abc"] * 30)
    assert (grouped["low"], grouped["conversations"]) == (None, 3)


def test_no_spread() -> None:
    nothing = mean_effect(np.zeros((3, 20)))
    assert (nothing["low"], nothing["high"], nothing["p"]) == (0.0, 0.0, 1.0)
    same = mean_effect(np.full((3, 20), 0.5))
    assert (same["low"], same["high"], same["p"]) == (0.5, 0.5, 0.0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="missing"):
        mean_effect(np.array([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="3 conversations for 2 pairs"):
        mean_effect(np.ones((2, 2)), ["a", "b", "c"])


@pytest.mark.parametrize(("seeds", "seed_std"), [(2, 0.0), (2, 0.5), (3, 0.2), (6, 0.1), (6, 0.5)])
def test_no_effect_is_found_in_at_most_one_study_in_twenty(seeds: int, seed_std: float) -> None:
    """Over seeds and pairs. Over pairs alone, as before, it is found far more often."""
    rng = np.random.default_rng(7)
    data = drawn(rng, (1000, seeds, 100), seed_std, 0.6)
    assert (p_value(mean_squares(data)) < 0.05).mean() < stats.binom.ppf(0.999, 1000, 0.05) / 1000
    if seed_std > 0.1:
        assert (stats.ttest_1samp(data.mean(1), 0, axis=1).pvalue < 0.05).mean() > 0.2
