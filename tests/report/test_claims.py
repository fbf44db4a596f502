"""The ledger: claims true, false and undecided by construction; the gate; the correction; the file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import vouch
from ledger_material import (
    make_study,
    verdict,
    write_losses,
    write_pairs,
    write_parameters,
    write_scores,
)
from scipy import stats

from hialign.records import agreement
from hialign.records.files import read_json, write_json, write_jsonl
from hialign.records.stages import judgments_file
from hialign.report.claims import ledger as claims
from hialign.report.claims.kinds import Probe
from hialign.report.claims.material import Material, Part, Untested
from hialign.report.claims.probe_parts import STATISTICS
from hialign.report.facts import facts
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.rubric import DIMENSIONS

CONTRADICTED, SUPPORTED, REFUTED = claims.CONTRADICTED, claims.SUPPORTED, claims.REFUTED
INCONCLUSIVE, UNTESTED = claims.INCONCLUSIVE, claims.UNTESTED


ABOVE = {"kind": "above", "block": "mid", "references": ["base", "full"], "dimensions": ["Tone"]}
NOT_INFERIOR = {"kind": "not_inferior", "block": "mid", "references": ["full"]}
NOT_INFERIOR |= {"dimensions": ["Overall"], "margin": 0.2}
LEVEL = {"kind": "level", "dimensions": ["Safety"], "above": ["base", "mid"], "level": 4}
UNDER = {"kind": "level", "dimensions": ["Safety"], "below": ["mid"], "level": 4}


@pytest.mark.parametrize(
    ("test", "means", "expected"),
    [
        (ABOVE, {"mid": 3.5}, SUPPORTED),
        (ABOVE, {"mid": 3.5, "full": 4.0}, CONTRADICTED),  # above Base, below Full
        (ABOVE, {}, INCONCLUSIVE),
        (ABOVE, {"mid": 2.0}, CONTRADICTED),
        (NOT_INFERIOR, {"mid": 3.0}, SUPPORTED),  # equal, so well within the margin
        (NOT_INFERIOR, {"mid": 2.0}, CONTRADICTED),
        (NOT_INFERIOR, {"mid": 2.8}, INCONCLUSIVE),  # right at the margin
        (LEVEL, {"base": 4.6, "mid": 4.6}, SUPPORTED),
        (LEVEL, {"base": 4.6, "mid": 3.0}, CONTRADICTED),
        (LEVEL, {"base": 4.6, "mid": 4.02}, INCONCLUSIVE),
        (UNDER, {"mid": 3.2}, SUPPORTED),
        (UNDER, {"mid": 4.6}, CONTRADICTED),
    ],
)
def test_judged_claims(
    outputs: Path, test: dict[str, Any], means: dict[str, float], expected: str
) -> None:
    study = make_study()
    write_scores(study, lambda model, block, dimension: means.get(block, 3.0))
    assert verdict(study, test).verdict == expected


@pytest.mark.parametrize(
    ("fluency", "logic", "paid", "avoided"),
    [
        (3.6, 2.4, SUPPORTED, CONTRADICTED),
        (3.6, 3.6, CONTRADICTED, SUPPORTED),  # both rise
        (3.08, 2.92, INCONCLUSIVE, INCONCLUSIVE),
    ],
)
def test_the_alignment_tax(
    outputs: Path, fluency: float, logic: float, paid: str, avoided: str
) -> None:
    study = make_study()
    moved = {"GrammarFluency": fluency, "CoherenceLogic": logic}
    write_scores(study, lambda m, block, d: moved.get(d, 3.0) if block == "full" else 3.0)
    test = {"kind": "tax", "blocks": ["full"], "margin": 0.1}
    assert verdict(study, test | {"paid": True}).verdict == paid
    assert verdict(study, test | {"paid": False}).verdict == avoided


def test_models_against_each_other(outputs: Path) -> None:
    study = make_study(("Large", "small"))
    write_scores(study, lambda model, b, d: 3.6 if model == "Large" else 3.0)
    test = {"kind": "models", "model": "large", "references": ["Small"]}  # names' case is free
    assert verdict(study, test).verdict == SUPPORTED
    test = {"kind": "models", "model": "small", "references": ["Large"]}
    assert verdict(study, test).verdict == CONTRADICTED
    found = verdict(study, test | {"references": ["Huge"]})
    assert (found.verdict, found.reason) == (UNTESTED, "this study does not have Huge")


def test_objectives_and_rewards_need_no_judge(outputs: Path) -> None:
    study = make_study(judge=None)
    write_pairs(study, {"mid coherence": 3.0, "local": 1.0, "global": 0.5, "full": 0.5})
    test = {"kind": "objective", "objective": "coherence", "block": "mid"}
    test |= {"references": ["local", "global"]}
    found = verdict(study, test)
    assert found.verdict == SUPPORTED
    assert found.parts[0].estimate == pytest.approx(0.1 * 2.0, abs=0.03)  # beta times the gain
    assert verdict(study, test | {"block": "local", "references": ["mid"]}).verdict == CONTRADICTED
    other = test | {"objective": "grammar", "block": "global", "references": ["full"]}
    assert verdict(study, other).verdict == INCONCLUSIVE
    reward = {"kind": "reward", "measure": "hit", "block": "local", "references": ["mid"]}
    assert verdict(study, reward).verdict == SUPPORTED  # Mid ranks grammar and facts at chance


def test_losses(outputs: Path) -> None:
    study = make_study(judge=None)
    for slope, expected in ((-0.01, SUPPORTED), (0.01, CONTRADICTED), (0.0, INCONCLUSIVE)):
        write_losses(study, slope)
        assert verdict(study, {"kind": "loss"}).verdict == expected
    write_losses(study, -0.01, steps=3)
    assert "3 steps, too few" in verdict(study, {"kind": "loss"}).reason


def test_parameters_are_counted(outputs: Path) -> None:
    study = make_study(judge=None)
    write_parameters(study, {"mid": 10, "full": 30, "local": 20, "global": 30})
    test = {"kind": "parameters", "block": "mid", "reference": "full", "at_most": 0.5}
    found = verdict(study, test)
    assert (found.verdict, found.parts[0].estimate) == (SUPPORTED, pytest.approx(1 / 3))
    found = verdict(study, test | {"block": "local"})  # two thirds: fewer, but not far fewer
    assert found.verdict == REFUTED
    assert claims.evidence(found)["Holds"].tolist() == ["no, but in its direction"]
    assert verdict(study, test | {"block": "global"}).verdict == CONTRADICTED
    assert verdict(study, test | {"block": "base"}).verdict == UNTESTED


def test_the_partition_is_computed(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(judge=None)
    assert verdict(study, {"kind": "partition"}).verdict == SUPPORTED
    wrong = [{"model": "x", "layers": 7, "local": [0, 2], "mid": [3, 5], "global": [6, 6]}]
    monkeypatch.setattr("hialign.report.paper.rows", lambda table: wrong)  # 3, 2, 2 is right
    assert verdict(study, {"kind": "partition"}).verdict == CONTRADICTED


def test_what_is_missing_is_said(outputs: Path) -> None:
    study = make_study()
    write_scores(study, lambda *_: 3.0, prompts=16)
    found = verdict(study, ABOVE, size=0.054)
    part = max(found.parts, key=lambda p: p.p_for)
    from statsmodels.stats.power import TTestPower

    shown = TTestPower().solve_power(nobs=16, alpha=0.05, power=0.8) * part.std
    # the two p of the only claim are one family: each one-sided at 2.5%, as a two-sided test at 5%
    assert f"16 prompts can show a difference of {shown:.3f} points with 80% power" in found.reason
    assert "the paper's 0.054 would take" in found.reason


def test_what_could_have_been_seen_is_under_the_correction_of_the_verdicts(outputs: Path) -> None:
    from statsmodels.stats.power import TTestPower

    study = make_study()
    write_scores(study, lambda *_: 3.0)
    found = claims.findings(study)
    tests = sum(not np.isnan([f.p_for, f.p_against, f.p_short]).all() for f in found) * 2
    assert tests > 30
    one = next(f for f in found if f.claim.id == "v2-full-gains")
    assert one.verdict == INCONCLUSIVE
    power = {"alpha": 0.05 / tests, "power": 0.8, "alternative": "larger"}
    shown = TTestPower().solve_power(nobs=40, **power) * one.parts[0].std
    assert f"a difference of {shown:.3f} points with 80% power after the correction" in one.reason
    effect = one.claim.size / one.parts[0].std
    needed = math.ceil(TTestPower().solve_power(effect_size=effect, **power))
    assert f"the paper's 0.302 would take {needed} prompts" in one.reason


def test_a_judge_at_chance_decides_nothing(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    write_scores(study, lambda m, block, d: 4.0 if block == "mid" else 3.0)
    monkeypatch.setattr(agreement, "sides", lambda study: {"everyday": (0.52, 0.42, 0.62, 100)})
    found = verdict(study, ABOVE)
    assert found.verdict == INCONCLUSIVE
    assert "not shown to beat guessing (52% of 100 pairs as people, 42% to 62%)" in found.reason
    assert len(found.parts) == 2, "the figures are to be seen all the same"
    monkeypatch.setattr(agreement, "sides", lambda study: {"everyday": (0.75, 0.66, 0.83, 100)})
    found = verdict(study, ABOVE)
    assert found.verdict == SUPPORTED
    assert "not measured" not in found.reason
    monkeypatch.setattr(agreement, "sides", lambda study: {})
    assert "the judge's agreement with people was not measured" in verdict(study, ABOVE).reason
    assert verdict(study, {"kind": "partition"}).verdict == SUPPORTED


def test_the_correction_is_over_both_directions_of_the_whole_ledger(outputs: Path) -> None:
    from statsmodels.stats.multitest import multipletests

    study = make_study()
    write_scores(study, lambda m, block, d: 3.1 if block == "mid" else 3.0)
    found = [f for f in claims.findings(study) if not np.isnan(f.p_for)]
    assert len(found) > 10
    raw_for = [max(p.p_for for p in f.parts) for f in found]
    raw_against = [min(1, len(f.parts) * min(p.p_against for p in f.parts)) for f in found]
    expected = multipletests([*raw_for, *raw_against], method="holm")[1]
    assert [f.p_for for f in found] == pytest.approx(expected[: len(found)])
    assert [f.p_against for f in found] == pytest.approx(expected[len(found) :])


def test_the_correction_covers_the_test_against_a_claims_own_threshold() -> None:
    from statsmodels.stats.multitest import multipletests

    plain = [Part("a", 1.0, p_for=0.01, p_against=0.9), Part("b", 1.0, p_for=0.02, p_against=0.8)]
    limited = [
        Part("c", 1.0, p_for=0.3, p_against=0.7, threshold=2.0, p_short=0.001),
        Part("d", 1.0, p_for=0.4, p_against=0.6, threshold=2.0, p_short=0.004),
        Part("e", 1.0, p_for=0.2, p_against=0.5),
    ]
    first, second = claims._corrected([plain, limited])
    raw = [0.02, 0.4, 2 * 0.8, 3 * 0.5, 2 * 0.001]
    expected = multipletests(np.minimum(raw, 1), method="holm")[1]
    assert [first.p_for, second.p_for] == pytest.approx(expected[:2])
    assert [first.p_against, second.p_against] == pytest.approx(expected[2:4])
    assert second.p_short == pytest.approx(expected[4])
    assert np.isnan(first.p_short)
    assert first.alpha == second.alpha == pytest.approx(2 * 0.05 / 5)


def test_a_claim_that_is_true_at_its_threshold_is_seldom_refuted() -> None:
    """True ratios of exactly 2, and six parts: at 5%, 21 or more of 240 would be a chance below 1%."""
    rng = np.random.default_rng(8)
    refuted = 0
    for _ in range(240):
        logs = np.log(2) + rng.normal(0, 0.2, (6, 16))
        rows = [ratio_of(values) for values in logs]
        parts = STATISTICS["inequality"]({"inequality": rows}, "", 100)
        (p,) = claims._corrected([parts])
        smallest = min(parts, key=lambda part: part.p_short)
        refuted += p.p_short < 0.05 and smallest.falls_short
    assert refuted <= 20


def ratio_of(logs: np.ndarray) -> dict[str, Any]:
    """A row of the gradients probe, of log ratios by prompt."""
    mean, error = logs.mean(), logs.std(ddof=1) / math.sqrt(len(logs))
    ends = mean + stats.t.ppf([0.025, 0.975], len(logs) - 1) * error
    names = {"objective": "grammar", "block": "local", "other": "mid", "n": len(logs)}
    names |= {"detrended": math.exp(mean), "detrended_log_std": float(logs.std(ddof=1))}
    names |= {"detrended_low": math.exp(ends[0]), "detrended_high": math.exp(ends[1])}
    return names | {"p_above": 0.5, "p_below": 0.5}


CONTROLS = ["random:30%:1", "random:third", "full:r5", "lisa", "window:1-2", "layers:0"]


def test_controls_stay_out_of_claims_on_strategies(outputs: Path) -> None:
    blocks = ["base", "full", "local", "mid", "global", *CONTROLS, "spectrum:top30%"]
    study = make_study(("Large", "small"), blocks=blocks)
    strategies = blocks[:5]
    # On controls all is reversed: the small model is better, and the loss rises
    gain = {True: {"Large": 0.6}, False: {"small": 1.0}}
    write_scores(study, lambda model, b, d: 3 + gain[b in strategies].get(model, 0))
    write_losses(study, -0.01, others={b: 0.01 for b in blocks if b not in strategies})
    test = {"kind": "models", "model": "Large", "references": ["small"]}
    found = verdict(study, test)
    assert found.verdict == SUPPORTED
    assert len(found.parts) == len(strategies)
    found = verdict(study, {"kind": "loss"})
    assert found.verdict == SUPPORTED
    assert len(found.parts) == 4 * 2  # the tuned strategies of both models


def test_the_best_strategy_is_no_control(outputs: Path) -> None:
    study = make_study(blocks=["base", "mid", "local", "random:third"])
    write_scores(study, lambda m, block, d: {"random:third": 4.5, "mid": 4.0}.get(block, 3.0))
    write_pairs(study, {"random:third": 3.0, "mid": 1.0})
    for cell in study.cells():
        hits = {"random:third": 0.9, "mid": 0.8}.get(cell.block, 0.5)
        rows = read_json(cell.folder / "evaluation.json")
        rows["objectives"] = {"all": {"n": 72, "reward_accuracy": hits, "reward_margin": hits}}
        rows["divergence"] = {"kl": 0.1}
        write_json(cell.folder / "evaluation.json", rows)
    told = facts(study)
    assert told["best_strategy_overall"] == "Mid-Align"
    assert (told["best_accuracy_strategy"], told["best_accuracy"]) == ("Mid-Align", "80%")
    assert "random" not in told["overall_finding"]


@pytest.mark.slow
def test_studies_without_any_effect_seldom_decide_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 5% for a whole ledger, 4 or more of 15 null studies would be a chance below 1%."""
    ledger = [c for c in claims.load_claims() if c.test.kind == "above" and not c.test.models]
    assert len(ledger) > 8
    monkeypatch.setattr(claims, "load_claims", lambda: ledger)
    wrong = 0
    rng = np.random.default_rng(11)
    for number in range(15):
        monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path / str(number)))
        study = make_study(evaluation={"resamples": 100})
        level = rng.normal(3, 0.3, 20)
        for cell in study.cells():
            rows = [
                {"prompt_id": f"p{i}", "judge": "x"}
                | {
                    "scores": dict(
                        zip(DIMENSIONS, (level[i] + rng.normal(0, 0.3, 16)).tolist(), strict=True)
                    )
                }
                for i in range(20)
            ]
            write_jsonl(judgments_file(cell), rows)
            vouch(cell, "judge")
        found = claims.findings(study)
        wrong += any(f.verdict in (SUPPORTED, CONTRADICTED) for f in found)
    assert wrong <= 3


# --- the file ------------------------------------------------------------------------------------


def test_the_ledger_has_every_paper_and_says_what_decides() -> None:
    ledger = claims.load_claims()
    assert len(ledger) >= 30
    assert {c.paper for c in ledger} == set(claims.PAPERS)
    assert sum(c.headline for c in ledger) >= 4
    for claim in ledger:
        assert claim.text.endswith("."), claim.id
        assert claim.id.startswith(claim.paper), claim.id
        if isinstance(claim.test, Probe):
            assert claim.test.supported_if
            assert claim.test.contradicted_if


# Each has been the address of a verdict, in a book that others may link to.
PERMALINKS = [
    "v1-global-factuality",
    "v1-global-logic",
    "v1-global-outperforms",
    "v1-local-fluency",
    "v1-full-tax",
    "v1-blocks-no-tax",
    "v2-mid-matches-full",
    "v2-fewer-parameters",
    "v2-late-insufficient",
    "v2-local-instructions",
    "v2-mid-drives",
    "v2-partition",
    "v2-hypothesis-2",
    "v2-hypothesis-2-grammar",
    "v2-hypothesis-2-coherence",
    "v2-hypothesis-2-factuality",
    "v2-full-best",
    "v2-full-gains",
    "v2-local-gains",
    "v2-mid-gains",
    "v2-local-near-full",
    "v2-local-above-mid",
    "v2-global-below-base",
    "v2-global-below-baseline",
    "v2-qwen25-dominates",
    "v2-qwen25-mid-full",
    "v2-local-language",
    "v2-mid-coherence",
    "v2-mid-coherence-qwen25",
    "v2-mid-knowledge",
    "v2-instructions",
    "v2-safety",
    "v2-safety-resilient",
    "v2-loss-falls",
    "v2-loss-converges",
    "ila-overlap",
    "ila-freezing-helps",
    "ila-few-suffice",
    "localized-middle",
    "localized-few-layers",
    "localized-low-rank",
]


def test_permalinks_of_verdicts_never_change(outputs: Path) -> None:
    assert set(PERMALINKS) <= {claim.id for claim in claims.load_claims()}
    table = claims.verdicts(make_study(judge=None))
    assert table["Permalink"].tolist() == [f"claims.html#{name}" for name in table["Claim"]]
    assert table["Claim"].is_unique


def test_one_seed_is_said_and_of_several_the_first_counts(outputs: Path) -> None:
    assert "has one seed, so the spread" in facts(make_study(judge=None))["seed_spread"]
    study = make_study(judge=None, seeds=[1, 2], shuffled_seeds=[1])
    told = facts(study.at())["seed_spread"]
    assert "has 2 seeds" in told
    assert "(seed-1)" in told
    write_pairs(study, {"mid": 3.0})
    reward = {"kind": "reward", "measure": "hit", "block": "mid", "references": ["local"]}
    for seen in (study, study.at()):
        found = verdict(seen, reward)
        assert (found.verdict, found.parts[0].n) == (SUPPORTED, 24)


def test_nothing_is_decided_where_nothing_has_run(outputs: Path) -> None:
    found = claims.findings(make_study())
    for finding in found:
        if finding.claim.id != "v2-partition":
            assert finding.verdict == UNTESTED, finding.claim.id
            assert finding.reason
    table = claims.overview(make_study(judge=None))
    assert int(table["Claims"].sum()) == len(found)
    assert int(table["Not tested"].sum()) == len(found) - 1


def test_a_partial_study_says_what_is_missing(outputs: Path) -> None:
    study = make_study(blocks=["base", "mid"])
    write_scores(study, lambda *_: 3.0)
    reasons = {f.claim.id: f.reason for f in claims.findings(study)}
    assert reasons["v2-mid-matches-full"] == "Full-DPO is not in this study"
    assert reasons["v2-qwen25-mid-full"] == "this study does not have Qwen2.5-7B"
    assert "prompts can show a difference" in reasons["v2-mid-gains"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "test": {
                    "kind": "above",
                    "block": "middle",
                    "references": ["base"],
                    "dimensions": ["Tone"],
                }
            },
            "'middle' is not a strategy",
        ),
        (
            {
                "test": {"kind": "reward", "measure": "hit", "block": "random:third"}
                | {"references": ["mid"]}
            },
            "'random:third' is not a strategy",
        ),
        (
            {
                "test": {
                    "kind": "above",
                    "block": "mid",
                    "references": ["base"],
                    "dimensions": ["Tune"],
                }
            },
            "'Tune' is not a dim",
        ),
        ({"test": {"kind": "abov"}}, "abov"),
        ({"test": {"kind": "partition", "margin": 1}}, r"test\.partition\.margin"),
        ({"paper": "v3"}, "paper"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_claim_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    entry = {"id": "odd", "paper": "v2", "source": "s", "text": "t", "quantity": "q"}
    entry |= {"test": {"kind": "partition"}}
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"claims": [entry | change]}))
    monkeypatch.setattr(paths, "book_source", lambda: tmp_path)
    with pytest.raises(HialignError, match=rf"claims.yml: .*claims.odd.*{message}"):
        claims.load_claims()


def test_a_broken_or_doubled_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "book_source", lambda: tmp_path)
    with pytest.raises(HialignError, match="cannot read the ledger of claims"):
        claims.load_claims()
    (tmp_path / "claims.yml").write_text("a: [")
    with pytest.raises(HialignError, match=r"claims\.yml is not YAML"):
        claims.load_claims()
    entry = {"id": "odd", "paper": "v2", "source": "s", "text": "t", "quantity": "q"}
    entry |= {"test": {"kind": "partition"}}
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"claims": [entry, entry]}))
    with pytest.raises(HialignError, match="two claims are called odd"):
        claims.load_claims()


def test_the_same_comparison_is_made_once(outputs: Path) -> None:
    study = make_study()
    write_scores(study, lambda *_: 3.0)
    material = Material(study)
    test = claims.Claim(id="a", paper="v2", source="s", text="t.", quantity="q", test=ABOVE).test
    first, again = test.parts(material), test.parts(material)
    assert all(a is b for a, b in zip(first, again, strict=True))
    small = Material(make_study(blocks=["base", "mid"]))
    with pytest.raises(Untested, match="Global-Align is not in this study"):
        small.require(material.judged("Tone"), "global")
