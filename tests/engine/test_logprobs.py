"""Log-probabilities against TRL's own and against the plainest loop there is."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import made_pairs, messages, stock_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hialign import HialignError, load_model
from hialign.engine import dropout
from hialign.engine.decoder import Decoder, Layout, pair_log_probs, unpackable
from hialign.engine.logprobs import log_probs, response_logits
from hialign.engine.packing import pack
from hialign.engine.reference import Reference
from hialign.engine.tokens import Tokens, token_pairs, tokenize_pair
from hialign.preferences.formats import to_pair
from hialign.study.model_files import RANDOM_FAMILIES
from hialign.study.settings import TrainingSettings

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
def test_pairs_and_their_reference_are_those_that_trl_keeps(
    stock: Callable[..., Any], llama: tuple[Any, Any], limit: int, truncation: str
) -> None:
    trainer = stock(limit, truncation)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, collated(trainer))
    tokens = token_pairs(llama[1], unequal_pairs(), limit, truncation).tokens
    found = pair_log_probs(llama[0], tokens, 0)
    np.testing.assert_allclose([both[0] for both in found], chosen.tolist(), rtol=1e-5)
    np.testing.assert_allclose([both[1] for both in found], rejected.tolist(), rtol=1e-5)


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


# --- pairs that are none ---------------------------------------------------------------------------


def templated(template: str) -> Any:
    tokenizer = load_model("random:llama")[1]
    tokenizer.chat_template = template
    return tokenizer


USER_ONLY = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("ending", ["", "{% if add_generation_prompt %}A: {% endif %}"])
def test_a_response_without_a_token_is_refused(ending: str) -> None:
    """Before anything is cut, and so in training, in evaluation and in the probes alike."""
    tokenizer = templated(USER_ONLY + ending)
    pair = {"id": "train-7", **unequal_pairs()[0]}
    with pytest.raises(HialignError, match=r"pair 'train-7': its chosen response 'It is rain") as e:
        tokenize_pair(tokenizer, pair, 8)
    assert "\n" not in str(e.value)
    assert "the chat template of model random-llama leaves out" in str(e.value)
    with pytest.raises(HialignError, match=r"^pair 0: its chosen response"):
        token_pairs(tokenizer, unequal_pairs(), 8, "keep_start")


def test_pairs_of_the_same_tokens_are_refused_unless_one_differs(llama: tuple[Any, Any]) -> None:
    tokenizer = templated(USER_ONLY + "{% if not add_generation_prompt %} said.{% endif %}")
    pairs = [pair | {"id": f"p{i}"} for i, pair in enumerate(unequal_pairs())]
    with pytest.raises(HialignError, match=r"^pair 'p0' has the same tokens .* the 15 pairs") as e:
        token_pairs(tokenizer, pairs, 2048, "keep_start")
    assert "\n" not in str(e.value)
    same = [pair | {"rejected": pair["chosen"]} for pair in pairs[1:]]
    assert len(token_pairs(llama[1], [*same, pairs[0]], 2048, "keep_start").tokens) == 15


def test_a_prompt_that_fills_the_limit_is_cut_as_ever(llama: tuple[Any, Any]) -> None:
    """What is left of both responses is the same, but they were not."""
    kept = token_pairs(llama[1], unequal_pairs(), 64, "keep_start")
    assert 0 < len(kept.tokens) < 15
    chosen, rejected = tokenize_pair(llama[1], unequal_pairs()[8], 64)
    assert chosen == rejected
    assert chosen.start == 64


def test_a_template_that_fails_on_one_pair_names_it() -> None:
    tokenizer = templated(
        "{% for m in messages %}{% if 'No idea' in m.content %}"
        "{{ raise_exception('not\\nthis') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(HialignError) as caught:
        tokenize_pair(tokenizer, {"id": "p3", **unequal_pairs()[0]})
    assert str(caught.value) == (
        "the chat template of model random-llama cannot render pair 'p3': TemplateError: not this. "
        "Correct the template, or name another file as the model's chat_template"
    )


# --- the reference's cache -----------------------------------------------------------------------


@pytest.fixture
def runs(llama: tuple[Any, Any], empty_cache: Path) -> Iterator[list[int]]:
    """A list that grows by one whenever the model runs."""
    seen: list[int] = []
    handle = llama[0].register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


PAIRS = [
    (Tokens((3, 4, 5, 6), 2), Tokens((3, 4, 9), 2)),
    (Tokens((7, 8, 5), 1), Tokens((7, 8, 5, 6), 1)),
]


def reference_of(model: Any, pairs: Any = PAIRS, weights: dict[str, str] = WEIGHTS) -> Any:
    return Reference(model, weights, pairs).fill(lambda p: pair_log_probs(model, p, 0))


def test_the_reference_is_computed_once(llama: tuple[Any, Any], runs: list[int]) -> None:
    first = reference_of(llama[0])
    once = len(runs)
    assert once > 0
    assert reference_of(llama[0]) == first
    assert Reference(llama[0], WEIGHTS, PAIRS).values == first
    assert len(runs) == once
    expected = [[naive(llama[0], t) for t in both] for both in PAIRS]
    np.testing.assert_allclose(first, expected, rtol=1e-5)


@pytest.mark.parametrize("changed", ["weights", "tokens", "order", "start", "precision"])
def test_the_reference_is_computed_again_for_whatever_it_depends_on(
    llama: tuple[Any, Any], runs: list[int], changed: str
) -> None:
    import torch

    model, _ = llama
    weights, pairs = dict(WEIGHTS), list(PAIRS)
    reference_of(model)
    once = len(runs)
    if changed == "weights":
        weights = {"weights_sha256": "1" * 64}
    elif changed == "tokens":
        pairs[1] = (pairs[1][0], Tokens((7, 8, 10), 1))
    elif changed == "order":
        pairs.reverse()
    elif changed == "start":
        pairs[0] = (Tokens((3, 4, 5, 6), 3), Tokens((3, 4, 9), 2))
    try:
        found = reference_of(
            model.to(torch.bfloat16) if changed == "precision" else model, pairs, weights
        )
    finally:
        model.to(torch.float32)
    assert len(runs) > once
    if changed != "precision":
        expected = [[naive(model, t) for t in both] for both in pairs]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_reference_of_a_failed_run_is_not_kept(
    llama: tuple[Any, Any], empty_cache: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        Reference(llama[0], WEIGHTS, PAIRS).fill(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    unfinished = Reference(llama[0], WEIGHTS, PAIRS)
    unfinished.values[0] = (-1.0, -2.0)
    unfinished.save()
    assert list((empty_cache / "reference").glob("*.json")) == []
    assert reference_of(llama[0])[0] != (-1.0, -2.0)
    assert len(list((empty_cache / "reference").glob("*.json"))) == 1


def test_the_template_and_the_limit_reach_the_key(
    llama: tuple[Any, Any], empty_cache: Path
) -> None:
    for limit in (2048, 64, 64):
        reference_of(llama[0], token_pairs(llama[1], unequal_pairs(), limit, "keep_start").tokens)
    assert len(list((empty_cache / "reference").glob("*.json"))) == 2


# --- packed pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [60, 300, 100_000])
@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_packed_pairs_have_the_log_probabilities_of_each_sequence_alone(
    family: str, limit: int
) -> None:
    model, tokenizer = load_model(f"random:{family}")
    pairs = token_pairs(tokenizer, unequal_pairs(), 100, "keep_end").tokens
    attention = model.config._attn_implementation
    found = pair_log_probs(model, pairs, 0, limit=limit)
    expected = [[naive(model, t) for t in both] for both in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert model.config._attn_implementation == attention
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_every_family_is_packed(family: str) -> None:
    model, tokenizer = load_model(f"random:{family}")
    pairs = token_pairs(tokenizer, unequal_pairs(), 200, "keep_start").tokens
    assert unpackable(model, pairs) == ""


def test_what_cannot_be_packed_is_found(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, tokenizer = load_model("random:llama")
    pairs = token_pairs(tokenizer, unequal_pairs(), 200, "keep_start").tokens
    with monkeypatch.context() as patched:  # layers that look at all positions of the row
        own = model.model.layers[3].mlp.forward
        leaks = lambda x: own(x) + x.mean(dim=1, keepdim=True)  # noqa: E731
        patched.setattr(model.model.layers[3].mlp, "forward", leaks)
        assert "LlamaForCausalLM gives packed pairs other log-prob" in unpackable(model, pairs)
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        assert unpackable(model, pairs) == "several processes train together"
    model.model.layers[0].mlp.act_fn = torch.nn.Dropout(0.1)
    assert unpackable(model, pairs) == "LlamaForCausalLM has dropout in frozen layers"
    assert unpackable(model, pairs, disable_dropout=True) != unpackable(model, pairs)
    model.config.output_router_logits = False
    assert "a loss of its own" in unpackable(model, pairs)


def test_a_model_that_gives_no_numbers_is_an_error_and_not_a_reason_to_train_otherwise() -> None:
    model, tokenizer = load_model("random:llama")
    model.model.norm.weight.data.fill_(float("nan"))
    pairs = token_pairs(tokenizer, unequal_pairs(), 200, "keep_start").tokens
    with pytest.raises(HialignError, match="log-probabilities that are not numbers"):
        unpackable(model, pairs)


def test_noise_of_training_is_found_however_rare(llama: tuple[Any, Any]) -> None:
    """In attention, whose dropout is no module; the random numbers of later draws stay the same."""
    import torch

    model, tokenizer = load_model("random:llama")
    pairs = token_pairs(tokenizer, unequal_pairs(), 200, "keep_start").tokens
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.001
    before = torch.get_rng_state()
    assert unpackable(model, pairs) == "LlamaForCausalLM has dropout in frozen layers"
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    assert unpackable(model, pairs, disable_dropout=True) == ""  # in evaluation it does not act
    dropout.silence(model)
    assert unpackable(model, pairs) == ""


def test_what_training_changes_without_chance_is_found(llama: tuple[Any, Any]) -> None:
    model, tokenizer = load_model("random:llama")
    pairs = token_pairs(tokenizer, unequal_pairs(), 200, "keep_start").tokens
    mlp = model.model.layers[2].mlp
    mlp.register_forward_hook(lambda module, _, out: out * (0.5 if module.training else 1))
    assert unpackable(model, pairs) == (
        "LlamaForCausalLM computes otherwise in training than in evaluation"
    )


def test_all_dropout_is_silenced() -> None:
    import torch

    model, _ = load_model("random:llama")
    model.config.resid_pdrop, model.config.dropout_rate = 0.1, 1
    model.config.use_dropout = True  # no probability
    model.model.layers[0].mlp.act_fn = torch.nn.Dropout(0.1)
    model.model.layerdrop = 0.5
    dropout.silence(model)
    assert (model.config.resid_pdrop, model.config.dropout_rate) == (0, 0)
    assert model.config.use_dropout is True
    assert (model.model.layers[0].mlp.act_fn.p, model.model.layerdrop) == (0, 0)


def test_a_token_beyond_the_embedding_is_refused(llama: tuple[Any, Any]) -> None:
    pair = (Tokens((3, 259, 4), 1), Tokens((3, 5), 1))
    with pytest.raises(
        HialignError, match=r"token id 259, but the embedding of .* has only 259 ro"
    ):
        pair_log_probs(llama[0], [pair], 0)


def test_logits_are_the_models_own_tile_by_tile(llama: tuple[Any, Any]) -> None:
    """Gradients too: of many more scored positions than one tile holds."""
    import torch

    model, _ = llama
    ids = tuple(int(i) for i in torch.randint(3, 200, (700,), generator=torch.manual_seed(0)))
    pair = (Tokens(ids, 1), Tokens(ids[:300], 200))
    with Decoder(model) as decoder:
        layout = Layout(pack([pair]), decoder.device)
        hidden = decoder.run(layout, [decoder.depth])[decoder.depth].detach().requires_grad_()
        found = decoder.log_probs(hidden, layout)
        (found @ torch.tensor([2.0, -3.0], dtype=torch.float64)).backward()
    slope, hidden.grad = hidden.grad, None
    logits = model.lm_head(model.model.norm(hidden))[0].log_softmax(-1)
    targets = torch.tensor(ids[1:])
    each = logits[: len(targets)].gather(-1, targets[:, None])[:, 0]
    expected = torch.stack([each.sum(), each[199:299].sum()])
    (expected @ torch.tensor([2.0, -3.0])).backward()
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(slope, hidden.grad, rtol=1e-4, atol=1e-5)


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
