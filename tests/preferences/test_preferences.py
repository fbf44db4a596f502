"""Preference pairs: every format and layout, what is refused, and what evaluation never shares."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import hh_rows, made_pairs, refused, transcript, write_lines
from hypothesis import given
from hypothesis import strategies as st

from hialign import HialignError, load_pairs
from hialign.preferences.formats import (
    UnusablePair,
    conversation_id,
    parse_transcript,
    prompt_id,
    to_pair,
)
from hialign.preferences.pairs import Pairs
from hialign.study import paths
from hialign.study.settings import PreferenceSettings

HELLO = [{"role": "user", "content": "Hello."}]
GOOD = [{"role": "assistant", "content": "Good day."}]
BAD = [{"role": "assistant", "content": "Go away."}]


def says(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def ids(pairs: Any) -> set[str]:
    return {prompt_id(p) for p in pairs["prompt"]}


def plain(rows: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]


# --- transcripts ---------------------------------------------------------------------------------


def test_a_transcript_of_several_turns() -> None:
    text = (
        "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHow are you?\n\nHuman:  Fine. \n\nAssistant: Good!"
    )
    assert parse_transcript(text) == says("Hi", "Hello.\n\nHow are you?", "Fine.", "Good!")


def test_turns_of_one_speaker_become_one() -> None:
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: \n\nAssistant: d"
    assert parse_transcript(text) == says("a\n\nb", "c\n\nd")


def test_a_doubled_turn_inside_the_prompt_is_merged() -> None:
    shared = transcript("a", "b") + "\n\nAssistant: c"
    rows = [shared + f"\n\nHuman: d\n\nAssistant: {end}" for end in ("good", "bad")]
    prompt, chosen, _ = to_pair({"chosen": rows[0], "rejected": rows[1]})
    assert (prompt, chosen[0]["content"]) == (says("a", "b\n\nc", "d"), "good")


@pytest.mark.parametrize(
    "text",
    [
        "Hello there.",
        "",
        "x\n\nHuman: a\n\nAssistant: b",
        "\n\nAssistant: a",
        "\n\nHuman: a",
        transcript("a", "b", "c"),
        "Human: a\n\nAssistant: b",
    ],
)
def test_what_is_no_transcript_is_unusable(text: str) -> None:
    with pytest.raises(UnusablePair, match=r"^not a transcript$"):
        parse_transcript(text)


contents = (
    st.text(max_size=40)
    .filter(lambda t: "Human:" not in t and "Assistant:" not in t)
    .map(lambda t: t.strip())
)


@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=5))
def test_transcripts_round_trip(exchanges: list[tuple[str, str]]) -> None:
    turns = [turn for exchange in exchanges for turn in exchange]
    assert parse_transcript(transcript(*turns)) == says(*turns)


@given(st.lists(st.lists(contents.filter(bool), min_size=1, max_size=3), min_size=2, max_size=6))
def test_runs_of_one_speaker_merge_whatever_their_number(runs: list[list[str]]) -> None:
    runs = runs[: len(runs) // 2 * 2]
    names = ("Human", "Assistant")
    text = "".join(f"\n\n{names[i % 2]}: {t}" for i, run in enumerate(runs) for t in run)
    assert parse_transcript(text) == says(*("\n\n".join(run) for run in runs))


@given(st.text(max_size=30), st.text(max_size=30))
def test_mentioned_names_are_no_turns(before: str, after: str) -> None:
    """Only a blank line and a name make a turn, not a name in the middle of a sentence."""
    content = f"{before.replace(chr(10), ' ')}x Human: {after.replace(chr(10), ' ')}".strip()
    assert parse_transcript(transcript(content, "b")) == says(content, "b")


# --- formats -------------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {  # TRL's names; its documentation's example is `HELLO`
    "standard, explicit prompt": {
        "prompt": "Hello.",
        "chosen": "Good day.",
        "rejected": "Go away.",
    },
    "standard, implicit prompt": {"chosen": "Hello. Good day.", "rejected": "Hello. Go away."},
    "conversational, explicit prompt": {"prompt": HELLO, "chosen": GOOD, "rejected": BAD},
    "conversational, implicit prompt": {"chosen": HELLO + GOOD, "rejected": HELLO + BAD},
    "prompt repeated in both": {"prompt": HELLO, "chosen": HELLO + GOOD, "rejected": HELLO + BAD},
    "prompt as text, responses as messages": {
        "prompt": "Hello.",
        "chosen": HELLO + GOOD,
        "rejected": HELLO + BAD,
    },
    "transcripts": {
        "chosen": transcript("Hello.", "Good day."),
        "rejected": transcript("Hello.", "Go away."),
    },
    "transcripts without the blank line before them": {
        "chosen": transcript("Hello.", "Good day.").lstrip(),
        "rejected": transcript("Hello.", "Go away.").lstrip(),
    },
    "a transcript as the prompt": {
        "prompt": "\n\nHuman: Hello.\n\nAssistant:",
        "chosen": " Good day.",
        "rejected": " Go away.",
    },
    "no prompt where others have one": {"prompt": None, "chosen": HELLO + GOOD}
    | {"rejected": HELLO + BAD},
    "ShareGPT's keys": {
        "prompt": [{"from": "human", "value": "Hello."}],
        "chosen": [{"from": "gpt", "value": "Good day."}],
        "rejected": [{"from": "gpt", "value": "Go away."}],
    },
    "LLaMA-Factory's conversations": {
        "conversations": [{"from": "human", "value": "Hello."}],
        "chosen": {"from": "gpt", "value": "Good day."},
        "rejected": {"from": "gpt", "value": "Go away."},
    },
    "LLaMA-Factory's messages": {"messages": HELLO, "chosen": GOOD[0], "rejected": BAD[0]},
    "LLaMA-Factory's instructions": {
        "instruction": "Hello.",
        "input": "",
        "chosen": "Good day.",
        "rejected": "Go away.",
    },
    "more keys": {"prompt": "Hello.", "chosen": "Good day.", "rejected": "Go away.", "score": 3},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pair(name: str) -> None:
    assert to_pair(FORMATS[name]) == (HELLO, GOOD, BAD)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_from_a_file(tmp_path: Path, name: str) -> None:
    rows = [
        json.loads(json.dumps(FORMATS[name]).replace("Hello.", f"Hello {i}.")) for i in range(4)
    ]
    pairs = load_pairs(str(write_lines(tmp_path / "p.jsonl", rows)), train=2, evaluation=2)
    for row in [*pairs.train, *pairs.evaluation]:
        assert (row["chosen"], row["rejected"]) == (GOOD, BAD)
        assert row["objective"] == "preference"
    found = {p[0]["content"] for p in [*pairs.train["prompt"], *pairs.evaluation["prompt"]]}
    assert found == {f"Hello {i}." for i in range(4)}


@pytest.mark.parametrize("turns", [1, 3, 5])
def test_an_implicit_prompt_is_what_trl_takes_for_it(turns: int) -> None:
    from trl.data_utils import maybe_extract_prompt

    shared = says(*(f"turn {i}" for i in range(turns)))
    row = {"chosen": shared + GOOD, "rejected": shared + BAD}
    theirs = maybe_extract_prompt(dict(row))
    assert to_pair(row) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])


def test_a_prompt_inside_plain_texts_is_cut_at_a_word() -> None:
    """As in TRL's example; where it would cut inside a word, we keep the word whole."""
    from trl.data_utils import maybe_extract_prompt

    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    theirs = maybe_extract_prompt(dict(row))
    prompt, chosen, rejected = to_pair(row)
    assert prompt[0]["content"] == theirs["prompt"] == "The sky is"
    assert (chosen[0]["content"], rejected[0]["content"]) == ("blue.", "green.")
    _, chosen, rejected = to_pair({"chosen": "It is blue.", "rejected": "It is black."})
    assert (chosen[0]["content"], rejected[0]["content"]) == ("blue.", "black.")


def test_objectives_of_a_file_are_kept(tmp_path: Path) -> None:
    rows = [row | {"objective": "tone"} for row in made_pairs(4)]
    pairs = load_pairs(str(write_lines(tmp_path / "p.jsonl", rows)), train=2, evaluation=2)
    assert set(pairs.train["objective"]) == {"tone"}


def test_a_system_turn_belongs_to_the_prompt() -> None:
    system = [{"role": "system", "content": "Be kind."}]
    row = {"prompt": system + HELLO, "chosen": GOOD, "rejected": BAD}
    assert to_pair(row) == (system + HELLO, GOOD, BAD)


def test_instructions_as_llama_factory_joins_them() -> None:
    row = {"instruction": "Translate.", "input": "Bonjour.", "chosen": "Hello.", "rejected": "No."}
    prompt, *_ = to_pair(row)
    assert prompt == says("Translate.\nBonjour.")
    prompt, *_ = to_pair(row | {"system": "Be kind.", "history": [["Hi.", "Hello."]]})
    system = {"role": "system", "content": "Be kind."}
    assert prompt == [system, *says("Hi.", "Hello.", "Translate.\nBonjour.")]


def test_a_conversation_of_several_turns() -> None:
    turns = [("system", "Be kind."), ("human", "a"), ("gpt", "b"), ("human", "c")]
    row = {
        "conversations": [{"from": who, "value": text} for who, text in turns],
        "chosen": {"from": "gpt", "value": "d"},
        "rejected": {"from": "gpt", "value": "e"},
    }
    prompt, chosen, rejected = to_pair(row)
    assert prompt == [{"role": "system", "content": "Be kind."}, *says("a", "b", "c")]
    assert (chosen[0]["content"], rejected[0]["content"]) == ("d", "e")
    row["system"] = "Be brief."
    row["conversations"] = row["conversations"][1:]  # type: ignore[index]
    assert to_pair(row)[0][0] == {"role": "system", "content": "Be brief."}


def test_messages_beside_whole_conversations_are_no_prompt() -> None:
    """UltraFeedback repeats the chosen conversation in a column `messages`."""
    row = {"messages": HELLO + GOOD, "chosen": HELLO + GOOD, "rejected": HELLO + BAD}
    assert to_pair(row) == (HELLO, GOOD, BAD)


UNUSABLE = [
    ({"chosen": "Yes.", "rejected": "No."}, "no common prompt"),
    ({"chosen": HELLO + GOOD, "rejected": says("Hi.") + BAD}, "no common prompt"),
    ({"chosen": GOOD, "rejected": BAD}, "no common prompt"),
    (
        {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "b")},
        "no common prompt",
    ),
    (  # as in the real file: one side goes on after an answer that the other side does not have
        {"chosen": transcript("a", "b") + "\n\nAssistant: c", "rejected": transcript("a", "d")},
        "no common prompt",
    ),
    ({"prompt": "a", "chosen": [], "rejected": []}, "an empty response"),
    (
        {"prompt": "a", "chosen": [{"role": "assistant", "content": None}], "rejected": "b"},
        "a message without text",
    ),
    ({"prompt": "a", "chosen": "  ", "rejected": "b"}, "an empty response"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "an empty response"),
    ({"chosen": transcript("a", "b"), "rejected": transcript("a", "")}, "an empty response"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "identical responses"),
    ({"chosen": "Go on. Yes.", "rejected": "Go on. Yes."}, "identical responses"),
    ({"chosen": HELLO + GOOD, "rejected": HELLO + GOOD}, "identical responses"),
    ({"prompt": "a", "chosen": "b \ud83d", "rejected": "c"}, "half a Unicode character"),
    ({"prompt": HELLO, "chosen": says("b"), "rejected": says("c")}, "the last turn is not"),
    ({"chosen": transcript("a", "b", "c"), "rejected": transcript("a", "b")}, "not a transcript"),
    ({"chosen": transcript("a", "b"), "rejected": "b"}, "not a transcript"),
]


@pytest.mark.parametrize(("row", "kind"), UNUSABLE)
def test_what_is_no_preference_is_unusable(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(UnusablePair, match=f"^{kind}"):
        to_pair(row)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pairs.jsonl", made_pairs(40))


def test_unusable_pairs_are_counted_and_placed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = list(made_pairs(40))
    rows[4] = rows[4] | {"rejected": ""}
    rows[9] = rows[9] | {"rejected": rows[9]["chosen"]}
    rows[30] = rows[30] | {"chosen": " "}
    pairs = load_pairs(str(write_lines(tmp_path / "p.jsonl", rows)), train=30, evaluation=7)
    assert pairs.report["read"] == {"train": 40}
    assert pairs.report["refused"] == {"train": {"an empty response": 2, "identical responses": 1}}
    assert pairs.report["refused_at"]["train"] == [
        "line 5 of p.jsonl: an empty response",
        "line 10 of p.jsonl: identical responses",
        "line 31 of p.jsonl: an empty response",
    ]
    assert (pairs.report["train"], pairs.report["evaluation"]) == (30, 7)


@pytest.mark.parametrize(("bad", "fails"), [(4, False), (5, True)])
def test_a_source_with_more_than_a_tenth_unusable_is_refused(
    tmp_path: Path, bad: int, fails: bool
) -> None:
    rows = [row | {"rejected": ""} if i < bad else row for i, row in enumerate(made_pairs(40))]
    path = write_lines(tmp_path / "p.jsonl", rows)
    if fails:
        with refused(f"^line 1 of p.jsonl: an empty response; 5 of 40 pairs of {path} cannot be"):
            load_pairs(str(path), train=10, evaluation=5)
    else:
        load_pairs(str(path), train=10, evaluation=5)


def test_pairs_without_a_common_prompt_are_refused_as_a_whole(tmp_path: Path) -> None:
    rows = [{"chosen": f"{i} is good", "rejected": f"bad is {i}"} for i in range(20)]
    with refused("line 1 of p.jsonl: no common prompt; 20 of 20 pairs"):
        load_pairs(str(write_lines(tmp_path / "p.jsonl", rows)), train=1, evaluation=1)


@pytest.mark.parametrize("line", [1, 3, 40])
def test_broken_json_is_refused_with_its_line(forty: Path, line: int) -> None:
    lines = forty.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = lines[line - 1][:20]
    forty.write_text("\n".join(lines), encoding="utf-8")
    with refused(f"pairs.jsonl, line {line}: not JSON"):
        load_pairs(str(forty), train=1, evaluation=1)


@pytest.mark.parametrize("text", ['{"prompt": "a", "chosen": "b"}', "[1, 2]", "3", '"chosen"'])
def test_missing_keys_are_refused_with_their_line(forty: Path, text: str) -> None:
    lines = forty.read_text(encoding="utf-8") + "\n" + text + "\n"  # blank lines count as lines
    forty.write_text(lines, encoding="utf-8")
    with refused("pairs.jsonl, line 42: a preference pair needs `chosen` and `rejected`"):
        load_pairs(str(forty), train=1, evaluation=1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": 3, "rejected": 4},
        {"prompt": 5, "chosen": "b", "rejected": "c"},
        {"chosen": [{"content": "b"}], "rejected": [{"content": "c"}]},
        {"prompt": "a", "chosen": None, "rejected": "c"},
        {"chosen": "b", "rejected": None},
        {"prompt": "a", "chosen": ["b"], "rejected": ["c"]},
        {"prompt": "a", "chosen": {"text": "b"}, "rejected": {"text": "c"}},
        {"prompt": "a", "chosen": [{"role": "assistant", "content": ["b"]}], "rejected": "c"},
        {"instruction": "a", "history": "x", "chosen": "b", "rejected": "c"},
        {"conversations": [{"from": "tool", "value": "a"}], "chosen": "b", "rejected": "c"},
    ],
)
def test_another_format_is_refused_with_its_line(forty: Path, row: dict[str, Any]) -> None:
    forty.write_text(forty.read_text(encoding="utf-8") + json.dumps(row), encoding="utf-8")
    with refused("line 41 of pairs.jsonl: neither strings nor messages with role and content"):
        load_pairs(str(forty), train=1, evaluation=1)


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "~/no/such/folder"])
def test_a_missing_source_is_refused(tmp_path: Path, name: str) -> None:
    source = str(tmp_path / name) if name == "none.jsonl" else name
    place = Path(source).expanduser()
    with refused(
        "there is no such file or folder, as relative paths start at the repository, and "
        f"{paths.root() / place} does not exist$"
    ):
        load_pairs(source)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n")
    with refused("no pairs at all; 0 of 0 pairs"):
        load_pairs(str(path))


def test_gzipped_and_plain_files_give_the_same(forty: Path) -> None:
    packed = forty.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(forty.read_bytes()))
    both = [load_pairs(str(p), train=20, evaluation=5) for p in (forty, packed)]
    assert both[0].fingerprint == both[1].fingerprint


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzipped"])
def test_a_damaged_gzip_file_is_refused(forty: Path, damage: str) -> None:
    packed = forty.with_suffix(".jsonl.gz")
    content = bytearray(gzip.compress(forty.read_bytes()))
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    else:
        content = bytearray(forty.read_bytes())
    packed.write_bytes(content)
    with refused(r"pairs.jsonl.gz, (after )?line \d+: (cannot be read|not JSON)"):
        load_pairs(str(packed), train=1, evaluation=1)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "\xff\xfe"}\n')
    with refused(r"p.jsonl, line 1: cannot be read, because it is not UTF-8"):
        load_pairs(str(path))


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_of_tranches(tmp_path: Path) -> None:
    write_lines(tmp_path / "harmless-base" / "train.jsonl", hh_rows(20, "A"))
    write_lines(tmp_path / "harmless-base" / "test.jsonl", hh_rows(6, "B"))
    packed = tmp_path / "helpful-base" / "train.jsonl.gz"
    packed.parent.mkdir()
    plain_file = write_lines(tmp_path / "scratch", hh_rows(10, "C"))
    packed.write_bytes(gzip.compress(plain_file.read_bytes()))
    write_lines(tmp_path / "red-team-attempts" / "train.jsonl", [{"transcript": "x"}])
    everything = load_pairs(str(tmp_path), train=None, evaluation=None)
    assert everything.report["read"] == {"train": 30, "test": 6}
    assert (len(everything.train), len(everything.evaluation)) == (30, 6)
    one = load_pairs(str(tmp_path), subsets=["helpful-base"], train=8, evaluation=2)
    assert {p[0]["content"][0] for p in one.train["prompt"]} == {"C"}
    assert one.train[0]["prompt"][1]["content"] == "Why?"
    with refused(r"no train.jsonl or test.jsonl \(or .json, .csv, .parquet\) in helpful-online"):
        load_pairs(str(tmp_path), subsets=["helpful-online"])


def test_files_in_the_folder_itself(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", made_pairs(20))
    pairs = load_pairs(str(tmp_path), train=10, evaluation=5)
    assert pairs.report["read"] == {"test": 20}


def test_a_file_in_both_forms_is_read_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", made_pairs(20))
    (tmp_path / "train.jsonl.gz").write_bytes(
        gzip.compress((tmp_path / "train.jsonl").read_bytes())
    )
    (tmp_path / "train.jsonl.bak").write_text("not JSON")
    assert load_pairs(str(tmp_path), train=9, evaluation=2).report["read"] == {"train": 20}


def test_training_drops_the_prompts_that_are_held_out(tmp_path: Path) -> None:
    shared = hh_rows(5, "shared ")
    write_lines(tmp_path / "train.jsonl", hh_rows(20, "own ") + shared)
    write_lines(tmp_path / "test.jsonl", hh_rows(5, "held ") + shared)
    pairs = load_pairs(str(tmp_path), train=None, evaluation=None)
    assert (len(pairs.train), len(pairs.evaluation)) == (20, 10)
    assert not ids(pairs.train) & ids(pairs.evaluation)
    few = load_pairs(str(tmp_path), train=None, evaluation=3)
    kept = {p[0]["content"] for p in few.train["prompt"]}
    held = {p[0]["content"] for p in few.evaluation["prompt"]}
    assert kept == {f"own {i}?" for i in range(20)} | {f"shared {i}?" for i in range(5)} - held


# --- splits --------------------------------------------------------------------------------------


def test_splits_share_no_prompt_even_if_prompts_repeat(tmp_path: Path) -> None:
    rows = [row | {"prompt": f"Prompt {i % 7}"} for i, row in enumerate(made_pairs(60))]
    path = str(write_lines(tmp_path / "p.jsonl", rows))
    for seed in range(5):
        pairs = load_pairs(path, train=20, evaluation=10, seed=seed)
        assert (len(pairs.train), len(pairs.evaluation)) == (20, 10)
        assert not ids(pairs.train) & ids(pairs.evaluation)


def first_turns(pairs: Any) -> set[str]:
    return {" ".join(p[0]["content"].split()).lower() for p in pairs["prompt"]}


def cut_dialogues(numbers: range) -> list[dict[str, str]]:
    """Two pairs of each dialogue, cut at its first and at its second answer."""
    rows = []
    for n in numbers:
        for turns in ((f"Topic {n}?",), (f"topic  {n}? ", "Yes.", f"And {n}?")):
            ends = {side: transcript(*turns, f"{side} {n}") for side in ("chosen", "rejected")}
            rows.append(ends)
    return rows


def test_pairs_of_one_conversation_stay_together(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "p.jsonl", cut_dialogues(range(30))))
    for seed in range(5):
        pairs = load_pairs(path, train=None, evaluation=11, seed=seed)
        assert len(pairs.evaluation) == 11
        assert len(ids(pairs.train)) == 48  # each dialogue has two prompts
        assert not first_turns(pairs.train) & first_turns(pairs.evaluation)


def test_training_drops_the_conversations_that_are_held_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", cut_dialogues(range(12)))
    write_lines(tmp_path / "test.jsonl", cut_dialogues(range(8, 20))[1::2])
    pairs = load_pairs(str(tmp_path), train=None, evaluation=None)
    assert (len(pairs.train), len(pairs.evaluation)) == (16, 12)
    assert not first_turns(pairs.train) & first_turns(pairs.evaluation)
    with refused("outside the 8 whose conversation is held out"):
        load_pairs(str(tmp_path), train=17, evaluation=12)


def test_a_conversation_is_named_by_its_first_user_turn() -> None:
    system = [{"role": "system", "content": "Be kind."}]
    one = conversation_id(says("Hello  There\n", "Hi.", "What now?"))
    assert one == conversation_id(system + says("hello there")) != conversation_id(says("Hello"))
    assert conversation_id(system)  # without a user turn, the first message


def test_the_seed_decides_alone(forty: Path) -> None:
    first, again, other = (
        load_pairs(str(forty), train=20, evaluation=5, seed=s) for s in (1, 1, 2)
    )
    assert plain(first.train) == plain(again.train)
    assert plain(first.evaluation) == plain(again.evaluation)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert ids(first.evaluation) != ids(other.evaluation)


def test_more_training_pairs_hold_the_same_prompts_out(forty: Path) -> None:
    few, many = (load_pairs(str(forty), train=n, evaluation=5) for n in (10, 30))
    assert plain(few.evaluation) == plain(many.evaluation)
    assert plain(few.train) == plain(many.train)[:10]


def sides(pairs: Any) -> dict[str, tuple[str, str]]:
    """Chosen and rejected of each pair by its id."""
    texts = ([p["id"], p["chosen"][0]["content"], p["rejected"][0]["content"]] for p in pairs)
    return {name: (chosen, rejected) for name, chosen, rejected in texts}


@pytest.mark.parametrize("source", ["forty", "builtin"])
def test_a_draw_takes_other_training_pairs_and_holds_the_same_out(forty: Path, source: str) -> None:
    name, size = (str(forty), 15) if source == "forty" else (source, 50)
    plainly, one, again, two = (
        load_pairs(name, train=size, evaluation=10, draw=d) for d in (None, 1, 1, 2)
    )
    assert plain(plainly.evaluation) == plain(one.evaluation) == plain(two.evaluation)
    drawn = [sides(pairs.train) for pairs in (plainly, one, two)]
    assert len({frozenset(d) for d in drawn}) == 3  # other pairs, not another order
    assert [len(d) for d in drawn] == [size] * 3  # without replacement
    assert one.fingerprint == again.fingerprint != two.fingerprint
    assert (one.report["draw"], "draw" in plainly.report) == (1, False)
    more = load_pairs(name, train=size + 10, evaluation=10, draw=1)
    assert plain(more.train)[:size] == plain(one.train)
    pool = [load_pairs(name, train=None, evaluation=10, draw=d) for d in (None, 1)]
    assert sides(pool[0].train) == sides(pool[1].train)  # the whole pool, whatever its order


def test_every_pair_of_the_pool_is_drawn_equally_often(forty: Path) -> None:
    counts = Counter(
        name
        for draw in range(200)
        for name in load_pairs(str(forty), train=15, evaluation=10, draw=draw).train["id"]
    )
    assert len(counts) == 30
    assert max(abs(n - 100) for n in counts.values()) < 29  # 4 standard deviations


@pytest.mark.parametrize("source", ["forty", "builtin"])
def test_shuffled_labels_exchange_a_random_half_of_the_training_pairs(
    forty: Path, source: str
) -> None:
    name, size = (str(forty), 30) if source == "forty" else (source, 200)
    plainly, control, other = (
        load_pairs(name, train=size, evaluation=10, **settings)
        for settings in ({}, {"shuffled": True}, {"shuffled": True, "draw": 5})
    )
    assert plain(plainly.evaluation) == plain(control.evaluation) == plain(other.evaluation)
    assert plainly.train["id"] == control.train["id"]
    before, after = sides(plainly.train), sides(control.train)
    turned = [key for key in before if after[key] == before[key][::-1]]
    assert {key for key in before if after[key] == before[key]} == before.keys() - set(turned)
    assert control.report["exchanged"] == len(turned)
    assert abs(len(turned) - size / 2) < 2 * size**0.5  # 4 standard deviations
    assert "exchanged" not in plainly.report
    fewer = load_pairs(name, train=size // 2, evaluation=10, shuffled=True)
    assert plain(fewer.train) == plain(control.train)[: size // 2]
    again = load_pairs(name, train=size, evaluation=10, draw=5)
    drawn = zip(sides(again.train).values(), sides(other.train).values(), strict=True)
    assert 0 < sum(a != b for a, b in drawn) == other.report["exchanged"]


def test_pairs_have_names_of_their_own(forty: Path) -> None:
    pairs = load_pairs(str(forty), train=None, evaluation=None)
    names = [*pairs.train["id"], *pairs.evaluation["id"]]
    assert len(set(names)) == len(names) == 40


@pytest.mark.parametrize(
    ("train", "evaluation", "asks", "advice"),
    [
        (
            *(36, 5, "train asks for 36 pairs and preferences.evaluation for 5, 41 together, but"),
            "such as train: 36 and evaluation: 4$",
        ),
        (
            *(41, 5, "train asks for 41 pairs and preferences.evaluation for 5, 46 together, but"),
            "such as train: 36 and evaluation: 4$",
        ),
        (1, 41, "evaluation for 41, 42 together, but", "such as train: 1 and evaluation: 39$"),
        (None, 40, "asks for all pairs and .* for 40, but", "as train: 36 and evaluation: 4$"),
        (None, 1000, "asks for all pairs and .* for 1000, but", "as train: 36 and evaluation: 4$"),
        (37, None, "asks for 37 pairs and .* for a tenth, but", "as train: 37 and evaluation: 3$"),
    ],
)
def test_asking_one_split_for_too_many_is_refused(
    forty: Path, train: int | None, evaluation: int | None, asks: str, advice: str
) -> None:
    with refused(f"{asks} {forty} has 40 usable pairs in its only split: .*{advice}"):
        load_pairs(str(forty), train=train, evaluation=evaluation)
    numbers = re.search(r"train: (\d+) and evaluation: (\d+)", advice)
    assert numbers is not None
    few, rest = (int(n) for n in numbers.groups())
    pairs = load_pairs(str(forty), train=few, evaluation=rest)  # what it says works
    assert (len(pairs.train), len(pairs.evaluation)) == (few, rest)


def test_pairs_of_few_prompts_are_not_enough(tmp_path: Path) -> None:
    rows = [row | {"prompt": f"Prompt {i % 2}"} for i, row in enumerate(made_pairs(40))]
    path = write_lines(tmp_path / "p.jsonl", rows)
    with refused(
        "40 usable pairs in its only split of 2 conversations, .* 20 are left for training"
    ):
        load_pairs(str(path), train=30, evaluation=5)
    write_lines(path, [row | {"prompt": "One"} for row in rows])
    with refused("40 usable pairs in its only split, all of one conversation"):
        load_pairs(str(path), train=30, evaluation=5)


def test_a_tenth_of_few_pairs_is_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", made_pairs(9))
    with refused("has 9 usable pairs in its only split, a tenth of which is none: set"):
        load_pairs(str(path), train=None, evaluation=None)


def test_asking_two_splits_for_too_many_is_refused_by_split(tmp_path: Path) -> None:
    shared = hh_rows(5, "shared ")
    write_lines(tmp_path / "train.jsonl", hh_rows(20, "own ") + shared)
    write_lines(tmp_path / "test.jsonl", hh_rows(5, "held ") + shared)
    with refused(
        "preferences.evaluation asks for 11 pairs, but .* has 10 usable ones in its test split: set "
        "preferences.evaluation to at most 10, or to null for all of them$"
    ):
        load_pairs(str(tmp_path), train=1, evaluation=11)
    with refused(
        "preferences.train asks for 21 pairs, but .* has 20 usable ones in its train split "
        "outside the 5 whose conversation is held out: set preferences.train to at most 20"
    ):
        load_pairs(str(tmp_path), train=21, evaluation=10)
    write_lines(tmp_path / "train.jsonl", shared)
    for train in (1, None):
        with refused("has 0 usable ones in its train split .* 5 whose .*: set .*evaluation lower"):
            load_pairs(str(tmp_path), train=train, evaluation=10)


def test_distinct_held_out_prompts(tmp_path: Path) -> None:
    rows = [row | {"prompt": f"Prompt {i % 5}"} for i, row in enumerate(made_pairs(40))]
    pairs = load_pairs(str(write_lines(tmp_path / "p.jsonl", rows)), train=10, evaluation=16)
    prompts = pairs.prompts()
    order = list(dict.fromkeys(prompt_id(p) for p in pairs.evaluation["prompt"]))
    assert [p["prompt_id"] for p in prompts] == order
    assert len(prompts) < len(pairs.evaluation)
    assert pairs.prompts(2) == prompts[:2]
    assert pairs.prompts(99) == prompts


def test_prompt_ids_depend_on_the_prompt_alone() -> None:
    assert prompt_id(HELLO) == prompt_id([{"content": "Hello.", "role": "user"}])
    assert prompt_id(HELLO) != prompt_id(says("Hello"))
    assert len(prompt_id(HELLO)) == 12


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trian": 3}, "^load_pairs has no setting 'trian', did you mean 'train'"),
        ({"train": -1}, r"^preferences.train: .* \(it is -1\)"),
        ({"train": "x"}, r"^preferences.train: .* \(it is 'x'\)"),
        ({"evaluation": 0}, r"^preferences.evaluation: .* \(it is 0\)"),
        ({"seed": 2**70}, r"^preferences.seed: .* less than or equal to 4294967295"),
        ({"seed": -1}, r"^preferences.seed: "),
        ({"subsets": "helpful-base"}, "^preferences.subsets: .*list"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    for source in ("builtin", PreferenceSettings(source="builtin")):
        with refused(message):
            load_pairs(source, **{"train": 2, "evaluation": 2} | settings)


@pytest.mark.parametrize("source", [5, None, ["builtin"]])
def test_a_source_is_a_name_or_a_path(source: Any) -> None:
    with refused("^preferences.source: "):
        load_pairs(source)


def test_a_path_is_a_source(forty: Path) -> None:
    named, path = (load_pairs(s, train=5, evaluation=2) for s in (str(forty), forty))
    assert named.fingerprint == path.fingerprint


# --- the built-in set ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builtin() -> Pairs:
    return load_pairs("builtin", train=72, evaluation=72)


def test_the_built_in_set_is_spread_evenly(builtin: Pairs) -> None:
    assert Counter(builtin.train["objective"]) == {
        **{"grammar": 24, "coherence": 24, "factuality": 24},
    }
    assert len(ids(builtin.train)) == 72


def test_held_out_prompts_have_all_three_contrasts(builtin: Pairs) -> None:
    assert len(builtin.evaluation) == 72
    by_prompt: dict[str, set[str]] = {}
    for pair in builtin.evaluation:
        by_prompt.setdefault(prompt_id(pair["prompt"]), set()).add(pair["objective"])
    assert len(by_prompt) == 24
    assert all(o == {"grammar", "coherence", "factuality"} for o in by_prompt.values())
    assert not ids(builtin.train) & ids(builtin.evaluation)


def test_contrasts_differ_and_their_lengths_do_not_tell(builtin: Pairs) -> None:
    for pair in [*builtin.train, *builtin.evaluation]:
        chosen, rejected = (pair[k][0]["content"] for k in ("chosen", "rejected"))
        assert chosen != rejected
        assert abs(len(chosen.split()) - len(rejected.split())) <= 0.1 * len(chosen.split())


def test_the_built_in_set_in_rounds(builtin: Pairs) -> None:
    """However many are asked for, each prompt comes once before any comes twice."""
    everything = load_pairs("builtin", train=None, evaluation=None)
    assert plain(everything.train)[:72] == plain(builtin.train)
    prompts = len(ids(everything.train))
    assert prompts == 96
    assert len(ids(everything.train.select(range(prompts)))) == prompts


def test_asking_too_many_of_the_built_in_set_is_refused() -> None:
    with refused(r"preferences.train asks for 1000 pairs, but builtin has \d+ usable ones"):
        load_pairs("builtin", train=1000, evaluation=72)
    with refused("preferences.evaluation asks for 73 pairs, but builtin has 72 usable ones"):
        load_pairs("builtin", train=72, evaluation=73)


# --- real data -----------------------------------------------------------------------------------


def test_the_real_file(shared_data: Path) -> None:
    source = str(shared_data / "hh-rlhf")
    pairs = load_pairs(source, train=2000, evaluation=300)
    assert pairs.report["read"] == {"test": 2312}
    assert pairs.report["refused"] == {"test": {"an empty response": 4, "no common prompt": 5}}
    assert len(pairs.report["refused_at"]["test"]) == 9
    assert pairs.report["refused_at"]["test"][0] == "line 87 of test.jsonl.gz: an empty response"
    assert not first_turns(pairs.train) & first_turns(pairs.evaluation)
    assert pairs.fingerprint == load_pairs(source, train=2000, evaluation=300).fingerprint
    lengths = Counter(len(p) for p in pairs.train["prompt"])
    assert all(n % 2 == 1 for n in lengths)  # human and assistant in turn, human last
    assert sum(lengths[n] for n in lengths if n > 1) > 1000  # mostly of several turns
    for pair in pairs.train:
        turns = [m["role"] for m in pair["prompt"]]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert [m["role"] for m in pair["chosen"] + pair["rejected"]] == ["assistant"] * 2


def test_real_transcripts_lose_no_text(shared_data: Path) -> None:
    """Every word of the file is in a message, and no message has words that are not in it."""
    path = shared_data / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream][:400]
    for row in rows:
        words = row["chosen"].replace("\n\nHuman:", " ").replace("\n\nAssistant:", " ").split()
        messages = parse_transcript(row["chosen"])
        assert " ".join(m["content"] for m in messages).split() == words


def test_long_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}?", "chosen": "word " * (i + 1), "rejected": "no"}
        for i in range(40)
    ]
    place = write_lines(tmp_path / "pairs.jsonl", rows)
    pairs = load_pairs(
        place, train=10, evaluation=5, longest=22
    )  # 2 of the prompt, 20 of the answer
    texts = [
        pair["chosen"][0]["content"] for split in (pairs.train, pairs.evaluation) for pair in split
    ]
    assert max(len(text.split()) for text in texts) <= 20
    assert pairs.report["too_long"] == {"train": 20}
    assert len(load_pairs(place, train=35, evaluation=5).train) == 35
    with pytest.raises(
        HialignError, match=r"longest 1: all 40 pairs of .* have more words; raise it"
    ):
        load_pairs(place, train=10, evaluation=5, longest=1)


def test_one_split_of_a_source_is_used_alone(tmp_path: Path) -> None:
    for split, n in (("train", 30), ("test", 20)):
        write_lines(tmp_path / f"{split}.jsonl", made_pairs(n, seed=n))
    both = load_pairs(tmp_path, train=20, evaluation=10)
    test = load_pairs(tmp_path, train=10, evaluation=10, split="test")
    assert both.report["read"] == {"train": 30, "test": 20}
    assert test.report["read"] == {"test": 20}
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(HialignError, match=r"split train: .* has no such split; leave it out"):
        load_pairs(tmp_path, train=10, evaluation=10, split="train")
