"""What a record says is what was run: every change is seen, and redone as in an empty folder.

The stages run in this process, in the order in which `hialign.run.workflow` finds them; Snakemake takes
its decisions from the same states (tests/test_workflow.py).
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import write_lines, write_study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hialign import HialignError, chat, evaluate, judge, load_cell, records, respond, train_together
from hialign.book.publish import publish
from hialign.engine.embedded import random_folder
from hialign.evaluation.explorer import Explorer
from hialign.probes.weights import weights
from hialign.records import files, frames, verify
from hialign.records.dependencies import notebook_sha256
from hialign.records.differences import differences
from hialign.records.stages import judgments_file, stage_manifest
from hialign.records.status import DONE, cell_status, required, state
from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.study import Cell, Study, load_study, without_costs

# What two runs of the same settings need not share
TIMES = (
    *("seconds", "shared_seconds", "trained_with"),
    *("peak_memory_bytes", "modified", "bytes", "sha256"),
    # What one run of the judge asked for
    *("done", "reused", "shared", "usage", "cost", "total_usage", "total_cost"),
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
        judge={"backend": "local", "model": "random:llama:2"},
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
        move_to(place, patch)
        yield
    notebook_sha256.cache_clear()


def move_to(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(paths, "root", lambda: place)
    patch.setenv("HIALIGN_OUTPUTS", str(place / "outputs"))
    notebook_sha256.cache_clear()


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished study, which a test may change.

    It patches with the test's own `monkeypatch`, so that all is undone in the opposite order. With
    a second one, what a test sets would be undone last, to a folder of the copy.
    """
    place = tmp_path / "copy"
    shutil.copytree(finished, place)
    move_to(place, monkeypatch)
    yield place
    notebook_sha256.cache_clear()


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
    "judge.model": "random:llama:1",
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


def inputs_of(place: Path) -> tuple[bytes, ...]:
    """All that runs in `place` read: everything in it but what they wrote."""
    paths = sorted(p for p in place.rglob("*") if p.is_file())
    return tuple(p.read_bytes() for p in paths if not p.is_relative_to(place / "outputs"))


@pytest.fixture(scope="module")
def fresh(finished: Path) -> Callable[[Path], dict[str, Any]]:
    """The records of a study that was run in an empty folder; equal inputs are run once.

    It empties the outputs in the folder that it is given, if it runs there.
    """
    with at(finished):
        done = {inputs_of(finished): records_of(load_study(finished / "tiny.yml"))}

    def get(place: Path) -> dict[str, Any]:
        inputs = inputs_of(place)
        if inputs not in done:
            shutil.rmtree(place / "outputs")
            study = load_study(place / "tiny.yml")
            run(study)
            done[inputs] = records_of(study)
        return done[inputs]

    return get


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(change=changes())
def test_after_any_single_change_the_records_are_those_of_an_empty_folder(
    finished: Path,
    fresh: Callable[[Path], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    change: tuple[str, Any, bool],
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
            again, empty_folder = records_of(study), fresh(place)
            # Another judge's judgments stay beside the new one's
            assert {name: again[name] for name in empty_folder} == empty_folder, what
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


# --- what is refused -----------------------------------------------------------------------------


def changed(place: Path, **settings: Any) -> Study:
    """The study with other settings of its sections."""
    content = yaml.safe_load((place / "tiny.yml").read_text())
    for section, values in settings.items():
        content[section] = content.get(section, {}) | values
    (place / "tiny.yml").write_text(yaml.safe_dump(content))
    return load_study(place / "tiny.yml")


def explore(cell: Cell) -> Any:
    return Explorer(cell).load()


@pytest.mark.parametrize("read", [respond, evaluate, judge, load_cell, explore, weights])
def test_an_adapter_of_other_settings_is_refused(copy: Path, read: Callable[[Cell], Any]) -> None:
    probes = {"weights": {"tuned": "mid"}}
    cell = mid(changed(copy, training={"learning_rate": 0.02}, probes=probes))
    before = records_of(cell.study)
    with pytest.raises(HialignError) as caught:
        read(cell)
    text = str(caught.value)
    assert "training.learning_rate was 0.01 and is 0.02" in text
    assert f"run `hialign run train -p study {copy}/tiny.yml -p block mid` first" in text
    assert records_of(cell.study) == before
    assert "\n" not in text


def test_a_stage_says_what_its_records_were_made_with(copy: Path) -> None:
    """The finding that this file is about: responses of the old adapter under the new rate."""
    study = changed(copy, training={"learning_rate": 0.02})
    old = mid(study).folder / "adapter" / "adapter_model.safetensors"
    before = old.read_bytes()
    assert {s for s, block in not_done(study) if block == "mid"} == {"train", *STAGES}
    assert {s for s, block in not_done(study) if block == "base"} == set()
    run(study)
    assert old.read_bytes() != before
    for stage in ("train", *STAGES):
        record = files.read_record(stage_manifest(mid(study), stage))
        assert record["settings"]["training"]["learning_rate"] == 0.02


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def edit_alpha(path: Path) -> None:
    config = files.read_json(path)
    files.write_json(path, config | {"lora_alpha": 8 * config["lora_alpha"]})


def drop_row(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def double(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def edit_response(path: Path) -> None:
    rows = files.read_jsonl(path)
    rows[0]["response"] += " And more."
    write_lines(path, rows)


def edit_score(path: Path) -> None:
    rows = files.read_jsonl(path)
    name = next(iter(rows[0]["scores"]))
    rows[0]["scores"][name] = 5.0
    write_lines(path, rows)


ADAPTER, CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"


@pytest.mark.parametrize(
    ("name", "damage", "stage", "why"),
    [
        (ADAPTER, Path.unlink, "train", "is missing"),
        (ADAPTER, truncate, "train", "was changed"),
        (CONFIG, edit_alpha, "train", "was changed"),
        ("training.jsonl", drop_row, "train", "has 1 rows where 2 were written"),
        ("responses.jsonl", drop_row, "respond", "has 2 rows where 3 were written"),
        ("responses.jsonl", edit_response, "respond", "was changed"),
        ("evaluation.json", truncate, "evaluate", "was changed"),
        ("judgments", drop_row, "judge", "has 2 rows where 3 were written"),
        ("judgments", double, "judge", "has 6 rows where 3 were written"),
        ("judgments", edit_score, "judge", "was changed"),
    ],
)
def test_what_was_damaged_is_seen_and_made_again(
    copy: Path, name: str, damage: Callable[[Path], None], stage: str, why: str
) -> None:
    study = load_study(copy / "tiny.yml")
    before = records_of(study)
    cell = mid(study)
    damage(judgments_file(cell) if name == "judgments" else cell.folder / name)
    found = state(cell, stage)
    assert found.status == "damaged"
    assert why in found.why
    assert [line.wrong for line in verify.verify(study) if f"{stage} of" in str(line)] == [
        *(False, True)
    ]
    with pytest.raises(HialignError, match="damaged"):
        required(cell, stage)
    run(study)
    assert not_done(study) == set()
    assert records_of(study) == before


def test_a_flipped_byte_with_its_old_time_is_found_by_those_who_read_it(copy: Path) -> None:
    study = load_study(copy / "tiny.yml")
    path = mid(study).folder / ADAPTER
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cell_status(mid(study)) == "done"  # which looks at sizes and times
    assert any(line.wrong for line in verify.verify(study))
    for read in (respond, load_cell, explore):
        with pytest.raises(HialignError, match=r"adapter_model\.safetensors was changed"):
            read(mid(study))  # type: ignore[operator]


def test_the_book_shows_nothing_that_was_made_with_other_settings(copy: Path) -> None:
    study = load_study(copy / "tiny.yml")
    readers = (records.training, records.evaluations, records.pairs, records.divergences)
    readers += (records.responses, records.judgments)
    assert all("mid" in set(read(study).block) for read in readers)
    study = changed(copy, training={"learning_rate": 0.02})
    assert not any("mid" in set(read(study).block) for read in readers)
    assert "base" in set(records.evaluations(study).block)
    (row,) = records.manifests(study).query("block == 'mid'").to_dict("records")
    assert row["status"] == "stale"
    assert row["steps"] != row["steps"]  # not a number


def test_notes_that_a_notebook_shows_are_not_shown_as_stale(copy: Path) -> None:
    """The code of a notebook has changed: it will run again, and what it found is still true."""
    path = copy / "notebooks" / "evaluate.ipynb"
    book = json.loads(path.read_text())
    book["cells"][-1]["source"] = ["print(1)"]
    path.write_text(json.dumps(book))
    notebook_sha256.cache_clear()
    study = load_study(copy / "tiny.yml")
    found = state(mid(study), "evaluate")
    assert (found.status, found.trusted) == ("stale", True)
    assert found.why == "the code of notebooks/evaluate.ipynb has changed"
    assert "mid" in set(records.evaluations(study).block)
    assert not_done(study) == {("evaluate", "base"), ("evaluate", "mid")}


# --- judgments that failed -----------------------------------------------------------------------


def test_too_many_failed_judgments_are_a_failure(copy: Path) -> None:
    study = load_study(copy / "tiny.yml")
    place = stage_manifest(mid(study), "judge")
    record = files.read_record(place)
    files.write_record(place, record | {"failed": 2, "n": 3})
    found = state(mid(study), "judge")
    assert (found.status, found.why, found.trusted) == ("failed", "2 of 3 failed", True)
    assert cell_status(mid(changed(copy, judge={"max_failed": 0.7})), "judge") == "done"


# --- what is published, and what is older --------------------------------------------------------


def test_published_records_are_verified_without_weights(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(copy / "tiny.yml")
    publish(study, with_responses=False)
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(copy / "outputs" / "published"))
    assert not_done(study) == set()
    lines = [str(line) for line in verify.verify(study)]
    assert not any(line.wrong for line in verify.verify(study))
    assert (
        "train of model, mid: its record and 1 files are as written, 2 were not published" in lines
    )
    place = stage_manifest(mid(study), "evaluate")
    place.write_text(place.read_text().replace('"n": 4', '"n": 5', 1))
    assert [line.what for line in verify.verify(study) if line.wrong] == ["evaluate of model, mid"]


def test_records_of_an_earlier_version_have_no_hashes_and_are_not_refused(copy: Path) -> None:
    study = load_study(copy / "tiny.yml")
    for cell in study.cells():
        for stage in ("train", *STAGES):
            place = stage_manifest(cell, stage)
            record = files.read_record(place)
            for name in ("sha256", "files", "inputs", "notebook"):
                record.pop(name, None)
            files.write_json(place, record)
    assert not_done(study) == set()
    lines = list(verify.verify(study))
    assert len(lines) == 8
    assert not any(line.wrong for line in lines)
    assert all("has no hashes" in str(line) for line in lines)
    load_cell(mid(study))


def test_a_setting_that_an_earlier_version_did_not_have_counts_as_its_default() -> None:
    old = {"training": {"beta": 0.1}, "model": {"source": "x", "name": "x"}}
    new = {"training": {"beta": 0.1, "weight_decay": 0.01}, "model": {"source": "x", "name": "x"}}
    assert list(differences(old, new)) == []
    new["training"]["weight_decay"] = 0.5
    assert list(differences(old, new)) == ["training.weight_decay was not there and is 0.5"]
    new["training"] |= {"weight_decay": 0.01, "beta": 0.2, "save_steps": 3}
    assert list(differences(old, new)) == ["training.beta was 0.1 and is 0.2"]


def test_a_setting_of_a_probe_that_an_earlier_version_did_not_have() -> None:
    old = {"probe": {"preferences": {"seed": 42}}}
    new = {"probe": {"preferences": {"seed": 42, "draw": None, "shuffled": False}}}
    assert list(differences(old, new)) == []
    new["probe"]["preferences"]["draw"] = 1
    assert list(differences(old, new)) == ["probe.preferences.draw was not there and is 1"]


def test_records_from_before_pairs_could_be_drawn_anew_are_done(copy: Path) -> None:
    study = load_study(copy / "tiny.yml")
    for cell in study.cells():
        for place in {stage_manifest(cell, stage) for stage in ("train", *STAGES)}:
            record = files.read_record(place)
            for name in ("draw", "shuffled"):
                del record["settings"]["preferences"][name]
            now = record["fingerprint"]
            record["fingerprint"] = json_sha256(without_costs(record["settings"]), 16)
            assert record["fingerprint"] != now
            del record["sha256"]
            files.write_json(place, record)
    assert not_done(study) == set()
    preferences = study.preferences.model_copy(update={"draw": 3})
    drawn = study.model_copy(update={"preferences": preferences})
    told = state(drawn.cell(None, "mid"), "train")
    assert (told.status, told.why) == ("stale", "preferences.draw was not there and is 3")


# --- asking a cell -------------------------------------------------------------------------------


def test_a_cell_is_asked_as_its_responses_were_made(copy: Path) -> None:
    study = changed(copy, responses={"batch_size": 1})
    run(study)
    cell = mid(study)
    loaded = load_cell(cell)
    for row in frames.responses_of(cell):
        assert chat(cell, row["prompt"], loaded) == row["response"]
    assert chat(cell, [{"role": "user", "content": "Hello?"}]) == chat(cell, "Hello?", loaded)
