"""What the measures of where alignment happens say together, as a figure and tables."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from hialign.report import depth
from hialign.report.display import Table, table_of, table_or_none
from hialign.report.plots import LINES, PALETTE, WIDEST, canvas, missing, nothing, plain, write
from hialign.report.where.concordance import Measure, found, measures, spearman
from hialign.statistics.intervals import interval_text, p_text
from hialign.study.blocks import split_layers, strategy_of
from hialign.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def shares(study: Study) -> Table:
    """`found` for a reader: the shares of each third, of the measures that there are."""
    rows = []
    for row in found(study).to_dict("records"):
        if row["why"]:
            continue
        shown: dict[str, Any] = {"Model": row["model"], "Measure": row["measure"]}
        for block in split_layers(3):
            shown[strategy_of(block).removesuffix("-Align")] = row[block]
            ends = interval_text(row[f"{block}_low"], row[f"{block}_high"], 2)
            shown[f"95% interval, {block}"] = ends
        rows.append(shown | {"Points to": row["points"] or None})
    return table_or_none(rows, ["Model", "Measure"])


def lacking(study: Study) -> Table:
    """The measures that are not there, and why."""
    rows = [
        {"Model": row["model"], "Measure": row["measure"], "Not measured, because": row["why"]}
        for row in found(study).to_dict("records")
        if row["why"]
    ]
    return table_of(rows or [{"Model": "none"}], ["Model", "Measure", "Not measured, because"])


def correlations(study: Study) -> Table:
    """Spearman's correlation of each two measures over layers, with a bootstrap interval over layers
    and p against circular shifts.

    Neighbouring layers are alike, so that layers are no independent sample: the interval is too
    narrow for that reason. p is the share of the shifts of one measure along the layers (which keep
    its smoothness) that give as large a correlation; of N layers it cannot be below 1 / N.
    """
    rows = []
    for model in study.models:
        here, _ = measures(study, model.label)
        for a, b in combinations(here, 2):
            rho, low, high, p = spearman(a.scores, b.scores)
            row: dict[str, Any] = {"Model": model.label, "Measures": f"{a.name}, {b.name}"}
            row |= {"Spearman": rho, "95% interval": interval_text(low, high)}
            rows.append(row | {"p, shifted": p_text(p), "Layers": len(a.scores)})
    return table_or_none(rows, ["Model", "Measures", "Spearman"])


def layers(study: Study) -> Table:
    """Every measure's number for each layer."""
    rows = []
    for model in study.models:
        here, _ = measures(study, model.label)
        for layer in range(len(here[0].scores) if here else 0):
            row: dict[str, Any] = {"Model": model.label, "Layer": layer}
            rows.append(row | {m.name: m.scores[layer] for m in here})
    return table_or_none(rows, ["Model", "Layer"])


def overview(study: Study) -> "Figure":
    """Layers across, measures down: each measure's layers by rank, and the share of each third."""
    per_model = {m.label: measures(study, m.label)[0] for m in study.models}
    per_model = {label: here for label, here in per_model.items() if here}
    if not per_model:
        return nothing("probes")
    table = found(study)
    heights = [0.42 * len(here) + 0.9 for here in per_model.values()]
    shape = (len(per_model), 2)
    options: dict[str, Any] = {"gridspec_kw": {"width_ratios": [3, 1.5], "height_ratios": heights}}
    figure, axes = canvas(WIDEST, sum(heights) + 0.9, shape, **options)
    for i, (label, here) in enumerate(per_model.items()):
        left, right = axes[2 * i : 2 * i + 2]
        from scipy.stats import rankdata

        n = len(here[0].scores)
        ranks = np.array([rankdata(m.scores) / n for m in here])
        left.imshow(ranks, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        left.set_yticks(range(len(here)), [m.name for m in here])
        left.locator_params(axis="x", integer=True)
        left.set(xlabel="layer")
        for block, inside in split_layers(n).items():
            left.axvline(inside[-1] + 0.5, color="white", linewidth=1.5)
            look: dict[str, Any] = {"transform": left.get_xaxis_transform(), "va": "bottom"}
            write(left, (inside[0] + inside[-1]) / 2, 1.01, block, fontsize=8, **look)
        if len(per_model) > 1:
            left.set_title(plain(label), loc="left", fontweight="bold")
        _share_bars(right, here, table[table.model == label])
    note = "left: dark is the least, bright the most of a measure's layers; right: dots are the share of"
    note += "\neach third, lines 95% intervals over prompts where the measure has them, dotted an equal share"
    depth.legend(figure, axes[1], note, 3)
    return figure


def _share_bars(axes: Any, here: Sequence[Measure], table: Table) -> None:
    known = {row["measure"]: row for row in table.to_dict("records")}
    for y, measure in enumerate(here):
        row = known[measure.name]
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
    depth.equal_shares(len(here[0].scores), axes.axvline, linestyle=LINES[2])
    axes.set(
        ylim=(len(here) - 0.5, -0.5), xlim=(-0.04, 1.04), xlabel="share of each third", yticks=[]
    )
    axes.grid(axis="x")
