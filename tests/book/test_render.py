"""Pages as Jinja renders them: what comes from outside is text, and a wrong name is an error."""

import re
import shutil
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from simulated import simulate

from hialign.book import render
from hialign.report import exhibits
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Study

EVIL = "{{ 7*7 }} <script>x</script> {% raw %} ``` `code` [go](javascript:1) | **bold** {cite}`a`"


@pytest.fixture
def study(outputs: Path) -> Study:
    made = Study(
        name="made-up",
        title=EVIL,
        models=[{"source": "random:llama", "name": "small", "label": EVIL}],
        blocks=["base", "mid"],
        judge=None,
    )
    simulate(made, prompts=5, steps=3)
    return made


def rendered(study: Study, folder: Path, text: str) -> str:
    """A page with `text`, as the book of the study has it."""
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    render.render(study, folder)
    return page.read_text(encoding="utf-8")


def test_a_value_from_outside_means_itself(study: Study, tmp_path: Path) -> None:
    page = rendered(study, tmp_path, "| a |\n| - |\n| **{{ study_title }}** |\n\n{{ models }}\n")
    html = MarkdownIt().enable("table").render(page)
    assert html.count("{{ 7*7 }} &lt;script&gt;x&lt;/script&gt; {% raw %} ``` `code` [go](") == 2
    assert html.count("<td>") == 1
    assert not re.search("<(script|code|a|em)", html)
    assert rendered(study, tmp_path, page) == page, "something in it is still a template"


def test_a_value_cannot_leave_jinjas_sandbox(study: Study, tmp_path: Path) -> None:
    for text in ("{{ show.__globals__ }}", "{{ study_title.__class__.__mro__ }}"):
        with pytest.raises(HialignError, match=r"page book/page\.md cannot be rendered"):
            rendered(study, tmp_path, text)
    with pytest.raises(HialignError, match="cannot be rendered: 'range' is undefined"):
        rendered(study, tmp_path, "{{ range(9) }}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ n_pears }}", "'n_pears' is undefined"),
        ("{{ show('table-7') }}", "'table-7'"),
        ("{{ show('figure-1', alt='A scheme.') }}", "figure-1 needs a caption"),
        ("{% call show('figure-1') %}x{% endcall %}", "figure-1 needs a caption"),
        ("{% call show('figure-1') %}x", "unknown tag|Unexpected end"),
    ],
)
def test_what_a_page_names_has_to_be_there(
    study: Study, tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises(HialignError, match=rf"page\.md.*({why})"):
        rendered(study, tmp_path, text)


def test_an_exhibit_comes_with_its_data_and_source(study: Study, tmp_path: Path) -> None:
    for name in ("table-1", "figure-1"):
        (tmp_path / "data").mkdir(exist_ok=True)
        exhibits.write(study, name, tmp_path / "data")
    text = '{{ show("table-1") }}\n\n{% call show("figure-1", label="fig-x",\n alt="A: \\"b\\"\n c") %}\n'
    page = rendered(study, tmp_path, text + "A **caption** of {{ models }}.\n{% endcall %}\n")
    assert page.count('<details class="source">') == 2
    assert 'href="data/table-1.csv"' in page
    assert 'href="source/report.tables.html#line-' in page
    assert (
        '{figure} data/figure-1.svg\n:name: "fig-x"\n:alt: "A: \\"b\\" c"\n\nA **caption** of '
        in page
    )


def test_the_books_own_pages_name_only_what_there_is(study: Study, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for exhibit in exhibits.EXHIBITS.values():
        (tmp_path / "data" / f"{exhibit.name}.html").touch()
    for source in paths.book_source().glob("*.md"):
        shutil.copy(source, tmp_path)
    render.render(study, tmp_path)
    text = "".join(page.read_text(encoding="utf-8") for page in tmp_path.glob("*.md"))
    figures = [e for e in exhibits.EXHIBITS.values() if e.is_figure and not e.registered]
    captions = text.count("````{figure}")
    # one of them is on two pages, and two are left out where no record has their numbers
    assert captions == len(figures) - 1
    assert len(re.findall(r'^:alt: "[^"]{20,}"$', text, re.MULTILINE)) == captions
    assert text.count("**Explore: one question, every strategy**") == 1
    assert "{'local': range(0, 10), 'mid': range(10, 19), 'global': range(19, 28)}" in text
