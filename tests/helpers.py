"""What several tests need: tiny studies and pairs, made-up records, a stock trainer."""

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from hialign import HialignError, load_model
from hialign.engine.modules import in_adapter
from hialign.records.files import read_jsonl, write_json, write_jsonl
from hialign.study.blocks import layers_of
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Cell, Study

CANARY = "sk-canary-6f1f0c1e4b7a4f7d"  # a key that must turn up nowhere
SUBJECTS = ("rain", "bread", "a compass", "the moon", "chess", "iron", "an orchard", "tea")


def made_pairs(n: int, seed: int = 0, prompt_words: int = 6) -> list[dict[str, str]]:
    """`n` distinct preference pairs in TRL's standard format, of very unequal lengths."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        subject = SUBJECTS[i % len(SUBJECTS)]
        words = " ".join(rng.choice(SUBJECTS) for _ in range(rng.randint(0, prompt_words)))
        rows.append(
            {
                "prompt": f"Question {i}: what is {subject}? {words}".strip(),
                "chosen": f"It is {subject}, of course." + " Really so." * rng.randint(0, 6),
                "rejected": "No idea." + f" Never heard of {i}." * rng.randint(0, 3),
            }
        )
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def merged(into: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`into` with `changes`; dictionaries inside are merged, not replaced."""
    result = dict(into)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def write_study(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """A study that runs in seconds, and the pairs that it names, in `folder`."""
    pairs = folder / "pairs.jsonl"
    if not pairs.is_file():
        write_lines(pairs, made_pairs(40))
    content = {
        "title": "Tiny",
        "models": ["random:llama"],
        "preferences": {"source": str(pairs), "train": 16, "evaluation": 8},
        "training": {
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "max_length": 256,
            "save_steps": 2,
        },
        "responses": {"prompts": 6, "max_new_tokens": 12, "batch_size": 4},
        "evaluation": {"contrast_prompts": 0, "resamples": 200},
        "judge": None,
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(merged(content, changes)))
    return path


def vouch(cell: Any, *stages: str) -> None:
    """Leave a manifest of the study's present settings for stages whose files a test wrote."""
    from hialign.records.files import write_record
    from hialign.records.stages import stage_manifest

    for stage in stages:
        if not (place := stage_manifest(cell, stage)).is_file():
            write_record(place, {"stage": stage, "fingerprint": cell.fingerprint(stage)})


def messages(rows: list[dict[str, str]]) -> Any:
    """Pairs of plain text as a data set of messages, which is what TRL is given."""
    from datasets import Dataset

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return Dataset.from_list(
        [{k: [{"role": r, "content": row[k]}] for k, r in roles.items()} for row in rows]
    )


def stock_trainer(
    model: Any, tokenizer: Any, pairs: Any, modules: list[str], settings: Any, work: Path
) -> Any:
    """TRL's own DPOTrainer as its documentation sets it up: the reference is run at each step.

    Nothing of hialign's is used but the values in `settings`.
    """
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(work),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.epochs,
            beta=settings.beta,
            max_length=settings.max_length,
            truncation_mode=settings.truncation,
            seed=settings.seed,
            gradient_checkpointing=settings.gradient_checkpointing,
            disable_dropout=settings.disable_dropout,
            lr_scheduler_type="linear",
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=modules,
        ),
    )


BASE = {
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.001,
    "lora_rank": 4,
    "lora_dropout": 0.0,
    "gradient_checkpointing": False,
    "max_length": 256,
}


def relative(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """How far two adapters are apart, over the norm of the second."""
    assert list(found) == list(expected)
    apart = sum(float(((found[n] - expected[n]) ** 2).sum()) for n in expected)
    return float((apart / sum(float((e**2).sum()) for e in expected.values())) ** 0.5)


BLOCKS = ("local", "mid", "global", "full")


def adapter_in(trainer: Any, adapter: str) -> dict[str, np.ndarray]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        n.replace(f".{adapter}.", "."): p.detach().numpy().copy()
        for n, p in model.named_parameters()
        if in_adapter(n, adapter)
    }


def stay_together(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [s["step"] for s in found] == [s["step"] for s in expected]
    for name in ("loss", "grad_norm"):
        values = [[s[name] for s in steps] for steps in (found, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5, err_msg=name)
    for name in ("chosen_reward", "rejected_reward", "reward_margin"):
        values = [[s[name] for s in steps] for steps in (found, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=2e-5, err_msg=name)
    for name in ("epoch", "learning_rate", "tokens", "reward_accuracy"):
        assert [s[name] for s in found] == pytest.approx([s[name] for s in expected]), name


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def adapter_of(cell: Cell) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(cell.folder / "adapter" / "adapter_model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[n], b[n]) for n in a)


def transcript(*turns: str) -> str:
    """An hh-rlhf transcript of human and assistant in turn."""
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def hh_rows(n: int, prefix: str = "Q") -> list[dict[str, str]]:
    return [
        {
            "chosen": transcript(f"{prefix}{i}?", "Why?", "So.", f"Good {i}."),
            "rejected": transcript(f"{prefix}{i}?", "Why?", "So.", f"Bad {i}."),
        }
        for i in range(n)
    ]


def refused(message: str) -> Any:
    """The single line of a HialignError, which must hold `message`."""
    return pytest.raises(HialignError, match=f"(?s)^(?!.*\n).*{message}")


def planted(folder: Path, layers: set[int]) -> str:
    """A random model in which attention has an effect in `layers` alone; its folder.

    In the others o_proj is zero, so that adapters on q_proj and k_proj (`PLANTED`) change nothing
    and have no gradient.
    """
    model, tokenizer = load_model("random:llama:6")
    for number, layer in enumerate(model.model.layers):
        if number not in layers:
            layer.self_attn.o_proj.weight.data.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def one_line(error: pytest.ExceptionInfo[HialignError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


OBJECTIVES = ("all", "grammar", "coherence", "factuality")

EFFECT = {"base": 0.0, "full": 0.3, "local": 0.2, "mid": 0.25, "global": 0.05}


def make_study(models: Iterable[Any] = ("small",), **settings: Any) -> Study:
    rows = [m if isinstance(m, dict) else {"source": f"random:{m}", "name": m} for m in models]
    settings.setdefault("judge", {"backend": "local", "model": "embedded:judge"})
    settings.setdefault("evaluation", {"resamples": 500})
    return Study(name="made-up", title="Made up", models=rows, **settings)


def write_training(cell: Cell, steps: int = 9, depth: int = 30, **changes: Any) -> None:
    """`manifest.json` and `training.jsonl`, as hialign.engine.dpo leaves them."""
    base = cell.block == "base"
    rng = np.random.default_rng([len(cell.model.name), len(cell.block)])
    drop = 0.35 + EFFECT.get(cell.block, 0.1)
    rows = [
        {
            "step": i + 1,
            "epoch": (i + 1) / steps,
            "loss": math.log(2) - drop * i / steps + 0.1 * float(rng.standard_normal()) * (i > 0),
            "chosen_reward": 0.1 * i,
            "rejected_reward": -0.1 * i,
            "reward_accuracy": 0.5,
            "reward_margin": 0.2 * i,
            "grad_norm": 1.0,
            "learning_rate": 1e-4,
            "seconds": 6.0,
            "tokens": 100.0 * (i + 1),
        }
        for i in range(steps)
    ]
    manifest = {
        "model": cell.model.name,
        "block": cell.block,
        "strategy": cell.strategy,
        "layers": layers_of(cell.block, depth),
        "depth": depth,
        "fingerprint": cell.fingerprint("train"),
        "pairs": 72,
        "seed": 42,
        "precision": "float32",
        "parameters": 1000,
        "device": "NVIDIA <b>A100</b>",
        "status": "untrained" if base else "trained",
        "steps": 0 if base else steps,
        "tokens": 0 if base else rows[-1]["tokens"],
        "seconds": 3.0 if base else 6.0 * steps * (1 + EFFECT.get(cell.block, 0)),
        "trainable_parameters": 0 if base else 10,
        "peak_memory_bytes": 3 * 2**29,
    }
    if not base:
        write_jsonl(cell.folder / "training.jsonl", rows)
        manifest["final_loss"] = rows[-1]["loss"]
    write_json(cell.folder / "manifest.json", manifest | changes)


def write_evaluation(cell: Cell, n: int = 72) -> None:
    """`evaluation.json`, as hialign.evaluation.evaluate leaves it."""
    base, effect = cell.block == "base", EFFECT.get(cell.block, 0.1)
    shift = 0.01 * len(cell.model.name)

    def around(name: str, value: float | None, by: float) -> dict[str, float | None]:
        ends = (None, None) if value is None else (value - by, value + by)
        return {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}

    found = {
        objective: {
            "n": n if objective == "all" else n // 3,
            **around("likelihood_accuracy", 0.6 + shift, 0.1),
            **around("reward_accuracy", None if base else 0.6 + effect, 0.08),
            **around("reward_margin", 0.0 if base else (4 - i) * effect, 0.0 if base else 0.12),
        }
        for i, objective in enumerate(OBJECTIVES)
    }
    divergence = {
        "n": 24,
        **around("kl", 0.0 if base else effect / 10 + 0.001, 0.0 if base else 0.0004),
        **around("response_tokens", 50 + 20 * effect, 4.0),
    }
    rng = np.random.default_rng([5, len(cell.block)])
    logs = ("chosen", "rejected", "chosen_base", "rejected_base")
    pairs = [
        {"id": f"p{i}-0", "objective": "preference", "groups": ["all"]}
        | {name: -50.0 + float(rng.standard_normal()) for name in logs}
        for i in range(n)
    ]
    content = {"fingerprint": cell.fingerprint("evaluate"), "objectives": found, "pairs": pairs}
    write_json(cell.folder / "evaluation.json", content | {"divergence": divergence})


def write_judgments(
    cell: Cell, prompts: int = 24, failed: Iterable[int] = (), whole: bool = False
) -> None:
    """`judgments-<judge>.jsonl`, with an error instead of scores for the prompts in `failed`."""
    assert cell.study.judge is not None
    rng = np.random.default_rng([7, len(cell.model.name), list(EFFECT).index(cell.block)])
    ability = np.random.default_rng(3).standard_normal(prompts)
    rows = []
    for i in range(prompts):
        mean = 2.9 + EFFECT[cell.block] + 0.05 * len(cell.model.name) + 0.7 * ability[i]
        scores = np.clip(mean + 0.8 * rng.standard_normal(len(DIMENSIONS)), 1, 5)
        scores = np.round(scores) if whole else scores
        row = {"prompt_id": f"p{i}", "scores": {}, "reasons": {}, "judge": cell.study.judge.name}
        if i in set(failed):
            row["error"] = "no valid answer in three attempts"
        else:
            row["scores"] = dict(zip(DIMENSIONS, map(float, scores), strict=True))
        rows.append(row)
    write_jsonl(cell.folder / f"judgments-{cell.study.judge.name}.jsonl", rows)
    vouch(cell, "judge")


def write_all(study: Study, prompts: int = 24, steps: int = 9, whole: bool = False) -> None:
    for cell in study.cells():
        write_training(cell, steps, depth=32)
        write_evaluation(cell)
        write_judgments(cell, prompts, whole=whole)


def scores_of(study: Study, block: str, dimension: str = "Overall") -> pd.DataFrame:
    """The scores straight from the files: model, prompt_id, score."""
    assert study.judge is not None
    rows = []
    for cell in study.cells():
        file = cell.folder / f"judgments-{study.judge.name}.jsonl"
        if cell.block == block and file.is_file():
            for row in read_jsonl(file):
                score = row["scores"].get(dimension, math.nan)
                rows.append((cell.model.label, row["prompt_id"], score))
    return pd.DataFrame(rows, columns=["model", "prompt_id", "score"])


def ends(text: str) -> tuple[float, float]:
    low, high = text.replace("−", "-").split(" to ")
    return float(low), float(high)


def row_of(table: pd.DataFrame, **where: str) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def measurement(**changes: Any) -> dict[str, Any]:
    def row(subset: str, n: int, right: int, score: str = "Overall") -> dict[str, Any]:
        found = {"accuracy": right / n, "low": 0.1, "high": 0.9, "ties": 1, "missing": 0}
        return {"subset": subset, "score": score, "n": n} | found

    rows = [row("natural", 100, 54), row("natural", 100, 99, "mean of the others")]
    rows += [row("adversarial-manual", 40, 10), row("adversarial-gptout", 60, 30)]
    return {"rows": rows, "model": "embedded:judge"} | changes


def published(monkeypatch: pytest.MonkeyPatch, *measured: dict[str, Any]) -> None:
    from hialign.records import agreement

    monkeypatch.setattr(agreement, "published", lambda path=None: list(measured))
