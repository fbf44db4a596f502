"""What patched runs say: m of each pair, recovery with its interval, which layers a LASSO keeps."""

import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from hialign.probes.common import ProbePair
from hialign.probes.patched_runs import LogProbs
from hialign.statistics import pooled_interval, ratio_interval

VERSIONS = ("summed", "normalized")  # of m: nats, and nats a token of each response
Margins = dict[str, list[float]]  # version -> m of each pair
STABLE = 0.8  # share of resamples; Meinshausen and Bühlmann (2010) advise 0.6 to 0.9
FOLDS = 5
PAIRS_A_LAYER = 2  # a regression on as many columns as rows fits anything


def kin(pairs: Sequence[ProbePair]) -> list[str]:
    return [pair.prompt for pair in pairs]


def lengths(pair: ProbePair) -> tuple[int, int]:
    """Tokens of the chosen and the rejected response."""
    chosen, rejected = (len(t.ids) - max(t.start, 1) for t in pair.tokens)
    return chosen, rejected


def tokens_of(pairs: Sequence[ProbePair]) -> int:
    """Tokens of all sequences, each by itself."""
    return sum(len(t.ids) for pair in pairs for t in pair.tokens)


def margins(values: LogProbs, pairs: Sequence[ProbePair]) -> Margins:
    """m of each pair from its two log-probabilities, in nats and in nats a token."""
    both = [(c, r, *lengths(pair)) for (c, r), pair in zip(values, pairs, strict=True)]
    return {
        "summed": [c - r for c, r, _, _ in both],
        "normalized": [c / n - r / k for c, r, n, k in both],
    }


def rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 6) for value in values]


def estimate(value: float, ends: tuple[float, float], n: int) -> dict[str, Any]:
    """An estimate as records hold it; no interval where there is none."""
    low, high = (None if math.isnan(end) else end for end in ends)
    return {"estimate": value, "low": low, "high": high, "n": n}


def difference(
    base: Sequence[float],
    tuned: Sequence[float],
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What there is to recover: the mean of m_tuned - m_base, and a `reason` where it may be none."""
    values = np.subtract(tuned, base)
    mean = float(values.mean())
    found = estimate(
        mean, pooled_interval(list(values), prompts, resamples, seed=seed), len(values)
    )
    low, high, reason = found["low"], found["high"], None
    if low is None:
        reason = "no interval: the pairs have fewer than two different prompts"
    elif low <= 0 <= high:
        reason = (
            f"no difference to recover: the mean of m_tuned - m_base is {mean:.3g} nats, with "
            f"0 in its 95% interval ({low:.3g} to {high:.3g})"
        )
    return found | {"reason": reason}


def recovery(
    patched: Sequence[float],
    receiver: Sequence[float],
    donor: Sequence[float],
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """mean(m_patched - m_receiver) / mean(m_donor - m_receiver), with its interval over prompts."""
    over, under = np.subtract(patched, receiver), np.subtract(donor, receiver)
    ends = ratio_interval(list(over), list(under), prompts, resamples, seed=seed)
    return estimate(float(over.sum() / under.sum()), ends, len(over))


def lasso(
    distances: np.ndarray,
    gains: np.ndarray,
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Which layers' distances (pairs x layers) predict the gains m_tuned - m_base (nats).

    Columns are standardized. `alpha` by cross-validation, in which a prompt's pairs stay together;
    `coefficients` (nats for a standard deviation) on all pairs; `stability`: the share of bootstrap
    samples of prompts in which a layer's coefficient is not 0 at that alpha; `stable`: those with
    `STABLE` at least; `r2`: 1 - cross-validated error over that of the mean;
    `largest_correlation` of two columns, `neighbour_correlation` of layers l and l + 1: where it is
    near 1, the choice between them is arbitrary. `reason` where nothing was found.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso, LassoCV
    from sklearn.model_selection import GroupKFold

    pairs, layers = distances.shape
    _, groups = np.unique([str(p) for p in prompts], return_inverse=True)
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
    spread = distances.std(0)
    varies = spread > 1e-9 * max(float(np.abs(distances).max()), 1e-300)
    if pairs < PAIRS_A_LAYER * layers or groups.max() + 1 < FOLDS:
        need = f"{PAIRS_A_LAYER * layers} pairs ({PAIRS_A_LAYER} a layer) of {FOLDS} prompts"
        has = f"{pairs} of {groups.max() + 1}"
        return nothing | {
            "reason": f"too few pairs for the regression: it needs {need}, and there are {has}; "
            "raise probes.pairs"
        }
    if not varies.any() or np.ptp(gains) < 1e-9 * max(1.0, float(np.abs(gains).max())):
        return nothing | {"reason": "nothing found: base and tuned do not differ from pair to pair"}
    columns = np.zeros_like(distances, dtype=float)
    columns[:, varies] = (distances - distances.mean(0))[:, varies] / spread[varies]
    y = gains - gains.mean()
    shuffled = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        folds = list(GroupKFold(FOLDS).split(columns, y, shuffled))
        chosen = LassoCV(cv=folds, max_iter=20_000).fit(columns, y)
        draw, kept = np.random.default_rng(seed), np.zeros(layers)
        members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
        for _ in range(resamples):
            drawn = draw.integers(0, len(members), len(members))
            rows = np.concatenate([members[g] for g in drawn])
            kept += (
                Lasso(alpha=chosen.alpha_, max_iter=20_000).fit(columns[rows], y[rows]).coef_ != 0
            )
    errors = chosen.mse_path_.mean(1)
    correlation = np.full((layers, layers), np.nan)
    inside = np.flatnonzero(varies)
    correlation[np.ix_(inside, inside)] = np.corrcoef(columns[:, inside].T)
    beside = [float(correlation[i, i + 1]) for i in range(layers - 1)]
    off = np.abs(correlation[~np.eye(layers, dtype=bool)])
    stability = kept / resamples
    found = bool(np.any(chosen.coef_))
    return nothing | {
        "alpha": float(chosen.alpha_),
        "r2": float(1 - errors.min() / errors[0]),  # the path begins where all coefficients are 0
        "coefficients": [float(c) for c in chosen.coef_],
        "stability": [float(s) for s in stability],
        "stable": [int(i) for i in np.flatnonzero(stability >= STABLE)] if found else [],
        "largest_correlation": None if np.isnan(off).all() else float(np.nanmax(off)),
        "neighbour_correlation": [None if math.isnan(c) else c for c in beside],
        "reason": None if found else "nothing found: no layer's distance predicts the gain",
    }
