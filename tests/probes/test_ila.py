"""ILA: gates against PEFT by hand, importance that was planted, overlap beside chance, the record."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import made_pairs, messages, write_lines
from peft import LoraConfig, get_peft_model

from hialign.engine.decoder import Decoder, pair_log_probs
from hialign.engine.measures import scores_of
from hialign.engine.models import load_model
from hialign.engine.modules import target_modules
from hialign.engine.strategy import Strategy
from hialign.engine.tokens import TokenPair, tokenize_pair
from hialign.probes.ila import gates, interventions, overlap
from hialign.probes.ila import probe as ila_probe
from hialign.probes.tuned import Tuned
from hialign.study.errors import HialignError
from hialign.study.probe_settings import IlaSettings
from hialign.study.study import Cell, load_study

MODEL = "random:llama:4"
PLANTED = [4, 5, 8, 9]  # among the eight value and output projections of six layers
BETA = 0.1
THIRDS = ("local", "mid", "global")


@pytest.fixture(scope="module")
def pairs() -> list[TokenPair]:
    _, tokenizer = load_model(MODEL, "cpu")
    return [tokenize_pair(tokenizer, row) for row in messages(made_pairs(16, prompt_words=1))]


@pytest.fixture(scope="module")
def reference(pairs: list[TokenPair]) -> list[tuple[float, float]]:
    model, _ = load_model("random:llama:6", "cpu")
    return pair_log_probs(model, pairs, 0)


def adapted(depth: int, projections: Sequence[str], noise: float) -> tuple[Tuned, list[str]]:
    """A random model with an adapter on its matrices, whose B is noise (0: no change at all)."""
    model, _ = load_model(f"random:llama:{depth}", "cpu")
    names = target_modules(model, range(depth), projections)
    torch.manual_seed(1)
    peft: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names))
    for name in names:
        model.get_submodule(name).lora_B.default.weight.data.normal_(0, noise or 1).mul_(noise > 0)
    peft.eval().requires_grad_(False)
    return Tuned(peft, {"full": Strategy("full", list(range(depth)), "default")}, model), names


def by_hand(tuned: Tuned, names: Sequence[str], values: Sequence[float]) -> Iterator[None]:
    """PEFT's own factor of each change, scaled by a plain number; then as it was."""
    layers = [tuned.decoder_of.get_submodule(name) for name in names]
    for layer, value in zip(layers, values, strict=True):
        layer.scale_layer(value)
    yield
    for layer in layers:
        layer.unscale_layer()


def losses_of(tuned: Tuned, pairs: list[TokenPair], reference: Any, kind: str) -> float:
    """Both losses from the stock model's log-softmax, a sequence at a time; nothing of ours."""
    found, tokens = [], 0
    for pair in pairs:
        for side in pair:
            ids = torch.tensor([side.ids])
            with torch.no_grad():
                logits = tuned.model(input_ids=ids).logits[0].double().log_softmax(-1)
            found.append(
                float(sum(logits[i - 1, side.ids[i]] for i in range(side.start, len(side.ids))))
            )
        tokens += len(pair[0].ids) - pair[0].start
    values = np.asarray(found).reshape(-1, 2)
    if kind == "sft":
        return float(-values[:, 0].sum() / tokens)
    rewards = BETA * (values - np.asarray(reference))
    return float(np.log1p(np.exp(-(rewards[:, 0] - rewards[:, 1]))).mean())


# --- gates ---------------------------------------------------------------------------------------


def test_gates_at_one_are_the_tuned_model_and_at_zero_the_base(pairs: list[TokenPair]) -> None:
    tuned, names = adapted(4, ["q_proj", "v_proj"], 0.3)
    expected = pair_log_probs(tuned.model, pairs[:4], 0)
    with tuned.model.disable_adapter():
        base = pair_log_probs(tuned.model, pairs[:4], 0)
    assert np.abs(np.subtract(expected, base)).max() > 1
    with gates.gated(tuned.decoder_of, "default", names) as put:
        put(torch.full((8,), torch.inf).sigmoid())
        assert pair_log_probs(tuned.model, pairs[:4], 0) == expected
        put(torch.full((8,), -torch.inf).sigmoid())
        assert pair_log_probs(tuned.model, pairs[:4], 0) == base
    assert pair_log_probs(tuned.model, pairs[:4], 0) == expected  # the gates are off again


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_gradients_of_gates_are_finite_differences_of_stock_peft(
    pairs: list[TokenPair], kind: str
) -> None:
    """Each change scaled by hand (PEFT's `scale_layer`), the loss from stock logits."""
    tuned, names = adapted(4, ["k_proj", "o_proj"], 0.1)
    few = pairs[:3]
    with tuned.model.disable_adapter():
        reference = pair_log_probs(tuned.model, few, 0)
    loss = gates.Loss(few, BETA, reference if kind == "dpo" else None)
    rng = np.random.default_rng(0)
    start = rng.normal(1, 1, 8)
    s = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    with gates.gated(tuned.decoder_of, "default", names) as put, Decoder(tuned.decoder_of) as own:
        value = loss.backward(own, [0, 1, 2], lambda: put(s.sigmoid()))

    def at(point: np.ndarray) -> float:
        for _ in by_hand(tuned, names, (1 / (1 + np.exp(-point))).tolist()):
            found = losses_of(tuned, few, reference, kind)
        return found

    assert value == pytest.approx(at(start), rel=1e-4)
    step = 0.05
    differences = [
        (at(start + step * unit) - at(start - step * unit)) / (2 * step) for unit in np.eye(8)
    ]
    assert s.grad is not None
    np.testing.assert_allclose(s.grad, differences, rtol=0.02, atol=2e-4)
    assert all(abs(g) > 1e-4 for g in differences), "a test of zeros would show nothing"


def planted(
    kind: str, pairs: list[TokenPair], reference: Any, noise: float
) -> tuple[Tuned, list[str], gates.Loss]:
    """An adapter trained in the matrices `PLANTED` alone; the others' changes are noise."""
    tuned, names = adapted(6, ["v_proj", "o_proj"], 0)
    loss = gates.Loss(pairs, BETA, reference if kind == "dpo" else None)
    layers: list[Any] = [tuned.decoder_of.get_submodule(name) for name in names]
    learned = [
        p
        for i in PLANTED
        for p in (layers[i].lora_A.default.weight, layers[i].lora_B.default.weight)
    ]
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned, lr=0.005)
    drawn = gates.batches(len(pairs), 8, 1)
    with Decoder(tuned.decoder_of) as decoder:
        for _ in range(12):
            optimizer.zero_grad()
            loss.backward(decoder, next(drawn))
            optimizer.step()
    tuned.model.requires_grad_(False)
    optimizer.zero_grad()
    size = np.mean([gates.change_of(tuned.decoder_of, "default", names)[i] for i in PLANTED])
    torch.manual_seed(2)
    for i, layer in enumerate(layers):
        if i not in PLANTED and noise:
            layer.lora_B.default.weight.data.normal_()
            (norm,) = gates.change_of(tuned.decoder_of, "default", names[i : i + 1])
            layer.lora_B.default.weight.data.mul_(noise * float(size) / norm)
    return tuned, names, loss


@pytest.mark.parametrize(("kind", "noise"), [("dpo", 0.0), ("dpo", 0.3), ("sft", 0.3)])
def test_matrices_that_were_made_to_matter_rank_first(
    kind: str, noise: float, pairs: list[TokenPair], reference: Any
) -> None:
    tuned, names, loss = planted(kind, pairs, reference, noise)
    before = {n: p.clone() for n, p in tuned.model.named_parameters()}
    settings = IlaSettings(gate_steps=12)
    s, losses = gates.learn_gates(tuned, names, loss, settings, seed=3)
    assert sorted(overlap.ranked(s)[:4]) == PLANTED
    assert gates.nothing_in(gates.change_of(tuned.decoder_of, "default", names), s) is None
    assert len(losses) == 12
    if not noise:
        others = [value for i, value in enumerate(s) if i not in PLANTED]
        assert others == [4.0] * len(others)  # what changes nothing has no gradient
    assert all(torch.equal(p, before[n]) for n, p in tuned.model.named_parameters())
    assert all(p.grad is None for n, p in tuned.model.named_parameters())


def test_the_same_seed_gives_the_same_gates(pairs: list[TokenPair], reference: Any) -> None:
    tuned, names = adapted(6, ["v_proj"], 0.1)
    loss = gates.Loss(pairs, BETA, reference)
    settings = IlaSettings(gate_steps=2)
    first, same, other = (
        gates.learn_gates(tuned, names, loss, settings, seed)[0] for seed in (3, 3, 4)
    )
    assert first == same != other


def test_an_adapter_without_a_change_ranks_nothing(pairs: list[TokenPair], reference: Any) -> None:
    tuned, names = adapted(6, ["v_proj", "o_proj"], 0)
    settings = IlaSettings(gate_steps=2, sparsity=0.5)  # which closes all gates alike
    loss = gates.Loss(pairs, BETA, reference)
    s, _ = gates.learn_gates(tuned, names, loss, settings, seed=3)
    change = gates.change_of(tuned.decoder_of, "default", names)
    assert max(s) < 4
    assert "changes no matrix" in (gates.nothing_in(change, s) or "")
    assert "no gate moved" in (gates.nothing_in([1.0] * len(s), s) or "")


def test_the_norm_of_a_change_is_that_of_pefts_delta() -> None:
    tuned, names = adapted(4, ["q_proj", "o_proj"], 0.3)
    layers: list[Any] = [tuned.decoder_of.get_submodule(name) for name in names]
    expected = [float(layer.get_delta_weight("default").norm()) for layer in layers]
    assert gates.change_of(tuned.decoder_of, "default", names) == pytest.approx(expected, rel=1e-4)


def test_sft_of_ours_is_stock_peft_with_adamw(pairs: list[TokenPair]) -> None:
    """The same adapter from a plain loop over stock logits, full batches, no dropout."""
    from transformers import get_scheduler, set_seed

    few = pairs[:4]
    training = load_study("smoke").training.model_copy(
        update={
            **{"batch_size": 4, "gradient_accumulation_steps": 1, "epochs": 3, "lora_rank": 4},
            **{"lora_alpha": 8, "learning_rate": 0.01, "disable_dropout": True, "seed": 5},
        }
    )
    model, _ = load_model(MODEL, "cpu")
    names = target_modules(model, range(4), ["q_proj", "v_proj"])
    with gates.tuned_sft(model, few, range(4), names, training) as tuned:
        found = {n: p.clone() for n, p in tuned.model.named_parameters() if "lora_" in n}
        losses = list(tuned.losses["full"])
    assert not any("lora" in name for name, _ in model.named_modules())
    set_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=names)
    stock: Any = get_peft_model(load_model(MODEL, "cpu")[0], config)
    learned = [p for p in stock.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learned, lr=0.01, betas=(training.adam_beta1, training.adam_beta2), weight_decay=0.01
    )
    schedule = get_scheduler("linear", optimizer, training.warmup_steps, 3)
    expected = []
    for _ in range(3):
        optimizer.zero_grad()
        total, tokens = torch.zeros(()), 0
        for chosen, _ in few:
            ids = torch.tensor([chosen.ids])
            labels = ids.clone()
            labels[:, : chosen.start] = -100
            count = len(chosen.ids) - chosen.start
            total = total + stock(input_ids=ids, labels=labels).loss * count
            tokens += count
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(learned, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        expected.append(float(total.detach()) / tokens)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
    for name, parameter in stock.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(found[name], parameter, rtol=1e-2, atol=1e-4)


# --- overlap -------------------------------------------------------------------------------------


def test_overlap_of_rankings() -> None:
    a = [[4.0, 3, 2, 1], [4.0, 3, 1, 2]]
    same = overlap.overlap_of(a, a, 2, 200, 0)
    assert (same["mean"], same["low"], same["of_means"], same["n"]) == (1, None, 1, 2)
    five = overlap.overlap_of([*a, *a, a[0]], [*a, *a, a[1]], 2, 200, 0)
    assert five["n"] == 5
    assert five["low"] <= five["mean"] <= five["high"]
    b = [[1.0, 2, 3, 4], [4.0, 1, 3, 2]]
    found = overlap.overlap_of(a, b, 2, 200, 0)
    assert found["by_seed"] == [0, pytest.approx(1 / 3)]
    assert found["other_seeds"] == pytest.approx((1 / 3 + 0) / 2)
    one = overlap.overlap_of(a[:1], b[:1], 2, 200, 0)
    assert one["low"] is None
    assert one["other_seeds"] is None
    assert overlap.ranked([1, 2, 2, 0]) == [1, 2, 0, 3]  # of equal ones the earlier


def test_stability_is_spearmans_and_jaccard_over_seeds() -> None:
    scores = [[1.0, 2, 3, 4], [1.0, 2, 4, 3], [4.0, 3, 2, 1]]
    found = overlap.stability(scores, 3)
    assert found["spearman"] == pytest.approx((0.8 - 1 - 0.8) / 3)
    assert found["jaccard"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert overlap.stability(scores[:1], 3)["spearman"] is None


def test_whether_training_has_settled() -> None:
    falling = [10 - 0.1 * i for i in range(30)]
    flat = [2 + 0.1 * (-1) ** i for i in range(30)]
    assert ila_probe.settled(falling)["settled"] is False
    assert ila_probe.settled(falling)["slope"] == pytest.approx(-0.1)
    assert ila_probe.settled([*falling[:20], *flat[:10]])["settled"] is True
    assert ila_probe.settled([1.0] * 30)["settled"] is True
    assert ila_probe.settled([1.0] * 6)["settled"] is None


# --- data sets and the record --------------------------------------------------------------------


def test_data_sets_by_name(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    cell = load_study(tiny_study()).cell(None, "full")
    assert len(ila_probe.rows_of("study", cell)) == 16
    grammar = ila_probe.rows_of("grammar", cell)
    assert {row["objective"] for row in grammar} == {"grammar"}
    assert len(ila_probe.rows_of("builtin", cell)) == 3 * len(grammar)
    llmbar = tmp_path / "llmbar"
    rows = [
        {"input": f"q{i}", "output_1": f"a{i}", "output_2": f"b{i}", "label": 1 + i % 2}
        for i in range(4)
    ]
    for subset in ("natural", "adversarial-manual"):
        llmbar.mkdir(exist_ok=True)
        (llmbar / f"{subset}.json").write_text(json.dumps(rows))
    found = ila_probe.rows_of(str(llmbar), cell)
    assert len(found) == len({row["id"] for row in found}) == 8
    for row in found:
        number = int(row["prompt"][0]["content"][1:])
        assert row["chosen"][0]["content"][0] == "ab"[number % 2]
        assert row["rejected"][0]["content"][0] == "ba"[number % 2]
    with pytest.raises(HialignError, match="no such file"):
        ila_probe.rows_of("./nowhere", cell)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets": ["grammar"]}, "`study` must be among them"),
        ({"losses": ["kto"]}, "losses"),
        ({"top": [10, 10]}, "given twice"),
        ({"top": [120]}, "top"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tiny_study: Callable[..., Path], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(HialignError, match=says):
        load_study(tiny_study(probes={"ila": changes}))


def cell_of(
    tiny_study: Callable[..., Path], tmp_path: Path, seeds: Sequence[int] = (1, 2), **changes: Any
) -> Cell:
    write_lines(tmp_path / "other.jsonl", made_pairs(24, seed=5, prompt_words=1))
    own = {
        **{"datasets": ["study", str(tmp_path / "other.jsonl")], "train": 8, "gate_steps": 3},
        **{"seeds": list(seeds), "top": [10, 30], "random_sets": 1},
    }
    probes = {"pairs": 6, "max_length": 256, "resamples": 200, "ila": own}
    path = tiny_study(models=[MODEL], probes=probes, **changes)
    return load_study(path).cell(None, "ila:top25%")


def test_the_record(tiny_study: Callable[..., Path], tmp_path: Path, outputs: Path) -> None:
    cell = cell_of(tiny_study, tmp_path)
    record = ila_probe.ila(cell)
    assert record == ila_probe.ila(cell)  # from disk
    json.dumps(record, allow_nan=False)
    text = json.dumps(record)
    assert "of course" not in text
    assert "Question" not in text
    assert [m["layer"] for m in record["matrices"]] == [i for i in range(4) for _ in range(4)]
    assert len(record["runs"]) == 2 * 2 * 2
    for run in record["runs"]:
        assert sorted(run["ranking"]) == list(range(16))
        assert len(run["gate_loss"]) == 3
        assert len(run["training_loss"]) == 2
        assert run["training_loss"][1] < run["training_loss"][0]
    own = record["rankings"][0]
    assert (own["dataset"], own["loss"], own["seeds"]) == ("study", "dpo", 2)
    scores = np.mean([r["gates"] for r in record["runs"][:2]], axis=0)
    np.testing.assert_allclose(own["layer_scores"], scores.reshape(4, 4).mean(1), atol=1e-6)
    assert record["layer_scores"] == own["layer_scores"] == scores_of(cell, "ila")
    assert {(o["loss"], o["percent"]) for o in record["overlaps"]} == {
        *(("dpo", 75), ("dpo", 30), ("sft", 75), ("sft", 30)),
    }
    check_interventions(record)


def equal_ranks(record: dict[str, Any]) -> list[int]:
    """The ranks at which the thirds (two, one and one layer) have the parameters of the top 30%."""
    sizes = [m["parameters"] for m in record["matrices"]]
    top = sum(sizes[i] for i in record["rankings"][0]["ranking"][:5])
    return [round(16 * top / sum(sizes[a:b])) for a, b in ((0, 8), (8, 12), (12, 16))]


def check_interventions(record: dict[str, Any]) -> None:
    found, ranking = record["interventions"], record["rankings"][0]["ranking"]
    made = {v["name"]: v for v in found["variants"]}
    assert list(made) == [
        *("full", "freeze 25%", "freeze 25% random 1", "top 10%", "top 10% random 1"),
        *("top 30%", "top 30% random 1"),
        *(f"{third} rank {rank}" for third, rank in zip(THIRDS, equal_ranks(record), strict=True)),
    ]
    assert made["freeze 25%"]["matrices"] == sorted(ranking[:12])
    assert made["top 30%"]["matrices"] == sorted(ranking[:5])
    most = made["top 30%"]["parameters"]
    for name, variant in made.items():
        assert variant["parameters"] == sum(
            record["matrices"][i]["parameters"] * variant["rank"] // 16 for i in variant["matrices"]
        )
        if "rank" in name:
            assert abs(variant["parameters"] - most) <= variant["parameters"] / variant["rank"]
        assert variant["margin"]["mean"] == pytest.approx(np.mean(variant["margins"]))
        assert len(variant["margins"]) == len(found["pairs"]) == len(found["prompts"]) == 6
    assert len({tuple(v["margins"]) for v in made.values()}) == len(made)  # all are different
    by = {(d["of"], d["minus"], d["measure"]): d for d in found["differences"]}
    difference = by["freeze 25%", "full", "margin"]
    assert difference["mean"] == pytest.approx(
        made["freeze 25%"]["margin"]["mean"] - made["full"]["margin"]["mean"]
    )
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert ("freeze 25%", "freeze 25% random", "margin") in by
    assert ("top 30%", "full", "accuracy") in by
    assert ("top 30%", f"mid rank {equal_ranks(record)[1]}", "margin") in by


def test_only_the_chosen_matrices_are_tuned(
    tiny_study: Callable[..., Path], tmp_path: Path
) -> None:
    from datasets import Dataset

    from hialign.probes.tuned import tuned_blocks

    cell = cell_of(tiny_study, tmp_path)
    subject = gates.subject_of(cell)
    variant = {"name": "x", "matrices": [1, 6, 7, 14], "rank": 2}
    choice = interventions.choice_of(subject, variant)
    assert choice.layers == (0, 1, 3)
    rows = Dataset.from_list(ila_probe.rows_of("study", cell)[:4])
    training = subject.training(1)
    with tuned_blocks(subject.model, subject.tokenizer, rows, {"x": choice}, training, {}) as one:
        names = {n for n, _ in one.model.named_parameters() if "lora_A" in n}
    expected = {f"base_model.model.{subject.names[i]}.lora_A.default.weight" for i in (1, 6, 7, 14)}
    assert names == expected


def test_a_model_that_learns_nothing_has_no_ranking(
    tiny_study: Callable[..., Path],
    tmp_path: Path,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: None)  # B stays at zero
    cell = cell_of(tiny_study, tmp_path, seeds=[1])
    record = ila_probe.ila(cell)
    json.dumps(record, allow_nan=False)
    assert "changes no matrix" in record["nothing"]
    assert record["layer_scores"] is None
    assert all(run["ranking"] is None for run in record["runs"])
    assert all(r["scores"] is None and r["nothing"] for r in record["rankings"])
    assert all("mean" not in o and o["nothing"] for o in record["overlaps"])
    assert record["interventions"]["nothing"] == record["nothing"]
    assert record["interventions"]["variants"] == []
    with pytest.raises(HialignError, match="ranks no layer"):
        scores_of(cell, "ila")


def test_pairs_that_are_too_long_are_left_out(
    tiny_study: Callable[..., Path], tmp_path: Path, outputs: Path
) -> None:
    cell = cell_of(tiny_study, tmp_path, training={"max_length": 40})
    with pytest.raises(HialignError, match="at most 40 tokens"):
        ila_probe.ila(cell)


def test_a_model_that_cannot_be_packed_is_refused_before_training(
    tiny_study: Callable[..., Path],
    tmp_path: Path,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = cell_of(tiny_study, tmp_path)
    monkeypatch.setattr(ila_probe, "run", lambda *_: pytest.fail("it was trained"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HialignError, match="in one pass: several processes"):
        ila_probe.ila(cell)


def test_a_killed_run_goes_on(
    tiny_study: Callable[..., Path],
    tmp_path: Path,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = cell_of(tiny_study, tmp_path)
    done: list[tuple[str, int]] = []

    def run(subject: Any, rows: Any, loss: str, seed: int, settings: Any) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((loss, seed))
        return {"gates": [0.0] * 16, "nothing": "a stand-in"}

    monkeypatch.setattr(ila_probe, "run", run)
    with pytest.raises(KeyboardInterrupt):
        ila_probe.ila(cell)
    first, done = done, []
    with pytest.raises(KeyboardInterrupt):
        ila_probe.ila(cell)
    assert [*first, *done][:5] == [
        *(("dpo", 1), ("dpo", 2), ("sft", 1), ("sft", 2)),
        ("dpo", 1),  # of the other data set
    ]
