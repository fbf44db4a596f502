"""Does each third serve its objective? The analysis that studies/objectives.registered.md registers.

Everything starts from gains: log 2 minus the cross-fitted log loss of a held-out pair, in nats. The
advantage of an objective is its gain in its own third minus the mean of the two other thirds. The
interaction is the mean advantage of the objectives, prompt by prompt. Main effects of a third, and of
an objective, cancel out of it.

Where the registration leaves a choice open, it is made here and said:

- A prompt counts in an interaction if it has a pair of each objective that is left.
- The margin of the primary test is the mean of half of Full's gain, taken as a number, as the
  registration's table compares the interval with it. `p_within` counts its uncertainty as well.
- The gate of training on all objectives together is not registered. It can only withhold a verdict of
  the contrasts with Full, and is shown beside the three that are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hialign.records.frames import remembered
from hialign.report.replication import reading, training_gradients
from hialign.report.replication.gates import gate_of
from hialign.report.replication.reading import OWN, RULES, TOGETHER, Margins, Seeds
from hialign.report.replication.verdicts import (
    RANDOM_THIRD,
    Compared,
    Test,
    compared,
    judged,
    tested,
)
from hialign.statistics.comparisons import UNSURE
from hialign.statistics.crossed import Effect, mean_effect, mean_squares, p_above
from hialign.statistics.gate import Gate
from hialign.statistics.leads import RANDOM, THIRDS, Lead, leads
from hialign.study.blocks import EXPECTED, OBJECTIVES
from hialign.study.settings import ModelSettings
from hialign.study.study import Study

SUPPORTED, CONTRADICTED = "supported", "contradicted"
NO_EFFECT = "no effect that would matter"
NO_TEST = "not tested"
PEOPLE = {"grammar": "blimp", "factuality": "qa-feedback"}  # contrasts that people made


@dataclass(frozen=True)
class Findings:
    """What the registered analysis finds for one model.

    Attributes:
        seeds: of the blocks that were trained on one objective alone.
        seeds_together: of those trained on all together.
        gates: by objective, trained on it alone. `together` is that of all objectives.
        primary: None if fewer than two objectives passed their gate.
        conclusion: a key of the registration's table, or that there was no test.
        secondary: the tests of families 1, 2, 3 and 6.
        contrasts, rules: family 4, by objective. The rule needs a random third.
        full: family 5.
        gains: by the objective that was trained and tested, and block, the mean gain with its interval.
    """

    seeds: Seeds
    seeds_together: Seeds
    gates: dict[str, Gate]
    together: Gate | None
    primary: Test | None
    conclusion: str
    secondary: list[Test]
    contrasts: dict[str, list[Compared]]
    rules: dict[str, Lead]
    full: list[Compared]
    gains: dict[tuple[str, str], Effect]


def findings(study: Study) -> dict[str, Findings]:
    """The analysis of each model whose blocks were trained on the objectives, by its label."""
    return _findings(study.whole)


@remembered
def _findings(study: Study) -> dict[str, Findings]:
    found = {}
    for model in study.models:
        alone, together = reading.trained_alone(study, model), reading.evaluated(study, model)
        if complete(alone, OBJECTIVES):
            found[model.label] = analyse(study, model, alone, together)
    return found


def complete(margins: Margins, trained_on: Sequence[str]) -> bool:
    """Whether Full and all thirds are there for each of these training sets."""
    needed = {"full", *THIRDS}
    return bool(margins) and all(needed <= set(margins.blocks(name)) for name in trained_on)


def analyse(study: Study, model: ModelSettings, alone: Margins, together: Margins) -> Findings:
    """The registered analysis of one model.

    Args:
        study: with all of its seeds.
        model: one of its models.
        alone: margins of the blocks that were trained on one objective each.
        together: margins of those trained on all. Without them, families 2 and 5 are not tested.
    """
    has_together = complete(together, [TOGETHER])
    checked = {name: gate_of(alone, RULES, name, name) for name in OBJECTIVES}
    gates = {name: one for name, one in checked.items() if one is not None}
    learned = [name for name, one in gates.items() if one["passed"]]
    primary = None
    if len(learned) > 1:
        primary = primary_test(alone, learned)
    of_all = gate_of(together, OWN) if has_together else None
    secondary = _by_objective(alone, gates)
    if has_together and len(learned) > 1:
        secondary.append(_interaction(together, learned, OWN, TOGETHER, "2", "all three together"))
    secondary += _by_people(alone, gates)
    secondary += training_gradients.tests(study, model)
    contrasts, rules = {}, {}
    for name, one in gates.items():
        contrasts[name] = _contrasts(alone, name, one["passed"])
        if RANDOM_THIRD in alone.blocks(name):
            rules[name] = _rule(alone, name)
    return Findings(
        alone.seeds,
        together.seeds,
        gates,
        of_all,
        primary,
        conclusion(primary),
        secondary,
        contrasts,
        rules,
        _with_full(together, of_all) if has_together else [],
        _gains(alone),
    )


def conclusion(primary: Test | None) -> str:
    """The row of the registration's table: what the interval says, and what its margin adds."""
    if primary is None or primary["low"] is None or primary["high"] is None:
        return NO_TEST
    if primary["low"] > 0:
        return SUPPORTED
    if primary["high"] < 0:
        return CONTRADICTED
    below = primary["margin"] is not None and primary["high"] < primary["margin"]
    return NO_EFFECT if below else UNSURE


# --- advantages ----------------------------------------------------------------------------------


def advantage(
    margins: Margins, places: Sequence[int], objective: str, trained_on: str
) -> np.ndarray:
    """Gain in the objective's own third minus the mean of the two others, [seed, pair]."""
    own = EXPECTED[objective]
    gains = {third: margins.gains(places, third, trained_on) for third in THIRDS}
    others = [gains[third] for third in THIRDS if third != own]
    return np.asarray(gains[own] - np.mean(others, axis=0))


def by_prompt(
    margins: Margins, objectives: Sequence[str], group: str
) -> tuple[dict[str, list[int]], list[str]]:
    """For each objective the places of its pairs, prompt by prompt, and the prompts' conversations.

    Only prompts that have a pair of every objective count.
    """
    places = {
        name: {margins.pairs[i].prompt: i for i in margins.places(group, name)}
        for name in objectives
    }
    first = places[objectives[0]]
    shared = [prompt for prompt in first if all(prompt in of for of in places.values())]
    chosen = {name: [of[prompt] for prompt in shared] for name, of in places.items()}
    return chosen, margins.conversations(chosen[objectives[0]])


def interaction(
    margins: Margins, objectives: Sequence[str], group: str, trained_on: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """The mean advantage of the objectives, [seed, prompt], and the prompts' conversations.

    `trained_on` is the training set of all of them, or None if each is trained on its own.
    """
    places, conversations = by_prompt(margins, objectives, group)
    advantages = [advantage(margins, places[name], name, trained_on or name) for name in objectives]
    return np.mean(advantages, axis=0), conversations


def primary_test(alone: Margins, objectives: Sequence[str]) -> Test:
    """The interaction of these objectives, each trained on alone, beside half of Full's gain."""
    values, conversations = interaction(alone, objectives, RULES)
    places, _ = by_prompt(alone, objectives, RULES)
    full = [alone.gains(places[name], "full", name) for name in objectives]
    allowance = np.mean(full, axis=0) / 2
    found = tested("primary", ", ".join(objectives), values, conversations)
    below = float(p_above(mean_squares(allowance - values, conversations)))
    found |= {"margin": float(allowance.mean()), "p_holm": found["p"]}
    if not np.isnan(below):
        found["p_within"] = below
    found["verdict"] = conclusion(found)
    return found


def _interaction(
    margins: Margins, objectives: Sequence[str], group: str, trained_on: str, family: str, name: str
) -> Test:
    values, conversations = interaction(margins, objectives, group, trained_on)
    return judged([tested(family, name, values, conversations)])[0]


def _by_objective(alone: Margins, gates: Mapping[str, Gate]) -> list[Test]:
    """Family 1. Factuality on the built-in prompts alone stands below it and is no part of it."""
    tests = [_alone(alone, name, alone.places(RULES, name), "1", name) for name in gates]
    tests = judged(tests, [gates[name]["passed"] for name in gates])
    builtin = [i for i in alone.places(RULES, "factuality") if reading.is_builtin(alone.pairs[i])]
    whole = len(alone.places(RULES, "factuality"))
    if "factuality" in gates and 1 < len(builtin) < whole:
        name = "factuality, built-in prompts alone"
        one = _alone(alone, "factuality", builtin, "1", name)
        tests += judged([one], [gates["factuality"]["passed"]])
    return tests


def _by_people(alone: Margins, gates: Mapping[str, Gate]) -> list[Test]:
    """Family 3: contrasts that people made."""
    there = {name: alone.places(group) for name, group in PEOPLE.items() if name in gates}
    there = {name: places for name, places in there.items() if places}
    tests = [
        _alone(alone, name, places, "3", f"{name}, {PEOPLE[name]}")
        for name, places in there.items()
    ]
    return judged(tests, [gates[name]["passed"] for name in there])


def _alone(alone: Margins, objective: str, places: Sequence[int], family: str, name: str) -> Test:
    values = advantage(alone, places, objective, objective)
    return tested(family, name, values, alone.conversations(places))


# --- contrasts of blocks -------------------------------------------------------------------------


def _contrasts(alone: Margins, objective: str, learned: bool) -> list[Compared]:
    """Family 4: the thirds against each other, and each against the random third."""
    places = alone.places(RULES, objective)
    local, mid, last = THIRDS
    pairs = [(local, mid), (local, last), (mid, last)]
    pairs += [(third, RANDOM_THIRD) for third in THIRDS]
    there = {*alone.blocks(objective)}
    gains = {b: alone.gains(places, b, objective) for b in (*THIRDS, RANDOM_THIRD) if b in there}
    differences = {(a, b): gains[a] - gains[b] for a, b in pairs if {a, b} <= there}
    return compared(differences, alone.conversations(places), objective, learned=learned)


def _rule(alone: Margins, objective: str) -> Lead:
    places = alone.places(RULES, objective)
    ours = {third: alone.gains(places, third, objective) for third in THIRDS}
    ours[RANDOM] = alone.gains(places, RANDOM_THIRD, objective)
    control = None
    if all((objective, third, True) in alone.values for third in THIRDS):
        control = {t: alone.gains(places, t, objective, shuffled=True) for t in THIRDS}
    return leads(ours, control, alone.conversations(places))


def _with_full(together: Margins, of_all: Gate | None) -> list[Compared]:
    """Family 5: Full minus each third, trained on all objectives and tested on all of them."""
    places = together.places(OWN)
    full = together.gains(places, "full", TOGETHER)
    differences = {
        ("full", third): full - together.gains(places, third, TOGETHER) for third in THIRDS
    }
    learned = of_all is None or of_all["passed"]
    return compared(differences, together.conversations(places), TOGETHER, full / 2, learned)


def _gains(alone: Margins) -> dict[tuple[str, str], Effect]:
    """The mean gain of each block on the objective that it was trained on alone."""
    return {
        (name, block): mean_effect(alone.gains(places, block, name), alone.conversations(places))
        for name in OBJECTIVES
        if (places := alone.places(RULES, name))
        for block in alone.blocks(name)
    }
