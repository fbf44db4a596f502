"""The pairs of a source that can be used. The others are counted and reported.

A pair cannot be used if it has no common prompt, or empty or identical responses.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hialign.preferences.formats import NO_PROMPT, Pair, UnusablePair, prompt_id, to_pair
from hialign.preferences.reading import Located
from hialign.study.errors import HialignError

TOLERATED = 0.1  # of a source's pairs that may be unusable before it is refused as a whole


def usable_pairs(split: str, rows: Iterable[Located], report: dict[str, Any]) -> list[Pair]:
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
