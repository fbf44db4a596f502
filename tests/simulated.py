"""A finished study made of random numbers, of any size: what its book looks like and takes."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hialign.records.files import write_json, write_jsonl, write_record
from hialign.records.stages import judgments_file, stage_manifest
from hialign.study import paths
from hialign.study.blocks import EXPECTED, OBJECTIVES, layers_of
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import STAGES, Cell, Study, load_study

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


# --- studies of several seeds --------------------------------------------------------------------

REPEATED = ["full", "local", "mid", "global", "random:third"]
SEVERAL = {"seeds": [1, 2, 3, 4], "shuffled_seeds": [1, 2]}


def made(outputs: Path, registration: bool = True, **settings: Any) -> Study:
    """A study in a folder of its own, registered beside its file."""
    content: dict[str, Any] = {"title": "Made", "models": ["random:llama"], "judge": None}
    content |= {"blocks": ["base", *REPEATED], "evaluation": {"sets": []}} | SEVERAL | settings
    file = outputs.parent / "made.yml"
    file.write_text(yaml.safe_dump(content))
    if registration:
        file.with_name("made.registered.md").write_text("# Registered\n")
    return load_study(file)


def simulate_objectives(
    study: Study,
    prompts: int = 40,
    learned: float = 1.0,
    own: float = 0.0,
    noise: float = 1.0,
    seeds: list[str] | None = None,
    pairs: list[dict[str, Any]] | None = None,
) -> Path:
    """Margins of a study like `objectives`, in `matrix.json` and `evaluation.json` of every seed.

    Args:
        prompts: held-out prompts, each with a pair of every objective.
        learned: the mean margin where labels were right, in units of the noise.
        own: what a third has more on the objective that Hypothesis 2 puts there.
        noise: standard deviation of a pair's margin. Prompts and seeds have a tenth of it each.
        seeds: those to write, by the names of their folders. All by default.
        pairs: other held-out pairs than the made-up ones: id, objective, prompt, set and conversation.
    """
    level = np.random.default_rng(3).normal(0, 0.3 * noise, prompts)  # of a prompt, for all
    pairs = pairs or _objective_pairs(prompts)
    for number, one in enumerate(study.whole.single_runs()):
        if seeds is not None and one.seed not in seeds:
            continue
        rng = np.random.default_rng([11, number])

        def margins(trained_on: str, block: str, one: Study = one, rng: Any = rng) -> list[float]:
            right = 0.0 if one.preferences.shuffled else learned
            moved = rng.normal(0, 0.1 * noise)  # by the seed
            values = []
            for i, pair in enumerate(pairs):
                taught = trained_on in ("all", pair["objective"])
                more = (
                    max(own, 0) if block == "full" else own * (EXPECTED[pair["objective"]] == block)
                )
                mean = right * taught * (1 + more)
                values.append(mean + moved + level[i % prompts] + rng.normal(0, noise))
            return [float(v) for v in values]

        for model in one.models:
            base = Cell(one, model, "base")
            assert one.probes is not None
            assert one.probes.matrix is not None
            record: dict[str, Any] = {"probe": "matrix", "key": "made"}
            record |= {"fingerprint": base.probe_fingerprint("matrix"), "pairs": pairs, "beta": 0.1}
            record["margins"] = {
                name: {block: [margins(name, block)] for block in one.probes.matrix.blocks}
                for name in OBJECTIVES
            }
            record |= {"shuffled": one.preferences.shuffled, "seeds": one.probes.matrix.seeds}
            record |= {"blocks": {block: [0] for block in one.probes.matrix.blocks}, "cells": []}
            record |= {"hypothesis": [], "sizes": {}}
            write_record(paths.probe_record(one.name, model.name, "matrix", one.seed), record)
            for block in one.blocks:
                of_block = margins("all", block) if block != "base" else [0.0] * len(pairs)
                _evaluated(Cell(one, model, block), pairs, of_block, rng)
    return paths.study_dir(study.name)


def _objective_pairs(prompts: int) -> list[dict[str, Any]]:
    pairs = [
        {"id": f"p{i}-{name}", "objective": name, "prompt": f"p{i}", "set": "rules"}
        for i in range(prompts)
        for name in OBJECTIVES
    ]
    for name, objective in (("blimp", "grammar"), ("qa-feedback", "factuality")):
        pairs += [
            {"id": f"{name}-{i}", "objective": objective, "prompt": f"{name}-{i}", "set": name}
            for i in range(prompts)
        ]
    return pairs


def simulate_preferences(
    study: Study,
    pairs: int = 150,
    learned: float = 1.0,
    ahead: dict[str, float] | None = None,
    seeds: list[str] | None = None,
) -> Path:
    """`evaluation.json` of every seed and block, with mean margins `learned` and `ahead` of it."""
    rows = [
        {"id": f"c{i // 2}-{i}", "objective": "preference", "prompt": f"c{i // 2}", "set": "all"}
        for i in range(pairs)
    ]
    level = np.random.default_rng(5).normal(0, 0.3, pairs)
    for number, one in enumerate(study.whole.single_runs()):
        if seeds is not None and one.seed not in seeds:
            continue
        rng = np.random.default_rng([13, number])
        for cell in [Cell(one, model, block) for model in one.models for block in one.blocks]:
            mean = 0.0 if one.preferences.shuffled else learned + (ahead or {}).get(cell.block, 0.0)
            drawn = mean + rng.normal(0, 0.1) + level + rng.normal(0, 1, pairs)
            of_block = drawn.tolist() if cell.block != "base" else [0.0] * pairs
            _evaluated(cell, rows, of_block, rng)
    return paths.study_dir(study.name)


def _evaluated(
    cell: Cell, pairs: list[dict[str, Any]], margins: list[float], rng: np.random.Generator
) -> None:
    """`evaluation.json` with these margins, whose first set is the study's own held-out pairs."""
    rows, beta = [], cell.study.training.beta
    for pair, margin in zip(pairs, margins, strict=True):
        base, rejected = rng.normal(-100, 10, 2).tolist()
        group = "all" if pair["set"] == "rules" else pair["set"]
        row = {"id": pair["id"], "objective": pair["objective"], "groups": [group]}
        conversation = pair.get("conversation", f"conversation {pair['prompt']}")
        row |= {"conversation": conversation, "chosen": base + margin / beta}
        rows.append(row | {"rejected": rejected, "chosen_base": base, "rejected_base": rejected})
    kl = 0.0 if cell.block == "base" else 0.02 + 0.001 * float(rng.normal())
    moved = {"n": 8, "kl": kl, "kl_low": kl, "kl_high": kl, "kl_n": 8, "response_tokens": 20.0}
    moved |= {"response_tokens_low": 19.0, "response_tokens_high": 21.0}
    summary = {"n": len(rows), "prompts": len(rows), "likelihood_accuracy": 0.5}
    summary |= {"likelihood_accuracy_low": 0.4, "likelihood_accuracy_high": 0.6}
    tuned = None if cell.block == "base" else float(np.mean(np.array(margins) > 0))
    for name, value in (("reward_accuracy", tuned), ("reward_margin", float(np.mean(margins)))):
        summary |= {name: value, f"{name}_low": value, f"{name}_high": value}
    content = {"beta": beta, "objectives": {"all": summary}, "divergence": moved, "pairs": rows}
    _stage(cell, "evaluate", content)
