"""The notebooks' templates, as the page "The notebooks" lists them."""

import ast
from typing import Any

import nbformat
import papermill

from hialign.book import repository
from hialign.study import paths
from hialign.study.study import PROBES, STAGES

TEMPLATES = (*STAGES, *(f"probe-{probe}" for probe in PROBES), "explore")


def described(name: str) -> dict[str, Any]:
    """A template's title, first paragraph and parameters: name, default and help of each."""
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


def listing() -> str:
    """Each notebook: what it does, how it is run, the parameters that not all have, and its badge
    if there is one. In Markdown."""
    items = []
    for name in TEMPLATES:
        template = described(name)
        example = " -p question '…'" if name == "explore" else " -p block mid"
        example = " -p study demo" if name.startswith("probe-") else example
        lines = [f"**{template['title']}** (`notebooks/{name}.ipynb`). {template['text']}"]
        lines += [f"`papermill notebooks/{name}.ipynb out.ipynb{example}`"]
        own = [p for p in template["parameters"] if p[0] not in ("study", "model")]
        lines += [f"`{p}` (`{default!r}`): {text}" for p, default, text in own]
        lines += [link] if (link := repository.badge(name)) else []
        items.append("\n".join(["- " + lines[0], *(f"  - {line}" for line in lines[1:])]))
    return "\n".join(items)
