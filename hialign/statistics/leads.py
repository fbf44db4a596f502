"""The registered rule: does a third of the layers lead?

A third leads if all of these hold:

1. It beats both other thirds and a random third of equal size, over seeds (and pairs, where there are
   any). A third's p is the largest of its three one-sided p's, because all three must hold (an
   intersection-union test, Berger 1982). Holm corrects the three thirds' p's, and 5% decides. At most
   one third can lead, so this is three times the smallest p.
2. The shuffled control does not point there: the third's lead over the mean of the other two is larger
   with true labels than with shuffled ones, at a one-sided 5%. A measure that would favour a third
   whatever the labels say, as a depth trend does, does not pass.

Without a control no third is named. Why not Holm over all nine directed contrasts: the three of a third
are not nine chances to be wrong, since a third needs all of them.

The rule takes two kinds of measurement: outcomes of trainings, [seed, pair], and profiles of a probe,
[seed, layer]. benchmarks/false_answers.py simulates how often it names a third in studies without an
effect, and how often it finds a planted one.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np

from hialign.statistics.comparisons import holm
from hialign.statistics.crossed import mean_squares, p_above, unpaired_mean_squares
from hialign.statistics.intervals import ALPHA

THIRDS = ("local", "mid", "global")
RANDOM = "random"
SETS = 10_000  # random sets of layers


class Standing(TypedDict):
    """How one third stands: its score, its one-sided p's, and the control's.

    `p_over` has the p over each other third and over the random third. `p_holm` is the largest of
    them after Holm's correction over the thirds. `lead` is the score minus the mean of the other
    thirds', `control_lead` the same with shuffled labels, and `p_control` the p that the first is
    larger. What could not be computed is None.
    """

    third: str
    score: float
    p_over: dict[str, float | None]
    p_holm: float | None
    lead: float
    control_lead: float | None
    p_control: float | None


class Lead(TypedDict):
    """The answer: the third that leads or None, why, and how each third stands."""

    third: str | None
    reason: str
    over: Literal["pairs and seeds", "seeds", "pairs"]
    seeds: int
    control_seeds: int
    standings: list[Standing]


def leads(
    gains: Mapping[str, np.ndarray],
    control: Mapping[str, np.ndarray] | None,
    conversations: Sequence[Hashable] | None = None,
) -> Lead:
    """Whether a third leads in what trainings gained.

    Args:
        gains: [seed, pair] of local, mid, global and random, such as gains of the log loss in nats.
            Seeds and pairs are the same in all four. The random third may be another for each seed.
        control: [seed', pair] of local, mid and global trained with shuffled labels. None if nobody
            trained them.
        conversations: a label per pair. Without it, each pair is a conversation.

    Raises:
        KeyError: a third is missing.
        ValueError: values are missing, or shapes do not match.
    """
    ours = {name: np.atleast_2d(np.asarray(gains[name], dtype=float)) for name in (*THIRDS, RANDOM)}
    if len({values.shape for values in ours.values()}) > 1:
        raise ValueError(f"gains differ in shape: { {k: v.shape for k, v in ours.items()} }")

    def p_over(third: str, other: str) -> float:
        return float(p_above(mean_squares(ours[third] - ours[other], conversations)))

    def p_control(third: str) -> float:
        theirs = {} if control is None else control
        squares = unpaired_mean_squares(_lead(ours, third), _lead(theirs, third), conversations)
        return float(p_above(squares))

    over = {third: {o: p_over(third, o) for o in ours if o != third} for third in THIRDS}
    seeds = len(ours[RANDOM])
    return _decided(ours, over, control, p_control, "pairs and seeds" if seeds > 1 else "pairs")


def profile_leads(
    profile: np.ndarray,
    thirds: Mapping[str, Sequence[int]],
    control: np.ndarray | None,
    seed: int = 42,
) -> Lead:
    """Whether a third leads in a probe's profile, one number per layer and seed.

    A third's score is the mean over its layers. It beats another third by Student's t over seeds. It
    beats a random third if few random sets of as many layers have so high a score, over seeds
    together. A probe whose layers are alike near each other has less than that many independent
    layers, and then the random sets alone would be too lenient.

    Args:
        profile: [seed, layer], a measure that sees labels, in any unit. What permuted labels give is
            already taken off.
        thirds: the layers of local, mid and global.
        control: [seed', layer] of trainings with shuffled labels, or None.
        seed: of the random sets.

    Raises:
        ValueError: values are missing, or there are fewer than two seeds.
    """
    layers = np.asarray(profile, dtype=float)
    if layers.ndim != 2 or len(layers) < 2 or not np.isfinite(layers).all():
        raise ValueError("a profile[seed, layer] needs two seeds or more, and no missing values")
    ours = _scores(layers, thirds)
    theirs = None if control is None else _scores(np.atleast_2d(control), thirds)
    orders = _orders(layers.shape[1], seed)

    def p_control(third: str) -> float:
        from scipy.stats import ttest_ind

        other = _lead(theirs or {}, third).ravel()
        return float(ttest_ind(_lead(ours, third).ravel(), other, alternative="greater").pvalue)

    over = {}
    for third in THIRDS:
        over[third] = {o: _p_over_seeds(ours[third] - ours[o]) for o in THIRDS if o != third}
        drawn = layers.mean(0)[orders[:, : len(thirds[third])]].mean(1)
        as_high = drawn >= ours[third].mean() - 1e-12
        over[third][RANDOM] = float((1 + as_high.sum()) / (1 + SETS))
    return _decided(ours, over, theirs, p_control, "seeds")


@lru_cache  # a study asks for the same
def _orders(layers: int, seed: int) -> np.ndarray:
    """Random orders of the layers, of which the first few are a random set."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(layers), (SETS, 1)), axis=1)


def _scores(layers: np.ndarray, thirds: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The mean over each third's layers, [seed, 1]."""
    return {third: layers[:, list(thirds[third])].mean(1, keepdims=True) for third in THIRDS}


def _p_over_seeds(differences: np.ndarray) -> float:
    """One-sided p of Student's t. Differences without spread are sure, or nothing if zero."""
    from scipy.stats import ttest_1samp

    if np.ptp(differences) < 1e-12:
        return float(not differences.mean() > 1e-12)
    return float(ttest_1samp(differences.ravel(), 0, alternative="greater").pvalue)


def _lead(scores: Mapping[str, np.ndarray], third: str) -> np.ndarray:
    """A third's scores minus the mean of the other two thirds'."""
    others = [np.asarray(scores[other], dtype=float) for other in THIRDS if other != third]
    return np.atleast_2d(np.asarray(scores[third], dtype=float) - (others[0] + others[1]) / 2)


def _decided(
    ours: Mapping[str, np.ndarray],
    p_over: Mapping[str, dict[str, float]],
    control: Mapping[str, np.ndarray] | None,
    p_control: Callable[[str], float],
    over: Literal["pairs and seeds", "seeds", "pairs"],
) -> Lead:
    """The answer from the p's. Largest of three, Holm over thirds, and then the control."""
    adjusted = holm([max(p_over[third].values(), key=_nan_last) for third in THIRDS])
    standings: list[Standing] = []
    for third, p in zip(THIRDS, adjusted.tolist(), strict=True):
        standing: Standing = {
            "third": third,
            "score": float(ours[third].mean()),
            "p_over": {other: _or_none(value) for other, value in p_over[third].items()},
            "p_holm": _or_none(p),
            "lead": float(_lead(ours, third).mean()),
            "control_lead": None if control is None else float(_lead(control, third).mean()),
            "p_control": None if control is None else _or_none(p_control(third)),
        }
        standings.append(standing)
    leader, reason = _answer(standings, control is not None)
    control_seeds = 0 if control is None else len(np.atleast_2d(control[THIRDS[0]]))
    return {
        "third": leader,
        "reason": reason,
        "over": over,
        "seeds": len(ours[THIRDS[0]]),
        "control_seeds": control_seeds,
        "standings": standings,
    }


def _answer(standings: Sequence[Standing], controlled: bool) -> tuple[str | None, str]:
    """The third that leads or None, and a sentence that says why."""
    for row in standings:
        if row["p_holm"] is None or row["p_holm"] >= ALPHA:
            continue
        name = row["third"].capitalize()
        beats = f"{name} beats both other thirds and a random third"
        if not controlled:
            return (
                None,
                f"{beats}, but no training with shuffled labels was there to compare it with",
            )
        if row["p_control"] is None or row["p_control"] >= ALPHA:
            return None, f"{beats}, but its lead may be as large with shuffled labels"
        return row["third"], f"{beats}, and by more than with shuffled labels"
    return None, "no third beats both others and a random third"


def _nan_last(p: float) -> float:
    return np.inf if np.isnan(p) else p


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
