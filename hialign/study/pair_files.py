"""Which local files hold the preference pairs that a study names.

A source is the built-in set, the contrasts made from it and from hh-rlhf, one file, or a folder. A
folder holds `train.*` and `test.*`, or sub-folders with such files, as hh-rlhf has its tranches. Any
other source is a set on the hub.
"""

import os
from pathlib import Path

from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import PreferenceSettings

HH_RLHF = "Anthropic/hh-rlhf"
HH_TRANCHES = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")

# Tranches of which nothing may be published but ids, hashes and numbers: no prompt, no response to
# one, no executed cell that shows a pair, and no adapter that was trained on them.
WITHHELD = ("helpful-base",)

OURS = ("builtin", "contrasts")  # sources that the package makes
PATHS = (".", "/", "~")  # how a source begins that is no name on the hub

TEXT = (".jsonl", ".json", ".csv", ".tsv")
# In the order of preference, if a split has files of several formats
SUFFIXES = tuple(suffix + packed for suffix in TEXT for packed in ("", ".gz")) + (".parquet",)


def data_files(settings: PreferenceSettings) -> list[Path]:
    """The local files that `load_pairs(settings)` reads, sorted.

    There are none for a set on the hub and for a source that does not exist.
    """
    return sorted(file for files in split_files(settings).values() for file in files)


def place_of(source: str, revision: str | None = None) -> Path:
    """Where a local source lies. Relative paths start at the repository.

    A local copy of hh-rlhf, `$HIALIGN_SHARED_DATA/hh-rlhf`, stands in for the set on the hub, unless
    a revision is asked for.
    """
    data = paths.shared_data()
    if source == HH_RLHF and revision is None and data is not None and (data / "hh-rlhf").is_dir():
        return data / "hh-rlhf"
    try:
        return paths.root() / Path(source).expanduser()
    except RuntimeError as error:  # `~somebody` who has no home on this machine
        raise HialignError(f"preferences.source {source}: {error}") from None


def builtin_file() -> Path:
    """The built-in prompts with a good response each."""
    return paths.package() / "preferences" / "builtin.jsonl"


def contrast_answers(settings: PreferenceSettings) -> PreferenceSettings:
    """Where the source `contrasts` takes answers from: one tranche of hh-rlhf, its test split."""
    return PreferenceSettings(source=HH_RLHF, revision=settings.revision, subsets=["harmless-base"])


def is_hh_rlhf(settings: PreferenceSettings) -> bool:
    """Whether the pairs are those of Anthropic/hh-rlhf: from the hub, or from a folder of its layout.

    Its layout is `<tranche>/<split>.jsonl.gz`, with the tranches of `HH_TRANCHES`. A folder that this
    machine does not have is known by its name: the book is also built where only the records are.
    """
    if settings.source == HH_RLHF:
        return True
    tranches = settings.subsets or HH_TRANCHES
    if settings.source in OURS or not set(tranches) <= set(HH_TRANCHES):
        return False
    place = place_of(settings.source, settings.revision)
    if not os.path.exists(place):
        folder = settings.source.startswith(PATHS) and not place.suffix
        return folder and place.name.startswith("hh-rlhf")
    files = [place / t / f"{s}.jsonl.gz" for t in tranches for s in ("train", "test")]
    return any(os.path.isfile(file) for file in files)


def source_name(settings: PreferenceSettings) -> str:
    """The source as a reader sees it: a copy of hh-rlhf by its name on the hub, no folders of others."""
    source = settings.source
    if is_hh_rlhf(settings):
        return HH_RLHF
    local = source.startswith(PATHS) or os.path.exists(place_of(source))
    return Path(source).name if local and source not in OURS else source


def withheld(settings: PreferenceSettings) -> list[str]:
    """The tranches of a study's pairs of which no text may be published."""
    tranches = settings.subsets or (HH_TRANCHES if is_hh_rlhf(settings) else ())
    return [tranche for tranche in tranches if tranche in WITHHELD]


def split_files(settings: PreferenceSettings) -> dict[str, list[Path]]:
    """The files of each split. A source has `train`, `test` or both."""
    if settings.source == "builtin":
        return {"train": [builtin_file()]}
    if settings.source == "contrasts":
        files = split_files(contrast_answers(settings)).get("test", [])
        return {"train": [builtin_file()], "test": files}
    place = place_of(settings.source, settings.revision)
    if os.path.isfile(place):
        return {"train": [place]}
    splits: dict[str, list[Path]] = {}
    if os.path.isdir(place):
        for tranche in settings.subsets or _tranches(place):
            for split, files in files_of_splits(place / tranche).items():
                splits.setdefault(split, []).extend(files)
    return {
        split: sorted(files) for split, files in splits.items() if settings.split in (None, split)
    }


def _tranches(folder: Path) -> list[str]:
    """The tranches of hh-rlhf in a folder. Without them, the folder itself and its sub-folders."""
    tranches = [tranche for tranche in HH_TRANCHES if (folder / tranche).is_dir()]
    others = sorted(p.name for p in folder.glob("*") if p.is_dir() and p.name[0] != ".")
    return tranches or [".", *others]


def files_of_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in one folder, in the first format of `SUFFIXES` that it has.

    A split may be one file (`train.jsonl`) or several parts as on the hub
    (`train-00000-of-00002.parquet`).
    """
    splits: dict[str, list[Path]] = {}
    for split in ("train", "test"):
        for suffix in SUFFIXES:
            files = [folder / f"{split}{suffix}"]
            if not os.path.isfile(files[0]):
                files = sorted(folder.glob(f"{split}-*-of-*{suffix}"))
            if files:
                splits[split] = files
                break
    return splits


def files_of_set(name: str) -> list[Path]:
    """The files of a test set, of which `$HIALIGN_SHARED_DATA` has a copy. Empty without one."""
    shared = paths.shared_data()
    return sorted((shared / name).glob("*.json*")) if shared else []
