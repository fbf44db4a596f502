"""What the probes' records say of the claims that rest on them: the parts that decide each.

What supports a claim and what contradicts it was written down in book/claims.yml before any probe
existed. A function here computes each. A study with several models has the parts of each model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import t

from hialign.records import frames
from hialign.report.claims.material import NAN, Part, Untested, paired
from hialign.report.where import swaps
from hialign.report.where.overlaps import chance_of
from hialign.statistics.comparisons import above
from hialign.statistics.margins import gained
from hialign.statistics.nulls import null_p
from hialign.study.study import Study

Record = dict[str, Any]
LEAST_RATIO = 2.0  # v2-hypothesis-2: the paper's "much greater"
LEAST_OVERLAP = 0.85  # ila-overlap: "nearly nine tenths"
LITTLE = 0.05  # ila-few-suffice: of the pairs
FREEZE, FEW = "freeze 25%", "top 30%"  # ILA's interventions
SHARE_OF_WHOLE, RANK = 0.8, 4  # localized-low-rank
INTO_BASE = "tuned_into_base"


def probe_parts(study: Study, probe: str, statistic: str) -> list[Part]:
    """The parts of a claim by its statistic, of every model that has been probed."""
    records = frames.probes(study, probe)
    if not records:
        raise Untested(f"this study has no records of the {probe} probe")
    several = len(study.models) > 1
    parts = []
    for label, record in records.items():
        about = f"{label}: " if several else ""
        parts += STATISTICS[statistic](record, about, study.evaluation.resamples)
    return parts


def _inequality(record: Record, about: str, draws: int) -> list[Part]:
    return [
        Part(
            f"{about}{row['objective']}: {row['block']} over {row['other']}",
            *(row["detrended"], _number(row["detrended_low"])),
            *(_number(row["detrended_high"]), 1.0),
            *(row["p_above"], _ratio_below(row, 1.0)),
            n=row["n"],
            threshold=LEAST_RATIO,
            p_short=_ratio_below(row, LEAST_RATIO),
        )
        for row in record["inequality"]
    ]


def _ratio_below(row: Record, bound: float) -> float:
    """p of the t-test over prompts that the mean log ratio is below that of `bound`.

    Permutations of objectives know no ratio but 1, and their p cannot be smaller than one over their
    number, which is too much for the smallest of all parts' p after the corrections.
    """
    mean, error = np.log(row["detrended"]), row["detrended_log_std"] / np.sqrt(row["n"])
    if not error:
        return float(not mean < np.log(bound))
    return float(t.cdf((mean - np.log(bound)) / error, row["n"] - 1))


# --- ILA -----------------------------------------------------------------------------------------


def _overlap(record: Record, about: str, draws: int) -> list[Part]:
    """Each two data sets under the first loss, and the mean over them.

    Estimates and intervals are over seeds. The p of each two data sets is that of the rankings by
    the mean over seeds. It is exact, by the distribution of random sets with as many matrices of
    each type. The mean over all data sets is held against the claim's own number, by a t-test over
    seeds.
    """
    rows = [row for row in record["overlaps"] if row["percent"] == 75]
    rows = [row for row in rows if row["loss"] == rows[0]["loss"]]
    if not rows or any(row["nothing"] for row in rows):
        raise Untested("fewer than two data sets, or one whose matrices could not be ranked")
    parts = []
    for row in rows:
        chance, overlap = chance_of(record, row), row["of_means"]
        parts.append(
            Part(
                f"{about}{row['datasets'][0]} and {row['datasets'][1]} ({row['loss']})",
                *(row["mean"], _number(row["low"]), _number(row["high"])),
                *(chance.quantile95, chance.at_least(overlap), chance.at_most(overlap)),
                n=row["n"],
            )
        )
    return [*parts, _mean_overlap(rows, f"{about}mean of all")]


def _mean_overlap(rows: Sequence[Record], what: str) -> Part:
    mean = float(np.mean([row["mean"] for row in rows]))
    by_seed = [np.mean(values) for values in zip(*(row["by_seed"] for row in rows), strict=False)]
    return Part(
        what,
        mean,
        bound=LEAST_OVERLAP,
        p_for=float(mean <= LEAST_OVERLAP),
        p_against=1.0,
        n=len(by_seed),
        threshold=LEAST_OVERLAP,
        p_short=above([-value for value in by_seed], -LEAST_OVERLAP),
    )


def _freezing(record: Record, about: str, draws: int) -> list[Part]:
    ours = _margins(record, FREEZE)
    prompts = record["interventions"]["prompts"]
    what = f"{about}margin, without the least important 25% minus"
    first = paired(f"{what} all", ours - _margins(record, "full"), prompts)
    names = [variant["name"] for variant in _made(record)]
    drawn = [name for name in names if name.startswith(f"{FREEZE} random ")]
    by_chance = np.mean([_margins(record, name) for name in drawn], axis=0)
    second = paired(f"{what} as many at random", ours - by_chance, prompts)
    return [first, _one_sided(second)]


def _few(record: Record, about: str, draws: int) -> list[Part]:
    hits = [0.5 + 0.5 * np.sign(_margins(record, name)) for name in (FEW, "full")]
    prompts = record["interventions"]["prompts"]
    what = f"{about}accuracy, the top 30% alone minus all"
    return [paired(what, hits[0] - hits[1], prompts, bound=-LITTLE)]


def _made(record: Record) -> list[dict[str, Any]]:
    if record["interventions"]["nothing"]:
        raise Untested(str(record["interventions"]["nothing"]))
    return list(record["interventions"]["variants"])


def _margins(record: Record, name: str) -> np.ndarray:
    for variant in _made(record):
        if variant["name"] == name:
            return np.array(variant["margins"])
    raise Untested(f"{name} was not among ILA's interventions")


# --- Alignment is Localized ----------------------------------------------------------------------


def _middle(record: Record, about: str, draws: int) -> list[Part]:
    """What one layer's tuned weights add, the middle third minus each other third (nats).

    Both ways of swapping count, and so do random adapters of the same norms: each p is the larger one
    of that over prompts and that among random adapters. A contradiction needs both ways as well.
    """
    if "swaps" not in record:
        raise Untested(
            "the record has patched activations alone, whose recovery is the same if chosen and "
            "rejected are exchanged"
        )
    prompts, parts = swaps.prompts(record), []
    for other in ("local", "global"):
        both = []
        for way, words in swaps.WAYS.items():
            effects, null = swaps.effects(record, way), swaps.null(record, way)
            if null is None:
                raise Untested("the record has fewer than two random adapters to compare with")
            lead = swaps.leads(record["depth"], "mid")[other]
            part = paired(f"{about}mid minus {other}, {words}", effects @ lead, prompts)
            above = null_p(part.estimate, null, lead, "greater")
            both.append(
                replace(
                    part,
                    p_for=max(part.p_for, above),
                    p_against=max(part.p_against, 1 - above),
                )
            )
        reverse = all(part.refutes for part in both)
        against = max(part.p_against for part in both) if reverse else 1.0
        parts += [replace(part, p_against=against) for part in both]
    return parts


def _low_rank(record: Record, about: str, draws: int) -> list[Part]:
    if record["rank"]["reason"]:
        raise Untested(str(record["rank"]["reason"]))
    layer, tested = record["rank"]["layers"][0], record["rank"]["tested"]
    ranks = [row["rank"] for row in layer["recovery"][INTO_BASE]["svd"]]
    if RANK not in ranks:
        raise Untested(f"rank {RANK} was not patched")
    place = {pair["id"]: i for i, pair in enumerate(record["pairs"])}
    at = [place[name] for name in tested]
    prompts = [record["pairs"][i]["prompt"] for i in at]
    base, tuned = (np.array(record["unpatched"][s]["summed"])[at] for s in ("base", "tuned"))
    patched = layer["margins"][INTO_BASE]
    ours = np.array(patched["svd"][ranks.index(RANK)])
    whole = float(gained(tuned, base, tuned).mean())
    gain = gained(ours, base, tuned) - SHARE_OF_WHOLE * gained(patched["svd"][-1], base, tuned)
    name = f"{about}layer {layer['layer']}: {RANK} dimensions minus"
    first = paired(f"{name} {SHARE_OF_WHOLE:.0%} of the whole", gain / whole, prompts)
    parts = [replace(first, threshold=0.0, p_short=first.p_against, p_against=1.0)]
    for control in ("random_subspace", "random_vector", "shuffled_pairs"):
        by_chance = gained(patched[control][ranks.index(RANK)], base, tuned)
        lead = (gained(ours, base, tuned) - by_chance) / whole
        part = paired(f"{name} {control.replace('_', ' ')}", lead, prompts)
        parts.append(part if control == "random_subspace" else _one_sided(part))
    return parts


STATISTICS: Mapping[str, Callable[[Record, str, int], list[Part]]] = {
    "inequality": _inequality,
    "overlap": _overlap,
    "freezing": _freezing,
    "few": _few,
    "middle": _middle,
    "low-rank": _low_rank,
}


# --- comparisons ---------------------------------------------------------------------------------


def _one_sided(part: Part) -> Part:
    """A part that a claim needs, but whose reverse does not contradict it."""
    return replace(part, p_against=1.0)


def _number(value: float | None) -> float:
    return NAN if value is None else value
