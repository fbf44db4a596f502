"""The pages that a build adds to those of `book/`: one page per cell, the executed notebooks, sources.

What records hold came from outside (names, devices, errors): it is escaped wherever it is put into a
page.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from hialign.book.markup import plain, raw, table
from hialign.book.repository import badge
from hialign.book.sources import page_name, probe_file
from hialign.records.files import read_record
from hialign.records.stages import stage_manifest
from hialign.records.status import probe_state, state
from hialign.report import exhibits, run_tables
from hialign.report.replication.registered import answering, registration
from hialign.study import paths
from hialign.study.study import PROBES, STAGES, Cell, Study

# --- one page per cell -------------------------------------------------------------------------------


def add_runs(study: Study, folder: Path) -> list[list[str]]:
    """Write a page for each cell, with its executed notebooks as pages below it. Returns their names.

    A notebook that failed is left out, because its page would look like a result. Its error is on
    the cell's page.
    """
    folder.mkdir()
    found: list[list[str]] = []
    for model in study.models:
        probes = [f"probe-{probe}" for probe in PROBES]
        passes = {"all": "all blocks", "measured": "blocks that probes choose"}
        together: list[str] = []
        for block, words in passes.items():
            title = f"{model.label}, {words}"
            together += _notebooks(study, folder, model.name, block, title)
        measured = _notebooks(study, folder, model.name, "all", model.label, probes)
        found += [[*together, *measured]] if together or measured else []
        for cell in [c for c in study.cells() if c.model is model]:
            title = f"{cell.strategy}, {model.label}"
            below = _notebooks(study, folder, model.name, cell.block, title)
            page = folder.parent / f"{page_name(cell)}.md"
            # Base has no part in a pass but as the reference
            shared = together if cell.block != "base" else []
            page.write_text(_cell_page(cell, [*shared, *below]), encoding="utf-8")
            found.append([page_name(cell), *below])
    return found


def _notebooks(
    study: Study,
    folder: Path,
    model: str,
    block: str,
    title: str,
    stages: Sequence[str] = STAGES,
) -> list[str]:
    import nbformat

    names = []
    for stage in stages:
        source = paths.notebook_output(study.name, stage, model, block, study.seed)
        if source.is_file():
            book = nbformat.read(source, as_version=4)
            words = stage.replace("-", " ").capitalize()
            page = as_page(book, f"{words}: {plain(title)}", badge(stage))
            nbformat.write(page, folder / source.name)
            names.append(f"runs/{source.stem}")
    return names


def _cell_page(cell: Cell, notebooks: list[str]) -> str:
    parts = [f"# {plain(f'{cell.strategy}, {cell.model.label}')}", _status(cell)]
    stages = run_tables.stages(cell.study, [cell]).drop(columns=["Model", "Strategy"])
    parts += ["## Stages", table(stages)]
    if notebooks:
        links = [f"[{name.removeprefix('runs/').split('-')[0]}](/{name})" for name in notebooks]
        parts.append("The executed notebooks: " + ", ".join(links) + ".")
    if failures := run_tables.errors(cell):
        parts += ["## Errors", *(raw(f"<pre>{escape(text)}</pre>") for text in failures)]
    if (cell.folder / "training.jsonl").is_file() and state(cell).trusted:
        slug = Path(page_name(cell)).name
        parts += ["## Training curves", raw(_picture(slug, cell))]
    manifest = stage_manifest(cell, "train")
    if state(cell).trusted:
        content = read_record(manifest)
        parts += ["## What was trained", table(run_tables.facts_of(content))]
        parts += ["## Parameters", table(run_tables.flat(content.get("settings", {})))]
        parts += ["## Environment", table(run_tables.environment(content))]
    parts += ["## Records", raw(_record_links(cell))]
    return "\n\n".join(parts) + "\n"


def _status(cell: Cell) -> str:
    words = {
        "done": "trained with the study's present settings",
        "stale": "out of date, so that nothing of it is shown",
        "damaged": "its files are not those that were written, so that nothing of it is shown",
        "failed": "**failed**: what follows of it is not a result",
        "missing": "not trained yet",
    }
    found = state(cell)
    if found.status == "stale" and found.trusted:
        return "Status: trained with the study's present settings, and to be made again."
    untrained = found.status == "done" and cell.block == "base"
    return f"Status: {'the reference, which is not trained' if untrained else words[found.status]}."


def _picture(slug: str, cell: Cell) -> str:
    alt = escape(f"Curves of {cell.strategy} of {cell.model.label} by optimizer step", quote=True)
    return (
        f'<p><img src="../data/runs/{slug}.svg" alt="{alt}: loss, reward accuracy, reward margin,'
        f' gradient norm" style="max-width: 100%"></p>'
    )


def _record_links(cell: Cell) -> str:
    slug = Path(page_name(cell)).name
    kept = [path.name for path in _public(cell)]
    links = [f'<a href="../data/runs/{slug}-{name}" download>{name}</a>' for name in kept]
    return f"<p>{', '.join(links) or 'none yet'}</p>"


PUBLIC = {"manifest.json": "train", "training.jsonl": "train", "evaluation.json": "evaluate"}


def _public(cell: Cell) -> list[Path]:
    """The records of a cell that its page links to."""
    kept = [cell.folder / name for name, stage in PUBLIC.items() if state(cell, stage).trusted]
    return [path for path in kept if path.is_file()]


def write_records(study: Study, folder: Path) -> None:
    """The records of each cell that its page links to, and its curves as a picture."""
    import shutil

    from hialign.report import figures

    folder.mkdir(parents=True, exist_ok=True)
    for model in study.models:
        for probe in PROBES:
            file = paths.probe_record(study.name, model.name, probe, study.seed)
            if probe_state(study, model, probe).trusted:
                shutil.copy(file, folder / probe_file(model, f"probe-{probe}"))
    for cell in study.cells():
        slug = Path(page_name(cell)).name
        for path in _public(cell):
            shutil.copy(path, folder / f"{slug}-{path.name}")
        if (folder / f"{slug}-training.jsonl").is_file():
            exhibits.save(figures.curves(cell), folder / f"{slug}.svg")


def write_registration(study: Study, folder: Path) -> None:
    """The registration of the study whose answer the book leads with, word for word."""
    with answering(study) as shown:
        if shown is not None and (found := registration(shown)):
            text = found.file.read_bytes()  # as text: Jupyter Book would make a page of Markdown
            (folder / "registration.txt").write_bytes(text)


# --- notebooks -----------------------------------------------------------------------------------


def as_page(book: Any, title: str, link: str = "") -> Any:
    """An executed notebook as a page: its own title with `link` below it, no papermill cell."""
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
        cells[0].source = "\n".join([f"# {title}", *(["", link] if link else []), *rest])
    book.cells = cells
    return book


def _without_scripts(output: Any) -> None:
    """Take out what would run or load in a browser: the book shows pictures, tables and text."""
    data = output.get("data", {})
    for kind in list(data):
        if kind.startswith("application/") and kind != "application/json":
            del data[kind]


# --- contents ------------------------------------------------------------------------------------


def write_toc(work: Path, runs: list[list[str]]) -> list[str]:
    """Write `_toc.yml`: the pages of `book/`, and the runs behind them. Returns all pages' names."""
    toc = yaml.safe_load((work / "_toc.yml").read_text(encoding="utf-8"))
    pages = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    if runs:
        chapters = [
            {"file": first, **({"sections": [{"file": name} for name in rest]} if rest else {})}
            for first, *rest in runs
        ]
        toc["parts"].append({"caption": "Runs", "chapters": chapters})
    text = yaml.safe_dump(toc, sort_keys=False)
    (work / "_toc.yml").write_text(text, encoding="utf-8")
    return [*pages, *(name for names in runs for name in names)]
