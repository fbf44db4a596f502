"""The smoke study through Snakemake, papermill and the book; then what is redone after a change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import CANARY

from hialign import records
from hialign.book import build as book
from hialign.records.status import cell_status, probe_status
from hialign.run import parameters
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import PROBES, load_study

pytestmark = pytest.mark.slow


def reproduce(study: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "hialign.run",
        "reproduce",
        study,
        "--cores",
        "2",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def planned(output: str) -> list[str]:
    """The jobs that a dry run would run, without the reasons."""
    lines = [line for line in output.splitlines() if line.startswith("would run ")]
    return sorted(line.removeprefix("would run ").partition(" (")[0] for line in lines)


def test_every_file_of_every_cell_is_there(smoke: Path) -> None:
    study = load_study("smoke")
    for cell in study.cells():
        names = {p.name for p in cell.folder.iterdir()}
        wanted = {"manifest.json", "responses.jsonl", "evaluation.json"}
        wanted |= {f"judgments-{study.judge.name}.jsonl"} if study.judge else set()
        wanted |= set() if cell.block == "base" else {"adapter", "training.jsonl"}
        assert wanted <= names, cell.block
        odd = {n for n in names if n.startswith(".") or "partial" in n}
        assert odd <= {f".judgments-{study.judge.name}.jsonl.lock" if study.judge else ""}
    assert set(records.manifests(study)["status"]) == {"done"}
    probes = {p.name for p in (smoke / "random-llama" / "probes").iterdir()}
    assert probes == {f"{probe}.json" for probe in PROBES}, (
        "a part was left, or a record is missing"
    )
    assert {probe_status(study, study.models[0], p) for p in PROBES} == {"done"}
    assert not list(smoke.rglob("*.failed.ipynb"))
    assert not list((smoke / ".checkpoints").rglob("checkpoint-*"))


def test_the_book_has_every_page_and_the_runs(smoke: Path) -> None:
    html = smoke / "html"
    toc = yaml.safe_load((paths.book_source() / "_toc.yml").read_text())
    for name in [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]:
        assert (html / f"{name}.html").is_file()
    pages = {p.stem for p in (html / "runs").glob("*.html")}
    stages = ("respond", "judge")
    blocks = ("base", "full", "mid", "gradient-top30pct")
    notebooks = {f"{stage}-random-llama-{block}" for stage in stages for block in blocks}
    notebooks |= {f"probe-{probe}-random-llama-all" for probe in PROBES}
    cells = {f"random-llama-{block}" for block in blocks}
    together = [(stage, name) for stage in ("train", "evaluate") for name in ("all", "measured")]
    passes = {f"{stage}-random-llama-{name}" for stage, name in together}
    assert pages == passes | notebooks | cells
    text = (html / "experiments.html").read_text()
    assert "3.067" in text, "the paper's value stands beside ours"
    assert holding(html, str(paths.root())) == []
    assert holding(html, str(Path.home()) + "/") == []


def holding(folder: Path, text: str) -> list[Path]:
    """The files below `folder` that hold `text`."""
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_keys_in_the_environment_are_in_no_file_and_no_log(smoke: Path) -> None:
    """The study ran with canaries for keys (see `smoke`); its output is among what is searched."""
    assert (smoke.parent / "printed.log").is_file()
    assert holding(smoke.parent, CANARY) == []


def test_a_judge_behind_an_api_from_estimate_to_book(
    smoke: Path, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line against a server that fails, and repeats the key that it was sent."""
    server = start()
    reply = server.server.reply

    async def leaky(body: dict[str, Any]) -> tuple[int, str]:
        status, text = await reply(body)
        if server.server.counts["requests"] == 2:  # the first finds out the format
            return 400, json.dumps({"error": {"message": f"cannot read {CANARY}"}})
        return status, text.replace("It is 1 for", f"With {CANARY} I say 1 for")

    server.server.reply = leaky
    outputs = tmp_path / "outputs"
    shutil.copytree(smoke, outputs / "asked")
    content = yaml.safe_load((paths.studies() / "smoke.yml").read_text())
    content |= {"name": "asked", "title": "Asked"}
    content["judge"] = {"model": "judge", "base_url": server.url, "concurrency": 1}
    content["judge"]["prices"] = {"input": 2, "output": 10}  # 0.008 USD a call
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump(content))
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(outputs))
    printed = ""

    def run(*arguments: str, code: int = 0) -> str:
        nonlocal printed
        command = [sys.executable, "-m", "hialign.run", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        printed += done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr if code else done.stdout).split())

    assert "8" in run("judge", str(file), "--estimate")
    assert server.server.counts["requests"] == 0
    said = run("judge", str(file), code=1)
    assert "1 of 2 failed, more than judge.max_failed allows: `hialign judge" in said
    assert "1 of 2 failed" in run("status", str(file))
    assert "the request failed: cannot read [key]" in said
    answered = sum(server.server.answers.values()) - 1  # equal responses are asked for once
    assert f"8 judgments, 1 of them failed, {0.008 * answered:.2f} USD" in said
    before = server.server.counts["requests"]
    assert "8 judgments, 0 of them failed" in run("judge", str(file), "--retry-failed")
    assert server.server.counts["requests"] == before + 1
    run("book", str(file))
    assert "judge-2025" in (outputs / "asked/random-llama/mid/judgments-judge.jsonl").read_text()
    assert holding(outputs, "[key]")
    assert holding(outputs, CANARY) == []
    assert CANARY not in printed


def test_a_second_time_nothing_runs(smoke: Path) -> None:
    index = smoke / "html" / "index.html"
    before = index.stat().st_mtime_ns
    done = reproduce("smoke")
    assert done.returncode == 0, done.stderr
    assert index.stat().st_mtime_ns == before


def test_a_figure_rebuilds_the_book_and_no_training(smoke: Path) -> None:
    file = (
        paths.package() / "report" / "figures.py"
    )  # Snakemake knows by checksum what only looks newer
    text, times = file.read_text(), file.stat()
    try:
        file.write_text(text + "\n# changed\n")
        done = reproduce("smoke", "--dry-run")
    finally:
        file.write_text(text)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert planned(done.stdout) == ["book"]


def test_a_manifest_that_was_deleted_is_made_again(smoke: Path) -> None:
    """By a pass over the cells that are not done, and no others; nothing of those is redone."""
    file = smoke / "random-llama" / "mid" / "manifest.json"
    aside = file.with_name("manifest.aside")
    file.rename(aside)
    try:
        done = reproduce("smoke", "--dry-run")
        stages = ("evaluate", "judge", "respond", "train")
        mid = [f"{stage}: random-llama, mid" for stage in stages]
        assert planned(done.stdout) == ["book", *mid]
        assert "would run train: random-llama, mid (missing)" in done.stdout
        assert "respond: random-llama, mid (stale (the training is missing))" in done.stdout
        cells = parameters.begin_pass({"study": "smoke", "model": None, "block": "all"}, "train")
        assert [c.block for c in cells] == ["mid"]
    finally:
        aside.rename(file)
    cells = parameters.begin_pass({"study": "smoke", "model": None, "block": "all"}, "train")
    assert [c.block for c in cells] == ["base", "full", "mid"]


def test_a_probes_setting_redoes_it_and_what_it_chooses(smoke: Path, tmp_path: Path) -> None:
    text = (paths.studies() / "smoke.yml").read_text(encoding="utf-8")
    changed = tmp_path / "smoke.yml"
    changed.write_text(text.replace("at_steps: [1, 2]", "at_steps: [1]"), encoding="utf-8")
    done = reproduce(str(changed), "--dry-run")
    stages = ("evaluate", "judge", "respond", "train")
    chosen = [f"{stage}: random-llama, gradient:top30%" for stage in stages]
    assert planned(done.stdout) == sorted(["book", "probe-gradients: random-llama", *chosen])
    study = load_study(changed)
    assert probe_status(study, study.models[0], "gradients") == "stale"
    assert cell_status(study.cell(None, "gradient:top30%")) == "stale"
    assert cell_status(study.cell(None, "mid")) == "done"


def test_a_judges_setting_redoes_judge_and_book_only(smoke: Path, tmp_path: Path) -> None:
    text = (paths.studies() / "smoke.yml").read_text(encoding="utf-8")
    changed = tmp_path / "smoke.yml"
    changed.write_text(text + "  seed: 7\n", encoding="utf-8")  # the file ends inside `judge:`
    assert load_study(changed).judge != load_study("smoke").judge
    done = reproduce(str(changed), "--dry-run")
    judges = [f"judge: random-llama, {block}" for block in load_study("smoke").blocks]
    assert planned(done.stdout) == sorted(["book", *judges])
    assert "(stale (judge.seed was 42 and is 7))" in done.stdout
    cell = load_study(changed).cells()[1]
    assert cell_status(cell, "train") == "done"
    assert cell_status(cell, "judge") == "stale"


def test_the_book_of_a_partial_study_has_honest_blanks(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and mid only, and no judgments."""
    for block in ("base", "mid"):
        kept = ["manifest.json", "training.jsonl", "responses.jsonl", "evaluation.json"]
        place = tmp_path / "smoke" / "random-llama" / block
        place.mkdir(parents=True)
        for name in kept:
            if (smoke / "random-llama" / block / name).is_file():
                shutil.copy(smoke / "random-llama" / block / name, place / name)
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path))
    index = book.build(load_study("smoke"))
    assert "not measured" in index.read_text()


def test_a_warning_of_the_build_is_an_error_and_keeps_the_old_book(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "book"
    shutil.copytree(paths.book_source(), source)
    (source / "ethics.md").write_text("# Ethics\n\n{ref}`nowhere-at-all`\n")
    monkeypatch.setattr(paths, "book_source", lambda: source)
    index = smoke / "html" / "index.html"
    before = index.stat().st_mtime_ns
    with pytest.raises(HialignError, match="nowhere-at-all"):
        book.build(load_study("smoke"))
    assert index.stat().st_mtime_ns == before
