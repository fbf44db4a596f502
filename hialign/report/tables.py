"""The paper's tables, and those of our judge-free evaluation, as DataFrames.

Every table has a row for each cell (or strategy) of the study, whether it has run or not. What is
missing is NaN, shown as "–". Intervals are 95% and stand in a column after the figure that they
belong to. The tables of the judge's scores are in `score_tables`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from hialign.records import frames
from hialign.report import paper
from hialign.report.display import DASH, DIGITS, Columns, Row, Table, span, table_of, view
from hialign.statistics.intervals import interval_text
from hialign.study.blocks import OBJECTIVES, split_layers
from hialign.study.rubric import load_rubric
from hialign.study.study import Study

PREFERENCES = {  # column: in evaluation.json
    title: title.lower().replace(" ", "_")
    for title in ("Likelihood accuracy", "Reward accuracy", "Reward margin")
}


# --- the paper's tables --------------------------------------------------------------------------


def table1() -> Table:
    """Table 1: the five conditions and the layers that get adapters."""
    titles = {"strategy": "Strategy", "block": "Block", "kind": "Kind"}
    titles["tuned"] = "Layers with adapters"
    frame = pd.DataFrame(paper.rows("table_1"), columns=list(titles)).replace("none", DASH)
    return Table(frame.rename(columns=titles))


def table4(study: Study) -> Table:
    """Table 4: first and last layer of each block (counted from 0) and how many layers it has.

    Depths are the paper's or what the study's runs wrote down. None is looked up on a network.
    """
    columns = {f"{block.title()} block": block for block in split_layers(3)}
    table = view(
        _partitions(study), {"Model": "model", "In": "places", "Layers": "depth", **columns}
    )
    return Table(table.astype({"Layers": "Int64"}))


def _partitions(study: Study) -> Iterator[Row]:
    papers = paper.depths()
    runs = frames.manifests(study).reindex(columns=["model", "depth"]).dropna()
    measured = {name: int(depth) for name, depth in zip(runs.model, runs.depth, strict=True)}
    labels = [model.label for model in study.models]
    for name in dict.fromkeys([*papers, *labels]):
        depth = measured.get(name) or papers.get(name)
        places = ["paper"] * (name in papers) + ["this study"] * (name in labels)
        blocks = split_layers(depth) if depth and depth >= 3 else {}
        layers = {block: f"{span(inside)} ({len(inside)})" for block, inside in blocks.items()}
        yield {"model": name, "places": " and ".join(places), "depth": depth} | layers


def table5(study: Study) -> Table:
    """Table 5: each hyper-parameter, the paper's value and this study's."""
    settings = study.training.model_dump()
    used = frames.manifests(study).reindex(columns=["precision"]).precision.dropna()
    asked = [model.precision for model in study.models]
    settings["precision"] = ", ".join(dict.fromkeys(used if len(used) else asked))

    def same(row: Row) -> str:
        theirs, ours = row["value"], settings.get(row["key"])
        if row["key"] == "optimizer":  # AdamW; transformers has several that compute it
            return "yes" if str(ours).startswith(theirs.lower()) else "no"
        return "yes" if theirs == ours else "no"

    columns: Columns = {
        "Hyper-parameter": "name",
        "Paper": lambda row: _setting(row["value"]),
        "This study": lambda row: _setting(settings.get(row["key"])),
        "Same": same,
    }
    return view(paper.rows("table_5"), columns)


def table6() -> Table:
    """Table 6: the judge's dimensions by group, with our definitions."""
    rubric = load_rubric()
    return Table(
        {"Group": group, "Dimension": name, "Definition": rubric.dimensions[name]}
        for group, names in rubric.groups.items()
        for name in names
    )


# --- ours ----------------------------------------------------------------------------------------


def accuracy(study: Study) -> Table:
    """Likelihood accuracy, reward accuracy and reward margin on the study's held-out pairs.

    Accuracies are shares of pairs. Base has no reward accuracy: its implicit reward is always 0.
    """
    evaluations = frames.evaluations(study)
    return _by_cell(study, evaluations[evaluations.objective == "all"], PREFERENCES)


def objectives(study: Study) -> Table:
    """The same on the built-in contrasts, whose two responses differ in one objective."""
    evaluations = frames.evaluations(study)
    parts = []
    for name in objective_names(evaluations):
        part = _by_cell(study, evaluations[evaluations.objective == name], PREFERENCES)
        part.insert(2, "Objective", name)
        parts.append(part)
    if not parts:
        return Table(columns=["Model", "Strategy", "Objective", *PREFERENCES, "Pairs"])
    return Table(pd.concat(parts).sort_index(kind="stable").reset_index(drop=True))


def divergence(study: Study) -> Table:
    """KL divergence from Base along the cell's own responses, and what these show without a judge."""
    columns = {"KL from Base (nats/token)": "kl", "Response length (tokens)": "response_tokens"}
    columns |= {"Refusals": "refusal_rate", "Repetition": "repetition"}
    return _by_cell(study, frames.divergences(study), columns, "Responses")


def cells(study: Study) -> Table:
    """What each cell is, whether it has run, and what that took.

    "Shared" is what one pass did for all its strategies together, apart from each one's own time.
    """
    titles = {"model": "Model", "strategy": "Strategy", "status": "Status", "layers": "Layers"}
    titles |= {"pairs": "Pairs", "steps": "Steps", "final_loss": "Final loss"}
    titles |= {"seconds": "Training (min)", "shared_seconds": "Shared (min)", "tokens": "Tokens"}
    titles |= {"peak_memory_bytes": "Peak memory (GiB)", "device": "Device", "seed": "Seed"}
    runs = frames.manifests(study).reindex(columns=["block", *titles])
    untrained = (runs.status != "done") | (runs.block == "base")
    runs.loc[untrained, ["pairs", "seconds", "shared_seconds", "tokens", "final_loss"]] = None
    runs["layers"] = [(span(v) or "none") if isinstance(v, list) else None for v in runs.layers]
    units = {"final_loss": 1, "seconds": 60, "shared_seconds": 60, "peak_memory_bytes": 2**30}
    for name, unit in units.items():
        runs[name] = pd.to_numeric(runs[name]) / unit
    whole = dict.fromkeys(("pairs", "steps", "tokens", "seed"), "Int64")
    return Table(runs[list(titles)].astype(whole).rename(columns=titles))


# --- shared with the figures ---------------------------------------------------------------------


def objective_names(evaluations: pd.DataFrame) -> list[str]:
    """The objectives that were evaluated apart, ours first, without the study's own pairs."""
    present = [o for o in dict.fromkeys(evaluations.objective) if o != "all"]
    return [o for o in OBJECTIVES if o in present] + [o for o in present if o not in OBJECTIVES]


# --- helpers -------------------------------------------------------------------------------------


def _by_cell(
    study: Study, measured: pd.DataFrame, columns: Mapping[str, str], count: str = "Pairs"
) -> Table:
    """One row per cell, with each of `columns` and its interval, and `n` as `count` at the end."""
    by_cell = {(row["model"], row["block"]): row for row in measured.to_dict("records")}
    rows = []
    for cell in study.cells():
        row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
        values = by_cell.get((cell.model.label, cell.block), {})
        for title, name in columns.items():
            ends = values.get(f"{name}_low"), values.get(f"{name}_high")
            if cell.block == "base" and values.get(name) == 0:  # by definition, not by measurement
                ends = None, None
            row[title] = values.get(name)
            interval = interval_text(*ends, DIGITS.get(title, 3))
            row[f"{title.split(' (')[0]}, 95% interval"] = interval
        rows.append(row | {count: values.get("n")})
    return Table(table_of(rows).astype({count: "Int64"}))


def _setting(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
