"""Each claim of the ledger can be decided: there are data that support it and data that refute it.

A study is drawn for each claim in which it is true, and one in which it is false. Both have to be
found out under the strictest step of Holm's correction, as if every claim of the ledger were tested.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_material import (
    make_study,
    write_losses,
    write_pairs,
    write_parameters,
    write_scores,
)
from test_claim_probes import gated, intervened, low_rank, swapped

from hialign.probes.gradients.trend import inequality
from hialign.records.files import write_json
from hialign.report.claims import kinds
from hialign.report.claims import ledger as claims
from hialign.report.scores import FLUENCY
from hialign.study import paths
from hialign.study.blocks import EXPECTED, STRATEGIES, split_layers
from hialign.study.study import Study

LEDGER = {claim.id: claim for claim in claims.load_claims()}
DECIDABLE = [c.id for c in LEDGER.values() if not isinstance(c.test, kinds.Untestable)]
FAMILY = 3 * len(DECIDABLE)  # p for, against and below the threshold
DEPTH = 6


def verdict(name: str, study: Study, monkeypatch: pytest.MonkeyPatch) -> str:
    """The verdict on a claim in a ledger of full size, of which it has the smallest p."""
    monkeypatch.setattr(claims, "load_claims", lambda: [LEDGER[name]])
    monkeypatch.setattr(claims, "holm", lambda p: np.minimum(1.0, FAMILY * np.asarray(p)))
    (finding,) = claims.findings.__wrapped__(study)  # type: ignore[attr-defined]
    return str(finding.verdict)


def draw(test: Any, holds: bool) -> Study:
    """A study in which a claim with that test is true, or false."""
    side = 1 if holds else -1
    if isinstance(test, kinds.Probe):
        return _probed(test, holds)
    if test.judged:
        names = [n for n in (getattr(test, "model", None), *_models(test)) if n]
        study = make_study(tuple(names) or ("small",))
        write_scores(study, lambda *cell: _mean(test, side, *cell), noise=0.05)
        return study
    study = make_study(judge=None)
    if isinstance(test, kinds.Reward):
        write_pairs(study, {str(test.block): 3.0 * side})
    elif isinstance(test, kinds.Objective):
        write_pairs(study, {f"{test.block} {test.objective}": 3.0 * side})
    elif isinstance(test, kinds.Loss):
        write_losses(study, -0.01 * side)
    elif isinstance(test, kinds.Parameters):
        write_parameters(study, {test.block: 10 if holds else 30, test.reference: 30})
    return study


def _models(test: Any) -> list[str]:
    others = test.references if isinstance(test, kinds.Models) else []
    return [*others, *(getattr(test, "models", None) or [])]


def _mean(test: Any, side: int, model: str, block: str, dimension: str) -> float:
    """The mean score of a cell where the claim is true (side 1) or false (side -1)."""
    if isinstance(test, kinds.Level):
        return test.level + 0.4 * side * ((block in test.above) - (block in test.below))
    if isinstance(test, kinds.Tax):
        if block not in test.blocks:
            return 3.0
        paid = test.paid == (side > 0)
        return 3.4 if dimension == FLUENCY or not paid else 2.6
    if isinstance(test, kinds.Models):
        return 3 + 0.4 * side * (model == test.model)
    ours = block in ([test.block] if isinstance(test.block, str) else test.block)
    if isinstance(test, kinds.NotInferior) and side > 0:
        return 3.0  # equal, so that it is not more than the claim needs
    return 3 + 0.4 * side * ours


# --- probes --------------------------------------------------------------------------------------


def gradients(own: float) -> dict[str, Any]:
    """Norms of 16 prompts, of which each objective's own block has `own` times as much."""
    rng = np.random.default_rng(10)
    norms = {}
    for objective, block in EXPECTED.items():
        norms[objective] = np.exp(rng.normal(0, 0.1, (16, DEPTH)))
        norms[objective][:, list(split_layers(DEPTH)[block])] *= own
    kin = {objective: [f"p{i}" for i in range(16)] for objective in EXPECTED}
    return {"inequality": inequality(norms, kin, 10_000, 42)}


MIDDLE, LATE = ({"local": 0.05, "mid": mid, "global": 0.35 - mid} for mid in (0.3, 0.05))
RECORDS = {  # by statistic: a record for the claim, and one against it
    "inequality": (lambda: gradients(4.0), lambda: gradients(0.25)),
    "overlap": (lambda: gated(0.99), lambda: gated(0.9, opposed=True)),
    "freezing": (lambda: intervened(0.1), lambda: intervened(-0.1)),
    "few": (lambda: intervened(0.1, n=200), lambda: intervened(0.1, few=0.5)),
    "middle": (lambda: swapped(MIDDLE), lambda: swapped(LATE)),
    "low-rank": (lambda: low_rank(0.38, 0.4, 0.05), lambda: low_rank(0.1, 0.4, 0.3)),
}
REFUTING = {  # by statistic: a record whose direction is right, and whose number is not reached
    "inequality": lambda: gradients(1.3),
    "overlap": lambda: gated(0.7, seeds=8),
    "low-rank": lambda: low_rank(0.2, 0.4, 0.05),
}


def _probed(test: Any, holds: bool) -> Study:
    record = RECORDS[test.statistic][0 if holds else 1]()
    return _recorded(test.probe, record)


def _recorded(probe: str, record: dict[str, Any]) -> Study:
    study = make_study(judge=None, probes={})
    fingerprint = study.cell(None, "base").probe_fingerprint(probe)
    file = paths.probe_record(study.name, study.models[0].name, probe)
    write_json(file, record | {"fingerprint": fingerprint})
    return study


# --- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in DECIDABLE if LEDGER[n].test.kind != "partition"])
def test_data_can_support_and_refute(
    outputs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdict(name, draw(LEDGER[name].test, True), monkeypatch) == claims.SUPPORTED
    assert verdict(name, draw(LEDGER[name].test, False), monkeypatch) == claims.CONTRADICTED


@pytest.mark.parametrize(
    "name",
    [n for n in DECIDABLE if getattr(LEDGER[n].test, "statistic", None) in REFUTING],
)
def test_a_right_direction_can_miss_the_claims_own_number(
    outputs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = LEDGER[name].test
    assert test.refuted_if, "what refutes it stands in the ledger"
    study = _recorded(test.probe, REFUTING[test.statistic]())
    assert verdict(name, study, monkeypatch) == claims.REFUTED


def test_claims_without_a_number_say_nothing_of_a_threshold() -> None:
    for claim in LEDGER.values():
        if isinstance(claim.test, kinds.Probe) and claim.test.statistic not in REFUTING:
            assert not claim.test.refuted_if, claim.id


def test_a_count_can_miss_its_number(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(judge=None)
    write_parameters(study, {"mid": 20, "full": 30})
    assert verdict("v2-fewer-parameters", study, monkeypatch) == claims.REFUTED


def test_the_partition_depends_on_the_papers_table(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(judge=None)
    assert verdict("v2-partition", study, monkeypatch) == claims.SUPPORTED
    wrong = [{"model": "x", "layers": 7, "local": [0, 2], "mid": [3, 5], "global": [6, 6]}]
    monkeypatch.setattr("hialign.report.paper.rows", lambda table: wrong)  # 3, 2, 2 is right
    assert verdict("v2-partition", study, monkeypatch) == claims.CONTRADICTED


def test_what_no_data_decide_is_not_tested_and_says_why(outputs: Path) -> None:
    study = make_study(("small", *STRATEGIES))
    left = set(LEDGER) - set(DECIDABLE)
    assert left
    for finding in claims.findings(study):
        if finding.claim.id in left:
            assert finding.verdict == claims.UNTESTED
            assert len(finding.reason) > 20
