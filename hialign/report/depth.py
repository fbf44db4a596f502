"""Figures along the depth of a model: layers on one axis, the thirds of the paper behind them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hialign.report.plots import PALETTE, WIDEST, canvas, plain, write
from hialign.study.blocks import split_layers


def rows(
    labels: Sequence[str], panels: int, height: float = 2.8, **options: Any
) -> tuple[Figure, dict[str, list[Axes]]]:
    """One row of `panels` per model, `height` inches each. The axes come by the model's label."""
    width = WIDEST if panels > 1 else 6.5
    figure, axes = canvas(width, height * len(labels) + 0.7, (len(labels), panels), **options)
    by_label = {label: axes[i * panels : (i + 1) * panels] for i, label in enumerate(labels)}
    if len(labels) > 1:
        for label, of_model in by_label.items():
            of_model[0].set_title(plain(label), loc="left", fontweight="bold")
    return figure, by_label


def thirds(axes: Axes, depth: int) -> None:
    """Shade the three blocks, and label the axis of layers."""
    for block, layers in split_layers(depth).items():
        ends = layers[0] - 0.5, layers[-1] + 0.5
        axes.axvspan(*ends, color=PALETTE[block], alpha=0.08, linewidth=0, zorder=0)
        look: dict[str, Any] = {"color": "#555555", "va": "bottom", "fontsize": 7.5}
        write(axes, sum(ends) / 2, 1.005, block, transform=axes.get_xaxis_transform(), **look)
    axes.set(xlim=(-0.5, depth - 0.5), xlabel="layer")
    axes.locator_params(axis="x", integer=True)


def edges(axes: Axes, depth: int) -> None:
    """Part the three blocks of a heat map by white lines, and name them above it."""
    for block, layers in split_layers(depth).items():
        axes.axvline(layers[-1] + 0.5, color="white", linewidth=1.5)
        above = axes.get_xaxis_transform()
        look: dict[str, Any] = {"transform": above, "va": "bottom", "fontsize": 8}
        write(axes, (layers[0] + layers[-1]) / 2, 1.01, block, **look)
    axes.set(xlabel="layer")
    axes.locator_params(axis="x", integer=True)


def equal_shares(depth: int, draw: Callable[..., Any], linestyle: Any = ":") -> None:
    """By `draw` (axvline or axhline), the share of a third if all layers had the same.

    The sizes of the thirds may differ by a layer, so there is a line for each size.
    """
    for size in {len(layers) for layers in split_layers(depth).values()}:
        draw(size / depth, color="#555555", linestyle=linestyle, linewidth=1)


def line(
    axes: Axes,
    x: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    name: str,
    ends: tuple[str, str] | None = None,
    **look: Any,
) -> None:
    """The field `name` of each row at `x`, with the 95% interval as a band.

    The interval lies between the fields `ends` (by default `<name>_low` and `<name>_high`). A
    missing value leaves a gap.
    """
    low, high = ends or (f"{name}_low", f"{name}_high")
    value, bottom, top = (
        [float("nan") if row[key] is None else row[key] for row in rows]
        for key in (name, low, high)
    )
    drawn: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3} | look
    axes.plot(x, value, **drawn)
    axes.fill_between(x, bottom, top, color=drawn["color"], alpha=0.16, linewidth=0)


def level(axes: Axes, *values: float) -> None:
    """A dotted horizontal line at each value."""
    for value in values:
        axes.axhline(value, color="#555555", linestyle=":", linewidth=1)


def legend(figure: Figure, note: str, columns: int = 4, panel: int = 0) -> None:
    """What the lines of a panel mean, and a note, below the panels."""
    handles, names = figure.axes[panel].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(columns, max(1, len(names))),
        fontsize=9,
        frameon=False,
        title=note,
        title_fontsize=8.5,
    )
