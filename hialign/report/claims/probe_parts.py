"""What the probes' records say of the claims that rest on them: the parts that decide each.

What supports a claim and what contradicts it was written down in book/claims.yml before any probe
existed. A function here computes each. A study with several models has the parts of each model.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from hialign.records import frames
from hialign.report.claims.material import NAN, Part, Untested, paired
from hialign.statistics.margins import gained
from hialign.study.blocks import split_layers
from hialign.study.study import Study

Record = dict[str, Any]
LEAST_RATIO = 2.0  # v2-hypothesis-2: the paper's "much greater"
LEAST_OVERLAP = 0.85  # ila-overlap: "nearly nine tenths"
LITTLE = 0.05  # ila-few-suffice: of the pairs
FREEZE, FEW = "freeze 25%", "top 30%"  # ILA's interventions
SHARE_OF_WHOLE, RANK = 0.8, 4  # localized-low-rank
FEW_LAYERS, MANY_LAYERS = 0.25, 0.5  # localized-few-layers, of all layers
INTO_BASE, INTO_TUNED = "tuned_into_base", "base_into_tuned"


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
            f"{about}{row['objective']}: {row['block']} over {row['other']} "
            f"(at least {LEAST_RATIO:g}, interval above 1)",
            *(row["detrended"], _number(row["detrended_low"])),
            *(_number(row["detrended_high"]), 1.0),
            *(row["p_above"], row["p_below"]),
            n=row["n"],
            least=LEAST_RATIO,
        )
        for row in record["inequality"]
    ]


# --- ILA -----------------------------------------------------------------------------------------


def _overlap(record: Record, about: str, draws: int) -> list[Part]:
    """Each two data sets under the first loss, and the mean over them.

    Estimates and intervals are over seeds. The p is that of the rankings by the mean over seeds. It
    is exact, since what two random sets share is hypergeometric.
    """
    rows = [row for row in record["overlaps"] if row["percent"] == 75]
    rows = [row for row in rows if row["loss"] == rows[0]["loss"]]
    if not rows or any(row["nothing"] for row in rows):
        raise Untested("fewer than two data sets, or one whose matrices could not be ranked")
    parts, total = [], len(record["matrices"])
    for row in rows:
        size, overlap = row["size"], row["of_means"]
        shared = round(2 * size * overlap / (1 + overlap))
        drawn = hypergeom(total, size, size)
        parts.append(
            Part(
                f"{about}{row['datasets'][0]} and {row['datasets'][1]} ({row['loss']})",
                *(row["mean"], _number(row["low"]), _number(row["high"])),
                *(row["chance"]["quantile95"], drawn.sf(shared - 1), drawn.cdf(shared)),
                n=row["n"],
            )
        )
    mean = float(np.mean([row["mean"] for row in rows]))
    what = f"{about}mean of all (at least {LEAST_OVERLAP:g})"
    held = mean >= LEAST_OVERLAP
    return [*parts, Part(what, mean, mean, mean, LEAST_OVERLAP, float(not held), 1.0, n=len(rows))]


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
    """Mean recovery by one layer's contribution, the middle third minus each other third.

    It is a share of the whole difference, in both directions of patching. A contradiction needs both
    directions as well.
    """
    prompts = [pair["prompt"] for pair in record["pairs"]]
    split = split_layers(record["depth"])
    parts = []
    for other in ("local", "global"):
        both = []
        for direction, words in ((INTO_BASE, "tuned into base"), (INTO_TUNED, "base into tuned")):
            over, whole = _gains(record, direction)
            lead = over[list(split["mid"])].mean(axis=0) - over[list(split[other])].mean(axis=0)
            what = f"{about}mid minus {other}, {words}"
            both.append(paired(what, lead / whole, prompts))
        reverse = all(part.refutes for part in both)
        against = max(part.p_against for part in both) if reverse else 1.0
        parts += [replace(part, p_against=against) for part in both]
    return parts


def _gains(record: Record, direction: str) -> tuple[np.ndarray, float]:
    """How far a layer's contribution brings a pair from the receiver's margin towards the donor's.

    Returns the gains (layers x pairs, nats), and the mean of the whole way.
    """
    if record["nothing"]:
        raise Untested(str(record["nothing"]))
    base, tuned = (np.array(record["unpatched"][side]["summed"]) for side in ("base", "tuned"))
    receiver, donor = (base, tuned) if direction == INTO_BASE else (tuned, base)
    patched = np.array(record["margins"][direction]["contribution"]["summed"])
    return gained(patched, receiver, donor), float(gained(donor, receiver, donor).mean())


def _few_layers(record: Record, about: str, draws: int) -> list[Part]:
    lasso = record["lasso"]
    if lasso["stability"] is None:
        raise Untested(str(lasso["reason"]))
    share = len(lasso["stable"]) / record["depth"]
    decided = True if 0 < share <= FEW_LAYERS else False if share > MANY_LAYERS else None
    what = f"{about}layers kept in at least 80% of bootstrap samples, share of all"
    between = "" if decided is not None else lasso["reason"] or "none, or between 25% and 50%"
    return [Part(what, share, decided=decided, undecided=between, n=lasso["n"])]


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
    parts = [_one_sided(first)]
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
    "few-layers": _few_layers,
    "low-rank": _low_rank,
}


# --- comparisons ---------------------------------------------------------------------------------


def _one_sided(part: Part) -> Part:
    """A part that a claim needs, but whose reverse does not contradict it."""
    return replace(part, p_against=1.0)


def _number(value: float | None) -> float:
    return NAN if value is None else value
