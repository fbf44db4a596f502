"""The pages that a build adds to those of `book/`: a page a cell, the executed notebooks, sources.

What records hold came from outside (names, devices, errors): it is escaped wherever it is put into a
page.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hialign import execution, exhibits, paths, records
from hialign.display import Table
from hialign.files import read_record
from hialign.repository import badge
from hialign.status import probe_state, stage_manifest, state
from hialign.study import PROBES, STAGES, Cell, ModelSettings, Study

SHOWN = re.compile(r'^```\{code-cell\}[^`]*?book\.show\(study, "([a-z0-9-]+)"\)\n```\n', re.M)
MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation, which a backslash makes plain text


def with_sources(text: str, study: Study) -> str:
    """A page's text with a line under each exhibit: its data, what drew it, the runs behind it."""
    return SHOWN.sub(lambda m: m[0] + "\n" + raw(_source(study, m[1])) + "\n", text)


def _source(study: Study, name: str) -> str:
    exhibit, known = exhibits.EXHIBITS[name], exhibits.about(study, name)
    kinds = (["csv", "json"] if exhibit.has_data else []) + (
        ["svg", "png"] if exhibit.is_figure else []
    )
    files = " ".join(f'<a href="data/{name}.{k}" download>{k.upper()}</a>' for k in kinds)
    module = Path(known["file"]).stem
    lines = f"lines {known['line']} to {known['last_line']}"
    function = (
        f'<a href="source/{module}.html#line-{known["line"]}"><code>{known["function"]}</code></a>'
    )
    commit = f"commit {escape(str(known['commit'] or 'unknown'))}"
    runs = ", ".join(_run_link(study, run) for run in known["runs"]) or "none"
    command = escape(known["command"])
    rows = {"Data": files} if files else {}
    rows |= {"Drawn by": f"{function}, {lines} at {commit}"}
    rows |= {"From": runs} if exhibit.stages or exhibit.probes else {}
    rows |= {"Make it again": f"<code>{command}</code>"}
    inner = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows.items())
    title = escape(exhibit.title)
    return (
        f'<details class="source"><summary>Data and source of <span>{title}</span></summary>'
        f"<dl>{inner}</dl></details>"
    )


def _run_link(study: Study, run: dict[str, str]) -> str:
    if not run["block"]:
        model = study.model(run["model"])
        words = escape(f"{run['stage'].replace('-', ' ')} {model.label}")
        return f'<a href="data/runs/{_probe_file(model, run["stage"])}" download>{words}</a>'
    cell = study.cell(run["model"], run["block"])
    words = escape(f"{run['stage']} {cell.model.label} {cell.strategy}")
    return f'<a href="{_page_name(cell)}.html">{words}</a>'


def _probe_file(model: ModelSettings, stage: str) -> str:
    return f"{paths.slug(model.name)}-{stage}.json"


def _page_name(cell: Cell) -> str:
    return f"runs/{paths.slug(cell.model.name)}-{paths.slug(cell.block)}"


def raw(html: str) -> str:
    """`html` for a MyST page, in a fence that nothing in it can close."""
    longest = max((len(run) for run in re.findall(r"`+", html)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{{raw}} html\n{html}\n{fence}\n"


def plain(text: str) -> str:
    """`text` from outside as Markdown that means just that text."""
    return MARKUP.sub(lambda m: "\\" + m[0], " ".join(text.split()))


# --- a page a cell -------------------------------------------------------------------------------


def add_runs(study: Study, folder: Path) -> list[list[str]]:
    """Write a page for each cell, and its executed notebooks as pages below it; their names.

    A notebook that failed is not among them: its page would look like a result. Its error is on the
    cell's page.
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
            page = folder.parent / f"{_page_name(cell)}.md"
            # Base has no part in a pass but as the reference
            shared = together if cell.block != "base" else []
            page.write_text(_cell_page(cell, [*shared, *below]), encoding="utf-8")
            found.append([_page_name(cell), *below])
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
        source = paths.notebook_output(study.name, stage, model, block)
        if source.is_file():
            book = nbformat.read(source, as_version=4)
            words = stage.replace("-", " ").capitalize()
            page = as_page(book, f"{words}: {plain(title)}", badge(stage))
            nbformat.write(page, folder / source.name)
            names.append(f"runs/{source.stem}")
    return names


def _cell_page(cell: Cell, notebooks: list[str]) -> str:
    parts = [f"# {plain(f'{cell.strategy}, {cell.model.label}')}", _status(cell)]
    stages = execution.stages(cell.study, [cell]).drop(columns=["Model", "Strategy"])
    parts += ["## Stages", table(stages)]
    if notebooks:
        links = [f"[{name.removeprefix('runs/').split('-')[0]}](/{name})" for name in notebooks]
        parts.append("The executed notebooks: " + ", ".join(links) + ".")
    if failures := execution.errors(cell):
        parts += ["## Errors", *(raw(f"<pre>{escape(text)}</pre>") for text in failures)]
    if (cell.folder / "training.jsonl").is_file() and state(cell).trusted:
        slug = Path(_page_name(cell)).name
        parts += ["## Training curves", raw(_picture(slug, cell))]
    manifest = stage_manifest(cell, "train")
    if state(cell).trusted:
        content = read_record(manifest)
        parts += ["## What was trained", table(execution.facts_of(content))]
        parts += ["## Parameters", table(execution.flat(content.get("settings", {})))]
        parts += ["## Environment", table(execution.environment(content))]
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
    slug = Path(_page_name(cell)).name
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

    from hialign import figures

    folder.mkdir(parents=True, exist_ok=True)
    for model in study.models:
        for probe in PROBES:
            file = paths.probe_record(study.name, model.name, probe)
            if probe_state(study, model, probe).trusted:
                shutil.copy(file, folder / _probe_file(model, f"probe-{probe}"))
    for cell in study.cells():
        slug = Path(_page_name(cell)).name
        for path in _public(cell):
            shutil.copy(path, folder / f"{slug}-{path.name}")
        if (folder / f"{slug}-training.jsonl").is_file():
            exhibits.save(figures.curves(cell), folder / f"{slug}.svg")


def table(frame: pd.DataFrame) -> str:
    """Within the classes by which the theme knows a notebook's output."""
    html = Table(frame)._repr_html_()
    return raw(f'<div class="cell"><div class="cell_output">{html}</div></div>')


# --- sources -------------------------------------------------------------------------------------


def write_sources(folder: Path) -> None:
    """The modules that draw exhibits, as pages with an anchor a line: `judged.html#line-41`."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    folder.mkdir(parents=True, exist_ok=True)
    look = HtmlFormatter(linenos="inline", lineanchors="line")
    files = {exhibits.source_file(exhibit.draw) for exhibit in exhibits.EXHIBITS.values()}
    for file in sorted(files):
        code = highlight((paths.package().parent / file).read_text("utf-8"), PythonLexer(), look)
        title = escape(f"{file} at commit {records.commit() or 'unknown'}")
        page = SOURCE.format(title=title, code=code)
        (folder / f"{Path(file).stem}.html").write_text(page, encoding="utf-8")


SOURCE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ background: Canvas; color: CanvasText; color-scheme: light dark; }}
a {{ color: inherit; }}
body {{ font: 16px sans-serif; margin: 1rem; overflow-wrap: anywhere; }}
pre {{ font-size: 0.85rem; line-height: 1.4; overflow-x: auto; }}
:target {{ outline: 2px solid; }}
</style>
<main>
<h1>{title}</h1>
<p><a href="../index.html">Back to the book</a></p>
{code}
</main>
</html>
"""


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
    """Write `_toc.yml`: the pages of `book/`, and the runs behind them; the names of all pages."""
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
