"""Tables against pandas, numpy and scipy, on made-up run folders."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import (
    EFFECT,
    ends,
    make_study,
    measurement,
    published,
    row_of,
    scores_of,
    write_all,
    write_evaluation,
    write_judgments,
    write_training,
)

from hialign.records.files import read_json, write_json
from hialign.records.stages import stage_manifest
from hialign.report import display, judge_tables, score_tables, tables
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Study


@pytest.fixture
def small(outputs: Path) -> Study:
    """One model, two strategies done, no judgments."""
    study = make_study()
    for block in ("base", "mid"):
        write_training(study.cell(None, block))
        write_evaluation(study.cell(None, block))
    return study


@pytest.fixture
def scored(outputs: Path) -> Study:
    """Two models; some judgments of one failed, and one cell has none at all."""
    study = make_study(["small", "another"], blocks=["base", "full", "mid"])
    for cell in study.cells():
        if (cell.model.name, cell.block) != ("another", "mid"):
            write_judgments(cell, failed=(0, 5) if cell.block == "full" else ())
    return study


# --- the paper's tables ----------------------------------------------------------------------------


def test_table1() -> None:
    table = tables.table1()
    strategies = ["Base", "Full-DPO", "Local-Align", "Mid-Align", "Global-Align"]
    assert list(table.Strategy) == strategies
    assert list(table.Kind[:2]) == ["–", "monolithic"]


def test_table2_against_pandas_and_scipy(scored: Study) -> None:
    from scipy.stats import bootstrap

    table = score_tables.table2(scored)
    assert list(table.Strategy) == ["Base", "Full-DPO", "Mid-Align"]
    base = scores_of(scored, "base")
    for block, strategy in (("base", "Base"), ("full", "Full-DPO"), ("mid", "Mid-Align")):
        scores = scores_of(scored, block)
        row = row_of(table, Strategy=strategy)
        assert row["Mean Overall"] == pytest.approx(scores.score.mean())
        assert row["Std"] == pytest.approx(scores.score.std(ddof=1))
        assert row["Median"] == pytest.approx(scores.score.median())
        assert row["Scored"] == scores.score.notna().sum()
        assert row["Failed"] == scores.score.isna().sum() == (4 if block == "full" else 0)
        assert row["Models"] == (1 if block == "mid" else 2)
        low, high = ends(row["95% interval"])
        assert low < row["Mean Overall"] < high
    # Both models have all of Base's scores, so its interval is of the mean of the prompts' means.
    means = base.groupby("prompt_id").score.mean().to_numpy()
    expected = bootstrap((means,), np.mean, n_resamples=9_999, rng=np.random.default_rng(1))
    found = ends(row_of(table, Strategy="Base")["95% interval"])
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.08)
    assert list(table["Paper: mean"]) == [2.765, 3.067, 3.002]


def test_table3_ranks_and_finds_the_papers_models(outputs: Path) -> None:
    models = [{"source": "Qwen/Qwen2.5-7B"}, {"source": "Qwen/Qwen3-8B"}, {"source": "x/other"}]
    study = make_study(models)
    for cell in study.cells():
        write_judgments(cell, prompts=6)
    table = score_tables.table3(study)
    assert list(table.Rank) == list(range(1, 11))
    assert table["Mean Overall"].is_monotonic_decreasing
    everything = score_tables.table3(study, top=15)
    assert len(everything) == 15
    for row in everything.to_dict("records"):
        block = next(b for b in EFFECT if study.cell(None, b).strategy == row["Strategy"])
        scores = scores_of(study, block)
        mean = scores[scores.model == row["Model"]].score.mean()
        assert row["Mean Overall"] == pytest.approx(mean)
    known = row_of(everything, Model="Qwen2.5-7B", Strategy="Mid-Align")
    assert (known["Paper: rank"], known["Paper: mean"]) == (1, 3.534)
    assert pd.isna(row_of(everything, Model="other", Strategy="Base")["Paper: rank"])
    assert set(everything["Rank range"]) == {"1–15"}  # six prompts: nothing can be told apart


def test_table4(small: Study) -> None:
    table = tables.table4(small)
    mid = dict(zip(table.Model, table["Mid block"], strict=True))
    assert mid["Qwen2.5-7B"] == "10–18 (9)"
    assert mid["small"] == "10–19 (10)"
    assert row_of(table, Model="small")["In"] == "this study"


def test_table4_leaves_unknown_depths_open(outputs: Path) -> None:
    study = make_study([{"source": "Qwen/Qwen3-8B"}, {"source": "hub/never-run"}])
    table = tables.table4(study)
    assert row_of(table, Model="Qwen3-8B")["In"] == "paper and this study"
    assert pd.isna(row_of(table, Model="never-run")["Layers"])
    assert pd.isna(row_of(table, Model="never-run")["Local block"])


def test_table5_says_what_differs(small: Study) -> None:
    table = tables.table5(small).set_index("Hyper-parameter")
    assert set(table.Same.drop("Precision")) == {"yes"}
    assert list(table.loc["Precision"]) == ["bfloat16", "float32", "no"]
    assert table.loc["Learning rate", "Paper"] == "1e-5"
    other = make_study(training={"lora_rank": 8, "gradient_checkpointing": False})
    table = tables.table5(other).set_index("Hyper-parameter")
    assert list(table.loc["LoRA rank"]) == ["16", "8", "no"]
    assert list(table.loc["Gradient checkpointing"]) == ["on", "off", "no"]


def test_table6_defines_every_dimension() -> None:
    table = tables.table6()
    assert sorted(table.Dimension) == sorted(DIMENSIONS)
    assert table.Definition.str.len().min() > 10
    assert table.Group.nunique() == 6


# --- ours ------------------------------------------------------------------------------------------


def test_accuracy_has_a_row_a_cell(small: Study) -> None:
    table = tables.accuracy(small)
    assert len(table) == 5
    row = row_of(table, Strategy="Mid-Align")
    assert row["Reward accuracy"] == pytest.approx(0.85)
    assert row["Reward accuracy, 95% interval"] == "0.770 to 0.930"
    assert row["Pairs"] == 72
    base = row_of(table, Strategy="Base")
    assert pd.isna(base["Reward accuracy"])
    assert base["Reward margin"] == 0
    assert pd.isna(base["Reward margin, 95% interval"])
    assert row_of(table, Strategy="Full-DPO").drop(["Model", "Strategy"]).isna().all()


def test_objectives_are_apart_and_in_order(small: Study) -> None:
    table = tables.objectives(small)
    assert len(table) == 5 * 3
    assert list(table.Objective[:3]) == ["grammar", "coherence", "factuality"]
    row = row_of(table, Strategy="Mid-Align", Objective="coherence")
    assert row["Reward margin"] == pytest.approx(2 * EFFECT["mid"])
    assert row["Pairs"] == 24


def test_divergence(small: Study) -> None:
    table = tables.divergence(small)
    row = row_of(table, Strategy="Mid-Align")
    assert row["KL from Base (nats/token)"] == pytest.approx(0.026)
    assert row["KL from Base, 95% interval"] == "0.0256 to 0.0264"
    assert row["Responses"] == 24


def test_a_divergence_without_responses_is_missing(small: Study) -> None:
    cell = small.cell(None, "mid")
    content = read_json(cell.folder / "evaluation.json")
    content["divergence"] |= {"kl": None, "kl_low": None, "kl_high": None}
    write_json(cell.folder / "evaluation.json", content)
    row = row_of(tables.divergence(small), Strategy="Mid-Align")
    assert pd.isna(row["KL from Base (nats/token)"])
    assert row["Response length (tokens)"] == pytest.approx(55)


def test_cells_tell_what_ran(small: Study) -> None:
    write_training(small.cell(None, "full"), fingerprint="of other settings")
    table = tables.cells(small)
    mid = row_of(table, Strategy="Mid-Align")
    assert mid["Status"] == "done"
    assert mid["Layers"] == "10–19"
    assert mid["Training (min)"] == pytest.approx(9 * 6.0 * 1.25 / 60)
    assert mid["Peak memory (GiB)"] == pytest.approx(1.5)
    assert mid["Tokens"] == 900
    base = row_of(table, Strategy="Base")
    assert base["Layers"] == "none"
    assert pd.isna(base["Training (min)"])
    full = row_of(table, Strategy="Full-DPO")
    assert full["Status"] == "stale"
    assert pd.isna(full["Final loss"]), "nothing is shown of it"
    assert row_of(table, Strategy="Local-Align")["Status"] == "missing"


def test_span() -> None:
    assert display.span([8, 9, 10, 12, 20, 21]) == "8–10, 12, 20–21"
    assert display.span([]) == ""


# --- the judge's agreement ---------------------------------------------------------------------------


def test_judge_agreement(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from statsmodels.stats.proportion import proportion_confint

    from hialign.study.rubric import load_rubric

    study = make_study()
    published(monkeypatch, measurement(rubric_sha256=load_rubric().sha256))
    table = judge_tables.judge_agreement(study)
    assert list(table["Pairs"]) == [100, 100, 40, 60]
    assert table["95% interval"][0] == "0.100 to 0.900"
    natural = proportion_confint(54, 100, method="wilson")
    hard = proportion_confint(40, 100, method="wilson")
    assert table.attrs["text"] == (
        f"54% of 100 everyday pairs ({natural[0]:.0%} to {natural[1]:.0%}) and "
        f"40% of 100 adversarial pairs ({hard[0]:.0%} to {hard[1]:.0%})"
    )


def test_judge_agreement_is_of_the_weights_that_judged(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study()
    rubric = "0" * 64
    published(monkeypatch, measurement(rubric_sha256=rubric, weights_sha256="right"))
    file = stage_manifest(study.cell(None, "mid"), "judge")
    for weights, known in (("other", False), ("right", True)):
        write_json(file, {"rubric_sha256": rubric, "weights_sha256": weights})
        assert ("text" in judge_tables.judge_agreement(study).attrs) == known


@pytest.mark.parametrize("judge", [None, {"backend": "local", "model": "embedded:unmeasured"}])
def test_an_unmeasured_judge_is_said_to_be_so(outputs: Path, judge: Any) -> None:
    table = judge_tables.judge_agreement(make_study(judge=judge))
    assert list(table["LLMBar subset"]) == ["not measured"]
    assert table.isna().sum(axis=1)[0] == len(table.columns) - 1
    assert "text" not in table.attrs


# --- display -----------------------------------------------------------------------------------------

OF_A_STUDY: list[Callable[[Study], pd.DataFrame]] = [
    *(score_tables.table2, score_tables.table3, tables.table4, tables.table5, tables.accuracy),
    *(tables.objectives, tables.divergence, tables.cells, judge_tables.judge_agreement),
    *(score_tables.comparisons, score_tables.dimensions, score_tables.alignment_tax),
    *(score_tables.power, score_tables.beside_paper),
]


@pytest.mark.parametrize("table", OF_A_STUDY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("judge", [None, {"backend": "local", "model": "embedded:judge"}])
def test_an_empty_study_has_every_table(outputs: Path, table: Any, judge: Any) -> None:
    shown = table(make_study(judge=judge))._repr_html_()
    assert "<table" in shown
    assert "nan" not in shown.lower().replace("&nbsp;", "")
    assert "None" not in shown


@pytest.mark.parametrize("table", OF_A_STUDY, ids=lambda f: f.__name__)
def test_a_partial_study_has_every_table(small: Study, table: Any) -> None:
    shown = table(small)._repr_html_()
    assert "nan" not in shown.lower()
    assert "&lt;NA&gt;" not in shown


def test_what_comes_from_outside_is_escaped(outputs: Path) -> None:
    study = make_study([{"source": "random:x", "label": "<script>alert(1)</script>"}])
    write_all(study)
    for table in OF_A_STUDY:
        shown = table(study)._repr_html_()  # type: ignore[operator]
        assert "<script" not in shown
        assert "<b>" not in shown
    assert "&lt;b&gt;A100" in tables.cells(study)._repr_html_()


def test_show_formats_numbers_and_is_the_same_each_time(small: Study) -> None:
    frame = pd.DataFrame({"A": ["x", None], "Pairs": [1200, 3], "Accuracy": [0.5, math.nan]})
    shown = display.show(frame).to_html()
    assert "1,200" in shown
    assert "0.500" in shown
    assert shown.count("–") == 2
    assert shown == display.show(frame).to_html()
    assert 'class="dataframe"' in shown  # what the theme recolours in dark mode
    assert "1,234" not in display.show(pd.DataFrame({"Seed": [1234]})).to_html()
