"""Responses against plain generation; evaluation against figures worked out another way."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import made_pairs, one_line, write_lines, write_study

from hialign import HialignError, evaluate, load_model, load_study, respond, train
from hialign.engine.adapters import load_cell
from hialign.evaluation.evaluate import _summary
from hialign.preferences.formats import transcript
from hialign.preferences.pairs import load_pairs
from hialign.records.files import read_json, read_jsonl, read_record, stamp, write_record
from hialign.records.stages import stage_manifest
from hialign.records.status import cell_status
from hialign.study.study import Cell, Study

OBJECTIVES = ("grammar", "coherence", "factuality")


@pytest.fixture(scope="module")
def stopping_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that ends some of its answers, with a generation config of its own."""
    model, tokenizer = load_model("random:llama")
    model.lm_head.weight.data[2] *= 2.2  # the end-of-text token's row
    folder = tmp_path_factory.mktemp("model") / "Stopping"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {"do_sample": True, "temperature": 0.3, "top_k": 2, "repetition_penalty": 1.5}
        )
    )
    return folder


@dataclass
class Ran:
    study: Study
    pairs: Any

    def cell(self, block: str) -> Cell:
        return self.study.cell(None, block)

    def rows(self, block: str) -> list[dict[str, Any]]:
        return read_jsonl(self.cell(block).folder / "responses.jsonl")

    def evaluation(self, block: str) -> dict[str, Any]:
        return read_json(self.cell(block).folder / "evaluation.json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, stopping_model: Path) -> Iterator[Ran]:
    """Base and mid of a small study, trained, responded and evaluated once.

    Of its held-out prompts some have two pairs; one is longer than a prompt may be.
    """
    folder = tmp_path_factory.mktemp("ran")
    rows = made_pairs(30)
    for i in range(8, 20, 3):
        rows[i]["prompt"] = rows[i + 1]["prompt"]
    rows[2]["prompt"] = "Tell me everything about it. " * 6
    write_lines(folder / "pairs.jsonl", rows)
    path = write_study(
        folder,
        models=[str(stopping_model)],
        blocks=["base", "mid"],
        preferences={"train": 8, "evaluation": 20},
        training={"max_length": 512, "learning_rate": 0.02, "beta": 0.2},
        responses={"prompts": 14, "max_new_tokens": 24, "max_prompt_tokens": 80},
        evaluation={"contrast_prompts": 5, "batch_size": 3, "resamples": 500},
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HIALIGN_OUTPUTS", str(folder / "outputs"))
        study = load_study(path)
        for cell in study.cells():
            train(cell)
            respond(cell)
            evaluate(cell)
        yield Ran(study, load_pairs(study.preferences))


# --- responses -----------------------------------------------------------------------------------


def argmax_loop(model: Any, tokenizer: Any, messages: Any, limit: int, new: int) -> list[int]:
    """Greedy decoding as a loop: the whole text again for each token, without a cache."""
    import torch

    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"][-limit:]
    found: list[int] = []
    with torch.no_grad():
        while len(found) < new:
            logits = model(input_ids=torch.tensor([ids + found])).logits[0, -1]
            found.append(int(logits.argmax()))
            if found[-1] == tokenizer.eos_token_id:
                break
    return found


@pytest.mark.parametrize("block", ["base", "mid"])
def test_responses_are_plain_greedy_ones(ran: Ran, block: str) -> None:
    """One by one and without batches; the model's own sampling settings have no say."""
    model, tokenizer = load_cell(ran.cell(block))
    prompts = ran.pairs.prompts(14)
    rows = ran.rows(block)
    assert [r["prompt_id"] for r in rows] == [p["prompt_id"] for p in prompts]
    for row, prompt in zip(rows, prompts, strict=True):
        ids = argmax_loop(model, tokenizer, prompt["prompt"], 80, 24)
        stopped = ids[-1] == tokenizer.eos_token_id
        assert row["finish_reason"] == ("stop" if stopped else "length")
        kept = ids[:-1] if stopped else ids
        assert row["tokens"] == len(kept)
        assert row["response"] == tokenizer.decode(kept, skip_special_tokens=True).strip()


def test_some_responses_end_and_some_are_cut(ran: Ran) -> None:
    """Else the test above would not have tested both."""
    for block in ("base", "mid"):
        assert {r["finish_reason"] for r in ran.rows(block)} == {"stop", "length"}
        assert {r["prompt_truncated"] for r in ran.rows(block)} == {True, False}


def test_rows_have_the_contracts_columns(ran: Ran) -> None:
    for row in ran.rows("mid"):
        assert list(row)[:5] == ["prompt_id", "prompt", "response", "tokens", "finish_reason"]
        assert row["prompt"].startswith(("Question", "Tell me"))


def test_all_cells_answer_the_same_prompts_differently(ran: Ran) -> None:
    base, mid = ran.rows("base"), ran.rows("mid")
    assert [r["prompt"] for r in base] == [r["prompt"] for r in mid]
    assert [r["response"] for r in base] != [r["response"] for r in mid]


def test_the_stages_manifest(ran: Ran) -> None:
    cell, rows = ran.cell("mid"), ran.rows("mid")
    manifest = read_json(cell.folder / "manifest-respond.json")
    assert (
        manifest.items()
        >= {
            "stage": "respond",
            "fingerprint": cell.fingerprint("respond"),
            "prompts": 14,
            "tokens": sum(r["tokens"] for r in rows),
            "cut": sum(r["finish_reason"] == "length" for r in rows),
            "empty": sum(not r["response"] for r in rows),
        }.items()
    )
    for stage in ("train", "respond", "evaluate"):
        assert cell_status(cell, stage) == "done"


def changed(ran: Ran, section: str, **values: Any) -> Study:
    settings = getattr(ran.study, section).model_copy(update=values)
    return ran.study.model_copy(update={"name": "other", section: settings})


@pytest.fixture
def other(ran: Ran) -> Iterator[Callable[..., Cell]]:
    """A cell of the same study under another name, with settings changed; it uses ran's adapter."""
    import shutil

    folders = []

    def make(section: str, block: str = "base", **values: Any) -> Cell:
        cell = changed(ran, section, **values).cell(None, block)
        shutil.rmtree(cell.folder, ignore_errors=True)
        shutil.copytree(ran.cell(block).folder, cell.folder)
        folders.append(cell.folder)
        return cell

    yield make
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def vouch_anew(cell: Cell, *stages: str) -> None:
    """Have the records of some stages vouch for their files as a test has changed them."""
    for stage in stages:
        place = stage_manifest(cell, stage)
        record = read_record(place)
        for part, folder in (("files", cell.folder), ("inputs", cell.folder)):
            known = {n: stamp(folder / n) for n in record[part] if (folder / n).is_file()}
            record[part] = record[part] | known
        write_record(place, record)


def answers(cell: Cell) -> list[str]:
    return [r["response"] for r in read_jsonl(cell.folder / "responses.jsonl")]


@pytest.mark.parametrize("batch_size", [1, 14])
def test_batches_change_no_answer(ran: Ran, other: Callable[..., Cell], batch_size: int) -> None:
    cell = other("responses", "mid", batch_size=batch_size)
    respond(cell)
    assert read_jsonl(cell.folder / "responses.jsonl") == ran.rows("mid")


def test_sampling_is_seeded(ran: Ran, other: Callable[..., Cell]) -> None:
    import torch

    def sampled(**values: Any) -> list[str]:
        cell = other("responses", temperature=1.0, **values)
        torch.manual_seed(len(values))  # what was drawn before does not count
        respond(cell)
        return answers(cell)

    first = sampled()
    assert first == sampled(top_p=1.0)
    assert first != sampled(seed=7)
    assert first != [r["response"] for r in ran.rows("base")]
    # With next to no probability left but the best token's, it is greedy again
    assert sampled(top_p=1e-9) == [r["response"] for r in ran.rows("base")]


def test_sampling_uses_the_studys_settings_alone(
    ran: Ran, other: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own file says top_k 2, transformers' default is 50: a study knows no top_k."""
    cell = other("responses", temperature=100.0, prompts=1, max_new_tokens=1, batch_size=400)
    prompt = ran.pairs.prompts(1)
    monkeypatch.setattr("hialign.preferences.pairs.Pairs.prompts", lambda *_: prompt * 400)
    respond(cell)
    found = answers(cell)
    assert len(found) == 400
    assert len(set(found)) > 55  # of 259 tokens with about the same probability


def test_an_untrained_cell_cannot_respond(outputs: Path, ran: Ran) -> None:
    with pytest.raises(
        HialignError, match="training of Stopping mid in study tiny is missing"
    ) as caught:
        respond(ran.cell("mid"))
    one_line(caught)
    assert not outputs.exists()


def test_transcripts_as_text() -> None:
    user, assistant = ({"role": r, "content": r[0]} for r in ("user", "assistant"))
    assert transcript([user]) == "u"
    assert transcript([user, assistant, user]) == "Human: u\n\nAssistant: a\n\nHuman: u"


# --- evaluation ----------------------------------------------------------------------------------


def sequence_log_prob(model: Any, tokenizer: Any, pair: Any, side: str) -> float:
    """log p(response and its end | prompt) from the templated texts, in float64."""
    import torch

    prompt = tokenizer.apply_chat_template(
        pair["prompt"], tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(pair["prompt"] + pair[side], tokenize=False)
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"][:512]
    with torch.no_grad():
        table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(table[i - 1, ids[i]] for i in range(start, len(ids))))


@pytest.fixture(scope="module")
def both_models(ran: Ran, stopping_model: Path) -> tuple[Any, Any, Any]:
    """(tuned, base, tokenizer), loaded without hialign."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, inner = (AutoModelForCausalLM.from_pretrained(stopping_model).eval() for _ in range(2))
    tuned = PeftModel.from_pretrained(inner, ran.cell("mid").folder / "adapter").eval()
    return tuned, base, load_model(str(stopping_model))[1]


@pytest.fixture(scope="module")
def scores(ran: Ran, both_models: tuple[Any, Any, Any]) -> dict[str, list[dict[str, Any]]]:
    """By group and pair: naive log-probabilities under the tuned model and under the base."""
    tuned, base, tokenizer = both_models
    contrasts = load_pairs("builtin", train=None, evaluation=None).evaluation
    five = list(dict.fromkeys(str(p["prompt"]) for p in contrasts))[:5]
    groups = {"all": list(ran.pairs.evaluation)}
    for name in OBJECTIVES:
        chosen = [p for p in contrasts if p["objective"] == name and str(p["prompt"]) in five]
        groups[name] = chosen
    return {
        name: [
            {"id": p["id"], "prompt": str(p["prompt"])}
            | {
                (side, who): sequence_log_prob(model, tokenizer, p, side)
                for side in ("chosen", "rejected")
                for who, model in (("own", tuned), ("base", base))
            }
            for p in pairs
        ]
        for name, pairs in groups.items()
    }


def margins(rows: list[dict[str, Any]], beta: float = 0.2) -> np.ndarray:
    r = {
        side: np.array([row[side, "own"] - row[side, "base"] for row in rows])
        for side in ("chosen", "rejected")
    }
    return beta * (r["chosen"] - r["rejected"])


def preferred(rows: list[dict[str, Any]], who: str) -> np.ndarray:
    return np.array([row["chosen", who] > row["rejected", who] for row in rows], dtype=float)


def test_pairs_are_scored_as_by_hand(ran: Ran, scores: dict[str, list[dict[str, Any]]]) -> None:
    by_id = {row["id"]: row for rows in scores.values() for row in rows}
    for block, who in (("mid", "own"), ("base", "base")):
        found = ran.evaluation(block)["pairs"]
        assert {row["id"] for row in found} == set(by_id)
        for row in found:
            expected = by_id[row["id"]]
            for side in ("chosen", "rejected"):
                assert row[side] == pytest.approx(expected[side, who], rel=1e-5)
                assert row[f"{side}_base"] == pytest.approx(expected[side, "base"], rel=1e-5)


def test_figures_of_a_tuned_cell(ran: Ran, scores: dict[str, list[dict[str, Any]]]) -> None:
    found = ran.evaluation("mid")
    assert found["beta"] == 0.2
    assert list(found["objectives"]) == ["all", *OBJECTIVES]
    for name, rows in scores.items():
        figures = found["objectives"][name]
        assert figures["n"] == len(rows) == (20 if name == "all" else 5)
        assert figures["likelihood_accuracy"] == preferred(rows, "own").mean()
        assert figures["reward_accuracy"] == (margins(rows) > 0).mean()
        assert figures["reward_margin"] == pytest.approx(margins(rows).mean(), rel=1e-4)
        for key in ("likelihood_accuracy", "reward_accuracy", "reward_margin"):
            low, high = figures[f"{key}_low"], figures[f"{key}_high"]
            assert low <= figures[key] <= high
    assert abs(found["objectives"]["all"]["reward_margin"]) > 0.05  # training did something
    assert found["objectives"]["all"]["prompts"] < 20  # some prompts have two pairs


def test_figures_of_base(ran: Ran, scores: dict[str, list[dict[str, Any]]]) -> None:
    found = ran.evaluation("base")
    for name, rows in scores.items():
        figures = found["objectives"][name]
        assert figures["likelihood_accuracy"] == preferred(rows, "base").mean()
        assert [figures[f"reward_accuracy{s}"] for s in ("", "_low", "_high")] == [None] * 3
        assert [figures[f"reward_margin{s}"] for s in ("", "_low", "_high")] == [0.0] * 3
    divergence = found["divergence"]
    assert [divergence[f"kl{s}"] for s in ("", "_low", "_high")] == [0.0] * 3
    assert divergence["n"] == 14


def test_an_interval_of_pairs_with_prompts_of_their_own(ran: Ran) -> None:
    """Contrasts of one objective have a prompt each: Wilson's interval, here SciPy's."""
    from scipy.stats import binomtest

    for name in OBJECTIVES:
        figures = ran.evaluation("mid")["objectives"][name]
        k = round(figures["reward_accuracy"] * figures["n"])
        expected = binomtest(k, figures["n"]).proportion_ci(method="wilson")
        assert figures["reward_accuracy_low"] == pytest.approx(expected.low)
        assert figures["reward_accuracy_high"] == pytest.approx(expected.high)


def test_an_interval_of_pairs_that_share_prompts(
    ran: Ran, scores: dict[str, list[dict[str, Any]]]
) -> None:
    """Whole prompts are drawn; here by hand, and of the plain mean over pairs, as the figure is."""
    rows = scores["all"]
    values, prompts = margins(rows), np.array([row["prompt"] for row in rows])
    groups = [values[prompts == p] for p in dict.fromkeys(prompts)]
    assert max(len(g) for g in groups) > 1
    rng = np.random.default_rng(0)
    draws = [
        np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean()
        for _ in range(4000)
    ]
    figures = ran.evaluation("mid")["objectives"]["all"]
    low, high = np.quantile(draws, [0.025, 0.975])
    slack = 0.2 * (high - low)  # 500 draws there, and a correction for skew
    assert figures["reward_margin_low"] == pytest.approx(low, abs=slack)
    assert figures["reward_margin_high"] == pytest.approx(high, abs=slack)


def test_an_interval_belongs_to_its_figure() -> None:
    """One prompt with many pairs weighs as much in the interval as it does in the mean."""
    cell = load_study("demo").cell(None, "mid")
    rows = [{"prompt": "many", "chosen": 9.0 + i, "rejected": 0.0} for i in range(20)]
    rows += [{"prompt": str(i), "chosen": -1.0 - i, "rejected": 0.0} for i in range(20)]
    prompts = [str(row["prompt"]) for row in rows]
    figures = _summary([r | {"chosen_base": 0, "rejected_base": 0} for r in rows], prompts, cell)
    for key in ("likelihood_accuracy", "reward_accuracy", "reward_margin"):
        assert figures[f"{key}_low"] < figures[key] < figures[f"{key}_high"]


def naive_kl(tuned: Any, base: Any, tokenizer: Any, messages: Any, response: str) -> float:
    import torch

    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"][-80:]
    answer = tokenizer(response, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        p, q = (
            m(input_ids=torch.tensor([prompt + answer])).logits[0].double().softmax(-1).numpy()
            for m in (tuned, base)
        )
    from scipy.stats import entropy

    at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return float(np.mean([entropy(p[i], q[i]) for i in at]))


def test_divergence_from_base(ran: Ran, both_models: tuple[Any, Any, Any]) -> None:
    found = ran.evaluation("mid")["divergence"]
    prompts = {p["prompt_id"]: p["prompt"] for p in ran.pairs.prompts()}
    rows = ran.rows("mid")
    values = [
        naive_kl(*both_models, prompts[r["prompt_id"]], r["response"])
        for r in rows
        if r["response"]
    ]
    assert min(values) > 0
    assert found["kl"] == pytest.approx(np.mean(values), rel=1e-4)
    assert found["kl_n"] == len(values)
    assert 0 < found["kl_low"] < found["kl"] < found["kl_high"]


def test_response_lengths(ran: Ran) -> None:
    for block in ("base", "mid"):
        found = ran.evaluation(block)["divergence"]
        lengths = [r["tokens"] for r in ran.rows(block)]
        assert found["n"] == 14
        assert found["response_tokens"] == pytest.approx(np.mean(lengths))
        assert found["response_tokens_low"] <= np.mean(lengths) <= found["response_tokens_high"]


def test_evaluation_is_repeatable(ran: Ran) -> None:
    before = ran.evaluation("mid")
    evaluate(ran.cell("mid"))
    after = ran.evaluation("mid")
    for key in ("objectives", "divergence", "pairs"):
        assert after[key] == before[key]


def test_base_is_scored_without_the_adapter(
    ran: Ran, other: Callable[..., Cell], empty_cache: Path
) -> None:
    """Also where no other cell has left the reference's log-probabilities behind."""
    cell = other("evaluation", "mid", contrast_prompts=0)
    found = {row["id"]: row for row in evaluate(cell)["pairs"]}
    assert list((empty_cache / "reference").glob("*.json"))
    for row in ran.evaluation("base")["pairs"]:
        if row["id"] in found:
            assert found[row["id"]]["chosen_base"] == pytest.approx(row["chosen"], rel=1e-5)
    assert len(found) == 20


def test_a_fresh_adapter_has_moved_nowhere(ran: Ran, other: Callable[..., Cell]) -> None:
    """With B set back to zero the tuned model is base: no divergence, no margin, all ties."""
    from safetensors.torch import load_file, save_file

    cell = other("evaluation", "mid", contrast_prompts=0)
    file = cell.folder / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({n: w * ("lora_A" in n) for n, w in weights.items()}, file)
    vouch_anew(cell, "train", "respond")
    found = evaluate(cell)
    assert list(found["objectives"]) == ["all"]
    figures = found["objectives"]["all"]
    assert figures["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert found["divergence"]["kl"] == pytest.approx(0, abs=1e-6)
    base = ran.evaluation("base")["objectives"]["all"]
    assert figures["likelihood_accuracy"] == base["likelihood_accuracy"]


def test_fewer_pairs_can_be_asked_for(other: Callable[..., Cell]) -> None:
    cell = other("evaluation", "base", pairs=3, contrast_prompts=1)
    found = evaluate(cell)["objectives"]
    assert {name: figures["n"] for name, figures in found.items()} == {
        **{"all": 3, "grammar": 1, "coherence": 1, "factuality": 1},
    }
    assert found["grammar"]["reward_margin_low"] is None or found["grammar"]["n"] == 1


def test_pairs_whose_prompt_fills_the_limit_are_left_out(
    ran: Ran, other: Callable[..., Cell]
) -> None:
    """As in training: without a response token there is nothing to prefer, not half a hit."""
    cell = other("training", "base", max_length=64)
    found = evaluate(cell)
    _, tokenizer = load_cell(ran.cell("base"))
    prompts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"]
        for p in ran.pairs.evaluation["prompt"]
    ]
    n = sum(len(ids) < 64 for ids in prompts)
    assert 0 < n < len(prompts)
    assert found["objectives"]["all"]["n"] == n
    assert found["pairs_too_long"] >= len(prompts) - n
    assert len(found["pairs"]) == 20 + 15 - found["pairs_too_long"]


def test_limits_that_leave_nothing_to_evaluate_are_told(other: Callable[..., Cell]) -> None:
    with pytest.raises(HialignError, match=r"training.max_length 16: .* raise it$") as caught:
        evaluate(other("training", "base", max_length=16))
    one_line(caught)


def test_empty_responses_have_no_divergence(ran: Ran, other: Callable[..., Cell]) -> None:
    cell = other("evaluation", "mid", contrast_prompts=0)
    file = cell.folder / "responses.jsonl"
    rows = [row | {"response": "", "tokens": 0} for row in read_jsonl(file)]
    write_lines(file, rows)
    vouch_anew(cell, "respond")
    found = evaluate(cell)["divergence"]
    assert [found[f"kl{s}"] for s in ("", "_low", "_high", "_n")] == [None, None, None, 0]
    assert found["response_tokens"] == 0


def test_missing_responses_are_told(ran: Ran, other: Callable[..., Cell]) -> None:
    cell = other("evaluation", "mid")
    (cell.folder / "responses.jsonl").unlink()
    (cell.folder / "evaluation.json").unlink()
    with pytest.raises(HialignError) as caught:
        evaluate(cell)
    assert one_line(caught) == (
        "the responses of Stopping mid in study other are damaged (responses.jsonl is missing): "
        f"run `hialign run respond -p study {cell.study.argument} -p block mid` first"
    )
    assert not (cell.folder / "evaluation.json").exists()


def test_responses_to_other_prompts_are_told(ran: Ran, other: Callable[..., Cell]) -> None:
    cell = other("evaluation", "mid", contrast_prompts=0)
    file = cell.folder / "responses.jsonl"
    rows = read_jsonl(file)
    rows[3]["prompt_id"] = "0123456789ab"
    write_lines(file, rows)
    vouch_anew(cell, "respond")
    with pytest.raises(HialignError, match=r"run `hialign run respond .*first") as caught:
        evaluate(cell)
    one_line(caught)


def test_families_with_fused_attention_go_all_the_way(outputs: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, models=["random:phi3"], evaluation={"contrast_prompts": 0})
    cell = load_study(path).cell(None, "global")
    train(cell)
    respond(cell)
    found = evaluate(cell)
    assert found["divergence"]["kl"] > 0
    assert np.isfinite(found["objectives"]["all"]["reward_margin"])


@pytest.mark.slow
def test_the_embedded_model_prefers_good_answers(
    embedded_model_dir: Path, outputs: Path, tmp_path: Path
) -> None:
    """That the figures mean something: a chat model knows broken grammar from good."""
    path = write_study(
        tmp_path,
        models=["embedded:smollm2-135m-instruct"],
        preferences={"source": "builtin", "train": 2, "evaluation": 2},
        responses={"prompts": 1},
        evaluation={"contrast_prompts": 6},
    )
    base = load_study(path).cell(None, "base")
    train(base)
    respond(base)
    found = evaluate(base)["objectives"]
    assert found["grammar"]["n"] == 6
    assert found["grammar"]["likelihood_accuracy"] > 0.8
