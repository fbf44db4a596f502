"""From records to HTML: the pages, the executed notebooks, the table of contents, the build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from hialign import paths
from hialign.errors import HialignError
from hialign.facts import facts
from hialign.study import STAGES, Study, load_study

# What kernels log of themselves as they start and stop; it says nothing of a page
KERNEL = re.compile(r"IPKernelApp|^(WARNING|ERROR):(tornado|asyncio|traitlets)\b")
STUDY_VARIABLE = "HIALIGN_STUDY"  # tells the pages, which run in kernels, which study they show


def page() -> Study:
    """The study that the book is built for; the first call of every page that computes."""
    from hialign.plots import style

    style()
    return load_study(os.environ.get(STUDY_VARIABLE, "demo"))


class Text(str):
    """A text that glue shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def glue_facts(study: Study) -> None:
    """Make every fact of the study available to the page's prose."""
    from myst_nb import glue

    for name, value in facts(study).items():
        glue(name, Text(value), display=False)


def build(study: Study) -> Path:
    """Build the study's book from what has run so far; the path of its `index.html`.

    Every warning is an error, and a page without HTML is one too. The book that was there before
    stays until the new one is whole.
    """
    work = paths.study_dir(study.name) / ".book"
    shutil.rmtree(work, ignore_errors=True)
    try:
        shutil.copytree(paths.book_source(), work)
        shutil.copy(paths.root() / "_config.yml", work / "_config.yml")
    except OSError as error:
        raise HialignError(f"cannot write {work}: {error.strerror or error}") from None
    (work / "study.json").write_text(study.model_dump_json())
    pages = _write_toc(work, _add_runs(study, work / "runs"))
    log = work.with_name(".book.log")
    environment = os.environ | {STUDY_VARIABLE: _study_argument(study, work)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    start = "from hialign.kernels import build_book; build_book()"
    command = [sys.executable, "-c", start, "build", "-n", "-W", "--keep-going"]
    with log.open("w") as stream:
        done = subprocess.run(
            [*command, str(work)], stdout=stream, stderr=subprocess.STDOUT, env=environment
        ).returncode
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    problems = [
        line
        for line in text.splitlines()
        if re.search(r"\b(WARNING|ERROR)\b", line) and not KERNEL.search(line)
    ]
    html = work / "_build" / "html"
    unbuilt = [p for p in pages if not (html / f"{p}.html").is_file()]
    if done or problems or unbuilt:
        first = (
            problems or [f"page {p} was not built" for p in unbuilt] or text.splitlines()[-1:]
        )[0]
        raise HialignError(
            f"the book of {study.name} was not built ({len(problems)} warnings, {len(unbuilt)} "
            f"pages missing); the first: {first.replace(str(work), 'book')[:400]} (all in {log})"
        )
    place = paths.html_dir(study.name)
    old = place.with_name(".html.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    html.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return place / "index.html"


def _study_argument(study: Study, work: Path) -> str:
    """How the pages name the study: as a file that holds exactly what this process has loaded."""
    place = work / f"{study.name}.yml"
    place.write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    return str(place)


def _add_runs(study: Study, folder: Path) -> list[list[str]]:
    """Copy the study's executed notebooks as pages; for each cell their names, in order of stages.

    A notebook that failed is not among them: its page would look like a result.
    """
    import nbformat

    folder.mkdir()
    found: list[list[str]] = []
    for model in study.models:
        for block in ("all", *study.blocks):  # "all": trained in one pass
            names = []
            for stage in STAGES:
                source = paths.notebook_output(study.name, stage, model.name, block)
                if source.is_file():
                    book = nbformat.read(source, as_version=4)
                    what = "all blocks" if block == "all" else block
                    title = f"{stage.capitalize()}: {model.label}, {what}"
                    nbformat.write(as_page(book, title), folder / source.name)
                    names.append(f"runs/{source.stem}")
            found += [names] if names else []
    return found


def as_page(book: Any, title: str) -> Any:
    """An executed notebook as a page: its own title, no papermill cell, names unique in the book."""
    cells = []
    for cell in book.cells:
        tags = set(cell.metadata.get("tags", []))
        if "injected-parameters" in tags:
            cell.metadata["tags"] = sorted(tags | {"remove-input"})
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output.get("output_type") == "stream":  # a bar redraws its line: keep the last state
                lines = output["text"].split("\n")
                output["text"] = "\n".join(line.rsplit("\r", 1)[-1] for line in lines)
            _without_scripts(output)
        if outputs:
            cell.outputs = [o for o in outputs if o.get("text", "x").strip()]
        cells.append(cell)
    if cells and cells[0].cell_type == "markdown":
        rest = cells[0].source.split("\n", 1)[1:]
        cells[0].source = "\n".join([f"# {title}", *rest])
    book.cells = cells
    return book


def _without_scripts(output: Any) -> None:
    """Take out what would run or load in a browser: the book shows pictures, tables and text."""
    data = output.get("data", {})
    for kind in list(data):
        if kind.startswith("application/") and kind != "application/json":
            del data[kind]


def _write_toc(work: Path, runs: list[list[str]]) -> list[str]:
    """Write `_toc.yml`: the paper's pages, and the runs behind them; the names of all pages."""
    toc = yaml.safe_load((work / "_toc.yml").read_text())
    pages = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    if runs:
        chapters = [
            {"file": first, **({"sections": [{"file": name} for name in rest]} if rest else {})}
            for first, *rest in runs
        ]
        toc["parts"].append({"caption": "Runs", "chapters": chapters})
    (work / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    return [*pages, *(name for names in runs for name in names)]
