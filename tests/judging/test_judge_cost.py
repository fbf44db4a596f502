"""What judging costs, before and after: tokens and money from a study's real prompts."""

from pathlib import Path

import pytest
from helpers import vouch

from hialign.engine import models
from hialign.judging.cost import BYTES_PER_TOKEN, cost_of, estimate, spent
from hialign.judging.ledger import key_of
from hialign.records.files import read_jsonl, write_jsonl
from hialign.records.stages import judgments_file
from hialign.study.errors import HialignError
from hialign.study.rubric import load_rubric, messages
from hialign.study.settings import ModelSettings, Prices
from hialign.study.study import Study, load_study

PRICES = {"input": 1.2, "output": 6.0, "cached_input": 0.2}


def test_cost_of_usage() -> None:
    prices = Prices(**PRICES)
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}
    assert cost_of(usage, prices) == pytest.approx(1.2 + 3.0)
    assert cost_of(usage | {"cached_tokens": 400_000}, prices) == pytest.approx(
        0.6 * 1.2 + 0.4 * 0.2 + 3.0
    )
    assert cost_of(usage, prices, batch=True) == pytest.approx(2.1)
    assert cost_of(usage, None) is None


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path / "outputs"))
    judge = {"model": "judge", "name": "tester", "prices": PRICES, "max_tokens": 1000}
    return load_study("demo").model_copy(
        update={"judge": Study(name="s", title="t", models=["random:llama"], judge=judge).judge}
    )


def respond(study: Study, n: int = 20) -> None:
    for cell in study.cells():
        rows = [
            {"prompt_id": i, "prompt": f"Question {i}?", "response": f"{cell.block} {i} " * 20}
            for i in range(n)
        ]
        write_jsonl(cell.folder / "responses.jsonl", rows)
        vouch(cell, "respond")


def judged(study: Study, n: int, usage: dict[str, int]) -> None:
    """`n` judgments of Base on disk."""
    assert study.judge
    cell, rubric = study.cells()[0], load_rubric(study.judge.rubric)
    rows = [
        {"prompt_id": row["prompt_id"], "scores": {"Overall": 3}, "attempts": 1, "usage": usage}
        | {"key": key_of(study.judge, rubric.sha256, row)}
        | {"cost": cost_of(usage, study.judge.prices)}
        for row in read_jsonl(cell.folder / "responses.jsonl")[:n]
    ]
    write_jsonl(judgments_file(cell), rows)
    vouch(cell, "judge")


def test_an_estimate_before_there_are_responses(study: Study) -> None:
    found = estimate(study)
    [row] = found.to_dict("records")
    assert (row["responses"], row["judged"], row["calls"]) == (80, 0, 80)
    assert row["completion_tokens"] == 80 * 16 * 38
    assert "not written yet" in found.attrs["basis"]
    assert "assumed" in found.attrs["basis"]
    usage = {name: row[name] for name in ("prompt_tokens", "completion_tokens")}
    assert row["cost"] == pytest.approx(cost_of(usage, study.judge and study.judge.prices))
    assert row["cost_batch"] == pytest.approx(row["cost"] / 2)
    assert row["cost_at_most"] > 3 * row["cost"]


def test_an_estimate_rests_on_what_is_measured(study: Study) -> None:
    respond(study)
    before = estimate(study).to_dict("records")[0]
    judged(study, 15, {"prompt_tokens": 2000, "completion_tokens": 100})
    found = estimate(study)
    [row] = found.to_dict("records")
    assert (row["responses"], row["judged"], row["calls"]) == (100, 15, 85)
    assert "as measured on 15 judgments" in found.attrs["basis"]
    assert row["completion_tokens"] == 8500
    assert row["prompt_tokens"] == pytest.approx(85 * 2000, rel=0.02)
    assert row["prompt_tokens"] > before["prompt_tokens"]
    assert found.attrs["spent"] == spent(study) == pytest.approx(15 * (0.0024 + 0.0006))


def test_spent_counts_a_retried_judgment_once(study: Study) -> None:
    respond(study)
    judged(study, 2, {"prompt_tokens": 1000, "completion_tokens": 0})
    path = judgments_file(study.cells()[0])
    first = read_jsonl(path)[0]
    write_jsonl(path.with_suffix(".partial.jsonl"), [first | {"cost": 3 * first["cost"]}])
    assert spent(study) == pytest.approx(4 * first["cost"])


def test_no_judge_no_estimate(study: Study) -> None:
    with pytest.raises(HialignError, match="names no judge"):
        estimate(study.model_copy(update={"judge": None}))


@pytest.mark.slow
def test_bytes_per_token_as_a_real_tokenizer_counts(embedded_model_dir: Path) -> None:
    """The prompts of the built-in set, which is English, with answers as long as real ones."""
    tokenizer = models.load_tokenizer(ModelSettings(source=str(embedded_model_dir)))
    study = load_study("demo")
    from hialign.preferences.formats import transcript
    from hialign.preferences.pairs import load_pairs

    rubric, size, tokens = load_rubric(), 0, 0
    for pair in load_pairs(study.preferences).train:
        prompt, response = transcript(pair["prompt"]), transcript(pair["chosen"])
        text = "\n".join(m["content"] for m in messages(rubric, prompt, response))
        size += len(text.encode())
        tokens += len(tokenizer(text)["input_ids"])
    assert size / tokens == pytest.approx(BYTES_PER_TOKEN, rel=0.1)
