"""The ledger: claims true, false and undecided by construction; the gate; the correction; the file."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import vouch

from hialign.records import agreement
from hialign.records.files import write_json, write_jsonl
from hialign.records.stages import judgments_file
from hialign.report.claims import ledger as claims
from hialign.report.claims.kinds import Probe
from hialign.report.claims.material import Material, Untested
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Study

CONTRADICTED, SUPPORTED = claims.CONTRADICTED, claims.SUPPORTED
INCONCLUSIVE, UNTESTED = claims.INCONCLUSIVE, claims.UNTESTED


def make_study(models: tuple[str, ...] = ("small",), **settings: Any) -> Study:
    settings.setdefault("judge", {"backend": "local", "model": "random:judge"})
    rows = [{"source": "random:llama", "name": m, "label": m} for m in models]
    settings.setdefault("evaluation", {"resamples": 200})
    return Study(name="made-up", title="Made up", models=rows, **settings)


def write_scores(
    study: Study, mean: Callable[[str, str, str], float], prompts: int = 40, noise: float = 0.3
) -> None:
    """Judgments of every cell: `mean(model, block, dimension)`, a prompt's own level, and noise."""
    rng = np.random.default_rng(5)
    level = rng.normal(0, 0.3, prompts)
    for cell in study.cells():
        rows = []
        for i in range(prompts):
            scores = {
                d: float(np.clip(mean(cell.model.label, cell.block, d) + level[i] + e, 1, 5))
                for d, e in zip(DIMENSIONS, rng.normal(0, noise, len(DIMENSIONS)), strict=True)
            }
            row = {"prompt_id": f"p{i}", "scores": scores, "judge": "x", "reasons": {}}
            rows.append(row)
        write_jsonl(judgments_file(cell), rows)
        vouch(cell, "judge")


def verdict(study: Study, test: dict[str, Any], **more: Any) -> claims.Finding:
    """The verdict on one claim, alone in a ledger."""
    entry = {"id": "one", "paper": "v2", "source": "here", "text": "It is so.", "quantity": "it"}
    with pytest.MonkeyPatch.context() as patch:
        only = claims.Claim(**entry | {"test": test} | more)
        patch.setattr(claims, "load_claims", lambda: [only])
        return claims.findings.__wrapped__(study)[0]  # type: ignore[attr-defined]


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


def write_pairs(study: Study, gains: dict[str, float], prompts: int = 24) -> None:
    rng = np.random.default_rng(6)
    for cell in study.cells():
        pairs = []
        for i in range(prompts):
            for objective in ("grammar", "coherence", "factuality"):
                gain = gains.get(f"{cell.block} {objective}", gains.get(cell.block, 0.0))
                up = 0.0 if cell.block == "base" else gain + float(rng.normal(0, 0.5))
                pair = {"id": f"p{i}-{objective}", "groups": ["all", objective], "chosen": up}
                pairs.append(pair | {"rejected": 0.0, "chosen_base": 0.0, "rejected_base": 0.0})
        content = {"beta": 0.1, "pairs": pairs, "objectives": {}}
        content["fingerprint"] = cell.fingerprint("evaluate")
        write_json(cell.folder / "evaluation.json", content)


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


def write_losses(study: Study, slope: float, steps: int = 30) -> None:
    rng = np.random.default_rng(7)
    for cell in study.cells():
        if cell.block != "base":
            rows = [
                {"step": i + 1, "loss": math.log(2) + slope * i + 0.02 * float(rng.normal())}
                for i in range(steps)
            ]
            write_jsonl(cell.folder / "training.jsonl", rows)
            vouch(cell, "train")


def test_losses(outputs: Path) -> None:
    study = make_study(judge=None)
    for slope, expected in ((-0.01, SUPPORTED), (0.01, CONTRADICTED), (0.0, INCONCLUSIVE)):
        write_losses(study, slope)
        assert verdict(study, {"kind": "loss"}).verdict == expected
    write_losses(study, -0.01, steps=3)
    assert "3 steps, too few" in verdict(study, {"kind": "loss"}).reason


def test_parameters_are_counted(outputs: Path) -> None:
    study = make_study(judge=None)
    for cell in study.cells():
        count = {"mid": 10, "full": 30, "local": 20}.get(cell.block, 0)
        content = {"fingerprint": cell.fingerprint("train"), "trainable_parameters": count}
        write_json(cell.folder / "manifest.json", content | {"layers": []})
    test = {"kind": "parameters", "block": "mid", "reference": "full", "at_most": 0.5}
    found = verdict(study, test)
    assert (found.verdict, found.parts[0].estimate) == (SUPPORTED, pytest.approx(1 / 3))
    assert verdict(study, test | {"block": "local"}).verdict == CONTRADICTED
    assert verdict(study, test | {"block": "global"}).verdict == UNTESTED


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
    assert f"16 prompts can show a difference of {shown:.3f} points with 80% power" in found.reason
    assert "the paper's 0.054 would take" in found.reason


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
            "middle",
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
