"""The registered answer that a book shows: whose it is, and its tests and contrasts in one shape."""

from collections.abc import Iterator
from dataclasses import dataclass

from hialign.report.replication import hypothesis, strategies
from hialign.report.replication.registered import HYPOTHESIS, analysis_of, answering
from hialign.report.replication.verdicts import Compared, Test
from hialign.statistics.gate import Gate
from hialign.study.study import Study

Findings = hypothesis.Findings | strategies.Findings


@dataclass(frozen=True)
class Answer:
    """The findings of a registered study, by the labels of its models."""

    study: Study
    findings: dict[str, Findings]

    @property
    def is_hypothesis(self) -> bool:
        return analysis_of(self.study) == HYPOTHESIS

    def of(self) -> Iterator[tuple[str, hypothesis.Findings]]:
        """The findings on Hypothesis 2. Empty if the study asks something else."""
        for label, one in self.findings.items():
            if isinstance(one, hypothesis.Findings):
                yield label, one

    def of_strategies(self) -> Iterator[tuple[str, strategies.Findings]]:
        """The findings on strategies. Empty if the study asks something else."""
        for label, one in self.findings.items():
            if isinstance(one, strategies.Findings):
                yield label, one


def answer(study: Study) -> Answer | None:
    """The answer that a book of `study` leads with (`registered.answering`)."""
    with answering(study) as shown:
        if shown is None:
            return None
        read = hypothesis.findings if analysis_of(shown) == HYPOTHESIS else strategies.findings
        found: dict[str, Findings] = dict(read(shown))
        return Answer(shown, found) if found else None


def gates_of(findings: Findings) -> dict[str, Gate]:
    """The gates by what was trained, as a reader calls it."""
    if isinstance(findings, strategies.Findings):
        return {"all pairs": findings.gate} if findings.gate else {}
    found = {f"{name} alone": gate for name, gate in findings.gates.items()}
    return found | ({"all three together": findings.together} if findings.together else {})


def tests_of(findings: Findings) -> list[Test]:
    """The primary test and the secondary ones."""
    if isinstance(findings, strategies.Findings):
        return []
    return ([findings.primary] if findings.primary else []) + findings.secondary


def contrasts_of(findings: Findings) -> list[Compared]:
    """The contrasts of blocks, family by family."""
    if isinstance(findings, strategies.Findings):
        return findings.contrasts
    return [row for rows in findings.contrasts.values() for row in rows] + findings.full
