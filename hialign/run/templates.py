"""The notebooks as templates: the set-up cell that all share.

`python -m hialign.run.templates` writes the set-up cell, with the repository's address, into all of them.
"""

from hialign.book import repository
from hialign.book.notebooks import TEMPLATES
from hialign.study import paths

TAG = "remove-cell"  # of the set-up cell: the book leaves it out


def set_up_cell() -> str:
    """The source of the set-up cell, with what pip installs hialign from."""
    source = (paths.package() / "run" / "setup_cell.py").read_text(encoding="utf-8").rstrip()
    return source.removesuffix("_set_up()") + f'_set_up("{repository.package()}")'


def write_set_up() -> list[str]:
    """Bring the set-up cell of every template up to date; the names of those that were not."""
    import nbformat

    changed = []
    for name in TEMPLATES:
        path = paths.notebooks() / f"{name}.ipynb"
        book = nbformat.read(path, as_version=4)
        cell = next(c for c in book.cells if TAG in c.metadata.get("tags", []))
        if cell.source != set_up_cell():
            cell.source = set_up_cell()
            nbformat.write(book, path)
            changed.append(name)
    return changed


if __name__ == "__main__":
    for changed in write_set_up():
        print(f"notebooks/{changed}.ipynb")
