"""The paper's numbers, from `book/paper.yml`, which says of each where it stands."""

import copy
import math
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from hialign.study import paths
from hialign.study.blocks import STRATEGIES
from hialign.study.errors import HialignError
from hialign.study.load import read_yaml


def load_paper() -> dict[str, Any]:
    """All of `book/paper.yml`. HialignError if it cannot be read."""
    path = paths.book_source() / "paper.yml"
    return copy.deepcopy(_content(path, path.stat().st_mtime_ns if path.is_file() else 0))


@lru_cache(maxsize=1)  # pages ask for this file often
def _content(path: Path, modified: int) -> dict[str, Any]:
    return dict(read_yaml(path, "table of the paper's numbers"))


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


def differences() -> list[dict[str, Any]]:
    """What Tables 2 and 3 say of strategies against each other, as differences of their means.

    From Table 2 come each trained strategy minus Base, and each other one minus Full-DPO. From Table
    3 comes Mid-Align minus Full-DPO, which the text dwells on. Table 3 has no standard deviations, so
    Table 2's of the strategy stand in.

    Returns:
        For each difference: model (None for all of them), block, reference, difference, n (responses
        on either side), stds, and the standard_error that unpaired scores would give.
    """
    content = load_paper()
    overall = {row["block"]: row for row in rows("table_2")}
    means: dict[tuple[str | None, str], float]
    means = {(None, block): row["mean"] for block, row in overall.items()}
    means |= {(row["model"], row["block"]): row["mean"] for row in rows("table_3")}
    pairs: list[tuple[str | None, str, str]]
    pairs = [(None, a, b) for b, a in product(("base", "full"), STRATEGIES) if a not in ("base", b)]
    pairs += [(model, "mid", "full") for model in dict.fromkeys(m for m, _ in means) if model]
    differences = []
    for model, block, reference in pairs:
        n = content["table_2" if model is None else "table_3"]["n"]
        stds = (overall[block]["std"], overall[reference]["std"])
        row = {"model": model, "block": block, "reference": reference, "n": n, "stds": stds}
        row["difference"] = round(means[model, block] - means[model, reference], 3)
        differences.append(row | {"standard_error": math.hypot(*stds) / math.sqrt(n)})
    return differences
