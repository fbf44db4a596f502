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


def _permalink(name: str) -> str:
    """A visible link to a claim's section. The id is in the page, whatever the claim's words are."""
    label = f"Permalink to the claim {name}"
    return f'<a class="permalink" href="#{escape(name)}" title="{label}" aria-label="{label}">#</a>'


def _claim_section(found: ledger.Finding) -> list[str]:
    claim, test = found.claim, found.claim.test
    about = {"Source": f"{ledger.PAPERS[claim.paper]}: {claim.source}", "Measured": claim.quantity}
    if isinstance(test, kinds.Probe):
        about |= {"Supported if": test.supported_if, "Contradicted if": test.contradicted_if}
        about |= {"Refuted at its threshold if": test.refuted_if} if test.refuted_if else {}
    else:
        about["Test"] = " ".join((type(test).__doc__ or "").split())
    about |= {"Note": claim.note} if claim.note else {}
    if not pd.isna(found.p_for):
        corrected = f"{p_text(found.p_for)} for, {p_text(found.p_against)} against"
        if not pd.isna(found.p_short):
            corrected += f", {p_text(found.p_short)} below its own threshold"
        about["p, corrected over the ledger"] = corrected
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.items())
    verdict = f"{_verdict(found.verdict)} {escape(found.reason)} {_permalink(claim.id)}"
    verdict = f'<p class="claim-verdict">{verdict}</p>'
    parts = [f"({claim.id})=", f"### {plain(claim.text.rstrip('.'))}"]
    parts.append(raw(f'{verdict}<dl class="claim">{rows}</dl>'))
    return [*parts, table(ledger.evidence(found))] if found.parts else parts
