"""Every path that the project reads or writes.

Three environment variables move them: `HIALIGN_OUTPUTS` (what runs write), `HIALIGN_CACHE`
(converted models, reference log-probabilities) and `HIALIGN_SHARED_DATA` (copies of public data sets).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

# Folders beside those of the models in a study, or beside those of the studies in `outputs/`
RESERVED = ("explorations", "html", "notebooks", "published")


def package() -> Path:
    """The folder of the installed package."""
    return Path(__file__).resolve().parents[1]


def in_checkout() -> bool:
    """Whether this is a checkout of the repository. Otherwise it is an installed wheel."""
    return (package().parent / "studies").is_dir()


def root() -> Path:
    """The repository, or, in an installed wheel, the copy of its folders that the wheel carries."""
    return package().parent if in_checkout() else package() / "_project"


def from_root(path: str) -> Path:
    """A path in a study. It starts at the repository, unless it is absolute or begins with `~`."""
    return root() / os.path.expanduser(path)


def studies() -> Path:
    return root() / "studies"


def notebooks() -> Path:
    return root() / "notebooks"


def book_source() -> Path:
    return root() / "book"


def workflow() -> Path:
    return root() / "workflow"


def outputs() -> Path:
    """Where runs write. By default `outputs/` of the checkout, or of the working directory."""
    chosen = os.environ.get("HIALIGN_OUTPUTS")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return (package().parent if in_checkout() else Path.cwd()) / "outputs"


@contextmanager
def outputs_at(folder: Path) -> Iterator[None]:
    """Within it, `folder` is where runs write and records are read."""
    before = os.environ.get("HIALIGN_OUTPUTS")
    os.environ["HIALIGN_OUTPUTS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("HIALIGN_OUTPUTS")
        if before is not None:
            os.environ["HIALIGN_OUTPUTS"] = before


def cache() -> Path:
    """Where files that can be made again are kept between studies. By default a folder per user."""
    chosen = os.environ.get("HIALIGN_CACHE")
    folder = chosen or platformdirs.user_cache_dir("hialign", appauthor=False)
    return Path(folder).expanduser().resolve()


def shared_data() -> Path | None:
    """A folder with copies of public data sets (`hh-rlhf/`, `llmbar/`), or None if none is named.

    With it, studies that name `Anthropic/hh-rlhf` run without a network.
    """
    chosen = os.environ.get("HIALIGN_SHARED_DATA")
    return Path(chosen).expanduser().resolve() if chosen else None


def slug(name: str) -> str:
    """`name` as one path component: `meta-llama/Llama-2-7b` -> `meta-llama--Llama-2-7b`."""
    return name.replace("/", "--").replace(":", "-").replace(",", "_").replace("%", "pct")


def study_dir(study: str) -> Path:
    return outputs() / slug(study)


def cell_dir(study: str, model: str, block: str, seed: str = "") -> Path:
    """`outputs/<study>/<model>/<block>/`, where the files of one cell lie.

    In a study of several seeds each has a folder of its own below it: `seed-1`, `shuffled-1`.
    """
    return study_dir(study) / slug(model) / slug(block) / seed


def probes_dir(study: str, model: str, seed: str = "") -> Path:
    """`outputs/<study>/<model>/probes/`, where the records of a model's probes lie.

    Those of a study of several seeds lie in the seed's folder below it.
    """
    return study_dir(study) / slug(model) / "probes" / seed


def probe_record(study: str, model: str, probe: str, seed: str = "") -> Path:
    """`<probe>.json` in `probes_dir`, the record of a probe of a model."""
    return probes_dir(study, model, seed) / f"{probe}.json"


def probe_parts(study: str, model: str, probe: str, key: str, seed: str = "") -> Path:
    """Where the parts of an unfinished probe lie. `key` is the hash of what they came from."""
    return probes_dir(study, model, seed) / f".{probe}-{key}"


def scratch(study: str) -> Path:
    """`outputs/<study>/.tmp/`: temporary files of the processes that work on the study."""
    return study_dir(study) / ".tmp"


def working(study: str) -> Path:
    """`outputs/<study>/.running/`: a lock for each notebook that is being executed."""
    return study_dir(study) / ".running"


def notebook_output(study: str, stage: str, model: str, block: str, seed: str = "") -> Path:
    """`outputs/<study>/notebooks/<stage>-<model>-<block>.ipynb`, an executed notebook.

    In a study of several seeds its name ends with the seed.
    """
    name = "-".join([stage, slug(model), slug(block), *([seed] if seed else [])])
    return study_dir(study) / "notebooks" / f"{name}.ipynb"


def judge_lock(study: str) -> Path:
    """The lock that is held while a judge behind an API works on a study."""
    return study_dir(study) / ".judge.lock"


def judge_batches(study: str, judge: str) -> Path:
    """`outputs/<study>/batches-<judge>.json`: what is in flight at the provider's Batch API."""
    return study_dir(study) / f"batches-{judge}.json"


def judge_validation(folder: Path, judge: str) -> Path:
    """`judge-validation-<judge>.json` in the folder of a study, the report on its judge."""
    return folder / f"judge-validation-{judge}.json"


def explorations(study: str) -> Path:
    """`outputs/<study>/explorations/`, questions that were asked of all strategies of a model."""
    return study_dir(study) / "explorations"


def published() -> Path:
    """`outputs/published/`, the records that a site is built from, with one folder per study."""
    return outputs() / "published"


def html_dir(study: str) -> Path:
    """`outputs/<study>/html/`, the built book."""
    return study_dir(study) / "html"
