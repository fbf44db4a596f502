"""The registration of a study, the analysis that it has, and the published study that answers best.

A study is registered if there is a file `<study>.registered.md` beside it or in `studies/`. Its
analysis follows from what the study trains. A study of several seeds whose pairs are contrasts, and
whose matrix probe trains blocks on one objective each, has the analysis of `hypothesis`. Any other has
that of `strategies`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from hialign.records import files, provenance
from hialign.records.frames import remembered
from hialign.report.replication import reading
from hialign.study import paths
from hialign.study.pair_files import OURS
from hialign.study.study import Study, load_study

RECORD = "registration.json"  # of a published study: what its registration was
HYPOTHESIS: Final = "hypothesis"
STRATEGIES: Final = "strategies"


@dataclass(frozen=True)
class Registration:
    """A registration, and where it stands in the history of the repository.

    `committed` is the date of its first commit (ISO), and `commit` that commit. Both are empty where
    there is no history. `original` is its hash then, or empty.
    """

    file: Path
    sha256: str
    committed: str = ""
    commit: str = ""
    original: str = ""

    @property
    def changed(self) -> bool:
        """Whether its text is another one than that which was committed first."""
        return self.original not in ("", self.sha256)


def registration(study: Study) -> Registration | None:
    """The registration of a study, or None if it has none."""
    file = next((place for place in _places(study) if place.is_file()), None)
    if file is None:
        return None
    sha256 = files.sha256_of(file)
    if (record := file.with_name(RECORD)).is_file():
        known = files.read_record(record)
        dated = str(known["committed"]), str(known["commit"])
        return Registration(file, sha256, *dated, str(known["sha256_of_file"]))
    added = provenance.added(file)
    return Registration(file, sha256, added.date, added.commit, added.sha256)


def _places(study: Study) -> Iterator[Path]:
    name = f"{study.name}.registered.md"
    if study.file is not None:
        yield study.file.with_name(name)
    yield paths.studies() / name


def analysis_of(study: Study) -> Literal["hypothesis", "strategies"] | None:
    """The registered analysis of a study, or None if it has no registration."""
    if registration(study) is None:
        return None
    whole = study.whole
    matrix = whole.probes and whole.probes.matrix
    of_objectives = matrix and whole.preferences.source in OURS
    return HYPOTHESIS if of_objectives and len(whole.seeds or ()) > 1 else STRATEGIES


# --- published studies ---------------------------------------------------------------------------


def best_published() -> Study | None:
    """The published study that answers best: registered, and with most seeds. None if there is none.

    Only seeds count whose records are there and trusted, and there have to be two of them.
    """
    folders = [file.parent for file in published_studies()]
    made_of = [path for folder in folders for path in sorted(folder.rglob("*.[jmy]*"))]
    stats = [(path, path.stat()) for path in made_of]
    return _best(tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@lru_cache(maxsize=1)  # every exhibit of the answer asks, and reads all records for it
def _best(stamps: tuple[tuple[str, int, int], ...]) -> Study | None:
    found: list[tuple[int, str, Study]] = []
    for file in published_studies():
        study = load_study(file)
        if analysis_of(study) is not None:
            with published_records(study):
                found.append((seeds_there(study), study.name, study))
    seeds, _, best = max(found, key=lambda one: one[:2], default=(0, "", None))
    return best if seeds > 1 else None


@contextmanager
def answering(study: Study) -> Iterator[Study | None]:
    """The study whose answer a book of `study` leads with. Within it, its records can be read.

    It is the study itself if it is registered and two of its seeds are there. Otherwise it is the
    best published one, or None.
    """
    own = study.whole
    if analysis_of(own) is not None and seeds_there(own) > 1:
        yield own
    elif best := best_published():
        with published_records(best):
            yield best
    else:
        yield None


@remembered
def seeds_there(study: Study) -> int:
    """The real seeds of a study whose records its analysis can read, over its models the fewest."""
    read = reading.trained_alone if analysis_of(study) == HYPOTHESIS else reading.evaluated
    return min(len(read(study, model).seeds.real) for model in study.models)


def published_studies() -> list[Path]:
    """`study.yml` of every published study, of the outputs first and then of the repository."""
    found: dict[str, Path] = {}
    for place in (paths.published(), paths.root() / "outputs" / "published"):
        for file in sorted(place.glob("*/study.yml")):
            found.setdefault(file.parent.name, file)
    return list(found.values())


@contextmanager
def published_records(study: Study) -> Iterator[None]:
    """Within it, the records of a published study are those in its published folder."""
    assert study.file is not None
    with paths.outputs_at(study.file.parent.parent):
        yield
