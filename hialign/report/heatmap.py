"""Figure 3: the dimensions besides Overall, as the paper draws them, and against Base with tests."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hialign.records import frames
from hialign.report.plots import (
    ANCHOR,
    WIDEST,
    canvas,
    lines_of,
    name_judge,
    name_lines,
    nothing,
    plain,
    write,
)
from hialign.report.scores import OVERALL, dimension_differences
from hialign.statistics.comparisons import BETTER, WORSE
from hialign.study.blocks import strategy_of
from hialign.study.rubric import load_rubric
from hialign.study.study import Study

HATCHED: dict[str, Any] = {"color": "#f4f4f4", "edgecolor": "#bbbbbb", "hatch": "////", "lw": 0}


def figure3(study: Study) -> Figure:
    """Figure 3: mean score in each dimension but Overall, by model and strategy, as a heat map.

    Columns are grouped as in section 4.1. Colours change at the judge's anchor, 3. The lower panel is
    ours: differences from Base over all models, with their 95% intervals. A frame is around the
    differences that `hialign.statistics.comparisons` confirms, corrected for all tests of the panel.
    """
    scores = frames.judgments(study).dropna(subset="score")
    scores = scores[scores.dimension != OVERALL]
    if scores.empty:
        return nothing("judged responses")
    rubric = load_rubric(study.judge.rubric if study.judge else None)
    groups = {g: [n for n in ns if n != OVERALL] for g, ns in rubric.groups.items()}
    names = [name for members in groups.values() for name in members]
    means = scores.groupby(["model", "block", "dimension"]).score.mean()
    grid = np.full((lines_of(study)[-1][0] + 1, len(names)), np.nan)
    for y, model, block in lines_of(study):
        grid[y] = [means.get((model, block, name), np.nan) for name in names]
    trained = [b for b in study.blocks if b != "base"] if "base" in study.blocks else []
    heights = [0.3 * len(grid) + 0.5, 0.5 * len(trained) + 0.4][: 1 + bool(trained)]
    shape, ratios = (len(heights), 1), {"height_ratios": heights}
    figure, axes = canvas(WIDEST, 2.2 + sum(heights), shape, sharex=True, gridspec_kw=ratios)
    half = min(2.0, max(0.5, math.ceil(2 * np.nanmax(np.abs(grid - ANCHOR))) / 2))
    _squares(
        axes[0], grid, [y for y, _, _ in lines_of(study)], ANCHOR, half, "mean score (3: anchor)"
    )
    name_lines(axes[0], study)
    edge = -0.5
    for group, members in groups.items():
        words = group.replace(" & ", "\u00a0&\n").replace(" ", "\n").replace("-", "-\n")
        write(axes[0], edge + len(members) / 2, -0.7, words, va="bottom")
        edge += len(members)
        for panel in axes:
            panel.axvline(edge, color="white", linewidth=3, zorder=2)
    if trained:
        _against_base(axes[1], study, trained, names)
    axes[-1].set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor")
    axes[-1].set(xlim=(-0.5, len(names) - 0.5), xlabel="dimension")
    name_judge(figure, study)
    return figure


def squares(study: Study) -> pd.DataFrame:
    """What Figure 3 draws: panel (mean score, minus Base), model, strategy, dimension and value.

    A difference also has its interval (low, high) and its verdict.
    """
    scores = frames.judgments(study).dropna(subset="score")
    scores = scores[scores.dimension != OVERALL]
    keys = ["model", "strategy", "dimension"]
    means = scores.groupby(keys, sort=False).score.mean().rename("value").reset_index()
    means.insert(0, "panel", "mean score")
    differences = dimension_differences(study).rename(columns={"difference": "value"})
    differences = differences.assign(panel="minus Base", model="all")
    differences["strategy"] = [strategy_of(block) for block in differences.block]
    columns = ["panel", *keys, "value", "low", "high", "verdict"]
    return pd.concat([means, differences.reindex(columns=columns)], ignore_index=True)


def _against_base(axes: Axes, study: Study, blocks: list[str], names: list[str]) -> None:
    """The lower panel: one row per strategy, and each difference with the ends of its interval."""
    rows = dimension_differences(study).to_dict("records")
    cells = {(row["block"], row["dimension"]): row for row in rows}
    grid = np.full((len(blocks), len(names)), np.nan)
    for y, block in enumerate(blocks):
        for x, name in enumerate(names):
            grid[y, x] = cells.get((block, name), {}).get("difference", np.nan)
    half = max(0.1, math.ceil(10 * np.nanmax(np.abs(np.append(grid, 0)))) / 10)
    ink = _squares(axes, grid, range(len(blocks)), 0, half, "minus Base")
    frame: dict[str, Any] = {"facecolor": "none", "edgecolor": "black", "lw": 1.8, "zorder": 3}
    framed = 0
    for (y, x), colour in ink.items():
        row = cells[blocks[y], names[x]]
        for end, dy in ((row["high"], -0.33), (row["low"], 0.33)):
            if not np.isnan(end):
                write(axes, x, y + dy, _signed(end, half), fontsize=6, color=colour)
        if row["verdict"] in (BETTER, WORSE):
            axes.bar(x, 0.94, 0.94, bottom=y - 0.47, **frame)
            framed += 1
    axes.set_yticks(range(len(blocks)), [plain(strategy_of(b), 18) for b in blocks])
    axes.set_ylim(len(blocks) - 0.5, -0.5)
    words = "minus Base, over all models, with the ends of the 95% interval; framed: found"
    axes.set_title(words + ("" if framed else " (none)"), loc="left", fontsize=9)


def _squares(
    axes: Axes, grid: np.ndarray, lines: Any, centre: float, half: float, label: str
) -> dict[tuple[int, int], str]:
    """Draw `grid` in colours that change at `centre`. Missing squares in `lines` (rows) are hatched.

    Returns the colour of the text in each square that has a value.
    """
    image = axes.imshow(grid, cmap="PuOr_r", vmin=centre - half, vmax=centre + half, aspect="auto")
    ink = {}
    for y in lines:
        for x, value in enumerate(grid[y]):
            if np.isnan(value):
                axes.bar(x, 1, 1, bottom=y - 0.5, **HATCHED)
                continue
            light = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114)) > 0.5
            ink[y, x] = "black" if light else "white"
            text = f"{value:.2f}" if centre else _signed(value, half)
            write(axes, x, y, text, fontsize=7.5, color=ink[y, x])
    axes.figure.colorbar(image, ax=axes, fraction=0.025, pad=0.01, label=label)
    axes.set_ylabel("strategy")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return ink


def _signed(value: float, half: float) -> str:
    """With as many decimals as a scale that ends at `half` needs: `+0.25`, or `+.025`."""
    text = f"{value:+.2f}" if half > 0.2 else f"{value:+.3f}".replace("0.", ".", 1)
    return text.replace("-", "−")
