"""Where do the measures point? On records made up so that the answer is known; scipy's Spearman."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from hialign import load_study
from hialign.records.files import read_json, write_json
from hialign.report.where import concordance, overview
from hialign.report.where.concordance import Measure, answer, shares_by_measure, spearman
from hialign.study import paths
from hialign.study.blocks import split_layers
from hialign.study.study import Study

DEPTH, PAIRS = 9, 40
THIRD = {"local": range(3), "mid": range(3, 6), "global": range(6, 9)}
PROMPTS = [f"p{i}" for i in range(PAIRS)]


def peaked(third: str, noise: float = 0.3, seed: int = 1) -> np.ndarray:
    """Pairs x layers, three times as large in one third; in none for `none`."""
    rng = np.random.default_rng(seed)
    values = 1 + rng.normal(0, noise, (PAIRS, DEPTH))
    if third != "none":
        values[:, list(THIRD[third])] += 2
    return values


def signal_of(third: str, names: tuple[str, ...] = ("preference",)) -> dict[str, Any]:
    """What a record of the gradient probe says if its labels point to a third, or to none."""
    values = peaked(third)
    by_layer = [{"over_chance": v, "flipped_std": 1.0, "signal": v} for v in values.mean(axis=0)]
    rows = [{"layer": i} | row for i, row in enumerate(by_layer)]
    sure = "none" if third == "none" else third
    odds = {name: 0.96 if name == sure else 0.01 for name in [*THIRD, "all", "none"]}
    points = "" if third == "none" else third
    raw = {"prompts": PROMPTS, "influences": values.tolist(), "flips": []}
    return {
        "layers": [{"source": name} | row for name in names for row in rows],
        "evidence": [{"source": name, "probability": odds, "points": points} for name in names],
        "raw": dict.fromkeys(names, raw),
    }


def swapped(effects: np.ndarray, spread: float = 0.05, draws: int = 4) -> dict[str, Any]:
    """A patching record with these effects by both ways, and random adapters of some spread."""
    rng = np.random.default_rng(5)
    nulls = [
        {way: {"layers": rng.normal(0, spread, DEPTH).tolist()} for way in ("put_in", "leave_out")}
        for _ in range(draws)
    ]
    swaps: dict[str, Any] = {"pairs": [{"prompt": p} for p in PROMPTS], "nulls": nulls}
    swaps |= {way: {"layers": effects.tolist()} for way in ("put_in", "leave_out")}
    return {"depth": DEPTH, "layer_scores": effects.mean(axis=0).tolist(), "swaps": swaps}


def study_of(outputs: Path, gradient: str, patching: str, tuning: str) -> Study:
    study = Study(**load_study("smoke").model_dump() | {"name": "made-up", "judge": None})
    rows = [
        {"prompt": p, "norms": v.tolist()} for p, v in zip(PROMPTS, peaked(gradient), strict=True)
    ]
    record = swapped(peaked(patching, seed=2))
    singles = [{"margins": values.tolist()} for values in peaked(tuning, seed=3).T]
    contents: dict[str, Any] = {
        "gradients": {"pairs": {"preference": rows}, "signal": signal_of(gradient)},
        "patching": record,
        "sweep": {
            "singles": singles,
            "layer_scores": [1.0],
            "pairs": [{"prompt": p} for p in PROMPTS],
        },
        "weights": {"update": [1.0] * DEPTH, "spectrum": list(range(DEPTH))},
    }
    for probe, content in contents.items():
        content["fingerprint"] = study.cell(None, "base").probe_fingerprint(probe)
        write_json(paths.probe_record("made-up", study.models[0].name, probe), content)
    return study


def test_an_answer_where_three_measures_agree(outputs: Path) -> None:
    study = study_of(outputs, "mid", "mid", "mid")
    label = study.models[0].label
    text = answer(study, label)
    assert "points to the mid third" in text
    assert "gradient, patching, tuning" in text
    rows = shares_by_measure(study).set_index("measure")
    assert rows.points[["gradient", "patching", "tuning"]].tolist() == ["mid"] * 3
    # no interval, and controls
    assert rows.points[["update", "norms", "spectrum"]].tolist() == ["", "", ""]
    expected = peaked("mid").mean(axis=0)
    assert rows.mid["gradient"] == pytest.approx(expected[3:6].sum() / expected.sum())
    assert rows.mid_low["gradient"] < rows.mid["gradient"] < rows.mid_high["gradient"]
    assert rows.mid["update"] == pytest.approx(1 / 3)
    assert rows["global"]["spectrum"] == 1.0  # its three best of nine layers
    assert rows.why["ila"] == "the ila probe has not been run with the study's current settings"
    assert len(overview.correlations(study)) == 15  # of six measures
    assert overview.layers(study).shape == (DEPTH, 8)
    assert "cividis" not in str(overview.overview(study))  # it draws


@pytest.mark.parametrize(
    ("thirds", "words"),
    [
        (("mid", "global", "mid"), "no single answer"),
        (("mid", "mid", "none"), "no answer"),
        (("none", "none", "none"), "none points to any"),
    ],
)
def test_no_answer_where_they_disagree_or_are_too_few(
    thirds: tuple[str, str, str], words: str, outputs: Path
) -> None:
    study = study_of(outputs, *thirds)
    assert words in answer(study, study.models[0].label)


def test_a_record_of_other_settings_is_none(outputs: Path) -> None:
    study = study_of(outputs, "mid", "mid", "mid")
    path = paths.probe_record("made-up", study.models[0].name, "gradients")
    write_json(path, read_json(path) | {"fingerprint": "another"})
    assert "no answer" in answer(study, study.models[0].label)
    assert "current settings" in shares_by_measure(study).set_index("measure").why["gradient"]


def test_norms_of_gradients_have_no_vote(outputs: Path) -> None:
    """A record of an earlier version has them alone, and they are the same for labels by chance."""
    study = study_of(outputs, "mid", "mid", "mid")
    path = paths.probe_record("made-up", study.models[0].name, "gradients")
    record = read_json(path)
    del record["signal"]
    write_json(path, record)
    rows = shares_by_measure(study).set_index("measure")
    assert "no label changes these" in rows.why["gradient"]
    assert rows.mid["norms"] > 0.5
    assert rows.points["norms"] == ""
    assert "no answer" in answer(study, study.models[0].label)


def test_labels_that_point_nowhere_have_no_vote(outputs: Path) -> None:
    """Though the signal is largest in one third, by an interval that keeps off zero."""
    study = study_of(outputs, "mid", "mid", "mid")
    path = paths.probe_record("made-up", study.models[0].name, "gradients")
    record = read_json(path)
    record["signal"]["evidence"][0]["points"] = ""
    write_json(path, record)
    row = shares_by_measure(study).set_index("measure").loc["gradient"]
    assert row.mid_low > row["local_high"]
    assert row.points == ""


def patching_of(record: dict[str, Any]) -> Measure | str:
    return concordance.READ["patching"](record)


def pointed(record: dict[str, Any]) -> str:
    measure = patching_of(record)
    assert isinstance(measure, Measure)
    return concordance._points(measure, measure.shares(), measure.resampled())


def test_the_swaps_have_to_be_beyond_random_adapters() -> None:
    """The leads are 2 nats: they are clear over prompts, and too small where random adapters vary so."""
    assert pointed(swapped(peaked("global"), spread=0.05)) == "global"
    assert pointed(swapped(peaked("global"), spread=3.0)) == ""
    assert pointed(swapped(peaked("none"), spread=0.05)) == ""
    # clear among random adapters, but not over prompts
    assert pointed(swapped(peaked("global", noise=30), spread=0.05)) == ""


def test_swaps_away_from_the_human_preference_point_nowhere() -> None:
    """Exchanging chosen and rejected turns every effect around: what led then harms."""
    effects = peaked("mid") - 1
    assert pointed(swapped(effects)) == "mid"
    assert pointed(swapped(-effects)) == ""
    # the third that harms least is no answer either
    assert pointed(swapped(peaked("mid") - 4)) == ""


def test_patching_has_no_vote_without_swaps_or_random_adapters() -> None:
    old = {"layer_scores": [1.0] * DEPTH, "recovery": {}, "depth": DEPTH}
    assert "patched activations alone" in str(patching_of(old))
    alone = swapped(peaked("mid"), draws=1)
    assert "fewer than two random adapters" in str(patching_of(alone))
    nothing = swapped(peaked("mid")) | {
        "layer_scores": None,
        "layer_scores_reason": "no difference",
    }
    assert patching_of(nothing) == "no difference"


def test_leads_are_differences_of_means() -> None:
    from hialign.report.where import swaps

    scores = np.arange(8.0) ** 2  # thirds of 3, 3 and 2 layers
    leads = swaps.leads(8, "global")
    assert leads["local"] @ scores == pytest.approx(scores[6:].mean() - scores[:3].mean())
    assert leads["mid"] @ scores == pytest.approx(scores[6:].mean() - scores[3:6].mean())
    record = swapped(peaked("mid"))
    record["swaps"]["leave_out"]["layers"] = (
        3 * np.array(record["swaps"]["put_in"]["layers"])
    ).tolist()
    one, other, both = (
        swaps.lead(record, way, "mid", "local")["estimate"]
        for way in ("put_in", "leave_out", "both")
    )
    assert other == pytest.approx(3 * one)
    assert both == pytest.approx(2 * one)


@pytest.mark.parametrize("depth", [7, 8, 9])
def test_thirds_of_unequal_size(depth: int) -> None:
    """A measure that is the same in all layers points nowhere, though one third has more layers; one
    that is larger in the smallest third points there."""
    rng, prompts = np.random.default_rng(0), tuple(PROMPTS)
    for third in ("none", "local", "mid", "global"):
        draws = 1 + rng.normal(0, 1e-3, (PAIRS, depth))
        if third != "none":
            draws[:, list(split_layers(depth)[third])] += 0.1
        one = Measure("made-up", tuple(draws.mean(axis=0)), draws, prompts)
        pointed = concordance._points(one, one.shares(), one.resampled())
        assert pointed == ("" if third == "none" else third)


def test_a_measure_that_no_layer_has_any_of(outputs: Path) -> None:
    """Each layer, tuned alone, loses: there is nothing to share out, and nothing to point to."""
    study = study_of(outputs, "mid", "mid", "mid")
    path = paths.probe_record("made-up", study.models[0].name, "sweep")
    record = read_json(path)
    for row in record["singles"]:
        row["margins"] = [-abs(value) for value in row["margins"]]
    write_json(path, record)
    row = shares_by_measure(study).set_index("measure").loc["tuning"]
    assert np.isnan(row.mid)
    assert row.points == ""
    assert overview.overview(study)
    assert overview.shares(study)["Points to"].isna().tolist()[-2:] == [True, True]
    assert "no answer" in answer(study, study.models[0].label)


def test_a_study_without_probes(outputs: Path) -> None:
    study = load_study("smoke")
    assert (
        answer(study, study.models[0].label) == f"No probe of {study.models[0].label} has been run."
    )
    assert overview.overview(study)
    assert overview.correlations(study)["Model"].tolist() == ["none yet"]


def test_shares_of_negative_layers_are_none() -> None:
    measure = Measure("tuning", (-1.0, 2.0, 2.0))
    assert measure.shares() == {"local": 0.0, "mid": 0.5, "global": 0.5}
    assert np.isnan(list(Measure("tuning", (-1.0, 0.0, -2.0)).shares().values())).all()
    assert measure.resampled() is None


def test_spearman_and_its_p() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    rho, low, high, p = spearman(x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert low < rho < high
    assert p == pytest.approx(1 / 30)  # no shift gives as much
    # two smooth measures that have nothing to do with each other: many shifts do
    waves = np.sin(np.arange(30) / 5), np.cos(np.arange(30) / 4 + 1)
    assert spearman(*waves)[3] > 0.1
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3])[0])
