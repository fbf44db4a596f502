"""LLMBar (https://github.com/princeton-nlp/LLMBar): two responses each, one of which people prefer.

Judges are validated on its pairs, and the ILA probe can train on them.
"""

import json
from pathlib import Path
from typing import TypedDict

from hialign.study.errors import HialignError

# The subsets, and the folder of each in LLMBar's own Dataset/LLMBar
SUBSETS = {
    "natural": "Natural",
    "adversarial-neighbor": "Adversarial/Neighbor",
    "adversarial-gptinst": "Adversarial/GPTInst",
    "adversarial-gptout": "Adversarial/GPTOut",
    "adversarial-manual": "Adversarial/Manual",
}


class Item(TypedDict):
    """A response to be judged."""

    prompt_id: str
    prompt: str
    response: str


Judged = tuple[Item, Item]  # two responses to one prompt, the one that people prefer first


def subset_file(folder: Path, subset: str) -> Path:
    """The file of a subset, in LLMBar's own layout or as `<folder>/<subset>.json`."""
    path = folder / SUBSETS.get(subset, "") / "dataset.json"
    return path if path.is_file() else folder / f"{subset}.json"


def load_llmbar(folder: Path, subset: str, limit: int | None = None) -> list[Judged]:
    """The (first `limit`) pairs of a subset, in LLMBar's own layout or as `<folder>/<subset>.json`."""
    path = subset_file(folder, subset)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HialignError(f"cannot read the LLMBar subset {path}: {error}") from None
    pairs = []
    for number, row in enumerate(content[:limit]):
        responses = {
            output: Item(
                prompt_id=f"{subset}-{number}-{output}",
                prompt=row["input"],
                response=row[f"output_{output}"],
            )
            for output in (1, 2)
        }
        preferred = row["label"]  # 1 or 2
        pairs.append((responses[preferred], responses[3 - preferred]))
    return pairs
