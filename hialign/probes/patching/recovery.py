"""What patched runs say: m of each pair, and recovery with its interval."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from hialign.probes.pairs import ProbePair
from hialign.probes.patching.runs import LogProbs
from hialign.statistics.intervals import pooled_interval, ratio_interval
from hialign.statistics.margins import gained, or_none

VERSIONS = ("summed", "normalized")  # of m: nats, and nats a token of each response
Margins = dict[str, list[float]]  # version -> m of each pair
# Nats a pair: what two runs of one function may differ by, in single precision and in less
NEAR_ZERO = {torch.float32: 1e-3}
NEAR_ZERO_ELSE = 0.1


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
    low, high = (or_none(end) for end in ends)
    return {"estimate": value, "low": low, "high": high, "n": n}


def difference(
    base: Sequence[float],
    tuned: Sequence[float],
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What tuning did to m: the mean of m_tuned - m_base with its interval, and the mean of its
    absolute value (`size`)."""
    values = np.subtract(tuned, base)
    ends = pooled_interval(list(values), prompts, resamples, seed=seed)
    found = estimate(float(values.mean()), ends, len(values))
    return found | {"size": float(np.abs(values).mean())}


def nothing_to_recover(apart: dict[str, Any], dtype: torch.dtype) -> str | None:
    """Why a `difference` (summed, nats) is too small for a recovery; None where it is not."""
    least = NEAR_ZERO.get(dtype, NEAR_ZERO_ELSE)
    if apart["low"] is None:
        return "no interval: the pairs have fewer than two different prompts"
    if apart["size"] > least:
        return None
    return (
        f"no difference to recover: m_tuned and m_base are {apart['size']:.2g} nats apart, mean over "
        f"pairs; {least:g} may be rounding"
    )


def recovery(
    patched: Sequence[float],
    receiver: Sequence[float],
    donor: Sequence[float],
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The mean of pairs' recoveries (m_patched - m_receiver) / (m_donor - m_receiver), each weighted by
    the size of its denominator; with its interval over prompts.

    A pair whose denominator is near 0 has next to no weight. Without the weights it would count
    for more than all others; by the ratio of the two means, pairs that tuning moved up and such that
    it moved down would cancel each other.
    """
    over, under = gained(patched, receiver, donor), gained(donor, receiver, donor)
    ends = ratio_interval(list(over), list(under), prompts, resamples, seed=seed)
    return estimate(float(over.sum() / under.sum()), ends, len(over))
