"""What the probes' records say of the claims that rest on them: the parts that decide each.

What supports and what contradicts a claim was put down in book/claims.yml, in words, before any probe
existed; a function here computes it. A study with several models has the parts of each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hialign.records import frames
from hialign.report.claims.material import NAN, Part, Untested
from hialign.statistics.comparisons import above, signed_rank
from hialign.statistics.intervals import pooled_interval
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
    found = frames.probes(study, probe)
    if not found:
        raise Untested(f"this study has no records of the {probe} probe")
    several = len(study.models) > 1
    parts = []
    for label, record in found.items():
        about = f"{label}: " if several else ""
        parts += STATISTICS[statistic](record, about, study.evaluation.resamples)
    return parts


def _inequality(record: Record, about: str, draws: int) -> list[Part]:
    return [
        Part(
            f"{about}{row['objective']}: {row['block']} over {row['other']} "
            f"(at least {LEAST_RATIO:g}, interval above 1)",
            *(row["detrended"], row["detrended_low"], row["detrended_high"], 1.0),
            *(row["p_above"], row["p_below"]),
            n=row["n"],
            least=LEAST_RATIO,
        )
        for row in record["inequality"]
    ]


# --- ILA -----------------------------------------------------------------------------------------


def _overlap(record: Record, about: str, draws: int) -> list[Part]:
    """Each two data sets under the first loss, and the mean over them.

    Estimates and intervals are over seeds; p is that of the rankings by the mean over seeds, and
    exact, as what two random sets share is hypergeometric.
    """
    from scipy.stats import hypergeom

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
    drawn = _variants(record, f"{FREEZE} random ")
    ours = _margins(record, FREEZE)
    prompts = record["interventions"]["prompts"]
    what = f"{about}margin, without the least important 25% minus"
    first = _paired(f"{what} all", ours - _margins(record, "full"), prompts, draws)
    by_chance = np.mean([_margins(record, name) for name in drawn], axis=0)
    second = _paired(f"{what} as many at random", ours - by_chance, prompts, draws)
    return [first, _one_sided(second)]


def _few(record: Record, about: str, draws: int) -> list[Part]:
    hits = [0.5 + 0.5 * np.sign(_margins(record, name)) for name in (FEW, "full")]
    prompts = record["interventions"]["prompts"]
    what = f"{about}accuracy, the top 30% alone minus all"
    return [_paired(what, hits[0] - hits[1], prompts, draws, bound=-LITTLE)]


def _variants(record: Record, start: str) -> list[str]:
    return [v["name"] for v in _made(record) if v["name"].startswith(start)]


def _made(record: Record) -> list[dict[str, Any]]:
    if record["interventions"]["nothing"]:
        raise Untested(str(record["interventions"]["nothing"]))
    return list(record["interventions"]["variants"])


def _margins(record: Record, name: str) -> np.ndarray:
    found = [v["margins"] for v in _made(record) if v["name"] == name]
    if not found:
        raise Untested(f"{name} was not among ILA's interventions")
    return np.array(found[0])


# --- Alignment is Localized ----------------------------------------------------------------------


def _middle(record: Record, about: str, draws: int) -> list[Part]:
    """Recovery by one layer's contribution, mean of the middle third minus that of each other, as a
    share of the whole difference; in both directions, which a contradiction needs as well."""
    prompts = [pair["prompt"] for pair in record["pairs"]]
    split = split_layers(record["depth"])
    parts = []
    for other in ("local", "global"):
        both = []
        for direction, words in ((INTO_BASE, "tuned into base"), (INTO_TUNED, "base into tuned")):
            over, whole = _gains(record, direction)
            lead = over[list(split["mid"])].mean(axis=0) - over[list(split[other])].mean(axis=0)
            what = f"{about}mid minus {other}, {words}"
            both.append(_paired(what, lead / whole, prompts, draws))
        reverse = all(part.refutes for part in both)
        against = max(part.p_against for part in both) if reverse else 1.0
        parts += [_with_against(part, against) for part in both]
    return parts


def _gains(record: Record, direction: str) -> tuple[np.ndarray, float]:
    """How far each layer's contribution brings a pair from the receiver's m towards the donor's
    (layers x pairs, nats), and the mean of the whole way."""
    if record["nothing"]:
        raise Untested(str(record["nothing"]))
    base, tuned = (np.array(record["unpatched"][side]["summed"]) for side in ("base", "tuned"))
    receiver, donor = (base, tuned) if direction == INTO_BASE else (tuned, base)
    patched = np.array(record["margins"][direction]["contribution"]["summed"])
    return gained(patched, receiver, donor), float(gained(donor, receiver, donor).mean())


def _few_layers(record: Record, about: str, draws: int) -> list[Part]:
    found = record["lasso"]
    if found["stability"] is None:
        raise Untested(str(found["reason"]))
    share = len(found["stable"]) / record["depth"]
    decided = True if 0 < share <= FEW_LAYERS else False if share > MANY_LAYERS else None
    what = f"{about}layers kept in at least 80% of bootstrap samples, share of all"
    between = "" if decided is not None else found["reason"] or "none, or between 25% and 50%"
    return [Part(what, share, decided=decided, undecided=between, n=found["n"])]


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
    known = layer["margins"][INTO_BASE]
    ours = np.array(known["svd"][ranks.index(RANK)])
    whole = float(gained(tuned, base, tuned).mean())
    gain = gained(ours, base, tuned) - SHARE_OF_WHOLE * gained(known["svd"][-1], base, tuned)
    name = f"{about}layer {layer['layer']}: {RANK} dimensions minus"
    first = _paired(f"{name} {SHARE_OF_WHOLE:.0%} of the whole", gain / whole, prompts, draws)
    parts = [_one_sided(first)]
    for control in ("random_subspace", "random_vector", "shuffled_pairs"):
        by_chance = gained(known[control][ranks.index(RANK)], base, tuned)
        lead = (gained(ours, base, tuned) - by_chance) / whole
        part = _paired(f"{name} {control.replace('_', ' ')}", lead, prompts, draws)
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


def _paired(
    what: str, values: np.ndarray, prompts: Sequence[str], draws: int, bound: float = 0.0
) -> Part:
    """The mean of differences a pair; tests over prompts' means: by ranks, or by t at a bound."""
    low, high = pooled_interval(values.tolist(), prompts, draws)
    means = pd.Series(values).groupby(list(prompts)).mean().to_list()
    if bound:
        tests = above(means, bound), above([-v for v in means], -bound)
    else:
        tests = signed_rank(means, "greater")[0], signed_rank(means, "less")[0]
    std = float(np.std(means, ddof=1)) if len(means) > 1 else NAN
    return Part(what, float(values.mean()), low, high, bound, *tests, n=len(means), std=std)


def _with_against(part: Part, p: float) -> Part:
    return replace(part, p_against=p)


def _one_sided(part: Part) -> Part:
    """A part that a claim needs, but whose reverse does not contradict it."""
    return _with_against(part, 1.0)


def _number(value: float | None) -> float:
    return NAN if value is None else value
