"""Test sets that people made, on made-up copies of their layout and on the real ones."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import refused

from hialign.preferences.formats import prompt_id
from hialign.preferences.llmbar import SUBSETS
from hialign.preferences.test_sets import (
    NEUTRAL_PROMPT,
    TEST_SETS,
    available,
    files_of,
    load_test_set,
)


def packed(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up copy of each test set, in the layout of the real ones."""
    sentences = [
        {"good": f"Cats {uid} {n}.", "bad": f"Cat {uid} {n}.", "uid": uid}
        for uid in ("agreement", "island", "passive")
        for n in range(4)
    ]
    sentences.append({"good": "Same.", "bad": "Same.", "uid": "passive"})
    packed(tmp_path / "blimp" / "pairs.jsonl.gz", sentences)
    marks = [["Missing"], ["Wrong-Grounding"], ["Unverifiable", "Redundant"], ["Incoherent"], []]
    answers = [
        {"prompt": f"Q{n}?", "chosen": f"Right {n}.", "rejected": f"Wrong {n}.", "errors": errors}
        for n, errors in enumerate(marks)
    ]
    packed(tmp_path / "qa-feedback" / "dev-corrected.jsonl.gz", answers)
    (tmp_path / "llmbar").mkdir()
    for subset in SUBSETS:
        rows = [
            {"input": f"Do {n}", "output_1": f"one {n}", "output_2": f"two {n}", "label": 1 + n % 2}
            for n in range(2)
        ]
        (tmp_path / "llmbar" / f"{subset}.json").write_text(json.dumps(rows))
    dialogue = "Hi.\n\nAssistant: Yes?\n\nHuman: Which one?"
    sides = {"chosen": "This one.", "rejected": "That one."}
    helpful = {"prompt": "Help?", "source": "helpful", **sides}
    hhh = [helpful, helpful, {"prompt": dialogue, "source": "honest", **sides}]
    packed(tmp_path / "hhh" / "test.jsonl.gz", hhh)
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(tmp_path))
    return tmp_path


def check(pairs: list[dict[str, Any]]) -> None:
    """What is true of the pairs of every set."""
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        turns = [message["role"] for message in pair["prompt"]]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert [m["role"] for m in pair["chosen"] + pair["rejected"]] == ["assistant"] * 2
        assert all(m["content"].strip() for s in ("prompt", "chosen", "rejected") for m in pair[s])
        assert pair["chosen"] != pair["rejected"]


@pytest.mark.parametrize("name", TEST_SETS)
def test_every_set_has_pairs_of_the_common_shape(copies: Path, name: str) -> None:
    assert available(name)
    pairs = load_test_set(name)
    check(pairs)
    assert load_test_set(name, seed=42) == pairs
    assert load_test_set(name, limit=2) == pairs[:2]
    others = load_test_set(name, seed=1)
    assert sorted(p["id"] for p in others) == sorted(p["id"] for p in pairs)
    assert {prompt_id(p["prompt"]) for p in others} == {prompt_id(p["prompt"]) for p in pairs}


def test_blimp_is_spread_over_its_phenomena(copies: Path) -> None:
    pairs = load_test_set("blimp")
    assert len(pairs) == 12  # without the one that is no contrast
    assert {p["objective"] for p in pairs} == {"grammar"}
    assert {p["prompt"][0]["content"] for p in pairs} == {NEUTRAL_PROMPT}
    for limit in (3, 6, 9):
        counts = Counter(p["phenomenon"] for p in load_test_set("blimp", limit=limit))
        assert set(counts.values()) == {limit // 3}
    for pair in pairs:
        assert pair["id"].startswith(pair["phenomenon"])
        assert pair["chosen"][0]["content"].startswith("Cats")
        assert pair["rejected"][0]["content"].startswith("Cat ")


def test_qa_feedback_has_the_rows_with_a_factual_mark(copies: Path) -> None:
    pairs = {pair["id"]: pair for pair in load_test_set("qa-feedback")}
    assert {name: p["errors"] for name, p in pairs.items()} == {
        "qa-feedback-1": "Wrong-Grounding",
        "qa-feedback-2": "Unverifiable, Redundant",
    }
    assert pairs["qa-feedback-1"]["chosen"][0]["content"] == "Right 1."
    assert {p["objective"] for p in pairs.values()} == {"factuality"}


def test_llmbar_prefers_what_its_label_says(copies: Path) -> None:
    pairs = load_test_set("llmbar")
    assert {p["subset"] for p in pairs[:5]} == set(SUBSETS)
    for pair in pairs:
        number = int(pair["id"].rsplit("-", 1)[1])
        assert pair["chosen"][0]["content"] == f"{('one', 'two')[number]} {number}"


def test_hhh_reads_dialogues(copies: Path) -> None:
    pairs = load_test_set("hhh")
    assert Counter(p["subset"] for p in pairs[:2]) == {"helpful": 1, "honest": 1}
    (dialogue,) = (p for p in pairs if p["subset"] == "honest")
    assert [m["content"] for m in dialogue["prompt"]] == ["Hi.", "Yes?", "Which one?"]


def test_what_is_not_there_is_refused(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("there is no test set 'blmp': give one of blimp, qa-feedback, llmbar, hhh"):
        load_test_set("blmp")
    damaged = copies / "hhh" / "test.jsonl.gz"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with refused("test.jsonl.gz cannot be read .*: copy it again"):
        load_test_set("hhh")
    (copies / "blimp" / "pairs.jsonl.gz").unlink()
    assert not available("blimp")
    with refused("the test set blimp cannot be read, because there is no .*alexwarstadt/blimp"):
        files_of("blimp")
    monkeypatch.delenv("HIALIGN_SHARED_DATA")
    assert not any(map(available, TEST_SETS))
    with refused("HIALIGN_SHARED_DATA names no folder"):
        load_test_set("llmbar")


@pytest.mark.parametrize(
    ("name", "size", "groups"),
    [("blimp", 66_993, 67), ("qa-feedback", 189, 1), ("llmbar", 419, 5), ("hhh", 221, 4)],
)
def test_the_real_sets(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int, groups: int
) -> None:
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(shared_data))
    if not available(name):
        pytest.skip(f"no copy of {name} in {shared_data}")
    pairs = load_test_set(name)
    check(pairs if name != "blimp" else pairs[:670])
    assert len(pairs) == size
    group = TEST_SETS[name].group
    counts = Counter(pair[group] for pair in pairs[: 10 * groups])
    assert counts == dict.fromkeys(counts, 10)
    assert len(counts) == groups
