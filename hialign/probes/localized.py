"""What patched runs say: m of each pair, and recovery with its interval."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from hialign.probes.common import ProbePair
from hialign.probes.estimates import known
from hialign.probes.patched_runs import LogProbs
from hialign.statistics import pooled_interval, ratio_interval

VERSIONS = ("summed", "normalized")  # of m: nats, and nats a token of each response
Margins = dict[str, list[float]]  # version -> m of each pair


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


def estimate(value: float, ends: tuple[float, float], n: int) -> dict[str, Any]:
    """An estimate as records hold it; no interval where there is none."""
    low, high = (known(end) for end in ends)
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
