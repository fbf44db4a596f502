"""What `contrasts.py` may do to a response: word lists and rules for each objective.

The rules are regular expressions over small word lists, applied sentence by sentence. There is no
parser. A rule leaves a text alone if it might damage it in another respect.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict

from hialign.preferences.edits import Edit, any_of, like, none_before, rule, table, word_pairs

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
_NOUN_NOT = none_before(
    "the a an of in into for with its this their your"
)  # a verb's form can be a noun

GRAMMAR = [
    table("agreement", word_pairs(_AGREEMENT)),
    table("agreement", {f"{v}s": v for v, _, _ in _VERBS}, before=_NOUN_NOT),
    table("agreement", {v: f"{v}s" for v, _, _ in _VERBS}, before=_NOUN_NOT),
    table(
        "agreement",
        word_pairs("this:these these:this those:that many:much"),
        before=none_before("as"),
    ),
    table(  # has took, was produce
        "tense", {p: past if past != p else b for b, past, p in _VERBS}, rf"\b(?:{_BE_HAVE}) "
    ),
    table("tense", {b: past for b, past, _ in _VERBS}, rf"\b(?:to|not|{_AUXILIARY}) "),  # can grew
    table(  # it begun
        "tense", {past: p for b, past, p in _VERBS if p not in (b, past)}, _NOUN_NOT
    ),
    table("article", word_pairs("a:an an:a"), after="(?= [a-z])"),
    rule("article", r"\ban? (?!few\b|little\b|lot\b)([a-z]\w+)", r"\1"),
    rule("article", rf"\bthe ({'|'.join(_UNIQUE.split())})\b", r"\1"),
    rule("extra article", r"\b(?:his|their|its|your|the)(?= [a-z])", r"the \g<0>"),
    rule("word order", rf"(?<=[a-z] )(a|an|the|very|too|more) ({_ADJECTIVE})(?= [a-z])", r"\2 \1"),
    rule(  # grow can, ready is
        "word order",
        rf"(?<=[a-z] )({_AUXILIARY}|{_BE_HAVE}|to) (?!\w+ly\b|(?:{_SUBJECT}|the|also|often|always|"
        r"never|not|still|just|then|therefore|thus)\b)([a-z]{3,})(?= [a-z])",
        r"\2 \1",
    ),
    rule("word order", rf"(?<=[a-z] )({_SUBJECT}) ({_AUXILIARY}|{_BE_HAVE})(?= [a-z])", r"\2 \1"),
    table("pronoun", word_pairs(_PRONOUNS)),
    table("preposition", word_pairs(_PREPOSITIONS, ",")),
    rule("comparison", any_of(_COMPARATIVES.split()), r"more \g<0>"),
]


# --- coherence ---

_CLAUSE = r"(?= (?:the|it|they|you|we|he|she|this|these|there|an?|your|their|its|most|many|some)\b)"
_ADVERBS = (
    "therefore:nevertheless,as a result:even so,thus:still,consequently:nevertheless,hence:still,"
    "for example:in contrast,for instance:in contrast,in contrast:for example,also:therefore,"
    "in addition:by contrast,moreover:otherwise,furthermore:otherwise,similarly:instead,"
    "instead:likewise,meanwhile:otherwise,nevertheless:therefore,otherwise:therefore,"
    "finally:first,in fact:otherwise"
)
CONNECTIVES = [
    table("adverb", word_pairs(_ADVERBS, ","), none_before("but"), r"(?! (?:of|known|called)\b)"),
    table("adverb", {"however": "likewise"}, after="(?=,)"),
    rule("adverb", r"^first(?=,)", "finally"),
    rule("adverb", r"^next(?=,)", "alternatively"),
    rule("adverb", r"^then\b", "otherwise"),
    table(
        "conjunction",
        word_pairs("because:although"),
        none_before("is are was only partly and"),
        "(?! of )",
    ),
    table(
        "conjunction", word_pairs("although:because though:because while:because"), after=_CLAUSE
    ),
    table("conjunction", word_pairs("so:but but:so"), "(?<=, )", _CLAUSE),
]


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
    """`number` times `factor` in the same format. Empty if that is 1, whose noun is singular, or if
    the format cannot hold it."""
    value = float(number.replace(",", "")) * factor
    scaled = f"{value:{',' if ',' in number else ''}.{len(number.partition('.')[2])}f}"
    exact = abs(float(scaled.replace(",", "")) - value) < 1e-9
    return scaled if exact and value > 1 and value != factor else ""


def _wrong_number(m: re.Match[str], rng: random.Random) -> str | None:
    """Moves years back, and doubles, trebles or halves other numbers, both ends of a range alike."""
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
    """Adds or removes 'not', unless the sentence is a question, a condition or negated already."""
    if m.string.endswith("?") or _CONDITION.search(m.string[: m.start()]):
        return None
    if m[0] != m[1]:
        return m[1]
    new = "cannot" if m[0] == "can" else f"{m[0]} not"
    return None if _NEGATIVE.search(m.string) else new


FACTS = [
    rule(
        "number",
        rf"(?<![\w.,:/–-])({_NUMBER})(?:( to |–|-| and | or )({_NUMBER}))?(?![\w:/–]|[.,-]\d)",
        _wrong_number,
    ),
    table(
        "number",
        dict(zip(_COUNTS.split(), _COUNTS.split()[2:], strict=False)),
        before=none_before("to or and"),
        after="(?! (?:to|or|and) )",
    ),
    table(
        "opposite",
        word_pairs(_OPPOSITES)
        | {b: a for a, b in word_pairs(_OPPOSITES).items()}
        | word_pairs(_ONE_WAY),
        before=none_before("in named look one every no by"),
        after=r"(?! (?:school|all)\b)",
    ),
    rule("opposite", r"\bmore than\b", "less than"),
    rule(
        "negation",
        rf"(?<=[a-z] ){none_before('a the that')}(is|are|was|were|can|could|will|should)"
        rf"(?= (?!{_SUBJECT}|(?:also|still|even|some|any|more|most|just)\b)[a-z])",
        _negated,
    ),
    rule(
        "negation", rf"\b(is|are|was|were|can|will|should)(?: not|not|n['’]t)\b{_PLAIN}", _negated
    ),
    rule("negation", rf"\bdo(?: not|n['’]t) ([a-z]+)\b{_PLAIN}", _negated),
]


def keeps_article(text: str, edit: Edit) -> bool:
    """Whether an 'a' or 'an' before the replaced text still fits the new one."""
    vowel = re.compile(r"[aeiou]|(?:8|11|18)\b", re.IGNORECASE)
    return all(
        bool(vowel.match(new)) == bool(vowel.match(text[start:end]))
        for start, end, new in edit.spans
        if re.search(r"\ban? $", text[:start], re.IGNORECASE)
    )


def wrong_names(text: str, rng: random.Random) -> list[Edit]:
    """Exchanges each name of the lists for another of its kind, wherever the response has it."""
    edits = []
    for line in _NAMES.splitlines():
        names = [name.replace("_", " ") for name in line.split()]
        spans_of: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for name in (name for name in names if name[1:] in text):
            word = rf"\b[{name[0]}{name[0].upper()}]{name[1:]}\b(?!-| [A-Z])"  # not part of a name
            for m in re.finditer(
                none_before("New North South East West Mount Lake San") + word, text
            ):
                spans_of[name].append(m.span())
        for spans in spans_of.values() if len(spans_of) < len(names) else ():
            new = rng.choice([name for name in names if name not in spans_of])
            edits.append(Edit("name", tuple((a, b, like(text[a], new)) for a, b in spans)))
    return edits
