"""Paired tests against scipy, statsmodels and hand calculation; error rates by simulation."""

import gc
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hialign.statistics.comparisons import (
    above,
    alignment_tax,
    all_pairs,
    compare,
    holm,
    paired_differences,
    rank_ranges,
    signed_rank,
)

# but for what other tests of the process left open
pytestmark = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def frame(blocks: dict[str, Any], model: str = "m", **columns: str) -> pd.DataFrame:
    """Scores of one model: a list of them for each block, a prompt each."""
    rows = [(model, b, f"p{i}", s) for b, scores in blocks.items() for i, s in enumerate(scores)]
    found = pd.DataFrame(rows, columns=["model", "block", "prompt_id", "score"])
    return found.assign(**columns)


def test_differences_pair_by_model_and_prompt() -> None:
    rows = [
        ("m", "base", "p1", 2.0),
        ("m", "base", "p2", 3.0),
        ("m", "base", "p3", math.nan),
        ("n", "base", "p1", 1.0),
        ("m", "mid", "p2", 5.0),
        ("m", "mid", "p1", math.nan),
        ("m", "mid", "p3", 4.0),
        ("n", "mid", "p1", 2.5),
        ("n", "mid", "p2", 2.0),
    ]
    scores = pd.DataFrame(rows, columns=["model", "block", "prompt_id", "score"])
    found = paired_differences(scores, "mid")
    pairs = dict(zip(zip(found.model, found.prompt_id, strict=True), found.score, strict=True))
    assert pairs == {("m", "p2"): 2.0, ("n", "p1"): 1.5}
    assert paired_differences(scores, "base").empty
    assert paired_differences(scores, "global").empty
    back = paired_differences(scores, "base", "mid")
    assert sorted(back.score) == [-2.0, -1.5]


# --- one test ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("seed", range(4))
def test_signed_rank_is_scipys_with_ties_and_without(seed: int, alternative: str) -> None:
    rng = np.random.default_rng(seed)
    tied = rng.integers(-2, 4, 10).astype(float)
    every_sign = stats.PermutationMethod(n_resamples=np.inf)
    p = stats.wilcoxon(tied[tied != 0], alternative=alternative, method=every_sign).pvalue
    assert signed_rank(tied, alternative)[0] == pytest.approx(p)
    for n in (12, 40, 200):
        values = rng.normal(0.2, 1, n)
        expected = stats.wilcoxon(values, alternative=alternative).pvalue
        assert signed_rank(values, alternative)[0] == pytest.approx(expected)
    many = rng.integers(-2, 4, 300).astype(float)
    expected = stats.wilcoxon(many, alternative=alternative).pvalue
    assert signed_rank(many, alternative)[0] == pytest.approx(expected)


def test_the_effect_size_by_hand() -> None:
    # Ranks of |2, -1, 3, -3|: 2, 1, 3.5, 3.5. For: 5.5, against: 4.5, of 10; the zero drops out.
    assert signed_rank([2, -1, 3, -3, 0])[1] == pytest.approx((5.5 - 4.5) / 10)
    assert signed_rank([0.1, 0.5, 2])[1] == 1
    assert signed_rank([-0.1, -0.5])[1] == -1


@pytest.mark.parametrize(
    ("values", "p", "effect"),
    [
        ([], math.nan, math.nan),
        ([1.0], math.nan, math.nan),
        ([0.0, 0.0, 0.0], 1.0, 0.0),
        ([0.1 + 0.2 - 0.3, 0.0], 1.0, 0.0),  # 5.6e-17 is no difference
        ([0.0, 1.0], 1.0, 1.0),
        ([1.0] * 6, 2 / 2**6, 1.0),
        ([1.0] * 5, 2 / 2**5, 1.0),
    ],
)
def test_tests_of_too_little(values: list[float], p: float, effect: float) -> None:
    assert signed_rank(values) == pytest.approx((p, effect), nan_ok=True)


differences = st.lists(st.integers(-4, 4), min_size=2, max_size=40)


@settings(deadline=None, max_examples=60)
@given(differences, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_signs_are_symmetric(values: list[int], random: Any) -> None:
    p, effect = signed_rank(values)
    assert 0 < p <= 1
    assert -1 <= effect <= 1
    other = list(values)
    random.shuffle(other)
    assert signed_rank(other) == pytest.approx((p, effect))
    assert signed_rank([-v for v in values]) == pytest.approx((p, -effect))
    assert signed_rank([10 * v for v in values]) == pytest.approx((p, effect))


def test_above_is_the_one_sided_t_test() -> None:
    values = [0.3, -0.1, 0.4, 0.0, 0.2]
    expected = stats.ttest_1samp(values, -0.1, alternative="greater").pvalue
    assert above(values, -0.1) == pytest.approx(expected)
    assert above([0.0, 0.0], -0.1) == 0
    assert above([-0.1, -0.1], -0.1) == 1
    assert math.isnan(above([1.0], 0))


def test_holm_leaves_out_what_was_not_tested() -> None:
    p = [0.01, math.nan, 0.04, 0.03]
    expected = multipletests([0.01, 0.04, 0.03], method="holm")[1]
    found = holm(p)
    assert found[[0, 2, 3]] == pytest.approx(expected)
    assert math.isnan(found[1])
    assert np.isnan(holm([math.nan])).all()
    assert len(holm([])) == 0


# --- families of them ------------------------------------------------------------------------------


def made(
    prompts: int, effects: dict[str, float], seed: int = 0, models: str = "mn"
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ability = rng.normal(0, 1, prompts)
    parts = []
    for model in models:
        scores = {
            block: np.clip(np.rint(3 + effect + ability + rng.normal(0, 0.7, prompts)), 1, 5)
            for block, effect in effects.items()
        }
        parts.append(frame(scores, model))
    return pd.concat(parts)


def test_verdicts() -> None:
    scores = made(400, {"base": -0.5, "full": 0, "local": 0, "mid": -0.07, "global": -0.9})
    pairs = [
        ("full", "base"),
        ("global", "base"),
        *((b, "full") for b in ("local", "mid", "global")),
    ]
    found = compare(scores, pairs, margin=0.2).set_index(["block", "reference"])
    assert found.verdict["full", "base"] == "better"
    assert found.verdict["global", "base"] == "worse"
    assert found.verdict["local", "full"] == "not inferior"
    assert found.verdict["global", "full"] == "worse"
    tight = compare(scores, pairs, margin=0.001)
    assert list(tight.verdict)[2] == "cannot tell"
    slight = made(400, {"full": 0, "mid": -0.35}, seed=1)
    (verdict,) = compare(slight, [("mid", "full")], margin=0.6).verdict
    assert verdict == "worse, within the margin"


def test_a_large_p_is_no_match() -> None:
    """Six prompts show no difference, and so cannot show that there is none."""
    scores = made(6, {"full": 0, "mid": 0}, seed=3)
    (row,) = compare(scores, [("mid", "full")], margin=0.1).to_dict("records")
    assert row["p"] > 0.2
    assert row["verdict"] == "cannot tell"


def test_what_was_not_scored_is_not_compared() -> None:
    scores = frame({"base": [1.0, 2.0, math.nan], "mid": [math.nan, 2.0, 3.0]})
    found = compare(scores, [("mid", "base"), ("full", "base")], margin=0.1)
    assert list(found.prompts) == [1, 0]
    assert found[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert list(found.verdict) == [None, None]
    assert compare(scores[:0], [("mid", "base")]).verdict[0] is None
    assert compare(scores, []).empty


def test_order_of_prompts_and_names_do_not_matter() -> None:
    scores = made(30, {"base": 0, "mid": 0.4})
    first = compare(scores, [("mid", "base")], 0.1)
    shuffled = scores.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(first, compare(shuffled, [("mid", "base")], 0.1))
    back = compare(scores, [("base", "mid")], 0.1)
    assert back.difference[0] == pytest.approx(-first.difference[0])
    assert back.p[0] == pytest.approx(first.p[0])
    assert back.effect[0] == pytest.approx(-first.effect[0])


def test_models_that_answer_the_same_prompts_are_no_more_prompts() -> None:
    """Four copies of one model must not make a finding surer."""
    one = made(40, {"base": 0, "mid": 0.2}, models="m")
    four = pd.concat([one.assign(model=name) for name in "abcd"])
    alone, copied = (compare(s, [("mid", "base")]).iloc[0] for s in (one, four))
    columns = ["prompts", "difference", "low", "high", "std", "effect", "p"]
    assert list(copied[columns]) == pytest.approx(list(alone[columns]))
    assert (alone.models, copied.models) == (1, 4)


def test_rank_ranges() -> None:
    scores = made(300, {"a": 0.0, "b": 0.02, "c": 1.2, "d": -1.2})
    assert rank_ranges(scores) == {"a": (2, 3), "b": (2, 3), "c": (1, 1), "d": (4, 4)}
    few = made(4, {"a": 0.0, "b": 2.0})
    assert rank_ranges(few) == {"a": (1, 2), "b": (1, 2)}
    assert rank_ranges(scores[:0]) == {}
    told = all_pairs(scores)
    p = []
    for row in told.to_dict("records"):
        means = paired_differences(scores, row["block"], row["reference"])
        means = means.groupby("prompt_id").score.mean()
        p.append(stats.wilcoxon(means[means != 0]).pvalue)
    assert list(told.p_holm) == pytest.approx(multipletests(p, method="holm")[1])


def test_the_alignment_tax_needs_a_gain_and_a_loss() -> None:
    effects = {"base": 0.0, "paid": 0.8, "gain": 0.8, "loss": 0.0}
    fluency = made(200, effects, 1).assign(dimension="fluency")
    logic = made(200, {"base": 0.0, "paid": -0.8, "gain": 0.0, "loss": -0.8}, 2)
    scores = pd.concat([fluency, logic.assign(dimension="logic")])
    blocks = ["paid", "gain", "loss", "missing"]
    found = alignment_tax(scores, blocks, "fluency", "logic", 0.3).set_index("block")
    assert list(found.verdict) == ["paid", "ruled out", "ruled out", None]
    paid = found.loc["paid"]
    assert paid.tax == pytest.approx(min(paid.gain, paid.loss))
    sides = []
    for dimension, sign in (("fluency", 1), ("logic", -1)):
        part = paired_differences(scores[scores.dimension == dimension], "gain")
        means = sign * part.groupby("prompt_id").score.mean()
        sides.append(stats.wilcoxon(means[means != 0], alternative="greater").pvalue)
    assert found.p["gain"] == pytest.approx(max(sides))
    few = scores[scores.prompt_id.isin(["p1", "p2", "p3"])]
    unsure = alignment_tax(few, ["paid"], "fluency", "logic", 0.3)
    assert list(unsure.verdict) == ["cannot tell"]


# --- by simulation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated() -> Iterator[Any]:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "null_studies.py"
    spec = importlib.util.spec_from_file_location("null_studies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gc.freeze()  # statsmodels' multipletests collects garbage at each call: let it find little
    yield module
    gc.unfreeze()


def share(module: Any, name: str, studies: int) -> pd.DataFrame:
    return pd.DataFrame([module.one((name, i)) for i in range(studies)])


def test_no_effect_gives_no_finding(simulated: Any) -> None:
    """The whole family's error stays at 5%; without correction it does not."""
    found = share(simulated, "null, 16 prompts, 4 models", 150)
    most = stats.binom.ppf(0.999, 150, 0.05)
    assert found["hialign: comparisons"].sum() <= most
    assert found["hialign: ranks"].sum() <= most
    assert found["paired, no correction"].sum() > most  # the bound can fail
    assert found["the highest mean is called best"].mean() > 0.5


def test_a_real_effect_is_found_more_often_than_without_pairing(simulated: Any) -> None:
    found = share(simulated, "paper's differences true, 100 prompts, 1 models", 40)
    assert found["hialign: Full above Base"].mean() > 0.5
    paired, unpaired = "hialign: Full above Base", "unpaired (Welch), Holm"
    assert found[paired].sum() > found[unpaired].sum() + 5


def test_simulated_studies_have_the_means_that_they_claim(simulated: Any) -> None:
    scores = simulated.simulate(np.random.default_rng(0), 40_000, 1, simulated.PAPER)
    expected = [simulated.mean_of(simulated.SHARES) + d for d in simulated.PAPER.values()]
    assert list(scores.mean(axis=(1, 2))) == pytest.approx(expected, abs=0.03)
    assert simulated.mean_of(simulated.OTHER) == pytest.approx(simulated.mean_of(simulated.SHARES))
    assert set(np.unique(scores)) == {1, 2, 3, 4, 5}
