"""Causal patching: a naive loop's numbers, planted layers found, and nothing found in nothing."""

import functools
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import made_pairs, messages, write_study

from hialign import load_model, load_study
from hialign.engine.decoder import Decoder
from hialign.engine.models import identity, locate
from hialign.engine.tokens import Tokens, tokenize_pair
from hialign.probes.patching import low_rank, measurement, recovery, runs
from hialign.probes.patching import probe as patching_probe
from hialign.probes.patching.rows import rows
from hialign.probes.patching.runs import DIRECTIONS, KINDS, Runs, Side, run_row
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell

DEPTH = 6
PLANTED = 3


@functools.cache
def benchmark() -> ModuleType:
    """benchmarks/patching.py, whose naive loop is the reference."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "patching.py"
    spec = importlib.util.spec_from_file_location("patching_benchmark", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(model: Any, layers: list[int], seed: int = 0, scale: float = 0.3) -> Any:
    """`model` with noise on the weights of some layers."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        for parameter in model.base_model.layers[layer].parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += scale * parameter.data.std() * noise if parameter.dim() > 1 else 0
    return model


def two_models(family: str, layers: list[int], scale: float = 0.3) -> dict[str, Any]:
    base, tuned = (load_model(f"random:{family}")[0] for _ in range(2))
    return {
        "base": (base, nullcontext),
        "tuned": (changed(tuned, layers, scale=scale), nullcontext),
    }


def some_pairs(n: int) -> list[Any]:
    """Pairs of unequal lengths; two have one prompt, and one's conversation goes on from another's."""
    _, tokenizer = load_model("random:llama")
    data = messages(made_pairs(n))
    found = [tokenize_pair(tokenizer, row) for row in data]
    found.append((found[0][1], Tokens(found[0][0].ids[:-3], found[0][0].start)))
    answered = found[0][0].ids
    longer = [Tokens((*answered, *t.ids), len(answered) + t.start) for t in found[1]]
    return [*found, (longer[0], longer[1])]


@contextmanager
def lent(sides: dict[str, Any]) -> Iterator[dict[str, Side]]:
    base, tuned = sides["base"][0], sides["tuned"][0]
    with Decoder(base) as ours, nullcontext(ours) if tuned is base else Decoder(tuned) as theirs:
        yield {"base": Side(ours, sides["base"][1]), "tuned": Side(theirs, sides["tuned"][1])}


def measured(sides: dict[str, Any], pairs: list[Any], kinds: list[str], window: int = 2) -> Runs:
    with lent(sides) as both:
        planned = rows(pairs, torch.device("cpu"), 400)
        return Runs.joined([run_row(both, row, kinds, window) for row in planned])


# --- the runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "n"), [("llama", 3), ("qwen2", 1), ("qwen3", 1), ("mistral", 1), ("gemma3_text", 1)]
)
def test_patches_are_those_of_a_naive_loop_with_hooks(family: str, n: int) -> None:
    kinds = [k for k in KINDS if family != "gemma3_text" or k not in ("attention", "mlp")]
    pairs = some_pairs(max(n, 2))
    pairs = pairs if n > 1 else [pairs[0], pairs[-1]]
    sides = two_models(f"{family}:4", [1, 2])
    expected = benchmark().Loop(sides, pairs).all(kinds, 2)
    found = measured(sides, pairs, kinds)
    assert benchmark().largest(expected["unpatched"], found.unpatched) < 1e-3
    for direction, (_, receiver) in DIRECTIONS.items():
        for kind in kinds:
            theirs = expected["patched"][direction][kind]
            assert benchmark().largest(theirs, found.patched[direction][kind]) < 1e-3, kind
            own = expected["unpatched"][receiver]
            moved = [benchmark().largest(values, own) for values in theirs]
            assert max(moved) > 0.01, kind  # else nothing was compared


def test_an_adapter_is_patched_like_two_models() -> None:
    model, _ = load_model("random:llama:3")
    pairs, kinds = some_pairs(2)[:1], list(KINDS)
    with benchmark().random_adapter(model) as sides:
        expected = benchmark().Loop(sides, pairs).all(kinds, 2)
        found = measured(sides, pairs, kinds)
    assert benchmark().largest(expected["unpatched"], found.unpatched) < 1e-3
    assert benchmark().largest(expected["patched"], found.patched) < 1e-3
    assert benchmark().largest(found.unpatched["base"], found.unpatched["tuned"]) > 0.1


def test_the_last_layer_recovers_all_and_a_model_in_itself_changes_nothing() -> None:
    pairs = some_pairs(3)
    sides = two_models("llama", [1, 4])
    found = measured(sides, pairs, ["residual", "window"], DEPTH)
    for direction, (donor, _) in DIRECTIONS.items():
        assert found.patched[direction]["residual"][-1] == found.unpatched[donor]
        whole = found.patched[direction]["window"][0]
        assert benchmark().largest(whole, found.unpatched[donor]) < 1e-3
    same = measured({"base": sides["base"], "tuned": sides["base"]}, pairs, list(KINDS))
    for by_kind in same.patched.values():
        for values in by_kind.values():
            assert all(each == same.unpatched["base"] for each in values)
    # the two unpatched runs, on packed tokens, and nothing else
    assert same.layer_tokens < 2 * DEPTH * sum(len(t.ids) for pair in pairs for t in pair)


def test_a_window_of_one_layer_is_its_contribution() -> None:
    found = measured(two_models("llama", [1, 4]), some_pairs(2), ["contribution", "window"], 1)
    for by_kind in found.patched.values():
        assert by_kind["contribution"] == by_kind["window"]


def test_turns_of_one_conversation_do_not_share_a_row() -> None:
    pairs = some_pairs(2)
    planned = list(rows(pairs, torch.device("cpu"), 10_000))
    assert sorted(p for row in planned for p in row.pairs) == list(range(len(pairs)))
    assert all(not {0, len(pairs) - 1} <= set(row.pairs) for row in planned)
    for row in planned:
        assert not set(row.prompt.tolist()) & set(row.response.tolist())
        assert set(row.last.tolist()) <= set(row.prompt.tolist())
    # one that goes on with another answer: no word of the responses is shared, the prompt is
    first, start = pairs[0][0].ids, pairs[0][0].start
    other = next(i for i in range(9) if i not in {t.ids[start] for t in pairs[0]})
    longer = tuple(Tokens((*first[:start], other, *t.ids), start + 1 + t.start) for t in pairs[1])
    planned = list(rows([pairs[0], longer], torch.device("cpu"), 10_000))
    assert [len(row.pairs) for row in planned] == [1, 1]


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2"])
def test_sublayers_that_do_not_add_up_are_refused(family: str) -> None:
    model, _ = load_model(f"random:{family}")
    row = next(rows(some_pairs(2), torch.device("cpu"), 200))
    with Decoder(model) as decoder, torch.inference_mode():
        why = runs.why_not_apart(Side(decoder).states(row.layout), family)
    assert "do not add up" in why
    assert family in why


def test_the_projection_on_all_directions_is_the_whole_patch() -> None:
    pairs, sides = some_pairs(6), two_models("llama", [2])
    prompts = list(range(len(pairs)))
    whole = measured(sides, pairs, ["residual"]).patched
    with lent(sides) as both:
        found = low_rank.rank_runs(both, pairs, prompts, 2, [1, 4], 42, 400)
        again = low_rank.rank_runs(both, pairs, prompts, 2, [1, 4], 42, 400)
    _, tested = low_rank.halves(prompts, 42)
    assert found == again
    assert found["ranks"] == [1, 4, 32]
    for direction in DIRECTIONS:
        by_variant = found["log_probs"][direction]
        expected = [whole[direction]["residual"][2][i] for i in tested]
        for variant in ("svd", "random_subspace"):
            assert benchmark().largest(by_variant[variant][-1], expected) < 1e-3
            assert benchmark().largest(by_variant[variant][0], expected) > 0.01
        assert benchmark().largest(by_variant["shuffled_pairs"][-1], expected) > 0.01
    share = found["explained"]
    assert share[0] < share[1] < share[2] == pytest.approx(1)


def test_a_planted_direction_is_found_in_one_dimension() -> None:
    """A layer that adds one vector more: rank 1 of the SVD is all of it, a random direction is not."""
    base, tuned = (load_model("random:llama")[0] for _ in range(2))
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    down = tuned.base_model.layers[2].mlp.down_proj
    down.bias = torch.nn.Parameter(vector)
    pairs = some_pairs(6)
    with lent({"base": (base, nullcontext), "tuned": (tuned, nullcontext)}) as both:
        planned = rows(pairs, torch.device("cpu"), 400)
        unpatched = Runs.joined([run_row(both, row, [], 1) for row in planned]).unpatched
        found = low_rank.rank_runs(both, pairs, list(range(len(pairs))), 2, [1], 42, 400)
    _, tested = low_rank.halves(list(range(len(pairs))), 42)
    assert found["explained"][0] == pytest.approx(1)
    expected = [unpatched["tuned"][i] for i in tested]
    values = found["log_probs"]["tuned_into_base"]
    assert benchmark().largest(values["svd"][0], expected) < 1e-3
    assert benchmark().largest(values["random_subspace"][0], expected) > 0.1
    assert benchmark().largest(values["random_vector"][0], expected) > 0.1


# --- estimates -----------------------------------------------------------------------------------


def test_a_recovery_is_a_weighted_mean_with_the_bootstraps_interval() -> None:
    from scipy.stats import bootstrap

    draw = np.random.default_rng(3)
    donor, patched = draw.normal(2, 1, 60), draw.normal(1, 0.5, 60)
    receiver = np.zeros(60)
    found = recovery.recovery(patched, receiver, donor, list(range(60)), 4_000, 42)
    assert np.any(donor < 0)
    weighted = np.average(patched / donor, weights=np.abs(donor))
    assert found["estimate"] == pytest.approx(weighted)
    ends = bootstrap(
        (np.sign(donor) * patched, np.abs(donor)),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        method="BCa",
        n_resamples=4_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high), abs=0.02)
    # copies of a prompt's pairs are no new information
    twice = recovery.recovery(
        *(np.tile(x, 2) for x in (patched, receiver, donor)), [*range(60), *range(60)], 4_000, 42
    )
    assert (twice["low"], twice["high"]) == pytest.approx((found["low"], found["high"]))
    for size, nothing in ((1e-6, True), (1.0, False)):  # up here, down there: no mean, but a size
        values = draw.normal(0, size, 60)
        apart = recovery.difference(receiver, values, list(range(60)))
        assert apart["low"] < 0 < apart["high"]
        assert apart["size"] == pytest.approx(np.abs(values).mean())
        why = recovery.nothing_to_recover(apart, torch.float32)
        assert bool(why) == nothing
    assert recovery.nothing_to_recover(apart | {"size": 0.05}, torch.bfloat16)


def test_a_change_is_signed_and_a_recovery_is_not() -> None:
    """Exchanging chosen and rejected turns every m around: the change follows, the recovery cannot."""
    draw = np.random.default_rng(5)
    base, tuned, patched = draw.normal(0, 1, (3, 40))
    own, prompts = {"base": list(base), "tuned": list(tuned)}, list(range(40))
    mirrored = {side: [-m for m in values] for side, values in own.items()}
    for direction, expected in (
        ("tuned_into_base", patched - base),
        ("base_into_tuned", tuned - patched),
    ):
        found = recovery.change(list(patched), own, direction, prompts)
        assert found["estimate"] == pytest.approx(expected.mean())
        assert found["low"] < expected.mean() < found["high"]
        other = recovery.change(list(-patched), mirrored, direction, prompts)
        assert other["estimate"] == -found["estimate"]
    arguments = patched, base, tuned
    recovered = [
        recovery.recovery(*(sign * m for m in arguments), prompts, 500, 42)["estimate"]
        for sign in (1, -1)
    ]
    assert recovered[0] == recovered[1]


# --- the record ----------------------------------------------------------------------------------


def cell_of(folder: Path, tuned: str, **probes: Any) -> Cell:
    settings = {"patched": 10, "window": 2, "ranks": [1, 4], "swapped": 10, "null_draws": 2}
    settings |= {"tuned": tuned, **probes.pop("patching", {})}
    study = write_study(
        folder,
        models=[f"random:llama:{DEPTH}"],
        preferences={"train": 16, "evaluation": 16},
        probes={"pairs": 12, "resamples": 200, "patching": settings, **probes},
    )
    return load_study(study).cell(None, "base")


def saved(folder: Path, layers: list[int]) -> str:
    """A model folder: the base with some layers changed."""
    model, tokenizer = load_model(f"random:llama:{DEPTH}")
    changed(model, layers, seed=2, scale=1.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIALIGN_OUTPUTS", str(folder / "outputs"))
        return patching_probe.patching(cell_of(folder, saved(folder / "tuned", [PLANTED])))


def test_the_planted_layer_is_found(found: dict[str, Any]) -> None:
    json.dumps(found, allow_nan=False)
    assert found["nothing"] is None
    assert found["tuned"]["kind"] == "model"
    assert found["tuned"]["outside"] == []
    for direction in DIRECTIONS:
        by_kind = found["recovery"][direction]
        contribution = [each["estimate"] for each in by_kind["contribution"]["summed"]]
        residual = [each["estimate"] for each in by_kind["residual"]["summed"]]
        assert contribution[:PLANTED] == [0] * PLANTED
        assert residual[:PLANTED] == [0] * PLANTED
        assert contribution[PLANTED] == pytest.approx(1, abs=1e-3)
        assert residual[PLANTED:] == pytest.approx([1] * (DEPTH - PLANTED), abs=1e-3)
        assert residual[-1] == 1
        windows = {(w["start"], w["stop"]): w["estimate"] for w in by_kind["window"]["summed"]}
        assert windows[0, 2] == 0
        assert windows[PLANTED - 1, PLANTED + 1] == pytest.approx(1, abs=1e-3)
    assert found["rank"]["layers"][0]["layer"] == PLANTED
    last = found["rank"]["layers"][0]["recovery"]["tuned_into_base"]["svd"][-1]
    assert last["rank"] == 32
    assert last["estimate"] == pytest.approx(1, abs=1e-3)
    # the swap of that layer is the other model, in both ways; all others change nothing
    swaps = found["swaps"]
    whole = np.subtract(swaps["unswapped"]["tuned"], swaps["unswapped"]["base"])
    assert np.abs(whole).max() > 0.1
    for way in ("put_in", "leave_out"):
        effects = np.array(swaps[way]["layers"])
        assert effects.shape == (10, DEPTH)
        assert effects[:, PLANTED] == pytest.approx(whole, abs=1e-3)
        assert not np.delete(effects, PLANTED, axis=1).any()
        thirds = np.array(swaps[way]["thirds"])
        assert thirds[:, 1] == pytest.approx(whole, abs=1e-3)
        assert not thirds[:, [0, 2]].any()
    assert found["layer_scores"][PLANTED] == pytest.approx(whole.mean(), abs=1e-3)
    assert not np.delete(found["layer_scores"], PLANTED).any()


def test_the_record_holds_what_its_estimates_are_made_of(found: dict[str, Any]) -> None:
    own = found["unpatched"]
    for version in ("summed", "normalized"):
        gain = np.subtract(own["tuned"][version], own["base"][version])
        assert found["difference"][version]["estimate"] == pytest.approx(gain.mean(), abs=1e-5)
        for kind, by_place in found["margins"]["tuned_into_base"].items():
            entries = found["recovery"]["tuned_into_base"][kind][version]
            if entries is None:
                continue
            for m, entry in zip(by_place[version], entries, strict=True):
                each = np.subtract(m, own["base"][version]) / gain
                expected = np.average(each, weights=np.abs(gain))
                assert entry["estimate"] == pytest.approx(expected, abs=1e-3)
                assert entry["low"] <= entry["estimate"] + 1e-9
                assert entry["estimate"] <= entry["high"] + 1e-9
                assert entry["n"] == 10
    for direction, by_kind in found["changes"].items():
        for kind, entries in by_kind.items():
            m = np.array(found["margins"][direction][kind]["summed"])
            added = m - own["base"]["summed"]
            if direction == "base_into_tuned":
                added = np.array(own["tuned"]["summed"]) - m
            expected = added.mean(axis=1).tolist()
            assert [entry["estimate"] for entry in entries] == pytest.approx(expected, abs=1e-5)
    assert found["naive_passes"] == 2 + 2 * (6 * DEPTH + DEPTH - 1)
    assert 0 < found["passes"] < found["naive_passes"] / 2
    text = json.dumps(found)
    assert "of course" not in text  # no pair's text


def test_the_same_call_gives_the_same_and_a_killed_run_goes_on(
    found: dict[str, Any], outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(tmp_path, saved(tmp_path / "tuned", [PLANTED]))
    path = paths.probe_record(cell.study.name, cell.model.name, "patching")
    monkeypatch.setattr(measurement, "ROW", 300)
    calls = []

    def dies(sides: Any, row: Any, kinds: Any, window: int) -> Any:
        calls.append(row.pairs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_row(sides, row, kinds, window)

    monkeypatch.setattr(measurement, "run_row", dies)
    with pytest.raises(KeyboardInterrupt):
        patching_probe.patching(cell)
    again = patching_probe.patching(cell)
    assert [calls.count(call) for call in calls[:3]] == [1, 1, 2]
    # a record that is lost before it was read again is made of its parts, and they go then
    path.unlink()
    made = len(calls)
    assert patching_probe.patching(cell) == again
    assert len(calls) == made
    assert patching_probe.patching(cell) == again
    assert not list(path.parent.glob(".patching-*"))
    assert benchmark().largest(found["unpatched"], again["unpatched"]) < 1e-3  # in other rows
    assert found["layer_scores"] == pytest.approx(again["layer_scores"], abs=1e-3)
    path.unlink()
    third = patching_probe.patching(cell)
    for name in ("swaps", "changes", "recovery", "margins", "rank"):
        assert third[name] == again[name]
    monkeypatch.setattr(patching_probe, "both", None)  # nothing is run again
    assert patching_probe.patching(cell) == third


def test_two_equal_models_yield_nothing(outputs: Path, tmp_path: Path) -> None:
    found = patching_probe.patching(cell_of(tmp_path, f"random:llama:{DEPTH}"))
    json.dumps(found, allow_nan=False)
    assert "no difference to recover" in found["nothing"]
    assert found["layer_scores"] is None
    assert "no difference to recover" in found["layer_scores_reason"]
    for by_kind in found["recovery"].values():
        assert all(v is None for by_version in by_kind.values() for v in by_version.values())
    for way in ("put_in", "leave_out"):
        assert not np.any(found["swaps"][way]["layers"])
    assert all(layer["both"]["p"] is None for layer in found["swaps"]["layers"])
    assert found["rank"]["layers"] == []
    assert "no difference" in found["rank"]["reason"]
    assert found["passes"] < 2


def plant_adapter(cell: Cell, block: str, layer: int, **manifest: Any) -> Path:
    """An adapter on one layer, as a trained cell leaves it."""
    from peft import LoraConfig, get_peft_model

    trained = cell.study.cell(cell.model.name, block)
    folder, known = trained.folder, {"fingerprint": trained.fingerprint("train")}
    model, _ = load_model(cell.model)
    names = [f"model.layers.{layer}.self_attn.{p}_proj" for p in "qkvo"]
    torch.manual_seed(10)  # whose change of m is clear
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names))
    generator = torch.Generator().manual_seed(10)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "manifest.json").write_text(json.dumps(identity(cell.model) | known | manifest))
    return folder


def test_the_planted_layer_of_an_adapter_is_found_in_attention(
    outputs: Path, tmp_path: Path
) -> None:
    cell = cell_of(tmp_path, "layers:2")
    plant_adapter(cell, "layers:2", 2)
    found = patching_probe.patching(cell)
    assert found["tuned"] == {"name": "layers:2", "kind": "adapter", "outside": []}
    assert found["nothing"] is None
    assert np.flatnonzero(found["layer_scores"]).tolist() == [2]
    by_kind = found["recovery"]["tuned_into_base"]
    # attention alone was changed: with its output comes all of it
    assert by_kind["attention"]["summed"][2]["estimate"] == pytest.approx(1, abs=1e-3)
    assert by_kind["mlp"]["summed"][2]["estimate"] != pytest.approx(1, abs=0.05)
    assert set(found["came_from"]["tuned"]) == {"adapter_sha256"}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuned", "why"),
    [
        ("full", "full in study tiny is missing: run `hialign run train"),
        ("base", "which is not tuned"),
        ("middle", "'middle' is no block, and as a model it could not be loaded"),
        ("random:qwen2:6", "model_type"),
        ("random:llama:5", "num_hidden_layers 5"),
    ],
)
def test_what_cannot_be_patched_is_refused(
    outputs: Path, tmp_path: Path, tuned: str, why: str
) -> None:
    with pytest.raises(HialignError, match=why):
        patching_probe.patching(cell_of(tmp_path, tuned))


def test_an_adapter_of_another_base_is_refused(outputs: Path, tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "layers:2")
    plant_adapter(cell, "layers:2", 2, weights_sha256="another")
    with pytest.raises(HialignError, match="trained on other weights"):
        patching_probe.patching(cell)


def test_an_adapter_of_other_settings_is_refused(outputs: Path, tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "layers:2")
    plant_adapter(cell, "layers:2", 2, fingerprint="another")
    with pytest.raises(HialignError, match="was made with other settings"):
        patching_probe.patching(cell)


def test_another_tokenizer_is_refused(outputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(
        locate(ModelSettings(source=f"random:llama:{DEPTH}"))[0], tmp_path / "other"
    )
    (folder / "weights.sha256").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(HialignError, match="gives the pairs other tokens"):
        patching_probe.patching(cell_of(tmp_path, str(folder)))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"window": DEPTH + 1}, "but the model has 6 layers"),
        ({"ranks": [33]}, "hidden states have 32 numbers"),
        ({"patched": 13}, "probes.patching.patched is 13, but probes.pairs only 12"),
        ({"swapped": 13}, "probes.patching.swapped is 13, but probes.pairs only 12"),
    ],
)
def test_settings_out_of_bounds_are_refused(
    outputs: Path, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(HialignError, match=why):
        patching_probe.patching(cell_of(tmp_path, f"random:llama:{DEPTH}", patching=settings))


def test_too_few_pairs_are_flagged(outputs: Path, tmp_path: Path) -> None:
    tuned = saved(tmp_path / "tuned", [PLANTED])
    few = {"patched": 3, "swapped": 3, "null_draws": 1}
    found = patching_probe.patching(cell_of(tmp_path, tuned, pairs=3, patching=few))
    assert len(found["swaps"]["nulls"]) == 1
    assert all(layer["both"]["p"] is None for layer in found["swaps"]["layers"])  # no null of one
    assert found["rank"]["layers"] == []
    assert found["rank"]["reason"]
