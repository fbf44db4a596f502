"""A study of two seeds and a control, from `hialign reproduce` to its book."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hialign import records
from hialign.records import files
from hialign.records.status import cell_status
from hialign.study.study import load_study

pytestmark = pytest.mark.slow


def hialign(*arguments: str) -> str:
    command = [sys.executable, "-m", "hialign.run", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_seeds_are_run_one_by_one_or_together(
    tiny_study: Callable[..., Path], outputs: Path
) -> None:
    path = tiny_study(seeds=[1, 2], shuffled_seeds=[2], blocks=["base", "mid"])
    study = load_study(path)
    said = hialign("reproduce", str(path), "--seed", "2", "--cores", "2")
    assert "evaluate: random-llama, all blocks, 2" in said
    states = {(c.seed, c.block): cell_status(c, "evaluate") for c in study.cells()}
    assert {seed for (seed, _), status in states.items() if status == "done"} == {"seed-2"}

    hialign("reproduce", str(path), "--cores", "2")
    assert {cell_status(c, "evaluate") for c in study.cells()} == {"done"}
    assert "Nothing to be done" in hialign("reproduce", str(path))
    frame = records.evaluations(study)
    assert list(frame.seed_name.unique()) == ["seed-1", "seed-2", "shuffled-2"]

    cells = {c.seed: c for c in study.cells() if c.block == "mid"}
    manifests = {seed: files.read_record(c.folder / "manifest.json") for seed, c in cells.items()}
    assert len({m["preferences"]["fingerprint"] for m in manifests.values()}) == 3
    assert manifests["shuffled-2"]["preferences"]["exchanged"] > 0
    evaluated = {
        seed: [row["id"] for row in files.read_record(c.folder / "evaluation.json")["pairs"]]
        for seed, c in cells.items()
    }
    assert evaluated["seed-1"] == evaluated["seed-2"] == evaluated["shuffled-2"]
    names = {p.name for p in (outputs / "tiny" / "notebooks").iterdir()}
    assert "train-random-llama-all-seed-1.ipynb" in names
    assert (outputs / "tiny" / "html" / "index.html").is_file()
    table = json.loads((outputs / "tiny" / "html" / "data" / "table-cells.json").read_text())
    assert len(table["rows"]) == 2  # pages of single runs show the first seed
