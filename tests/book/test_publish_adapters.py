"""Published adapters in bfloat16, and tranches of which nothing but numbers is published."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_lines, write_study
from safetensors.torch import load_file
from simulated import simulate_preferences

from hialign.book import publish
from hialign.engine.adapters import load_cell, save_bfloat16
from hialign.engine.cells import train_together
from hialign.evaluation.evaluate import evaluate_together
from hialign.evaluation.explorer import Explorer
from hialign.evaluation.respond import respond
from hialign.records.files import read_json, write_json
from hialign.records.status import state
from hialign.report.replication.registered import registration
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.pair_files import withheld
from hialign.study.settings import PreferenceSettings
from hialign.study.study import Study, load_study

ADAPTERS = publish.Adapters("1", save_bfloat16)
CANARY = "periwinkle"  # in every text that is withheld


@pytest.fixture
def trained(outputs: Path, tmp_path: Path) -> Study:
    """A registered study of two seeds, of which the first was trained and evaluated."""
    path = write_study(
        tmp_path,
        models=["random:llama:3"],
        seeds=[1, 2],
        blocks=["base", "full", "mid", "random:third"],
        preferences={"train": 4, "evaluation": 6},
        responses={"prompts": 2, "max_new_tokens": 4},
    )
    path.with_name("tiny.registered.md").write_text("# Registered\n")
    study = load_study(path)
    cells = study.at(1).cells()
    train_together(cells)
    for cell in cells:
        respond(cell)
    evaluate_together(cells)
    return study


def test_published_adapters_are_the_trained_ones_in_bfloat16(
    trained: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = publish.publish(trained, partial=True, with_responses=False, adapters=ADAPTERS)
    names = sorted(p.relative_to(done.folder).as_posix() for p in done.folder.rglob("adapter/*"))
    weights = [name for name in names if name.endswith(".safetensors")]
    model = paths.slug(trained.models[0].name)
    assert weights == [
        f"{model}/{b}/seed-1/adapter/adapter_model.safetensors" for b in ("full", "mid")
    ]
    original = load_file(paths.study_dir("tiny") / weights[0])
    copy = load_file(done.folder / weights[0])
    assert {value.dtype for value in copy.values()} == {torch.bfloat16}
    assert copy.keys() == original.keys()
    assert all(torch.equal(copy[name], original[name].bfloat16()) for name in copy)
    assert str(paths.cache()) not in (done.folder / names[0]).read_text()
    assert (done.folder / "tiny.registered.md").read_text() == "# Registered\n"

    shutil.rmtree(paths.study_dir("tiny"))  # as in a fresh clone
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(done.folder.parent))
    published = load_study(done.folder / "study.yml")
    for block in ("full", "mid"):
        cell = published.cell(None, block, 1)
        assert state(cell, "train", thorough=True).status == "done"
        assert state(cell, "evaluate", thorough=True).status == "done"
        loaded, _ = load_cell(cell)
        used = {
            n.replace(".mid.", ".").replace(".full.", "."): p for n, p in loaded.named_parameters()
        }
        kept = load_file(cell.folder / "adapter" / "adapter_model.safetensors")
        for name, value in kept.items():
            assert torch.equal(used[name].bfloat16(), value), name
    other = published.cell(None, "random:third", 1)
    assert state(other, "train", thorough=True).status == "done"  # its adapter was not published
    with pytest.raises(HialignError, match="random:third of study tiny has no adapter: run"):
        load_cell(other)

    explorer = Explorer(published.cell(None, "base", 1))
    assert explorer.blocks == ["base", "full", "mid"]
    assert set(explorer.ask("What is rain?").answers) == {"base", "full", "mid"}


def test_a_published_adapter_that_was_changed_is_damaged(
    trained: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = publish.publish(trained, partial=True, with_responses=False, adapters=ADAPTERS)
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(done.folder.parent))
    cell = load_study(done.folder / "study.yml").cell(None, "mid", 1)
    weights = cell.folder / "adapter" / "adapter_model.safetensors"
    bytes_ = bytearray(weights.read_bytes())
    bytes_[-1] ^= 1
    weights.write_bytes(bytes_)
    assert state(cell, "train", thorough=True).status == "damaged"
    bytes_[-1] ^= 1
    weights.write_bytes(bytes_)
    assert state(cell, "train", thorough=True).status == "done"
    # A copy of another adapter does not pass for this one, though its record is whole
    other = load_study(done.folder / "study.yml").cell(None, "full", 1).folder / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json", "published.json"):
        shutil.copy(other / name, weights.with_name(name))
    assert state(cell, "train", thorough=True).status == "damaged"


def test_adapters_that_are_too_large_are_not_published(
    trained: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MOST_BYTES", 1000)
    with pytest.raises(HialignError, match=r"MB in bfloat16, over the 0 MB"):
        publish.publish(trained, partial=True, with_responses=False, adapters=ADAPTERS)
    assert not (paths.published() / "tiny").exists()
    other = publish.Adapters("7", save_bfloat16)
    with pytest.raises(HialignError, match="no seed '7'"):
        publish.publish(trained, partial=True, with_responses=False, adapters=other)


def test_the_registration_is_published_with_its_hash(
    preferences: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = preferences(pairs=12)
    before = registration(study)
    done = publish.publish(study, partial=True, with_responses=False)
    published = load_study(done.folder / "study.yml")
    found = registration(published)
    assert found is not None
    assert before is not None
    assert found.sha256 == before.sha256
    assert not found.changed
    found.file.write_text("# Something else\n")
    found = registration(published)
    assert found is not None
    assert found.changed


# --- withheld tranches ---------------------------------------------------------------------------


@pytest.fixture
def helpful(outputs: Path, tmp_path: Path) -> Study:
    """A study whose pairs are of helpful-base, with texts wherever a run leaves them."""
    texts = [{"chosen": f"\n\nHuman: {CANARY}?\n\nAssistant: a", "rejected": "\n\nHuman: b"}]
    for tranche in ("harmless-base", "helpful-base"):
        write_lines(tmp_path / "both" / tranche / "test.jsonl", texts)
    path = write_study(
        tmp_path,
        seeds=[1, 2],
        preferences={
            "source": str(tmp_path / "both"),
            "subsets": ["harmless-base", "helpful-base"],
        },
    )
    study = load_study(path)
    simulate_preferences(study, pairs=12)
    folder = paths.study_dir("tiny")
    for cell in study.cells():
        write_lines(cell.folder / "responses.jsonl", [{"prompt": CANARY, "response": CANARY}])
        write_lines(cell.folder / "judgments-x.jsonl", [{"raw": CANARY}])
        (cell.folder / "adapter").mkdir()
        (cell.folder / "adapter" / "adapter_model.safetensors").write_bytes(CANARY.encode())
    for name in ("train-x-all", "probe-patching-x-all", "explore-x-all", "respond-x-mid-seed-1"):
        (folder / "notebooks").mkdir(exist_ok=True)
        (folder / "notebooks" / f"{name}.ipynb").write_text(f'{{"cells": ["{CANARY}"]}}')
    write_json(folder / "explorations" / "x.json", {"question": CANARY})
    write_json(folder / "judge-validation-x.json", {"prompt": CANARY})
    return study


def test_nothing_of_a_withheld_tranche_is_published_but_numbers(helpful: Study) -> None:
    done = publish.publish(helpful, partial=True, with_responses=False)
    published = [path for path in done.folder.rglob("*") if path.is_file()]
    assert {path.name for path in published} == {"evaluation.json", "study.yml"}
    assert all(CANARY not in path.read_text() for path in published)
    row = read_json(next(p for p in published if p.name == "evaluation.json"))["pairs"][0]
    assert isinstance(row["chosen"], float)


def test_texts_and_adapters_of_a_withheld_tranche_are_refused(helpful: Study) -> None:
    with pytest.raises(
        HialignError, match=r"made of helpful-base, of which no prompt and no response"
    ):
        publish.publish(helpful, partial=True, with_responses=True)
    with pytest.raises(HialignError, match="of which no adapter may be published"):
        publish.publish(helpful, partial=True, with_responses=False, adapters=ADAPTERS)
    with pytest.raises(HialignError, match="--without-responses the numbers alone"):
        publish.publish(helpful, partial=True)  # it has to be said
    assert not paths.published().exists() or not list(paths.published().iterdir())


@pytest.mark.parametrize(
    ("settings", "tranches"),
    [
        ({"source": "builtin"}, []),
        ({"source": "contrasts"}, []),
        ({"source": "Anthropic/hh-rlhf", "subsets": ["harmless-base"]}, []),
        (
            {"source": "Anthropic/hh-rlhf", "subsets": ["harmless-base", "helpful-base"]},
            ["helpful-base"],
        ),
        ({"source": "Anthropic/hh-rlhf"}, ["helpful-base"]),  # all tranches
        ({"source": "somewhere/else", "subsets": ["helpful-base"]}, ["helpful-base"]),
    ],
)
def test_a_study_says_of_which_tranches_texts_are_withheld(
    settings: dict[str, Any], tranches: list[str]
) -> None:
    assert withheld(PreferenceSettings(**settings)) == tranches


def test_rounding_is_to_the_nearest(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = torch.tensor(np.random.default_rng(0).normal(size=1000).astype("float32"))
    save_file({"a": values}, tmp_path / "a.safetensors")
    save_bfloat16(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    copy = load_file(tmp_path / "b.safetensors")["a"]
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (
        tmp_path / "a.safetensors"
    ).stat().st_size
    assert float(((copy.float() - values).abs() / values.abs()).max()) <= 2**-8
