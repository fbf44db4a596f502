"""The strategy x objective matrix: stock TRL's margins, planted truths, and nothing where nothing is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import planted, stock_trainer
from scipy import stats

from hialign import HialignError, load_model, load_study
from hialign.engine.modules import target_modules
from hialign.engine.tokens import tokenize_pair
from hialign.preferences.formats import prompt_id
from hialign.preferences.pairs import load_pairs
from hialign.probes import matrix
from hialign.probes import pairs as probe_pairs
from hialign.statistics import margins as margin_statistics
from hialign.study import paths
from hialign.study.blocks import OBJECTIVES
from hialign.study.study import Cell

SETTINGS = {"learning_rate": 0.01, "lora_rank": 4, "lora_dropout": 0.0, "max_length": 320}
MATRIX = {"train": 2, "contrast_prompts": 2, "seeds": [7]}


PLANTED = SETTINGS | {"target_modules": ["q_proj", "k_proj"]}


@pytest.fixture
def cell(tiny_study: Callable[..., Path], outputs: Path) -> Callable[..., Cell]:
    def get(model: str = "random:llama:6", training: dict[str, Any] = SETTINGS, **own: Any) -> Cell:
        probes = {"resamples": 200, "matrix": MATRIX | own}
        path = tiny_study(models=[model], training=training, probes=probes)
        return load_study(path).cell(None, "full")

    return get


def find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (row,) = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    return row


# --- the whole of it, on a model -----------------------------------------------------------------


@pytest.mark.slow
def test_margins_are_stock_trls(cell: Callable[..., Cell], tmp_path: Path) -> None:
    """One training of the eight again: TRL's own trainer, and log-probabilities by transformers."""
    import torch

    measured = cell(seeds=[7, 8], blocks=["full", "mid"])
    record = matrix.matrix(measured)
    assert record["blocks"] == {"full": [0, 1, 2, 3, 4, 5], "mid": [2, 3]}
    settings = measured.study.training.model_copy(update={"seed": 8})
    builtin = load_pairs("builtin", train=None, evaluation=None)
    pairs = matrix.training_sets(builtin.train, 2, 8)["coherence"]
    model, tokenizer = load_model("random:llama:6")
    modules = target_modules(model, [2, 3], settings.target_modules)
    trainer = stock_trainer(model, tokenizer, pairs, modules, settings, tmp_path / "stock")
    trainer.train()
    adapted = trainer.accelerator.unwrap_model(trainer.model).eval()

    def log_prob(tokens: Any) -> float:
        ids = torch.tensor([tokens.ids])
        logits = adapted(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = logits.gather(-1, ids[0, 1:, None])[:, 0]
        return float(picked[tokens.start - 1 :].double().sum())

    held_out = {p["id"]: p for p in builtin.evaluation}
    found = record["margins"]["coherence"]["mid"][1]
    assert len(found) == len(record["pairs"]) == 6
    for pair, margin in zip(record["pairs"], found, strict=True):
        both = tokenize_pair(tokenizer, held_out[pair["id"]])
        with torch.no_grad():
            chosen, rejected = (log_prob(t) for t in both)
            with adapted.disable_adapter():
                base = [log_prob(t) for t in both]
        expected = settings.beta * (chosen - base[0] - rejected + base[1])
        assert margin == pytest.approx(expected, abs=2e-4, rel=1e-3)
        assert pair["objective"] == held_out[pair["id"]]["objective"]
        assert pair["prompt"] == prompt_id(held_out[pair["id"]]["prompt"])
    assert max(abs(m) for m in found) > 0.01

    again = matrix.matrix(measured)
    assert again == record  # as it is on disk
    path = paths.probe_record("tiny", measured.model.name, "matrix")
    assert json.loads(path.read_text()) == record
    assert not list(path.parent.glob(".matrix-*"))
    text = path.read_text()
    assert "NaN" not in text
    assert all(str(p["chosen"][0]["content"])[:40] not in text for p in held_out.values())
    assert "layer_scores" not in record


def test_a_killed_run_goes_on(cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained is not trained again, and the record is that of an uninterrupted run."""
    quick = {"blocks": ["layers:5"]}
    trained: list[int] = []
    original = matrix.tuned_blocks

    def dies(*args: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args[4].seed)
        return original(*args)

    measured = cell(**quick)
    with monkeypatch.context() as patched:
        patched.setattr(matrix, "tuned_blocks", dies)
        with pytest.raises(KeyboardInterrupt):
            matrix.matrix(measured)
    path = paths.probe_record("tiny", measured.model.name, "matrix")
    assert not path.exists()
    calls: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(matrix, "tuned_blocks", lambda *a: calls.append(a) or original(*a))
        resumed = matrix.matrix(measured)
    assert len(calls) == 2  # of four
    path.unlink()
    assert matrix.matrix(measured)["margins"] == resumed["margins"]
    assert resumed["hypothesis"] == []  # no two of the thirds
    assert set(resumed["margins"]["all"]) == set(quick["blocks"])


@pytest.mark.slow
def test_what_was_planted_is_found(cell: Callable[..., Cell], tmp_path: Path) -> None:
    """Only the middle third can change anything, so only its margins and those of full do."""
    model = planted(tmp_path / "model", {2, 3})
    record = matrix.matrix(cell(model, PLANTED))
    for name in matrix.SETS:
        for block, seeds in record["margins"][name].items():
            moved = any(m != 0 for one in seeds for m in one)
            assert moved == (block in ("mid", "full")), (name, block)
            assert (record["sizes"][name][block] > 0) == moved
    for scale in ("nats", "relative"):
        rows = [r for r in record["hypothesis"] if r["scale"] == scale]
        assert len(rows) == 6
        for row in rows:
            if "mid" in (row["block"], row["other"]):
                assert row["difference"] is not None
            else:
                assert row["difference"] is row["p"] is row["p_holm"] is None
                assert row["reason"] == "the two are the same on every pair"
                assert row["verdict"] == "cannot tell"


def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    monkeypatch.setattr(matrix, "load_model", lambda *_: pytest.fail("a model was loaded"))
    for own, why in (
        ({"train": 97}, "asks for 97 pairs of each objective, but its source has 96 prompts"),
        ({"blocks": ["mid", "base"]}, r"probes\.matrix\.blocks: base tunes nothing"),
        ({"blocks": ["mid", "middle"]}, "'middle' is not one of"),
        ({"blocks": ["ila:top30%"]}, "the record of the ila probe of .* is missing"),
    ):
        with pytest.raises(HialignError, match=why) as caught:
            matrix.matrix(cell(**own))
        assert "\n" not in str(caught.value)
    assert not outputs.exists()


# --- its parts -----------------------------------------------------------------------------------


def test_training_sets_differ_in_their_objectives_alone() -> None:
    pairs = load_pairs("builtin", train=None, evaluation=None).train
    drawn = []
    for seed in (1, 2):
        sets = matrix.training_sets(pairs, 30, seed)
        assert list(sets) == ["grammar", "coherence", "factuality", "all"]
        prompts = {n: [prompt_id(p) for p in found["prompt"]] for n, found in sets.items()}
        assert all(p == prompts["all"] and len(set(p)) == 30 for p in prompts.values())
        for name in OBJECTIVES:
            assert set(sets[name]["objective"]) == {name}
            assert sets["all"]["objective"].count(name) == 10
        assert sets["all"]["id"] == matrix.training_sets(pairs, 30, seed)["all"]["id"]
        drawn.append(prompts["all"])
    assert set(drawn[0]) != set(drawn[1])
    uneven = matrix.training_sets(pairs, 32, 1)["all"]["objective"]
    assert sorted(uneven.count(o) for o in OBJECTIVES) == [10, 11, 11]


def made(gain: Callable[[str, str, str], float], noise: float = 0.5, scale: Any = None) -> Any:
    """Margins as if by training (24 prompts x 3 objectives, 3 seeds): `gain(set, block, tested)`."""
    rng = np.random.default_rng(0)
    pairs = [
        probe_pairs.ProbePair(f"{p}-{o}", o, f"prompt{p}", ((), ()))  # type: ignore[arg-type]
        for p in range(24)
        for o in OBJECTIVES
    ]
    margins = {
        name: {
            block: (
                (scale or {}).get(block, 1.0)
                * np.array(
                    [
                        [gain(name, block, p.objective) + noise * rng.normal() for p in pairs]
                        for _ in range(3)
                    ]
                )
            ).tolist()
            for block in ("full", "local", "mid", "global")
        }
        for name in matrix.SETS
    }
    return matrix.summary(margins, pairs, 500), margins, pairs


LIVES = {"grammar": "local", "coherence": "mid", "factuality": "global"}


def test_the_hypothesis_is_found_where_it_holds() -> None:
    found, margins, pairs = made(lambda name, b, o: float(name == o and LIVES[o] == b))
    assert len(found["hypothesis"]) == 12
    assert {row["verdict"] for row in found["hypothesis"]} == {"better"}
    assert all(row["block"] == LIVES[row["objective"]] for row in found["hypothesis"])
    # each number again, by numpy and scipy
    row = find(found["hypothesis"], objective="grammar", other="global", scale="nats")
    places = [i for i, p in enumerate(pairs) if p.objective == "grammar"]
    ours, theirs = (np.mean(margins["grammar"][b], axis=0) for b in ("local", "global"))
    apart = (ours - theirs)[places]
    assert row["difference"] == pytest.approx(apart.mean())
    assert row["p"] == pytest.approx(stats.wilcoxon(apart).pvalue)
    assert row["difference_low"] < 1 < row["difference_high"]
    relative = find(found["hypothesis"], objective="grammar", other="global", scale="relative")
    over = [v / np.sqrt((v**2).mean()) for v in (ours, theirs)]
    assert relative["difference"] == pytest.approx((over[0] - over[1])[places].mean())
    cell = find(found["cells"], trained_on="grammar", block="local", tested_on="grammar")
    values = np.array(margins["grammar"]["local"])[:, places]
    assert cell["margin"] == pytest.approx(values.mean())
    assert cell["accuracy"] == pytest.approx((values > 0).mean())
    assert cell["margin_seed_std"] == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert cell["margin_low"] < cell["margin"] < cell["margin_high"]
    assert (cell["n"], cell["prompts"]) == (24, 24)
    assert found["sizes"]["grammar"]["local"] == pytest.approx(np.sqrt((ours**2).mean()))
    assert len(found["cells"]) == 4 * 4 * 3


def test_where_nothing_changes_nothing_is_found() -> None:
    found, *_ = made(lambda *_: 0.0, noise=0.0)
    assert {row["margin"] for row in found["cells"]} == {0.0}
    assert {row["accuracy"] for row in found["cells"]} == {0.5}
    assert {row["difference"] for row in found["hypothesis"]} == {None}
    assert {row["verdict"] for row in found["hypothesis"]} == {"cannot tell"}


def test_no_difference_is_not_found() -> None:
    found, *_ = made(lambda *_: 1.0)
    assert {row["verdict"] for row in found["hypothesis"]} == {"cannot tell"}


def test_a_block_that_moves_more_does_not_win_by_that() -> None:
    """Mid gains three times as much on everything: `nats` favours it, `relative` nobody."""
    found, *_ = made(lambda *_: 1.0, scale={"mid": 3.0})
    for row in found["hypothesis"]:
        expected = "cannot tell"
        if row["scale"] == "nats" and "mid" in (row["block"], row["other"]):
            expected = "better" if row["block"] == "mid" else "worse"
        assert row["verdict"] == expected, row


def test_one_seed_has_no_spread_and_one_prompt_no_test() -> None:
    found = margin_statistics.of_margins([[1.0, -1.0, 0.0]], ["a", "b", "c"], 200)
    assert found["margin_seed_std"] is None
    assert found["accuracy"] == pytest.approx(0.5)
    alone = margin_statistics.paired([1.0, 2.0], [0.0, 0.0], ["a", "a"])
    assert alone["difference"] == 1.5
    assert alone["difference_low"] is alone["p"] is None
    assert alone["reason"] == "one prompt alone"
    rows = [alone]
    margin_statistics.judge_family(rows)
    assert rows[0]["verdict"] == "cannot tell"
    assert margin_statistics.short([math.pi * 1e-5, -12345678.0]) == [3.14159e-05, -12345700.0]
