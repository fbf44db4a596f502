"""What the gradient probe and the strategy x objective matrix found, as figures and tables."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import Table, table_or_none
from hialign.report.plots import LINES, PALETTE, nothing, plain
from hialign.statistics.intervals import interval_text, p_text
from hialign.study.blocks import OBJECTIVES, split_layers, strategy_of
from hialign.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFERENCE = "preference"
# An objective has the colour of the third that the paper assigns to it.
COLOURS = {PREFERENCE: "#333333", "grammar": PALETTE["local"], "coherence": PALETTE["mid"]}
COLOURS |= {"factuality": PALETTE["global"]}
STYLE = dict(zip(COLOURS, LINES, strict=True))


def curves(study: Study) -> "Figure":
    """Gradient norm by layer of each source of pairs, and each objective beside their mean."""
    found = frames.probes(study, "gradients")
    if not found:
        return nothing("gradients")
    figure, axes = depth.rows(list(found), 2)
    for label, record in found.items():
        left, right = axes[label]
        n = record["depth"]
        logs = {}
        for source, colour in COLOURS.items():
            table = [row for row in record["layers"] if row["source"] == source]
            look: dict[str, Any] = {"color": colour, "linestyle": STYLE[source]}
            depth.line(left, range(n), table, "rms", label=source, **look)
            if source in OBJECTIVES:
                norms = np.array([pair["norms"] for pair in record["pairs"][source]])
                logs[source] = np.log(norms).mean(axis=0)
        middle = np.mean(list(logs.values()), axis=0)
        for source, values in logs.items():
            look = {"color": COLOURS[source], "linestyle": STYLE[source]}
            apart = values - middle
            right.plot(np.exp(apart - apart.mean()), marker="o", markersize=3, **look)
        left.set(yscale="log", ylabel="gradient norm per weight (nats)")
        right.axhline(1, color="#555555", linestyle=":", linewidth=1)
        right.set(ylabel="share of its own, over the mean's")
        for panel in (left, right):
            depth.thirds(panel, n)
    note = "bands: 95% intervals; an objective has the colour of the third that it should be in"
    depth.legend(figure, axes[next(iter(found))][0], note)
    return figure


def layers(study: Study) -> Table:
    """The gradient norm of each layer by source: per parameter, with its interval, and in total."""
    return table_or_none(
        [
            {
                "Model": label,
                "Pairs of": row["source"],
                "Layer": row["layer"],
                "Norm per parameter": row["rms"],
                "Low": row["rms_low"],
                "High": row["rms_high"],
                "Total norm": row["total"],
                "Pairs": row["n"],
            }
            for label, record in frames.probes(study, "gradients").items()
            for row in record["layers"]
        ],
        ["Model", "Pairs of", "Layer"],
    )


def modules(study: Study) -> Table:
    """The norm per parameter of each kind of module on preference pairs, mean over each third."""
    rows = []
    for label, record in frames.probes(study, "gradients").items():
        kept = [row for row in record["modules"] if row["source"] == PREFERENCE]
        for module in dict.fromkeys(row["module"] for row in kept):
            row: dict[str, Any] = {"Model": label, "Module": module}
            row["Parameters of a layer"] = record["parameters"][0].get(module)
            for block, inside in split_layers(record["depth"]).items():
                values = [r["rms"] for r in kept if r["module"] == module and r["layer"] in inside]
                row[f"{strategy_of(block).removesuffix('-Align')} (10⁻³ nats)"] = 1e3 * float(
                    np.mean(values)
                )
            rows.append(row)
    return table_or_none(rows, ["Model", "Module"])


def inequality(study: Study) -> Table:
    """Hypothesis 2's inequality: the objective's block over each other, raw and without the trend."""
    rows: list[dict[str, Any]] = []
    for label, record in frames.probes(study, "gradients").items():
        for row in record["inequality"]:
            rows.append(
                {
                    "Model": label,
                    "Objective": row["objective"],
                    "Block over": f"{row['block']} over {row['other']}",
                    "Ratio": row["ratio"],
                    "95% interval": interval_text(row["ratio_low"], row["ratio_high"]),
                    "Without the trend": row["detrended"],
                    "95% interval, without": interval_text(
                        row["detrended_low"], row["detrended_high"]
                    ),
                    "p, permuted": p_text(row["p_above"]),
                    "Prompts": row["n"],
                }
            )
    return table_or_none(rows, ["Model", "Objective", "Block over", "Ratio"])


def along(study: Study) -> "Figure":
    """The share of each third in the gradient's norm, by optimizer step of Full-DPO."""
    found = frames.probes(study, "gradients")
    if not found:
        return nothing("gradients")
    figure, axes = depth.rows(list(found), len(COLOURS), 2.3, sharey=True)
    for label, record in found.items():
        split = split_layers(record["depth"])
        for panel, source in zip(axes[label], COLOURS, strict=True):
            table = [row for row in record["along"] if row["source"] == source]
            steps = sorted({row["step"] for row in table})
            for i, (block, members) in enumerate(split.items()):
                shares = []
                for step in steps:
                    norms = {row["layer"]: row["rms"] for row in table if row["step"] == step}
                    shares.append(sum(norms[n] for n in members) / sum(norms.values()))
                look: dict[str, Any] = {"color": PALETTE[block], "linestyle": LINES[i]}
                panel.plot(steps, shares, marker="o", markersize=3, label=block, **look)
            depth.equal_shares(record["depth"], panel.axhline)
            panel.set(xlabel="optimizer step", ylim=(0, 0.75))
            panel.set_title(source, fontsize=9)
            panel.locator_params(axis="x", integer=True)
        axes[label][0].set_ylabel(
            "share of the norm" if len(found) == 1 else f"{plain(label, 18)}\nshare of the norm"
        )
    depth.legend(figure, axes[next(iter(found))][0], "third; dotted: an equal share")
    return figure


def shares(study: Study) -> Table:
    """`along` as numbers: step, source, and the share of each third."""
    rows = []
    for label, record in frames.probes(study, "gradients").items():
        split = split_layers(record["depth"])
        seen = dict.fromkeys((row["step"], row["source"]) for row in record["along"])
        for step, source in seen:
            norms = {
                row["layer"]: row["rms"]
                for row in record["along"]
                if (row["step"], row["source"]) == (step, source)
            }
            row: dict[str, Any] = {"Model": label, "Step": step, "Pairs of": source}
            for block, members in split.items():
                row[strategy_of(block)] = sum(norms[n] for n in members) / sum(norms.values())
            rows.append(row)
    return table_or_none(rows, ["Model", "Step", "Pairs of"])
