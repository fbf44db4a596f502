"""Compares two blocks of a study in everything that was measured of both."""

from pathlib import Path

import pandas as pd

from hialign.records import frames, status
from hialign.statistics import comparisons
from hialign.study.errors import HialignError
from hialign.study.study import Study, load_study

MEASURES = {"hit": "reward accuracy", "margin": "reward margin"}


def compare(study: str | Path | Study, a: str, b: str, model: str | None = None) -> pd.DataFrame:
    """One row per outcome that both blocks have, with `b` minus `a` paired by prompt.

    Outcomes are the accuracy and the margin of the implicit reward, on the study's held-out pairs
    and on each objective's contrasts, and the judge's score if both blocks were judged. Base has
    a margin of zero and no reward accuracy.

    Args:
        study: a study's name, the path of its file, or the study.
        a: the block that is subtracted.
        b: the block that it is subtracted from.
        model: the model; the study's first if None.

    Returns:
        Columns: outcome; n, the number of prompts; the mean of each block over these, named after
        the block; difference, with the ends low and high of its 95% interval (Student's t over
        prompts); p of Wilcoxon's signed-rank test; p_holm, corrected for all rows of the table.

    Raises:
        HialignError: if a block has not been evaluated with the study's present settings.
    """
    loaded = load_study(study)
    cells = [loaded.cell(model, block) for block in (a, b)]
    if a == b:
        raise HialignError(f"compare takes two blocks, not {a!r} twice")
    for cell in cells:
        status.required(cell, "evaluate")
    scores = _scores(loaded.model_copy(update={"models": [cells[0].model], "blocks": [a, b]}))
    both = scores.pivot(index=["outcome", "prompt_id"], columns="block", values="score").dropna()
    means = both.groupby("outcome").mean().reindex(scores.outcome.unique()).dropna()
    # Each outcome of a block as a block of its own, so that all rows are one family of tests
    scores["block"] = scores.block + "\n" + scores.outcome
    pairs = [(f"{b}\n{outcome}", f"{a}\n{outcome}") for outcome in means.index]
    tests = comparisons.compare(scores, pairs)
    columns = {"n": tests.prompts, a: means[a].to_numpy(), b: means[b].to_numpy()}
    differences = tests[["difference", "low", "high", "p", "p_holm"]]
    return pd.DataFrame({"outcome": means.index, **columns}).join(differences)


def _scores(study: Study) -> pd.DataFrame:
    """One row per outcome, block and prompt of a study of two cells: the mean over its pairs."""
    pairs = frames.pairs(study).explode("groups")
    if "base" in study.blocks:
        pairs = pd.concat([pairs, pairs.assign(block="base", margin=0.0, hit=float("nan"))])
    parts = []
    for group in pairs.groups.unique():
        for measure, title in MEASURES.items():
            rows = pairs[pairs.groups == group].rename(columns={measure: "score"})
            parts.append(rows.assign(outcome=title if group == "all" else f"{title}, {group}"))
    if study.judge and all(status.state(c, "judge").trusted for c in study.cells()):
        scores = frames.judgments(study)
        overall = scores[scores.dimension == "Overall"]  # which a rubric of one's own may not have
        title = "judge, mean of all dimensions" if overall.empty else "judge, Overall"
        parts.append((scores if overall.empty else overall).assign(outcome=title))
    keys = ["model", "outcome", "block", "prompt_id"]
    means = pd.concat(parts).groupby(keys, sort=False).score.mean()
    return pd.DataFrame(means.reset_index())
