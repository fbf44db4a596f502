"""One more seed beside those that were published: does the registered result hold?

Each headline test is asked three things of the new seed. Does its estimate have the published sign?
Does it lie in the range where a new seed should fall? That is the prediction interval of Student's t
from the published seeds, for the same held-out pairs. And what does the analysis of all seeds together
say?
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np

from hialign.report.replication import hypothesis, reading, registered, strategies
from hialign.report.replication.reading import Margins
from hialign.report.replication.tables import name_of
from hialign.report.replication.verdicts import LESS, MORE, Compared, Test
from hialign.statistics.comparisons import BETTER, WORSE
from hialign.statistics.intervals import CONFIDENCE
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings
from hialign.study.study import Study

SURE = (hypothesis.SUPPORTED, hypothesis.CONTRADICTED, MORE, LESS, BETTER, WORSE)


class Repeated(NamedTuple):
    """A headline test: as it was published, in the new seed, and over all seeds together.

    `low` and `high` are the ends of the range where a new seed should fall. `same_sign` is None where
    the published verdict has no sign.
    """

    model: str
    name: str
    published: float
    published_interval: tuple[float | None, float | None]
    published_verdict: str
    new: float
    low: float
    high: float
    same_sign: bool | None
    together: float
    together_interval: tuple[float | None, float | None]
    together_verdict: str

    @property
    def inside(self) -> bool:
        return self.low <= self.new <= self.high

    @property
    def holds(self) -> bool:
        """Whether the new seed agrees, and all seeds together have the published verdict."""
        agrees = self.inside and self.same_sign is not False
        return agrees and self.together_verdict == self.published_verdict


def next_seed(study: Study) -> int:
    """The lowest whole number above all seeds of the study."""
    return max([*(study.whole.seeds or [0]), *study.whole.shuffled_seeds]) + 1


def with_seed(study: Study, seed: int) -> Study:
    """The study with one more seed, under its own name."""
    whole = study.whole
    return whole.model_copy(update={"seeds": [*(whole.seeds or []), seed]})


def check_replicable(study: Study, seed: int) -> None:
    """Refuse a study that is not registered, has too few seeds with records, or has that seed."""
    whole = study.whole
    if registered.analysis_of(whole) is None:
        raise HialignError(
            f"study {whole.name} has no registration ({whole.name}.registered.md beside it or in "
            "studies/), so there is no registered analysis to repeat: `hialign reproduce` runs it"
        )
    if seed in (whole.seeds or []):
        raise HialignError(
            f"seed {seed} is one of study {whole.name}'s own: give another, such as {next_seed(whole)}"
        )
    with _published(whole):
        there = registered.seeds_there(whole)
    if there < 2:
        raise HialignError(
            f"there are records of {there} seeds of study {whole.name}, made with its present "
            "settings, where two are needed: run it, or fetch outputs/published/"
        )


def repeated(study: Study, seed: int) -> list[Repeated]:
    """The headline tests of a study beside those of the new seed, model by model."""
    whole, more = study.whole, with_seed(study, seed)
    rows: list[Repeated] = []
    for model in whole.models:
        with _published(whole):
            old = _read(whole, model)
        new = [_only(margins, f"seed-{seed}") for margins in _read(more, model)]
        if not all(new):
            raise HialignError(
                f"seed {seed} of study {whole.name} has no records yet for {model.label}"
            )
        both = [joined(a, b) for a, b in zip(old, new, strict=True)]
        rows += _compared(whole, model, old, both)
    return rows


def joined(ours: Margins, theirs: Margins) -> Margins:
    """Two sets of seeds at the pairs that both have, and the training sets and blocks of both."""
    at = {pair.id: i for i, pair in enumerate(theirs.pairs)}
    places = [i for i, pair in enumerate(ours.pairs) if pair.id in at]
    others = [at[ours.pairs[i].id] for i in places]
    values = {key: matrix[:, places] for key, matrix in ours.values.items()}
    for key in [key for key in values if not key[2]]:
        if key in theirs.values:
            values[key] = np.concatenate([values[key], theirs.values[key][:, others]])
        else:
            del values[key]
    real = [*ours.seeds.real, *theirs.seeds.real]
    seeds = ours.seeds._replace(real=real, wanted=ours.seeds.wanted + len(theirs.seeds.real))
    return Margins([ours.pairs[i] for i in places], seeds, values)


def prediction(by_seed: Sequence[float]) -> tuple[float, float]:
    """Where the estimate of a new seed falls with 95% probability, by Student's t."""
    from scipy.stats import t

    many = len(by_seed)
    mean, spread = float(np.mean(by_seed)), float(np.std(by_seed, ddof=1))
    half = t.ppf((1 + CONFIDENCE) / 2, many - 1) * spread * np.sqrt(1 + 1 / many)
    return mean - float(half), mean + float(half)


# --- reading -------------------------------------------------------------------------------------


def _published(study: Study) -> AbstractContextManager[None]:
    """Where more of the study's own seeds have records: in its outputs, or in the published folder."""
    for file in registered.published_studies():
        if file.parent.name == paths.slug(study.name):
            here = registered.seeds_there(study)
            with paths.outputs_at(file.parent.parent):
                there = registered.seeds_there(study)
            return paths.outputs_at(file.parent.parent) if there > here else nullcontext()
    return nullcontext()


def _read(study: Study, model: ModelSettings) -> list[Margins]:
    """What the analysis of the study starts from."""
    of_cells = reading.evaluated(study, model)
    if registered.analysis_of(study) == registered.STRATEGIES:
        return [of_cells]
    return [reading.trained_alone(study, model), of_cells]


def _only(margins: Margins, seed: str) -> Margins:
    return margins.some_seeds([one for one in margins.seeds.real if one == seed])


# --- comparing -----------------------------------------------------------------------------------


def _compared(
    study: Study,
    model: ModelSettings,
    old: Sequence[Margins],
    both: Sequence[Margins],
) -> list[Repeated]:
    """The headline tests, row by row, of the published seeds and of all together."""
    pairs: list[tuple[str, Compared | Test, Compared | Test]] = []
    if len(old) == 1:
        before, after = (strategies.analyse(study, model, one[0]) for one in (old, both))
        for row, again in zip(before.contrasts, after.contrasts, strict=True):
            pairs.append((f"{name_of(row['block'])} minus {name_of(row['reference'])}", row, again))
    else:
        first, last = (hypothesis.analyse(study, model, *one) for one in (old, both))
        if first.primary is not None:
            objectives = first.primary["name"].split(", ")
            whole = hypothesis.primary_test(both[0], objectives)
            if last.primary is None:
                whole["verdict"] = hypothesis.NO_TEST
            pairs.append((f"interaction of {first.primary['name']}", first.primary, whole))
        alone = [[t for t in f.secondary if t["family"] == "1"] for f in (first, last)]
        pairs += [(f"{a['name']}, own third", a, b) for a, b in zip(*alone, strict=True)]
    return [_row(model, *pair) for pair in pairs]


def _row(
    model: ModelSettings, name: str, before: Compared | Test, after: Compared | Test
) -> Repeated:
    new = after["by_seed"][-1]
    sure = before["verdict"] in SURE
    return Repeated(
        model.label,
        name,
        before["mean"],
        (before["low"], before["high"]),
        before["verdict"],
        new,
        *prediction(before["by_seed"]),
        new * before["mean"] > 0 if sure else None,
        after["mean"],
        (after["low"], after["high"]),
        after["verdict"],
    )
