"""What judging took and what failed, as the book shows it."""

from pathlib import Path

import pandas as pd
import pytest
from helpers import vouch

from hialign.records.files import write_jsonl
from hialign.records.stages import judgments_file
from hialign.report import judge_tables
from hialign.report.display import show
from hialign.study.study import Study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path))
    judge = {"model": "judge", "name": "tester", "prices": {"input": 1, "output": 2}}
    study = Study(name="s", title="t", models=["random:llama"], blocks=["base", "mid"], judge=judge)
    good = {"scores": {"Overall": 3}, "attempts": 2, "repaired": True, "model": "judge-1"}
    good |= {"usage": {"prompt_tokens": 10, "completion_tokens": 5}, "cost": 0.5}
    bad = {"scores": {}, "attempts": 3, "error": "no valid answer", "raw": "<script>\n" + 200 * "x"}
    bad |= {"usage": {"prompt_tokens": 7}, "cost": 0.25, "model": "judge-2"}
    shared = good | {"usage": {}, "cost": 0.0, "shared": True}
    rows = [good, shared, bad]
    for cell in study.cells()[1:]:
        write_jsonl(judgments_file(cell), [row | {"prompt_id": i} for i, row in enumerate(rows)])
        vouch(cell, "judge")
    return study


def test_usage_by_cell(study: Study) -> None:
    base, mid = judge_tables.usage(study).to_dict("records")
    assert base["Strategy"] == "Base"
    assert pd.isna(base["Judged"])  # not run: missing, and no zero
    counts = ("Judged", "Failed", "Asked again", "Repaired", "Shared", "Tokens in", "Tokens out")
    assert [mid[name] for name in counts] == [2, 1, 3, 2, 1, 17, 5]
    assert mid["USD"] == 0.75
    assert mid["Answered by"] == "judge-1, judge-2"


def test_failures_are_listed_with_their_answers_escaped(study: Study) -> None:
    [row] = judge_tables.failures(study).to_dict("records")
    assert (row["Strategy"], row["Prompt"], row["Problem"]) == ("Mid-Align", "2", "no valid answer")
    assert row["Answer"].startswith("<script> xxx")
    assert len(row["Answer"]) == judge_tables.LONGEST
    assert "<script>" not in show(judge_tables.failures(study)).to_html()


def test_no_failures_and_no_judge(study: Study) -> None:
    judgments_file(study.cells()[1]).unlink()
    assert judge_tables.failures(study)["Model"].tolist() == ["none"]
    none = study.model_copy(update={"judge": None})
    assert judge_tables.usage(none).empty
    assert judge_tables.failures(none)["Model"].tolist() == ["none"]
