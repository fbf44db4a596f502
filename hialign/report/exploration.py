"""An exploration for a reader: answers side by side, log-probabilities, and where answers part.

What models wrote is untrusted, so all of it is escaped. The colours are Okabe and Ito's blue and
orange, transparent over the page's background, so that text keeps the page's own colour. The line
under a token tells the sign of its number too.
"""

import itertools
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hialign.records.explorations import Exploration, Explorations
from hialign.report import plots
from hialign.report.display import Table, show, table_of
from hialign.study.blocks import strategy_of
from hialign.study.errors import HialignError
from hialign.study.study import Study

MORE, LESS = "0, 114, 178", "213, 94, 0"  # RGB: more probable than under Base, less probable
STRONGEST = 0.55  # opacity of the largest difference; text on it stays legible in light and dark
VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "": "(part of a character)"}
GRID = "display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.8rem"
# Its own line height and alignment, since a reader's page may set others
TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; line-height: 1.5"
NO_NUMBERS = "Stored responses come without log-probabilities: these need the model."


def asked(explorer: Explorations) -> Table:
    """The questions that need no model, and what is kept of each."""
    whole = explorer.kept()
    rows = [(question, "answers and log-probabilities") for question in whole]
    rows += [(question, "answers") for question in explorer.stored() if question not in whole]
    return Table(rows, columns=["Question", "Kept"])


def answers(exploration: Exploration) -> HTML:
    """The answers in columns. The beginning that an answer shares with Base's is dimmed."""
    base = exploration.answers.get("base")
    cards = []
    for block, answer in exploration.answers.items():
        alike = 0
        if base and answer is not base:
            couples = zip(base.ids, answer.ids, strict=False)
            alike = sum(1 for _ in itertools.takewhile(lambda ids: ids[0] == ids[1], couples))
        joined = "".join(answer.pieces[:alike]).lstrip()
        begin = joined if alike < len(answer.ids) and answer.text.startswith(joined) else ""
        text = escape(answer.text[len(begin) :])
        if begin:
            text = f'<span style="opacity: 0.6">{escape(begin)}</span>{text}'
        length = f"{len(answer.ids)} tokens" if answer.ids else ""
        cut = "cut at the limit" if answer.finish_reason == "length" else ""
        same_all = "the same as Base" if alike and alike == len(answer.ids) else ""
        facts = ", ".join(fact for fact in (length, cut, same_all) if fact)
        cards.append(
            f'<section style="{_bar(exploration, block)}">'
            f"<b>{escape(strategy_of(block))}</b> "
            f'<span style="opacity: 0.75; font-size: 0.85em">{facts}</span>'
            f'<div style="{TEXT}">{text}</div></section>'
        )
    question = escape(exploration.question)
    head = f'<p style="{TEXT}"><b>{question}</b></p><p>{escape(exploration.note)}</p>'
    return _html(f'{head}<div style="{GRID}">{"".join(cards)}</div>')


def matrix(exploration: Exploration, minus_base: bool = False) -> Table:
    """The log-probability (nats) of each answer under every strategy, or its difference from Base.

    There is one row per answer, and one column per strategy whose probabilities these are. The end
    of the answer counts as a token.
    """
    rows = []
    for of, answer in exploration.answers.items():
        row: dict[str, Any] = {"Answer of": strategy_of(of), "Tokens": len(answer.ids) or None}
        for block, values in exploration.log_probs.items():
            base = sum(exploration.log_probs["base"][of]) if minus_base else 0.0
            if not (minus_base and block == "base"):
                row[f"under {strategy_of(block)}"] = round(sum(values[of]) - base, 3)
        rows.append(row)
    table = table_of(rows)
    what = "minus its log-probability under Base" if minus_base else "with the token that ends it"
    caption = f"Log-probability of each answer (nats, {what})"
    table.attrs["caption"] = caption if exploration.log_probs else NO_NUMBERS
    return table


def differences(exploration: Exploration, answer: str) -> pd.DataFrame:
    """One answer (by its block), one row per token: its log-probability minus Base's (nats).

    Columns: `position` (from 1), `token`, and each block but Base.
    """
    if answer not in exploration.answers:
        names = ", ".join(exploration.answers)
        raise HialignError(f"there is no answer of {answer!r}: there are those of {names}")
    pieces = exploration.answers[answer].pieces
    frame = pd.DataFrame({"position": range(1, len(pieces) + 1), "token": pieces})
    for block, values in exploration.log_probs.items():
        if block != "base":
            base = pd.Series(exploration.log_probs["base"][answer])
            frame[block] = pd.Series(values[answer]) - base
    return frame


def tokens(exploration: Exploration, answer: str) -> HTML:
    """One answer under each strategy, its tokens coloured by their log-probability minus Base's.

    The number of a token is its tooltip. All numbers are in a table that opens.
    """
    frame = differences(exploration, answer)
    blocks = list(frame.columns[2:])
    if not blocks:
        return _html(f"<p>{NO_NUMBERS}</p>")
    largest = max(float(frame[blocks].abs().max().max()), 1e-9)
    parts = []
    for block in blocks:
        pairs = zip(frame["token"], frame[block], strict=True)
        spans = "".join(_span(token, float(value), largest) for token, value in pairs)
        parts.append(
            f'<section style="{_bar(exploration, block)}">'
            f"<b>{escape(strategy_of(block))}</b>, together {_signed(float(frame[block].sum()))} nats"
            f'<div style="{TEXT}; line-height: 1.9">{spans}</div></section>'
        )
    ends = [_span(f" {_signed(sign * largest)} ", sign * largest, largest) for sign in (-1, 1)]
    head = (
        f"<p>The answer of <b>{escape(strategy_of(answer))}</b>. Each token: its log-probability "
        f"under the strategy minus that under Base, in nats, from {ends[0]} (less probable than under "
        f"Base, dashed) to {ends[1]} (more probable, solid).</p>"
    )
    titles = {"position": "Position", "token": "Token"} | {b: strategy_of(b) for b in blocks}
    frame["token"] = [visible(token) for token in frame["token"]]
    numbers = show(Table(frame.rename(columns=titles))).to_html()
    scroll = "overflow: auto; max-height: 30rem"
    details = f'<details><summary>Numbers</summary><div style="{scroll}">{numbers}</div></details>'
    return _html(f'{head}<div style="{GRID}">{"".join(parts)}</div>{details}')


def plot(exploration: Exploration, answer: str, study: Study) -> Figure:
    """The log-probability of one answer minus Base's, by token, and its sum so far (nats)."""
    frame = differences(exploration, answer)
    blocks = list(frame.columns[2:])
    if not blocks:
        return plots.nothing("log-probabilities of this question")
    figure, axes = plots.canvas(plots.WIDEST, 4.6, (2, 1), sharex=True)
    for i, block in enumerate(blocks):
        look: dict[str, Any] = {"color": plots.colour_of(study, block), "linewidth": 1.4}
        look["linestyle"] = plots.LINES[i % len(plots.LINES)]
        axes[0].plot(frame["position"], frame[block], **look)
        axes[1].plot(frame["position"], frame[block].cumsum(), **look)
    for panel, title in zip(axes, ("of each token", "sum so far"), strict=True):
        panel.axhline(0, color=plots.PALETTE["base"], linewidth=1, zorder=1)
        panel.set_ylabel("minus Base (nats)")
        panel.set_title(f"Log-probability {title}", loc="left")
        panel.grid(axis="y")
    axes[1].set_xlabel(f"token of the answer of {plots.plain(strategy_of(answer))}")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    plots.legend(figure, study, blocks, "", curves=True)
    return figure


def partings(exploration: Exploration) -> Table:
    """Where each answer first parts from Base's, and the token with which either goes on."""
    titles = ["Strategy", "Tokens alike", "Base goes on with", "The strategy with"]
    rows = [
        (
            strategy_of(parting.blocks[1]),
            parting.alike,
            *(_next(exploration, block, parting.alike) for block in parting.blocks),
        )
        for parting in exploration.partings
        if parting.blocks[0] == "base"
    ]
    table = Table(rows, columns=titles)
    without = NO_NUMBERS if not exploration.log_probs else "Answers that are not here do not part."
    table.attrs["caption"] = f"The first token at which an answer parts from Base's. {without}"
    return table


def parting(exploration: Exploration, first: str, second: str) -> HTML:
    """The first token at which two strategies' answers part, and the likeliest tokens there."""
    for block in (first, second):
        differences(exploration, block)  # refuses what has no answer
    names = escape(strategy_of(first)), escape(strategy_of(second))
    couples = {frozenset(parting.blocks): parting for parting in exploration.partings}
    here = couples.get(frozenset((first, second)))
    if here is None:
        same = f"are not compared: {NO_NUMBERS}"
        same = "have the same answer" if exploration.log_probs else same
        return _html(f"<p>{names[0]} and {names[1]} {same}</p>")
    rows = []
    for candidate in here.candidates:
        row: dict[str, Any] = {"Token": visible(candidate.text)}
        for block in (first, second):
            share = candidate.probabilities[here.blocks.index(block)]
            row[f"under {strategy_of(block)}"] = share
        rows.append(row)
    before = "".join(exploration.answers[first].pieces[: here.alike])
    goes = [escape(_next(exploration, block, here.alike)) for block in (first, second)]
    return _html(
        f"<p>{names[0]} and {names[1]} answer alike for {here.alike} tokens:</p>"
        f'<blockquote style="{TEXT}">{escape(before) or "(nothing)"}</blockquote>'
        f"<p>then {names[0]} goes on with <code>{goes[0]}</code> and {names[1]} with "
        f"<code>{goes[1]}</code>. The likeliest tokens there, by their probability:</p>"
        f'<div style="overflow-x: auto">{show(table_of(rows)).to_html()}</div>'
    )


def visible(token: str) -> str:
    """A token whose white space at either end is made visible."""
    if not token.strip():
        return VISIBLE.get(token) or "".join(VISIBLE.get(c, c) for c in token)
    start, end = len(token) - len(token.lstrip()), len(token.rstrip())
    marks = ["".join(VISIBLE.get(c, c) for c in part) for part in (token[:start], token[end:])]
    return f"{marks[0]}{token[start:end]}{marks[1]}"


def _next(exploration: Exploration, block: str, at: int) -> str:
    return visible(exploration.answers[block].pieces[at])


def _span(token: str, value: float, largest: float) -> str:
    """A token on its colour. A line under it, solid or dashed, tells the sign once more."""
    share = min(abs(value) / largest, 1.0)
    look = f"background: rgba({MORE if value > 0 else LESS}, {STRONGEST * share:.2f})"
    if share > 0.15:
        look += f"; border-bottom: 2px {'solid' if value > 0 else 'dashed'} currentColor"
    shown = escape(token).replace("\n", "↵\n") if token else "▯"
    title = escape(f"{visible(token)}  {_signed(value)} nats", quote=True)
    return f'<span style="{look}; border-radius: 2px" title="{title}">{shown}</span>'


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _bar(exploration: Exploration, block: str) -> str:
    """The look of a strategy's column: its colour above, with an edge that shows on dark pages."""
    named = [b for b in exploration.answers if b not in plots.PALETTE]
    colour = plots.PALETTE.get(block) or plots.MORE[named.index(block) % len(plots.MORE)]
    edge = "box-shadow: 0 -1px 0 rgba(160, 160, 160, 0.8)"
    return f"border-top: 4px solid {colour}; {edge}; padding: 0.3rem 0.2rem"


def _html(content: str) -> HTML:
    return HTML(f'<div class="hialign">{content}</div>')
