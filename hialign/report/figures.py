"""The paper's figures, and those of our judge-free evaluation, as matplotlib figures.

Each strategy has one colour throughout. A cell that has not run is drawn as missing. It is never left
out or put at zero. A figure without any data says so. Thick lines are 95% intervals.
"""

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hialign.records import frames
from hialign.records.files import read_jsonl
from hialign.report import scores, tables
from hialign.report.heatmap import figure3 as figure3
from hialign.report.plots import (
    ANCHOR,
    LINES,
    PALETTE,
    WIDEST,
    canvas,
    colour_of,
    dot_of,
    dots,
    legend,
    lines_of,
    missing,
    name_judge,
    nothing,
    plain,
    side_by_side,
    write,
)
from hialign.study.blocks import EXPECTED, STRATEGIES, split_layers, strategy_of
from hialign.study.study import Cell, Study

# --- the paper's figures -------------------------------------------------------------------------


def figure1() -> Figure:
    """Figure 1, our own scheme: one update for all layers, or one for a third. No data."""
    depth = 12
    thirds = split_layers(depth)
    figure, (axes,) = canvas(WIDEST, 4.6)
    stacks = [(0.5, "full", "all objectives\nat once"), (3.6, "local", "grammar,\nfluency")]
    stacks += [(6.0, "mid", "logic,\ncoherence"), (8.4, "global", "facts,\nintent")]
    for x, block, objective in stacks:
        tuned, colour = thirds.get(block, range(depth)), PALETTE[block]
        fill = [colour if layer in tuned else "#efefef" for layer in range(depth)]
        edge = [colour if layer in tuned else "#cccccc" for layer in range(depth)]
        axes.bar([x] * depth, 0.82, 1, bottom=range(depth), color=fill, edgecolor=edge)
        write(axes, x + 0.62, tuned[len(tuned) // 2], objective, ha="left")
        bold = {"color": colour, "fontweight": "bold", "fontsize": 10}
        write(axes, x, depth + 1.2, STRATEGIES[block], **bold)
        write(axes, x, -1.4, "prompt")
        for y in (-1.0, depth - 0.1):
            axes.annotate("", (x, y + 0.9), (x, y), arrowprops={"arrowstyle": "->"})
    for block, layers in thirds.items():
        low, high = layers[0], layers[-1] + 0.82
        axes.plot([-0.45, -0.55, -0.55, -0.45], [low, low, high, high], color="#777777", lw=1)
        write(axes, -0.75, (low + high) / 2, block, rotation=90)
    write(axes, -1.25, depth / 2, "depth (layers)", rotation=90)
    write(axes, 1.0, depth + 2.8, "monolithic:\none update, all layers")
    words = "hierarchical: one update, one third of the layers\n(each stack is a model of its own)"
    write(axes, 6.35, depth + 2.8, words)
    axes.plot([2.55, 2.55], [-1.5, depth + 3.6], color="#cccccc", linewidth=1)
    axes.set(xlim=(-1.6, 10.0), ylim=(-2.0, depth + 4))
    axes.axis("off")
    return figure


def figure2(study: Study) -> Figure:
    """Figure 2: mean Overall score by model and strategy. The dashed line is the judge's anchor.

    The paper's error bars are standard deviations, which are thin lines here. Thick lines are
    intervals of the mean over prompts.
    """
    cells = {(row["model"], row["block"]): row for row in scores.by_cell(study).to_dict("records")}
    if not cells:
        return nothing("judged responses")
    figure, places = side_by_side(study, study.blocks, 3.4)
    for axes, x, model, block in places:
        row = cells.get((model, block))
        axes.set(ylim=(1, 5), yticks=range(1, 6), ylabel="mean Overall score (1–5)")
        axes.axhline(ANCHOR, color="#555555", linestyle="--", linewidth=1, zorder=1)
        if row is None:
            missing(axes, x, 1.04, rotation=90, va="bottom")
            continue
        look: dict[str, Any] = {"color": colour_of(study, block)}
        spread = [max(row["mean"] - row["std"], 1), min(row["mean"] + row["std"], 5)]
        axes.plot([x, x], spread, linewidth=0.9, **look)
        axes.plot([x, x], [row["low"], row["high"]], linewidth=4.5, alpha=0.5, **look)
        axes.plot(x, row["mean"], **dot_of(study, block) | {"markersize": 5})
    note = "thick: 95% interval of the mean; thin: ± 1 std, within 1 to 5; dashed: the anchor, 3"
    legend(figure, study, study.blocks, note)
    name_judge(figure, study)
    return figure


def figure4(study: Study) -> Figure:
    """Figure 4: DPO loss by optimizer step, one panel per model. Base is not trained."""
    steps = frames.training(study).dropna(subset="loss")
    if steps.empty:
        return nothing("training")
    trained = [block for block in study.blocks if block != "base"]
    shape = (math.ceil(len(study.models) / 2), min(2, len(study.models)))
    size = (WIDEST if shape[1] > 1 else 6.5, 3.2 * shape[0] + 0.6)
    figure, axes = canvas(*size, shape, sharex=True, sharey=True)
    window = max(1, int(steps.step.max()) // 20)
    for panel, model in zip(axes, study.models, strict=False):
        absent = []
        for i, block in enumerate(trained):
            run = steps[(steps.model == model.label) & (steps.block == block)].sort_values("step")
            if run.empty:
                absent.append(plain(strategy_of(block), 20))
                continue
            colour, line = colour_of(study, block), LINES[i % len(LINES)]
            panel.plot(run.step, run.loss, color=colour, alpha=0.2, linewidth=0.6)
            smooth = run.loss.rolling(window, min_periods=1, center=True).mean()
            panel.plot(run.step, smooth, color=colour, linestyle=line, linewidth=1.8)
        panel.axhline(math.log(2), color="#555555", linestyle=":", linewidth=1)
        if absent:
            which = "all" if len(absent) == len(trained) else ",\n".join(absent)
            place = {"transform": panel.transAxes, "ha": "right", "va": "top"}
            missing(panel, 0.99, 0.99, f"missing: {which}", **place)
        panel.set_title(plain(model.label), loc="left")
        panel.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
        panel.grid(axis="y")
        panel.locator_params(axis="x", integer=True)
        panel.tick_params(labelbottom=True)
    for spare in axes[len(study.models) :]:
        spare.set_visible(False)
    strong = f"; strong lines: running mean of {window} steps" if window > 1 else ""
    legend(figure, study, trained, f"dotted: log 2, where training starts{strong}", curves=True)
    return figure


def figure5(study: Study) -> Figure:
    """Figure 5: minutes of training by model and strategy. Base is not trained."""
    runs = frames.manifests(study)
    runs = runs[(runs.status == "done") & (runs.block != "base")].dropna(subset="seconds")
    if runs.empty:
        return nothing("training")
    by_cell = runs.set_index(["model", "block"])[["seconds", "shared_seconds"]].astype(float) / 60
    minutes, shared = by_cell.seconds, by_cell.shared_seconds.fillna(0)
    tallest = (minutes + shared).max()
    trained = [block for block in study.blocks if block != "base"]
    figure, places = side_by_side(study, trained, 2.6)
    digits = 0 if tallest >= 100 else 1 if tallest >= 10 else 2
    for axes, x, model, block in places:
        axes.set(ylim=(0, 1.12 * tallest), ylabel="training time (minutes)")
        if (value := minutes.get((model, block))) is None:
            missing(axes, x, 0.01 * tallest, rotation=90, va="bottom")
            continue
        axes.bar(x, value, 0.86, color=colour_of(study, block))
        common = shared[model, block]
        if common:
            look: dict[str, Any] = {
                "facecolor": "none",
                "edgecolor": colour_of(study, block),
                "hatch": "////",
            }
            axes.bar(x, common, 0.86, bottom=value, linewidth=0.8, **look)
        text = f"{value:,.{digits}f}" + (f" + {common:,.{digits}f}" if common else "")
        write(axes, x, value + common, text, va="bottom", fontsize=7.5)
    note = "wall-clock time of one run each"
    if shared.any():
        note = (
            "solid: a strategy's own work; hatched: work done once for all strategies in one pass"
        )
    legend(figure, study, trained, note)
    return figure


def curves(cell: Cell) -> Figure:
    """Loss, reward accuracy, reward margin and gradient norm of one cell by optimizer step."""
    steps = pd.DataFrame(read_jsonl(cell.folder / "training.jsonl"))
    panels = {"loss": "DPO loss (nats)", "reward_accuracy": "reward accuracy"}
    panels |= {"reward_margin": "reward margin (nats)", "grad_norm": "gradient norm"}
    figure, axes = canvas(WIDEST, 4.2, (2, 2), sharex=True)
    for panel, (name, label) in zip(axes, panels.items(), strict=True):
        marker = "o" if len(steps) < 60 else ""
        look: dict[str, Any] = {"color": colour_of(cell.study, cell.block), "marker": marker}
        panel.plot(steps["step"], steps[name], markersize=4, linewidth=1.2, **look)
        panel.set(ylabel=label)
        panel.grid(axis="y")
        panel.locator_params(axis="x", integer=True)
    for panel in axes[2:]:
        panel.set(xlabel="optimizer step")
    axes[0].axhline(math.log(2), color="#555555", linestyle=":", linewidth=1)
    return figure


# --- ours ----------------------------------------------------------------------------------------


def accuracy(study: Study) -> Figure:
    """Reward accuracy and reward margin on the study's held-out pairs."""
    rows = frames.evaluations(study)
    rows = rows[rows.objective == "all"]
    share = ("dotted: chance", "reward accuracy (share of pairs)", "reward_accuracy", 0.5, rows)
    margin = ("dotted: Base", "mean reward margin (nats)", "reward_margin", 0.0, rows)
    return dots(study, [share, margin], "held-out preferences evaluated")


def objectives(study: Study) -> Figure:
    """Reward margin by strategy and objective, one panel per objective, each with its own scale.

    Shaded is the third that the paper assigns to the objective.
    """
    rows = frames.evaluations(study)
    panels = [
        (name, "mean reward margin (nats)", "reward_margin", 0.0, rows[rows.objective == name])
        for name in tables.objective_names(rows)
    ]
    figure = dots(study, panels, "contrasts by objective evaluated")
    for axes in figure.axes:
        for y, _, block in lines_of(study):
            if block == EXPECTED.get(axes.get_title(loc="left")):
                axes.axhspan(y - 0.5, y + 0.5, color=PALETTE[block], alpha=0.14, linewidth=0)
    if panels:
        note = "shaded: the third that the paper assigns to this objective"
        figure.suptitle(note, fontsize=9.5, x=0.01, ha="left")
    return figure


def divergence(study: Study) -> Figure:
    """KL divergence from Base, and response length, of each cell's own responses."""
    rows = frames.divergences(study)
    kl = ("", "KL from Base (nats/token)", "kl", 0.0, rows)
    length = ("", "response length (tokens)", "response_tokens", None, rows)
    return dots(study, [kl, length], "responses evaluated")
