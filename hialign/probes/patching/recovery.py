"""Summaries of patched runs: m of each pair, its signed change, and recovery, with intervals."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hialign.probes.pairs import ProbePair
from hialign.probes.patching.runs import LogProbs
from hialign.statistics.intervals import difference_interval, ratio_interval
from hialign.statistics.margins import gained, or_none

VERSIONS = ("summed", "normalized")  # of m, in nats and in nats per token of each response
Margins = dict[str, list[float]]  # version -> m of each pair
# Nats per pair by which two runs of one function may differ, in single precision and in less
NEAR_ZERO = {torch.float32: 1e-3}
NEAR_ZERO_ELSE = 0.1


def prompts_of(pairs: Sequence[ProbePair]) -> list[str]:
    """The prompts' ids, by which intervals are clustered."""
    return [pair.prompt for pair in pairs]


def lengths(pair: ProbePair) -> tuple[int, int]:
    """Tokens of the chosen and the rejected response."""
    chosen, rejected = (len(t.ids) - max(t.start, 1) for t in pair.tokens)
    return chosen, rejected


def tokens_of(pairs: Sequence[ProbePair]) -> int:
    """The tokens of all sequences, with no beginning shared."""
    return sum(len(t.ids) for pair in pairs for t in pair.tokens)


def margins(values: LogProbs, pairs: Sequence[ProbePair]) -> Margins:
    """m of each pair from its two log-probabilities, in nats and in nats per token."""
    both = [(c, r, *lengths(pair)) for (c, r), pair in zip(values, pairs, strict=True)]
    return {
        "summed": [c - r for c, r, _, _ in both],
        "normalized": [c / n - r / k for c, r, n, k in both],
    }


def estimate(value: float, ends: tuple[float, float], n: int) -> dict[str, Any]:
    """An estimate with its interval, as records hold it. An end that is not a number becomes None."""
    low, high = (or_none(end) for end in ends)
    return {"estimate": value, "low": low, "high": high, "n": n}


def difference(
    base: Sequence[float],
    tuned: Sequence[float],
    prompts: Sequence[Hashable],
) -> dict[str, Any]:
    """How tuning changed m: the mean of m_tuned - m_base with its interval over prompts.

    `size` is the mean of the absolute value.
    """
    values = np.subtract(tuned, base)
    ends = difference_interval(list(values), prompts)
    mean = estimate(float(values.mean()), ends, len(values))
    return mean | {"size": float(np.abs(values).mean())}


def nothing_to_recover(apart: dict[str, Any], dtype: torch.dtype) -> str | None:
    """Why a `difference` (summed, nats) is too small for a recovery. None if it is not."""
    least = NEAR_ZERO.get(dtype, NEAR_ZERO_ELSE)
    if apart["low"] is None:
        return "no interval: the pairs have fewer than five different prompts"
    if apart["size"] > least:
        return None
    return (
        f"no difference to recover: m_tuned and m_base are {apart['size']:.2g} nats apart, mean over "
        f"pairs; {least:g} may be rounding"
    )


def change(
    patched: Sequence[float],
    own: Mapping[str, Sequence[float]],
    direction: str,
    prompts: Sequence[Hashable],
) -> dict[str, Any]:
    """What the tuned model's part adds to m, in nats: positive is towards the human preference.

    That is m_patched - m_base if the tuned model's part is put into base, and m_tuned - m_patched if
    base's part takes its place in the tuned model. `own` has m of both sides. The result is the mean
    over pairs with its interval over prompts. It turns its sign if chosen and rejected are exchanged.
    """
    into_base = direction == "tuned_into_base"
    before, after = (own["base"], patched) if into_base else (patched, own["tuned"])
    values = np.subtract(after, before)
    ends = difference_interval(values.tolist(), prompts)
    return estimate(float(values.mean()), ends, len(values))


def recovery(
    patched: Sequence[float],
    receiver: Sequence[float],
    donor: Sequence[float],
    prompts: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The share of the donor's m that a patch brings into the receiver, with its interval.

    A pair's recovery is (m_patched - m_receiver) / (m_donor - m_receiver). The result is the mean over
    pairs, each weighted by the size of its denominator. Pairs that tuning barely moved therefore
    count for little. Without the weights they would count for more than all others. In a ratio of the
    two means, pairs that tuning moved up and pairs that it moved down would cancel each other.

    This says nothing about preferences: it is the same if chosen and rejected are exchanged. `change`
    does.

    Args:
        patched: N, each pair's m under the patch.
        receiver: N, the receiver's m without it.
        donor: N, the donor's m.
        prompts: N, the pairs' prompts, over which the interval is taken.
        resamples: the number of bootstrap samples.
        seed: what draws them.
    """
    over, under = gained(patched, receiver, donor), gained(donor, receiver, donor)
    ends = ratio_interval(list(over), list(under), prompts, resamples, seed=seed)
    return estimate(float(over.sum() / under.sum()), ends, len(over))
