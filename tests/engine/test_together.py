"""All strategies of a model in one pass give what each gives alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import made_pairs, messages
from peft import LoraConfig, PeftModel, get_peft_model

from hialign import load_model
from hialign.engine.strategy import Strategy
from hialign.engine.together import _once, active, strategy_log_probs
from hialign.engine.tokens import token_pairs
from hialign.study.errors import HialignError
from hialign.study.settings import model_from

BLOCKS = {"full": [0, 1, 2, 3, 4, 5], "mid": [2, 3], "global": [4, 5]}


def adapted(source: str, folder: Path) -> tuple[Any, Any, dict[str, Strategy]]:
    """A model with three random adapters, made and saved by PEFT alone."""
    model, tokenizer = load_model(model_from(source))
    for number, (block, layers) in enumerate(BLOCKS.items()):
        torch.manual_seed(number)
        plain, _ = load_model(model_from(source))
        modules = ["q_proj", "o_proj"]
        config = LoraConfig(
            target_modules=modules, layers_to_transform=layers, init_lora_weights=False, r=4
        )
        get_peft_model(plain, config).save_pretrained(str(folder / block))
    peft: Any = PeftModel.from_pretrained(model, str(folder / "full"), adapter_name="full")
    for block in list(BLOCKS)[1:]:
        peft.load_adapter(str(folder / block), adapter_name=block)
    strategies = {block: Strategy(block, layers, block) for block, layers in BLOCKS.items()}
    return peft.eval(), tokenizer, strategies


def by_stock(model: Any, tokens: Any) -> float:
    """The log-probability of a response by one plain forward pass."""
    ids = torch.tensor([tokens.ids])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
    picked = logits.gather(1, ids[0, 1:, None]).squeeze(1)
    return float(picked[tokens.start - 1 :].sum())


@pytest.mark.parametrize("source", ["random:llama", "random:gemma3_text"])
@pytest.mark.parametrize("base_given", [False, True])
def test_log_probabilities_are_those_of_peft_alone(
    tmp_path: Path, source: str, base_given: bool
) -> None:
    model, tokenizer, strategies = adapted(source, tmp_path)
    pairs = token_pairs(tokenizer, messages(made_pairs(5)), 128, "keep_start").tokens
    wanted: dict[str, list[tuple[float, float]]] = {}
    with model.disable_adapter():
        wanted["base"] = [(by_stock(model, c), by_stock(model, r)) for c, r in pairs]
    for block in BLOCKS:
        model.set_adapter(block)
        wanted[block] = [(by_stock(model, c), by_stock(model, r)) for c, r in pairs]
    assert np.abs(np.subtract(wanted["full"], wanted["base"])).max() > 0.1
    base = wanted["base"] if base_given else None
    found = strategy_log_probs(model, strategies, pairs, 0, base)
    assert set(found) == set(wanted)
    for block, values in wanted.items():
        np.testing.assert_allclose(found[block], values, atol=2e-3, rtol=1e-5)


def test_a_model_without_adapters_has_base_alone(tmp_path: Path) -> None:
    model, tokenizer = load_model(model_from("random:llama"))
    pairs = token_pairs(tokenizer, messages(made_pairs(3)), 128, "keep_start").tokens
    found = strategy_log_probs(model, {}, pairs, 0)
    assert list(found) == ["base"]
    np.testing.assert_allclose(found["base"][0][0], by_stock(model, pairs[0][0]), atol=1e-3)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model, tokenizer, strategies = adapted("random:llama", tmp_path)
    pairs = token_pairs(tokenizer, messages(made_pairs(2)), 128, "keep_start").tokens
    for name, parameter in model.named_parameters():
        if "lora_B.mid" in name:
            parameter.data.fill_(float("nan"))
    with pytest.raises(HialignError, match="not numbers"):
        strategy_log_probs(model, strategies, pairs, 0)


def test_a_response_that_pairs_share_is_run_once(tmp_path: Path) -> None:
    model, tokenizer, strategies = adapted("random:llama", tmp_path)
    rows = made_pairs(3)
    contrasts = [row | {"rejected": f"{row['rejected']} {i}"} for row in rows for i in range(3)]
    pairs = token_pairs(tokenizer, messages(contrasts), 512, "keep_start").tokens
    once, places = _once(pairs)
    assert len(once) == 6  # four responses to each of three prompts
    assert [(once[c[0]][c[1]], once[r[0]][r[1]]) for c, r in places] == list(pairs)
    found = strategy_log_probs(model, strategies, pairs, 0)
    for block in ("base", *BLOCKS):
        with active(model, strategies, block):
            wanted = [(by_stock(model, c), by_stock(model, r)) for c, r in pairs]
        np.testing.assert_allclose(found[block], wanted, atol=2e-3, rtol=1e-5)
