"""How all figures are drawn: one palette, one legend, missing cells, panels of dots.

Each strategy has one colour throughout. A cell that has not run is drawn as missing. It is never left
out or put at zero. A figure without any data says so.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hialign.report.sentences import judge_agreement_text
from hialign.study.blocks import STRATEGIES, strategy_of
from hialign.study.study import Study

# Okabe-Ito's colours, which the colour-blind can tell apart. Hues are for the thirds, greys for the two
# conditions that they are compared with, and the rest for blocks that a study names.
PALETTE = {"base": "#999999", "full": "#333333"}
PALETTE |= {"local": "#0072B2", "mid": "#E69F00", "global": "#009E73"}
MORE = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = "osD^vhpXP*"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)))  # of the loss curves
WIDEST = 8.0  # inches
ANCHOR = 3  # the judge's score of the baseline response (Appendix D)
EMPTY = "empty"  # the label of a figure that has nothing to show
SETTINGS: dict[str, Any] = {
    **{"font.size": 10, "axes.titlesize": 10.5, "figure.dpi": 150},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555"},
    **{"axes.axisbelow": True, "grid.color": "#e4e4e4", "legend.frameon": False},
    # opaque, so that figures read on a dark page
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"),
}


def canvas(
    width: float, height: float, panels: tuple[int, int] = (1, 1), **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure (inches) and its axes by rows, closed for pyplot so that a notebook shows it once."""
    with plt.rc_context(SETTINGS):
        options |= {"figsize": (width, height), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(*panels, **options)
    plt.close(figure)
    return figure, list(axes.flat)


def write(axes: Axes, x: float, y: float, text: str, **look: Any) -> None:
    default: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
    axes.text(x, y, text, **default | look)


def missing(axes: Axes, x: float, y: float, text: str = "missing", **look: Any) -> None:
    write(axes, x, y, text, **{"color": "#767676", "style": "italic", "fontsize": 8} | look)


def nothing(what: str) -> Figure:
    figure, (axes,) = canvas(6, 1.2)
    figure.set_label(EMPTY)
    axes.axis("off")
    write(axes, 0.5, 0.5, f"no {what} in this study yet", color="#666666", fontsize=12)
    return figure


def side_by_side(
    study: Study, blocks: Sequence[str], height: float
) -> tuple[Figure, list[tuple[Axes, float, str, str]]]:
    """Axes with the models side by side, as many to a row (`height` inches) as are legible.

    With the figure comes the place of each cell: axes, x, model, block.
    """
    labels = [model.label for model in study.models]
    each = min(len(labels), max(1, min(4, 24 // len(blocks))))
    step, rows = len(blocks) + 1, math.ceil(len(labels) / each)
    width = WIDEST if len(labels) > 1 else 6.0
    figure, axes = canvas(width, height * rows + 0.8, (rows, 1))
    places = []
    for row, panel in enumerate(axes):
        models = labels[row * each : (row + 1) * each]
        ticks = [i * step + step / 2 - 1 for i in range(len(models))]
        panel.set_xticks(ticks, [plain(model, 40 // each + 8) for model in models])
        panel.set(xlim=(-1, each * step - 1), xlabel="model")
        panel.tick_params(axis="x", length=0)
        panel.grid(axis="y")
        for i, model in enumerate(models):
            places += [(panel, float(i * step + j), model, b) for j, b in enumerate(blocks)]
    return figure, places


def lines_of(study: Study) -> list[tuple[int, str, str]]:
    """y, model and block of each cell. The line above a model's first cell has the model's name."""
    per_model = len(study.blocks)
    return [(i + i // per_model + 1, c.model.label, c.block) for i, c in enumerate(study.cells())]


def name_lines(axes: Axes, study: Study) -> None:
    """Strategies as tick labels, each model's name in bold above its own."""
    lines = lines_of(study)
    axes.set_yticks([y for y, _, _ in lines], [plain(strategy_of(b), 18) for _, _, b in lines])
    axes.set_ylim(lines[-1][0] + 0.5, -0.5)
    look = {"transform": axes.get_yaxis_transform(), "ha": "left", "fontweight": "bold"}
    for i, model in enumerate(study.models):
        write(axes, 0.01, i * (len(study.blocks) + 1), plain(model.label, 60), **look)


def dots(
    study: Study, panels: Sequence[tuple[str, str, str, float | None, pd.DataFrame]], what: str
) -> Figure:
    """Panels side by side, with one line per cell: its value as a dot with the 95% interval.

    A panel is a title, the label of its axis, a column, where a dotted line goes, and the values.
    """
    if not any(values[column].notna().any() for _, _, column, _, values in panels):
        return nothing(what)
    size = (WIDEST if len(panels) > 2 else 7.0, 1.6 + 0.28 * lines_of(study)[-1][0])
    figure, axes = canvas(*size, (1, len(panels)), sharey=True)
    for panel, (title, label, column, reference, values) in zip(axes, panels, strict=True):
        measured = {(row.model, row.block): row for row in values.itertuples()}
        for y, model, block in lines_of(study):
            row = measured.get((model, block))
            value = getattr(row, column, None)
            if value is None or pd.isna(value):
                text = "none: it is the reference" if block == "base" else "undefined"
                text = "missing" if row is None else text
                missing(panel, 0.5, y, text, transform=panel.get_yaxis_transform())
                continue
            ends = [getattr(row, f"{column}_{end}") for end in ("low", "high")]
            panel.plot(ends, [y, y], color=colour_of(study, block), linewidth=3, alpha=0.5)
            panel.plot(value, y, **dot_of(study, block))
        if reference is not None:
            panel.axvline(reference, color="#555555", linestyle=":", linewidth=1, zorder=1)
        panel.set(xlabel=label)
        panel.set_title(plain(title), loc="left")
        panel.margins(x=0.08)
        panel.grid(axis="x")
        panel.tick_params(axis="y", length=0)
    name_lines(axes[0], study)
    return figure


def colour_of(study: Study, block: str) -> str:
    """The colour of a block. One that the study does not list gets a colour after those that it does."""
    named = [b for b in (*study.blocks, block) if b not in PALETTE]
    return PALETTE.get(block) or MORE[named.index(block) % len(MORE)]


def dot_of(study: Study, block: str) -> dict[str, Any]:
    order = [*STRATEGIES, *(b for b in (*study.blocks, block) if b not in STRATEGIES)]
    marker = MARKERS[order.index(block) % len(MARKERS)]
    look = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.8}
    return {"color": colour_of(study, block), "marker": marker, "linestyle": "none"} | look


def legend(
    figure: Figure, study: Study, blocks: Sequence[str], note: str, curves: bool = False
) -> None:
    """Strategies and a note below the axes, outside the data."""
    handles = []
    for i, block in enumerate(blocks):
        look = dot_of(study, block)
        if curves:
            look |= {"linestyle": LINES[i % len(LINES)], "marker": ""}
        handles.append(Line2D([], [], label=plain(strategy_of(block), 24), **look))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 5))
    options: dict[str, Any] = {"loc": "outside lower center", "fontsize": 9, "title_fontsize": 8.5}
    figure.legend(handles=handles, ncols=columns, title=note, **options)


def name_judge(figure: Figure, study: Study) -> None:
    """Write above the axes which judge gave the scores, and how far it agrees with people.

    Scores mean no more than that agreement allows.
    """
    agreement = judge_agreement_text(study)
    words = "agreement with human labels not measured"
    if agreement:
        words = f"agrees with human labels (LLMBar) on {agreement}"
    name = plain(study.judge.name if study.judge else "none", 50)
    text = f"judge: {name}\n{textwrap.fill(words, int(13 * figure.get_figwidth()))}"
    figure.suptitle(text, fontsize=9, x=0.01, ha="left")


def plain(text: str, width: int = 40) -> str:
    """`text` from outside for a plot: one line, cut to `width`, without mathematics ($)."""
    line = " ".join(text.split())
    line = line if len(line) <= width else f"{line[: width - 1]}…"
    return line.replace("$", r"\$")
