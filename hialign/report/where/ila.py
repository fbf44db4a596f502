"""What the ILA probe measured, as figures and tables: gates, overlaps beside chance, interventions."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report import depth
from hialign.report.display import REASONS, Columns, Row, Table, table_of
from hialign.report.plots import MORE, PALETTE, WIDEST, canvas, nothing, plain, write
from hialign.report.where.overlaps import compared, kind_of
from hialign.report.where.records import Record, probe_view
from hialign.report.where.sweep import MEASURES
from hialign.study.study import Study

KINDS = {"full": "#333333", "freeze": MORE[0], "top": MORE[2], "random": "#999999"}
KINDS["third at equal parameters"] = PALETTE["global"]
MARKERS = dict(zip(KINDS, "sDo^P", strict=True))


def gates(study: Study) -> Figure:
    """The learned gate of each matrix, as a rank within its data set and loss, with layers across."""
    records = {k: v for k, v in frames.probes(study, "ila").items() if _ranked(v)}
    if not records:
        return nothing("ILA gates")
    heights = [len(_ranked(record)) * 0.55 + 0.9 for record in records.values()]
    shape = (len(records), 1)
    figure, axes = canvas(WIDEST, sum(heights) + 0.6, shape, height_ratios=heights)
    for panel, (label, record) in zip(axes, records.items(), strict=True):
        matrices, rankings = record["matrices"], _ranked(record)
        kinds = list(dict.fromkeys(kind_of(matrix) for matrix in matrices))
        layers = max(matrix["layer"] for matrix in matrices) + 1
        ranks = np.full((len(rankings), len(kinds), layers), np.nan)
        for i, ranking in enumerate(rankings):
            for place, rank in zip(
                ranking["ranking"], np.linspace(1, 0, len(matrices)), strict=True
            ):
                matrix = matrices[place]
                ranks[i, kinds.index(kind_of(matrix)), matrix["layer"]] = rank
        image = panel.imshow(
            ranks.reshape(-1, layers), aspect="auto", cmap="cividis", vmin=0, vmax=1
        )
        names = [kind.removesuffix("_proj") for kind in kinds] * len(rankings)
        panel.set_yticks(range(len(names)), names, fontsize=7)
        for i, ranking in enumerate(rankings):
            panel.axhline(i * len(kinds) - 0.5, color="white", linewidth=2)
            look: dict[str, Any] = {"transform": panel.get_yaxis_transform(), "ha": "left"}
            text = plain(_ranking_name(ranking), 24)
            write(panel, 1.01, (i + 0.5) * len(kinds) - 0.5, text, fontsize=8, **look)
        depth.edges(panel, layers)
        if len(records) > 1:
            panel.set_title(plain(label), loc="left", fontweight="bold")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.4, aspect=40)
    bar.set_ticks([0, 1], labels=["least important", "most important"])
    return figure


def layers(study: Study) -> Table:
    """The mean gate s of each layer's matrices, one column per data set and loss."""
    rows: list[Record] = []
    for label, record in frames.probes(study, "ila").items():
        scores = {_ranking_name(r): r["layer_scores"] for r in _ranked(record)}
        for layer, of_layer in enumerate(zip(*scores.values(), strict=True)):
            rows.append({"Model": label, "Layer": layer} | dict(zip(scores, of_layer, strict=True)))
    return table_of(rows or [{"Model": "none yet", "Layer": None}])


def rankings(study: Study) -> Table:
    """Each data set and loss: its pairs, whether training had settled, and stability over seeds."""
    columns: Columns = {
        "Data set": lambda row: _short(row["dataset"]), "Loss": "loss", "Pairs": "pairs",
        "Seeds": "seeds", "Training loss, first": "first_loss", "Last": "last_loss",
        "Settled": "settled", "Spearman over seeds": "stability.spearman",
        "Overlap over seeds": "stability.jaccard", REASONS: "nothing",
    }  # fmt: skip
    return probe_view(study, "ila", _rankings, columns, 3)


def _rankings(record: Record) -> Iterator[Record]:
    for ranking in record["rankings"]:
        key = (ranking["dataset"], ranking["loss"])
        runs = [run for run in record["runs"] if (run["dataset"], run["loss"]) == key]
        settled = [run["settled"]["settled"] for run in runs]
        yield ranking | {
            "pairs": runs[0]["pairs"],
            "first_loss": float(np.mean([run["training_loss"][0] for run in runs])),
            "last_loss": float(np.mean([run["training_loss"][-1] for run in runs])),
            "settled": "too short to say" if None in settled else "yes" if all(settled) else "no",
        }


def overlaps(study: Study) -> Table:
    """Jaccard's overlap of each two data sets' most important matrices, beside what chance gives.

    Chance draws within the types of matrices, as `hialign.report.where.overlaps` has it.
    """
    columns: Columns = {
        "Data sets": lambda row: " and ".join(_short(name) for name in row["datasets"]),
        "Loss": "loss", "Top (%)": "percent", "Overlap": "mean",
        "95% interval over seeds": ("low", "high"), "Other seeds": "other_seeds",
        "By chance": lambda row: row["chance"] and row["chance"].mean,
        "Chance, 95% below": lambda row: row["chance"] and row["chance"].quantile95, "Seeds": "n",
    }  # fmt: skip
    return probe_view(study, "ila", compared, columns, 3)


def interventions(study: Study) -> Figure:
    """Held-out accuracy and margin of each intervention, one line each, with what it tunes."""
    by_model = {
        label: record["interventions"]["variants"]
        for label, record in frames.probes(study, "ila").items()
        if record["interventions"]["variants"]
    }
    if not by_model:
        return nothing("ILA interventions")
    heights = [0.24 * len(tuned) + 0.8 for tuned in by_model.values()]
    shape = (len(by_model), 2)
    figure, axes = canvas(WIDEST, sum(heights) + 0.5, shape, sharey="row", height_ratios=heights)
    for i, (label, tuned) in enumerate(by_model.items()):
        most = max(variant["parameters"] for variant in tuned)
        for panel, (measure, title) in zip(axes[2 * i :], MEASURES.items(), strict=False):
            for y, variant in enumerate(tuned):
                look: dict[str, Any] = {"color": KINDS[variant["kind"]]}
                value = variant[measure]
                if value["low"] is not None:
                    panel.plot([value["low"], value["high"]], [y, y], lw=3, alpha=0.4, **look)
                panel.plot(value["mean"], y, MARKERS[variant["kind"]], markersize=6, **look)
            panel.axvline(tuned[0][measure]["mean"], color="#555555", ls=":", lw=1)
            panel.set(xlabel=title, ylim=(len(tuned) - 0.5, -0.5))
            panel.grid(axis="x")
        names = [f"{v['name']} ({v['parameters'] / most:.0%})" for v in tuned]
        axes[2 * i].set_yticks(range(len(names)), names, fontsize=8)
        if len(by_model) > 1:
            axes[2 * i].set_title(plain(label), loc="left", fontweight="bold")
    note = "in brackets: share of Full-DPO's parameters; lines: 95% intervals over prompts; dotted: full"
    figure.suptitle(note, fontsize=8.5, x=0.01, ha="left")
    return figure


def variants(study: Study) -> Table:
    """Each intervention: what it tunes, and its held-out accuracy and margin."""
    columns: Columns = {
        "Tuned": "name", "LoRA rank": "rank", "Matrices": lambda row: len(row["matrices"]),
        "Parameters": "parameters", "Reward accuracy": "accuracy.mean",
        "95% interval, accuracy": ("accuracy.low", "accuracy.high"),
        "Reward margin": "margin.mean", "95% interval, margin": ("margin.low", "margin.high"),
        "Pairs": "accuracy.n",
    }  # fmt: skip
    return probe_view(study, "ila", lambda record: record["interventions"]["variants"], columns, 3)


def differences(study: Study) -> Table:
    """Each selection against all matrices, as many at random, and thirds at its parameters."""
    columns: Columns = {
        "Tuned": "of", "Minus": "minus", "In": lambda row: f"reward {row['measure']}",
        "Difference": "mean", "95% interval": ("low", "high"), "Pairs": "n",
    }  # fmt: skip
    return probe_view(
        study, "ila", lambda record: record["interventions"]["differences"], columns, 3
    )


def _ranked(record: Record) -> list[Record]:
    return [ranking for ranking in record["rankings"] if not ranking["nothing"]]


def _ranking_name(ranking: Row) -> str:
    return f"{_short(ranking['dataset'])}, {ranking['loss']}"


def _short(name: str) -> str:
    """The name of a data set without the folders or the owner before it."""
    return name.rstrip("/").rsplit("/", 1)[-1]
