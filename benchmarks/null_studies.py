"""How often noise passes for a finding: simulated studies in which no strategy does anything.

    python benchmarks/null_studies.py [--studies 10000] [--out benchmarks/results/null_studies.json]

A study has five strategies, integer scores from 1 to 5 and 16, 100 or 1,000 prompts that one or four
models answer. The score of a response follows its prompt, how its model does on it, and chance
(latent normal variables cut at thresholds, so that mean and spread are near the paper's Table 2);
one response in five is the same under all strategies, as greedy ones often are. Our pipeline is
`hialign.statistics.comparisons` as the tables call it; beside it stands what a user would do instead. Then:
how often 95% intervals cover the truth, by the expanded BCa bootstrap (ours, of means that may be
skewed), by t (ours, of differences and margins) and by percentiles. Entries of earlier commits call
the first "BCa (hialign)", which then was ours of differences too. The same command with the same
`--out` goes on where it was stopped.
"""

import argparse
import functools
import gc
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hialign.records.files import read_json, write_json
from hialign.statistics.comparisons import (
    BETTER,
    NOT_INFERIOR,
    PAID,
    WITHIN,
    WORSE,
    above,
    alignment_tax,
    all_pairs,
    compare,
    holm,
    signed_rank,
)
from hialign.statistics.intervals import ALPHA, FEWEST, difference_interval, pooled_interval, wilson

BLOCKS = ("base", "full", "local", "mid", "global")
PAIRS = [(b, "base") for b in BLOCKS[1:]] + [(b, "full") for b in BLOCKS[2:]]
SHARES = (0.20, 0.15, 0.29, 0.21, 0.15)  # of the scores 1 to 5: mean 2.96, standard deviation 1.33
OTHER = (0.10, 0.30, 0.26, 0.22, 0.12)  # the same mean, another distribution
PROMPT, MODEL, SAME = 0.5, 0.2, 0.2  # variance due to the prompt, to model x prompt; same responses
MARGIN = 0.1
PAPER = {"base": 0.0, "full": 0.302, "local": 0.248, "mid": 0.237, "global": 0.043}  # Table 2


def mean_of(shares: tuple[float, ...], shift: float = 0.0) -> float:
    """Mean score where the latent variable is moved by `shift`."""
    edges = stats.norm.ppf(np.cumsum(shares)[:-1])
    return float(1 + stats.norm.sf(edges - shift).sum())


@functools.cache
def shift_for(difference: float) -> float:
    """The latent shift that moves the mean score by `difference`."""
    from scipy.optimize import brentq

    goal = mean_of(SHARES) + difference
    return float(brentq(lambda shift: mean_of(SHARES, shift) - goal, -5, 5))


def simulate(
    rng: np.random.Generator,
    prompts: int,
    models: int,
    differences: dict[str, float] | None = None,
    shares: dict[str, tuple[float, ...]] | None = None,
) -> np.ndarray:
    """Scores of one study: strategy x model x prompt. Without `differences`, nothing has an effect."""
    shape = (len(BLOCKS), models, prompts)
    common = PROMPT**0.5 * rng.standard_normal((1, 1, prompts))
    common = common + MODEL**0.5 * rng.standard_normal((1, models, prompts))
    chance = rng.standard_normal(shape)
    same = rng.random((1, models, prompts)) < SAME
    latent = common + (1 - PROMPT - MODEL) ** 0.5 * np.where(same, chance[:1], chance)
    scores = np.empty(shape)
    for i, block in enumerate(BLOCKS):
        shift = shift_for(differences[block]) if differences and differences[block] else 0.0
        edges = stats.norm.ppf(np.cumsum((shares or {}).get(block, SHARES))[:-1])
        scores[i] = 1 + np.searchsorted(edges, latent[i] + shift)
    return scores


def frame(scores: np.ndarray, dimension: str = "Overall") -> pd.DataFrame:
    """`scores` (strategy x model x prompt) as hialign's records have them."""
    blocks, models, prompts = (a.ravel() for a in np.indices(scores.shape))
    columns = {"model": models.astype(str), "block": np.array(BLOCKS)[blocks]}
    columns |= {"prompt_id": [f"p{i}" for i in prompts], "dimension": dimension}
    return pd.DataFrame({**columns, "score": scores.ravel()})


def changes_of(scores: np.ndarray) -> list[np.ndarray]:
    """The prompts' mean differences in each of PAIRS."""
    means = dict(zip(BLOCKS, scores.mean(axis=1), strict=True))
    return [means[a] - means[b] for a, b in PAIRS]


def verdicts(scores: np.ndarray, p: list[float]) -> set[str]:
    """The verdicts of the comparisons table, without intervals where no test rejects."""
    matching = [
        above(change, -MARGIN)
        for change, (_, reference) in zip(changes_of(scores), PAIRS, strict=True)
        if reference == "full"
    ]
    if holm(p).min() >= ALPHA and holm(matching).min() >= ALPHA / 2:
        return set()
    return set(compare(frame(scores), PAIRS, MARGIN).verdict)


def welch(scores: np.ndarray) -> np.ndarray:
    """p of each of PAIRS as if all responses were independent."""
    flat = scores.reshape(len(BLOCKS), -1)
    a, b = (flat[[BLOCKS.index(pair[i]) for pair in PAIRS]] for i in (0, 1))
    return np.asarray(stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue)


def comparisons(scores: np.ndarray) -> dict[str, bool]:
    """Whether our table reports a difference, and whether other ways do in the same comparisons."""
    p = [signed_rank(change)[0] for change in changes_of(scores)]
    unpaired, top = welch(scores), np.sort(scores.mean(axis=(1, 2)))
    return {
        "hialign: comparisons": bool(verdicts(scores, p) & {BETTER, WORSE, WITHIN}),
        "paired, no correction": min(p) < ALPHA,
        "unpaired (Welch), no correction": bool(unpaired.min() < ALPHA),
        "unpaired (Welch), Holm": bool(holm(unpaired).min() < ALPHA),
        "the highest mean is called best": bool(top[-1] > top[-2]),
    }


def null(rng: np.random.Generator, prompts: int, models: int) -> dict[str, bool]:
    scores = simulate(rng, prompts, models)
    ranks = bool((all_pairs(frame(scores)).told != 0).any())
    return comparisons(scores) | {"hialign: ranks": ranks}


def unlike(rng: np.random.Generator, prompts: int, models: int) -> dict[str, bool]:
    """Equal means, but Base's scores are distributed otherwise: is the finding about means?"""
    return comparisons(simulate(rng, prompts, models, shares=dict.fromkeys(BLOCKS[1:], OTHER)))


def inferior(rng: np.random.Generator, prompts: int, models: int) -> dict[str, bool]:
    """Each third is worse than Full by exactly the margin: `not inferior` would be false."""
    truth = {block: 0.0 if block == "full" else -MARGIN for block in BLOCKS}
    scores = simulate(rng, prompts, models, truth)
    found = verdicts(scores, [0.0])
    return {"hialign: not inferior": bool(found & {NOT_INFERIOR, WITHIN})}


def tax(rng: np.random.Generator, prompts: int, models: int) -> dict[str, bool]:
    """All strategies gain in one dimension and lose nothing in the other."""
    gains = {block: 0.0 if block == "base" else 0.3 for block in BLOCKS}
    both = [frame(simulate(rng, prompts, models, gains), "gained")]
    both += [frame(simulate(rng, prompts, models), "lost")]
    found = alignment_tax(pd.concat(both), BLOCKS[1:], "gained", "lost", MARGIN)
    return {"hialign: tax paid": bool((found.verdict == PAID).any())}


def dimensions(rng: np.random.Generator, prompts: int, models: int) -> dict[str, bool]:
    """Fifteen dimensions x four strategies; by the tests alone, since a finding needs more."""
    p = []
    for _ in range(15):
        means = simulate(rng, prompts, models).mean(axis=1)
        p += [signed_rank(change)[0] for change in means[1:] - means[0]]
    return {"hialign: dimensions": bool(holm(p).min() < ALPHA), "no correction": min(p) < ALPHA}


def real(rng: np.random.Generator, prompts: int, models: int) -> dict[str, bool]:
    """The paper's differences are true: is Full-DPO found to be above Base?"""
    scores = simulate(rng, prompts, models, PAPER)
    table = compare(frame(scores), PAIRS, MARGIN)
    unpaired, means = welch(scores), scores.mean(axis=(1, 2))
    return {
        "hialign: Full above Base": table.verdict[0] == BETTER,
        "unpaired (Welch), Holm": bool(holm(unpaired)[0] < ALPHA and means[1] > means[0]),
        "unpaired (Welch), no correction": bool(unpaired[0] < ALPHA and means[1] > means[0]),
    }


SCENARIOS = {  # name: what, prompts, models, share of --studies
    "null, 100 prompts, 1 models": (null, 100, 1, 1.0),
    "null, 16 prompts, 1 models": (null, 16, 1, 1.0),
    "null, 16 prompts, 4 models": (null, 16, 4, 0.1),
    "null, 100 prompts, 4 models": (null, 100, 4, 0.1),
    "equal means, unlike distributions, 100 prompts, 4 models": (unlike, 100, 4, 0.05),
    "inferior by the margin, 100 prompts, 4 models": (inferior, 100, 4, 0.1),
    "gain without loss, 100 prompts, 1 models": (tax, 100, 1, 0.05),
    "null, 15 dimensions, 100 prompts, 1 models": (dimensions, 100, 1, 0.05),
    "paper's differences true, 100 prompts, 1 models": (real, 100, 1, 0.03),
    "paper's differences true, 100 prompts, 4 models": (real, 100, 4, 0.03),
    "inferior by the margin, 1000 prompts, 4 models": (inferior, 1000, 4, 0.03),
}
COVERAGE = (
    *((16, 1, 0.5), (24, 1, 0.2), (50, 1, 0.2), (100, 1, 0.2), (126, 1, 0.1), (1000, 1, 0.04)),
    (16, 4, 0.2),
)
KINDS = ((2, 0.1), (3, 0.1), (5, 0.2), (16, 0.2), (24, 0.2), (50, 0.2), (126, 0.1), (1000, 0.04))


def one(task: tuple[str, int]) -> dict[str, bool]:
    """Study `number` of a scenario."""
    name, number = task
    what, prompts, models, _ = SCENARIOS[name]
    rng = np.random.default_rng([42, *name.encode(), number])
    return what(rng, prompts, models)


def covered(task: tuple[int, int, int, int]) -> dict[str, bool]:
    """Whether 95% intervals hold the true mean score of Base, and the true gain of Full."""
    prompts, models, number, resamples = task
    rng = np.random.default_rng([43, prompts, models, number])
    base, full, *_ = simulate(rng, prompts, models, PAPER)
    found = {}
    for quantity, truth, values in (
        ("mean", mean_of(SHARES), base),
        ("difference", PAPER["full"], full - base),
    ):
        data, groups = values.mean(axis=0), np.tile(np.arange(prompts), models)
        draws = data[rng.integers(0, prompts, (resamples, prompts))].mean(axis=1)
        ways = {"expanded BCa": pooled_interval(list(values.ravel()), list(groups), resamples)}
        ways["percentile"] = tuple(np.quantile(draws, [0.025, 0.975]))
        ways["t"] = difference_interval(list(values.ravel()), list(groups))
        for way, (low, high) in ways.items():
            found[f"{quantity}: {way}"] = bool(low <= truth <= high)
    return found


def kinds(task: tuple[int, int, int]) -> dict[str, bool]:
    """The same of other quantities: heavy-tailed margins, skewed lengths, and shares near 1.

    Of fewer than five units hialign gives no interval. There the percentiles are what it gave.
    """
    units, number, resamples = task
    rng = np.random.default_rng([44, units, number])
    found = {}
    for quantity, truth, data in (
        ("margin", 0.0, rng.standard_t(3, units)),
        ("length", float(np.exp(0.5)), rng.lognormal(0, 1, units)),
        ("share of 0.9", 0.9, (rng.random(units) < 0.9).astype(float)),
    ):
        draws = data[rng.integers(0, units, (resamples, units))].mean(axis=1)
        ways = {"percentile": tuple(np.quantile(draws, [0.025, 0.975]))}
        if units >= FEWEST:
            ways["expanded BCa"] = pooled_interval(list(data), range(units), resamples)
            ways["t"] = difference_interval(list(data), range(units))
        for way, (low, high) in ways.items():
            found[f"{quantity}: {way}"] = bool(low <= truth <= high)
    return found


def shares(found: Iterable[dict[str, bool]]) -> dict[str, Any]:
    """The share of studies in which each entry is true, with Wilson's 95% interval."""
    table = pd.DataFrame(list(found))
    ways = {}
    for way, count in table.sum().items():
        low, high = wilson(int(count), len(table))
        ways[str(way)] = {"share": count / len(table), "low": round(low, 4), "high": round(high, 4)}
    return {"studies": len(table), "ways": ways}


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulated studies without any effect.")
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out")
    args = parser.parse_args()

    from importlib.metadata import version

    from hialign.engine.environment import environment

    content: dict[str, Any] = {"arguments": {"studies": args.studies, "resamples": args.resamples}}
    content |= {"shares_of_scores": SHARES, "variance": {"prompt": PROMPT, "model x prompt": MODEL}}
    content |= {"same_responses": SAME, "margin": MARGIN, **environment()}
    content["packages"] |= {name: version(name) for name in ("scipy", "statsmodels", "pandas")}
    known = read_json(Path(args.out)) if args.out and Path(args.out).is_file() else {}
    content |= {part: known.get(part, {}) for part in ("scenarios", "coverage", "kinds")}
    # statsmodels' multipletests collects garbage at each call: let it find little
    with ProcessPoolExecutor(args.workers, initializer=gc.freeze) as pool:

        def keep(part: str, name: str, function: Callable[..., Any], tasks: list[Any]) -> None:
            if name in content[part]:  # a run that was stopped goes on
                return
            started = time.perf_counter()
            found = shares(pool.map(function, tasks, chunksize=25))
            seconds = round(time.perf_counter() - started, 1)
            content[part][name] = found | {"seconds": seconds, "commit": content["hialign_commit"]}
            print(name, content[part][name], flush=True)
            if args.out:
                write_json(Path(args.out), content)

        for prompts, models, part in COVERAGE:
            n = max(1, round(args.studies * part))
            tasks = [(prompts, models, i, args.resamples) for i in range(n)]
            keep("coverage", f"{prompts} prompts, {models} models", covered, tasks)
        for units, part in KINDS:
            n = max(1, round(args.studies * part))
            keep("kinds", f"{units} units", kinds, [(units, i, args.resamples) for i in range(n)])
        for name, (*_, part) in SCENARIOS.items():
            n = max(1, round(args.studies * part))
            keep("scenarios", name, one, [(name, i) for i in range(n)])


if __name__ == "__main__":
    main()
