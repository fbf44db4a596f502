"""What judging took, and what got no valid answer, as tables of the book (Appendix D)."""

from typing import Any

from hialign import records
from hialign.display import Table, table_of
from hialign.judge.cells import answered_by
from hialign.study import Study

LONGEST = 160  # characters of a raw answer that are shown
MOST = 50  # failed judgments that are listed


def usage(study: Study) -> Table:
    """Calls, tokens and USD of each cell's judgments, and which models answered.

    "Asked again" counts answers that could not be used; "Mended" those whose JSON was repaired;
    "Shared" responses equal to one that was judged already. More than one model (or fingerprint)
    under "Answered by" means that the provider changed it while the study was judged.
    """
    rows = []
    for cell in study.cells() if study.judge else ():
        found = records.judgments_of(cell)
        row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
        row |= dict.fromkeys(_COUNTS) | {"USD": None, "Answered by": None}
        if found:
            own = [r for r in found if not r.get("shared")]
            row["Judged"] = sum(bool(r["scores"]) for r in found)
            row["Failed"] = len(found) - row["Judged"]
            row["Asked again"] = sum(r.get("attempts", 1) - 1 for r in own)
            row["Mended"] = sum(bool(r.get("repaired")) for r in found)
            row["Shared"] = len(found) - len(own)
            row["Tokens in"] = sum(r.get("usage", {}).get("prompt_tokens", 0) for r in own)
            row["Tokens out"] = sum(r.get("usage", {}).get("completion_tokens", 0) for r in own)
            costs = [r["cost"] for r in own if "cost" in r]
            row["USD"] = sum(costs) if costs else None
            row["Answered by"] = ", ".join(answered_by(found))
        rows.append(row)
    frame = table_of(rows, ["Model", "Strategy", *_COUNTS, "USD", "Answered by"])
    return Table(frame.astype(dict.fromkeys(_COUNTS, "Int64")))


def failures(study: Study) -> Table:
    """The judgments that are missing (the first `MOST`), each with what was wrong and how the answer
    began."""
    rows: list[dict[str, Any]] = []
    for cell in study.cells() if study.judge else ():
        for record in records.judgments_of(cell):
            if not record["scores"]:
                raw = " ".join(str(record.get("raw", "")).split())
                row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
                row |= {"Prompt": str(record["prompt_id"]), "Problem": record.get("error")}
                rows.append(row | {"Answer": raw[:LONGEST] or None})
    more = len(rows) - MOST
    rows = rows[:MOST] + ([{"Model": f"and {more} more"}] if more > 0 else [])
    columns = ["Model", "Strategy", "Prompt", "Problem", "Answer"]
    return table_of(rows or [{"Model": "none"}], columns)


_COUNTS = ["Judged", "Failed", "Asked again", "Mended", "Shared", "Tokens in", "Tokens out"]
