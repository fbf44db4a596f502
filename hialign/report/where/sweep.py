"""What tuning by block found: the strategy x objective matrix, and the sweep over depth."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import Table, table_or_none
from hialign.report.plots import LINES, MORE, PALETTE, WIDEST, canvas, nothing, plain, write
from hialign.statistics.intervals import interval_text, p_text
from hialign.study.blocks import EXPECTED, OBJECTIVES, split_layers
from hialign.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROLS = {"full": PALETTE["full"], "full, lower rank": PALETTE["global"], "random": MORE[2]}


# --- the matrix ----------------------------------------------------------------------------------


def matrix(study: Study) -> "Figure":
    """Mean margin of each block (rows) on each objective (columns), a panel a training set."""
    from matplotlib.patches import Rectangle

    found = frames.probes(study, "matrix")
    if not found:
        return nothing("strategy by objective")
    sets = (*OBJECTIVES, "all")
    blocks = {label: list(record["blocks"]) for label, record in found.items()}
    height = sum(0.42 * len(names) + 1.0 for names in blocks.values())
    figure, axes = canvas(WIDEST, height + 0.6, (len(found), len(sets)), sharex=True, sharey="row")
    for i, (label, record) in enumerate(found.items()):
        rows = {(r["trained_on"], r["block"], r["tested_on"]): r for r in record["cells"]}
        most = max(abs(row["margin"]) for row in rows.values()) or 1.0
        for j, name in enumerate(sets):
            panel = axes[i * len(sets) + j]
            values = [[rows[name, b, o]["margin"] for o in OBJECTIVES] for b in blocks[label]]
            image = panel.imshow(
                np.array(values), aspect="auto", cmap="RdBu", vmin=-most, vmax=most
            )
            for y, block in enumerate(blocks[label]):
                for x, objective in enumerate(OBJECTIVES):
                    strong = abs(values[y][x]) > 0.6 * most
                    colour = "white" if strong else "black"
                    text = f"{values[y][x]:.2f}".replace("-0.00", "0.00").replace("-", "−")
                    write(panel, x, y, text, color=colour, fontsize=7.5)
                    if EXPECTED[objective] == block:
                        box: dict[str, Any] = {
                            "fill": False,
                            "linewidth": 1.5,
                            "edgecolor": "#000000",
                        }
                        panel.add_patch(Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, **box))
            panel.set_xticks(range(3), OBJECTIVES, rotation=35, ha="right", fontsize=8)
            panel.set_yticks(range(len(blocks[label])), [plain(b, 14) for b in blocks[label]])
            panel.set_title(f"trained on {name}", fontsize=9)
        if len(found) > 1:
            axes[i * len(sets)].set_ylabel(plain(label, 24), fontweight="bold")
    figure.supxlabel("tested on", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
    bar.set_label("mean margin (nats)" if len(found) == 1 else "mean margin, of the model's scale")
    return figure


def cells(study: Study) -> Table:
    """`matrix` as numbers, with intervals over prompts and the spread of the seeds."""
    rows = []
    for label, record in frames.probes(study, "matrix").items():
        for row in record["cells"]:
            rows.append(
                {
                    "Model": label,
                    "Trained on": row["trained_on"],
                    "Block": row["block"],
                    "Tested on": row["tested_on"],
                    "Margin": row["margin"],
                    "95% interval, margin": interval_text(row["margin_low"], row["margin_high"]),
                    "Accuracy": row["accuracy"],
                    "95% interval, accuracy": interval_text(
                        row["accuracy_low"], row["accuracy_high"]
                    ),
                    "Std over seeds": row["margin_seed_std"],
                    "Pairs": row["n"],
                }
            )
    return table_or_none(rows, ["Model", "Trained on", "Block", "Tested on"])


def effects(study: Study) -> Table:
    """Hypothesis 2 in behaviour: each objective's own third against the others, as it is and scaled."""
    rows = []
    for label, record in frames.probes(study, "matrix").items():
        for row in record["hypothesis"]:
            ends = interval_text(row["difference_low"], row["difference_high"])
            rows.append(
                {
                    "Model": label,
                    "Objective": row["objective"],
                    "Block minus": f"{row['block']} minus {row['other']}",
                    "Margins": "nats" if row["scale"] == "nats" else "scaled",
                    "Difference": row["difference"],
                    "95% interval": ends,
                    "p": p_text(row["p_holm"]),
                    "Verdict": row["verdict"],
                    "Prompts": row["prompts"],
                }
            )
    return table_or_none(rows, ["Model", "Objective", "Block minus"])


# --- the sweep -----------------------------------------------------------------------------------


def windows(study: Study) -> "Figure":
    """Held-out accuracy and margin by the window that is tuned; controls as horizontal lines."""
    found = frames.probes(study, "sweep")
    if not found:
        return nothing("sweep")
    figure, axes = depth.rows(list(found), 2, 3.0)
    for label, record in found.items():
        middles = [(row["first"] + row["last"]) / 2 for row in record["windows"]]
        for panel, measure, name in zip(
            axes[label],
            ("accuracy", "margin"),
            ("reward accuracy (share of pairs)", "mean reward margin (nats)"),
            strict=True,
        ):
            look: dict[str, Any] = {"color": "#333333", "label": "window"}
            depth.line(panel, middles, record["windows"], measure, **look)
            if record["singles"]:
                one = [row[measure] for row in record["singles"]]
                look = {"color": MORE[0], "markersize": 3}
                panel.plot(range(len(one)), one, ".:", label="one layer", linewidth=0.8, **look)
            for i, (kind, rows) in enumerate(_controls(record).items()):
                level = float(np.mean([row[measure] for row in rows]))
                look = {"color": CONTROLS[kind], "linestyle": LINES[i % len(LINES)]}
                panel.axhline(level, label=kind, linewidth=1.4, **look)
            depth.thirds(panel, record["depth"])
            panel.set(ylabel=name, xlabel="middle of the window (layer)")
    note = "band: 95% interval over prompts; random: the mean of its draws"
    depth.legend(figure, axes[next(iter(found))][0], note, 4)
    return figure


def curve(study: Study) -> Table:
    """`windows` as numbers: every window and every single layer."""
    rows = []
    for label, record in frames.probes(study, "sweep").items():
        for row in record["windows"]:
            rows.append(_row(label, _name(row), row))
        for row in record["singles"]:
            rows.append(_row(label, f"layer {row['first']}", row))
        rows += [_row(label, row["block"], row) for row in record["controls"]]
    return table_or_none(rows, ["Model", "Tuned", "Parameters"])


def controls(study: Study) -> Table:
    """The candidate window, where it was not chosen, and the middle third against the controls."""
    rows = []
    for label, record in frames.probes(study, "sweep").items():
        found = {r["block"]: r for kind in ("windows", "controls") for r in record[kind]}
        for row in record["comparisons"]:
            names = f"{_name(found[row['block']])} minus {_name(found[row['other']])}"
            shown: dict[str, Any] = {"Model": label, "Compared": names}
            for side in ("block", "other"):
                words = "Accuracy, all pairs" if side == "block" else "of the other"
                shown[words] = found[row[side]]["accuracy"]
            shown["Margin, difference"] = row["difference"]
            ends = interval_text(row["difference_low"], row["difference_high"])
            shown |= {"95% interval": ends, "p": p_text(row["p_holm"]), "Verdict": row["verdict"]}
            rows.append(shown | {"Prompts": row["prompts"]})
    return table_or_none(rows, ["Model", "Compared"])


def _name(row: dict[str, Any]) -> str:
    if row["block"].startswith("window:"):
        return f"layers {row['first']} to {row['last']}"
    return str(row["block"])


def _row(label: str, name: str, row: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"Model": label, "Tuned": name, "Parameters": row["parameters"]}
    for measure in ("accuracy", "margin"):
        shown[f"Reward {measure}"] = row[measure]
        ends = interval_text(row[f"{measure}_low"], row[f"{measure}_high"])
        shown[f"95% interval, {measure}"] = ends
    return shown | {"Pairs": row["n"]}


def _controls(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Controls other than the thirds, which are windows themselves: by kind, the random sets as one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record["controls"]:
        if row["block"] not in split_layers(record["depth"]):
            kind = row["block"].split(":")[0] if row["block"].startswith("random") else row["block"]
            found.setdefault("full, lower rank" if kind.startswith("full:") else kind, []).append(
                row
            )
    return found
