"""What a reader finds below an exhibit: its data, what drew it, the runs behind it."""

from html import escape
from pathlib import Path

from hialign.records import provenance
from hialign.report import exhibits
from hialign.study import paths
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell, Study


def source(study: Study, name: str) -> str:
    """What stands below an exhibit, as HTML that a reader unfolds."""
    exhibit, about = exhibits.EXHIBITS[name], exhibits.about(study, name)
    kinds = (["csv", "json"] if exhibit.has_data else []) + (
        ["svg", "png"] if exhibit.is_figure else []
    )
    files = " ".join(f'<a href="data/{name}.{k}" download>{k.upper()}</a>' for k in kinds)
    lines = f"lines {about['line']} to {about['last_line']}"
    page = f"source/{source_page(about['file'])}#line-{about['line']}"
    function = f'<a href="{page}"><code>{about["function"]}</code></a>'
    commit = f"commit {escape(str(about['commit'] or 'unknown'))}"
    runs = ", ".join(_run_link(study, run) for run in about["runs"]) or "none"
    command = escape(about["command"])
    rows = {"Data": files} if files else {}
    rows |= {"Drawn by": f"{function}, {lines} at {commit}"}
    rows |= {"From": runs} if exhibit.records else {}
    rows |= {"Study": escape(about["study"])} if exhibit.registered else {}
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
        return f'<a href="data/runs/{probe_file(model, run["stage"])}" download>{words}</a>'
    cell = study.cell(run["model"], run["block"])
    words = escape(f"{run['stage']} {cell.model.label} {cell.strategy}")
    return f'<a href="{page_name(cell)}.html">{words}</a>'


def probe_file(model: ModelSettings, stage: str) -> str:
    return f"{paths.slug(model.name)}-{stage}.json"


def page_name(cell: Cell) -> str:
    return f"runs/{paths.slug(cell.model.name)}-{paths.slug(cell.block)}"


def source_page(file: str) -> str:
    """The page of a module: `report.where.ila.html`, as modules of two rooms may share a name."""
    return file.removeprefix("hialign/").removesuffix(".py").replace("/", ".") + ".html"


def write_sources(folder: Path) -> None:
    """The modules that draw exhibits, as pages with an anchor for each line (`#line-41`)."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    folder.mkdir(parents=True, exist_ok=True)
    look = HtmlFormatter(linenos="inline", lineanchors="line")
    files = {exhibits.source_file(exhibit.draw) for exhibit in exhibits.EXHIBITS.values()}
    for file in sorted(files):
        code = highlight((paths.package().parent / file).read_text("utf-8"), PythonLexer(), look)
        title = escape(f"{file} at commit {provenance.commit() or 'unknown'}")
        page = SOURCE.format(title=title, code=code)
        (folder / source_page(file)).write_text(page, encoding="utf-8")


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
