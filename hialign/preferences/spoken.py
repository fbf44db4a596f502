"""Contrasts made from the answers of hh-rlhf, by the rules that made the built-in ones.

The built-in responses were written for the rules. These answers are spoken and often state no fact, so
an answer has to pass more checks. It is left out if a rule does not make it clearly worse, or makes it
worse in more than one respect. Nobody has checked whether an answer was true before.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hialign.preferences.contrasts import contrast_pairs
from hialign.preferences.edits import split_sentences
from hialign.preferences.formats import Message, Pair, conversation_id, prompt_id
from hialign.study.blocks import OBJECTIVES

MOST_WORDS = 90  # of a prompt with its answer, so that pairs are cheap
FEWEST_SENTENCES = 2

HELD_OUT = 0.36  # of the dialogues

Row = dict[str, Pair]  # the pairs of one prompt, by objective

# An answer that the rules misread: lists, links, code, full stops that end no sentence
_MESSY = re.compile(
    r"\n|https?:|[\[\]<>{}#*_=]|\b(?:Rep|Sen|Gov|Gen|Inc|etc|Jr|a\.k\.a)\.|\.\.\.|…"
)
# A changed word makes no wrong fact of a question, a piece of advice, or a sentence about another
_NO_STATEMENT = re.compile(
    r"\?|\b(?:should|shouldn['’]t|please|sorry|let['’]?s|thank|thanks|hope)\b|^(?:here|that|this)\b",
    re.IGNORECASE,
)
# Nor does 'not' where speakers tell of themselves, judge or tell others what to do
_NO_NEGATION = re.compile(
    r"\b(?:i|we|us|me|my|our|you|your|yourself|he|she|him|her)\b|^(?:it|there|these|those|they|don['’]t)\b|"
    r"\b(?:good|bad|wrong|right|okay|ok|fun|tough|difficult|hard|complicated|idea|problem)\b",
    re.IGNORECASE,
)
# 'thought about it before', 'red tape', and what is a matter of safety besides
_NO_OPPOSITE = re.compile(
    r"\b(?:before|after|later|earlier)[.,;!]|\bbefore we\b|\bred tape\b|"
    r"\b(?:safe|dangerous|harmful|harmless)\b",
    re.IGNORECASE,
)
_ODD_NEGATION = re.compile(
    r"\b(?:not|cannot) (?:\w+ly|also|sometimes|often|still|just|both|even|too|very|all|some|an?|the|"
    r"going|one|people|different)\b",
    re.IGNORECASE,
)


def may_be_wrong(sentence: str, kind: str) -> bool:
    """Whether a wrong number, name, opposite or negation (`kind`) makes a sentence false."""
    unfit = _NO_NEGATION if kind == "negation" else _NO_OPPOSITE
    return not _NO_STATEMENT.search(sentence) and not unfit.search(sentence)


def spoken_contrasts(pairs: Sequence[Pair], seed: int) -> tuple[list[Row], list[Row]]:
    """The contrasts of the answers that can have those of all three objectives, in two splits.

    Every turn of the assistant in a chosen dialogue is an answer. Its prompt is the dialogue before
    it, without the oldest turns if that is more than `MOST_WORDS` with the answer. Two answers to the
    same prompt or in the same words count once.

    Args:
        pairs: of hh-rlhf.
        seed: draws the dialogues that are held out whole, a share of `HELD_OUT` of them.

    Returns:
        Training rows and held-out ones. A row has one pair per objective, by its name. A foreign
        sentence comes from an answer of the same split.
    """
    rows = _answers(pairs)
    # Most answers state no fact that could be wrong, so these contrasts are made first
    wrong = _clear_ones(rows, ["factuality"])
    rows = [row for row in rows if row["id"] in wrong]
    dialogues = list(dict.fromkeys(row["topic"] for row in rows))
    drawn = np.random.default_rng(seed).permutation(len(dialogues))
    held_out = {dialogues[i] for i in drawn[: round(HELD_OUT * len(dialogues))]}
    for row in rows:
        row["split"] = "evaluation" if row["topic"] in held_out else "train"
    others = _clear_ones(rows, [name for name in OBJECTIVES if name != "factuality"])
    splits: dict[str, list[Row]] = {"train": [], "evaluation": []}
    for row in rows:
        contrasts = wrong[row["id"]] | others.get(row["id"], {})
        if len(contrasts) == len(OBJECTIVES):
            splits[row["split"]].append({name: contrasts[name] for name in OBJECTIVES})
    return splits["train"], splits["evaluation"]


def _clear_ones(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> dict[str, Row]:
    """The contrasts of each answer in which the rejected side is worse for sure."""
    made, _ = contrast_pairs(rows, objectives, may_be_wrong=may_be_wrong)
    found: dict[str, Row] = {}
    for pair in made:
        if _is_clear(pair):
            name = prompt_id(pair["prompt"])  # type: ignore[arg-type]
            found.setdefault(name, {})[pair["objective"]] = _as_pair(pair)
    return found


def _answers(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The answers that suit the rules, as rows for `contrast_pairs`. The topic is the dialogue."""
    rows: dict[str, dict[str, Any]] = {}
    texts: set[str] = set()
    for pair in pairs:
        dialogue = [*pair["prompt"], *pair["chosen"]]
        for turn, message in enumerate(dialogue):
            answer = message["content"]
            if turn == 0 or message["role"] != "assistant" or answer in texts:
                continue
            prompt = _recent(dialogue[:turn], MOST_WORDS - len(answer.split()))
            if prompt and _suits(answer):
                texts.add(answer)
                row = {"id": prompt_id(prompt), "prompt": prompt, "response": answer}
                row |= {"topic": conversation_id(pair["prompt"]), "split": ""}
                rows.setdefault(conversation_id(prompt), row)
    return list(rows.values())


def _recent(dialogue: Sequence[Message], words: int) -> list[Message]:
    """As many of the last turns as have at most `words` words together, from a user's turn on."""
    for start, message in enumerate(dialogue):
        rest = list(dialogue[start:])
        if message["role"] == "user" and sum(len(m["content"].split()) for m in rest) <= words:
            return rest
    return []


def _suits(answer: str) -> bool:
    """Whether an answer is one paragraph of whole sentences, and of enough of them."""
    return (
        not _MESSY.search(answer)
        and len(split_sentences(answer)) >= FEWEST_SENTENCES
        and answer[-1] in ".!?"
    )


def _is_clear(pair: Mapping[str, Any]) -> bool:
    """Whether the rejected answer is worse for sure."""
    chosen, rejected = pair["chosen"], pair["rejected"]
    if pair["objective"] == "coherence":  # A connective is broken, or a sentence is foreign.
        # In another order alone, an answer often reads as well.
        return bool(set(split_sentences(rejected)) - set(split_sentences(chosen)))
    if pair["objective"] == "factuality":
        return len(_ODD_NEGATION.findall(rejected)) <= len(_ODD_NEGATION.findall(chosen))
    return True


def _as_pair(pair: Mapping[str, Any]) -> Pair:
    return {
        "id": f"{prompt_id(pair['prompt'])}-{pair['objective']}",
        "objective": pair["objective"],
        "prompt": pair["prompt"],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}],
        "origin": "hh-rlhf",
    }
