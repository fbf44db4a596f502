"""What the notebooks show of what they ran."""

from collections.abc import Mapping
from typing import Any

from hialign.records import frames
from hialign.records.files import read_jsonl
from hialign.records.status import cell_status, probe_status
from hialign.report import judge_tables
from hialign.report.where import gradients, ila, overview, patching, sweep
from hialign.study.study import Cell

# What a probe's notebook shows of its record: figures, then tables
VIEWS: Mapping[str, tuple[Any, ...]] = {
    "gradients": (gradients.curves, gradients.along, gradients.inequality),
    "matrix": (sweep.matrix, sweep.effects),
    "ila": (ila.gates, ila.interventions, ila.rankings, ila.overlaps),
    "patching": (
        *(patching.recovery, patching.rank),
        *(patching.made, patching.thirds, patching.regression),
    ),
    "sweep": (sweep.windows, sweep.controls),
    "weights": (overview.overview, overview.layers),
}


def views(cell: Cell, probe: str) -> list[Any]:
    """What the record of a probe of the cell's model shows: figures and tables, for a notebook."""
    only = cell.study.model_copy(update={"models": [cell.model]})
    return [draw(only) for draw in VIEWS[probe]]


def heading(cell: Cell, stage: str, *others: Cell) -> Any:
    """What is about to run, as a line of Markdown a cell under the parameters."""
    from IPython.display import Markdown

    notes = {
        "done": "has run with these settings before and runs again",
        "stale": "is out of date and runs again",
        "damaged": "has files that were changed since and runs again",
        "failed": "failed before and is tried again",
    }
    lines = [
        f"**{c.model.label}**, block **{c.block}** ({c.strategy}) of study **{c.study.name}**: "
        f"stage {stage} {notes.get(cell_status(c, stage), 'has not run yet')}."
        for c in (cell, *others)
    ]
    return Markdown("\n\n".join(lines))


def probe_heading(cell: Cell, probe: str) -> Any:
    """As `heading`, of a probe."""
    from IPython.display import Markdown

    notes = {
        "done": "has a record of these settings, which is used if it came from the same",
        "stale": "has a record that is out of date and runs again",
        "damaged": "has a record that was changed since and runs again",
        "failed": "failed before and is tried again",
    }
    state = probe_status(cell.study, cell.model, probe)
    return Markdown(
        f"**{cell.model.label}** of study **{cell.study.name}**: the {probe} probe "
        f"{notes.get(state, 'has not run yet')}."
    )


def probed(cell: Cell, probe: str) -> None:
    """Show the figures and tables of a probe's record."""
    from IPython.display import display

    from hialign.run.show import views

    for view in views(cell, probe):
        display(view)


def loss(*cells: Cell) -> Any:
    """The DPO loss of each optimizer step of some cells as a figure, with the untrained model's log 2."""
    import math

    import matplotlib.pyplot as plt

    from hialign.report.plots import colour_of, style

    style()
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    plt.close(figure)  # else the notebook shows it twice
    axes.axhline(
        math.log(2), color="grey", linestyle="--", linewidth=1, label="log 2: no preference"
    )
    for cell in cells:
        file = cell.folder / "training.jsonl"
        steps = read_jsonl(file) if file.is_file() and cell.block != "base" else []
        if steps:
            values = [s["step"] for s in steps], [s["loss"] for s in steps]
            marker = "o" if len(steps) < 60 else ""
            colour = colour_of(cell.study, cell.block)
            axes.plot(*values, marker=marker, color=colour, label=cell.strategy)
    axes.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def evaluation(content: Mapping[str, Any]) -> Any:
    """The accuracies and margins of an `evaluation.json`, a row an objective, with intervals."""
    from hialign.report import display
    from hialign.statistics.intervals import interval_text

    rows = []
    for objective, values in content["objectives"].items():
        row: dict[str, Any] = {"Pairs of": objective, "Pairs": values["n"]}
        for name in ("likelihood_accuracy", "reward_accuracy", "reward_margin"):
            title = name.replace("_", " ").capitalize()
            row[title] = values[name]
            row[f"95% interval of {name.replace('_', ' ')}"] = interval_text(
                values[f"{name}_low"], values[f"{name}_high"]
            )
        rows.append(row)
    return display.Table(rows)


def scores(cell: Cell) -> Any:
    """The mean score of each dimension over the cell's responses, and how many have one."""
    from hialign.report import display

    table = frames.judgments(cell.study)
    here = table[(table["model"] == cell.model.label) & (table["block"] == cell.block)]
    means = here.groupby("dimension", sort=False)["score"].agg(["mean", "std", "count"])
    names = {
        "dimension": "Dimension",
        "mean": "Mean score",
        "std": "Std",
        "count": "Responses scored",
    }
    shown = display.Table(means.reset_index().rename(columns=names))
    shown.attrs["caption"] = judge_tables.judge_line(cell.study)
    return shown


def summary(*manifests: Mapping[str, Any]) -> Any:
    """The plain values of some manifests as a table, a column each; nested ones stay in the files."""
    import pandas as pd

    columns = {}
    for manifest in manifests:
        plain = {
            key: f"{value:.6g}" if isinstance(value, float) else str(value)
            for key, value in manifest.items()
            if isinstance(value, str | int | float)
            or (isinstance(value, list) and len(value) < 200)
        }
        plain.pop("pairs", None)
        columns["value" if len(manifests) == 1 else str(manifest["block"])] = plain
    return pd.DataFrame(columns).rename_axis("record").fillna("")
