"""Blocks against NumPy, the paper's Table 4, and what PEFT does in every kind of decoder."""

import functools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hialign import HialignError, layers_of, split_layers
from hialign.engine.models import load_model
from hialign.engine.modules import decoder_layers, target_modules
from hialign.study.blocks import (
    MEASURES,
    STRATEGIES,
    Choice,
    check_block,
    choice_of,
    probe_of,
    strategy_of,
)
from hialign.study.model_files import RANDOM_FAMILIES
from hialign.study.paths import slug

TABLE_4 = {  # Appendix A, as printed: first and last layer of each block
    "Llama-2-7b": (32, (0, 10), (11, 21), (22, 31)),
    "Llama-3.1-8B": (32, (0, 10), (11, 21), (22, 31)),
    "Qwen3-8B": (36, (0, 11), (12, 23), (24, 35)),
    "Qwen2.5-7B": (28, (0, 9), (10, 18), (19, 27)),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]  # Table 5
SEPARATE = tuple(f"self_attn.{p}" for p in PROJECTIONS)

# Written by hand from each family's source: where its layers are, what its attention is made of.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "llama": ("model.layers", SEPARATE),
    "qwen2": ("model.layers", SEPARATE),
    "qwen3": ("model.layers", SEPARATE),
    "mistral": ("model.layers", SEPARATE),
    "gemma3_text": ("model.layers", SEPARATE),
    "phi3": ("model.layers", ("self_attn.qkv_proj", "self_attn.o_proj")),
    "olmo2": ("model.layers", SEPARATE),
    "gpt_neox": ("gpt_neox.layers", ("attention.query_key_value", "attention.dense")),
}
MORE_FAMILIES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "gpt2": (
        {"n_layer": 6, "n_embd": 32, "n_head": 4},
        "transformer.h",
        ("attn.c_attn", "attn.c_proj"),
    ),
    "gptj": (
        {"n_layer": 6, "n_embd": 32, "n_head": 4, "rotary_dim": 4},
        "transformer.h",
        ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
    ),
    "opt": (
        {"num_hidden_layers": 6, "hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 32},
        "model.decoder.layers",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    ),
    "falcon": (
        {"num_hidden_layers": 6, "hidden_size": 32, "num_attention_heads": 4},
        "transformer.h",
        ("self_attention.query_key_value", "self_attention.dense"),
    ),
    "bloom": (
        {"n_layer": 6, "hidden_size": 32, "n_head": 4},
        "transformer.h",
        ("self_attention.query_key_value", "self_attention.dense"),
    ),
    "mpt": (
        {"n_layers": 6, "d_model": 32, "n_heads": 4},
        "transformer.blocks",
        ("attn.Wqkv", "attn.out_proj"),
    ),
    "phi": (
        {"num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 64}
        | {"num_attention_heads": 4},
        "model.layers",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
    ),
    "mixtral": (
        {"num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 64}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2},
        "model.layers",
        SEPARATE,
    ),
}


def build(family: str) -> Any:
    """A tiny random model of `family`, in memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = MORE_FAMILIES[family][0] | {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


# --- the partition -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TABLE_4)
def test_table_4(model: str) -> None:
    depth, *blocks = TABLE_4[model]
    assert [(b[0], b[-1]) for b in split_layers(depth).values()] == blocks


@given(st.integers(3, 200))
def test_split_is_numpys_even_split(depth: int) -> None:
    expected = [part.tolist() for part in np.array_split(np.arange(depth), 3)]
    assert [list(b) for b in split_layers(depth).values()] == expected
    assert list(split_layers(depth)) == ["local", "mid", "global"]


@given(st.integers(3, 200))
def test_blocks_cover_every_layer_once(depth: int) -> None:
    thirds = [layers_of(b, depth) for b in ("local", "mid", "global")]
    assert (
        [layer for third in thirds for layer in third]
        == layers_of("full", depth)
        == list(range(depth))
    )
    assert layers_of("base", depth) == []


@given(st.sets(st.integers(0, 39), min_size=1))
def test_named_layers_are_sorted_and_distinct(layers: set[int]) -> None:
    block = "layers:" + ",".join(map(str, layers))
    assert layers_of(block, 40) == sorted(layers)


def test_named_layers() -> None:
    assert layers_of("layers:8-12,20", 24) == [8, 9, 10, 11, 12, 20]
    assert layers_of("layers:5,3-4,4-6,3", 24) == [3, 4, 5, 6]
    assert layers_of("layers:0", 1) == [0]
    assert layers_of("layers:7-7", 8) == [7]


@pytest.mark.parametrize(
    "block",
    [
        "middle",
        "Mid",
        "",
        "layers:",
        "layers:a",
        "layers:1,",
        "layers:-1",
        "layers:1-",
        "layers:1 2",
    ]
    + ["layers 1", "mid ", "layers:1--2", "full,mid", "layers:1\n"],
)
def test_what_is_no_block_is_refused(block: str) -> None:
    expected = (
        f"block {block!r} is not one of base, full, local, mid, global or layers:… "
        "(such as layers:8-12,20), window:START-END, gradient, ila, patching, spectrum with :top30%, "
        "random:30%:SEED, random:third, full:r5, lisa"
    )
    for refuse in (check_block, lambda b: layers_of(b, 30)):
        with pytest.raises(HialignError) as caught:
            refuse(block)
        assert str(caught.value) == expected


def test_a_layer_out_of_range_is_refused() -> None:
    with pytest.raises(HialignError) as caught:
        layers_of("layers:8-12,20", 18)
    assert str(caught.value) == (
        "block 'layers:8-12,20': layer 20 is out of range: this model has 18 layers, 0 to 17"
    )
    assert layers_of("layers:16-17", 18) == [16, 17]
    with pytest.raises(HialignError, match="layer 18 is out of range"):
        layers_of("layers:17-18", 18)
    with pytest.raises(HialignError, match="layer 99999999999 is out of range"):
        layers_of("layers:0-99999999999", 18)  # at once, and without a list of them


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(HialignError) as caught:
        layers_of("layers:12-8", 30)
    assert str(caught.value) == (
        "block 'layers:12-8': the range '12-8' runs backwards: write low-high"
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_too_few_layers_for_three_blocks(depth: int) -> None:
    with pytest.raises(HialignError) as caught:
        layers_of("mid", depth)
    assert str(caught.value) == (
        f"a model of {depth} layers cannot be split into three blocks: it needs at least 3"
    )
    assert layers_of("full", depth) == list(range(depth))


@pytest.mark.parametrize("depth", ["28", 28.0, True, None, [28]])
def test_a_depth_that_is_no_whole_number_is_refused(depth: Any) -> None:
    message = f"^the depth {re.escape(repr(depth))} is not a number of layers: give a whole number"
    for call in (split_layers, *(functools.partial(layers_of, b) for b in ("full", "mid", "base"))):
        with pytest.raises(HialignError, match=message):
            call(depth)


def test_a_depth_below_zero_is_refused() -> None:
    with pytest.raises(HialignError, match=r"^the depth -1 is not a number of layers"):
        layers_of("full", -1)


def test_a_depth_may_be_numpys() -> None:
    split = split_layers(np.int64(28))
    assert split == split_layers(28)
    assert {type(layers.stop) for layers in split.values()} == {int}
    assert layers_of("mid", np.int32(28)) == layers_of("mid", 28)


@pytest.mark.parametrize("block", [5, None, ["mid"], True, b"mid"])
def test_a_block_that_is_no_name_is_refused(block: Any) -> None:
    message = f"^a block is a name such as 'mid' .*, and {re.escape(repr(block))} is not one"
    with pytest.raises(HialignError, match=message) as caught:
        layers_of(block, 28)
    assert ("write 'layers:5' for that layer" in str(caught.value)) == (block == 5)


def test_strategies_are_those_of_table_1_in_its_order() -> None:
    assert list(STRATEGIES.values()) == [
        *("Base", "Full-DPO", "Local-Align", "Mid-Align", "Global-Align"),
    ]
    assert strategy_of("mid") == "Mid-Align"
    assert strategy_of("layers:1-2") == "layers:1-2"


# --- blocks of the same size elsewhere, at random, or where a probe found most ---------------------


@given(st.integers(3, 60), st.data())
def test_a_window_is_these_layers(depth: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, depth - 1))
    end = data.draw(st.integers(start, depth - 1))
    assert layers_of(f"window:{start}-{end}", depth) == list(range(start, end + 1))


def test_a_window_is_refused_where_layers_are() -> None:
    with pytest.raises(
        HialignError, match="'window:4-6': layer 6 is out of range: this model has 6"
    ):
        layers_of("window:4-6", 6)
    with pytest.raises(HialignError, match="the range '4-2' runs backwards"):
        layers_of("window:4-2", 6)


@given(st.integers(3, 60), st.integers(1, 100), st.integers(0, 99))
def test_layers_at_random(depth: int, percent: int, seed: int) -> None:
    drawn = layers_of(f"random:{percent}%:{seed}", depth)
    exact = percent * depth / 100
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(depth))
    assert len(drawn) == max(1, np.floor(exact + 0.5))  # the nearest, halves up, never none
    assert drawn == layers_of(f"random:{percent}%:{seed}", depth)


def test_every_layer_is_as_likely_at_random() -> None:
    drawn = [layers_of(f"random:30%:{seed}", 30) for seed in range(1000)]
    counts = np.bincount([layer for one in drawn for layer in one], minlength=30)
    assert abs(counts - 300).max() < 4.5 * (1000 * 0.3 * 0.7) ** 0.5  # binomial


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=40), st.integers(1, 100))
def test_the_layers_that_score_highest(scores: list[float], percent: int) -> None:
    asked: list[str] = []

    def known(measure: str) -> list[float]:
        asked.append(measure)
        return scores

    found = layers_of(f"ila:top{percent}%", len(scores), known)
    assert asked == ["ila"]
    assert len(found) == max(1, np.floor(percent * len(scores) / 100 + 0.5))
    rest = set(range(len(scores))) - set(found)
    assert not rest or min(scores[i] for i in found) >= max(scores[i] for i in rest)
    # numpy's stable sort: of equal scores the lower layer comes first
    order = np.argsort(-np.asarray(scores), kind="stable")[: len(found)]
    assert found == sorted(order.tolist())


def test_a_measured_block_needs_its_scores() -> None:
    with pytest.raises(
        HialignError, match="'patching:top30%' needs a model whose layers have been"
    ):
        layers_of("patching:top30%", 30)
    with pytest.raises(HialignError, match="3 scores for 6 layers"):
        layers_of("patching:top30%", 6, lambda _: [1.0, 2.0, 3.0])
    assert {m: probe_of(f"{m}:top30%") for m in MEASURES} == dict(MEASURES)
    assert probe_of("mid") == probe_of("window:1-2") == probe_of("random:30%:1") == ""


def test_blocks_with_training_of_their_own() -> None:
    every = tuple(range(6))
    assert choice_of("full:r5", 6) == Choice(every, rank=5)
    assert choice_of("lisa", 6) == Choice(every, period=20)
    assert choice_of("lisa:2", 6) == Choice(every, period=2)
    assert choice_of("mid", 6) == Choice((2, 3))
    assert choice_of("base", 6) == Choice(())


@pytest.mark.parametrize(
    ("block", "why"),
    [
        *[("random:0%:1", "0% is not within 1% and 100%"), ("ila:top0%", "0% is not within")],
        *[
            ("ila:top101%", "101% is not within 1% and 100%"),
            ("full:r0", "rank must be 1 at least"),
        ],
        *[("lisa:0", "period must be 1 at least"), ("random:30%", "is not one of")],
        *[("ila:30%", "is not one of"), ("ila", "is not one of"), ("window:3", "is not one of")],
        *[("window:1-2,4", "is not one of"), ("spectrum:top30", "is not one of")],
        *[("lisa:", "is not one of"), ("full:16", "is not one of"), ("mid:r5", "is not one of")],
        *[("random:30%:-1", "is not one of"), ("gradients:top30%", "is not one of")],
    ],
)
def test_what_is_no_such_block_is_refused(block: str, why: str) -> None:
    for refuse in (check_block, lambda b: layers_of(b, 30, lambda _: [0.0] * 30)):
        with pytest.raises(HialignError, match=re.escape(why)) as caught:
            refuse(block)
        assert repr(block) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_each_block_has_a_folder_of_its_own_that_any_system_takes() -> None:
    some = [
        *STRATEGIES,
        "window:2-5",
        "layers:2-5",
        "random:30%:7",
        "random:30%:8",
        "lisa",
        "lisa:2",
    ]
    some += ["full:r5", *(f"{m}:top{p}%" for m in MEASURES for p in (1, 30))]
    folders = {slug(check_block(b)) for b in some}
    assert len(folders) == len(some)
    assert all(re.fullmatch(r"[\w-]+", f) for f in folders)
    assert slug("patching:top30%") == "patching-top30pct"


# --- modules and adapters ------------------------------------------------------------------------


def adapt(model: Any, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=targets)
    return get_peft_model(model, config)


def parameters(model: Any) -> dict[str, Any]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def check_confined(model: Any, prefix: str, attention: tuple[str, ...], block: str) -> None:
    """Adapters on exactly the block's attention, and two optimizer steps that change only them."""
    import torch

    layers = layers_of(block, 6)
    assert decoder_layers(model) == (prefix, 6)
    expected = [f"{prefix}.{layer}.{name}" for layer in layers for name in attention]
    targets = target_modules(model, layers, PROJECTIONS)
    assert sorted(targets) == sorted(expected)

    tuned = adapt(model, targets)
    suffixes = (".lora_A.default.weight", ".lora_B.default.weight")
    adapters = {f"base_model.model.{name}{s}" for name in expected for s in suffixes}
    assert {n for n, p in tuned.named_parameters() if p.requires_grad} == adapters
    assert {n for n, _ in tuned.named_parameters() if "lora_" in n} == adapters

    before = parameters(tuned)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    ids = torch.arange(3, 35).reshape(2, 16)
    for _ in range(2):  # in the first step B is zero, so that only B moves
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = parameters(tuned)
    assert {n for n in after if not torch.equal(after[n], before[n])} == adapters


def test_every_random_family_is_tested() -> None:
    assert set(FAMILIES) == set(RANDOM_FAMILIES)


@pytest.mark.parametrize("block", ["full", "local", "mid", "global", "layers:0,4-5"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stay_inside_the_block(family: str, block: str) -> None:
    model, _ = load_model(f"random:{family}")
    check_confined(model, *FAMILIES[family], block)


@pytest.mark.parametrize("block", ["full", "mid"])
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_adapters_stay_inside_the_block_of_other_families(family: str, block: str) -> None:
    _, prefix, attention = MORE_FAMILIES[family]
    check_confined(build(family), prefix, attention, block)


@pytest.mark.parametrize("block", ["full", "local", "mid", "global"])
def test_peft_does_not_widen_a_long_list_of_modules(block: str) -> None:
    """From 20 names on, PEFT shortens the list to suffixes: they must not match other layers."""
    model, _ = load_model("random:llama:28")
    layers = layers_of(block, 28)
    tuned = adapt(model, target_modules(model, layers, PROJECTIONS))
    adapted = [n for n, _ in tuned.named_modules() if n.endswith("lora_A")]
    found = sorted({int(re.search(r"layers\.(\d+)\.", n)[1]) for n in adapted})  # type: ignore[index]
    assert found == layers
    assert len(adapted) == 4 * len(layers)


def test_other_modules_can_be_named() -> None:
    model, _ = load_model("random:llama")
    assert target_modules(model, [1], ["q_proj", "v_proj"]) == [
        *("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"),
    ]
    assert target_modules(model, [], PROJECTIONS) == []


def test_a_module_that_is_not_there_is_not_skipped() -> None:
    model, _ = load_model("random:llama")
    with pytest.raises(HialignError) as caught:
        target_modules(model, [4], ["q_proj", "w_proj"])
    assert str(caught.value) == (
        "target module 'w_proj' was not found in layer 4 of LlamaForCausalLM, whose linear modules "
        "are mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, "
        "self_attn.q_proj, self_attn.v_proj: set training.target_modules to some of these"
    )


def test_an_attention_of_another_shape_is_refused_by_name() -> None:
    """Latent attention has no k_proj: the user has to choose, nothing is left out in silence."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "deepseek_v3",
        **{"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 3},
        **{"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
        **{"v_head_dim": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(HialignError, match=r"'k_proj' was not found in layer 0 .*kv_a_proj"):
        target_modules(model, [0], PROJECTIONS)


def test_a_family_without_attention_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "vocab_size": 99, "state_size": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    with pytest.raises(HialignError) as caught:
        target_modules(model, [0], PROJECTIONS)
    assert str(caught.value) == (
        "no list of 6 decoder layers with attention was found in MambaForCausalLM: "
        "this family cannot be tuned by blocks"
    )
