"""Pages that a build adds: what comes from records is text in them, and failures are no results."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from simulated import simulate

from hialign.book import markup, pages
from hialign.records.files import read_json, write_json, write_jsonl
from hialign.records.stages import failed_notebook, judgments_file
from hialign.report import run_tables
from hialign.study import paths
from hialign.study.study import Study

EVIL = "<script>x</script> {cite}`a` $x$ `b` **c** [d](javascript:1) <!-- e --> ```{raw} html\n# f"


@pytest.fixture
def study(outputs: Path) -> Study:
    made = Study(
        name="made-up",
        title="Made up",
        models=[{"source": "random:llama", "name": "small", "label": "Small <b>one</b>"}],
        blocks=["base", "mid"],
        judge=None,
    )
    simulate(made, prompts=5, steps=3)
    return made


def test_text_from_outside_means_itself_in_markdown() -> None:
    from markdown_it import MarkdownIt
    from myst_parser.config.main import MdParserConfig
    from myst_parser.parsers.mdit import create_md_parser

    html = MarkdownIt().render(f"# {markup.plain(EVIL)}")
    shown = re.sub(r"<[^>]+>", "", html)
    assert shown.count("&lt;script&gt;") == 1
    assert "<script" not in html
    assert "<code" not in html
    assert "href" not in html
    config = MdParserConfig(enable_extensions={"dollarmath", "colon_fence", "substitution"})
    from myst_parser.mdit_to_docutils.base import DocutilsRenderer

    tokens = create_md_parser(config, DocutilsRenderer).parse(f"# {markup.plain(EVIL)}")
    inner = {t.type for token in tokens for t in token.children or []}
    assert inner <= {"text", "text_special", "softbreak"}, inner


def test_a_raw_part_cannot_be_closed_from_inside() -> None:
    text = markup.raw(f"<p>{EVIL}</p>")
    fence = re.match(r"`+", text)
    assert fence is not None
    assert text.count(fence[0]) == 2


def test_a_cells_page_shows_what_its_manifest_holds(study: Study, tmp_path: Path) -> None:
    names = pages.add_runs(study, tmp_path / "runs")
    assert names == [["runs/small-base"], ["runs/small-mid"]]
    text = (tmp_path / "runs" / "small-mid.md").read_text()
    assert "<b>one</b>" not in text
    manifest = read_json(study.cells()[1].folder / "manifest.json")
    assert f"{manifest['trainable_parameters']:,}" in text
    assert "training.learning_rate" in text
    assert "simulated" in text  # its device
    base = (tmp_path / "runs" / "small-base.md").read_text()
    assert "the reference, which is not trained" in base
    assert "Training curves" not in base


def test_records_are_copied_beside_the_pages_that_link_to_them(
    study: Study, tmp_path: Path
) -> None:
    pages.write_records(study, tmp_path)
    pages.add_runs(study, tmp_path / "runs")
    text = (tmp_path / "runs" / "small-mid.md").read_text()
    links = re.findall(r'(?:href|src)="../data/runs/([^"]+)"', text)
    assert len(links) == 4  # manifest, training, evaluation, and the curves
    assert all((tmp_path / link).is_file() for link in links)


def test_a_failed_stage_is_shown_as_failed(study: Study, tmp_path: Path) -> None:
    cell = study.cells()[1]
    failed = failed_notebook(cell, "train")
    failed.parent.mkdir(parents=True, exist_ok=True)
    book = nbformat.v4.new_notebook()
    error = nbformat.v4.new_output("error", ename="HialignError", evalue=EVIL, traceback=["…"])
    book.cells = [nbformat.v4.new_code_cell("train()", outputs=[error])]
    nbformat.write(book, failed)
    (cell.folder / "manifest.json").unlink()
    names = pages.add_runs(study, tmp_path / "runs")
    assert names[1] == ["runs/small-mid"], "a failed notebook became a page"
    text = (tmp_path / "runs" / "small-mid.md").read_text()
    assert "**failed**" in text
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert "<script>" not in text
    assert "What was trained" not in text
    table = run_tables.failures(study)
    assert table.Error[0].startswith("train: HialignError: <script>")
    totals = run_tables.totals(study).set_index("Stage")
    assert totals.Failed["train"] == 1
    assert totals.Done["train"] == 1


def test_hours_and_cost_add_up(outputs: Path) -> None:
    judge = {"model": "any", "prices": {"input": 1, "output": 2}}
    study = Study(name="costs", title="Costs", models=["random:llama"], blocks=["base", "mid"])
    study = study.model_copy(update={"judge": type(study.judge)(**judge)})  # type: ignore[misc]
    simulate(study, prompts=4, steps=10)
    # Base's manifest has 60 s, Mid's 60 s and 0 shared; three more stages of 900 s each, twice
    assert run_tables.hours(study) == pytest.approx((2 * 60 + 6 * 900) / 3600)
    assert run_tables.probes(study).columns.tolist() == ["Model", "Probe"]
    probed = Study(**study.model_dump() | {"probes": {"weights": {"tuned": "mid"}}})
    file = paths.probe_record("costs", probed.models[0].name, "sweep")
    write_json(file, {"seconds": 7200, "peak_memory_bytes": 2**30})
    table = run_tables.probes(probed).set_index("Probe")
    assert table.loc["sweep", ["Minutes", "Peak memory (GiB)", "Status"]].tolist() == [
        *(pytest.approx(float("nan"), nan_ok=True),) * 2,
        "stale",
    ]
    assert table.Status["weights"] == "missing"
    assert run_tables.hours(probed) == pytest.approx((2 * 60 + 6 * 900) / 3600)
    assert run_tables.cost(study) == pytest.approx(8 * 0.006)
    file = judgments_file(study.cells()[0])
    rows = [json.loads(line) | {"shared": True} for line in file.read_text().splitlines()]
    write_jsonl(file, rows)  # paid for by another cell
    assert run_tables.cost(study) == pytest.approx(4 * 0.006)


def test_an_executed_notebook_keeps_no_scripts_and_the_last_state_of_a_bar() -> None:
    book = nbformat.v4.new_notebook()
    bar = nbformat.v4.new_output("stream", text="10%\r50%\r100%\ndone\n")
    data = {"text/plain": "x", "application/javascript": "alert(1)"}
    script = nbformat.v4.new_output("display_data", data=data)
    book.cells = [
        nbformat.v4.new_markdown_cell("# Train: anything\n\nText."),
        nbformat.v4.new_code_cell("run()", outputs=[bar, script]),
    ]
    page = pages.as_page(book, "Train: Mid")
    assert page.cells[0].source.startswith("# Train: Mid\n")
    assert page.cells[1].outputs[0]["text"] == "100%\ndone\n"
    assert list(page.cells[1].outputs[1]["data"]) == ["text/plain"]
