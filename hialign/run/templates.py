"""The notebooks as templates: what is written into them.

`make templates` writes the notebooks of the probes, which are one notebook with several texts
(`probes.yml`), and puts the set-up cell, with the repository's address, into all the others.
"""

import nbformat
import yaml
from nbformat import NotebookNode, v4

from hialign.book import repository
from hialign.book.notebooks import TEMPLATES
from hialign.study import paths

TAG = "remove-cell"  # of the set-up cell: the book leaves it out, and no record depends on it
PROBE_MODULES = {  # where the function is that measures a probe and is called like it
    "gradients": "hialign.probes.gradients.probe",
    "matrix": "hialign.probes.matrix",
    "ila": "hialign.probes.ila.probe",
    "patching": "hialign.probes.patching.probe",
    "sweep": "hialign.probes.sweep",
    "weights": "hialign.probes.weights",
    "frontier": "hialign.probes.frontier",
}
TITLE = """# {title}

{about}

Run the notebook step by step, or all at once with `papermill notebooks/probe-{probe}.ipynb out.ipynb -p study demo` or
`hialign run probe-{probe} -p study demo`."""
PARAMETERS = """\
study: str = "demo"  # a study in studies/, or the path of a .yml file
model: str = None  # one of the study's models (name, label or source), or a source of your own; None: its first
seed: str = None  # one of the study's seeds, such as 1, or shuffled-1 for a control; None: its first"""
BEGIN = """\
`begin(globals(), …)` checks the parameters above before anything is loaded, refuses names that it does not know, and
returns a *cell*: one model and one block of a study. A probe measures the model, so you choose no block here."""
BEGIN_CODE = """\
from hialign.run import show
from hialign.run.parameters import begin

cell = begin(globals(), "probe-{probe}")
show.heading("probe-{probe}", cell)"""
SETTINGS = "These are the settings of the probe. A study may set others under `probes:`."
MEASURE = """\
## The measurement

{measure}
If there is already a record for the same model, pairs and settings, nothing is measured again."""
MEASURE_CODE = """\
from {module} import {probe}

record = {probe}(cell)
show.costs(record)"""
LIMITS = "## What these numbers can and cannot say\n\n{limits}"


def set_up_cell() -> str:
    """The source of the set-up cell, with what pip installs hialign from."""
    source = (paths.package() / "run" / "setup_cell.py").read_text(encoding="utf-8").rstrip()
    return source.replace('_package = [""', f'_package = ["{repository.package()}"')


def probe_notebook(probe: str) -> NotebookNode:
    """The notebook of a probe, from its texts in `probes.yml`."""
    texts = yaml.safe_load((paths.package() / "run" / "probes.yml").read_text(encoding="utf-8"))
    texts = texts[probe] | {"probe": probe, "module": PROBE_MODULES[probe]}
    tag = {"tags": ["parameters"]}
    cells = [
        v4.new_markdown_cell(TITLE.format(**texts)),
        v4.new_code_cell(set_up_cell(), metadata={"tags": [TAG]}),
        v4.new_code_cell(PARAMETERS, metadata=tag),
        v4.new_markdown_cell(BEGIN),
        v4.new_code_cell(BEGIN_CODE.format(**texts)),
        v4.new_markdown_cell(f"## The question\n\n{texts['question']}\n{SETTINGS}"),
        v4.new_code_cell(f'show.settings(cell, "{probe}")'),
        v4.new_markdown_cell(MEASURE.format(**texts)),
        v4.new_code_cell(MEASURE_CODE.format(**texts)),
    ]
    for number, (view, sentence) in enumerate(texts["views"].items()):
        title = "" if number else "## What was found\n\n"
        cells.append(v4.new_markdown_cell(f"{title}{sentence.strip()}"))
        cells.append(v4.new_code_cell(f'show.view(cell, "{probe}", "{view}")'))
    cells.append(v4.new_markdown_cell(LIMITS.format(**texts).strip()))
    for number, cell in enumerate(cells):
        cell.id = str(number)
    language = {"name": "python"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": language})


def written(name: str) -> str:
    """The text of a template as it has to be."""
    if name.startswith("probe-"):
        book = probe_notebook(name.removeprefix("probe-"))
    else:
        book = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)
        set_up = next(cell for cell in book.cells if TAG in cell.metadata.get("tags", []))
        set_up.source = set_up_cell()
    return f"{nbformat.writes(book)}\n"


def write() -> list[str]:
    """Bring every template up to date. Returns the names of those that were not."""
    changed = []
    for name in TEMPLATES:
        path, text = paths.notebooks() / f"{name}.ipynb", written(name)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(name)
    return changed


if __name__ == "__main__":
    for changed in write():
        print(f"notebooks/{changed}.ipynb")
