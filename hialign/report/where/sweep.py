"""What tuning by block gave: the strategy x objective matrix, and the sweep over depth."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import Columns, Row, Table
from hialign.report.plots import LINES, MORE, PALETTE, WIDEST, canvas, nothing, plain, write
from hialign.report.replication.gates import gated, objectives_learned
from hialign.report.where.records import Record, p_of, probe_view
from hialign.statistics.gate import gate
from hialign.study.blocks import EXPECTED, OBJECTIVES, split_layers
from hialign.study.study import Study

CONTROLS = {"full": PALETTE["full"], "full, lower rank": PALETTE["global"], "random": MORE[2]}
MEASURES = {
    "accuracy": "reward accuracy (share of pairs)",
    "margin": "mean reward margin (nats)",
}


# --- the matrix ----------------------------------------------------------------------------------


def matrix(study: Study) -> Figure:
    """Mean margin of each block (rows) on each objective (columns), one panel per training set."""
    records = frames.probes(study, "matrix")
    if not records:
        return nothing("strategy by objective")
    sets = list(dict.fromkeys(name for record in records.values() for name in record["margins"]))
    blocks = {label: list(record["blocks"]) for label, record in records.items()}
    height = sum(0.42 * len(names) + 1.0 for names in blocks.values())
    shape = (len(records), len(sets))
    figure, axes = canvas(WIDEST, height + 0.6, shape, sharex=True, sharey="row")
    for i, (label, record) in enumerate(records.items()):
        cells = {(r["trained_on"], r["block"], r["tested_on"]): r for r in record["cells"]}
        most = max(abs(cell["margin"]) for cell in cells.values()) or 1.0
        for panel, name in zip(axes[i * len(sets) :], sets, strict=False):
            values = [[cells[name, b, o]["margin"] for o in OBJECTIVES] for b in blocks[label]]
            colours: dict[str, Any] = {"cmap": "RdBu", "vmin": -most, "vmax": most}
            image = panel.imshow(np.array(values), aspect="auto", **colours)
            for y, block in enumerate(blocks[label]):
                for x, objective in enumerate(OBJECTIVES):
                    colour = "white" if abs(values[y][x]) > 0.6 * most else "black"
                    text = f"{values[y][x]:.2f}".replace("-0.00", "0.00").replace("-", "−")
                    write(panel, x, y, text, color=colour, fontsize=7.5)
                    if EXPECTED[objective] == block:
                        frame: dict[str, Any] = {"linewidth": 1.5, "edgecolor": "#000000"}
                        corner = (x - 0.44, y - 0.44)
                        panel.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, **frame))
            panel.set_xticks(range(3), OBJECTIVES, rotation=35, ha="right", fontsize=8)
            panel.set_yticks(range(len(blocks[label])), [plain(b, 14) for b in blocks[label]])
            panel.set_title(f"trained on {name}", fontsize=9)
        if len(records) > 1:
            axes[i * len(sets)].set_ylabel(plain(label, 24), fontweight="bold")
    figure.supxlabel("tested on", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
    several = len(records) > 1
    bar.set_label("mean margin, of the model's scale" if several else "mean margin (nats)")
    return figure


def cells(study: Study) -> Table:
    """`matrix` as numbers, with intervals over prompts and the spread of the seeds."""
    columns: Columns = {
        "Trained on": "trained_on", "Block": "block", "Tested on": "tested_on",
        "Margin": "margin", "95% interval, margin": ("margin_low", "margin_high"),
        "Accuracy": "accuracy", "95% interval, accuracy": ("accuracy_low", "accuracy_high"),
        "Std over seeds": "margin_seed_std", "Pairs": "n",
    }  # fmt: skip
    return probe_view(study, "matrix", "cells", columns, 4)


def effects(study: Study) -> Table:
    """Hypothesis 2 in behaviour: each objective's own third against the others, as it is and scaled."""
    learned = {label: objectives_learned(study, label) for label in frames.probes(study, "matrix")}
    columns: Columns = {
        "Objective": "objective",
        "Block minus": lambda row: f"{row['block']} minus {row['other']}",
        "Margins": lambda row: "nats" if row["scale"] == "nats" else "scaled",
        "Difference": "difference", "95% interval": ("difference_low", "difference_high"),
        "p": p_of("p_holm"),
        "Verdict": lambda row: gated(
            row["verdict"], learned[row["model"]].get(row["objective"], True)
        ),
        "Prompts": "prompts",
    }  # fmt: skip
    return probe_view(study, "matrix", "hypothesis", columns, 3)


# --- the sweep -----------------------------------------------------------------------------------


def windows(study: Study) -> Figure:
    """Held-out accuracy and margin by the window that is tuned, with controls as horizontal lines."""
    records = frames.probes(study, "sweep")
    if not records:
        return nothing("sweep")
    figure, axes = depth.rows(list(records), 2, 3.0)
    for label, record in records.items():
        middles = [(row["first"] + row["last"]) / 2 for row in record["windows"]]
        for panel, (measure, title) in zip(axes[label], MEASURES.items(), strict=True):
            depth.line(panel, middles, record["windows"], measure, color="#333333", label="window")
            if record["singles"]:
                values = [row[measure] for row in record["singles"]]
                look: dict[str, Any] = {"color": MORE[0], "markersize": 3, "linewidth": 0.8}
                panel.plot(range(len(values)), values, ".:", label="one layer", **look)
            for linestyle, (kind, rows) in zip(LINES, _by_kind(record).items(), strict=False):
                mean = float(np.mean([row[measure] for row in rows]))
                look = {"color": CONTROLS[kind], "linestyle": linestyle}
                panel.axhline(mean, label=kind, linewidth=1.4, **look)
            depth.thirds(panel, record["depth"])
            panel.set(ylabel=title, xlabel="middle of the window (layer)")
    depth.legend(figure, "band: 95% interval over prompts; random: the mean of its draws")
    return figure


def curve(study: Study) -> Table:
    """`windows` as numbers: every window, every single layer, and the controls."""
    columns: Columns = {
        "Tuned": "tuned", "Parameters": "parameters", "Reward accuracy": "accuracy",
        "95% interval, accuracy": ("accuracy_low", "accuracy_high"), "Reward margin": "margin",
        "95% interval, margin": ("margin_low", "margin_high"), "Pairs": "n",
    }  # fmt: skip
    return probe_view(study, "sweep", _tuned, columns, 3)


def _tuned(record: Record) -> Iterator[Record]:
    for kind in ("windows", "singles", "controls"):
        for row in record[kind]:
            single = f"layer {row['first']}" if kind == "singles" else _name(row)
            yield row | {"tuned": single}


def controls(study: Study) -> Table:
    """The candidate window, where it was not chosen, and the middle third against the controls."""
    columns: Columns = {
        "Compared": lambda row: f"{_name(row['block'])} minus {_name(row['other'])}",
        "Accuracy, all pairs": "block.accuracy", "of the other": "other.accuracy",
        "Margin, difference": "difference", "95% interval": ("difference_low", "difference_high"),
        "p": p_of("p_holm"), "Verdict": lambda row: gated(row["verdict"], row["learned"]),
        "Prompts": "prompts",
    }  # fmt: skip
    return probe_view(study, "sweep", _compared, columns, 2)


def _compared(record: Record) -> Iterator[Record]:
    """The comparisons, with the rows of the two blocks in the place of their names.

    Whether anything was `learned` is asked of Full, if it is among the controls.
    """
    rows = {row["block"]: row for kind in ("windows", "controls") for row in record[kind]}
    prompts = [pair["prompt"] for pair in record["pairs"]]
    learned = True
    if "full" in rows and len(set(prompts)) > 1:
        learned = gate(np.array(rows["full"]["margins"]), None, prompts)["passed"]
    for row in record["comparisons"]:
        yield row | {side: rows[row[side]] for side in ("block", "other")} | {"learned": learned}


def _name(row: Row) -> str:
    if row["block"].startswith("window:"):
        return f"layers {row['first']} to {row['last']}"
    return str(row["block"])


def _by_kind(record: Record) -> dict[str, list[Record]]:
    """The controls by kind, without the thirds, which are windows. Random sets are one kind."""
    kinds: dict[str, list[Record]] = {}
    for row in record["controls"]:
        kind = row["block"]
        if kind in split_layers(record["depth"]):
            continue
        if kind.startswith("full:"):
            kind = "full, lower rank"
        kinds.setdefault("random" if kind.startswith("random") else kind, []).append(row)
    return kinds
