"""The registered analysis as tables, and the gate of any study."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hialign.report.display import Columns, Row, Table, short_name, view
from hialign.report.replication import hypothesis
from hialign.report.replication.answer import Answer, answer, contrasts_of, gates_of, tests_of
from hialign.report.replication.gates import gates
from hialign.report.replication.reading import TOGETHER
from hialign.report.replication.verdicts import RANDOM_THIRD
from hialign.report.where.records import p_of
from hialign.statistics.gate import Gate
from hialign.statistics.leads import THIRDS
from hialign.study.blocks import OBJECTIVES, strategy_of
from hialign.study.study import Study

NONE = "none yet"
FAMILIES = {
    "primary": "primary: interaction of {}",
    "1": "1: {} alone",
    "2": "2: interaction, trained on {}",
    "3": "3: {}",
    "6": "6: {}",
}


def learned(study: Study) -> Table:
    """Whether this study learned anything: the gate of each model's cells."""
    return _gates((label, "all pairs", gate) for label, gate in gates(study).items())


def registered_gates(study: Study) -> Table:
    """The gates of the registered analysis."""
    return _gates(
        (label, name, gate)
        for label, one in _findings(study)
        for name, gate in gates_of(one).items()
    )


def _gates(found: Iterable[tuple[str, str, Gate]]) -> Table:
    rows = [dict(gate) | {"model": label, "trained": name} for label, name, gate in found]
    columns: Columns = {
        "Model": "model", "Trained on": "trained",
        "Learned": lambda row: "yes" if row["passed"] else "no",
        "Accuracy": "accuracy", "95% interval, accuracy": ("accuracy_low", "accuracy_high"),
        "Gain (nats)": "gain", "95% interval, gain": ("gain_low", "gain_high"),
        "Accuracy, shuffled labels": "shuffled_accuracy", "Gain, shuffled labels": "shuffled_gain",
        "p, chance": p_of("p_chance"), "p, shuffled labels": p_of("p_shuffled"),
        "Seeds": "seeds", "Shuffled seeds": "shuffled_seeds", "Pairs": "pairs",
    }  # fmt: skip
    return _view(rows, columns, 3)


def tests(study: Study) -> Table:
    """The primary test and the secondary ones, with their verdicts."""
    rows = [
        dict(test) | {"model": label} for label, one in _findings(study) for test in tests_of(one)
    ]
    columns: Columns = {
        "Model": "model", "Test": lambda row: FAMILIES[row["family"]].format(row["name"]),
        "Verdict": "verdict", "Mean": "mean", "95% interval": ("low", "high"),
        "p (Holm)": p_of("p_holm"), "Half of Full's gain": "margin",
        "p, below half": p_of("p_within"), "Std over seeds": "seed_std", "Seeds": "seeds",
        "Units": lambda row: row["conversations"] or None,
    }  # fmt: skip
    return _view(rows, columns, 4)


def contrasts(study: Study) -> Table:
    """Blocks against each other: every registered contrast with its verdict."""
    columns: Columns = {
        "Model": "model", "Trained on": "trained_on",
        "Compared": lambda row: f"{name_of(row['block'])} minus {name_of(row['reference'])}",
        "Verdict": "verdict", "Difference (nats)": "mean", "95% interval": ("low", "high"),
        "p (Holm)": p_of("p_holm"), "Margin": "margin", "p, within": p_of("p_within"),
        "Detectable": "detectable", "Std over seeds": "seed_std", "Seeds": "seeds",
        "Accuracy": "accuracy", "95% interval, accuracy": ("accuracy_low", "accuracy_high"),
        "Mean margin (nats)": "raw", "95% interval, mean margin": ("raw_low", "raw_high"),
    }  # fmt: skip
    rows = list(_contrasts(answer(study)))
    if rows and all(row.get("accuracy") is None for row in rows):
        kept = [title for title in columns if "ccuracy" not in title and "ean margin" not in title]
        columns = {title: columns[title] for title in kept}
    return _view(rows, columns, 4)


def _contrasts(found: Answer | None) -> Iterator[Row]:
    for label, one in found.findings.items() if found else ():
        for row in contrasts_of(one):
            beside: dict[str, Any] = {}
            if not isinstance(one, hypothesis.Findings):
                both = one.beside[row["block"], row["reference"]]
                for name, effect in (("accuracy", both.accuracy), ("raw", both.margin)):
                    ends = {f"{name}_low": effect["low"], f"{name}_high": effect["high"]}
                    beside |= {name: effect["mean"]} | ends
            trained = "all pairs" if row["trained_on"] == TOGETHER else f"{row['trained_on']} alone"
            yield dict(row) | beside | {"model": label, "trained_on": trained}


def rules(study: Study) -> Table:
    """Which third leads, by the registered rule."""
    found = answer(study)
    rows: list[dict[str, Any]] = []
    for label, one in found.of() if found else ():
        for name, rule in one.rules.items():
            passed = one.gates[name]["passed"]
            rows.append(dict(rule) | {"model": label, "name": f"{name} alone", "passed": passed})
    for label, other in found.of_strategies() if found else ():
        if other.rule:
            passed = other.gate is None or other.gate["passed"]
            rows.append(dict(other.rule) | {"model": label, "name": "all pairs", "passed": passed})
    columns: Columns = {
        "Model": "model", "Trained on": "name",
        "Leads": lambda row: name_of(row["third"]) if row["third"] and row["passed"] else "none",
        "Because": lambda row: row["reason"] if row["passed"] else "nothing was learned here",
    }  # fmt: skip
    columns |= {f"Lead of {name_of(third)}": _lead(place) for place, third in enumerate(THIRDS)}
    return _view(rows, columns, 3)


def _lead(place: int) -> Callable[[Row], float]:
    return lambda row: float(row["standings"][place]["lead"])


def outcomes(study: Study) -> Table:
    """What each block gained, in the terms of the registered analysis."""
    found = answer(study)
    rows: list[dict[str, Any]] = []
    for label, one in found.of() if found else ():
        for (name, block), effect in one.gains.items():
            rows.append({"model": label, "trained": f"{name} alone", "block": block} | effect)
    for label, other in found.of_strategies() if found else ():
        for block, outcome in other.outcomes.items():
            row: dict[str, Any] = {"model": label, "trained": "all pairs", "block": block}
            row |= dict(outcome.gain)
            for key, effect in (("accuracy", outcome.accuracy), ("raw", outcome.margin)):
                row |= {key: effect["mean"], f"{key}_low": effect["low"]}
                row |= {f"{key}_high": effect["high"]}
            if outcome.kl:
                row |= {"kl": outcome.kl["mean"], "kl_low": outcome.kl["low"]}
                row |= {"kl_high": outcome.kl["high"]}
            rows.append(row)
    columns: Columns = {
        "Model": "model", "Trained on": "trained", "Block": lambda row: name_of(row["block"]),
        "Gain (nats)": "mean", "95% interval, gain": ("low", "high"), "Std over seeds": "seed_std",
    }  # fmt: skip
    if any("accuracy" in row for row in rows):
        columns |= {
            "Accuracy": "accuracy", "95% interval, accuracy": ("accuracy_low", "accuracy_high"),
            "Mean margin (nats)": "raw", "95% interval, mean margin": ("raw_low", "raw_high"),
            "KL from Base (nats/token)": "kl", "95% interval, KL": ("kl_low", "kl_high"),
        }  # fmt: skip
    return _view(rows, columns, 3)


def gains_by_third(study: Study) -> Table:
    """The gains of the thirds by objective, which the figure shows."""
    table = outcomes(study)
    if "Block" not in table or "Gain (nats)" not in table:
        return table
    names = [name_of(third) for third in THIRDS]
    wanted = table["Trained on"].isin([f"{name} alone" for name in OBJECTIVES])
    return Table(table[wanted & table["Block"].isin(names)].reset_index(drop=True))


def _view(rows: Sequence[Row], columns: Columns, keys: int) -> Table:
    """`view` of rows, of which those of one model do not name it."""
    if len({row["model"] for row in rows}) < 2:
        columns, keys = {k: v for k, v in columns.items() if k != "Model"}, keys - 1
    return view(rows, columns, NONE, keys)


def name_of(block: str) -> str:
    """A block as tables call it: `Mid`, or `random third`."""
    return "random third" if block == RANDOM_THIRD else short_name(strategy_of(block))


def _findings(study: Study) -> Iterator[tuple[str, Any]]:
    if found := answer(study):
        yield from found.findings.items()
