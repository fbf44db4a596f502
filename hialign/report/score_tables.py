"""The tables of the judge's scores: Tables 2 and 3, what is tested, and the paper beside ours.

Every verdict comes from `hialign.statistics.comparisons`. The tests of one table are one family. What
is missing is NaN, shown as "–".
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd

from hialign.report import paper
from hialign.report.display import Columns, Row, Table, table_of, view
from hialign.report.replication.gates import nothing_learned, unsure_gated
from hialign.report.scores import by_cell, compared, crossed, dimension_differences, overall, taxed
from hialign.statistics import comparisons as tests
from hialign.statistics.intervals import (
    ALPHA,
    difference_interval,
    interval_of_difference,
    interval_text,
    p_text,
    pooled_interval,
    prompts_needed,
    smallest_difference,
    unpaired_needed,
)
from hialign.study.blocks import strategy_of
from hialign.study.study import Study

Z = 1.959964  # of a normal 95% interval
Number = Literal["mean", "std", "difference"]
DIFFERENCE: Columns = {  # the columns of a comparison that all tables of tests have
    "Difference": "difference", "95% interval": ("low", "high"), "Effect size": "effect",
    "p (Holm)": lambda row: p_text(row["p_holm"]),
}  # fmt: skip


def table2(study: Study) -> Table:
    """Table 2: the judge's Overall score by strategy, over all models of the study.

    Means are over all scored responses, as in the paper. Their intervals draw prompts, since the
    models answer the same ones. Failed judgments are counted and enter no mean.
    """
    scores = overall(study)
    ranks = tests.rank_ranges(scores)
    papers = {row["block"]: row for row in paper.rows("table_2")}
    rows = []
    for block in study.blocks:
        asked = scores[scores.block == block]
        scored = asked.dropna(subset="score")
        points, prompts = scored.score.tolist(), scored.prompt_id.tolist()
        ends = pooled_interval(points, prompts, study.evaluation.resamples)
        rows.append(
            {
                "Strategy": strategy_of(block),
                "Mean Overall": scored.score.mean(),
                "95% interval": interval_text(*ends),
                "Rank range": _range(ranks.get(block)),
                "Std": scored.score.std(),
                "Median": scored.score.median(),
                "Models": scored.model.nunique(),
                "Scored": len(scored),
                "Failed": len(asked) - len(scored),
                "Paper: mean": papers.get(block, {}).get("mean"),
                "Paper: std": papers.get(block, {}).get("std"),
            }
        )
    return table_of(rows)


def table3(study: Study, top: int = 10) -> Table:
    """Table 3: the `top` model-strategy combinations by mean Overall score.

    Rank ranges are among all combinations of the study. The paper's rank and mean stand beside
    where it has a combination of the same model name.
    """
    papers = {(r["model"].casefold(), r["block"]): r for r in paper.rows("table_3")}
    scores = overall(study)
    # Each combination as a strategy of one model: all answer the same prompts
    ranks = tests.rank_ranges(scores.assign(block=crossed(scores, "model", "block"), model=""))
    table = by_cell(study).sort_values("mean", ascending=False, kind="stable")[:top]
    rows = [
        papers.get((row["model"].casefold(), row["block"]), {})
        | {f"our {name}": value for name, value in row.items()}
        | {"place": place, "range": _range(ranks[f"{row['model']}\n{row['block']}"])}
        for place, row in enumerate(table.to_dict("records"), 1)
    ]
    columns: Columns = {
        "Rank": "place", "Rank range": "range", "Model": "our model", "Strategy": "our strategy",
        "Mean Overall": "our mean", "95% interval": ("our low", "our high"),
        "Scored": "our scored", "Failed": "our failed", "Paper: rank": "rank", "Paper: mean": "mean",
    }  # fmt: skip
    return Table(view(rows, columns).astype({"Rank": int, "Paper: rank": "Int64"}))


def comparisons(study: Study) -> Table:
    """Which strategies differ in the Overall score: the tests behind every sentence on it."""
    papers = {
        (row["block"], row["reference"]): row["difference"]
        for row in paper.differences()
        if row["model"] is None
    }
    learned = not nothing_learned(study)
    columns: Columns = {
        "Strategy": lambda row: strategy_of(row["block"]),
        "Against": lambda row: strategy_of(row["reference"]),
        "Verdict": lambda row: unsure_gated(row["verdict"], learned),
        **DIFFERENCE,
        "p, inferior (Holm)": lambda row: p_text(row["p_margin"]),
        "Prompts": lambda row: row["prompts"] or None,
        "Paper: difference": lambda row: papers.get((row["block"], row["reference"])),
    }
    table = view(compared(study).to_dict("records"), columns)
    return Table(table.astype({"Prompts": "Int64"})) if len(table) else Table([])


def dimensions(study: Study) -> Table:
    """The differences from Base that Figure 3 draws: all dimensions but Overall, over all models."""
    learned = not nothing_learned(study)
    columns: Columns = {
        "Dimension": "dimension",
        "Strategy": lambda row: strategy_of(row["block"]),
        "Verdict": lambda row: unsure_gated(row["verdict"], learned),
    }
    return view(dimension_differences(study).to_dict("records"), columns | DIFFERENCE)


def alignment_tax(study: Study) -> Table:
    """v1's alignment tax: fluency gained and logic lost against Base, and the smaller of the two."""
    columns: Columns = {
        "Strategy": lambda row: strategy_of(row["block"]), "Verdict": "verdict",
        "Gain": "gain", "Gain, 95%": ("gain_low", "gain_high"),
        "Loss": "loss", "Loss, 95%": ("loss_low", "loss_high"),
        "Tax": "tax", "Tax, 95%": ("tax_low", "tax_high"),
        "p, paid (Holm)": lambda row: p_text(row["p_holm"]),
        "p, over margin (Holm)": lambda row: p_text(row["p_out"]),
    }  # fmt: skip
    table = view(taxed(study).to_dict("records"), columns)
    return table if len(table) else Table([])


def power(study: Study) -> Table:
    """How many prompts would show the paper's differences, and what this study's can show.

    The tests are those of the strictest step of Holm's correction over the table of comparisons.
    """
    table = compared(study)
    share, alpha = study.analysis.power, ALPHA / max(1, table.p_holm.count() or len(table))
    rows = []
    for row in paper.differences():
        values = _paired(study, row).groupby("prompt_id").score.mean()
        std = float(values.std())
        rows.append(
            {
                "Strategy": strategy_of(row["block"]),
                "Against": strategy_of(row["reference"]),
                "Model": row["model"] or "all",
                "Paper": row["difference"],
                "Paper: responses each": row["n"],
                "Needed, unpaired": unpaired_needed(row["difference"], row["stds"], share, alpha),
                "Std of our differences": std,
                "Prompts here": len(values) or None,
                "Prompts needed": prompts_needed(row["difference"], std, share, alpha),
                "Smallest difference here": smallest_difference(len(values), std, share, alpha),
            }
        )
    whole = ("Paper: responses each", "Needed, unpaired", "Prompts here", "Prompts needed")
    return Table(table_of(rows).astype(dict.fromkeys(whole, "Int64")))


def beside_paper(study: Study) -> Table:
    """Each number of the paper that ours can stand beside, their difference, and its interval.

    The interval joins ours over prompts (Student's t of a difference, BCa of what is none) with the
    paper's normal one. Its standard errors take the paper's responses as independent: std / sqrt(n)
    of a mean, std / sqrt(2n) of a standard deviation. Table 3 gives no standard deviations, so Table
    2's of the strategy stand in.
    """
    rows = []
    for name, table, theirs, error, values, statistic in _numbers(study):
        ours = values.score.std() if statistic == "std" else values.score.mean()
        points, prompts = values.score.to_list(), values.prompt_id.to_list()
        if statistic == "difference":
            ends = difference_interval(points, prompts)
        else:
            ends = pooled_interval(points, prompts, study.evaluation.resamples, of=statistic)
        paper_ends = (theirs - Z * error, theirs + Z * error)
        rows.append(
            {
                "Number": name,
                "In": f"Table {table}",
                "Paper": theirs,
                "Ours": ours,
                "Ours minus paper": ours - theirs,
                "95% interval": interval_text(
                    *interval_of_difference(ours, ends, theirs, paper_ends)
                ),
            }
        )
    return table_of(rows)


def _numbers(study: Study) -> Iterator[tuple[str, int, float, float, pd.DataFrame, Number]]:
    """Each of the paper's numbers: name, table, value, standard error, our scores, statistic."""
    scores = overall(study).dropna(subset="score")
    stds = {row["block"]: row["std"] for row in paper.rows("table_2")}
    for row in paper.rows("table_2"):
        values = scores[scores.block == row["block"]]
        error = row["std"] / np.sqrt(row["count"])
        yield f"mean, {row['strategy']}", 2, row["mean"], error, values, "mean"
        error = row["std"] / np.sqrt(2 * row["count"])
        yield f"std, {row['strategy']}", 2, row["std"], error, values, "std"
    for row in paper.rows("table_3"):
        values = scores[(scores.model == row["model"]) & (scores.block == row["block"])]
        error = stds[row["block"]] / np.sqrt(paper.load_paper()["table_3"]["n"])
        yield f"mean, {row['model']} {row['strategy']}", 3, row["mean"], error, values, "mean"
    for row in paper.differences():
        model = row["model"]
        name = f"{strategy_of(row['block'])} minus {strategy_of(row['reference'])}"
        name, table = (name, 2) if model is None else (f"{name}, {model}", 3)
        yield (
            name,
            table,
            row["difference"],
            row["standard_error"],
            _paired(study, row),
            "difference",
        )


def _paired(study: Study, difference: Row) -> pd.DataFrame:
    """Our scores, paired by prompt, for one of the paper's differences."""
    scores, model = overall(study), difference["model"]
    scores = scores if model is None else scores[scores.model == model]
    return tests.paired_differences(scores, difference["block"], difference["reference"])


def _range(ranks: tuple[int, int] | None) -> str | None:
    if ranks is None:
        return None
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"
