"""The book's figures and tables: what is written beside them, and where they say they come from."""

import csv
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated import simulate

from hialign import records
from hialign.records.stages import judgments_file
from hialign.report import exhibits
from hialign.report.display import Table
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Study

SHOWN = re.compile(r'\bshow\("([a-z0-9-]+)"')


@pytest.fixture
def study(outputs: Path) -> Study:
    """One model under two strategies, judged on eleven prompts."""
    made = Study(
        name="made-up",
        title="Made up",
        models=[{"source": "random:llama", "name": "small"}],
        blocks=["base", "mid"],
        evaluation={"resamples": 200},
        judge={"backend": "local", "model": "random:llama"},
    )
    simulate(made, prompts=11, steps=3)
    return made


def test_pages_show_every_exhibit_and_no_other() -> None:
    shown = {
        n for page in paths.book_source().glob("*.md") for n in SHOWN.findall(page.read_text())
    }
    assert shown == set(exhibits.EXHIBITS)


def test_a_tables_files_hold_the_records_numbers(study: Study, tmp_path: Path) -> None:
    made = exhibits.write(study, "table-2", tmp_path)
    assert {p.suffix for p in made} == {".html", ".csv", ".json"}
    with (tmp_path / "table-2.csv").open() as stream:
        rows = {row["Strategy"]: row for row in csv.DictReader(stream)}
    for cell in study.cells():
        lines = judgments_file(cell).read_text().splitlines()
        scores = [json.loads(line)["scores"]["Overall"] for line in lines]
        row = rows[cell.strategy]
        assert float(row["Mean Overall"]) == pytest.approx(statistics.mean(scores), abs=1e-12)
        assert float(row["Std"]) == pytest.approx(statistics.stdev(scores), abs=1e-12)
        low, high = float(row["95% interval, low"]), float(row["95% interval, high"])
        assert low < statistics.mean(scores) < high
    content = json.loads((tmp_path / "table-2.json").read_text())
    assert len(content["rows"]) == 2
    assert content["rows"][0]["Scored"] == 11


def test_a_figure_comes_as_svg_and_png_with_its_numbers(study: Study, tmp_path: Path) -> None:
    exhibits.write(study, "figure-2", tmp_path)
    assert (tmp_path / "figure-2.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "figure-2.svg").read_text()
    drawn = pd.read_csv(tmp_path / "figure-2.csv").set_index("block")
    table = exhibits.draw(study, "table-2").set_index("Strategy")
    assert drawn.loc["mid", "mean"] == pytest.approx(table.loc["Mid-Align", "Mean Overall"])
    before = (tmp_path / "figure-2.svg").read_bytes()
    exhibits.write(study, "figure-2", tmp_path)
    assert (tmp_path / "figure-2.svg").read_bytes() == before, "the same figure, other bytes"


def test_the_heat_maps_numbers_are_means_and_differences(study: Study, tmp_path: Path) -> None:
    exhibits.write(study, "figure-3", tmp_path)
    squares = pd.read_csv(tmp_path / "figure-3.csv")
    means = squares[squares.panel == "mean score"].set_index(["strategy", "dimension"]).value
    moved = squares[squares.panel == "minus Base"].set_index(["strategy", "dimension"]).value
    gap = means["Mid-Align", "Tone"] - means["Base", "Tone"]
    assert moved["Mid-Align", "Tone"] == pytest.approx(gap)
    assert len(moved) == 15


@pytest.mark.parametrize("name", exhibits.EXHIBITS)
def test_an_exhibit_names_the_lines_that_draw_it(study: Study, name: str) -> None:
    about = exhibits.about(study, name)
    lines = (paths.package().parent / about["file"]).read_text().splitlines()
    part = lines[about["line"] - 1 : about["last_line"]]
    assert any(line.startswith(f"def {about['function'].split('.')[-1]}(") for line in part)
    assert about["command"] == f"hialign show made-up {name}"


def test_an_exhibit_names_the_runs_behind_it(study: Study) -> None:
    runs = exhibits.about(study, "table-2")["runs"]
    assert [(r["block"], r["stage"]) for r in runs] == [("base", "judge"), ("mid", "judge")]
    for run in runs:
        assert (paths.study_dir("made-up") / run["file"]).is_file()
    (study.cells()[1].folder / Path(runs[1]["file"]).name).unlink()
    assert len(exhibits.about(study, "table-2")["runs"]) == 1


def test_intervals_in_words_become_numbers() -> None:
    frame = Table({"a": ["x", "y", "z"], "95%": ["−0.250 to 1,000.5", None, "0 to 1"]})
    found = exhibits.numbers(frame)
    assert list(found.columns) == ["a", "95%, low", "95%, high"]
    assert found["95%, low"].tolist()[::2] == [-0.25, 0]
    assert found["95%, high"].tolist()[::2] == [1000.5, 1]
    assert np.isnan(found["95%, low"][1])
    words = Table({"range": ["1 to 2", "unknown"]})
    assert list(exhibits.numbers(words).columns) == ["range"]
    assert list(frame.columns) == ["a", "95%"], "the table itself was changed"


def test_unknown_and_broken_exhibits_are_named(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HialignError, match="no exhibit 'tabel-2': they are table-1"):
        exhibits.write(study, "tabel-2", tmp_path)

    def broken(study: Study) -> Table:
        raise ZeroDivisionError("by nothing")

    entry = exhibits.Exhibit("table-2", "Table 2", "judge", broken)
    monkeypatch.setitem(exhibits.EXHIBITS, "table-2", entry)
    with pytest.raises(HialignError, match=r"table-2 of study made-up .* ZeroDivisionError: by"):
        exhibits.write_all(study, tmp_path)


def test_all_of_them_can_be_drawn_of_an_empty_study(outputs: Path, tmp_path: Path) -> None:
    empty = Study(name="empty", title="Empty", models=["random:llama"], judge=None)
    for name in exhibits.EXHIBITS:
        exhibits.write(empty, name, tmp_path)
        text = (tmp_path / f"{name}.json").read_text() if name != "figure-1" else ""
        assert "NaN" not in text


def test_what_is_remembered_follows_the_records(study: Study) -> None:
    first = records.judgments(study)
    assert len(first) == 2 * 11 * 16
    first["score"] = 0.0  # a caller's own
    assert records.judgments(study).score.min() >= 1
    file = judgments_file(study.cells()[1])
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines()[:5]))
    assert len(records.judgments(study)) == (11 + 5) * 16
