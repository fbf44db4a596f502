"""Preference pairs: every format and layout, what is refused, and what evaluation never shares."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import made_pairs, write_lines
from hypothesis import given
from hypothesis import strategies as st

from hialign import HialignError, load_pairs
from hialign.preferences import (
    HH_TRANCHES,
    Pairs,
    UnusablePair,
    parse_transcript,
    prompt_id,
    to_pair,
)

HELLO = [{"role": "user", "content": "Hello."}]
GOOD = [{"role": "assistant", "content": "Good day."}]
BAD = [{"role": "assistant", "content": "Go away."}]


def says(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def transcript(*turns: str) -> str:
    """An hh-rlhf transcript of human and assistant in turn."""
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def hh_rows(n: int, prefix: str = "Q") -> list[dict[str, str]]:
    return [
        {
            "chosen": transcript(f"{prefix}{i}?", "Why?", "So.", f"Good {i}."),
            "rejected": transcript(f"{prefix}{i}?", "Why?", "So.", f"Bad {i}."),
        }
        for i in range(n)
    ]


def refused(message: str) -> Any:
    """The single line of a HialignError, which must hold `message`."""
    return pytest.raises(HialignError, match=f"(?s)^(?!.*\n).*{message}")


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
    lines = forty.read_text().splitlines()
    lines[line - 1] = lines[line - 1][:20]
    forty.write_text("\n".join(lines))
    with refused(f"pairs.jsonl, line {line}: not JSON"):
        load_pairs(str(forty), train=1, evaluation=1)


@pytest.mark.parametrize("text", ['{"prompt": "a", "chosen": "b"}', "[1, 2]", "3", '"chosen"'])
def test_missing_keys_are_refused_with_their_line(forty: Path, text: str) -> None:
    forty.write_text(forty.read_text() + "\n" + text + "\n")  # blank lines count as lines
    with refused("pairs.jsonl, line 42: a preference pair needs `chosen` and `rejected`"):
        load_pairs(str(forty), train=1, evaluation=1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": 3, "rejected": 4},
        {"prompt": 5, "chosen": "b", "rejected": "c"},
        {"chosen": [{"content": "b"}], "rejected": [{"content": "c"}]},
        {"prompt": "a", "chosen": None, "rejected": "c"},
    ],
)
def test_another_format_is_refused_with_its_line(forty: Path, row: dict[str, Any]) -> None:
    forty.write_text(forty.read_text() + json.dumps(row))
    with refused("line 41 of pairs.jsonl: neither strings nor messages with role and content"):
        load_pairs(str(forty), train=1, evaluation=1)


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "~/no/such/folder"])
def test_a_missing_source_is_refused(tmp_path: Path, name: str) -> None:
    source = str(tmp_path / name) if name == "none.jsonl" else name
    with refused("there is no such file or folder; relative paths start at the repository"):
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
    with refused(r"p.jsonl, after line 0: cannot be read"):
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
    with refused(r"no train.jsonl or test.jsonl \(or .gz\) in helpful-online"):
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


def test_pairs_have_names_of_their_own(forty: Path) -> None:
    pairs = load_pairs(str(forty), train=None, evaluation=None)
    names = [*pairs.train["id"], *pairs.evaluation["id"]]
    assert len(set(names)) == len(names) == 40


@pytest.mark.parametrize(
    ("train", "evaluation", "message"),
    [
        (41, 5, r"preferences.train asks for 41 pairs, but .* has 35 usable ones for it"),
        (36, 5, r"preferences.train asks for 36 pairs, but .* has 35 usable ones for it"),
        (1, 41, r"preferences.(train|evaluation) asks for"),
    ],
)
def test_asking_for_too_many_is_refused(
    forty: Path, train: int, evaluation: int, message: str
) -> None:
    with refused(message):
        load_pairs(str(forty), train=train, evaluation=evaluation)


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


# --- the hub -------------------------------------------------------------------------------------


def test_an_unreachable_set_is_told_in_one_line() -> None:
    with refused("preferences.source hialign-tests/no-such-set could not be loaded from the hub"):
        load_pairs("hialign-tests/no-such-set")


def test_hh_rlhf_is_asked_for_by_tranche(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tranches are folders of the hub's set; all four by default, as the paper names none."""
    import datasets

    asked: list[dict[str, Any]] = []

    def served(source: str, **options: Any) -> Any:
        asked.append({"source": source, **options})
        name = options["data_dir"]
        splits = {"train": hh_rows(6, f"{name} train "), "test": hh_rows(2, f"{name} test ")}
        return {k: datasets.Dataset.from_list(v) for k, v in splits.items()}

    monkeypatch.setattr(datasets, "load_dataset", served)
    pairs = load_pairs(train=24, evaluation=8, revision="abc")
    assert [a["data_dir"] for a in asked] == list(HH_TRANCHES)
    assert {(a["source"], a["revision"]) for a in asked} == {("Anthropic/hh-rlhf", "abc")}
    assert {p[0]["content"].split()[0] for p in pairs.train["prompt"]} == set(HH_TRANCHES)
    load_pairs(train=6, evaluation=2, subsets=["helpful-base"])
    assert [a["data_dir"] for a in asked[4:]] == ["helpful-base"]


def test_other_sets_are_asked_for_by_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def served(source: str, **options: Any) -> Any:
        assert (source, options) == ("org/set", {"revision": None, "name": "easy"})
        return datasets.DatasetDict(train=datasets.Dataset.from_list(made_pairs(20)))

    monkeypatch.setattr(datasets, "load_dataset", served)
    pairs = load_pairs("org/set", subsets=["easy"], train=10, evaluation=5)
    assert pairs.report["read"] == {"train": 20}


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
    assert not ids(pairs.train) & ids(pairs.evaluation)
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
