"""Training: equal to stock TRL, confined to the block, repeatable, resumable, whole or not at all."""

import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    BASE,
    BLOCKS,
    adapter_in,
    adapter_of,
    made_pairs,
    messages,
    one_line,
    relative,
    same,
    stay_together,
    stock_trainer,
    timeless,
    write_study,
)

from hialign import (
    HialignError,
    layers_of,
    load_cell,
    load_model,
    load_study,
    train,
    train_together,
)
from hialign.engine import cells as training
from hialign.engine import dpo
from hialign.engine.embedded import random_folder
from hialign.engine.models import identity
from hialign.engine.modules import in_adapter
from hialign.engine.trainer import LOGGED
from hialign.records.files import read_json, read_jsonl
from hialign.records.frames import STEP_COLUMNS
from hialign.study.settings import ModelSettings, TrainingSettings
from hialign.study.study import Cell

SEPARATE = [f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj")]


@dataclass
class Case:
    """One comparison with stock TRL."""

    block: str
    family: str = "llama"
    prefix: str = "model.layers"
    modules: tuple[str, ...] = tuple(SEPARATE)
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.family, self.block, *(f"{k}={v}" for k, v in self.settings)])


CASES = [
    *(Case(block) for block in ("full", "local", "mid", "global", "layers:0,5")),
    Case("mid", "phi3", modules=("self_attn.qkv_proj", "self_attn.o_proj")),
    *[
        Case(
            "global",
            "gpt_neox",
            "gpt_neox.layers",
            ("attention.query_key_value", "attention.dense"),
        )
    ],
    # sliding and full attention in turn, embeddings that are scaled
    Case("global", "gemma3_text"),
    Case("mid", settings=(("lora_dropout", 0.5), ("disable_dropout", True))),
    Case("local", settings=(("gradient_checkpointing", True),)),
    # some pairs cut, some dropped
    Case("mid", settings=(("max_length", 80),)),
    Case("mid", settings=(("max_length", 80), ("truncation", "keep_end"))),
]


@pytest.fixture
def cell(tiny_study: Callable[..., Path], outputs: Path) -> Callable[..., Cell]:
    """`cell("mid", lora_dropout=0.1)`: a cell of a tiny study, its training settings changed."""

    def get(block: str = "mid", model: str = "random:llama", **training: Any) -> Cell:
        path = tiny_study(models=[model], training=training, preferences={"train": 24})
        return load_study(path).cell(None, block)

    return get


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The steps and the adapter of `cell("mid", lora_dropout=0.05)`, trained once, from its start."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIALIGN_OUTPUTS", str(folder / "outputs"))
        study = write_study(folder, training={"lora_dropout": 0.05}, preferences={"train": 24})
        whole = load_study(study).cell(None, "mid")
        train(whole)
        return read_jsonl(whole.folder / "training.jsonl"), adapter_of(whole)


def pairs_of(n: int = 24) -> Any:
    return messages(made_pairs(n, seed=1))


@dataclass
class Trained:
    steps: list[dict[str, Any]]
    adapter: dict[str, np.ndarray]
    logits: np.ndarray
    trainer: Any


def finished(trainer: Any, steps: list[dict[str, Any]]) -> Trained:
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    adapter = {n: p.detach().numpy().copy() for n, p in model.named_parameters() if "lora_" in n}
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 43)[None]).logits[0].numpy()
    return Trained(steps, adapter, logits, trainer)


def stock_and_ours(case: Case, work: Path) -> tuple[Trained, Trained]:
    settings = TrainingSettings(**(BASE | dict(case.settings)))
    layers = layers_of(case.block, 6)
    modules = [f"{case.prefix}.{layer}.{name}" for layer in layers for name in case.modules]
    source = f"random:{case.family}"
    model, tokenizer = load_model(source)
    theirs = stock_trainer(model, tokenizer, pairs_of(), modules, settings, work / "stock")
    theirs.train()
    logged = [entry for entry in theirs.state.log_history if "loss" in entry]
    stock = finished(
        theirs,
        [
            {"step": e["step"], "epoch": e["epoch"]}
            | {ours: e[name] for name, ours in LOGGED.items() if "seconds" not in name}
            for e in logged
        ],
    )
    model, tokenizer = load_model(source)
    weights = identity(ModelSettings(source=source))
    ours = dpo.train_blocks(
        *(model, tokenizer, pairs_of(), {case.block: layers}, settings, weights),
        work=work / "ours",
    )
    return stock, finished(ours, dpo.steps_of(ours, ours.strategies[0]))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[Trained, Trained]]:
    """Stock and our training of a case, done once."""
    done: dict[str, tuple[Trained, Trained]] = {}

    def get(case: Case) -> tuple[Trained, Trained]:
        if str(case) not in done:
            done[str(case)] = stock_and_ours(case, tmp_path_factory.mktemp("dpo"))
        return done[str(case)]

    return get


# --- against stock TRL ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_is_stock_trls(
    compared: Callable[[Case], tuple[Trained, Trained]], case: Case
) -> None:
    stock, ours = compared(case)
    assert [s["step"] for s in ours.steps] == [s["step"] for s in stock.steps]
    assert len(ours.steps) >= 4
    for name in ("loss", "grad_norm"):
        found, expected = ([s[name] for s in run.steps] for run in (ours, stock))
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)
    for name in ("chosen_reward", "rejected_reward", "reward_margin"):
        found, expected = ([s[name] for s in run.steps] for run in (ours, stock))
        # Differences of log-probabilities of hundreds of nats, times beta: 1e-5 of what is left
        # after the subtraction would ask for more than float32 has.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5, err_msg=name)
    for name in ("epoch", "learning_rate", "tokens"):
        assert [s[name] for s in ours.steps] == [s[name] for s in stock.steps], name
    assert relative(ours.adapter, stock.adapter) < 1e-5
    np.testing.assert_allclose(ours.logits, stock.logits, rtol=1e-4, atol=1e-4)


def test_the_comparison_can_tell(
    compared: Callable[[Case], tuple[Trained, Trained]],
) -> None:
    """That training moved something, and that cases differ by more than the tolerances above."""
    plain, disabled, cut = (compared(CASES[i])[1] for i in (2, 8, 10))
    assert plain.steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert plain.steps[-1]["loss"] < 0.6
    assert relative(disabled.adapter, plain.adapter) < 1e-5  # dropout 0.5, but switched off
    assert relative(cut.adapter, plain.adapter) > 1e-3
    assert cut.steps[0]["tokens"] < plain.steps[0]["tokens"]


def test_checkpointing_changes_no_number(
    compared: Callable[[Case], tuple[Trained, Trained]],
) -> None:
    with_it, without = compared(CASES[9])[1], compared(CASES[1])[1]
    for found, expected in zip(with_it.steps, without.steps, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert relative(with_it.adapter, without.adapter) < 1e-6


def test_one_pass_has_the_dropout_of_separate_runs(tmp_path: Path) -> None:
    """Each step's dropout depends on the seed, the step and its pairs, and on nothing else."""
    settings = TrainingSettings(**(BASE | {"lora_dropout": 0.2}))
    weights = identity(ModelSettings(source="random:llama"))
    trained = {}
    for name, chosen in {"both": ("local", "global"), "alone": ("global",)}.items():
        model, tokenizer = load_model("random:llama")
        layers = {block: layers_of(block, 6) for block in chosen}
        trainer = dpo.train_blocks(
            model, tokenizer, pairs_of(), layers, settings, weights, work=tmp_path / name
        )
        trained[name] = adapter_in(trainer, trainer.strategies[-1].adapter)
    assert same(trained["both"], trained["alone"])


class Acting:
    """How often each layer's attention ran inside training steps: [without, with gradients]."""

    def __init__(self, model: Any) -> None:
        import torch

        self.counts = [[0, 0] for _ in model.model.layers]
        for number, layer in enumerate(model.model.layers):

            def count(*_: Any, number: int = number) -> None:
                if not torch.is_inference_mode_enabled():  # as the check beforehand is
                    self.counts[number][torch.is_grad_enabled()] += 1

            layer.self_attn.register_forward_pre_hook(count)


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        # layers 0-1, 2-3, 4-5: without gradients (and for the reference), with gradients
        (("mid",), [(6, 0, 0), (0, 6, 0), (0, 6, 0)]),
        (("global",), [(6, 0, 0), (6, 0, 0), (0, 6, 0)]),
        (("local",), [(0, 6, 6), (0, 6, 6), (0, 6, 6)]),
        (("local", "mid", "global", "full"), [(6, 12, 0), (6, 18, 0), (0, 24, 0)]),
    ],
    ids=str,
)
def test_no_layer_runs_that_need_not(
    tmp_path: Path,
    empty_cache: Path,
    together: tuple[str, ...],
    expected: list[tuple[int, int, int]],
) -> None:
    """Six steps: below a block each layer once, without gradients, for all; the reference goes on
    from there, and only in the first run, which does not know it yet."""
    for reference in ("unknown", "known"):
        model, tokenizer = load_model("random:llama")
        acting = Acting(model)
        dpo.train_blocks(
            *(model, tokenizer, pairs_of(), {b: layers_of(b, 6) for b in together}),
            *(TrainingSettings(**BASE), identity(ModelSettings(source="random:llama"))),
            work=tmp_path / reference,
        )
        for third, (shared, tuned, _) in enumerate(expected):
            for layer in (2 * third, 2 * third + 1):
                without_gradients = 6 if reference == "unknown" else shared
                assert acting.counts[layer] == [without_gradients, tuned], (reference, layer)


@pytest.mark.parametrize("engine", ["packed", "stock"])
def test_pairs_are_tokenized_and_packing_is_tried_once(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    from trl.trainer import dpo_trainer

    from hialign.engine import tokens

    calls = {"tokenize_pair": 0, "unpackable": 0}

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counted(tokens, "tokenize_pair")
    counted(dpo, "unpackable")
    monkeypatch.setattr(dpo_trainer, "_tokenize", lambda *_, **__: pytest.fail("TRL tokenized"))
    train_together([cell(block, engine=engine) for block in ("base", "mid", "global")])
    assert calls == {"tokenize_pair": 24, "unpackable": engine == "packed"}


def test_a_family_that_cannot_be_packed_is_trained_by_stock_trl(
    cell: Callable[..., Cell], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hialign.engine import decoder

    cells = [cell(block, lora_dropout=0.0) for block in ("mid", "global")]
    training.train_together(cells)
    packed = [adapter_of(c) for c in cells]
    monkeypatch.setattr(decoder.Layout, "_by_node", lambda self, q, *_, **__: q.transpose(1, 2))
    found = training.train_together(cells)
    assert (
        "one after the other by stock TRL: LlamaForCausalLM gives packed" in capsys.readouterr().out
    )
    assert [m["engine"] for m in found] == ["stock TRL"] * 2
    for c, expected in zip(cells, packed, strict=True):
        assert relative(adapter_of(c), expected) < 1e-4  # at a rate of 0.01


NOISY = {  # families whose dropout is a function, not a module
    "seed_oss": {"attention_dropout": 0.1, "residual_dropout": 0.1},
    "llama": {"attention_dropout": 0.1},
}


def noisy(family: str, dropout: bool = True) -> Any:
    """A tiny model of `family`, with the dropout of `NOISY` or without, and a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    plain, tokenizer = load_model("random:llama")
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    keys += ("num_attention_heads", "num_key_value_heads", "initializer_range", "eos_token_id")
    sizes = {key: getattr(plain.config, key) for key in keys}
    silent = dict.fromkeys(NOISY[family], 0.0)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, **(NOISY[family] if dropout else silent))
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


@pytest.mark.parametrize("family", NOISY)
@pytest.mark.parametrize("disabled", [False, True], ids=["dropout", "disable_dropout"])
def test_dropout_that_is_a_function(tmp_path: Path, family: str, disabled: bool) -> None:
    """Stock TRL trains such a family, unless `disable_dropout` takes its dropout away altogether."""
    from transformers import set_seed

    settings = TrainingSettings(**BASE, disable_dropout=disabled)
    layers = layers_of("mid", 6)
    model, tokenizer = noisy(family)
    modules = [f"model.layers.{layer}.{name}" for layer in layers for name in SEPARATE]
    weights = {"weights_sha256": family}
    ours = dpo.train_blocks(
        model, tokenizer, pairs_of(), {"mid": layers}, settings, weights, work=tmp_path / "ours"
    )
    model, _ = noisy(family, dropout=not disabled)  # TRL by itself would leave it on
    set_seed(settings.seed)
    stock = stock_trainer(model, tokenizer, pairs_of(), modules, settings, tmp_path / "stock")
    for side, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
        values = [both[side] for both in ours.reference.values]  # without noise
        stock.train_dataset = stock.train_dataset.add_column(column, values)
    stock.precompute_ref_logps = True
    stock.train()
    assert ours.is_stock != disabled
    assert relative(adapter_in(ours, "default"), adapter_in(stock, "default")) < 1e-5


def test_dropout_that_is_a_function_is_told() -> None:
    model, tokenizer = noisy("seed_oss")
    settings = TrainingSettings(**BASE)
    assert dpo.prepare(model, tokenizer, pairs_of(), settings).why_stock == (
        "SeedOssForCausalLM has dropout in frozen layers"
    )
    assert model.config.residual_dropout == 0.1
    silent = settings.model_copy(update={"disable_dropout": True})
    assert dpo.prepare(model, tokenizer, pairs_of(), silent).why_stock == ""
    assert (model.config.residual_dropout, model.config.attention_dropout) == (0, 0)


@pytest.mark.parametrize("case", CASES[:7], ids=str)
def test_the_proof_of_confinement(
    compared: Callable[[Case], tuple[Trained, Trained]], case: Case
) -> None:
    import torch

    ours = compared(case)[1]
    layers = layers_of(case.block, 6)
    original, _ = load_model(f"random:{case.family}")
    proof = ours.trainer.confinement[case.block]
    assert proof == {
        "base_parameters_checked": len(list(original.named_parameters())),
        "base_parameters_changed": 0,
        "adapter_tensors": 2 * len(layers) * len(case.modules),
        "adapter_tensors_changed": 2 * len(layers) * len(case.modules),
        "adapted_layers": layers,
    }
    base = ours.trainer.accelerator.unwrap_model(ours.trainer.model).unload()
    for name, value in original.state_dict().items():
        assert torch.equal(value, base.state_dict()[name]), name


# --- cells ---------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def left_over(outputs: Path) -> list[str]:
    """What a failed run left, checkpoints (which are hidden, and there to be resumed) aside."""
    return [name for name in names(outputs) if "/.checkpoints/" not in name]


def test_a_trained_cell(cell: Callable[..., Cell], outputs: Path) -> None:
    mid = cell("mid")
    returned = train(mid)
    written = names(mid.folder)
    assert {"manifest.json", "training.jsonl"} <= set(written)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(written)
    assert {Path(n).suffix for n in written} <= {".json", ".jsonl", ".safetensors", ".md"}
    assert not list((outputs / "tiny" / ".checkpoints").rglob("*.safetensors"))

    steps = read_jsonl(mid.folder / "training.jsonl")
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5, 6]
    assert all(list(s) == STEP_COLUMNS for s in steps)
    assert steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert all(b["tokens"] > a["tokens"] for a, b in pairwise(steps))
    assert all(s["seconds"] > 0 for s in steps)

    manifest = read_json(mid.folder / "manifest.json")
    assert manifest == json.loads(json.dumps(returned))
    assert (
        manifest.items()
        >= {
            **{"study": "tiny", "model": "random-llama", "block": "mid", "strategy": "Mid-Align"},
            **{
                "layers": [2, 3],
                "depth": 6,
                "seed": 42,
                "status": "trained",
                "steps": 6,
                "pairs": 24,
            },
            **{"precision": "float32", "tokens": steps[-1]["tokens"], "effective_batch": 4},
            "fingerprint": mid.fingerprint("train"),
            "settings": mid.settings("train"),
            "weights_sha256": identity(mid.model)["weights_sha256"],
            # of q (32x32), k, v (32x16) and o (32x32), rank 16, two layers
            "trainable_parameters": 2 * 16 * (64 + 48 + 48 + 64),
        }.items()
    )
    assert manifest["seconds"] == pytest.approx(sum(s["seconds"] for s in steps))
    assert manifest["confinement"]["adapted_layers"] == [2, 3]
    assert manifest["pairs_truncated"] == 0
    assert manifest["preferences"]["fingerprint"]
    assert manifest["packages"]["trl"]
    assert manifest["peak_memory_bytes"] > 1 << 20


def test_the_adapter_loads_with_plain_peft(cell: Callable[..., Cell]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    mid = cell("mid", lora_dropout=0.0)
    train(mid)
    ids = torch.arange(3, 60)[None]
    base = AutoModelForCausalLM.from_pretrained(random_folder("llama")).eval()
    with torch.no_grad():
        untuned = base(input_ids=ids).logits
        tuned = PeftModel.from_pretrained(base, mid.folder / "adapter").eval()
        found = tuned(input_ids=ids).logits
    adapted = {n.split(".layers.")[1].split(".")[0] for n in adapter_of(mid)}
    assert adapted == {"2", "3"}

    # What the weights say, by hand: W + alpha / r B A in every adapted module
    by_hand = AutoModelForCausalLM.from_pretrained(random_folder("llama")).eval()
    weights = adapter_of(mid)
    for name, a in weights.items():
        if name.endswith("lora_A.weight"):
            b = weights[name.replace("lora_A", "lora_B")]
            module = by_hand.get_submodule(
                name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            )
            module.weight.data += torch.from_numpy((32 / 16) * (b @ a))
    with torch.no_grad():
        expected = by_hand(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((found - untuned).abs().max()) > 0.1

    model, _ = load_cell(mid)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, found)
    assert not model.training


def test_the_seed_decides_alone(
    cell: Callable[..., Cell], uninterrupted: tuple[list[dict[str, Any]], dict[str, np.ndarray]]
) -> None:
    """Same seed, same numbers, whatever was drawn before; another seed, others."""
    import torch

    steps, adapter = uninterrupted
    mid = cell("mid", lora_dropout=0.05)
    torch.manual_seed(987)
    train(mid)
    assert timeless(read_jsonl(mid.folder / "training.jsonl")) == timeless(steps)
    assert same(adapter_of(mid), adapter)
    other = cell("mid", lora_dropout=0.05, seed=7)
    train(other)
    assert timeless(read_jsonl(other.folder / "training.jsonl")) != timeless(steps)


def test_base_is_not_tuned_and_computes_the_reference_for_all(
    cell: Callable[..., Cell], empty_cache: Path
) -> None:
    base = cell("base")
    manifest = train(base)
    assert names(base.folder) == ["manifest.json"]
    assert (
        manifest.items() >= {"status": "untrained", "layers": [], "steps": 0, "tokens": 0}.items()
    )
    assert manifest["trainable_parameters"] == 0
    known = names(empty_cache / "reference")
    assert len([n for n in known if n.endswith(".json")]) == 1
    train(cell("mid"))
    assert names(empty_cache / "reference") == known
    model, _ = load_cell(base)
    assert not hasattr(model, "peft_config")


def test_precision_of_a_gpu(cell: Callable[..., Cell]) -> None:
    """bfloat16 weights (Table 5) train, with adapters that keep small steps."""
    path = cell("mid").study.model_copy(
        update={"models": [ModelSettings(source="random:llama", precision="bfloat16")]}
    )
    mid = path.cell(None, "mid")
    manifest = train(mid)
    assert manifest["precision"] == "bfloat16"
    steps = read_jsonl(mid.folder / "training.jsonl")
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=0.05)
    assert steps[-1]["loss"] < 0.6
    assert {a.dtype for a in adapter_of(mid).values()} == {np.dtype("float32")}


def test_pairs_that_are_too_long_are_counted(cell: Callable[..., Cell]) -> None:
    mid = cell("mid", max_length=80)
    manifest = train(mid)
    assert 0 < manifest["pairs_truncated"] <= manifest["pairs"]
    assert manifest["pairs"] < 24
    assert manifest["pairs"] + manifest["pairs_too_long"] == 24


def test_another_study_with_the_same_folder_replaces_it_whole(cell: Callable[..., Cell]) -> None:
    train(cell("mid", lora_rank=8))
    again = cell("mid", lora_rank=2)
    train(again)
    assert {a.shape[0] for n, a in adapter_of(again).items() if "lora_A" in n} == {2}
    assert read_json(again.folder / "adapter" / "adapter_config.json")["r"] == 2
    assert [p for p in again.folder.iterdir() if p.name.startswith(".")] == []


# --- interrupted runs ----------------------------------------------------------------------------


def interrupted(monkeypatch: pytest.MonkeyPatch, cell: Cell, step: int) -> None:
    """Train `cell` and press Ctrl-C at the end of optimizer step `step`."""
    from transformers import TrainerCallback

    class CtrlC(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    original = dpo.BlockTrainer

    class Interrupted(original):  # type: ignore[misc,valid-type]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            self.add_callback(CtrlC())
            return super().train(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(dpo, "BlockTrainer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(cell)


def steps_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of each step that training runs from here on."""
    seen: list[int] = []
    original = dpo.BlockTrainer

    class Counted(original):  # type: ignore[misc,valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.state.global_step)
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(dpo, "BlockTrainer", Counted)
    return seen


@pytest.mark.parametrize("half_written", ["", "adapter", "state"])
def test_an_interrupted_run_goes_on_where_it_was(
    cell: Callable[..., Cell],
    uninterrupted: tuple[list[dict[str, Any]], dict[str, np.ndarray]],
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    half_written: str,
) -> None:
    steps, adapter = uninterrupted
    mid = cell("mid", lora_dropout=0.05)
    interrupted(monkeypatch, mid, 5)
    assert left_over(outputs) == []
    (checkpoints,) = (outputs / "tiny" / ".checkpoints" / "random-llama").iterdir()
    assert [p.name for p in checkpoints.glob("checkpoint-*")] == ["checkpoint-4"]
    if half_written:  # as if it had been killed while it wrote the next one
        torn = checkpoints / "checkpoint-6"
        torn.mkdir()
        shutil.copy(checkpoints / "checkpoint-4" / "adapter_config.json", torn)
        (torn / "adapter_model.safetensors").write_bytes(b"torn")
        if half_written == "state":  # the last file, as it was opened
            (torn / "trainer_state.json").write_text("")
    seen = steps_run(monkeypatch)
    manifest = train(mid)
    assert set(seen) == {4, 5}  # only the last two of the six steps were run
    assert timeless(read_jsonl(mid.folder / "training.jsonl")) == timeless(steps)
    assert same(adapter_of(mid), adapter)
    assert (manifest["steps"], manifest["tokens"]) == (6, steps[-1]["tokens"])
    assert manifest["confinement"]["adapter_tensors_changed"] == 16
    assert not checkpoints.exists()


def test_checkpoints_of_other_settings_are_not_used(
    cell: Callable[..., Cell],
    uninterrupted: tuple[list[dict[str, Any]], dict[str, np.ndarray]],
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, adapter = uninterrupted
    interrupted(monkeypatch, cell("mid", lora_dropout=0.05, learning_rate=0.02), 3)
    assert list((outputs / "tiny" / ".checkpoints").rglob("checkpoint-2"))
    mid = cell("mid", lora_dropout=0.05)
    train(mid)
    assert timeless(read_jsonl(mid.folder / "training.jsonl")) == timeless(steps)
    assert same(adapter_of(mid), adapter)
    assert list((outputs / "tiny" / ".checkpoints").rglob("checkpoint-*")) == []


def test_checkpoints_of_other_cells_stay(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`layers:1` and `layers:1-2` begin alike; each keeps its own."""
    interrupted(monkeypatch, cell("layers:1-2"), 3)
    train(cell("layers:1"))
    train(cell("full"))
    assert len(list((outputs / "tiny" / ".checkpoints").rglob("checkpoint-2"))) == 1


@pytest.mark.slow
def test_a_killed_process_resumes(
    cell: Callable[..., Cell],
    uninterrupted: tuple[list[dict[str, Any]], dict[str, np.ndarray]],
    outputs: Path,
    tmp_path: Path,
) -> None:
    """SIGKILL, which no handler sees."""
    mid = cell("mid", lora_dropout=0.05)
    code = (
        "import sys; from hialign import load_study, train; "
        "train(load_study(sys.argv[1]).cell(None, 'mid'))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "tiny.yml")])
    place = outputs / "tiny" / ".checkpoints"
    while run.poll() is None and not list(place.rglob("trainer_state.json")):
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert left_over(outputs) == []
    train(mid)
    steps, adapter = uninterrupted
    assert timeless(read_jsonl(mid.folder / "training.jsonl")) == timeless(steps)
    assert same(adapter_of(mid), adapter)


def test_out_of_memory_keeps_the_steps_that_are_done(
    cell: Callable[..., Cell],
    uninterrupted: tuple[list[dict[str, Any]], dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mid = cell("mid", lora_dropout=0.05)
    original = dpo.BlockTrainer

    class Full(original):  # type: ignore[misc,valid-type]
        def _backward(self, *args: Any) -> None:
            super()._backward(*args)
            if self.state.global_step == 3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")

    with monkeypatch.context() as patched:
        patched.setattr(dpo, "BlockTrainer", Full)
        with pytest.raises(HialignError, match=r"out of memory in step 4: lower training.tok") as e:
            train(mid)
    assert "the 3 steps before it are kept" in one_line(e)
    # with what it says changed, it goes on: these settings change no number
    smaller = cell("mid", lora_dropout=0.05, gradient_checkpointing=True)
    seen = steps_run(monkeypatch)
    train(smaller)
    assert seen == [3, 4, 5]
    steps, adapter = uninterrupted
    stay_together(read_jsonl(mid.folder / "training.jsonl"), steps)
    assert relative(adapter_of(mid), adapter) < 1e-6


@pytest.mark.slow
def test_a_killed_pass_resumes(cell: Callable[..., Cell], outputs: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of four strategies."""
    cells = [cell(block, lora_dropout=0.05) for block in BLOCKS]
    training.train_together(cells)
    whole = [(timeless(read_jsonl(c.folder / "training.jsonl")), adapter_of(c)) for c in cells]
    shutil.rmtree(outputs)
    code = (
        "import sys; from hialign import load_study, train_together; study = load_study(sys.argv[1]);"
        f"train_together([study.cell(None, b) for b in {BLOCKS}])"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "tiny.yml")])
    place = outputs / "tiny" / ".checkpoints"
    while run.poll() is None and not list(place.rglob("trainer_state.json")):
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert left_over(outputs) == []
    manifests = training.train_together(cells)
    assert [m["trained_with"] for m in manifests] == [
        [other for other in BLOCKS if other != block] for block in BLOCKS
    ]
    for c, (steps, adapter) in zip(cells, whole, strict=True):
        assert timeless(read_jsonl(c.folder / "training.jsonl")) == steps
        assert same(adapter_of(c), adapter)


def test_a_pass_writes_what_separate_runs_write(cell: Callable[..., Cell], outputs: Path) -> None:
    cells = [cell(block, lora_dropout=0.05) for block in ("base", *BLOCKS)]
    for c in cells:
        train(c)
    alone = {c.block: (names(c.folder), read_json(c.folder / "manifest.json")) for c in cells}
    adapters = {c.block: adapter_of(c) for c in cells[1:]}
    shutil.rmtree(outputs)
    together = training.train_together(cells)
    for c, manifest in zip(cells, together, strict=True):
        files, expected = alone[c.block]
        assert names(c.folder) == files
        assert list(manifest) == list(expected)
        timed = ["seconds", "shared_seconds", "peak_memory_bytes", "trained_with", "final_loss"]
        timed += ["files", "sha256"]
        for key in set(manifest) - set(timed):
            assert manifest[key] == expected[key], key
        if c.block != "base":
            assert relative(adapter_of(c), adapters[c.block]) < 1e-6
            assert manifest["seconds"] > 0 < manifest["shared_seconds"]
            steps = read_jsonl(c.folder / "training.jsonl")
            assert manifest["seconds"] == pytest.approx(sum(s["seconds"] for s in steps))
            assert all(list(s) == STEP_COLUMNS for s in steps)
    shared = {m["shared_seconds"] for m in together[1:]}
    assert len(shared) == 1


# --- what is refused -----------------------------------------------------------------------------


def test_a_layer_out_of_range_is_refused_before_a_model_is_loaded(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(HialignError, match="layer 9 is out of range: this model has 6") as caught:
        train(cell("layers:2,9"))
    one_line(caught)
    assert not outputs.exists()


def test_a_full_disk_is_refused_before_training(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(10 << 30, 10 << 30, 5 << 20)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(
        HialignError, match=r"only 5 MiB are free under .*HIALIGN_OUTPUTS"
    ) as caught:
        train(cell("mid"))
    one_line(caught)
    assert not outputs.exists()


@pytest.mark.parametrize("block", ["base", "mid"])
def test_prompts_that_fill_the_limit_are_refused(
    cell: Callable[..., Cell], outputs: Path, block: str
) -> None:
    with pytest.raises(HialignError, match=r"training.max_length 8: every prompt alone") as caught:
        train(cell(block, max_length=8))
    one_line(caught)
    assert not outputs.exists()


def test_unknown_modules_are_refused(cell: Callable[..., Cell], outputs: Path) -> None:
    with pytest.raises(HialignError, match="target module 'w_proj' was not found in layer 2"):
        train(cell("mid", target_modules=["w_proj"]))
    assert not outputs.exists()


@pytest.mark.parametrize(("key", "value"), [("scheduler", "no-such"), ("optimizer", "no-such")])
def test_unknown_choices_of_the_trainer_are_refused(
    cell: Callable[..., Cell], outputs: Path, key: str, value: str
) -> None:
    with pytest.raises(HialignError, match=f"training.{key}.*no-such") as caught:
        train(cell("mid", **{key: value}))
    one_line(caught)
    assert left_over(outputs) == []


def tampering(monkeypatch: pytest.MonkeyPatch, tamper: Callable[[Any], None]) -> None:
    original = dpo.BlockTrainer

    class Tampering(original):  # type: ignore[misc,valid-type]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            result = super().train(*args, **kwargs)
            tamper(self.model)
            return result

    monkeypatch.setattr(dpo, "BlockTrainer", Tampering)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_changed_base_weight_is_found(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """One bit of one weight, in a frozen layer or in a tuned one."""
    import torch

    def tamper(model: Any) -> None:
        weight = model.get_base_model().model.layers[layer].mlp.up_proj.weight
        weight.data.view(torch.int32)[3, 4] ^= 1

    tampering(monkeypatch, tamper)
    with pytest.raises(
        HialignError, match=rf"not confined to the block: .*layers\.{layer}\.mlp\.up_proj"
    ) as caught:
        train(cell("mid"))
    one_line(caught)
    assert left_over(outputs) == []


def test_an_adapter_outside_the_block_is_found(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpo, "target_modules", lambda *_: ["model.layers.4.self_attn.q_proj"])
    with pytest.raises(HialignError, match=r"not confined to the block: .*layers\.4\.self_attn"):
        train(cell("mid"))
    assert left_over(outputs) == []


def test_a_thawed_base_weight_is_found(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tamper(model: Any) -> None:
        model.get_base_model().model.norm.weight.requires_grad_(True)

    tampering(monkeypatch, tamper)
    with pytest.raises(HialignError, match=r"not confined to the block: .*model\.norm\.weight"):
        train(cell("mid"))
    assert left_over(outputs) == []


def test_a_loss_that_is_no_number_is_refused(cell: Callable[..., Cell], outputs: Path) -> None:
    mid = cell("mid", learning_rate=1e30, max_grad_norm=0)
    for _ in range(2):  # and is not resumed from, either
        with pytest.raises(
            HialignError, match=r"block mid: the loss is not finite in step 2 \(pairs \w+-\d+, "
        ) as caught:
            train(mid)
        assert "lower training.learning_rate; no checkpoint yet" in one_line(caught)
        assert names(outputs) == []


def test_a_failed_run_leaves_the_last_good_one(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    mid = cell("mid")
    train(mid)
    before = {n: (mid.folder / n).read_bytes() for n in names(mid.folder)}
    monkeypatch.setattr(dpo, "_confinement", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(mid)
    assert {n: (mid.folder / n).read_bytes() for n in names(mid.folder)} == before


@pytest.mark.parametrize("file", ["adapter", "training.jsonl", "manifest.json"])
def test_a_disk_that_fills_up_at_the_end(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """No manifest, so the cell counts as missing; nothing half-written; one line."""
    copy, replace = shutil.copytree, os.replace

    def full_copy(source: Any, target: Any, **options: Any) -> None:
        copy(source, target, **options)
        (Path(target) / "adapter_config.json").unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_replace(source: Any, target: Any) -> None:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    if file == "adapter":
        monkeypatch.setattr(shutil, "copytree", full_copy)
    else:
        monkeypatch.setattr(os, "replace", full_replace)
    mid = cell("mid")
    with pytest.raises(HialignError, match=f"cannot write .*{file}: No space left") as caught:
        train(mid)
    one_line(caught)
    left = names(mid.folder)
    assert "manifest.json" not in left
    assert [n for n in left if n.startswith(".")] == []
    assert not any((mid.folder / "adapter").glob("*")) or len(list(adapter_of(mid))) == 16
    assert list(outputs.rglob(".adapter.*")) == []


def test_an_untrained_cell_is_not_loaded(cell: Callable[..., Cell]) -> None:
    with pytest.raises(HialignError) as caught:
        load_cell(cell("mid"))
    assert one_line(caught) == (
        "the training of random-llama mid in study tiny is missing: "
        f"run `hialign run train -p study {cell('mid').study.argument} -p block mid` first"
    )


# --- what the packed step takes from TRL, transformers and PEFT beyond their documented interface --


def test_what_the_engine_relies_on_is_still_there(tmp_path: Path) -> None:
    """One line for each, so that an upgrade that breaks the engine says what broke."""
    from transformers import GradientCheckpointingLayer, PreTrainedModel, Trainer

    broken = "the packed engine relies on it: see hialign/engine/trainer.py and hialign/engine/decoder.py"
    step = inspect.signature(Trainer.training_step).parameters
    assert list(step) == ["self", "model", "inputs", "num_items_in_batch"], (
        f"Trainer.training_step takes {list(step)}: {broken}"
    )
    assert hasattr(Trainer, "_save_checkpoint"), f"Trainer._save_checkpoint is gone: {broken}"
    assert hasattr(PreTrainedModel, "set_attn_implementation"), broken
    model, tokenizer = load_model("random:llama")
    trainer = stock_trainer(
        model, tokenizer, pairs_of(4), ["q_proj"], TrainingSettings(**BASE), tmp_path
    )
    assert trainer._total_train_tokens == 0, f"TRL counts tokens elsewhere: {broken}"
    assert trainer._metrics["train"] == {}, f"TRL keeps what it logs elsewhere: {broken}"
    trainer._metrics["train"]["probe"] += [1.0, 3.0]
    trainer.model.train()
    logs = {"loss": 0.0}
    trainer.log(logs)
    assert logs["probe"] == 2.0, f"TRL no longer logs the means of its metrics: {broken}"
    named = [n for n, _ in trainer.model.named_parameters() if "lora_" in n]
    assert all(in_adapter(n, "default") for n in named), f"PEFT names adapters otherwise: {broken}"
    assert isinstance(model.model.layers[0], GradientCheckpointingLayer), (
        f"transformers' layers checkpoint themselves otherwise: {broken}"
    )
