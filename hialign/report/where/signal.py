"""What the gradients of preference pairs have in common, as figures and tables.

Records of earlier versions have norms alone (`gradients.py`), and these views show nothing of them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import REASONS, Columns, Table, short_name
from hialign.report.plots import nothing
from hialign.report.where.gradients import COLOURS, STYLE
from hialign.report.where.records import Record, p_of, probe_view
from hialign.study.blocks import split_layers, strategy_of
from hialign.study.study import Study

ACCOUNTS = {"local": "first third", "mid": "middle third", "global": "last third"}
ACCOUNTS |= {"all": "all layers alike", "none": "no layer"}


def with_signal(study: Study) -> dict[str, Record]:
    """The records that have a signal, by the labels of the models."""
    records = frames.probes(study, "gradients")
    return {label: record for label, record in records.items() if "signal" in record}


def signal(study: Study) -> Figure:
    """The signal of each layer over its spread under flipped labels, and where the labels point."""
    records = with_signal(study)
    if not records:
        return nothing("gradients that see labels")
    figure, axes = depth.rows(list(records), 2, gridspec_kw={"width_ratios": [3, 2]})
    for label, record in records.items():
        left, right = axes[label]
        found = {row["source"]: row["probability"] for row in record["signal"]["evidence"]}
        sources = [source for source in COLOURS if source in found]
        for i, source in enumerate(sources):
            rows = [row for row in record["signal"]["layers"] if row["source"] == source]
            look: dict[str, Any] = {"color": COLOURS[source], "linestyle": STYLE[source]}
            values = [row["over_chance"] for row in rows]
            left.plot(values, marker="o", markersize=3, linewidth=1.6, label=source, **look)
            places = np.arange(len(ACCOUNTS)) + 0.2 * (i - (len(sources) - 1) / 2)
            heights = [found[source][account] for account in ACCOUNTS]
            right.bar(places, heights, width=0.18, color=COLOURS[source])
        depth.level(left, 0)
        depth.level(right, 0.95)
        left.set(ylabel="signal over its spread by chance")
        right.set(ylabel="probability", ylim=(0, 1.02), xticks=range(len(ACCOUNTS)))
        right.set_xticklabels(
            [name.replace(" ", "\n", 1) for name in ACCOUNTS.values()], fontsize=8
        )
        depth.thirds(left, record["depth"])
    note = "left: labels by chance are within ±2 in most layers; right: dotted, a third counts as found"
    depth.legend(figure, note)
    return figure


def by_layer(study: Study) -> Table:
    """The signal of each layer by source, and the same under flipped labels."""
    columns: Columns = {
        "Pairs of": "source", "Layer": "layer", "Signal": "signal", "Over chance": "over_chance",
        "Flipped, std": "flipped_std", "Flipped, 95% quantile": "flipped_quantile95",
        "p": "p", "p, Holm": "p_holm", "Mean squared norm": "energy", "Prompts": "n",
    }  # fmt: skip
    return _view(study, "layers", columns, 4)


def thirds(study: Study) -> Table:
    """The signal of each third by source, with its share and the probability that it sits there."""
    columns: Columns = {
        "Pairs of": "source", "Third": lambda row: short_name(strategy_of(row["block"])),
        "Over chance": "over_chance", "p": p_of("p_holm"), "Share of the signal": "share",
        "95% interval": ("share_low", "share_high"), "Per parameter (10⁻³ nats)": _per_parameter,
        "Probability": "probability", "Prompts": "n",
    }  # fmt: skip
    return _view(study, "thirds", columns, 4)


def resolution(study: Study) -> Table:
    """What the labels say of each account, and how often an account would be found on such pairs."""
    columns: Columns = {
        "Pairs of": "source", "Made in": lambda row: ACCOUNTS[row["made_in"]],
        "Probability": "probability", "Would be found there": "right",
        "Another third would be found": "wrong", "Prompts": "n",
    }  # fmt: skip
    return probe_view(study, "gradients", _resolution, columns, 4)


def _resolution(record: Record) -> Iterator[Record]:
    part = record.get("signal", {})
    found = {row["source"]: row["probability"] for row in part.get("evidence", ())}
    for row in part.get("resolution", ()):
        made_in, thirds_of = row["made_in"], {block: row[block] for block in split_layers(3)}
        right = thirds_of.pop(made_in, None)
        numbers = {"probability": found[row["source"]][made_in], "right": right}
        yield row | numbers | {"wrong": sum(thirds_of.values())}


def by_module(study: Study) -> Table:
    """The signal over chance of each kind of module, as a mean over each third's layers."""
    columns: Columns = {"Pairs of": "source", "Module": "module"}
    columns |= {short_name(strategy_of(block)): block for block in split_layers(3)}
    columns |= {"Layers with p < 0.05, Holm": "above", "Layers": "layers"}
    return probe_view(study, "gradients", _by_module, columns, 3)


def _by_module(record: Record) -> Iterator[Record]:
    split = split_layers(record["depth"])
    rows = record.get("signal", {}).get("modules", ())
    for source, module in dict.fromkeys((row["source"], row["module"]) for row in rows):
        some = [row for row in rows if (row["source"], row["module"]) == (source, module)]
        means = {
            block: float(np.mean([r["over_chance"] for r in some if r["layer"] in inside]))
            for block, inside in split.items()
        }
        above = sum(row["p_holm"] < 0.05 for row in some)
        yield {"source": source, "module": module, "above": above, "layers": len(some)} | means


def interaction(study: Study) -> Table:
    """Whether each objective has more of its signal in its own third than the others have there."""
    columns: Columns = {"Objective": "objective", "Its third": "block"}
    columns |= {f"Share of {short_name(strategy_of(b))}": b for b in split_layers(3)}
    columns |= {
        "Own third, minus the others'": "difference",
        "95% interval": ("difference_low", "difference_high"),
        "p": p_of("p_holm"), "Prompts": "n", REASONS: "reason",
    }  # fmt: skip
    return _view(study, "interaction", columns, 3)


def _view(study: Study, part: str, columns: Columns, keys: int) -> Table:
    def rows(record: Record) -> list[Record]:
        return list(record.get("signal", {}).get(part, ()))

    return probe_view(study, "gradients", rows, columns, keys)


def _per_parameter(row: Record) -> float:
    return 1e3 * float(row["rms"])
