"""The headline numbers again, from the files of the records alone, with plain numpy.

Nothing of the package's reading or statistics is used here. The folds, the temperature, the log loss,
the analysis of variance and its interval are written out once more, in other ways where there are any.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.report.replication import hypothesis, registered, strategies
from hialign.study import paths
from hialign.study.study import Study, load_study

OWN = {"grammar": "local", "coherence": "mid", "factuality": "global"}
Table = dict[str, dict[str, dict[str, float]]]  # seed -> block -> pair -> margin


# --- from files ----------------------------------------------------------------------------------


def evaluated(folder: Path) -> tuple[Table, dict[str, dict[str, Any]]]:
    """Margins of every block and seed, and what is known of a pair, from `evaluation.json`."""
    margins: Table = {}
    about: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/*/evaluation.json")):
        record = json.loads(file.read_text())
        if file.parts[-3] == "base":
            continue
        own = margins.setdefault(file.parts[-2], {}).setdefault(file.parts[-3], {})
        for row in record["pairs"]:
            gained = row["chosen"] - row["chosen_base"] - (row["rejected"] - row["rejected_base"])
            own[row["id"]] = record["beta"] * gained
            about[row["id"]] = row
    return margins, about


def trained_alone(folder: Path, objective: str) -> Table:
    """Margins of the blocks that were trained on one objective, from `matrix.json`."""
    margins: Table = {}
    for file in sorted(folder.glob("probes/*/matrix.json")):
        record = json.loads(file.read_text())
        ids = [pair["id"] for pair in record["pairs"]]
        margins[file.parts[-2]] = {
            block: dict(zip(ids, values[0], strict=True))
            for block, values in record["margins"][objective].items()
        }
    return margins


def ids_of(folder: Path, group: str, objective: str) -> dict[str, str]:
    """The pairs of a group and an objective in the matrix: prompt -> id."""
    file = next(iter(sorted(folder.glob("probes/*/matrix.json"))))
    rows = json.loads(file.read_text())["pairs"]
    return {r["prompt"]: r["id"] for r in rows if r["set"] == group and r["objective"] == objective}


# --- plain numpy ---------------------------------------------------------------------------------


def gains(margins: list[float], labels: list[str], folds: int = 5) -> np.ndarray:
    """log 2 minus the log loss at a slope that other conversations gave, found by bisection."""
    groups = sorted(set(labels))
    drawn = np.random.RandomState(42).permutation(len(groups))
    fold_of = {}
    for fold, inside in enumerate(np.array_split(drawn, min(folds, len(groups)))):
        fold_of |= {groups[i]: fold for i in inside}
    fold = np.array([fold_of[label] for label in labels])
    x = np.array(margins)
    found = np.empty(len(x))
    for number in set(fold.tolist()):
        fitted = x[fold != number]
        slope = 0.0
        if fitted.sum() > 0:
            size = np.sqrt(np.mean(fitted**2))
            every = np.concatenate([fitted, [size, -size]])  # the prior: one right, one wrong
            low, high = 0.0, 1000.0 / size
            for _ in range(200):
                slope = (low + high) / 2
                uphill = np.sum(every / (1 + np.exp(np.clip(slope * every, -700, 700)))) > 0
                low, high = (slope, high) if uphill else (low, slope)
        inside = fold == number
        found[inside] = np.log(2) - np.log1p(np.exp(np.clip(-slope * x[inside], -700, 700)))
    return found


def interval(values: np.ndarray, labels: list[str]) -> tuple[float, float, float]:
    """Mean and 95% interval of a two-way random model, by drawing its mean squares 400,000 times."""
    mean = values.mean()
    names = sorted(set(labels))
    table = np.zeros(
        (len(values), len(names))
    )  # every pair counts alike, whatever its conversation
    for row, of_seed in enumerate(values):
        for value, label in zip(of_seed, labels, strict=True):
            table[row, names.index(label)] += (value - mean) * len(names) / len(labels)
    seeds, many = table.shape
    of_seeds = many * (table.mean(1) ** 2).sum() / (seeds - 1)
    of_groups = seeds * (table.mean(0) ** 2).sum() / (many - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True)
    residual = (rest**2).sum() / ((seeds - 1) * (many - 1))
    rng = np.random.default_rng(0)
    x = rng.chisquare(seeds - 1, 400_000) / (seeds - 1)
    y = rng.chisquare(many - 1, 400_000) / (many - 1)
    variance = np.maximum(of_seeds / x, residual) + np.maximum(of_groups / y - residual, 0)
    half = np.quantile(np.abs(rng.normal(size=400_000) * np.sqrt(variance / (seeds * many))), 0.95)
    return float(mean), float(mean - half), float(mean + half)


# --- the numbers ---------------------------------------------------------------------------------


def headline(folder: Path) -> dict[str, Any]:
    """Of `objectives`: each objective's advantage, the interaction, its margin, Full's accuracy."""
    _, about = evaluated(folder)
    found: dict[str, Any] = {}
    advantages, full = [], []
    prompts = list(ids_of(folder, "rules", "grammar"))
    for objective, own in OWN.items():
        ids = ids_of(folder, "rules", objective)
        by_seed = trained_alone(folder, objective)
        labels = [about[ids[p]]["conversation"] for p in prompts]
        real = [seed for seed in by_seed if seed.startswith("seed-")]

        def gained(
            block: str,
            by_seed: Table = by_seed,
            ids: Any = ids,
            real: Any = real,
            labels: Any = labels,
        ) -> np.ndarray:
            rows = [[by_seed[seed][block][ids[p]] for p in prompts] for seed in real]
            return np.array([gains(row, labels) for row in rows])

        others = [third for third in OWN.values() if third != own]
        advantage = gained(own) - (gained(others[0]) + gained(others[1])) / 2
        found[objective] = interval(advantage, labels)
        margins = np.array([[by_seed[s]["full"][ids[p]] for p in prompts] for s in real])
        found[f"accuracy of {objective}"] = float((margins > 0).mean())
        advantages.append(advantage)
        full.append(gained("full"))
    found["interaction"] = interval(np.mean(advantages, axis=0), labels)
    found["margin"] = float(np.mean(full) / 2)
    return found


def contrasts(folder: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Of a study of strategies: the contrasts that Full and Mid have with the thirds."""
    margins, about = evaluated(folder)
    real = [seed for seed in margins if seed.startswith("seed-")]
    ids = [key for key, row in about.items() if "all" in row["groups"]]
    labels = [about[key]["conversation"] for key in ids]
    gained = {
        block: np.array([gains([margins[s][block][k] for k in ids], labels) for s in real])
        for block in margins[real[0]]
    }
    pairs = [("full", third) for third in OWN.values()]
    pairs += [("mid", other) for other in ("local", "global", "random-third")]
    return {(a, b): interval(gained[a] - gained[b], labels) for a, b in pairs}


def close(found: Any, expected: tuple[float, float, float]) -> None:
    """The same mean, and an interval within the precision of drawing."""
    assert found["mean"] == pytest.approx(expected[0], abs=1e-6)
    half = (expected[2] - expected[1]) / 2
    assert found["high"] - found["mean"] == pytest.approx(half, rel=0.02)


def check_hypothesis(study: Study, folder: Path) -> None:
    expected = headline(folder)
    (found,) = hypothesis.findings(study).values()
    learned = [name for name, gate in found.gates.items() if gate["passed"]]
    for test in found.secondary:
        if test["family"] == "1" and test["name"] in OWN:
            close(test, expected[test["name"]])
    for name in OWN:
        assert found.gates[name]["accuracy"] == pytest.approx(expected[f"accuracy of {name}"])
    if found.primary is not None and len(learned) == len(OWN):
        close(found.primary, expected["interaction"])
        assert found.primary["margin"] == pytest.approx(expected["margin"], abs=1e-6)
        _, low, high = expected["interaction"]
        word = hypothesis.SUPPORTED if low > 0 else hypothesis.CONTRADICTED if high < 0 else ""
        word = word or (hypothesis.NO_EFFECT if high < expected["margin"] else "cannot tell")
        assert found.conclusion == word


def check_strategies(study: Study, folder: Path) -> None:
    expected = contrasts(folder)
    (found,) = strategies.findings(study).values()
    for row in found.contrasts:
        close(row, expected[row["block"], paths.slug(row["reference"])])


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_simulated_records_of_objectives(objectives: Callable[..., Study], own: float) -> None:
    study = objectives(own=own, prompts=30)
    folder = paths.study_dir("made") / study.models[0].name
    check_hypothesis(study, folder)


def test_simulated_records_of_strategies(preferences: Callable[..., Study]) -> None:
    study = preferences(pairs=81, ahead={"mid": 0.6})
    check_strategies(study, paths.study_dir("made") / study.models[0].name)


def test_published_records() -> None:
    studies = [load_study(file) for file in registered.published_studies()]
    studies = [study for study in studies if registered.analysis_of(study) is not None]
    if not studies:
        pytest.skip("no registered study is published yet")
    for study in studies:
        with registered.published_records(study):
            folder = paths.study_dir(study.name) / study.models[0].name
            of_hypothesis = registered.analysis_of(study) == registered.HYPOTHESIS
            (check_hypothesis if of_hypothesis else check_strategies)(study, folder)
