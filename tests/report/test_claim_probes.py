"""What decides the claims that rest on probes, on records made up so that the verdict is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from hialign import load_study
from hialign.records.files import write_json
from hialign.report.claims import ledger
from hialign.report.claims.material import Part, Untested
from hialign.report.claims.probe_parts import STATISTICS, probe_parts
from hialign.study import paths
from hialign.study.study import Study

DRAWS = 300


def parts(statistic: str, record: dict[str, Any]) -> list[Part]:
    return STATISTICS[statistic](record, "", DRAWS)


def verdict(parts: list[Part]) -> str:
    """As the ledger has it, without its correction."""
    if all(part.p_for < 0.05 and part.backs for part in parts):
        return "supported"
    return "contradicted" if any(p.p_against < 0.05 and p.refutes for p in parts) else "open"


# --- gradients -----------------------------------------------------------------------------------


def row(detrended: float, low: float, high: float, p: float) -> dict[str, Any]:
    names = {"objective": "grammar", "block": "local", "other": "mid", "n": 24}
    ends = {"detrended_low": low, "detrended_high": high, "p_above": p, "p_below": 1 - p}
    return names | {"detrended": detrended} | ends


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(3, 2, 4, 0.001), row(2.5, 1.2, 3, 0.01)], "supported"),
        ([row(3, 2, 4, 0.001), row(1.9, 1.2, 3, 0.01)], "open"),  # not much greater
        ([row(3, 2, 4, 0.001), row(2.5, 0.9, 3, 0.01)], "open"),
        ([row(3, 2, 4, 0.001), row(0.5, 0.3, 0.9, 0.99)], "contradicted"),
        ([row(1, 0.8, 1.2, 0.5)], "open"),
    ],
)
def test_inequality(rows: list[dict[str, Any]], expected: str) -> None:
    assert verdict(parts("inequality", {"inequality": rows})) == expected


# --- ILA -----------------------------------------------------------------------------------------


def overlap(value: float, low: float, high: float, percent: int = 75) -> dict[str, Any]:
    size = 90
    shared = round(2 * size * value / (1 + value))
    return {
        "datasets": ["study", "grammar"],
        "loss": "dpo",
        "percent": percent,
        "nothing": None,
        "size": size,
        "mean": value,
        "low": low,
        "high": high,
        "n": 3,
        "of_means": shared / (2 * size - shared),
        "chance": {"mean": 0.6, "quantile95": 0.66},
    }


def test_overlap() -> None:
    matrices = {"matrices": [{}] * 120}
    high = {"overlaps": [overlap(0.9, 0.88, 0.92), overlap(0.3, 0.2, 0.4, 30)], **matrices}
    found = parts("overlap", high)
    assert len(found) == 2  # top 75% only, and the mean
    assert verdict(found) == "supported"
    assert found[0].p_for == pytest.approx(hypergeom(120, 90, 90).sf(85 - 1))
    low = {"overlaps": [overlap(0.9, 0.88, 0.92), overlap(0.5, 0.4, 0.6)], **matrices}
    assert verdict(parts("overlap", low)) == "contradicted"
    between = {"overlaps": [overlap(0.8, 0.78, 0.82)], **matrices}  # beyond chance, not 0.85
    assert verdict(parts("overlap", between)) == "open"
    with pytest.raises(Untested):
        parts("overlap", {"overlaps": [overlap(0.9, 0.8, 1) | {"nothing": "no seed"}], **matrices})


def intervened(gain: float, over_random: float = 0.5, few: float = 0.0) -> dict[str, Any]:
    """40 prompts; freezing gains `gain` over all and that plus `over_random` over random sets."""
    rng = np.random.default_rng(3)
    base = rng.normal(0.1, 0.05, 40)
    made = {
        "full": base,
        "freeze 25%": base + gain + rng.normal(0, 0.02, 40),
        "freeze 25% random 1": base + gain - over_random + rng.normal(0, 0.02, 40),
        "freeze 25% random 2": base + gain - over_random + rng.normal(0, 0.02, 40),
        "top 30%": np.where(np.arange(40) < 40 * few, -1.0, 1.0) * np.abs(base),
    }
    variants = [{"name": name, "margins": values.tolist()} for name, values in made.items()]
    inner = {"nothing": None, "variants": variants, "prompts": [f"p{i}" for i in range(40)]}
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
    assert verdict(parts("low-rank", low_rank(0.2, 0.4, 0.05))) == "open"  # half of the whole
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
