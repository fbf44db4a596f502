"""Studies: what the paper sets, what is refused and how, what makes a run stale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hialign import HialignError, load_study, paths
from hialign.study import (
    STAGES,
    ModelSettings,
    PreferenceSettings,
    Study,
    TrainingSettings,
    study_names,
)

# Table 5, as printed in the paper. Precision is `auto`: bfloat16 on a GPU, as there.
TABLE_5: dict[str, Any] = {
    "learning_rate": 1e-5,
    "optimizer": "adamw_torch",
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "batch_size": 6,
    "gradient_accumulation_steps": 4,
    "epochs": 1,
    "beta": 0.1,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gradient_checkpointing": True,
    "max_length": 2048,
    "seed": 42,
}


def one_line(error: pytest.ExceptionInfo[HialignError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_load(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    own = {
        "smoke": ["base", "full", "mid", "gradient:top30%"]
    }  # studies/where.yml: the thirds first
    everything = ["base", "full", "local", "mid", "global"]
    assert study.blocks[:5] == own.get(name, everything)
    assert len(study.blocks) == 5 or name in ("smoke", "where")
    assert len(study.cells()) == len(study.models) * len(study.blocks)
    folders = {cell.folder for cell in study.cells()}
    assert len(folders) == len(study.cells())


def test_the_default_study_is_shipped() -> None:
    assert "demo" in study_names()
    assert load_study("demo").models[0].source == "embedded:smollm2-135m-instruct"


def test_the_papers_studies() -> None:
    if "paper" not in study_names():
        pytest.skip("studies/paper.yml is not there yet")
    study = load_study("paper")
    assert len(study.models) == 4
    assert study.training.model_dump().items() >= TABLE_5.items()
    assert study.training.effective_batch == 24
    assert (study.preferences.train, study.preferences.evaluation) == (10_000, 1_000)
    assert study.preferences.source == "Anthropic/hh-rlhf"
    assert study.judge is not None
    assert study.judge.model.startswith("qwen3-max")


def test_defaults_are_table_5() -> None:
    defaults = TrainingSettings().model_dump()
    assert {key: defaults[key] for key in TABLE_5} == TABLE_5
    assert TrainingSettings().effective_batch == 24
    assert (
        PreferenceSettings().model_dump().items()
        >= {
            "source": "Anthropic/hh-rlhf",
            "train": 10_000,
            "evaluation": 1_000,
            "seed": 42,
        }.items()
    )


# --- what is refused -----------------------------------------------------------------------------

PLACES = [
    ({"modles": []}, "unknown key 'modles'"),
    ({"training": {"learning_rat": 1}}, "unknown key 'training.learning_rat'"),
    ({"judge": {"api_key": "secret"}}, "unknown key 'judge.api_key'"),
    ({"models": [{"source": "x/y", "dtype": "bf16"}]}, "unknown key 'models.0.dtype'"),
    ({"training": {"beta": 0}}, "training.beta: Input should be greater than 0 (it is 0)"),
    ({"training": {"lora_dropout": 1.0}}, "training.lora_dropout: Input should be less than 1"),
    ({"training": {"learning_rate": "1e-5x"}}, "training.learning_rate: Input should be a valid"),
    ({"training": {"truncation": "middle"}}, "training.truncation: Input should be 'keep_start'"),
    (
        {"preferences": {"train": 0}},
        "preferences.train: Input should be greater than or equal to 1",
    ),
    ({"models": []}, "models: "),
    ({"blocks": ["middle"]}, "block 'middle' is not one of base, full, local, mid, global"),
    ({"blocks": ["mid", "mid"]}, "a block stands twice"),
    ({"models": ["random:llama", "random:llama"]}, "two models have the same name"),
    ({"training": None}, "training: "),
]


@pytest.mark.parametrize(("changes", "problem"), PLACES)
def test_a_wrong_setting_is_refused_with_file_and_key(
    tiny_study: Callable[..., Path], changes: dict[str, Any], problem: str
) -> None:
    path = tiny_study(**changes)
    with pytest.raises(HialignError) as caught:
        load_study(path)
    assert one_line(caught).startswith(f"{path}: ")
    assert problem in one_line(caught)


def test_all_problems_are_told_at_once(tiny_study: Callable[..., Path]) -> None:
    path = tiny_study(training={"beta": -1, "rank": 8}, title=None)
    with pytest.raises(HialignError) as caught:
        load_study(path)
    for key in ("title", "training.beta", "training.rank"):
        assert key in one_line(caught)


def test_missing_keys_are_told(tmp_path: Path) -> None:
    path = tmp_path / "empty.yml"
    path.write_text("{}\n")
    with pytest.raises(HialignError) as caught:
        load_study(path)
    assert one_line(caught) == f"{path}: key 'title' is missing; key 'models' is missing"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("title: [", "is not YAML"),
        ("- a\n- b\n", "is not a study: it must be a mapping"),
        ("", "is not a study: it must be a mapping"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "broken.yml"
    path.write_text(text)
    with pytest.raises(HialignError) as caught:
        load_study(path)
    assert one_line(caught).startswith(f"{path} {problem}")


def test_an_unknown_study_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(HialignError, match=r"there is no study 'dmeo': .*demo") as caught:
        load_study("dmeo")
    one_line(caught)
    with pytest.raises(HialignError, match=r"cannot read the study .*none\.yml: No such file"):
        load_study(tmp_path / "none.yml")


# --- names and cells -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "label"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
        *[("embedded:smollm2-135m-instruct", "smollm2-135m-instruct", "smollm2-135m-instruct")],
        ("random:llama", "random-llama", "random-llama"),
        ("/models/My-Model/", "My-Model", "My-Model"),
        ("./models/My-Model", "My-Model", "My-Model"),
        ("~/My-Model", "My-Model", "My-Model"),
    ],
)
def test_names_of_models(source: str, name: str, label: str) -> None:
    model = ModelSettings(source=source)
    assert (model.name, model.label) == (name, label)


def test_cells(tiny_study: Callable[..., Path], outputs: Path) -> None:
    study = load_study(
        tiny_study(models=["random:llama", "org/model"], blocks=["base", "layers:1-2,4"])
    )
    assert [(c.model.name, c.block) for c in study.cells()] == [
        ("random-llama", "base"),
        ("random-llama", "layers:1-2,4"),
        ("org/model", "base"),
        ("org/model", "layers:1-2,4"),
    ]
    assert study.cells()[3].folder == outputs / "tiny" / "org--model" / "layers-1-2_4"
    assert study.cell(None, "mid").model.name == "random-llama"
    assert study.cell("org/model", "mid").strategy == "Mid-Align"
    assert study.model("other/model").source == "other/model"
    with pytest.raises(HialignError, match="block 'middle' is not one of"):
        study.cell(None, "middle")


def test_paths_stay_one_component(outputs: Path) -> None:
    folder = paths.cell_dir("my/study", "a/b:c", "layers:1,2")
    assert folder.relative_to(outputs).parts == ("my--study", "a--b-c", "layers-1_2")


# --- fingerprints --------------------------------------------------------------------------------


def changed(study: Study, section: str, **values: Any) -> Study:
    """`study` with other `values` in one section."""
    return study.model_copy(
        update={section: getattr(study, section).model_copy(update=values)},
    )


# What a change of each section makes stale
DEPENDENT = {
    ("preferences", "seed", 7): set(STAGES),
    ("training", "learning_rate", 0.5): set(STAGES),
    ("responses", "max_new_tokens", 7): {"respond", "evaluate", "judge"},
    ("evaluation", "resamples", 999): {"evaluate"},
    ("judge", "temperature", 0.5): {"judge"},
    ("analysis", "margin", 0.5): set(),
}


@pytest.mark.parametrize(("section", "key", "value"), DEPENDENT)
def test_fingerprints_change_only_with_what_matters(
    tiny_study: Callable[..., Path], section: str, key: str, value: Any
) -> None:
    study = load_study(tiny_study(judge={"backend": "local", "model": "random:llama"}))
    other = changed(study, section, **{key: value})
    stale = {
        stage
        for stage in STAGES
        if study.cell(None, "mid").fingerprint(stage) != other.cell(None, "mid").fingerprint(stage)
    }
    assert stale == DEPENDENT[section, key, value]


def test_base_does_not_depend_on_training(tiny_study: Callable[..., Path]) -> None:
    study = load_study(tiny_study())
    other = changed(study, "training", learning_rate=0.5)
    for stage in STAGES:
        assert study.cell(None, "base").fingerprint(stage) == other.cell(None, "base").fingerprint(
            stage
        )


def test_fingerprints_tell_cells_apart_and_names_do_not_matter(
    tiny_study: Callable[..., Path],
) -> None:
    study = load_study(tiny_study(models=["random:llama", "random:qwen2"]))
    assert len({c.fingerprint("train") for c in study.cells()}) == len(study.cells())
    again = load_study(tiny_study(name="renamed", title="Other", models=["random:llama"]))
    assert study.cells()[1].fingerprint("train") == again.cells()[1].fingerprint("train")


def test_a_fingerprint_is_the_same_in_another_process(tiny_study: Callable[..., Path]) -> None:
    import subprocess
    import sys

    path = tiny_study()
    code = (
        "import sys; from hialign import load_study; "
        "print(load_study(sys.argv[1]).cell(None, 'mid').fingerprint('train'))"
    )
    run = [sys.executable, "-c", code, str(path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    assert out == load_study(path).cell(None, "mid").fingerprint("train")


def test_settings_are_plain_values(tiny_study: Callable[..., Path]) -> None:
    cell = load_study(tiny_study()).cell(None, "mid")
    for stage in STAGES:
        assert yaml.safe_load(yaml.safe_dump(cell.settings(stage))) == cell.settings(stage)


def test_importing_hialign_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, hialign, hialign.study, hialign.blocks, hialign.records; "
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", study_names())
def test_a_studys_copy_has_its_fingerprints(name: str, tmp_path: Path) -> None:
    """As the book's pages and what is published have it; else all their runs would be stale."""
    study = load_study(name)
    copy = tmp_path / "copy.yml"
    copy.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    for ours, theirs in zip(study.cells(), load_study(copy).cells(), strict=True):
        for stage in STAGES:
            assert ours.fingerprint(stage) == theirs.fingerprint(stage), stage


def test_a_users_mistake_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="there is no study 'dmeo'"):
        load_study("dmeo")
