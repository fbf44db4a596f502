"""`compare`: two blocks of a study, against plain numpy and scipy on made-up records."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon
from simulated import simulate

from hialign import HialignError, compare, load_study
from hialign.records import frames
from hialign.records.files import read_json, write_json
from hialign.records.stages import stage_manifest
from hialign.study.study import Study

JUDGE = {"backend": "local", "model": "random:llama"}


@pytest.fixture
def study(tiny_study: Callable[..., Path], outputs: Path) -> Study:
    models = ["random:llama", "random:qwen2"]
    changes = {"blocks": ["base", "mid", "global"], "evaluation": {"resamples": 4_000}}
    made = load_study(tiny_study(models=models, judge=JUDGE, **changes))
    simulate(made, prompts=120, steps=2)
    return made


def margins(study: Study, block: str, group: str = "all") -> np.ndarray:
    content = read_json(study.cell(None, block).folder / "evaluation.json")
    return np.array(
        [
            content["beta"] * (p["chosen"] - p["chosen_base"] - p["rejected"] + p["rejected_base"])
            for p in content["pairs"]
            if group in p["groups"]
        ]
    )


def test_outcomes_are_what_numpy_and_scipy_give(study: Study) -> None:
    table = compare(study, "mid", "global").set_index("outcome")
    ends = ["difference", "low", "high", "p", "p_holm"]
    assert list(table.columns) == ["n", "mid", "global", *ends]
    assert list(table.index) == ["reward accuracy", "reward margin", "judge, Overall"]
    values = {
        "reward margin": (margins(study, "mid"), margins(study, "global")),
        "reward accuracy": (margins(study, "mid") > 0, margins(study, "global") > 0),
    }
    for outcome, (a, b) in values.items():
        row, moved = table.loc[outcome], b.astype(float) - a.astype(float)
        assert row.n == len(a) == 120
        assert row["mid"] == pytest.approx(a.mean())
        assert row["global"] == pytest.approx(b.mean())
        assert row.difference == pytest.approx(moved.mean())
        half = 1.96 * moved.std() / np.sqrt(len(moved))
        assert row.low == pytest.approx(moved.mean() - half, abs=half / 5)
        assert row.high == pytest.approx(moved.mean() + half, abs=half / 5)
        assert row.p == pytest.approx(wilcoxon(moved[moved != 0]).pvalue)
    scores = {}
    for block in ("mid", "global"):
        rows = frames.judgments_of(study.cell(None, block))
        scores[block] = np.array([row["scores"]["Overall"] for row in rows], dtype=float)
    row = table.loc["judge, Overall"]
    assert row.difference == pytest.approx((scores["global"] - scores["mid"]).mean())
    ranked = table.sort_values("p")  # Holm's correction, written out
    by_hand = np.maximum.accumulate(ranked.p.to_numpy() * np.arange(len(ranked), 0, -1))
    np.testing.assert_allclose(ranked.p_holm, np.minimum(by_hand, 1))


def test_the_order_of_the_blocks_turns_the_sign_and_base_has_no_margin(study: Study) -> None:
    there, back = compare(study, "base", "mid"), compare(study, "mid", "base")
    np.testing.assert_allclose(there.difference, -back.difference)
    assert list(there.outcome) == ["reward margin", "judge, Overall"]
    assert there.base[0] == 0
    assert there.difference[0] == pytest.approx(margins(study, "mid").mean())


def test_each_objective_has_its_rows_and_pairs_of_one_prompt_count_once(study: Study) -> None:
    for block in ("mid", "global"):
        file = study.cell(None, block).folder / "evaluation.json"
        content = read_json(file)
        for i, pair in enumerate(content["pairs"]):
            pair["groups"] = ["all", "grammar"] if i % 3 else ["all"]
            pair["id"] = f"e{i // 2}-{i % 2}"  # two pairs a prompt
        write_json(file, content)
    table = compare(study, "mid", "global").set_index("outcome")
    assert {"reward accuracy, grammar", "reward margin, grammar"} < set(table.index)
    both = (margins(study, "global") - margins(study, "mid")).reshape(60, 2).mean(axis=1)
    assert table.n["reward margin"] == 60
    assert table.p["reward margin"] == pytest.approx(wilcoxon(both).pvalue)
    grammar = np.array([[i % 3 > 0 for i in range(120)]]).reshape(60, 2)
    means = [
        np.average(margins(study, block).reshape(60, 2)[rows], weights=grammar[rows], axis=1)
        for block in ("mid", "global")
        for rows in [grammar.any(axis=1)]
    ]
    assert table.n["reward margin, grammar"] == len(means[0]) == 60
    assert table["mid"]["reward margin, grammar"] == pytest.approx(means[0].mean())
    assert table.difference["reward margin, grammar"] == pytest.approx((means[1] - means[0]).mean())


def test_the_model_is_the_studys_first_or_the_one_that_is_named(study: Study) -> None:
    first, second = (compare(study, "mid", "global", m) for m in (None, "random-qwen2"))
    assert first.equals(compare(study, "mid", "global", "random:llama"))
    assert not first.equals(second)


def test_what_was_not_judged_has_no_row(study: Study) -> None:
    stage_manifest(study.cell(None, "mid"), "judge").unlink()
    assert list(compare(study, "mid", "global").outcome) == ["reward accuracy", "reward margin"]


def test_a_cell_that_is_not_done_is_named_with_its_command(
    study: Study, tiny_study: Callable[..., Path]
) -> None:
    with pytest.raises(HialignError, match=r"not 'mid' twice"):
        compare(study, "mid", "mid")
    with pytest.raises(HialignError, match="block 'late' is not one of"):
        compare(study, "mid", "late")
    with pytest.raises(HialignError, match="has no model 'gpt2'"):
        compare(study, "mid", "global", "gpt2")
    where = f"-p study {study.argument} -p block"
    with pytest.raises(HialignError) as caught:
        compare(study, "mid", "full")
    assert str(caught.value) == (
        "the training of random-llama full in study tiny is missing: "
        f"run `hialign run train {where} full` first"
    )
    stage_manifest(study.cell(None, "mid"), "evaluate").unlink()
    with pytest.raises(HialignError, match=f"is missing: run `hialign run evaluate {where} mid`"):
        compare(study, "mid", "global")
    changed = study.evaluation.model_copy(update={"resamples": 300})
    with pytest.raises(HialignError, match=r"global .* is stale .*: run `hialign run evaluate"):
        compare(study.model_copy(update={"evaluation": changed}), "global", "base")
