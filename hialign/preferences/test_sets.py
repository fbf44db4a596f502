"""Test sets that people made, as further groups of held-out pairs. Nothing is trained on them.

They are read from `$HIALIGN_SHARED_DATA/<name>`. A pair has the shape of every other one, and its
`objective` names what the set tests.
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hialign.preferences.formats import Message, Pair, parse_transcript
from hialign.preferences.llmbar import SUBSETS, load_llmbar, subset_file
from hialign.study import paths
from hialign.study.errors import HialignError

# BLiMP's sentences answer nothing. A chat model sees each as the answer to this request, which fits
# both sentences of any pair. With an empty turn, the model would be asked nothing at all.
NEUTRAL_PROMPT = "Write one sentence."
# The marks of qa-feedback that say that something is false or cannot be checked. The others are
# Irrelevant, Missing, Redundant and Incoherent.
FACTUAL = ("Wrong-Grounding", "Unverifiable")


@dataclass(frozen=True)
class TestSet:
    """A test set: its files in a folder, what reads them, and where a copy comes from."""

    __test__ = False  # pytest takes this name for a test's

    files: Callable[[Path], list[Path]]
    pairs: Callable[[Path], list[Pair]]
    group: str  # the field over whose values any number of pairs is spread
    origin: str


def load_test_set(name: str, limit: int | None = None, seed: int = 42) -> list[Pair]:
    """The pairs of a test set that people made, in an order that `seed` draws.

    - `blimp`: a grammatical sentence and an ungrammatical one (objective grammar), of 67 `phenomenon`s.
      The prompt is `NEUTRAL_PROMPT`.
    - `qa-feedback`: an annotator's corrected answer against the model's, where a factual fault was
      marked (objective factuality). Most of them have other faults as well, and `errors` names all.
    - `llmbar`: an output that follows the instruction and one that does not (objective preference),
      of five `subset`s.
    - `hhh`: the more helpful, honest or harmless answer (objective preference), of four `subset`s.

    Args:
        name: a key of `TEST_SETS`.
        limit: of pairs, which are spread over phenomena or subsets evenly. None takes all.
        seed: of the order.

    Raises HialignError for another name, and if there is no copy of the set.
    """
    files_of(name)
    chosen = _named(name)
    pairs = chosen.pairs(_folder(name))
    random.Random(seed).shuffle(pairs)
    return _in_turn(pairs, chosen.group)[:limit]


def available(name: str) -> bool:
    """Whether `$HIALIGN_SHARED_DATA` has a copy of the test set."""
    files = _named(name).files(_folder(name))
    return paths.shared_data() is not None and all(file.is_file() for file in files)


def files_of(name: str) -> list[Path]:
    """The files that `load_test_set(name)` reads. HialignError says where a copy comes from."""
    files = _named(name).files(_folder(name))
    if paths.shared_data() is None:
        missing = "HIALIGN_SHARED_DATA names no folder"
    elif absent := [str(file) for file in files if not file.is_file()]:
        missing = f"there is no {absent[0]}"
    else:
        return files
    raise HialignError(
        f"the test set {name} cannot be read, because {missing}: make a copy of "
        f"{_named(name).origin} in $HIALIGN_SHARED_DATA/{name}, or leave the test set out"
    )


def _named(name: str) -> TestSet:
    if name not in TEST_SETS:
        raise HialignError(f"there is no test set {name!r}: give one of {', '.join(TEST_SETS)}")
    return TEST_SETS[name]


def _folder(name: str) -> Path:
    return (paths.shared_data() or Path()) / name


def _in_turn(pairs: list[Pair], group: str) -> list[Pair]:
    """A pair of each group, then a second one of each, and so on."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[group], []).append(pair)
    most = max(map(len, groups.values()), default=0)
    return [g[place] for place in range(most) for g in groups.values() if place < len(g)]


# --- the sets ------------------------------------------------------------------------------------


def _blimp(folder: Path) -> list[Pair]:
    """Pairs whose id begins with the phenomenon. Seven of the 67,000 are no contrast and left out."""
    numbers: dict[str, int] = {}
    pairs = []
    for row in _rows(folder / "pairs.jsonl.gz"):
        uid = row["uid"]
        numbers[uid] = number = numbers.get(uid, -1) + 1
        if row["good"] != row["bad"]:
            name = f"{uid}-{number}"
            pair = _pair(name, "grammar", NEUTRAL_PROMPT, row["good"], row["bad"])
            pairs.append(pair | {"phenomenon": uid})
    return pairs


def _qa_feedback(folder: Path) -> list[Pair]:
    return [
        _pair(f"qa-feedback-{number}", "factuality", row["prompt"], row["chosen"], row["rejected"])
        | {"errors": ", ".join(row["errors"])}
        for number, row in enumerate(_rows(folder / "dev-corrected.jsonl.gz"))
        if set(FACTUAL) & set(row["errors"])
    ]


def _llmbar(folder: Path) -> list[Pair]:
    return [
        _pair(
            f"llmbar-{subset}-{number}",
            "preference",
            better["prompt"],
            better["response"],
            worse["response"],
        )
        | {"subset": subset}
        for subset in SUBSETS
        for number, (better, worse) in enumerate(load_llmbar(folder, subset))
    ]


def _hhh(folder: Path) -> list[Pair]:
    """Pairs with their subset. Some prompts are dialogues, whose first turn has no speaker."""
    pairs = []
    for number, row in enumerate(_rows(folder / "test.jsonl.gz")):
        subset = row["source"]
        dialogue = parse_transcript(f"\n\nHuman: {row['prompt']}\n\nAssistant: {row['chosen']}")
        pair = _pair(
            f"hhh-{subset}-{number}", "preference", dialogue[:-1], row["chosen"], row["rejected"]
        )
        pairs.append(pair | {"subset": subset})
    return pairs


def _pair(
    name: str, objective: str, prompt: str | list[Message], chosen: str, rejected: str
) -> Pair:
    return {
        "id": name,
        "objective": objective,
        "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise HialignError(f"{file} cannot be read ({error}): copy it again") from None


TEST_SETS = {
    "blimp": TestSet(
        files=lambda folder: [folder / "pairs.jsonl.gz"],
        pairs=_blimp,
        group="phenomenon",
        origin="alexwarstadt/blimp on GitHub (good, bad and uid of each pair as JSON lines)",
    ),
    "qa-feedback": TestSet(
        files=lambda folder: [folder / "dev-corrected.jsonl.gz"],
        pairs=_qa_feedback,
        group="objective",
        origin="allenai/FineGrainedRLHF on GitHub (prompt, chosen, rejected and errors as JSON lines)",
    ),
    "llmbar": TestSet(
        files=lambda folder: [subset_file(folder, subset) for subset in SUBSETS],
        pairs=_llmbar,
        group="subset",
        origin="princeton-nlp/LLMBar on GitHub (its Dataset/LLMBar)",
    ),
    "hhh": TestSet(
        files=lambda folder: [folder / "test.jsonl.gz"],
        pairs=_hhh,
        group="subset",
        origin="HuggingFaceH4/hhh_alignment (prompt, chosen, rejected and source as JSON lines)",
    ),
}
