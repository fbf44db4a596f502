"""What the patching probe found, as figures and tables: recovery by layer, LASSO, rank."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hialign.records import frames
from hialign.report import depth
from hialign.report.claims.material import Untested
from hialign.report.claims.probe_parts import STATISTICS
from hialign.report.display import Table, table_or_none
from hialign.report.plots import LINES, MORE, PALETTE, nothing, plain
from hialign.statistics.intervals import interval_text, p_text
from hialign.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHOLE = {"residual": "#333333", "prompt": PALETTE["local"], "last_prompt": PALETTE["mid"]}
PARTS = {"contribution": "#333333", "attention": PALETTE["global"], "mlp": MORE[0]}
NAMES = {"residual": "whole residual", "last_prompt": "last prompt token"}
NAMES |= {"prompt": "prompt positions", "contribution": "layer's contribution", "mlp": "MLP"}
ENDS = ("low", "high")
TITLES = {"tuned_into_base": "tuned into base", "base_into_tuned": "base into tuned"}
CONTROLS = {"svd": "#333333", "random_subspace": PALETTE["local"]}
CONTROLS |= {"random_vector": PALETTE["mid"], "shuffled_pairs": PALETTE["global"]}


def recovery(study: Study) -> "Figure":
    """Recovery by layer: above, the residual stream; below, what one layer adds; both directions."""
    found = _recovered(study)
    if not found:
        return nothing("recovery")
    rows = [(label, kinds) for label in found for kinds in (WHOLE, PARTS)]
    names = [f"{label}, {i}" for i, (label, _) in enumerate(rows)]
    figure, axes = depth.rows(names, 2, 2.7, sharey="row")
    for name, (label, kinds) in zip(names, rows, strict=True):
        for panel, (direction, title) in zip(axes[name], TITLES.items(), strict=True):
            known = found[label]["recovery"][direction]
            for i, (kind, colour) in enumerate(kinds.items()):
                values = known.get(kind, {}).get("summed")
                if values is None:
                    continue
                look: dict[str, Any] = {"color": colour, "linestyle": LINES[i]}
                look["label"] = NAMES.get(kind, kind)
                depth.line(panel, range(len(values)), values, "estimate", ENDS, **look)
            for level in (0, 1) if kinds is WHOLE else (0,):
                panel.axhline(level, color="#555555", linestyle=":", linewidth=1)
            depth.thirds(panel, found[label]["depth"])
            who = f"{plain(label, 26)}: " if len(found) > 1 else ""
            panel.set_title(f"{who}{title}", loc="left", fontsize=9, pad=14)
        axes[name][0].set(ylabel="recovery")
        axes[name][0].legend(fontsize=7.5, frameon=False)
    return figure


def layers(study: Study) -> Table:
    """Recovery by layer, kind and direction, summed and length-normalized, with intervals."""
    rows = []
    for label, record in _recovered(study).items():
        for direction, by_kind in record["recovery"].items():
            for kind, versions in by_kind.items():
                for place, value in enumerate(versions["summed"] or []):
                    row: dict[str, Any] = {"Model": label, "Direction": TITLES[direction]}
                    row |= {"Patched": NAMES.get(kind, kind), "Layer": place}
                    row |= {"Recovery": value["estimate"]}
                    row |= {"Low": value["low"], "High": value["high"]}
                    other = versions["normalized"]
                    row["Length-normalized"] = other[place]["estimate"] if other else None
                    rows.append(row | {"Pairs": value["n"]})
    return table_or_none(rows, ["Model", "Direction", "Patched", "Layer"])


def windows(study: Study) -> "Figure":
    """Recovery by every window of consecutive layers, against its middle layer."""
    found = {
        k: v for k, v in _recovered(study).items() if "window" in v["recovery"][next(iter(TITLES))]
    }
    if not found:
        return nothing("recovery by windows")
    figure, axes = depth.rows(list(found), 1, 2.8)
    for label, record in found.items():
        (panel,) = axes[label]
        for i, (direction, title) in enumerate(TITLES.items()):
            values = record["recovery"][direction]["window"]["summed"]
            middles = [(v["start"] + v["stop"] - 1) / 2 for v in values]
            look: dict[str, Any] = {"color": (PALETTE["local"], PALETTE["mid"])[i]}
            look |= {"linestyle": LINES[i], "label": title}
            depth.line(panel, middles, values, "estimate", ENDS, **look)
        for level in (0, 1):
            panel.axhline(level, color="#555555", linestyle=":", linewidth=1)
        depth.thirds(panel, record["depth"])
        panel.set(ylabel="recovery", xlabel=f"middle of a window of {record['window']} layers")
    depth.legend(figure, axes[next(iter(found))][0], "bands: 95% intervals over prompts")
    return figure


def thirds(study: Study) -> Table:
    """Mean recovery by one layer's contribution: the middle third less each other, paired by prompt."""
    rows: list[dict[str, Any]] = []
    for label, record in frames.probes(study, "patching").items():
        try:
            parts = STATISTICS["middle"](record, "", study.evaluation.resamples)
        except Untested as why:
            rows.append({"Model": label, "Compared": str(why)})
            continue
        for part in parts:
            rows.append(
                {
                    "Model": label,
                    "Compared": part.what,
                    "Difference": part.estimate,
                    "95% interval": interval_text(part.low, part.high, 4),
                    "p, one-sided": p_text(part.p_for),
                    "Prompts": part.n,
                }
            )
    return table_or_none(rows, ["Model", "Compared", "Difference"])


def made(study: Study) -> Table:
    """What was compared: the tuned model, the pairs, what there was to recover, passes run."""
    rows = []
    for label, record in frames.probes(study, "patching").items():
        apart = record["difference"]["summed"]
        rows.append(
            {
                "Model": label,
                "Tuned": record["tuned"]["name"],
                "Pairs patched": record["patched"],
                "Pairs in the regression": record["lasso"]["n"],
                "Tuned minus base (nats)": apart["estimate"],
                "95% interval": interval_text(apart["low"], apart["high"]),
                "Size (nats)": apart["size"],
                "Passes run": record["passes"],
                "Passes of a plain loop": record["naive_passes"],
                "Nothing, because": record["nothing"],
            }
        )
    return table_or_none(rows, ["Model", "Tuned", "Pairs patched"])


def lasso(study: Study) -> "Figure":
    """How often the regression keeps each layer, and its coefficient on all pairs."""
    found = {k: v for k, v in frames.probes(study, "patching").items() if v["lasso"]["stability"]}
    if not found:
        return nothing("regression")
    figure, axes = depth.rows(list(found), 2, 2.6)
    for label, record in found.items():
        left, right = axes[label]
        known = record["lasso"]
        left.bar(range(record["depth"]), known["stability"], color="#333333")
        left.axhline(0.8, color="#555555", linestyle=":", linewidth=1)
        left.set(ylim=(0, 1), ylabel="kept, share of samples")
        right.bar(range(record["depth"]), known["coefficients"], color="#333333")
        right.axhline(0, color="#555555", linewidth=0.8)
        right.set(ylabel="coefficient (nats per std)")
        for panel in (left, right):
            depth.thirds(panel, record["depth"])
    return figure


def kept(study: Study) -> Table:
    """`lasso` as numbers."""
    rows = []
    for label, record in frames.probes(study, "patching").items():
        known = record["lasso"]
        for layer, share in enumerate(known["stability"] or []):
            row: dict[str, Any] = {"Model": label, "Layer": layer, "Kept (share)": share}
            rows.append(row | {"Coefficient": known["coefficients"][layer]})
    return table_or_none(rows, ["Model", "Layer", "Kept (share)"])


def regression(study: Study) -> Table:
    """The regression in numbers: what it explains, what it keeps, how alike its columns are."""
    rows = []
    for label, record in frames.probes(study, "patching").items():
        known = record["lasso"]
        beside = [c for c in known["neighbour_correlation"] or [] if c is not None]
        rows.append(
            {
                "Model": label,
                "Pairs": known["n"],
                "R², cross-validated": known["r2"],
                "Layers kept in 80% of samples": ", ".join(map(str, known["stable"])) or "none",
                "Correlation of neighbours, median": float(np.median(beside)) if beside else None,
                "Nothing, because": known["reason"],
            }
        )
    return table_or_none(rows, ["Model", "Pairs"])


def rank(study: Study) -> "Figure":
    """Recovery by the difference's first r directions, beside the three controls."""
    found = {k: v for k, v in _recovered(study).items() if v["rank"]["layers"]}
    if not found:
        return nothing("recovery by rank")
    figure, axes = depth.rows(list(found), 2, 3.0, sharey=True)
    for label, record in found.items():
        layer = record["rank"]["layers"][0]
        drawn = [v["estimate"] for d in TITLES for c in CONTROLS for v in layer["recovery"][d][c]]
        for panel, (direction, title) in zip(axes[label], TITLES.items(), strict=True):
            for i, (variant, colour) in enumerate(CONTROLS.items()):
                values = layer["recovery"][direction][variant]
                ranks = [v["rank"] for v in values]
                look: dict[str, Any] = {"color": colour, "linestyle": LINES[i]}
                look["label"] = "SVD of the difference" if variant == "svd" else _words(variant)
                depth.line(panel, ranks, values, "estimate", ENDS, **look)
            panel.axhline(0, color="#555555", linestyle=":", linewidth=1)
            panel.set(xscale="log", xlabel="rank (the last is the whole difference)")
            # of few pairs an interval of a ratio may be so wide that no line could be read
            panel.set(ylim=(min(drawn) - 0.5, max(drawn) + 0.5))
            panel.set_title(f"layer {layer['layer']}, {title}", loc="left", fontsize=9)
        axes[label][0].set(ylabel="recovery, in the tested half")
    depth.legend(
        figure, axes[next(iter(found))][0], "bands: 95% intervals over prompts (may be cut)"
    )
    return figure


def ranks(study: Study) -> Table:
    """`rank` as numbers, with the share of the difference's square that r directions explain."""
    rows = []
    for label, record in _recovered(study).items():
        for layer in record["rank"]["layers"]:
            explained = {e["rank"]: e["share"] for e in layer["explained"]}
            for direction, variants in layer["recovery"].items():
                for place, value in enumerate(variants["svd"]):
                    row: dict[str, Any] = {"Model": label, "Layer": layer["layer"]}
                    row |= {"Direction": TITLES[direction], "Rank": value["rank"]}
                    row |= {"Explained": explained[value["rank"]], "Recovery": value["estimate"]}
                    row |= {"95% interval": interval_text(value["low"], value["high"])}
                    for control in list(CONTROLS)[1:]:
                        row[_words(control).capitalize()] = variants[control][place]["estimate"]
                    rows.append(row)
    return table_or_none(rows, ["Model", "Layer", "Direction", "Rank"])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _recovered(study: Study) -> dict[str, Any]:
    """The records in which there was something to recover."""
    return {
        label: record
        for label, record in frames.probes(study, "patching").items()
        if not record["nothing"]
    }
