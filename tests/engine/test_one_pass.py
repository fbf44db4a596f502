"""All blocks in one pass: stock TRL's numbers for each block and family, and those of separate runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    BASE,
    BLOCKS,
    adapter_in,
    made_pairs,
    messages,
    relative,
    stay_together,
    stock_trainer,
)

from hialign import layers_of, load_model
from hialign.engine import dpo
from hialign.engine.models import identity
from hialign.engine.modules import target_modules
from hialign.engine.tokens import token_pairs
from hialign.engine.trainer import LOGGED
from hialign.study.settings import ModelSettings, TrainingSettings

# family, truncation, block: every block of one family, every family and truncation at least once.
# The pass itself always holds all four blocks.
AGAINST_STOCK = [
    *(("llama", "keep_start", block) for block in BLOCKS),
    ("qwen2", "keep_start", "local"),
    ("qwen3", "keep_start", "mid"),
    ("mistral", "keep_start", "global"),
    ("gemma3_text", "keep_start", "full"),
    ("phi3", "keep_start", "global"),
    ("olmo2", "keep_start", "local"),
    ("llama", "keep_end", "mid"),
    ("gemma3_text", "keep_end", "local"),
    ("gemma3_text", "keep_end", "global"),
]


def unequal(n: int, limit: int) -> Any:
    """Pairs of very unequal lengths; `limit` (tokens = bytes) falls into prompts and responses."""
    rows = made_pairs(n, seed=2, prompt_words=12)
    for i, row in enumerate(rows):
        if i % 5 == 0:
            row["chosen"] = "On and on it goes. " * 8
        if i % 7 == 3:
            row["prompt"] = "Tell me all of it again. " * 9
    return messages(rows)


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """All four blocks of a family in one pass, once; six steps of 2 x 4 pairs, some truncated."""
    done: dict[tuple[str, str], Any] = {}

    def get(family: str, truncation: str) -> Any:
        if (family, truncation) not in done:
            model, tokenizer = load_model(f"random:{family}")
            done[family, truncation] = dpo.train_blocks(
                *(model, tokenizer, unequal(48, 170), {b: layers_of(b, 6) for b in BLOCKS}),
                *(joint_settings(truncation), identity(ModelSettings(source=f"random:{family}"))),
                work=tmp_path_factory.mktemp("joint"),
            )
        return done[family, truncation]

    return get


def joint_settings(truncation: str) -> TrainingSettings:
    changed = {"gradient_accumulation_steps": 4, "max_length": 170, "truncation": truncation}
    return TrainingSettings(**(BASE | changed | {"tokens_per_pass": 400}))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "truncation", "block"), AGAINST_STOCK)
def test_one_pass_is_stock_trl_block_by_block(
    joint: Callable[[str, str], Any], tmp_path: Path, family: str, truncation: str, block: str
) -> None:
    together = joint(family, truncation)
    settings = joint_settings(truncation)
    model, tokenizer = load_model(f"random:{family}")
    modules = target_modules(model, layers_of(block, 6), settings.target_modules)
    stock = stock_trainer(model, tokenizer, unequal(48, 170), modules, settings, tmp_path)
    stock.train()
    expected = [
        {"step": e["step"], "epoch": e["epoch"]}
        | {ours: e[name] for name, ours in LOGGED.items() if "seconds" not in name}
        for e in stock.state.log_history
        if "loss" in e
    ]
    strategy = next(s for s in together.strategies if s.block == block)
    assert len(expected) >= 5  # steps; some pairs are dropped
    stay_together(dpo.steps_of(together, strategy), expected)
    assert relative(adapter_in(together, strategy.adapter), adapter_in(stock, "default")) < 1e-5


@pytest.mark.parametrize("block", BLOCKS)
def test_one_pass_is_separate_runs(
    joint: Callable[[str, str], Any], tmp_path: Path, block: str
) -> None:
    together = joint("llama", "keep_start")
    model, tokenizer = load_model("random:llama")
    alone = dpo.train_blocks(
        *(model, tokenizer, unequal(48, 170), {block: layers_of(block, 6)}),
        *(joint_settings("keep_start"), {"weights_sha256": "another reference"}),
        work=tmp_path,
    )
    strategy = next(s for s in together.strategies if s.block == block)
    found, expected = dpo.steps_of(together, strategy), dpo.steps_of(alone, alone.strategies[0])
    stay_together(found, expected)
    assert relative(adapter_in(together, strategy.adapter), adapter_in(alone, "default")) < 1e-6
    assert together.confinement[block] == alone.confinement[block]


def test_a_block_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    """In a pass, by itself, and by stock TRL, which knows one rate for all."""
    settings = joint_settings("keep_start")
    own = settings.model_copy(update={"learning_rates": {"mid": settings.learning_rate / 4}})
    blocks = {block: layers_of(block, 6) for block in ("full", "mid")}
    model, tokenizer = load_model("random:llama")
    together = dpo.train_blocks(
        *(model, tokenizer, unequal(24, 170), blocks, own, {"weights_sha256": "rates"}),
        work=tmp_path / "together",
    )
    for block, rate in (("full", settings.learning_rate), ("mid", settings.learning_rate / 4)):
        model, tokenizer = load_model("random:llama")
        modules = target_modules(model, blocks[block], settings.target_modules)
        slower = settings.model_copy(update={"learning_rate": rate})
        stock = stock_trainer(
            model, tokenizer, unequal(24, 170), modules, slower, tmp_path / f"stock-{block}"
        )
        stock.train()
        strategy = next(s for s in together.strategies if s.block == block)
        rates = [row["learning_rate"] for row in dpo.steps_of(together, strategy)]
        assert rates == pytest.approx(
            [entry["learning_rate"] for entry in stock.state.log_history if "loss" in entry]
        )
        assert relative(adapter_in(together, strategy.adapter), adapter_in(stock, "default")) < 1e-5


def test_pairs_that_do_not_fit_are_left_out_whole() -> None:
    _, tokenizer = load_model("random:llama")
    pairs = unequal(24, 170)
    every = token_pairs(tokenizer, pairs, 10_000, "keep_start")
    fitting = token_pairs(tokenizer, pairs, 170, "leave_out")
    short = [pair for pair in every.tokens if max(len(tokens.ids) for tokens in pair) <= 170]
    assert 0 < len(short) < len(every.tokens)
    assert list(fitting.tokens) == short
    assert (fitting.total, fitting.truncated) == (24, 0)
