"""The sources whose pairs differ in one objective alone: `builtin` and `contrasts`.

The built-in set has good responses that were written for the rules of `contrasts`. The source
`contrasts` adds answers of hh-rlhf to it, damaged by the same rules (`spoken`).
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hialign.preferences.contrasts import contrast_pairs
from hialign.preferences.formats import Pair, conversation_id
from hialign.preferences.sources import check_source, read_splits
from hialign.preferences.splits import check_size, training_seed
from hialign.preferences.spoken import Row, spoken_contrasts
from hialign.preferences.usable import usable_pairs
from hialign.study.blocks import OBJECTIVES
from hialign.study.errors import HialignError
from hialign.study.pair_files import builtin_file, contrast_answers
from hialign.study.settings import PreferenceSettings


def builtin(settings: PreferenceSettings, report: dict[str, Any]) -> tuple[list[Pair], list[Pair]]:
    """The built-in set: each good response against its contrasts in one objective.

    Training pairs come in rounds, so that any number of them is spread over prompts first and over
    the objectives evenly. Evaluation has every contrast of the 24 held-out prompts.
    """
    train, held_out = _builtin_rows(report)
    return _checked(_rounds(train, training_seed(settings)), _in_order(held_out), settings)


def contrast_set(
    settings: PreferenceSettings, report: dict[str, Any]
) -> tuple[list[Pair], list[Pair]]:
    """The built-in contrasts and those of hh-rlhf's answers, of prompts that have all objectives.

    Held out are the prompts of the built-in set that always are, and whole conversations of hh-rlhf
    that `seed` draws. Held-out pairs come prompt by prompt, training pairs
    in rounds, so that any number of them is spread over the objectives evenly. Each pair has an
    `origin`, `builtin` or `hh-rlhf`.

    Raises HialignError if hh-rlhf cannot be read.
    """
    train, held_out = ([r for r in rows if _whole(r)] for rows in _builtin_rows(report))
    for row in [*train, *held_out]:
        for pair in row.values():
            pair["origin"] = "builtin"
    spoken = spoken_contrasts(_harmless(settings, report), settings.seed)
    named = {_conversation(row) for row in [*held_out, *spoken[1]]}
    train += spoken[0]
    train = [row for row in train if _conversation(row) not in named]
    held_out += spoken[1]
    order = np.random.default_rng(settings.seed).permutation(len(held_out))
    held_out = [held_out[i] for i in order]
    report["prompts"] = {"train": len(train), "evaluation": len(held_out)}
    report["origins"] = {
        name: dict(Counter(row[OBJECTIVES[0]]["origin"] for row in rows))
        for name, rows in (("train", train), ("evaluation", held_out))
    }
    return _checked(_rounds(train, training_seed(settings)), _in_order(held_out), settings)


def _builtin_rows(report: dict[str, Any]) -> tuple[list[Row], list[Row]]:
    """The contrasts of the built-in training prompts and of the held-out ones, in their order."""
    with builtin_file().open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    made, refused = contrast_pairs(rows)
    report["refused"] = dict(Counter(f"{r['objective']}: {r['reason']}" for r in refused))
    by_id = {pair["id"]: _as_messages(pair) for pair in made}
    splits: dict[str, list[Row]] = {"train": [], "evaluation": []}
    for row in rows:
        pairs = {name: by_id.get(f"{row['id']}-{name}") for name in OBJECTIVES}
        splits[row["split"]].append({name: pair for name, pair in pairs.items() if pair})
    return splits["train"], splits["evaluation"]


def _harmless(settings: PreferenceSettings, report: dict[str, Any]) -> list[Pair]:
    """The usable pairs of hh-rlhf's harmless-base tranche, its test split."""
    check_source(settings)
    answers = contrast_answers(settings)
    try:
        splits = read_splits(answers)
    except HialignError as error:
        raise HialignError(
            f"preferences.source contrasts is made from answers of {answers.source}: {error}"
        ) from None
    if "test" not in splits:
        raise HialignError(
            f"preferences.source contrasts is made from the file test.jsonl.gz of {answers.source}, "
            "harmless-base, which the local copy lacks: add it, or use preferences.source builtin"
        )
    found: dict[str, Any] = {"source": answers.source}
    pairs = usable_pairs("test", splits["test"], found)
    report["read"] = found["read"]
    return pairs


def _whole(row: Row) -> bool:
    return set(OBJECTIVES) <= set(row)


def _conversation(row: Row) -> str:
    return conversation_id(next(iter(row.values()))["prompt"])


def _rounds(rows: Sequence[Row], seed: int) -> list[Pair]:
    """One pair of each prompt, then a second and a third, with the objectives in turn."""
    order = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    turns = [(row, OBJECTIVES[(i + r) % 3]) for r in range(3) for i, row in enumerate(order)]
    return [row[name] for row, name in turns if name in row]


def _in_order(rows: Sequence[Row]) -> list[Pair]:
    return [row[name] for row in rows for name in OBJECTIVES if name in row]


def _checked(
    train: list[Pair], held_out: list[Pair], settings: PreferenceSettings
) -> tuple[list[Pair], list[Pair]]:
    check_size(train, "train", settings, "usable ones for it")
    check_size(held_out, "evaluation", settings, "usable ones for it")
    return train, held_out


def _as_messages(pair: dict[str, Any]) -> Pair:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = {key: [{"role": role, "content": pair[key]}] for key, role in roles.items()}
    return {"id": pair["id"], "objective": pair["objective"], **texts}
