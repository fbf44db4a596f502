"""Secondary test 6 of `objectives`: where the label-seeing gradients of each objective are.

It reads `signal.thirds` of the gradient probe's record of each seed. A row there has the `source` (an
objective), the `block` and the `share` of that third in the unbiased squared norm of the mean
gradient, which is None where permuted labels give as much. The registration wants the training pairs
of each seed. A record of other pairs is not read.
"""

from typing import Any

import numpy as np

from hialign.records import files
from hialign.records.status import probe_state
from hialign.report.replication.verdicts import Test, judged, over_seeds
from hialign.statistics.comparisons import UNSURE
from hialign.study import paths
from hialign.study.blocks import EXPECTED, OBJECTIVES
from hialign.study.settings import ModelSettings
from hialign.study.study import Study

PAIRS = "training"  # what `signal.pairs` has to say


def shares(study: Study, model: ModelSettings) -> list[dict[str, dict[str, float]]]:
    """For each real seed with a record, the share of each third by objective."""
    found = []
    for one in study.whole.single_runs():
        if one.preferences.shuffled or not probe_state(one, model, "gradients").trusted:
            continue
        place = paths.probe_record(one.name, model.name, "gradients", one.seed)
        signal: dict[str, Any] = files.read_record(place).get("signal", {})
        if signal.get("pairs") != PAIRS:
            continue
        by_objective: dict[str, dict[str, float]] = {}
        for row in signal["thirds"]:
            if row["source"] in OBJECTIVES and row["share"] is not None:
                by_objective.setdefault(row["source"], {})[row["block"]] = row["share"]
        found.append(by_objective)
    return found


def interaction(by_objective: dict[str, dict[str, float]]) -> float | None:
    """The mean share of an objective's own third minus that of the others there, in one seed.

    None if an objective has no signal above chance.
    """
    if not set(OBJECTIVES) <= set(by_objective):
        return None
    leads = []
    for name, third in EXPECTED.items():
        others = [by_objective[other][third] for other in OBJECTIVES if other != name]
        leads.append(by_objective[name][third] - float(np.mean(others)))
    return float(np.mean(leads))


def tests(study: Study, model: ModelSettings) -> list[Test]:
    """The interaction over seeds, by Student's t. Empty without records of label-seeing gradients."""
    values = [value for one in shares(study, model) if (value := interaction(one)) is not None]
    found = over_seeds(values)
    if found is None:
        return []
    name = "share of the squared norm of the mean gradient"
    about: Test = {
        **found,
        "family": "6",
        "name": name,
        "conversations": 0,
        "over": "pairs and seeds",
        "pairs": 0,
        "p_holm": None,
        "margin": None,
        "p_within": None,
        "by_seed": values,
        "verdict": UNSURE,
    }
    return judged([about])
