"""A study of several seeds: its single runs, their settings, and where their files lie."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hialign.records import dependencies
from hialign.records.stages import command_of, stage_manifest
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import load_study, probe_runs

Factory = Callable[..., Path]


def test_each_seed_draws_its_own_pairs_and_initialization_and_keeps_the_held_out(
    tiny_study: Factory,
) -> None:
    study = load_study(tiny_study(seeds=[1, 2], shuffled_seeds=[2], blocks=["base", "mid"]))
    assert study.seed_names() == ["seed-1", "seed-2", "shuffled-2"]
    cells = study.cells()
    assert [(c.seed, c.block) for c in cells] == [
        (seed, block) for seed in study.seed_names() for block in ("base", "mid")
    ]
    first, second, shuffled = study.single_runs()
    assert (first.training.seed, first.preferences.draw) == (1, 1)
    assert (second.training.seed, second.preferences.draw) == (2, 2)
    assert first.preferences.seed == second.preferences.seed == study.preferences.seed
    assert (shuffled.training.seed, shuffled.preferences.shuffled) == (2, True)
    assert not second.preferences.shuffled
    assert len({cell.fingerprint("train") for cell in cells if cell.block == "mid"}) == 3


def test_the_files_of_a_seed_lie_in_its_folder_and_those_of_one_run_where_they_did(
    tiny_study: Factory, outputs: Path
) -> None:
    several = load_study(tiny_study(seeds=[1, 2]))
    cell = several.cell(None, "mid", 2)
    assert cell.folder == outputs / "tiny" / "random-llama" / "mid" / "seed-2"
    assert several.cell(None, "mid").seed == "seed-1"
    assert command_of(cell, "train").endswith("-p seed 2 -p block mid")
    runs = {one.seed for one, _, _ in probe_runs(several)}
    assert runs == set()  # the study names no probes
    place = paths.probe_record("tiny", "random-llama", "matrix", "seed-2")
    assert place == outputs / "tiny" / "random-llama" / "probes" / "seed-2" / "matrix.json"

    for one_run in (load_study(tiny_study()), load_study(tiny_study(seeds=[7]))):
        cell = one_run.cells()[0]
        assert stage_manifest(cell, "train").parent.parent == outputs / "tiny" / "random-llama"
        assert cell.seed == ""
    assert load_study(tiny_study(seeds=[7])).cells()[0].study.training.seed == 7


def test_a_run_of_one_seed_is_a_study_of_its_own(tiny_study: Factory) -> None:
    study = load_study(tiny_study(seeds=[1, 2], probes={"pairs": 4, "ila": None}))
    one = study.at(2)
    assert one.at() is one
    assert one.single_runs() == [one]
    assert {cell.seed for cell in one.cells()} == {"seed-2"}
    assert one.whole is study
    assert one.probes is not None
    assert one.probes.matrix is not None
    assert one.probes.matrix.seeds == [2]
    assert one.cell(None, "mid") == study.cell(None, "mid", "seed-2")
    assert dependencies.tuned_cell(one.cell(None, "full"), "patching") == one.cell(None, "full")


def test_a_seed_that_the_study_does_not_have_is_refused(tiny_study: Factory) -> None:
    several = load_study(tiny_study(seeds=[1, 2], shuffled_seeds=[1]))
    with pytest.raises(HialignError, match=r"no seed 3: it has seed-1, seed-2, shuffled-1"):
        several.at(3)
    with pytest.raises(HialignError, match="no seed 3: it is one run; list its `seeds`"):
        load_study(tiny_study()).at(3)
    with pytest.raises(HialignError, match="no seed 'seed-1': it is one run"):
        several.at(2).at("seed-1")
    with pytest.raises(HialignError, match="a seed is given twice"):
        load_study(tiny_study(seeds=[1, 1]))
    with pytest.raises(HialignError, match="shuffled_seeds needs `seeds`"):
        load_study(tiny_study(shuffled_seeds=[1]))


def test_a_fresh_random_third_is_drawn_by_each_seed(tiny_study: Factory) -> None:
    from hialign.engine.measures import choice

    study = load_study(tiny_study(seeds=[1, 2, 3], blocks=["random:third"]))
    drawn = [choice(cell, 30).layers for cell in study.cells()]
    assert all(len(layers) == 10 for layers in drawn)
    assert len(set(drawn)) == 3
    assert drawn == [choice(cell, 30).layers for cell in study.cells()]
