"""What the views of a probe have in common: one row per part of a record, after the model's name."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hialign.records import frames
from hialign.report.display import Row, Source, Table, view
from hialign.statistics.intervals import p_text
from hialign.study.study import Study

Record = dict[str, Any]


def probe_view(
    study: Study,
    probe: str,
    part: str | Callable[[Record], Iterable[Row]],
    columns: Mapping[str, Source],
    keys: int,
) -> Table:
    """`view` of all models' records of a probe, with the model in the first column.

    `part` is the field of a record that holds the rows, or a function that makes them of a record.
    `keys` counts the columns of a table without rows, the model's included.
    """
    rows = [
        dict(row) | {"model": label}
        for label, record in frames.probes(study, probe).items()
        for row in (part(record) if callable(part) else record[part])
    ]
    return view(rows, {"Model": "model", **columns}, "none yet", keys)


def p_of(name: str) -> Source:
    """A column of p values as text, from the field `name`."""
    return lambda row: p_text(row.get(name))
