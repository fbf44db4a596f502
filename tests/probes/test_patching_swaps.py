"""Swaps of layers: stock PEFT with adapters zeroed by hand, random adapters, what was planted."""

import copy
import functools
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import made_pairs, messages

from hialign import load_model
from hialign.engine.decoder import Decoder
from hialign.engine.modules import target_modules
from hialign.engine.tokens import TokenPair, tokenize_pair
from hialign.probes.pairs import ProbePair
from hialign.probes.patching.effects import effects_of, swap_record
from hialign.probes.patching.nulls import randomized
from hialign.probes.patching.rows import rows
from hialign.probes.patching.runs import Runs, Side
from hialign.probes.patching.swaps import swap_row

DEPTH = 4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@functools.cache
def benchmark() -> ModuleType:
    """benchmarks/swaps.py, which makes models with something in them."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "swaps.py"
    spec = importlib.util.spec_from_file_location("swaps_benchmark", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def adapted(family: str) -> Any:
    """A PEFT model with random adapters on all layers."""
    from peft import LoraConfig, get_peft_model

    model, _ = load_model(f"random:{family}:{DEPTH}")
    names = target_modules(model, range(DEPTH), PROJECTIONS)
    tuned = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=names)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return tuned


def some_pairs(n: int = 3) -> list[TokenPair]:
    _, tokenizer = load_model("random:llama")
    return [tokenize_pair(tokenizer, row) for row in messages(made_pairs(n))]


def probe_pairs(pairs: Sequence[TokenPair]) -> list[ProbePair]:
    return [ProbePair(str(i), "preference", str(i), pair) for i, pair in enumerate(pairs)]


def swapped(base: Any, tuned: Any, pairs: Sequence[TokenPair]) -> Runs:
    """The swaps between a model and a PEFT model around it, or between two models."""
    if base is None:
        with Decoder(tuned.get_base_model()) as decoder:
            return _all(
                {"base": Side(decoder, tuned.disable_adapter), "tuned": Side(decoder)}, pairs
            )
    with Decoder(base) as ours, Decoder(tuned) as theirs:
        return _all({"base": Side(ours), "tuned": Side(theirs)}, pairs)


def _all(sides: dict[str, Side], pairs: Sequence[TokenPair]) -> Runs:
    planned = rows(pairs, torch.device("cpu"), 300)
    return Runs.joined([swap_row(sides, row) for row in planned])


def stock_margins(model: Any, pairs: Sequence[TokenPair]) -> np.ndarray:
    """m of each pair by the model's own forward pass, one sequence at a time."""
    values = []
    for pair in pairs:
        sums = []
        for tokens in pair:
            ids = torch.tensor([tokens.ids])
            with torch.inference_mode():
                scores = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
            own = scores[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            sums.append(float(own[tokens.start - 1 :].sum()))
        values.append(sums[0] - sums[1])
    return np.array(values)


@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2", "gpt_neox"])
def test_swaps_are_those_of_adapters_zeroed_by_hand(family: str) -> None:
    tuned, pairs = adapted(family), some_pairs(2)
    effects = effects_of(swapped(None, tuned, pairs), probe_pairs(pairs))
    by_layer: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            by_layer.setdefault(layer, []).append(parameter)
    assert sorted(by_layer) == list(range(DEPTH))

    def m(active: Sequence[int]) -> np.ndarray:
        before = {p: p.data for layer in by_layer for p in by_layer[layer]}
        for layer, parameters in by_layer.items():
            for parameter in parameters:
                parameter.data = parameter.data * (layer in active)
        try:
            return stock_margins(tuned, pairs)
        finally:
            for parameter, values in before.items():
                parameter.data = values

    every = range(DEPTH)
    with tuned.disable_adapter():
        base = stock_margins(tuned, pairs)
    whole = m(every)
    for places, kind in (
        ([[layer] for layer in every], "layers"),
        ([[0, 1], [2], [3]], "thirds"),  # of four layers
    ):
        for number, place in enumerate(places):
            found = {way: effects[way][kind][:, number] for way in ("put_in", "leave_out", "both")}
            put_in = m(place) - base
            leave_out = whole - m([layer for layer in every if layer not in place])
            assert np.abs(put_in).max() > 0.01  # else nothing was compared
            assert found["put_in"] == pytest.approx(put_in, abs=1e-3)
            assert found["leave_out"] == pytest.approx(leave_out, abs=1e-3)
            assert found["both"] == pytest.approx((put_in + leave_out) / 2, abs=1e-3)


def test_a_swap_between_two_models_leaves_everything_outside_the_layers() -> None:
    """The first layer gets the receiver's embeddings, and the receiver has its own head."""
    base, tuned = (load_model(f"random:llama:{DEPTH}")[0] for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.3 * parameter.data.std() * noise
    pairs = some_pairs(2)
    effects = effects_of(swapped(base, tuned, pairs), probe_pairs(pairs))
    for layer in (0, DEPTH - 1):
        for way, receiver, donor in (("put_in", base, tuned), ("leave_out", tuned, base)):
            mixed = copy.deepcopy(receiver)
            mixed.model.layers[layer].load_state_dict(donor.model.layers[layer].state_dict())
            expected = stock_margins(mixed, pairs) - stock_margins(receiver, pairs)
            sign = 1 if way == "put_in" else -1
            assert effects[way]["layers"][:, layer] == pytest.approx(sign * expected, abs=1e-3)


def test_effects_see_which_response_was_chosen() -> None:
    """Exchanging chosen and rejected turns the sign of every effect, and of every mean."""
    tuned, pairs = adapted("llama"), some_pairs(3)
    exchanged = [(rejected, chosen) for chosen, rejected in pairs]
    one, other = (swapped(None, tuned, each) for each in (pairs, exchanged))
    ours = effects_of(one, probe_pairs(pairs))
    theirs = effects_of(other, probe_pairs(exchanged))
    for way, by_kind in ours.items():
        for kind, values in by_kind.items():
            assert np.abs(values).max() > 0.01
            assert values == pytest.approx(-theirs[way][kind], abs=1e-4)


def test_half_a_pass_per_layer_and_way() -> None:
    tuned, pairs = adapted("llama"), some_pairs(2)
    found = swapped(None, tuned, pairs[:1])
    tokens = sum(len(row.layout.pack) for row in rows(pairs[:1], torch.device("cpu"), 300))
    layers = DEPTH * (DEPTH + 1) // 2  # of each layer, those from it on
    thirds = 4 + 2 + 1
    assert found.layer_tokens == tokens * 2 * (DEPTH + layers + thirds)
    with Decoder(tuned.get_base_model()) as decoder:
        sides = {"base": Side(decoder, tuned.disable_adapter), "tuned": Side(decoder)}
        row = next(rows(pairs[:1], torch.device("cpu"), 300))
        alone = Runs.joined([swap_row(sides, row, ["layers"])])
    assert alone.layer_tokens == tokens * 2 * (DEPTH + layers)
    for direction, by_kind in alone.patched.items():
        assert by_kind == {"layers": found.patched[direction]["layers"]}


# --- random adapters -------------------------------------------------------------------------------


def deltas(tuned: Any) -> list[torch.Tensor]:
    from peft.tuners.lora import LoraLayer

    modules = [m for m in tuned.modules() if isinstance(m, LoraLayer)]
    return [m.get_delta_weight("default").detach().clone() for m in modules]


def test_random_adapters_have_the_norms_of_the_tuned_one() -> None:
    tuned = adapted("llama")
    before = deltas(tuned)
    with Decoder(tuned.get_base_model()) as decoder:
        sides = {"base": Side(decoder, tuned.disable_adapter), "tuned": Side(decoder)}
        drawn = []
        for seed in (1, 1, 2):
            with randomized(sides, seed):
                drawn.append(deltas(tuned))
    assert all(torch.equal(a, b) for a, b in zip(before, deltas(tuned), strict=True))
    for own, one, again, other in zip(before, *drawn, strict=True):
        assert torch.equal(one, again)
        for random in (one, other):
            # the Frobenius norm, the rank and the spectral norm at once
            expected, found = torch.linalg.svdvals(own)[:4], torch.linalg.svdvals(random)[:4]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            alike = float((own * random).sum() / own.norm() ** 2)
            assert abs(alike) < 0.5
        assert float((one - other).norm()) > 0.1 * float(own.norm())


def test_random_weights_are_as_far_from_base() -> None:
    base, tuned = (load_model("random:llama:3")[0] for _ in range(2))
    changed = tuned.model.layers[1].mlp.down_proj.weight
    changed.data += 0.01
    own = changed.data.clone()
    theirs = base.model.layers[1].mlp.down_proj.weight.data
    with (
        Decoder(base) as ours,
        Decoder(tuned) as others,
        randomized({"base": Side(ours), "tuned": Side(others)}, 1),
    ):
        random = changed.data.clone()
        same = tuned.model.layers[0].mlp.down_proj.weight
        assert torch.equal(same, base.model.layers[0].mlp.down_proj.weight)
    assert torch.equal(changed.data, own)
    assert float((random - theirs).norm()) == pytest.approx(float((own - theirs).norm()), rel=1e-4)
    assert not torch.allclose(random, own)


def test_the_record_holds_what_its_estimates_are_made_of() -> None:
    tuned, pairs = adapted("llama"), some_pairs(4)
    with Decoder(tuned.get_base_model()) as decoder:
        sides = {"base": Side(decoder, tuned.disable_adapter), "tuned": Side(decoder)}
        runs, nulls = _all(sides, pairs), {}
        for seed in (1, 2, 3):
            with randomized(sides, seed):
                nulls[seed] = Runs.joined(
                    [
                        swap_row(sides, row, ["layers"])
                        for row in rows(pairs, torch.device("cpu"), 300)
                    ]
                )
    record = swap_record(runs, nulls, probe_pairs(pairs), 200, 42)
    put_in, leave_out = (np.array(record[way]["layers"]) for way in ("put_in", "leave_out"))
    gain = np.subtract(record["unswapped"]["tuned"], record["unswapped"]["base"])
    assert record["difference"]["estimate"] == pytest.approx(gain.mean(), abs=1e-4)
    assert np.array(record["put_in"]["thirds"]).shape == (4, 3)
    for layer, row in enumerate(record["layers"]):
        both = (put_in[:, layer] + leave_out[:, layer]) / 2
        assert row["put_in"]["estimate"] == pytest.approx(put_in[:, layer].mean(), abs=1e-4)
        assert row["both"]["estimate"] == pytest.approx(both.mean(), abs=1e-4)
        assert row["both"]["low"] is None  # four prompts are too few for an interval
        assert 0 < row["both"]["p"] <= 1
    first = [row for row in record["thirds"] if row["third"] == "local"]
    assert [row["way"] for row in first] == ["put_in", "leave_out", "both"]
    assert first[0]["estimate"] == pytest.approx(put_in[:, :2].mean(), abs=1e-4)
    whole = np.array(record["put_in"]["thirds"])[:, 0].mean()
    assert first[0]["whole"]["estimate"] == pytest.approx(whole, abs=1e-4)
    assert [draw["seed"] for draw in record["nulls"]] == [1, 2, 3]
    drawn = np.array([draw["put_in"]["layers"] for draw in record["nulls"]])
    assert drawn.shape == (3, DEPTH)
    assert np.ptp(drawn, axis=0).min() > 0


# --- planted and null models -----------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "third"), [(0, "local"), (1, "mid"), (8, "global")])
def test_the_planted_third_is_found_in_a_family_of_no_other_test(seed: int, third: str) -> None:
    found = benchmark().tried(seed, "planted", pairs=40, draws=3, depth=6)
    assert found["planted"] == third
    assert found["named"]["swaps"] == third


@pytest.mark.parametrize("seed", [1, 8, 19])
def test_nothing_is_found_in_random_adapters(seed: int) -> None:
    """The rule is wrong for one of the seeds 0 to 19, which is seed 0. It may be for one in twenty."""
    assert benchmark().tried(seed, "null", pairs=40, draws=3, depth=6)["named"]["swaps"] == ""


def test_sides_that_are_one_model_have_no_effect() -> None:
    model, _ = load_model(f"random:llama:{DEPTH}")
    pairs = some_pairs(2)
    with Decoder(model) as decoder:
        sides = {name: Side(decoder, nullcontext) for name in ("base", "tuned")}
        effects = effects_of(_all(sides, pairs), probe_pairs(pairs))
    assert not any(values.any() for by_kind in effects.values() for values in by_kind.values())
