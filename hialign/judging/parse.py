"""Reads the scores from a judge's answer, or says what is wrong with it. Nothing is guessed.

The response under judgment may hold a planted answer that the judge repeats. So the judge's own is the
last one, and it counts only if nothing else in the text contradicts it. A second answer that differs,
or the remains of a broken or cut-off one, make the judgment invalid, and it is asked for again.
"""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import json_repair

from hialign.study.rubric import SCORES, Rubric

LONGEST_ANSWER = 50_000  # characters without the thinking; a judgment has about 3,000
LONGEST_REASON = 300  # characters
MOST_BROKEN = 50  # brackets that open no JSON value, after which a text is given up
_THINKING = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPENING = re.compile(r"[\[{]")
_WHOLE_NUMBER = re.compile(r"\s*\d+(?:\.0+)?\s*")
_CONFLICT = object()  # the value of a key that one JSON object has twice, with different values


@dataclass
class Parsed:
    """`scores` is complete or empty. `problems` says why it is empty."""

    scores: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    repaired: bool = False  # json-repair had to mend the answer
    problems: list[str] = field(default_factory=list)


@dataclass
class _Entry:
    dimension: str
    score: Any
    reason: Any


def parse_scores(text: str, rubric: Rubric) -> Parsed:
    """The scores in a judge's answer to `rubric`.

    Accepted: an array of {"dimension", "score", "reason"}, {dimension: {"score", "reason"}} or
    {dimension: score}, bare or inside an object, in a code fence, or after prose or <think>…</think>.
    A broken answer is mended by json-repair if all the scores are there, and flagged.
    """
    text = _THINKING.sub("", text, count=1) if _THINKING.match(text) else text
    if text.lstrip().lower().startswith("<think"):
        return Parsed(problems=["it was cut off while the judge was still thinking"])
    if len(text) > LONGEST_ANSWER:
        return Parsed(problems=[f"it has over {LONGEST_ANSWER} characters"])
    answers, around, broken = _answers(text, rubric)
    if broken > MOST_BROKEN:
        return Parsed(problems=["its JSON is broken"])
    checked = [_check(entries, rubric) for entries in answers]
    if any(parsed.scores for parsed in checked):
        if not checked[-1].scores:
            return Parsed(problems=["after a complete answer comes another, incomplete one"])
        if len(answers) > 1 and _disagree(answers):
            return Parsed(problems=["it holds several answers that differ"])
        if any("{" in text for text in around) or "[" in around[-1]:
            return Parsed(problems=["the text around the answer looks like a broken answer"])
        return checked[-1]
    if answers and not broken:  # well-formed, such as one object per line: nothing needs mending
        whole = [entries for entries in answers if len(entries) >= len(rubric.dimensions)]
        return _check(whole[-1] if whole else [e for a in answers for e in a], rubric)
    return _mended(text, rubric)


def _answers(text: str, rubric: Rubric) -> tuple[list[list[_Entry]], list[str], int]:
    """The outermost JSON values in `text` that are answers, the text around them, and broken brackets.

    Answers are in order. The text is in pieces: before, between and after the JSON values. A bracket
    is broken if it opens no JSON value.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    answers: list[list[_Entry]] = []
    around: list[str] = []
    position = end = broken = 0
    while broken <= MOST_BROKEN and (match := _OPENING.search(text, position)) is not None:
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.start() + 1
            broken += 1
            continue
        around.append(text[end : match.start()])
        end = position
        if entries := _entries(value, rubric):
            answers.append(entries)
    return answers, [*around, text[end:]], broken


def _disagree(answers: list[list[_Entry]]) -> bool:
    """Whether any dimension has two scores, over all the answers."""
    scores: dict[str, int | None] = {}
    return any(
        scores.setdefault(_plain(entry.dimension), _number(entry.score)) != _number(entry.score)
        for entries in answers
        for entry in entries
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which a key with two different values is a conflict, not the last one."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        values[key] = value if key not in values or values[key] == value else _CONFLICT
    return values


def _entries(value: Any, rubric: Rubric, depth: int = 0) -> list[_Entry]:
    """What `value` says about dimensions. Empty if it is not an answer."""
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, dict) and "dimension" in row]
        return [_Entry(str(r["dimension"]), r.get("score"), r.get("reason")) for r in rows]
    if not isinstance(value, dict):
        return []
    if "dimension" in value:
        return _entries([value], rubric)
    names = {_plain(name) for name in rubric.dimensions}
    if any(_plain(key) in names for key in value):
        return [
            _Entry(key, row.get("score"), row.get("reason"))
            if isinstance(row, dict)
            else _Entry(key, row, None)
            for key, row in value.items()
        ]
    if depth < 2:  # an object around the answer
        inner = [e for e in (_entries(v, rubric, depth + 1) for v in value.values()) if e]
        # Of {"scores": {…}, "reasons": {…}}, only the part with numbers is the answer
        scored = [e for e in inner if any(_number(entry.score) is not None for entry in e)]
        return [entry for entries in scored or inner for entry in entries]
    return []


def _check(entries: list[_Entry], rubric: Rubric) -> Parsed:
    """`entries` as scores if each dimension has exactly one valid score, otherwise the problems."""
    names = {_plain(name): name for name in rubric.dimensions}
    scores: dict[str, int] = {}
    reasons: dict[str, str] = {}
    problems: list[str] = []
    for entry in entries:
        name = names.get(_plain(entry.dimension))
        number = _number(entry.score)
        if name is None:
            problems.append(f"unknown dimension {entry.dimension[:40]!r}")
        elif entry.score is _CONFLICT:
            problems.append(f"{name} has two different scores")
        elif number is None or number not in SCORES:
            said = "nothing" if entry.score is None else repr(entry.score)[:40]
            problems.append(f"the score of {name} is {said}, not a whole number from 1 to 5")
        elif scores.setdefault(name, number) != number:
            problems.append(f"{name} has two different scores")
        else:
            reasons.setdefault(name, _reason(entry.reason))
    named = {names.get(_plain(entry.dimension)) for entry in entries}
    if missing := [name for name in rubric.dimensions if name not in named]:
        problems.insert(0, f"missing: {', '.join(missing)}")
    if problems:
        more = [f"and {len(problems) - 3} more like these"] if len(problems) > 4 else []
        return Parsed(problems=problems[:3] + more if more else problems)
    return Parsed(
        scores={name: scores[name] for name in rubric.dimensions},
        reasons={name: reasons[name] for name in rubric.dimensions},
    )


def _mended(text: str, rubric: Rubric) -> Parsed:
    """The answer after json-repair has mended fences, missing commas and brackets, or a cut-off end."""

    start = _OPENING.search(text)
    if start is None:
        return Parsed(problems=["there is no JSON in it"])
    try:
        value = json_repair.loads(text[start.start() :])
    except (ValueError, RecursionError):
        return Parsed(problems=["its JSON is broken"])
    # Where it finds several values, json-repair returns them as a list.
    parts = value if isinstance(value, list) else [value]
    entries = _entries(value, rubric) or [e for part in parts for e in _entries(part, rubric)]
    parsed = _check(entries, rubric)
    parsed.repaired = bool(parsed.scores)
    return parsed


@lru_cache(maxsize=1024)  # an answer names each dimension several times over
def _plain(name: str) -> str:
    """`Grammar fluency` and `grammar_fluency` are GrammarFluency."""
    return re.sub(r"[\W_]", "", name).casefold()


def _number(value: Any) -> int | None:
    """A whole number, also from 3.0 or "3". None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(float(value)) if len(value) < 9 and _WHOLE_NUMBER.fullmatch(value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _reason(value: Any) -> str:
    """One line of bounded length that any file can hold (no lone surrogates)."""
    if not isinstance(value, str):
        return ""
    line = " ".join(value.encode("utf-8", "replace").decode().split())
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"
