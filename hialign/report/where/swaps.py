"""The swaps of a patching record: as arrays, and as figures and tables.

All effects are nats towards the human preference. A `way` of swapping is `put_in`, `leave_out`, or
`both`, the mean of the two.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import Columns, Table
from hialign.report.plots import nothing
from hialign.report.where.records import Record, p_of, probe_view
from hialign.statistics.intervals import pooled_interval
from hialign.statistics.nulls import null_interval, null_p
from hialign.study.blocks import split_layers
from hialign.study.study import Study

WAYS = {"put_in": "one tuned layer in base", "leave_out": "one layer of base in the tuned model"}
BOTH = "both"
WORDS = {"put_in": "put into base", "leave_out": "left out of tuned", BOTH: "mean of both"}
ENDS, NULL_ENDS = ("low", "high"), ("null_low", "null_high")


# --- arrays ----------------------------------------------------------------------------------------


def effects(record: Record, way: str = BOTH) -> np.ndarray:
    """The effect of each layer on each pair (pairs x layers)."""
    found = record["swaps"]
    return np.asarray(np.mean([found[name]["layers"] for name in _ways(way)], axis=0))


def null(record: Record, way: str = BOTH) -> np.ndarray | None:
    """The mean effect of each layer of each random adapter (K x layers). None for fewer than two."""
    drawn = record["swaps"]["nulls"]
    if len(drawn) < 2:
        return None
    every = [[draw[name]["layers"] for draw in drawn] for name in _ways(way)]
    return np.asarray(np.mean(every, axis=0))


def _ways(way: str) -> list[str]:
    return list(WAYS) if way == BOTH else [way]


def prompts(record: Record) -> list[str]:
    """The prompt of each pair."""
    return [pair["prompt"] for pair in record["swaps"]["pairs"]]


def means(layers: int) -> dict[str, np.ndarray]:
    """By third, the weights of layers whose sum is the mean over the third's layers."""
    return {
        third: np.isin(np.arange(layers), list(inside)) / len(inside)
        for third, inside in split_layers(layers).items()
    }


def leads(layers: int, third: str) -> dict[str, np.ndarray]:
    """By each other third, the weights of layers whose sum is the lead of the third's mean over it."""
    of_thirds = means(layers)
    return {name: of_thirds[third] - mean for name, mean in of_thirds.items() if name != third}


# --- views -----------------------------------------------------------------------------------------


def profile(study: Study) -> Figure:
    """The effect of each layer by both ways of swapping, before what random adapters give."""
    records = _swapped(study)
    if not records:
        return nothing("swaps of layers")
    figure, axes = depth.rows(list(records), 2, 2.8, sharey="row")
    for label, record in records.items():
        for panel, (way, title) in zip(axes[label], WAYS.items(), strict=True):
            rows = [layer[way] for layer in record["swaps"]["layers"]]
            drawn = null(record, way)
            if drawn is not None:
                band = [null_interval(drawn, alone) for alone in np.eye(record["depth"])]
                low, high = zip(*band, strict=True)
                look: dict[str, Any] = {"color": "#BBBBBB", "alpha": 0.5, "linewidth": 0}
                panel.fill_between(range(len(rows)), low, high, label="random adapters", **look)
            look = {"color": "#333333", "label": "this adapter"}
            depth.line(panel, range(len(rows)), rows, "estimate", ENDS, **look)
            depth.level(panel, 0)
            depth.thirds(panel, record["depth"])
            panel.set_title(title, loc="left", fontsize=9, pad=14)
        axes[label][0].set(ylabel="added to the preference (nats)")
    depth.legend(figure, "bands: 95% intervals over prompts, and of one more random adapter")
    return figure


def layers(study: Study) -> Table:
    """`profile` as numbers: by way and layer, the effect, its interval, and random adapters."""
    columns: Columns = {
        "Swapped": "way", "Layer": "layer", "Effect (nats)": "estimate", "95% interval": ENDS,
        "95% of random adapters": NULL_ENDS, "p among them": p_of("p"), "Pairs": "n",
    }  # fmt: skip
    return probe_view(study, "patching", _by_layer, columns, 4)


def _by_layer(record: Record) -> Iterator[Record]:
    for way, words in WORDS.items():
        for row in record.get("swaps", {}).get("layers", ()):
            alone = np.eye(record["depth"])[row["layer"]]
            ends = _null_ends(record, way, alone)
            yield row[way] | ends | {"way": words, "layer": row["layer"]}


def thirds(study: Study) -> Table:
    """What a layer of each third adds, what a whole third does, and the thirds against each other."""
    columns: Columns = {
        "Swapped": "way", "Third": "what", "Mean of its layers (nats)": "estimate",
        "95% interval": ENDS, "95% of random adapters": NULL_ENDS, "p among them": p_of("p"),
        "Whole third (nats)": "whole.estimate", "95% interval, whole": ("whole.low", "whole.high"),
        "Pairs": "n",
    }  # fmt: skip
    return probe_view(study, "patching", _by_third, columns, 4)


def _by_third(record: Record) -> Iterator[Record]:
    if "swaps" not in record:
        return
    weights = means(record["depth"])
    for row in sorted(record["swaps"]["thirds"], key=lambda row: list(WORDS).index(row["way"])):
        ends = _null_ends(record, row["way"], weights[row["third"]])
        yield row | ends | {"way": WORDS[row["way"]], "what": row["third"]}
    for way, words in WORDS.items():
        for one, other in combinations(weights, 2):
            row = lead(record, way, one, other)
            yield row | {"way": words, "what": f"{one} minus {other}"}


def lead(record: Record, way: str, third: str, other: str) -> Record:
    """The mean effect of a third's layers minus another's, over prompts and among random adapters."""
    weights = leads(record["depth"], third)[other]
    values = effects(record, way) @ weights
    low, high = pooled_interval(values.tolist(), prompts(record))
    estimate, drawn = float(values.mean()), null(record, way)
    p = None if drawn is None else null_p(estimate, drawn, weights)
    row = {"estimate": estimate, "low": low, "high": high, "n": len(values), "p": p}
    return row | _null_ends(record, way, weights)


def _null_ends(record: Record, way: str, weights: np.ndarray) -> Record:
    """Between what 95% of random adapters lie, by the weights of layers."""
    drawn = null(record, way)
    if drawn is None:
        return dict.fromkeys(NULL_ENDS)
    return dict(zip(NULL_ENDS, null_interval(drawn, weights), strict=True))


def _swapped(study: Study) -> dict[str, Record]:
    """The records in which layers were swapped. Those of earlier versions have activations alone."""
    probed = frames.probes(study, "patching")
    return {label: record for label, record in probed.items() if "swaps" in record}
