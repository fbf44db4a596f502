"""`hialign reproduce`: what is not done is run, in order, and nothing else.

`hialign.records.status` decides what is done. Snakemake runs the rest: it knows the order, and how
many jobs may run at once. What it prints is in a log, and `hialign.run.console` shows what happens.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hialign.book import build as book
from hialign.preferences.pairs import load_pairs
from hialign.records import processes
from hialign.records.status import DONE, State, probe_state, state
from hialign.run import console
from hialign.run.checks import check_sizes
from hialign.run.notebook import what_of
from hialign.study import paths
from hialign.study.blocks import probe_of
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell, Study, load_study, probe_runs, stages_of

SINGLE = "single"  # the folder of the markers of a study that is one run


@dataclass(frozen=True)
class Job:
    """One thing that a study needs, and its state."""

    marker: str  # of Snakemake's, relative to the study's folder
    what: str
    state: State
    stage: str


def jobs_of(study: Study, thorough: bool = True, with_book: bool = True) -> Iterator[Job]:
    """All that a study needs: the stages of its cells, its probes, its book."""
    every = []
    for cell in study.cells():
        for stage in stages_of(cell):
            what = what_of(stage, cell.model.name, cell.block, cell.seed)
            every.append(Job(stage_marker(cell, stage), what, state(cell, stage, thorough), stage))
    for one, model, probe in probe_runs(study):
        what = what_of(f"probe-{probe}", model.name, seed=one.seed)
        measured = probe_state(one, model, probe, thorough)
        every.append(Job(probe_marker(one, model, probe), what, measured, "probe"))
    yield from every
    if not with_book:
        return
    waiting = any(job.state != DONE for job in every)
    built = State("stale", "what it shows will be made again") if waiting else book.state(study)
    yield Job(book_marker(), "book", built, "book")


# --- markers -------------------------------------------------------------------------------------


def stage_marker(cell: Cell, stage: str) -> str:
    """The marker of a stage of a cell, or of the whole pass if blocks are trained together."""
    place = f"{stage}/{cell.seed or SINGLE}/{paths.slug(cell.model.name)}"
    if stage in ("train", "evaluate") and cell.study.training.one_pass:
        return f".workflow/{place}/{pass_of(cell)}.pass"
    return f".workflow/{place}/{paths.slug(cell.block)}.cell"


def pass_of(cell: Cell) -> str:
    """The pass in which a cell is trained: blocks that a probe chooses have one of their own."""
    return "measured" if probe_of(cell.block) else "all"


def probe_marker(study: Study, model: ModelSettings, probe: str) -> str:
    return f".workflow/probe/{study.seed or SINGLE}/{paths.slug(model.name)}/{probe}.cell"


def book_marker() -> str:
    return ".workflow/book"


def _mark(where: Path, jobs: list[Job]) -> None:
    """Leave a marker for each job that is done, and none for the others."""
    open_markers = {job.marker for job in jobs if job.state != DONE}
    for marker in {job.marker for job in jobs}:
        place = where / marker
        if marker in open_markers:
            place.unlink(missing_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


# --- running -------------------------------------------------------------------------------------


def reproduce(
    name: str,
    cores: int,
    profile: str = "",
    dry_run: bool = False,
    with_book: bool = True,
    seed: str = "",
) -> None:
    """Run what is not done of the study called `name`, or of one of its seeds, and build its book.

    What would fail late is checked first: the study, its data, its models, a judge's key. Raises
    HialignError with what to do if a job fails. The others still run to their end. Ctrl-C ends the
    jobs and is raised again. The same command then goes on.
    """
    study = load_study(name)
    study = study.at(seed) if seed else study
    if dry_run:
        _check(study, jobs := list(jobs_of(study, with_book=with_book)), key=False)
        todo = [job for job in jobs if job.state != DONE]
        for job in todo:
            print(f"would run {job.what} ({job.state})")
        print(f"{len(todo)} of {len(jobs)} jobs would run")
        return
    where = paths.study_dir(study.name)
    index = f" The book: {paths.html_dir(study.name) / 'index.html'}" if with_book else ""
    with processes.locked(where / ".reproduce.lock", f"hialign reproduce {study.argument}"):
        processes.wait_for_all(paths.working(study.name))
        jobs = list(jobs_of(study, with_book=with_book))
        if all(job.state == DONE for job in jobs):
            print(f"Nothing to be done.{index}")
            return
        print(f"Checking study {study.name}, its models and its data.", flush=True)
        _check(study, jobs)
        _mark(where, jobs)
        began = time.monotonic()
        log = where / ".workflow" / "snakemake.log"
        if _run(study, name, cores, profile, jobs, log):
            _refuse_what_is_left(study, with_book, log)
        print(f"Complete after {console.duration(time.monotonic() - began)}.{index}")


def _check(study: Study, jobs: list[Job], key: bool = True) -> None:
    """Refuse what would fail late: no key for the judge, data or a model that is not there."""
    todo = {job.stage for job in jobs if job.state != DONE}
    judge = study.judge
    if key and "judge" in todo and judge and judge.backend == "openai":
        local = "127.0.0.1" in (judge.base_url or "") or "localhost" in (judge.base_url or "")
        if not os.environ.get(judge.api_key_env) and not local:
            raise HialignError(
                f"study {study.name} is judged by {judge.model}, but the environment has no "
                f"{judge.api_key_env}: set it, or put `judge: null` into a copy of the study"
            )
    if todo - {"judge", "book"}:
        for one in study.single_runs():
            load_pairs(one.preferences)
        for cell in study.cells():
            check_sizes(cell)


def _run(study: Study, name: str, cores: int, profile: str, jobs: list[Job], log: Path) -> int:
    """Have Snakemake run the jobs that are not done. Returns its exit code. `log` takes its output."""
    if find_spec("snakemake") is None:
        raise HialignError("snakemake is not installed: `pip install 'hialign[book]'`")
    where = paths.study_dir(study.name)
    with_book = any(job.stage == "book" for job in jobs)
    command = [
        *(sys.executable, "-m", "snakemake"),
        *("--snakefile", str(paths.workflow() / "Snakefile")),
        *("--directory", str(where)),
        *("--cores", str(cores)),
        *("--config", f"study={_absolute(name)}", f"book={with_book}", f"seed={study.seed}"),
        # Ours are the lock and the decision what to run: only a missing marker counts.
        *("--nolock", "--ignore-incomplete", "--drop-metadata", "--keep-going"),
        *("--rerun-triggers", "software-env"),
        # One cell at a time asks a judge behind an API, as often and for as much as the settings let.
        *("--resources", "judge_api=1"),
        *(["--profile", str(paths.workflow() / profile)] if profile else []),
    ]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PATH": path}
    environment[processes.THREADS] = str(processes.threads())
    if not profile:  # jobs of a cluster outlive this process
        environment[processes.WATCHED] = processes.watched()
    markers = dict.fromkeys(where / job.marker for job in jobs if job.state != DONE)
    log.parent.mkdir(exist_ok=True)
    print(f"{len(markers)} stages are to be run.", flush=True)
    with (
        processes.interruptible(),  # or Ctrl-C would leave the terminal without a cursor
        console.Board([*markers]) as board,
        log.open("w", encoding="utf-8") as stream,
    ):
        return processes.supervised(
            command, environment, paths.scratch(study.name), stream, meanwhile=board.update
        )


def _refuse_what_is_left(study: Study, with_book: bool, log: Path) -> None:
    """HialignError with what to do, if a job of the study is not done."""
    left = [job for job in jobs_of(study, with_book=with_book) if job.state != DONE]
    if not left:
        return
    first = next((job for job in left if job.state.status == "failed"), left[0])
    again = f"`hialign reproduce {study.argument}` goes on from here"
    if first.stage == "judge" and not first.state.why.startswith("its"):
        again = f"`hialign judge {study.argument} --retry-failed` asks for these again"
    raise HialignError(
        f"study {study.name} is not complete: {first.what} {first.state} (one of {len(left)} "
        f"jobs that are not done, see `hialign status {study.argument}`); {again}, and "
        f"`hialign book {study.argument}` builds what there is (the log of the workflow: {log})"
    )


def _absolute(name: str) -> str:
    """A study file's absolute path, or a study's name as it is."""
    return os.path.abspath(name) if name.endswith((".yml", ".yaml")) else name
