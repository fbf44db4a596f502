"""Which layers' activation distances predict what tuning gained: a LASSO with stability selection.

A layer's distances are nearly those of the layer below it, so which of a group of alike columns is
kept is close to chance: hence the stability over bootstrap samples, and the columns' correlations.
"""

import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LassoCV
from sklearn.model_selection import GroupKFold

STABLE = 0.8  # share of resamples; Meinshausen and Bühlmann (2010) advise 0.6 to 0.9
FOLDS = 5
PAIRS_A_LAYER = 2  # a regression on as many columns as rows fits anything
# Alphas, as shares of the least at which nothing is kept: so far above 1 no fold keeps any either
PATH = np.geomspace(4, 1e-3, 50)
ITERATIONS = 50_000  # alike columns converge slowly


def lasso(
    distances: np.ndarray,
    gains: np.ndarray,
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Which layers' distances (pairs x layers) predict the gains m_tuned - m_base (nats).

    Columns are standardized. `alpha` by cross-validation, in which a prompt's pairs stay together:
    the largest within one standard error of the least error (Hastie et al., 2009, 7.10), as the least
    itself often keeps columns of pure noise;
    `coefficients` (nats for a standard deviation) on all pairs; `stability`: the share of bootstrap
    samples of prompts in which a layer's coefficient is not 0 at that alpha; `stable`: those with
    `STABLE` at least; `r2`: 1 - cross-validated error over that of the mean;
    `largest_correlation` of two columns, `neighbour_correlation` of layers l and l + 1: where it is
    near 1, the choice between them is arbitrary. `reason` where nothing was found, or where the
    pairs are too few to ask.
    """
    pairs, layers = distances.shape
    names, groups = np.unique([str(p) for p in prompts], return_inverse=True)
    nothing: dict[str, Any] = {
        "n": pairs,
        "alpha": None,
        "r2": None,
        "coefficients": None,
        "stability": None,
        "stable": [],
        "largest_correlation": None,
        "neighbour_correlation": None,
    }
    if pairs < PAIRS_A_LAYER * layers or len(names) < FOLDS:
        return nothing | {
            "reason": f"too few pairs for the regression: it needs {PAIRS_A_LAYER * layers} pairs "
            f"({PAIRS_A_LAYER} a layer) of {FOLDS} prompts, and there are {pairs} of {len(names)}; "
            "raise probes.pairs"
        }
    spread = distances.std(0)
    varies = spread > 1e-9 * max(float(np.abs(distances).max()), 1e-300)
    if not varies.any() or np.ptp(gains) < 1e-9 * max(1.0, float(np.abs(gains).max())):
        return nothing | {"reason": "nothing found: base and tuned do not differ from pair to pair"}
    columns = np.zeros_like(distances, dtype=float)
    columns[:, varies] = (distances - distances.mean(0))[:, varies] / spread[varies]
    alphas = PATH * float(np.abs(columns.T @ (gains - gains.mean())).max() / pairs)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(columns, gains, groups)
    members = [np.flatnonzero(groups == g) for g in range(len(names))]
    draw, kept = np.random.default_rng(seed), np.zeros(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = LassoCV(alphas=alphas, cv=list(folds), max_iter=ITERATIONS).fit(columns, gains)
        errors = fit.mse_path_.mean(1)  # from the largest alpha on
        margin = fit.mse_path_.std(1, ddof=1) / np.sqrt(FOLDS)
        least = errors.argmin()
        chosen = int(np.argmax(errors <= errors[least] + margin[least]))
        one = Lasso(alpha=float(fit.alphas_[chosen]), max_iter=ITERATIONS)
        coefficients = one.fit(columns, gains).coef_.copy()
        for _ in range(resamples):
            rows = np.concatenate([members[g] for g in draw.integers(0, len(names), len(names))])
            kept += one.fit(columns[rows], gains[rows]).coef_ != 0
    found, stability = bool(np.any(coefficients)), kept / resamples
    return (
        nothing
        | _correlations(columns, varies)
        | {
            "alpha": one.alpha,
            "r2": float(1 - errors[chosen] / errors[0]),  # at the first alpha all are 0
            "coefficients": [float(c) for c in coefficients],
            "stability": [float(s) for s in stability],
            "stable": [int(i) for i in np.flatnonzero(stability >= STABLE)] if found else [],
            "reason": None if found else "nothing found: no layer's distance predicts the gain",
        }
    )


def _correlations(columns: np.ndarray, varies: np.ndarray) -> dict[str, Any]:
    layers, inside = len(varies), np.flatnonzero(varies)
    found = np.full((layers, layers), np.nan)
    found[np.ix_(inside, inside)] = np.corrcoef(columns[:, inside].T)
    apart = np.abs(found[~np.eye(layers, dtype=bool)])
    beside = [float(found[i, i + 1]) for i in range(layers - 1)]
    return {
        "largest_correlation": None if np.isnan(apart).all() else float(np.nanmax(apart)),
        "neighbour_correlation": [None if np.isnan(c) else c for c in beside],
    }
