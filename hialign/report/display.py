"""How a DataFrame is shown to a reader, in notebooks and in the book."""

import hashlib
from collections.abc import Callable
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler
from collections.abc import Iterable

DASH = "–"
# A table wider than a phone scrolls by itself instead of the whole page; by keyboard too.
SCROLLING = '<div style="overflow-x: auto" tabindex="0" role="region" aria-label="table">'
DIGITS = {"KL from Base (nats/token)": 4, "Response length (tokens)": 1}  # decimals, if not three
DIGITS |= {"Training (min)": 2, "Peak memory (GiB)": 2}
DIGITS |= {"z": 2, "z, r = 0": 2, "z, r = 0.5": 2, "z, r = 0.9": 2, "One response in": 1}
DIGITS |= {"Rounding, ±": 4, "Llama share (%)": 0}


class Table(pd.DataFrame):
    """A DataFrame that notebooks and the book display as `show` has it."""

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return Table

    def _repr_html_(self) -> str:
        return f"{SCROLLING}{show(self).to_html()}</div>"


def show(frame: pd.DataFrame) -> "Styler":
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
    # The same table has the same id in each build (pandas would draw one), and another one another.
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


def table_of(rows: list[dict[str, Any]], columns: list[str] | None = None) -> Table:
    """Rows as a Table in which columns of numbers and None are numeric."""
    frame = Table(rows, columns=columns)
    for name in frame.columns:
        kept = frame[name].dropna()
        if kept.map(lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)).all():
            frame[name] = pd.to_numeric(frame[name])
    return frame


def table_or_none(rows: list[dict[str, Any]], columns: list[str]) -> Table:
    """`table_of(rows)`; with no rows one that says so, under the first of `columns`. A column of reasons
    (`Nothing, because`) stands only where there is one."""
    if not rows:
        return table_of([{columns[0]: "none yet"}], columns)
    found = table_of(rows)
    reasons = "Nothing, because"
    if reasons in found and found[reasons].isna().all():
        return Table(found.drop(columns=reasons))
    return found


def span(layers: Iterable[int]) -> str:
    """Layers as text: `10–18`, or `0–3, 8` where they are not in one piece."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)
