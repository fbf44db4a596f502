"""The claims ledger as a part of its page: a table of verdicts, and a section for each claim."""

from html import escape

import pandas as pd

from hialign.book.markup import output, plain, raw, table
from hialign.report.claims import kinds, ledger
from hialign.statistics.intervals import p_text
from hialign.study.study import Study


def claim_sections(study: Study) -> str:
    """The ledger as a table, then a section for each claim with its evidence, in Markdown."""
    found = ledger.findings(study)
    parts = ["## The ledger", output(_ledger(found))]
    for paper, title in ledger.PAPERS.items():
        parts.append(f"## {title}")
        for one in [f for f in found if f.claim.paper == paper]:
            parts += _claim_section(one)
    return "\n\n".join(parts) + "\n"


def _ledger(found: list[ledger.Finding]) -> str:
    rows = "".join(
        f'<tr><td><a href="#{escape(f.claim.id)}">{escape(f.claim.text)}</a></td>'
        f"<td>{escape(f.claim.paper)}</td><td>{_verdict(f.verdict)}</td></tr>"
        for f in found
    )
    head = "<tr><th>Claim, in our words</th><th>Paper</th><th>Verdict</th></tr>"
    return f'<table class="dataframe ledger"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _verdict(word: str) -> str:
    return f'<span class="verdict verdict-{word.replace(" ", "-")}">{word}</span>'


def _claim_section(found: ledger.Finding) -> list[str]:
    claim, test = found.claim, found.claim.test
    about = {"Source": f"{ledger.PAPERS[claim.paper]}: {claim.source}", "Measured": claim.quantity}
    if isinstance(test, kinds.Probe):
        about |= {"Supported if": test.supported_if, "Contradicted if": test.contradicted_if}
    else:
        about["Test"] = " ".join((type(test).__doc__ or "").split())
    about |= {"Note": claim.note} if claim.note else {}
    if not pd.isna(found.p_for):
        corrected = f"{p_text(found.p_for)} for, {p_text(found.p_against)} against"
        about["p, corrected over the ledger"] = corrected
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.items())
    verdict = f"<p>{_verdict(found.verdict)} {escape(found.reason)}</p>"
    parts = [f"({claim.id})=", f"### {plain(claim.text.rstrip('.'))}"]
    parts.append(raw(f'{verdict}<dl class="claim">{rows}</dl>'))
    return [*parts, table(ledger.evidence(found))] if found.parts else parts
