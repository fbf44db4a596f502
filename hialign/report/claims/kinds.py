"""The kinds of test that a claim can name, each giving the parts that decide it.

A claim is supported only if every part of it is, and contradicted if one part is (an
intersection-union test); `hialign.report.claims.ledger` puts the parts together. All are oriented so that a claim
holds on the positive side: an estimate is what the claim says should be above its bound.
"""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from hialign.records import frames
from hialign.report import paper
from hialign.report.claims import probe_parts
from hialign.report.claims.material import NAN, Material, Part, Untested
from hialign.report.scores import FLUENCY, LOGIC, OVERALL
from hialign.statistics.comparisons import above, alignment_tax, paired_differences, signed_rank
from hialign.statistics.intervals import pooled_interval
from hialign.study.blocks import check_block, strategy_of
from hialign.study.rubric import DIMENSIONS

FEWEST = 6  # prompts or steps below which no rank test can reach 5%
THIRDS = ("local", "mid", "global")


class Test(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    judged: bool = Field(False, exclude=True)  # whether it rests on the judge
    unit: str = Field("points", exclude=True)

    def parts(self, material: Material) -> list[Part]:
        raise NotImplementedError


def _known_dimension(name: str) -> str:
    if name not in DIMENSIONS:
        raise ValueError(f"{name!r} is not a dimension of Table 6: {', '.join(DIMENSIONS)}")
    return name


class _Compared(Test):
    block: str | list[str]
    references: list[str] = Field(min_length=1)

    @field_validator("block", "references")
    @classmethod
    def _blocks(cls, names: str | list[str]) -> str | list[str]:
        for name in [names] if isinstance(names, str) else names:
            check_block(name)
        return names

    @property
    def couples(self) -> list[tuple[str, str]]:
        blocks = [self.block] if isinstance(self.block, str) else self.block
        return [(block, reference) for block in blocks for reference in self.references]


class _Judged(_Compared):
    dimensions: list[str] = Field(min_length=1)
    models: list[str] | None = None
    judged: bool = Field(True, exclude=True)

    @field_validator("dimensions")
    @classmethod
    def _dimensions(cls, names: list[str]) -> list[str]:
        return [_known_dimension(name) for name in names]

    def _parts(self, material: Material, margin: float) -> list[Part]:
        models = tuple(self.models) if self.models else None
        found = []
        for dimension in self.dimensions:
            scores = material.judged(dimension, models)
            for block, reference in self.couples:
                what = f"{dimension}: {strategy_of(block)} minus {strategy_of(reference)}"
                key = (dimension, models)
                found.append(material.difference(key, scores, block, reference, what, margin))
        return found


class Above(_Judged):
    """Each difference above zero, by Wilcoxon's signed-rank test, one-sided, paired by prompt."""

    kind: Literal["above"]

    def parts(self, material: Material) -> list[Part]:
        return self._parts(material, 0.0)


class NotInferior(_Judged):
    """No loss as large as the margin, by one-sided t-tests paired by prompt."""

    kind: Literal["not_inferior"]
    margin: float = Field(gt=0)

    def parts(self, material: Material) -> list[Part]:
        return self._parts(material, self.margin)


class Level(Test):
    """Each mean on its side of the level, by one-sided t-tests over prompts."""

    kind: Literal["level"]
    dimensions: list[str] = Field(min_length=1)
    above: list[str] = []
    below: list[str] = []
    level: float = Field(ge=1, le=5)
    judged: bool = Field(True, exclude=True)

    @field_validator("dimensions")
    @classmethod
    def _dimensions(cls, names: list[str]) -> list[str]:
        return [_known_dimension(name) for name in names]

    @field_validator("above", "below")
    @classmethod
    def _blocks(cls, names: list[str]) -> list[str]:
        return [check_block(name) for name in names]

    def parts(self, material: Material) -> list[Part]:
        found = []
        for dimension in self.dimensions:
            scores = material.judged(dimension)
            material.require(scores, *self.above, *self.below)
            for block in (*self.above, *self.below):
                kept = scores[scores.block == block].dropna(subset="score")
                values = kept.groupby("prompt_id").score.mean()
                draws = material.study.evaluation.resamples
                low, high = pooled_interval(kept.score.tolist(), kept.prompt_id.tolist(), draws)
                mean, name = float(kept.score.mean()), f"{dimension}: {strategy_of(block)}"
                up = above(values.to_list(), self.level)
                down = above((-values).to_list(), -self.level)
                counts: dict[str, Any] = {"n": len(values), "std": float(values.std())}
                if block in self.above:
                    part = Part(name, mean, low, high, self.level, up, down, **counts)
                else:  # the other way round, so that the claim is again on the upper side
                    what = f"{self.level:g} minus {name}"
                    ends = self.level - high, self.level - low
                    part = Part(what, self.level - mean, *ends, 0.0, down, up, **counts)
                found.append(part)
        return found


class Tax(Test):
    """The tax paid, by signed-rank tests of gain and loss; or below the margin, by t-tests; by prompt."""

    kind: Literal["tax"]
    blocks: list[str] = Field(min_length=1)
    paid: bool
    margin: float = Field(gt=0)
    judged: bool = Field(True, exclude=True)

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, names: list[str]) -> list[str]:
        return [check_block(name) for name in names]

    def parts(self, material: Material) -> list[Part]:
        scores = material.scores
        material.require(material.judged(FLUENCY), "base", *self.blocks)
        draws, found = material.study.evaluation.resamples, []
        for block in self.blocks:
            (row,) = alignment_tax(scores, [block], FLUENCY, LOGIC, self.margin, draws).to_dict(
                "records"
            )
            tax, low, high = row["tax"], row["tax_low"], row["tax_high"]
            count: dict[str, Any] = {"n": int(row["prompts"])}
            if self.paid:
                what = f"tax of {strategy_of(block)}"
                tests = row["p_holm"], row["p_out"]
                found.append(Part(what, tax, low, high, 0.0, *tests, floor=self.margin, **count))
            else:
                what = f"{self.margin:g} minus the tax of {strategy_of(block)}"
                ends = self.margin - high, self.margin - low
                tests = row["p_out"], row["p_holm"]
                part = Part(what, self.margin - tax, *ends, 0.0, *tests, floor=self.margin, **count)
                found.append(part)
        return found


class Models(Test):
    """Each difference between models above zero, by Wilcoxon's signed-rank test paired by prompt."""

    kind: Literal["models"]
    model: str
    references: list[str] = Field(min_length=1)
    dimensions: list[str] = [OVERALL]
    judged: bool = Field(True, exclude=True)

    def parts(self, material: Material) -> list[Part]:
        found = []
        for dimension in self.dimensions:
            scores = material.judged(dimension, [self.model, *self.references])
            for block in material.study.blocks:
                kept = scores[scores.block == block]
                # models take the place of blocks
                crossed = kept.assign(block=kept.model.str.casefold(), model="")
                for reference in self.references:
                    values = paired_differences(
                        crossed, self.model.casefold(), reference.casefold()
                    )
                    if values.empty:
                        raise Untested(f"{strategy_of(block)} has not been judged on both models")
                    data, prompts = values.score.tolist(), values.prompt_id.tolist()
                    ends = pooled_interval(data, prompts, material.study.evaluation.resamples)
                    what = f"{dimension}, {strategy_of(block)}: {self.model} minus {reference}"
                    tests = signed_rank(data, "greater")[0], signed_rank(data, "less")[0]
                    mean, std = float(np.mean(data)), float(np.std(data, ddof=1))
                    found.append(Part(what, mean, *ends, 0.0, *tests, n=len(data), std=std))
        return found


class Reward(_Compared):
    """Each difference above zero, by Wilcoxon's signed-rank test, one-sided, paired by prompt."""

    kind: Literal["reward"]
    measure: Literal["hit"]  # not the margin, which grows with any update
    unit: str = Field("of the pairs", exclude=True)

    def parts(self, material: Material) -> list[Part]:
        return _of_pairs(self, material, "all", self.measure)


class Objective(_Compared):
    """Each difference above zero, by Wilcoxon's signed-rank test, one-sided, paired by prompt."""

    kind: Literal["objective"]
    objective: Literal["grammar", "coherence", "factuality"]
    unit: str = Field("nats", exclude=True)

    def parts(self, material: Material) -> list[Part]:
        return _of_pairs(self, material, self.objective, "margin")


def _of_pairs(test: _Compared, material: Material, group: str, measure: str) -> list[Part]:
    kept = material.pairs[[group in groups for groups in material.pairs.groups]]
    if kept.empty:
        raise Untested(f"this study has no held-out pairs of {group}")
    scores = kept.groupby(["model", "prompt_id", "block"])[measure].mean()
    frame = scores.rename("score").reset_index()
    found = []
    for block, reference in test.couples:
        what = f"{measure}, {group}: {strategy_of(block)} minus {strategy_of(reference)}"
        key = (group, measure)
        found.append(material.difference(key, frame, block, reference, what, 0.0))
    return found


class Loss(Test):
    """Loss and step correlated negatively in each cell, by Kendall's rank correlation, one-sided."""

    kind: Literal["loss"]
    unit: str = Field("Kendall's tau", exclude=True)

    def parts(self, material: Material) -> list[Part]:
        from scipy.stats import kendalltau

        steps, found = frames.training(material.study).dropna(subset="loss"), []
        for (model, strategy), run in steps.groupby(["model", "strategy"], sort=False):
            if len(run) < FEWEST:
                raise Untested(f"{strategy} of {model} has {len(run)} steps, too few for a trend")
            tau = float(kendalltau(run.step, run.loss).statistic)
            down, up = (
                float(kendalltau(run.step, run.loss, alternative=side).pvalue)
                for side in ("less", "greater")
            )
            what = f"minus tau of loss and step, {strategy}, {model}"
            found.append(Part(what, -tau, NAN, NAN, 0.0, down, up, n=len(run)))
        if not found:
            raise Untested("no cell of this study has been trained yet")
        return found


class Parameters(Test):
    """The share no larger than stated, by counting; no test."""

    kind: Literal["parameters"]
    block: str
    reference: str
    at_most: float = Field(gt=0)
    unit: str = Field("share", exclude=True)

    def parts(self, material: Material) -> list[Part]:
        runs = frames.manifests(material.study)
        counts = runs[runs.status == "done"].set_index(["model", "block"]).trainable_parameters
        found = []
        for model in dict.fromkeys(runs.model):
            ours, theirs = (counts.get((model, b), 0) for b in (self.block, self.reference))
            if not (ours and theirs):
                continue
            share = float(ours) / float(theirs)
            names = f"{strategy_of(self.block)} over {strategy_of(self.reference)}"
            found.append(Part(f"{names}, {model}", share, decided=share <= self.at_most))
        if not found:
            raise Untested("the two strategies have not both been trained yet")
        return found


class Partition(Test):
    """Equal for every model of Table 4, by computation; no test."""

    kind: Literal["partition"]
    unit: str = Field("layers", exclude=True)

    def parts(self, material: Material) -> list[Part]:
        found = []
        for row in paper.rows("table_4"):
            thirds = np.array_split(np.arange(row["layers"]), 3)
            split = {name: [int(t[0]), int(t[-1])] for name, t in zip(THIRDS, thirds, strict=True)}
            same = all(row[name] == split[name] for name in split)
            found.append(Part(f"{row['model']}", float(row["layers"]), decided=same))
        return found


class Probe(Test):
    """Of a probe's records: what decides was fixed in words before there were any."""

    kind: Literal["probe"]
    probe: Literal["gradients", "ila", "patching"]
    statistic: str
    supported_if: str
    contradicted_if: str
    unit: str = Field("of its unit", exclude=True)

    @field_validator("statistic")
    @classmethod
    def _statistic(cls, name: str) -> str:
        if name not in probe_parts.STATISTICS:
            raise ValueError(f"{name!r} is not one of {', '.join(probe_parts.STATISTICS)}")
        return name

    def parts(self, material: Material) -> list[Part]:
        return probe_parts.probe_parts(material.study, self.probe, self.statistic)


class Untestable(Test):
    """None: the paper says it too loosely."""

    kind: Literal["untestable"]
    why: str

    def parts(self, material: Material) -> list[Part]:
        raise Untested(self.why)


AnyTest = Annotated[
    Above
    | NotInferior
    | Level
    | Tax
    | Models
    | Reward
    | Objective
    | Loss
    | Parameters
    | Partition
    | Probe
    | Untestable,
    Field(discriminator="kind"),
]
