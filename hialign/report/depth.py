"""Figures along the depth of a model: layers on one axis, the thirds of the paper behind them."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hialign.report.plots import PALETTE, WIDEST, canvas, plain, write
from hialign.study.blocks import split_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rows(
    labels: Sequence[str], panels: int, height: float = 2.8, **options: Any
) -> "tuple[Figure, dict[str, list[Axes]]]":
    """A row of `panels` a model, `height` inches each; axes by the model's label."""
    width = WIDEST if panels > 1 else 6.5
    figure, axes = canvas(width, height * len(labels) + 0.7, (len(labels), panels), **options)
    found = {}
    for i, label in enumerate(labels):
        found[label] = axes[i * panels : (i + 1) * panels]
        if len(labels) > 1:
            found[label][0].set_title(plain(label), loc="left", fontweight="bold")
    return figure, found


def thirds(axes: "Axes", depth: int, names: bool = True) -> None:
    """Shade the three blocks, and label the axis of layers."""
    for block, layers in split_layers(depth).items():
        ends = layers[0] - 0.5, layers[-1] + 0.5
        axes.axvspan(*ends, color=PALETTE[block], alpha=0.08, linewidth=0, zorder=0)
        if names:
            look: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "fontsize": 7.5}
            look |= {"color": "#555555", "va": "bottom"}
            write(axes, sum(ends) / 2, 1.005, block, **look)
    axes.set(xlim=(-0.5, depth - 0.5), xlabel="layer")
    axes.locator_params(axis="x", integer=True)


def equal_shares(depth: int, draw: Callable[..., Any], linestyle: Any = ":") -> None:
    """By `draw` (axvline or axhline), the share of a third if all layers had the same: a line for each
    size of the thirds, which may differ by a layer."""
    for size in {len(layers) for layers in split_layers(depth).values()}:
        draw(size / depth, color="#555555", linestyle=linestyle, linewidth=1)


def line(
    axes: "Axes",
    x: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    name: str,
    ends: tuple[str, str] | None = None,
    **look: Any,
) -> None:
    """The field `name` of each row at `x`, and between its fields `ends` (by default `<name>_low` and
    `<name>_high`) the 95% interval as a band; a gap where there is none."""
    low, high = ends or (f"{name}_low", f"{name}_high")
    value, bottom, top = (
        [float("nan") if row[key] is None else row[key] for row in rows]
        for key in (name, low, high)
    )
    drawn: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3} | look
    axes.plot(x, value, **drawn)
    axes.fill_between(x, bottom, top, color=drawn["color"], alpha=0.16, linewidth=0)


def legend(figure: "Figure", axes: "Axes", note: str = "", columns: int = 4) -> None:
    """What the lines of `axes` mean, and a note, below the panels."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(columns, max(1, len(names))),
        fontsize=9,
        frameon=False,
        title=note or None,
        title_fontsize=8.5,
    )
