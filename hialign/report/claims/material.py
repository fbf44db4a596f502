"""What the tests of the claims ledger read of a study, and what each of their comparisons gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from hialign.records import frames
from hialign.statistics.comparisons import above, paired_differences, signed_rank
from hialign.statistics.intervals import difference_interval
from hialign.study.blocks import STRATEGIES, strategy_of
from hialign.study.study import Study

NAN = float("nan")


class Untested(Exception):
    """A study cannot decide a claim at all. The message says why."""


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: `estimate` should be above `bound`."""

    what: str
    estimate: float
    low: float = NAN
    high: float = NAN
    bound: float = 0.0
    p_for: float = NAN  # one-sided, that it is above
    p_against: float = NAN  # one-sided, that it is below
    n: int = 0  # prompts (or steps)
    std: float = NAN  # of the prompts' values
    decided: bool | None = None  # without a test: by computation
    undecided: str = ""  # by computation too: why it neither holds nor fails
    short: bool = False  # by computation too: it holds, but not with the claim's own number
    floor: float | None = None  # below which it counts as refuted, if that is not the bound
    threshold: float | None = None  # the claim's own number, which the estimate itself must reach
    p_short: float = NAN  # one-sided, that it is below the threshold

    @property
    def backs(self) -> bool:
        """Whether the interval agrees with a test for the claim."""
        if self.threshold is not None and self.estimate <= self.threshold:
            return False
        return self.estimate > self.bound if np.isnan(self.low) else self.low > self.bound

    @property
    def refutes(self) -> bool:
        """Whether the interval agrees with a test against the claim."""
        bound = self.bound if self.floor is None else self.floor
        return self.estimate < bound if np.isnan(self.high) else self.high < bound

    @property
    def falls_short(self) -> bool:
        """Whether the interval agrees with a test that the claim's own number is not reached."""
        if self.threshold is None:
            return False
        return (self.estimate if np.isnan(self.high) else self.high) < self.threshold

    def below(self, level: float, article: str = "") -> "Part":
        """`level` minus this part, so that being below the level is the upper side."""
        return replace(
            self,
            what=f"{level:g} minus {article}{self.what}",
            estimate=level - self.estimate,
            low=level - self.high,
            high=level - self.low,
            bound=0.0,
            p_for=self.p_against,
            p_against=self.p_for,
        )


def paired(
    what: str,
    values: Sequence[float] | np.ndarray,
    prompts: Sequence[str],
    *,
    bound: float = 0.0,
) -> Part:
    """The mean of `values`, tested over the prompts' means: by ranks above 0, by t above a bound.

    The interval is Student's t over prompts. Fewer than five prompts have neither interval nor p.

    Args:
        what: what was measured, in words.
        values: one number per pair or response.
        prompts: the prompt of each value.
        bound: what the mean should be above.
    """
    values = np.asarray(values, dtype=float)
    low, high = difference_interval(values.tolist(), prompts)
    means = pd.Series(values).groupby(list(prompts)).mean()
    data = means.to_list()
    if np.isnan(low):
        tests = NAN, NAN
    elif bound:
        tests = above(data, bound), above([-value for value in data], -bound)
    else:
        tests = signed_rank(data, "greater")[0], signed_rank(data, "less")[0]
    mean, std = float(values.mean()), float(means.std())
    return Part(what, mean, low, high, bound, *tests, n=len(data), std=std)


class Material:
    """What the tests of one study read: each kind of record once, each comparison once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._differences: dict[Any, Part] = {}

    @property
    def strategies(self) -> list[str]:
        """The paper's strategies among the study's blocks. The others are controls."""
        return [block for block in self.study.blocks if block in STRATEGIES]

    @cached_property
    def scores(self) -> pd.DataFrame:
        if self.study.judge is None:
            raise Untested("this study has no judge")
        scores = frames.judgments(self.study)
        if not scores.score.notna().any():
            raise Untested("no response of this study has been judged yet")
        return scores

    @cached_property
    def pairs(self) -> pd.DataFrame:
        pairs = frames.pairs(self.study)
        if pairs.empty:
            raise Untested("no tuned cell of this study has been evaluated yet")
        return pairs

    def judged(self, dimension: str, models: Sequence[str] | None = None) -> pd.DataFrame:
        """Scores in one dimension, of some models by their labels (all if None)."""
        if dimension not in set(self.scores.dimension):
            raise Untested(f"the judge of this study does not score {dimension}")
        scores = self.scores[self.scores.dimension == dimension]
        if models is None:
            return scores
        labels = {label.casefold() for label in models}
        if missing := labels - {m.label.casefold() for m in self.study.models}:
            named = [m for m in models if m.casefold() in missing]
            raise Untested(f"this study does not have {', '.join(named)}")
        return scores[scores.model.str.casefold().isin(labels)]

    def difference(
        self, key: Any, scores: pd.DataFrame, block: str, reference: str, what: str, margin: float
    ) -> Part:
        """`block` minus `reference`, paired by prompt: above -`margin` by t, above 0 by ranks.

        `key` says which scores these are, so that no comparison is computed twice.
        """
        self.require(scores, block, reference)
        key = (key, block, reference, margin)
        if key not in self._differences:
            values = paired_differences(scores, block, reference)
            points, prompts = values.score.tolist(), values.prompt_id.tolist()
            part = paired(what, points, prompts, bound=0.0 - margin)
            self._differences[key] = part
        return self._differences[key]

    def require(self, scores: pd.DataFrame, *blocks: str) -> None:
        """Untested unless each block has values."""
        have = set(scores.dropna(subset="score").block)
        for block in blocks:
            if block not in self.study.blocks:
                raise Untested(f"{strategy_of(block)} is not in this study")
            if block not in have:
                raise Untested(f"{strategy_of(block)} has not been run to its end")
