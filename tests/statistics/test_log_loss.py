"""The cross-fitted log loss against scikit-learn, and on planted and empty margins."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from hialign.statistics.log_loss import CHANCE, cross_fitted_losses, fitted_slopes, gains

# but for what other tests of the process left open
pytestmark = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
RNG = np.random.default_rng(0)
MARGINS = RNG.normal(0.3, 1, (3, 200))
LABELS = [f"c{i // 2}" for i in range(200)]


@pytest.mark.filterwarnings("ignore")
def test_the_slope_is_scikit_learns_with_the_two_pairs_of_the_prior() -> None:
    for margins in (MARGINS[0], np.abs(MARGINS[1]), np.ones(10)):
        typical = math.sqrt((margins**2).mean())
        ahead = np.array([*margins, typical, -typical])
        model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
        model.fit(np.array([*ahead, *-ahead])[:, None], np.repeat([1, 0], len(ahead)))
        assert float(fitted_slopes(margins)) == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_the_loss_is_scikit_learns_where_the_slope_is_known() -> None:
    """With many pairs that follow the model, each fold finds the slope that made them."""
    x = np.abs(RNG.normal(0, 2, 20_000))
    margins = np.where(RNG.random(20_000) < expit(0.7 * x), x, -x)
    found = cross_fitted_losses(margins, range(20_000))
    expected = log_loss(margins > 0, expit(0.7 * x))
    assert found.mean() == pytest.approx(expected, abs=0.002)


def test_a_larger_margin_alone_earns_nothing() -> None:
    losses = cross_fitted_losses(MARGINS, LABELS)
    for factor in (10, 1e-6):
        assert cross_fitted_losses(factor * MARGINS, LABELS) == pytest.approx(losses)


def test_ranks_that_are_surer_earn_more() -> None:
    noise = RNG.normal(0, 1, 400)
    found = [gains(shift + noise, range(400)).mean() for shift in (0.2, 0.6, 1.2)]
    assert 0 < found[0] < found[1] < found[2] < CHANCE


def test_base_has_exactly_chance() -> None:
    assert (cross_fitted_losses(np.zeros((2, 50)), range(50)) == math.log(2)).all()


@pytest.mark.parametrize("pairs", [50, 300])
def test_noise_is_not_better_than_chance(pairs: int) -> None:
    found = gains(RNG.normal(0, 1, (400, pairs)), range(pairs)).mean()
    assert -0.5 / pairs * 1.5 < found < 0


def test_ranks_that_are_reversed_earn_nothing() -> None:
    assert (gains(-np.abs(MARGINS), LABELS) == 0).all()


def test_pairs_that_are_all_ranked_right_have_a_finite_slope() -> None:
    right = np.abs(MARGINS) + 0.01
    assert np.isfinite(fitted_slopes(right)).all()
    assert gains(right, LABELS).mean() > 0.4


def test_no_fold_sees_its_own_pairs() -> None:
    """Changing a conversation's margins leaves the slopes of its own fold, and so other losses there."""
    before = cross_fitted_losses(MARGINS[0], LABELS)
    changed = MARGINS[0].copy()
    changed[:2] = 50.0
    after = cross_fitted_losses(changed, LABELS)
    same = np.isclose(before[2:], after[2:])
    assert 30 < same.sum() < 50  # its fold holds a fifth of the 200 pairs
    assert all(same[i] == same[i + 1] for i in range(0, 198, 2))  # conversations stay whole


def test_seeds_have_slopes_of_their_own_and_the_same_folds() -> None:
    together = cross_fitted_losses(MARGINS, LABELS)
    for margins, losses in zip(MARGINS, together, strict=True):
        assert cross_fitted_losses(margins, LABELS) == pytest.approx(losses)
    other = cross_fitted_losses(MARGINS, LABELS, seed=1)
    assert not np.allclose(other, together)
    assert other.mean() == pytest.approx(together.mean(), abs=0.01)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="missing"):
        gains(np.array([1.0, math.nan]), ["a", "b"])
    with pytest.raises(ValueError, match="1 conversations for 2 pairs"):
        gains(np.ones(2), ["a"])
    with pytest.raises(ValueError, match="single conversation"):
        gains(np.ones(2), ["a", "a"])
