"""The kinds of test that a claim can name. Each gives the parts that decide the claim.

A claim is supported only if every part of it is, and contradicted if one part is (an
intersection-union test). It is refuted at its own threshold if one part misses the claim's own number. `hialign.report.claims.ledger` puts the parts together. All parts are
oriented so that a claim holds on the positive side: an estimate is what the claim says should be
above its bound.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from scipy.stats import kendalltau

from hialign.records import frames
from hialign.report import paper
from hialign.report.claims import probe_parts
from hialign.report.claims.material import NAN, Material, Part, Untested, paired
from hialign.report.scores import FLUENCY, LOGIC, OVERALL
from hialign.statistics.comparisons import alignment_tax, paired_differences
from hialign.study.blocks import STRATEGIES, strategy_of
from hialign.study.rubric import DIMENSIONS

FEWEST = 6  # prompts or steps below which no rank test can reach 5%
THIRDS = ("local", "mid", "global")


def _check_blocks(names: str | list[str]) -> str | list[str]:
    """Only the paper's strategies: no claim of a paper is about a control or a block of ours."""
    for name in [names] if isinstance(names, str) else names:
        if name not in STRATEGIES:
            raise ValueError(f"{name!r} is not a strategy of the paper: {', '.join(STRATEGIES)}")
    return names


def _check_dimensions(names: list[str]) -> list[str]:
    for name in names:
        if name not in DIMENSIONS:
            raise ValueError(f"{name!r} is not a dimension of Table 6: {', '.join(DIMENSIONS)}")
    return names


def _check_statistic(name: str) -> str:
    if name not in probe_parts.STATISTICS:
        raise ValueError(f"{name!r} is not one of {', '.join(probe_parts.STATISTICS)}")
    return name


Block = Annotated[str, AfterValidator(_check_blocks)]
Blocks = Annotated[list[str], AfterValidator(_check_blocks)]
Dimensions = Annotated[list[str], Field(min_length=1), AfterValidator(_check_dimensions)]
Statistic = Annotated[str, AfterValidator(_check_statistic)]


class Test(BaseModel):
    """What a kind of test needs. `judged` says whether it rests on the judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    judged: ClassVar[bool] = False
    unit: ClassVar[str] = "points"

    def parts(self, material: Material) -> list[Part]:
        """The parts that decide the claim. Untested if the study cannot decide it at all."""
        raise NotImplementedError


class _Compared(Test):
    block: Annotated[str | list[str], AfterValidator(_check_blocks)]
    references: Blocks = Field(min_length=1)

    @property
    def couples(self) -> list[tuple[str, str]]:
        """Each block with each reference."""
        blocks = [self.block] if isinstance(self.block, str) else self.block
        return [(block, reference) for block in blocks for reference in self.references]


class _Judged(_Compared):
    dimensions: Dimensions
    models: list[str] | None = None
    judged: ClassVar[bool] = True

    def _parts(self, material: Material, margin: float) -> list[Part]:
        models = tuple(self.models) if self.models else None
        return [
            material.difference(
                (dimension, models),
                material.judged(dimension, models),
                block,
                reference,
                f"{dimension}: {strategy_of(block)} minus {strategy_of(reference)}",
                margin,
            )
            for dimension in self.dimensions
            for block, reference in self.couples
        ]


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
    dimensions: Dimensions
    above: Blocks = []
    below: Blocks = []
    level: float = Field(ge=1, le=5)
    judged: ClassVar[bool] = True

    def parts(self, material: Material) -> list[Part]:
        parts = []
        for dimension in self.dimensions:
            scores = material.judged(dimension)
            material.require(scores, *self.above, *self.below)
            for block in (*self.above, *self.below):
                of_block = scores[scores.block == block].dropna(subset="score")
                what = f"{dimension}: {strategy_of(block)}"
                points, prompts = of_block.score, of_block.prompt_id
                part = paired(what, points.tolist(), prompts.tolist(), bound=self.level)
                # turned, so that the claim is again on the upper side
                parts.append(part if block in self.above else part.below(self.level))
        return parts


class Tax(Test):
    """The tax paid, by signed-rank tests of gain and loss, or below the margin, by t-tests. By prompt."""

    kind: Literal["tax"]
    blocks: Blocks = Field(min_length=1)
    paid: bool
    margin: float = Field(gt=0)
    judged: ClassVar[bool] = True

    def parts(self, material: Material) -> list[Part]:
        material.require(material.judged(FLUENCY), "base", *self.blocks)
        parts = []
        for block in self.blocks:
            (row,) = alignment_tax(material.scores, [block], FLUENCY, LOGIC, self.margin).to_dict(
                "records"
            )
            part = Part(
                f"tax of {strategy_of(block)}",
                row["tax"],
                row["tax_low"],
                row["tax_high"],
                p_for=row["p_holm"],
                p_against=row["p_out"],
                n=int(row["prompts"]),
                floor=self.margin,
            )
            parts.append(part if self.paid else part.below(self.margin, "the "))
        return parts


class Models(Test):
    """Each difference between models above zero, by Wilcoxon's signed-rank test paired by prompt.

    Under every strategy of the paper that the study has. Its controls do not count.
    """

    kind: Literal["models"]
    model: str
    references: list[str] = Field(min_length=1)
    dimensions: list[str] = [OVERALL]
    judged: ClassVar[bool] = True

    def parts(self, material: Material) -> list[Part]:
        parts = []
        for dimension in self.dimensions:
            scores = material.judged(dimension, [self.model, *self.references])
            for block in material.strategies:
                of_block = scores[scores.block == block]
                # models take the place of blocks
                by_model = of_block.assign(block=of_block.model.str.casefold(), model="")
                for reference in self.references:
                    pair = self.model.casefold(), reference.casefold()
                    values = paired_differences(by_model, *pair)
                    if values.empty:
                        raise Untested(f"{strategy_of(block)} has not been judged on both models")
                    what = f"{dimension}, {strategy_of(block)}: {self.model} minus {reference}"
                    prompts = values.prompt_id.tolist()
                    parts.append(paired(what, values.score.tolist(), prompts))
        return parts


class Reward(_Compared):
    """Each difference above zero, by Wilcoxon's signed-rank test, one-sided, paired by prompt."""

    kind: Literal["reward"]
    measure: Literal["hit"]  # not the margin, which grows with any update
    unit: ClassVar[str] = "of the pairs"

    def parts(self, material: Material) -> list[Part]:
        return _of_pairs(self, material, "all", self.measure)


class Objective(_Compared):
    """Each difference above zero, by Wilcoxon's signed-rank test, one-sided, paired by prompt."""

    kind: Literal["objective"]
    objective: Literal["grammar", "coherence", "factuality"]
    unit: ClassVar[str] = "nats"

    def parts(self, material: Material) -> list[Part]:
        return _of_pairs(self, material, self.objective, "margin")


def _of_pairs(test: _Compared, material: Material, group: str, measure: str) -> list[Part]:
    pairs = material.pairs[[group in groups for groups in material.pairs.groups]]
    if pairs.empty:
        raise Untested(f"this study has no held-out pairs of {group}")
    scores = pairs.groupby(["model", "prompt_id", "block"])[measure].mean()
    frame = scores.rename("score").reset_index()
    parts = []
    for block, reference in test.couples:
        what = f"{measure}, {group}: {strategy_of(block)} minus {strategy_of(reference)}"
        key = (group, measure)
        parts.append(material.difference(key, frame, block, reference, what, 0.0))
    return parts


class Loss(Test):
    """Loss and step correlated negatively in each cell, by Kendall's rank correlation, one-sided.

    The cells are those of the paper's strategies. Controls do not count.
    """

    kind: Literal["loss"]
    unit: ClassVar[str] = "Kendall's tau"

    def parts(self, material: Material) -> list[Part]:
        steps, parts = frames.training(material.study).dropna(subset="loss"), []
        steps = steps[steps.block.isin(material.strategies)]
        for (model, strategy), run in steps.groupby(["model", "strategy"], sort=False):
            if len(run) < FEWEST:
                raise Untested(f"{strategy} of {model} has {len(run)} steps, too few for a trend")
            tau = float(kendalltau(run.step, run.loss).statistic)
            down, up = (
                float(kendalltau(run.step, run.loss, alternative=side).pvalue)
                for side in ("less", "greater")
            )
            what = f"minus tau of loss and step, {strategy}, {model}"
            parts.append(Part(what, -tau, NAN, NAN, 0.0, down, up, n=len(run)))
        if not parts:
            raise Untested("no cell of this study has been trained yet")
        return parts


class Parameters(Test):
    """The share no larger than stated, by counting, without a test.

    A share above what is stated and below one refutes the claim at its own threshold.
    """

    kind: Literal["parameters"]
    block: Block
    reference: Block
    at_most: float = Field(gt=0, lt=1)
    unit: ClassVar[str] = "share"

    def parts(self, material: Material) -> list[Part]:
        runs = frames.manifests(material.study)
        counts = runs[runs.status == "done"].set_index(["model", "block"]).trainable_parameters
        names = f"{strategy_of(self.block)} over {strategy_of(self.reference)}"
        parts = []
        for model in dict.fromkeys(runs.model):
            ours, theirs = (counts.get((model, b), 0) for b in (self.block, self.reference))
            if not (ours and theirs):
                continue
            share = float(ours) / float(theirs)
            short = self.at_most < share < 1
            decided = None if short else share <= self.at_most
            parts.append(Part(f"{names}, {model}", share, decided=decided, short=short))
        if not parts:
            raise Untested("the two strategies have not both been trained yet")
        return parts


class Partition(Test):
    """Equal for every model of Table 4, by computation, without a test."""

    kind: Literal["partition"]
    unit: ClassVar[str] = "layers"

    def parts(self, material: Material) -> list[Part]:
        parts = []
        for row in paper.rows("table_4"):
            thirds = np.array_split(np.arange(row["layers"]), 3)
            split = {name: [int(t[0]), int(t[-1])] for name, t in zip(THIRDS, thirds, strict=True)}
            same = all(row[name] == split[name] for name in split)
            parts.append(Part(f"{row['model']}", float(row["layers"]), decided=same))
        return parts


class Probe(Test):
    """From a probe's records. What decides was written down before there were any."""

    kind: Literal["probe"]
    probe: Literal["gradients", "ila", "patching"]
    statistic: Statistic
    supported_if: str
    contradicted_if: str
    refuted_if: str = ""  # at its own threshold, if it has one
    unit: ClassVar[str] = "of its unit"

    def parts(self, material: Material) -> list[Part]:
        return probe_parts.probe_parts(material.study, self.probe, self.statistic)


class Untestable(Test):
    """None: the paper says it too loosely."""

    kind: Literal["untestable"]
    why: str

    def parts(self, material: Material) -> list[Part]:
        raise Untested(self.why)


Kind = (
    Above | NotInferior | Level | Tax | Models | Reward | Objective
    | Loss | Parameters | Partition | Probe | Untestable
)  # fmt: skip
AnyTest = Annotated[Kind, Field(discriminator="kind")]
