"""What the measures of where alignment happens say together, as a figure and tables."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from hialign.report import depth
from hialign.report.display import Columns, Table, short_name, table_of, view
from hialign.report.plots import LINES, PALETTE, WIDEST, canvas, missing, nothing, plain
from hialign.report.where.concordance import Measure, measures, shares_by_measure, spearman
from hialign.statistics.intervals import interval_text, p_text
from hialign.study.blocks import split_layers, strategy_of
from hialign.study.study import Study


def shares(study: Study) -> Table:
    """The share of each third by each measure that there is, and the third that it points to."""
    table = shares_by_measure(study)
    columns: Columns = {"Model": "model", "Measure": "measure"}
    for block in split_layers(3):
        ends = zip(table[f"{block}_low"], table[f"{block}_high"], strict=True)
        table[f"{block}_interval"] = [interval_text(low, high, 2) for low, high in ends]
        columns[short_name(strategy_of(block))] = block
        columns[f"95% interval, {block}"] = f"{block}_interval"
    columns["Points to"] = lambda row: row["points"] or None
    return view(table[table.why == ""].to_dict("records"), columns, "none yet", 2)


def lacking(study: Study) -> Table:
    """The measures that are not there, and why."""
    table = shares_by_measure(study)
    columns = {"Model": "model", "Measure": "measure", "Not measured, because": "why"}
    return view(table[table.why != ""].to_dict("records"), columns, "none")


def correlations(study: Study) -> Table:
    """Spearman's correlation of each two measures over layers, with its interval and p.

    The interval is from a bootstrap over layers. It is too narrow, because neighbouring layers are
    alike and so are no independent sample. The p is from circular shifts: it is the share of the
    shifts of one measure along the layers that give as large a correlation. A shift keeps the
    measure's smoothness. With N layers, p cannot be below 1 / N.
    """
    rows = []
    for model in study.models:
        for a, b in combinations(measures(study, model.label)[0], 2):
            rho, low, high, p = spearman(a.scores, b.scores)
            row: dict[str, Any] = {"model": model.label, "names": f"{a.name}, {b.name}"}
            row |= {"rho": rho, "low": low, "high": high, "p": p_text(p), "n": len(a.scores)}
            rows.append(row)
    columns: Columns = {"Model": "model", "Measures": "names", "Spearman": "rho"}
    columns |= {"95% interval": ("low", "high"), "p, shifted": "p", "Layers": "n"}
    return view(rows, columns, "none yet", 3)


def layers(study: Study) -> Table:
    """Every measure's number for each layer."""
    rows: list[dict[str, Any]] = []
    for model in study.models:
        scores = {m.name: m.scores for m in measures(study, model.label)[0]}
        for layer, of_layer in enumerate(zip(*scores.values(), strict=True)):
            rows.append({"Model": model.label, "Layer": layer})
            rows[-1] |= dict(zip(scores, of_layer, strict=True))
    return table_of(rows or [{"Model": "none yet", "Layer": None}])


def overview(study: Study) -> Figure:
    """Layers across, measures down: each measure's layers by rank, and the share of each third."""
    by_model = {model.label: measures(study, model.label)[0] for model in study.models}
    by_model = {label: of_model for label, of_model in by_model.items() if of_model}
    if not by_model:
        return nothing("probes")
    table = shares_by_measure(study)
    heights = [0.42 * len(of_model) + 0.9 for of_model in by_model.values()]
    shape = (len(by_model), 2)
    ratios = {"width_ratios": [3, 1.5], "height_ratios": heights}
    figure, axes = canvas(WIDEST, sum(heights) + 0.9, shape, gridspec_kw=ratios)
    for i, (label, of_model) in enumerate(by_model.items()):
        left, right = axes[2 * i : 2 * i + 2]
        n = len(of_model[0].scores)
        ranks = np.array([rankdata(measure.scores) / n for measure in of_model])
        left.imshow(ranks, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        left.set_yticks(range(len(of_model)), [measure.name for measure in of_model])
        depth.edges(left, n)
        if len(by_model) > 1:
            left.set_title(plain(label), loc="left", fontweight="bold")
        _draw_shares(right, of_model, table[table.model == label])
    note = "left: dark is the least, bright the most of a measure's layers; right: dots are the share of"
    note += "\neach third, lines 95% intervals over prompts where the measure has them, dotted an equal share"
    depth.legend(figure, note, 3, panel=1)
    return figure


def _draw_shares(axes: Axes, of_model: Sequence[Measure], table: Table) -> None:
    """Each measure's share of each third as a dot, and its interval as a line."""
    rows = {row["measure"]: row for row in table.to_dict("records")}
    for y, measure in enumerate(of_model):
        row = rows[measure.name]
        for i, block in enumerate(split_layers(3)):
            place, share = y + 0.22 * (i - 1), row[block]
            if np.isnan(share):
                missing(axes, 0.5, y, "no layer has any")
                break
            ends = row[f"{block}_low"], row[f"{block}_high"]
            if ends[0] is not None and not np.isnan(ends[0]):
                axes.plot(ends, [place, place], color=PALETTE[block], linewidth=2.5, alpha=0.5)
            label = block if y == 0 else None
            look: dict[str, Any] = {"color": PALETTE[block], "linestyle": "none", "label": label}
            axes.plot(share, place, marker="osD"[i], markersize=5, **look)
    depth.equal_shares(len(of_model[0].scores), axes.axvline, linestyle=LINES[2])
    axes.set(ylim=(len(of_model) - 0.5, -0.5), xlim=(-0.04, 1.04), yticks=[])
    axes.set(xlabel="share of each third")
    axes.grid(axis="x")
