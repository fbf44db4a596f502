"""Where preference pairs come from: local files, or a set on the hub.

A source that cannot be meant or cannot be read is refused with advice. Importing this module loads
nothing heavy.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hialign.preferences.reading import Located, needs, read_file
from hialign.study.errors import HialignError
from hialign.study.pair_files import (
    HH_RLHF,
    HH_TRANCHES,
    OURS,
    SUFFIXES,
    contrast_answers,
    data_files,
    files_of_splits,
    place_of,
    split_files,
)
from hialign.study.settings import PreferenceSettings

# --- which files ---------------------------------------------------------------------------------

UNPACK = "unpack it, and name the file that was in it"
AS_LINES = "({!r}).to_json('pairs.jsonl', orient='records', lines=True)`"
FOREIGN = {  # formats that are not read, and how to convert them
    **dict.fromkeys((".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz"), UNPACK),
    **dict.fromkeys((".xlsx", ".xls"), "rewrite it with `pandas.read_excel" + AS_LINES),
    ".feather": "rewrite it with `pandas.read_feather" + AS_LINES,
    ".pkl": "rewrite it with `pandas.read_pickle" + AS_LINES,
    ".arrow": "rewrite it with `datasets.Dataset.from_file({!r}).to_json('pairs.jsonl')`",
}
HUB_NAME = re.compile(r"(hf://datasets/)?\w[\w.-]*(/\w[\w.-]*)?")


def check_source(settings: PreferenceSettings) -> None:
    """Raise HialignError if a local source does not exist or has no files.

    Nothing is read, and the hub is not asked.
    """
    source = settings.source
    if not source.strip():
        raise HialignError(
            "preferences.source is empty: give `builtin`, `contrasts`, a file, a folder or a set on the hub"
        )
    for file in data_files(settings):
        packed = file.name.endswith((".parquet.gz", ".tar.gz"))
        if advice := UNPACK if packed else FOREIGN.get(file.suffix):
            raise HialignError(
                f"{file}: the format {file.suffix} is not read: {advice.format(str(file))}"
            )
    if source in OURS and settings.subsets:
        raise HialignError(f"preferences.subsets: the source {source} has none, so leave it out")
    if source == "contrasts":
        check_source(contrast_answers(settings))
    place = place_of(source, settings.revision)
    if source in OURS or os.path.isfile(place):
        return
    every_split = settings.model_copy(update={"split": None})
    if settings.split and not split_files(settings) and split_files(every_split):
        raise HialignError(
            f"preferences.split {settings.split}: {source} has no such split; leave it out"
        )
    if os.path.isdir(place):
        empty = [s for s in settings.subsets or [] if not files_of_splits(place / s)]
        if empty or not split_files(settings):
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
            f"preferences.source {source}: there is no such file or folder, as relative paths start "
            f"at the repository, and {place} does not exist"
            + (f": write {elsewhere} for the one that does" if os.path.exists(elsewhere) else "")
        )


def _names_a_path(source: str) -> bool:
    """Whether a source that does not exist here is meant as a path, and not as a set on the hub."""
    return (
        source.startswith((".", "/", "~"))
        or Path(source).suffix in (*SUFFIXES, *FOREIGN, ".gz")
        or not HUB_NAME.fullmatch(source)
        or ("/" in source and os.path.isdir(place_of(source).parent))
        # `datasets` would read this one, whatever the repository
        or os.path.exists(source)
    )


def _what_there_is(folder: Path) -> str:
    """What to do with a folder that has no file of a split, as a clause for the error, or empty."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        split = "['train']" if (folder / "dataset_dict.json").is_file() else ""
        return (
            f": this is what `save_to_disk` writes, so run `datasets.load_from_disk({str(folder)!r})"
            f"{split}.to_parquet({str(folder / 'train.parquet')!r})`"
        )
    names = [p.name for p in sorted(folder.glob("*")) if p.name.endswith(SUFFIXES)]
    if names:
        return f": it holds {', '.join(names[:5])}, so give one of them as preferences.source"
    return ""


def read_splits(settings: PreferenceSettings) -> dict[str, Iterator[Located]]:
    """The rows of each split. A source has `train`, `test` or both.

    Raises HialignError for a source that does not exist.
    """
    check_source(settings)
    splits = split_files(settings)
    if not splits:
        return _read_hub(settings)
    return {s: (row for file in files for row in read_file(file)) for s, files in splits.items()}


# --- the hub -------------------------------------------------------------------------------------


def _read_hub(settings: PreferenceSettings) -> dict[str, Iterator[Located]]:
    import datasets

    source, config = settings.source, datasets.config
    subsets = sorted(settings.subsets or [])  # as the files of a local copy are
    if source == HH_RLHF and not subsets:
        subsets = list(HH_TRANCHES)
    splits: dict[str, list[Any]] = {}
    others: list[str] = []
    offline, unreachable = config.HF_HUB_OFFLINE, ""
    if not offline:
        unreachable = _unreachable(config.HF_ENDPOINT)
    try:
        # Offline, earlier downloads are taken from the cache, and no request is repeated
        config.HF_HUB_OFFLINE = bool(offline or unreachable)
        for subset in subsets or (None,):
            # hh-rlhf keeps its tranches in folders; other sets name them as configurations
            where = {"data_dir": subset} if source == HH_RLHF else {"name": subset}
            loaded = datasets.load_dataset(source, revision=settings.revision, **where)
            others += [split for split in loaded if split not in others]
            for split in ("train", "test"):
                if split in loaded and settings.split in (None, split):
                    splits.setdefault(split, []).append(loaded[split])
    except Exception as error:  # of the many kinds that the hub's client raises
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if unreachable:
            reason = f"{config.HF_ENDPOINT} cannot be reached: {unreachable}"
        raise HialignError(
            f"preferences.source {source} could not be loaded from the hub ({reason}), and there is "
            f"no {place_of(source)}: give a set that you can reach, or a local file or folder"
            + (
                ", or set HIALIGN_SHARED_DATA to a folder that has hh-rlhf"
                if source == HH_RLHF
                else ""
            )
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
    """Why the hub does not answer. Empty if it does.

    `datasets` tries each request six times, which takes half a minute and prints a dozen lines on a
    machine without a network. One short request finds out first.
    """
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception as error:  # of whatever client the hub's library uses
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
