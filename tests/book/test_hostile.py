"""A book in which everything that comes from outside is hostile: it is built, shown, and never run."""

from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from simulated import simulate

from hialign.book import build as book
from hialign.records.files import read_json, read_jsonl, write_json, write_jsonl
from hialign.records.stages import failed_notebook, judgments_file
from hialign.study.base import has_control
from hialign.study.study import Study

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EVIL = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    "[go](javascript:window.hacked=3) <svg onload=window.hacked=4> <!-- hidden --> {glue}`models` "
    "$\\frac{a$ `code` ```{raw} html\n<script>window.hacked=5</script>\n``` \x1b[31mred\x1b[0m "
    "\u202eleft\u2069 :::{note}\nx\n::: {{ 7*7 }} {{ claims() }} {% raw %} {{ undefined </pre></table></details></script>"
)
# As far as a study's own texts may go, which hold no control characters
PRINTED = "".join(" " if has_control(c) else c for c in EVIL)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a book whose labels, prompts, answers, reasons, errors and devices are EVIL."""
    place = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIALIGN_OUTPUTS", str(place))
        study = Study(
            name="hostile",
            title=PRINTED,
            description=PRINTED,
            models=[{"source": "random:llama", "name": "small", "label": PRINTED}],
            blocks=["base", "mid", "full"],
            judge={"backend": "openai", "model": PRINTED, "name": "evil"},
            evaluation={"resamples": 100},
        )
        simulate(study, prompts=8, steps=7)
        base, mid, full = study.cells()
        for cell in (base, mid):
            answers = read_jsonl(cell.folder / "responses.jsonl")
            for i, row in enumerate(answers):
                row |= {
                    "prompt": f"{EVIL} {i}",
                    "response": EVIL + "x" * (100_000 if i == 0 else 0),
                }
            write_jsonl(cell.folder / "responses.jsonl", answers)
            file = judgments_file(cell)
            found = read_jsonl(file)
            for row in found:
                row["reasons"] = dict.fromkeys(row["scores"], EVIL)
            found[0] |= {"scores": {}, "reasons": {}, "raw": EVIL, "error": EVIL}
            write_jsonl(file, found)
            manifest = read_json(cell.folder / "manifest.json")
            write_json(cell.folder / "manifest.json", manifest | {"device": EVIL})
        (full.folder / "manifest.json").unlink()
        failed = failed_notebook(full, "train")
        failed.parent.mkdir(parents=True, exist_ok=True)
        output = nbformat.v4.new_output("error", ename="E", evalue=EVIL, traceback=[EVIL])
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("train()", outputs=[output])]
        )
        nbformat.write(notebook, failed)
        yield book.build(study).parent


def test_nothing_of_it_runs(hostile: Path, chromium: Any) -> None:
    names = sorted(str(p.relative_to(hostile)) for p in hostile.rglob("*.html"))
    assert len(names) > 15
    for name in names:
        page = chromium.new_page()
        asked: list[str] = []
        dialogs: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("dialog", lambda dialog, dialogs=dialogs: dialogs.append(dialog.message))
        page.goto(f"file://{hostile}/{name}")
        page.wait_for_load_state("load")
        assert page.evaluate("window.hacked") is None, name
        assert dialogs == [], name
        assert [u for u in asked if not u.startswith(("file:", "data:"))] == [], name
        links = page.evaluate("[...document.links].map(a => a.href)")
        assert not [u for u in links if u.startswith("javascript:")], name
        page.close()


def test_it_is_shown_as_text(hostile: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.goto(f"file://{hostile}/runs/small-mid.html")
    assert "<script>window.hacked=1</script>" in page.inner_text("h1")
    page.goto(f"file://{hostile}/appendix-d.html")
    assert "window.hacked=1" in page.inner_text("article")
    page.goto(f"file://{hostile}/runs/small-full.html")
    text = page.inner_text("article")
    assert "failed" in text
    assert "window.hacked=5" in text
    assert "What was trained" not in text
    page.close()


def test_what_failed_is_no_result(hostile: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.goto(f"file://{hostile}/execution.html")
    rows = page.locator("tr", has_text="Full-DPO").all_inner_texts()
    assert any("failed" in row for row in rows)
    page.goto(f"file://{hostile}/index.html")
    assert "1 failed" in page.inner_text("article")
    page.close()


def test_no_text_from_outside_is_a_template(hostile: Path) -> None:
    ledgers = [p.read_text().count('class="dataframe ledger"') for p in hostile.glob("*.html")]
    assert sum(ledgers) == 1
    assert "{{ 7*7 }}" in unescape((hostile / "appendix-d.html").read_text())
