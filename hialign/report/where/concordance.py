"""Concordance: every measure of where alignment happens, on one axis of layers, for one model.

The measures are about different things. `gradient` says in which layers the gradients of preferences
have more in common than those of labels by chance. `norms`, a control, says how large single gradients
are, which no label decides. `update` says which weights were moved, and `ila` which of them count.
`patching` says what a layer's tuned weights add to the preference. `tuning` says what a layer gains
when it is tuned alone. `spectrum` is a control, too: it looks at the base model's weights and at no
preference.

The rule for the answer was fixed beforehand. A measure points to a third if that third has the
largest share per layer, and if its lead over each other third is above zero by the 95% interval over
prompts. Only a mean over pairs has such an interval: `patching` and `tuning`. `gradient` has a
probability for each third instead, and points to one that is 95% probable
(`hialign.statistics.evidence`). A third is the answer if at least three measures point, and all that
point do so to this third. Otherwise there is no answer.

`patching` is signed, and has a null: the same measure of random adapters of the same norms. Its leads
are of mean effects, not of shares, and have to be above what 97.5% of random adapters give, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, rankdata, spearmanr

from hialign.records import frames
from hialign.records.frames import remembered
from hialign.report.display import Table
from hialign.report.where import swaps
from hialign.report.where.records import Record
from hialign.statistics.intervals import ALPHA, FEWEST, expanded_tail
from hialign.statistics.nulls import null_p
from hialign.study.blocks import share_of, split_layers
from hialign.study.study import Study

TOP = 30  # per cent of the layers that stand for a measure which only ranks
ENOUGH = 3  # measures that have to point to the same third
DRAWS = 2_000


@dataclass(frozen=True)
class Measure:
    """One number per layer.

    A measure that is a mean over pairs has `draws`, its values for each pair (pairs x layers), and
    the `prompts` of the pairs. Without them it has no interval. A signed measure, such as nats towards
    the human preference, has a `null`: the scores of random models (K x layers).
    """

    name: str
    scores: tuple[float, ...]
    draws: np.ndarray | None = None
    prompts: tuple[str, ...] = ()
    ranks_only: bool = False  # its values have no zero: only the order means anything
    control: bool = False
    null: np.ndarray | None = None
    points: str | None = None  # the third that its record points to. None: the intervals decide.

    def shares(self) -> dict[str, float]:
        """The share of each third, or NaN where no layer has any."""
        return self._shares(np.array(self.scores))

    def resampled(self, seed: int = 42) -> np.ndarray | None:
        """The shares (draws x thirds) in bootstrap samples of prompts."""
        scores = self.resampled_scores(seed)
        if scores is None:
            return None
        return np.array([list(self._shares(drawn).values()) for drawn in scores])

    def resampled_scores(self, seed: int = 42) -> np.ndarray | None:
        """The scores (draws x layers) in bootstrap samples of prompts, times the number of pairs."""
        if self.draws is None or len(set(self.prompts)) < 2:
            return None
        _, index = np.unique(self.prompts, return_inverse=True)
        sums = np.zeros((index.max() + 1, self.draws.shape[1]))
        np.add.at(sums, index, self.draws)
        n = len(sums)
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        return np.asarray(times @ sums)

    def _shares(self, scores: np.ndarray) -> dict[str, float]:
        weight = np.maximum(scores, 0.0)
        if self.ranks_only:
            best = np.argsort(-scores, kind="stable")[: share_of(TOP, len(scores))]
            weight = np.zeros(len(scores))
            weight[best] = 1.0
        total = weight.sum()
        return {
            block: float(weight[list(layers)].sum() / total) if total > 0 else float("nan")
            for block, layers in split_layers(len(weight)).items()
        }

    def ends(self, values: np.ndarray) -> tuple[float, float]:
        """The 95% interval of a number of `resampled`: percentiles, expanded for few prompts.

        NaN for fewer than five prompts.
        """
        many = len(set(self.prompts))
        if many < FEWEST:
            return float("nan"), float("nan")
        tail = expanded_tail(many)
        low, high = np.nanquantile(values, [tail, 1 - tail])
        return float(low), float(high)


# --- the measures of a model ---------------------------------------------------------------------


def measures(study: Study, label: str) -> tuple[list[Measure], dict[str, str]]:
    """The measures of the model with that label, and why each of the others is lacking."""
    measured, lacking = [], {}
    for name, read in READ.items():
        probe = PROBE_OF.get(name, name)
        record = frames.probes(study, probe).get(label)
        if record is None:
            lacking[name] = f"the {probe} probe has not been run with the study's current settings"
            continue
        measure = read(record)
        if isinstance(measure, str):
            lacking[name] = measure
        else:
            measured.append(measure)
    return measured, lacking


def _gradient(record: Record) -> Measure | str:
    """The signal of each layer over its standard deviation under flipped labels."""
    if "signal" not in record:
        return "its record has the norms of single gradients alone, and no label changes these"
    of_layers, (evidence, *_) = (
        [row for row in record["signal"][part] if row["source"] == "preference"]
        for part in ("layers", "evidence")
    )
    scores = tuple(row["over_chance"] for row in of_layers)
    raw = record["signal"]["raw"]["preference"]
    if raw["influences"] is None:  # two prompts
        return Measure("gradient", scores, points=evidence["points"])
    spread = np.array([row["flipped_std"] for row in of_layers])
    draws = np.array(raw["influences"]) / np.where(spread > 0, spread, 1)
    return Measure("gradient", scores, draws, tuple(raw["prompts"]), points=evidence["points"])


def _norms(record: Record) -> Measure:
    """The mean norm of single pairs' gradients, which is the network's trend with depth."""
    norms = np.array([row["norms"] for row in record["pairs"]["preference"]])
    return Measure("norms", tuple(norms.mean(axis=0)), control=True)


def _ila(record: Record) -> Measure | str:
    if record["layer_scores"] is None:
        return str(record["nothing"])
    return Measure("ila", tuple(record["layer_scores"]), ranks_only=True)


def _patching(record: Record) -> Measure | str:
    if "swaps" not in record:
        return (
            "the record has patched activations alone, which do not see which response people "
            "preferred: the probe has to run again"
        )
    if record["layer_scores"] is None:
        return str(record["layer_scores_reason"])
    null = swaps.null(record)
    if null is None:
        return "there are fewer than two random adapters to compare with: raise null_draws"
    effects, prompts = swaps.effects(record), tuple(swaps.prompts(record))
    return Measure("patching", tuple(effects.mean(axis=0)), effects, prompts, null=null)


def _tuning(record: Record) -> Measure | str:
    if record["layer_scores"] is None:
        return "no layer was tuned alone, or none moved a margin"
    draws = np.array([row["margins"] for row in record["singles"]]).T
    prompts = tuple(pair["prompt"] for pair in record["pairs"])
    return Measure("tuning", tuple(draws.mean(axis=0)), draws, prompts)


def _update(record: Record) -> Measure:
    return Measure("update", tuple(record["update"]))


def _spectrum(record: Record) -> Measure:
    return Measure("spectrum", tuple(record["spectrum"]), ranks_only=True, control=True)


READ: dict[str, Callable[[Record], Measure | str]] = {
    "gradient": _gradient,
    "norms": _norms,
    "update": _update,
    "ila": _ila,
    "patching": _patching,
    "tuning": _tuning,
    "spectrum": _spectrum,
}
PROBE_OF = {"gradient": "gradients", "norms": "gradients", "update": "weights"}
PROBE_OF |= {"spectrum": "weights", "tuning": "sweep"}


# --- what they say together ----------------------------------------------------------------------


@remembered
def shares_by_measure(study: Study) -> Table:
    """One row per model and measure: the share of each third, its interval, where it points.

    Of a measure that is lacking, the row says why.
    """
    rows: list[Record] = []
    for model in study.models:
        measured, lacking = measures(study, model.label)
        for measure in measured:
            shares, drawn = measure.shares(), measure.resampled()
            row: Record = {"model": model.label, "measure": measure.name}
            row |= {"control": measure.control, "why": ""}
            for i, (block, share) in enumerate(shares.items()):
                row[block] = share
                if drawn is not None and not np.isnan(share):
                    row[f"{block}_low"], row[f"{block}_high"] = measure.ends(drawn[:, i])
            rows.append(row | {"points": _points(measure, shares, drawn)})
        for name, why in lacking.items():
            rows.append({"model": model.label, "measure": name, "points": "", "why": why})
    columns = [f"{b}{end}" for b in split_layers(3) for end in ("", "_low", "_high")]
    return Table(rows, columns=["model", "measure", "control", *columns, "points", "why"])


def _points(measure: Measure, shares: dict[str, float], drawn: np.ndarray | None) -> str:
    """The third that leads each other one by the intervals of the leads, or none.

    Thirds may differ by a layer, so the share per layer decides which one leads.
    """
    if measure.points is not None:
        return measure.points
    names, values = list(shares), np.array(list(shares.values()))
    if drawn is None or np.isnan(values).any():  # no interval, or no layer has any
        return ""
    if measure.null is not None:
        return _beyond_null(measure, measure.null)
    sizes = np.array([len(inside) for inside in split_layers(len(measure.scores)).values()])
    best, per_layer = int(np.argmax(values / sizes)), drawn / sizes
    leads = [per_layer[:, best] - per_layer[:, i] for i in range(len(names)) if i != best]
    return names[best] if all(measure.ends(lead)[0] > 0 for lead in leads) else ""


def _beyond_null(measure: Measure, null: np.ndarray) -> str:
    """The third whose mean score leads each other one, over prompts and beyond the null, or none.

    A third that moves away from the human preference is never named.
    """
    scores, drawn = np.array(measure.scores), measure.resampled_scores()
    assert drawn is not None
    for third, layers in split_layers(len(scores)).items():
        if scores[list(layers)].mean() <= 0:
            continue
        leads = swaps.leads(len(scores), third).values()
        over_prompts = all(measure.ends(drawn @ lead)[0] > 0 for lead in leads)
        if over_prompts and all(
            null_p(float(scores @ lead), null, lead, "greater") < ALPHA / 2 for lead in leads
        ):
            return third
    return ""


def answer(study: Study, label: str) -> str:
    """Where alignment happens in a model by the rule above, in a sentence, or why that is open."""
    table = shares_by_measure(study)
    rows = table[(table.model == label) & (table.why == "") & (table.control != True)]  # noqa: E712
    if rows.empty:
        return f"No probe of {label} has been run."
    pointing = rows[rows.points != ""]
    by_third = {
        block: ", ".join(pointing[pointing.points == block].measure)
        for block in split_layers(3)
        if block in set(pointing.points)
    }
    if len(by_third) == 1 and len(pointing) >= ENOUGH:
        ((block, names),) = by_third.items()
        return (
            f"For {label}, this run points to the {block} third. {len(pointing)} measures point to a "
            f"third, and all of them to this one ({names})."
        )
    pointed = [
        f"{names} point{'' if ', ' in names else 's'} to the {block} third"
        for block, names in by_third.items()
    ]
    if len(by_third) > 1:
        return (
            f"For {label}, this run gives no single answer, because the measures disagree: "
            f"{'; '.join(pointed)}."
        )
    return (
        f"For {label}, this run gives no answer. At least {ENOUGH} measures would have to point to one "
        f"third, but {f'only {pointed[0]}' if pointed else 'none points to any'}."
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, float]:
    """Spearman's rho, its 95% bootstrap interval over layers (percentiles), p by circular shifts."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return (float("nan"),) * 4
    rho = float(spearmanr(x, y).statistic)

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        ranks = [rankdata(v, axis=-1) for v in (a, b)]
        centred = [r - r.mean(-1, keepdims=True) for r in ranks]
        over = (centred[0] * centred[1]).sum(-1)
        under = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
        with np.errstate(invalid="ignore"):
            return np.asarray(over / under)

    ends = bootstrap(
        (np.array(x), np.array(y)),
        statistic,
        paired=True,
        n_resamples=DRAWS,
        method="percentile",
        rng=np.random.default_rng(42),
    ).confidence_interval
    shifted = [abs(spearmanr(x, np.roll(y, k)).statistic) for k in range(len(x))]
    p = float(np.mean([value >= abs(rho) - 1e-12 for value in shifted]))
    return rho, float(ends.low), float(ends.high), p
