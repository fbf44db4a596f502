"""Accuracy and gain of each block against how far it has moved from base, along training."""

from typing import Any

from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import Columns, Table
from hialign.report.plots import dot_of, nothing, plain
from hialign.report.where.records import probe_view
from hialign.study.blocks import strategy_of
from hialign.study.study import Study

MEASURES = {
    "accuracy": "reward accuracy (share of pairs)",
    "gain": "gain in log loss (nats)",
}


def frontier(study: Study) -> Figure:
    """One curve per block, from base at KL 0 on. Its points are optimizer steps."""
    records = frames.probes(study, "frontier")
    if not records:
        return nothing("accuracy against KL")
    figure, axes = depth.rows(list(records), len(MEASURES), 3.2)
    for label, record in records.items():
        for panel, (measure, title) in zip(axes[label], MEASURES.items(), strict=True):
            start = 0.5 if measure == "accuracy" else 0.0
            panel.axhline(start, color="#555555", linestyle=":", linewidth=1)
            for block in dict.fromkeys(row["block"] for row in record["points"]):
                rows = [row for row in record["points"] if row["block"] == block]
                far = [0.0, *(row["kl"] for row in rows)]
                values = [start, *(row[measure] for row in rows)]
                look: dict[str, Any] = dot_of(study, block) | {
                    "linestyle": "-",
                    "linewidth": 1.2,
                    "markersize": 4,
                }
                panel.plot(far, values, label=plain(strategy_of(block)), **look)
            panel.set(ylabel=title, xlabel="KL from Base (nats per token)")
    note = "every point is an optimizer step; dotted: Base, which knows nothing of the preference"
    depth.legend(figure, note)
    return figure


def points(study: Study) -> Table:
    """`frontier` as numbers."""
    columns: Columns = {
        "Block": "block", "Step": "step", "KL from Base (nats/token)": "kl",
        "Reward accuracy": "accuracy", "Gain (nats)": "gain",
        "Pairs": lambda row: len(row["margins"]),
    }  # fmt: skip
    return probe_view(study, "frontier", "points", columns, 4)
