"""A finished study made of random numbers, of any size: what its book looks like and takes."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from hialign.records.files import write_json, write_jsonl
from hialign.records.stages import judgments_file, stage_manifest
from hialign.study import paths
from hialign.study.blocks import layers_of
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import STAGES, Cell, Study

WORDS = [
    "layer",
    "answer",
    "because",
    "of",
    "what",
    "the",
    "model",
    "learned",
    "when",
    "people",
    "preferred",
    "one",
    "response",
]
GAIN = {"base": 0.0, "full": 0.30, "local": 0.25, "mid": 0.24, "global": 0.04}  # v2's Table 2
ABOUT: dict[str, Any] = {
    **{"hialign_version": "0.1.0", "hialign_commit": "simulated", "python": "3.11"},
    **{"packages": {"torch": "2.13.0"}, "device": "simulated", "device_type": "cuda"},
}


def simulate(study: Study, prompts: int = 1000, steps: int = 417, reasons: int = 12) -> Path:
    """Write all records of every cell: `prompts` responses, judged with `reasons` words each."""
    for number, cell in enumerate(study.cells()):
        rng, words = np.random.default_rng([42, number]), random.Random(number)
        _train(cell, rng, steps)
        _respond(cell, words, prompts)
        _evaluate(cell, rng, prompts)
        if study.judge:
            _judge(cell, rng, words, prompts, reasons)
    return paths.study_dir(study.name)


def simulate_notebooks(study: Study, executed: Path) -> None:
    """Give each cell the notebook of each stage that `executed` (a study's `notebooks/`) has."""
    for cell in study.cells():
        for stage in STAGES:
            found = sorted(executed.glob(f"{stage}-*.ipynb"))
            target = paths.notebook_output(study.name, stage, cell.model.name, cell.block)
            if found:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(found[0].read_text())


def _train(cell: Cell, rng: np.random.Generator, steps: int) -> None:
    base, depth = cell.block == "base", 32
    noise = rng.normal(0, 0.03, steps)
    loss = [math.log(2)] + [
        math.log(2) - 0.3 * i / steps + e for i, e in enumerate(noise[1:].tolist(), 1)
    ]
    rows = [
        {"step": i + 1, "epoch": (i + 1) / steps, "loss": loss[i], "chosen_reward": 0.1 * i}
        | {"rejected_reward": -0.1 * i, "reward_accuracy": 0.6, "reward_margin": 0.2 * i}
        | {"grad_norm": 1.0, "learning_rate": 1e-5, "seconds": 6.0, "shared_seconds": 1.0}
        | {"tokens": 9000.0 * (i + 1)}
        for i in range(steps)
    ]
    manifest = {"study": cell.study.name, "model": cell.model.name, "source": cell.model.source}
    manifest |= {"block": cell.block, "strategy": cell.strategy, "depth": depth}
    manifest |= {"layers": layers_of(cell.block, depth), "fingerprint": cell.fingerprint("train")}
    manifest |= {"settings": cell.settings("train"), "effective_batch": 24, "pairs": 10_000}
    manifest |= {"seed": 42, "precision": "bfloat16", "parameters": 8_000_000_000}
    manifest |= {"status": "untrained" if base else "trained", "steps": 0 if base else steps}
    manifest |= {"tokens": 0 if base else rows[-1]["tokens"], "seconds": 6.0 * steps}
    manifest |= {"shared_seconds": 0.0, "trainable_parameters": 0 if base else 4_000_000}
    manifest |= {"peak_memory_bytes": 40 * 2**30, **ABOUT}
    if not base:
        manifest["final_loss"] = loss[-1]
        write_jsonl(cell.folder / "training.jsonl", rows)
    write_json(cell.folder / "manifest.json", manifest)


def _respond(cell: Cell, words: random.Random, prompts: int) -> None:
    asked = random.Random("prompts")
    rows = [
        {"prompt_id": f"p{i:05d}", "prompt": _text(asked, 40), "response": _text(words, 180)}
        | {"tokens": 200, "finish_reason": "stop", "prompt_truncated": False}
        for i in range(prompts)
    ]
    write_jsonl(cell.folder / "responses.jsonl", rows)
    _stage(cell, "respond", {"responses": prompts})


def _evaluate(cell: Cell, rng: np.random.Generator, pairs: int) -> None:
    values = []
    for i in range(pairs):
        chosen, rejected = rng.normal(-200, 30, 2).tolist()
        moved = 0.0 if cell.block == "base" else 3 * GAIN.get(cell.block, 0.1)
        up = float(rng.normal(moved, 3)) if moved else 0.0
        values.append(
            {"id": f"e{i}-x", "objective": "", "groups": ["all"], "chosen": chosen + up}
            | {"rejected": rejected, "chosen_base": chosen, "rejected_base": rejected}
        )
    hits = sum(v["chosen"] - v["chosen_base"] > 0 for v in values) / pairs
    row: dict[str, Any] = {"n": pairs, "prompts": pairs}
    for name, value in (("likelihood_accuracy", 0.55), ("reward_margin", 0.1 * moved)):
        row |= {name: value, f"{name}_low": value - 0.03, f"{name}_high": value + 0.03}
    if cell.block != "base":
        row |= {"reward_accuracy": hits, "reward_accuracy_low": hits - 0.03}
        row |= {"reward_accuracy_high": hits + 0.03}
    kl = {"n": pairs, "kl": moved / 10, "kl_low": moved / 11, "kl_high": moved / 9}
    kl |= {"response_tokens": 200.0, "response_tokens_low": 195.0, "response_tokens_high": 205.0}
    _stage(
        cell,
        "evaluate",
        {"beta": 0.1, "objectives": {"all": row}, "divergence": kl, "pairs": values},
    )


def _judge(
    cell: Cell, rng: np.random.Generator, words: random.Random, prompts: int, reasons: int
) -> None:
    assert cell.study.judge is not None
    level = np.random.default_rng(7).normal(0, 0.8, prompts)  # prompts are easy or hard for all
    rows = []
    for i in range(prompts):
        mean = 2.8 + GAIN.get(cell.block, 0.1) + level[i]
        points = np.clip(np.rint(rng.normal(mean, 0.9, len(DIMENSIONS))), 1, 5).astype(int).tolist()
        failed = i % 500 == 499
        scores = {} if failed else dict(zip(DIMENSIONS, points, strict=True))
        row = {"prompt_id": f"p{i:05d}", "scores": scores, "judge": cell.study.judge.model}
        row["reasons"] = {name: _text(words, reasons) for name in scores}
        row |= {"attempts": 3 if failed else 1, "repaired": False, "rubric_sha256": "0" * 64}
        row |= {"usage": {"prompt_tokens": 1500, "completion_tokens": 700}, "cost": 0.006}
        row |= {"raw": "{}", "error": "not JSON"} if failed else {"raw": ""}
        rows.append(row)
    write_jsonl(judgments_file(cell), rows)
    _stage(cell, "judge", {"judged": prompts})


def _stage(cell: Cell, stage: str, content: dict[str, Any]) -> None:
    known = {"stage": stage, "fingerprint": cell.fingerprint(stage), "seconds": 900.0}
    known |= {"settings": cell.settings(stage), "peak_memory_bytes": 20 * 2**30}
    write_json(stage_manifest(cell, stage), known | ABOUT | content)


def _text(words: random.Random, n: int) -> str:
    return " ".join(words.choices(WORDS, k=n))
