"""The page on replication and the front page: whose answer they lead with, and what stands there without one."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated import simulate

from hialign.book import pages, render
from hialign.report import exhibits
from hialign.study import paths
from hialign.study.study import Study

Pages = dict[str, str]


def rendered(study: Study, folder: Path) -> Pages:
    """The front page and the page on replication of the study's book, with their exhibits."""
    data = folder / "data"
    shown = [name for name, exhibit in exhibits.EXHIBITS.items() if exhibit.registered]
    for name in (*shown, "figure-accuracy", "table-headlines", "table-learned"):
        exhibits.write(study, name, data)
    pages.write_registration(study, data)
    for name in ("index.md", "replication.md", "where.md"):
        shutil.copy(paths.book_source() / name, folder)
    for name in exhibits.EXHIBITS:
        (data / f"{name}.html").touch()
    render.render(study, folder)
    texts = {path.stem: path.read_text("utf-8") for path in folder.glob("*.md")}
    return {name: text.replace("\\", "") for name, text in texts.items()}  # without escapes


@pytest.fixture
def other(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of one run, which is not registered."""
    monkeypatch.setattr(
        "hialign.report.replication.registered.published_studies",
        lambda: sorted(paths.published().glob("*/study.yml")),
    )
    study = Study(name="other", title="Other", models=["random:llama"], judge=None)
    simulate(study, prompts=20, steps=2)
    return study


def publish(study: Study) -> Path:
    folder = paths.published() / study.name
    shutil.copytree(paths.study_dir(study.name), folder)
    assert study.file is not None
    (folder / "study.yml").write_text(f"name: {study.name}\n{study.file.read_text()}")
    shutil.copy(study.file.with_name(f"{study.name}.registered.md"), folder)
    shutil.rmtree(paths.study_dir(study.name))
    return folder


def test_without_a_published_answer_the_front_page_says_so_in_a_line(
    other: Study, tmp_path: Path
) -> None:
    found = rendered(other, tmp_path)
    for page in ("index", "replication"):
        assert "No replicated answer is published yet" in found[page]
        assert "figure-answer" not in found[page]
    assert len(found["replication"].split()) < 150
    assert "What this book's own study found" in found["index"]
    assert "has one seed, so the spread between seeds is not known" in found["index"]
    assert not (tmp_path / "data" / "registration.txt").exists()


def test_any_book_leads_with_the_published_answer_and_goes_on_with_its_own_study(
    other: Study, objectives: Callable[..., Study], tmp_path: Path
) -> None:
    study = objectives(own=1.5)
    publish(study)
    found = rendered(other, tmp_path)
    index = found["index"]
    answer = index.index("Objectives gain more in their own thirds")
    assert answer < index.index("data/figure-answer.svg")
    assert index.index("figure-answer.svg") < index.index("What this book's own study found")
    assert "*other*" in index
    assert "*made*" in index
    page = found["replication"]
    digest = hashlib.sha256((paths.published() / "made" / "made.registered.md").read_bytes())
    assert digest.hexdigest() in page
    text = (tmp_path / "data" / "registration.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == digest.hexdigest()
    assert "4 of 4 registered seeds are there" in page
    shown = {*re.findall(r"data/(figure-[a-z-]+)\.svg", page)}
    assert shown == {"figure-answer", "figure-registered-contrasts", "figure-registered-thirds"}
    assert "hialign replicate made" in page
    # what is below a figure names the study that it is of, and how to make it again
    assert "hialign show made figure-answer" in page


def test_a_study_on_strategies_has_a_page_of_its_own_kind(
    preferences: Callable[..., Study], tmp_path: Path
) -> None:
    study = preferences(learned=0.0)
    found = rendered(study, tmp_path)
    page = found["replication"]
    assert "Nothing was learned here: Full ranks" in page
    assert "would have been found" in page
    assert "Hypothesis 2 is supported by training" not in page
    assert "Gain by objective and third" not in page


def test_what_has_nothing_to_show_is_one_line(other: Study, tmp_path: Path) -> None:
    exhibits.write(other, "table-windows", tmp_path / "data")
    exhibits.write(other, "figure-windows", tmp_path / "data")
    text = (
        '{% call show("figure-windows", label="fig-x", alt="A figure that is not there, in words.") %}'
        'Caption{% endcall %}\n\n{{ show("table-windows") }}\n\n{{ has("table-windows") }}'
    )
    (tmp_path / "page.md").write_text(text)
    render.render(other, tmp_path)
    lines = (tmp_path / "page.md").read_text().replace("\\", "").split("\n")
    assert lines == [
        "(fig-x)=",
        "*Windows: not measured yet.*",
        "",
        "*Windows and controls: none yet.*",
        "",
        "False",
    ]
