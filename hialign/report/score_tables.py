"""The tables of the judge's scores: Tables 2 and 3, what is tested, and the paper beside ours.

Every finding in them comes from `hialign.statistics.comparisons`; the tests of one table are one family. What
is missing is NaN, shown as "–".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hialign.report import paper
from hialign.report.display import Table, table_of
from hialign.report.scores import _crossed, by_cell, compared, dimension_differences, overall, taxed
from hialign.statistics import comparisons as tests
from hialign.statistics.intervals import (
    Statistic,
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


def table2(study: Study) -> Table:
    """Table 2: the judge's Overall score by strategy, over all models of the study.

    Means are over all scored responses, as in the paper; their intervals draw prompts, since the
    models answer the same ones. Failed judgments are counted and enter no mean.
    """
    scores = overall(study)
    ranks = tests.rank_ranges(scores)
    reference = {row["block"]: row for row in paper.rows("table_2")}
    rows = []
    for block in study.blocks:
        asked = scores[scores.block == block]
        row = {"Strategy": strategy_of(block), **_mean(study, asked)}
        row |= {"Rank range": _range(ranks.get(block))}
        row |= {"Std": asked.score.std(), "Median": asked.score.median()}
        row |= {"Models": asked.dropna(subset="score").model.nunique(), **_counts(asked)}
        row |= {f"Paper: {name}": reference.get(block, {}).get(name) for name in ("mean", "std")}
        rows.append(row)
    return table_of(rows)


def table3(study: Study, top: int = 10) -> Table:
    """Table 3: the `top` model-strategy combinations by mean Overall score.

    Rank ranges are among all combinations of the study. The paper's rank and mean stand beside
    where it has a combination of the same model name.
    """
    reference = {(r["model"].casefold(), r["block"]): r for r in paper.rows("table_3")}
    scores = overall(study)
    # Each combination as a strategy of one model: all answer the same prompts
    ranks = tests.rank_ranges(scores.assign(block=_crossed(scores, "model", "block"), model=""))
    rows: list[dict[str, Any]] = []
    for found in by_cell(study).to_dict("records"):
        theirs = reference.get((found["model"].casefold(), found["block"]), {})
        row: dict[str, Any] = {"Model": found["model"], "Strategy": found["strategy"]}
        row |= {"Rank range": _range(ranks[f"{found['model']}\n{found['block']}"])}
        row |= {"Mean Overall": found["mean"]}
        row |= {"95% interval": interval_text(found["low"], found["high"])}
        row |= {"Scored": found["scored"], "Failed": found["failed"]}
        rows.append(row | {f"Paper: {name}": theirs.get(name) for name in ("rank", "mean")})
    rows = sorted(rows, key=lambda row: -float(row["Mean Overall"]))[:top]
    columns = ["Rank range", "Model", "Strategy", *_mean(study, scores[:0]), *_counts(scores[:0])]
    frame = table_of(rows, [*columns, "Paper: rank", "Paper: mean"])
    frame.insert(0, "Rank", range(1, len(frame) + 1))
    return Table(frame.astype({"Paper: rank": "Int64"}))


def comparisons(study: Study) -> Table:
    """Which strategies differ in the Overall score: the tests behind every sentence on it."""
    theirs = {(d["block"], d["reference"]): d for d in paper.differences() if d["model"] is None}
    rows = []
    for found in compared(study).to_dict("records"):
        row: dict[str, Any] = {"Strategy": strategy_of(found["block"])}
        row |= {"Against": strategy_of(found["reference"])}
        row |= {"Verdict": found["verdict"], **_difference(found)}
        row["p, inferior (Holm)"] = p_text(found["p_margin"])
        row["Prompts"] = found["prompts"] or None
        pair = (found["block"], found["reference"])
        rows.append(row | {"Paper: difference": theirs.get(pair, {}).get("difference")})
    return Table(table_of(rows).astype({"Prompts": "Int64"})) if rows else Table(rows)


def dimensions(study: Study) -> Table:
    """The differences from Base that Figure 3 draws: all dimensions but Overall, over all models."""
    rows = []
    for found in dimension_differences(study).to_dict("records"):
        row = {"Dimension": found["dimension"], "Strategy": strategy_of(found["block"])}
        rows.append(row | {"Verdict": found["verdict"], **_difference(found)})
    columns = ["Dimension", "Strategy", "Verdict", *_difference({})]
    return table_of(rows, columns)


def alignment_tax(study: Study) -> Table:
    """v1's alignment tax: fluency gained and logic lost against Base, and the smaller of the two."""
    titles = {"gain": "Gain", "loss": "Loss", "tax": "Tax"}
    rows = []
    for found in taxed(study).to_dict("records"):
        row: dict[str, Any] = {"Strategy": strategy_of(found["block"])}
        row["Verdict"] = found["verdict"]
        for name, title in titles.items():
            row[title] = found[name]
            ends = found[f"{name}_low"], found[f"{name}_high"]
            row[f"{title}, 95%"] = interval_text(*ends)
        row |= {"p, paid (Holm)": p_text(found["p_holm"])}
        rows.append(row | {"p, over margin (Holm)": p_text(found["p_out"])})
    return table_of(rows)


def power(study: Study) -> Table:
    """How many prompts would show the paper's differences, and what this study's can show."""
    scores, share = overall(study), study.analysis.power
    rows = []
    for row in paper.differences():
        kept = scores if row["model"] is None else scores[scores.model == row["model"]]
        found = tests.paired_differences(kept, row["block"], row["reference"])
        values = found.groupby("prompt_id").score.mean()
        std = float(values.std())
        rows.append(
            {
                "Strategy": strategy_of(row["block"]),
                "Against": strategy_of(row["reference"]),
                "Model": row["model"] or "all",
                "Paper": row["difference"],
                "Paper: responses each": row["n"],
                "Needed, unpaired": unpaired_needed(row["difference"], row["stds"], share),
                "Std of our differences": std,
                "Prompts here": len(values) or None,
                "Prompts needed": prompts_needed(row["difference"], std, share),
                "Smallest difference here": smallest_difference(len(values), std, share),
            }
        )
    whole = ("Paper: responses each", "Needed, unpaired", "Prompts here", "Prompts needed")
    return Table(table_of(rows).astype(dict.fromkeys(whole, "Int64")))


def beside_paper(study: Study) -> Table:
    """Each number of the paper that ours can stand beside, their difference, and its interval.

    The interval joins ours (BCa over prompts) with the paper's normal one, whose standard errors
    take its responses as independent: std / sqrt(n) of a mean, std / sqrt(2n) of a standard
    deviation. Table 3 gives no standard deviations: Table 2's of the strategy stand in.
    """
    scores, draws = overall(study).dropna(subset="score"), study.evaluation.resamples
    stds = {row["block"]: row["std"] for row in paper.rows("table_2")}
    rows: list[dict[str, Any]] = []

    def add(
        name: str, table: int, theirs: float, error: float, values: pd.DataFrame, of: Statistic
    ) -> None:
        ours = values.score.mean() if of == "mean" else values.score.std()
        ends = pooled_interval(values.score.to_list(), values.prompt_id.to_list(), draws, of=of)
        paper_ends = (theirs - Z * error, theirs + Z * error)
        joint = interval_of_difference(ours, ends, theirs, paper_ends)
        row = {"Number": name, "In": f"Table {table}", "Paper": theirs, "Ours": ours}
        row["Ours minus paper"] = ours - theirs
        rows.append(row | {"95% interval": interval_text(*joint)})

    for row in paper.rows("table_2"):
        values = scores[scores.block == row["block"]]
        error = row["std"] / np.sqrt(row["count"])
        add(f"mean, {row['strategy']}", 2, row["mean"], error, values, "mean")
        spread = row["std"] / np.sqrt(2 * row["count"])
        add(f"std, {row['strategy']}", 2, row["std"], spread, values, "std")
    for row in paper.rows("table_3"):
        values = scores[(scores.model == row["model"]) & (scores.block == row["block"])]
        error = stds[row["block"]] / np.sqrt(paper.load_paper()["table_3"]["n"])
        add(f"mean, {row['model']} {row['strategy']}", 3, row["mean"], error, values, "mean")
    for row in paper.differences():
        kept = scores if row["model"] is None else scores[scores.model == row["model"]]
        values = tests.paired_differences(kept, row["block"], row["reference"])
        table, error = 2 if row["model"] is None else 3, row["standard_error"]
        add(_name(row), table, row["difference"], error, values, "mean")
    return table_of(rows)


# --- helpers -----------------------------------------------------------------------------------------


def _name(row: dict[str, Any]) -> str:
    """A difference of the paper, in words."""
    names = f"{strategy_of(row['block'])} minus {strategy_of(row['reference'])}"
    return names if row["model"] is None else f"{names}, {row['model']}"


def _difference(found: Mapping[Any, Any]) -> dict[str, Any]:
    """The columns of a comparison that all tables of tests have."""
    row = {"Difference": found.get("difference")}
    row["95% interval"] = interval_text(found.get("low"), found.get("high"))
    return row | {"Effect size": found.get("effect"), "p (Holm)": p_text(found.get("p_holm"))}


def _range(ranks: tuple[int, int] | None) -> str | None:
    if ranks is None:
        return None
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"


def _mean(study: Study, scores: pd.DataFrame) -> dict[str, Any]:
    kept = scores.dropna(subset="score")
    points, prompts = kept.score.tolist(), kept.prompt_id.tolist()
    ends = pooled_interval(points, prompts, study.evaluation.resamples)
    return {"Mean Overall": kept.score.mean(), "95% interval": interval_text(*ends)}


def _counts(asked: pd.DataFrame) -> dict[str, int]:
    scored = int(asked.score.notna().sum())
    return {"Scored": scored, "Failed": len(asked) - scored}
