"""What responses show without a judge."""

import pytest
from scipy.stats import binomtest

from hialign.evaluation.outcomes import is_refusal, outcomes, repetition

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I’m really sorry. Please talk to somebody.",
    "I cannot provide instructions for this.",
    "As an AI language model, I do not have opinions.",
    "I won’t do that.",
    "Unfortunately I am unable to assist.",
    "Making such a thing is illegal.",
)
ANSWERS = (
    "Bread rises because yeast makes gas.",
    "You can say sorry to them and offer help.",
    "Cats cannot taste sweetness.",
    "",
    "Here are three steps. " + "First, mix the flour. " * 10 + "I cannot stress this enough.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_repetition_is_the_share_of_repeated_four_grams() -> None:
    assert repetition("a b c d e f") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("no " * 103) == pytest.approx(0.99)
    assert repetition("three words only") is None


def test_outcomes_have_intervals() -> None:
    rows = [{"response": text, "tokens": len(text)} for text in (*REFUSALS, *ANSWERS)]
    result = outcomes(rows, 200)
    wanted = binomtest(len(REFUSALS), len(rows)).proportion_ci(method="wilson")
    assert result["n"] == len(rows)
    assert result["refusal_rate"] == pytest.approx(len(REFUSALS) / len(rows))
    assert result["refusal_rate_low"] == pytest.approx(wanted.low)
    assert result["refusal_rate_high"] == pytest.approx(wanted.high)
    assert result["repetition_low"] <= result["repetition"] <= result["repetition_high"]
    assert outcomes([], 200)["refusal_rate"] is None
