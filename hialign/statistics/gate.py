"""Was anything learned? The question before every comparison of strategies.

A study has learned something if its Full training ranks held-out pairs better than chance, and better
than the same training with shuffled labels does. All of these must hold at a one-sided 5%, over pairs
and seeds:

1. Full's accuracy is above one half.
2. Full's gain in log loss (`hialign.statistics.log_loss`) is above zero.
3. Full's accuracy is above that of the shuffled controls, which have seeds of their own.

The third keeps out what any training does to margins, whatever its labels: it may come to like longer
answers, and people may like them too. It takes accuracy, which grows in proportion to what was learned,
while the gain of a little is next to nothing. As all three must hold, the gate passes wrongly in at most
5% of studies that learned nothing, and far less often if none of the three is true
(benchmarks/false_answers.py simulates it).
"""

from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np

from hialign.statistics.crossed import (
    Effect,
    mean_effect,
    mean_squares,
    p_above,
    unpaired_mean_squares,
)
from hialign.statistics.intervals import ALPHA
from hialign.statistics.log_loss import gains


class Gate(TypedDict):
    """Whether anything was learned, and from what. A p that could not be computed is None.

    `accuracy` and its 95% interval are shares of pairs, and `gain` and its interval nats. `p_chance`
    is the larger p of the first two tests, `p_shuffled` that of the third. `over` says whether the
    spread between seeds is in them.
    """

    passed: bool
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    gain: float
    gain_low: float | None
    gain_high: float | None
    shuffled_accuracy: float | None
    shuffled_gain: float | None
    p_chance: float | None
    p_shuffled: float | None
    seeds: int
    shuffled_seeds: int
    pairs: int
    over: str
    reason: str


def gate(
    full: np.ndarray,
    shuffled: np.ndarray | None,
    conversations: Sequence[Hashable],
    seed: int = 42,
) -> Gate:
    """Whether Full's training learned to rank held-out pairs.

    Without shuffled controls the gate asks only for the first two conditions, and `reason` says so.

    Args:
        full: margins[seed, pair] of Full, in nats.
        shuffled: those of the same training with shuffled labels, on the same pairs, under as many
            seeds as there are. None if there are none.
        conversations: a label per pair.
        seed: of the folds of the log loss.

    Raises:
        ValueError: margins are missing, or the labels or the two matrices do not match.
    """
    margins = np.atleast_2d(np.asarray(full, dtype=float))
    hits, gained = hits_of(margins), gains(margins, conversations, seed=seed)
    accuracy, gain = mean_effect(hits, conversations), mean_effect(gained, conversations)
    p_hits = float(p_above(mean_squares(hits, conversations), 0.5))
    p_gain = float(p_above(mean_squares(gained, conversations)))
    p_chance = float(np.maximum(p_hits, p_gain))  # NaN if one is
    controls: dict[str, float] = {}
    p_shuffled, control_seeds = float("nan"), 0
    if shuffled is not None:
        control = np.atleast_2d(np.asarray(shuffled, dtype=float))
        control_hits = hits_of(control)
        p_shuffled = float(p_above(unpaired_mean_squares(hits, control_hits, conversations)))
        controls["accuracy"] = float(control_hits.mean())
        controls["gain"] = float(gains(control, conversations, seed=seed).mean())
        control_seeds = len(control)
    above_control = shuffled is None or p_shuffled < ALPHA
    return {
        "passed": bool(p_chance < ALPHA and above_control),
        "accuracy": accuracy["mean"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "gain": gain["mean"],
        "gain_low": gain["low"],
        "gain_high": gain["high"],
        "shuffled_accuracy": controls.get("accuracy"),
        "shuffled_gain": controls.get("gain"),
        "p_chance": None if np.isnan(p_chance) else p_chance,
        "p_shuffled": None if np.isnan(p_shuffled) else p_shuffled,
        "seeds": len(margins),
        "shuffled_seeds": control_seeds,
        "pairs": margins.shape[1],
        "over": accuracy["over"],
        "reason": _reason(accuracy, p_chance, above_control, control_seeds),
    }


def hits_of(margins: np.ndarray) -> np.ndarray:
    """1 where the chosen response is ahead, 0 where it is behind, one half for a tie."""
    return np.asarray((np.sign(margins) + 1) / 2)


def _reason(accuracy: Effect, p_chance: float, above_control: bool, controls: int) -> str:
    """The gate's answer in a sentence."""
    share = f"{accuracy['mean']:.1%} of the held-out pairs"
    if np.isnan(p_chance):
        return f"{accuracy['conversations']} held-out conversations are too few to tell"
    if p_chance >= ALPHA:
        return f"Full ranks {share} right, which is not better than chance"
    if not above_control:
        return f"Full ranks {share} right, but not better than trainings with shuffled labels do"
    beyond = "chance and than trainings with shuffled labels"
    if not controls:
        beyond = "chance. No training with shuffled labels was there to compare it with"
    spread = (
        "" if accuracy["over"] == "pairs and seeds" else ". The spread between seeds is not known"
    )
    return f"Full ranks {share} right, better than {beyond}{spread}"
