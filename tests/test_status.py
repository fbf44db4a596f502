"""What a record says is what was run: every change is seen, and redone as in an empty folder.

The stages run in this process, in the order in which `hialign.workflow` finds them; Snakemake takes
its decisions from the same states (tests/test_workflow.py).
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hialign import evaluate, files, judge, paths, respond, train_together, verify
from hialign.models import random_folder
from hialign.status import (
    DONE,
    notebook_sha256,
    state,
)
from hialign.study import Cell, Study, load_study

# What two runs of the same settings need not share
TIMES = (
    *("seconds", "shared_seconds", "trained_with"),
    *("peak_memory_bytes", "modified", "bytes", "sha256"),
)
STAGES = {"respond": respond, "evaluate": evaluate, "judge": judge}


def run(study: Study) -> set[tuple[str, str]]:
    """Run what is not done, in order; the stages and blocks that were run."""
    done = set()
    waiting = [c for c in study.cells() if state(c, "train", thorough=True) != DONE]
    if waiting:
        train_together(waiting)
        done |= {("train", c.block) for c in waiting}
    for stage, function in STAGES.items():
        for cell in study.cells():
            if state(cell, stage, thorough=True) != DONE:
                function(cell)
                done.add((stage, cell.block))
    return done


def not_done(study: Study, thorough: bool = True) -> set[tuple[str, str]]:
    """The stages and blocks that `reproduce` would run (`thorough`), or that `status` names."""
    return {
        (stage, c.block)
        for c in study.cells()
        for stage in ("train", *STAGES)
        if state(c, stage, thorough) != DONE
    }


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k not in TIMES}
    return [without_times(v) for v in content] if isinstance(content, list) else content


def records_of(study: Study) -> dict[str, Any]:
    """The content of every file of every cell, less what no two runs share."""
    content: dict[str, Any] = {}
    for cell in study.cells():
        for path in sorted(p for p in cell.folder.rglob("*") if p.is_file()):
            name = f"{cell.block}/{path.relative_to(cell.folder)}"
            if path.suffix == ".json":
                content[name] = without_times(json.loads(path.read_text()))
            elif path.suffix == ".jsonl":
                rows = files.read_jsonl(path)
                content[name] = [without_times({k: r[k] for k in r if k != "check"}) for r in rows]
            elif not path.name.endswith((".lock", ".md")):
                content[name] = path.read_bytes()
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study (base and mid of a model in a folder of its own), its pairs,
    and the notebooks that it was run with. Nothing in it names the folder."""
    place = tmp_path_factory.mktemp("finished")
    shutil.copytree(random_folder("llama:3"), place / "model")
    (place / "model" / "weights.sha256").unlink()
    shutil.copytree(paths.root() / "notebooks", place / "notebooks")
    write_study(
        place,
        models=["./model"],
        blocks=["base", "mid"],
        judge={"backend": "local", "model": "random:llama"},
        training={"max_length": 128},
        preferences={"source": "pairs.jsonl", "train": 6, "evaluation": 4},
        responses={"prompts": 3, "max_new_tokens": 4},
    )
    with at(place):
        run(load_study(place / "tiny.yml"))
    return place


@contextmanager
def at(place: Path) -> Iterator[None]:
    """`place` as the repository, with outputs of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "root", lambda: place)
        patch.setenv("HIALIGN_OUTPUTS", str(place / "outputs"))
        notebook_sha256.cache_clear()
        yield
    notebook_sha256.cache_clear()


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished study, which a test may change."""
    place = tmp_path / "copy"
    shutil.copytree(finished, place)
    with at(place):
        yield place


def mid(study: Study) -> Cell:
    return study.cell(None, "mid")


# --- any single change ---------------------------------------------------------------------------

SETTINGS = {
    "training.learning_rate": 0.02,
    "training.beta": 0.3,
    "training.lora_rank": 4,
    "training.seed": 7,
    "training.max_length": 96,
    "training.save_steps": 1,
    "training.tokens_per_pass": 256,
    "preferences.train": 5,
    "preferences.seed": 3,
    "responses.max_new_tokens": 5,
    "responses.prompts": 2,
    "evaluation.resamples": 300,
    "judge.model": "random:llama:4",
    "judge.max_failed": 0.5,
    "blocks": ["base", "mid", "local"],
    "analysis.margin": 0.3,
}


@st.composite
def changes(draw: Any) -> tuple[str, Any, bool]:
    """What is changed, a number that says where, and whether its time is put back."""
    kind = draw(st.sampled_from(["setting", "byte", "deleted", "row", "weights", "code", "prose"]))
    where = (
        draw(st.sampled_from(sorted(SETTINGS)))
        if kind == "setting"
        else draw(st.integers(0, 10**6))
    )
    return kind, where, draw(st.booleans())


def apply(change: tuple[str, Any, bool], place: Path) -> str:
    """Change one thing in the copy `place` of a finished study; what it was."""
    kind, where, quietly = change
    rng = random.Random(where)
    file = place / "tiny.yml"
    if kind == "setting":
        content = yaml.safe_load(file.read_text())
        *above, name = where.split(".")
        part = content[above[0]] if above and above[0] in content else content
        if above and above[0] not in content:
            content[above[0]] = part = {}
        part[name] = SETTINGS[where]
        file.write_text(yaml.safe_dump(content))
        return str(where)
    if kind in ("code", "prose"):
        stage = rng.choice(["train", "respond", "evaluate", "judge"])
        path = place / "notebooks" / f"{stage}.ipynb"
        book = json.loads(path.read_text())
        wanted = "code" if kind == "code" else "markdown"
        cells = [c for c in book["cells"] if c["cell_type"] == wanted]
        cells[-1]["source"] = [*cells[-1]["source"], "\n# changed"]
        path.write_text(json.dumps(book))
        return f"{kind} of {stage}"
    if kind == "row":
        path = place / "pairs.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        number = rng.randrange(len(lines))
        lines[number] = lines[number].replace("of course", "indeed")
        if rng.random() < 0.3:
            del lines[number]
        path.write_text("".join(lines))
        return f"row {number}"
    if kind == "weights":
        path = place / "model" / "model.safetensors"
    else:
        known = ("adapter_model", "adapter_config", ".json")
        found = sorted(p for p in (place / "outputs").rglob("*") if p.is_file())
        found = [p for p in found if p.suffix in (".json", ".jsonl") or p.name.startswith(known)]
        path = rng.choice([p for p in found if not p.name.startswith(".")])
    times = path.stat()
    if kind == "deleted":
        path.unlink()
        return f"{path} deleted"
    data = bytearray(path.read_bytes())
    # The end of safetensors holds numbers: the file stays one that can be loaded.
    at = len(data) - 1 - rng.randrange(64) if kind == "weights" else rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(2)
    path.write_bytes(bytes(data))
    if quietly:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"byte {at} of {path}"


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(change=changes())
def test_after_any_single_change_the_records_are_those_of_an_empty_folder(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, change: tuple[str, Any, bool]
) -> None:
    place = tmp_path_factory.mktemp("changed") / "study"
    shutil.copytree(finished, place)
    with at(place):
        what = apply(change, place)
        notebook_sha256.cache_clear()
        study = load_study(place / "tiny.yml")
        named, expected = not_done(study, thorough=False), not_done(study)
        wrong = [line for line in verify.verify(study) if line.wrong]
        assert run(study) <= expected, what  # less where what was made again is as it was
        assert not_done(study) == set(), what
        if expected:
            again = records_of(study)
            shutil.rmtree(place / "outputs")
            run(study)
            assert again == records_of(study), what
    kind, where, quietly = change
    if kind in ("byte", "weights") and quietly:
        assert wrong or not expected, what
    else:
        assert named == expected, what
    unimportant = ("training.save_steps", "training.tokens_per_pass", "judge.max_failed")
    if kind == "prose" or where in (*unimportant, "analysis.margin"):
        assert expected == set(), what
    else:
        assert expected, what
    shutil.rmtree(place)
