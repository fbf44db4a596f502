"""Prediction from a few random draws: statsmodels' interval for one layer, its coverage for many."""

import numpy as np
import pytest

from hialign.statistics.nulls import null_interval, null_p, prediction


def test_one_layer_is_statsmodels_prediction_interval() -> None:
    import statsmodels.api as sm

    draws = np.random.default_rng(1).normal(2, 3, (6, 1))
    fitted = sm.OLS(draws[:, 0], np.ones(6)).fit().get_prediction([1.0])
    expected = fitted.conf_int(obs=True, alpha=0.05)[0]
    one = np.ones(1)
    assert null_interval(draws, one) == pytest.approx(tuple(expected))
    # p at an end of the interval is 5%, and half of that on one side
    low, high = expected
    assert null_p(high, draws, one) == pytest.approx(0.05)
    assert null_p(low, draws, one) == pytest.approx(0.05)
    assert null_p(high, draws, one, "greater") == pytest.approx(0.025)
    assert null_p(low, draws, one, "greater") == pytest.approx(0.975)


def test_degrees_of_freedom_add_up() -> None:
    draws = np.tile(np.array([[1.0], [-1.0], [0.5]]), (1, 8))
    assert prediction(draws, np.full(8, 1 / 8))[2] == pytest.approx(8 * 2)
    weights = np.zeros(8)
    weights[3] = 5
    assert prediction(draws, weights)[2] == pytest.approx(2)


def test_it_covers_one_more_draw_of_layers_of_unequal_size() -> None:
    rng = np.random.default_rng(2)
    sizes, weights = np.geomspace(0.1, 3, 20), np.repeat([0.1, -0.1], 10)
    inside = 0
    for _ in range(2_000):
        every = 0.3 + sizes * rng.standard_normal((4, 20))
        low, high = null_interval(every[:3], weights)
        inside += low <= every[3] @ weights <= high
    assert 0.93 < inside / 2_000 < 0.99  # Satterthwaite's degrees of freedom err on the safe side


def test_a_constant_null_has_no_p() -> None:
    draws = np.zeros((3, 4))
    assert np.isnan(null_p(1.0, draws, np.ones(4)))
    assert null_interval(draws, np.ones(4)) == (0, 0)
