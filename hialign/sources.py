"""Where preference pairs come from: local files, whose choice is made here, or a set on the hub.

Importing this module loads nothing heavy, because `hialign status` asks for the files of a study.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hialign import paths
from hialign.errors import HialignError
from hialign.reading import Located, needs, read_file
from hialign.study import PreferenceSettings

HH_RLHF = "Anthropic/hh-rlhf"
HH_TRANCHES = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")

# --- which files ---------------------------------------------------------------------------------

TEXT = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*(s + packed for s in TEXT for packed in ("", ".gz")), ".parquet")  # the first wins
UNPACK = "unpack it, and name the file that was in it"
FOREIGN = {  # what is not read, and how it becomes what is
    **dict.fromkeys((".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz"), UNPACK),
    ".arrow": "write it anew with `datasets.Dataset.from_file({!r}).to_json('pairs.jsonl')`",
    **{
        suffix: f"write it anew with `pandas.{read}({{!r}})"
        ".to_json('pairs.jsonl', orient='records', lines=True)`"
        for suffix, read in (
            (".xlsx", "read_excel"),
            (".xls", "read_excel"),
            (".feather", "read_feather"),
            (".pkl", "read_pickle"),
        )
    },
}
HUB_NAME = re.compile(r"(hf://datasets/)?\w[\w.-]*(/\w[\w.-]*)?")


def data_files(settings: PreferenceSettings) -> list[Path]:
    """The local files that `load_pairs(settings)` reads, sorted.

    There are none for a set on the hub and for a source that does not exist.
    """
    return sorted(file for files in _split_files(settings).values() for file in files)


def check_source(settings: PreferenceSettings) -> None:
    """Raise HialignError if a local source does not exist or has no files; nothing is read.

    A set on the hub is not asked for.
    """
    source = settings.source
    if not source.strip():
        raise HialignError(
            "preferences.source is empty: give `builtin`, a file, a folder or a set on the hub"
        )
    for file in data_files(settings):
        packed = file.name.endswith((".parquet.gz", ".tar.gz"))
        if advice := UNPACK if packed else FOREIGN.get(file.suffix):
            raise HialignError(
                f"{file}: the format {file.suffix} is not read: {advice.format(str(file))}"
            )
    place = _place(source)
    if source == "builtin" or os.path.isfile(place):
        return
    if os.path.isdir(place):
        empty = [s for s in settings.subsets or [] if not _files_in(place / s)]
        if empty or not _split_files(settings):
            raise HialignError(
                f"preferences.source {source}: no train.jsonl or test.jsonl (or .json, .csv, "
                f".parquet) in {', '.join(empty) or 'the folder'} (looked in {place})"
                f"{_what_there_is(place)}"
            )
    elif "://" in source and not HUB_NAME.fullmatch(source):
        raise HialignError(
            f"preferences.source {source}: addresses are not read: download the file, and give "
            "its path"
        )
    elif _names_a_path(source):
        elsewhere = os.path.abspath(source)
        raise HialignError(
            f"preferences.source {source}: there is no such file or folder; relative paths start "
            f"at the repository, and {place} does not exist"
            + (f": write {elsewhere} for the one that does" if os.path.exists(elsewhere) else "")
        )


def _place(source: str) -> Path:
    """Where a local source lies; relative paths start at the repository."""
    try:
        return paths.root() / Path(source).expanduser()
    except RuntimeError as error:  # `~somebody` who has no home on this machine
        raise HialignError(f"preferences.source {source}: {error}") from None


def _names_a_path(source: str) -> bool:
    """Whether a source that is no file or folder is meant as one, and not as a set on the hub."""
    return (
        source.startswith((".", "/", "~"))
        or Path(source).suffix in (*SUFFIXES, *FOREIGN, ".gz")
        or not HUB_NAME.fullmatch(source)
        or ("/" in source and os.path.isdir(_place(source).parent))
        # `datasets` would read this one, whatever the repository
        or os.path.exists(source)
    )


def _split_files(settings: PreferenceSettings) -> dict[str, list[Path]]:
    """The files of each split: `train`, `test`, or just one of them."""
    if settings.source == "builtin":
        return {"train": [paths.data() / "builtin.jsonl"]}
    place = _place(settings.source)
    if os.path.isfile(place):
        return {"train": [place]}
    splits: dict[str, list[Path]] = {}
    if os.path.isdir(place):
        for tranche in settings.subsets or _tranches(place):
            for split, files in _files_in(place / tranche).items():
                splits.setdefault(split, []).extend(files)
    return {split: sorted(files) for split, files in splits.items()}


def _tranches(folder: Path) -> list[str]:
    """Tranches of a folder of hh-rlhf's layout; `.` if the files lie in the folder itself."""
    tranches = [t for t in HH_TRANCHES if (folder / t).is_dir()]
    return tranches or [
        *(".", *sorted(p.name for p in folder.glob("*") if p.is_dir() and p.name[0] != "."))
    ]


def _files_in(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in one folder, in the first of the formats that is there.

    A split may be one file (`train.jsonl`) or cut into the hub's parts
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


def _what_there_is(folder: Path) -> str:
    """What to do with a folder that has no file of a split: a clause for the error, or nothing."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        split = "['train']" if (folder / "dataset_dict.json").is_file() else ""
        return (
            f": this is what `save_to_disk` writes; write `datasets.load_from_disk({str(folder)!r})"
            f"{split}.to_parquet({str(folder / 'train.parquet')!r})`"
        )
    names = [p.name for p in sorted(folder.glob("*")) if p.name.endswith(SUFFIXES)]
    if names:
        return f": it holds {', '.join(names[:5])}; give one of them as preferences.source"
    return ""


def read_splits(settings: PreferenceSettings) -> dict[str, Iterator[Located]]:
    """The rows of each split that the source has: `train`, `test`, or just one of them.

    Raises HialignError for a source that is not there.
    """
    check_source(settings)
    splits = _split_files(settings)
    if not splits:
        return _read_hub(settings)
    return {s: (row for file in files for row in read_file(file)) for s, files in splits.items()}


# --- the hub -------------------------------------------------------------------------------------


def _read_hub(settings: PreferenceSettings) -> dict[str, Iterator[Located]]:
    import datasets

    source, config = settings.source, datasets.config
    subsets = list(settings.subsets or [])
    if source == HH_RLHF and not subsets:
        subsets = list(HH_TRANCHES)
    splits: dict[str, list[Any]] = {}
    others: list[str] = []
    offline, unreachable = config.HF_HUB_OFFLINE, ""
    if not offline:
        unreachable = _unreachable(config.HF_ENDPOINT)
    try:
        # Then what was loaded before is taken from the cache, and nothing is tried again
        config.HF_HUB_OFFLINE = bool(offline or unreachable)
        for subset in subsets or (None,):
            # hh-rlhf keeps its tranches in folders; other sets name them as configurations
            where = {"data_dir": subset} if source == HH_RLHF else {"name": subset}
            loaded = datasets.load_dataset(source, revision=settings.revision, **where)
            others += [split for split in loaded if split not in others]
            for split in ("train", "test"):
                if split in loaded:
                    splits.setdefault(split, []).append(loaded[split])
    except Exception as error:  # the hub's client raises many kinds, all meaning: not to be had
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if unreachable:
            reason = f"{config.HF_ENDPOINT} cannot be reached: {unreachable}"
        raise HialignError(
            f"preferences.source {source} could not be loaded from the hub ({reason}), and there is "
            f"no {_place(source)}: give a set that you can reach, or a local file or folder"
        ) from None
    finally:
        config.HF_HUB_OFFLINE = offline
    if not splits:
        code = f"datasets.load_dataset({source!r}, split={(others or ['SPLIT'])[0]!r})"
        raise HialignError(
            f"preferences.source {source} has neither a train nor a test split but "
            f"{', '.join(others) or 'none'}: write one with `{code}.to_json('train.jsonl')`, and "
            "give that file"
        )
    return {split: _numbered(sets, source) for split, sets in splits.items()}


def _unreachable(endpoint: str) -> str:
    """Why the hub does not answer; empty if it does.

    `datasets` tries each request six times, which takes half a minute and a dozen lines on a
    machine without a network. One short request says it before.
    """
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception as error:  # of whatever client the hub's library uses: there is no connection
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ""


def _numbered(sets: Iterable[Any], source: str) -> Iterator[Located]:
    for rows in sets:
        for number, row in enumerate(rows):
            if not {"chosen", "rejected"} <= row.keys():
                raise needs(
                    f"row {number} of {source}",
                    row,
                    f"datasets.load_dataset({source!r}, split='train').rename_columns("
                    "{'GOOD': 'chosen', 'BAD': 'rejected'}).to_json('train.jsonl')",
                )
            yield f"row {number} of {source}", row
