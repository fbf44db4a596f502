"""What the book changes of its theme and of what Jupyter Book loads with it: no other host is asked.

A Sphinx extension (`setup`), and what is done to the built site (`mend`).
"""

import re
from pathlib import Path
from typing import Any

from hialign.report.display import SCROLLING

# name:[width,height,[other names],"code","path"] in Font Awesome's script
ICON = re.compile(r'("[a-z0-9-]+"|\b[a-z][a-z0-9]*):\[\d+,\d+,(\[[^\]]*\]),"[0-9a-f]+","[^"]*"\],?')


def setup(app: Any) -> dict[str, bool]:
    """Write formulas as MathML, which browsers draw, and leave out Thebe, which asks another host."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    for listeners in app.events.listeners.values():
        # Jupyter Book always loads it and has no setting against it.
        listeners[:] = [one for one in listeners if one.handler.__module__ != "sphinx_thebe"]
    # The theme puts a page's title into its header for printing as it is, markup and all.
    app.connect("html-page-context", _escape_title, priority=900)
    files = app.registry.css_files
    files[:] = [(name, attributes) for name, attributes in files if "thebe" not in name]
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _escape_title(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    from html import escape

    if "pagetitle" in context:
        context["pagetitle"] = escape(context["pagetitle"])


def _inline(writer: Any, node: Any) -> None:
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    writer.body.append(_spaced(convert(node.astext())))
    raise SkipNode


def _spaced(mathml: str) -> str:
    """Functions' names as operators, which stand apart from what follows: log x, not logx."""
    named = r'<mo form="prefix" lspace="0.17em" rspace="0.17em">\1</mo>'
    return re.sub("<mi>(log|exp|min|max)</mi>", named, mathml)


def _display(writer: Any, node: Any) -> None:
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert
    from sphinx.util.math import get_node_equation_number

    writer.body.append(writer.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append(_spaced(convert(node.astext(), display="block")) + "</div>\n")
    raise SkipNode


# What the theme's and Sphinx's HTML lacks for a screen reader
NAMELESS = '<summary><span class="toctree-toggle" role="presentation">'
NAMED = NAMELESS.replace("<summary>", '<summary aria-label="Show or hide the pages below">')


def mend(html: Path) -> None:
    """Take out of a built site what no page uses, most of Font Awesome (1.5 MB) above all, and give
    controls the names that screen readers ask for."""
    for path in (*html.rglob("*.map"), *(html / "_static").glob("*.html")):
        path.unlink()
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        better = text.replace(NAMELESS, NAMED)
        # its entries are no list items to a browser
        better = better.replace('<div role="list" class="citation', '<div class="citation')
        better = better.replace('<div style="overflow-x: auto">', SCROLLING)  # of older notebooks
        if better != text:
            path.write_text(better, encoding="utf-8")
    awesome = html / "_static" / "scripts" / "fontawesome.js"
    if awesome.is_file():
        pages = [p for p in html.rglob("*") if p.suffix in (".html", ".js") and p != awesome]
        used = {
            name
            for page in pages
            for name in re.findall(r"\bfa-([a-z0-9-]+)", page.read_text("utf-8", errors="replace"))
        }
        text = awesome.read_text(encoding="utf-8")

        def kept(icon: re.Match[str]) -> str:
            names = re.findall(r"[a-z][a-z0-9-]*", icon[1] + icon[2])
            return icon[0] if used & set(names) else ""

        awesome.write_text(ICON.sub(kept, text), encoding="utf-8")
