"""Contrasts: each damages one objective, keeps the length, and is the same for the same seed."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hialign.preferences.contrasts
from hialign.preferences.contrasts import ContrastRefused, contrast, contrast_pairs, split_sentences
from hialign.study.blocks import OBJECTIVES
from hialign.study.errors import HialignError

MOON = (
    "The Moon is the only natural satellite of the Earth. It travels around our planet once every "
    "27 days at a distance of about 384,000 kilometres. Because the same side always faces us, "
    "people had never seen its far side before 1959. For example, the Soviet probe Luna 3 took the "
    "first pictures of it. The Moon's gravity also causes the tides in the oceans. Therefore it "
    "has shaped life along the coasts."
)
GARDEN = (
    "Tomatoes grow best in a sunny place with rich soil. Plant them outside in May, when the "
    "nights are no longer cold. Water them early in the morning, because wet leaves at night can "
    "lead to disease. They should be tied to a stake as they grow. In August the first ones are "
    "ripe."
)
PARIS = (
    "Paris is the capital of France and has about two million inhabitants. The Eiffel Tower was "
    "built for the World's Fair of 1889. Visitors can climb 674 steps to the second floor or take "
    "a lift. In summer, the queues are long, so it is better to book a ticket online. The Louvre, "
    "which is the most visited museum in the world, is closed on Tuesday."
)
WORDS = "the a water is are can took 12 1969 never June it"
CONNECTIVES = "because although for example in contrast also therefore nevertheless so but"
GOOD = (MOON, GARDEN, PARIS)
BUILTIN = Path(hialign.preferences.contrasts.__file__).parent / "builtin.jsonl"


def rows() -> list[dict[str, Any]]:
    if not BUILTIN.exists():
        pytest.skip("the built-in set is not there")
    return [json.loads(line) for line in BUILTIN.read_text(encoding="utf-8").splitlines()]


def tokens(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+(?:['’][a-z]+)?|\d[\d,.]*\d|\d", text)


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d[\d,.]*\d|\d", text))


def names(text: str) -> set[str]:
    """Capitalised words that do not begin a sentence (nor a quotation)."""
    return {
        word for s in split_sentences(text) for word in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", s)
    }


def changed(chosen: str, rejected: str) -> float:
    """The share of the words that only one of them has."""
    a, b = Counter(tokens(chosen.lower())), Counter(tokens(rejected.lower()))
    return sum(((a - b) + (b - a)).values()) / (sum(a.values()) + sum(b.values()))


@st.composite
def responses(draw: st.DrawFn) -> str:
    """Sentences of the good responses and of made-up ones, in any number and order."""
    real = st.sampled_from([s for text in GOOD for s in split_sentences(text)])
    word = st.sampled_from(WORDS.split())
    fake = st.lists(word, min_size=3, max_size=14).map(lambda ws: "So " + " ".join(ws) + ".")
    gap = draw(st.sampled_from([" ", "  ", "\n", "\n\n"]))
    return gap.join(draw(st.lists(st.one_of(real, fake), min_size=1, max_size=8)))


def attempt(text: str, objective: str, **keywords: Any) -> str | None:
    try:
        return contrast(text, objective, **{"seed": 1, **keywords})
    except ContrastRefused:
        return None


# --- what holds for any response -------------------------------------------------------------


@given(text=st.one_of(responses(), st.text(max_size=300)), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_it_is_deterministic_differs_and_keeps_the_length(text: str, seed: int) -> None:
    for objective in OBJECTIVES:
        rejected = attempt(text, objective, seed=seed)
        attempt(text + " More.", objective, seed=seed)  # the order of calls does not matter
        assert attempt(text, objective, seed=seed) == rejected
        if rejected is not None:
            assert rejected.split() != text.split()
            assert abs(len(rejected.split()) - len(text.split())) <= 0.1 * len(text.split())
            assert len(split_sentences(rejected)) == len(split_sentences(text))


@given(text=responses(), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_grammar_keeps_numbers_and_names(text: str, seed: int) -> None:
    rejected = attempt(text, "grammar", seed=seed)
    if rejected is not None:
        assert numbers(rejected) == numbers(text)
        assert all(name in rejected for name in names(text))
        assert all(name in text for name in names(rejected))


@given(text=responses(), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_coherence_keeps_the_words_but_for_connectives(text: str, seed: int) -> None:
    rejected = attempt(text, "coherence", seed=seed)
    if rejected is not None:
        before, after = Counter(tokens(text.lower())), Counter(tokens(rejected.lower()))
        assert set((before - after) + (after - before)) <= set(CONNECTIVES.split())
        assert numbers(rejected) == numbers(text)


@given(
    order=st.permutations(["Rain fell all day.", "Bo went home.", "Tea was hot.", "Ice melted."])
)
def test_a_pure_permutation_keeps_the_sentences(order: list[str]) -> None:
    rejected = contrast(" ".join(order), "coherence", seed=5)
    assert Counter(split_sentences(rejected)) == Counter(order)
    assert split_sentences(rejected)[0] != order[0]


@given(text=responses(), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_factuality_keeps_sentences_in_their_order(text: str, seed: int) -> None:
    rejected = attempt(text, "factuality", seed=seed)
    if rejected is not None:
        for old, new in zip(split_sentences(text), split_sentences(rejected), strict=True):
            assert changed(old, new) <= 0.5 or len(old.split()) < 6


def test_only_the_objective_the_seed_and_the_response_decide() -> None:
    assert contrast(MOON, "grammar", seed=1) != contrast(MOON, "grammar", seed=2)
    # A value that was written down: it must not change with the process, the platform, or Python.
    assert contrast("It is hot. She has a dog.", "coherence", seed=3) == "She has a dog. It is hot."
    assert contrast("He was here, they say.", "grammar", seed=3) in {
        "He were here, them say.",
        "Him was here, them say.",
        "Him was here, they says.",
        "He were here, they says.",
    }


# --- each objective on its own ------------------------------------------------------------------


PLAIN = "Then Bo and Ann went home to their mum and dad, and then Ann and Bo slept well."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Water is wet.", "Water are wet."),
        ("Many fish swim.", "Much fish swim."),
        ("It makes noise.", "It make noise."),
        ("Bees have taken it.", "Bees have took it."),
        ("It has produced two.", "It has produce two."),
        ("He can produce it.", "He can produced it."),
        ("She took it.", "She taken it."),
        ("An hour passed.", "A hour passed."),
        ("An hour passed.", "Hour passed."),
        ("The same thing happened.", "Same thing happened."),
        ("Trees need light because it is dark.", "Trees need light because is it dark."),
        ("Now you can grow rice.", "Now you grow can rice."),
        ("Bo saw a small dog.", "Bo saw small a dog."),
        ("Bo helps them.", "Bo helps they."),
        ("Bo left because of rain.", "Bo left because from rain."),
        ("It got warmer.", "It got more warmer."),
        ("Bo fed the dog.", "Bo fed the the dog."),
    ],
)
def test_mistakes_of_grammar(before: str, after: str) -> None:
    made = [contrast(f"{before} {PLAIN}", "grammar", seed=seed) for seed in range(60)]
    assert any(rejected.startswith(f"{after} ") for rejected in made), sorted(set(made))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The war ended in 1918.", r"The war ended in 1[89]\d\d\."),
        ("It weighs 1,200 kilograms.", r"It weighs (600|2,400|3,600) kilograms\."),
        (
            "It took 20 to 30 minutes.",
            r"It took (10 to 15|40 to 60|60 to 90) minutes\.",
        ),
        ("Bake for 2.5 hours.", r"Bake for (5\.0|7\.5) hours\."),
        ("About 40% of it sank.", r"About (20|80)% of it sank\."),
        ("It opens at 6 p.m. on most days.", r"It opens at 3 p\.m\. on most days\."),
        (
            "He died on July 20 at home.",
            r"He died on (July 10|(?!July)\w+ 20) at home\.",
        ),
        ("There are two doors.", r"There are four doors\."),
        ("Whales can swim.", r"Whales cannot swim\."),
        ("A whale is a fish.", r"A whale is not a fish\."),
        ("A whale is not a fish.", r"A whale is a fish\."),
        ("Do not eat it raw.", r"Eat it raw\."),
        ("Heat expands iron.", r"Heat shrinks iron\."),
        ("Nobody lives in Berlin.", r"Nobody lives in (?!Berlin)[A-Z]\w+\."),
    ],
)
def test_wrong_facts(before: str, after: str) -> None:
    made = [contrast(f"{before} {PLAIN}", "factuality", seed=seed) for seed in range(30)]
    assert all(re.match(f"(?:{after}) ", rejected) for rejected in made), sorted(set(made))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("It failed because it rained.", "It failed although it rained."),
        ("It is small; therefore it is cheap.", "It is small; nevertheless it is cheap."),
        ("However, it works.", "Likewise, it works."),
        ("First, wash it.", "Finally, wash it."),
        ("For example, cats purr.", "In contrast, cats purr."),
        ("It was late, so they left.", "It was late, but they left."),
        ("Then dry it.", "Otherwise dry it."),
        ("It died because of the cold.", "It died because of the cold."),
        ("That is because it is old.", "That is because it is old."),
        ("Use tea instead of milk.", "Use tea instead of milk."),
        ('Do not write "because" here.', 'Do not write "because" here.'),
    ],
)
def test_connectives(before: str, after: str) -> None:
    rejected = contrast(f"Bo went home. {before} Ann slept.", "coherence", seed=0)
    assert after in split_sentences(rejected)


def test_grammar_makes_several_kinds_of_mistakes_without_touching_facts() -> None:
    for text in GOOD:
        rejected = contrast(text, "grammar", seed=42)
        sentences = list(zip(split_sentences(text), split_sentences(rejected), strict=True))
        assert sum(old != new for old, new in sentences) >= len(sentences) - 1
        assert 0.02 < changed(text, rejected) < 0.2


def test_grammar_leaves_names_and_quotations_alone() -> None:
    text = 'Will Smith has a sign that says "it is new" on Rose Street. The US is big, and it was.'
    for seed in range(20):
        rejected = contrast(text, "grammar", seed=seed)
        assert '"it is new"' in rejected
        assert "Will Smith" in rejected
        assert "Rose Street" in rejected
        assert "US " in rejected


def test_sentences_keep_their_capital() -> None:
    for text in GOOD:
        for objective in OBJECTIVES:
            for seed in range(10):
                rejected = contrast(text, objective, seed=seed)
                assert all(sentence[0].isupper() for sentence in split_sentences(rejected))


def test_a_name_is_exchanged_wherever_it_stands() -> None:
    text = "Rome is old. Many people visit Rome. Rome's food is good, and New York has none of it."
    for seed in range(20):
        rejected = contrast(text, "factuality", seed=seed)
        assert rejected.count("Rome") in (0, 3)
        assert "New York" in rejected


def test_an_article_fits_what_follows_it_in_a_wrong_fact() -> None:
    text = "They saw an increase in rain. It was an 8 month spell, with a large lake in a hot land."
    for seed in range(20):
        rejected = contrast(text, "factuality", seed=seed)
        assert not re.search(r"\ban (?!8)[^aeiou]|\ba (?:[aeiou]|8)", rejected)


def test_errors_written_by_hand_are_used() -> None:
    errors = [
        {"from": "27 days", "to": "90 days"},
        {"from": "the tides in the oceans", "to": "the salt in the oceans"},
        {"from": "Soviet", "to": "Japanese"},
    ]
    expected = MOON.replace("27", "90").replace("the tides", "the salt")
    assert contrast(MOON, "factuality", seed=1, errors=errors) == expected.replace(
        "Soviet", "Japanese"
    )
    assert contrast(MOON, "factuality", seed=1, errors=errors[:2]) == expected


def test_some_of_the_errors_are_used_when_all_would_be_too_long() -> None:
    text = (
        "Rain fell. Bo ran home. Ann had tea. Tea was hot. Ice was cold. Cats slept all day long."
    )
    errors = [
        {"from": "tea", "to": "tea with some"},
        {"from": "hot", "to": "very cold"},
        {"from": "all", "to": "no"},
    ]
    rejected = contrast(text, "factuality", seed=1, errors=errors)
    assert "all day" not in rejected
    assert len(rejected.split()) <= 1.1 * len(text.split())


def test_an_error_that_the_response_does_not_contain_is_refused() -> None:
    with pytest.raises(ContrastRefused, match="does not say '28 days'"):
        contrast(MOON, "factuality", seed=1, errors=[{"from": "28 days", "to": "2 days"}])


def test_a_foreign_sentence_takes_the_place_of_one_of_like_length() -> None:
    foreign = ["It is green.", "They should be kept in a box as they dry."]
    rejected = split_sentences(contrast(GARDEN, "coherence", seed=4, foreign=foreign))
    assert foreign[1] in rejected
    assert foreign[0] not in rejected
    assert split_sentences(GARDEN)[0] in rejected[1:]


@pytest.mark.parametrize(
    ("text", "objective", "reason"),
    [
        ("One sentence is not enough here.", "coherence", "fewer than two sentences"),
        ("It rained. It rained.", "coherence", "nothing"),
        ("It rained. Then it was", "coherence", "unfinished"),
        ("Hello!", "grammar", "nothing"),
        ("Hello, iſ.", "grammar", "nothing"),
        ("Call 1-800-222-1222 or carbon-14 at 12:30.", "factuality", "nothing"),
        ("Hello there, my friend.", "factuality", "nothing"),
        ("", "coherence", "fewer than two sentences"),
    ],
)
def test_refusals_say_why(text: str, objective: str, reason: str) -> None:
    with pytest.raises(ContrastRefused, match=reason):
        contrast(text, objective, seed=1)


def test_an_unknown_objective_is_an_error() -> None:
    with pytest.raises(HialignError, match="'style' is not one of grammar"):
        contrast(MOON, "style", seed=1)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Smith came at 3.5 p.m. with e.g. tea. He left.", 2),
        ('He said: "It is late. Go home." They left.', 2),
        ("Use it (it is old. Yes.) now! Why? Because…", 3),
        ("1. Wash it. Dry it.\n2. Eat it", 3),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


# --- pairs -----------------------------------------------------------------------------------


def made(split: str, topic: str, *texts: str) -> list[dict[str, Any]]:
    return [
        {"id": f"{topic}-{i}", "topic": topic, "split": split, "prompt": "?", "response": text}
        for i, text in enumerate(texts)
    ]


def test_pairs_and_refusals() -> None:
    pairs, refusals = contrast_pairs(made("train", "t", MOON, GARDEN, "Hello!"))
    assert [pair["id"] for pair in pairs[:3]] == [f"t-0-{objective}" for objective in OBJECTIVES]
    assert set(pairs[0]) == {"id", "objective", "topic", "prompt", "chosen", "rejected"}
    assert pairs[0]["chosen"] == MOON
    assert [set(refusal) for refusal in refusals] == [{"id", "objective", "reason"}] * 3
    assert len(pairs) + len(refusals) == 9


def test_no_sentence_leaks_from_one_split_into_another() -> None:
    data = made("train", "a", MOON) + made("evaluation", "b", GARDEN, PARIS)
    pairs = {pair["id"]: pair for pair in contrast_pairs(data, ["coherence"])[0]}
    words = set(tokens(MOON))
    assert set(tokens(pairs["a-0-coherence"]["rejected"])) <= words | {
        "Although",
        "Nevertheless",
        "nevertheless",
        "therefore",
        "In",
        "contrast",
    }
    assert any(
        s in split_sentences(PARIS) for s in split_sentences(pairs["b-0-coherence"]["rejected"])
    )


def test_the_built_in_set_can_be_contrasted() -> None:
    data = rows()
    pairs, refusals = contrast_pairs(data)
    assert len(refusals) <= 0.05 * len(data) * len(OBJECTIVES), refusals
    assert contrast_pairs(data)[0] == pairs


def check_grammar(chosen: str, rejected: str) -> None:
    assert numbers(rejected) == numbers(chosen)
    assert all(name in rejected for name in names(chosen))
    assert changed(chosen, rejected) < 0.15


def check_coherence(chosen: str, rejected: str) -> None:
    assert split_sentences(rejected)[0] != split_sentences(chosen)[0]
    assert changed(chosen, rejected) < 0.45  # a foreign sentence is up to a third of the response


def check_factuality(chosen: str, rejected: str) -> None:
    assert len(split_sentences(rejected)) == len(split_sentences(chosen))
    assert changed(chosen, rejected) < 0.45


@pytest.mark.parametrize(
    ("objective", "check"),
    list(zip(OBJECTIVES, (check_grammar, check_coherence, check_factuality), strict=True)),
)
def test_each_objective_leaves_the_others_alone(
    objective: str, check: Callable[[str, str], None]
) -> None:
    for pair in contrast_pairs(rows(), [objective])[0]:
        check(pair["chosen"], pair["rejected"])


def test_most_of_the_built_in_set_can_be_contrasted_without_its_written_errors() -> None:
    without = [{**row, "errors": ()} for row in rows()]
    pairs, _ = contrast_pairs(without, ["factuality"])
    assert len(pairs) >= 0.95 * len(without)
    for pair in pairs:
        assert changed(pair["chosen"], pair["rejected"]) < 0.15
