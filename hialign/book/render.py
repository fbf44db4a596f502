"""Pages of `book/` with a study's facts, figures and tables put in, once, by Jinja in its sandbox.

What a page shows comes from outside: from a study's file, from models and from judges. Each value is
escaped, so that it stands on the page as just that text. What Jinja has rendered is never a template
again.
"""

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hialign.book import notebooks
from hialign.book.claim_pages import claim_sections
from hialign.book.markup import output, plain, raw
from hialign.book.sources import source
from hialign.records.files import read_json
from hialign.report.exhibits import EXHIBITS
from hialign.report.facts import facts
from hialign.study.blocks import split_layers
from hialign.study.errors import HialignError
from hialign.study.study import Study


class Markdown(str):
    """A text that is Markdown already. All others are escaped."""


def render(study: Study, folder: Path) -> None:
    """Render the pages in `folder`. The exhibits have been written to its `data/` before.

    Pages may use every fact of `hialign.report.facts` by its name, and the functions below. Raises
    HialignError for a page that names something else.
    """
    pages = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, finalize=_escaped, keep_trailing_newline=True
    )

    def show(name: str, **options: Any) -> Markdown:
        return Markdown(_exhibit(study, folder / "data", name, **options))

    pages.globals = {
        **facts(study),
        "show": show,
        "has": lambda name: not _said_instead(folder / "data", name),
        "claims": lambda: Markdown(claim_sections(study)),
        "notebooks": lambda: Markdown(notebooks.listing()),
        "output": lambda value: Markdown(f"```text\n{value}\n```"),
        "split_layers": split_layers,
    }
    for path in sorted(folder.glob("*.md")):
        try:
            text = pages.from_string(path.read_text(encoding="utf-8")).render()
        except (TemplateError, HialignError) as error:
            raise HialignError(f"the page book/{path.name} cannot be rendered: {error}") from None
        path.write_text(text, encoding="utf-8")


def _escaped(value: object) -> str:
    return value if isinstance(value, Markdown) else plain(str(value))


def _exhibit(
    study: Study,
    data: Path,
    name: str,
    label: str = "",
    alt: str = "",
    side: bool = False,
    folded: bool = False,
    caller: Callable[[], str] | None = None,
) -> str:
    """A table, or a figure with its caption (the text of the `call` block), and its source.

    `label` is what other pages link to, `alt` the text for who cannot see the figure. `side` puts a
    figure beside the text, `folded` hides a table until a reader asks for it. An exhibit that has
    nothing to show is one line.
    """
    if instead := _said_instead(data, name):
        target = [f"({label})="] if label else []
        return "\n".join([*target, f"*{plain(EXHIBITS[name].title)}: {plain(instead)}.*"])
    below = raw(source(study, name))
    if EXHIBITS[name].is_figure:
        if caller is None or not alt:
            raise HialignError(f"{name} needs a caption and a text for `alt`")
        options = {"name": label, "alt": " ".join(alt.split()), "figclass": "side" if side else ""}
        lines = [f":{key}: {json.dumps(value)}" for key, value in options.items() if value]
        text = f"{caller().strip()}\n\n{below}" if side else caller().strip()
        figure = "\n".join([f"````{{figure}} data/{name}.svg", *lines, "", text, "````"])
        return figure if side else f"{figure}\n\n{below}"
    html = (data / f"{name}.html").read_text(encoding="utf-8")
    if folded:
        summary = f"<summary>Show the table: {escape(EXHIBITS[name].title)}</summary>"
        html = f'<details class="folded">{summary}{html}</details>'
    return f"{output(html)}\n\n{below}"


def _said_instead(data: Path, name: str) -> str:
    """What a page says in the place of an exhibit that has nothing to show. Otherwise empty."""
    if name not in EXHIBITS:
        raise HialignError(f"there is no exhibit {name!r} to show")
    file = data / f"{name}.json"
    return str(read_json(file).get("empty", "")) if file.is_file() else ""
