"""How often 95% intervals of a mean over crossed seeds and pairs hold the truth.

    python benchmarks/crossed_coverage.py [--studies 2000] [--out benchmarks/results/crossed_coverage.json]

A study is a matrix of differences between two strategies, [seed, pair], whose true mean is 0. The
variance of its mean is due to seeds by a given share (0 to 0.9). Of the rest, three parts in ten are
of pairs that all seeds share, before noise is averaged over seeds. The families are:

- normal: seeds, pairs and noise are normal.
- heavy tails: pairs and noise are Student's t of 3 degrees.
- conversations: skewed (exponential) pairs in conversations of 1 to 4, which also differ by seed.
- works or fails: the seeds' effects have two values only, which is the worst case for few seeds.

The ways to an interval are:

- generalized (hialign): `hialign.statistics.crossed`.
- Satterthwaite: Student's t with the degrees of freedom of the same variance components.
- Hillis: the same with the degrees of freedom of readers alone, as in studies of many readers.
- pigeonhole bootstrap: seeds and conversations drawn with replacement (Owen, 2007), percentiles.
- seeds alone, pairs alone: Student's t of their means. The second is what hialign did before.
- mixed model: statsmodels' MixedLM with crossed effects and its normal interval, on the sizes and for
  the number of studies that its speed allows.

The same command with the same `--out` goes on where it was stopped.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hialign.records.files import read_json, write_json
from hialign.statistics.crossed import MeanSquares, half_width, mean_squares, p_value
from hialign.statistics.intervals import wilson

SEEDS, PAIRS, SHARES = (2, 3, 4, 6), (100, 300, 1000), (0.0, 0.3, 0.6, 0.9)
FAMILIES = ("normal", "heavy tails", "conversations", "works or fails")
LEVELS = (0.05, 0.05 / 9)  # of one test, and of the strictest step of Holm's correction over nine
PAIR, NOISE = 0.3, 0.7  # variance of pairs, and of what a seed adds to each
RESAMPLES, AT_ONCE, WIDTHS, MODELS = 400, 100, 200, 200


def standard(rng: np.random.Generator, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws with mean 0 and variance 1 for pairs and noise."""
    if family == "heavy tails":
        return rng.standard_t(3, shape) / np.sqrt(3)
    if family == "conversations":
        return rng.exponential(1, shape) - 1
    return rng.standard_normal(shape)


def labels(family: str, pairs: int) -> np.ndarray:
    """The conversation of each pair: of sizes 1, 2, 3, 4, 1, … or a pair each."""
    if family != "conversations":
        return np.arange(pairs)
    return np.repeat(np.arange(pairs), np.resize([1, 2, 3, 4], pairs))[:pairs]


def variance_without_seeds(groups: np.ndarray, seeds: int) -> float:
    """Of the mean. A conversation counts by its size."""
    pairs, squared = len(groups), float((np.bincount(groups) ** 2).sum())
    return (PAIR + NOISE / 2 / seeds) * squared / pairs**2 + NOISE / 2 / seeds / pairs


def simulate(
    rng: np.random.Generator, family: str, studies: int, seeds: int, pairs: int, share: float
) -> np.ndarray:
    """Differences [study, seed, pair] without an effect."""
    groups = labels(family, pairs)
    many = groups.max() + 1
    data = np.sqrt(PAIR) * standard(rng, family, (studies, 1, many))
    data = data + np.sqrt(NOISE / 2) * standard(rng, family, (studies, seeds, many))
    data = data[..., groups] + np.sqrt(NOISE / 2) * standard(rng, family, (studies, seeds, pairs))
    rest = variance_without_seeds(groups, seeds)
    shape = (studies, seeds, 1)
    two_values = family == "works or fails"
    of_seeds = rng.choice([-1.0, 1.0], shape) if two_values else rng.standard_normal(shape)
    return np.asarray(data + np.sqrt(seeds * rest * share / (1 - share)) * of_seeds)


def satterthwaite(squares: MeanSquares) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and degrees of freedom of the variance components."""
    s, c = squares.freedom + 1, squares.conversations
    of_seeds = np.maximum(squares.over_seeds, squares.residual)
    total = of_seeds + np.maximum(squares.over_conversations - squares.residual, 0)
    parts = of_seeds**2 / (s - 1) + squares.over_conversations**2 / (c - 1)
    return np.sqrt(total / s / c), total**2 / (parts + squares.residual**2 / ((s - 1) * (c - 1)))


def hillis(squares: MeanSquares) -> tuple[np.ndarray, np.ndarray]:
    """The same, with the seeds' mean square as it is, and the degrees of freedom of seeds alone."""
    total = squares.over_seeds + np.maximum(squares.over_conversations - squares.residual, 0)
    return np.sqrt(total / squares.cells), total**2 / (squares.over_seeds**2 / squares.freedom)


def pigeonhole(rng: np.random.Generator, data: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means [study, resample] of drawn seeds and drawn conversations."""
    seeds, many = data.shape[1], int(groups.max()) + 1
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    of_groups = rng.multinomial(many, np.full(many, 1 / many), RESAMPLES)
    of_pairs = of_groups[:, groups]
    sums = np.einsum("bs,nsb->nb", of_seeds, data @ of_pairs.T, optimize=True)
    return np.asarray(sums / seeds / of_pairs.sum(1))


def p_values(rng: np.random.Generator, data: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """p of each way and study. A bootstrap's is twice the share of resamples beyond 0."""
    squares = mean_squares(data, groups.tolist())
    found = {"generalized (hialign)": p_value(squares)}
    for name, way in (("Satterthwaite", satterthwaite), ("Hillis", hillis)):
        errors, freedom = way(squares)
        found[name] = 2 * stats.t.sf(np.abs(squares.mean) / errors, freedom)
    for name, square, freedom in (
        ("seeds alone", squares.over_seeds, squares.freedom),
        ("pairs alone", squares.over_conversations, squares.conversations - 1),
    ):
        found[name] = 2 * stats.t.sf(
            np.abs(squares.mean) / np.sqrt(square / squares.cells), freedom
        )
    below = (pigeonhole(rng, data, groups) < 0).mean(1)
    found["pigeonhole bootstrap"] = 2 * np.minimum(below, 1 - below)
    return found


def mixed_model(data: np.ndarray) -> float:
    """p of statsmodels' mixed model with crossed seeds and pairs."""
    import statsmodels.api as sm

    seeds, pairs = np.indices(data.shape)
    table = pd.DataFrame({"y": data.ravel(), "seed": seeds.ravel(), "pair": pairs.ravel()})
    parts = {"seed": "0 + C(seed)", "pair": "0 + C(pair)"}
    model = sm.MixedLM.from_formula("y ~ 1", table, groups=np.ones(data.size), vc_formula=parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = model.fit(reml=True)
    return float(fitted.pvalues["Intercept"])


def rate(hits: np.ndarray) -> dict[str, float]:
    """The share of `hits` with Wilson's 95% interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"share": round(float(hits.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def covered(family: str, seeds: int, pairs: int, share: float, studies: int) -> dict[str, Any]:
    """The coverage of each way at both levels, and the median half-length of two of them.

    A half-length is in units of the true standard error.
    """
    rng = np.random.default_rng([42, *family.encode(), seeds, pairs, int(10 * share)])
    groups = labels(family, pairs)
    chunks, widths = [], []
    for start in range(0, studies, AT_ONCE):
        data = simulate(rng, family, min(AT_ONCE, studies - start), seeds, pairs, share)
        chunks.append(pd.DataFrame(p_values(rng, data, groups)))
        if start < WIDTHS:
            squares = mean_squares(data, groups.tolist())
            errors, freedom = satterthwaite(squares)
            widths.append(np.stack([half_width(squares), errors * stats.t.ppf(0.975, freedom)]))
    p = pd.concat(chunks)
    true_error = np.sqrt(variance_without_seeds(groups, seeds) / (1 - share))
    medians = (np.median(np.hstack(widths), axis=1) / true_error).round(2).tolist()
    ways: dict[str, Any] = {way: rate((p[way] >= LEVELS[0]).to_numpy()) for way in p}
    for way in ("generalized (hialign)", "Satterthwaite", "Hillis"):
        ways[way]["at 0.05 / 9"] = round(float((p[way] >= LEVELS[1]).mean()), 4)
    return {
        "studies": studies,
        "coverage": ways,
        "half_length": dict(zip(("generalized (hialign)", "Satterthwaite"), medians, strict=True)),
    }


def mixed_models(seeds: int, share: float) -> dict[str, Any]:
    """The coverage of the mixed model and of our way in the same studies of 100 pairs."""
    rng = np.random.default_rng([43, seeds, int(100 * share)])
    data = simulate(rng, "normal", MODELS, seeds, 100, share)
    p = np.array([mixed_model(one) for one in data])
    ours = p_value(mean_squares(data)) >= LEVELS[0]
    ways = {"mixed model": rate(p >= LEVELS[0]), "generalized (hialign)": rate(ours)}
    return {"studies": MODELS, "coverage": ways}


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage over crossed seeds and pairs.")
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument("--out")
    args = parser.parse_args()

    from importlib.metadata import version

    from hialign.engine.environment import environment

    content: dict[str, Any] = {"arguments": {"studies": args.studies, "resamples": RESAMPLES}}
    content |= {"variance": {"pair": PAIR, "noise": NOISE}, **environment()}
    content["packages"] |= {name: version(name) for name in ("scipy", "statsmodels", "pandas")}
    known = read_json(Path(args.out)) if args.out and Path(args.out).is_file() else {}
    content |= {part: known.get(part, {}) for part in ("studies", "mixed_models")}

    def keep(part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name in content[part]:  # a run that was stopped goes on
            return
        started = time.perf_counter()
        measured = measure() | {"seconds": round(time.perf_counter() - started, 1)}
        content[part][name] = measured | {"commit": content["hialign_commit"]}
        print(name, content[part][name], flush=True)
        if args.out:
            write_json(Path(args.out), content)

    for family, seeds, pairs, share in product(FAMILIES, SEEDS, PAIRS, SHARES):
        name = f"{family}, {seeds} seeds, {pairs} pairs, share {share}"
        keep("studies", name, partial(covered, family, seeds, pairs, share, args.studies))
    for seeds, share in product(SEEDS, (0.0, 0.6)):
        name = f"normal, {seeds} seeds, 100 pairs, share {share}"
        keep("mixed_models", name, partial(mixed_models, seeds, share))


if __name__ == "__main__":
    main()
