"""The paper's numbers (book/paper.yml) against each other, and the book's sources and labels."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

BOOK = Path(__file__).resolve().parents[2] / "book"
PAGES = sorted(BOOK.glob("*.md"))
CITED = re.compile(r"\{cite(?::[a-z]+)?\}`([^`]+)`")
ROUNDING = 0.0005  # half of the last decimal that the paper prints


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return dict(yaml.safe_load((BOOK / "paper.yml").read_text(encoding="utf-8")))


def means(paper: dict[str, Any], table: str, **where: str) -> dict[str, float]:
    rows = [r for r in paper[table]["rows"] if all(r[k] == v for k, v in where.items())]
    return {r["block"]: r["mean"] for r in rows}


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from numbers(part)
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        yield float(content)


def test_table_4_is_an_even_split(paper: dict[str, Any]) -> None:
    depths = {m["name"]: m["layers"] for m in paper["models"]}
    assert {r["model"]: r["layers"] for r in paper["table_4"]["rows"]} == depths
    for row in paper["table_4"]["rows"]:
        parts = np.array_split(np.arange(row["layers"]), 3)
        expected = [[int(p[0]), int(p[-1])] for p in parts]
        assert [row[b] for b in ("local", "mid", "global")] == expected, row["model"]


def test_table_4_agrees_with_our_partition(paper: dict[str, Any]) -> None:
    from hialign.study.blocks import split_layers

    for row in paper["table_4"]["rows"]:
        blocks = split_layers(row["layers"])
        assert {b: [r[0], r[-1]] for b, r in blocks.items()} == {
            b: row[b] for b in ("local", "mid", "global")
        }


def test_table_3_is_ranked(paper: dict[str, Any]) -> None:
    rows = paper["table_3"]["rows"]
    assert [r["rank"] for r in rows] == list(range(1, 11))
    assert [r["mean"] for r in rows] == sorted((r["mean"] for r in rows), reverse=True)
    combinations = {(r["model"], r["block"]) for r in rows}
    blocks = [r["block"] for r in paper["table_1"]["rows"]]
    assert combinations == {(m, b) for m in ("Qwen2.5-7B", "Qwen3-8B") for b in blocks}


def test_strategies_are_named_alike(paper: dict[str, Any]) -> None:
    from hialign.study.blocks import STRATEGIES

    for table in ("table_1", "table_2", "table_3"):
        for row in paper[table]["rows"]:
            assert STRATEGIES[row["block"]] == row["strategy"]
    assert [r["block"] for r in paper["table_1"]["rows"]] == list(STRATEGIES)


def test_counts(paper: dict[str, Any]) -> None:
    prompts = paper["design"]["evaluation_prompts"]["value"]
    assert paper["table_3"]["n"] == prompts
    assert paper["table_2"]["n"] == prompts * len(paper["models"])
    assert {r["count"] for r in paper["table_2"]["rows"]} == {paper["table_2"]["n"]}
    assert len(paper["table_6"]["dimensions"]) == paper["design"]["judge_dimensions"]["value"]
    training = {r["key"]: r["value"] for r in paper["table_5"]["rows"]}
    batch = training["batch_size"] * training["gradient_accumulation_steps"]
    assert math.ceil(paper["design"]["training_pairs"]["value"] / batch) == 417


def test_table_5_is_the_default_of_a_study(paper: dict[str, Any]) -> None:
    from hialign.study.settings import TrainingSettings

    defaults = TrainingSettings().model_dump()
    for row in paper["table_5"]["rows"]:
        if row["key"] == "precision":  # a setting of the model; "auto", see choices.md
            continue
        default = defaults[row["key"]]
        if row["key"] == "optimizer":
            assert str(default).startswith(row["value"].lower())
        else:
            assert default == row["value"], row["key"]


def test_table_6_is_the_rubric(paper: dict[str, Any]) -> None:
    from hialign.study.rubric import load_rubric

    rubric = load_rubric()
    assert list(rubric.dimensions) == paper["table_6"]["dimensions"]
    assert list(rubric.groups) == [g["group"] for g in paper["dimension_groups"]["rows"]]


def test_everything_has_a_source(paper: dict[str, Any]) -> None:
    def check(content: Any, place: str) -> None:
        if isinstance(content, list):
            for i, part in enumerate(content):
                check(part, f"{place}[{i}]")
        elif isinstance(content, dict):
            held = any(isinstance(v, (int, float)) for v in content.values())
            assert not held or "source" in content, place
            if "source" not in content:
                for key, part in content.items():
                    check(part, f"{place}.{key}")

    check({k: v for k, v in paper.items() if k != "versions"}, "paper")


def test_numbers_in_the_text_are_the_papers(paper: dict[str, Any]) -> None:
    """A number with three decimals in a page can only be the paper's: what follows from those is glued."""
    known = {f"{abs(n):.3f}" for n in numbers(paper)}
    for page in PAGES:
        if page.name == "errata.md":  # numbers of ours that did not hold
            continue
        text = re.sub(r"\d{4}\.\d{4,}", "", page.read_text(encoding="utf-8"))  # arXiv numbers
        found = set(re.findall(r"(?<![\d.])\d\.\d{3}(?![\d.]*\d)", text))
        assert found <= known, f"{page.name}: {sorted(found - known)}"


def test_citations_and_bibliography_match() -> None:
    entries = re.findall(
        r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text("utf-8"), re.MULTILINE
    )
    assert len(entries) == len(set(entries)), "a key stands twice in references.bib"
    cited = {
        key.strip()
        for page in PAGES
        for keys in CITED.findall(page.read_text(encoding="utf-8"))
        for key in keys.split(",")
    }
    assert cited - set(entries) == set(), "cited, but not in references.bib"
    assert set(entries) - cited == set(), "in references.bib, but never cited"


def test_versions_are_cited_by_known_keys(paper: dict[str, Any]) -> None:
    bibliography = (BOOK / "references.bib").read_text(encoding="utf-8")
    for version in paper["versions"].values():
        assert f"{{{version['cite']}," in bibliography


def test_labels_are_unique_and_used() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    labels = re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    assert len(labels) == len(set(labels))
    for label in labels:
        assert f"]({label})" in text, f"nothing points at {label}"


FIGURE = re.compile(
    r'\{% call show\("(figure-[\w-]+)", label="([\w-]+)".*?alt="(.*?)"\) %\}(.*?)\{% endcall %\}',
    re.DOTALL,
)


def test_figures_have_name_caption_and_alt_text() -> None:
    labels: list[str] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        figures = FIGURE.findall(text)
        assert len(figures) == text.count('call show("figure-'), page.name
        for name, label, alt, caption in figures:
            labels.append(label)
            assert len(caption.split()) > 10, f"{page.name}: {name}"
            assert len(alt.split()) > 5, f"{page.name}: {name}"
    assert len(labels) == len(set(labels)) > 9
