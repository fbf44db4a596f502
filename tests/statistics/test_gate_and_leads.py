"""The gate and the rule for thirds, on planted and empty studies."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hialign.statistics.crossed import mean_effect, unpaired_effect
from hialign.statistics.gate import gate, hits_of
from hialign.statistics.leads import leads, profile_leads
from hialign.statistics.log_loss import gains

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
THIRDS = {"local": range(0, 10), "mid": range(10, 20), "global": range(20, 30)}


def margins(rng: np.random.Generator, mean: float, seeds: int, pairs: int = 200) -> np.ndarray:
    between = 0.05 * rng.standard_normal((seeds, 1))
    return np.asarray(mean + between + rng.standard_normal((seeds, pairs)))


# --- the gate ------------------------------------------------------------------------------------


def test_the_gate_opens_where_something_was_learned() -> None:
    rng = np.random.default_rng(0)
    full, shuffled, labels = margins(rng, 0.6, 5), margins(rng, 0.0, 2), [*range(100)] * 2
    found = gate(full, shuffled, labels)
    assert found["passed"]
    effect = mean_effect(hits_of(full), labels)
    assert found["accuracy"] == np.mean(full > 0)
    assert (found["accuracy_low"], found["accuracy_high"]) == (effect["low"], effect["high"])
    assert found["gain"] == pytest.approx(gains(full, labels).mean())
    assert found["shuffled_accuracy"] == np.mean(shuffled > 0)
    assert (found["seeds"], found["shuffled_seeds"], found["pairs"]) == (5, 2, 200)
    assert "better than chance and than trainings with shuffled labels" in found["reason"]
    p = unpaired_effect(hits_of(full), hits_of(shuffled), labels)["p"]
    assert p is not None
    assert found["p_shuffled"] == pytest.approx(p / 2)


def test_the_gate_stays_shut() -> None:
    rng = np.random.default_rng(1)
    noise, labels = margins(rng, 0.0, 5), range(200)
    nothing = gate(noise, margins(rng, 0.0, 2), labels)
    assert not nothing["passed"]
    assert "not better than chance" in nothing["reason"]
    full = margins(rng, 0.6, 5)
    blind = gate(full, margins(rng, 0.6, 2), labels)
    assert not blind["passed"]
    assert blind["p_chance"] is not None
    assert blind["p_chance"] < 0.001
    assert "not better than trainings with shuffled labels" in blind["reason"]
    few = gate(full[:, :4], None, range(4))
    assert (few["passed"], few["p_chance"], few["accuracy_low"]) == (False, None, None)
    assert "too few" in few["reason"]


def test_the_gate_says_what_it_could_not_ask() -> None:
    full = margins(np.random.default_rng(2), 0.8, 1)[0]
    found = gate(full, None, range(200))
    assert (found["passed"], found["p_shuffled"], found["over"]) == (True, None, "pairs")
    assert "No training with shuffled labels" in found["reason"]
    assert "spread between seeds is not known" in found["reason"]


def test_seeds_that_disagree_keep_the_gate_shut() -> None:
    """One seed alone would pass: it ranks 70% of the pairs, another 30%."""
    rng = np.random.default_rng(3)
    full = rng.standard_normal((5, 300)) + np.array([[1.0], [-0.5], [0.4], [-0.6], [0.1]])
    assert gate(full[0], None, range(300))["passed"]
    assert not gate(full, None, range(300))["passed"]


def test_unpaired_seeds_by_hand() -> None:
    """Without a spread of pairs, the test is Student's t of the seeds' means, with pooled spread."""
    rng = np.random.default_rng(4)
    ours, theirs = (rng.normal(m, 1, (n, 1)) * np.ones(50) for m, n in ((0.5, 6), (0.0, 3)))
    found = unpaired_effect(ours, theirs)
    expected = stats.ttest_ind(ours[:, 0], theirs[:, 0])
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-3)
    assert found["mean"] == pytest.approx(ours.mean() - theirs.mean())
    assert (found["seeds"], found["over"]) == (3, "pairs and seeds")
    with pytest.raises(ValueError, match="50 pairs of ours and 40 of theirs"):
        unpaired_effect(ours, theirs[:, :40])


# --- thirds --------------------------------------------------------------------------------------


def outcomes(rng: np.random.Generator, mid: float, seeds: int) -> dict[str, np.ndarray]:
    """Gains of the thirds and of a random third, which share what pairs bring."""
    pairs = 0.02 * rng.standard_normal(200)
    names = ("local", "mid", "global", "random")
    own = {name: 0.01 * rng.standard_normal((seeds, 1)) for name in names}
    noise = {name: 0.08 * rng.standard_normal((seeds, 200)) for name in names}
    return {name: pairs + own[name] + noise[name] + (name == "mid") * mid for name in names}


def test_a_planted_third_leads() -> None:
    rng = np.random.default_rng(5)
    found = leads(outcomes(rng, 0.08, 5), outcomes(rng, 0.0, 2))
    assert found["third"] == "mid"
    assert (found["over"], found["seeds"], found["control_seeds"]) == ("pairs and seeds", 5, 2)
    standing = {row["third"]: row for row in found["standings"]}
    p = standing["mid"]["p_over"]
    assert set(p) == {"local", "global", "random"}
    assert standing["mid"]["p_holm"] == pytest.approx(3 * max(x for x in p.values() if x))
    assert standing["mid"]["lead"] == pytest.approx(0.08, abs=0.03)


def test_a_third_that_leads_under_any_labels_is_not_named() -> None:
    rng = np.random.default_rng(6)
    found = leads(outcomes(rng, 0.08, 5), outcomes(rng, 0.08, 2))
    assert found["third"] is None
    assert "as large with shuffled labels" in found["reason"]
    assert leads(outcomes(rng, 0.08, 5), None)["third"] is None


def test_a_third_that_a_random_third_equals_does_not_lead() -> None:
    rng = np.random.default_rng(7)
    gained = outcomes(rng, 0.08, 5)
    gained["random"] = gained["random"] + 0.08
    found = leads(gained, outcomes(rng, 0.0, 2))
    assert (found["third"], found["reason"]) == (
        (None, "no third beats both others and a random third")
    )


def test_a_planted_profile() -> None:
    rng = np.random.default_rng(8)
    profile, control = rng.normal(size=(5, 30)), rng.normal(size=(5, 30))
    assert profile_leads(profile, THIRDS, control)["third"] is None
    profile[:, 20:] += 2
    found = profile_leads(profile, THIRDS, control)
    assert (found["third"], found["over"]) == ("global", "seeds")
    scores = {third: profile[:, list(layers)].mean(1) for third, layers in THIRDS.items()}
    (row,) = (row for row in found["standings"] if row["third"] == "global")
    expected = stats.ttest_1samp(scores["global"] - scores["mid"], 0, alternative="greater").pvalue
    assert row["p_over"]["mid"] == pytest.approx(expected)
    assert profile_leads(profile, THIRDS, profile[::-1])["third"] is None


def test_random_sets_of_layers_are_scipys_permutations() -> None:
    rng = np.random.default_rng(9)
    profile = rng.normal(size=(4, 30)) + np.linspace(0, 1, 30)
    found = profile_leads(profile, THIRDS, None)
    whole = profile.mean(0)
    test = stats.permutation_test(
        (whole[20:], whole[:20]),
        lambda a, b: a.mean() - b.mean(),
        alternative="greater",
        rng=np.random.default_rng(10),
    )
    assert found["standings"][2]["p_over"]["random"] == pytest.approx(test.pvalue, abs=0.01)


def test_two_layers_of_a_deep_model_are_not_a_third() -> None:
    """Layers that differ for good, but not by thirds: seeds alone would name one."""
    rng = np.random.default_rng(11)
    profile = 0.01 * rng.standard_normal((5, 30))
    profile[:, [12, 17]] += 1
    found = profile_leads(profile, THIRDS, 0.01 * rng.standard_normal((5, 30)))
    assert found["third"] is None
    mid = found["standings"][1]["p_over"]
    assert mid["local"] is not None
    assert mid["local"] < 1e-4
    assert mid["random"] is not None
    assert mid["random"] > 0.05


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="two seeds or more"):
        profile_leads(np.ones((1, 30)), THIRDS, None)
    with pytest.raises(ValueError, match="missing"):
        profile_leads(np.full((2, 30), math.nan), THIRDS, None)
    gained = outcomes(np.random.default_rng(12), 0.0, 2)
    with pytest.raises(ValueError, match="differ in shape"):
        leads(gained | {"mid": np.ones((3, 200))}, None)


# --- by simulation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated() -> Any:
    spec = importlib.util.spec_from_file_location("false_answers", BENCHMARKS / "false_answers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "gate, any labels do it, 5 seeds, 150 pairs",
        "thirds, no effect, seeds far apart, 5 seeds, 150 pairs",
        "thirds, mid by any labels, 5 seeds, 150 pairs",
        "contrasts, full ahead by 0.02, 5 seeds, 150 pairs",
        "profile, smooth and depth trend, 5 seeds",
    ],
)
def test_few_simulated_studies_answer_wrongly(simulated: Any, name: str) -> None:
    studies = [simulated.one(name, number) for number in range(40)]
    for entry in studies[0]:
        if entry.startswith("false"):
            wrong = sum(study[entry] for study in studies)
            assert wrong <= stats.binom.ppf(0.999, 40, 0.05), entry


def test_a_planted_effect_is_found_in_simulated_studies(simulated: Any) -> None:
    for name in ("thirds, mid by 0.04, 6 seeds, 700 pairs", "profile, mid by 2, 5 seeds"):
        assert np.mean([simulated.one(name, i)["mid leads"] for i in range(20)]) > 0.7
