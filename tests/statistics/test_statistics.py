"""Intervals against scipy, statsmodels and hand computation."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from hialign.statistics.crossed import mean_effect
from hialign.statistics.intervals import (
    difference_interval,
    interval_of_difference,
    interval_text,
    mean_interval,
    p_text,
    pooled_interval,
    prompts_needed,
    ratio_interval,
    smallest_difference,
    unpaired_needed,
    wilson,
)


def test_wilson() -> None:
    assert wilson(7, 10) == pytest.approx(proportion_confint(7, 10, method="wilson"))
    assert wilson(7.5, 10)[0] < 0.75 < wilson(7.5, 10)[1]
    assert all(math.isnan(end) for n in range(5) for end in wilson(n / 2, n))
    assert wilson(2, 5) == pytest.approx(proportion_confint(2, 5, method="wilson"))
    low, high = wilson(10, 10)
    assert low < 1
    assert high == pytest.approx(1)


def test_mean_interval_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = mean_interval(list(values))
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(1)
    means = rng.normal(0, 1, 60)
    values, groups = list(np.repeat(means, 5)), list(np.repeat(np.arange(60), 5))
    grouped, alone = pooled_interval(values, groups), mean_interval(values)
    assert grouped == pytest.approx(mean_interval(list(means)), abs=0.02)
    assert grouped[1] - grouped[0] > 1.8 * (alone[1] - alone[0])  # five copies are no five values


def test_pooled_interval_belongs_to_the_plain_mean() -> None:
    """Half of the groups lack the low value: the mean of group means is another quantity."""
    rng = np.random.default_rng(2)
    by_group = {
        group: [level + 0.1 * rng.standard_normal() for level in ((4, 1) if group % 2 else (4,))]
        for group in range(200)
    }
    values = [value for group in by_group.values() for value in group]
    groups = [group for group, own in by_group.items() for _ in own]
    mean = float(np.mean(values))
    low, high = pooled_interval(values, groups)
    assert low < mean < high
    other = mean_interval([np.mean(v) for v in by_group.values()])
    assert not other[0] < mean < other[1]


def test_pooled_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        effects = rng.normal(0, 1, 40)
        sizes = rng.integers(1, 4, 40)
        groups = np.repeat(np.arange(40), sizes)
        values = effects[groups] + rng.normal(0, 1, len(groups))
        low, high = pooled_interval(list(values), list(groups), resamples=400)
        covered += low < 0 < high
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_of_too_little() -> None:
    """Fewer than five units have no interval, however many values they have."""
    few, labels = [1.0, 2.0, 4.0, 3.0], list("abcd")
    too_little = [mean_interval(few[:n]) for n in range(5)]
    too_little += [pooled_interval(few * 3, labels * 3), difference_interval(few * 3, labels * 3)]
    too_little += [ratio_interval(few, few[::-1], labels), pooled_interval(few, labels, of="std")]
    too_little += [pooled_interval([], []), difference_interval([], [])]
    assert all(math.isnan(end) for ends in too_little for end in ends)
    five = [*few, 2.5]
    for ends in (mean_interval(five), difference_interval(five, range(5))):
        assert ends[0] < np.mean(five) < ends[1]
    equal = [2.0] * 5
    assert mean_interval(equal) == difference_interval(equal, range(5)) == (2.0, 2.0)


@pytest.mark.parametrize("n", [5, 16, 200])
def test_differences_have_students_t(n: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert difference_interval(list(values), range(n)) == pytest.approx(expected)
    copied = difference_interval(list(np.repeat(values, 3)), list(np.repeat(np.arange(n), 3)))
    assert copied == pytest.approx(expected)


def test_differences_in_groups_of_unequal_size_have_statsmodels_clustered_error() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(9)
    groups = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    values = rng.normal(0, 1, 40)[groups] + rng.normal(0, 1, len(groups))
    fitted = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}, use_t=True
    )
    half = stats.t.ppf(0.975, 39) * float(fitted.bse[0]) * math.sqrt(40 / 39)
    low, high = difference_interval(list(values), list(groups))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))
    crossed = mean_effect(values, list(groups))
    assert (crossed["low"], crossed["high"]) == pytest.approx((low, high), abs=1e-6)


def test_students_t_covers_few_differences_better_than_the_bootstrap() -> None:
    rng = np.random.default_rng(10)
    covered = {"t": 0, "bootstrap": 0}
    for _ in range(400):
        values = list(rng.standard_t(3, 16))
        for name, (low, high) in (
            ("t", difference_interval(values, range(16))),
            ("bootstrap", mean_interval(values, resamples=300)),
        ):
            covered[name] += low < 0 < high
    assert covered["t"] > covered["bootstrap"]
    assert covered["t"] / 400 > 0.93


def test_the_same_draws_each_time() -> None:
    values, groups = [1.0, 2.0, 4.0, 3.5, 2.2], list("abcde")
    assert mean_interval(values) == mean_interval(values)
    assert pooled_interval(values, groups) == pooled_interval(values, groups)


def test_interval_text() -> None:
    assert interval_text(-0.1234, 0.5) == "−0.123 to 0.500"
    assert interval_text(0.00011, 0.0002, 4) == "0.0001 to 0.0002"
    assert interval_text(None, 1.0) is None
    assert interval_text(math.nan, math.nan) is None


def test_intervals_of_few_groups_are_expanded() -> None:
    """At 16 groups the level is that of Hesterberg's (2015) equation; scipy draws the rest."""
    values = np.random.default_rng(7).exponential(1, 16)
    level = 1 - 2 * stats.norm.sf(math.sqrt(16 / 15) * stats.t.ppf(0.975, 15))
    assert level == pytest.approx(0.9723, abs=1e-4)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=50_000, rng=np.random.default_rng(8)
    ).confidence_interval
    found = mean_interval(list(values), resamples=50_000)
    assert found == pytest.approx(tuple(expected), abs=0.02)
    plain = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(8)).confidence_interval
    assert found[0] < plain.low < plain.high < found[1]
    assert all(map(math.isfinite, mean_interval([1.0, 2.0, 1.5, 1.2, 0.3])))


def test_interval_of_a_standard_deviation() -> None:
    values = np.random.default_rng(4).integers(1, 6, 300).astype(float)
    low, high = pooled_interval(list(values), range(300), of="std")
    expected = stats.bootstrap(
        (values,), lambda v, axis: v.std(axis=axis, ddof=1), rng=np.random.default_rng(5)
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.01)
    assert low < values.std(ddof=1) < high
    assert pooled_interval(
        [1, 3] * 5, np.repeat([*"abcde"], 2).tolist(), of="std"
    ) == pytest.approx((np.std([1, 3] * 5, ddof=1),) * 2)


def test_the_interval_of_a_difference_of_normal_means_is_the_usual_one() -> None:
    z = stats.norm.ppf(0.975)
    found = interval_of_difference(3, (3 - z * 0.3, 3 + z * 0.3), 1, (1 - z * 0.4, 1 + z * 0.4))
    assert found == pytest.approx(stats.norm.interval(0.95, 2, 0.5))
    skewed = interval_of_difference(3, (2, 5), 1, (1, 1))
    assert skewed == pytest.approx((1, 4))
    assert all(map(math.isnan, interval_of_difference(3, (math.nan, math.nan), 1, (1, 1))))


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 30])
@pytest.mark.parametrize("effect", [0.005, 0.02, 0.1, 0.3, 0.8])
def test_prompts_needed_have_the_power_and_one_less_has_not(effect: float, alpha: float) -> None:
    from statsmodels.stats.power import TTestPower

    def power(prompts: float) -> float:
        return float(TTestPower().power(effect, prompts, alpha / 2, alternative="larger"))

    n = prompts_needed(-effect * 1.3, 1.3, alpha=alpha)
    assert power(n) >= 0.8
    assert power(n - 1) < 0.8
    shown = smallest_difference(n, 1.3, alpha=alpha)
    assert shown == pytest.approx(effect * 1.3, rel=0.04)  # n is whole
    # By simulation of noncentral t, which no library of power wrote
    rng = np.random.default_rng(6)
    t = stats.nct.rvs(n - 1, effect * math.sqrt(n), size=4000, random_state=rng)
    assert (np.abs(t) > stats.t.isf(alpha / 2, n - 1)).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("prompts", [2, 3, 6, 16])
def test_the_smallest_difference_of_few_prompts_has_its_power(prompts: int) -> None:
    """Where statsmodels' search gives up and returns where it stopped."""
    alpha = 0.05 / 60
    shown = smallest_difference(prompts, 0.7, 0.8, alpha)
    ncp = shown / 0.7 * math.sqrt(prompts)
    rejected = stats.nct.sf(stats.t.isf(alpha / 2, prompts - 1), prompts - 1, ncp)
    assert rejected == pytest.approx(0.8, abs=1e-4)
    assert shown > smallest_difference(prompts, 0.7)


def test_prompts_needed_for_next_to_nothing_are_those_of_the_normal() -> None:
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    for effect in (0.0017, 1e-6):  # statsmodels' power no longer tells such numbers apart
        assert prompts_needed(effect, 1) == pytest.approx((z / effect) ** 2, rel=1e-5)


def test_power_of_nothing() -> None:
    for difference, std in ((0, 1), (0.1, 0), (math.nan, 1), (0.1, math.nan)):
        assert math.isnan(prompts_needed(difference, std))
    assert math.isnan(smallest_difference(1, 1.0))
    assert math.isnan(smallest_difference(16, math.nan))
    assert prompts_needed(5, 1) == 6  # with five, Wilcoxon's p is 1/16 at best
    assert prompts_needed(50, 1, alpha=0.001) == 11  # with ten, it is 1/512
    assert unpaired_needed(0.3, (1, 1), alpha=0.001) > unpaired_needed(0.3, (1, 1))
    assert unpaired_needed(0.302, (1.253, 1.340)) == math.ceil(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * (1.253**2 + 1.340**2) / 0.302**2
    )


def test_p_text() -> None:
    assert p_text(0.0009) == "< 0.001"
    assert p_text(0.0321) == "0.032"
    assert p_text(1.0) == "1.000"
    assert p_text(None) is None
    assert p_text(math.nan) is None


def test_where_bca_has_no_answer_percentiles_stand_in_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = pooled_interval([1.0, 4.0] * 3, [*"abcdef"], of="std", resamples=500)
    assert 0 <= low <= high <= np.std([1, 4], ddof=1) + 1e-9
