"""What the patching probe measured on activations, as figures and tables: changes, recovery, rank.

`where.swaps` shows the swaps of weights, on which the answer rests.
"""

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import REASONS, Columns, Table
from hialign.report.plots import LINES, MORE, PALETTE, nothing, plain
from hialign.report.where.records import Record, probe_view
from hialign.study.study import Study

WHOLE = {"residual": "#333333", "prompt": PALETTE["local"], "last_prompt": PALETTE["mid"]}
PARTS = {"contribution": "#333333", "attention": PALETTE["global"], "mlp": MORE[0]}
NAMES = {"residual": "whole residual", "last_prompt": "last prompt token"}
NAMES |= {"prompt": "prompt positions", "contribution": "layer's contribution", "mlp": "MLP"}
ENDS = ("low", "high")
TITLES = {"tuned_into_base": "tuned into base", "base_into_tuned": "base into tuned"}
CONTROLS = {"svd": "#333333", "random_subspace": PALETTE["local"]}
CONTROLS |= {"random_vector": PALETTE["mid"], "shuffled_pairs": PALETTE["global"]}


def recovery(study: Study) -> Figure:
    """Recovery by layer in both directions: of the residual stream, and below of what a layer adds."""
    records = _recovered(study)
    if not records:
        return nothing("recovery")
    rows = [(label, kinds) for label in records for kinds in (WHOLE, PARTS)]
    names = [f"{label}, {i}" for i, (label, _) in enumerate(rows)]
    figure, axes = depth.rows(names, 2, 2.7, sharey="row")
    for name, (label, kinds) in zip(names, rows, strict=True):
        record = records[label]
        for panel, (direction, title) in zip(axes[name], TITLES.items(), strict=True):
            for linestyle, (kind, colour) in zip(LINES, kinds.items(), strict=False):
                values = record["recovery"][direction].get(kind, {}).get("summed")
                if values is None:
                    continue
                look: dict[str, Any] = {"color": colour, "linestyle": linestyle}
                look["label"] = NAMES.get(kind, kind)
                depth.line(panel, range(len(values)), values, "estimate", ENDS, **look)
            depth.level(panel, *((0, 1) if kinds is WHOLE else (0,)))
            depth.thirds(panel, record["depth"])
            model = f"{plain(label, 26)}: " if len(records) > 1 else ""
            panel.set_title(f"{model}{title}", loc="left", fontsize=9, pad=14)
        axes[name][0].set(ylabel="recovery")
        axes[name][0].legend(fontsize=7.5, frameon=False)
    return figure


def layers(study: Study) -> Table:
    """Recovery by layer, kind and direction, summed and length-normalized, with intervals."""
    columns: Columns = {
        "Direction": "direction", "Patched": "kind", "Layer": "layer", "Recovery": "estimate",
        "Low": "low", "High": "high", "Length-normalized": "normalized", "Pairs": "n",
    }  # fmt: skip
    return probe_view(study, "patching", _recoveries, columns, 4)


def _recoveries(record: Record) -> Iterator[Record]:
    if record["nothing"]:
        return
    for direction, by_kind in record["recovery"].items():
        for kind, versions in by_kind.items():
            names = {"direction": TITLES[direction], "kind": NAMES.get(kind, kind)}
            normalized = versions["normalized"]
            for layer, value in enumerate(versions["summed"] or []):
                other = normalized[layer]["estimate"] if normalized else None
                yield value | names | {"layer": layer, "normalized": other}


def changes(study: Study) -> Figure:
    """The signed change of the preference by what one layer adds to the stream, in both directions."""
    probed = frames.probes(study, "patching")
    records = {label: record for label, record in probed.items() if "changes" in record}
    if not records:
        return nothing("signed changes")
    figure, axes = depth.rows(list(records), 2, 2.7, sharey="row")
    for label, record in records.items():
        for panel, (direction, title) in zip(axes[label], TITLES.items(), strict=True):
            for linestyle, (kind, colour) in zip(LINES, PARTS.items(), strict=False):
                rows = record["changes"][direction].get(kind)
                if rows is None:
                    continue
                look: dict[str, Any] = {"color": colour, "linestyle": linestyle}
                look["label"] = NAMES.get(kind, kind)
                depth.line(panel, range(len(rows)), rows, "estimate", ENDS, **look)
            depth.level(panel, 0)
            depth.thirds(panel, record["depth"])
            panel.set_title(title, loc="left", fontsize=9, pad=14)
        axes[label][0].set(ylabel="added to the preference (nats)")
    depth.legend(figure, "bands: 95% intervals over prompts")
    return figure


def changed(study: Study) -> Table:
    """`changes` as numbers, of all kinds of patches."""
    columns: Columns = {"Direction": "direction", "Patched": "kind", "Layer": "place"}
    columns |= {"Change (nats)": "estimate", "95% interval": ENDS, "Pairs": "n"}

    def by_place(record: Record) -> Iterator[Record]:
        for direction, by_kind in record.get("changes", {}).items():
            for kind, rows in by_kind.items():
                for place, row in enumerate(rows):
                    names = {"direction": TITLES[direction], "kind": NAMES.get(kind, kind)}
                    yield row | names | {"place": place}

    return probe_view(study, "patching", by_place, columns, 4)


def windows(study: Study) -> Figure:
    """Recovery by every window of consecutive layers, against its middle layer."""
    first = next(iter(TITLES))
    records = {k: v for k, v in _recovered(study).items() if "window" in v["recovery"][first]}
    if not records:
        return nothing("recovery by windows")
    figure, axes = depth.rows(list(records), 1, 2.8)
    for label, record in records.items():
        (panel,) = axes[label]
        for i, (direction, title) in enumerate(TITLES.items()):
            values = record["recovery"][direction]["window"]["summed"]
            middles = [(v["start"] + v["stop"] - 1) / 2 for v in values]
            look: dict[str, Any] = {"color": (PALETTE["local"], PALETTE["mid"])[i]}
            look |= {"linestyle": LINES[i], "label": title}
            depth.line(panel, middles, values, "estimate", ENDS, **look)
        depth.level(panel, 0, 1)
        depth.thirds(panel, record["depth"])
        panel.set(ylabel="recovery", xlabel=f"middle of a window of {record['window']} layers")
    depth.legend(figure, "bands: 95% intervals over prompts")
    return figure


def made(study: Study) -> Table:
    """What was compared: the tuned model, the pairs, what there was to recover, passes run."""
    columns: Columns = {
        "Tuned": "tuned.name", "Pairs swapped": lambda row: len(row["swapped"]) or None,
        "Random adapters": lambda row: len(row["nulls"]) or None, "Pairs patched": "patched",
        "Tuned minus base (nats)": "difference.summed.estimate",
        "95% interval": ("difference.summed.low", "difference.summed.high"),
        "Size (nats)": "difference.summed.size", "Passes run": "passes",
        "Passes of a plain loop": "naive_passes", REASONS: "nothing",
    }  # fmt: skip

    def row(record: Record) -> list[Record]:
        swaps = record.get("swaps", {})
        return [record | {"swapped": swaps.get("pairs", ()), "nulls": swaps.get("nulls", ())}]

    return probe_view(study, "patching", row, columns, 3)


def rank(study: Study) -> Figure:
    """Recovery by the difference's first r directions, beside the three controls."""
    records = {k: v for k, v in _recovered(study).items() if v["rank"]["layers"]}
    if not records:
        return nothing("recovery by rank")
    figure, axes = depth.rows(list(records), 2, 3.0, sharey=True)
    for label, record in records.items():
        layer = record["rank"]["layers"][0]
        drawn = [v["estimate"] for d in TITLES for c in CONTROLS for v in layer["recovery"][d][c]]
        for panel, (direction, title) in zip(axes[label], TITLES.items(), strict=True):
            for linestyle, (variant, colour) in zip(LINES, CONTROLS.items(), strict=True):
                values = layer["recovery"][direction][variant]
                look: dict[str, Any] = {"color": colour, "linestyle": linestyle}
                look["label"] = "SVD of the difference" if variant == "svd" else _words(variant)
                depth.line(panel, [v["rank"] for v in values], values, "estimate", ENDS, **look)
            depth.level(panel, 0)
            panel.set(xscale="log", xlabel="rank (the last is the whole difference)")
            # With few pairs, the interval of a ratio may be so wide that no line could be read.
            panel.set(ylim=(min(drawn) - 0.5, max(drawn) + 0.5))
            panel.set_title(f"layer {layer['layer']}, {title}", loc="left", fontsize=9)
        axes[label][0].set(ylabel="recovery, in the tested half")
    depth.legend(figure, "bands: 95% intervals over prompts (may be cut)")
    return figure


def ranks(study: Study) -> Table:
    """`rank` as numbers, with the share of the difference's square that r directions explain."""
    columns: Columns = {"Layer": "layer", "Direction": "direction", "Rank": "rank"}
    columns |= {"Explained": "explained", "Recovery": "estimate", "95% interval": ENDS}
    columns |= {_words(control).capitalize(): control for control in list(CONTROLS)[1:]}
    return probe_view(study, "patching", _ranks, columns, 4)


def _ranks(record: Record) -> Iterator[Record]:
    for layer in [] if record["nothing"] else record["rank"]["layers"]:
        explained = {e["rank"]: e["share"] for e in layer["explained"]}
        for direction, variants in layer["recovery"].items():
            for values in zip(*(variants[control] for control in CONTROLS), strict=True):
                estimates = [value["estimate"] for value in values]
                names = {"layer": layer["layer"], "direction": TITLES[direction]}
                names |= {"explained": explained[values[0]["rank"]]}
                yield values[0] | names | dict(zip(CONTROLS, estimates, strict=True))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _recovered(study: Study) -> dict[str, Record]:
    """The records in which there was something to recover."""
    probed = frames.probes(study, "patching")
    return {label: record for label, record in probed.items() if not record["nothing"]}
