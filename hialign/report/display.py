"""How a DataFrame is shown to a reader, in notebooks and in the book."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from html import escape
from typing import Any

import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype
from pandas.io.formats.style import Styler

from hialign.statistics.intervals import interval_text

DASH = "–"
REASONS = "Nothing, because"  # the title of a column that stands only where there is a reason
# A table wider than a phone scrolls by itself instead of the whole page; by keyboard too.
SCROLLING = '<div style="overflow-x: auto" tabindex="0" role="region" aria-label="table">'
DIGITS = {"KL from Base (nats/token)": 4, "Response length (tokens)": 1}  # decimals, if not three
DIGITS |= {"Training (min)": 2, "Peak memory (GiB)": 2}
DIGITS |= {"z": 2, "z, r = 0": 2, "z, r = 0.5": 2, "z, r = 0.9": 2, "One response in": 1}
DIGITS |= {"Rounding, ±": 4, "Llama share (%)": 0}

Row = Mapping[Any, Any]  # a record's fields by name
Source = str | tuple[str, str] | Callable[[Any], Any]  # where a column's values come from
Columns = dict[str, Source]  # by title


class Table(pd.DataFrame):
    """A DataFrame that notebooks and the book display as `show` has it."""

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return Table

    def _repr_html_(self) -> str:
        return f"{SCROLLING}{show(self).to_html()}</div>"


def show(frame: pd.DataFrame) -> Styler:
    """`frame` for a reader: no index, missing values as "–", numbers aligned, all text escaped.

    Model names, devices and the like come from outside and may hold anything, HTML included.
    """
    formats: dict[str, Callable[[Any], str]] = {}
    css = [{"selector": "th, td", "props": "text-align: right; padding: 0.15em 0.45em"}]
    for i, name in enumerate(frame.columns):
        if is_numeric_dtype(frame[name]):
            digits = f",.{DIGITS.get(name, 3)}f"
            whole = "d" if name == "Seed" else ","  # a seed is a name, not an amount
            formats[name] = partial(_number, whole if is_integer_dtype(frame[name]) else digits)
            continue
        short = frame[name].astype(str).str.len().max() <= 24
        props = "text-align: left" + ("; white-space: nowrap" if short else "")
        css.append({"selector": f".col{i}", "props": props})
    css.append({"selector": "th.col_heading", "props": "white-space: normal"})
    # pandas would draw an id at random; this one is the same in each build, and differs by content.
    key = hashlib.sha256(frame.to_csv().encode(errors="replace")).hexdigest()[:8]
    # The theme styles `table.dataframe` for light and dark; other tables get a white box in dark.
    style = pd.DataFrame(frame).style.set_table_attributes('class="dataframe"').set_uuid(key)
    style.format(formats, na_rep=DASH, escape="html")  # type: ignore[arg-type]
    style.format_index(escape="html", axis="columns").hide(axis="index")
    if "caption" in frame.attrs:
        style.set_caption(escape(frame.attrs["caption"]))
    return style.set_table_styles(css)  # type: ignore[arg-type]


def _number(form: str, value: Any) -> str:
    return f"{value:{form}}".replace("-", "−")  # a minus as wide as a plus


# --- from rows to tables -------------------------------------------------------------------------


def table_of(rows: Iterable[Row], columns: list[str] | None = None) -> Table:
    """Rows as a Table in which columns of numbers and None are numeric."""
    frame = Table(list(rows), columns=columns)
    for name in frame.columns:
        values = frame[name].dropna()
        if values.map(lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)).all():
            frame[name] = pd.to_numeric(frame[name])
    return frame


def view(
    rows: Iterable[Row], columns: Mapping[str, Source], none: str = "", keys: int | None = None
) -> Table:
    """One row per record, and one column per title.

    Args:
        rows: the records, such as the rows of a DataFrame by `to_dict("records")`.
        columns: by title, where its values come from: a field of the record, the two fields between
            which a 95% interval lies, or a function of the record. A dot leads into a nested
            record. A field that a record lacks is a missing value.
        none: what the table says, under its first title, if there are no rows. `attrs["empty"]` has
            it, too, so that a page can say it in a line.
        keys: how many of the titles such a table has (all if None).
    """
    shown = [{title: _value(row, source) for title, source in columns.items()} for row in rows]
    if not shown and none:
        titles = list(columns)[:keys]
        empty = table_of([{titles[0]: none}], titles)
        empty.attrs["empty"] = none
        return empty
    table = table_of(shown, list(columns))
    if REASONS in table and table[REASONS].isna().all():
        return Table(table.drop(columns=REASONS))
    return table


def _value(row: Row, source: Source) -> Any:
    if callable(source):
        return source(row)
    if isinstance(source, tuple):
        return interval_text(*(_value(row, name) for name in source))
    name, _, rest = source.partition(".")
    value = row.get(name)
    return _value(value or {}, rest) if rest else value


def short_name(strategy: str) -> str:
    """A strategy without what all names of its kind end with: `Mid` of `Mid-Align`."""
    return strategy.removesuffix("-Align").removesuffix("-DPO")


def span(layers: Iterable[int]) -> str:
    """Layers as text: `10–18`, or `0–3, 8` where they are not in one piece."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)
