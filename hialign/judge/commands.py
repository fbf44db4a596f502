"""What `hialign judge` does and prints."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hialign import notebook, records
from hialign.judge.batch import judge_in_batches
from hialign.judge.cells import judge_of
from hialign.judge.cost import estimate, judgments_file, spent
from hialign.study import Cell, Study

LONGEST_RAW = 200  # characters of a failed answer that are printed


def show_estimate(study: Study, model: str | None) -> None:
    """Print calls, tokens and cost of what is left to judge (of one model); nothing is sent."""
    settings = judge_of(study)
    found = estimate(study)
    if model is not None:
        found = found[found.model == study.model(model).label]
    table = Table(title=f"{study.title}: what is left for the judge {settings.name}")
    names = {"model": "model", "responses": "responses", "judged": "judged", "calls": "calls"}
    if settings.backend != "local":
        names |= {"prompt_tokens": "tokens in", "completion_tokens": "tokens out"}
    if settings.prices:
        names |= {"cost": "USD", "cost_batch": "USD, --batch", "cost_at_most": "USD at most"}
    for title in names.values():
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in found.to_dict("records"):
        table.add_row(*(_cell(row[name]) for name in names))
    console = Console()
    console.print(table)
    if settings.backend == "local":
        console.print("A local judge takes time and no money.")
        return
    console.print(f"{found.attrs['basis']}.")
    if not settings.prices:
        console.print("For the cost set `prices: {input: …, output: …}` (USD per million tokens).")
    else:
        limit = f" of max_cost {settings.max_cost:g}" if settings.max_cost else ""
        console.print(
            f"Spent so far: {found.attrs['spent']:.2f} USD{limit}. At most: every response asked "
            f"{settings.attempts} times for {settings.max_tokens} tokens."
        )


def run(study: Study, name: str, model: str | None, retry_failed: bool) -> None:
    """Judge the study's cells one after the other, by the notebook; then say what failed.

    With `retry_failed` only the cells that have failed judgments.
    """
    judge_of(study)
    for cell in _cells(study, model):
        if not retry_failed or _failures(cell):
            values = {"study": name, "model": cell.model.name, "block": cell.block}
            print(notebook.run("judge", values))
    _report(study)


def in_batches(study: Study, name: str, model: str | None, wait: bool) -> None:
    """Judge by batches; when all are fetched, leave each cell's files as the notebook does."""
    counts = judge_in_batches(study, _cells(study, model), wait=wait)
    if counts["in_flight"]:
        print(f"{counts['in_flight']} requests are in flight: the same command fetches them later")
        return
    for cell in _cells(study, model):
        values = {"study": name, "model": cell.model.name, "block": cell.block}
        print(notebook.run("judge", values | {"retry_failed": False}))
    _report(study)


def _report(study: Study) -> None:
    """How many were judged, what failed and what the judge had said, and the money."""
    console = Console()
    total = failed = 0
    for cell in study.cells():
        path = judgments_file(cell)
        total += len(records.read_jsonl(path)) if path.is_file() else 0
        for row in _failures(cell):
            failed += 1
            raw = " ".join(str(row.get("raw", "")).split())[:LONGEST_RAW]
            console.print(
                f"{cell.model.name} {cell.block} {row['prompt_id']}: {escape(row['error'])}"
                + (f" [dim]{escape(raw)}[/]" if raw else "")
            )
    cost = f", {spent(study):.2f} USD" if judge_of(study).prices else ""
    again = "; `hialign judge … --retry-failed` asks for them again" if failed else ""
    console.print(f"{total} judgments, {failed} of them failed{cost}{again}")


def _cells(study: Study, model: str | None) -> list[Cell]:
    return [c for c in study.cells() if model is None or c.model == study.model(model)]


def _failures(cell: Cell) -> list[dict[str, Any]]:
    path = judgments_file(cell)
    rows = records.read_jsonl(path) if path.is_file() else []
    return [row for row in rows if not row["scores"]]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
