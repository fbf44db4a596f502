"""Which layers' activation distances predict what tuning gained: a LASSO with stability selection.

A layer's distances are nearly those of the layer below it. Which of several similar columns a LASSO
keeps is close to chance. The stability over bootstrap samples and the correlations between columns
show how far this goes.
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
PAIRS_PER_LAYER = 2  # a regression on as many columns as rows fits anything
# Alphas, as shares of the smallest alpha at which no column is kept. At 4, no fold keeps any.
PATH = np.geomspace(4, 1e-3, 50)
ITERATIONS = 50_000  # similar columns converge slowly


def lasso(
    distances: np.ndarray,
    gains: np.ndarray,
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Find the layers whose activation distances predict the gains of tuning.

    Columns are standardized. In cross-validation, a prompt's pairs stay together. The alpha is the
    largest within one standard error of the least error (Hastie et al., 2009, 7.10), as the alpha of
    the least error often keeps columns of pure noise.

    Args:
        distances: pairs x layers, the distances of the two models' states.
        gains: m_tuned - m_base of each pair (nats).
        prompts: the pairs' prompts.
        resamples: the number of bootstrap samples of prompts.
        seed: what draws them and the folds.

    Returns:
        The record, with `n` pairs and these fields, which are None if the `reason` says why:

        - `alpha`, and `r2`, 1 - the cross-validated error over that of the mean.
        - `coefficients` on all pairs (nats per standard deviation).
        - `stability`, the share of samples in which a layer's coefficient is not 0 at that alpha, and
          `stable`, the layers with at least `STABLE`.
        - `largest_correlation` of two columns, and `neighbour_correlation` of layers l and l + 1. The
          choice between two layers is arbitrary if their correlation is near 1.
    """
    pairs, layers = distances.shape
    names, groups = np.unique([str(p) for p in prompts], return_inverse=True)
    figures = "alpha r2 coefficients stability stable largest_correlation neighbour_correlation"
    nothing: dict[str, Any] = {"n": pairs} | dict.fromkeys(figures.split()) | {"stable": []}
    if pairs < PAIRS_PER_LAYER * layers or len(names) < FOLDS:
        return nothing | {
            "reason": f"too few pairs for the regression: it needs {PAIRS_PER_LAYER * layers} pairs "
            f"({PAIRS_PER_LAYER} a layer) of {FOLDS} prompts, and there are {pairs} of {len(names)}; "
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
    rng, counts = np.random.default_rng(seed), np.zeros(layers)
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
            rows = np.concatenate([members[g] for g in rng.integers(0, len(names), len(names))])
            counts += one.fit(columns[rows], gains[rows]).coef_ != 0
    any_layer, stability = bool(np.any(coefficients)), counts / resamples
    return (
        nothing
        | _correlations(columns, varies)
        | {
            "alpha": one.alpha,
            "r2": float(1 - errors[chosen] / errors[0]),  # at the first alpha all are 0
            "coefficients": [float(c) for c in coefficients],
            "stability": [float(s) for s in stability],
            "stable": [int(i) for i in np.flatnonzero(stability >= STABLE)] if any_layer else [],
            "reason": None if any_layer else "nothing found: no layer's distance predicts the gain",
        }
    )


def _correlations(columns: np.ndarray, varies: np.ndarray) -> dict[str, Any]:
    """Correlations between columns, of which those that `varies` marks are not constant."""
    layers, inside = len(varies), np.flatnonzero(varies)
    correlations = np.full((layers, layers), np.nan)
    correlations[np.ix_(inside, inside)] = np.corrcoef(columns[:, inside].T)
    others = np.abs(correlations[~np.eye(layers, dtype=bool)])
    neighbours = [float(correlations[i, i + 1]) for i in range(layers - 1)]
    return {
        "largest_correlation": None if np.isnan(others).all() else float(np.nanmax(others)),
        "neighbour_correlation": [None if np.isnan(c) else c for c in neighbours],
    }
