"""The gradient probe, against plain autograd on the stock model, with planted truths and nulls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import write_study

from hialign import HialignError, load_model, load_study
from hialign.engine.measures import scores_of
from hialign.engine.modules import decoder_layers
from hialign.engine.tokens import Tokens
from hialign.probes.gradients.meter import Meter, norms_of
from hialign.probes.gradients.probe import gradients
from hialign.probes.gradients.trend import inequality
from hialign.probes.pairs import ProbePair, contrast_pairs_of
from hialign.records.files import read_jsonl
from hialign.study import paths
from hialign.study.settings import ModelSettings

PROBES: dict[str, Any] = {
    "pairs": 6,
    "max_length": 768,
    "resamples": 200,
    "gradients": {
        "contrast_prompts": 3,
        "permutations": 200,
        "at_steps": [1, 2],
        "along_pairs": 2,
    },
}

SMALL = [{"source": "random:llama:4", "name": "small"}]  # blocks of two, one and one layer


def log_prob(model: torch.nn.Module, tokens: Tokens) -> torch.Tensor:
    """By the stock model, unpacked."""
    ids = torch.tensor([tokens.ids])
    found = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    picked = found.gather(-1, ids[0, 1:, None])[:, 0]
    return picked[tokens.start - 1 :].sum()


def by_autograd(
    model: torch.nn.Module, pair: ProbePair, beta: float, reference: float | None
) -> list[float]:
    """Each layer's gradient norm over the root of its number of parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.zero_grad()
    margin = log_prob(model, pair.tokens[0]) - log_prob(model, pair.tokens[1])
    against = float(margin.detach()) if reference is None else reference
    (-F.logsigmoid(beta * (margin - against))).backward()
    prefix, _ = decoder_layers(model)
    norms = []
    for layer in model.get_submodule(prefix):  # type: ignore[attr-defined]
        kept = [p for n, p in layer.named_parameters() if "lora_" not in n]
        squares = sum(float(p.grad.square().sum()) for p in kept)
        norms.append((squares / sum(p.numel() for p in kept)) ** 0.5)
    model.zero_grad()
    return norms


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3_text"])
def test_norms_are_those_of_autograd(family: str, outputs: Path) -> None:
    cell = load_study("smoke").cell(f"random:{family}:4", "base")
    model, tokenizer = load_model(cell.model)
    pairs = contrast_pairs_of(tokenizer, 1)
    wanted = {p: p.requires_grad for p in model.parameters()}
    for references in (None, [1.5] * len(pairs)):
        meter = Meter(model)
        found = norms_of(meter.measure(pairs, 0.1, references), meter.sizes)
        assert all(p.requires_grad == wanted[p] and p.grad is None for p in model.parameters())
        for i, (pair, norms) in enumerate(zip(pairs, found, strict=True)):
            expected = by_autograd(model, pair, 0.1, references and references[i])
            np.testing.assert_allclose(norms, expected, rtol=2e-4)
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)


@pytest.mark.slow
def test_the_record(tmp_path: Path, outputs: Path) -> None:
    study = load_study(write_study(tmp_path, models=SMALL, probes=PROBES))
    cell = study.cell(None, "base")
    found = gradients(cell)
    assert found["depth"] == 4
    assert len(found["layer_scores"]) == 4
    assert {name: len(rows) for name, rows in found["pairs"].items()} == {
        **{"preference": 6, "grammar": 3, "coherence": 3, "factuality": 3}
    }
    means = {(r["source"], r["layer"]): r for r in found["layers"]}
    for source, rows in found["pairs"].items():
        norms = np.array([row["norms"] for row in rows])
        for layer in range(4):
            row = means[source, layer]
            assert row["rms"] == pytest.approx(norms[:, layer].mean(), rel=1e-4)
            if len(rows) < 5:  # too few for an interval
                assert row["rms_low"] is row["rms_high"] is None
            else:
                assert row["rms_low"] <= row["rms"] <= row["rms_high"]
            size = sum(found["parameters"][layer].values())
            assert row["total"] == pytest.approx(row["rms"] * size**0.5)
    for layer, size in enumerate(found["parameters"]):
        of_layer = [r for r in found["modules"] if (r["source"], r["layer"]) == ("grammar", layer)]
        assert {r["module"] for r in of_layer} == set(size)
        assert all(r["rms_low"] is None for r in of_layer)  # of three pairs
    # a block's squared norm is the sum of its layers'
    for row in (r for r in found["blocks"] if r["source"] == "grammar"):
        layers = {"local": [0, 1], "mid": [2], "global": [3]}[row["block"]]
        squares = [
            sum(p["norms"][i] ** 2 * sum(found["parameters"][i].values()) for i in layers)
            for p in found["pairs"]["grammar"]
        ]
        assert row["total"] == pytest.approx(np.sqrt(squares).mean(), rel=1e-4)
    assert {row["step"] for row in found["along"]} == {0, 1, 2}
    assert all(row["rms_low"] is None for row in found["along"])  # of two pairs
    assert len(found["inequality"]) == 6
    # kept: the same again is read, not computed; other settings are computed
    path = paths.probe_record("tiny", "small", "gradients")
    before = path.stat().st_mtime_ns
    assert gradients(cell) == found
    assert path.stat().st_mtime_ns == before
    assert scores_of(cell, "gradient") == found["layer_scores"]
    fewer = write_study(tmp_path, models=SMALL, probes={**PROBES, "pairs": 5})
    other = load_study(fewer).cell(None, "base")
    with pytest.raises(HialignError, match=r"is stale \(probes\.pairs was 6 and is 5\)"):
        scores_of(other, "gradient")
    assert len(gradients(other)["pairs"]["preference"]) == 5


def test_along_training_is_the_gradient_of_the_tuned_model(tmp_path: Path, outputs: Path) -> None:
    """After the last step of training: the loss of Eq. 1 by autograd on what `train` saves."""
    from peft import PeftModel

    from hialign import train

    study = load_study(write_study(tmp_path, models=SMALL, blocks=["full"], probes=PROBES))
    steps = len(_steps_of(study.cell(None, "full"), train))
    chosen = {**PROBES, "gradients": {**PROBES["gradients"], "at_steps": [steps]}}
    measured = load_study(write_study(tmp_path, models=SMALL, blocks=["full"], probes=chosen))
    cell = measured.cell(None, "full")
    found = gradients(cell)
    model, tokenizer = load_model(cell.model)
    pairs = [p for p in contrast_pairs_of(tokenizer, 3) if p.objective == "grammar"][:2]
    with torch.no_grad():
        base = [float(log_prob(model, p.tokens[0]) - log_prob(model, p.tokens[1])) for p in pairs]
    tuned = PeftModel.from_pretrained(model, cell.folder / "adapter").eval()
    inner = tuned.get_base_model()
    beta = cell.study.training.beta
    norms = [by_autograd(inner, p, beta, r) for p, r in zip(pairs, base, strict=True)]
    rows = [r for r in found["along"] if r["step"] == steps and r["source"] == "grammar"]
    np.testing.assert_allclose([r["rms"] for r in rows], np.mean(norms, axis=0), rtol=1e-3)
    untrained = [r for r in found["along"] if r["step"] == 0 and r["source"] == "grammar"]
    assert not np.allclose([r["rms"] for r in rows], [r["rms"] for r in untrained], rtol=1e-3)


def _steps_of(cell: Any, train: Any) -> list[dict[str, Any]]:
    train(cell)
    return read_jsonl(cell.folder / "training.jsonl")


def test_a_planted_layer_is_found() -> None:
    """Where a layer's norms are zero its weights see nothing, so that none of them matters."""
    model, tokenizer = load_model(ModelSettings(source="random:llama:6"))
    for number, layer in enumerate(model.model.layers):
        if number != 4:
            layer.input_layernorm.weight.data.zero_()
            layer.post_attention_layernorm.weight.data.zero_()
    meter = Meter(model)
    (pair, *_) = meter.measure(contrast_pairs_of(tokenizer, 1)[:1], 0.1)
    weights = [{n: v for n, v in layer.items() if n.endswith("proj")} for layer in pair["squares"]]
    found = [sum(layer.values()) for layer in weights]
    assert found[4] > 0
    assert all(value == 0 for i, value in enumerate(found) if i != 4)


def made(effect: float, prompts: int = 20, seed: int = 1) -> tuple[Any, Any]:
    """Norms with a depth trend and noise; each objective's own block larger by the factor."""
    rng = np.random.default_rng(seed)
    blocks = {"grammar": range(3), "coherence": range(3, 6), "factuality": range(6, 9)}
    trend = np.exp(-0.5 * np.arange(9))
    norms = {}
    for objective, layers in blocks.items():
        values = trend * np.exp(rng.normal(0, 0.2, (prompts, 9)))
        values[:, list(layers)] *= effect
        norms[objective] = values
    return norms, {o: [f"p{i}" for i in range(prompts)] for o in blocks}


def test_the_inequality_finds_what_was_planted_and_nothing_else() -> None:
    rows = inequality(*made(3.0), 500, 1)
    assert len(rows) == 6
    for row in rows:
        assert row["detrended"] > 2
        assert row["detrended_low"] > 1.5
        assert row["p_above"] < 0.01
        assert row["p_below"] > 0.9
    local = next(r for r in rows if (r["objective"], r["other"]) == ("grammar", "global"))
    assert local["ratio"] > 20  # the trend alone makes most of it
    for row in inequality(*made(1 / 3.0), 500, 1):
        assert row["detrended_high"] < 1
        assert row["p_below"] < 0.01
    null = [
        row["p_above"] for seed in range(40) for row in inequality(*made(1.0, 12, seed), 200, 1)
    ]
    assert 0.01 < np.mean(np.array(null) < 0.05) < 0.11  # 5%, of 240 that are not independent


def test_the_inequality_is_a_number_worked_by_hand() -> None:
    kin = {o: ["a", "b"] for o in ("grammar", "coherence", "factuality")}
    flat = np.ones((2, 3))
    norms = {"grammar": flat * [8.0, 1, 1], "coherence": flat, "factuality": flat}
    row = inequality(norms, kin, 200, 1)[0]
    assert (row["block"], row["other"], row["n"]) == ("local", "mid", 2)
    assert row["ratio"] == pytest.approx(8)
    assert row["detrended"] == pytest.approx(8 ** (2 / 3))
    # both prompts keep grammar's value in its place in one of nine permutations
    assert row["p_above"] == pytest.approx(1 / 9, abs=0.08)


def test_too_few_pairs_are_refused(tmp_path: Path, outputs: Path) -> None:
    study = write_study(tmp_path, probes={**PROBES, "pairs": 99})
    with pytest.raises(
        HialignError, match=r"probes\.pairs asks for 99 pairs, but of the 8 held-out"
    ):
        gradients(load_study(study).cell(None, "base"))
