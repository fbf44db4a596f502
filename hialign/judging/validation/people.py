"""How far a judge agrees with people: on LLMBar, and on held-out preference pairs.

Either holds prompts with two responses each, and which one people prefer. Our judge scores one
response at a time, so both are scored apart, and the judge is right where the preferred one scores
higher. Guessing is right in half of the cases.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hialign.preferences.formats import Pair, transcript
from hialign.preferences.llmbar import Judged
from hialign.preferences.pairs import load_pairs
from hialign.records.agreement import OTHERS
from hialign.statistics.intervals import wilson
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import PreferenceSettings
from hialign.study.study import Study


def held_out(study: Study, source: str, wanted: int | None) -> tuple[list[Pair], str]:
    """The study's held-out pairs, or `wanted` of another source (if it names one), and their name."""
    if not source and study.preferences.source == "builtin":
        raise HialignError(
            f"the pairs of study {study.name} are the built-in ones, which no person chose between: "
            "give others with --pairs (Anthropic/hh-rlhf, or a folder of its layout), or leave this "
            "part out with --pairs none"
        )
    chosen = study.preferences
    if source and source != chosen.source:
        options: dict[str, Any] = {"train": None, "evaluation": wanted, "seed": chosen.seed}
        chosen = PreferenceSettings(source=source, **options)
    return load_pairs(chosen).evaluation.to_list(), _called(chosen)


def _called(settings: PreferenceSettings) -> str:
    """The source's name without the way to it, and its tranches: `hh-rlhf (harmless-base)`."""
    place = Path(settings.source).expanduser()
    place = place if place.is_absolute() else paths.root() / place
    found = sorted(p.name for p in place.iterdir() if p.is_dir()) if place.is_dir() else []
    parts = settings.subsets or found
    return f"{place.name} ({', '.join(parts)})" if parts else place.name


def from_preferences(pairs: Sequence[Pair]) -> list[Judged]:
    """Preference pairs as items to judge; of several turns the prompt has the speakers' names."""
    return [
        tuple(  # type: ignore[misc]
            {
                "prompt_id": f"pair-{pair['id']}-{side}",
                "prompt": transcript(pair["prompt"]),
                "response": transcript(pair[side]),
            }
            for side in ("chosen", "rejected")
        )
        for pair in pairs
    ]


def rows(
    pairs: Sequence[Judged], scores: Mapping[str, Mapping[str, float | None]], **more: Any
) -> list[dict[str, Any]]:
    """A row for each kind of score in `scores` (by kind, then prompt_id), of `agreement` and `more`."""
    return [
        more
        | {"score": kind}
        | agreement(*([by_id.get(pair[i]["prompt_id"]) for pair in pairs] for i in (0, 1)))
        for kind, by_id in scores.items()
    ]


def agreement(preferred: Sequence[float | None], other: Sequence[float | None]) -> dict[str, Any]:
    """How often `preferred` is above `other`: n, accuracy, low, high, ties, missing.

    `accuracy` is a share of the n pairs, a tie counting one half; `low` and `high` are its 95%
    interval (Wilson). Pairs that lack a score are not among the n: `missing` says how many.
    """
    pairs = [
        (a, b) for a, b in zip(preferred, other, strict=True) if a is not None and b is not None
    ]
    n, ties = len(pairs), sum(a == b for a, b in pairs)
    missing = len(preferred) - n
    if n == 0:
        nothing = dict.fromkeys(("accuracy", "low", "high"))
        return {"n": 0} | nothing | {"ties": 0, "missing": missing}
    right = sum(a > b for a, b in pairs) + ties / 2
    low, high = wilson(right, n)
    figures = {"accuracy": right / n, "low": float(low), "high": float(high)}
    return (
        {"n": n} | {k: round(v, 4) for k, v in figures.items()} | {"ties": ties, "missing": missing}
    )


def kinds_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The Overall score and the mean of the others of each judgment, by kind and prompt_id.

    None where the judgment failed. Without other dimensions there is the Overall score alone.
    """
    found: dict[str, dict[str, float | None]] = {"Overall": {}, OTHERS: {}}
    for record in records:
        scores = record["scores"]
        others = [score for name, score in scores.items() if name != "Overall"]
        found["Overall"][record["prompt_id"]] = scores.get("Overall")
        # to 9 places, so that equal scores tie whatever the order of adding them
        mean = round(sum(others) / len(others), 9) if others else None
        found[OTHERS][record["prompt_id"]] = mean
    if all(score is None for score in found[OTHERS].values()):
        del found[OTHERS]
    return found
