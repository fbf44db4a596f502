"""Preference pairs that differ in ONE objective, made from a single good response.

Hypothesis 2 of the paper (section 3) says that each objective's gradient concentrates in one
block: grammar in Local, coherence in Mid, factuality in Global. Ordinary preference pairs mix the
objectives, so they cannot test it. Here the rejected response is the chosen one, damaged in one way:

- grammar: wrong agreement, tense, articles, word order or case. Facts and sentences stay.
- coherence: moved sentences, broken connectives, a foreign sentence. Each sentence stays good.
- factuality: wrong numbers, names, opposites or negations. The text stays fluent and in order.

The length stays within 10%, and the arguments alone decide the result. `contrast_rules.py` says what
may be done to a text.
"""

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hialign.preferences.contrast_rules import (
    CONNECTIVES,
    FACTS,
    GRAMMAR,
    keeps_article,
    wrong_names,
)
from hialign.preferences.edits import (
    FINISHED,
    LENGTH_TOLERANCE,
    Edit,
    apply_edits,
    choose_edits,
    count_words,
    find_edits,
    sentence_spans,
    split_sentences,
)
from hialign.study.blocks import OBJECTIVES
from hialign.study.errors import HialignError

Judgment = Callable[[str, str], bool]  # of a sentence and a kind of edit


class ContrastRefused(HialignError):
    """No contrast of this objective can be made from this response. The message says why."""


def _grammar(text: str, rng: random.Random) -> str:
    """About one mistake per sentence (or per sixteen words), and at most two in one sentence."""
    count = max(2, len(sentence_spans(text)), count_words(text) // 16)
    edits = find_edits(GRAMMAR, text, rng)
    return apply_edits(
        choose_edits(edits, text, rng, count, 2, "extra article,preposition,comparison"), text
    )


def _coherence(text: str, rng: random.Random, foreign: Sequence[str]) -> str:
    """Breaks connectives, replaces a sentence by a foreign one, and reorders the sentences."""
    spans = sentence_spans(text)
    n = len(spans)
    if n < 2:
        raise ContrastRefused("coherence: fewer than two sentences cannot be put in another order")
    sentences = [text[start:end] for start, end in spans]
    gaps = [text[spans[i][1] : spans[i + 1][0]] for i in range(n - 1)]
    if any(not FINISHED.search(s) for s in sentences) and any("\n" not in gap for gap in gaps):
        raise ContrastRefused("coherence: an unfinished sentence cannot be moved in a paragraph")

    broken = [apply_edits(find_edits(CONNECTIVES, s, rng), s) for s in sentences]
    spare = int(LENGTH_TOLERANCE * count_words(text)) - abs(
        count_words(" ".join(broken)) - count_words(text)
    )
    fits = [
        (i, other)
        for i in range(1, n)  # the first sentence names the subject
        for other in foreign
        if abs(count_words(other) - count_words(broken[i])) <= min(3, spare)
        and FINISHED.search(other)
        and other not in sentences
    ]
    if fits and n >= 3:
        i, other = rng.choice(fits)
        broken[i] = other

    def unchanged(order: list[int]) -> tuple[bool, int, int]:
        """What `order` leaves as it was: the first sentence, neighbours, positions."""
        neighbours = sum(order[k + 1] == order[k] + 1 for k in range(n - 1))
        return order[0] == 0, neighbours, sum(i == k for k, i in enumerate(order))

    order = min([[*range(1, n), 0], *(rng.sample(range(n), n) for _ in range(30))], key=unchanged)
    moved = "".join(broken[i] + gap for i, gap in zip(order, [*gaps, ""], strict=True))
    return text[: spans[0][0]] + moved + text[spans[-1][1] :]


def _factuality(
    text: str,
    rng: random.Random,
    errors: Sequence[Mapping[str, str]],
    may_be_wrong: Judgment | None,
) -> str:
    """Makes the hand-written errors, or else about two automatic ones per three sentences."""
    edits = []
    for error in errors:
        places = re.finditer(rf"(?<!\w){re.escape(error['from'])}(?!\w)", text)
        edits.append(Edit("by hand", tuple((m.start(), m.end(), error["to"]) for m in places)))
        if not edits[-1].spans:
            raise ContrastRefused(f"factuality: the response does not say {error['from']!r}")
    if errors:
        chosen = choose_edits(edits, text, rng, len(edits), len(edits))
        if len(chosen) < min(2, len(edits)):
            raise ContrastRefused("factuality: the given errors overlap or change the length")
        return apply_edits(chosen, text)
    edits = find_edits(FACTS, text, rng) + wrong_names(text, rng)
    edits = [edit for edit in edits if keeps_article(text, edit)]
    if may_be_wrong is not None:
        edits = [e for e in edits if all(may_be_wrong(_around(text, at), e.kind) for at in e.spans)]
    # One per sentence, because two wrong opposites can make it right again
    count = max(2, round(2 / 3 * len(sentence_spans(text))))
    return apply_edits(choose_edits(edits, text, rng, count, 1, "negation"), text)


def _around(text: str, span: tuple[int, int, str]) -> str:
    """The sentence of `text` in which a replacement begins."""
    return next(text[a:b] for a, b in sentence_spans(text) if a <= span[0] < b)


# --- pairs ---


def contrast(
    response: str,
    objective: str,
    *,
    seed: int,
    errors: Sequence[Mapping[str, str]] = (),
    foreign: Sequence[str] = (),
    may_be_wrong: Judgment | None = None,
) -> str:
    """`response` made worse in `objective` alone.

    `errors` are hand-written factual errors, {"from": text in the response, "to": wrong text}. They
    replace automatic ones. All are made, or at least two if the length allows no more.
    `foreign` are sentences of other responses, one of which may replace a sentence (coherence).
    `may_be_wrong` says of a sentence and a kind of automatic factual error (number, name, opposite,
    negation) whether that error may be made in it.
    Raises ContrastRefused if there is nothing to damage or the length would change by over 10%.
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
        rejected = _factuality(response, rng, errors, may_be_wrong)

    before, after = count_words(response), count_words(rejected)
    if rejected.split() == response.split():
        raise ContrastRefused(f"{objective}: nothing in the response can be damaged")
    if abs(after - before) > LENGTH_TOLERANCE * before:
        raise ContrastRefused(f"{objective}: {after} words instead of {before}, over 10% off")
    if len(sentence_spans(rejected)) != len(sentence_spans(response)):
        raise ContrastRefused(f"{objective}: the number of sentences would change")
    return rejected


def contrast_pairs(
    rows: Iterable[Mapping[str, Any]],
    objectives: Sequence[str] = OBJECTIVES,
    seed: int = 42,
    may_be_wrong: Judgment | None = None,
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs and refusals for `rows` (id, topic, split, prompt, response, errors) x `objectives`.

    A pair has id, objective, topic, prompt, chosen and rejected. A refusal has id, objective and
    reason. `may_be_wrong` is as in `contrast`. Foreign sentences come from the two rows before and after in the same split, so that no
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
                        row["response"],
                        objective,
                        seed=seed,
                        errors=errors,
                        foreign=foreign,
                        may_be_wrong=may_be_wrong,
                    )
                    pairs.append({**key, **texts, "rejected": rejected})
                except ContrastRefused as refused:
                    refusals.append({**key, "reason": str(refused)})
    return pairs, refusals
