"""Which strategy gains more? The registered analysis of a study of preferences, over seeds and pairs.

The outcome is the gain: log 2 minus the cross-fitted log loss of a held-out pair, in nats. The contrasts
are Full minus each third, and Mid minus Local, Global and the random third. They are one family. The
margin of their verdicts is half of Full's gain. Accuracy and mean margin stand beside it and decide
nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hialign.records.frames import remembered
from hialign.report.replication import reading
from hialign.report.replication.gates import gate_of
from hialign.report.replication.reading import OWN, TOGETHER, Margins, Seeds
from hialign.report.replication.verdicts import (
    RANDOM_THIRD,
    Compared,
    OverSeeds,
    compared,
    over_seeds,
)
from hialign.statistics.crossed import Effect, mean_effect
from hialign.statistics.gate import Gate, hits_of
from hialign.statistics.leads import RANDOM, THIRDS, Lead, leads
from hialign.study.settings import ModelSettings
from hialign.study.study import Study

CONTRASTS = [("full", third) for third in THIRDS]
CONTRASTS += [("mid", other) for other in ("local", "global", RANDOM_THIRD)]


@dataclass(frozen=True)
class Beside:
    """What stands beside the contrast of two blocks and decides nothing."""

    accuracy: Effect  # difference in the share of pairs ranked right
    margin: Effect  # difference of mean margins, nats


@dataclass(frozen=True)
class Outcome:
    """What a block gained. `kl` is its divergence from base in nats per token."""

    gain: Effect
    accuracy: Effect
    margin: Effect
    kl: OverSeeds | None


@dataclass(frozen=True)
class Findings:
    """What the analysis finds for one model. The rule is None without all thirds and a random one."""

    seeds: Seeds
    gate: Gate | None
    contrasts: list[Compared]
    beside: dict[tuple[str, str], Beside]
    outcomes: dict[str, Outcome]
    rule: Lead | None


def findings(study: Study) -> dict[str, Findings]:
    """The analysis of each model whose cells were evaluated, by its label."""
    return _findings(study.whole)


@remembered
def _findings(study: Study) -> dict[str, Findings]:
    found = {}
    for model in study.models:
        if margins := reading.evaluated(study, model):
            found[model.label] = analyse(study, model, margins)
    return found


def analyse(study: Study, model: ModelSettings, margins: Margins) -> Findings:
    """The analysis of one model's `margins`."""
    places = margins.places(OWN)
    labels = margins.conversations(places)
    there = margins.blocks(TOGETHER)
    gains = {block: margins.gains(places, block, TOGETHER) for block in there}
    raw = {block: margins.at(places, block, TOGETHER) for block in there}
    pairs = [(a, b) for a, b in CONTRASTS if {a, b} <= set(there)]
    checked = gate_of(margins, OWN)
    learned = checked is None or checked["passed"]
    allowance = gains["full"] / 2 if "full" in gains else None
    differences = {(a, b): gains[a] - gains[b] for a, b in pairs}
    kl = reading.divergence_by_seed(study, model)
    return Findings(
        margins.seeds,
        checked,
        compared(differences, labels, TOGETHER, allowance, learned),
        {pair: _beside(raw, pair, labels) for pair in pairs},
        {
            block: Outcome(
                mean_effect(gains[block], labels),
                mean_effect(hits_of(raw[block]), labels),
                mean_effect(raw[block], labels),
                over_seeds(kl.get(block, [])),
            )
            for block in there
        },
        _rule(margins, gains, places),
    )


def _beside(raw: Mapping[str, np.ndarray], pair: tuple[str, str], labels: Sequence[str]) -> Beside:
    ours, theirs = (raw[block] for block in pair)
    return Beside(
        mean_effect(hits_of(ours) - hits_of(theirs), labels), mean_effect(ours - theirs, labels)
    )


def _rule(margins: Margins, gains: Mapping[str, np.ndarray], places: Sequence[int]) -> Lead | None:
    if not {*THIRDS, RANDOM_THIRD} <= set(gains):
        return None
    ours = {third: gains[third] for third in THIRDS} | {RANDOM: gains[RANDOM_THIRD]}
    control = None
    if all((TOGETHER, third, True) in margins.values for third in THIRDS):
        control = {t: margins.gains(places, t, TOGETHER, shuffled=True) for t in THIRDS}
    return leads(ours, control, margins.conversations(places))
