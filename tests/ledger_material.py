"""Records of a made-up study of which the claims ledger's verdicts are known."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from helpers import vouch

from hialign.records.files import write_json, write_jsonl
from hialign.records.stages import judgments_file
from hialign.report.claims import ledger as claims
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Study


def make_study(models: tuple[str, ...] = ("small",), **settings: Any) -> Study:
    settings.setdefault("judge", {"backend": "local", "model": "random:judge"})
    rows = [{"source": "random:llama", "name": m, "label": m} for m in models]
    settings.setdefault("evaluation", {"resamples": 200})
    return Study(name="made-up", title="Made up", models=rows, **settings)


def write_scores(
    study: Study, mean: Callable[[str, str, str], float], prompts: int = 40, noise: float = 0.3
) -> None:
    """Judgments of every cell: `mean(model, block, dimension)`, a prompt's own level, and noise."""
    rng = np.random.default_rng(5)
    level = rng.normal(0, 0.3, prompts)
    for cell in study.cells():
        rows = []
        for i in range(prompts):
            scores = {
                d: float(np.clip(mean(cell.model.label, cell.block, d) + level[i] + e, 1, 5))
                for d, e in zip(DIMENSIONS, rng.normal(0, noise, len(DIMENSIONS)), strict=True)
            }
            row = {"prompt_id": f"p{i}", "scores": scores, "judge": "x", "reasons": {}}
            rows.append(row)
        write_jsonl(judgments_file(cell), rows)
        vouch(cell, "judge")


def verdict(study: Study, test: dict[str, Any], **more: Any) -> claims.Finding:
    """The verdict on one claim, alone in a ledger."""
    entry = {"id": "one", "paper": "v2", "source": "here", "text": "It is so.", "quantity": "it"}
    with pytest.MonkeyPatch.context() as patch:
        only = claims.Claim(**entry | {"test": test} | more)
        patch.setattr(claims, "load_claims", lambda: [only])
        return claims.findings.__wrapped__(study)[0]  # type: ignore[attr-defined]


def write_pairs(study: Study, gains: dict[str, float], prompts: int = 24) -> None:
    rng = np.random.default_rng(6)
    for cell in study.cells():
        pairs = []
        for i in range(prompts):
            for objective in ("grammar", "coherence", "factuality"):
                gain = gains.get(f"{cell.block} {objective}", gains.get(cell.block, 0.0))
                up = 0.0 if cell.block == "base" else gain + float(rng.normal(0, 0.5))
                pair = {"id": f"p{i}-{objective}", "groups": ["all", objective], "chosen": up}
                pairs.append(pair | {"rejected": 0.0, "chosen_base": 0.0, "rejected_base": 0.0})
        content = {"beta": 0.1, "pairs": pairs, "objectives": {}}
        content["fingerprint"] = cell.fingerprint("evaluate")
        write_json(cell.folder / "evaluation.json", content)


def write_losses(
    study: Study, slope: float, steps: int = 30, others: Mapping[str, float] | None = None
) -> None:
    """Losses with that slope per step. `others` are the slopes of blocks that have their own."""
    rng = np.random.default_rng(7)
    for cell in study.cells():
        if cell.block != "base":
            own = (others or {}).get(cell.block, slope)
            rows = [
                {"step": i + 1, "loss": math.log(2) + own * i + 0.02 * float(rng.normal())}
                for i in range(steps)
            ]
            write_jsonl(cell.folder / "training.jsonl", rows)
            vouch(cell, "train")


def write_parameters(study: Study, counts: Mapping[str, int]) -> None:
    for cell in study.cells():
        content: dict[str, Any] = {"trainable_parameters": counts.get(cell.block, 0), "layers": []}
        content["fingerprint"] = cell.fingerprint("train")
        write_json(cell.folder / "manifest.json", content)
