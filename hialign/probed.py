"""The probes' figures and tables by name, for notebooks and the book."""

from collections.abc import Mapping
from typing import Any

from hialign import concordance_views, gradient_views, ila_views, patching_views, sweep_views
from hialign.study import Cell

# What a probe's notebook shows of its record: figures, then tables
VIEWS: Mapping[str, tuple[Any, ...]] = {
    "gradients": (gradient_views.curves, gradient_views.along, gradient_views.inequality),
    "matrix": (sweep_views.matrix, sweep_views.effects),
    "ila": (ila_views.gates, ila_views.interventions, ila_views.rankings, ila_views.overlaps),
    "patching": (
        *(patching_views.recovery, patching_views.rank),
        *(patching_views.made, patching_views.thirds, patching_views.regression),
    ),
    "sweep": (sweep_views.windows, sweep_views.controls),
    "weights": (concordance_views.overview, concordance_views.layers),
}


def views(cell: Cell, probe: str) -> list[Any]:
    """What the record of a probe of the cell's model shows: figures and tables, for a notebook."""
    only = cell.study.model_copy(update={"models": [cell.model]})
    return [draw(only) for draw in VIEWS[probe]]
