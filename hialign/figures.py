"""The paper's figures, and those of our judge-free evaluation, as matplotlib figures.

Each strategy has one colour throughout. A cell that has not run is drawn as missing, never left out
or put at zero; a figure without any data says so. Thick lines are 95% intervals.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hialign import records, tables
from hialign.blocks import STRATEGIES, split_layers, strategy_of
from hialign.statistics import pooled_interval
from hialign.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito, which the colour-blind can tell apart: hues for the thirds, greys for the two conditions
# that they are compared with; the rest for blocks that a study names.
PALETTE = {"base": "#999999", "full": "#333333"}
PALETTE |= {"local": "#0072B2", "mid": "#E69F00", "global": "#009E73"}
MORE = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = "osD^vhpXP*"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)))  # of the loss curves
EXPECTED = {"grammar": "local", "coherence": "mid", "factuality": "global"}  # Hypothesis 2
ANCHOR = 3  # the judge's score of the baseline response (Appendix D)
WIDEST = 8.0  # inches
SETTINGS: dict[str, Any] = {
    **{"font.size": 10, "axes.titlesize": 10.5, "figure.dpi": 150},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555"},
    **{"axes.axisbelow": True, "grid.color": "#e4e4e4", "legend.frameon": False},
    # opaque, so that figures read on a dark page
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"),
}


def style() -> None:
    """Set matplotlib's fonts and colours for this process; `hialign.book.page` calls it."""
    import matplotlib

    matplotlib.rcParams.update(SETTINGS)


# --- the paper's figures -------------------------------------------------------------------------


def figure1() -> "Figure":
    """Figure 1, our own scheme: one update for all layers, or one for a third. No data."""
    depth = 12
    thirds = split_layers(depth)
    figure, (axes,) = _canvas(WIDEST, 4.6)
    stacks = [(0.5, "full", "all objectives\nat once"), (3.6, "local", "grammar,\nfluency")]
    stacks += [(6.0, "mid", "logic,\ncoherence"), (8.4, "global", "facts,\nintent")]
    for x, block, objective in stacks:
        tuned, colour = thirds.get(block, range(depth)), PALETTE[block]
        fill = [colour if layer in tuned else "#efefef" for layer in range(depth)]
        edge = [colour if layer in tuned else "#cccccc" for layer in range(depth)]
        axes.bar([x] * depth, 0.82, 1, bottom=range(depth), color=fill, edgecolor=edge)
        _write(axes, x + 0.62, tuned[len(tuned) // 2], objective, ha="left")
        bold = {"color": colour, "fontweight": "bold", "fontsize": 10}
        _write(axes, x, depth + 1.2, STRATEGIES[block], **bold)
        _write(axes, x, -1.4, "prompt")
        for y in (-1.0, depth - 0.1):
            axes.annotate("", (x, y + 0.9), (x, y), arrowprops={"arrowstyle": "->"})
    for block, layers in thirds.items():
        low, high = layers[0], layers[-1] + 0.82
        axes.plot([-0.45, -0.55, -0.55, -0.45], [low, low, high, high], color="#777777", lw=1)
        _write(axes, -0.75, (low + high) / 2, block, rotation=90)
    _write(axes, -1.25, depth / 2, "depth (layers)", rotation=90)
    _write(axes, 1.0, depth + 2.8, "monolithic:\none update, all layers")
    words = "hierarchical: one update, one third of the layers\n(each stack is a model of its own)"
    _write(axes, 6.35, depth + 2.8, words)
    axes.plot([2.55, 2.55], [-1.5, depth + 3.6], color="#cccccc", linewidth=1)
    axes.set(xlim=(-1.6, 10.0), ylim=(-2.0, depth + 4))
    axes.axis("off")
    return figure


def figure2(study: Study) -> "Figure":
    """Figure 2: mean Overall score by model and strategy; the dashed line is the judge's anchor.

    The paper's error bars are standard deviations (thin lines here); thick ones are intervals of
    the mean over prompts.
    """
    scores = tables.overall(study).dropna(subset="score")
    if scores.empty:
        return _nothing("judged responses")
    figure, places = _groups(study, study.blocks, 3.4)
    for axes, x, model, block in places:
        values = scores[(scores.model == model) & (scores.block == block)]
        axes.set(ylim=(1, 5), yticks=range(1, 6), ylabel="mean Overall score (1–5)")
        axes.axhline(ANCHOR, color="#555555", linestyle="--", linewidth=1, zorder=1)
        if values.empty:
            _missing(axes, x, 1.04, rotation=90, va="bottom")
            continue
        mean, std = values.score.mean(), values.score.std()
        prompts, draws = values.prompt_id.tolist(), study.evaluation.resamples
        ends = pooled_interval(values.score.tolist(), prompts, draws)
        look: dict[str, Any] = {"color": _colour(study, block)}
        axes.plot([x, x], [max(mean - std, 1), min(mean + std, 5)], linewidth=0.9, **look)
        axes.plot([x, x], ends, linewidth=4.5, alpha=0.5, **look)
        axes.plot(x, mean, **_dot(study, block) | {"markersize": 5})
    note = "thick: 95% interval of the mean; thin: ± 1 std, within 1 to 5; dashed: the anchor, 3"
    _legend(figure, study, study.blocks, note)
    _head(figure, study)
    return figure


def figure3(study: Study) -> "Figure":
    """Figure 3: mean score in each dimension but Overall, by model and strategy, as a heat map.

    Columns are grouped as in section 4.1; colours part at the judge's anchor, 3.
    """
    from hialign.judge.rubric import load_rubric

    scores = records.judgments(study).dropna(subset="score")
    scores = scores[scores.dimension != tables.OVERALL]
    if scores.empty:
        return _nothing("judged responses")
    rubric = load_rubric(study.judge.rubric if study.judge else None)
    groups = {g: [n for n in ns if n != tables.OVERALL] for g, ns in rubric.groups.items()}
    names = [name for members in groups.values() for name in members]
    means = scores.groupby(["model", "block", "dimension"]).score.mean()
    grid = np.full((_lines(study)[-1][0] + 1, len(names)), np.nan)
    for y, model, block in _lines(study):
        grid[y] = [means.get((model, block, name), np.nan) for name in names]
    half = min(2.0, max(0.5, math.ceil(2 * np.nanmax(np.abs(grid - ANCHOR))) / 2))
    figure, (axes,) = _canvas(WIDEST, 2.4 + 0.3 * len(grid))
    image = axes.imshow(grid, cmap="PuOr_r", vmin=ANCHOR - half, vmax=ANCHOR + half, aspect="auto")
    hatched: dict[str, Any] = {"color": "#f4f4f4", "edgecolor": "#bbbbbb", "hatch": "////", "lw": 0}
    for y, _, _ in _lines(study):
        for x, value in enumerate(grid[y]):
            if np.isnan(value):
                axes.bar(x, 1, 1, bottom=y - 0.5, **hatched)
                continue
            light = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114)) > 0.5
            _write(axes, x, y, f"{value:.2f}", fontsize=7.5, color="black" if light else "white")
    edge = -0.5
    for group, members in groups.items():
        words = group.replace(" & ", "\u00a0&\n").replace(" ", "\n").replace("-", "-\n")
        _write(axes, edge + len(members) / 2, -0.7, words, va="bottom")
        edge += len(members)
        axes.axvline(edge, color="white", linewidth=3, zorder=2)
    _name_lines(axes, study)
    axes.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor")
    axes.set(xlim=(-0.5, len(names) - 0.5), xlabel="dimension")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    label = f"mean score ({ANCHOR} = anchor)"
    figure.colorbar(image, ax=axes, fraction=0.025, pad=0.01, label=label)
    _head(figure, study)
    return figure


def figure4(study: Study) -> "Figure":
    """Figure 4: DPO loss by optimizer step, a panel a model; Base is not trained."""
    steps = records.training(study).dropna(subset="loss")
    if steps.empty:
        return _nothing("training")
    trained = [block for block in study.blocks if block != "base"]
    shape = (math.ceil(len(study.models) / 2), min(2, len(study.models)))
    size = (WIDEST if shape[1] > 1 else 6.5, 3.2 * shape[0] + 0.6)
    figure, axes = _canvas(*size, shape, sharex=True, sharey=True)
    window = max(1, int(steps.step.max()) // 20)
    for panel, model in zip(axes, study.models, strict=False):
        absent = []
        for i, block in enumerate(trained):
            run = steps[(steps.model == model.label) & (steps.block == block)].sort_values("step")
            if run.empty:
                absent.append(_plain(strategy_of(block), 20))
                continue
            colour, line = _colour(study, block), LINES[i % len(LINES)]
            panel.plot(run.step, run.loss, color=colour, alpha=0.2, linewidth=0.6)
            smooth = run.loss.rolling(window, min_periods=1, center=True).mean()
            panel.plot(run.step, smooth, color=colour, linestyle=line, linewidth=1.8)
        panel.axhline(math.log(2), color="#555555", linestyle=":", linewidth=1)
        if absent:
            which = "all" if len(absent) == len(trained) else ",\n".join(absent)
            place = {"transform": panel.transAxes, "ha": "right", "va": "top"}
            _missing(panel, 0.99, 0.99, f"missing: {which}", **place)
        panel.set_title(_plain(model.label), loc="left")
        panel.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
        panel.grid(axis="y")
        panel.locator_params(axis="x", integer=True)
        panel.tick_params(labelbottom=True)
    for spare in axes[len(study.models) :]:
        spare.set_visible(False)
    strong = f"; strong lines: running mean of {window} steps" if window > 1 else ""
    _legend(figure, study, trained, f"dotted: log 2, where training starts{strong}", curves=True)
    return figure


def figure5(study: Study) -> "Figure":
    """Figure 5: minutes of training by model and strategy; Base is not trained."""
    runs = records.manifests(study)
    runs = runs[(runs.status == "done") & (runs.block != "base")].dropna(subset="seconds")
    if runs.empty:
        return _nothing("training")
    minutes = runs.set_index(["model", "block"]).seconds.astype(float) / 60
    trained = [block for block in study.blocks if block != "base"]
    figure, places = _groups(study, trained, 2.6)
    digits = 0 if minutes.max() >= 100 else 1 if minutes.max() >= 10 else 2
    for axes, x, model, block in places:
        axes.set(ylim=(0, 1.12 * minutes.max()), ylabel="training time (minutes)")
        if (value := minutes.get((model, block))) is None:
            _missing(axes, x, 0.01 * minutes.max(), rotation=90, va="bottom")
            continue
        axes.bar(x, value, 0.86, color=_colour(study, block))
        _write(axes, x, value, f"{value:,.{digits}f}", va="bottom", fontsize=7.5)
    _legend(figure, study, trained, "wall-clock time of one run each")
    return figure


# --- ours ----------------------------------------------------------------------------------------


def accuracy(study: Study) -> "Figure":
    """Reward accuracy and reward margin on the study's held-out pairs."""
    found = records.evaluations(study)
    found = found[found.objective == "all"]
    share = ("dotted: chance", "reward accuracy (share of pairs)", "reward_accuracy", 0.5, found)
    margin = ("dotted: Base", "mean reward margin (nats)", "reward_margin", 0.0, found)
    return _dots(study, [share, margin], "held-out preferences evaluated")


def objectives(study: Study) -> "Figure":
    """Reward margin by strategy and objective, a panel an objective, each with its own scale.

    Shaded is the third that the paper assigns to the objective.
    """
    found = records.evaluations(study)
    panels = [
        (name, "mean reward margin (nats)", "reward_margin", 0.0, found[found.objective == name])
        for name in tables.objective_names(found)
    ]
    figure = _dots(study, panels, "contrasts by objective evaluated")
    for axes in figure.axes:
        for y, _, block in _lines(study):
            if block == EXPECTED.get(axes.get_title(loc="left")):
                axes.axhspan(y - 0.5, y + 0.5, color=PALETTE[block], alpha=0.14, linewidth=0)
    if panels:
        note = "shaded: the third that the paper assigns to this objective"
        figure.suptitle(note, fontsize=9.5, x=0.01, ha="left")
    return figure


def divergence(study: Study) -> "Figure":
    """KL divergence from Base, and response length, of each cell's own responses."""
    found = records.divergences(study)
    kl = ("", "KL from Base (nats/token)", "kl", 0.0, found)
    length = ("", "response length (tokens)", "response_tokens", None, found)
    return _dots(study, [kl, length], "responses evaluated")


# --- helpers -------------------------------------------------------------------------------------


def _canvas(
    width: float, height: float, panels: tuple[int, int] = (1, 1), **options: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure (inches) and its axes by rows; closed for pyplot, so that a notebook shows it once."""
    import matplotlib.pyplot as plt

    with plt.rc_context(SETTINGS):
        options |= {"figsize": (width, height), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(*panels, **options)
    plt.close(figure)
    return figure, list(axes.flat)


def _write(axes: "Axes", x: float, y: float, text: str, **look: Any) -> None:
    default: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
    axes.text(x, y, text, **default | look)


def _missing(axes: "Axes", x: float, y: float, text: str = "missing", **look: Any) -> None:
    _write(axes, x, y, text, **{"color": "#767676", "style": "italic", "fontsize": 8} | look)


def _nothing(what: str) -> "Figure":
    figure, (axes,) = _canvas(6, 1.2)
    axes.axis("off")
    _write(axes, 0.5, 0.5, f"no {what} in this study yet", color="#666666", fontsize=12)
    return figure


def _groups(
    study: Study, blocks: Sequence[str], height: float
) -> "tuple[Figure, list[tuple[Axes, float, str, str]]]":
    """Axes with the models side by side, as many to a row (`height` inches) as are legible.

    With the figure comes the place of each cell: axes, x, model, block.
    """
    labels = [model.label for model in study.models]
    each = min(len(labels), max(1, min(4, 24 // len(blocks))))
    step, rows = len(blocks) + 1, math.ceil(len(labels) / each)
    width = WIDEST if len(labels) > 1 else 6.0
    figure, axes = _canvas(width, height * rows + 0.8, (rows, 1))
    places = []
    for row, panel in enumerate(axes):
        models = labels[row * each : (row + 1) * each]
        ticks = [i * step + step / 2 - 1 for i in range(len(models))]
        panel.set_xticks(ticks, [_plain(model, 40 // each + 8) for model in models])
        panel.set(xlim=(-1, each * step - 1), xlabel="model")
        panel.tick_params(axis="x", length=0)
        panel.grid(axis="y")
        for i, model in enumerate(models):
            places += [(panel, float(i * step + j), model, b) for j, b in enumerate(blocks)]
    return figure, places


def _lines(study: Study) -> list[tuple[int, str, str]]:
    """y, model and block of each cell; on the line above a model's first stands its name."""
    per_model = len(study.blocks)
    return [(i + i // per_model + 1, c.model.label, c.block) for i, c in enumerate(study.cells())]


def _name_lines(axes: "Axes", study: Study) -> None:
    """Strategies as tick labels, each model's name in bold above its own."""
    lines = _lines(study)
    axes.set_yticks([y for y, _, _ in lines], [_plain(strategy_of(b), 18) for _, _, b in lines])
    axes.set_ylim(lines[-1][0] + 0.5, -0.5)
    look = {"transform": axes.get_yaxis_transform(), "ha": "left", "fontweight": "bold"}
    for i, model in enumerate(study.models):
        _write(axes, 0.01, i * (len(study.blocks) + 1), _plain(model.label, 60), **look)


def _dots(
    study: Study, panels: Sequence[tuple[str, str, str, float | None, pd.DataFrame]], what: str
) -> "Figure":
    """Panels side by side: a line a cell, its value as a dot with the 95% interval.

    A panel is a title, the label of its axis, a column, where a dotted line goes, and the values.
    """
    if not any(values[column].notna().any() for _, _, column, _, values in panels):
        return _nothing(what)
    size = (WIDEST if len(panels) > 2 else 7.0, 1.6 + 0.28 * _lines(study)[-1][0])
    figure, axes = _canvas(*size, (1, len(panels)), sharey=True)
    for panel, (title, label, column, reference, values) in zip(axes, panels, strict=True):
        measured = {(row.model, row.block): row for row in values.itertuples()}
        for y, model, block in _lines(study):
            row = measured.get((model, block))
            value = getattr(row, column, None)
            if value is None or pd.isna(value):
                text = "none: it is the reference" if block == "base" else "undefined"
                text = "missing" if row is None else text
                _missing(panel, 0.5, y, text, transform=panel.get_yaxis_transform())
                continue
            ends = [getattr(row, f"{column}_{end}") for end in ("low", "high")]
            panel.plot(ends, [y, y], color=_colour(study, block), linewidth=3, alpha=0.5)
            panel.plot(value, y, **_dot(study, block))
        if reference is not None:
            panel.axvline(reference, color="#555555", linestyle=":", linewidth=1, zorder=1)
        panel.set(xlabel=label)
        panel.set_title(_plain(title), loc="left")
        panel.margins(x=0.08)
        panel.grid(axis="x")
        panel.tick_params(axis="y", length=0)
    _name_lines(axes[0], study)
    return figure


def _colour(study: Study, block: str) -> str:
    named = [b for b in study.blocks if b not in PALETTE]
    return PALETTE.get(block) or MORE[named.index(block) % len(MORE)]


def _dot(study: Study, block: str) -> dict[str, Any]:
    order = [*STRATEGIES, *(b for b in study.blocks if b not in STRATEGIES)]
    marker = MARKERS[order.index(block) % len(MARKERS)]
    look = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.8}
    return {"color": _colour(study, block), "marker": marker, "linestyle": "none"} | look


def _legend(
    figure: "Figure", study: Study, blocks: Sequence[str], note: str, curves: bool = False
) -> None:
    """Strategies and a note below the axes, outside the data."""
    from matplotlib.lines import Line2D

    handles = []
    for i, block in enumerate(blocks):
        look = _dot(study, block)
        if curves:
            look |= {"linestyle": LINES[i % len(LINES)], "marker": ""}
        handles.append(Line2D([], [], label=_plain(strategy_of(block), 24), **look))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 5))
    options: dict[str, Any] = {"loc": "outside lower center", "fontsize": 9, "title_fontsize": 8.5}
    figure.legend(handles=handles, ncols=columns, title=note, **options)


def _head(figure: "Figure", study: Study) -> None:
    """The judge, and how far it agrees with people, above the axes: no score means more than that."""
    agreement = tables.judge_agreement(study).attrs.get("text")
    known = (
        f"agrees with human labels (LLMBar) on {agreement}"
        if agreement
        else ("agreement with human labels not measured")
    )
    name = _plain(study.judge.name if study.judge else "none", 50)
    text = f"judge: {name}\n{textwrap.fill(known, int(13 * figure.get_figwidth()))}"
    figure.suptitle(text, fontsize=9, x=0.01, ha="left")


def _plain(text: str, width: int = 40) -> str:
    """`text` from outside for a plot: one line, cut to `width`, and no mathematics ($) in it."""
    line = " ".join(text.split())
    line = line if len(line) <= width else f"{line[: width - 1]}…"
    return line.replace("$", r"\$")
