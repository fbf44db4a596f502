"""What is shown of the gradients' signal, of records that have one and of those that have none."""

from pathlib import Path
from typing import Any

import pytest

from hialign import load_study
from hialign.probes.gradients.probe import gradients
from hialign.records.files import read_record, write_record
from hialign.report.facts import facts
from hialign.report.where import concordance, signal
from hialign.study import paths
from hialign.study.blocks import OBJECTIVES
from hialign.study.study import Study

VIEWS = (signal.thirds, signal.resolution, signal.by_module, signal.interaction, signal.by_layer)


@pytest.fixture
def study(outputs: Path) -> Study:
    """The smoke study with the record of its gradients."""
    loaded = load_study("smoke")
    few = {"at_steps": [], "contrast_prompts": 5, "flips": 200, "permutations": 200}
    chosen = loaded.probes.model_dump() | {"gradients": few}  # type: ignore[union-attr]
    made = Study(**loaded.model_dump() | {"probes": chosen, "name": "made-up"})
    gradients(made.cell(None, "base"))
    return made


def record_of(study: Study) -> dict[str, Any]:
    return read_record(paths.probe_record(study.name, study.models[0].name, "gradients"))


@pytest.mark.slow
def test_tables_hold_the_records_numbers(study: Study) -> None:
    part = record_of(study)["signal"]
    sources = ["preference", *OBJECTIVES]
    layers = signal.by_layer(study)
    assert layers["Signal"].tolist() == [row["signal"] for row in part["layers"]]
    assert layers["Pairs of"].unique().tolist() == sources
    thirds = signal.thirds(study)
    assert thirds["Third"].tolist() == ["Local", "Mid", "Global"] * 4
    assert thirds["Over chance"].tolist() == [row["over_chance"] for row in part["thirds"]]
    accounts = signal.resolution(study)
    assert len(accounts) == 20
    for source in sources:
        of_source = accounts[accounts["Pairs of"] == source]
        assert of_source["Probability"].sum() == pytest.approx(1, rel=1e-4)
        assert of_source["Would be found there"].isna().tolist() == [False] * 3 + [True] * 2
    modules = signal.by_module(study)
    assert len(modules) == 4 * len(record_of(study)["parameters"][0])
    assert modules["Layers"].tolist() == [6] * len(modules)
    objectives = signal.interaction(study)
    assert objectives["Objective"].tolist() == [*OBJECTIVES, "all"]
    assert signal.signal(study).axes[0].get_ylabel() == "signal over its spread by chance"
    assert facts(study)["gradients_see_labels"] == "yes"
    measured, _ = concordance.measures(study, study.models[0].label)
    assert [measure.name for measure in measured] == ["gradient", "norms"]
    # a record of an earlier version
    path = paths.probe_record(study.name, study.models[0].name, "gradients")
    record = record_of(study)
    del record["signal"], record["layer_scores_by"]
    write_record(path, record)
    for view in VIEWS:
        assert view(study)["Model"].tolist() == ["none yet"]
    assert facts(study)["gradients_see_labels"] == "no"
    assert signal.signal(study).axes[0].get_ylabel() == ""


def test_published_records_of_earlier_versions_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    published = paths.root() / "outputs" / "published"
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(published))
    study = load_study(published / "where" / "study.yml")
    measured, lacking = concordance.measures(study, study.models[0].label)
    assert "norms" in {measure.name for measure in measured}
    assert "no label changes these" in lacking["gradient"]
    for view in VIEWS:
        assert view(study)["Model"].tolist() == ["none yet"]
