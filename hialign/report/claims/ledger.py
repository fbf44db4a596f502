"""The claims ledger: what the papers say, the test that decides each claim, and a study's verdicts.

Claims, tests and margins stand in book/claims.yml and are fixed before results are looked at.

Every part of a claim gives two one-sided p, for and against it. The claim's p for is the largest of
its parts', since all must hold (an intersection-union test). Its p against is the smallest times
their number, since one reversed part is enough (Bonferroni). Some claims have a number of their own,
such as a ratio of 2. Their parts give a third p, that the number is not reached, and one such part is
enough as well. Holm's correction covers all of these p of all claims that a study can test.

A claim is supported if the corrected p for is below 5% and every part's 95% interval agrees. It is
contradicted if the corrected p against is below 5% and the interval of a part agrees. It is refuted
at its own threshold if the corrected third p is below 5% and the interval of a part lies wholly below
the claim's number: its direction may hold, but not by as much as it says. Otherwise it is
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
from hialign.report.display import Columns, Row, Table, table_of, view
from hialign.statistics.comparisons import holm
from hialign.statistics.intervals import (
    ALPHA,
    interval_text,
    p_text,
    prompts_needed,
    smallest_difference,
)
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.load import load_yaml
from hialign.study.study import Study

SUPPORTED, CONTRADICTED = "supported", "contradicted"
REFUTED = "refuted at its own threshold"
INCONCLUSIVE, UNTESTED = "inconclusive", "not tested"
VERDICTS = (SUPPORTED, CONTRADICTED, REFUTED, INCONCLUSIVE, UNTESTED)
PAGE = "claims.html"  # of the book, on which each claim has its section
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
    p_short: float = float("nan")  # that the claim's own number is not reached

    @property
    def permalink(self) -> str:
        """The address of the verdict within the book. The id of a claim never changes."""
        return f"{PAGE}#{self.claim.id}"


@dataclass(frozen=True)
class _Corrected:
    """A claim's three p after Holm's correction over the ledger."""

    p_for: float
    p_against: float
    p_short: float
    alpha: float  # the two-sided level of the strictest step, the same for all claims


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
    """The verdict on each claim, in the order of the file. Of several seeds, the first counts."""
    study = study.at()
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
        elif parts[0].decided is not None or parts[0].undecided or parts[0].short:
            why_computed = "by computation, without a test"
            decided[claim.id] = Finding(claim, _computed(parts), why_computed, parts)
        else:
            tested.append((claim, parts))
    for (claim, parts), p in zip(tested, _corrected([p for _, p in tested]), strict=True):
        verdict, reason = _decide(study, claim, parts, p)
        decided[claim.id] = Finding(claim, verdict, reason, parts, p.p_for, p.p_against, p.p_short)
    return [decided[claim.id] for claim in load_claims()]


def _computed(parts: Sequence[Part]) -> str:
    verdicts = [part.decided for part in parts]
    if False in verdicts:
        return CONTRADICTED
    if any(part.short for part in parts):
        return REFUTED
    return SUPPORTED if all(verdicts) else INCONCLUSIVE


def _corrected(tested: Sequence[Sequence[Part]]) -> list[_Corrected]:
    """The p of each claim, of which these are the parts. All of them are one family."""
    p_for = [float(np.max([part.p_for for part in parts])) for parts in tested]
    p_against = [_one_is_enough([part.p_against for part in parts]) for parts in tested]
    p_short = [
        _one_is_enough([part.p_short for part in parts if not np.isnan(part.p_short)])
        for parts in tested
    ]
    raw = np.array([*p_for, *p_against, *p_short])
    size = int((~np.isnan(raw)).sum())
    # Each test is one-sided, so a two-sided one of twice its level is as strict
    alpha = 2 * ALPHA / max(size, 2)
    by_kind = holm(raw).reshape(3, -1).T
    return [
        _Corrected(float(pro), float(contra), float(short), alpha) for pro, contra, short in by_kind
    ]


def _one_is_enough(p_values: Sequence[float]) -> float:
    return min(1.0, len(p_values) * float(np.min(p_values))) if p_values else float("nan")


def _decide(study: Study, claim: Claim, parts: Sequence[Part], p: _Corrected) -> tuple[str, str]:
    after = f"after Holm's correction over the ledger, {len(parts)} part{'s' * (len(parts) > 1)}"
    after += _unmeasured(study, claim)
    if p.p_for < ALPHA and all(part.backs for part in parts):
        return SUPPORTED, f"p {p_text(p.p_for)} {after}"
    reversed_ = _clearest(parts, "p_against")
    if p.p_against < ALPHA and reversed_.refutes:
        return (
            CONTRADICTED,
            f"{reversed_.what} is on the other side; p {p_text(p.p_against)} {after}",
        )
    missed = _clearest(parts, "p_short")
    if p.p_short < ALPHA and missed.falls_short:
        estimate = f"{missed.what} is {_number(missed.estimate)}{_between(missed)}"
        needs = f"the claim needs {_number(missed.threshold)}"
        return REFUTED, f"{estimate}, and {needs}; p {p_text(p.p_short)} {after}"
    return INCONCLUSIVE, _missing(study, claim, parts, p.alpha)


def _clearest(parts: Sequence[Part], name: str) -> Part:
    """The part with the smallest p of that name. Of equal ones, one whose interval agrees."""

    def order(part: Part) -> tuple[float, bool]:
        p = getattr(part, name)
        agrees = part.refutes if name == "p_against" else part.falls_short
        return (2.0 if np.isnan(p) else p), not agrees

    return min(parts, key=order)


def _number(value: float | None) -> str:
    return f"{value:.3g}".replace("-", "−")


def _between(part: Part) -> str:
    ends = interval_text(part.low, part.high)
    return f" ({ends})" if ends else ""


def _missing(study: Study, claim: Claim, parts: Sequence[Part], alpha: float) -> str:
    """What an inconclusive claim would have needed, by its least certain part.

    `alpha` is the level at which the part would have been tested if all other p were larger.
    """
    varying = [part for part in parts if part.std > 0]
    if not varying:
        worst = max(parts, key=lambda part: part.p_for)
        return f"p {p_text(worst.p_for)} before correction (n = {worst.n})"
    power = study.analysis.power
    worst = max(varying, key=lambda part: part.p_for)
    shown = smallest_difference(worst.n, worst.std, power, alpha)
    text = f"{worst.n} prompts can show a difference of {shown:.3f} {claim.test.unit} with {power:.0%} power"
    text += " after the correction"
    needed = prompts_needed(claim.size, worst.std, power, alpha) if claim.size else float("nan")
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


def verdicts(study: Study) -> Table:
    """One row per claim: its verdict, the corrected p behind it, and its permalink in the book."""
    columns: Columns = {
        "Claim": "claim.id", "Paper": "claim.paper", "Verdict": "verdict",
        "p for": lambda row: p_text(row["p_for"]),
        "p against": lambda row: p_text(row["p_against"]),
        "p below its threshold": lambda row: p_text(row["p_short"]),
        "Permalink": "permalink",
    }  # fmt: skip
    rows = [
        vars(f) | {"claim": f.claim.model_dump(), "permalink": f.permalink} for f in findings(study)
    ]
    return view(rows, columns)


def evidence(finding: Finding) -> Table:
    """One row per part of the claim: what was compared, its estimate, bound, interval, p and n.

    n counts prompts, or what the claim is about: optimizer steps, seeds.
    """
    columns: Columns = {"Part": "what", "Estimate": "estimate"}
    if any(part.decided is not None or part.undecided or part.short for part in finding.parts):
        columns["Holds"] = _holds
        return view([vars(part) for part in finding.parts], columns)
    columns |= {"Should be above": "bound", "95% interval": ("low", "high")}
    columns["p for"] = lambda part: p_text(part["p_for"])
    columns["p against"] = lambda part: p_text(part["p_against"])
    if any(part.threshold is not None for part in finding.parts):
        columns["The claim's own threshold"] = "threshold"
        columns["p below it"] = lambda part: p_text(part["p_short"])
    return view([vars(part) for part in finding.parts], columns | {"n": "n"})


def _holds(part: Row) -> str:
    if part["short"]:
        return "no, but in its direction"
    return str(part["undecided"]) or ("yes" if part["decided"] else "no")
