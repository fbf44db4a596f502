"""Registered contrasts of two strategies over seeds and pairs: verdicts, and what could be detected.

A contrast is a matrix of differences[seed, pair], such as the gains of one strategy minus those of
another. The contrasts of one call are one family. A verdict is

- better or worse, if the two-sided p is below 5% after Holm's correction over the family
- within the margin, if the difference is not, and is shown to be smaller than the margin
- cannot tell, if neither is so
- nothing was learned here, if the gate (`hialign.statistics.gate`) did not pass.

The margin of a study is half of Full's gain, which is estimated from the same pairs and seeds. So it is
not put in as a number: "the difference is below half of Full's gain" is a test of one more matrix,
allowance - difference, whose mean is above zero if it is true. Its interval then counts how uncertain
the margin itself is. This is how trials show that a share of an effect is retained (Rothmann et al.,
2003). Both directions must reject at a one-sided 2.5%, after Holm's correction over the family.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from hialign.statistics.comparisons import BETTER, UNSURE, WORSE, holm
from hialign.statistics.crossed import (
    Effect,
    MeanSquares,
    half_width,
    mean_effect,
    mean_squares,
    p_above,
    spread_nodes,
)
from hialign.statistics.intervals import ALPHA, FEWEST

WITHIN = "within the margin"
NOTHING_LEARNED = "nothing was learned here"
POWER = 0.8


class Contrast(Effect):
    """A difference of two strategies with its verdict. What was not tested is None.

    `margin` is the mean of the allowance, and `p_within` the larger of its two one-sided tests.
    `detectable` is the smallest difference that this contrast finds in 80% of such studies (or as
    many as `power` says), at the level that Holm's correction uses for the strictest of the family.
    """

    block: str
    reference: str
    p_holm: float | None
    margin: float | None
    p_within: float | None
    within: bool | None
    detectable: float | None
    verdict: str


def judge_contrasts(
    differences: Mapping[tuple[str, str], np.ndarray],
    conversations: Sequence[Hashable] | None = None,
    allowance: np.ndarray | float | None = None,
    learned: bool = True,
    power: float | None = POWER,
) -> list[Contrast]:
    """The verdict on each contrast, which together are one family.

    Args:
        differences: [seed, pair] in nats, by the block and the reference it is compared with.
        conversations: a label per pair. Without it, each pair is a conversation.
        allowance: half of Full's gains[seed, pair], in nats, or a margin that was fixed beforehand.
        learned: whether the gate passed.
        power: of the detectable differences. None leaves them out, which saves most of the time.
    """
    rows: list[Contrast] = []
    for (block, reference), values in differences.items():
        data = np.atleast_2d(np.asarray(values, dtype=float))
        effect = mean_effect(data, conversations)
        squares = mean_squares(data, conversations)
        least = detectable(squares, len(differences), power) if power else float("nan")
        row: Contrast = {
            **effect,
            "block": block,
            "reference": reference,
            "p_holm": None,
            "margin": None if allowance is None else float(np.mean(allowance)),
            "p_within": None if allowance is None else p_within(data, allowance, conversations),
            "within": None,
            "detectable": None if np.isnan(least) else least,
            "verdict": UNSURE,
        }
        rows.append(row)
    adjusted = holm([np.nan if row["p"] is None else row["p"] for row in rows])
    inside = holm([np.nan if row["p_within"] is None else row["p_within"] for row in rows])
    for row, p, p_inside in zip(rows, adjusted.tolist(), inside.tolist(), strict=True):
        row["p_holm"] = None if np.isnan(p) else p
        row["within"] = None if np.isnan(p_inside) else p_inside < ALPHA / 2
        row["verdict"] = _verdict(row) if learned else NOTHING_LEARNED
    return rows


def _verdict(row: Contrast) -> str:
    if row["p_holm"] is not None and row["p_holm"] < ALPHA:
        return BETTER if row["mean"] > 0 else WORSE
    return WITHIN if row["within"] else UNSURE


def p_within(
    differences: np.ndarray,
    allowance: np.ndarray | float,
    conversations: Sequence[Hashable] | None = None,
) -> float | None:
    """p that the mean of `differences` is between -allowance and allowance: the larger of two tests.

    None for fewer than 5 conversations.
    """
    sides = [allowance + differences, allowance - differences]
    p = max(float(p_above(mean_squares(side, conversations))) for side in sides)
    return None if np.isnan(p) else p


def detectable(
    squares: MeanSquares,
    contrasts: int = 1,
    power: float = POWER,
    seeds: int | None = None,
    conversations: int | None = None,
) -> float:
    """The smallest true difference that a two-sided test finds with probability `power`.

    The test is at 5% / `contrasts`, which is Holm's strictest step: a family whose contrasts are all
    this large is found whole at least this often per contrast, and one that stands alone too. The
    variance components are those of `squares`, taken as true. The seeds' mean square of the next
    study is drawn from its chi-square, since few seeds make intervals of very different lengths.

    Args:
        squares: of the contrast, as measured.
        contrasts: how many the family has.
        power: the probability of finding the difference.
        seeds, conversations: of the study that is planned. Those of `squares` if None.

    Returns:
        The difference, in the unit of `squares`. NaN for fewer than 5 conversations, and for one
        seed's `squares` if `seeds` plans more, because the spread between seeds is then not known.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    measured = squares.cells / squares.conversations
    planned, many = seeds or measured, conversations or squares.conversations
    if many < FEWEST or squares.conversations < FEWEST or (planned > 1 and not squares.freedom):
        return float("nan")
    noise = float(squares.residual)
    of_seeds = max(float(squares.over_seeds) - noise, 0) / squares.conversations
    of_groups = max(float(squares.over_conversations) - noise, 0) / measured
    freedom = squares.freedom if seeds is None else seeds - 1
    shares, weights = spread_nodes(max(freedom, 1), 16 if freedom > 2 else 48)
    # The interval of the next study, for each value that its seeds' mean square may have
    level = noise + many * of_seeds
    drawn = MeanSquares(
        np.zeros(len(shares)),
        level * shares,
        np.full(len(shares), noise + planned * of_groups),
        np.full(len(shares), noise),
        freedom,
        many,
        planned * many,
    )
    halves = half_width(drawn, 1 - ALPHA / contrasts)
    error = float(np.sqrt(of_seeds / planned + of_groups / many + noise / (planned * many)))
    if error == 0:
        return 0.0

    def shortfall(difference: float) -> float:
        found = norm.sf((halves - difference) / error) + norm.sf((halves + difference) / error)
        return float((found * weights).sum()) - power

    return float(brentq(shortfall, 0.0, float(halves.max()) + 10 * error))
