"""The paper's numbers, from `book/paper.yml`, which says of each where it stands."""

from typing import Any

import yaml

from hialign import paths
from hialign.errors import HialignError


def load_paper() -> dict[str, Any]:
    """All of `book/paper.yml`. HialignError if it cannot be read."""
    path = paths.book_source() / "paper.yml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HialignError(
            f"cannot read the paper's numbers, {path}: {error.strerror}; restore the file"
        ) from None
    except yaml.YAMLError as error:
        raise HialignError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return dict(content)


def rows(table: str) -> list[dict[str, Any]]:
    """The rows of a table (`table_1` … `table_5`). HialignError if paper.yml has none."""
    try:
        return [dict(row) for row in load_paper()[table]["rows"]]
    except (KeyError, TypeError):
        place = paths.book_source() / "paper.yml"
        raise HialignError(f"{place} has no rows under {table!r}: restore the file") from None


def depths() -> dict[str, int]:
    """Layers of each of the paper's models (Table 4)."""
    return {row["model"]: int(row["layers"]) for row in rows("table_4")}
