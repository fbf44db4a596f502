"""Whether a judge goes by length: the correlation, and whether the longer of two responses wins.

Length is the number of words, separated by white space. People often prefer the longer response too,
so agreement with people is also given apart for pairs in which they prefer the longer one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hialign.judging.validation.people import agreement
from hialign.judging.validation.reliability import interval
from hialign.preferences.edits import count_words
from hialign.preferences.llmbar import Judged


def by_length(
    pairs: Sequence[Judged], scores: Mapping[str, float | None], resamples: int = 2_000
) -> dict[str, Any]:
    """How `scores` (by prompt_id) are related to length.

    - `spearman`: Spearman's rank correlation over the n scored responses of complete pairs, with a 95%
      bootstrap interval over pairs. None if scores or lengths do not vary.
    - `longer`: how often the longer response of a pair scores higher, as in `agreement`
    - `people`: how often people prefer the longer response, which has no ties
    - `preferred_longer`, `preferred_shorter`: agreement with people on pairs in which they prefer the
      longer or the shorter response

    Pairs of equal length are in the correlation alone.
    """
    scored = []
    for pair in pairs:
        a, b = (scores.get(item["prompt_id"]) for item in pair)
        if a is not None and b is not None:
            scored.append(
                [[count_words(item["response"]), s] for item, s in zip(pair, (a, b), strict=True)]
            )
    data = np.array(scored, dtype=float).reshape(-1, 2, 2)  # [pair, side, (length, score)]
    low, high = interval(lambda index: spearman(data[index]), len(data), resamples)
    figures = {"spearman": spearman(data), "low": low, "high": high}
    first, second = data[:, 0], data[:, 1]
    longer = first[:, 0] > second[:, 0]  # the preferred response is the longer one
    shorter = first[:, 0] < second[:, 0]
    unequal = longer | shorter
    long = np.where(longer, first[:, 1], second[:, 1])[unequal]
    short = np.where(longer, second[:, 1], first[:, 1])[unequal]
    return {
        "n": 2 * len(data),
        **{k: None if np.isnan(v) else round(v, 4) for k, v in figures.items()},
        "longer": agreement(long.tolist(), short.tolist()),
        "people": agreement(longer[unequal].tolist(), shorter[unequal].tolist()),
        "preferred_longer": agreement(first[longer, 1].tolist(), second[longer, 1].tolist()),
        "preferred_shorter": agreement(first[shorter, 1].tolist(), second[shorter, 1].tolist()),
    }


def spearman(data: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    """Spearman's correlation of `data`, [pair, side, (length, score)]. NaN if either does not vary."""

    length, score = data.reshape(-1, 2).T
    if len(length) < 2 or np.ptp(length) == 0 or np.ptp(score) == 0:
        return float("nan")
    return float(spearmanr(length, score).statistic)
