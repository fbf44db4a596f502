"""What gradients have in common: against plain autograd, with preferences planted and by chance."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import write_study

from hialign import HialignError, load_model, load_study
from hialign.engine.modules import decoder_layers
from hialign.probes.gradients import signal
from hialign.probes.gradients.interaction import interaction
from hialign.probes.gradients.meter import Grams, Meter, norms_of
from hialign.probes.gradients.probe import gradients
from hialign.probes.gradients.sketch import PERIOD, Sketch
from hialign.probes.pairs import ProbePair, contrast_pairs_of
from hialign.records.files import read_json
from hialign.study.blocks import EXPECTED, split_layers

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "planted_gradients.py"


def swapped(pair: ProbePair) -> ProbePair:
    return ProbePair(pair.id, pair.objective, pair.prompt, (pair.tokens[1], pair.tokens[0]))


def log_prob(model: Any, tokens: Any) -> torch.Tensor:
    """By the stock model, unpacked."""
    ids = torch.tensor([tokens.ids])
    logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return logs.gather(-1, ids[0, 1:, None])[tokens.start - 1 :, 0].sum()


def stacked(model: Any, pairs: list[ProbePair], beta: float) -> list[dict[str, np.ndarray]]:
    """By layer and module, each pair's gradient of Eq. 1 as autograd has it, stacked by hand."""
    prefix, _ = decoder_layers(model)
    layers = list(model.get_submodule(prefix))
    rows: list[dict[str, list[np.ndarray]]] = [{} for _ in layers]
    for pair in pairs:
        model.zero_grad()
        margin = log_prob(model, pair.tokens[0]) - log_prob(model, pair.tokens[1])
        (-F.logsigmoid(beta * (margin - margin.detach()))).backward()
        for of_layer, layer in zip(rows, layers, strict=True):
            parts: dict[str, list[np.ndarray]] = {}
            for name, parameter in layer.named_parameters():
                parts.setdefault(name.rpartition(".")[0], []).append(
                    parameter.grad.flatten().numpy().copy()
                )
            for module, vectors in parts.items():
                of_layer.setdefault(module, []).append(np.concatenate(vectors))
    return [{module: np.stack(v) for module, v in of_layer.items()} for of_layer in rows]


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt_neox"])
def test_inner_products_are_those_of_autograd(family: str) -> None:
    model, tokenizer = load_model(f"random:{family}:3")
    pairs = contrast_pairs_of(tokenizer, 1)
    meter = Meter(model)
    _, grams = meter.compare(pairs, 0.1, Sketch(None))
    assert not any(p.grad is not None for p in model.parameters())
    expected = stacked(model, pairs, 0.1)
    for of_layer, vectors, sizes in zip(grams, expected, meter.sizes, strict=True):
        assert list(of_layer) == list(sizes) == list(vectors)
        for module, gram in of_layer.items():
            rows = vectors[module].astype(float)
            assert rows.shape[1] == sizes[module]
            scale = np.abs(rows @ rows.T).max()
            np.testing.assert_allclose(gram, rows @ rows.T, rtol=1e-3, atol=1e-3 * scale)
    # the unbiased norm of the mean gradient of a layer's attention
    tuned = [name for name in meter.sizes[0] if "att" in name and "norm" not in name]
    one = signal.signal_of("made up", grams, ["a", "b", "c"], meter.sizes, tuned)
    for layer, row in enumerate(signal.summary(one, 200, 1)["layers"]):
        rows = np.hstack([expected[layer][module] for module in tuned]).astype(float)
        value = (np.square(rows.sum(0)).sum() - np.square(rows).sum()) / 6
        assert row["signal"] == pytest.approx(value, rel=1e-3, abs=1e-4 * row["energy"])
        assert row["energy"] == pytest.approx(np.square(rows).sum(1).mean(), rel=1e-3)


def test_exchanging_chosen_and_rejected_turns_the_sign_and_no_norm() -> None:
    model, tokenizer = load_model("random:llama:3")
    pairs = contrast_pairs_of(tokenizer, 2)
    meter = Meter(model)
    before, grams = meter.compare(pairs, 0.1, Sketch(None))
    turned = [swapped(pair) if i % 2 else pair for i, pair in enumerate(pairs)]
    after, flipped = meter.compare(turned, 0.1, Sketch(None))
    norms = norms_of(before, meter.sizes)
    np.testing.assert_allclose(norms, norms_of(after, meter.sizes), rtol=1e-4)
    signs = np.array([-1.0 if i % 2 else 1.0 for i in range(len(pairs))])
    for layer, other in zip(grams, flipped, strict=True):
        for module, gram in layer.items():
            expected = gram * np.outer(signs, signs)
            scale = np.abs(gram).max()
            np.testing.assert_allclose(other[module], expected, rtol=1e-3, atol=1e-3 * scale)


# --- sketches ------------------------------------------------------------------------------------


def test_a_sketch_keeps_inner_products_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 50, generator=generator)
    y = 0.5 * x + torch.randn(40, 50, generator=generator)
    exact = float((x * y).sum())
    products = []
    for seed in range(120):
        sketch = Sketch(101, seed)
        products.append(float(sketch.of(x, 3) @ sketch.of(y, 3)))
    assert len(sketch.of(x, 3)) == 101
    error = np.std(products) / 120**0.5
    assert abs(np.mean(products) - exact) < 4 * error
    # |x| |y| / sqrt(dimensions), and what is parallel adds its square
    bound = float((x.square().sum() * y.square().sum() + exact**2) ** 0.5) / 101**0.5
    assert np.std(products) == pytest.approx(bound, rel=0.25)


def test_what_is_small_is_kept_as_it_is() -> None:
    x = torch.randn(10, 5)
    assert torch.equal(Sketch(50).of(x, 0), x.flatten())
    assert torch.equal(Sketch(None).of(x, 0), x.flatten())


def test_a_matrix_with_more_entries_than_there_are_signs() -> None:
    x = torch.randn(PERIOD + 1_000, generator=torch.Generator().manual_seed(0))
    sketch = Sketch(997, seed=1)
    found = sketch.of(x, 7)
    assert float(found @ found) == pytest.approx(float(x @ x), rel=0.2)
    assert torch.equal(found, sketch.of(x, 7))
    assert not torch.equal(found, sketch.of(x, 8))


# --- planted preferences -------------------------------------------------------------------------


def made_up(third: str, n: int = 150, seed: int = 0) -> signal.Signal:
    """Nine layers of one module with gradients in part common to all, and a preference in one third.

    The first layer has gradients a hundred times as large as the last. `none` has labels by chance.
    """
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 20))
    parts = {}
    for block in split_layers(9):
        own = rng.standard_normal((n, 12))
        parts[block] = np.hstack([0.4 * common, own])
    rows = parts.get(third, rng.standard_normal((n, 2)))
    labels = np.sign(rows @ rng.standard_normal(rows.shape[1]))
    grams: Grams = []
    for block, inside in split_layers(9).items():
        for layer in inside:
            noise = 0.3 * rng.standard_normal((n, 12))
            vectors = labels[:, None] * np.hstack([parts[block], noise]) * 100 ** (1 - layer / 8)
            grams.append({"attn.q": vectors @ vectors.T})
    sizes = [{"attn.q": 44} for _ in grams]
    return signal.signal_of("made up", grams, [str(i) for i in range(n)], sizes, ["attn.q"])


@pytest.mark.parametrize("third", ["local", "mid", "global"])
def test_a_planted_third_is_found_whatever_the_trend(third: str) -> None:
    found, most = [], []
    for seed in range(10):
        rows = signal.summary(made_up(third, seed=seed), 200, seed)
        found.append(rows["evidence"][0]["points"])
        most.append(max(rows["thirds"], key=lambda row: row["signal"])["block"])
    assert found.count(third) >= 8
    assert set(found) <= {third, ""}
    assert third != "global" or most.count("global") <= 2  # the plain signal follows the trend


def test_labels_by_chance_are_found_nowhere() -> None:
    rows = [signal.summary(made_up("none", 60, seed), 200, seed) for seed in range(40)]
    assert [row["evidence"][0]["points"] for row in rows].count("") >= 38
    p = np.array([row["p"] for one in rows for row in one["layers"]])
    assert 0.01 < (p < 0.05).mean() < 0.11  # layers are not independent
    wrong = [min(row["p_holm"] for row in one["layers"]) < 0.05 for one in rows]
    assert np.mean(wrong) <= 0.125  # of 40, at 5%
    thirds = [row for one in rows for row in one["thirds"] if row["p_whole"] >= 0.05]
    assert all(row["share"] is None for row in thirds)


def test_the_shares_interval_covers_the_truth() -> None:
    """Signals of 1, 4 and 0 by construction, in noise whose size differs by prompt."""
    covered, rng = [], np.random.default_rng(0)
    for _ in range(200):
        means = [np.eye(20)[0], 2 * np.eye(20)[1], np.zeros(20)]
        size = np.exp(0.4 * rng.standard_normal((40, 1)))
        size /= np.exp(0.08)  # of mean 1
        grams = []
        for mean in means:
            vectors = size * (mean + 0.5 * rng.standard_normal((40, 20)))
            grams.append({"m": vectors @ vectors.T})
        one = signal.signal_of("x", grams, [str(i) for i in range(40)], [{"m": 20}] * 3, ["m"])
        signs = np.where(rng.random((100, 40)) < 0.5, -1.0, 1.0)
        row = signal.thirds_of(one, signs)[0]
        covered.append(row["share_low"] <= 0.2 <= row["share_high"])
    assert 0.9 < np.mean(covered) <= 1


def contrasts(effect: float, seed: int, n: int = 30) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Gram matrices (9 x pairs x pairs): objectives of unequal strength, whose signal falls with depth,
    and is larger by the factor in the objective's own third."""
    rng = np.random.default_rng(seed)
    strength = dict(zip(EXPECTED, (0.7, 1.0, 1.4), strict=True))
    places = {o: list(range(i * n, (i + 1) * n)) for i, o in enumerate(EXPECTED)}
    layers = []
    for block, inside in split_layers(9).items():
        for layer in inside:
            shared, rows = rng.standard_normal(25), []
            noise = rng.standard_normal((n, 25))
            for objective, own in EXPECTED.items():
                mean = strength[objective] * (1.2 - layer / 12) * (effect if own == block else 1)
                direction = shared + rng.standard_normal(25)
                direction *= 5 / np.linalg.norm(direction)
                rows.append(mean * direction + 2 * noise + 2 * rng.standard_normal((n, 25)))
            vectors = np.vstack(rows)
            layers.append(vectors @ vectors.T)
    return np.stack(layers), places


def test_objectives_in_their_own_thirds() -> None:
    for row in interaction(*contrasts(2.0, 1), EXPECTED, 200, 1):
        assert row["reason"] is None
        assert row["difference"] > row["difference_low"] > 0.1
        assert row["p_holm"] < 0.01
        if row["objective"] != "all":
            assert row["local"] + row["mid"] + row["global"] == pytest.approx(1)
    null = [interaction(*contrasts(1.0, seed), EXPECTED, 200, 1)[-1]["p"] for seed in range(100)]
    assert np.mean(np.array(null) < 0.05) <= 0.1  # of 100, at 5%
    (*_, few) = interaction(*contrasts(2.0, 1, 4), EXPECTED, 200, 1)
    assert "4 prompts have all objectives" in few["reason"]
    assert few["p"] is None


def test_objectives_without_a_signal_have_no_shares() -> None:
    layers, places = contrasts(2.0, 1)
    turned = np.where(np.random.default_rng(0).random(90) < 0.5, -1.0, 1.0)
    rows = interaction(layers * np.outer(turned, turned), places, EXPECTED, 200, 1)
    assert "no signal above chance" in rows[0]["reason"]
    assert rows[0]["local"] is None


# --- the record ----------------------------------------------------------------------------------

PROBES: dict[str, Any] = {
    "pairs": 7,
    "max_length": 768,
    "resamples": 200,
    "gradients": {"contrast_prompts": 3, "permutations": 200, "flips": 200, "at_steps": []},
}
SMALL = [{"source": "random:llama:4", "name": "small"}]


def test_the_record_of_the_signal(tmp_path: Path, outputs: Path) -> None:
    study = load_study(write_study(tmp_path, models=SMALL, probes=PROBES))
    record = gradients(study.cell(None, "base"))
    part = record["signal"]
    assert part["tuned"] == [f"self_attn.{x}_proj" for x in "qkvo"]
    assert part["sketch"] == 4093
    sources = ["preference", *EXPECTED]
    assert [row["source"] for row in part["evidence"]] == sources
    for source in sources:
        rows = {n: [r for r in part[n] if r["source"] == source] for n in ("layers", "thirds")}
        values = np.array([row["signal"] for row in rows["layers"]])
        raw = part["raw"][source]
        assert len(raw["prompts"]) == rows["layers"][0]["n"] == (7 if source == "preference" else 3)
        np.testing.assert_allclose(np.mean(raw["influences"], axis=0), values, rtol=1e-3, atol=1e-6)
        assert np.shape(raw["flips"]) == (4, 200)
        for row, flips in zip(rows["layers"], raw["flips"], strict=True):
            assert row["flipped_std"] == pytest.approx(np.std(flips, ddof=1), rel=1e-3)
            as_large = sum(f >= row["signal"] - 1e-4 * row["flipped_std"] for f in flips)
            assert row["p"] == pytest.approx((1 + as_large) / 201, rel=1e-4)
            assert row["parameters"] == 3072
        for row, inside in zip(rows["thirds"], ([0, 1], [2], [3]), strict=True):
            assert row["signal"] == pytest.approx(values[inside].sum(), rel=1e-4, abs=1e-6)
            assert row["parameters"] == 3072 * len(inside)
        for row in (r for r in part["modules"] if r["source"] == source):
            assert row["parameters"] == record["parameters"][row["layer"]][row["module"]]
    for row in part["evidence"]:
        assert sum(row["probability"].values()) == pytest.approx(1, rel=1e-4)
    assert [row["objective"] for row in part["interaction"]] == [*EXPECTED, "all"]
    preference = [r for r in part["layers"] if r["source"] == "preference"]
    np.testing.assert_allclose(record["layer_scores"], [r["over_chance"] for r in preference], 1e-4)
    assert len(json.dumps(record)) < 2e6


def test_pairs_that_are_contrasts_are_measured_once(tmp_path: Path, outputs: Path) -> None:
    builtin = {"preferences": {"source": "builtin", "train": 4, "evaluation": 9}}
    chosen = {**PROBES, "pairs": 9, "gradients": {**PROBES["gradients"], "contrast_prompts": 2}}
    study = load_study(write_study(tmp_path, models=SMALL, probes=chosen, **builtin))
    record = gradients(study.cell(None, "base"))
    assert len(record["pairs"]["preference"]) == 9
    for objective in EXPECTED:
        of_objective = [p["id"] for p in record["pairs"][objective]]
        assert len(of_objective) == 3
        assert set(of_objective) < {p["id"] for p in record["pairs"]["preference"]}


def test_one_prompt_has_nothing_in_common(tmp_path: Path, outputs: Path) -> None:
    builtin = {"preferences": {"source": "builtin", "train": 4, "evaluation": 3}}
    study = write_study(tmp_path, models=SMALL, probes={**PROBES, "pairs": 3}, **builtin)
    with pytest.raises(HialignError, match=r"all of one prompt.*raise probes\.pairs"):
        gradients(load_study(study).cell(None, "base"))


# --- the benchmark -------------------------------------------------------------------------------


@pytest.fixture
def benchmark() -> Any:
    """benchmarks/planted_gradients.py"""
    spec = importlib.util.spec_from_file_location("planted_gradients", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_planted_third_is_found_and_chance_is_not(benchmark: Any) -> None:
    """The published figures, counted anew: 20 models of families that no test uses."""
    record = read_json(BENCHMARK.parent / "results" / "planted_gradients.json")
    assert len(record["models"]) == 20
    lines = json.loads(json.dumps(benchmark.summary(record["models"])))
    assert lines == record["summary"]
    by_kind = {(line["pairs"], line["made_in"]): line for line in lines}
    for pairs in benchmark.SIZES:
        chance = by_kind[pairs, "none"]
        assert chance["n"] == 400
        assert chance["found_elsewhere"] <= 0.05 * chance["n"]
        for third in benchmark.THIRDS:
            line = by_kind[pairs, f"{third}, 0.02"]
            assert line["n"] == 20
            assert line["found_elsewhere"] == 0
            if pairs == benchmark.PAIRS:
                assert line["found_there"] >= 14
                assert line["likeliest_third"][third] >= 18


@pytest.mark.slow
def test_the_benchmark_measures_what_it_published(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first model, with as few pairs as are enough to compare."""
    few, kinds = benchmark.SIZES[0], [f"{third}, 0.02" for third in benchmark.THIRDS]
    record = read_json(BENCHMARK.parent / "results" / "planted_gradients.json")
    first = record["models"][0]
    for name, value in {"PAIRS": few, "SIZES": (few,), "CHANGES": (0.02,), "CHANCE": 1}.items():
        monkeypatch.setattr(benchmark, name, value)
    measured = benchmark.measured(first["family"], first["seed"])
    for kind in kinds:
        expected, found = (
            next(r for r in model["rows"] if (r["pairs"], r["made_in"]) == (few, kind))
            for model in (first, measured)
        )
        assert found == expected
