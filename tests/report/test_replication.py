"""The registered analyses: planted truths, null studies, and numbers again by plain numpy and scipy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated import REPEATED, made, simulate

from hialign.records.files import read_json, write_json
from hialign.report.replication import gates, hypothesis, reading, registered, strategies
from hialign.report.replication import training_gradients as gradients
from hialign.report.replication.verdicts import LESS, MORE
from hialign.statistics.comparisons import UNSURE
from hialign.statistics.contrasts import NOTHING_LEARNED
from hialign.study import paths
from hialign.study.study import Study, load_study


def the(findings: dict[str, Any]) -> Any:
    (one,) = findings.values()
    return one


# --- reading -------------------------------------------------------------------------------------


def test_margins_are_those_of_the_records_pair_by_pair(objectives: Callable[..., Study]) -> None:
    study = objectives(prompts=6)
    alone = reading.trained_alone(study, study.models[0])
    assert alone.seeds.real == ["seed-1", "seed-2", "seed-3", "seed-4"]
    assert alone.seeds.shuffled == ["shuffled-1", "shuffled-2"]
    place = paths.probe_record("made", study.models[0].name, "matrix", "seed-3")
    record = read_json(place)
    ids = [pair["id"] for pair in record["pairs"]]
    at = {pair.id: i for i, pair in enumerate(alone.pairs)}
    found = alone.values["coherence", "mid", False][2][[at[one] for one in ids]]
    np.testing.assert_array_equal(found, record["margins"]["coherence"]["mid"][0])
    # The unit is the conversation that an evaluation names, not the prompt
    assert alone.pairs[at["p3-grammar"]].conversation == "conversation p3"

    together = reading.evaluated(study, study.models[0])
    cell = study.cell(None, "global", "shuffled-2")
    record = read_json(cell.folder / "evaluation.json")
    expected = {
        row["id"]: 0.1
        * (row["chosen"] - row["chosen_base"] - row["rejected"] + row["rejected_base"])
        for row in record["pairs"]
    }
    found = together.values["all", "global", True][1]
    assert dict(zip((p.id for p in together.pairs), found, strict=True)) == pytest.approx(expected)


def test_only_seeds_whose_records_are_trusted_count(objectives: Callable[..., Study]) -> None:
    study = objectives(prompts=6)
    model = study.models[0]
    (study.cell(None, "mid", 2).folder / "evaluation.json").unlink()
    record = paths.probe_record("made", model.name, "matrix", "seed-4")
    record.write_text(
        record.read_text().replace('"grammar"', '"grammer"', 1)
    )  # no longer its checksum
    assert reading.evaluated(study, model).seeds.real == ["seed-1", "seed-3", "seed-4"]
    assert reading.evaluated(study, model, ["full"]).seeds.real[1] == "seed-2"
    seeds = reading.trained_alone(study, model).seeds
    assert seeds == (["seed-1", "seed-2", "seed-3"], ["shuffled-1", "shuffled-2"], 4, 2)
    stale = read_json(paths.probe_record("made", model.name, "matrix", "seed-1"))
    write_json(
        paths.probe_record("made", model.name, "matrix", "seed-1"), stale | {"fingerprint": "0"}
    )
    assert reading.trained_alone(study, model).seeds.real == ["seed-2", "seed-3"]


def test_slopes_are_fitted_within_an_objective(objectives: Callable[..., Study]) -> None:
    """A training whose margins are ten times as large on one objective has the same gains there."""
    from hialign.statistics.log_loss import gains

    study = objectives(prompts=10)
    together = reading.evaluated(study, study.models[0])
    places = together.places(reading.OWN)
    found = together.gains(places, "mid", "all")
    for name in ("grammar", "coherence", "factuality"):
        inside = together.places(reading.OWN, name)
        alone = gains(together.at(inside, "mid", "all"), together.conversations(inside))
        np.testing.assert_allclose(found[:, [places.index(i) for i in inside]], alone)


# --- does each third serve its objective? --------------------------------------------------------


def test_the_hypothesis_is_supported_where_it_was_planted(objectives: Callable[..., Study]) -> None:
    found = the(hypothesis.findings(objectives(own=1.5)))
    assert found.conclusion == hypothesis.SUPPORTED
    assert all(one["passed"] for one in found.gates.values())
    assert {t["verdict"] for t in found.secondary} == {MORE}
    assert [t["family"] for t in found.secondary] == ["1", "1", "1", "2", "3", "3"]
    assert {name: rule["third"] for name, rule in found.rules.items()} == {
        "grammar": "local",
        "coherence": "mid",
        "factuality": "global",
    }
    assert [len(rows) for rows in found.contrasts.values()] == [6, 6, 6]
    assert len(found.full) == 3


def test_its_opposite_contradicts_it(
    objectives: Callable[..., Study],
) -> None:
    found = the(hypothesis.findings(objectives(own=-0.9)))
    assert found.conclusion == hypothesis.CONTRADICTED
    assert found.primary["verdict"] == hypothesis.CONTRADICTED
    assert {t["verdict"] for t in found.secondary if t["family"] == "1"} == {LESS}
    assert not any(rule["third"] for rule in found.rules.values())


def test_no_interaction_is_told_from_one_that_data_cannot_tell(
    objectives: Callable[..., Study],
) -> None:
    found = the(hypothesis.findings(objectives(prompts=150, learned=1.5)))
    assert found.conclusion == hypothesis.NO_EFFECT
    assert found.primary["low"] < 0 < found.primary["high"] < found.primary["margin"]
    assert found.primary["p_within"] < 0.05
    few = dict(found.primary) | {"low": -0.1, "high": 0.2, "margin": 0.1}
    assert hypothesis.conclusion(few) == UNSURE  # type: ignore[arg-type]
    for low, high, margin, word in (
        (0.01, 0.2, 0.1, hypothesis.SUPPORTED),
        (0.01, 0.02, 0.1, hypothesis.SUPPORTED),  # small, and the table's first row all the same
        (-0.2, -0.01, 0.1, hypothesis.CONTRADICTED),
        (-0.2, 0.09, 0.1, hypothesis.NO_EFFECT),
        (None, None, 0.1, hypothesis.NO_TEST),
    ):
        case = few | {"low": low, "high": high, "margin": margin}
        assert hypothesis.conclusion(case) == word  # type: ignore[arg-type]
    assert hypothesis.conclusion(None) == hypothesis.NO_TEST


def test_an_objective_that_nothing_was_learned_of_is_left_out(
    objectives: Callable[..., Study], outputs: Path
) -> None:
    """Coherence cannot be learned here: the primary test is over the two others."""
    study = objectives(own=1.0)
    for one in study.single_runs():
        place = paths.probe_record("made", study.models[0].name, "matrix", one.seed)
        record = {k: v for k, v in read_json(place).items() if k != "sha256"}
        rng = np.random.default_rng(len(one.seed))
        for block in REPEATED:
            (row,) = record["margins"]["coherence"][block]
            record["margins"]["coherence"][block] = [rng.normal(0, 1, len(row)).tolist()]
        write_json(place, record)
    found = the(hypothesis.findings(study))
    assert [one["passed"] for one in found.gates.values()] == [True, False, True]
    assert found.primary["name"] == "grammar, factuality"
    (coherence,) = [t for t in found.secondary if t["name"] == "coherence"]
    assert coherence["verdict"] == NOTHING_LEARNED
    assert {row["verdict"] for row in found.contrasts["coherence"]} == {NOTHING_LEARNED}
    nothing = the(hypothesis.findings(objectives(learned=0.0)))
    assert nothing.primary is None
    assert nothing.conclusion == hypothesis.NO_TEST
    assert {row["verdict"] for row in nothing.full} == {NOTHING_LEARNED}


def test_the_interaction_is_what_the_registration_says(objectives: Callable[..., Study]) -> None:
    """From gains by block, with loops instead of arrays."""
    study = objectives(prompts=8, own=0.5)
    margins = reading.trained_alone(study, study.models[0])
    values, conversations = hypothesis.interaction(margins, list(hypothesis.OBJECTIVES), "rules")
    assert values.shape == (4, 8)
    own = {"grammar": "local", "coherence": "mid", "factuality": "global"}
    for place, conversation in enumerate(conversations):
        prompt = conversation.removeprefix("conversation ")
        for seed in range(4):
            advantages = []
            for objective, third in own.items():
                places = margins.places("rules", objective)
                at = [margins.pairs[i].prompt for i in places].index(prompt)
                gain = {b: margins.gains(places, b, objective)[seed, at] for b in own.values()}
                others = [gain[b] for b in own.values() if b != third]
                advantages.append(gain[third] - sum(others) / 2)
            assert values[seed, place] == pytest.approx(sum(advantages) / 3)


def test_a_third_that_gains_more_on_everything_makes_no_interaction(
    objectives: Callable[..., Study],
) -> None:
    study = objectives(prompts=60)
    for one in study.single_runs():
        place = paths.probe_record("made", study.models[0].name, "matrix", one.seed)
        record = {k: v for k, v in read_json(place).items() if k != "sha256"}
        for name, of_blocks in record["margins"].items():
            del name
            (row,) = of_blocks["mid"]
            of_blocks["mid"] = [[value + 1.5 for value in row]]
        write_json(place, record)
    found = the(hypothesis.findings(study))
    assert found.conclusion not in (hypothesis.SUPPORTED, hypothesis.CONTRADICTED)
    assert found.rules["grammar"]["standings"][1]["lead"] > 0.05


def test_factuality_stands_beside_for_the_builtin_prompts_alone(
    objectives: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "builtin_prompts", lambda: frozenset(f"p{i}" for i in range(12)))
    found = the(hypothesis.findings(objectives(own=1.5)))
    rows = [t for t in found.secondary if t["family"] == "1"]
    assert [t["pairs"] for t in rows] == [40, 40, 40, 12]
    assert rows[3]["name"] == "factuality, built-in prompts alone"
    assert rows[3]["p_holm"] == rows[3]["p"]  # no part of the family


def test_the_packages_own_prompts_are_known_by_name() -> None:
    assert "advice-01" in reading.builtin_prompts()
    pair = reading.Pair("advice-01-factuality", "factuality", "rules", "x", "x")
    assert reading.is_builtin(pair)
    assert not reading.is_builtin(pair._replace(id="4be1-2-factuality"))


# --- gradients -----------------------------------------------------------------------------------


def gradient_record(study: Study, shares: dict[str, float], pairs: str = "training") -> None:
    for number, one in enumerate(study.single_runs()):
        rng = np.random.default_rng(number)
        base = one.cell(None, "base")
        rows = [
            {"source": name, "block": block, "share": share + 0.01 * float(rng.normal())}
            for name in hypothesis.OBJECTIVES
            for block, share in zip(("local", "mid", "global"), shares[name], strict=True)
        ]
        record = {"fingerprint": base.probe_fingerprint("gradients")}
        record |= {"signal": {"pairs": pairs, "thirds": rows}}
        write_json(paths.probe_record(one.name, one.models[0].name, "gradients", one.seed), record)


def test_gradients_are_a_sixth_family_where_their_records_see_labels(
    objectives: Callable[..., Study],
) -> None:
    study = objectives({"seeds": [1, 2, 3, 4, 5], "shuffled_seeds": []}, prompts=10)
    assert gradients.tests(study, study.models[0]) == []
    at_home = {"grammar": (0.6, 0.2, 0.2), "coherence": (0.2, 0.6, 0.2)}
    gradient_record(study, at_home | {"factuality": (0.2, 0.2, 0.6)})
    (test,) = gradients.tests(study, study.models[0])
    assert test["mean"] == pytest.approx(0.4, abs=0.02)
    assert test["verdict"] == MORE
    values = [gradients.interaction(one) for one in gradients.shares(study, study.models[0])]
    assert test["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    gradient_record(study, dict.fromkeys(hypothesis.OBJECTIVES, (0.6, 0.2, 0.2)))  # a depth trend
    (test,) = gradients.tests(study, study.models[0])
    assert test["mean"] == pytest.approx(0, abs=0.02)
    gradient_record(study, dict.fromkeys(hypothesis.OBJECTIVES, (0.6, 0.2, 0.2)), pairs="held-out")
    assert gradients.tests(study, study.models[0]) == []


# --- which strategy gains more? ------------------------------------------------------------------


def test_contrasts_find_what_was_planted(preferences: Callable[..., Study]) -> None:
    found = the(strategies.findings(preferences(ahead={"mid": 1.5, "full": 1.5})))
    assert found.gate["passed"]
    verdicts = {(row["block"], row["reference"]): row["verdict"] for row in found.contrasts}
    assert verdicts[("full", "local")] == verdicts[("full", "global")] == "better"
    assert verdicts[("full", "mid")] != "better"
    for other in ("local", "global", "random:third"):
        assert verdicts[("mid", other)] == "better"
    assert found.rule["third"] == "mid"
    assert set(found.outcomes) == set(REPEATED)
    assert found.outcomes["mid"].kl["seeds"] == 4
    assert found.outcomes["mid"].kl["low"] is None  # fewer than five seeds
    beside = found.beside[("mid", "local")]
    margins = reading.evaluated(*one_model(preferences(ahead={"mid": 1.5, "full": 1.5})))
    ours, theirs = (margins.values["all", block, False] for block in ("mid", "local"))
    assert beside.margin["mean"] == pytest.approx((ours - theirs).mean())
    assert beside.accuracy["mean"] == pytest.approx((ours > 0).mean() - (theirs > 0).mean())


def one_model(study: Study) -> tuple[Study, Any]:
    return study, study.models[0]


def test_where_nothing_was_learned_no_strategies_are_compared(
    preferences: Callable[..., Study],
) -> None:
    study = preferences(learned=0.0)
    found = the(strategies.findings(study))
    assert not found.gate["passed"]
    assert {row["verdict"] for row in found.contrasts} == {NOTHING_LEARNED}
    assert all(row["detectable"] > 0 for row in found.contrasts)
    assert gates.nothing_learned(study)
    assert gates.gated(UNSURE, learned=False) == NOTHING_LEARNED
    assert gates.gated(UNSURE, learned=True) == UNSURE
    assert gates.gated("better", learned=False) == NOTHING_LEARNED
    assert gates.unsure_gated("better", learned=False) == "better"
    assert gates.unsure_gated(UNSURE, learned=False) == NOTHING_LEARNED


def test_what_labels_play_no_part_in_was_not_learned(preferences: Callable[..., Study]) -> None:
    """Shuffled trainings rank as many pairs right: the gate fails, although Full beats chance."""
    study = preferences()
    for block in REPEATED:
        for seed in ("shuffled-1", "shuffled-2"):
            cell = study.cell(None, block, seed)
            real = study.cell(None, block, seed.replace("shuffled", "seed"))
            record = read_json(real.folder / "evaluation.json")
            record |= {"fingerprint": cell.fingerprint("evaluate")}
            write_json(cell.folder / "evaluation.json", record)
    found = the(gates.gates(study))
    assert found["p_chance"] < 0.05
    assert not found["passed"]


def test_a_study_of_one_run_has_the_gate_over_pairs_and_says_so(outputs: Path) -> None:
    for gain, learned in ((3.0, True), (0.0, False)):
        study = Study(name=f"run-{learned}".lower(), title="x", models=["random:llama"], judge=None)
        simulate(study, prompts=60, steps=2)
        cell = study.cell(None, "full")
        record = read_json(cell.folder / "evaluation.json")
        rng = np.random.default_rng(1)
        for row in record["pairs"]:
            row["chosen"] = row["chosen_base"] + rng.normal(gain, 3)
        write_json(cell.folder / "evaluation.json", record)
        found = the(gates.gates(study))
        assert found["passed"] == learned
        assert found["shuffled_seeds"] == 0
        assert found["over"] == "pairs"
        if learned:
            assert "No training with shuffled labels" in found["reason"]
            assert "spread between seeds is not known" in found["reason"]
        assert gates.nothing_learned(study) != learned


# --- registered, published -----------------------------------------------------------------------


def test_the_analysis_follows_from_the_registration_and_what_is_trained(
    objectives: Callable[..., Study], outputs: Path
) -> None:
    study = objectives(prompts=3)
    assert registered.analysis_of(study) == "hypothesis"
    assert registered.analysis_of(study.at(2)) == "hypothesis"
    assert registered.analysis_of(made(outputs)) == "strategies"
    (outputs.parent / "made.registered.md").unlink()
    assert registered.analysis_of(load_study(outputs.parent / "made.yml")) is None
    assert registered.analysis_of(load_study("demo")) is None
    assert registered.analysis_of(load_study("objectives")) == "hypothesis"


def test_a_registration_has_its_hash_and_the_date_of_its_commit(tmp_path: Path) -> None:
    import hashlib
    import subprocess

    place = tmp_path / "repository"
    place.mkdir()
    file = place / "made.registered.md"
    file.write_text("# one\n")
    (place / "made.yml").write_text("title: x\nmodels: ['random:llama']\n")
    study = load_study(place / "made.yml")
    found = registered.registration(study)
    assert found is not None
    assert (found.committed, found.commit, found.changed) == ("", "", False)
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "Register"]):
        subprocess.run(["git", "-C", str(place), *command], check=True)
    found = registered.registration(study)
    assert found is not None
    assert found.sha256 == hashlib.sha256(b"# one\n").hexdigest()
    assert len(found.committed) == len("2026-01-01")
    assert found.commit
    assert not found.changed
    file.write_text("# two\n")
    found = registered.registration(study)
    assert found is not None
    assert found.changed


def test_the_published_study_with_most_seeds_answers(
    objectives: Callable[..., Study], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(paths, "root", lambda: outputs.parent / "nowhere")
    monkeypatch.setattr(paths, "studies", lambda: outputs.parent / "nowhere")
    assert registered.best_published() is None
    study = objectives(prompts=4, own=1.0)
    folder = outputs / "published" / "made"
    shutil.copytree(outputs / "made", folder)
    shutil.copy(outputs.parent / "made.yml", folder / "study.yml")
    (folder / "study.yml").write_text("name: made\n" + (folder / "study.yml").read_text())
    assert registered.best_published() is None  # it is not registered
    shutil.copy(outputs.parent / "made.registered.md", folder)
    shutil.rmtree(outputs / "made")
    best = registered.best_published()
    assert best is not None
    assert best == study
    with registered.published_records(best):
        assert registered.seeds_there(best) == 4
        assert the(hypothesis.findings(best)).seeds.real[3] == "seed-4"
    assert not hypothesis.findings(study)
    for seed in (2, 3, 4):
        (folder / study.models[0].name / "probes" / f"seed-{seed}" / "matrix.json").unlink()
    assert registered.best_published() is None  # one seed is no replication
