"""The sweep over depth: separate runs' margins, a planted layer, and nothing where nothing is."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import one_line, planted
from hypothesis import given
from hypothesis import strategies as st

from hialign import HialignError, evaluate, load_study, respond, split_layers, train
from hialign.probes import sweep
from hialign.study import paths
from hialign.study.study import Cell

SETTINGS = {"learning_rate": 0.01, "lora_rank": 6, "lora_dropout": 0.0}
PLANTED = SETTINGS | {"target_modules": ["q_proj", "k_proj"]}


@pytest.fixture
def cell(tiny_study: Callable[..., Path], outputs: Path) -> Callable[..., Cell]:
    def get(model: str = "random:llama:6", training: dict[str, Any] = SETTINGS, **own: Any) -> Cell:
        probes = {"pairs": 8, "resamples": 200, "sweep": own}
        path = tiny_study(models=[model], training=training, probes=probes)
        return load_study(path).cell(None, "full")

    return get


def rows_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    every = [*record["windows"], *record["singles"], *record["controls"]]
    return {row["block"]: row for row in every}


# --- the whole of it, on a model -----------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_is_its_blocks_trained_one_by_one(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against `train` and `evaluate`, whose numbers are stock TRL's and transformers' own."""
    swept = cell()
    record = sweep.sweep(swept)
    rows = rows_of(record)
    assert (record["depth"], record["size"], record["train"]) == (6, 2, 16)
    assert [(r["first"], r["last"]) for r in record["windows"]] == list(pairwise(range(6)))
    assert [(r["first"], r["last"]) for r in record["singles"]] == [(i, i) for i in range(6)]
    names = [row["block"] for row in record["controls"]]
    assert names[:5] == ["full", "local", "mid", "global", "full:r2"]
    assert [n.startswith("random:33%:") for n in names[5:]] == [True] * 3
    for block in ("window:1-2", "layers:4", "full:r2", names[5]):
        one = Cell(swept.study, swept.model, block)
        manifest = train(one)
        respond(one)
        found = evaluate(one)
        of_id = {p["id"]: p for p in found["pairs"]}
        for pair, margin in zip(record["pairs"], rows[block]["margins"], strict=True):
            p = of_id[pair["id"]]
            expected = found["beta"] * (
                p["chosen"] - p["chosen_base"] - p["rejected"] + p["rejected_base"]
            )
            assert margin == pytest.approx(expected, abs=1e-4, rel=1e-4), block
        assert rows[block]["parameters"] == manifest["trainable_parameters"]
        overall = found["objectives"]["all"]
        assert rows[block]["margin"] == pytest.approx(overall["reward_margin"], rel=1e-4)
        assert rows[block]["accuracy"] == overall["reward_accuracy"]
        assert rows[block]["accuracy_low"] == pytest.approx(overall["reward_accuracy_low"])
    thirds = [rows[b]["margins"] for b in ("local", "mid", "global")]
    assert thirds == [rows[f"window:{b}"]["margins"] for b in ("0-1", "2-3", "4-5")]
    assert rows["full:r2"]["parameters"] == rows["mid"]["parameters"]
    assert record["layer_scores"] == [r["margin"] for r in record["singles"]]

    path = paths.probe_record("tiny", swept.model.name, "sweep")
    assert json.loads(path.read_text()) == record
    assert sweep.sweep(swept) == record
    assert not list(path.parent.glob(".sweep-*"))

    # In many small passes, of which one is killed: the same numbers
    path.unlink()
    monkeypatch.setitem(sweep.BUDGET, "cpu", sweep.BYTES * rows["full"]["parameters"])
    original, calls = sweep.tuned_blocks, 0

    def dies(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(sweep, "tuned_blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(swept)
    assert not path.exists()
    again = sweep.sweep(swept)
    assert calls > 5
    kept = json.loads(path.read_text())
    assert kept == again
    for block, row in rows_of(again).items():
        assert row["margins"] == pytest.approx(rows[block]["margins"], abs=1e-5, rel=1e-4), block
        assert row["parameters"] == rows[block]["parameters"]
    assert again["best"] == record["best"]


def test_the_planted_layer_is_found(cell: Callable[..., Cell], tmp_path: Path) -> None:
    """Only layer 3 can change anything: windows and draws without it have no margin at all."""
    record = sweep.sweep(cell(planted(tmp_path / "model", {3}), PLANTED))
    for block, row in rows_of(record).items():
        inside = row.get("layers") or range(row["first"], row["last"] + 1)
        assert any(row["margins"]) == (3 in inside), block
    scores = record["layer_scores"]
    assert [score != 0 for score in scores] == [False, False, False, True, False, False]
    assert record["best"] in ("window:2-3", "window:3-4")
    assert record["best_reason"] is None


def test_where_nothing_can_change_nothing_is_found(
    cell: Callable[..., Cell], tmp_path: Path
) -> None:
    record = sweep.sweep(cell(planted(tmp_path / "model", set()), PLANTED, train=4))
    assert record["train"] == 4
    assert not any(any(row["margins"]) for row in rows_of(record).values())
    assert record["best"] is record["candidate"] is record["layer_scores"] is None
    assert record["best_reason"] == "no training changed any margin"
    for row in record["comparisons"]:
        assert row["difference"] is row["p"] is row["p_holm"] is None
        assert row["verdict"] == "cannot tell"
        assert row["reason"]


def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    monkeypatch.setattr(sweep, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(HialignError) as caught:
        sweep.sweep(cell(train=17))
    assert one_line(caught) == (
        "probes.sweep.train asks for 17 pairs, but study tiny trains on 16: lower it, or leave it "
        "out for all of them"
    )
    with pytest.raises(HialignError, match="2 layers cannot be split into three blocks"):
        sweep.sweep(cell("random:llama:2"))
    assert not outputs.exists()


# --- its parts -----------------------------------------------------------------------------------


@given(st.integers(3, 99), st.booleans(), st.integers(1, 64))
def test_the_blocks_of_a_sweep(depth: int, singles: bool, rank: int) -> None:
    choices = sweep.choices_of(depth, singles, rank)
    size = len(split_layers(depth)["mid"])
    windows = [c.layers for b, c in choices.items() if b.startswith("window:")]
    expected = np.lib.stride_tricks.sliding_window_view(np.arange(depth), size)
    assert [list(w) for w in windows] == expected.tolist()
    assert sum(b.startswith("layers:") for b in choices) == (depth if singles else 0)
    draws = [c for b, c in choices.items() if b.startswith("random:")]
    assert [len(c.layers) for c in draws] == [size] * 3
    if depth >= 6:
        assert len({c.layers for c in draws} | set(windows)) == 3 + len(windows)
    (low,) = [c for c in choices.values() if c.rank]
    assert low.layers == tuple(range(depth))
    assert abs(low.rank * depth - rank * size) <= max(depth / 2, depth - rank * size)


def made(gain: Callable[[str, tuple[int, ...]], float], noise: float) -> dict[str, Any]:
    """A summary of 12 layers and 60 prompts, as if a block had gained `gain(name, its layers)`."""
    rng = np.random.default_rng(1)
    choices = sweep.choices_of(12, True, 16)
    of_layers: dict[Any, list[float]] = {}  # the same layers have the same margins
    for block, choice in choices.items():
        values = gain(block, choice.layers) + noise * rng.normal(size=60)
        of_layers.setdefault(choice, values.tolist())
    found = {b: {"parameters": 1, "margins": of_layers[c]} for b, c in choices.items()}
    return sweep.summary(12, choices, found, [f"p{i}" for i in range(60)], 300)


def test_a_window_that_stands_out_is_told() -> None:
    found = made(lambda _, layers: 2.0 if layers == (1, 2, 3, 4) else 1.0, 0.5)
    assert found["best"] == found["candidate"] == "window:1-4"
    rows = {(r["block"], r["other"]): r for r in found["comparisons"]}
    led = [r for (block, _), r in rows.items() if block == "window:1-4"]
    assert len(led) == 4
    assert {r["verdict"] for r in led} == {"better"}
    assert {r["n"] for r in led} == {30}  # the prompts on which it was not chosen
    assert {r["verdict"] for (block, _), r in rows.items() if block == "mid"} == {"cannot tell"}
    assert len(rows) == 4 + 7
    assert rows["mid", "full"]["n"] == 60


def test_the_best_of_equals_is_not_told() -> None:
    """The highest of nine windows is ahead where it was chosen, and only there."""
    found = made(lambda *_: 1.0, 2.0)
    assert {row["verdict"] for row in found["comparisons"]} == {"cannot tell"}


def test_the_middle_third_is_its_window() -> None:
    found = made(lambda _, layers: 2.0 if layers == (4, 5, 6, 7) else 1.0, 0.5)
    assert found["best"] == "window:4-7"
    rows = {(r["block"], r["other"]): r for r in found["comparisons"]}
    assert rows["window:4-7", "mid"]["reason"] == "the two are the same on every pair"
    assert {r["verdict"] for (b, o), r in rows.items() if b == "mid"} == {"better"}
