"""From records to HTML: the pages, the executed notebooks, the table of contents, the build."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from hialign.book import sources, write
from hialign.records import files, processes
from hialign.records.stages import stage_manifest
from hialign.records.status import DONE, State
from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.study import Study, load_study, stages_of

# What kernels log of themselves as they start and stop; it says nothing of a page
KERNEL = re.compile(r"IPKernelApp|^(WARNING|ERROR):(tornado|asyncio|traitlets)\b")
RECORD = ".book.json"  # in a built book: what it was made of
# What a build tells its pages, which run in kernels: the study, and where its exhibits were written
STUDY_VARIABLE, EXHIBITS_VARIABLE = "HIALIGN_STUDY", "HIALIGN_EXHIBITS"


def page() -> Study:
    """The study that the book is built for, its facts at hand for the page's prose (as glue).

    The first call of every page that computes.
    """
    study = load_study(os.environ.get(STUDY_VARIABLE, "demo"))
    glue_facts(study)
    return study


def show(study: Study, name: str) -> Any:
    """An exhibit of `hialign.report.exhibits`: as the build has written it, else drawn now."""
    from IPython.display import HTML, SVG

    folder = os.environ.get(EXHIBITS_VARIABLE)
    if folder:
        figure = name.startswith("figure")
        text = (Path(folder) / f"{name}.{'svg' if figure else 'html'}").read_text(encoding="utf-8")
        return SVG(text) if figure else HTML(text)
    from hialign.report import exhibits, plots

    plots.style()
    return exhibits.draw(study, name)


class Text(str):
    """A text that glue shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def glue_facts(study: Study) -> None:
    """Make every fact of the study available to the page's prose."""
    from myst_nb import glue

    folder = os.environ.get(EXHIBITS_VARIABLE)
    if folder:
        found = files.read_json(Path(folder) / "facts.json")
    else:
        from hialign.report.facts import facts

        found = facts(study)
    for name, value in found.items():
        glue(name, Text(value), display=False)


def state(study: Study) -> State:
    """Whether the study's book shows what there is now."""
    place = paths.html_dir(study.name)
    if not (place / "index.html").is_file():
        return State("missing")
    record = place / RECORD
    try:
        known = files.read_record(record).get("key") if record.is_file() else None
    except HialignError:
        known = None
    return DONE if known == _key(study) else State("stale", "what it is made of has changed")


def _key(study: Study) -> str:
    """A hash of all that the book is made of: the study, its records and notebooks, the pages and
    the package."""
    folder = paths.study_dir(study.name)
    manifests = [stage_manifest(c, stage) for c in study.cells() for stage in stages_of(c)]
    patterns = ("*/probes/*.json", "notebooks/*.ipynb", "judge-validation-*.json")
    code = [p for p in paths.package().rglob("*") if p.suffix in (".py", ".yml", ".json")]
    made_of = {
        folder: [*manifests, *(p for pattern in patterns for p in folder.glob(pattern))],
        paths.book_source(): [*paths.book_source().rglob("*")],
        paths.package(): code,
    }
    hashes = sorted(
        (str(path.relative_to(place)), files.sha256_of(path))
        for place, found in made_of.items()
        for path in found
        if path.is_file()
    )
    return json_sha256([study.model_dump(mode="json"), hashes], 16)


def build(study: Study) -> Path:
    """Build the study's book from what has run so far; the path of its `index.html`.

    Every warning is an error, and a page without HTML is one too. The book that was there before
    stays until the new one is whole.
    """
    from hialign.book import claim_pages, pages, theme
    from hialign.book import responses as explorer

    key = _key(study)  # of what is read from here on
    work = paths.study_dir(study.name) / ".book"
    shutil.rmtree(work, ignore_errors=True)
    try:
        shutil.copytree(paths.book_source(), work)
        shutil.copy(paths.root() / "_config.yml", work / "_config.yml")
    except OSError as error:
        raise HialignError(f"cannot write {work}: {error.strerror or error}") from None
    data = work / "data"
    write.write_all(study, data)
    pages.write_records(study, data / "runs")
    for path in work.glob("*.md"):
        text = sources.with_sources(path.read_text(encoding="utf-8"), study)
        sections = (data / "claims.md").read_text(encoding="utf-8")
        path.write_text(
            text.replace(f"\n{claim_pages.CLAIMS}\n", f"\n{sections}"), encoding="utf-8"
        )
    names = pages.write_toc(work, pages.add_runs(study, work / "runs"))
    log = work.with_name(".book.log")
    environment = os.environ | {STUDY_VARIABLE: _study_argument(study, work)}
    environment[EXHIBITS_VARIABLE] = str(data)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    start = "from hialign.book.kernels import build_book; build_book()"
    command = [sys.executable, "-c", start, "build", "-n", "-W", "--keep-going"]
    with log.open("w", encoding="utf-8") as stream:
        place = paths.scratch(study.name)
        done = processes.supervised([*command, str(work)], environment, place, stream)
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
    problems = [
        line
        for line in text.splitlines()
        if re.search(r"\b(WARNING|ERROR)\b", line) and not KERNEL.search(line)
    ]
    html = work / "_build" / "html"
    unbuilt = [p for p in names if not (html / f"{p}.html").is_file()]
    if done or problems or unbuilt:
        first = (
            problems or [f"page {p} was not built" for p in unbuilt] or text.splitlines()[-1:]
        )[0]
        raise HialignError(
            f"the book of {study.name} was not built ({len(problems)} warnings, {len(unbuilt)} "
            f"pages missing); the first: {first.replace(str(work), 'book')[:400]} (all in {log})"
        )
    parts = (*data.glob("table-*.html"), data / "facts.json", data / "claims.md")  # of pages
    for file in parts:
        file.unlink()
    shutil.move(data, html / "data")
    sources.write_sources(html / "source")
    theme.mend(html)
    explorer.write(study, html / "explore")
    files.write_record(html / RECORD, {"key": key})
    place = paths.html_dir(study.name)
    files.replace_folder(html, place)
    return place / "index.html"


def _study_argument(study: Study, work: Path) -> str:
    """How the pages name the study: as a file that holds exactly what this process has loaded."""
    place = work / f"{study.name}.yml"
    text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
    place.write_text(text, encoding="utf-8")
    return str(place)
