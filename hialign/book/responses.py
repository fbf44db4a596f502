"""The data of the book's Explore page: all responses of a study side by side, in small files.

A page opened from a disk may load scripts and nothing else, so each file is a call of one function
with JSON in a string. `index.js` has what searching, sorting and the heat map need. The texts lie in
`texts-<model>-<number>.js`, which the page loads when it shows them. All of it is untrusted.
"""

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hialign.records import frames
from hialign.records.files import whole_file
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.pair_files import source_name
from hialign.study.study import Cell, Study

BEGINNING = 240  # characters of a prompt in the index
CHUNK_BYTES = 200_000  # of texts in a file, about
SCALE = 10_000  # scores of 1 to 5 as whole numbers in 16 bits; 0 is none
ANSWERED, CUT, PROMPT_CUT, JUDGED, VALID = 1, 2, 4, 8, 16  # flags of a response

# What must not stand in a script as it is: `<` (of `</script>` and `<!--`), characters that turn the
# text around or cannot be seen, and halves of characters, which have no UTF-8.
UNSAFE = re.compile(
    "[<>&\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)


@dataclass(frozen=True)
class Sizes:
    """What was written: the bytes of `index.js` and of all files, the prompts, and the responses."""

    index: int
    total: int
    prompts: int
    responses: int


@dataclass
class _Column:
    """One cell's part of the page. Each list has one entry per prompt."""

    tokens: list[int | None] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    scores: list[list[int]] = field(default_factory=list)  # by dimension, times SCALE
    # None, or the response and: None (no judgment), its error, or the reasons by dimension
    texts: list[tuple[str, str | list[str] | None] | None] = field(default_factory=list)


def write(study: Study, folder: Path) -> Sizes:
    """Write the study's index and texts into `folder`, beside the page's own scripts and style.

    The same records give the same bytes. One model's texts are in memory at a time. HialignError if
    `folder` cannot be written.
    """
    from hialign.study.rubric import load_rubric

    rubric = load_rubric(study.judge.rubric) if study.judge else None
    dimensions = list(rubric.dimensions) if rubric else []
    prompts: dict[str, str] = {}
    for cell in study.cells():
        for row in frames.responses_of(cell):
            prompt = row.get("prompt")
            prompts.setdefault(str(row.get("prompt_id")), prompt if isinstance(prompt, str) else "")
    _prepare(folder)
    cells: list[list[dict[str, Any] | None]] = []
    chunks: list[list[tuple[int, int, int, str]]] = []
    total = responses = 0
    for number, model in enumerate(study.models):
        of_model = [cell for cell in study.cells() if cell.model == model]
        columns = [_column(cell, list(prompts), dimensions) for cell in of_model]
        responses += sum(flags & ANSWERED for c in columns if c for flags in c.flags)
        same = _identical(columns, len(prompts))
        cells.append([_indexed(c, s) if c else None for c, s in zip(columns, same, strict=True)])
        chunks.append([])
        for first, rows in _chunked(list(prompts.values()), columns):
            name = f"texts-{number}-{len(chunks[-1])}"
            size, digest = _write(folder, name, rows)
            chunks[-1].append((first, len(rows), size, digest))
            total += size
    index = {
        "study": study.name,
        "title": study.title,
        "source": source_name(study.preferences),
        "harmless": study.preferences.source == "builtin",
        "judge": study.judge.name if study.judge else None,
        "dimensions": dimensions,
        "models": [model.label for model in study.models],
        "blocks": study.blocks,
        "strategies": [cell.strategy for cell in study.cells()[: len(study.blocks)]],
        "ids": list(prompts),
        "beginnings": [prompt[:BEGINNING] for prompt in prompts.values()],
        "lengths": [len(prompt) for prompt in prompts.values()],
        "cells": cells,
        "chunks": chunks,
    }
    size, _ = _write(folder, "index", index, total)
    return Sizes(index=size, total=total + size, prompts=len(prompts), responses=responses)


def _prepare(folder: Path) -> None:
    """The page's scripts and style in `folder`, and no texts of an earlier build."""
    try:
        shutil.copytree(paths.book_source() / "explorer", folder, dirs_exist_ok=True)
        for old in folder.glob("texts-*.js"):
            old.unlink()
    except OSError as error:
        raise HialignError(f"cannot write {folder}: {error.strerror or error}") from None


def _column(cell: Cell, names: Sequence[str], dimensions: Sequence[str]) -> _Column | None:
    """The cell's answers to the prompts `names`, and what its judge said. None stands for nothing."""
    rows = {str(row.get("prompt_id")): row for row in frames.responses_of(cell)}
    if not rows:
        return None
    judgments: dict[str, tuple[list[int], str | list[str]]] = {}
    if cell.study.judge:
        for row in frames.judgments_of(cell):
            judgments[str(row.get("prompt_id"))] = _judgment(row, dimensions)
    column = _Column()
    for name in names:
        answer: Mapping[str, Any] = rows.get(name) or {}
        response, flags, tokens = answer.get("response"), 0, None
        scores: list[int] = [0] * len(dimensions)
        text: tuple[str, str | list[str] | None] | None = None
        if isinstance(response, str):
            flags = ANSWERED + CUT * (answer.get("finish_reason") == "length")
            flags += PROMPT_CUT * (answer.get("prompt_truncated") is True)
            tokens, text = _whole(answer.get("tokens")), (response, None)
            if name in judgments:
                scores, said = judgments[name]
                flags += JUDGED + VALID * any(scores)
                text = (response, said)
        column.tokens.append(tokens)
        column.flags.append(flags)
        column.scores.append(scores)
        column.texts.append(text)
    return column


def _judgment(
    row: Mapping[str, Any], dimensions: Sequence[str]
) -> tuple[list[int], str | list[str]]:
    """A judgment's scores (0: none), and its reasons by dimension, or its error if it failed."""
    scores, reasons = row.get("scores") or {}, row.get("reasons") or {}
    points = [_points(scores.get(name)) for name in dimensions]
    if not any(points):
        return points, str(row.get("error") or "")
    said = [str(reasons.get(name) or "") for name in dimensions]
    return points, said if any(said) else []


def _points(score: Any) -> int:
    """A score of 1 to 5 times SCALE, and 0 for anything else."""
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return round(score * SCALE) if number and 1 <= score <= 5 else 0


def _whole(tokens: Any) -> int | None:
    number = isinstance(tokens, int | float) and math.isfinite(tokens) and tokens >= 0
    return int(tokens) if number else None


def _identical(columns: Sequence[_Column | None], prompts: int) -> list[list[int]]:
    """By column and prompt: the number (from 1) of a group with the same response, 0 for none."""
    groups = [[0] * prompts for _ in columns]
    for i in range(prompts):
        places: dict[str, list[int]] = {}
        for j, column in enumerate(columns):
            text = column.texts[i] if column else None
            if text is not None:
                places.setdefault(text[0], []).append(j)
        shared = [members for members in places.values() if len(members) > 1]
        for number, members in enumerate(shared, 1):
            for j in members:
                groups[j][i] = number
    return groups


def _indexed(column: _Column, same: list[int]) -> dict[str, Any]:
    scores = np.asarray(column.scores, dtype="<u2").tobytes()
    return {
        "tokens": column.tokens,
        "flags": column.flags,
        "same": same,
        "scores": base64.b64encode(scores).decode() if any(scores) else "",
    }


def _chunked(
    prompts: Sequence[str], columns: Sequence[_Column | None]
) -> Iterator[tuple[int, list[Any]]]:
    """The texts in parts of about CHUNK_BYTES: the place of its first prompt, and rows.

    A row is the prompt and, by strategy, the response with what the judge said, or None. A model
    without any response has no parts.
    """
    if not any(columns):
        return
    first, size, rows = 0, 0, list[Any]()
    for i, prompt in enumerate(prompts):
        texts = [column.texts[i] if column else None for column in columns]
        length = len(json.dumps([prompt, texts]))
        if rows and size + length > CHUNK_BYTES:
            yield first, rows
            first, size, rows = i, 0, []
        rows.append([prompt, texts])
        size += length
    yield first, rows


def _write(folder: Path, name: str, content: Any, others: int = 0) -> tuple[int, str]:
    """Write `<name>.js`: a call with the name, the content, this file's bytes and all files' bytes.

    Returns this file's bytes and a short digest of it. `others` are the bytes of the other files.
    """
    head = f"hialignExplorer.receive('{name}',{literal(content)},".encode()
    tail = "{:>12},{:>12});\n"  # of one length for any number
    size = len(head) + len(tail.format(0, 0))
    data = head + tail.format(size, size + others).encode()
    with whole_file(folder / f"{name}.js") as temporary:
        temporary.write_bytes(data)
    return size, hashlib.sha256(data).hexdigest()[:12]


def literal(content: Any) -> str:
    """`content` as JSON in a JavaScript string that is safe in any script and any page.

    In a string it stays data: as an object literal, a key `__proto__` would set a prototype.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
