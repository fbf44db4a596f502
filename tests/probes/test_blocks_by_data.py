"""Cells whose block is a window, a draw, another rank, LISA, or what a probe found: trained for real."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    BASE,
    adapter_in,
    adapter_of,
    made_pairs,
    messages,
    one_line,
    relative,
    same,
    timeless,
)

from hialign import HialignError, evaluate, layers_of, load_model, load_study, respond, train
from hialign.engine import cells as training
from hialign.engine import dpo
from hialign.engine.models import identity
from hialign.engine.trainer import sampled_layers
from hialign.records.files import read_json, read_jsonl, write_json
from hialign.records.status import cell_status
from hialign.study import paths
from hialign.study.blocks import Choice, choice_of
from hialign.study.settings import ModelSettings, TrainingSettings
from hialign.study.study import Cell

SCORES = [0.1, 0.9, 0.2, 0.3, 0.8, 0.0]  # 1 and 4 are the third that scores highest


@pytest.fixture
def cell(tiny_study: Callable[..., Path], outputs: Path) -> Callable[..., Cell]:
    """`cell("lisa:2", lora_dropout=0.1)`: a cell of a tiny study, its training settings changed."""

    def get(
        block: str, model: str = "random:llama", probes: dict[str, Any] | None = None, **own: Any
    ) -> Cell:
        path = tiny_study(
            models=[model], training=own, preferences={"train": 24}, probes=probes or {}
        )
        return load_study(path).cell(None, block)

    return get


def write_record(cell: Cell, probe: str, key: str = "first", scores: Any = SCORES) -> Path:
    """A probe's record as far as blocks read it, as if the probe had run with the cell's settings."""
    path = paths.probe_record(cell.study.name, cell.model.name, probe)
    known = {"fingerprint": cell.probe_fingerprint(probe), "key": key, "layer_scores": scores}
    write_json(path, known)
    return path


def adapted_layers(weights: dict[str, Any]) -> list[int]:
    return sorted({int(re.search(r"layers\.(\d+)\.", n)[1]) for n in weights})  # type: ignore[index]


# --- each kind, as PEFT loads it -----------------------------------------------------------------

KINDS = [  # block, its layers, rank (the study's is 8), whose record it needs
    ("window:1-4", [1, 2, 3, 4], 8, ""),
    ("random:30%:3", layers_of("random:30%:3", 6), 8, ""),
    ("full:r3", [0, 1, 2, 3, 4, 5], 3, ""),
    ("lisa:2", [0, 1, 2, 3, 4, 5], 8, ""),
    ("gradient:top30%", [1, 4], 8, "gradients"),
    ("ila:top50%", [1, 3, 4], 8, "ila"),
    ("patching:top10%", [1], 8, "patching"),
]


def test_the_adapters_that_peft_loads(cell: Callable[..., Cell]) -> None:
    from peft import PeftModel

    study = cell("full", lora_rank=8, lora_alpha=20).study
    cells = {kind[0]: study.cell(None, kind[0]) for kind in KINDS}
    for block, *_, probe in KINDS:
        if probe:
            write_record(cells[block], probe)
    training.train_together(list(cells.values()))
    for block, layers, rank, probe in KINDS:
        manifest = read_json(cells[block].folder / "manifest.json")
        assert manifest["layers"] == layers, block
        assert manifest["confinement"]["adapted_layers"] == layers, block
        assert manifest["chosen_by"] == ("first" if probe else None)
        assert cell_status(cells[block]) == "done"
        base, _ = load_model("random:llama")
        model = PeftModel.from_pretrained(base, cells[block].folder / "adapter")
        config = model.peft_config["default"]
        assert config.r == rank, block
        assert config.lora_alpha == 20 * rank / 8, block
        weights = {n: p for n, p in model.named_parameters() if "lora_" in n}
        assert adapted_layers(weights) == layers, block
        assert len(weights) == 8 * len(layers), block
        assert {p.shape[0] for n, p in weights.items() if "lora_A" in n} == {rank}, block
        adapted = [m for m in model.modules() if hasattr(m, "lora_A")]
        assert {m.scaling["default"] for m in adapted} == {20 / 8}, block
        assert sum(p.numel() for p in weights.values()) == manifest["trainable_parameters"]


def test_the_weights_alone_choose_spectrums_layers(cell: Callable[..., Cell]) -> None:
    from hialign.engine.spectrum import layer_scores

    trained = cell("spectrum:top30%")
    scores = layer_scores(trained.model, trained.study.training.target_modules)
    best = sorted(sorted(range(6), key=lambda layer: -scores[layer])[:2])
    assert train(trained)["layers"] == adapted_layers(adapter_of(trained)) == best


def test_full_at_a_third_of_the_rank_has_a_thirds_parameters(cell: Callable[..., Cell]) -> None:
    """Rank 5 of 16: 5/16 of full's, where a third of the layers is 1/3."""
    study = cell("full:r5").study
    mid, low = training.train_together([study.cell(None, b) for b in ("mid", "full:r5")])
    assert low["trainable_parameters"] / mid["trainable_parameters"] == pytest.approx(15 / 16)


@pytest.mark.parametrize("block", ["random:30%:3", "patching:top30%"])
def test_the_stages_after_training(cell: Callable[..., Cell], block: str) -> None:
    trained = cell(block)
    if block.startswith("patching"):
        write_record(trained, "patching")
    train(trained)
    respond(trained)
    found = evaluate(trained)
    assert re.fullmatch(r"[\w-]+", trained.folder.name)
    assert len(read_jsonl(trained.folder / "responses.jsonl")) == 6
    assert found["objectives"]["all"]["n"] == 8
    assert found["objectives"]["all"]["reward_margin"] != 0
    assert {cell_status(trained, s) for s in ("train", "respond", "evaluate")} == {"done"}


# --- LISA ----------------------------------------------------------------------------------------


def test_what_lisa_draws() -> None:
    drawn = [sampled_layers(30, 5, step, seed=42) for step in range(1000)]
    assert all(len(set(one)) == 10 and one == sorted(one) for one in drawn)
    for start in range(0, 1000, 5):  # a period's steps tune the same layers
        assert len({tuple(one) for one in drawn[start : start + 5]}) == 1
    assert len({tuple(one) for one in drawn[::5]}) == 200
    counts = np.bincount([layer for one in drawn[::5] for layer in one], minlength=30)
    assert abs(counts - 200 / 3).max() < 4.5 * (200 * 2 / 9) ** 0.5  # binomial
    assert drawn != [sampled_layers(30, 5, step, seed=43) for step in range(1000)]
    assert [len(sampled_layers(depth, 1, 0, 0)) for depth in (1, 3, 4, 5, 6)] == [1, 1, 1, 2, 2]


def lisa_run(
    work: Path, engine: str, layers: dict[str, Sequence[int] | Choice], **changed: Any
) -> tuple[Any, list[list[int]]]:
    """Six steps; the trainer, and the layers whose `lisa:2` adapter changed in each."""
    from transformers import TrainerCallback

    seen: list[list[int]] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        before: dict[str, Any]

        def now(self, model: Any) -> dict[str, Any]:
            adapter = f".{trainer_adapter}."
            found = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}
            return {n: p.clone() for n, p in found.items() if adapter in n}

        def on_step_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            self.before = self.now(model)

        def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            after = self.now(model)
            moved = {n: 0 for n in after if not after[n].equal(self.before[n])}
            seen.append(adapted_layers(moved))

    place = list(layers).index("lisa:2")
    trainer_adapter = f"strategy{place}" if place else "default"
    settings = TrainingSettings(**(BASE | {"engine": engine} | changed))
    model, tokenizer = load_model("random:llama")
    trainer = dpo.train_blocks(
        *(model, tokenizer, messages(made_pairs(24, seed=1)), layers, settings),
        *(identity(ModelSettings(source="random:llama")), work, [Watch()]),
    )
    return trainer, seen


def test_lisa_tunes_a_third_of_the_layers_at_a_time_in_both_engines(tmp_path: Path) -> None:
    """Stock TRL, its parameters frozen from outside, is the reference."""
    lisa = {"lisa:2": choice_of("lisa:2", 6)}
    adapters = []
    for engine in ("packed", "stock"):
        trainer, seen = lisa_run(tmp_path / engine, engine, lisa)
        assert seen == [sampled_layers(6, 2, step, seed=42) for step in range(6)]
        assert len({tuple(one) for one in seen}) > 1
        adapters.append(adapter_in(trainer, "default"))
    assert relative(*adapters) < 1e-5
    other, seen = lisa_run(tmp_path / "seed", "packed", lisa, seed=7)
    assert seen == [sampled_layers(6, 2, step, seed=7) for step in range(6)]
    assert relative(adapter_in(other, "default"), adapters[0]) > 0.1


def test_lisa_is_the_same_among_others(tmp_path: Path) -> None:
    """First, last and in the middle of a pass: what it freezes is its own and nothing else's."""
    others = {b: choice_of(b, 6) for b in ("mid", "full:r3", "random:30%:3")}
    lisa = {"lisa:2": choice_of("lisa:2", 6)}
    alone, drawn = lisa_run(tmp_path / "alone", "packed", lisa, lora_dropout=0.1)
    expected = {"lisa:2": adapter_in(alone, "default")}
    settings = TrainingSettings(**(BASE | {"lora_dropout": 0.1}))
    model, tokenizer = load_model("random:llama")
    without = dpo.train_blocks(
        *(model, tokenizer, messages(made_pairs(24, seed=1)), others, settings),
        *(identity(ModelSettings(source="random:llama")), tmp_path / "without"),
    )
    expected |= {s.block: adapter_in(without, s.adapter) for s in without.strategies}
    for number, order in enumerate([lisa | others, others | lisa]):
        together, seen = lisa_run(tmp_path / f"{number}", "packed", order, lora_dropout=0.1)
        assert seen == drawn
        for strategy in together.strategies:
            found = adapter_in(together, strategy.adapter)
            assert relative(found, expected[strategy.block]) < 1e-6, strategy.block


@pytest.mark.parametrize("engine", ["packed", "stock"])
def test_lisa_goes_on_where_it_was(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    from transformers import TrainerCallback

    class CtrlC(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    lisa = cell("lisa:3", engine=engine)  # the checkpoint of step 4 lies within a period
    train(lisa)
    steps, adapter = read_jsonl(lisa.folder / "training.jsonl"), adapter_of(lisa)
    shutil.rmtree(outputs)
    original = dpo.train_blocks
    with monkeypatch.context() as patched:
        patched.setattr(dpo, "train_blocks", lambda *a, **k: original(*a, **k, callbacks=[CtrlC()]))
        with pytest.raises(KeyboardInterrupt):
            train(lisa)
    assert [p.name for p in outputs.rglob("checkpoint-*")] == ["checkpoint-4"]
    train(lisa)
    assert timeless(read_jsonl(lisa.folder / "training.jsonl")) == timeless(steps)
    assert same(adapter_of(lisa), adapter)
    assert not list(outputs.rglob("checkpoint-*"))  # the next run starts from its beginning


# --- blocks that a probe chooses -----------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_model", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("block", "probe"),
    [("gradient:top30%", "gradients"), ("ila:top30%", "ila"), ("patching:top30%", "patching")],
)
@pytest.mark.usefixtures("no_model")
def test_without_its_record_a_block_is_refused(
    cell: Callable[..., Cell], outputs: Path, block: str, probe: str
) -> None:
    study = cell(block).study
    with pytest.raises(HialignError) as caught:
        training.train_together([study.cell(None, "mid"), study.cell(None, block)])
    assert one_line(caught) == (
        f"block {block}: the record of the {probe} probe of random-llama in study tiny is missing: "
        f"run `hialign run probe-{probe} -p study {study.argument}` first"
    )
    assert not outputs.exists()


@pytest.mark.usefixtures("no_model")
def test_a_record_of_other_settings_is_refused(cell: Callable[..., Cell]) -> None:
    write_record(cell("patching:top30%"), "patching")
    for changed in (
        {"beta": 0.2},
        {"probes": {"seed": 1}},
        {"probes": {"patching": {"window": 2}}},
    ):
        with pytest.raises(HialignError, match="is stale"):
            train(cell("patching:top30%", **changed))


@pytest.mark.usefixtures("no_model")
def test_a_record_that_found_nothing_is_refused(cell: Callable[..., Cell]) -> None:
    measured = cell("patching:top30%")
    write_record(measured, "patching", scores=None)
    with pytest.raises(HialignError, match=r"ranks no layer .*: leave the block out") as caught:
        train(measured)
    one_line(caught)
    write_record(measured, "patching", scores=[0.5] * 5)
    with pytest.raises(HialignError, match="its record has 5 scores for 6 layers"):
        train(measured)


def test_another_record_makes_a_cell_stale(cell: Callable[..., Cell]) -> None:
    """The settings are the same, but what the probe measured (an adapter, say) is not."""
    measured = cell("patching:top30%")
    mid = measured.study.cell(None, "mid")
    write_record(measured, "patching")
    training.train_together([mid, measured])
    respond(measured)
    assert adapted_layers(adapter_of(measured)) == [1, 4]
    record = write_record(measured, "patching", "second", SCORES[::-1])
    assert {cell_status(measured, s) for s in ("train", "respond")} == {"stale"}
    assert cell_status(mid) == "done"
    assert train(measured)["chosen_by"] == "second"
    assert adapted_layers(adapter_of(measured)) == [1, 4]
    assert cell_status(measured) == "done"
    record.unlink()  # nothing to compare with
    assert cell_status(measured) == "done"


def test_what_costs_only_leaves_a_measured_cell_as_it_is(cell: Callable[..., Cell]) -> None:
    known = cell("ila:top30%").fingerprint("train")
    assert cell("ila:top30%", tokens_per_pass=99, save_steps=7).fingerprint("train") == known
    other_probe = {"probes": {"patching": {"window": 2}}}
    assert cell("ila:top30%", **other_probe).fingerprint("train") == known
    assert cell("ila:top30%", probes={"ila": {"gate_steps": 3}}).fingerprint("train") != known
    assert cell("ila:top30%", probes={"seed": 3}).fingerprint("train") != known
    assert cell("mid", probes={"seed": 3}).fingerprint("train") == cell("mid").fingerprint("train")


def test_checkpoints_of_other_layers_are_not_used(
    cell: Callable[..., Cell], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record changes while a pass is interrupted: it begins anew."""
    study = cell("ila:top30%").study
    cells = [study.cell(None, b) for b in ("mid", "ila:top30%")]
    write_record(cells[0], "ila")
    original = dpo.train_blocks

    def killed(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dpo, "train_blocks", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_together(cells)
    (first,) = (outputs / "tiny" / ".checkpoints" / "random-llama").iterdir()
    assert list(first.glob("checkpoint-*"))
    write_record(cells[0], "ila", "second", [9.0, 0, 0, 0, 0, 8.0])
    seen: list[Path] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["work"])
        return original(*args, **kwargs)

    monkeypatch.setattr(dpo, "train_blocks", watched)
    training.train_together(cells)
    assert seen != [first]
    assert not first.exists()
    assert adapted_layers(adapter_of(cells[1])) == [0, 5]
    assert read_json(cells[1].folder / "manifest.json")["chosen_by"] == "second"
