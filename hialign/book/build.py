"""From records to HTML: the exhibits, the pages, the executed notebooks, the build."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from hialign.records import files, processes
from hialign.records.stages import stage_manifest
from hialign.records.status import DONE, State
from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.study import Study, stages_of

RECORD = ".book.json"  # in a built book: what it was made of
# All that book/ imports: the import contracts in pyproject.toml keep the other rooms out.
ROOMS = ("book", "report", "records", "study", "statistics")


def state(study: Study) -> State:
    """Whether the study's book shows what there is now."""
    place = paths.html_dir(study.name)
    if not (place / "index.html").is_file():
        return State("missing")
    record = place / RECORD
    try:
        key = files.read_record(record).get("key") if record.is_file() else None
    except HialignError:
        key = None
    return DONE if key == _key(study) else State("stale", "what it is made of has changed")


def _key(study: Study) -> str:
    """A hash of all that the book is made of: the study, its records and notebooks, the pages, and
    the rooms of the package that make a book of them."""
    hashes = sorted((name, files.sha256_of(path)) for name, path in _made_of(study))
    return json_sha256([study.model_dump(mode="json"), hashes], 16)


def _made_of(study: Study) -> set[tuple[str, Path]]:
    """The files that a book is made of, each with its path below its folder."""
    records = paths.study_dir(study.name)
    folders = {
        records: [
            "*/probes/*.json",
            "*/probes/*/*.json",
            "notebooks/*.ipynb",
            "judge-validation-*.json",
        ],
        paths.root(): ["_config.yml"],
        paths.book_source(): ["**/*"],
        paths.notebooks(): ["*.ipynb"],
        paths.package(): [f"{room}/**/*" for room in ROOMS],
    }
    manifests = [stage_manifest(cell, stage) for cell in study.cells() for stage in stages_of(cell)]
    made_of = {(str(path.relative_to(records)), path) for path in manifests}
    for folder, patterns in folders.items():
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            made_of.add((str(path.relative_to(folder)), path))
    made_of |= set(_answers_files(study))
    return {(name, path) for name, path in made_of if path.is_file() and path.suffix != ".pyc"}


def _answers_files(study: Study) -> Iterator[tuple[str, Path]]:
    """The records of the registered study whose answer the book leads with, and the registration."""
    from hialign.report.replication.registered import answering, registration

    with answering(study) as shown:
        if shown is None:
            return
        if found := registration(shown):
            yield found.file.name, found.file
        folder = paths.study_dir(shown.name)
        for file in folder.glob("*/**/*.json"):
            yield f"answer/{file.relative_to(folder)}", file


def build(study: Study) -> Path:
    """Build the study's book from what has run so far. Returns the path of its `index.html`.

    Every warning is an error, and a page without HTML is one too. The book that was there before
    stays until the new one is whole.
    """
    from hialign.book import pages, render, sources, theme
    from hialign.book import responses as explorer
    from hialign.report import exhibits

    key = _key(study)  # of what is read from here on
    study = study.at()  # pages of single runs show the first seed's
    work = paths.study_dir(study.name) / ".book"
    shutil.rmtree(work, ignore_errors=True)
    try:
        shutil.copytree(paths.book_source(), work)
        shutil.copy(paths.root() / "_config.yml", work / "_config.yml")
    except OSError as error:
        raise HialignError(f"cannot write {work}: {error.strerror or error}") from None
    data = work / "data"
    exhibits.write_all(study, data)
    pages.write_records(study, data / "runs")
    pages.write_registration(study, data)
    render.render(study, work)
    html = _html(study, work, pages.write_toc(work, pages.add_runs(study, work / "runs")))
    for table in data.glob("table-*.html"):  # a part of its page
        table.unlink()
    shutil.move(data, html / "data")
    sources.write_sources(html / "source")
    theme.mend(html)
    explorer.write(study, html / "explore")
    files.write_record(html / RECORD, {"key": key})
    place = paths.html_dir(study.name)
    files.replace_folder(html, place)
    return place / "index.html"


def _html(study: Study, work: Path, names: list[str]) -> Path:
    """Have Jupyter Book make HTML of the pages called `names`. Returns the folder of the HTML.

    Raises HialignError naming the first warning, or the first page that has not been built.
    """
    log = work.with_name(".book.log")
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", "-n", "-W", "--keep-going", str(work)]
    with log.open("w", encoding="utf-8") as stream:
        code = processes.supervised(command, os.environ, paths.scratch(study.name), stream)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8")).splitlines()
    warnings = [line for line in lines if re.search(r"\b(WARNING|ERROR)\b", line)]
    html = work / "_build" / "html"
    unbuilt = [name for name in names if not (html / f"{name}.html").is_file()]
    if code or warnings or unbuilt:
        pages = [f"page {name} was not built" for name in unbuilt]
        first = [*warnings, *pages, *lines[-1:], f"exit code {code}"][0]
        raise HialignError(
            f"the book of {study.name} was not built ({len(warnings)} warnings, {len(unbuilt)} "
            f"pages missing). The first is: {first.replace(str(work), 'book')[:400]} (all in {log})"
        )
    return html
