"""Parameters are checked before anything runs, and a notebook's output is whole or not there."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from hialign.run import notebook, parameters, show, workflow
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import STAGES, load_study


def run_cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hialign.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


@pytest.mark.parametrize("stage", STAGES)
def test_templates_are_stripped_and_have_one_parameters_cell(stage: str) -> None:
    book = nbformat.read(paths.notebooks() / f"{stage}.ipynb", as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "bloc", "late"), "no parameter 'bloc' (did you mean 'block'?)"),
        (("-p", "block", "middle"), "block 'middle' is not one of base, full, local, mid, global"),
        (("-p", "block", "7"), "parameter block must be str, it is 7"),
        (("-p", "study", "nowhere"), "there is no study 'nowhere'"),
        (("-p", "study", "smoke", "-p", "block", "layers:3-9"), "layer 9 is out of range"),
        (("-p", "study", "smoke", "-p", "model", "random:gpt9"), "random model 'gpt9' is not"),
    ],
)
def test_a_wrong_parameter_is_one_line_and_leaves_nothing(
    outputs: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_cli("run", "train", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    left = [p for p in outputs.rglob("*") if p.is_file() and ".failed." not in p.name]
    assert left == []


def test_values_are_read_as_papermill_does_but_for_underscores() -> None:
    assert notebook.parse_value("8") == 8
    assert notebook.parse_value("1e-5") == 1e-5
    assert notebook.parse_value("None") is None
    assert notebook.parse_value("1_000") == "1_000"
    assert notebook.parse_value("layers:8-12,20") == "layers:8-12,20"


def test_begin_refuses_names_that_are_no_parameters() -> None:
    namespace = {"study": "smoke", "model": None, "block": "mid", "bloc": "late", "_x": 1}
    with pytest.raises(HialignError, match=r"no parameter 'bloc' \(did you mean 'block'"):
        parameters.begin(namespace, "train")


def test_begin_gives_the_cell_and_takes_no_function_or_module_for_a_parameter() -> None:
    namespace = {"study": "smoke", "model": None, "block": "mid"}
    others = {"begin": parameters.begin, "json": json, "Path": Path, "In": ["x"], "Out": {}}
    cell = parameters.begin(namespace | others, "train")
    assert (cell.study.name, cell.model.name, cell.strategy) == (
        "smoke",
        "random-llama",
        "Mid-Align",
    )


@pytest.mark.slow
def test_papermill_alone_runs_a_notebook_from_anywhere_and_refuses_a_misspelt_parameter(
    outputs: Path, tmp_path: Path
) -> None:
    """What the README promises: `papermill notebooks/train.ipynb OUT -p block mid`."""
    template = str(paths.notebooks() / "train.ipynb")
    command = [sys.executable, "-m", "papermill", "--log-level", "ERROR", template, "out.ipynb"]
    good = [*command, "-p", "study", "smoke", "-p", "block", "mid"]
    done = subprocess.run(good, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    cell = outputs / "smoke" / "random-llama" / "mid"
    manifest = json.loads((cell / "manifest.json").read_text())
    assert (manifest["layers"], manifest["steps"]) == ([2, 3], 2)
    assert manifest["confinement"]["base_parameters_changed"] == 0
    book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    text = json.dumps([c.get("outputs", []) for c in book.cells])
    assert text.count("it/s") + text.count("s/it") <= 4, "a progress bar floods the notebook"
    assert len(text) < 150_000, "most of it is the figure"
    # What the notebook said before training is what training then did.
    table = show.adapters(load_study("smoke").cell(None, "mid"))
    assert table["Parameters that train"].tolist() == [manifest["trainable_parameters"]]
    assert f"{manifest['parameters']:,} parameters" in table.attrs["caption"]

    bad = [*command, "-p", "study", "smoke", "-p", "bloc", "mid"]
    done = subprocess.run(bad, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "did you mean 'block'" in done.stderr


def test_a_stage_without_what_it_needs_fails_and_says_what_to_run(outputs: Path) -> None:
    done = run_cli("run", "respond", "-p", "study", "smoke", "-p", "block", "full")
    assert done.returncode == 1
    assert (
        "the training of random-llama full in study smoke is missing: "
        "run `hialign run train -p study smoke -p block full` first" in done.stderr
    )
    assert not outputs.exists(), "it is refused before a kernel is started"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reproduce", "paper"), "the environment has no OPENAI_API_KEY"),
        (("reproduce", "hh-rlhf"), "there is no study 'hh-rlhf'"),
        (("partition", "2"), "cannot be split into three blocks"),
        (("partition", "nobody/nothing"), "model nobody/nothing could not be loaded"),
    ],
)
def test_commands_fail_in_one_line(
    monkeypatch: pytest.MonkeyPatch, outputs: Path, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run_cli(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_partition_prints_table_4s_row() -> None:
    done = run_cli("partition", "28")
    assert done.returncode == 0
    for part in ("0-9", "10-18", "19-27"):
        assert part in done.stdout


# --- what papermill and Jupyter say otherwise -----------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 7}', '{"nbformat": 99}', "\0"])
def test_a_file_that_is_no_notebook_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.ipynb"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(HialignError, match=r"own\.ipynb is not a notebook that papermill can run"):
        notebook.run(str(path), {})


def test_a_missing_kernel_is_told(
    tiny_study: Callable[..., Path], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    def missing(self: object, name: str) -> object:
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", missing)
    with pytest.raises(HialignError, match=r"no Jupyter kernel 'python3'.*pip install ipykernel"):
        notebook.run("train", {"study": str(tiny_study()), "block": "base"})


@pytest.mark.parametrize(
    ("changes", "block", "why"),
    [
        ({"training": {"lora_rank": 500}}, "mid", r"training\.lora_rank: rank 500 is more than"),
        ({}, "full:r500", r"block full:r500: rank 500 is more than the width of random-llama, 32"),
        ({}, "layers:3-9", r"layer 9 is out of range"),
        (
            {"responses": {"max_new_tokens": 5000}},
            "mid",
            r"does not fit the context .* 4096 tokens",
        ),
        ({"preferences": {"source": "./nowhere.jsonl"}}, "mid", r"nowhere\.jsonl does not exist"),
        ({"models": ["./nowhere"]}, "mid", r"model \./nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_a_kernel_is_started(
    tiny_study: Callable[..., Path], outputs: Path, changes: dict[str, Any], block: str, why: str
) -> None:
    path = tiny_study(**changes)
    with pytest.raises(HialignError, match=why) as caught:
        notebook.run("train", {"study": str(path), "block": block})
    assert "\n" not in str(caught.value)
    assert not outputs.exists()
    with pytest.raises(HialignError, match=why):
        workflow.reproduce(str(tiny_study(**changes, blocks=[block])), 1, dry_run=True)
    assert not outputs.exists()
