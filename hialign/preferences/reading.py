"""The rows of a local file: JSON lines, a JSON array, CSV (all gzipped or not) or parquet.

Each row comes with its place in the file, so that an error can name it. Nothing is written beside
the file, and no cache is kept.
"""

import ast
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hialign.study.errors import HialignError

Located = tuple[str, dict[str, Any]]  # the place of a row, and the row


def read_file(path: Path) -> Iterator[Located]:
    """Rows of a file with their places. Lines are counted from 1, rows of a list from 0.

    Raises HialignError that names the place of a row that cannot be read.
    """
    name = path.name.removesuffix(".gz")
    readers: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Any]]], str]] = {
        ".csv": (_csv_rows, "read_csv({!r})"),
        ".tsv": (_csv_rows, "read_csv({!r}, sep='\\t')"),
        ".parquet": (_parquet_rows, "read_parquet({!r})"),
    }
    read, in_pandas = readers.get(Path(name).suffix, (_json_rows, "read_json({!r})"))
    _refuse_pointer(path)
    for place, row in read(path):
        if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
            if read is _json_rows and place == "line 1" and _holds_lists(row):
                raise _not_a_list(path, row)
            if read is _json_rows and place.startswith("line"):
                in_pandas = "read_json({!r}, lines=True)"
            raise needs(
                f"{path}, {place}",
                row,
                f"pandas.{in_pandas.format(path.name)}.rename(columns={{'GOOD': 'chosen', "
                "'BAD': 'rejected'}).to_json('pairs.jsonl', orient='records', lines=True)",
            )
        if read is _json_rows and isinstance(row["chosen"], dict) and "0" in row["chosen"]:
            raise HialignError(
                f"{path}: not a list of pairs but columns: rewrite it with `pandas.read_json("
                f"{path.name!r}).to_json('pairs.jsonl', orient='records', lines=True)`"
            )
        yield f"{place} of {path.name}", row


def needs(where: str, row: Any, code: str) -> HialignError:
    """The error for a row without `chosen` and `rejected`. `code` renames the keys of the rows."""
    if isinstance(row, dict):
        keys = ", ".join(repr(key) for key in list(row)[:12]) or "nothing"
        advice = f"has {keys}: rename two of its keys with `{code}`"
    else:
        advice = f"is {row!r:.40}"
    return HialignError(
        f"{where}: a preference pair needs `chosen` and `rejected`, and this row {advice}"
    )


def _refuse_pointer(path: Path) -> None:
    """Refuse the pointer that git leaves in place of a file if Git LFS is not installed."""
    try:
        with path.open("rb") as stream:
            pointer = stream.read(24) == b"version https://git-lfs."
    except OSError as error:
        raise HialignError(f"{path}: cannot be read ({error.strerror})") from None
    if pointer:
        raise HialignError(f"{path} is only a pointer of Git LFS: run `git lfs pull` beside it")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, gzipped or not, without a byte-order mark."""
    number, encoding = 0, "utf-8"
    try:
        with path.open("rb") as raw:
            packed = path.suffix == ".gz" or raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    encoding = json.detect_encoding(line[:4])
                    if not encoding.startswith("utf-8"):
                        raise _not_utf8(path, number, encoding)
                yield line.decode(encoding)
                encoding = "utf-8"
    except UnicodeDecodeError:
        raise _not_utf8(path, number, "latin-1") from None
    except (OSError, EOFError, zlib.error) as error:
        raise HialignError(f"{path}, after line {number}: cannot be read ({error})") from None


def _not_utf8(path: Path, number: int, encoding: str) -> HialignError:
    return HialignError(
        f"{path}, line {number}: cannot be read, because it is not UTF-8 but perhaps {encoding}: "
        f"rewrite it with `Path('new-{path.name}').write_text(Path({path.name!r})"
        f".read_text({encoding!r}), 'utf-8')`"
    )


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a file with one JSON object per line, or with one array of them."""
    lines = enumerate(_lines(path), 1)
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            array = _parsed(path, number, line + "".join(rest for _, rest in lines))
            yield from ((f"row {index}", row) for index, row in enumerate(array))
            return
        if first and line.strip() == "{":  # one object over many lines is not a set of pairs
            _refuse_object(path, number, line + "".join(rest for _, rest in lines))
        yield f"line {number}", _parsed(path, number, line)
        first = False


def _parsed(path: Path, number: int, text: str) -> Any:
    """JSON that begins in line `number`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise HialignError(
            f"{path}, line {number + error.lineno - 1}: not JSON ({error}): write one pair "
            "per line, or one array of pairs"
        ) from None
    except (ValueError, RecursionError) as error:
        raise HialignError(f"{path}, line {number}: not JSON ({error})") from None


def _refuse_object(path: Path, number: int, text: str) -> None:
    try:
        whole = json.loads(text)
    except ValueError:
        raise HialignError(
            f"{path}, line {number}: not JSON: a pair must be on one line: "
            f"rewrite it with `jq -c . {path.name} > pairs.jsonl`"
        ) from None
    raise _not_a_list(path, whole)


def _holds_lists(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(value, list) for value in row.values())


def _not_a_list(path: Path, whole: dict[str, Any]) -> HialignError:
    lists = [key for key, value in whole.items() if isinstance(value, list)]
    code = f"json.dump(json.load(open({path.name!r}))[{(lists or ['KEY'])[0]!r}], open('pairs.json', 'w'))"
    return HialignError(
        f"{path}: not a list of pairs but one object with the keys {', '.join(whole)}: "
        f"write the list alone with `{code}`"
    )


# How a cell of a table begins if it holds messages, or LLaMA-Factory's earlier turns
MESSAGES = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")
HISTORY = re.compile(r"""\s*\[\s*\[""")
CELLS = {"history": HISTORY} | dict.fromkeys(
    ("prompt", "chosen", "rejected", "conversations", "messages"), MESSAGES
)


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a table with a line of column names and commas, semicolons or tabs between its cells.

    A cell may hold messages as JSON, or as Python writes them. Empty cells count as missing, except
    in `chosen` and `rejected`.
    """
    csv.field_size_limit(2**31 - 1)  # a transcript may be longer than the default of 128 KiB
    lines = _lines(path)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 2
    try:
        names = [
            n.strip() for n in next(csv.reader([header], delimiter=delimiter, strict=True), [])
        ]
        for cells in rows:
            if cells and len(cells) != len(names):
                raise HialignError(
                    f"{path}, line {start}: {len(cells)} cells, but {len(names)} columns: put "
                    "cells that hold a comma, a quote or a line break into double quotes, as "
                    "`pandas.DataFrame.to_csv` does"
                )
            if cells:
                row = {n: _cell(path, start, n, c) for n, c in zip(names, cells, strict=True)}
                needed = ("chosen", "rejected")
                yield f"line {start}", {n: c for n, c in row.items() if c != "" or n in needed}
            start = rows.line_num + 2
    except csv.Error as error:
        raise HialignError(f"{path}, line {start}: not CSV ({error})") from None


def _cell(path: Path, number: int, column: str, text: str) -> Any:
    text = text.replace("\r\n", "\n")
    if column not in CELLS or not CELLS[column].match(text):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise HialignError(
        f"{path}, line {number}: the cell of `{column}` looks like messages and is not JSON: write "
        "the column with `json.dumps`"
    )


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise HialignError(f"{path}, at row {number}: cannot be read ({reason})") from None
