"""Held-out log loss of the preference: how well margins, at their best temperature, predict it.

    loss = -log sigmoid(slope * margin), in nats

A model that knows nothing has a loss of log 2, and Base, whose margins are all zero, has exactly that.
The slope (one over the temperature) is fitted on other conversations, so a larger margin alone earns
nothing. Only how surely the margins rank pairs does. `gain` is log 2 minus the loss.

The slope is not below zero: a training that ranks pairs the wrong way round has learned nothing. It is
fitted as though there were two more pairs at the typical margin, one ranked right and one wrong. That
keeps it finite where all pairs are ranked right. The prior on the slope is the log-F(2, 2) of Greenland
and Mansournia (2015), here in units of the root mean square of the margins.
"""

from collections.abc import Hashable, Sequence

import numpy as np

CHANCE = float(np.log(2))  # nats, the loss of a model that knows nothing
FOLDS = 5


def cross_fitted_losses(
    margins: np.ndarray, conversations: Sequence[Hashable], folds: int = FOLDS, seed: int = 42
) -> np.ndarray:
    """Each pair's log loss, at the slope that fits the pairs of the other folds.

    All pairs of a conversation are in one fold. The folds depend on the labels, `folds` and `seed`
    alone, so strategies and seeds can be compared pair by pair. Each training seed has its own slopes.

    Args:
        margins: [pair] or [seed, pair], the implicit-reward margins in nats. Any unit gives the same.
        conversations: a label per pair.
        folds: how many. Fewer if there are fewer conversations.
        seed: of the folds.

    Returns:
        The losses in nats, with the shape of `margins`.

    Raises:
        ValueError: margins are missing, labels do not match, or there is a single conversation.
    """
    data = np.asarray(margins, dtype=float)
    losses = np.empty(data.shape)
    for train, test in _folds(data, conversations, folds, seed):
        slopes = fitted_slopes(data[..., train])
        losses[..., test] = np.logaddexp(0, -slopes[..., None] * data[..., test])
    return losses


def gains(
    margins: np.ndarray, conversations: Sequence[Hashable], folds: int = FOLDS, seed: int = 42
) -> np.ndarray:
    """log 2 minus each pair's cross-fitted log loss, in nats. Arguments as above."""
    return CHANCE - cross_fitted_losses(margins, conversations, folds, seed)


def fitted_slopes(margins: np.ndarray) -> np.ndarray:
    """The slope, at least 0, of a logistic regression without intercept of margins [..., pair].

    The prior's two pairs have the root mean square of the margins. If all margins are zero, so is
    the slope.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    slopes = np.zeros(margins.shape[:-1])
    for place in np.ndindex(slopes.shape):
        typical = float(np.sqrt((margins[place] ** 2).mean()))
        if margins[place].sum() <= 0:  # any slope above zero loses
            continue
        scaled = margins[place] / typical

        def derivative(slope: float, scaled: np.ndarray = scaled) -> float:
            return float(np.tanh(slope / 2) - scaled @ expit(-slope * scaled))  # prior, pairs

        # At a slope of 2 + pairs, the prior outweighs any number of pairs
        slopes[place] = brentq(derivative, 0.0, 2.0 + len(scaled)) / typical
    return slopes


def _folds(
    data: np.ndarray, conversations: Sequence[Hashable], folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of the pairs to fit on and to score, for each fold."""
    from sklearn.model_selection import GroupKFold

    if not np.isfinite(data).all():
        raise ValueError("margins have values that are missing or not finite")
    if len(conversations) != data.shape[-1]:
        raise ValueError(f"{len(conversations)} conversations for {data.shape[-1]} pairs")
    _, groups = np.unique([str(label) for label in conversations], return_inverse=True)
    if groups.max(initial=0) < 1:
        raise ValueError("a temperature cannot be cross-fitted within a single conversation")
    splitter = GroupKFold(min(folds, int(groups.max()) + 1), shuffle=True, random_state=seed)
    return list(splitter.split(groups, groups=groups))
