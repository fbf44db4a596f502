"""`hialign replicate`: a new seed beside those that were published, and whether the result holds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_study
from simulated import simulate_objectives, simulate_preferences

from hialign.engine.cells import train_together
from hialign.evaluation.evaluate import evaluate_together
from hialign.evaluation.respond import respond
from hialign.preferences.formats import conversation_id, prompt_id
from hialign.preferences.pairs import load_pairs
from hialign.probes.matrix import matrix
from hialign.report.replication import hypothesis, reading, registered, repeated
from hialign.run import replicate, workflow
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Study, load_study

Runner = Callable[..., None]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], list[str]]:
    """Have `run(study)` do what Snakemake would have its jobs do. Returns the seeds that were run."""

    def use(run: Runner) -> list[str]:
        done: list[str] = []

        def reproduce(name: str, cores: int, **options: Any) -> None:
            assert not options["with_book"]
            one = load_study(name).at(options["seed"])
            done.append(one.seed)
            if not options["dry_run"]:
                run(one)

        monkeypatch.setattr(workflow, "reproduce", reproduce)
        return done

    return use


def publish(study: Study) -> Path:
    folder = paths.published() / study.name
    shutil.copytree(paths.study_dir(study.name), folder)
    assert study.file is not None
    (folder / "study.yml").write_text(f"name: {study.name}\n{study.file.read_text()}")
    shutil.copy(study.file.with_name(f"{study.name}.registered.md"), folder)
    shutil.rmtree(paths.study_dir(study.name))
    return folder


def words(text: str) -> str:
    return " ".join(text.split())


# --- through training and probes -----------------------------------------------------------------


@pytest.fixture
def small(outputs: Path, tmp_path: Path) -> Study:
    """A registered study of objectives on a tiny random model, with two seeds."""
    matrix_settings = {"train": 2, "contrast_prompts": 6, "together": False}
    matrix_settings |= {"blocks": ["full", "local", "mid", "global"]}
    nothing = dict.fromkeys(("gradients", "ila", "patching", "sweep", "weights"))
    path = write_study(
        tmp_path,
        models=["random:llama:3"],
        seeds=[1, 2],
        preferences={"source": "builtin", "train": 4, "evaluation": 18},
        responses={"prompts": 2, "max_new_tokens": 4},
        training={"max_length": 400},
        probes={"resamples": 50, "matrix": matrix_settings} | nothing,
    )
    path.with_name("tiny.registered.md").write_text("# Registered\n")
    return load_study(path)


def work(one: Study) -> None:
    """All that a seed of a study needs, as its notebooks do it."""
    cells = one.cells()
    train_together(cells)
    for cell in cells:
        respond(cell)
    evaluate_together(cells)
    matrix(cells[0])


@pytest.mark.slow
def test_a_new_seed_is_trained_tested_and_compared(
    small: Study, runs: Callable[[Runner], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside published records of the same held-out pairs, which were made up."""
    pairs = [
        {"id": p["id"], "objective": p["objective"], "set": "rules"}
        | {"prompt": prompt_id(p["prompt"]), "conversation": conversation_id(p["prompt"])}
        for p in load_pairs(small.preferences).evaluation
    ]
    simulate_objectives(small, pairs=pairs, learned=2.0)
    (before,) = hypothesis.findings(small).values()
    publish(small)
    done = runs(work)
    replicate.replicate(str(small.file), None, 1)
    assert done == ["seed-3"]
    said = capsys.readouterr().out
    assert "published   " in said
    assert said.count("hold") >= 3
    model = small.models[0]
    more = repeated.with_seed(small, 3)
    fresh = reading.trained_alone(more, model)
    assert fresh.seeds.real == ["seed-3"]
    rows = repeated.repeated(small, 3)
    assert [row.name for row in rows][-3:] == [f"{o}, own third" for o in hypothesis.OBJECTIVES]
    for row, test in zip(rows[-3:], before.secondary, strict=False):
        assert row.published == pytest.approx(test["mean"])
        assert row.together == pytest.approx((2 * test["mean"] + row.new) / 3)
    places = fresh.places("rules", "coherence")
    own = hypothesis.advantage(fresh, places, "coherence", "coherence")
    assert rows[-2].new == pytest.approx(own.mean())


# --- what it says --------------------------------------------------------------------------------


def test_a_result_that_is_there_holds_with_a_new_seed(
    objectives: Callable[..., Study],
    runs: Callable[[Runner], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = objectives(own=1.5, prompts=60)
    publish(study)
    runs(lambda one: simulate_objectives(one, own=1.5, prompts=60, seeds=["seed-5"]))
    replicate.replicate(str(study.file), None, 2)
    said = words(capsys.readouterr().out)
    assert "supported" in said
    rows = repeated.repeated(study, 5)
    assert [row.same_sign for row in rows] == [True] * 4
    assert all(row.low < row.published < row.high for row in rows)
    held = sum(row.holds for row in rows)
    assert ("The published result holds" in said) == (held == 4)
    assert held >= 3  # each range leaves out one new seed in twenty
    first = rows[0]
    assert first.name == "interaction of grammar, coherence, factuality"
    (found,) = _findings(study).values()
    assert found.primary is not None
    assert first.low, first.high == repeated.prediction(found.primary["by_seed"])


def _findings(study: Study) -> dict[str, hypothesis.Findings]:
    with repeated._published(study):
        return hypothesis.findings(study)


def test_a_seed_that_says_the_opposite_does_not(
    objectives: Callable[..., Study],
    runs: Callable[[Runner], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = objectives(own=1.5, prompts=60)
    runs(lambda one: simulate_objectives(one, own=-0.9, prompts=60, seeds=["seed-9"]))
    replicate.replicate(str(study.file), 9, 2)
    said = words(capsys.readouterr().out)
    assert "These do not: interaction of grammar, coherence, factuality" in said
    assert "the new seed is outside the range where it should fall, it has the other sign" in said


def test_a_study_of_strategies_is_repeated_contrast_by_contrast(
    preferences: Callable[..., Study], runs: Callable[[Runner], list[str]]
) -> None:
    truth = {"ahead": {"mid": 1.5, "full": 1.5}, "pairs": 120}
    study = preferences(**truth)
    runs(lambda one: simulate_preferences(one, **truth, seeds=["seed-5"]))
    replicate.replicate(str(study.file), None, 2)
    rows = repeated.repeated(study, 5)
    assert [row.name for row in rows][:2] == ["Full minus Local", "Full minus Mid"]
    by_name = {row.name: row for row in rows}
    assert by_name["Full minus Local"].same_sign
    assert by_name["Full minus Mid"].same_sign is None  # its published verdict has no sign
    assert by_name["Mid minus Global"].together_verdict == "better"


def test_what_cannot_be_repeated_is_refused(
    objectives: Callable[..., Study], runs: Callable[[Runner], list[str]]
) -> None:
    done = runs(lambda one: pytest.fail("it was run"))
    study = objectives(prompts=4, seeds=["seed-1"])
    with pytest.raises(HialignError, match="records of 1 seeds of study made"):
        replicate.replicate(str(study.file), None, 1)
    with pytest.raises(
        HialignError, match="seed 3 is one of study made's own: give another, such as 5"
    ):
        replicate.replicate(str(study.file), 3, 1)
    with pytest.raises(HialignError, match="study demo has no registration"):
        replicate.replicate("demo", None, 1)
    assert done == []
    simulate_objectives(study, prompts=4)
    replicate.replicate(str(study.file), None, 1, dry_run=True)
    assert done == ["seed-5"]
    with pytest.raises(HialignError, match="seed 5 of study made has no records yet"):
        repeated.repeated(study, 5)


def test_the_copy_differs_in_its_seeds_alone(objectives: Callable[..., Study]) -> None:
    """So that the new seed's records are those that the study itself would have had."""
    study = objectives(prompts=2)
    more = repeated.with_seed(study, 7)
    assert more.seeds == [1, 2, 3, 4, 7]
    assert more.model_copy(update={"seeds": study.seeds}) == study
    for stage in ("train", "evaluate"):
        ours, theirs = (one.cell(None, "mid", 2).fingerprint(stage) for one in (study, more))
        assert ours == theirs
    assert more.cell(None, "mid", 7).folder.parent == study.cell(None, "mid", 2).folder.parent
    assert registered.analysis_of(more) == "hypothesis"


def test_a_new_seed_falls_into_its_range_as_often_as_said() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.03, 0.02, (4000, 5))
    inside = [
        low <= row[4] <= high for row in drawn for low, high in [repeated.prediction(row[:4])]
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)
