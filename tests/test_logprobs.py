"""Log-probabilities against TRL's own and against the plainest loop there is."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import made_pairs, messages, stock_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hialign import HialignError, load_model, logprobs
from hialign.dpo import reference_columns
from hialign.logprobs import Tokens, log_probs, reference_log_probs, response_logits, tokenize_pair
from hialign.models import RANDOM_FAMILIES
from hialign.preferences import to_pair
from hialign.study import TrainingSettings

WEIGHTS = {"weights_sha256": "0" * 64}
# Prompt, prompt and a bit of the response, nearly all and all of most pairs: in tokens (= bytes)
LIMITS = [56, 64, 120, 2048]


def unequal_pairs() -> list[dict[str, Any]]:
    """Pairs of very unequal lengths, one with a long prompt, one of several turns."""
    rows = made_pairs(14, seed=3)
    rows[2]["chosen"] = "Yes."
    rows[5]["rejected"] = "On and on. " * 30
    rows[8]["prompt"] = "Tell me everything about it. " * 8
    pairs = [dict(row) for row in messages(rows)]
    turns = ["Hi.", "Hello.", "And now?"]
    prompt = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    return [*pairs, pairs[0] | {"prompt": prompt}]


@pytest.fixture(scope="module")
def llama() -> tuple[Any, Any]:
    return load_model("random:llama")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Stock trainers by length limit and truncation, made once."""
    from datasets import Dataset

    made: dict[Any, Any] = {}

    def get(limit: int, truncation: str) -> Any:
        if (limit, truncation) not in made:
            model, tokenizer = load_model("random:llama")
            chosen = TrainingSettings(max_length=limit, truncation=truncation, lora_dropout=0)
            made[limit, truncation] = stock_trainer(
                *(model, tokenizer, Dataset.from_list(unequal_pairs()), ["q_proj"], chosen),
                tmp_path_factory.mktemp("stock"),
            )
        return made[limit, truncation]

    return get


def kept(tokenizer: Any, limit: int, truncation: str) -> list[tuple[Tokens, Tokens]]:
    """Our tokens of the pairs that TRL trains on: it drops those whose prompt fills the limit."""
    whole = [tokenize_pair(tokenizer, pair) for pair in unequal_pairs()]
    cut = [tokenize_pair(tokenizer, pair, limit, truncation) for pair in unequal_pairs()]
    if truncation == "keep_end":
        return cut
    return [c for c, w in zip(cut, whole, strict=True) if w[0].start < limit]


def collated(trainer: Any) -> dict[str, Any]:
    return dict(trainer.data_collator(list(trainer.train_dataset)))


def masked(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(ids, positions that TRL scores) of each sequence of a padded batch: chosen, then rejected."""
    found = []
    for ids, attended, scored in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        n = int(attended.sum())
        found.append((ids[:n].tolist(), [i for i in range(n) if scored[i]]))
    return found


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
@pytest.mark.parametrize("limit", LIMITS)
def test_tokens_are_trls(
    stock: Callable[..., Any], llama: tuple[Any, Any], limit: int, truncation: str
) -> None:
    ours = kept(llama[1], limit, truncation)
    theirs = masked(collated(stock(limit, truncation)))
    assert len(theirs) == 2 * len(ours)
    flat = [both[side] for side in (0, 1) for both in ours]
    assert [(list(t.ids), list(range(t.start, len(t.ids)))) for t in flat] == theirs


def test_the_limits_cut_what_they_should(llama: tuple[Any, Any]) -> None:
    """That the cases above are not all the same one."""
    sizes = [len(kept(llama[1], limit, "keep_start")) for limit in LIMITS]
    assert sizes[0] < sizes[1] < sizes[3] == len(unequal_pairs())
    assert any(t.start == 0 for both in kept(llama[1], 56, "keep_end") for t in both)
    assert all(t.start > 0 for both in kept(llama[1], 2048, "keep_end") for t in both)


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
@pytest.mark.parametrize("limit", [64, 2048])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_log_probabilities_are_trls(
    stock: Callable[..., Any],
    llama: tuple[Any, Any],
    limit: int,
    truncation: str,
    batch_size: int,
) -> None:
    trainer = stock(limit, truncation)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, collated(trainer))
    ours = kept(llama[1], limit, truncation)
    flat = [both[side] for side in (0, 1) for both in ours]
    found = log_probs(llama[0], flat, batch_size, 0, "test")
    np.testing.assert_allclose(found, [*chosen.tolist(), *rejected.tolist()], rtol=1e-5)


@pytest.mark.parametrize(("limit", "truncation"), [(64, "keep_start"), (64, "keep_end")])
def test_reference_columns_stand_by_the_pairs_that_trl_keeps(
    stock: Callable[..., Any], llama: tuple[Any, Any], limit: int, truncation: str
) -> None:
    trainer = stock(limit, truncation)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, collated(trainer))
    columns = reference_columns(
        *(*llama, unequal_pairs(), TrainingSettings(max_length=limit, truncation=truncation)),
        {"weights_sha256": truncation},
    )
    np.testing.assert_allclose(columns["ref_chosen_logps"], chosen.tolist(), rtol=1e-5)
    np.testing.assert_allclose(columns["ref_rejected_logps"], rejected.tolist(), rtol=1e-5)


def naive(model: Any, tokens: Tokens) -> float:
    """One sequence, all its logits, in float64 from there on."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens.ids])).logits[0].double()
    total = 0.0
    for position in range(max(tokens.start, 1), len(tokens.ids)):
        total += float(logits[position - 1].log_softmax(-1)[tokens.ids[position]])
    return total


@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_log_probabilities_are_the_naive_loops(family: str) -> None:
    model, tokenizer = load_model(f"random:{family}")
    pairs = [tokenize_pair(tokenizer, pair, 100) for pair in unequal_pairs()]
    sequences = [t for both in pairs for t in both]
    found = log_probs(model, sequences, 7, 0, "test")
    np.testing.assert_allclose(found, [naive(model, t) for t in sequences], rtol=1e-5)


ids = st.integers(3, 258)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.lists(ids, max_size=30), st.lists(ids, min_size=1, max_size=30)))
    .filter(bool)
    .map(lambda rows: [(p, r) for p, r in rows if len(p) + len(r) > 1])
    .filter(bool),
    st.integers(1, 6),
)
def test_batches_change_nothing(rows: list[tuple[list[int], list[int]]], batch_size: int) -> None:
    model, _ = load_model("random:llama:3")
    sequences = [Tokens((*prompt, *response), len(prompt)) for prompt, response in rows]
    together = log_probs(model, sequences, batch_size, 0, "test")
    expected = [naive(model, t) for t in sequences]
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-4)


def test_response_logits_are_the_full_ones(llama: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = llama
    batch = [t for pair in unequal_pairs()[:4] for t in tokenize_pair(tokenizer, pair)]
    with torch.no_grad():
        found = response_logits(model, batch, 0)
        for tokens, (logits, targets) in zip(batch, found, strict=True):
            full = model(input_ids=torch.tensor([tokens.ids])).logits[0]
            expected = full[tokens.start - 1 : -1]
            assert targets.tolist() == list(tokens.ids[tokens.start :])
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_numbers_that_are_none_are_refused() -> None:
    model, _ = load_model("random:llama")
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(
        HialignError, match=r"^check: the model gave log-probabilities that are not"
    ):
        log_probs(model, [Tokens((3, 4, 5), 1)], 1, 0, "check")


# --- the reference's cache -----------------------------------------------------------------------


@pytest.fixture
def runs(llama: tuple[Any, Any], empty_cache: Path) -> Iterator[list[int]]:
    """A list that grows by one whenever the model runs."""
    seen: list[int] = []
    handle = llama[0].register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


SEQUENCES = [Tokens((3, 4, 5, 6), 2), Tokens((3, 4, 9), 2)]


def test_the_reference_is_computed_once(llama: tuple[Any, Any], runs: list[int]) -> None:
    first = reference_log_probs(llama[0], WEIGHTS, SEQUENCES, 2, 0)
    assert len(runs) == 1
    assert reference_log_probs(llama[0], WEIGHTS, SEQUENCES, 2, 0) == first
    assert reference_log_probs(llama[0], WEIGHTS, SEQUENCES, 1, 0) == first  # batches do not count
    assert len(runs) == 1
    np.testing.assert_allclose(first, [naive(llama[0], t) for t in SEQUENCES], rtol=1e-5)


@pytest.mark.parametrize("changed", ["weights", "tokens", "order", "start", "precision"])
def test_the_reference_is_computed_again_for_whatever_it_depends_on(
    llama: tuple[Any, Any], runs: list[int], changed: str
) -> None:
    import torch

    model, _ = llama
    weights, sequences = dict(WEIGHTS), list(SEQUENCES)
    reference_log_probs(model, weights, sequences, 2, 0)
    if changed == "weights":
        weights = {"weights_sha256": "1" * 64}
    elif changed == "tokens":
        sequences[1] = Tokens((3, 4, 10), 2)
    elif changed == "order":
        sequences.reverse()
    elif changed == "start":
        sequences[0] = Tokens((3, 4, 5, 6), 3)
    try:
        found = reference_log_probs(
            *(model.to(torch.bfloat16) if changed == "precision" else model, weights),
            *(sequences, 2, 0),
        )
    finally:
        model.to(torch.float32)
    assert len(runs) == 2
    if changed != "precision":
        np.testing.assert_allclose(found, [naive(model, t) for t in sequences], rtol=1e-5)


def test_the_reference_of_a_failed_run_is_not_kept(
    llama: tuple[Any, Any], runs: list[int], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(logprobs, "log_probs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reference_log_probs(llama[0], WEIGHTS, SEQUENCES, 2, 0)
    assert list((empty_cache / "reference").glob("*.json")) == []
    reference_log_probs(llama[0], WEIGHTS, SEQUENCES, 2, 0)
    assert len(runs) == 1


def test_the_template_and_the_limit_reach_the_key(
    llama: tuple[Any, Any], runs: list[int], empty_cache: Path
) -> None:
    for limit in (2048, 64, 64):
        reference_columns(*llama, unequal_pairs(), TrainingSettings(max_length=limit), WEIGHTS)
    assert len(list((empty_cache / "reference").glob("*.json"))) == 2


# --- the embedded model's tokenizer on real text -------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "truncation"), [(128, "keep_start"), (128, "keep_end"), (512, "keep_start")]
)
def test_tokens_of_real_pairs_are_trls(
    embedded_model_dir: Path, shared_data: Path, tmp_path: Path, limit: int, truncation: str
) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer

    file = shared_data / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = [to_pair(json.loads(next(stream))) for _ in range(80)]
    pairs = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir)
    chosen = TrainingSettings(max_length=limit, truncation=truncation)
    model, _ = load_model("random:llama")  # TRL wants one, and does not run it here
    trainer = stock_trainer(
        *(model, tokenizer, Dataset.from_list(pairs), ["q_proj"], chosen, tmp_path)
    )
    whole = [tokenize_pair(tokenizer, pair) for pair in pairs]
    cut = [tokenize_pair(tokenizer, pair, limit, truncation) for pair in pairs]
    if truncation == "keep_start":
        cut = [c for c, w in zip(cut, whole, strict=True) if w[0].start < limit]
    flat = [both[side] for side in (0, 1) for both in cut]
    ours = [(list(t.ids), list(range(t.start, len(t.ids)))) for t in flat]
    assert ours == masked(collated(trainer))
