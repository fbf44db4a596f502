"""The judge's scores by cell, and what is compared in them."""

from collections.abc import Iterable

import pandas as pd

from hialign.records import frames
from hialign.statistics import comparisons as tests
from hialign.statistics.intervals import pooled_interval
from hialign.study.blocks import strategy_of
from hialign.study.study import Study

OVERALL = "Overall"  # the dimension that Tables 2 and 3 are about
FLUENCY, LOGIC = "GrammarFluency", "CoherenceLogic"  # v1's alignment tax, by Table 6's names


def overall(study: Study) -> pd.DataFrame:
    """The judge's Overall scores: model, block, strategy, prompt_id, score (NaN where it failed)."""
    scores = frames.judgments(study)
    return scores[scores.dimension == OVERALL]


@frames.remembered
def by_cell(study: Study) -> pd.DataFrame:
    """Overall by model and block: mean, std, the mean's 95% interval (low, high), scored, failed.

    One row per cell with at least one score.
    """
    rows = []
    for (model, block), asked in overall(study).groupby(["model", "block"], sort=False):
        scored = asked.dropna(subset="score")
        points, prompts = scored.score.tolist(), scored.prompt_id.tolist()
        if not points:
            continue
        ends = pooled_interval(points, prompts, study.evaluation.resamples)
        row = (model, block, strategy_of(str(block)), scored.score.mean(), scored.score.std())
        rows.append((*row, *ends, len(scored), len(asked) - len(scored)))
    columns = ["model", "block", "strategy", "mean", "std", "low", "high", "scored", "failed"]
    return pd.DataFrame(rows, columns=columns)


@frames.remembered
def compared(study: Study) -> pd.DataFrame:
    """`comparisons.compare` of the study's Overall scores: one family of tests, by the study's margin.

    Each trained strategy against Base, and each of the others against Full-DPO.
    """
    return tests.compare(
        overall(study),
        pairs_of(study.blocks),
        study.analysis.margin,
    )


@frames.remembered
def dimension_differences(study: Study) -> pd.DataFrame:
    """Each trained strategy minus Base in each dimension but Overall, over all models: one family.

    Columns as of `comparisons.compare`, and dimension.
    """
    scores = frames.judgments(study)
    blocks = [block for block in study.blocks if block != "base" and "base" in study.blocks]
    names = [name for name in dict.fromkeys(scores.dimension) if name != OVERALL]
    # Each strategy in each dimension as a block of its own, compared with Base in the same
    scores = scores.assign(block=crossed(scores, "block", "dimension"))
    cells = [(block, name) for name in names for block in blocks]
    pairs = [(f"{block}\n{name}", f"base\n{name}") for block, name in cells]
    differences = tests.compare(scores, pairs)
    parts = {"block": [b for b, _ in cells], "dimension": [name for _, name in cells]}
    return differences.assign(**parts, reference="base")


@frames.remembered
def taxed(study: Study) -> pd.DataFrame:
    """`comparisons.alignment_tax` of the trained strategies, by the study's margin."""
    return tests.alignment_tax(
        frames.judgments(study),
        [block for block in study.blocks if block != "base"],
        FLUENCY,
        LOGIC,
        study.analysis.margin,
    )


def pairs_of(blocks: Iterable[str]) -> list[tuple[str, str]]:
    """What is compared: each trained strategy with Base, and each of the others with Full-DPO."""
    trained = [block for block in blocks if block != "base"]
    pairs = [(block, "base") for block in trained if "base" in blocks]
    return pairs + [(block, "full") for block in trained if "full" in trained and block != "full"]


def crossed(scores: pd.DataFrame, a: str, b: str) -> list[str]:
    """Each combination of two columns as one name, for tests that compare names."""
    return [f"{x}\n{y}" for x, y in zip(scores[a], scores[b], strict=True)]
