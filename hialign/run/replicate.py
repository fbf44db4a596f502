"""`hialign replicate`: a registered study once more with a new seed, beside what was published."""

from collections.abc import Sequence

import yaml

from hialign.records import files
from hialign.report.replication import repeated
from hialign.report.replication.repeated import Repeated
from hialign.run import workflow
from hialign.statistics.intervals import interval_text
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Study, load_study


def replicate(name: str, seed: int | None, cores: int, dry_run: bool = False) -> None:
    """Train and test the study called `name` with a new seed, and say whether its result holds.

    The new seed's files lie beside those of the others, in `outputs/<study>/…/seed-<n>/`. What is
    done is not done again, so the same command goes on where it was stopped.

    Args:
        name: a registered study of several seeds. Records of two of them have to be there, in its
            outputs or published.
        seed: the next unused whole number by default.
        cores: how many cells may run at once.
        dry_run: only say what would run.

    Raises:
        HialignError: if the study is not registered or has that seed, if there is nothing to compare
            with, or if a job fails.
    """
    study = load_study(name).whole
    chosen = repeated.next_seed(study) if seed is None else seed
    repeated.check_replicable(study, chosen)
    copy = paths.study_dir(study.name) / f"replication-{chosen}.yml"
    settings = repeated.with_seed(study, chosen).model_dump(mode="json")
    with files.whole_file(copy) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    workflow.reproduce(str(copy), cores, dry_run=dry_run, with_book=False, seed=str(chosen))
    if not dry_run:
        show(study, chosen, repeated.repeated(study, chosen))


def show(study: Study, seed: int, rows: Sequence[Repeated]) -> None:
    """Print the headline tests (nats, with 95% intervals) beside the new seed, and whether they hold."""
    if not rows:
        raise HialignError(
            f"study {study.name} has no headline test to compare seed {seed} with, because nothing was "
            "learned in it"
        )
    for row in rows:
        about = f"{row.model}, {row.name}" if len(study.models) > 1 else row.name
        print(f"{about}: {'holds' if row.holds else 'does not hold'}")
        published = _estimate(row.published, row.published_interval)
        print(f"  published   {published}: {row.published_verdict}")
        where = "inside" if row.inside else "outside"
        expected = f"{where} {interval_text(row.low, row.high)}, where a new seed should fall"
        sign = ", with the other sign" if row.same_sign is False else ""
        print(f"  seed {seed:<6} {_signed(row.new)}: {expected}{sign}")
        together = _estimate(row.together, row.together_interval)
        print(f"  all seeds   {together}: {row.together_verdict}")
    print(sentence(seed, rows))


def sentence(seed: int, rows: Sequence[Repeated]) -> str:
    """Whether the headline tests hold, in words."""
    failed = [row for row in rows if not row.holds]
    if not failed:
        return (
            f"The published result holds with seed {seed}: every estimate lies where a new seed should, "
            "with the published sign, and all seeds together give the published verdicts."
        )
    parts = [f"{row.name} ({_why(row)})" for row in failed]
    held = len(rows) - len(failed)
    return f"{held} of {len(rows)} headline tests hold with seed {seed}. These do not: {'; '.join(parts)}."


def _why(row: Repeated) -> str:
    """Why a test does not hold."""
    reasons = []
    if not row.inside:
        reasons.append("the new seed is outside the range where it should fall")
    if row.same_sign is False:
        reasons.append("it has the other sign")
    if row.together_verdict != row.published_verdict:
        reasons.append(
            f"all seeds together: {row.together_verdict}, published: {row.published_verdict}"
        )
    return ", ".join(reasons)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _estimate(mean: float, ends: tuple[float | None, float | None]) -> str:
    text = interval_text(*ends)
    return f"{_signed(mean)} ({text})" if text else _signed(mean)
