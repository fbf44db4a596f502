"""What is published: whole, without weights, secrets or this machine's paths; and it builds a book."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import CANARY

from hialign import load_study
from hialign.book import build as book
from hialign.book import publish, site
from hialign.records.files import read_json, write_json, write_jsonl
from hialign.records.stages import judgments_file, stage_manifest
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import PROBES, Study

CELL_FILES = ("manifest.json", "manifest-respond.json", "evaluation.json")


@pytest.fixture
def finished(outputs: Path) -> Study:
    """The records of a finished study as far as publishing looks at them, and what stays behind."""
    study = load_study("smoke").model_copy(update={"name": "made"})
    for cell in study.cells():
        for stage in ("train", "respond", "evaluate", "judge"):
            manifest = {"fingerprint": cell.fingerprint(stage), "parameters": 1}
            write_json(stage_manifest(cell, stage), manifest)
        judge = judgments_file(cell).name
        for name in ("responses.jsonl", judge):
            write_jsonl(cell.folder / name, [{"prompt_id": "1"}])
        for name in (judge.replace(".jsonl", ".earlier.jsonl"), f".{judge}.lock", "weights.bin"):
            (cell.folder / name).write_text("stays")
        if cell.block != "base":
            write_jsonl(cell.folder / "training.jsonl", [{"step": 1}])
            (cell.folder / "adapter").mkdir()
            (cell.folder / "adapter" / "adapter_model.safetensors").write_bytes(b"\x00\xff")
            (cell.folder / "adapter" / "adapter_config.json").write_text("{}")
    for probe in PROBES:
        record = {"fingerprint": study.cell(None, "base").probe_fingerprint(probe), "key": "k"}
        write_json(paths.probe_record(study.name, study.models[0].name, probe), record)
    chosen = study.cell(None, "gradient:top30%")
    manifest = read_json(stage_manifest(chosen, "train")) | {"chosen_by": "k"}
    write_json(stage_manifest(chosen, "train"), manifest)
    folder = paths.study_dir(study.name)
    for name in (
        "html/index.html",
        "notebooks/explore-random-llama-all.ipynb",
        "notebooks/train-random-llama-full.failed.ipynb",
        "notebooks/.train-random-llama-mid.7.ipynb",
        "batches-judge.json",
        ".book/index.md",
        ".checkpoints/random-llama/x/checkpoint-1/model.safetensors",
        "explorations/random-llama-of-other-adapters.json.partial",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("stays")
    (folder / "notebooks" / "respond-random-llama-mid.ipynb").write_text("{}")
    (folder / "judge-validation-x.json").write_text("{}")
    old = folder / "notebooks" / "train-random-llama-full.failed.ipynb"
    os.utime(old, (0, 0))  # it failed before it succeeded
    return study


def published(study: Study) -> set[str]:
    folder = paths.published() / study.name
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_records_are_copied_and_nothing_else(finished: Study) -> None:
    done = publish.publish(finished)
    judge = finished.judge.name if finished.judge else ""
    wanted = {"study.yml", "judge-validation-x.json", "notebooks/respond-random-llama-mid.ipynb"}
    wanted |= {f"random-llama/probes/{probe}.json" for probe in PROBES}
    for block in ("base", "full", "mid", "gradient-top30pct"):
        names = (*CELL_FILES, "responses.jsonl", f"judgments-{judge}.jsonl")
        names += (f"manifest-judge-{judge}.json",)
        names += ("training.jsonl",) if block != "base" else ()
        wanted |= {f"random-llama/{block}/{name}" for name in names}
    assert published(finished) == wanted
    assert done.files == len(wanted)
    assert done.bytes == sum((done.folder / name).stat().st_size for name in wanted)
    assert load_study(done.folder / "study.yml") == finished
    assert (done.folder.stat().st_mode & 0o777) == 0o755
    assert [p.name for p in paths.published().iterdir()] == ["made"]


def test_what_is_kept_of_other_adapters_is_not_published(finished: Study) -> None:
    from hialign.evaluation.explorer import Explorer
    from hialign.records.explorations import Answer, Exploration

    explorer = Explorer(finished.cells()[0])
    same = {"decoding": explorer.decoding, "weights": {}, "answers": {}}
    same["answers"] = {"base": Answer(text="x", finish_reason="stop")}
    for question, runs in (("now", explorer.runs), ("then", {"mid": "another"})):
        kept = Exploration(question=question, runs=runs, **same)
        write_json(explorer.file_of(question), kept.model_dump(mode="json"))
    publish.publish(finished)
    found = {name for name in published(finished) if name.startswith("explorations/")}
    assert found == {f"explorations/{explorer.file_of('now').name}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{canary}", "has the value of SOME_API_KEY in it"),
        ("a key, sk-proj-abcdefghijklmnop12345, by accident", "has what looks like a key in it"),
        ("hf_abcdefghijklmnopqrstuvwx", "has what looks like a key in it"),
        ("see {root}/studies/demo.yml", "has a path of this machine in it"),
        ("see {home}/.cache", "has a path of this machine in it"),
        ("see /home/somebody/models", r"has a path of this machine in it \(/home/somebody\)"),
        ("see C:\\\\Users\\\\somebody", "has a path of this machine in it"),
    ],
)
def test_secrets_and_paths_are_refused_by_the_files_name(
    finished: Study, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("SOME_API_KEY", CANARY.replace("sk-", "zz-"))
    monkeypatch.setenv("SHORT_TOKEN", "1")
    publish.publish(finished)
    before = published(finished)
    places = {"canary": CANARY.replace("sk-", "zz-"), "root": paths.root(), "home": Path.home()}
    file = finished.cells()[2].folder / "evaluation.json"
    write_json(file, read_json(file) | {"note": text.format(**places)})
    with pytest.raises(HialignError, match=rf"^random-llama/mid/evaluation\.json {message}"):
        publish.publish(finished)
    assert published(finished) == before, "what was published before stays"
    kept = (paths.published() / "made/random-llama/mid/evaluation.json").read_text()
    assert "note" not in kept
    assert [p.name for p in paths.published().iterdir()] == ["made"]


def test_a_response_may_name_a_folder_but_hold_no_key(finished: Study) -> None:
    file = finished.cells()[0].folder / "responses.jsonl"
    write_jsonl(file, [{"response": "Look into /home/alice/notes."}])
    publish.publish(finished)
    write_jsonl(file, [{"response": f"My key is {CANARY}."}])
    with pytest.raises(HialignError, match=r"base/responses\.jsonl has what looks like a key"):
        publish.publish(finished)


def test_an_unfinished_study_needs_partial(finished: Study) -> None:
    stage_manifest(finished.cells()[1], "judge").unlink()
    stale = stage_manifest(finished.cells()[2], "evaluate")
    write_json(stale, {"fingerprint": "of other settings"})
    message = r"not finished: judge of random-llama, full is missing \(of 2\); .*--partial"
    with pytest.raises(HialignError, match=message):
        publish.publish(finished)
    assert not (paths.published() / "made").exists()
    assert publish.publish(finished, partial=True).files > 10
    (paths.study_dir("made") / "notebooks" / "train-random-llama-full.failed.ipynb").touch()
    with pytest.raises(HialignError, match=r"train of random-llama, full is failed \(of \d+\)"):
        publish.publish(finished)


def test_responses_to_prompts_from_elsewhere_need_a_word(finished: Study) -> None:
    update = {"source": "Anthropic/hh-rlhf", "subsets": ["harmless-base"]}
    source = finished.preferences.model_copy(update=update)
    other = finished.model_copy(update={"preferences": source})
    with pytest.raises(HialignError, match=r"prompts of Anthropic/hh-rlhf.*--with-responses"):
        publish.publish(other, partial=True)
    everything = publish.publish(other, partial=True, with_responses=True).files
    done = publish.publish(other, partial=True, with_responses=False)
    names = {p.name for p in done.folder.rglob("*") if p.is_file()}
    assert not [name for name in names if name.endswith(".jsonl") and name != "training.jsonl"]
    assert "respond-random-llama-mid.ipynb" not in names
    assert {"evaluation.json", "manifest-respond.json", "gradients.json"} <= names
    assert done.files == everything - 2 * len(other.cells()) - 1


def test_the_command_says_where_and_how_much(finished: Study, tmp_path: Path) -> None:
    file = tmp_path / "made.yml"
    file.write_text(yaml.safe_dump(finished.model_dump(mode="json")))
    command = [sys.executable, "-m", "hialign.run", "publish", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(paths.published() / "made"))
    assert "files, 0.0" in done.stdout
    bad = subprocess.run(
        [*command[:3], "publish", "paper"], capture_output=True, text=True, timeout=300
    )
    assert bad.returncode == 1
    assert len(bad.stderr.strip().splitlines()) == 1


# --- the site ------------------------------------------------------------------------------------


@pytest.fixture
def fake_books(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """`book.build` as a page with the study's title; the places that it was built in."""
    seen: list[Path] = []

    def build(study: Study) -> Path:
        place = paths.html_dir(study.name)
        assert (place.parent / "study.yml").is_file()
        seen.append(place)
        place.mkdir()
        (place / "index.html").write_text(study.title)
        return place / "index.html"

    monkeypatch.setattr(book, "build", build)
    return seen


def test_one_study_is_the_site_and_several_get_an_index(
    finished: Study, fake_books: list[Path], tmp_path: Path
) -> None:
    publish.publish(finished)
    target = tmp_path / "site"
    assert site.build(target).read_text() == finished.title
    publish.publish(finished.model_copy(update={"name": "made", "title": "<b>One</b>"}))
    second = finished.model_copy(update={"name": "second", "title": "Two & more"})
    for model in finished.models:
        there = paths.study_dir("second") / model.name
        shutil.copytree(paths.study_dir(finished.name) / model.name, there)
    publish.publish(second)
    text = site.build(target).read_text()
    assert 'href="made/index.html">&lt;b&gt;One&lt;/b&gt;<' in text
    assert 'href="second/index.html">Two &amp; more<' in text
    assert (target / "second" / "index.html").read_text() == "Two & more"
    assert (target / ".nojekyll").is_file()
    assert not any(paths.published() in place.parents for place in fake_books)
    assert {p.name for p in paths.published().iterdir()} == {"made", "second"}


def test_a_folder_that_is_no_site_is_left_alone(
    finished: Study, fake_books: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(HialignError, match=r"nothing is published.*`hialign publish STUDY`"):
        site.build(tmp_path / "site")
    publish.publish(finished)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(HialignError, match="holds no site that was built by this command"):
        site.build(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has nothing: no cache, no GPU, no hub."""
    monkeypatch.setenv("HIALIGN_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "nothing"


@pytest.mark.slow
def test_a_book_is_built_from_published_records_alone(
    smoke: Path, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoke study through both commands; a warning of the build would be an error."""
    outputs = tmp_path / "outputs"
    shutil.copytree(smoke, outputs / "smoke")
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(outputs))
    done = publish.publish(load_study("smoke"))
    assert not list(done.folder.rglob("*adapter*"))
    assert not list(done.folder.rglob("*.safetensors"))
    shutil.rmtree(outputs / "smoke")
    place = site.build(tmp_path / "site").parent
    text = (place / "experiments.html").read_text()
    assert "3.067" in text
    assert "random-llama" in text
    # of each of four cells a page and three notebooks; two of trainings, six of probes
    assert len(list((place / "runs").glob("*.html"))) == 23
    assert "Explore: one question, every strategy" in (place / "notebooks.html").read_text()
    everything = "".join(p.read_text() for p in place.rglob("*.html"))
    for secret in (str(tmp_path), str(paths.root()), CANARY):
        assert secret not in everything
    assert not elsewhere.exists(), "something was converted or computed for the book"
    assert published_is_clean(done.folder)


def published_is_clean(folder: Path) -> bool:
    return not [p for p in folder.iterdir() if p.name in (".book", "html", ".book.log")]


@pytest.mark.skipif(not paths.in_checkout(), reason="needs a checkout of the repository")
def test_what_the_repository_publishes_would_be_published_today() -> None:
    """Each is a study that loads, is checked anew for secrets and paths, and is small."""
    folder = paths.root() / "outputs" / "published"
    for study in folder.glob("*/study.yml"):
        assert load_study(study).name == study.parent.name
        publish.check(study.parent, {})
        kept = [p for p in study.parent.rglob("*") if p.is_file()]
        # the demo; and thirteen blocks with six probes, whose executed notebooks are half of it
        limit = 2e6 if study.parent.name == "demo" else 5e6
        assert sum(p.stat().st_size for p in kept) < limit
        assert not [p for p in kept if p.suffix in (".safetensors", ".bin", ".lock")]
