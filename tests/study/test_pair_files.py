"""Where the pairs of a study lie: on the hub, or in the local copy that a user names."""

import gzip
import json
from pathlib import Path

import pytest

from hialign import HialignError, load_pairs, load_study
from hialign.preferences.sources import check_source
from hialign.records.dependencies import depends, inputs_of
from hialign.records.files import stamps, write_record
from hialign.records.stages import stage_manifest
from hialign.records.status import probe_state, state
from hialign.study import paths
from hialign.study.blocks import OBJECTIVES
from hialign.study.pair_files import HH_RLHF, data_files, is_hh_rlhf, source_name
from hialign.study.probe_settings import IlaSettings
from hialign.study.settings import PreferenceSettings
from hialign.study.study import probes_of, stages_of, study_names


@pytest.fixture
def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one file of hh-rlhf, in the hub's layout, named by the environment."""
    file = tmp_path / "data" / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    file.parent.mkdir(parents=True)
    said = "\n\nHuman: Question {0}?\n\nAssistant: A {1} answer."
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        for number in range(6):
            row = {side: said.format(number, side) for side in ("chosen", "rejected")}
            stream.write(json.dumps(row) + "\n")
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(tmp_path / "data"))
    return file


def test_a_local_copy_of_hh_rlhf_stands_in_for_the_hub(
    local_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    pairs = load_pairs(HH_RLHF, subsets=["harmless-base"], train=4, evaluation=2)
    assert pairs.report["read"] == {"test": 6}
    assert pairs.train[0]["chosen"][0]["content"] == "A chosen answer."
    with pytest.raises(
        HialignError, match=f"no train.jsonl .* in helpful-base .*{local_copy.parts[-3]}"
    ):
        check_source(PreferenceSettings(source=HH_RLHF, subsets=["helpful-base"]))


def test_a_folder_of_its_layout_is_hh_rlhf(local_copy: Path, tmp_path: Path) -> None:
    folder = str(local_copy.parents[1])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test.jsonl.gz").write_bytes(local_copy.read_bytes())

    def asked(source: str, **more: list[str]) -> bool:
        return is_hh_rlhf(PreferenceSettings(source=source, **more))

    assert asked(HH_RLHF)
    assert asked(folder)
    assert asked(folder, subsets=["harmless-base"])
    assert not asked(folder, subsets=["helpful-base"])  # which it does not have
    assert not asked(folder, subsets=["harmless-base", "mine"])
    assert not asked(str(local_copy))  # a file of any origin
    assert not asked(str(tmp_path / "mine"))
    assert not asked(str(tmp_path / "nowhere"))
    assert not asked("builtin")
    # where only the records of a study are
    assert asked("../elsewhere/hh-rlhf-both", subsets=["helpful-base"])
    assert not asked("../elsewhere/hh-rlhf-both", subsets=["mine"])
    assert not asked("../elsewhere/hh-rlhf.jsonl")
    assert not asked("someone/hh-rlhf-cleaned")


def test_a_source_is_named_without_its_folders(local_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("")
    sources = {"builtin": "builtin", HH_RLHF: HH_RLHF, "someone/pairs": "someone/pairs"}
    sources |= {str(local_copy.parents[1]): HH_RLHF, str(tmp_path / "pairs.jsonl"): "pairs.jsonl"}
    sources |= {"../data/contrasts": "contrasts"}
    for source, name in sources.items():
        assert source_name(PreferenceSettings(source=source)) == name


def test_a_record_names_the_files_of_a_local_copy_by_hash(local_copy: Path) -> None:
    inputs = inputs_of(load_study("hh-smollm2").cell(None, "mid"), "train")
    assert inputs["data/test.jsonl.gz"] == local_copy
    before = stamps(inputs)["data/test.jsonl.gz"]["sha256"]
    local_copy.write_bytes(gzip.compress(b"{}\n"))
    assert stamps(inputs)["data/test.jsonl.gz"]["sha256"] != before


def test_without_a_copy_the_set_is_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.shared_data() is None
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(tmp_path))  # which holds no hh-rlhf
    settings = PreferenceSettings(source=HH_RLHF)
    assert data_files(settings) == []
    check_source(settings)
    with pytest.raises(HialignError, match=r"from the hub.*HIALIGN_SHARED_DATA to a folder"):
        load_pairs(settings)


def test_a_copy_does_not_stand_in_for_a_revision(local_copy: Path) -> None:
    assert data_files(PreferenceSettings(source=HH_RLHF)) == [local_copy]
    assert data_files(PreferenceSettings(source=HH_RLHF, revision="09be8c5")) == []


def test_a_copy_that_comes_later_makes_no_record_of_the_hubs_pairs_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: Path, local_copy: Path
) -> None:
    monkeypatch.delenv("HIALIGN_SHARED_DATA")
    file = tmp_path / "study.yml"
    text = f"title: T\nmodels: [random:llama]\npreferences: {{source: {HH_RLHF}}}\njudge: null\n"
    file.write_text(text, encoding="utf-8")
    cell = load_study(file).cell(None, "base")
    record = {**depends(cell, "train"), "stage": "train"}
    write_record(stage_manifest(cell, "train"), record)
    assert state(cell).status == "done"
    monkeypatch.setenv("HIALIGN_SHARED_DATA", str(local_copy.parents[2]))
    assert "data/test.jsonl.gz" in inputs_of(cell, "train")
    assert state(cell).status == "done"
    write_record(stage_manifest(cell, "train"), {**depends(cell, "train"), "stage": "train"})
    local_copy.write_bytes(gzip.compress(b"{}\n"))
    assert state(cell).status == "stale", "made from the copy, which has changed"


@pytest.mark.parametrize("name", study_names())
def test_a_shipped_study_reads_nothing_that_a_stranger_lacks(name: str) -> None:
    study = load_study(name)
    assert study.preferences.source in ("builtin", "contrasts", HH_RLHF)
    ila = study.probes.ila if study.probes else None
    assert set((ila or IlaSettings()).datasets) <= {"study", "builtin", *OBJECTIVES}


@pytest.mark.skipif(not paths.in_checkout(), reason="needs a checkout of the repository")
def test_published_records_of_local_data_are_still_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """`where` was run on a folder of that machine, which its settings name. They stay as they are."""
    published = paths.root() / "outputs" / "published"
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(published))
    study = load_study(published / "where" / "study.yml")
    states = {
        f"{stage} {cell.block}": state(cell, stage)
        for cell in study.cells()
        for stage in stages_of(cell)
    }
    states |= {probe: probe_state(study, study.models[0], probe) for probe in probes_of(study)}
    assert len(states) == 13 * 3 + 6
    assert not [name for name, found in states.items() if not found.trusted]
