"""The tables of the judge's scores and the sentences on them, on made-up run folders."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import EFFECT, ends, make_study, row_of, scores_of, write_all, write_judgments
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from hialign.records.files import read_json
from hialign.report import facts, paper, score_tables, sentences
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Study

TRAINED = [block for block in EFFECT if block != "base"]


@pytest.fixture
def large(outputs: Path) -> Study:
    """Two models and enough prompts to tell some strategies apart; a few judgments failed."""
    study = make_study(["small", "another"])
    for cell in study.cells():
        write_judgments(cell, 150, failed=(3, 9) if cell.block == "mid" else (), whole=True)
    return study


def changes(study: Study, block: str, reference: str, dimension: str = "Overall") -> pd.Series:
    """Paired differences, straight from the files: an entry a model and prompt."""
    key = ["model", "prompt_id"]
    a, b = (scores_of(study, x, dimension).set_index(key).score for x in (block, reference))
    return (a - b).dropna()


def test_comparisons_against_scipy_and_statsmodels(large: Study) -> None:
    table = score_tables.comparisons(large)
    assert len(table) == 7  # four against Base, three against Full-DPO
    pairs = [(b, "base") for b in TRAINED] + [(b, "full") for b in TRAINED if b != "full"]
    p = []
    for (block, reference), row in zip(pairs, table.to_dict("records"), strict=True):
        found = changes(large, block, reference)
        assert row["Difference"] == pytest.approx(found.mean())
        means = found.groupby("prompt_id").mean()
        assert row["Prompts"] == len(means) == (148 if block == "mid" else 150)
        moved = means[means.round(9) != 0]
        p.append(stats.wilcoxon(moved).pvalue)
        # The interval draws prompts: near the normal one of the prompts' means
        low, high = ends(row["95% interval"])
        normal = stats.norm.interval(0.95, means.mean(), stats.sem(means))
        assert (low, high) == pytest.approx(normal, abs=0.04)
    adjusted = multipletests(p, method="holm")[1]
    shown = [0.0005 if text == "< 0.001" else float(text) for text in table["p (Holm)"]]
    assert shown == pytest.approx(adjusted, abs=0.0006)
    for row, q in zip(table.to_dict("records"), adjusted, strict=True):
        assert (row["Verdict"] in ("better", "worse")) == (q < 0.05)
    assert "better" in set(table.Verdict)
    assert list(table["Paper: difference"]) == [0.302, 0.248, 0.237, 0.043, -0.054, -0.065, -0.259]


def test_a_margin_that_nothing_can_miss_makes_all_not_inferior(outputs: Path) -> None:
    study = make_study(analysis={"margin": 3})
    write_all(study, prompts=20)
    against_full = score_tables.comparisons(study).query("Against == 'Full-DPO'")
    assert set(against_full.Verdict) <= {"not inferior", "worse, within the margin"}
    assert set(against_full["p, inferior (Holm)"]) == {"< 0.001"}


def test_rank_ranges_hold_the_rank_and_are_those_of_the_tests(large: Study) -> None:
    table = score_tables.table2(large)
    order = table["Mean Overall"].rank(ascending=False)
    for rank, text in zip(order, table["Rank range"], strict=True):
        first, last = (int(part) for part in (text.split("–") * 2)[:2])
        assert first <= rank <= last
    assert row_of(table, Strategy="Base")["Rank range"] != "1–5"


def test_dimensions_are_one_family_of_sixty(large: Study) -> None:
    table = score_tables.dimensions(large)
    assert len(table) == 60
    assert "Overall" not in set(table.Dimension)
    p = []
    for row in table.to_dict("records"):
        block = next(b for b in EFFECT if large.cell(None, b).strategy == row["Strategy"])
        found = changes(large, block, "base", row["Dimension"])
        assert row["Difference"] == pytest.approx(found.mean())
        means = found.groupby("prompt_id").mean()
        p.append(stats.wilcoxon(means[means.round(9) != 0]).pvalue)
    adjusted = multipletests(p, method="holm")[1]
    found = (table.Verdict != "cannot tell").to_numpy()
    assert list(found) == list(adjusted < 0.05)
    assert found.sum() < (np.array(p) < 0.05).sum()  # the correction does something


def test_alignment_tax_is_the_smaller_of_gain_and_loss(large: Study) -> None:
    table = score_tables.alignment_tax(large)
    for block, row in zip(TRAINED, table.to_dict("records"), strict=True):
        gain = changes(large, block, "base", "GrammarFluency").mean()
        loss = -changes(large, block, "base", "CoherenceLogic").mean()
        assert row["Tax"] == pytest.approx(min(gain, loss))
        both = [ends(row[f"{n}, 95%"]) for n in ("Gain", "Loss")]
        assert ends(row["Tax, 95%"]) == tuple(map(min, zip(*both, strict=True)))
    assert {"GrammarFluency", "CoherenceLogic"} <= set(DIMENSIONS)


def test_power_has_each_difference_of_the_paper(large: Study) -> None:
    table = score_tables.power(large)
    assert len(table) == len(paper.differences()) == 9
    row = row_of(table, Strategy="Mid-Align", Against="Full-DPO", Model="all")
    std = changes(large, "mid", "full").groupby("prompt_id").mean().std()
    assert row["Std of our differences"] == pytest.approx(std)
    assert row["Prompts here"] == 148
    # The textbook's n for an unpaired z-test, at Holm's strictest step over the comparisons
    alpha = 0.05 / len(score_tables.comparisons(large))
    z = stats.norm.isf(alpha / 2) + stats.norm.ppf(0.8)
    expected = z**2 * (1.273**2 + 1.253**2) / 0.065**2
    assert row["Needed, unpaired"] == pytest.approx(expected, abs=1)
    shown = TTestPower().solve_power(nobs=148, alpha=alpha, power=0.8) * std
    assert row["Smallest difference here"] == pytest.approx(shown, rel=1e-4)
    needed = TTestPower().solve_power(effect_size=0.065 / std, alpha=alpha, power=0.8)
    assert row["Prompts needed"] == math.ceil(needed)
    assert row_of(table, Strategy="Mid-Align", Model="Qwen3-8B").isna().any()


def test_paper_differences_by_hand() -> None:
    found = {(d["model"], d["block"], d["reference"]): d for d in paper.differences()}
    known = {
        (None, "local", "full"): (-0.054, 0.028),
        (None, "mid", "full"): (-0.065, 0.028),
        (None, "global", "base"): (0.043, 0.030),
        ("Qwen2.5-7B", "mid", "full"): (0.020, 0.056),
    }
    for key, (difference, error) in known.items():
        assert found[key]["difference"] == pytest.approx(difference)
        assert found[key]["standard_error"] == pytest.approx(error, abs=0.0005)


def test_beside_paper_has_every_number_and_its_interval(outputs: Path) -> None:
    study = make_study([{"source": "Qwen/Qwen2.5-7B"}])
    write_all(study, prompts=60)
    table = score_tables.beside_paper(study)
    assert len(table) == 5 + 5 + 10 + 9
    row = row_of(table, Number="mean, Mid-Align")
    ours = scores_of(study, "mid").score
    assert row["Ours minus paper"] == pytest.approx(ours.mean() - 3.002)
    # Two independent means: near the usual normal interval
    error = np.hypot(stats.sem(ours), 1.273 / np.sqrt(4000))
    expected = stats.norm.interval(0.95, ours.mean() - 3.002, error)
    assert ends(row["95% interval"]) == pytest.approx(expected, abs=0.05)
    assert row_of(table, Number="mean, Qwen2.5-7B Base").notna().all()
    assert pd.isna(row_of(table, Number="mean, Qwen3-8B Base")["Ours"])


# --- sentences ---------------------------------------------------------------------------------------


def test_no_effect_gives_no_finding(outputs: Path) -> None:
    """All strategies answer alike."""
    study = make_study()
    for cell in study.cells():
        write_judgments(cell, 30)
        base = study.cell(None, "base").folder
        name = "judgments-local-judge.jsonl"
        (cell.folder / name).write_text((base / name).read_text())
    text = facts.facts(study)["judge_finding"]
    assert " above " not in text
    assert " below " not in text
    assert "No difference is found" in text
    assert set(score_tables.comparisons(study).Verdict) == {
        "cannot tell",
        "not inferior",
    }  # and rightly
    assert set(score_tables.comparisons(study)["p (Holm)"]) == {"1.000"}
    assert set(score_tables.table2(study)["Rank range"]) == {"1–5"}


def test_sentences_say_what_the_tests_found(large: Study) -> None:
    told = facts.facts(large)
    table = score_tables.comparisons(large)
    for row in table.to_dict("records"):
        side = {"better": "above", "worse": "below"}.get(row["Verdict"])
        phrase = f"{row['Strategy']} ({row['Difference']:+.3f}".replace("-0", "−0")
        assert (phrase in told["judge_finding"]) == bool(side)
    assert "7 comparisons" in told["judge_finding"]
    assert told["margin"] == "0.1"
    assert told["shared_with_paper"] == "its data set"
    assert told["tax_finding"].startswith("In this study")


def test_sentences_of_a_study_without_scores(outputs: Path) -> None:
    study = make_study()
    assert sentences.overall_finding(study).startswith("Too few")
    assert "not been measured" in sentences.tax_finding(study)
    nothing = facts.facts(make_study(judge=None))
    assert nothing["tax_finding"] == "not measured"


def test_tables_are_reachable_where_the_papers_are() -> None:
    assert score_tables.table2 is score_tables.table2
    assert score_tables.table3 is score_tables.table3


def test_what_the_paper_and_a_study_share(tmp_path: Path) -> None:
    study = make_study(
        [{"source": "x/y", "label": "Qwen3-8B"}],
        judge={"backend": "openai", "model": "qwen3-max-2025-09-23"},
    )
    assert (
        facts.facts(study)["shared_with_paper"] == "1 of its 4 models, its data set and its judge"
    )
    other = make_study(preferences={"source": "builtin"})
    assert facts.facts(other)["shared_with_paper"].startswith("neither")
    (tmp_path / "harmless-base").mkdir()
    (tmp_path / "harmless-base" / "test.jsonl.gz").touch()
    folder = make_study(preferences={"source": str(tmp_path)})
    assert facts.facts(folder)["shared_with_paper"] == "its data set"


def test_the_simulated_studies_are_told_as_they_were_recorded() -> None:
    from hialign.study import paths

    content = read_json(paths.root() / "benchmarks" / "results" / "null_studies.json")
    null = content["scenarios"]["null, 100 prompts, 1 models"]
    assert null["studies"] == 10_000
    for ways in (found["ways"] for found in content["scenarios"].values()):
        for name in ("hialign: comparisons", "hialign: ranks", "hialign: tax paid"):
            assert ways.get(name, {"low": 0})["low"] <= 0.05
    text = facts.facts(make_study(judge=None))["null_studies"]
    share = null["ways"]["hialign: comparisons"]["share"]
    assert f"a difference in {100 * share:.1f}% of them" in text
