"""Was anything learned? The gate of a study's cells, before its strategies are compared.

A study of several seeds has the whole gate of `hialign.statistics.gate`: Full ranks held-out pairs
better than chance, and better than with shuffled labels. A study of one run has no shuffled control,
so that its gate is the first half, over pairs alone.
"""

from collections.abc import Mapping
from typing import Any

from hialign.records.frames import remembered
from hialign.report.replication.reading import OWN, TOGETHER, Margins, evaluated
from hialign.statistics.comparisons import UNSURE
from hialign.statistics.contrasts import NOTHING_LEARNED
from hialign.statistics.gate import Gate, gate
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


def gated(study: Study, row: Mapping[Any, Any], label: str | None = None) -> Any:
    """The verdict of a comparison of strategies, which cannot be made where nothing was learned."""
    unsure = row.get("verdict") == UNSURE
    return NOTHING_LEARNED if unsure and nothing_learned(study, label) else row.get("verdict")
