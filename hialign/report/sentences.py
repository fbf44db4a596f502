"""Sentences on a study's results. None of them goes beyond what its tests say.

The tests are those of `hialign.statistics.comparisons`.
"""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from hialign.records import agreement, frames
from hialign.report import scores
from hialign.report.replication.gates import gates, nothing_learned
from hialign.statistics import comparisons as tests
from hialign.statistics.intervals import interval_text
from hialign.study.blocks import STRATEGIES, strategy_of
from hialign.study.study import Study


def overall_finding(study: Study) -> str:
    """What the comparisons table finds in the judge's Overall score, against Base and Full-DPO."""
    table = scores.compared(study).dropna(subset="p_holm")
    if table.empty:
        return "Too few strategies have been judged to compare them."
    margin, parts = f"{study.analysis.margin:g}", []
    phrases = {
        tests.BETTER: "{} above {}",
        tests.WORSE: "{} below {}",
        tests.WITHIN: "{} below {}, by less than the margin of " + margin,
        tests.NOT_INFERIOR: "{} not inferior to {} by the margin of " + margin,
    }
    for reference, rows in table.groupby("reference", sort=False):
        for verdict, phrase in phrases.items():
            verdicts = rows[rows.verdict == verdict].to_dict("records")
            names = [_with_interval(row) for row in verdicts]
            parts += [phrase.format(joined(names), strategy_of(str(reference)))] if names else []
    method = f"{len(table)} comparisons paired by prompt, Holm's correction over all of them"
    if not parts:
        nothing = "Nothing was learned here, as held-out pairs show. "
        return (nothing if nothing_learned(study) else "") + (
            "By the judge's Overall score, no difference between strategies is more than noise "
            f"({method})."
        )
    other = "" if set(table.verdict) <= {tests.NOT_INFERIOR, tests.UNSURE} else "other "
    return f"By the judge's Overall score ({method}): {'; '.join(parts)}. No {other}difference is found."


def tax_finding(study: Study) -> str:
    """Which strategies pay v1's alignment tax, which do not, and for which the scores cannot tell."""
    table = scores.taxed(study).dropna(subset="p_holm")
    if table.empty:
        return "The alignment tax has not been measured in this study."
    phrases = {
        tests.PAID: "an alignment tax is found for",
        tests.EXCLUDED: f"a tax of {study.analysis.margin:g} or more is ruled out for",
        tests.UNSURE: "the scores can tell neither for",
    }
    parts = []
    for verdict, phrase in phrases.items():
        names = [strategy_of(block) for block in table[table.verdict == verdict].block]
        parts += [f"{phrase} {joined(names)}"] if names else []
    return f"In this study {'; '.join(parts)}."


def judge_agreement_text(study: Study) -> str:
    """How often the judge sides with people on LLMBar, in a phrase, or empty."""
    return " and ".join(
        f"{share:.0%} of {n} {kind} pairs" + (f" ({low:.0%} to {high:.0%})" if low == low else "")
        for kind, (share, low, high, n) in agreement.sides(study).items()
    )


def reward_finding(study: Study, best: str | None, facts: dict[str, str]) -> str:
    """Which strategy's reward is right most often, and which ones the pairs cannot tell from it.

    Controls and other blocks of ours are no strategies of the paper, and are left out.
    """
    if best is None:
        return "No strategy of the paper has been evaluated in this study yet."
    if nothing_learned(study):
        (gate,) = gates(study).values() if len(gates(study)) == 1 else (None,)
        why = gate["reason"] if gate else "no model's Full ranks held-out pairs better than chance"
        return f"Nothing was learned here: {why}. So strategies are not compared on held-out pairs."
    tied: list[str] = []
    behind: list[str] = []
    for row in tests.all_pairs(_reward_hits(study)).to_dict("records"):
        if best == row["block"]:
            (behind if row["told"] == 1 else tied).append(row["reference"])
        elif best == row["reference"]:
            (behind if row["told"] == -1 else tied).append(row["block"])
    text = (
        f"On {facts['n_eval_pairs']} held-out pairs the implicit reward of {best} is right most "
        f"often: {facts['best_accuracy']} of the time."
    )
    if tied:
        text += f" On these pairs, {joined(tied)} cannot be distinguished from it"
        text += f"; {joined(behind)} did worse" if behind else ""
    elif behind:
        text += f" {joined(behind)} did worse"
    if tied or behind:
        text += " (tests paired by prompt, Holm's correction over all pairs of strategies)."
    return text


def _reward_hits(study: Study) -> pd.DataFrame:
    """Whether the paper's strategies rank each held-out pair right, as `all_pairs` takes it.

    Columns: model, prompt_id, block (the strategy), score: the mean over the prompt's pairs.
    """
    pairs = frames.pairs(study)
    pairs = pairs[pairs.block.isin(STRATEGIES)]
    own = pairs[["all" in groups for groups in pairs.groups]]
    means = own.groupby(["model", "prompt_id", "strategy"]).hit.mean()
    return means.rename("score").reset_index().rename(columns={"strategy": "block"})


def _with_interval(row: dict[Hashable, Any]) -> str:
    """`Mid-Align (+0.237; 0.101 to 0.373)`."""
    difference = f"{row['difference']:+.3f}".replace("-", "−")
    interval = interval_text(row["low"], row["high"]) or "no interval"
    return f"{strategy_of(row['block'])} ({difference}; {interval})"


def joined(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
