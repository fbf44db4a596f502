"""Was anything learned? The gate of a study's cells, before its strategies are compared.

A study of several seeds has the whole gate of `hialign.statistics.gate`: Full ranks held-out pairs
better than chance, and better than with shuffled labels. A study of one run has no shuffled control,
so that its gate is the first half, over pairs alone.
"""

from hialign.records.frames import remembered
from hialign.report.replication.reading import (
    OWN,
    RULES,
    TOGETHER,
    Margins,
    evaluated,
    trained_alone,
)
from hialign.statistics.comparisons import UNSURE
from hialign.statistics.contrasts import NOTHING_LEARNED
from hialign.statistics.gate import Gate, gate
from hialign.study.blocks import OBJECTIVES
from hialign.study.study import Study

CONTROL = "full"


def gate_of(
    margins: Margins, group: str, objective: str | None = None, trained_on: str = TOGETHER
) -> Gate | None:
    """The gate of Full at the pairs of a group. None if it was not trained, or too little is there."""
    places = margins.places(group, objective)
    conversations = margins.conversations(places)
    if len(set(conversations)) < 2 or (trained_on, CONTROL, False) not in margins.values:
        return None
    full = margins.at(places, CONTROL, trained_on)
    shuffled = None
    if (trained_on, CONTROL, True) in margins.values:
        shuffled = margins.at(places, CONTROL, trained_on, shuffled=True)
    return gate(full, shuffled, conversations)


def gates(study: Study) -> dict[str, Gate]:
    """The gate of each model's cells on the study's own held-out pairs, by the models' labels.

    A model whose Full has not been evaluated has none.
    """
    return _gates(study.whole)


@remembered
def _gates(study: Study) -> dict[str, Gate]:
    found = {
        model.label: gate_of(evaluated(study, model, [CONTROL]), OWN) for model in study.models
    }
    return {label: one for label, one in found.items() if one is not None}


def nothing_learned(study: Study, label: str | None = None) -> bool:
    """Whether the gate failed for a model, or for all models that have one."""
    found = gates(study)
    if label is not None:
        return label in found and not found[label]["passed"]
    return bool(found) and not any(one["passed"] for one in found.values())


def gated(verdict: str | None, learned: bool) -> str | None:
    """The verdict on strategies by held-out pairs, of which nothing is said if nothing was learned."""
    return NOTHING_LEARNED if verdict and not learned else verdict


def unsure_gated(verdict: str | None, learned: bool) -> str | None:
    """The verdict on strategies by another outcome, such as a judge's scores.

    A difference that they show stands, even if no preference was learned.
    """
    return gated(verdict, learned) if verdict == UNSURE else verdict


def objectives_learned(study: Study, label: str) -> dict[str, bool]:
    """Which objectives passed their gate in the matrix probe of a model, trained on each alone."""
    (model,) = [one for one in study.models if one.label == label]
    margins = trained_alone(study.whole, model)
    found = {name: gate_of(margins, RULES, name, name) for name in OBJECTIVES}
    return {name: gate["passed"] for name, gate in found.items() if gate}
