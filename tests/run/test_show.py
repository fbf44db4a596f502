"""What notebooks show: text from outside stays text, and what they count is what there is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.engine.models import load_model
from hialign.records.status import stage_manifest
from hialign.run import show, texts
from hialign.study.blocks import split_layers
from hialign.study.model_files import RANDOM_FAMILIES
from hialign.study.settings import JudgeSettings, ModelSettings
from hialign.study.study import Cell, load_study

HOSTILE = "<script>alert(1)</script> & $x$"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$"


@pytest.fixture
def cell() -> Cell:
    return load_study("smoke").cell(None, "mid")


def message(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pair_of(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": message(prompt, "user"),
        "chosen": message(chosen),
        "rejected": message(rejected),
    }


def test_text_from_outside_is_escaped_and_cut(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt_id": "a", "prompt": HOSTILE, "response": HOSTILE}]
    monkeypatch.setattr(texts.frames, "responses_of", lambda _: rows)
    shown = [
        show.text(HOSTILE).data,
        show.pair(pair_of(HOSTILE, HOSTILE, "another")).data,
        show.pair(pair_of("?", HOSTILE, f"{HOSTILE} more")).data,
        show.answers(cell).data,
        show.prompts([{"prompt": message(HOSTILE, "user")}])._repr_html_(),
    ]
    for html in shown:
        assert "<script" not in html
        assert "&lt;script&gt;" in html
    assert shown[0].count(ESCAPED) == 1
    assert shown[1].count(ESCAPED) == 2
    assert shown[3].count(f"<b>{ESCAPED}</b>") == 1
    long = show.pair(pair_of("first " * 10_000 + "the question", "word " * 10_000, "x")).data
    assert "the question" in long
    assert len(long) < 3_500


def test_a_contrast_has_its_differences_marked_and_another_pair_has_none() -> None:
    alike = show.pair(
        pair_of("?", "It rose by 520 in one year.", "It rose by 52 in one year.")
    ).data
    marked = re.findall(rf'<span style="{re.escape(texts.MARKED)}">(.*?)</span>', alike)
    assert marked == ["520", "52"]
    unlike = show.pair(
        pair_of("?", "It rose by 520 in one year.", "No idea, sorry, ask others.")
    ).data
    assert texts.MARKED not in unlike


@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_parameters_are_counted_without_weights(family: str) -> None:
    source = f"random:{family}"
    model, _ = load_model(source, "cpu")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    empty = show.without_weights(ModelSettings(source=source))
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_the_partition_draws_the_thirds_and_the_layers_that_are_tuned() -> None:
    study = load_study("smoke")
    cells = [study.cell(None, block) for block in ("base", "layers:1,4-5")]
    table = show.partition(split_layers(6), *cells)
    assert table["Which"].tolist()[:3] == ["block local", "block mid", "block global"]
    assert table["Drawn"].tolist() == ["■■□□□□", "□□■■□□", "□□□□■■", "□□□□□□", "□■□□■■"]
    assert table["Layers"].tolist()[3:] == ["none", "1, 4–5"]


def test_the_next_steps_are_commands_that_a_shell_takes(cell: Cell) -> None:
    assert (
        "hialign run respond -p study smoke -p block mid\n" in show.next_steps("train", cell).data
    )
    commands = re.sub("<.*?>", "", show.next_steps("respond", cell).data).splitlines()
    assert commands == [
        "hialign run evaluate -p study smoke -p block mid",
        "hialign run judge -p study smoke -p block mid",
        "hialign reproduce smoke",
    ]
    unjudged = Cell(cell.study.model_copy(update={"judge": None}), cell.model, cell.block)
    assert "hialign run judge" not in show.next_steps("respond", unjudged).data


def test_the_heading_says_whether_a_stage_has_run(cell: Cell, outputs: Path) -> None:
    assert "The stage train has not run yet." in show.heading("train", cell).data
    assert "The ila probe has not run yet." in show.heading("probe-ila", cell).data
    stage_manifest(cell, "train").parent.mkdir(parents=True)
    stage_manifest(cell, "train").write_text("{}")
    assert "what it left is out of date" in show.heading("train", cell).data


def test_a_request_is_what_the_judge_is_given(cell: Cell) -> None:
    item = {"prompt_id": "a", "prompt": "What is tea?", "response": HOSTILE}
    local = show.request(cell, item).data
    assert "What is tea?" in local
    assert ESCAPED in local
    assert re.sub("<.*?>", "", local).rstrip().endswith("GrammarFluency score:")
    judge = JudgeSettings(model="judge-model")
    other = Cell(cell.study.model_copy(update={"judge": judge}), cell.model, cell.block)
    api = show.request(other, item).data
    assert "[system]" in api
    assert "&lt;&lt;&lt;RESPONSE" in api
    assert ESCAPED in api


def test_base_has_no_confinement_and_costs_are_what_a_record_has() -> None:
    about = {"seconds": 90.0, "peak_memory_bytes": 2**30, "device": "a processor"}
    assert "Base is not tuned" in show.confinement({"strategy": "Base", **about}).data
    record = {"strategy": "Base", "pairs": 8, "tokens": 64.0, "cost": None, "n": {"x": 1}, **about}
    costs = show.costs(record)
    assert "64.0" not in costs._repr_html_()
    assert costs.to_dict("records") == [
        {
            "Strategy": "Base",
            "Pairs": 8,
            "Tokens": 64,
            "Minutes": 1.5,
            "Peak memory (GiB)": 1.0,
            "Device": "a processor",
        }
    ]


def test_settings_are_the_probes_own_and_the_shared_ones(tiny_study: Callable[..., Path]) -> None:
    cell = load_study(tiny_study()).cell(None, "base")
    names = show.settings(cell, "sweep")["Name"].tolist()
    assert {"train", "singles", "max_length", "resamples"} <= set(names)
    assert "at_steps" not in names
