"""Prompts, responses and pairs as a notebook shows them: as text, whatever they hold.

What a model, a judge or a data set wrote is untrusted. Its markup is escaped, and a long text is
cut.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from IPython.display import HTML

from hialign.preferences.formats import transcript
from hialign.records import frames
from hialign.report.display import Table, table_of
from hialign.report.exploration import GRID, TEXT
from hialign.study.study import Cell

LONGEST = 700  # characters of a text that is shown
ALIKE = 0.7  # share of words and spaces that two responses have in common, to mark the others
MARKED = "background: rgba(213, 94, 0, 0.25); border-bottom: 2px solid currentColor"
SCROLLING = (
    f'tabindex="0" role="region" aria-label="text" style="{TEXT}; max-height: 24rem; '
    'overflow: auto; border: 1px solid rgba(128, 128, 128, 0.5)"'
)


def text(content: str) -> HTML:
    """A text as it is, special tokens and line breaks included. A long one scrolls."""
    return html(f"<div {SCROLLING}>{escape(content)}</div>")


def pair(row: Mapping[str, Any]) -> HTML:
    """The prompt of a preference pair, and its two responses side by side. If these share most of
    their words, the others are marked."""
    prompt = escape(_end(transcript(row["prompt"])))
    chosen, rejected = _marked(*(_cut(transcript(row[side])) for side in ("chosen", "rejected")))
    cards = _cards({"Chosen": chosen, "Rejected": rejected})
    return html(f'<b>Prompt</b><div style="{TEXT}">{prompt}</div>{cards}')


def prompts(rows: Sequence[Mapping[str, Any]], most: int = 3) -> Table:
    """The first prompts of a study."""
    table = table_of([{"Prompt": _end(transcript(row["prompt"]), 200)} for row in rows[:most]])
    table.attrs["caption"] = f"The first {len(table)} of {len(rows)} prompts"
    return table


def answers(cell: Cell, most: int = 2) -> HTML:
    """What every strategy that has responded answered to the first prompts, side by side."""
    blocks = dict.fromkeys(("base", *cell.study.blocks, cell.block))
    cells = [Cell(cell.study, cell.model, block) for block in blocks]
    responses = {c.strategy: frames.responses_of(c)[:most] for c in cells}
    parts = []
    for place, row in enumerate(responses[cell.strategy]):
        cards = {
            strategy: escape(_cut(rows[place]["response"])) or "<i>an empty response</i>"
            for strategy, rows in responses.items()
            if len(rows) > place and rows[place]["prompt_id"] == row["prompt_id"]
        }
        parts.append(f'<div style="{TEXT}"><b>{escape(_end(row["prompt"]))}</b></div>')
        parts.append(_cards(cards))
    return html("".join(parts))


def _cut(content: str, most: int = LONGEST) -> str:
    return content if len(content) <= most else f"{content[:most].rstrip()} …"


def _end(prompt: str, most: int = LONGEST) -> str:
    """The end of a prompt: a long conversation ends with what is to be answered."""
    return prompt if len(prompt) <= most else f"… {prompt[-most:].lstrip()}"


def _cards(texts: Mapping[str, str]) -> str:
    """Titled texts side by side. The texts are HTML."""
    cards = (
        f'<section><b>{escape(title)}</b><div style="{TEXT}">{content}</div></section>'
        for title, content in texts.items()
    )
    return f'<div style="{GRID}; margin: 0.5rem 0 1rem">{"".join(cards)}</div>'


def _marked(first: str, second: str) -> tuple[str, str]:
    """Two texts as HTML. If they are much alike, the words that they do not share are marked."""
    words = [re.findall(r"\S+|\s+", content) for content in (first, second)]
    matcher = difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    if matcher.ratio() < ALIKE:
        return escape(first), escape(second)
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, *ends in matcher.get_opcodes():
        for side, (start, end) in enumerate((ends[:2], ends[2:])):
            run = escape("".join(words[side][start:end]))
            marked = f'<span style="{MARKED}">{run}</span>' if run.strip() else run
            parts[side].append(run if tag == "equal" else marked)
    return "".join(parts[0]), "".join(parts[1])


def html(content: str) -> HTML:
    """Markup of ours, as a notebook shows it."""
    # The classes keep MathJax away from dollar signs in what a model wrote.
    return HTML(f'<div class="hialign mathjax_ignore tex2jax_ignore">{content}</div>')
