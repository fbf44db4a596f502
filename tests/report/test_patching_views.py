"""The views of the patching probe: on a made-up record, and on the one that an earlier version left."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign import load_study
from hialign.engine.tokens import Tokens
from hialign.probes.pairs import ProbePair
from hialign.probes.patching.effects import swap_record
from hialign.probes.patching.runs import Runs
from hialign.records import frames
from hialign.records.files import write_json
from hialign.report import exhibits
from hialign.report.where import concordance, patching, swaps
from hialign.study import paths
from hialign.study.study import Study

DEPTH, PAIRS = 6, 12


def runs(effect: np.ndarray, seed: int) -> Runs:
    """Log-probabilities in which each layer, put in or left out, adds `effect` and noise (nats)."""
    rng = np.random.default_rng(seed)

    def pairs_of(m: np.ndarray) -> list[list[float]]:
        return [[float(value) - 9, -9.0] for value in m]

    base = rng.normal(0, 1, PAIRS)
    tuned = base + effect.sum()

    def by_place(groups: list[list[int]], sign: int, own: np.ndarray) -> Any:
        added = [effect[group].sum() + rng.normal(0, 0.01, PAIRS) for group in groups]
        return [pairs_of(own + sign * one) for one in added]

    layers, thirds = [[i] for i in range(DEPTH)], [[0, 1], [2, 3], [4, 5]]
    patched = {
        direction: {"layers": by_place(layers, sign, own), "thirds": by_place(thirds, sign, own)}
        for direction, sign, own in (("tuned_into_base", 1, base), ("base_into_tuned", -1, tuned))
    }
    return Runs({"base": pairs_of(base), "tuned": pairs_of(tuned)}, patched, 0)


def study_of() -> Study:
    study = Study(**load_study("smoke").model_dump() | {"name": "made-up", "judge": None})
    effect = np.array([0, 0, 1.0, 2.0, 0, 0])
    rng = np.random.default_rng(1)
    nulls = {k: runs(rng.normal(0, 0.05, DEPTH), k) for k in range(3)}
    tokens = Tokens((1, 2), 1), Tokens((1, 3), 1)
    probed = [ProbePair(str(i), "preference", f"p{i}", tokens) for i in range(PAIRS)]
    record: dict[str, Any] = {"swaps": swap_record(runs(effect, 9), nulls, probed, 200, 42)}
    rows = record["swaps"]["layers"]
    record |= {"depth": DEPTH, "layer_scores": [row["both"]["estimate"] for row in rows]}
    record |= {"nothing": "no patches", "tuned": {"name": "full"}, "patched": 2, "changes": {}}
    record |= {"fingerprint": study.cell(None, "base").probe_fingerprint("patching")}
    write_json(paths.probe_record("made-up", study.models[0].name, "patching"), record)
    return study


def test_the_profile_and_the_thirds_of_swaps(outputs: Path) -> None:
    study = study_of()
    left, right = swaps.profile(study).axes[:2]
    for panel in (left, right):
        drawn = panel.lines[0].get_ydata()
        assert drawn == pytest.approx([0, 0, 1, 2, 0, 0], abs=0.02)
        assert len(panel.collections) == 2  # random adapters, and the interval over prompts
    layers = swaps.layers(study)
    assert len(layers) == 3 * DEPTH
    assert layers["Effect (nats)"].tolist() == pytest.approx([0, 0, 1, 2, 0, 0] * 3, abs=0.02)
    table = swaps.thirds(study).set_index(["Swapped", "Third"])
    both = table.loc["mean of both"]
    assert both["Mean of its layers (nats)"].round(1).to_dict() == {
        "local": 0, "mid": 1.5, "global": 0,
        "local minus mid": -1.5, "local minus global": 0, "mid minus global": 1.5,
    }  # fmt: skip
    assert both["Whole third (nats)"]["mid"] == pytest.approx(3, abs=0.02)
    assert both["p among them"]["mid"] == "< 0.001"
    assert float(both["p among them"]["local"]) > 0.05
    record = frames.probes(study, "patching")[study.models[0].label]
    lead = swaps.lead(record, "both", "mid", "local")
    assert 1.45 < lead["low"] < lead["estimate"] < lead["high"] < 1.55
    assert patching.made(study)[["Pairs swapped", "Random adapters"]].to_numpy().tolist() == [
        [12, 3]
    ]
    measures, _ = concordance.measures(study, study.models[0].label)
    assert [m.name for m in measures] == ["patching"]
    assert "patching points to the mid third" in concordance.answer(study, study.models[0].label)


def test_a_published_record_of_an_earlier_version_is_shown_and_has_no_vote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(__file__).resolve().parents[2] / "outputs" / "published"
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(folder))
    study = load_study(folder / "where" / "study.yml")
    label = study.models[0].label
    assert "swaps" not in frames.probes(study, "patching")[label]
    left = patching.recovery(study).axes[0]
    assert len(left.lines[0].get_ydata()) == 30
    for name in ("table-patching", "figure-patching-windows", "figure-patching-rank"):
        assert exhibits.draw(study, name) is not None
    assert patching.made(study)["Pairs patched"].tolist() == [12]
    # what it has not is said, and draws
    assert "no swaps of layers in this study" in swaps.profile(study).axes[0].texts[0].get_text()
    assert swaps.thirds(study)["Model"].tolist() == ["none yet"]
    assert patching.changes(study)
    assert len(patching.changed(study)) == 1
    _, lacking = concordance.measures(study, label)
    assert "patched activations alone" in lacking["patching"]
    assert "patching" not in concordance.answer(study, label)
