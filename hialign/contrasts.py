"""Preference pairs that differ in ONE objective, made from a single good response.

Hypothesis 2 of the paper (section 3) says that each objective's gradient concentrates in one
block: grammar in Local, coherence in Mid, factuality in Global. Ordinary preference pairs mix the
objectives, so they cannot test it. Here the rejected response is the chosen one, damaged so:

- grammar: wrong agreement, tense, articles, word order, case; same facts, same sentences in order;
- coherence: sentences moved, connectives broken, a foreign sentence; each sentence stays good;
- factuality: wrong numbers, names, opposites, negations; fluent, same sentences in order.

It keeps the chosen one's length within 10% and follows from the arguments alone. The rules are
regular expressions over small word lists, run sentence by sentence: there is no parser, and they
are written to leave a text alone rather than to damage it in another respect.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hialign.errors import HialignError

OBJECTIVES = ("grammar", "coherence", "factuality")
LENGTH_TOLERANCE = 0.1  # words, relative to the chosen response


class ContrastRefused(HialignError):
    """No contrast of this objective can be made from this response; the message says why."""


# --- text ---

_END = re.compile(r"[.!?…]+[\"')\]”’*]*(?=\s+[\"'(\[“‘*]*[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:^\s*\d+|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|No|vs|approx|e\.g|i\.e|U\.[SK]|[ABD-HJ-Z]))\.$"
)
_QUOTE = re.compile(r"[\"“][^\"“”]*[\"”]")
_FINISHED = re.compile(r"[.!?…][\"')\]”’*]*$")


def _closed(text: str) -> bool:
    """Whether a sentence can end here: no abbreviation, no open quotation or bracket."""
    pairs = text.count("“") == text.count("”") and text.count("(") == text.count(")")
    return pairs and text.count('"') % 2 == 0 and not _ABBREVIATION.search(text)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence of `text`, in order.

    A line break always ends a sentence; a full stop inside quotation marks or brackets does not.
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


def _words(text: str) -> int:
    return len(text.split())


def _like(old: str, new: str) -> str:
    """`new` with the capital that `old` begins with, if it does."""
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _any(words: Iterable[str]) -> str:
    """A pattern for any of `words`, whole (not a part of a hyphenated word)."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return rf"(?<![\w'’-])(?:{'|'.join(longest_first)})(?![\w'’-])"


def _no(words: str) -> str:
    """The condition that none of `words` stands before."""
    return "".join(rf"(?<!\b{word} )" for word in words.split())


def _pairs(text: str, separator: str | None = None) -> dict[str, str]:
    """'a:b c:d' as {a: b, c: d}."""
    return {old: new for old, _, new in (pair.partition(":") for pair in text.split(separator))}


# --- edits ---


@dataclass(frozen=True)
class Edit:
    """One mistake: replacements (start, end, new text) in the response that go together."""

    kind: str
    spans: tuple[tuple[int, int, str], ...]

    def touches(self, other: Edit) -> bool:
        """Whether they overlap or are neighbours, where one mistake could undo the other."""
        return any(a < d + 2 and c < b + 2 for a, b, _ in self.spans for c, d, _ in other.spans)


Replace = Callable[[re.Match[str], random.Random], str | None]
Rule = tuple[str, re.Pattern[str], Replace]  # kind, where in a sentence, what to write there


def _rule(kind: str, pattern: str, replace: Replace | str) -> Rule:
    """A rule with a function of the match, or a template such as r"\\2 \\1"."""
    call = (lambda m, rng: m.expand(replace)) if isinstance(replace, str) else replace
    return kind, re.compile(pattern, re.IGNORECASE), call


def _table(kind: str, table: Mapping[str, str], before: str = "", after: str = "") -> Rule:
    """A rule that looks a word up; `before` and `after` are kept as they are."""

    def replace(m: re.Match[str], rng: random.Random) -> str | None:
        new = table.get(m["word"].lower())  # None: a letter such as the long s, which matches s
        return new and m[0][: m.start("word") - m.start()] + new

    return _rule(kind, f"{before}(?P<word>{_any(table)}){after}", replace)


def _find(rules: Sequence[Rule], text: str, rng: random.Random) -> list[Edit]:
    """Every edit that `rules` allow; names (capitals inside a sentence) and quotations stay."""
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
                    span = (begin + m.start(), begin + m.end(), _like(m[0], new))
                    edits.append(Edit(kind, (span,)))
    return edits


def _choose(
    edits: list[Edit], text: str, rng: random.Random, count: int, per_sentence: int, rare: str = ""
) -> list[Edit]:
    """Up to `count` edits within the length, spread over sentences and kinds (`rare` ones last)."""
    spans, limit = sentence_spans(text), int(LENGTH_TOLERANCE * _words(text))
    added = {e: sum(_words(new) - _words(text[a:b]) for a, b, new in e.spans) for e in edits}
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


def _apply(edits: Iterable[Edit], text: str) -> str:
    for start, end, new in sorted((span for edit in edits for span in edit.spans), reverse=True):
        text = text[:start] + new + text[end:]
    return text


# --- grammar ---

_REGULAR = """absorb add allow appear arrive ask avoid bake belong collect connect consist contain
    cover create decide depend describe develop encourage exist expand explain follow gather happen
    help improve include invent learn live melt move need pour prepare prevent produce protect
    provide receive reduce remain remove require serve store surround travel turn use work"""
_IRREGULAR = """become became become,begin began begun,break broke broken,bring brought brought,
    build built built,choose chose chosen,come came come,draw drew drawn,drive drove driven,
    eat ate eaten,fall fell fallen,feel felt felt,find found found,freeze froze frozen,
    give gave given,grow grew grown,hold held held,keep kept kept,know knew known,lead led led,
    lose lost lost,make made made,rise rose risen,say said said,see saw seen,send sent sent,
    speak spoke spoken,stand stood stood,take took taken,tell told told,think thought thought,
    write wrote written"""
_VERBS = [(v, past, part) for v, past, part in map(str.split, _IRREGULAR.split(","))]
_VERBS += [(v, ed, ed) for v in _REGULAR.split() for ed in [v.removesuffix("e") + "ed"]]
_AGREEMENT = "is:are are:is was:were were:was has:have have:has does:do do:does"
_PRONOUNS = """they:them them:they he:him him:he she:her we:us us:we i:me its:it's your:you're
    their:they who:whom themselves:theirselves"""
_PREPOSITIONS = (
    "depends on:depends of,depend on:depend of,consists of:consists from,instead of:instead from,"
    "because of:because from,according to:according with,such as:such like,part of:part from,"
    "able to:able of,different from:different of,interested in:interested for,full of:full with,"
    "similar to:similar with,responsible for:responsible of,at night:in night,"
    "on average:in average,in the morning:at the morning,at the same time:in the same time,"
    "close to:close from,rich in:rich of,famous for:famous of,away from:away of,due to:due of"
)
_COMPARATIVES = """larger smaller faster slower higher lower longer shorter older younger stronger
    weaker heavier lighter warmer cooler hotter colder better worse easier harder cheaper safer"""
_UNIQUE = r"same first second third last next best most end world sun moon past future \w+est"
_ADJECTIVE = (
    r"large|small|long|short|strong|warm|cold|good|new|old|high|single|\w+(?:ous|ful|ive|ic)"
)
_AUXILIARY = "can|could|will|would|should|must|may|might"
_BE_HAVE = "is|are|was|were|be|been|has|have|had"
_SUBJECT = "it|they|you|we|he|she|there"
_NOUN_NOT = _no("the a an of in into for with its this their your")  # a verb's form can be a noun

_GRAMMAR = [
    _table("agreement", _pairs(_AGREEMENT)),
    _table("agreement", {f"{v}s": v for v, _, _ in _VERBS}, before=_NOUN_NOT),
    _table("agreement", {v: f"{v}s" for v, _, _ in _VERBS}, before=_NOUN_NOT),
    _table("agreement", _pairs("this:these these:this those:that many:much"), before=_no("as")),
    _table(  # has took, was produce
        "tense", {p: past if past != p else b for b, past, p in _VERBS}, rf"\b(?:{_BE_HAVE}) "
    ),
    _table("tense", {b: past for b, past, _ in _VERBS}, rf"\b(?:to|not|{_AUXILIARY}) "),  # can grew
    _table(  # it begun
        "tense", {past: p for b, past, p in _VERBS if p not in (b, past)}, _NOUN_NOT
    ),
    _table("article", _pairs("a:an an:a"), after="(?= [a-z])"),
    _rule("article", r"\ban? (?!few\b|little\b|lot\b)([a-z]\w+)", r"\1"),
    _rule("article", rf"\bthe ({'|'.join(_UNIQUE.split())})\b", r"\1"),
    _rule("extra article", r"\b(?:his|their|its|your|the)(?= [a-z])", r"the \g<0>"),
    _rule("word order", rf"(?<=[a-z] )(a|an|the|very|too|more) ({_ADJECTIVE})(?= [a-z])", r"\2 \1"),
    _rule(  # grow can, ready is
        "word order",
        rf"(?<=[a-z] )({_AUXILIARY}|{_BE_HAVE}|to) (?!\w+ly\b|(?:{_SUBJECT}|the|also|often|always|"
        r"never|not|still|just|then|therefore|thus)\b)([a-z]{3,})(?= [a-z])",
        r"\2 \1",
    ),
    _rule("word order", rf"(?<=[a-z] )({_SUBJECT}) ({_AUXILIARY}|{_BE_HAVE})(?= [a-z])", r"\2 \1"),
    _table("pronoun", _pairs(_PRONOUNS)),
    _table("preposition", _pairs(_PREPOSITIONS, ",")),
    _rule("comparison", _any(_COMPARATIVES.split()), r"more \g<0>"),
]


def _grammar(text: str, rng: random.Random) -> str:
    """About one mistake a sentence (or sixteen words), at most two in one."""
    count = max(2, len(sentence_spans(text)), _words(text) // 16)
    edits = _find(_GRAMMAR, text, rng)
    return _apply(_choose(edits, text, rng, count, 2, "extra article,preposition,comparison"), text)


# --- coherence ---

_CLAUSE = r"(?= (?:the|it|they|you|we|he|she|this|these|there|an?|your|their|its|most|many|some)\b)"
_ADVERBS = (
    "therefore:nevertheless,as a result:even so,thus:still,consequently:nevertheless,hence:still,"
    "for example:in contrast,for instance:in contrast,in contrast:for example,also:therefore,"
    "in addition:by contrast,moreover:otherwise,furthermore:otherwise,similarly:instead,"
    "instead:likewise,meanwhile:otherwise,nevertheless:therefore,otherwise:therefore,"
    "finally:first,in fact:otherwise"
)
_CONNECTIVES = [
    _table("adverb", _pairs(_ADVERBS, ","), _no("but"), r"(?! (?:of|known|called)\b)"),
    _table("adverb", {"however": "likewise"}, after="(?=,)"),
    _rule("adverb", r"^first(?=,)", "finally"),
    _rule("adverb", r"^next(?=,)", "alternatively"),
    _rule("adverb", r"^then\b", "otherwise"),
    _table(
        "conjunction", _pairs("because:although"), _no("is are was only partly and"), "(?! of )"
    ),
    _table("conjunction", _pairs("although:because though:because while:because"), after=_CLAUSE),
    _table("conjunction", _pairs("so:but but:so"), "(?<=, )", _CLAUSE),
]


def _coherence(text: str, rng: random.Random, foreign: Sequence[str]) -> str:
    """Connectives broken, one sentence replaced by a foreign one, sentences in another order."""
    spans = sentence_spans(text)
    n = len(spans)
    if n < 2:
        raise ContrastRefused("coherence: fewer than two sentences cannot be put in another order")
    sentences = [text[start:end] for start, end in spans]
    gaps = [text[spans[i][1] : spans[i + 1][0]] for i in range(n - 1)]
    if any(not _FINISHED.search(s) for s in sentences) and any("\n" not in gap for gap in gaps):
        raise ContrastRefused("coherence: an unfinished sentence cannot be moved in a paragraph")

    broken = [_apply(_find(_CONNECTIVES, s, rng), s) for s in sentences]
    spare = int(LENGTH_TOLERANCE * _words(text)) - abs(_words(" ".join(broken)) - _words(text))
    fits = [
        (i, other)
        for i in range(1, n)  # the first sentence names the subject
        for other in foreign
        if abs(_words(other) - _words(broken[i])) <= min(3, spare)
        and _FINISHED.search(other)
        and other not in sentences
    ]
    if fits and n >= 3:
        i, other = rng.choice(fits)
        broken[i] = other

    def kept(order: list[int]) -> tuple[bool, int, int]:
        """What `order` leaves as it was: the first sentence, neighbours, places."""
        neighbours = sum(order[k + 1] == order[k] + 1 for k in range(n - 1))
        return order[0] == 0, neighbours, sum(i == k for k, i in enumerate(order))

    order = min([[*range(1, n), 0], *(rng.sample(range(n), n) for _ in range(30))], key=kept)
    moved = "".join(broken[i] + gap for i, gap in zip(order, [*gaps, ""], strict=True))
    return text[: spans[0][0]] + moved + text[spans[-1][1] :]


# --- factuality ---

_OPPOSITES = """increase:decrease increases:decreases increased:decreased increasing:decreasing
    hotter:colder warmer:cooler before:after always:never large:small larger:smaller
    largest:smallest high:low higher:lower highest:lowest faster:slower fastest:slowest
    quickly:slowly early:late earlier:later earliest:latest north:south east:west northern:southern
    eastern:western inside:outside above:below strong:weak stronger:weaker strongest:weakest
    longer:shorter longest:shortest thick:thin thicker:thinner deep:shallow summer:winter
    morning:evening ancient:modern solid:liquid positive:negative maximum:minimum import:export
    oldest:youngest older:younger dangerous:safe harmful:harmless common:rare often:rarely
    inner:outer raises:lowers sunrise:sunset wild:domesticated boils:freezes hot:cold"""
# One way only, since the other word has other meanings too:
_ONE_WAY = """warm:cold wet:dry usually:rarely heavier:lighter soft:hard upper:lower rises:falls
    absorb:release absorbs:releases absorbed:released expand:shrink expands:shrinks gains:loses
    big:small rise:fall pulls:pushes melts:freezes day:night sun:moon cannot:can thousand:million
    million:thousand billion:million thousands:dozens millions:hundreds"""
_NAMES = """January February March April June July August September October November December
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    France Germany Spain Italy Portugal Greece Egypt Kenya Nigeria Morocco India China Japan Brazil
    Paris London Rome Madrid Berlin Vienna Athens Cairo Tokyo Beijing Delhi Sydney Chicago
    Canada Mexico Peru Argentina Chile Australia Norway Sweden Poland Russia Vietnam Ireland
    United_States United_Kingdom Soviet_Union
    Europe Asia Africa Antarctica South_America North_America
    Mars Venus Jupiter Saturn Neptune Uranus
    Isaac_Newton Albert_Einstein Charles_Darwin Louis_Pasteur Thomas_Edison Nikola_Tesla
    William_Shakespeare Charles_Dickens Mark_Twain Leo_Tolstoy Victor_Hugo
    English French German Spanish Italian Portuguese Greek Latin Arabic Chinese Japanese Russian
    oxygen nitrogen hydrogen helium
    gold silver copper platinum
    red blue green yellow purple"""  # a kind a line
_COUNTS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_MONTH = "(?:" + "|".join(["May", *_NAMES.splitlines()[0].split()]) + ")"
_LIMITS = {  # what a number may not exceed, by what follows it
    28: re.compile(rf" (?:of )?{_MONTH}\b"),
    11: re.compile(r" ?(?:[ap]\.?m\b|o['’]clock)"),
    99: re.compile(r" ?(?:%|percent|per cent)"),
}
_NEGATIVE = re.compile(r"\b(?:not|never|no|nor|neither|cannot|without|only)\b|n['’]t\b", re.I)
_PLAIN = r"(?!.*\b(?:only|just|yet|but|either|any|until|at all)\b)"  # not 'not ... but'
_CONDITION = re.compile(r"\b(?:if|when|because|since|although|while|as|until|unless)\b", re.I)


def _scaled(number: str, factor: float) -> str:
    """`number` times `factor` in the same format; '' for 1 (its noun is singular) or no fit."""
    value = float(number.replace(",", "")) * factor
    scaled = f"{value:{',' if ',' in number else ''}.{len(number.partition('.')[2])}f}"
    exact = abs(float(scaled.replace(",", "")) - value) < 1e-9
    return scaled if exact and value > 1 and value != factor else ""


def _wrong_number(m: re.Match[str], rng: random.Random) -> str | None:
    """Years moved back; other numbers (both ends of a range alike) doubled, trebled or halved."""
    before, after = m.string[: m.start()], m.string[m.end() :]
    if not before and after[:1] in {".", ")"}:  # the number of a list's item
        return None
    numbers, between = [number for number in (m[1], m[3]) if number], m[2] or ""
    if all(re.fullmatch(r"1[1-9]\d\d|20[0-4]\d", number) for number in numbers):
        years = rng.randint(12, 60)
        return between.join(str(int(number) - years) for number in numbers)
    limits = [limit for limit, unit in _LIMITS.items() if unit.match(after)]
    limit = 28 if re.search(rf"{_MONTH} $", before) else min(limits, default=10**15)
    for factor in rng.sample([2, 3, 0.5], 3):
        scaled = [_scaled(number, factor) for number in numbers]
        if all(scaled) and float(scaled[-1].replace(",", "")) <= limit:
            return between.join(scaled)
    return None


def _negated(m: re.Match[str], rng: random.Random) -> str | None:
    """'not' put in or taken out, unless the sentence is a question, a condition or negated."""
    if m.string.endswith("?") or _CONDITION.search(m.string[: m.start()]):
        return None
    if m[0] != m[1]:
        return m[1]
    new = "cannot" if m[0] == "can" else f"{m[0]} not"
    return None if _NEGATIVE.search(m.string) else new


_FACTS = [
    _rule(
        "number",
        rf"(?<![\w.,:/–-])({_NUMBER})(?:( to |–|-| and | or )({_NUMBER}))?(?![\w:/–]|[.,-]\d)",
        _wrong_number,
    ),
    _table(
        "number",
        dict(zip(_COUNTS.split(), _COUNTS.split()[2:], strict=False)),
        before=_no("to or and"),
        after="(?! (?:to|or|and) )",
    ),
    _table(
        "opposite",
        _pairs(_OPPOSITES) | {b: a for a, b in _pairs(_OPPOSITES).items()} | _pairs(_ONE_WAY),
        before=_no("in named look one every no by"),
        after=r"(?! (?:school|all)\b)",
    ),
    _rule("opposite", r"\bmore than\b", "less than"),
    _rule(
        "negation",
        rf"(?<=[a-z] ){_no('a the that')}(is|are|was|were|can|could|will|should)"
        rf"(?= (?!{_SUBJECT}|(?:also|still|even|some|any|more|most|just)\b)[a-z])",
        _negated,
    ),
    _rule(
        "negation", rf"\b(is|are|was|were|can|will|should)(?: not|not|n['’]t)\b{_PLAIN}", _negated
    ),
    _rule("negation", rf"\bdo(?: not|n['’]t) ([a-z]+)\b{_PLAIN}", _negated),
]


def _keeps_article(text: str, edit: Edit) -> bool:
    """Whether an 'a' or 'an' before the replaced text still fits the new one."""
    vowel = re.compile(r"[aeiou]|(?:8|11|18)\b", re.IGNORECASE)
    return all(
        bool(vowel.match(new)) == bool(vowel.match(text[start:end]))
        for start, end, new in edit.spans
        if re.search(r"\ban? $", text[:start], re.IGNORECASE)
    )


def _wrong_names(text: str, rng: random.Random) -> list[Edit]:
    """Each known name exchanged for another of its kind, wherever it stands in the response."""
    edits = []
    for line in _NAMES.splitlines():
        names = [name.replace("_", " ") for name in line.split()]
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for name in (name for name in names if name[1:] in text):
            word = rf"\b[{name[0]}{name[0].upper()}]{name[1:]}\b(?!-| [A-Z])"  # not part of a name
            for m in re.finditer(_no("New North South East West Mount Lake San") + word, text):
                found[name].append(m.span())
        for spans in found.values() if len(found) < len(names) else ():
            new = rng.choice([name for name in names if name not in found])
            edits.append(Edit("name", tuple((a, b, _like(text[a], new)) for a, b in spans)))
    return edits


def _factuality(text: str, rng: random.Random, errors: Sequence[Mapping[str, str]]) -> str:
    """The hand-written errors, or else about two automatic ones in three sentences."""
    edits = []
    for error in errors:
        found = re.finditer(rf"(?<!\w){re.escape(error['from'])}(?!\w)", text)
        edits.append(Edit("by hand", tuple((m.start(), m.end(), error["to"]) for m in found)))
        if not edits[-1].spans:
            raise ContrastRefused(f"factuality: the response does not say {error['from']!r}")
    if errors:
        chosen = _choose(edits, text, rng, len(edits), len(edits))
        if len(chosen) < min(2, len(edits)):
            raise ContrastRefused("factuality: the given errors overlap or change the length")
        return _apply(chosen, text)
    edits = _find(_FACTS, text, rng) + _wrong_names(text, rng)
    edits = [edit for edit in edits if _keeps_article(text, edit)]
    # one to a sentence, since two wrong opposites can make it right again
    count = max(2, round(2 / 3 * len(sentence_spans(text))))
    return _apply(_choose(edits, text, rng, count, 1, "negation"), text)


# --- pairs ---


def contrast(
    response: str,
    objective: str,
    *,
    seed: int,
    errors: Sequence[Mapping[str, str]] = (),
    foreign: Sequence[str] = (),
) -> str:
    """`response` made worse in `objective` alone.

    `errors`: hand-written factual errors, {"from": text in the response, "to": wrong text}; used
    (all, or at least two where the length allows no more) instead of automatic ones.
    `foreign`: sentences of other responses, one of which may take a sentence's place (coherence).
    Raises ContrastRefused when there is nothing to damage or the length would change by over 10%.
    """
    if objective not in OBJECTIVES:
        raise HialignError(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    key = f"{seed}\0{objective}\0{response}".encode(errors="surrogatepass")
    rng = random.Random(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
    if objective == "grammar":
        rejected = _grammar(response, rng)
    elif objective == "coherence":
        rejected = _coherence(response, rng, foreign)
    else:
        rejected = _factuality(response, rng, errors)

    before, after = _words(response), _words(rejected)
    if rejected.split() == response.split():
        raise ContrastRefused(f"{objective}: nothing in the response can be damaged")
    if abs(after - before) > LENGTH_TOLERANCE * before:
        raise ContrastRefused(f"{objective}: {after} words instead of {before}, over 10% off")
    if len(sentence_spans(rejected)) != len(sentence_spans(response)):
        raise ContrastRefused(f"{objective}: the number of sentences would change")
    return rejected


def contrast_pairs(
    rows: Iterable[Mapping[str, Any]], objectives: Sequence[str] = OBJECTIVES, seed: int = 42
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs and refusals for `rows` (id, topic, split, prompt, response, errors) x `objectives`.

    A pair: id, objective, topic, prompt, chosen, rejected. A refusal: id, objective, reason.
    Foreign sentences come from the two rows before and after in the SAME split, so that no
    sentence leaks from training into evaluation.
    """
    by_split: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    pairs, refusals = [], []
    for row in rows:
        by_split[row["split"]].append(row)
    for group in by_split.values():
        for i, row in enumerate(group):
            near = {(i + step) % len(group) for step in (-2, -1, 1, 2)} - {i}
            foreign = [s for j in sorted(near) for s in split_sentences(group[j]["response"])]
            texts = {"topic": row["topic"], "prompt": row["prompt"], "chosen": row["response"]}
            errors = row.get("errors", ())
            for objective in objectives:
                key = {"id": f"{row['id']}-{objective}", "objective": objective}
                try:
                    rejected = contrast(
                        row["response"], objective, seed=seed, errors=errors, foreign=foreign
                    )
                    pairs.append({**key, **texts, "rejected": rejected})
                except ContrastRefused as refused:
                    refusals.append({**key, "reason": str(refused)})
    return pairs, refusals
