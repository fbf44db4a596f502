"""The site: the books of all published studies, built from their records alone."""

import shutil
import tempfile
from html import escape
from pathlib import Path

from hialign.book import build as book
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Study, load_study

MARK = ".nojekyll"  # else GitHub Pages leaves out folders that begin with _; and the site is ours


def build(target: Path) -> Path:
    """Build the book of every study in outputs/published/ into `target`. Returns its `index.html`.

    If there is one study, its book is the site. The books of several studies lie side by side, with
    a page that names them. What was there before stays until all are built. Raises HialignError for
    a folder that holds something else than a site.
    """
    found = sorted(paths.published().glob("*/study.yml"))
    if not found:
        raise HialignError(
            f"nothing is published in {paths.published()}: `hialign publish STUDY` does it"
        )
    if target.exists() and not (target / MARK).is_file():
        raise HialignError(
            f"{target} exists and holds no site that was built by this command: name another folder"
        )
    studies = [load_study(file) for file in found]
    with tempfile.TemporaryDirectory(prefix="hialign-site-") as scratch:
        staged = Path(scratch) / "site"
        for study, file in zip(studies, found, strict=True):
            place = staged if len(studies) == 1 else staged / paths.slug(study.name)
            shutil.copytree(_built(study, file.parent, Path(scratch) / "outputs"), place)
        if len(studies) > 1:
            (staged / "index.html").write_text(_index(studies), encoding="utf-8")
        (staged / MARK).touch()
        try:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(staged, target)
        except OSError as error:
            raise HialignError(f"cannot write {target}: {error.strerror or error}") from None
    return target / "index.html"


def _built(study: Study, records: Path, outputs: Path) -> Path:
    """The folder of a book, built from a copy of the records: nothing is written among them."""
    shutil.copytree(records, outputs / records.name)
    if not (outputs / "published").exists():  # whose best study all front pages show
        (outputs / "published").symlink_to(paths.published(), target_is_directory=True)
    with paths.outputs_at(outputs):
        return book.build(study).parent


def _index(studies: list[Study]) -> str:
    items = "".join(
        f'<li><a href="{escape(paths.slug(s.name), quote=True)}/index.html">{escape(s.title)}</a>'
        f"<p>{escape(s.description)}</p></li>"
        for s in studies
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<title>Hierarchical Alignment, executed</title>"
        '<body style="font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; '
        'padding: 0 1rem"><h1>Hierarchical Alignment, executed</h1>'
        f"<p>A book for each study:</p><ul>{items}</ul></body></html>\n"
    )
