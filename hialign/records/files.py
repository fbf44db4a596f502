"""Files: written completely or not at all, and compared by size, time and hash.

A record (a manifest, an evaluation, what a probe measured) carries a checksum of itself. It also
carries a `Stamp` of each file that it vouches for or was made from, which `hialign.records.status`
compares with what is on disk now.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError

CHECKSUM = "sha256"  # the key under which a record holds the checksum of the rest of itself
REMEMBERED = 1 << 28  # bytes: the hash of a larger file is kept in the cache (weights of a model)


class Stamp(TypedDict):
    """A file as a record knew it."""

    bytes: int
    modified: int  # nanoseconds since 1970. A copy with the same bytes may have another time.
    sha256: str
    rows: NotRequired[int]  # of a JSON-lines file


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system, such as a full disk, into one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise HialignError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path for the new content of `path`, which it replaces if no error occurs."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)


def replace_folder(staged: Path, place: Path) -> None:
    """Put the folder `staged` in the place of `place`. The old folder stays until that succeeds."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        staged.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, completely or not at all.

    NaN and infinity are refused. A missing value is None.
    """
    with whole_file(path) as temporary:
        temporary.write_text(_dumps(content, path, indent=2) + "\n", encoding="utf-8")


def write_record(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write `content` as JSON with its checksum, which `read_record` compares. Returns the record."""
    record = dict(json.loads(_dumps(content, path)))  # as it will be read, with text as keys
    record[CHECKSUM] = checksum(record, path)
    write_json(path, record)
    return record


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line per row, all of them or none."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(_dumps(row, path) + "\n")


def _dumps(content: Any, path: Path, **options: Any) -> str:
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, **options)
        # Half a character, such as an API may send, has no UTF-8 but an escape
        if re.search("[\ud800-\udfff]", text):
            text = json.dumps(content, allow_nan=False, **options)
        return text
    except ValueError as error:
        raise HialignError(
            f"{path} would hold a number that is not finite ({error}): training has diverged, so "
            "try a lower learning rate"
        ) from None


# --- reading -------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. HialignError names a file that does not hold one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise HialignError(f"{path}: not JSON ({error}): delete it to run again") from None


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote. Raises HialignError if the file was changed since.

    Records of earlier versions carry no checksum and are not checked.
    """
    stat = path.stat()
    return dict(_read_record(path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=256)
def _read_record(path: Path, size: int, modified: int) -> dict[str, Any]:
    content = read_json(path)
    written = content.get(CHECKSUM)
    if written is not None and written != checksum(content, path):
        raise HialignError(f"{path} was changed after it was written: delete it to run again")
    return content


def checksum(record: Mapping[str, Any], path: Path) -> str:
    """sha256 of a record without its checksum, whatever the order of its keys."""
    plain = {key: value for key, value in record.items() if key != CHECKSUM}
    text = _dumps(plain, path, sort_keys=True).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. HialignError names the file and the line that is not JSON."""
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise HialignError(f"{path}, line {number}: not JSON ({error})") from None
    return rows


# --- telling files apart -------------------------------------------------------------------------


def stamp(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    stat = path.stat()
    current: Stamp = {
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
        "sha256": sha256_of(path),
    }
    if path.suffix == ".jsonl":
        current["rows"] = rows_of(path)
    return current


def stamps(files: Mapping[str, Path]) -> dict[str, Stamp]:
    """The stamps of the `files` that exist."""
    return {name: stamp(path) for name, path in files.items() if path.is_file()}


def same(path: Path, stamped: Stamp, thorough: bool = False) -> bool:
    """Whether a file is the one that was stamped.

    It is read only if its time differs, or if the comparison is `thorough`.
    """
    stat = path.stat()
    if stat.st_size != stamped["bytes"]:
        return False
    if stat.st_mtime_ns == stamped["modified"] and not thorough:
        return True
    return sha256_of(path) == stamped["sha256"]


def rows_of(path: Path) -> int:
    """How many lines of a file are not empty."""
    with path.open("rb") as stream:
        return sum(bool(line.strip()) for line in stream)


def sha256_of(*of: Path) -> str:
    """sha256 of a file, or of several files one after the other.

    The hash of large files is kept in the cache for as long as their sizes and times stay the same.
    """
    stats = [path.stat() for path in of]
    if sum(stat.st_size for stat in stats) < REMEMBERED:
        return _hashed(of)
    about = [
        (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        for path, stat in zip(of, stats, strict=True)
    ]
    note = paths.cache() / "hashes" / json_sha256(about, 32)
    if note.is_file():
        return note.read_text(encoding="ascii")
    digest = _hashed(of)
    with whole_file(note) as temporary:
        temporary.write_text(digest, encoding="ascii")
    return digest


def forget_hashes() -> None:
    """Empty the cache of hashes, so that all files are read again."""
    shutil.rmtree(paths.cache() / "hashes", ignore_errors=True)
    _read_record.cache_clear()


def _hashed(of: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in of:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
