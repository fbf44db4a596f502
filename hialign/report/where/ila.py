"""What the ILA probe found, as figures and tables: gates, overlaps beside chance, interventions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hialign.records import frames
from hialign.report.display import Table, table_or_none
from hialign.report.plots import MORE, PALETTE, WIDEST, canvas, nothing, plain, write
from hialign.statistics.intervals import interval_text
from hialign.study.blocks import split_layers
from hialign.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"full": "#333333", "freeze": MORE[0], "top": MORE[2], "random": "#999999"}
KINDS["third at equal parameters"] = PALETTE["global"]


def gates(study: Study) -> "Figure":
    """The learned gate of each matrix, as a rank within its data set and loss: layers across."""
    found = {k: v for k, v in frames.probes(study, "ila").items() if _ranked(v)}
    if not found:
        return nothing("ILA gates")
    tall = [len(_ranked(record)) * 0.55 + 0.9 for record in found.values()]
    figure, axes = canvas(WIDEST, sum(tall) + 0.6, (len(found), 1), height_ratios=tall)
    for panel, (label, record) in zip(axes, found.items(), strict=True):
        matrices, rows, names = record["matrices"], [], []
        kinds = list(dict.fromkeys(m["name"].rsplit(".", 1)[-1] for m in matrices))
        n = max(m["layer"] for m in matrices) + 1
        for ranking in _ranked(record):
            ranks = np.empty(len(matrices))
            ranks[ranking["ranking"]] = np.linspace(1, 0, len(matrices))
            for kind in kinds:
                row = np.full(n, np.nan)
                for place, m in enumerate(matrices):
                    if m["name"].endswith(f".{kind}"):
                        row[m["layer"]] = ranks[place]
                rows.append(row)
                names.append(kind.removesuffix("_proj"))
        image = panel.imshow(np.array(rows), aspect="auto", cmap="cividis", vmin=0, vmax=1)
        panel.set_yticks(range(len(names)), names, fontsize=7)
        for i, ranking in enumerate(_ranked(record)):
            panel.axhline(i * len(kinds) - 0.5, color="white", linewidth=2)
            look: dict[str, Any] = {"transform": panel.get_yaxis_transform(), "ha": "left"}
            text = plain(f"{_short(ranking['dataset'])}, {ranking['loss']}", 24)
            write(panel, 1.01, (i + 0.5) * len(kinds) - 0.5, text, fontsize=8, **look)
        for block, inside in split_layers(n).items():
            panel.axvline(inside[-1] + 0.5, color="white", linewidth=1.5)
            look = {"transform": panel.get_xaxis_transform(), "va": "bottom", "fontsize": 8}
            write(panel, (inside[0] + inside[-1]) / 2, 1.01, block, **look)
        panel.set(xlabel="layer")
        panel.locator_params(axis="x", integer=True)
        if len(found) > 1:
            panel.set_title(plain(label), loc="left", fontweight="bold")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.4, aspect=40)
    bar.set_ticks([0, 1], labels=["least important", "most important"])
    return figure


def layers(study: Study) -> Table:
    """The mean gate s of each layer's matrices, a column a data set and loss."""
    rows = []
    for label, record in frames.probes(study, "ila").items():
        kept = _ranked(record)
        for layer in range(len(kept[0]["layer_scores"]) if kept else 0):
            row: dict[str, Any] = {"Model": label, "Layer": layer}
            rows.append(
                row
                | {f"{_short(r['dataset'])}, {r['loss']}": r["layer_scores"][layer] for r in kept}
            )
    return table_or_none(rows, ["Model", "Layer"])


def rankings(study: Study) -> Table:
    """Each data set and loss: its pairs, whether training had settled, and stability over seeds."""
    rows = []
    for label, record in frames.probes(study, "ila").items():
        for ranking in record["rankings"]:
            runs = [
                r
                for r in record["runs"]
                if (r["dataset"], r["loss"]) == (ranking["dataset"], ranking["loss"])
            ]
            stable = ranking["stability"] or {}
            done = [r["settled"]["settled"] for r in runs]
            rows.append(
                {
                    "Model": label,
                    "Data set": _short(ranking["dataset"]),
                    "Loss": ranking["loss"],
                    "Pairs": runs[0]["pairs"],
                    "Seeds": ranking["seeds"],
                    "Training loss, first": float(np.mean([r["training_loss"][0] for r in runs])),
                    "Last": float(np.mean([r["training_loss"][-1] for r in runs])),
                    "Settled": "too short to say" if None in done else "yes" if all(done) else "no",
                    "Spearman over seeds": stable.get("spearman"),
                    "Overlap over seeds": stable.get("jaccard"),
                    "Nothing, because": ranking["nothing"],
                }
            )
    return table_or_none(rows, ["Model", "Data set", "Loss"])


def overlaps(study: Study) -> Table:
    """Jaccard's overlap of each two data sets' most important matrices, beside what chance gives."""
    rows = []
    for label, record in frames.probes(study, "ila").items():
        for row in record["overlaps"]:
            names = " and ".join(_short(name) for name in row["datasets"])
            shown: dict[str, Any] = {"Model": label, "Data sets": names, "Loss": row["loss"]}
            shown["Top (%)"] = row["percent"]
            if not row["nothing"]:
                shown |= {"Overlap": row["mean"]}
                shown |= {"95% interval over seeds": interval_text(row["low"], row["high"])}
                shown |= {"Other seeds": row["other_seeds"], "By chance": row["chance"]["mean"]}
                shown |= {"Chance, 95% below": row["chance"]["quantile95"], "Seeds": row["n"]}
            rows.append(shown)
    return table_or_none(rows, ["Model", "Data sets", "Loss"])


def interventions(study: Study) -> "Figure":
    """Held-out accuracy and margin of each intervention, a line each, with what it tunes."""
    found = {
        k: v["interventions"]
        for k, v in frames.probes(study, "ila").items()
        if v["interventions"]["variants"]
    }
    if not found:
        return nothing("ILA interventions")
    tall = [0.24 * len(record["variants"]) + 0.8 for record in found.values()]
    shape = (len(found), 2)
    figure, axes = canvas(WIDEST, sum(tall) + 0.5, shape, sharey="row", height_ratios=tall)
    titles = {"accuracy": "reward accuracy (share of pairs)", "margin": "mean reward margin (nats)"}
    for i, (label, record) in enumerate(found.items()):
        most = max(v["parameters"] for v in record["variants"])
        for panel, (measure, title) in zip(axes[2 * i : 2 * i + 2], titles.items(), strict=True):
            for y, v in enumerate(record["variants"]):
                look: dict[str, Any] = {"color": KINDS[v["kind"]]}
                value = v[measure]
                if value["low"] is not None:
                    panel.plot([value["low"], value["high"]], [y, y], lw=3, alpha=0.4, **look)
                marker = "sDo^P"[list(KINDS).index(v["kind"])]
                panel.plot(value["mean"], y, marker, markersize=6, **look)
            panel.axvline(record["variants"][0][measure]["mean"], color="#555555", ls=":", lw=1)
            panel.set(xlabel=title, ylim=(len(record["variants"]) - 0.5, -0.5))
            panel.grid(axis="x")
        names = [f"{v['name']} ({v['parameters'] / most:.0%})" for v in record["variants"]]
        axes[2 * i].set_yticks(range(len(names)), names, fontsize=8)
        if len(found) > 1:
            axes[2 * i].set_title(plain(label), loc="left", fontweight="bold")
    note = "in brackets: share of Full-DPO's parameters; lines: 95% intervals over prompts; dotted: full"
    figure.suptitle(note, fontsize=8.5, x=0.01, ha="left")
    return figure


def variants(study: Study) -> Table:
    """Each intervention: what it tunes, and its held-out accuracy and margin."""
    rows = []
    for label, record in frames.probes(study, "ila").items():
        for v in record["interventions"]["variants"]:
            row: dict[str, Any] = {"Model": label, "Tuned": v["name"], "LoRA rank": v["rank"]}
            row |= {"Matrices": len(v["matrices"]), "Parameters": v["parameters"]}
            for measure in ("accuracy", "margin"):
                found = v[measure]
                row |= {f"Reward {measure}": found["mean"]}
                row |= {f"95% interval, {measure}": interval_text(found["low"], found["high"])}
            rows.append(row | {"Pairs": v["accuracy"]["n"]})
    return table_or_none(rows, ["Model", "Tuned", "Parameters"])


def differences(study: Study) -> Table:
    """Each selection against all matrices, as many at random, and thirds at its parameters."""
    rows = [
        {
            "Model": label,
            "Tuned": row["of"],
            "Minus": row["minus"],
            "In": f"reward {row['measure']}",
            "Difference": row["mean"],
            "95% interval": interval_text(row["low"], row["high"]),
            "Pairs": row["n"],
        }
        for label, record in frames.probes(study, "ila").items()
        for row in record["interventions"]["differences"]
    ]
    return table_or_none(rows, ["Model", "Tuned", "Minus"])


def _ranked(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in record["rankings"] if not r["nothing"]]


def _short(name: str) -> str:
    """A data set's name without the way to it."""
    return name.rstrip("/").rsplit("/", 1)[-1]
