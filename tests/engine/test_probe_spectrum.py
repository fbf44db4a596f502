"""Spectrum: its rule by numpy, planted signals, and layers ranked on a model that has one planted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hialign import load_model
from hialign.engine import spectrum
from hialign.engine.models import load_tokenizer
from hialign.study.settings import ModelSettings

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LLAMA = ModelSettings(source="random:llama:6")


def noise(
    rng: np.random.Generator, shape: tuple[int, int], rank: int, strength: float
) -> np.ndarray:
    """Gaussian noise with a signal of `rank`, whose singular values are `strength` times the edge
    that noise alone has (Marchenko-Pastur, entries of variance 1)."""
    left, _ = np.linalg.qr(rng.normal(size=(shape[0], rank)))
    right, _ = np.linalg.qr(rng.normal(size=(shape[1], rank)))
    edge = np.sqrt(shape[0]) + np.sqrt(shape[1])
    return rng.normal(size=shape) + strength * edge * left @ right.T


def score(matrix: np.ndarray) -> float:
    singular = np.linalg.svd(matrix, compute_uv=False)
    return spectrum.signal_to_noise(singular, (matrix.shape[0], matrix.shape[1]))


@given(st.integers(0, 1000), st.sampled_from([(8, 8), (5, 20), (30, 7), (64, 64)]))
def test_the_rule_by_hand(seed: int, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(seed).normal(size=shape)
    singular = np.linalg.svd(matrix, compute_uv=False)
    edge = stats.iqr(singular) / 1.349 * (1 + (min(shape) / max(shape)) ** 0.5)
    above = sum(s for s in singular if s > edge)
    below = sum(s for s in singular if s <= edge)
    expected = above / below / max(singular) if below else float("inf")
    assert score(matrix) == pytest.approx(expected)
    assert score(matrix) == pytest.approx(score(matrix.T))
    assert score(matrix) == pytest.approx(1000 * score(1000 * matrix))  # small weights rank high


@pytest.mark.parametrize("shape", [(192, 192), (128, 160)])
def test_a_planted_signal_is_found(shape: tuple[int, int]) -> None:
    """Among matrices of one largest value a signal scores above noise, and a stronger one above that.
    Added to noise as it is, it scores below, as the module says."""
    rng = np.random.default_rng(0)
    drawn = {s: [noise(rng, shape, 4, s) for _ in range(8)] for s in (0, 3, 9)}
    alone, weak, strong = ([score(m / np.linalg.norm(m, 2)) for m in ms] for ms in drawn.values())
    assert max(alone) < min(weak)
    assert max(weak) < min(strong)
    assert max(map(score, drawn[9])) < min(map(score, drawn[0]))


def test_noise_alone_is_not_nothing() -> None:
    """The published edge is not that of noise, as the module says: in a large square matrix 0.8 of
    signal to noise. The edge of Marchenko and Pastur has nothing above it."""
    matrix = np.random.default_rng(0).normal(size=(576, 576))
    assert score(matrix) * np.linalg.norm(matrix, 2) == pytest.approx(0.8, abs=0.05)
    assert np.linalg.svd(matrix, compute_uv=False).max() < 1.02 * 2 * np.sqrt(576)


def test_odd_matrices() -> None:
    assert score(np.zeros((4, 4))) == 0.0
    assert score(np.eye(4)) == float("inf")


def planted(folder: Path, layer: int) -> ModelSettings:
    """A random model in which one layer's attention has weights a tenth as large as
    the others': by the published rule, the most signal."""
    model, _ = load_model(LLAMA, "cpu")
    rng = np.random.default_rng(0)
    for number, one in enumerate(model.model.layers):
        for name in PROJECTIONS:
            weight = getattr(one.self_attn, name).weight
            alone = noise(rng, tuple(weight.shape), 1, 0.0)
            weight.data.copy_(weight.new_tensor(alone if number != layer else 0.1 * alone))
    model.save_pretrained(folder)
    load_tokenizer(LLAMA).save_pretrained(folder)
    return ModelSettings(source=str(folder))


@pytest.mark.parametrize("layer", [1, 4])
def test_the_planted_layer_ranks_first(tmp_path: Path, empty_cache: Path, layer: int) -> None:
    settings = planted(tmp_path / "model", layer)
    scores = spectrum.layer_scores(settings, PROJECTIONS)
    assert len(scores) == 6
    assert max(range(6), key=lambda i: scores[i]) == layer
    assert scores[layer] > 0.9  # 1 is first in each of the four types
    assert max(s for i, s in enumerate(scores) if i != layer) < 0.8
    # by scipy, from the matrices themselves
    ratios = spectrum.matrices(settings, PROJECTIONS)
    assert len(ratios) == 24
    expected = [
        np.mean(
            [
                stats.percentileofscore(
                    [ratios[f"model.layers.{i}.self_attn.{p}"] for i in range(6)],
                    ratios[f"model.layers.{number}.self_attn.{p}"],
                    kind="mean",
                )
                for p in PROJECTIONS
            ]
        )
        for number in range(6)
    ]
    # the mean rank, less the half of itself that `kind="mean"` leaves out
    assert scores == pytest.approx([e / 100 + 0.5 / 6 for e in expected])
    assert scores == spectrum.layer_scores(settings, PROJECTIONS)


def test_scores_are_kept_by_weights_and_projections(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = planted(tmp_path / "one", 1), planted(tmp_path / "two", 4)
    known = {s.source: spectrum.layer_scores(s, ["q_proj"]) for s in (first, other)}
    assert known[first.source] != known[other.source]
    spectrum.layer_scores(first, ["v_proj"])
    assert len(list((empty_cache / "spectrum").glob("*.json"))) == 3
    monkeypatch.setattr(spectrum, "load_model", lambda *_: pytest.fail("a model was loaded"))
    assert spectrum.layer_scores(first, ["q_proj"]) == known[first.source]


def test_fused_projections_count_once(empty_cache: Path) -> None:
    settings = ModelSettings(source="random:phi3")
    assert len(spectrum.matrices(settings, PROJECTIONS)) == 12  # qkv_proj and o_proj, six layers
    assert len(spectrum.layer_scores(settings, PROJECTIONS)) == 6
