"""Edits: small replacements in a text, found by rules and spread over its sentences."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

LENGTH_TOLERANCE = 0.1  # words, relative to the whole text

# --- text ---

_END = re.compile(r"[.!?…]+[\"')\]”’*]*(?=\s+[\"'(\[“‘*]*[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:^\s*\d+|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|No|vs|approx|e\.g|i\.e|U\.[SK]|[ABD-HJ-Z]))\.$"
)
_QUOTE = re.compile(r"[\"“][^\"“”]*[\"”]")
FINISHED = re.compile(r"[.!?…][\"')\]”’*]*$")


def _closed(text: str) -> bool:
    """Whether a sentence can end here, outside abbreviations, quotations and brackets."""
    pairs = text.count("“") == text.count("”") and text.count("(") == text.count(")")
    return pairs and text.count('"') % 2 == 0 and not _ABBREVIATION.search(text)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence of `text`, in order.

    A line break always ends a sentence. A full stop inside quotation marks or brackets does not.
    """
    spans = []
    for line in re.finditer(r"[^\n]+", text):
        ends = [m.end() for m in _END.finditer(line[0])]
        ends = [end for end in ends if _closed(line[0][:end])]
        for start, end in zip([0, *ends], [*ends, len(line[0])], strict=True):
            piece = line[0][start:end]
            left = line.start() + start + len(piece) - len(piece.lstrip())
            if piece.strip():
                spans.append((left, left + len(piece.strip())))
    return spans


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, in order, without the space around them."""
    return [text[start:end] for start, end in sentence_spans(text)]


def count_words(text: str) -> int:
    return len(text.split())


def like(old: str, new: str) -> str:
    """`new`, with a capital if `old` begins with one."""
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of `words`, but not as a part of a hyphenated word."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return rf"(?<![\w'’-])(?:{'|'.join(longest_first)})(?![\w'’-])"


def none_before(words: str) -> str:
    """A pattern that fails directly after any of `words`."""
    return "".join(rf"(?<!\b{word} )" for word in words.split())


def word_pairs(text: str, separator: str | None = None) -> dict[str, str]:
    """'a:b c:d' as {a: b, c: d}."""
    return {old: new for old, _, new in (pair.partition(":") for pair in text.split(separator))}


# --- edits ---


@dataclass(frozen=True)
class Edit:
    """One mistake: replacements (start, end, new text) in the response that belong together."""

    kind: str
    spans: tuple[tuple[int, int, str], ...]

    def touches(self, other: Edit) -> bool:
        """Whether they overlap or are neighbours, where one mistake could undo the other."""
        return any(a < d + 2 and c < b + 2 for a, b, _ in self.spans for c, d, _ in other.spans)


Replace = Callable[[re.Match[str], random.Random], str | None]
Rule = tuple[str, re.Pattern[str], Replace]  # kind, where in a sentence, what to write there


def rule(kind: str, pattern: str, replace: Replace | str) -> Rule:
    """A rule with a function of the match, or a template such as r"\\2 \\1"."""
    call = (lambda m, rng: m.expand(replace)) if isinstance(replace, str) else replace
    return kind, re.compile(pattern, re.IGNORECASE), call


def table(kind: str, table: Mapping[str, str], before: str = "", after: str = "") -> Rule:
    """A rule that looks a word up. What `before` and `after` match stays as it is."""

    def replace(m: re.Match[str], rng: random.Random) -> str | None:
        new = table.get(m["word"].lower())  # None: a letter such as the long s, which matches s
        return new and m[0][: m.start("word") - m.start()] + new

    return rule(kind, f"{before}(?P<word>{any_of(table)}){after}", replace)


def find_edits(rules: Sequence[Rule], text: str, rng: random.Random) -> list[Edit]:
    """Every edit that `rules` allow. Names (capitals inside a sentence) and quotations stay."""
    edits = []
    for begin, end in sentence_spans(text):
        sentence = text[begin:end]
        quotes = [m.span() for m in _QUOTE.finditer(sentence) if m.end() - m.start() < 80]
        for kind, pattern, replace in rules:
            for m in pattern.finditer(sentence):
                name = m[0][0].isupper() and (m.start() > 0 or m[0][1:2].isupper())
                quoted = any(a < m.end() and m.start() < b for a, b in quotes)
                new = None if name or quoted else replace(m, rng)
                if new and new.lower() != m[0].lower():
                    span = (begin + m.start(), begin + m.end(), like(m[0], new))
                    edits.append(Edit(kind, (span,)))
    return edits


def choose_edits(
    edits: list[Edit], text: str, rng: random.Random, count: int, per_sentence: int, rare: str = ""
) -> list[Edit]:
    """Up to `count` edits within the length limit, spread over sentences and kinds.

    The kinds named in `rare` are used last.
    """
    spans, limit = sentence_spans(text), int(LENGTH_TOLERANCE * count_words(text))
    added = {
        e: sum(count_words(new) - count_words(text[a:b]) for a, b, new in e.spans) for e in edits
    }
    inside = {
        e: {i for i, (a, b) in enumerate(spans) for c, d, _ in e.spans if c < b and a < d}
        for e in edits
    }
    in_sentence, of_kind = Counter[int](), Counter({kind: 2 for kind in rare.split(",")})
    chosen: list[Edit] = []
    while len(chosen) < count:
        total = sum(added[e] for e in chosen)
        possible = [
            e
            for e in edits
            if abs(total + added[e]) <= limit
            and all(in_sentence[i] < per_sentence for i in inside[e])
            and not any(e.touches(other) for other in chosen)
        ]
        if not possible:
            break
        rng.shuffle(possible)
        best = min(
            possible, key=lambda e: (max(in_sentence[i] for i in inside[e]), of_kind[e.kind])
        )
        chosen.append(best)
        in_sentence.update(inside[best])
        of_kind[best.kind] += 1
    return chosen


def apply_edits(edits: Iterable[Edit], text: str) -> str:
    for start, end, new in sorted((span for edit in edits for span in edit.spans), reverse=True):
        text = text[:start] + new + text[end:]
    return text
