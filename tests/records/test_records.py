"""Run folders: whole or not at all, and readers that show what is missing as missing."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import vouch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hialign import HialignError, load_study, records
from hialign.engine import environment
from hialign.records import frames
from hialign.records.files import read_json, read_jsonl, whole_file, write_json, write_jsonl
from hialign.records.stages import failed_notebook, stage_manifest
from hialign.records.status import cell_status
from hialign.study.rubric import load_rubric
from hialign.study.study import STAGES, Cell, Study


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


# --- writing -------------------------------------------------------------------------------------


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, HialignError])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert hidden(tmp_path) == []


def test_rows_that_break_off_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert read_jsonl(path) == [{"a": 1}]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    for write, content in (
        (write_json, {"a": {"b": [value]}}),
        (write_jsonl, [{"a": 1}, {"a": value}]),
    ):
        with pytest.raises(HialignError, match=r"a\.json would hold a number that is not finite"):
            write(path, content)  # type: ignore[operator]
    assert read_json(path) == {"a": 1}
    assert hidden(tmp_path) == []


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(HialignError) as caught:
            write_json(path, {"a": 2})
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert read_json(path) == {"a": 1}
    assert hidden(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        HialignError, match=r"^cannot write .*/file/a.json: (Not a dir|File exists)"
    ):
        write_json(tmp_path / "file" / "a.json", {})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a loaded machine
@given(st.lists(st.dictionaries(keys, values, max_size=4), max_size=5))
def test_rows_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    """Whatever a model wrote, U+2028 and the like included, stays on its line."""
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


@pytest.mark.parametrize("text", ["half a surrogate \ud83d", "\x85 \u2028 \u2029 \x1c \r"])
def test_odd_characters_round_trip(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": text}, {"a": 2}])
    assert read_jsonl(path) == [{"a": text}, {"a": 2}]
    write_json(tmp_path / "a.json", {"a": text})
    assert read_json(tmp_path / "a.json") == {"a": text}


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(HialignError) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}, line 3: not JSON (")
    assert "\n" not in str(caught.value)


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"a": ')
    with pytest.raises(HialignError, match=r"manifest\.json.*not JSON"):
        read_json(path)


# --- provenance ----------------------------------------------------------------------------------


def test_the_environment_names_versions_and_device() -> None:
    import torch

    found = environment.environment()
    assert found["packages"]["torch"] == torch.__version__
    assert set(found["packages"]) >= {"transformers", "trl", "peft"}
    assert found["device"]
    assert json.loads(json.dumps(found)) == found


def test_memory_is_in_bytes() -> None:
    import torch

    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert environment.peak_memory_bytes() > (64 << 20)
    assert environment.peak_memory_bytes() < 1 << 40
    del block


# --- readers -------------------------------------------------------------------------------------

COLUMNS = {
    records.manifests: frames.MANIFEST_COLUMNS,
    records.training: frames.STEP_COLUMNS,
    records.evaluations: frames.EVALUATION_COLUMNS,
    records.divergences: frames.DIVERGENCE_COLUMNS,
    records.responses: ["prompt_id", "prompt", "response", "tokens", "finish_reason"],
    records.judgments: ["judge", "prompt_id", "dimension", "score"],
}


@pytest.fixture
def study(tiny_study: Callable[..., Path], outputs: Path) -> Study:
    """Two models, two blocks, a judge; nothing has run."""
    return load_study(
        tiny_study(
            models=[{"source": "random:llama", "label": "Llama"}, "random:qwen2"],
            blocks=["base", "mid"],
            judge={"backend": "local", "model": "random:llama"},
        )
    )


@pytest.mark.parametrize("read", COLUMNS, ids=lambda f: f.__name__)
def test_an_empty_study_has_every_column(
    study: Study, read: Callable[[Study], pd.DataFrame]
) -> None:
    frame = read(study)
    assert list(frame.columns) == ["model", "block", "strategy", *COLUMNS[read]]
    assert len(frame) == (4 if read is records.manifests else 0)


def test_an_empty_study_is_missing(study: Study, outputs: Path) -> None:
    frame = records.manifests(study)
    assert frame["status"].tolist() == ["missing"] * 4
    assert frame["model"].tolist() == ["Llama", "Llama", "random-qwen2", "random-qwen2"]
    assert frame["strategy"].tolist() == ["Base", "Mid-Align"] * 2
    assert frame["steps"].isna().all()
    assert not outputs.exists()  # reading writes nothing


def test_a_study_without_a_judge_has_no_judgments(tiny_study: Callable[..., Path]) -> None:
    assert len(records.judgments(load_study(tiny_study(judge=None)))) == 0


STEP = dict.fromkeys(frames.STEP_COLUMNS, 0.5)


def done(cell: Cell, stage: str, **content: Any) -> None:
    write_json(stage_manifest(cell, stage), {"fingerprint": cell.fingerprint(stage)} | content)


def fill(cell: Cell) -> None:
    """The files that a finished cell has, made by hand."""
    done(cell, "train", status="trained", layers=[2, 3], steps=2, model="random-llama", extra=1)
    write_jsonl(cell.folder / "training.jsonl", [STEP | {"step": i} for i in (1, 2)])
    done(cell, "respond")
    row = {"prompt_id": "p1", "prompt": "?", "response": "!", "tokens": 1}
    write_jsonl(cell.folder / "responses.jsonl", [row | {"finish_reason": "stop"}])
    vouch(cell, "respond")
    figures = {"n": 3, "likelihood_accuracy": 0.5, "reward_accuracy": None, "reward_margin": 0.0}
    done(
        *(cell, "evaluate"),
        objectives={"all": figures, "grammar": figures | {"n": 1}},
        divergence={"n": 1, "kl": 0.25, "response_tokens": 1.0},
    )
    dimensions = list(load_rubric(None).dimensions)
    scores = {d: 4 for d in dimensions[:-1]}
    rows: list[dict[str, Any]] = [
        {"prompt_id": "p1", "judge": "j", "scores": scores},
        {"prompt_id": "p2", "judge": "j", "scores": {}, "error": "no answer"},
    ]
    assert cell.study.judge
    write_jsonl(cell.folder / f"judgments-{cell.study.judge.name}.jsonl", rows)
    done(cell, "judge")


def test_readers_give_what_the_files_hold(study: Study) -> None:
    cell = study.cell("random-llama", "mid")
    fill(cell)
    frame = records.manifests(study)
    assert frame["status"].tolist() == ["missing", "done", "missing", "missing"]
    row = frame.iloc[1]
    assert (row.model, row.layers, row.steps, row.extra) == ("Llama", [2, 3], 2, 1)
    assert not row.stale

    steps = records.training(study)
    assert steps[["model", "block", "strategy", "step"]].values.tolist() == [
        *(["Llama", "mid", "Mid-Align", 1], ["Llama", "mid", "Mid-Align", 2]),
    ]
    evaluations = records.evaluations(study)
    assert evaluations["objective"].tolist() == ["all", "grammar"]
    assert evaluations["n"].tolist() == [3, 1]
    assert evaluations["reward_accuracy"].isna().all()
    divergences = records.divergences(study)
    assert divergences[["kl", "response_tokens"]].values.tolist() == [[0.25, 1.0]]
    assert records.responses(study)["response"].tolist() == ["!"]


def test_missing_scores_are_missing(study: Study) -> None:
    """Not a 3, and not left out: each prompt has a row for each dimension."""
    fill(study.cell("random-llama", "mid"))
    frame = records.judgments(study)
    dimensions = list(load_rubric(None).dimensions)
    assert len(dimensions) == 16
    assert len(frame) == 32
    assert frame["dimension"].tolist() == dimensions * 2
    scores = frame["score"].tolist()
    assert scores[:15] == [4] * 15
    assert all(math.isnan(s) for s in scores[15:])
    assert frame["score"].dtype == float


# --- status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_status_of_a_stage(study: Study, stage: str) -> None:
    cell = study.cell("random-llama", "mid")
    assert cell_status(cell, stage) == "missing"
    notebook = failed_notebook(cell, stage)
    notebook.parent.mkdir(parents=True)
    notebook.write_text("{}")
    assert cell_status(cell, stage) == "failed"
    assert notebook.name == f"{stage}-random-llama-mid.failed.ipynb"
    for before in {"train": (), "respond": ("train",)}.get(stage, ("train", "respond")):
        done(cell, before)
    done(cell, stage)
    assert cell_status(cell, stage) == "done"
    write_json(stage_manifest(cell, stage), {"fingerprint": "another"})
    assert cell_status(cell, stage) == "stale"


def test_a_changed_setting_makes_a_run_stale(study: Study) -> None:
    fill(study.cell("random-llama", "mid"))
    settings = study.training.model_copy(update={"beta": 0.5})
    other = study.model_copy(update={"training": settings})
    frame = records.manifests(other)
    assert frame.iloc[1]["stale"]
    assert frame.iloc[1]["status"] == "stale"
    assert math.isnan(frame.iloc[1]["steps"])  # it is there, and not shown
    assert cell_status(other.cell("random-llama", "mid")) == "stale"
    assert cell_status(study.cell("random-llama", "mid")) == "done"


def test_another_judge_is_another_run(study: Study) -> None:
    fill(study.cell("random-llama", "mid"))
    assert study.judge
    judge = study.judge.model_copy(update={"name": "other"})
    other = study.model_copy(update={"judge": judge})
    assert cell_status(other.cell("random-llama", "mid"), "judge") == "missing"
    assert cell_status(other.cell("random-llama", "mid"), "train") == "done"


def test_half_a_character_is_no_end_of_the_responses(tiny_study: Any, outputs: Path) -> None:
    """An endpoint can send one; it has no UTF-8, which pandas may want to store strings in."""
    study = load_study(tiny_study(blocks=["base"]))
    (cell,) = study.cells()
    row = {"prompt_id": "p", "prompt": "?", "response": "half \ud83d", "tokens": 2}
    write_jsonl(cell.folder / "responses.jsonl", [row | {"finish_reason": "stop"}])
    vouch(cell, "respond")
    assert records.responses(study)["response"].tolist() == ["half \ud83d"]
    assert frames.responses_of(cell)[0]["response"] == "half \ud83d"
