"""What decides the claims that rest on probes, on records made up so that the verdict is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom, t, ttest_1samp

from hialign import load_study
from hialign.probes.ila.overlap import overlaps
from hialign.records.files import write_json
from hialign.report.claims import ledger
from hialign.report.claims.material import Part, Untested
from hialign.report.claims.probe_parts import STATISTICS, probe_parts
from hialign.report.where.overlaps import chance_of, compared
from hialign.study import paths
from hialign.study.probe_settings import IlaSettings, ProbeSettings
from hialign.study.study import Study

DRAWS = 300


def parts(statistic: str, record: dict[str, Any]) -> list[Part]:
    return STATISTICS[statistic](record, "", DRAWS)


def verdict(parts: list[Part]) -> str:
    """As the ledger has it, without its correction."""
    if all(part.p_for < 0.05 and part.backs for part in parts):
        return "supported"
    if any(p.p_against < 0.05 and p.refutes for p in parts):
        return "contradicted"
    return "refuted" if any(p.p_short < 0.05 and p.falls_short for p in parts) else "open"


# --- gradients -----------------------------------------------------------------------------------


def row(detrended: float, low: float, high: float, p: float) -> dict[str, Any]:
    names = {"objective": "grammar", "block": "local", "other": "mid", "n": 24}
    ends = {"detrended_low": low, "detrended_high": high, "p_above": p, "p_below": 1 - p}
    std = math.log(high / low) / (2 * t.isf(0.025, 23)) * math.sqrt(24)
    return names | {"detrended": detrended, "detrended_log_std": std} | ends


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(3, 2, 4, 0.001), row(2.5, 1.2, 3, 0.01)], "supported"),
        ([row(3, 2, 4, 0.001), row(1.9, 1.2, 3, 0.01)], "open"),  # not much greater
        ([row(3, 2, 4, 0.001), row(2.5, 0.9, 3, 0.01)], "open"),
        ([row(3, 2, 4, 0.001), row(0.5, 0.3, 0.9, 0.99)], "contradicted"),
        (
            [row(1, 0.8, 1.2, 0.5)],
            "refuted",
        ),  # neither above nor below the other block, so not twice
        ([row(1.5, 1.2, 1.9, 0.001), row(3, 2, 4, 0.001)], "refuted"),  # above it, but not twice
        ([row(1.5, 1.1, 2.05, 0.001)], "open"),  # may be twice
    ],
)
def test_inequality(rows: list[dict[str, Any]], expected: str) -> None:
    assert verdict(parts("inequality", {"inequality": rows})) == expected


# --- ILA -----------------------------------------------------------------------------------------


TYPES = ("q_proj", "k_proj", "v_proj", "o_proj")


def gated(
    common: float, seeds: int = 3, by_type: float = 0.0, opposed: bool = False
) -> dict[str, Any]:
    """Gates of 120 matrices on two data sets, and the probe's overlaps of their rankings.

    `common` is how much the data sets share (1: all), `by_type` how far apart the types of matrices
    are, in standard deviations. The second data set may rank the matrices the other way.
    """
    rng = np.random.default_rng(9)
    names = [f"model.layers.{i // 4}.self_attn.{TYPES[i % 4]}" for i in range(120)]
    shared, types = rng.normal(size=120), by_type * (np.arange(120) % 4)
    runs = []
    for seed in range(seeds):
        for name, sign in (("study", 1), ("grammar", -1 if opposed else 1)):
            own = rng.normal(size=120)
            gates = types + sign * common * shared + math.sqrt(1 - common**2) * own
            run = {"dataset": name, "loss": "dpo", "seed": seed, "nothing": None}
            runs.append(run | {"gates": gates.tolist()})
    settings = IlaSettings(datasets=["study", "grammar"], losses=["dpo"], seeds=list(range(seeds)))
    found = overlaps(runs, settings, (75, 30), ProbeSettings(resamples=DRAWS))
    return {"matrices": [{"name": n} for n in names], "runs": runs, "overlaps": found}


def test_overlap() -> None:
    alike = gated(0.99)
    found = parts("overlap", alike)
    assert len(found) == 2  # top 75% only, and the mean
    assert verdict(found) == "supported"
    assert verdict(parts("overlap", gated(0.9, opposed=True))) == "contradicted"
    between = parts("overlap", gated(0.8))  # beyond chance, and not 0.85
    assert between[0].p_for < 0.001
    assert verdict(between) == "refuted"
    by_seed = gated(0.8)["overlaps"][0]["by_seed"]
    assert between[1].p_short == pytest.approx(
        ttest_1samp(by_seed, 0.85, alternative="less").pvalue
    )
    one = parts("overlap", gated(0.8, seeds=1))
    assert verdict(one) == "open", "one seed has no spread to test the mean with"
    alike["overlaps"][0]["nothing"] = "no seed ranks both"
    with pytest.raises(Untested):
        parts("overlap", alike)


def test_overlap_by_type_alone_is_chance() -> None:
    """Data sets that share nothing but their preference for types of matrices."""
    record = gated(0.0, by_type=2.0)
    (row,) = [row for row in record["overlaps"] if row["percent"] == 75]
    shared = round(2 * 90 * row["of_means"] / (1 + row["of_means"]))
    assert hypergeom(120, 90, 90).sf(shared - 1) < 0.001, "sets drawn from all matrices"
    (part, _) = parts("overlap", record)
    assert part.p_for > 0.1
    chance = chance_of(record, row)
    assert chance.mean == pytest.approx(row["of_means"], abs=0.08)
    assert chance.mean > 0.7
    assert part.bound == chance.quantile95 > chance.mean
    (shown,) = [row for row in compared(record) if row["percent"] == 75]
    assert shown["chance"].mean == chance.mean


def intervened(
    gain: float, over_random: float = 0.5, few: float = 0.0, n: int = 40
) -> dict[str, Any]:
    """`n` prompts; freezing gains `gain` over all and that plus `over_random` over random sets."""
    rng = np.random.default_rng(3)
    base = rng.normal(0.1, 0.05, n)
    made = {
        "full": base,
        "freeze 25%": base + gain + rng.normal(0, 0.02, n),
        "freeze 25% random 1": base + gain - over_random + rng.normal(0, 0.02, n),
        "freeze 25% random 2": base + gain - over_random + rng.normal(0, 0.02, n),
        "top 30%": np.where(np.arange(n) < n * few, -1.0, 1.0) * np.abs(base),
    }
    variants = [{"name": name, "margins": values.tolist()} for name, values in made.items()]
    inner = {"nothing": None, "variants": variants, "prompts": [f"p{i}" for i in range(n)]}
    return {"interventions": inner}


def test_freezing_and_few() -> None:
    assert verdict(parts("freezing", intervened(0.1))) == "supported"
    assert verdict(parts("freezing", intervened(-0.1))) == "contradicted"
    # it helps, but so does freezing any quarter: neither supported nor contradicted
    assert verdict(parts("freezing", intervened(0.1, over_random=-0.1))) == "open"
    assert verdict(parts("few", intervened(0.1, few=0.5))) == "contradicted"
    assert verdict(parts("few", intervened(0.1))) == "supported"
    with pytest.raises(Untested, match="no change"):
        parts("few", {"interventions": {"nothing": "no change", "variants": []}})


# --- Alignment is Localized ------------------------------------------------------------------------


def swapped(
    by_third: dict[str, float], second: dict[str, float] | None = None, spread: float = 0.01
) -> dict[str, Any]:
    """Six layers, 40 pairs: what a third's layers add, put in and left out, and random adapters."""
    rng = np.random.default_rng(4)
    swaps: dict[str, Any] = {"pairs": [{"id": f"i{i}", "prompt": f"p{i}"} for i in range(40)]}
    for way, thirds in (("put_in", by_third), ("leave_out", second or by_third)):
        means = [thirds[b] for b in ("local", "mid", "global") for _ in range(2)]
        swaps[way] = {"layers": (means + rng.normal(0, 0.1, (40, 6))).tolist()}
    swaps["nulls"] = [
        {way: {"layers": rng.normal(0, spread, 6).tolist()} for way in ("put_in", "leave_out")}
        for _ in range(4)
    ]
    return {"depth": 6, "swaps": swaps}


def test_middle() -> None:
    middle = {"local": 0.05, "mid": 0.3, "global": 0.1}
    late = {"local": 0.05, "mid": 0.1, "global": 0.3}
    found = parts("middle", swapped(middle))
    assert verdict(found) == "supported"
    assert found[0].estimate == pytest.approx(0.25, abs=0.03)
    assert verdict(parts("middle", swapped(late))) == "contradicted"
    assert verdict(parts("middle", swapped(middle, late))) == "open"  # the two ways disagree
    # random adapters have such leads as well
    assert verdict(parts("middle", swapped(middle, spread=1.0))) == "open"
    assert verdict(parts("middle", swapped(late, spread=1.0))) == "open"
    # exchanging chosen and rejected turns the verdict around
    harm = {name: -value for name, value in middle.items()}
    assert verdict(parts("middle", swapped(harm))) == "contradicted"


def test_middle_is_not_tested_by_activations_alone() -> None:
    with pytest.raises(Untested, match="the same if chosen and rejected are exchanged"):
        parts("middle", {"depth": 6, "margins": {}})
    record = swapped({"local": 0.0, "mid": 1.0, "global": 0.0})
    record["swaps"]["nulls"] = record["swaps"]["nulls"][:1]
    with pytest.raises(Untested, match="fewer than two random adapters"):
        parts("middle", record)


def low_rank(four: float, whole: float, control: float) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    base = rng.normal(0, 1, 40)
    tuned = base + 1.0 + rng.normal(0, 0.1, 40)
    record: dict[str, Any] = {
        "unpatched": {"base": {"summed": base.tolist()}, "tuned": {"summed": tuned.tolist()}},
        "pairs": [{"id": f"i{i}", "prompt": f"p{i}"} for i in range(40)],
    }
    at = range(0, 40, 2)

    def at_rank(share: float) -> list[float]:
        values = base + (tuned - base) * share + rng.normal(0, 0.01, 40)
        return [float(values[i]) for i in at]

    margins = {"svd": [at_rank(four), at_rank(whole)]}
    for name in ("random_subspace", "random_vector", "shuffled_pairs"):
        margins[name] = [at_rank(control), at_rank(whole)]
    into = {"svd": [{"rank": 4}, {"rank": 32}]}
    layer = {"layer": 3, "recovery": {"tuned_into_base": into}}
    layer |= {"margins": {"tuned_into_base": margins}}
    rank = {"reason": None, "layers": [layer], "tested": [f"i{i}" for i in at]}
    return record | {"rank": rank}


def test_low_rank() -> None:
    assert verdict(parts("low-rank", low_rank(0.38, 0.4, 0.05))) == "supported"
    assert verdict(parts("low-rank", low_rank(0.2, 0.4, 0.05))) == "refuted"  # half of the whole
    assert verdict(parts("low-rank", low_rank(0.325, 0.4, 0.05))) == "open"  # about 80%
    assert verdict(parts("low-rank", low_rank(0.38, 0.4, 0.5))) == "contradicted"


# --- in the ledger ---------------------------------------------------------------------------------


def test_records_decide_the_ledger(outputs: Path) -> None:
    study = Study(**load_study("smoke").model_dump() | {"name": "probed", "judge": None})
    name = study.models[0].name

    def verdicts() -> dict[str, str]:
        return {f.claim.id: f.verdict for f in ledger.findings(study)}

    with pytest.raises(Untested, match="no records of the ila probe"):
        probe_parts(study, "ila", "overlap")
    before = verdicts()
    assert before["v2-hypothesis-2"] == before["localized-middle"] == "not tested"
    even = {"local": 0.1, "mid": 0.1, "global": 0.1}
    record = low_rank(0.38, 0.4, 0.05) | swapped(even)
    for probe, content in (
        ("gradients", {"inequality": [row(3, 2, 4, 1e-5), row(2.5, 1.2, 3, 1e-5)]}),
        ("patching", record),
    ):
        fingerprint = study.cell(None, "base").probe_fingerprint(probe)
        content = content | {"fingerprint": fingerprint}
        write_json(paths.probe_record("probed", name, probe), content)
    after = verdicts()
    assert after["v2-hypothesis-2"] == "supported"
    assert after["localized-few-layers"] == "not tested"  # whatever the records say
    assert after["localized-low-rank"] == "supported"
    assert after["localized-middle"] == "inconclusive"
    assert after["ila-overlap"] == "not tested"
