"""`hialign …`: each command calls one function.

What takes long to import is imported by the command that needs it.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hialign.records import processes, running
from hialign.records.status import State, probe_state, state
from hialign.study import paths
from hialign.study.blocks import split_layers
from hialign.study.errors import HialignError
from hialign.study.settings import model_from
from hialign.study.study import load_study, probes_of, stages_of

app = typer.Typer(
    help="Where in a language model does alignment happen? The paper's experiments, to run and to read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
StudyName = Annotated[str, typer.Argument(help="A study in studies/, or the path of a .yml file.")]


@app.command()
def reproduce(
    study: StudyName = "demo",
    cores: Annotated[int, typer.Option(min=1, help="How many cells may run at once.")] = (
        os.cpu_count() or 1
    ),
    profile: Annotated[
        str,
        typer.Option(help="A Snakemake profile: the name of a folder that you put into workflow/."),
    ] = "",
    dry_run: Annotated[bool, typer.Option(help="Only say what would run.")] = False,
    book: Annotated[bool, typer.Option(help="Build the book, too.")] = True,
    seed: Annotated[
        str, typer.Option(help="Only this seed of the study: 1, or shuffled-1. Builds no book.")
    ] = "",
) -> None:
    """Run what is missing or out of date in STUDY, and build its book."""
    from hialign.run import workflow

    workflow.reproduce(study, cores, profile, dry_run, book and not seed, seed)


@app.command()
def replicate(
    study: StudyName,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The new seed. By default the next unused number.")
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="How many cells may run at once.")] = (
        os.cpu_count() or 1
    ),
    dry_run: Annotated[bool, typer.Option(help="Only say what would run.")] = False,
) -> None:
    """Run the registered STUDY with a new seed, and say whether its published result holds."""
    from hialign.run import replicate as replicate_study

    replicate_study.replicate(study, seed, cores, dry_run)


@app.command()
def run(
    notebook: Annotated[
        str, typer.Argument(help="train, respond, evaluate, judge, explore, probe-…, or a path.")
    ],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", metavar="NAME VALUE", help="A parameter, as in papermill."
        ),
    ] = None,
) -> None:
    """Execute one notebook with papermill, and keep it under outputs/."""
    from hialign.run.notebook import parse_value, what_of
    from hialign.run.notebook import run as run_notebook

    processes.end_with_watched()
    pairs = zip((parameter or [])[::2], (parameter or [])[1::2], strict=True)
    values = {name: parse_value(value) for name, value in pairs}
    seed = str(values["seed"]) if values.get("seed") is not None else ""
    what = what_of(notebook, str(values.get("model")), str(values.get("block", "")), seed)
    with running.reported(what):
        typer.echo(run_notebook(notebook, values))


@app.command()
def status(study: StudyName = "demo") -> None:
    """Say which cells of STUDY are done, stale, damaged, failed or missing, and why."""
    loaded = load_study(study)
    console, reasons = Console(), []
    stages = stages_of(loaded.cells()[0])
    seeds = ["seed"] if loaded.seeds else []
    table = Table("model", "block", *seeds, *stages, title=escape(loaded.title))
    for cell in loaded.cells():
        states = {stage: state(cell, stage) for stage in stages}
        names = [cell.model.label, cell.block, *([cell.seed] if seeds else [])]
        table.add_row(*map(escape, names), *map(_mark, states.values()))
        where = ", ".join(filter(None, names))
        reasons += [f"{stage} of {where}: {one}" for stage, one in states.items() if one.why]
    console.print(table)
    if probes := probes_of(loaded):
        table = Table("model", *seeds, *probes, title="Probes")
        runs = [(one, model) for one in loaded.single_runs() for model in loaded.models]
        for run, model in runs:
            states = {probe: probe_state(run, model, probe) for probe in probes}
            names = [model.label, *([run.seed] if seeds else [])]
            table.add_row(*map(escape, names), *map(_mark, states.values()))
            where = ", ".join(filter(None, names))
            reasons += [f"{p} of {where}: {one}" for p, one in states.items() if one.why]
        console.print(table)
    working = processes.held(paths.working(loaded.name))
    for line in [f"At work: {one}" for one in working] + reasons:
        console.print(escape(line), highlight=False, soft_wrap=True)


COLOURS = {"done": "green", "stale": "yellow", "damaged": "red", "failed": "red", "missing": "dim"}


def _mark(state: State) -> str:
    """A state as a table shows it: its word, or how many judgments failed."""
    counted = state.status == "failed" and state.why.endswith("failed")
    return f"[{COLOURS[state.status]}]{state.why if counted else state.status}[/]"


@app.command()
def verify(study: StudyName = "demo") -> None:
    """Compare every file of STUDY with the hash in its record."""
    from hialign.records.verify import verify as verify_study

    wrong = 0
    for line in verify_study(load_study(study)):
        wrong += line.wrong
        typer.secho(str(line), fg="red" if line.wrong else None)
    if wrong:
        raise HialignError(
            f"{wrong} records differ from what was written: `hialign reproduce {study}` makes them "
            "again"
        )


@app.command()
def book(study: StudyName = "demo") -> None:
    """Build the book of STUDY from what has been run so far."""
    from hialign.book.build import build

    with processes.interruptible(), running.reported("book"):
        typer.echo(build(load_study(study)))


@app.command()
def show(
    study: StudyName,
    exhibit: Annotated[str, typer.Argument(help="A figure or table: figure-2, table-3, …")],
    out: Annotated[
        str, typer.Option(help="The folder to write into (the current one by default).")
    ] = "",
) -> None:
    """Write one figure (SVG, PNG) or table (HTML) of STUDY's book, with CSV and JSON."""
    from hialign.report import exhibits

    for path in exhibits.write(load_study(study), exhibit, Path(out or ".")):
        typer.echo(path)


@app.command()
def publish(
    study: StudyName,
    partial: Annotated[
        bool, typer.Option("--partial", help="Publish even if cells are stale, failed or missing.")
    ] = False,
    with_responses: Annotated[
        bool | None,
        typer.Option(
            "--with-responses/--without-responses",
            help="Whether to include the responses. It must be said if the prompts are not our own.",
        ),
    ] = None,
) -> None:
    """Copy what the book of STUDY needs to outputs/published/, for everybody to see."""
    from hialign.book.publish import publish as publish_study

    with processes.interruptible():
        copy = publish_study(load_study(study), partial, with_responses)
    typer.echo(f"{copy.folder}: {copy.files} files, {copy.bytes / 1e6:.2f} MB")


@app.command()
def site(
    to: Annotated[str, typer.Option(help="The folder to build into.")] = "build/site",
) -> None:
    """Build the books of all published studies into one folder, from their records alone."""
    from hialign.book import site as site_of

    with processes.interruptible():
        typer.echo(site_of.build(Path(to)))


@app.command()
def partition(
    model: Annotated[str, typer.Argument(help="A number of layers, or a model.")],
) -> None:
    """Print the layers of the three thirds of a model, as in Table 4."""
    from hialign.engine.models import depth_of

    depth = int(model) if model.isdigit() else depth_of(model_from(model))
    table = Table("model", "layers", "local", "mid", "global")
    rows = split_layers(depth).values()
    table.add_row(model, str(depth), *(f"{r[0]}-{r[-1]}" for r in rows))
    Console().print(table)


@app.command()
def judge(
    study: StudyName,
    model: Annotated[str | None, typer.Option(help="Judge only this model of the study.")] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say what it would take in calls, tokens and USD."),
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Use the provider's Batch API: cheaper, within a day.")
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="With --batch: wait until everything is fetched.")
    ] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again only for what got no valid answer.")
    ] = False,
    validate: Annotated[bool, typer.Option("--validate", help="Measure the judge itself.")] = False,
    llmbar: Annotated[
        str,
        typer.Option(
            help="With --validate: LLMBar's folder, or none (by default $HIALIGN_SHARED_DATA/llmbar)."
        ),
    ] = "",
    pairs: Annotated[
        str,
        typer.Option(
            help="With --validate: other preference pairs, or none (by default the study's own)."
        ),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --validate: at most so many of each part, for a quick look."
        ),
    ] = None,
) -> None:
    """Judge the responses of STUDY that have no valid judgment, or measure the judge itself."""
    from hialign.run import judge_commands

    loaded = load_study(study)
    if estimate + batch + retry_failed + validate > 1:
        raise HialignError("give one of --estimate, --batch, --retry-failed and --validate")
    if estimate:
        judge_commands.show_estimate(loaded, model)
    elif batch:
        with processes.interruptible():
            judge_commands.in_batches(loaded, study, model, wait)
    elif validate:
        from hialign.judging.validation.validate import validate_study

        with processes.interruptible():
            typer.echo(validate_study(loaded, llmbar, pairs, limit))
    else:
        judge_commands.run(loaded, study, model, retry_failed)


def main() -> None:
    """The command line: what users got wrong is one line on standard error and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error is lenient by itself
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows `?`
    arguments = _pairs(sys.argv[1:])
    try:
        app(args=arguments)
    except HialignError as error:
        typer.secho(f"hialign: {error}", fg="red", err=True)
        raise SystemExit(1) from None


def _pairs(arguments: list[str]) -> list[str]:
    """`-p NAME VALUE`, which typer has no form for, as `-p NAME -p VALUE`."""
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        result.append(argument)
        if argument in ("-p", "--parameter"):
            name, value = next(rest, None), next(rest, None)
            if name is None or value is None:
                raise SystemExit("hialign: -p takes a name and a value: -p block mid")
            result += [name, "-p", value]
    return result
