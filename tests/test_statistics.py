"""Intervals against scipy, statsmodels and hand computation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from hialign.statistics import (
    against_base,
    interval_text,
    mean_interval,
    pooled_interval,
    wilson,
)


def test_wilson() -> None:
    assert wilson(7, 10) == pytest.approx(proportion_confint(7, 10, method="wilson"))
    assert wilson(7.5, 10)[0] < 0.75 < wilson(7.5, 10)[1]
    assert all(math.isnan(end) for end in wilson(0, 0))
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
    grouped, pooled = mean_interval(values, groups), pooled_interval(values, groups)
    alone = mean_interval(values)
    assert grouped == pytest.approx(mean_interval(list(means)), abs=0.01)
    assert grouped == pytest.approx(pooled, abs=0.02)
    assert grouped[1] - grouped[0] > 1.8 * (alone[1] - alone[0])  # five copies are no five values


def test_pooled_interval_belongs_to_the_plain_mean() -> None:
    """Half of the groups lack the low value: the mean of group means is another quantity."""
    rng = np.random.default_rng(2)
    values, groups = [], []
    for group in range(200):
        values.append(4 + 0.1 * rng.standard_normal())
        groups.append(group)
        if group % 2:
            values.append(1 + 0.1 * rng.standard_normal())
            groups.append(group)
    mean = float(np.mean(values))
    low, high = pooled_interval(values, groups)
    assert low < mean < high
    other = mean_interval(values, groups)
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


@pytest.mark.parametrize("interval", [mean_interval, pooled_interval])
def test_intervals_of_too_little(interval: object) -> None:
    assert callable(interval)
    assert all(math.isnan(end) for end in interval([], []))
    assert all(math.isnan(end) for end in interval([1.0, 2.0], ["a", "a"]))
    assert interval([2.0, 2.0, 2.0], ["a", "b", "c"]) == (2.0, 2.0)


@pytest.mark.parametrize("interval", [mean_interval, pooled_interval])
def test_the_same_draws_each_time(interval: object) -> None:
    assert callable(interval)
    values, groups = [1.0, 2.0, 4.0, 3.5], list("abcd")
    assert interval(values, groups) == interval(values, groups)


def test_against_base_pairs_by_model_and_prompt() -> None:
    rows = [
        ("m", "base", "p1", 2.0),
        ("m", "base", "p2", 3.0),
        ("m", "base", "p3", math.nan),
        ("n", "base", "p1", 1.0),
        ("m", "mid", "p2", 5.0),
        ("m", "mid", "p1", math.nan),
        ("m", "mid", "p3", 4.0),
        ("n", "mid", "p1", 2.5),
        ("n", "mid", "p2", 2.0),
    ]
    frame = pd.DataFrame(rows, columns=["model", "block", "prompt_id", "score"])
    found = against_base(frame, "mid")
    pairs = dict(zip(zip(found.model, found.prompt_id, strict=True), found.score, strict=True))
    assert pairs == {("m", "p2"): 2.0, ("n", "p1"): 1.5}
    assert against_base(frame, "base").empty
    assert against_base(frame, "global").empty


def test_interval_text() -> None:
    assert interval_text(-0.1234, 0.5) == "−0.123 to 0.500"
    assert interval_text(0.00011, 0.0002, 4) == "0.0001 to 0.0002"
    assert interval_text(None, 1.0) is None
    assert interval_text(math.nan, math.nan) is None
