"""How far a judge agrees with people, on LLMBar and on held-out preference pairs.

Both have prompts with two responses each, one of which people prefer. Our judge scores the two
responses separately. It is right if the preferred one scores higher. Guessing is right half the time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from hialign.preferences.formats import Pair, transcript
from hialign.preferences.llmbar import Item, Judged
from hialign.preferences.pairs import load_pairs
from hialign.records.agreement import OTHERS
from hialign.statistics.intervals import wilson
from hialign.statistics.margins import or_none
from hialign.study.errors import HialignError
from hialign.study.pair_files import OURS, data_files, place_of
from hialign.study.settings import PreferenceSettings
from hialign.study.study import Study


def held_out(study: Study, source: str, wanted: int | None) -> tuple[list[Pair], str]:
    """The study's held-out pairs, or `wanted` pairs of another `source`, and the name of the source."""
    if not source and study.preferences.source in OURS:
        raise HialignError(
            f"the pairs of study {study.name} are made by rules, and no person has judged them: "
            "give others with --pairs (Anthropic/hh-rlhf, or a folder of its layout), or leave this "
            "part out with --pairs none"
        )
    chosen = study.preferences
    if source and source != chosen.source:
        options: dict[str, Any] = {"train": None, "evaluation": wanted, "seed": chosen.seed}
        chosen = PreferenceSettings(source=source, **options)
    return load_pairs(chosen).evaluation.to_list(), _called(chosen)


def _called(settings: PreferenceSettings) -> str:
    """The source's name without its folder, and its tranches: `hh-rlhf (harmless-base)`."""
    place = place_of(settings.source, settings.revision)
    folders = {p.parent.name for p in data_files(settings)} if place.is_dir() else set()
    parts = settings.subsets or sorted(folders - {place.name})
    return f"{place.name} ({', '.join(parts)})" if parts else place.name


def from_preferences(pairs: Sequence[Pair]) -> list[Judged]:
    """Preference pairs as items to judge. A prompt of several turns has the speakers' names."""
    return [(_item(pair, "chosen"), _item(pair, "rejected")) for pair in pairs]


def _item(pair: Pair, side: str) -> Item:
    return Item(
        prompt_id=f"pair-{pair['id']}-{side}",
        prompt=transcript(pair["prompt"]),
        response=transcript(pair[side]),
    )


def rows(
    pairs: Sequence[Judged], scores: Mapping[str, Mapping[str, float | None]], **more: Any
) -> list[dict[str, Any]]:
    """One row per kind of score, with its `agreement` and the columns `more`.

    `scores` are by kind, then by prompt_id.
    """
    table = []
    for kind, by_id in scores.items():
        preferred = [by_id.get(first["prompt_id"]) for first, _ in pairs]
        other = [by_id.get(second["prompt_id"]) for _, second in pairs]
        table.append({**more, "score": kind, **agreement(preferred, other)})
    return table


class Agreement(TypedDict):
    """How often a judge prefers what people prefer."""

    n: int  # pairs with both scores
    accuracy: float | None  # share of the n, in which a tie counts one half
    low: float | None  # of its 95% interval (Wilson)
    high: float | None
    ties: int
    missing: int  # pairs without both scores


def agreement(preferred: Sequence[float | None], other: Sequence[float | None]) -> Agreement:
    """How often the score of the `preferred` response is above that of the `other` one."""
    pairs = [
        (a, b) for a, b in zip(preferred, other, strict=True) if a is not None and b is not None
    ]
    n, ties = len(pairs), sum(a == b for a, b in pairs)
    right = sum(a > b for a, b in pairs) + ties / 2
    low, high = wilson(right, n)
    return Agreement(
        n=n,
        accuracy=round(right / n, 4) if n else None,
        low=or_none(round(low, 4)),
        high=or_none(round(high, 4)),
        ties=ties,
        missing=len(preferred) - n,
    )


def kinds_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The Overall score and the mean of the others of each judgment, by kind and prompt_id.

    Scores of a failed judgment are None. Without other dimensions there is only the Overall score.
    """
    kinds: dict[str, dict[str, float | None]] = {"Overall": {}, OTHERS: {}}
    for record in records:
        scores = record["scores"]
        others = [score for name, score in scores.items() if name != "Overall"]
        kinds["Overall"][record["prompt_id"]] = scores.get("Overall")
        # Rounded, so that equal scores tie in whatever order they were added
        mean = round(sum(others) / len(others), 9) if others else None
        kinds[OTHERS][record["prompt_id"]] = mean
    if all(score is None for score in kinds[OTHERS].values()):
        del kinds[OTHERS]
    return kinds
