"""The notebooks as templates: the set-up cell that all share, and what the book says of each.

`python -m hialign.run.templates` writes the set-up cell, with the repository's address, into all of them.
"""

import ast
from typing import TYPE_CHECKING, Any

from hialign.book import repository
from hialign.study import paths
from hialign.study.study import PROBES, STAGES

if TYPE_CHECKING:
    from IPython.display import Markdown

TEMPLATES = (*STAGES, *(f"probe-{probe}" for probe in PROBES), "explore")
TAG = "remove-cell"  # of the set-up cell: the book leaves it out


def set_up_cell() -> str:
    """The source of the set-up cell, with what pip installs hialign from."""
    source = (paths.package() / "run" / "setup_cell.py").read_text(encoding="utf-8").rstrip()
    return source.removesuffix("_set_up()") + f'_set_up("{repository.package()}")'


def write_set_up() -> list[str]:
    """Bring the set-up cell of every template up to date; the names of those that were not."""
    import nbformat

    changed = []
    for name in TEMPLATES:
        path = paths.notebooks() / f"{name}.ipynb"
        book = nbformat.read(path, as_version=4)
        cell = next(c for c in book.cells if TAG in c.metadata.get("tags", []))
        if cell.source != set_up_cell():
            cell.source = set_up_cell()
            nbformat.write(book, path)
            changed.append(name)
    return changed


def described(name: str) -> dict[str, Any]:
    """A template's title, first paragraph and parameters: name, default and help of each."""
    import nbformat
    import papermill

    path = paths.notebooks() / f"{name}.ipynb"
    first = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")
    return {
        "title": first[0].removeprefix("# "),
        "text": first[1],
        "parameters": [
            (p["name"], ast.literal_eval(p["default"]), p["help"])
            for p in papermill.inspect_notebook(str(path)).values()
        ],
    }


def listing() -> "Markdown":
    """Each notebook: what it does, how it is run, the parameters that not all have, and its badge
    if there is one."""
    from IPython.display import Markdown

    items = []
    for name in TEMPLATES:
        found = described(name)
        example = " -p question '…'" if name == "explore" else " -p block mid"
        example = " -p study demo" if name.startswith("probe-") else example
        lines = [f"**{found['title']}** (`notebooks/{name}.ipynb`). {found['text']}"]
        lines += [f"`papermill notebooks/{name}.ipynb out.ipynb{example}`"]
        own = [p for p in found["parameters"] if p[0] not in ("study", "model")]
        lines += [f"`{p}` (`{default!r}`): {text}" for p, default, text in own]
        lines += [link] if (link := repository.badge(name)) else []
        items.append("\n".join(["- " + lines[0], *(f"  - {line}" for line in lines[1:])]))
    return Markdown("\n".join(items))


if __name__ == "__main__":
    for changed in write_set_up():
        print(f"notebooks/{changed}.ipynb")
