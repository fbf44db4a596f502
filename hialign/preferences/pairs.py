"""The preference pairs of a study, from its source or the built-in set, split by conversation.

`sources` finds and reads files and hub sets, and `formats` makes a pair of each row. Pairs that
cannot be used are counted and reported: they have no common prompt, or empty or identical responses.
"""

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hialign.preferences.contrasts import contrast_pairs
from hialign.preferences.formats import (
    NO_PROMPT,
    Pair,
    UnusablePair,
    conversation_id,
    prompt_id,
    to_pair,
)
from hialign.preferences.reading import Located
from hialign.preferences.sources import read_splits
from hialign.preferences.splits import check_size, exchanged, split_pairs, training_seed
from hialign.study.blocks import OBJECTIVES
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.load import explain
from hialign.study.pair_files import HH_RLHF, data_files
from hialign.study.settings import PreferenceSettings

if TYPE_CHECKING:
    from datasets import Dataset

TOLERATED = 0.1  # of a source's pairs that may be unusable before it is refused as a whole


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
        train, held_out = _builtin(chosen, report)
    else:
        splits = read_splits(chosen)
        usable = {name: _usable(name, rows, report) for name, rows in splits.items()}
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


def _usable(split: str, rows: Iterable[Located], report: dict[str, Any]) -> list[Pair]:
    """The pairs that can be used. The others are counted by kind, with their places in the source."""
    pairs: list[Pair] = []
    refused: list[tuple[str, str]] = []
    advice = ""
    for where, row in rows:
        try:
            prompt, chosen, rejected = to_pair(row)
        except UnusablePair as error:
            refused.append((str(error), where))
            others = [key for key in row if key not in ("chosen", "rejected", "objective", "id")]
            if not advice and row.get("prompt") is None and others:
                advice = (
                    f": rename the key that holds the prompt to `prompt` ({', '.join(others)}?)"
                )
            continue
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise HialignError(
                f"{where}: neither strings nor messages with role and content ({reason}): write "
                'prompt, chosen and rejected as texts, or each as [{"role": "user", "content": "…"}]'
            ) from None
        pairs.append(
            {
                "id": f"{prompt_id(prompt)}-{len(pairs)}",
                "objective": str(row.get("objective") or "preference"),
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
            }
        )
    total = len(pairs) + len(refused)
    if len(refused) > TOLERATED * total or not pairs:
        kind, where = refused[0] if refused else ("no pairs at all", report["source"])
        raise HialignError(
            f"{where}: {kind}; {len(refused)} of {total} pairs of {report['source']} cannot be used"
            f"{advice if kind == NO_PROMPT else ''}"
        )
    report.setdefault("read", {})[split] = total
    report.setdefault("refused", {})[split] = dict(Counter(kind for kind, _ in refused))
    report.setdefault("refused_at", {})[split] = [f"{where}: {kind}" for kind, where in refused]
    return pairs


# --- the built-in set ----------------------------------------------------------------------------


def _builtin(settings: PreferenceSettings, report: dict[str, Any]) -> tuple[list[Pair], list[Pair]]:
    """The built-in set: each good response against its contrasts in one objective.

    Training pairs come in rounds, so that any number of them is spread over prompts first and over
    the objectives evenly. Evaluation has every contrast of the 24 held-out prompts.
    """
    import numpy as np

    (path,) = data_files(settings)
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    made, refused = contrast_pairs(rows)
    report["refused"] = dict(Counter(f"{r['objective']}: {r['reason']}" for r in refused))
    by_id = {p["id"]: _as_messages(p) for p in made}
    names = [row["id"] for row in rows if row["split"] == "train"]
    order = [
        names[i] for i in np.random.default_rng(training_seed(settings)).permutation(len(names))
    ]
    rounds = range(len(OBJECTIVES))
    train = [f"{name}-{OBJECTIVES[(i + r) % 3]}" for r in rounds for i, name in enumerate(order)]
    held = [f"{row['id']}-{o}" for row in rows if row["split"] == "evaluation" for o in OBJECTIVES]
    pairs = [by_id[k] for k in train if k in by_id], [by_id[k] for k in held if k in by_id]
    for name, split in zip(("train", "evaluation"), pairs, strict=True):
        check_size(split, name, settings, "usable ones for it")
    return pairs


def _as_messages(pair: dict[str, Any]) -> Pair:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = {key: [{"role": role, "content": pair[key]}] for key, role in roles.items()}
    return {"id": pair["id"], "objective": pair["objective"], **texts}


def contrasts_of(prompts: int) -> dict[str, list[Pair]]:
    """For each objective the built-in contrasts of the first `prompts` held-out prompts."""
    contrasts = [dict(p) for p in load_pairs("builtin", train=None, evaluation=None).evaluation]
    names = list(dict.fromkeys(str(p["prompt"]) for p in contrasts))
    chosen = set(names[:prompts])
    return {
        name: [p for p in contrasts if p["objective"] == name and str(p["prompt"]) in chosen]
        for name in OBJECTIVES
    }
