"""The registered analysis as figures: contrasts over seeds, and what each third gained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hialign.report.display import Table, table_of
from hialign.report.plots import MORE, PALETTE, WIDEST, canvas, nothing, plain, write
from hialign.report.replication.answer import Answer, answer, contrasts_of
from hialign.report.replication.reading import TOGETHER
from hialign.report.replication.tables import name_of
from hialign.report.replication.verdicts import Compared, Test
from hialign.statistics.comparisons import UNSURE
from hialign.statistics.contrasts import NOTHING_LEARNED
from hialign.statistics.leads import THIRDS
from hialign.study.blocks import EXPECTED, OBJECTIVES
from hialign.study.study import Study

Line = dict[str, Any]  # name, mean, low, high, verdict, by_seed, colour, and margin or None
INTERACTION = "all objectives:\nthe interaction"
NOTE = """small dots: one seed each; large: their mean, a diamond where there is a verdict
lines: 95% intervals over pairs and seeds; grey bars: half of Full's gain"""


def headline(study: Study) -> Figure:
    """The tests that the answer rests on: a line each, with a dot per seed."""
    found = answer(study)
    if found is None or not (panels := _headlines(found)):
        return nothing("replicated answer")
    about = "advantage of an objective's own third" if found.is_hypothesis else "difference in gain"
    return _forest(panels, f"{about} (nats per held-out pair)")


def headline_rows(study: Study) -> Table:
    """`headline` as numbers."""
    found = answer(study)
    return _numbers(_headlines(found) if found else {})


def contrasts(study: Study) -> Figure:
    """Every registered contrast of two blocks: a line each, with a dot per seed."""
    found = answer(study)
    if found is None or not (panels := _contrasts(found)):
        return nothing("registered contrasts")
    return _forest(panels, "difference in gain (nats per held-out pair)")


def contrast_rows(study: Study) -> Table:
    """`contrasts` as numbers."""
    found = answer(study)
    return _numbers(_contrasts(found) if found else {})


def by_third(study: Study) -> Figure:
    """Mean gain of each third (columns) on each objective that it was trained on alone (rows)."""
    found = answer(study)
    by_model = {label: one.gains for label, one in found.of()} if found else {}
    if not by_model:
        return nothing("gains by objective and third")
    shape = (1, len(by_model))
    figure, axes = canvas(min(WIDEST, 1.4 + 4.2 * len(by_model)), 3.3, shape)
    most = max(abs(e["mean"]) for gains in by_model.values() for e in gains.values()) or 1.0
    for panel, (label, gains) in zip(axes, by_model.items(), strict=True):
        values = np.array([[gains[name, third]["mean"] for third in THIRDS] for name in OBJECTIVES])
        image = panel.imshow(values, cmap="cividis", vmin=min(0, values.min()), vmax=most)
        for y, name in enumerate(OBJECTIVES):
            for x, third in enumerate(THIRDS):
                effect = gains[name, third]
                colour = "black" if values[y, x] > 0.55 * most else "white"
                text = f"{effect['mean']:.3f}"
                if effect["low"] is not None:
                    text += f"\n{effect['low']:.3f} to {effect['high']:.3f}"
                write(panel, x, y, text.replace("-", "−"), color=colour, fontsize=8)
                if EXPECTED[name] == third:
                    frame: dict[str, Any] = {"linewidth": 2, "edgecolor": "#D55E00", "fill": False}
                    panel.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **frame))
        panel.set_xticks(range(3), [name_of(third) for third in THIRDS])
        panel.set_yticks(range(3), OBJECTIVES)
        panel.set(xlabel="third that is tuned", ylabel="trained and tested on")
        if len(by_model) > 1:
            panel.set_title(plain(label), loc="left", fontweight="bold")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("mean gain (nats per held-out pair)")
    return figure


# --- lines ---------------------------------------------------------------------------------------


def _headlines(found: Answer) -> dict[str, list[Line]]:
    """The lines of the front page's figure, by the title of their panel."""
    panels = {}
    for label, one in found.of():
        tests = [one.primary] if one.primary else []
        tests += [test for test in one.secondary if test["family"] == "1"]
        panels[label] = [_test_line(test) for test in tests]
    for label, other in found.of_strategies():
        panels[label] = [_contrast_line(row) for row in other.contrasts]
    return {label: lines for label, lines in panels.items() if lines}


def _contrasts(found: Answer) -> dict[str, list[Line]]:
    panels: dict[str, list[Line]] = {}
    for label, one in found.findings.items():
        for row in contrasts_of(one):
            trained = "together" if row["trained_on"] == TOGETHER else f"on {row['trained_on']}"
            title = f"trained {trained}" if found.is_hypothesis else ""
            names = [label] if len(found.findings) > 1 else []
            panels.setdefault(", ".join([*names, *filter(None, [title])]), []).append(
                _contrast_line(row)
            )
    return panels


def _test_line(test: Test) -> Line:
    if test["family"] == "primary":
        return _line(test, INTERACTION, PALETTE["full"])
    third = EXPECTED[test["name"].partition(",")[0]]
    return _line(test, f"{test['name']}:\n{name_of(third)} minus the others", PALETTE[third])


def _contrast_line(row: Compared) -> Line:
    name = f"{name_of(row['block'])} minus {name_of(row['reference'])}"
    return _line(row, name, PALETTE.get(row["block"], MORE[0]))


def _line(row: Mapping[str, Any], name: str, colour: str) -> Line:
    kept = {key: row[key] for key in ("mean", "low", "high", "verdict", "by_seed", "margin")}
    return {"name": name, "colour": colour, **kept}


def _numbers(panels: Mapping[str, Sequence[Line]]) -> Table:
    rows = []
    for panel, lines in panels.items():
        for line in lines:
            row = {"panel": panel, "name": line["name"].replace("\n", " ")}
            row |= {key: line[key] for key in ("mean", "low", "high", "margin", "verdict")}
            rows.append(row | {f"seed {i}": v for i, v in enumerate(line["by_seed"], 1)})
    return table_of(rows)


# --- drawing -------------------------------------------------------------------------------------


def _forest(panels: Mapping[str, Sequence[Line]], label: str) -> Figure:
    """Panels below each other with one line per test: its seeds, their mean, the interval."""
    heights = [len(lines) * 0.4 + 0.4 for lines in panels.values()]
    shape = (len(panels), 1)
    figure, axes = canvas(7.0, sum(heights) + 0.7, shape, height_ratios=heights, sharex=True)
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for y, line in enumerate(lines):
            _draw(panel, y, line)
        panel.axvline(0, color="#555555", linestyle=":", linewidth=1, zorder=1)
        panel.set_yticks(range(len(lines)), [line["name"] for line in lines], fontsize=8.5)
        panel.set_ylim(len(lines) - 0.5, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x")
        panel.margins(x=0.06)
        if len(panels) > 1:
            panel.set_title(plain(title, 60), loc="left", fontweight="bold", fontsize=9)
    axes[-1].set_xlabel(f"{label}\n{NOTE}", fontsize=8.5)
    return figure


def _draw(panel: Axes, y: int, line: Line) -> None:
    colour = line["colour"]
    seeds = line["by_seed"]
    if len(seeds) > 1:
        look: dict[str, Any] = {"color": colour, "alpha": 0.55, "markersize": 3.5}
        panel.plot(seeds, np.full(len(seeds), y + 0.2), ".", **look)
    if line["low"] is not None and not pd.isna(line["low"]):
        panel.plot([line["low"], line["high"]], [y, y], color=colour, linewidth=3, alpha=0.5)
    shape = "o" if line["verdict"] in (UNSURE, NOTHING_LEARNED) else "D"
    look = {"color": colour, "marker": shape, "markersize": 7, "markeredgecolor": "white"}
    panel.plot(line["mean"], y, linestyle="none", **look)
    if line["margin"]:
        look = {"color": "#767676", "marker": "|", "markersize": 10, "linestyle": "none"}
        panel.plot(line["margin"], y, **look)
    look = {"transform": panel.get_yaxis_transform(), "ha": "left", "fontsize": 7.5}
    write(panel, 1.01, y, line["verdict"], color="#444444", **look)
