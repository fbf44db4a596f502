"""Registered tests of one mean over seeds and pairs, and the words of their verdicts."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from scipy import stats

from hialign.statistics.comparisons import UNSURE, holm
from hialign.statistics.contrasts import NOTHING_LEARNED, Contrast, judge_contrasts
from hialign.statistics.crossed import Effect, mean_effect
from hialign.statistics.intervals import ALPHA, CONFIDENCE, FEWEST

RANDOM_THIRD = "random:third"
MORE, LESS = "more in its own third", "less in its own third"


class Test(Effect):
    """One registered test with its verdict. What was not computed is None.

    `family` is `primary` or the number of the secondary family. `margin` and `p_within` are those of
    the primary test: half of Full's gain, and the p that the mean is below it. `by_seed` has the mean
    of each seed.
    """

    family: str
    name: str
    p_holm: float | None
    verdict: str
    margin: float | None
    p_within: float | None
    by_seed: list[float]


def tested(family: str, name: str, values: np.ndarray, conversations: Sequence[str]) -> Test:
    """The mean of `values`, [seed, pair] in nats, before it has a verdict."""
    effect = mean_effect(values, conversations)
    return {
        **effect,
        "family": family,
        "name": name,
        "p_holm": None,
        "margin": None,
        "p_within": None,
        "by_seed": values.mean(1).tolist(),
        "verdict": UNSURE,
    }


def judged(tests: list[Test], learned: Sequence[bool] = ()) -> list[Test]:
    """The tests of one family with Holm's p and a verdict.

    `learned` says for each whether its gate passed. By default all did.
    """
    adjusted = holm([np.nan if one["p"] is None else one["p"] for one in tests]).tolist()
    for one, p, passed in zip(tests, adjusted, learned or [True] * len(tests), strict=True):
        one["p_holm"] = None if np.isnan(p) else p
        if not passed:
            one["verdict"] = NOTHING_LEARNED
        elif p < ALPHA:
            one["verdict"] = MORE if one["mean"] > 0 else LESS
    return tests


class Compared(Contrast):
    """A contrast of two blocks, the training set that it is about, and the mean of each seed."""

    trained_on: str
    by_seed: list[float]


def compared(
    differences: Mapping[tuple[str, str], np.ndarray],
    conversations: Sequence[str],
    trained_on: str,
    allowance: np.ndarray | None = None,
    learned: bool = True,
) -> list[Compared]:
    """The contrasts of one family. Arguments as of `judge_contrasts`."""
    return [
        {**row, "trained_on": trained_on, "by_seed": values.mean(1).tolist()}
        for row, values in zip(
            judge_contrasts(differences, conversations, allowance, learned),
            differences.values(),
            strict=True,
        )
    ]


class OverSeeds(TypedDict):
    """A mean of one number per seed, with its interval and p by Student's t from five seeds on."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    seed_std: float | None


def over_seeds(values: Sequence[float]) -> OverSeeds | None:
    """The mean of one number per seed. None without any."""
    if not len(values):
        return None
    many = len(values)
    found: OverSeeds = {
        "mean": float(np.mean(values)),
        "low": None,
        "high": None,
        "p": None,
        "seeds": many,
        "seed_std": float(np.std(values, ddof=1)) if many > 1 else None,
    }
    if many >= FEWEST and np.ptp(values) > 0:
        test = stats.ttest_1samp(values, 0)
        ends = test.confidence_interval(CONFIDENCE)
        found |= {"low": float(ends.low), "high": float(ends.high), "p": float(test.pvalue)}
    return found
