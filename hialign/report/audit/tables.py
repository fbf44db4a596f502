"""What the paper's tables imply together, and how sure that is.

Everything is computed from `book/paper.yml`, on each call. A `Side` is one of the means that can be
compared: of some models under one block's strategy. `hialign.report.audit.statements` sets the text
beside them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm

from hialign.report import paper, plots
from hialign.report.display import Table, short_name, table_of
from hialign.statistics.comparisons import holm
from hialign.statistics.intervals import interval_text
from hialign.study.blocks import STRATEGIES, split_layers, strategy_of
from hialign.study.errors import HialignError

Side = tuple[str, str]  # models, block
ALL, LLAMA = "all four", "the two Llama"  # the models of a side, if not a model's name
ANCHOR: Side = ("", "anchor")  # the judge's fixed example, 3 by decree
ROUNDING = 0.0005  # of a number printed with three decimals, at most
THIRDS = ("local", "mid", "global")
Z = 1.959964  # of a normal 95% interval
DEPTHS = range(3, 201)  # that Appendix A's rule is tried on
AGREES, UNSETTLED, DISAGREES = "agrees", "not settled", "disagrees"


@dataclass(frozen=True)
class Mean:
    """A mean Overall score over `n` responses. `rounding` is the most that printing took off it."""

    mean: float
    std: float
    n: float
    rounding: float = ROUNDING

    @property
    def error(self) -> float:
        """Its standard error, the responses being independent."""
        return self.std / math.sqrt(self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval, from sampling."""
        return self.mean - Z * self.error, self.mean + Z * self.error


def means() -> dict[Side, Mean]:
    """Every mean that Tables 2 and 3 give or imply, by models and block, and the anchor.

    Table 2 has the mean over all models, and Table 3 lists some of them. Together they imply the
    mean of the models that Table 3 leaves out. Only Table 2 has standard deviations, so each stands
    in for the others of its strategy. HialignError if Table 3 has a model under some strategies only.
    """
    content = paper.load_paper()
    prompts, models = content["table_3"]["n"], [m["name"] for m in content["models"]]
    listed: dict[str, dict[str, float]] = {}
    for row in content["table_3"]["rows"]:
        listed.setdefault(row["model"], {})[row["block"]] = row["mean"]
    rest = len(models) - len(listed)
    by_side = {ANCHOR: Mean(content["design"]["judge_anchor"]["value"], 0.0, math.inf, 0.0)}
    for row in content["table_2"]["rows"]:
        block, std = row["block"], row["std"]
        absent = [name for name in listed if block not in listed[name]]
        if absent or not rest:
            raise HialignError(
                f"book/paper.yml: table_3 must have all strategies of some of the models and none "
                f"of the others; it lacks {absent or 'no model'} under {row['strategy']}"
            )
        by_side[ALL, block] = Mean(row["mean"], std, content["table_2"]["n"])
        for name in listed:
            by_side[name, block] = Mean(listed[name][block], std, prompts)
        left = len(models) * row["mean"] - sum(by_block[block] for by_block in listed.values())
        off = ROUNDING * (len(models) + len(listed)) / rest
        by_side[LLAMA, block] = Mean(round(left / rest, 9), std, prompts * rest, off)
    return by_side


def listed_models(by_side: dict[Side, Mean]) -> list[str]:
    """The models of Table 3."""
    return list(dict.fromkeys(m for m, _ in by_side if m not in (ALL, LLAMA, ANCHOR[0])))


def compare(pairs: Sequence[tuple[Side, Side]], correlation: float = 0.0) -> pd.DataFrame:
    """The difference of two means, one row per pair, tested as normal.

    Args:
        pairs: the two sides of each difference.
        correlation: that of two scores of the same prompt. 0 is the unpaired test.

    Returns:
        The columns upper and lower (sides), difference, standard_error, z, p (two-sided), p_holm
        (over all pairs), low and high (95%), d (Cohen's, over the root of the mean variance), and
        needed: the correlation at which |z| is 1.96. It is NaN against the anchor, which is no score.
    """
    by_side, rows = means(), []
    for upper, lower in pairs:
        a, b = by_side[upper], by_side[lower]
        difference, shared = round(a.mean - b.mean, 9), 2 * a.error * b.error
        unpaired = math.hypot(a.error, b.error)
        error = math.sqrt(unpaired**2 - correlation * shared)
        spread = math.hypot(a.std, b.std) / math.sqrt(2) if shared else a.std + b.std
        needed = (unpaired**2 - (difference / Z) ** 2) / shared if shared else math.nan
        rows.append((upper, lower, difference, error, difference / spread, needed))
    columns = ["upper", "lower", "difference", "standard_error", "d", "needed"]
    frame = pd.DataFrame(rows, columns=columns)
    z, half = frame.difference / frame.standard_error, Z * frame.standard_error
    frame = frame.assign(z=z, p=2 * norm.sf(z.abs()))
    frame = frame.assign(low=frame.difference - half, high=frame.difference + half)
    return frame.assign(p_holm=holm(frame.p.to_list()))


def within() -> dict[str, float]:
    """By block, the standard deviation of scores around the mean of their own model.

    It is what is left of Table 2's variance once the variance between the models' means is taken
    out. The Llama models count as one.
    """
    by_side = means()
    return {
        block: math.sqrt(by_side[ALL, block].std ** 2 - _between(block, by_side))
        for block in STRATEGIES
    }


def _between(block: str, by_side: dict[Side, Mean]) -> float:
    """The variance of the models' means around the mean of all, with the Llama models as one."""
    overall = by_side[ALL, block]
    parts = [by_side[models, block] for models in (*listed_models(by_side), LLAMA)]
    return sum(part.n * (part.mean - overall.mean) ** 2 for part in parts) / overall.n


# --- what Tables 2 and 3 imply together ----------------------------------------------------------


def llama() -> Table:
    """The Llama models' mean by strategy, one column per step, and how uncertain it is.

    The uncertainty is from rounding and sampling. The last column holds for each Llama model by
    itself: none is above Table 3's last place, and the scale starts at 1.
    """
    by_side = means()
    names = listed_models(by_side)
    total = len(paper.load_paper()["models"])
    rest, last = total - len(names), min(row["mean"] for row in paper.rows("table_3"))
    rows = []
    for block in STRATEGIES:
        implied, left = by_side[LLAMA, block], total * by_side[ALL, block].mean
        row: dict[str, Any] = {"Strategy": strategy_of(block)}
        row |= {"Table 2": by_side[ALL, block].mean, f"{total} × Table 2": left}
        for name in names:
            left -= by_side[name, block].mean
            row[f"less {name}"] = left
        row[f"over {rest}: Llama mean"] = implied.mean
        row["Rounding, ±"] = implied.rounding
        row["95% interval"] = interval_text(*implied.interval)
        lowest = max(1.0, rest * implied.mean - (rest - 1) * last)
        rows.append(row | {"Each Llama model": interval_text(lowest, last)})
    return table_of(rows)


def gains() -> Table:
    """What each trained strategy adds to Base, by models, and the Llama models' share in it."""
    by_side = means()
    names = listed_models(by_side)
    total, rows = len(paper.load_paper()["models"]), []
    for block in (b for b in STRATEGIES if b != "base"):
        gain = {
            models: by_side[models, block].mean - by_side[models, "base"].mean
            for models in (ALL, *names, LLAMA)
        }
        share = (total - len(names)) * gain[LLAMA] / (total * gain[ALL])
        row = {"Strategy": strategy_of(block)} | {_models(m): value for m, value in gain.items()}
        rows.append(row | {"Llama share (%)": 100 * share})
    return table_of(rows)


def points() -> pd.DataFrame:
    """What the figure shows: models, strategy, block, mean, standard_error, low, high."""
    by_side = means()
    rows = [
        (models, strategy, block, mean.mean, mean.error, *mean.interval)
        for models in (*listed_models(by_side), LLAMA)
        for block, strategy in STRATEGIES.items()
        for mean in [by_side[models, block]]
    ]
    columns = ["models", "strategy", "block", "mean", "standard_error", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def by_models() -> Figure:
    """The strategies' means on each of Table 3's models, and on the Llama models as implied."""
    values = points()
    names = list(dict.fromkeys(values.models))
    figure, axes = plots.canvas(plots.WIDEST, 3.9, (1, len(names)), sharey=True)
    for panel, name in zip(axes, names, strict=True):
        for x, row in enumerate(values[values.models == name].itertuples()):
            colour = plots.PALETTE[str(row.block)]
            panel.plot([x, x], [row.low, row.high], color=colour, linewidth=4.5, alpha=0.5)
            marker = plots.MARKERS[x % len(plots.MARKERS)]
            look: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white"}
            panel.plot(x, row.mean, marker=marker, color=colour, **look)
            plots.write(panel, x, float(row.high) + 0.045, f"{row.mean:.3f}", fontsize=8)
        panel.axhline(plots.ANCHOR, color="#555555", linestyle="--", linewidth=1, zorder=1)
        labels = [short_name(strategy) for strategy in STRATEGIES.values()]
        panel.set_xticks(range(len(labels)), labels, fontsize=9)
        panel.tick_params(axis="x", length=0)
        panel.set(xlim=(-0.6, len(labels) - 0.4))
        panel.grid(axis="y")
        place = "Tables 2 and 3 together" if name == LLAMA else "Table 3"
        panel.set_title(f"{_models(name)}\n{place}", loc="left")
    axes[0].set(ylabel="mean Overall score (1–5)")
    note = "lines: 95% intervals from sampling, unpaired; dashed: the judge's anchor, 3"
    figure.supxlabel(note, fontsize=8.5)
    return figure


def _models(name: str) -> str:
    return {ALL: "all four models", LLAMA: "the two Llama models"}.get(name, name)


# --- checks that assume nothing ------------------------------------------------------------------


def checks() -> Table:
    """What must hold between printed numbers, whatever was measured, and whether it does."""
    content, by_side = paper.load_paper(), means()
    overall, third = content["table_2"]["rows"], content["table_3"]["rows"]
    prompts, models = content["design"]["evaluation_prompts"]["value"], content["models"]
    due = prompts * len(models)
    printed = [row["mean"] for row in third]
    tenth, best = min(printed), max(by_side[LLAMA, b].mean for b in STRATEGIES)
    depths = [row["layers"] for row in content["table_4"]["rows"]]
    split = [_even(row["layers"]) == [row[b] for b in THIRDS] for row in content["table_4"]["rows"]]
    medians = [row["median"] for row in overall]
    middle = [
        2 * m == int(2 * m) and (1 + m) / 2 <= r["mean"] <= (m + 5) / 2
        for m, r in zip(medians, overall, strict=True)
    ]
    spreads = [(row["std"], *_possible_std(row["block"], by_side)) for row in overall]
    least, most = max(s[1] for s in spreads), min(s[2] for s in spreads)
    dimensions = len(content["table_6"]["dimensions"])
    rows = [
        ("Table 2: the counts", _span([r["count"] for r in overall], ",.0f"),
         f"{len(models)} models × {prompts:,} prompts = {due:,}",
         all(r["count"] == due for r in overall)),
        ("Table 2: the medians", _span(medians, ".3f"),
         "whole or half, as scores are whole; the mean no farther off than half the scale allows",
         all(middle)),
        ("Table 2: the standard deviations", _span([s[0] for s in spreads], ".3f"),
         f"at least {least:.3f}, which the models' means need; at most {most:.3f}, which the scale "
         "allows", all(low <= std <= high for std, low, high in spreads)),
        ("Table 3: the ranks", f"{third[0]['rank']} to {third[-1]['rank']}",
         f"the order of the means, {printed[0]:.3f} down to {printed[-1]:.3f}",
         [r["rank"] for r in third] == list(range(1, len(third) + 1))
         and printed == sorted(printed, reverse=True)),
        ("Tables 2 and 3: no Llama model in Table 3", f"last place {tenth:.3f}",
         f"at least each Llama mean; the highest is {best:.3f}", best <= tenth),
        ("Table 4: the blocks", f"{3 * len(depths)} blocks of {len(depths)} models",
         "numpy.array_split of the layers in three", all(split)),
        ("Appendix A: the rule for any depth", "the first blocks get the remainder",
         f"numpy.array_split, depths {DEPTHS[0]} to {DEPTHS[-1]}", all(_rule(n) == _even(n) for n in DEPTHS)),
        ("Table 6: the dimensions", f"{dimensions}",
         f"{content['design']['judge_dimensions']['value']} (§4.1)",
         dimensions == content["design"]["judge_dimensions"]["value"]),
    ]  # fmt: skip
    verdicts = [(*row, AGREES if holds else DISAGREES) for *row, holds in rows]
    return Table(verdicts, columns=["Check", "Printed", "Has to be", "Verdict"])


def _even(layers: int) -> list[list[int]]:
    return [[int(part[0]), int(part[-1])] for part in np.array_split(np.arange(layers), 3)]


def _rule(layers: int) -> list[list[int]]:
    """First and last layer of each third by Appendix A, which `split_layers` follows."""
    blocks = split_layers(layers)
    return [[blocks[b][0], blocks[b][-1]] for b in THIRDS]


def _possible_std(block: str, by_side: dict[Side, Mean]) -> tuple[float, float]:
    """The least and the largest std of all responses that the means and a scale of 1 to 5 allow."""
    mean = by_side[ALL, block].mean
    return math.sqrt(_between(block, by_side)), math.sqrt((5 - mean) * (mean - 1))


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return f"{low} in all {len(values)} rows" if low == high else f"{low} to {high}"
