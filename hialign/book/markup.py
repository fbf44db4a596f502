"""Text and HTML from outside, as a page may hold them."""

import re

import pandas as pd

from hialign.report.display import Table

MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation, which a backslash makes plain text


def raw(html: str) -> str:
    """`html` for a MyST page, in a fence that nothing in it can close."""
    longest = max((len(run) for run in re.findall(r"`+", html)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{{raw}} html\n{html}\n{fence}\n"


def plain(text: str) -> str:
    """`text` from outside as Markdown that means just that text."""
    return MARKUP.sub(lambda m: "\\" + m[0], " ".join(text.split()))


def output(html: str) -> str:
    """`html` within the classes by which the theme knows a notebook's output."""
    classes = "docutils container"
    inner = f'<div class="cell_output {classes}">{html}</div>'
    return raw(f'<div class="cell {classes}">{inner}</div>')


def table(frame: pd.DataFrame) -> str:
    return output(Table(frame)._repr_html_())
