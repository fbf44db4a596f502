"""LLMBar: pairs of responses of which people prefer one."""

import json
from pathlib import Path
from typing import Any

from hialign.study.errors import HialignError

# LLMBar (https://github.com/princeton-nlp/LLMBar): subset, and its folder in Dataset/LLMBar there
SUBSETS = {
    "natural": "Natural",
    "adversarial-neighbor": "Adversarial/Neighbor",
    "adversarial-gptinst": "Adversarial/GPTInst",
    "adversarial-gptout": "Adversarial/GPTOut",
    "adversarial-manual": "Adversarial/Manual",
}
Item = dict[str, Any]  # prompt_id, prompt, response
Judged = tuple[Item, Item]  # two responses to one prompt, the one that people prefer first


def load_llmbar(folder: Path, subset: str, limit: int | None = None) -> list[Judged]:
    """The (first `limit`) pairs of a subset, in LLMBar's own layout or as `<folder>/<subset>.json`."""
    path = Path(folder) / SUBSETS.get(subset, "") / "dataset.json"
    path = path if path.is_file() else Path(folder) / f"{subset}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HialignError(f"cannot read the LLMBar subset {path}: {error}") from None
    pairs = []
    for number, row in enumerate(content[:limit]):
        best = row["label"]
        first, second = (
            {
                "prompt_id": f"{subset}-{number}-{output}",
                "prompt": row["input"],
                "response": row[f"output_{output}"],
            }
            for output in (best, 3 - best)
        )
        pairs.append((first, second))
    return pairs
