"""What the gradient probe measured, as figures and tables."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import Columns, Table, short_name
from hialign.report.plots import LINES, PALETTE, nothing, plain
from hialign.report.where.records import Record, p_of, probe_view
from hialign.study.blocks import OBJECTIVES, split_layers, strategy_of
from hialign.study.study import Study

PREFERENCE = "preference"
# An objective has the colour of the third that the paper assigns to it.
COLOURS = {PREFERENCE: "#333333", "grammar": PALETTE["local"], "coherence": PALETTE["mid"]}
COLOURS |= {"factuality": PALETTE["global"]}
STYLE = dict(zip(COLOURS, LINES, strict=True))


def curves(study: Study) -> Figure:
    """Gradient norm by layer of each source of pairs, and each objective beside their mean."""
    records = frames.probes(study, "gradients")
    if not records:
        return nothing("gradients")
    figure, axes = depth.rows(list(records), 2)
    for label, record in records.items():
        left, right = axes[label]
        log_norms = {}
        for source, colour in COLOURS.items():
            rows = [row for row in record["layers"] if row["source"] == source]
            look: dict[str, Any] = {"color": colour, "linestyle": STYLE[source]}
            depth.line(left, range(record["depth"]), rows, "rms", label=source, **look)
            if source in OBJECTIVES:
                norms = np.array([pair["norms"] for pair in record["pairs"][source]])
                log_norms[source] = np.log(norms).mean(axis=0)
        trend = np.mean(list(log_norms.values()), axis=0)
        for source, values in log_norms.items():
            look = {"color": COLOURS[source], "linestyle": STYLE[source]}
            rest = values - trend
            right.plot(np.exp(rest - rest.mean()), marker="o", markersize=3, **look)
        left.set(yscale="log", ylabel="gradient norm per weight (nats)")
        depth.level(right, 1)
        right.set(ylabel="share of the objective, divided by the mean share")
        for panel in (left, right):
            depth.thirds(panel, record["depth"])
    note = "bands: 95% intervals; an objective has the colour of the third that it should be in"
    depth.legend(figure, note)
    return figure


def layers(study: Study) -> Table:
    """The gradient norm of each layer by source: per parameter, with its interval, and in total."""
    columns = {
        "Pairs of": "source",
        "Layer": "layer",
        "Norm per parameter": "rms",
        "Low": "rms_low",
        "High": "rms_high",
        "Total norm": "total",
        "Pairs": "n",
    }
    return probe_view(study, "gradients", "layers", columns, 3)


def modules(study: Study) -> Table:
    """The norm per parameter of each kind of module on preference pairs, averaged over each third."""
    columns = {"Module": "module", "Parameters of a layer": "parameters"}
    titles = {f"{short_name(strategy_of(b))} (10⁻³ nats)": b for b in split_layers(3)}
    return probe_view(study, "gradients", _modules, columns | titles, 2)


def _modules(record: Record) -> Iterator[Record]:
    rows = [row for row in record["modules"] if row["source"] == PREFERENCE]
    for module in dict.fromkeys(row["module"] for row in rows):
        norms = {row["layer"]: row["rms"] for row in rows if row["module"] == module}
        means = {
            block: 1e3 * float(np.mean([norm for layer, norm in norms.items() if layer in inside]))
            for block, inside in split_layers(record["depth"]).items()
        }
        yield {"module": module, "parameters": record["parameters"][0].get(module)} | means


def inequality(study: Study) -> Table:
    """Hypothesis 2's inequality: the objective's block over each other, raw and without the trend."""
    columns: Columns = {
        "Objective": "objective", "Block over": lambda row: f"{row['block']} over {row['other']}",
        "Ratio": "ratio", "95% interval": ("ratio_low", "ratio_high"),
        "Without the trend": "detrended",
        "95% interval, without": ("detrended_low", "detrended_high"),
        "p, permuted": p_of("p_above"), "Prompts": "n",
    }  # fmt: skip
    return probe_view(study, "gradients", "inequality", columns, 4)


def along(study: Study) -> Figure:
    """The share of each third in the gradient's norm, by optimizer step of Full-DPO."""
    records = frames.probes(study, "gradients")
    if not records:
        return nothing("gradients")
    figure, axes = depth.rows(list(records), len(COLOURS), 2.3, sharey=True)
    for label, record in records.items():
        for panel, source in zip(axes[label], COLOURS, strict=True):
            rows = [row for row in _shares(record) if row["source"] == source]
            for block, linestyle in zip(split_layers(3), LINES, strict=False):
                values = [row[block] for row in rows]
                look: dict[str, Any] = {"color": PALETTE[block], "linestyle": linestyle}
                steps = [row["step"] for row in rows]
                panel.plot(steps, values, marker="o", markersize=3, label=block, **look)
            depth.equal_shares(record["depth"], panel.axhline)
            panel.set(xlabel="optimizer step", ylim=(0, 0.75))
            panel.set_title(source, fontsize=9)
            panel.locator_params(axis="x", integer=True)
        name = "" if len(records) == 1 else f"{plain(label, 18)}\n"
        axes[label][0].set_ylabel(f"{name}share of the norm")
    depth.legend(figure, "third; dotted: an equal share")
    return figure


def shares(study: Study) -> Table:
    """`along` as numbers: step, source, and the share of each third."""
    columns = {"Step": "step", "Pairs of": "source"}
    titles = {strategy_of(block): block for block in split_layers(3)}
    return probe_view(study, "gradients", _shares, columns | titles, 3)


def _shares(record: Record) -> Iterator[Record]:
    """For each step and source, the share of each third in the sum of the layers' norms."""
    norms: dict[tuple[int, str], dict[int, float]] = {}
    for row in record["along"]:
        norms.setdefault((row["step"], row["source"]), {})[row["layer"]] = row["rms"]
    for (step, source), by_layer in norms.items():
        shares = {
            block: sum(by_layer[layer] for layer in inside) / sum(by_layer.values())
            for block, inside in split_layers(record["depth"]).items()
        }
        yield {"step": step, "source": source} | shares
