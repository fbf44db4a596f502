"""The claims ledger: what the papers say, the test that decides each claim, and a study's verdicts.

Claims, tests and margins stand in book/claims.yml and are fixed before results are looked at.

Every part of a claim gives two one-sided p, for and against it. The claim's p for is the largest of
its parts', since all must hold (an intersection-union test). Its p against is the smallest times
their number, since one reversed part is enough (Bonferroni). Holm's correction covers both p of all
claims that a study can test.

A claim is supported if the corrected p for is below 5% and every part's 95% interval agrees. It is
contradicted if the corrected p against is below 5% and the interval of a part agrees. Otherwise it is
inconclusive. Where a judge is not known to be better than guessing, nothing that rests on its scores
is decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from hialign.records import agreement, frames
from hialign.report.claims.kinds import AnyTest
from hialign.report.claims.material import Material, Part, Untested
from hialign.report.display import Columns, Table, table_of, view
from hialign.statistics.comparisons import holm
from hialign.statistics.intervals import (
    ALPHA,
    p_text,
    prompts_needed,
    smallest_difference,
)
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.load import load_yaml
from hialign.study.study import Study

SUPPORTED, CONTRADICTED = "supported", "contradicted"
INCONCLUSIVE, UNTESTED = "inconclusive", "not tested"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, UNTESTED)
PAPERS = {
    "v1": "Hierarchical Alignment, v1",
    "v2": "Hierarchical Alignment, v2",
    "ila": "ILA",
    "localized": "Alignment is Localized",
}


class Claim(BaseModel):
    """One checkable sentence of a paper, as book/claims.yml has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    paper: Literal["v1", "v2", "ila", "localized"]
    source: str
    text: str
    quantity: str
    test: AnyTest
    size: float | None = None
    headline: bool = False
    note: str = ""


class _Claims(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: list[Claim]


@dataclass(frozen=True)
class Finding:
    """A claim's verdict in a study, why, and the parts that it rests on."""

    claim: Claim
    verdict: str
    reason: str
    parts: Sequence[Part] = field(default_factory=tuple)
    p_for: float = float("nan")  # Holm over the ledger
    p_against: float = float("nan")


def load_claims() -> list[Claim]:
    """The claims of book/claims.yml. HialignError names the claim and key that are wrong."""
    path = paths.book_source() / "claims.yml"
    ledger = load_yaml(_Claims, path, "ledger of claims").claims
    names = [claim.id for claim in ledger]
    if twice := {name for name in names if names.count(name) > 1}:
        raise HialignError(f"{path}: two claims are called {sorted(twice)[0]}")
    return ledger


@frames.remembered
def findings(study: Study) -> list[Finding]:
    """The verdict on each claim, in the order of the file."""
    material, gate = Material(study), _gate(study)
    tested: list[tuple[Claim, list[Part]]] = []
    decided: dict[str, Finding] = {}
    for claim in load_claims():
        try:
            parts = claim.test.parts(material)
        except Untested as why:
            decided[claim.id] = Finding(claim, UNTESTED, str(why))
            continue
        if claim.test.judged and gate:
            decided[claim.id] = Finding(claim, INCONCLUSIVE, gate, parts)
        elif parts[0].decided is not None or parts[0].undecided:
            verdicts = [part.decided for part in parts]
            verdict = SUPPORTED if all(verdicts) else INCONCLUSIVE
            verdict = CONTRADICTED if False in verdicts else verdict
            decided[claim.id] = Finding(claim, verdict, "by computation, without a test", parts)
        else:
            tested.append((claim, parts))
    p_for = [float(np.max([part.p_for for part in parts])) for _, parts in tested]
    p_against = [
        min(1.0, len(parts) * float(np.min([part.p_against for part in parts])))
        for _, parts in tested
    ]
    corrected = holm([*p_for, *p_against])
    for i, (claim, parts) in enumerate(tested):
        pro, contra = float(corrected[i]), float(corrected[i + len(tested)])
        verdict, reason = _decide(study, claim, parts, pro, contra)
        decided[claim.id] = Finding(claim, verdict, reason, parts, pro, contra)
    return [decided[claim.id] for claim in load_claims()]


def _decide(
    study: Study, claim: Claim, parts: Sequence[Part], pro: float, contra: float
) -> tuple[str, str]:
    after = f"Holm's correction over the ledger, {len(parts)} part{'s' * (len(parts) > 1)}"
    if pro < ALPHA and all(part.backs for part in parts):
        return SUPPORTED, f"p {p_text(pro)} after {after}{_unmeasured(study, claim)}"
    smallest = min(part.p_against for part in parts)
    reversed_ = [p for p in parts if p.refutes and p.p_against == smallest]
    if contra < ALPHA and reversed_:
        what = f"{reversed_[0].what} is on the other side"
        return CONTRADICTED, f"{what}; p {p_text(contra)} after {after}{_unmeasured(study, claim)}"
    return INCONCLUSIVE, _missing(study, claim, parts)


def _missing(study: Study, claim: Claim, parts: Sequence[Part]) -> str:
    """What an inconclusive claim would have needed, by its least certain part."""
    varying = [part for part in parts if part.std > 0]
    if not varying:
        worst = max(parts, key=lambda part: part.p_for)
        return f"p {p_text(worst.p_for)} before correction (n = {worst.n})"
    power = study.analysis.power
    worst = max(varying, key=lambda part: part.p_for)
    shown = smallest_difference(worst.n, worst.std, power)
    text = f"{worst.n} prompts can show a difference of {shown:.3f} {claim.test.unit} with {power:.0%} power"
    needed = prompts_needed(claim.size, worst.std, power) if claim.size else float("nan")
    if np.isnan(needed):
        return text
    return f"{text}; the paper's {claim.size:.3f} would take {needed:,.0f} prompts"


def _gate(study: Study) -> str:
    """Why nothing that rests on the judge can be decided, or nothing where it can."""
    everyday = agreement.sides(study).get("everyday")
    if everyday is None or everyday[1] > 0.5:
        return ""
    share, low, high, n = everyday
    return (
        f"the judge is not shown to beat guessing ({share:.0%} of {n} pairs as people, "
        f"{low:.0%} to {high:.0%})"
    )


def _unmeasured(study: Study, claim: Claim) -> str:
    if not claim.test.judged or "everyday" in agreement.sides(study):
        return ""
    return "; the judge's agreement with people was not measured"


# --- as tables -----------------------------------------------------------------------------------


def overview(study: Study) -> Table:
    """How many claims of each paper have which verdict."""
    rows = []
    for paper, title in PAPERS.items():
        verdicts = [f.verdict for f in findings(study) if f.claim.paper == paper]
        counts = {verdict.capitalize(): verdicts.count(verdict) for verdict in VERDICTS}
        rows.append({"Paper": title, "Claims": len(verdicts)} | counts)
    return table_of(rows)


def headlines(study: Study) -> Table:
    """The claims that stand on the front page, with their verdicts."""
    rows = [
        {"The paper says": f.claim.text, "Version": f.claim.paper, "Verdict": f.verdict}
        for f in findings(study)
        if f.claim.headline
    ]
    return table_of(rows)


def evidence(finding: Finding) -> Table:
    """One row per part of the claim: what was compared, its estimate, bound, interval, p and n.

    n counts prompts, or what the claim is about: optimizer steps, seeds.
    """
    columns: Columns = {"Part": "what", "Estimate": "estimate"}
    if any(part.decided is not None or part.undecided for part in finding.parts):
        columns["Holds"] = lambda part: part["undecided"] or ("yes" if part["decided"] else "no")
    else:
        columns |= {"Should be above": "bound", "95% interval": ("low", "high")}
        columns["p for"] = lambda part: p_text(part["p_for"])
        columns |= {"p against": lambda part: p_text(part["p_against"]), "n": "n"}
    return view([vars(part) for part in finding.parts], columns)
