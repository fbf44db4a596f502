"""The registered answer in words, for the front page and the page on replication."""

from collections.abc import Iterator, Sequence
from typing import Any

from hialign.report.replication import hypothesis, strategies
from hialign.report.replication.answer import Answer, answer, gates_of
from hialign.report.replication.gates import gates
from hialign.report.replication.reading import Seeds
from hialign.report.replication.registered import registration
from hialign.report.replication.tables import name_of
from hialign.report.replication.verdicts import Compared, Test
from hialign.report.sentences import joined
from hialign.statistics.comparisons import BETTER, UNSURE, WORSE
from hialign.statistics.contrasts import NOTHING_LEARNED, WITHIN
from hialign.statistics.intervals import interval_text
from hialign.study.blocks import EXPECTED
from hialign.study.study import SHUFFLED, Study

NONE_YET = (
    "No replicated answer is published yet. An answer counts as replicated here if its analysis was "
    "registered before the first run, and if it rests on two seeds or more."
)
HYPOTHESIS_2 = (
    "The paper's Hypothesis 2 puts grammar into the first third of the layers, coherence into the "
    "middle one, and factuality into the last."
)
CONCLUSIONS = {
    hypothesis.SUPPORTED: "objectives gain more in their own thirds, as it says",
    hypothesis.CONTRADICTED: "objectives gain less in their own thirds, against what it says",
    hypothesis.NO_EFFECT: (
        "objectives do not gain more in their own thirds by an amount that would matter, which is half "
        "of what Full gains"
    ),
    UNSURE: "these data cannot tell whether objectives gain more in their own thirds",
    hypothesis.NO_TEST: (
        "there is no test of the hypothesis, because fewer than two objectives were learned at all"
    ),
}


def facts(study: Study) -> dict[str, str]:
    """The facts about the registered answer, and about the gate of the study itself."""
    found = answer(study)
    about = dict.fromkeys(
        ("answer_study", "answer_title", "answer_question", "answer_seeds", "answer_strength"), ""
    )
    about |= {"answer": NONE_YET, "answer_kind": "", "answer_spread": "", "registration": ""}
    if found:
        about |= {
            "answer_study": found.study.name,
            "answer_title": found.study.title,
            "answer_question": " ".join(found.study.description.split()),
            "answer_kind": "hypothesis" if found.is_hypothesis else "strategies",
            "answer": " ".join(_answers(found)),
            "answer_seeds": " ".join(_with_label(found, lambda one: _seeds(one.seeds))),
            "answer_strength": " ".join(_with_label(found, _strength)),
            "answer_spread": spread(found.study),
            "registration": _registration(found.study),
        }
    return about | {"seeds_note": spread(study.whole), "learned": learned(study)}


def learned(study: Study) -> str:
    """Whether the study itself learned anything, in a sentence per model."""
    found = gates(study)
    if not found:
        return "Whether anything was learned has not been measured."
    several = len(study.models) > 1
    parts = []
    for label, gate in found.items():
        reason = gate["reason"][0].upper() + gate["reason"][1:]
        about = f"{label}: {reason}" if several else reason
        parts.append(f"{about}." if gate["passed"] else f"{about}: nothing was learned here.")
    return " ".join(parts)


def spread(study: Study) -> str:
    """Whether the spread between seeds is known. Empty if it is."""
    seeds = [name for name in study.whole.seed_names() if not name.startswith(SHUFFLED)]
    if len(seeds) > 1:
        return ""
    return (
        "This study has one seed, so the spread between seeds is not known: other training pairs and "
        "another initialization may give other numbers."
    )


# --- the answer ----------------------------------------------------------------------------------


def _answers(found: Answer) -> Iterator[str]:
    several = len(found.findings) > 1
    for label, one in found.findings.items():
        text = _of_hypothesis(one) if isinstance(one, hypothesis.Findings) else _of_strategies(one)
        yield f"For {label}: {text}" if several else text


def _of_hypothesis(one: hypothesis.Findings) -> str:
    word = CONCLUSIONS[one.conclusion]
    text = f"{HYPOTHESIS_2} {word[0].upper()}{word[1:]}."
    if one.primary:
        text += f" The interaction is {_estimate(one.primary)}."
    by_objective = [test for test in one.secondary if test["family"] == "1"]
    return " ".join([text, *_by_objective(by_objective)])


def _by_objective(tests: list[Test]) -> Iterator[str]:
    whole = [test for test in tests if test["name"] in EXPECTED]
    for verdict in dict.fromkeys(test["verdict"] for test in whole):
        names = [
            f"{test['name']} ({name_of(EXPECTED[test['name']])})"
            for test in whole
            if test["verdict"] == verdict
        ]
        if verdict == UNSURE:
            yield f"One by one, the data cannot tell for {joined(names)}."
        elif verdict == NOTHING_LEARNED:
            yield f"Nothing was learned of {joined(names)}."
        else:
            yield f"One by one, {joined(names)} gained {verdict}."


def _of_strategies(one: strategies.Findings) -> str:
    if one.gate and not one.gate["passed"]:
        least = [row["detectable"] for row in one.contrasts if row["detectable"]]
        found = f"Nothing was learned here: {one.gate['reason']}. So strategies cannot be compared."
        if least:
            found += f" Differences of {max(least):.3f} nats would have been found."
        return found
    verdicts = {row["verdict"] for row in one.contrasts}
    text = "; ".join(
        f"{verdict}: {joined([_contrast(row) for row in one.contrasts if row['verdict'] == verdict])}"
        for verdict in (BETTER, WORSE, WITHIN, UNSURE)
        if verdict in verdicts
    )
    text = f"Differences in gain, in nats per held-out pair: {text}."
    if one.rule:
        led = one.rule["third"]
        said = f"{name_of(led)} leads" if led else "no third leads"
        text = f"By the registered rule, {said}. {text}"
    return text


def _contrast(row: Compared) -> str:
    value = f"{row['mean']:+.3f}".replace("-", "−")
    return f"{name_of(row['block'])} minus {name_of(row['reference'])} ({value})"


def _estimate(row: Test) -> str:
    """`+0.012 nats per held-out pair (95% interval 0.001 to 0.023)`."""
    ends = interval_text(row["low"], row["high"])
    value = f"{row['mean']:+.3f}".replace("-", "−")
    text = f"{value} nats per held-out pair"
    return f"{text} (95% interval {ends})" if ends else text


# --- its strength --------------------------------------------------------------------------------


def _with_label(found: Answer, say: Any) -> Iterator[str]:
    several = len(found.findings) > 1
    for label, one in found.findings.items():
        yield f"{label}: {say(one)}" if several else say(one)


def _seeds(seeds: Seeds) -> str:
    text = f"{len(seeds.real)} of {seeds.wanted} registered seeds are there"
    if seeds.wanted_shuffled:
        text += f", and {len(seeds.shuffled)} of {seeds.wanted_shuffled} with shuffled labels"
    return f"{text}."


def _strength(one: Any) -> str:
    """On what the answer rests: seeds, pairs, and what the gates said."""
    gates = gates_of(one)
    if not gates:
        return _seeds(one.seeds)
    failed = [name for name, gate in gates.items() if not gate["passed"]]
    passed = f"Nothing was learned from {joined(failed)}." if failed else "The gate was passed."
    ranked = f"Full ranks {_range([gate['accuracy'] for gate in gates.values()])} of held-out pairs right"
    shuffled = [s for gate in gates.values() if (s := gate["shuffled_accuracy"]) is not None]
    control = f", and {_range(shuffled)} after training on shuffled labels" if shuffled else ""
    return f"{_seeds(one.seeds)} {passed} {ranked}{control}."


def _range(shares: Sequence[float]) -> str:
    """`77%`, or `77 to 84%`."""
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low}%" if low == high else f"{low} to {high}%"


def _registration(study: Study) -> str:
    """Where the registration is, its hash, and when it was committed."""
    found = registration(study)
    if found is None:
        return ""
    text = f"{found.file.name}, sha256 {found.sha256}"
    if found.committed:
        text += f", was committed on {found.committed} (commit {found.commit})"
    if found.changed:
        text += ". IT HAS BEEN CHANGED SINCE"
    return f"{text}."
