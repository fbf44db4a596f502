"""The source `contrasts`: built-in contrasts and those made from spoken answers."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import refused, transcript

from hialign import load_pairs
from hialign.preferences.edits import count_words, split_sentences
from hialign.preferences.formats import conversation_id
from hialign.preferences.pairs import objective_pairs
from hialign.preferences.spoken import MOST_WORDS, may_be_wrong, spoken_contrasts
from hialign.probes.matrix import training_sets
from hialign.study.blocks import OBJECTIVES
from hialign.study.pair_files import data_files
from hialign.study.settings import PreferenceSettings

TOWNS = [
    "Paris",
    "London",
    "Rome",
    "Madrid",
    "Berlin",
    "Vienna",
    "Athens",
    "Cairo",
    "Tokyo",
    "Beijing",
]


def answer(n: int) -> str:
    return (
        f"Traders came to {TOWNS[n % 10]} in {1500 + n} with {n + 3} ships. They sold silk there, so "
        "the town grew. For example, many new houses were built by the river."
    )


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up copy of hh-rlhf's harmless-base tranche with 40 dialogues of one or two answers."""
    file = tmp_path / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        for n in range(40):
            turns = [f"What about town {n}?", answer(n)]
            if n % 2:
                turns += [f"And number {n}?", answer(n + 100)]
            row = {"chosen": transcript(*turns), "rejected": transcript(*turns[:-1], "No.")}
            stream.write(json.dumps(row) + "\n")
        for text in ("Yes.", "I can. I will. I do.", "One:\n- two\n- three", "Hm... well. So. Ok."):
            row = {"chosen": transcript("Why?", text), "rejected": transcript("Why?", "No")}
            stream.write(json.dumps(row) + "\n")
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(tmp_path))
    return file


def by_prompt(pairs: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        found.setdefault(pair["id"].rsplit("-", 1)[0], []).append(pair)
    return found


def check(train: Any, held_out: Any) -> None:
    """What is true of the source wherever its answers come from."""
    assert not {conversation_id(p) for p in train["prompt"]} & {
        conversation_id(p) for p in held_out["prompt"]
    }
    both = [*train, *held_out]
    assert len({pair["id"] for pair in both}) == len(both)
    for rows in (by_prompt(train), by_prompt(held_out)):
        for pairs in rows.values():
            assert sorted(p["objective"] for p in pairs) == sorted(OBJECTIVES)
            assert len({p["chosen"][0]["content"] for p in pairs}) == 1
            assert len({str(p["prompt"]) for p in pairs}) == 1
    for pair in (p for p in both if p["origin"] == "hh-rlhf"):
        chosen, rejected = (pair[s][0]["content"] for s in ("chosen", "rejected"))
        assert chosen.split() != rejected.split()
        assert abs(count_words(chosen) - count_words(rejected)) <= 0.1 * count_words(chosen)
        assert sum(count_words(m["content"]) for m in pair["prompt"]) + count_words(chosen) <= (
            MOST_WORDS
        )
        assert pair["prompt"][0]["role"] == pair["prompt"][-1]["role"] == "user"
        if pair["objective"] == "coherence":
            assert set(split_sentences(rejected)) - set(split_sentences(chosen))


def test_a_made_up_copy(copy: Path) -> None:
    pairs = objective_pairs()
    check(pairs.train, pairs.evaluation)
    origins = pairs.report["origins"]
    assert (origins["train"]["builtin"], origins["evaluation"]["builtin"]) == (96, 24)
    spoken = [p for p in [*pairs.train, *pairs.evaluation] if p["origin"] == "hh-rlhf"]
    texts = {p["chosen"][0]["content"] for p in spoken}
    assert texts <= {answer(n) for n in range(140)}
    assert len(texts) >= 30
    assert pairs.report["read"] == {"test": 44}


def test_dialogues_are_held_out_whole(copy: Path) -> None:
    """Both answers of a dialogue lie on one side, also where a prompt lacks its first turn."""
    rows = []
    for n in range(30):
        long = "word " * 70
        dialogue = [f"Dialogue {n}?", answer(n) + f" {long}.", f"And number {n}?", answer(n + 100)]
        prompt = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant", "user"), dialogue, strict=False)
        ]
        chosen = [{"role": "assistant", "content": dialogue[-1]}]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": chosen})
    train, held_out = spoken_contrasts(rows, seed=1)
    sides = []
    for split in (train, held_out):
        numbers = {row["grammar"]["prompt"][0]["content"].split()[-1] for row in split}
        sides.append(numbers)
    assert all(sides)
    assert not sides[0] & sides[1]
    # Some answers are too long with the whole dialogue, and keep its last turn alone
    assert any(len(row["grammar"]["prompt"]) == 1 for row in [*train, *held_out])


def test_no_foreign_sentence_crosses_the_split(copy: Path) -> None:
    pairs = objective_pairs(seed=3)
    own = {
        name: {s for p in split["chosen"] for s in split_sentences(p[0]["content"])}
        for name, split in (("train", pairs.train), ("evaluation", pairs.evaluation))
    }
    for name, other, split in (
        ("train", "evaluation", pairs.train),
        ("evaluation", "train", pairs.evaluation),
    ):
        only_there = own[other] - own[name]
        for pair in split:
            assert not set(split_sentences(pair["rejected"][0]["content"])) & only_there


def test_pairs_are_spread_over_the_objectives(copy: Path) -> None:
    pairs = load_pairs("contrasts", train=90, evaluation=60)
    assert set(Counter(pairs.train["objective"]).values()) == {30}
    assert set(Counter(pairs.evaluation["objective"]).values()) == {20}
    assert len({str(p) for p in pairs.train["prompt"]}) == 90
    drawn = load_pairs("contrasts", train=90, evaluation=60, draw=1, shuffled=True)
    assert drawn.evaluation.to_list() == pairs.evaluation.to_list()
    assert set(drawn.train["id"]) != set(pairs.train["id"])
    assert 25 < drawn.report["exchanged"] < 65


def test_a_probe_takes_whole_prompts(copy: Path) -> None:
    train = load_pairs(PreferenceSettings(source="contrasts", train=None, evaluation=None)).train
    sets = training_sets(train, 110, seed=1)
    assert {name: len(pairs) for name, pairs in sets.items()} == dict.fromkeys(
        (*OBJECTIVES, "all"), 110
    )
    assert len({tuple(map(str, sets[name]["prompt"])) for name in OBJECTIVES}) == 1


def test_a_source_that_cannot_be_read_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {path.name for path in data_files(PreferenceSettings(source="contrasts"))}
    assert names == {"builtin.jsonl", "test.jsonl.gz"}
    with refused("preferences.subsets: the source contrasts has none"):
        load_pairs("contrasts", subsets=["helpful-base"])
    with refused("preferences.train asks for 5000 pairs, but contrasts has"):
        load_pairs("contrasts", train=5000, evaluation=30)
    copy.rename(copy.with_name("train.jsonl.gz"))
    with refused("made from the file test.jsonl.gz of Anthropic/hh-rlhf"):
        load_pairs("contrasts")
    monkeypatch.delenv("HIALIGN_SHARED_DATA")
    with refused("contrasts is made from answers of Anthropic/hh-rlhf: .*HIALIGN_SHARED_DATA"):
        load_pairs("contrasts")


@pytest.mark.parametrize(
    ("sentence", "kind", "fits"),
    [
        ("The river is long.", "negation", True),
        ("I am not a lawyer.", "negation", False),
        ("They are late.", "negation", False),
        ("I lived in Paris.", "name", True),
        ("Is it hot in Cairo?", "name", False),
        ("You should come before noon.", "opposite", False),
        ("I never thought of it before.", "opposite", False),
    ],
)
def test_where_a_changed_word_makes_a_wrong_fact(sentence: str, kind: str, fits: bool) -> None:
    assert may_be_wrong(sentence, kind) is fits


def test_real_answers(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(shared_data))
    pairs = objective_pairs()
    check(pairs.train, pairs.evaluation)
    prompts = pairs.report["prompts"]
    assert prompts["train"] >= 300
    assert prompts["evaluation"] >= 150
