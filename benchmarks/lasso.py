"""Does a LASSO of gains on activation distances find the layers that were tuned? Why hialign has none.

    python benchmarks/lasso.py [--seeds 40] [--out benchmarks/results/lasso.json]

*Alignment is Localized* says that few layers link the distance between activations to the gain in
reward. Earlier versions of hialign had this regression: of m_tuned - m_base of each pair on the
distances of the two models' states after each layer, standardized. Alpha was the largest within one
standard error of the least cross-validated error. A layer was named if it was kept in 80% of bootstrap
samples at that alpha.

The models are those of benchmarks/swaps.py, with 60 tested pairs. The regression is asked which layers
it names. Exchanging chosen and rejected turns the sign of every gain and coefficient, and so it
always names the same layers for people's preferences as for their opposite.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LassoCV
from sklearn.model_selection import KFold
from swaps import (
    CONDITIONS,
    DEPTH,
    FAMILIES,
    ROW,
    SHARE,
    TRAINED,
    Language,
    adapted,
    fill,
    model_of,
)

from hialign.engine import environment
from hialign.engine.decoder import Decoder
from hialign.engine.tokens import TokenPair
from hialign.probes.patching.rows import rows
from hialign.probes.patching.runs import Side
from hialign.records.files import write_json
from hialign.statistics.intervals import wilson
from hialign.study.blocks import split_layers

TESTED, RESAMPLES, STABLE, OWN_WORDS = 60, 100, 0.8, 0.9
PATH = np.geomspace(4, 1e-3, 50)  # alphas, as shares of the smallest at which no layer is kept


def distances_and_gains(
    model: Any, tuned: Any, pairs: Sequence[TokenPair]
) -> tuple[np.ndarray, np.ndarray]:
    """The mean distance of a pair's states after each layer (pairs x layers), and its gain (nats)."""
    distances: dict[int, list[float]] = {}
    gains: dict[int, float] = {}
    with Decoder(model) as decoder, torch.inference_mode():
        sides = Side(decoder, tuned.disable_adapter), Side(decoder)
        for row in rows(pairs, decoder.device, ROW):
            streams = [side.stream(row.layout) for side in sides]
            norms = [(t - b)[0].norm(dim=-1) for b, t in zip(*streams, strict=True)][1:]
            base, after = (
                np.array(side.log_probs(stream[-1], row.layout))
                for side, stream in zip(sides, streams, strict=True)
            )
            for place, (number, own) in enumerate(zip(row.pairs, row.own, strict=True)):
                distances[number] = [float(norm[own].mean()) for norm in norms]
                gains[number] = float((after - base)[place] @ [1, -1])
    order = range(len(pairs))
    return np.array([distances[i] for i in order]), np.array([gains[i] for i in order])


def named(distances: np.ndarray, gains: np.ndarray, seed: int) -> list[int]:
    """The layers that the LASSO keeps in 80% of bootstrap samples, if it keeps any on all pairs."""
    columns = (distances - distances.mean(0)) / distances.std(0)
    alphas = PATH * float(np.abs(columns.T @ (gains - gains.mean())).max() / len(gains))
    folds = KFold(5, shuffle=True, random_state=seed)
    rng, counts = np.random.default_rng(seed), np.zeros(distances.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = LassoCV(alphas=alphas, cv=folds, max_iter=50_000).fit(columns, gains)
        errors = fit.mse_path_.mean(1)
        margin = fit.mse_path_.std(1, ddof=1) / np.sqrt(5)
        chosen = int(np.argmax(errors <= errors.min() + margin[errors.argmin()]))
        one = Lasso(alpha=float(fit.alphas_[chosen]), max_iter=50_000)
        if not one.fit(columns, gains).coef_.any():
            return []
        for _ in range(RESAMPLES):
            drawn = rng.integers(0, len(gains), len(gains))
            counts += one.fit(columns[drawn], gains[drawn]).coef_ != 0
    return np.flatnonzero(counts >= STABLE * RESAMPLES).tolist()


def tried(seed: int, condition: str) -> dict[str, Any]:
    """What the regression names in the model of one seed, and the layers that were planted in it."""
    rng, third = np.random.default_rng([seed, 1]), list(split_layers(DEPTH))[seed % 3]
    family = FAMILIES[seed % len(FAMILIES)]
    model, language = model_of(family, seed), Language.drawn(rng, OWN_WORDS)
    tested, training = language.pairs(rng, TESTED), language.pairs(rng, TRAINED)
    if condition == "shuffled":
        flips = rng.random(TRAINED) < 0.5
        training = [(p[1], p[0]) if flip else p for p, flip in zip(training, flips, strict=True)]
    stepped = {"planted": split_layers(DEPTH)[third], "null": [], "shuffled": range(DEPTH)}
    tuned, modules = adapted(model)
    fill(model, modules, stepped[condition], training, 97 * seed + 5)
    layers = named(*distances_and_gains(model, tuned, tested), seed)
    planted = list(split_layers(DEPTH)[third]) if condition == "planted" else []
    return {"seed": seed, "family": family, "condition": condition} | {
        "planted": planted,
        "named": layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lasso.json"))
    args = parser.parse_args()
    found, rows = [], []
    for condition in CONDITIONS:
        every = [tried(seed, condition) for seed in range(args.seeds)]
        count = sum(bool(one["named"]) for one in every)
        inside = sum(bool(set(one["named"]) & set(one["planted"])) for one in every)
        low, high = wilson(count, len(every))
        row = {"condition": condition, "n": len(every), "named": count, "named_planted": inside}
        rows.append(row | {"share": count / len(every), "low": low, "high": high})
        print(rows[-1])
        found += every
    content = {
        "own_words": OWN_WORDS,
        "pairs": TESTED,
        "training_pairs": TRAINED,
        "layers": DEPTH,
        "share_of_norm": SHARE,
    }
    content |= {"summary": rows, "models": found}
    write_json(args.out, content | environment.environment())


if __name__ == "__main__":
    main()
