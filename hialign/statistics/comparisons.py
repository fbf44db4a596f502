"""Strategies against each other, paired by prompt: tests, verdicts, ranks, the alignment tax.

The unit is the prompt. All strategies and models answer the same prompts, so differences are taken
within model and prompt. Tests and intervals count prompts, not responses: the differences of several
models on one prompt are averaged for a test and stay together in an interval. Models are
strata. They are fixed, and nothing is inferred about other models.

A verdict needs two things. A Wilcoxon signed-rank test must reject at 5% after Holm's correction over
its family, which is all tests of one table. A 95% interval of the mean difference must be on the same
side of zero. The test alone is about ranks, and the interval alone about one comparison.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from hialign.statistics.intervals import ALPHA, difference_interval

BETTER, WORSE, UNSURE = "better", "worse", "cannot tell"
NOT_INFERIOR = "not inferior"
WITHIN = "worse, within the margin"
PAID, EXCLUDED = "paid", "ruled out"
KEY = ["model", "prompt_id"]


def paired_differences(scores: pd.DataFrame, block: str, reference: str = "base") -> pd.DataFrame:
    """`score` of `block` minus that of `reference`, for each model and prompt scored under both.

    There are no rows for a block against itself.
    """
    both = scores[scores.block == block].merge(
        scores.loc[scores.block == reference, [*KEY, "score"]], on=KEY, suffixes=("", "_reference")
    )
    both["score"] -= both.score_reference
    return both.dropna(subset="score")[: 0 if block == reference else None]


def signed_rank(
    values: Sequence[float] | np.ndarray, alternative: str = "two-sided"
) -> tuple[float, float]:
    """Wilcoxon's signed-rank test of paired differences. Returns p and the effect size.

    The effect size is the matched-pairs rank-biserial correlation (Kerby, 2014), from -1 to 1: the
    ranks of positive differences minus the ranks of negative ones, over all ranks. Zeros count for
    neither. If all values are zero, p is 1 and the effect 0. NaN for fewer than two values.
    """
    from scipy.stats import rankdata, wilcoxon

    data = np.round(np.asarray(values, dtype=float), 9)  # 0.1 + 0.2 - 0.3 is a zero
    if len(data) < 2:
        return float("nan"), float("nan")
    moved = data[data != 0]
    if not len(moved):
        return 1.0, 0.0
    ranks = rankdata(np.abs(moved))
    if len(moved) > 50:
        p = float(wilcoxon(moved, alternative=alternative).pvalue)
    else:
        p = _exact_signed_rank(ranks, moved > 0, alternative)
    return p, float(np.sum(np.sign(moved) * ranks) / ranks.sum())


def _exact_signed_rank(ranks: np.ndarray, positive: np.ndarray, alternative: str) -> float:
    """The exact p, also with ties, for which scipy tries all 2^n signs (seconds each).

    The distribution of the sum of positive ranks is built rank by rank, each rank being in the sum
    with probability 1/2. Tied ranks are multiples of one half, so sums are counted in halves.
    """
    halves = np.rint(2 * ranks).astype(int)
    chances = np.ones(1)
    for size in halves:
        moved = np.concatenate([np.zeros(size), chances])
        moved[: len(chances)] += chances
        chances = moved / 2
    observed = int(halves[positive].sum())
    greater, less = chances[observed:].sum(), chances[: observed + 1].sum()
    tails = {"greater": greater, "less": less, "two-sided": 2 * min(greater, less)}
    return float(min(1.0, tails[alternative]))


def above(values: Sequence[float] | np.ndarray, bound: float) -> float:
    """p of the one-sided t-test that the mean of `values` is above `bound`.

    Margins are about the mean. Wilcoxon's test of differences shifted by a margin would count the
    many that are exactly zero as evidence. NaN for fewer than two values.
    """
    from scipy.stats import ttest_1samp

    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return float("nan")
    if np.ptp(data) < 1e-12:
        return float(not data[0] > bound)
    return float(ttest_1samp(data, bound, alternative="greater").pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p (statsmodels). Tests that could not be done (NaN) are not in the family."""
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p_values, dtype=float)
    done = ~np.isnan(adjusted)
    if done.any():
        adjusted[done] = multipletests(adjusted[done], method="holm")[1]
    return adjusted


def compare(
    scores: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    margin: float | None = None,
    match: str = "full",
) -> pd.DataFrame:
    """One row per (block, reference) of `pairs`, which together are one family of tests.

    `scores` has the columns model, prompt_id, block and score, which is NaN for a failed judgment.
    The columns of the result are:

    - block, reference, models (how many), prompts (how many)
    - difference (the mean over models and prompts), low, high (Student's t over prompts)
    - std, of the prompts' mean differences
    - effect, p, p_holm: `signed_rank` of the prompts' mean differences
    - p_margin: the test that the difference from `match` is above -`margin`, after Holm
    - verdict

    What cannot be computed is NaN, and the verdict is then None.
    """
    rows = []
    for block, reference in pairs:
        pairwise = paired_differences(scores, block, reference)
        by_prompt = pairwise.groupby("prompt_id").score.mean()
        p, effect = signed_rank(by_prompt.to_list())
        low, high = difference_interval(pairwise.score.to_list(), pairwise.prompt_id.to_list())
        row = {
            "block": block,
            "reference": reference,
            "models": pairwise.model.nunique(),
            "prompts": len(by_prompt),
            "difference": pairwise.score.mean(),
            "low": low,
            "high": high,
            "std": by_prompt.std(),
            "effect": effect,
            "p": p,
            "p_margin": float("nan"),
        }
        if margin is not None and reference == match:
            row["p_margin"] = above(by_prompt.to_list(), -margin)
        rows.append(row)
    columns = ["block", "reference", "models", "prompts", "difference", "low", "high", "std"]
    frame = pd.DataFrame(rows, columns=[*columns, "effect", "p", "p_margin"])
    frame["p_holm"], frame["p_margin"] = holm(frame.p.to_list()), holm(frame.p_margin.to_list())
    words = [_verdict(row, margin) for _, row in frame.iterrows()]
    return frame.assign(verdict=pd.Series(words, dtype=object))


def _verdict(row: pd.Series, margin: float | None) -> str | None:
    """The verdict on one comparison. The margin is tested at a one-sided 2.5%, as ICH E9 advises."""
    if np.isnan(row["p_holm"]):
        return None
    matches = margin is not None and row["p_margin"] < ALPHA / 2 and row["low"] > -margin
    if row["p_holm"] < ALPHA and row["effect"] > 0 and row["low"] > 0:
        return BETTER
    if row["p_holm"] < ALPHA and row["effect"] < 0 and row["high"] < 0:
        return WITHIN if matches else WORSE
    return NOT_INFERIOR if matches else UNSURE


def all_pairs(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per pair of blocks of `scores`: block, reference, p_holm over all pairs, and `told`.

    `told` is 1 if the block is above the reference, -1 if it is below, and 0 if the data cannot tell.
    They can if the adjusted test rejects and the mean difference has the sign of the ranks.
    """
    wide = scores.pivot(index=KEY, columns="block", values="score")
    prompts, _ = pd.factorize(wide.index.get_level_values("prompt_id"))
    rows = []
    for block, reference in combinations(wide.columns, 2):
        differences = (wide[block] - wide[reference]).to_numpy()
        scored = ~np.isnan(differences)
        counts = np.bincount(prompts[scored])
        sums = np.bincount(prompts[scored], weights=differences[scored])
        p, effect = signed_rank(sums[counts > 0] / counts[counts > 0])
        side = np.sign(effect) if np.sign(effect) == np.sign(sums.sum()) else 0
        rows.append((block, reference, p, side))
    frame = pd.DataFrame(rows, columns=["block", "reference", "p", "side"])
    frame["p_holm"] = holm(frame.p.to_list())
    frame["told"] = np.where(frame.p_holm < ALPHA, frame.side, 0).astype(int)
    return frame


def rank_ranges(scores: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """The lowest and the highest rank that each block may have.

    The best rank of a block is 1 + the number of blocks found above it, the worst n - the number found
    below it. All ranges hold together with 95% confidence, because the tests of all pairs are
    corrected together (Klein, Wright and Wieczorek, 2020, with paired tests for their intervals).
    """
    blocks = list(dict.fromkeys(scores.dropna(subset="score").block))
    pairs = all_pairs(scores[scores.block.isin(blocks)])
    above, below = pairs[pairs.told == 1], pairs[pairs.told == -1]
    ahead = Counter([*above.reference, *below.block])
    behind = Counter([*above.block, *below.reference])
    return {b: (1 + ahead[b], len(blocks) - behind[b]) for b in blocks}


def alignment_tax(
    scores: pd.DataFrame,
    blocks: Sequence[str],
    gained: str,
    lost: str,
    margin: float,
) -> pd.DataFrame:
    """What each block loses in dimension `lost` for its gain in `gained`, both against Base.

    The tax is min(gain, loss), which is positive only if both are, as the paper's v1 means it. Its
    interval is min(lows) to min(highs). The tax is `paid` by an intersection-union test (Berger,
    1982): both one-sided signed-rank tests must reject, so p is the larger one. It is `ruled out` if
    it is below `margin`, by the smaller p of two t-tests, doubled. Holm corrects over `blocks`.

    Columns: block, prompts, then gain, loss and tax, each with _low and _high, then p_holm, p_out and
    verdict.
    """
    rows = []
    for block in blocks:
        row: dict[str, float | str] = {"block": block}
        tests, out = [], []
        for name, dimension, sign in (("gain", gained, 1), ("loss", lost, -1)):
            pairwise = paired_differences(scores[scores.dimension == dimension], block)
            pairwise["score"] *= sign
            values = pairwise.groupby("prompt_id").score.mean().to_list()
            low, high = difference_interval(pairwise.score.to_list(), pairwise.prompt_id.to_list())
            row |= {name: pairwise.score.mean(), f"{name}_low": low, f"{name}_high": high}
            row["prompts"] = len(values)
            tests.append(signed_rank(values, "greater")[0])
            out.append(above([-v for v in values], -margin))
        for end in ("", "_low", "_high"):
            row[f"tax{end}"] = np.minimum(row[f"gain{end}"], row[f"loss{end}"])
        row |= {"p": np.max(tests), "p_out": np.minimum(1, 2 * np.min(out))}
        rows.append(row)
    names = [f"{name}{end}" for name in ("gain", "loss", "tax") for end in ("", "_low", "_high")]
    frame = pd.DataFrame(rows, columns=["block", "prompts", *names, "p", "p_out"])
    frame["p_holm"], frame["p_out"] = holm(frame.p.to_list()), holm(frame.p_out.to_list())
    paid = (frame.p_holm < ALPHA) & (frame.tax_low > 0)
    excluded = (frame.p_out < ALPHA) & (frame.tax_high < margin)
    words = pd.Series(np.select([paid, excluded], [PAID, EXCLUDED], UNSURE), dtype=object)
    return frame.assign(verdict=words.where(frame.p.notna(), None))
