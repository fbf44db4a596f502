"""What a book is made of: a change of it makes the book stale."""

import subprocess
import sys
from pathlib import Path

import pytest

from hialign.book import build
from hialign.records import provenance
from hialign.study import paths
from hialign.study.study import Study

LOADED = """
import importlib, pkgutil, sys
import hialign.book
for module in pkgutil.iter_modules(hialign.book.__path__, "hialign.book."):
    importlib.import_module(module.name)
print(*(m.__file__ for n, m in sys.modules.items() if n.startswith("hialign.")), sep="\\n")
"""


@pytest.fixture
def study(outputs: Path) -> Study:
    return Study(name="made-up", title="Made up", models=["random:llama"], judge=None)


def test_all_modules_that_the_book_imports_are_watched(study: Study) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    files = {Path(line) for line in done.stdout.split()}
    assert paths.package() / "study" / "rubric.py" in files
    assert files <= {path for _, path in build._made_of(study)}


def test_pages_templates_and_configuration_are_watched(study: Study) -> None:
    names = {name for name, _ in build._made_of(study)}
    assert {"index.md", "claims.yml", "_toc.yml", "_static/custom.css", "_config.yml"} <= names
    assert {"train.ipynb", "study/study.py"} <= names
    assert not [name for name in names if name.startswith(("engine/", "run/", "probes/"))]


def test_a_book_is_done_until_something_that_it_is_made_of_changes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "book"
    source.mkdir()
    (source / "page.md").write_text("# A page\n")
    monkeypatch.setattr(paths, "book_source", lambda: source)
    assert build.state(study).status == "missing"
    place = paths.html_dir(study.name)
    place.mkdir(parents=True)
    (place / "index.html").touch()
    assert build.state(study).status == "stale"
    build.files.write_record(place / build.RECORD, {"key": build._key(study)})
    assert build.state(study).status == "done"
    (source / "page.md").write_text("# Another page\n")
    assert build.state(study).status == "stale"


def test_git_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        calls.append(command)
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(provenance.subprocess, "run", run)
    provenance._commit.cache_clear()
    assert provenance.commit() == provenance.commit()
    assert len(calls) == (2 if paths.in_checkout() else 0)
