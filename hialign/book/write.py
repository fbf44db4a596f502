"""Every exhibit of a book, written once."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from hialign.records.files import write_json
from hialign.records.processes import end_with_parent
from hialign.report import facts
from hialign.report.exhibits import EXHIBITS, write
from hialign.study.errors import HialignError
from hialign.study.study import Study


def write_all(study: Study, folder: Path) -> None:
    """Every exhibit, the facts and the claims' sections into `folder`, on all of the processor's cores.

    Raises HialignError naming the first one that cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What rests on the same tests is one task, as processes share nothing
    together = [
        ["claims", "facts", "table-claims", "table-headlines"],
        ["figure-3", "table-dimensions"],
        ["figure-where", "table-where", "table-where-lacking", "table-where-correlations"],
    ]
    named = {name for names in together for name in names}
    tasks = [*together, *([name] for name in EXHIBITS if name not in named)]
    context = get_context("spawn")  # a fork would copy locks that other threads hold
    cores = min(os.cpu_count() or 1, 4)
    with ProcessPoolExecutor(cores, context, initializer=end_with_parent) as pool:
        for future in [pool.submit(_write_some, study, names, folder) for names in tasks]:
            future.result()


def _write_some(study: Study, names: list[str], folder: Path) -> None:
    for name in names:
        try:
            if name == "facts":
                write_json(folder / "facts.json", facts.facts(study))
            elif name == "claims":
                from hialign.book.claim_pages import claim_sections

                (folder / "claims.md").write_text(claim_sections(study), encoding="utf-8")
            else:
                write(study, name, folder)
        except HialignError:
            raise
        except Exception as error:
            raise HialignError(
                f"the exhibit {name} of study {study.name} could not be drawn: "
                f"{type(error).__name__}: {error}"
            ) from error
