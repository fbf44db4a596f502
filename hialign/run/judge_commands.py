"""What `hialign judge` does and prints."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hialign.judging.batch import judge_in_batches
from hialign.judging.cost import estimate, spent
from hialign.records import frames
from hialign.records.stages import judge_of
from hialign.report import judge_tables
from hialign.run import notebook
from hialign.study.errors import HialignError
from hialign.study.study import Cell, Study


def show_estimate(study: Study, model: str | None) -> None:
    """Print calls, tokens and cost of what is left to judge (of one model). Nothing is sent."""
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
    """Judge the study's cells one after the other, by the notebook, and say what failed.

    With `retry_failed` only the cells that have failed judgments.
    """
    judge_of(study)
    cells = _cells(study, model)
    failed = [cell for cell in cells if any(not r["scores"] for r in frames.judgments_of(cell))]
    _judge(study, name, cells, failed if retry_failed else cells)


def in_batches(study: Study, name: str, model: str | None, wait: bool) -> None:
    """Judge by batches. When all are fetched, leave each cell's files as the notebook does."""
    counts = judge_in_batches(study, _cells(study, model), wait=wait)
    if counts["in_flight"]:
        print(f"{counts['in_flight']} requests are in flight: the same command fetches them later")
        return
    cells = _cells(study, model)
    _judge(study, name, cells, cells, retry_failed=False)


def _judge(study: Study, name: str, cells: list[Cell], asked: list[Cell], **options: bool) -> None:
    """Run the notebook of the cells that are `asked` for, and say what was judged and what failed.

    Raises HialignError if in one of all `cells` more judgments failed than the study allows.
    """
    for cell in asked:
        values = {"study": name, "model": cell.model.name, "block": cell.block}
        print(notebook.run("judge", values | options, too_many_failed=False))
    console = Console()
    found = [row for cell in study.cells() for row in frames.judgments_of(cell)]
    failed = sum(not row["scores"] for row in found)
    for row in judge_tables.failures(study).fillna("").to_dict("records") if failed else ():
        console.print(escape(" ".join(text for text in row.values() if text)))
    cost = f", {spent(study):.2f} USD" if judge_of(study).prices else ""
    again = "; `hialign judge … --retry-failed` asks for them again" if failed else ""
    console.print(f"{len(found)} judgments, {failed} of them failed{cost}{again}")
    for cell in cells:
        notebook.check_judged(cell)


def _cells(study: Study, model: str | None) -> list[Cell]:
    cells = [c for c in study.cells() if model is None or c.model == study.model(model)]
    if not cells:
        names = ", ".join(m.name for m in study.models)
        raise HialignError(f"study {study.name} has no model {model!r}: it has {names}")
    return cells


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
