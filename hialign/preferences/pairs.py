"""The preference pairs of a study, from its source or the built-in set, split by conversation.

`sources` finds and reads files and hub sets, `usable` makes pairs of their rows, and `splits` divides
them. `contrast_sets` makes the pairs of the sources `builtin` and `contrasts`.
"""

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hialign.preferences.contrast_sets import builtin, contrast_set
from hialign.preferences.formats import (
    Pair,
    conversation_id,
    prompt_id,
)
from hialign.preferences.sources import read_splits
from hialign.preferences.splits import exchanged, split_pairs
from hialign.preferences.usable import usable_pairs
from hialign.study.blocks import OBJECTIVES
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.load import explain
from hialign.study.pair_files import HH_RLHF
from hialign.study.settings import PreferenceSettings

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Pairs:
    """Preference pairs, split so that training and evaluation share no conversation."""

    train: "Dataset"
    evaluation: "Dataset"
    report: dict[str, Any] = field(
        default_factory=dict
    )  # sizes, which rows were refused and why, `draw`, and how many pairs were `exchanged`
    fingerprint: str = ""  # sha256 of all pairs in order

    def prompts(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The distinct held-out prompts, in order: `{"prompt_id", "prompt": messages}`."""
        by_id = {prompt_id(prompt): prompt for prompt in self.evaluation["prompt"]}
        return [{"prompt_id": key, "prompt": prompt} for key, prompt in by_id.items()][:limit]


def load_pairs(source: "str | Path | PreferenceSettings" = HH_RLHF, **settings: Any) -> Pairs:
    """Preference pairs from `source`, split by seed without sharing a conversation.

    `source` is one of these:

    - `builtin`
    - `contrasts`: the built-in ones and those made from answers of hh-rlhf
    - a file: JSON lines, a JSON array, CSV (all gzipped or not) or parquet
    - a folder with `train.*` or `test.*` in such a format, or with tranches as in hh-rlhf
      (`<tranche>/<split>.jsonl.gz`)
    - a set on the hub, such as `Anthropic/hh-rlhf`

    A relative path starts at the repository. `to_pair` says what a row may look like. Keyword
    arguments are those of `PreferenceSettings` (train, evaluation, seed, subsets, …).
    Raises HialignError with file and line for what cannot be read, for a setting that does not
    exist or is out of bounds, and if fewer pairs are usable than asked for.
    """
    chosen = _settings(source, settings)
    report: dict[str, Any] = {"source": chosen.source}
    if chosen.source == "builtin":
        train, held_out = builtin(chosen, report)
    elif chosen.source == "contrasts":
        train, held_out = contrast_set(chosen, report)
    else:
        splits = read_splits(chosen)
        usable = {name: usable_pairs(name, rows, report) for name, rows in splits.items()}
        if chosen.longest is not None:
            usable = {name: _short(name, pairs, chosen, report) for name, pairs in usable.items()}
        train, held_out = split_pairs(usable, chosen)
    train, held_out = train[: chosen.train], held_out[: chosen.evaluation]
    sides = [{conversation_id(p["prompt"]) for p in side} for side in (train, held_out)]
    assert not sides[0] & sides[1], "training and evaluation share a conversation"
    if chosen.draw is not None:
        report["draw"] = chosen.draw
    if chosen.shuffled:
        train, report["exchanged"] = exchanged(train, chosen)
    report |= {"train": len(train), "evaluation": len(held_out)}
    digest = json_sha256([train, held_out])
    from datasets import Dataset

    return Pairs(Dataset.from_list(train), Dataset.from_list(held_out), report, digest)


def _short(
    split: str, pairs: list[Pair], settings: PreferenceSettings, report: dict[str, Any]
) -> list[Pair]:
    """The pairs of at most `settings.longest` words. The others are counted."""
    short = [pair for pair in pairs if _words(pair) <= (settings.longest or 0)]
    report.setdefault("too_long", {})[split] = len(pairs) - len(short)
    if not short:
        raise HialignError(
            f"preferences.longest {settings.longest}: all {len(pairs)} pairs of {settings.source} "
            "have more words; raise it"
        )
    return short


def _words(pair: Pair) -> int:
    """The words of a pair's prompt with the longer of its responses."""
    words = {
        side: sum(len(str(message["content"]).split()) for message in pair[side])
        for side in ("prompt", "chosen", "rejected")
    }
    return words["prompt"] + max(words["chosen"], words["rejected"])


def _settings(
    source: "str | Path | PreferenceSettings", changes: dict[str, Any]
) -> PreferenceSettings:
    """The settings of `source` with `changes`, all of them checked."""
    names = list(PreferenceSettings.model_fields)
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, cutoff=0)[0]
            raise HialignError(
                f"load_pairs has no setting {name!r}, did you mean {near!r}? "
                f"There are {', '.join(names)}"
            )
    if isinstance(source, PreferenceSettings):
        values = source.model_dump() | changes
    else:
        values = {"source": os.fspath(source) if isinstance(source, Path) else source} | changes
    try:
        return PreferenceSettings(**values)
    except ValidationError as error:
        raise HialignError(f"preferences.{explain(error, values)}") from None


def objective_pairs(**settings: Any) -> Pairs:
    """All pairs of the source `contrasts`, from which a probe takes whole prompts for each objective.

    `settings` are `seed`, `draw`, `shuffled` and `revision`. Each prompt has a pair of each objective.
    """
    return load_pairs("contrasts", train=None, evaluation=None, **settings)


def contrasts_of(prompts: int) -> dict[str, list[Pair]]:
    """For each objective the built-in contrasts of the first `prompts` held-out prompts."""
    contrasts = [dict(p) for p in load_pairs("builtin", train=None, evaluation=None).evaluation]
    names = list(dict.fromkeys(str(p["prompt"]) for p in contrasts))
    chosen = set(names[:prompts])
    return {
        name: [p for p in contrasts if p["objective"] == name and str(p["prompt"]) in chosen]
        for name in OBJECTIVES
    }
